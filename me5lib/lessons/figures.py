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


def curves(
    lines: dict[str, tuple[list[float], list[float]]], x: str, y: str, title: str = "",
    logx: bool = False, logy: bool = False, dots: bool = False, level: tuple[str, float] | None = None,
) -> Figure:
    """Lines by name, each (x values, y values), told apart by colour and dash; `level` draws a labelled grey line.

    With `dots` every point is marked, and the ticks of x are the points.
    """
    from matplotlib.ticker import NullLocator

    figure, axis = canvas(7.0, 3.6)
    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        axis.plot(xs, ys, label=name, linestyle=dashes[i % len(dashes)], marker="o" if dots else None, markersize=4)
    if level:
        axis.axhline(level[1], color=GREY, linewidth=1)
        axis.annotate(level[0], (1, level[1]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axis.set_xscale("log" if logx else "linear")
    axis.set_yscale("log" if logy else "linear")
    if dots:
        ticks = sorted({value for xs, _ in lines.values() for value in xs})
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)
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
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axis = canvas(9.0, 4.0)
    for (label, shares_of), style in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        axis.plot(range(len(rows)), shares_of, style, marker="o", markersize=3, label=label)
    labels = {"rotation": 90, "fontsize": 8 if len(rows) < 50 else 5}
    axis.set_xticks(range(len(rows)), list(rows), **labels)
    axis.set(yscale="log", ylabel="share of the source's pairs", xlabel="languages, most rows first")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.2g} %")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False)
    return figure


def temperature_slider(rows: dict[str, int], start: float = 0.5):
    """An ipywidgets box: `language_shares` of `rows` at the temperature of a slider. Static twin: `language_shares`."""
    import io

    import ipywidgets

    slider = ipywidgets.FloatSlider(start, min=0.0, max=1.0, step=0.05, continuous_update=False)
    picture = ipywidgets.Image(format="png")

    def show(_change: object = None) -> None:
        """Draw at the slider's value."""
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


def language_dots(scores: dict[str, dict[str, float]], x: str) -> Figure:
    """A row per language, a mark per model (model → language → score in [0, 1]): who finds what in which language.

    Languages are sorted by the first model's score, best on top; a model without a score for a language has no mark.
    """
    first = next(iter(scores.values()))
    languages = sorted(first, key=lambda language: (first[language], language))
    figure, axis = canvas(7.0, 1.4 + 0.3 * len(languages))
    for (name, row), mark in zip(scores.items(), ("o", "x", "s", "^", "D", "v"), strict=False):
        places = [i for i, language in enumerate(languages) if language in row]
        axis.plot([row[languages[i]] for i in places], places, mark, label=name, markersize=6, alpha=0.85)
    axis.set_yticks(range(len(languages)), languages)
    axis.set(xlim=(-0.03, 1.03), xlabel=x)
    figure.legend(loc="outside upper center", ncols=len(scores), frameon=False, fontsize=9)
    return figure


def cosine_histograms(panels: dict[str, dict[str, list[float]]], x: str = "cosine") -> Figure:
    """A panel per title, one above another on one axis; in each a histogram per label, every one of area 1."""
    low = min(min(values) for panel in panels.values() for values in panel.values())
    edges = [low + i * (1 - low) / 60 for i in range(61)]
    figure, axes = canvas(7.0, 0.6 + 1.5 * len(panels), rows=len(panels), squeeze=False, sharex=True)
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        for (label, values), hatch in zip(panel.items(), ("", "///", "..."), strict=False):
            axis.hist(values, edges, density=True, alpha=0.6, label=label, hatch=hatch)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_yticks([])
    axes[-1, 0].set_xlabel(x)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def loss_curve(steps: list[dict], chance: float, smooth: float = 0.9) -> Figure:
    """The loss of every step as dots, coloured by source, and its running mean; `chance` is that of no knowledge.

    `steps` are rows of a stage's log (step, loss, source); the running mean forgets at `smooth` a step.
    """
    figure, axis = canvas(8.0, 3.8)
    for i, source in enumerate(sorted({row["source"] for row in steps})):
        own = [row for row in steps if row["source"] == source]
        axis.plot([row["step"] for row in own], [row["loss"] for row in own], "o", markersize=3, alpha=0.6,
                  color=COLOURS[i % len(COLOURS)], label=source)
    mean, weight, line = 0.0, 0.0, []
    for row in steps:
        mean, weight = smooth * mean + row["loss"], smooth * weight + 1
        line.append(mean / weight)
    axis.plot([row["step"] for row in steps], line, color="black", linewidth=1.5, label="running mean")
    axis.axhline(chance, color=GREY, linestyle="--", linewidth=1, label=f"all passages alike: {chance:.2f}")
    axis.set(xlabel="step", ylabel="InfoNCE", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def forming(evaluations: list[dict], lexical: dict[str, float]) -> Figure:
    """Held-out accuracy by language while training, a small panel each; dashed, what shared trigrams alone score.

    `evaluations` are rows of a stage's log (step, `accuracy.<language>`); `lexical` is language → accuracy.
    """
    columns = min(4, len(lexical))
    rows = -(-len(lexical) // columns)
    figure, axes = canvas(2.3 * columns, 1.9 * rows, columns, rows, squeeze=False, sharex=True, sharey=True)
    for axis, (language, line) in zip(axes.flat, sorted(lexical.items()), strict=False):
        axis.plot([e["step"] for e in evaluations], [e[f"accuracy.{language}"] for e in evaluations], marker=".")
        axis.axhline(line, color=COLOURS[1], linestyle="--", linewidth=1.2)
        axis.set_title(language, fontsize=9, loc="left")
        axis.set_ylim(0, 1)
    for axis in list(axes.flat)[len(lexical) :]:
        axis.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("share found among the pool", fontsize=9)
    names = ["model", "shared character trigrams"]
    figure.legend(names, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def alignment_path(evaluations: list[dict]) -> Figure:
    """The way of a training run through uniformity (across) and alignment (up); lower is better on both."""
    figure, axis = canvas(5.4, 4.0)
    across, up = [e["uniformity"] for e in evaluations], [e["alignment"] for e in evaluations]
    axis.plot(across, up, color=GREY, linewidth=1)
    dots = axis.scatter(across, up, c=[e["accuracy"] for e in evaluations], cmap="viridis", vmin=0, vmax=1, zorder=3)
    for e in (evaluations[0], evaluations[len(evaluations) // 4], evaluations[-1]):
        place = (e["uniformity"], e["alignment"])
        axis.annotate(f"step {e['step']}", place, (6, 5), textcoords="offset points", fontsize=8)
    figure.colorbar(dots, label="held-out accuracy")
    axis.set(xlabel="uniformity  (lower: spread out)", ylabel="alignment  (lower: pairs together)")
    axis.margins(0.15)
    return figure


def shares_of_pull(kinds: dict[str, list[float]]) -> Figure:
    """Where the pull on a query comes from: a box per kind of negative, of one negative's weight, logarithmic."""
    figure, axis = canvas(7.0, 0.9 + 0.55 * len(kinds))
    axis.boxplot(list(kinds.values()), vert=False, whis=(5, 95), showfliers=False, widths=0.55,
                 medianprops={"color": COLOURS[1], "linewidth": 2})
    axis.set_yticks(range(1, len(kinds) + 1), list(kinds))
    axis.set_xscale("log")
    axis.set_xlabel("softmax weight of one negative  (box: middle half, whiskers: 5 … 95 %)")
    axis.invert_yaxis()
    return figure


def two_opinions(texts: list[str], student: list[float], teacher: list[float], right: int = 0) -> Figure:
    """The probabilities that student and teacher give the passages of one group; the right one is starred."""
    figure, axis = canvas(7.0, 0.9 + 0.45 * len(texts))
    places = range(len(texts))
    for i, (label, values) in enumerate({"student": student, "teacher": teacher}.items()):
        bars = axis.barh([place + 0.4 * i - 0.2 for place in places], values, 0.36, color=COLOURS[i], label=label)
        axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axis.set_yticks(places, [f"{'★ ' if i == right else ''}{text}" for i, text in enumerate(texts)])
    axis.set_xlim(0, 1.1)
    axis.invert_yaxis()
    axis.set_xlabel("probability in the group")
    axis.legend(frameon=False, fontsize=8)
    return figure


def intervals(rows: dict[str, tuple[float, float, float]], label: str, zero: bool = False) -> Figure:
    """Name → (value, low, high) as dots with their intervals, one a line; with `zero` a line where nothing differs."""
    figure, axis = canvas(7.0, 0.9 + 0.42 * len(rows))
    for i, (value, low, high) in enumerate(rows.values()):
        axis.plot([low, high], [i, i], color=COLOURS[0], linewidth=2)
        axis.plot(value, i, "o", color=COLOURS[0])
        axis.annotate(f"{value:+.3f}" if zero else f"{value:.3f}", (value, i), (0, 6), textcoords="offset points",
                      ha="center", fontsize=8)
    if zero:
        axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.set_xlabel(label)
    return figure


def score_panels(
    panels: dict[str, dict[str, list[float]]], spans: dict[str, dict[str, tuple[float, ...]]], names: list[str]
) -> Figure:
    """A panel per task, a line per row of the table: a grey dot per language, the mean and its interval in colour.

    `panels`: task → row → scores of its languages; `spans`: task → row → (mean, low, high); `names`: rows from the top.
    """
    wide = min(3, len(panels))
    deep = -(-len(panels) // wide)
    figure, grid = canvas(3.3 * wide + 1.2, (0.9 + 0.27 * len(names)) * deep, wide, deep, sharey=True, squeeze=False)
    for axis, (task, rows) in zip(grid.flat, panels.items(), strict=False):
        for name, scores in rows.items():
            place, (mean, low, high) = names.index(name), spans[task][name]
            axis.plot(scores, [place] * len(scores), ".", color=GREY, alpha=0.35, markersize=4)
            axis.plot([low, high], [place, place], color=COLOURS[1], linewidth=2.5)
            axis.plot(mean, place, "o", color=COLOURS[1], markersize=5)
        axis.set(title=task, xlim=(-0.03, 1.03), yticks=range(len(names)), yticklabels=names)
        axis.set_ylim(len(names) - 0.5, -0.5)
    for axis in list(grid.flat)[len(panels):]:
        axis.set_visible(False)
    return figure


def score_map(scores: dict[str, dict[str, float]], label: str) -> Figure:
    """Rows of the table down, languages across (row → language → score in [0, 1]), sorted by the last row's score."""
    import numpy as np

    languages = sorted(next(reversed(scores.values())), key=lambda code: -next(reversed(scores.values()))[code])
    values = np.array([[row.get(code, np.nan) for code in languages] for row in scores.values()])
    small = len(languages) > 60
    figure, axis = canvas(min(15.0, 2.6 + 0.23 * len(languages)), 1.3 + 0.32 * len(scores))
    axis.grid(False)
    image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(languages)), languages, rotation=90, fontsize=6 if small else 8)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set_title(label, fontsize=10)
    figure.colorbar(image, fraction=0.03, pad=0.01)
    return figure
