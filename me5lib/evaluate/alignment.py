"""How aligned languages are, in numbers: from vectors of the same meanings in several languages.

Most take `vectors` [languages, meanings, width]: the same meanings, in the same order, in every language.
Exact and dense: a few thousand texts take well under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    return float(probe_by_language(vectors, seed).mean())


def probe_by_language(vectors: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """[languages]: how often `language_probe`'s classifier names a language's own texts its own; `vectors` are arrays
    [texts, width], of equally many texts or not."""
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

    return float(skew(np.bincount(_top(similarities, k).ravel(), minlength=similarities.shape[1])))


def hit_languages(similarities: np.ndarray, languages: np.ndarray, k: int = 10) -> np.ndarray:
    """[queries, languages]: the share of each language among the `k` nearest texts of a query; `languages` [texts] are
    numbers from 0, of the columns of `similarities`. A text that is not to be found has -inf."""
    hits = languages[_top(similarities, k)]
    return np.stack([(hits == language).mean(axis=1) for language in range(languages.max() + 1)], axis=1)


def _top(similarities: np.ndarray, k: int) -> np.ndarray:
    """[queries, k]: the columns of the highest similarities, in no order."""
    return np.argpartition(-similarities, k - 1, axis=1)[:, :k]


def _nearest(points: np.ndarray, k: int) -> np.ndarray:
    """[n, k]: the nearest other points of each, nearest first."""
    squares = (points**2).sum(axis=1)
    gaps = squares[:, None] + squares[None] - 2 * points @ points.T
    np.fill_diagonal(gaps, np.inf)
    return np.argsort(gaps, axis=1, kind="stable")[:, :k]
