"""Plots. Each function takes plain data and returns a matplotlib `Figure`; `keep` writes it and refuses missing glyphs.

Languages are shown by their codes, so that no font of a script is needed. Colours are Okabe and Ito's, which people
with any colour vision can tell apart.
"""

from __future__ import annotations

import base64
import html
import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
GREY = "#8A8A8A"
Point = tuple[float, float]


def canvas(width: float = 7.0, height: float = 4.0, columns: int = 1, rows: int = 1, **options):
    """A figure and its axes in the house style. Sizes in inches; `options` go to `Figure.subplots`."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_prop_cycle(color=COLOURS)
    return figure, axes


def keep(figure: Figure, path: Path, caption: str) -> Figure:
    """Write `figure` as PNG and return it; Jupyter shows it with its caption, which is its alternative text too.

    The caption says what is drawn and what to look at. A glyph that no font has is an error, not an empty box.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        figure.savefig(path)
    with Image.open(path) as drawn:  # 256 colours differ by no more than 3 of 255, in two fifths of the bytes
        about = PngInfo()
        about.add_text("Description", caption)
        drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True, pnginfo=about)
    # HTML, as JupyterLab gives an image/png no alternative text, and finds no picture in a Figure not made by pyplot
    figure._repr_html_ = lambda: (
        f'<figure style="margin: .5rem 0"><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(caption)}</figcaption></figure>')
    return figure


def interactive(controls: Sequence[Any], draw: Callable[..., Figure]):
    """An ipywidgets box: the picture that `draw` makes of the values of `controls`, drawn again when one changes."""
    import ipywidgets

    picture = ipywidgets.Image(format="png")

    def show(_change: object = None) -> None:
        file = io.BytesIO()
        draw(*(control.value for control in controls)).savefig(file, format="png")
        picture.value = file.getvalue()

    for control in controls:
        control.observe(show, "value")
    show()
    return ipywidgets.VBox([*controls, picture])


def legend_below(figure: Figure, columns: int, **options: Any) -> None:
    """The legend of a whole figure, under its axes."""
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, **options)


def codes_across(axis: Axes, names: Iterable[str], size: float) -> None:
    """A name at each place of x, upright."""
    names = list(names)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)


def names_down(axis: Axes, names: Iterable[str], **options: Any) -> None:
    """A name at each place of y, the first on top."""
    names = list(names)
    axis.set_yticks(range(len(names)), names, **options)
    axis.invert_yaxis()


# ---- in any lesson ---------------------------------------------------------------------------------------------------


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
    names_down(axis, rows)
    axis.set_xlim(0, 1.08)
    legend_below(figure, len(columns) + 1)
    return figure


def curves(
    lines: dict[str, tuple[list[float], list[float]]], x: str, y: str, logx: bool = False, logy: bool = False,
    dots: bool = False, level: tuple[str, float] | None = None,
) -> Figure:
    """Lines by name, each (x values, y values), told apart by colour and dash; `level` draws a labelled grey line.

    With `dots` every point is marked, and the ticks of x are the points.
    """
    figure, axis = canvas(7.0, 3.6)
    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        axis.plot(xs, ys, label=name, linestyle=dashes[i % len(dashes)], marker="o" if dots else None, markersize=4)
    if level:
        axis.axhline(level[1], color=GREY, linewidth=1)
        axis.annotate(level[0], (1, level[1]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axis.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear", xlabel=x, ylabel=y)
    if dots:
        ticks = sorted({value for xs, _ in lines.values() for value in xs})
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)
    return figure


def span(
    axis: Axes, place: int, value: float, low: float, high: float, colour: str = COLOURS[0], label: str = ""
) -> None:
    """A dot with its interval on the line `place`, `label` above it."""
    axis.plot([low, high], [place, place], color=colour, linewidth=2)
    axis.plot(value, place, "o", color=colour, markersize=5)
    axis.annotate(label, (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=7)


def intervals(rows: dict[str, tuple[float, float, float]], label: str, zero: bool = False) -> Figure:
    """Name → (value, low, high) as dots with their intervals, one a line; with `zero` a line where nothing differs."""
    figure, axis = canvas(7.0, 0.9 + 0.42 * len(rows))
    for i, (value, low, high) in enumerate(rows.values()):
        span(axis, i, value, low, high, label=f"{value:+.3f}" if zero else f"{value:.3f}")
    if zero:
        axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(ylim=(len(rows) - 0.4, -0.8), xlabel=label)
    return figure


def beside(rows: dict[str, dict[str, float]], x: str, level: tuple[str, float] | None = None) -> Figure:
    """One line a row, its values as marks of different shape and colour: a guess (first, grey) beside what came."""
    figure, axis = canvas(7.0, 0.9 + 0.34 * len(rows))
    for i, name in enumerate(dict.fromkeys(mark for row in rows.values() for mark in row)):
        points = [(row[name], place) for place, row in enumerate(rows.values()) if name in row]
        axis.scatter(*zip(*points, strict=True), 110 if i == 0 else 32, (GREY, *COLOURS[:3])[i % 4], "sox^"[i % 4],
                     label=name, zorder=2 + i, alpha=0.5 if i == 0 else 1.0)
    if level:
        axis.axvline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    names_down(axis, rows)
    axis.set_xlabel(x)
    legend_below(figure, 4, fontsize=8)
    return figure


def number_table(
    values: list[list[float]], rows: list[str], columns: list[str], title: str = "",
    signed: bool = False, outlined: list[tuple[int, int]] = (), pattern: str = "{:.2f}",
) -> Figure:
    """A small table as coloured cells with their numbers: white to blue, or `signed`, orange below 0 and blue above.

    `outlined` cells (row, column) get a black border. A cell of None is empty.
    """
    figure, axis = canvas(1.6 + 0.95 * len(columns), 1.1 + 0.5 * len(rows))
    known = [value for row in values for value in row if value is not None]
    most = max(map(abs, known)) or 1.0
    colours = [COLOURS[1], "white", COLOURS[0]] if signed else ["white", COLOURS[0]]
    scale = Normalize(-most if signed else min(0, *known), most)
    cells = [[float("nan") if value is None else value for value in row] for row in values]
    paint = LinearSegmentedColormap.from_list("house", colours)
    axis.imshow(cells, cmap=paint, norm=scale, alpha=0.75, aspect="auto")
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


# ---- the loss and its gradient ---------------------------------------------------------------------------------------


def pulls(query: Point, passages: dict[str, Point], arrows: dict[str, Point], title: str = "") -> Figure:
    """A query and passages on the unit circle, and the step (x, y) that gradient descent takes each of them.

    `arrows` are drawn to one common scale, the longest 0.6 of the radius.
    """
    figure, axis = canvas(4.6, 4.6)
    turn = [math.tau * k / 200 for k in range(201)]
    axis.plot([math.cos(t) for t in turn], [math.sin(t) for t in turn], color=GREY, linewidth=0.8)
    scale = 0.6 / max(math.hypot(*arrow) for arrow in arrows.values())
    for i, (name, place) in enumerate({"query": query, **passages}.items()):
        colour = "black" if i == 0 else COLOURS[(i - 1) % len(COLOURS)]
        axis.plot(*place, "o" if i else "s", color=colour)
        axis.annotate(name, (1.26 * place[0], 1.16 * place[1]), ha="center", va="center", fontsize=8, color=colour)
        step = arrows.get(name, (0.0, 0.0))
        end = (place[0] + scale * step[0], place[1] + scale * step[1])
        axis.annotate("", end, place, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.6})
    axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axis.set_axis_off()
    axis.set_title(title, fontsize=10)
    return figure


def circles(clouds: dict[str, tuple[list[Point], list[Point]]]) -> Figure:
    """One unit circle a name: queries (circles) and passages (crosses), a line between those that belong together."""
    figure, axes = canvas(2.5 * len(clouds), 2.8, columns=len(clouds), squeeze=False)
    for axis, (name, (queries, passages)) in zip(axes[0], clouds.items(), strict=True):
        for i, (one, other) in enumerate(zip(queries, passages, strict=True)):
            colour = COLOURS[i % len(COLOURS)]
            axis.plot([one[0], other[0]], [one[1], other[1]], color=colour, linewidth=1)
            axis.plot(*one, "o", color=colour, markersize=4)
            axis.plot(*other, "x", color=colour, markersize=5)
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
        axis.set_axis_off()
    return figure


def padding(lengths: list[int], cut: list[list[int]], title: str = "") -> Figure:
    """Tokens of every text, sorted (blue), and what each of the pieces of `cut` is padded to (orange line).

    The dashed line is the longest of all: a single batch would be padded to it.
    """
    figure, axis = canvas(7.0, 3.4)
    tokens = [lengths[i] for piece in cut for i in piece]
    padded = [max(lengths[i] for i in piece) for piece in cut for _ in piece]
    places = range(len(tokens))
    axis.fill_between(places, 0, tokens, color=COLOURS[5], step="post", label="tokens")
    axis.step(places, padded, color=COLOURS[1], where="post", linewidth=1.2, label=f"padded to, in {len(cut)} pieces")
    axis.axhline(max(tokens), color="black", linestyle="--", linewidth=1, label="padded to, in one batch")
    axis.set(xlabel="texts, shortest first", ylabel="tokens")
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    return figure


# ---- training --------------------------------------------------------------------------------------------------------


def loss_curve(steps: list[dict], chance: float) -> Figure:
    """The loss of every step, a colour and a mark per source, and its running mean; `chance` is that of no knowledge.

    `steps` are rows of a stage's log (step, loss, source); the running mean forgets a tenth a step.
    """
    figure, axis = canvas(8.0, 3.8)
    for i, source in enumerate(sorted({row["source"] for row in steps})):
        own = [row for row in steps if row["source"] == source]
        axis.plot([row["step"] for row in own], [row["loss"] for row in own], "os^DvPX*"[i % 8], markersize=4,
                  alpha=0.6, color=COLOURS[i % len(COLOURS)], label=source)
    mean = pandas.Series([row["loss"] for row in steps]).ewm(alpha=0.1).mean()
    axis.plot([row["step"] for row in steps], mean, color="black", linewidth=1.5, label="running mean")
    axis.axhline(chance, color=GREY, linestyle="--", linewidth=1, label=f"all passages alike: {chance:.2f}")
    axis.set(xlabel="step", ylabel="InfoNCE", ylim=(0, None))
    legend_below(figure, 4, fontsize=8)
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
    figure.legend(["model", "shared trigrams"], loc="outside upper center", ncols=2, frameon=False, fontsize=8)
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
    axis.set(xscale="log", xlabel="softmax weight of one negative  (box: middle half, whiskers: 5 … 95 %)")
    axis.invert_yaxis()
    return figure


# ---- how good is it --------------------------------------------------------------------------------------------------


def language_dots(scores: dict[str, dict[str, float]], x: str) -> Figure:
    """A row per language, a mark per model (model → language → score in [0, 1]): who finds what in which language.

    Languages are sorted by the first model's score, best on top; a model without a score for a language has no mark.
    """
    first = next(iter(scores.values()))
    languages = sorted(first, key=lambda language: (-first[language], language))
    return beside({language: {name: row[language] for name, row in scores.items() if language in row}
                   for language in languages}, x)


def cosine_histograms(panels: dict[str, dict[str, list[float]]]) -> Figure:
    """A panel per title, one above another on one axis; in each a histogram per label, every one of area 1."""
    low = min(min(values) for panel in panels.values() for values in panel.values())
    edges = [low + i * (1 - low) / 60 for i in range(61)]
    figure, axes = canvas(7.0, 0.6 + 1.5 * len(panels), rows=len(panels), squeeze=False, sharex=True)
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        for (label, values), hatch in zip(panel.items(), ("", "///", "..."), strict=False):
            axis.hist(values, edges, density=True, alpha=0.6, label=label, hatch=hatch)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_yticks([])
    axes[-1, 0].set_xlabel("cosine")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
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
            span(axis, place, mean, low, high, COLOURS[1])
        axis.set(title=task, xlim=(-0.03, 1.03), yticks=range(len(names)), yticklabels=names)
        axis.set_ylim(len(names) - 0.5, -0.5)
    for axis in list(grid.flat)[len(panels):]:
        axis.set_visible(False)
    return figure


def score_map(scores: dict[str, dict[str, float]], label: str) -> Figure:
    """Rows of the table down, languages across (row → language → score in [0, 1]), sorted by the last row's score; in
    panels of at most 45 languages."""
    *_, last = scores.values()
    languages = sorted(last, key=lambda code: -last[code])
    wide = math.ceil(len(languages) / math.ceil(len(languages) / 45))
    parts = [languages[start : start + wide] for start in range(0, len(languages), wide)]
    figure, axes = canvas(2.6 + 0.23 * wide, (1.3 + 0.32 * len(scores)) * len(parts), rows=len(parts), squeeze=False)
    for axis, part in zip(axes[:, 0], parts, strict=True):
        axis.grid(False)
        image = axis.imshow([[row.get(code, math.nan) for code in part] for row in scores.values()], vmin=0, vmax=1,
                            cmap="viridis", aspect="auto")
        codes_across(axis, part, 8)
        axis.set_yticks(range(len(scores)), list(scores))
    axes[0, 0].set_title(label, fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    return figure
