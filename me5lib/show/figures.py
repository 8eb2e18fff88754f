"""Plots. Each function takes plain data and returns a matplotlib `Figure`; `keep` writes it and refuses missing glyphs.

Languages are shown by their codes, so that no font of a script is needed. Colours are Okabe and Ito's, which people
with any colour vision can tell apart.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
GREY = "#8A8A8A"


def canvas(width: float = 7.0, height: float = 4.0, columns: int = 1, rows: int = 1, **options):
    """A figure and its axes in the house style. Sizes in inches; `options` go to `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_prop_cycle(color=COLOURS)
    return figure, axes


def keep(figure: Figure, path: Path) -> Figure:
    """Write `figure` as PNG and return it, for display. A glyph that no font has is an error, not an empty box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        figure.savefig(path, metadata={"Software": None})
    figure._repr_png_ = path.read_bytes  # Jupyter finds no picture in a Figure that pyplot did not make
    return figure


def shares(rows: dict[str, dict[str, float]], ceiling: tuple[str, float] | None = None) -> Figure:
    """Horizontal bars of shares in [0, 1]: a group per row, a bar per column; `ceiling` draws a labelled line."""
    figure, axis = canvas(7.0, 0.6 + 0.75 * len(rows))
    columns = list(next(iter(rows.values())))
    height = 0.8 / len(columns)
    for i, column in enumerate(columns):
        places = [j + (i - (len(columns) - 1) / 2) * height for j in range(len(rows))]
        bars = axis.barh(places, [row[column] for row in rows.values()], height * 0.9, label=column, color=COLOURS[i])
        axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    if ceiling:
        axis.axvline(ceiling[1], color="black", linestyle="--", linewidth=1, label=f"{ceiling[0]} {ceiling[1]:g}")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08)
    figure.legend(loc="outside lower center", ncols=len(columns) + 1, frameon=False)
    return figure


def number_table(
    values: list[list[float]], rows: list[str], columns: list[str], title: str = "",
    signed: bool = False, outlined: list[tuple[int, int]] = (), pattern: str = "{:.2f}",
) -> Figure:
    """A small table as coloured cells with their numbers: white to blue, or `signed`, orange below 0 and blue above.

    `outlined` cells (row, column) get a black border. A cell of None is empty.
    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    figure, axis = canvas(1.6 + 0.95 * len(columns), 1.1 + 0.5 * len(rows))
    known = [value for row in values for value in row if value is not None]
    most = max(map(abs, known)) or 1.0
    colours = [COLOURS[1], "white", COLOURS[0]] if signed else ["white", COLOURS[0]]
    paint = LinearSegmentedColormap.from_list("house", colours)
    scale = Normalize(-most if signed else min(0, *known), most)
    filled = [[float("nan") if value is None else value for value in row] for row in values]
    axis.imshow(filled, cmap=paint, norm=scale, alpha=0.75, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axis.text(j, i, "" if value is None else pattern.format(value), ha="center", va="center", fontsize=9)
    for i, j in outlined:
        axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, linewidth=1.8))
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.grid(False)
    return figure


def curves(
    lines: dict[str, tuple[list[float], list[float]]], x: str, y: str, title: str = "",
    logx: bool = False, logy: bool = False, dots: bool = False, level: tuple[str, float] | None = None,
) -> Figure:
    """Lines by name, each (x values, y values), told apart by colour and dash; `level` draws a labelled grey line."""
    figure, axis = canvas(7.0, 3.6)
    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        axis.plot(xs, ys, label=name, linestyle=dashes[i % len(dashes)], marker="o" if dots else None, markersize=4)
    if level:
        axis.axhline(level[1], color=GREY, linewidth=1)
        axis.annotate(level[0], (1, level[1]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axis.set_xscale("log" if logx else "linear")
    axis.set_yscale("log" if logy else "linear")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)
    return figure


def pulls(query: tuple[float, float], passages: dict[str, tuple[float, float]], arrows: dict[str, tuple[float, float]],
          title: str = "") -> Figure:
    """A query and passages on the unit circle, and the step (x, y) that gradient descent takes each of them.

    `arrows` are drawn to one common scale, the longest 0.6 of the radius.
    """
    import math

    figure, axis = canvas(4.6, 4.6)
    turn = [math.tau * k / 200 for k in range(201)]
    axis.plot([math.cos(t) for t in turn], [math.sin(t) for t in turn], color=GREY, linewidth=0.8)
    scale = 0.6 / max(math.hypot(*arrow) for arrow in arrows.values())
    for i, (name, place) in enumerate({"query": query, **passages}.items()):
        colour = "black" if i == 0 else COLOURS[(i - 1) % len(COLOURS)]
        axis.plot(*place, "o" if i else "s", color=colour)
        axis.annotate(name, (1.16 * place[0], 1.16 * place[1]), ha="center", va="center", fontsize=8, color=colour)
        step = arrows.get(name, (0.0, 0.0))
        end = (place[0] + scale * step[0], place[1] + scale * step[1])
        axis.annotate("", end, place, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.6})
    axis.set_xlim(-1.45, 1.45)
    axis.set_ylim(-1.45, 1.45)
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.set_title(title, fontsize=10)
    return figure


def circles(clouds: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]]) -> Figure:
    """One unit circle a name: queries (circles) and passages (crosses), a line between those that belong together."""
    figure, axes = canvas(2.5 * len(clouds), 2.8, columns=len(clouds), squeeze=False)
    for axis, (name, (queries, passages)) in zip(axes[0], clouds.items(), strict=True):
        for i, (one, other) in enumerate(zip(queries, passages, strict=True)):
            colour = COLOURS[i % len(COLOURS)]
            axis.plot([one[0], other[0]], [one[1], other[1]], color=colour, linewidth=1)
            axis.plot(*one, "o", color=colour, markersize=4)
            axis.plot(*other, "x", color=colour, markersize=5)
        axis.set_title(name, fontsize=9)
        axis.set_aspect("equal")
        axis.set_xlim(-1.15, 1.15)
        axis.set_ylim(-1.15, 1.15)
        axis.set_axis_off()
    return figure


def grids(panels: dict[str, list[list[bool]]], x: str, y: str) -> Figure:
    """Tables of yes (orange) and no (white) side by side."""
    from matplotlib.colors import ListedColormap

    figure, axes = canvas(3.4 * len(panels), 3.6, columns=len(panels), squeeze=False)
    for axis, (name, cells) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(cells, cmap=ListedColormap(["white", COLOURS[1]]), vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(False)
        axis.spines[["top", "right"]].set_visible(True)
    return figure


def source_shares(mixtures: dict[str, dict[str, float]]) -> Figure:
    """A panel per mixture (title → source → amount): horizontal bars of the shares, largest first."""
    figure, axes = canvas(4.6 * len(mixtures), 3.4, columns=len(mixtures), squeeze=False)
    for axis, (title, amounts), colour in zip(axes[0], mixtures.items(), COLOURS, strict=False):
        total = sum(amounts.values())
        found = sorted(((amount / total, source) for source, amount in amounts.items()), reverse=True)
        bars = axis.barh([source for _, source in found], [share for share, _ in found], color=colour)
        axis.bar_label(bars, fmt=lambda share: f"{share:.1%}", fontsize=8, padding=2)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="share of the pairs", xlim=(0, 1.25 * found[0][0]))
    return figure


def language_shares(rows: dict[str, int], curves: dict[str, list[float]]) -> Figure:
    """Shares of the languages in `rows` (most rows first), one line per entry of `curves`, on a logarithmic scale."""
    figure, axis = canvas(9.0, 4.0)
    for (label, shares_of), style in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        axis.plot(range(len(rows)), shares_of, style, marker="o", markersize=3, label=label)
    labels = {"rotation": 90, "fontsize": 8 if len(rows) < 50 else 5}
    axis.set_xticks(range(len(rows)), list(rows), **labels)
    axis.set(yscale="log", ylabel="share of the source's pairs", xlabel="languages, most rows first")
    axis.legend(frameon=False)
    return figure


def temperature_slider(rows: dict[str, int], start: float = 0.5):
    """An ipywidgets box: `language_shares` of `rows` at the temperature of a slider. Static twin: `language_shares`."""
    import io

    import ipywidgets

    slider = ipywidgets.FloatSlider(start, min=0.0, max=1.0, step=0.05, description="temperature", continuous_update=False)
    picture = ipywidgets.Image(format="png")

    def show(_change: object = None) -> None:
        powers = [count**slider.value for count in rows.values()]
        file = io.BytesIO()
        curve = {f"temperature {slider.value:.2f}": [power / sum(powers) for power in powers]}
        language_shares(rows, curve).savefig(file, format="png")
        picture.value = file.getvalue()

    slider.observe(show, "value")
    show()
    return ipywidgets.VBox([slider, picture])


def batch_sources(panels: dict[str, list[dict[str, int]]]) -> Figure:
    """A panel per entry: one stacked bar per step, rows of each source; steps in order, one colour per source."""
    figure, axes = canvas(9.0, 1.7 * len(panels), rows=len(panels), squeeze=False, sharex=True)
    sources = sorted({source for steps in panels.values() for step in steps for source in step})
    colours = [*COLOURS, GREY]
    for axis, (title, steps) in zip(axes[:, 0], panels.items(), strict=True):
        bottom = [0] * len(steps)
        for i, source in enumerate(sources):
            height = [step.get(source, 0) for step in steps]
            axis.bar(range(len(steps)), height, 0.9, bottom, color=colours[i % len(colours)], label=source)
            bottom = [b + h for b, h in zip(bottom, height, strict=True)]
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel("rows")
    axes[-1, 0].set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def nearest_trained(similarity: dict[str, list[float]], near: float) -> Figure:
    """Histograms of each held-out string's similarity to the nearest trained one, per split; `near` is the line."""
    figure, axis = canvas(8.0, 3.6)
    bins = [i / 20 for i in range(21)]
    axis.hist(list(similarity.values()), bins, label=list(similarity), density=False,
              weights=[[1 / max(len(found), 1)] * len(found) for found in similarity.values()])
    axis.axvline(near, color="black", linestyle="--", linewidth=1, label=f"near-copy from {near:g} on")
    axis.set(xlabel="similarity to the nearest trained string (Jaccard, character trigrams)",
             ylabel="share of held-out strings")
    axis.legend(frameon=False)
    return figure
