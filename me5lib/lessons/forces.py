"""Plots of the lessons on loss and gradient (02, 04, 05): small tables, forces on a circle, padding, guesses.

Like those of `figures`, each takes plain data and returns a matplotlib `Figure`; `figures.keep` writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from me5lib.lessons.figures import COLOURS, GREY, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        axis.annotate(name, (1.26 * place[0], 1.16 * place[1]), ha="center", va="center", fontsize=8, color=colour)
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


def padding(lengths: list[int], cut: list[list[int]], title: str = "") -> Figure:
    """Tokens of every text, sorted (blue), and what each of the pieces of `cut` is padded to (orange line).

    The dashed line is the longest of all: a single batch would be padded to it.
    """
    figure, axis = canvas(7.0, 3.4)
    held = [lengths[i] for piece in cut for i in piece]
    padded = [max(lengths[i] for i in piece) for piece in cut for _ in piece]
    places = range(len(held))
    axis.fill_between(places, 0, held, color=COLOURS[5], step="post", label="tokens")
    axis.step(places, padded, color=COLOURS[1], where="post", linewidth=1.2, label=f"padded to, in {len(cut)} pieces")
    axis.axhline(max(held), color="black", linestyle="--", linewidth=1, label="padded to, in one batch")
    axis.set_xlabel("texts, shortest first")
    axis.set_ylabel("tokens")
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    return figure


def beside(rows: dict[str, dict[str, float]], x: str, level: tuple[str, float] | None = None) -> Figure:
    """One line a row, its values as marks of different shape and colour: a guess (first, grey) beside what came."""
    figure, axis = canvas(7.0, 0.9 + 0.34 * len(rows))
    for i, name in enumerate(dict.fromkeys(mark for row in rows.values() for mark in row)):
        held = [(row[name], place) for place, row in enumerate(rows.values()) if name in row]
        axis.scatter(*zip(*held, strict=True), 110 if i == 0 else 32, (GREY, *COLOURS[:3])[i % 4], "sox^"[i % 4],
                     label=name, zorder=2 + i, alpha=0.5 if i == 0 else 1.0)
    if level:
        axis.axvline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlabel(x)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
