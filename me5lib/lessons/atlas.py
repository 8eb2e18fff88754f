"""The atlas: maps of the same meanings in many languages, as a picture and as a page that needs nothing but a browser.

    maps = lay_out_maps({"me5-small-q4": vectors}, seed=0)  # UMAP and PCA, with language means and without
    draw_maps(maps[:1], languages, scripts)                 # a picture
    explorer(vectors, texts, maps)                          # a page: in a notebook an iframe; `.html` for a file

`vectors` [languages, meanings, width] in the order of `sorted(texts)`, NaN where `texts` has "". A map shows
neighbourhoods, not distances, and loses some: how much, each says with 95 % intervals over meanings, the layout held.
UMAP gets exact neighbours and starts from PCA (ours: faster than its spectral start, and the same bytes on any number
of threads). Cost: 3 s for 1,900 texts, 10 s for 6,500, once 8 s more to compile.
"""

from __future__ import annotations

import base64
import gzip
import html
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas
from babel import Locale
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from me5lib import config, io
from me5lib.evaluate.alignment import centred, distance_blocks, nearest, translations, unit
from me5lib.evaluate.cache import CachedEncoder
from me5lib.evaluate.stats import Interval, bootstrap
from me5lib.io import Me5Error
from me5lib.lessons.figures import COLOURS, GREY, canvas
from me5lib.lessons.paper_figures import kin
from me5lib.lessons.run import needs_no_hub
from me5lib.model.text import QUERY

if TYPE_CHECKING:
    from me5lib.evaluate.models import Opened

MARKERS = "osD^vP*Xh<>pd"
PALETTE = [*COLOURS[:6], GREY]  # those that are seen on white and on black
SHADES = ["#0072b2", "#4a86a8", "#84939b", "#a89b7a", "#c79d48", "#e69f00"]  # from none to all K
METHODS = ("UMAP", "PCA")
K = 5  # neighbours of a text that are looked at
NEIGHBOURS = 15  # of UMAP, itself among them (its default)
LEAST, MOST = 20, 65_535  # texts of an atlas (ours): fewer have no neighbourhoods; ids in a page have 16 bits


class Map(NamedTuple):
    """One laid-out space: where its texts lie, and what the layout kept."""

    title: str  # the model's name
    method: str
    centred: bool  # whether each language's mean was removed first
    points: np.ndarray  # [languages, meanings, 2], NaN where a text is absent
    in_space: Interval  # of the K nearest neighbours in the full space, the share that are translations
    on_map: Interval  # of those on the map
    trustworthiness: Interval  # 1: who is near on the map is near in the space (Venna and Kaski, 2001)
    continuity: Interval  # 1: who is near in the space is near on the map
    accuracy: Interval  # bitext accuracy in the space, over all pairs of languages

    @property
    def caption(self) -> str:
        """The title, both agreements, and what the layout kept."""
        shares = f"{self.in_space.mean:.0%} in the space, {self.on_map.mean:.0%} on the map"
        kept = f"trustworthiness {self.trustworthiness.mean:.3f}, continuity {self.continuity.mean:.3f}"
        return f"{self.title}\nneighbours that are translations:\n{shares}\n{kept}"

    @property
    def note(self) -> str:
        """All that was measured of this map, with intervals, in two sentences."""
        inside, outside = (f"{100 * share.mean:.0f} % ({100 * share.low:.0f}–{100 * share.high:.0f})"
                           for share in (self.in_space, self.on_map))
        kept = [f"{name} {kept.mean:.3f} ({kept.low:.3f}–{kept.high:.3f})" for name, kept in (
            ("trustworthiness", self.trustworthiness), ("continuity", self.continuity),
            ("bitext accuracy in the space", self.accuracy))]
        return (f"Of a text’s {K} nearest neighbours {inside} are its translations in the full space, {outside} on "
                f"this map. {', '.join(kept).capitalize()} (in brackets 95 % over meanings).")


def lay_out_maps(spaces: Mapping[str, np.ndarray], seed: int = 0) -> list[Map]:
    """Of every space (by its model's name) four maps: by UMAP and by PCA, as it is and with language means removed."""
    jobs = [(title, method, removed) for title in spaces for method in METHODS for removed in (False, True)]
    bar = tqdm(jobs, desc="maps", unit=" maps")
    with bar, io.ticking(bar.refresh):
        return [lay_out_map(spaces[title], title, seed, method, removed) for title, method, removed in bar]


def lay_out_map(vectors: np.ndarray, title: str, seed: int = 0, method: str = "UMAP", removed: bool = False) -> Map:
    """The map of `vectors` [languages, meanings, width] by one of `METHODS`; `removed`: without language means."""
    space = centred(vectors) if removed else unit(vectors)
    here = np.isfinite(space[..., 0])
    flat, meaning = space[here].astype(np.float64), np.nonzero(here)[1]
    laid = umap_points(flat, seed) if method == "UMAP" else pca_points(flat)
    inside, outside = nearest(flat, K)[0], nearest(laid, K)[0]
    most = K * (2 * len(flat) - 3 * K - 1) / 2  # the largest sum of excess ranks
    values = [(meaning[inside] == meaning[:, None]).mean(axis=1), (meaning[outside] == meaning[:, None]).mean(axis=1),
              1 - excess_ranks(flat, outside) / most, 1 - excess_ranks(laid, inside) / most]
    kept = [over_meanings(each, meaning) for each in values]
    ranks = translations(space)[1]
    i, j, m = np.nonzero(ranks)
    accuracy = over_meanings((ranks[i, j, m] == 1)[i != j], m[i != j])
    points = np.full((*here.shape, 2), np.nan)
    points[here] = laid
    return Map(title, method, removed, points, *kept, accuracy)


def umap_points(space: np.ndarray, seed: int) -> np.ndarray:
    """UMAP (cosine) of unit vectors [n, width] in two dimensions, float64 [n, 2]."""
    import umap

    count = min(NEIGHBOURS, len(space) - 1)
    ids, squares = nearest(space, count - 1)
    itself = np.arange(len(space))[:, None]
    known = np.hstack([itself, ids]).astype(np.int32), np.hstack([0.0 * itself, squares / 2]).astype(np.float32)
    start = pca_points(space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed seed costs the threads, and neighbours given cannot place new texts
        return umap.UMAP(n_neighbors=count, metric="cosine", random_state=seed, precomputed_knn=known,
                         init=(10 * start / np.abs(start).max()).astype(np.float32)
                         ).fit_transform(space.astype(np.float32)).astype(np.float64)  # fmt: skip


def pca_points(space: np.ndarray) -> np.ndarray:
    """The first two principal components of [n, width], float64 [n, 2]; the largest weight of each is positive."""
    away = space - space.mean(axis=0)
    axes = np.linalg.svd(away, full_matrices=False)[2][:2]
    return away @ (axes * np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]).T


def excess_ranks(points: np.ndarray, near: np.ndarray) -> np.ndarray:
    """[n]: by how many ranks the points that `near` [n, k] names lie beyond the k nearest of each point, summed."""
    found = np.empty(len(points))
    for rows, gaps in distance_blocks(points):
        named = np.take_along_axis(gaps, near[rows], axis=1)
        ranks = 1 + (gaps[:, None] < named[..., None]).sum(axis=2)
        found[rows] = np.maximum(ranks - near.shape[1], 0).sum(axis=1)
    return found


def over_meanings(values: np.ndarray, meaning: np.ndarray) -> Interval:
    """The mean of `values` [n] and its interval over meanings: all texts of a meaning are drawn together."""
    _, group = np.unique(meaning, return_inverse=True)
    return bootstrap(np.bincount(group, values) / np.bincount(group))


def draw_maps(
    maps: Sequence[Map], languages: Sequence[str], scripts: Sequence[str], meanings: Sequence[int] = ()
) -> Figure:
    """Maps side by side: a marker and colour per script; the chosen `meanings` in black with language codes."""
    wide = min(6.2, 13 / len(maps))  # inches: a page's text is about 8
    figure, axes = canvas(wide * len(maps), 0.9 * wide, columns=len(maps), squeeze=False)
    by_size = [name for name, _ in Counter(scripts).most_common()]
    for axis, laid in zip(axes[0], maps, strict=True):
        for i, name in enumerate(by_size):
            points = laid.points[[j for j, script in enumerate(scripts) if script == name]].reshape(-1, 2)
            axis.scatter(*points.T, s=10, c=PALETTE[i % len(PALETTE)], marker=MARKERS[i % len(MARKERS)], alpha=0.45,
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


# The page -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Page:
    """A page of HTML that loads nothing; a notebook shows it in a frame."""

    html: str

    def _repr_html_(self) -> str:
        return ('<iframe title="The atlas: a map of translations to explore" style="width: 100%; height: 46rem; '
                f'border: 0" srcdoc="{html.escape(self.html)}"></iframe>')


def explorer(vectors: np.ndarray, texts: Mapping[str, Sequence[str]], maps: Sequence[Map]) -> Page:
    """The page on which `maps` are explored; cosines, ranks and neighbours are those of `vectors`, the first map's.

    The data lie in it as gzipped JSON in base64: no text can end a script, and a page takes a quarter of the bytes.
    """
    content = json.dumps(page_data(vectors, texts, maps), ensure_ascii=False).encode("utf8")
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    template = (io.PACKAGE / "lessons" / "atlas.html").read_text("utf8")
    return Page(template.replace("{{ data }}", packed))


def page_data(vectors: np.ndarray, texts: Mapping[str, Sequence[str]], maps: Sequence[Map]) -> dict[str, Any]:
    """What the page's script reads. A text's id is its language's place times the meanings, plus its meaning's;
    cosines are in thousandths."""
    languages, names = sorted(texts), Locale("en").languages
    cosines, ranks = translations(vectors)
    thousandths = np.rint(1000 * np.nan_to_num(cosines)).astype(int)
    near: list[list[tuple[int, int]]] = [[] for _ in range(ranks[0].size)]
    ids, found = neighbours_of(vectors)
    for text, others, squares in zip(ids, *found, strict=True):
        near[text] = list(zip(ids[others].tolist(), np.rint(1000 - 500 * squares).astype(int).tolist(), strict=True))
    return {
        "first": maps[0].title, "meanings": vectors.shape[1], "k": K, "palette": PALETTE, "shades": SHADES,
        "languages": [[code, names.get(code.partition("-")[0], code), *kin(code)] for code in languages],
        "texts": [text for code in languages for text in texts[code]],
        "maps": [{"model": laid.title, "method": laid.method, "centred": laid.centred, "note": laid.note,
                  "points": np.nan_to_num(points).round(4).ravel().tolist()}
                 for laid, points in zip(maps, turned(maps), strict=True)],
        "ranks": ranks.tolist(), "cosines": [thousandths[i, :i].tolist() for i in range(len(languages))],  # symmetric
        "near": near,
    }  # fmt: skip


def neighbours_of(vectors: np.ndarray, k: int = K) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The ids [n] of the texts that are there, and of each the `k` nearest in the space: `nearest`, in their order."""
    space = unit(np.asarray(vectors, np.float64)).reshape(-1, vectors.shape[-1])
    ids = np.flatnonzero(np.isfinite(space[:, 0]))
    return ids, nearest(space[ids], k)


def parallel_texts(scale: config.Scale, data: str) -> dict[str, list[str]]:
    """Language → texts of the same meanings, "" where it lacks one, at most `evaluate.map_sentences` of our own.

    `data`: "heldout" (`Corpus.parallel`), "gsm" (word problems, numbers masked: those that most languages have, in all
    of them), or a CSV file with a column a language and a row a meaning. Raises `Me5Error` for what is no such file.
    """
    from me5lib.data.corpus import open_corpus

    if data in ("heldout", "gsm"):
        needs_no_hub(scale)
    if data == "heldout":
        return open_corpus(scale).parallel(scale.evaluate.map_sentences)
    if data == "gsm":
        sides = {code: dict(zip(*both, strict=True)) for code, both in open_corpus(scale).task("gsm").sets.items()}
        often = Counter(english for own in sides.values() for english in own)
        chosen = [english for english, _ in often.most_common(scale.evaluate.map_sentences)]
        return {"en": chosen} | {code: [own.get(english, "") for english in chosen] for code, own in sides.items()}
    try:
        table = pandas.read_csv(data, dtype=str, keep_default_na=False, encoding="utf8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Me5Error(f"--data is heldout, gsm, or a CSV file with a column a language; {data}: {reason}") from None
    texts = {str(code).strip(): [text.strip() for text in column] for code, column in table.items()}
    known = sum(map(bool, itertools.chain(*texts.values())))
    if len(texts) < 2 or not all(map(any, texts.values())) or not LEAST <= known <= MOST:
        raise Me5Error(f"{data} has {known} texts in {len(texts)} columns: an atlas takes {LEAST} to {MOST} in two "
                       "languages or more, none of them empty")
    return texts


def encoded(opened: Opened, texts: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Vectors [languages, meanings, width] of `texts` by language, NaN where a text is ""; kept in the cache."""
    rows = np.array([texts[code] for code in sorted(texts)], dtype=object)
    here = rows != ""
    identity = {"name": opened.name, "revision": opened.revision}
    encoder = CachedEncoder(opened.encoder, io.cache() / "atlas", identity, opened.dtype)
    found = encoder.encode(rows[here].tolist(), "" if opened.instruct else QUERY, progress=True)  # a bar a chunk
    vectors = np.full((*rows.shape, found.shape[1]), np.nan, dtype=np.float32)
    vectors[here] = found
    return vectors


def write_points(path: Path, vectors: np.ndarray, texts: Mapping[str, Sequence[str]], laid: Map) -> None:
    """Write a Parquet file for outside viewers, a row a text: x, y, text, language, meaning, and neighbors, the rows
    (`ids`) and cosine `distances` of the nearest ones in the full space, as embedding-atlas reads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, (near, squares) = neighbours_of(vectors, min(NEIGHBOURS, np.isfinite(vectors[..., 0]).sum() - 1))
    language, meaning = np.divmod(ids, vectors.shape[1])
    codes = sorted(texts)
    x, y = laid.points.reshape(-1, 2)[ids].T
    neighbors = [{"ids": row, "distances": far} for row, far in zip(near.tolist(), (squares / 2).tolist(), strict=True)]
    table = pa.table({"x": x, "y": y, "text": [texts[codes[i]][m] for i, m in zip(language, meaning, strict=True)],
                      "language": [codes[i] for i in language], "meaning": meaning, "neighbors": neighbors})
    io.put(path, lambda beside: pq.write_table(table, beside, compression="zstd"))


def turned(maps: Sequence[Map]) -> list[np.ndarray]:
    """The points of each map, in the square from -1 to 1, turned (or mirrored) to lie as the first one's do: an
    orthogonal Procrustes rotation, so that going from map to map moves what differs."""
    first, found = None, []
    for laid in maps:
        points = laid.points - np.nanmean(laid.points, axis=(0, 1))
        flat = np.nan_to_num(points).reshape(-1, 2)
        first = flat if first is None else first
        left, _, right = np.linalg.svd(flat.T @ first)
        low, high = (end(points @ left @ right, axis=(0, 1)) for end in (np.nanmin, np.nanmax))
        found.append((points @ left @ right - (low + high) / 2) / ((high - low).max() / 2))
    return found
