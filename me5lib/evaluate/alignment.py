"""How aligned languages are, in numbers: from vectors of the same meanings in several languages.

Everything takes `vectors` [languages, meanings, width]: the same meanings, in the same order, in every language.
Exact and dense: a few thousand texts take well under a second.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from me5lib.train import monitor


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norm; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def centred(vectors: np.ndarray) -> np.ndarray:
    """Each language's mean taken off, then unit length: what is left when a language's own direction is removed."""
    return unit(vectors - vectors.mean(axis=1, keepdims=True))


def bitext_accuracy(vectors: np.ndarray) -> np.ndarray:
    """[languages, languages]: how often the nearest text of language j to a text of language i is its translation.

    Top-1 by cosine among that language's meanings; the diagonal is NaN. Ties count as the first, as in mteb.
    """
    languages = len(vectors)
    table, space = np.full((languages, languages), np.nan), unit(vectors)
    for i, j in permutations(range(languages), 2):
        table[i, j] = monitor.top1_accuracy(space[i], space[j])
    return table


def agreement_by_language(points: np.ndarray, k: int = 5) -> np.ndarray:
    """[languages]: share of the `k` nearest neighbours (Euclidean, over all languages) that have a text's own meaning.

    `points` [languages, meanings, any width]: unit vectors, or a map's coordinates. At most 1 when `k` is at most
    languages - 1; a random layout scores about 1 / meanings.
    """
    languages, meanings = points.shape[:2]
    neighbours = _nearest(points.reshape(languages * meanings, -1), k)
    own = np.tile(np.arange(meanings), languages)
    return (own[neighbours] == own[:, None]).reshape(languages, -1).mean(axis=1)


def language_probe(vectors: np.ndarray, seed: int = 0) -> float:
    """Accuracy of a nearest-centroid classifier that guesses a text's language, trained on half of the meanings.

    1 / languages is chance: the space no longer tells the languages apart.
    """
    languages, meanings = vectors.shape[:2]
    order = np.random.default_rng(seed).permutation(meanings)
    known, asked = order[: meanings // 2], order[meanings // 2 :]
    centroids = vectors[:, known].mean(axis=1)
    gaps = np.linalg.norm(vectors[:, asked, None, :] - centroids[None, None], axis=-1)
    return float((gaps.argmin(axis=-1) == np.arange(languages)[:, None]).mean())


def _nearest(points: np.ndarray, k: int) -> np.ndarray:
    """[n, k]: the nearest other points of each, nearest first."""
    squares = (points**2).sum(axis=1)
    gaps = squares[:, None] + squares[None] - 2 * points @ points.T
    np.fill_diagonal(gaps, np.inf)
    return np.argsort(gaps, axis=1, kind="stable")[:, :k]
