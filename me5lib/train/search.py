"""The search behind the mining of negatives: each query's best passages by an encoder, by shared words, or by chance.

    found = dense(queries, positives, passages, encode, encode, depth=30)      # or bm25(...), or random(...)
    index = Index(passage_vectors, "ivf"); index.recall(query_vectors, 50)     # approximate, and what that costs

Cost: exact, and bounded in memory (`exact.top_k`). Past `LARGE` passages an approximate index of faiss stands in, whose
recall against the exact search is measured each time. BM25 takes about a millisecond a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from me5lib.data.shards import splitmix64
from me5lib.io import Me5Error
from me5lib.pairs import text_key
from me5lib.train.exact import BLOCK_PASSAGES, refuse_vectors, top_k

Encode = Callable[[Sequence[str]], np.ndarray]
LARGE = 2_000_000  # ours: passages from which an approximate index is the default
KINDS = ("exact", "ivf", "hnsw")
FEW = 256  # ours: passages below which every index is exact: fewer than four in an inverted list, and soon searched
CHANCE = 64  # ours: random passages that every query is scored against, to know what an easy negative scores
NEIGHBOURS = 4  # as Artetxe and Schwenk have it; a pool with many copies of every answer wants more
SAMPLED = 200  # ours: queries on which the recall of an approximate index is measured
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai … Han
HIDDEN = re.compile("[\u00ad\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # soft hyphens and variation selectors
WORDS_VERSION = 2  # of `words`: what was kept of another version is stale


class Found(NamedTuple):
    """What a search gives Q queries: their best passages, best first, and their own positive's score."""

    rows: np.ndarray  # int64 [Q, depth], index into the passages; -1 where there is none
    scores: np.ndarray  # fp32 [Q, depth]
    positive: np.ndarray  # fp32 [Q], of the best-scoring positive; NaN when the search does not score (random)
    chance: np.ndarray | None = None  # fp32 [Q], mean score of random passages
    likeness: np.ndarray | None = None  # fp32 [Q, depth], of the candidate to the nearest positive: see `likeness`
    recall: float | None = None  # of an approximate index against the exact search, on a sample; None: exact


class Index:
    """Vectors of passages fp32 [P, d], to be searched exactly, or approximately by faiss: inverted lists or HNSW."""

    def __init__(self, vectors: np.ndarray, kind: str = "auto") -> None:
        """`kind`: exact, ivf, hnsw; auto is exact below `LARGE` passages, then ivf. Below `FEW` every one is exact.

        Raises `Me5Error` for another kind.
        """
        if kind not in (*KINDS, "auto"):
            raise Me5Error(f"there is no index {kind!r}: choose one of {', '.join(KINDS)}")
        kind = "exact" if len(vectors) < FEW else kind
        self.kind = kind if kind != "auto" else KINDS[len(vectors) >= LARGE]
        self.vectors = vectors
        self._faiss = None if self.kind == "exact" else _approximate(vectors, self.kind)
        self._crowd: np.ndarray | None = None

    @property
    def crowd(self) -> np.ndarray:
        """Mean score of each passage with its `NEIGHBOURS` nearest, fp32 [P]; searched for once, and kept."""
        if self._crowd is None:
            self._crowd = self.crowd_at(self.vectors)
        return self._crowd

    def crowd_at(self, vectors: np.ndarray) -> np.ndarray:
        """The same of any vectors that are in the index, fp32 [n]: the best found is taken for the vector itself."""
        scores = self.search(vectors, NEIGHBOURS + 1)[1][:, 1:]
        return np.nan_to_num(scores.mean(axis=1) if scores.size else np.zeros(len(vectors)), neginf=0.0)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `top_k`; an approximate index may give fewer (row -1, score -inf)."""
        if self._faiss is None:
            return top_k(queries, self.vectors, k)
        refuse_vectors(queries, self.vectors[:1])
        scores, rows = self._faiss.search(np.ascontiguousarray(queries, np.float32), min(k, len(self.vectors)))
        scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
        order = np.lexsort((rows, -scores))  # faiss gives equal scores from the highest row down
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def recall(self, queries: np.ndarray, k: int) -> float | None:
        """Share of the exact `k` best that the index finds, on `SAMPLED` queries spread evenly; None: it is exact."""
        if self._faiss is None or not len(queries):
            return None
        some = queries[np.linspace(0, len(queries) - 1, min(SAMPLED, len(queries))).astype(int)]
        exact, near = top_k(some, self.vectors, k)[0], self.search(some, k)[0]
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(exact, near, strict=True))
        return hits / exact.size


def _approximate(vectors: np.ndarray, kind: str) -> Any:
    """An index of faiss by inner product, with room for a search: 4 √P lists of which 1/16 are read, or a graph of 32
    neighbours and 200 candidates (ours, after faiss' guidelines; what they are worth is measured by `Index.recall`)."""
    import faiss

    vectors = np.ascontiguousarray(vectors, np.float32)
    refuse_vectors(vectors[:0], vectors)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = index.hnsw.efSearch = 200
    else:
        lists = max(1, int(4 * len(vectors) ** 0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists,
                                   faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # or it prints a warning for a small one
        index.train(vectors)
        index.nprobe = max(1, lists // 16)
    index.add(vectors)
    return index


def dense(
    queries: Sequence[str], positives: Sequence[Sequence[str]], passages: Sequence[str],
    encode_query: Encode, encode_passage: Encode, depth: int, skip: int = 0, *, index: str = "auto",
    likeness: bool = False,
) -> Found:
    """Search by cosine: each query's passages ranked `skip` … `skip + depth` by the given encoders (unit vectors).

    `index`: see `Index`. `likeness`: compare the candidates with the positives too, as `near_positive` needs it; that
    takes two more searches, of the passages and of the positives among the passages.
    """
    refuse_without_positive(queries, positives)
    owner = np.repeat(np.arange(len(queries)), [len(row) for row in positives])
    right = encode_passage([text for row in positives for text in row])
    return nearest(encode_query(queries), owner, right, Index(encode_passage(passages), index), depth, skip, likeness)


def nearest(
    asked: np.ndarray, owner: np.ndarray, right: np.ndarray, index: Index, depth: int, skip: int = 0,
    likeness: bool = False,
) -> Found:
    """`dense` for vectors: queries [Q, d], positives `right` [N, d] and the query `owner` [N] (ascending) of each."""
    rows, scores = (found[:, skip:] for found in index.search(asked, skip + depth))
    own = np.full(len(asked), -np.inf, np.float32)
    for start in range(0, len(owner), BLOCK_PASSAGES):
        part = slice(start, start + BLOCK_PASSAGES)
        np.maximum.at(own, owner[part], np.einsum("nd,nd->n", asked[owner[part]], right[part]).astype(np.float32))
    some = np.linspace(0, len(index.vectors) - 1, min(CHANCE, len(index.vectors))).astype(int)
    chance = asked @ index.vectors[some].mean(0)
    near = likeness_of(rows, owner, right, index) if likeness else None
    return Found(rows, scores, own, chance.astype(np.float32), near, index.recall(asked, skip + depth))


def likeness_of(rows: np.ndarray, owner: np.ndarray, right: np.ndarray, index: Index) -> np.ndarray:
    """How like one of its query's positives each candidate is: fp32 [Q, depth] of `rows` of the index.

    Their cosine, over the mean of what both have with their nearest neighbours (the ratio margin by which Artetxe and
    Schwenk 2019 mine translations): about 1 for neighbours like others, whatever the range of an encoder's cosines.
    """
    near = np.full(rows.shape, -np.inf, np.float32)
    for i, own, crowd in zip(owner.tolist(), right, index.crowd_at(right), strict=True):
        around = np.maximum((index.crowd[rows[i]] + crowd) / 2, 1e-3)
        near[i] = np.maximum(near[i], index.vectors[rows[i]] @ own / around)
    return near


def bm25(
    queries: Sequence[str], positives: Sequence[Sequence[str]], passages: Sequence[str], depth: int, skip: int = 0
) -> Found:
    """Search by shared words (BM25); words of scripts without spaces are cut into pairs of characters.

    The positives are scored by the statistics of `passages`; one that is not among them is added for that. One query's
    scores are held at a time. Equal scores: the lower row comes first.
    """
    return Words(passages, [text for row in positives for text in row]).search(queries, positives, depth, skip)


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
    on = "\u200c\u200d" + "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(rf"\w[\w{on}]*"), re.compile(rf"\w[{on}]*")


class Words:
    """A BM25 index of `passages`, and of `more` texts that are scored but not found; `split` gives a text's words."""

    def __init__(self, passages: Sequence[str], more: Sequence[str] = (),
                 split: Callable[[str], list[str]] = words) -> None:
        import bm25s

        self.size, self._split = len(passages), split
        self._place = {text: i for i, text in reversed(list(enumerate(passages)))}
        extra = list(dict.fromkeys(text for text in more if text not in self._place))
        self._place |= {text: self.size + i for i, text in enumerate(extra)}
        self._all = self.size + len(extra)
        tokens = [self._split(text) for text in [*passages, *extra]]
        self._index = bm25s.BM25() if any(tokens) else None  # bm25s cannot index texts without any word
        if self._index:
            self._index.index(tokens, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """BM25 of the passages, then of the `more` texts: fp32 [all of them]; 0 where no word is shared."""
        tokens = self._split(query) if self._index else []
        return self._index.get_scores(tokens) if tokens else np.zeros(self._all, np.float32)

    def best(self, query: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores of at most `k` passages that share a word, best first, of equal ones the lower row first."""
        return _best(self.scores(query)[: self.size], k)

    def search(
        self, queries: Sequence[str], positives: Sequence[Sequence[str]], depth: int, skip: int = 0
    ) -> Found:
        """Each query's passages ranked `skip` … `skip + depth`; -1 beyond those that share a word with it."""
        refuse_without_positive(queries, positives)
        shape = len(queries), max(0, min(skip + depth, self.size) - skip)
        rows, scores = np.full(shape, -1), np.zeros(shape, np.float32)
        own, chance = np.empty(len(queries), np.float32), np.empty(len(queries), np.float32)
        for i, query in enumerate(queries):
            every = self.scores(query)
            own[i] = max(every[self._place[text]] for text in positives[i])
            chance[i] = every[: self.size].mean() if self.size else 0.0
            near, theirs = (found[skip:] for found in _best(every[: self.size], skip + depth))
            rows[i, : len(near)], scores[i, : len(near)] = near, theirs
        return Found(rows, scores, own, chance)


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the `k` largest scores above zero, best first, of equal ones the lower place first."""
    some = np.flatnonzero(scores > 0)
    if len(some) > k:
        some = some[scores[some] >= np.partition(scores[some], -k)[-k]]
    some = some[np.argsort(-scores[some], kind="stable")][:k]
    return some, scores[some]


def random(queries: Sequence[str], passages: Sequence[str], depth: int, seed: int) -> Found:
    """No search: passages drawn by a hash of (seed, query, draw), so that a query always gets the same ones."""
    keys = np.array([text_key(query) for query in queries], dtype=np.int64).view(np.uint64)
    draws = np.arange(depth, dtype=np.uint64) + np.uint64(depth * seed + 1)
    rows = (splitmix64(keys[:, None] ^ splitmix64(draws)[None]) % np.uint64(len(passages))).astype(np.int64)
    shape = rows.shape
    return Found(rows, np.full(shape, np.nan, np.float32), np.full(shape[0], np.nan, np.float32))


def refuse_without_positive(queries: Sequence[str], positives: Sequence[Sequence[str]]) -> None:
    """Raise `Me5Error` that names the first query without a positive."""
    if len(queries) != len(positives):
        raise Me5Error(f"{len(queries)} queries and positives of {len(positives)}: give one list of positives a query")
    empty = [i for i, row in enumerate(positives) if not len(row)]
    if empty:
        raise Me5Error(f"query {empty[0]} ({queries[empty[0]][:40]!r}) has no positive ({len(empty)} of "
                       f"{len(queries)} have none): leave it out")
