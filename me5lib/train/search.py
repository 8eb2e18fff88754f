"""The search behind the mining of hard negatives: each query's best passages by an encoder, by shared words, by chance.

    pool = Pool.of(rows)                                                   # all passages of labelled rows, once each
    right = [pool.positives(row) for row in rows]
    results = dense(query_vectors, right, DenseIndex(passage_vectors), depth=30)    # or lexical(…), or random(…)
    rows, scores = top_k(query_vectors, passage_vectors, k=50)             # exact

Cost: memory does not grow with queries × passages. BM25 takes about a millisecond a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from me5lib.data.shards import splitmix64
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, text_key

NEIGHBOURS = 4  # as Artetxe and Schwenk have it; a pool with many copies of every answer wants more
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai … Han
HIDDEN = re.compile("[\u00ad\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # soft hyphens and variation selectors
WORDS_VERSION = 2  # of `words`: what was kept of another version is stale


class Pool:
    """The passages that are searched: their texts, and keys int64 [P]."""

    def __init__(self, texts: Iterable[str], keys: Iterable[int] = ()) -> None:
        self.texts = list(texts)
        self.keys = np.array(list(keys) or [text_key(text) for text in self.texts], dtype=np.int64)

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Key of a text → the first row that has it."""
        return {key: i for i, key in reversed(list(enumerate(self.keys.tolist())))}

    @classmethod
    def of(cls, rows: Iterable[Labelled]) -> Pool:
        """All positives and negatives of `rows`, each text (`text_key`) once, in order of appearance."""
        first = texts_by_key(text for row in rows for text in (*row.positives, *row.negatives))
        return cls(first.values(), first)

    def positives(self, row: Labelled) -> list[int]:
        """The rows of a labelled row's positives, which must be in the pool."""
        return [self.row_of[text_key(text)] for text in row.positives]


def texts_by_key(texts: Iterable[str]) -> dict[int, str]:
    """`text_key` → the first text that has it, in order of appearance."""
    first: dict[int, str] = {}
    for text in texts:
        first.setdefault(text_key(text), text)
    return first


class SearchResult(NamedTuple):
    """What a search gives Q queries: their best passages, best first, and their own positive's score."""

    rows: np.ndarray  # int64 [Q, depth], index into the passages; -1 where there is none
    scores: np.ndarray  # fp32 [Q, depth]
    positive: np.ndarray  # fp32 [Q], of the best-scoring positive; NaN when the search does not score (random)
    margin_ratio: np.ndarray | None = None  # fp32 [Q, depth], of the candidate to the nearest positive


class DenseIndex:
    """Vectors of passages, fp32 [P, d]."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    @cached_property
    def knn_mean(self) -> np.ndarray:
        """Mean score of each passage with its `NEIGHBOURS` nearest, fp32 [P]: the best hit is the passage itself."""
        scores = top_k(self.vectors, self.vectors, NEIGHBOURS + 1)[1][:, 1:]
        return scores.mean(axis=1) if scores.size else np.zeros(len(self.vectors))


def dense(
    queries: np.ndarray, right: Sequence[Sequence[int]], index: DenseIndex, depth: int, margin_ratio: bool = False
) -> SearchResult:
    """Search by cosine: the `depth` best passages of every query, unit vectors fp32 [Q, d]; `right`: the rows of the
    index that are its positives.

    `margin_ratio`: compare the candidates with the positives too, as `mining.near_positive` needs it; that takes one
    more search, of all passages among themselves.
    """
    rows, scores = top_k(queries, index.vectors, depth)
    best = [(index.vectors[own] @ query).max() for query, own in zip(queries, right, strict=True)]
    ratio = margin_ratio_of(rows, right, index) if margin_ratio else None
    return SearchResult(rows, scores, np.array(best, np.float32), ratio)


def margin_ratio_of(rows: np.ndarray, right: Sequence[Sequence[int]], index: DenseIndex) -> np.ndarray:
    """How like one of its query's positives each candidate is: fp32 [Q, depth] of `rows` of the index.

    Their cosine, over the mean of what both have with their nearest neighbours (the ratio margin by which Artetxe and
    Schwenk 2019 mine translations): about 1 for neighbours like others, whatever the range of an encoder's cosines.
    """
    ratio = np.full(rows.shape, -np.inf, np.float32)
    for i, own in enumerate(right):
        for positive in own:
            around = np.maximum((index.knn_mean[rows[i]] + index.knn_mean[positive]) / 2, 1e-3)
            ratio[i] = np.maximum(ratio[i], index.vectors[rows[i]] @ index.vectors[positive] / around)
    return ratio


def lexical(queries: Sequence[str], right: Sequence[Sequence[int]], index: BM25Index, depth: int) -> SearchResult:
    """Search by shared words: the `depth` best passages of every query; -1 beyond those that share one.

    `right` as in `dense`. One query's scores are held at a time. Equal scores: the lower row comes first.
    """
    shape = len(queries), min(depth, index.size)
    found, scores = np.full(shape, -1), np.zeros(shape, np.float32)
    best = np.empty(len(queries), np.float32)
    for i, (query, own) in enumerate(zip(queries, right, strict=True)):
        every = index.scores(query)
        best[i] = every[own].max()
        first = top_places(every, depth)
        found[i, : len(first)], scores[i, : len(first)] = first, every[first]
    return SearchResult(found, scores, best)


class BM25Index:
    """A BM25 index of texts; `split` gives a text's words."""

    def __init__(self, texts: Sequence[str], split: Callable[[str], list[str]] | None = None) -> None:
        import bm25s

        self.size, self.split = len(texts), split or words
        tokens = [self.split(text) for text in texts]
        self._index = bm25s.BM25() if any(tokens) else None  # bm25s cannot index texts without any word
        if self._index:
            self._index.index(tokens, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """BM25 of every text: fp32 [texts]; 0 where no word is shared."""
        tokens = self.split(query) if self._index else []
        return self._index.get_scores(tokens) if tokens else np.zeros(self.size, np.float32)


def top_places(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the `k` largest scores above zero, best first, of equal ones the lower place first."""
    some = np.flatnonzero(scores > 0)
    if len(some) > k:
        some = some[scores[some] >= np.partition(scores[some], -k)[-k]]
    return some[np.argsort(-scores[some], kind="stable")][:k]


def words(text: str) -> list[str]:
    """The words of a text for BM25: case-folded; pairs of characters in scripts that do not space their words.

    A vowel sign, a point or another mark stays with the letter that it stands on, in a word as in a pair.
    """
    word_of, character = _patterns()
    text = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")  # what casefold makes of Turkish İ
    found = []
    for word in word_of.findall(HIDDEN.sub("", text)):
        parts = character.findall(word) if UNSPACED.search(word) else ()
        found += map("".join, zip(parts, parts[1:], strict=False)) if len(parts) > 2 else [word]
    return found


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A word, and a character of one: what Python takes for part of a word, with the marks and joiners on it.

    `\\w` alone leaves out marks (Unicode's Mn and Mc), and so cuts Indic, Burmese, Khmer and Thai words at vowel signs,
    Hebrew and Arabic ones at points.
    """
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    runs = [[code for _, code in run] for _, run in groupby(enumerate(marks), lambda pair: pair[1] - pair[0])]
    on = "\u200c\u200d" + "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)  # single signs: half the speed
    return re.compile(rf"\w[\w{on}]*"), re.compile(rf"\w[{on}]*")


def random(queries: Sequence[str], passages: int, depth: int, seed: int) -> SearchResult:
    """No search: rows below `passages` drawn by a hash of (seed, query, draw), so a query always gets the same ones."""
    keys = np.array([text_key(query) for query in queries], dtype=np.int64).view(np.uint64)
    draws = np.arange(depth, dtype=np.uint64) + np.uint64(depth * seed + 1)
    rows = (splitmix64(keys[:, None] ^ splitmix64(draws)[None]) % np.uint64(passages)).astype(np.int64)
    nothing = np.full(rows.shape, np.nan, np.float32)
    return SearchResult(rows, nothing, np.full(len(rows), np.nan, np.float32))


# Exact search


def top_k(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact `k` largest dot products of each query in fp32: (rows int64, scores), both [Q, min(k, P)], best first.

    Of equal scores that are found the lower row comes first. Raises `Me5Error` for vectors of different width and for
    NaN.
    """
    import faiss

    if queries.shape[1] != passages.shape[1]:
        raise Me5Error(f"queries have {queries.shape[1]} dimensions and passages {passages.shape[1]}: "
                       "encode both with one model")
    for name, vectors in (("query", queries), ("passage", passages)):
        bad = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float32)))
        if len(bad):
            raise Me5Error(f"the vector of {name} {bad[0]} is not finite ({len(bad)} of {len(vectors)} are not): "
                           "mend or leave out its text, or encode in fp32")
    k = min(k, len(passages))
    if not k or not len(queries):
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    sides = (np.ascontiguousarray(side, np.float32) for side in (queries, passages))
    scores, rows = faiss.knn(*sides, k, metric=faiss.METRIC_INNER_PRODUCT)
    order = np.lexsort((rows, -scores))  # faiss gives equal scores from the highest row down
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
