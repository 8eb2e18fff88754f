"""The picture of a mixture: what each source has against what the paper drew, and how often each language is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from me5lib.lessons.figures import COLOURS, GREY, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from me5lib.data.hub import StageMixture

SHOWN = 60  # languages that have room (ours)


def picture(stage: StageMixture, threshold: float) -> Figure:
    """Left, rows of each source, built (bar) and wanted by the paper (mark); right, languages by their share of draws.

    Both axes are logarithmic. Languages below `threshold` are in the warning colour; beyond `SHOWN` only the poorest
    and the richest are drawn.
    """
    names = list(stage.wanted)
    codes = list(stage.languages)
    drawn = codes if len(codes) <= SHOWN else codes[: SHOWN // 2] + codes[-(SHOWN - SHOWN // 2):]
    height = max(2.6, 0.9 + 0.3 * len(names))
    wide = max(4.2, 0.17 * len(drawn) + 1.2)
    figure, (left, right) = canvas(5.2 + wide, height, columns=2, width_ratios=[5.2, wide])
    _sources(left, stage, names)
    _languages(right, stage, drawn, threshold)
    hidden = len(codes) - len(drawn)
    right.set_title(f"{len(codes)} languages" + (f", {hidden} in the middle not drawn" if hidden else "")
                    + f"; starved: under {threshold:.1%} (ours)", fontsize=9)
    figure.suptitle(stage.title, fontsize=11)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=8)
    return figure


def _sources(axis, stage: StageMixture, names: list[str]) -> None:
    rows = [sum(stage.built.get(name, {}).values()) for name in names]
    wanted = [stage.wanted[name] for name in names]
    axis.barh(range(len(names)), rows, color=COLOURS[0], height=0.6, label="built")
    marked = [(count, place) for place, count in enumerate(wanted) if count]
    axis.plot([count for count, _ in marked], [place for _, place in marked], "|", color=COLOURS[1], markersize=14,
              markeredgewidth=2.5, label="drawn by the paper")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(xscale="log", xlim=(1, 3 * max(filter(None, [*rows, *wanted, 1]))), xlabel="rows")


def _languages(axis, stage: StageMixture, drawn: list[str], threshold: float) -> None:
    shares = [stage.languages[code][1] for code in drawn]
    colours = [COLOURS[1] if share < threshold else COLOURS[0] for share in shares]
    axis.bar(range(len(drawn)), shares, color=colours, width=0.7)
    axis.axhline(threshold, color=GREY, linewidth=1, linestyle="--")
    axis.set_xticks(range(len(drawn)), drawn, rotation=90, fontsize=7)
    axis.set(yscale="log", ylim=(min([*shares, threshold]) / 2, 1.3), ylabel="share of the rows drawn",
             xlim=(-0.8, len(drawn) - 0.2))
