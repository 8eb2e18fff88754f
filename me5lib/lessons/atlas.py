"""The atlas: a UMAP map of the same meanings in many languages, before and after training, as a picture and a widget.

UMAP runs with a fixed seed, so on one thread: about ten seconds for 1,500 texts after its first compilation. A map
shows neighbourhoods, not distances, and it loses some: every caption gives the neighbour agreement in the full space
beside that of the map.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from me5lib.evaluate.alignment import agreement_by_language, unit
from me5lib.lessons.figures import COLOURS, GREY, canvas, interactive

MARKERS = "osD^vP*Xh<>pd"


class Map(NamedTuple):
    """One laid-out space."""

    title: str
    points: np.ndarray  # [languages, meanings, 2]
    in_space: float  # neighbour agreement in the full space, in the mean of the languages
    on_map: float  # that of the points

    @property
    def caption(self) -> str:
        """The title with both agreements."""
        shares = f"{self.in_space:.0%} in the space, {self.on_map:.0%} on the map"
        return f"{self.title}\nneighbours that are translations:\n{shares}"


def lay_out_map(vectors: np.ndarray, title: str, seed: int = 0) -> Map:
    """UMAP (cosine, 15 neighbours) of `vectors` [languages, meanings, width] in two dimensions."""
    import umap

    languages, meanings, width = vectors.shape
    flat = unit(vectors).reshape(-1, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed seed costs the threads: said in the module's docstring
        bar = {"desc": f"map of {title}", "disable": False, "mininterval": 1}
        points = umap.UMAP(n_neighbors=min(15, len(flat) - 1), metric="cosine", random_state=seed,
                           tqdm_kwds=bar).fit_transform(flat)
    points = np.asarray(points, dtype=np.float64).reshape(languages, meanings, 2)
    in_space, on_map = (float(agreement_by_language(own).mean()) for own in (flat.reshape(vectors.shape), points))
    return Map(title, points, in_space, on_map)


def draw_maps(
    maps: Sequence[Map], languages: Sequence[str], scripts: Sequence[str], meanings: Sequence[int] = ()
) -> Figure:
    """Maps side by side: a marker and colour per script; the chosen `meanings` in black with language codes."""
    wide = min(6.2, 13 / len(maps))  # inches: a page's text is about 8
    figure, axes = canvas(wide * len(maps), 0.9 * wide, columns=len(maps), squeeze=False)
    by_size = [name for name, _ in Counter(scripts).most_common()]
    colours = [*(colour for colour in COLOURS if colour != "#000000"), GREY]
    for axis, laid in zip(axes[0], maps, strict=True):
        for i, name in enumerate(by_size):
            points = laid.points[[j for j, script in enumerate(scripts) if script == name]].reshape(-1, 2)
            axis.scatter(*points.T, s=10, c=colours[i % len(colours)], marker=MARKERS[i % len(MARKERS)], alpha=0.45,
                         linewidths=0, label=name)
        for meaning in meanings:
            axis.scatter(*laid.points[:, meaning].T, s=22, c="black", zorder=3)
            for point, language in zip(laid.points[:, meaning], languages, strict=True):
                axis.annotate(language, point, fontsize=7, xytext=(3, 3), textcoords="offset points", zorder=4)
        axis.set_title(laid.caption, fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", frameon=False, markerscale=2,
                  ncols=min(len(by_size), 3 + 2 * len(maps)), fontsize=8)
    return figure


def explorer(maps: Sequence[Map], languages: Sequence[str], scripts: Sequence[str], labels: Sequence[str]):
    """An ipywidgets box to walk the maps: choose a map and a meaning (`labels`, in English); its translations light up.

    Its static twin is `draw_maps` with the same maps and one meaning chosen.
    """
    import ipywidgets

    titles = [(laid.title, i) for i, laid in enumerate(maps)]
    which = ipywidgets.Dropdown(options=titles, value=len(maps) - 1, description="map")
    meaning = ipywidgets.Dropdown(options=[(text[:60], i) for i, text in enumerate(labels)], description="meaning")
    return interactive([which, meaning], lambda i, chosen: draw_maps([maps[i]], languages, scripts, [chosen]), row=True)
