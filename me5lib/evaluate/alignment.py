"""How aligned languages are, in numbers: from vectors of the same meanings in several languages.

Most take `vectors` [languages, meanings, width]: the same meanings, in the same order, in every language.
`centred`, `translations` and `bitext_accuracy` take NaN where a language lacks a meaning. Exact: a few thousand texts
take a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

BLOCK = 1_024  # points whose distances to all others are held at once


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norm; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def centred(vectors: np.ndarray) -> np.ndarray:
    """Each language's mean taken off, then unit length: what is left when a language's own direction is removed."""
    return unit(vectors - np.nanmean(vectors, axis=1, keepdims=True))


def translations(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every text and its translations: their cosines and ranks, both [languages, languages, meanings].

    At [i, j, m]: text m of language i and its translation in j, which is the rank-th (from 1) of j's texts by cosine;
    of equal ones the first comes first, as in mteb. Rank 0, and cosine NaN, where either is absent.
    """
    space, (languages, meanings) = unit(np.asarray(vectors, np.float64)), vectors.shape[:2]
    cosines = np.full((languages, languages, meanings), np.nan)
    ranks = np.zeros((languages, languages, meanings), dtype=np.int64)
    earlier = np.tri(meanings, k=-1, dtype=bool)
    for i, j in product(range(languages), repeat=2):
        table = space[i] @ space[j].T
        cosines[i, j] = own = np.diagonal(table)
        ahead = (table > own[:, None]) | ((table == own[:, None]) & earlier)
        ranks[i, j] = np.where(np.isnan(own), 0, 1 + ahead.sum(axis=1))
    return cosines, ranks


def bitext_accuracy(vectors: np.ndarray) -> np.ndarray:
    """[languages, languages]: how often the nearest text of language j to a text of language i is its translation.

    Top-1 by cosine among that language's texts; the diagonal is NaN.
    """
    ranks = translations(vectors)[1]
    table = (ranks == 1).sum(axis=2) / (ranks > 0).sum(axis=2)
    np.fill_diagonal(table, np.nan)
    return table


def probe_by_language(vectors: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """[languages]: how often a nearest-centroid classifier, trained on half of the texts, names a language's others its
    own; 1 / languages is chance. `vectors` are arrays [texts, width], of equally many texts or not."""
    orders = [np.random.default_rng(seed).permutation(len(own)) for own in vectors]
    halves = [np.split(own[order], [len(own) // 2]) for own, order in zip(vectors, orders, strict=True)]
    centroids = np.stack([known.mean(axis=0) for known, _ in halves])
    squares = (centroids**2).sum(axis=1)  # of the squared distance, what depends on the centroid: |c|² - 2 x·c
    return np.array([((squares - 2 * asked @ centroids.T).argmin(axis=1) == i).mean()
                     for i, (_, asked) in enumerate(halves)])


def hubness(similarities: np.ndarray, k: int = 10) -> float:
    """Skewness of N_k, how often each text (column) is among the `k` nearest of a query (row): 0 where all are so
    equally often, high where a few are near to everything (Radovanović et al. 2010). NaN where all N_k are equal."""
    from scipy.stats import skew

    return float(skew(np.bincount(top(similarities, k).ravel(), minlength=similarities.shape[1])))


def top(similarities: np.ndarray, k: int = 10) -> np.ndarray:
    """[queries, k]: the columns of the highest similarities, in no order."""
    return np.argpartition(-similarities, k - 1, axis=1)[:, :k]


def nearest(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest other points of each, nearest first: ids and squared Euclidean distances, both [n, k]."""
    ids = np.empty((len(points), k), dtype=np.int64)
    found = np.empty((len(points), k))
    for rows, gaps in distance_blocks(points):
        part = np.sort(np.argpartition(gaps, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(np.take_along_axis(gaps, part, axis=1), axis=1, kind="stable")
        ids[rows] = np.take_along_axis(part, order, axis=1)
        found[rows] = np.take_along_axis(gaps, ids[rows], axis=1)
    return ids, found


def distance_blocks(points: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows, and their squared Euclidean distances to all points of [n, width], `BLOCK` rows at a time; to itself a
    point has infinite distance."""
    points = np.asarray(points, np.float64)
    squares = (points**2).sum(axis=1)
    for start in range(0, len(points), BLOCK):
        rows = slice(start, min(start + BLOCK, len(points)))
        gaps = squares[rows, None] + squares - 2 * points[rows] @ points.T
        gaps[np.arange(len(gaps)), np.arange(rows.start, rows.stop)] = np.inf
        yield rows, np.maximum(gaps, 0)
