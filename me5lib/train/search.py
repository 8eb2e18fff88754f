"""The search behind the mining of hard negatives: each query's best passages by an encoder, by shared words, by chance.

    pool = Pool.of(rows)                                                   # all passages of labelled rows, once each
    right = [pool.positives(row) for row in rows]
    results = dense(query_vectors, right, DenseIndex(passage_vectors), depth=30)    # or lexical(…), or random(…)
    rows, scores = top_k(query_vectors, passage_vectors, k=50)             # exact, BLOCK × BLOCK products at a time

Cost: memory does not grow with queries × passages. Past `LARGE` passages an approximate index of faiss stands in, whose
recall against the exact search is measured each time. BM25 takes about a millisecond a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from me5lib import device
from me5lib.data.shards import splitmix64
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, text_key

LARGE = 2_000_000  # ours: passages from which an index is approximate
NEIGHBOURS = 4  # as Artetxe and Schwenk have it; a pool with many copies of every answer wants more
SAMPLED = 200  # ours: queries on which the recall of an approximate index is measured
BLOCK_QUERIES, BLOCK_PASSAGES = 1024, 4096
RESCORED_AT_ONCE = 64  # queries whose candidates' vectors are held at once
WIDE = 16  # ours: candidates that bf16 may leave open, in times k, before all products are taken in fp32
FOLDS = 16  # ours: passages of a block that share a maximum, by which most of them are passed over
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
        """The rows of a labelled row's positives, which must be in the pool. Raises `Me5Error` where it has none."""
        if not row.positives:
            raise Me5Error(f"the query {row.query[:40]!r} has no positive: leave it out")
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
    recall: float | None = None  # of an approximate index against the exact search, on a sample; None: exact


class DenseIndex:
    """Vectors of passages fp32 [P, d], to be searched exactly; from `LARGE` passages on by faiss, in inverted lists."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self._faiss = vectors, None
        if len(vectors) < LARGE:
            return
        import faiss

        vectors = np.ascontiguousarray(vectors, np.float32)
        refuse_vectors(vectors[:0], vectors)
        width, lists = vectors.shape[1], int(4 * len(vectors) ** 0.5)
        self._faiss = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        self._faiss.cp.min_points_per_centroid = 1  # or it prints a warning for a small one
        self._faiss.train(vectors)
        self._faiss.nprobe = max(1, lists // 16)  # ours, after faiss' guidelines; `recall` measures what it is worth
        self._faiss.add(vectors)

    @cached_property
    def knn_mean(self) -> np.ndarray:
        """Mean score of each passage with its `NEIGHBOURS` nearest, fp32 [P]: the best hit is the passage itself."""
        scores = self.search(self.vectors, NEIGHBOURS + 1)[1][:, 1:]
        return np.nan_to_num(scores.mean(axis=1) if scores.size else np.zeros(len(self.vectors)), neginf=0.0)

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


def dense(
    queries: np.ndarray, right: Sequence[Sequence[int]], index: DenseIndex, depth: int, margin_ratio: bool = False
) -> SearchResult:
    """Search by cosine: the `depth` best passages of every query, unit vectors fp32 [Q, d]; `right`: the rows of the
    index that are its positives.

    `margin_ratio`: compare the candidates with the positives too, as `mining.near_positive` needs it; that takes one
    more search, of all passages among themselves.
    """
    rows, scores = index.search(queries, depth)
    owner = np.repeat(np.arange(len(queries)), [len(own) for own in right])
    positives = np.array([j for own in right for j in own], dtype=np.int64)
    best = np.full(len(queries), -np.inf, np.float32)
    for start in range(0, len(owner), BLOCK_PASSAGES):
        part = owner[start : start + BLOCK_PASSAGES]
        theirs = index.vectors[positives[start : start + BLOCK_PASSAGES]]
        np.maximum.at(best, part, np.einsum("nd,nd->n", queries[part], theirs).astype(np.float32))
    ratio = margin_ratio_of(rows, right, index) if margin_ratio else None
    return SearchResult(rows, scores, best, ratio, index.recall(queries, depth))


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
    """The exact `k` largest dot products of each query: (rows int64, scores fp32), [Q, min(k, P)], best first.

    Equal scores: the lower row comes first. Where the CPU multiplies bf16 natively, all products are first taken in
    bf16, and those whose rounding leaves them a chance are taken again in fp32: same result, a fraction of the time.
    Raises `Me5Error` for vectors of different width and for NaN.
    """
    refuse_vectors(queries, passages)
    k = min(k, len(passages))
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if not rows.size:
        return rows, scores
    passages = torch.from_numpy(np.ascontiguousarray(passages, dtype=np.float32))
    coarse = _in_bf16(passages) if device.precision(torch.device("cpu")).name == "bf16" else None
    for start in range(0, len(queries), BLOCK_QUERIES):
        part = slice(start, start + BLOCK_QUERIES)
        block = torch.from_numpy(np.ascontiguousarray(queries[part], dtype=np.float32))
        near = _left_open(block, coarse, k) if coarse else None
        best, found = _sweep(block, passages, k) if near is None else _rescored(block, passages, near, k)
        rows[part], scores[part] = found.numpy(), best.numpy()
    return rows, scores


def _in_bf16(passages: Tensor) -> tuple[Tensor, float, float]:
    """Passages in bf16, less their mean; the length of the longest rounding error, and of the longest vector.

    The mean adds the same to all scores of a query, and rounding is as coarse as the vectors are long: without it,
    cosines between 0.7 and 1 are told apart as well as those between -0.5 and 0.5.
    """
    mean = torch.from_numpy(passages.numpy().mean(axis=0, dtype=np.float64).astype(np.float32))
    rounded = torch.empty(passages.shape, dtype=torch.bfloat16)
    lost = longest = 0.0
    for start in range(0, len(passages), BLOCK_PASSAGES):
        part = slice(start, start + BLOCK_PASSAGES)
        exact = passages[part] - mean
        rounded[part] = exact
        lost = max(lost, float((rounded[part] - exact).norm(dim=1).max()))
        longest = max(longest, float(exact.norm(dim=1).max()))
    return rounded, lost, longest


def _left_open(queries: Tensor, coarse: tuple[Tensor, float, float], k: int) -> Tensor | None:
    """Rows [B, more than k] among which each query's exact best k are, -1 for none; None where they are too many.

    q·p differs from what bf16 gives for it, before the result is rounded, by at most |q̃| |p − p̃| + |q − q̃| |p|
    (Cauchy-Schwarz), and by what is lost when d products are summed up in fp32.
    """
    passages, lost, longest = coarse
    rounded = queries.bfloat16()
    error = rounded.float().norm(dim=1) * lost + (queries - rounded).norm(dim=1) * longest
    error += queries.shape[1] * 2.0**-23 * queries.norm(dim=1) * longest
    found = _sweep(rounded, passages, k, 1.01 * error, 2.0**-8)
    return found[1] if found else None


def _sweep(
    queries: Tensor, passages: Tensor, k: int, error: Tensor | float = 0.0, unit: float = 0.0
) -> tuple[Tensor, Tensor] | None:
    """Scores fp32 and rows [B, k] of the best passages of a block of queries [B, d], as the dtype gives them.

    With the largest `error` [B] of a product, and the `unit` roundoff of its result, more than k: all that may be among
    the best k. None where these are more than `WIDE` times k. A query's floor is the score below which nothing has a
    chance: of a block of passages only what reaches it is looked at.
    """
    def floor_of(kth: Tensor) -> Tensor:
        """What a passage must score at least when the k-th best score is `kth`: either may be off."""
        return kth - 2 * (error + unit * 1.01 * (kth.abs() + error)) if unit else kth

    scores, rows = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), -1)
    floor = scores[:, -1]
    width = -(-min(BLOCK_PASSAGES, len(passages)) // FOLDS) * FOLDS
    products = torch.empty(len(queries), width, dtype=queries.dtype)
    for start in range(0, len(passages), width):
        part = passages[start : start + width]
        torch.mm(queries, part.T, out=products[:, : len(part)])
        products[:, len(part) :] = -torch.inf
        query, column = _reaching(products, len(part), floor, k, floor_of)
        scores, rows = _merged(scores, rows, query, products[query, column].float(), column + start)
        floor = floor_of(scores[:, k - 1])
        wide = max(k, int((scores >= floor[:, None]).sum(1).max())) if unit else k
        if wide > WIDE * k and len(passages) > WIDE * k:
            return None
        scores, rows = scores[:, :wide], rows[:, :wide]
    return scores, rows


def _reaching(
    products: Tensor, real: int, floor: Tensor, k: int, floor_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(row, column) of the scores in the first `real` columns that reach the floor of their row, in that order.

    Every column shares a maximum with `FOLDS` − 1 others: one pass over the block, and most of it is out. In the
    first block, where there is no floor, one lies below the k-th largest of the maxima: k scores reach that.
    """
    stride = products.shape[1] // FOLDS
    if stride < k:
        return (products[:, :real] >= floor[:, None]).nonzero(as_tuple=True)
    folded = products.view(len(products), FOLDS, stride)
    maxima = folded.amax(1)
    if floor[0] == -np.inf:
        floor = floor_of(maxima.float().topk(k).values[:, -1])
    row, column = (maxima >= floor[:, None]).nonzero(as_tuple=True)
    which, fold = (folded[row, :, column] >= floor[row, None]).nonzero(as_tuple=True)
    row, column = row[which], fold * stride + column[which]
    order = (row * products.shape[1] + column).argsort()
    return row[order], column[order]


def _merged(scores: Tensor, rows: Tensor, query: Tensor, more: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """`scores`, `rows` [B, n] with `more` scores of the passages `found`, sorted by query and row: best first."""
    counts = torch.bincount(query, minlength=len(scores))
    place = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
    table = torch.full((len(scores), int(counts.max())), -torch.inf)
    places = torch.full(table.shape, -1)
    table[query, place], places[query, place] = more, found
    both, order = torch.cat([scores, table], 1).sort(dim=1, descending=True, stable=True)
    return both, torch.cat([rows, places], 1).gather(1, order)


def _rescored(queries: Tensor, passages: Tensor, near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores in fp32 and rows [B, k] of the best among the rows `near` [B, some]; -1: none."""
    near = near.sort(dim=1).values  # so that the lower row comes first of equal scores
    scores, rows = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), RESCORED_AT_ONCE):
        part = slice(start, start + RESCORED_AT_ONCE)
        vectors = passages[near[part].clamp(min=0)].numpy()
        exact = torch.from_numpy(np.einsum("qpd,qd->qp", vectors, queries[part].numpy()))
        exact[near[part] < 0] = -torch.inf
        best, order = exact.sort(dim=1, descending=True, stable=True)
        scores[part], rows[part] = best[:, :k], near[part].gather(1, order[:, :k])
    return scores, rows


def refuse_vectors(queries: np.ndarray, passages: np.ndarray) -> None:
    """Raise `Me5Error` for vectors of different width, and for one that is not finite."""
    if queries.shape[1] != passages.shape[1]:
        raise Me5Error(f"queries have {queries.shape[1]} dimensions and passages {passages.shape[1]}: "
                       "encode both with one model")
    for name, vectors in (("query", queries), ("passage", passages)):
        bad = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float32)))
        if len(bad):
            raise Me5Error(f"the vector of {name} {bad[0]} is not finite ({len(bad)} of {len(vectors)} are not): "
                           "mend or leave out its text, or encode in fp32")
