"""The search behind the mining of negatives: each query's best passages by an encoder, by shared words, or by chance.

    found = dense(queries, positives, passages, encode, encode, depth=30)      # or bm25(...), or random(...)
    rows, scores = top_k(query_vectors, passage_vectors, k=50)                 # exact
    index = Index(passage_vectors, "ivf"); index.recall(query_vectors, 50)     # approximate, and what that costs

Cost: exact, and bounded in memory: of Q × P dot products `BLOCK_QUERIES` × `BLOCK_PASSAGES` are held at a time,
whatever Q and P are. Past `LARGE` passages an approximate index of faiss stands in, whose recall against the exact
search is measured each time. BM25 takes about a millisecond a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from me5lib.data.deal import mix
from me5lib.pairs import text_key
from me5lib.places import Me5Error

if TYPE_CHECKING:
    import torch

Encode = Callable[[Sequence[str]], np.ndarray]
BLOCK_QUERIES, BLOCK_PASSAGES = 1024, 4096
AT_ONCE = 64  # queries whose candidates' vectors are held at once
WIDE = 16  # ours: candidates that bf16 may leave open, in times k, before all products are taken in fp32
COLUMNS = 16  # ours: passages of a block that share a maximum, by which most of them are passed over
LARGE = 2_000_000  # ours: passages from which an approximate index is the default
KINDS = ("exact", "ivf", "hnsw")
CHANCE = 64  # ours: random passages that every query is scored against, to know what an easy negative scores
NEIGHBOURS = 4  # as Artetxe and Schwenk have it; a pool with many copies of every answer wants more
SAMPLED = 200  # ours: queries on which the recall of an approximate index is measured
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai … Han


class Found(NamedTuple):
    """What a search gives Q queries: their best passages, best first, and their own positive's score."""

    rows: np.ndarray  # int64 [Q, depth], index into the passages; -1 where there is none
    scores: np.ndarray  # fp32 [Q, depth]
    positive: np.ndarray  # fp32 [Q], of the best-scoring positive; NaN when the search does not score (random)
    chance: np.ndarray | None = None  # fp32 [Q], mean score of random passages
    likeness: np.ndarray | None = None  # fp32 [Q, depth], of the candidate to the nearest positive: see `likeness`
    recall: float | None = None  # of an approximate index against the exact search, on a sample; None: exact


def top_k(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact `k` largest dot products of each query: (rows int64, scores fp32), [Q, min(k, P)], best first.

    Equal scores: the lower row comes first. Where the CPU multiplies bf16 natively, all products are first taken in
    bf16, and those whose rounding leaves them a chance are taken again in fp32: same result, a fraction of the time.
    Raises `Me5Error` for vectors of different width and for NaN.
    """
    import torch

    from me5lib.train import loop

    _refuse_vectors(queries, passages)
    k = min(k, len(passages))
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if not rows.size:
        return rows, scores
    passages = np.ascontiguousarray(passages, dtype=np.float32)
    native = loop.precision(torch.device("cpu")).name == "bf16"
    coarse = _Coarse.of(passages) if native else None
    for start in range(0, len(queries), BLOCK_QUERIES):
        part = slice(start, min(start + BLOCK_QUERIES, len(queries)))
        asked = np.ascontiguousarray(queries[part], dtype=np.float32)
        near = coarse.sweep(asked, k) if coarse else None
        if near is not None:
            rows[part], scores[part] = _exact(asked, passages, near, k)
        else:
            best, near = _sweep(torch.from_numpy(asked), torch.from_numpy(passages), k)
            rows[part], scores[part] = near.numpy(), best.numpy()
    return rows, scores


class _Coarse(NamedTuple):
    """Passages in bf16, less their mean: it adds the same to all scores of a query, and rounding is as coarse as the
    vectors are long, so that cosines between 0.7 and 1 are told apart as well as those between -0.5 and 0.5."""

    vectors: torch.Tensor  # bf16 [P, d]
    lost: float  # length of the longest rounding error
    longest: float  # length of the longest vector

    @classmethod
    def of(cls, passages: np.ndarray) -> _Coarse:
        """Made block by block."""
        import torch

        mean = torch.from_numpy(passages.mean(axis=0, dtype=np.float64).astype(np.float32))
        vectors = torch.empty(passages.shape, dtype=torch.bfloat16)
        lost = longest = 0.0
        for start in range(0, len(passages), BLOCK_PASSAGES):
            part = slice(start, start + BLOCK_PASSAGES)
            exact = torch.from_numpy(passages[part]) - mean
            vectors[part] = exact
            lost = max(lost, float((vectors[part] - exact).norm(dim=1).max()))
            longest = max(longest, float(exact.norm(dim=1).max()))
        return cls(vectors, lost, longest)

    def sweep(self, queries: np.ndarray, k: int) -> torch.Tensor | None:
        """Rows [B, more than k] among which each query's exact best k are, -1 for none; None where they are too many.

        q·p differs from what bf16 gives for it, before the result is rounded, by at most |q̃| |p − p̃| + |q − q̃| |p|
        (Cauchy-Schwarz), and by what is lost when d products are summed up in fp32.
        """
        import torch

        exact = torch.from_numpy(queries)
        asked = exact.bfloat16()
        length = exact.norm(dim=1)
        error = asked.float().norm(dim=1) * self.lost + (exact - asked).norm(dim=1) * self.longest
        error += queries.shape[1] * 2.0**-23 * length * self.longest
        found = _sweep(asked, self.vectors, k, 1.01 * error, 2.0**-8)
        return found[1] if found else None


def _sweep(
    asked: torch.Tensor, passages: torch.Tensor, k: int, error: torch.Tensor | None = None, unit: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scores fp32 and rows [B, k] of the best passages of a block of queries [B, d], as the dtype gives them.

    With the largest `error` [B] of a product, and the `unit` roundoff of its result, more than k: all that may be among
    the best k. None where these are more than `WIDE` times k. A query's floor is the score below which nothing has a
    chance: of a block of passages only what reaches it is looked at.
    """
    import torch

    error = torch.zeros(len(asked)) if error is None else error
    best = torch.full((len(asked), k), -torch.inf), torch.full((len(asked), k), -1)
    floor = best[0][:, -1]
    width = -(-min(BLOCK_PASSAGES, len(passages)) // COLUMNS) * COLUMNS
    block = torch.empty(len(asked), width, dtype=asked.dtype)
    for start in range(0, len(passages), width):
        part = passages[start : start + width]
        torch.mm(asked, part.T, out=block[:, : len(part)])
        block[:, len(part) :] = -torch.inf
        query, column = _reaching(block, len(part), floor, k, lambda kth: _floor(kth, error, unit))
        best = _merged(*best, query, block[query, column].float(), column + start)
        floor = _floor(best[0][:, k - 1], error, unit)
        wide = max(k, int((best[0] >= floor[:, None]).sum(1).max())) if unit else k
        if wide > WIDE * k and len(passages) > WIDE * k:
            return None
        best = best[0][:, :wide], best[1][:, :wide]
    return best


def _floor(kth: torch.Tensor, error: torch.Tensor, unit: float) -> torch.Tensor:
    """What a passage must score at least to be among the exact best k, when the k-th best score is `kth`: either may be
    off by `error`, and by the rounding of the result."""
    return kth - 2 * (error + unit * 1.01 * (kth.abs() + error)) if unit else kth


def _exact(
    asked: np.ndarray, passages: np.ndarray, near: torch.Tensor, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and fp32 scores [B, k] of the best among the rows `near` [B, some]; -1: none."""
    import torch

    rows, scores = np.empty((len(asked), k), np.int64), np.empty((len(asked), k), np.float32)
    every = torch.from_numpy(passages)
    near = near.sort(dim=1).values  # so that the lower row comes first of equal scores
    for start in range(0, len(asked), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        theirs = every[near[part].clamp(min=0)].numpy()
        fresh = torch.from_numpy(np.einsum("qpd,qd->qp", theirs, asked[part]))
        fresh[near[part] < 0] = -torch.inf
        best, order = fresh.sort(dim=1, descending=True, stable=True)
        rows[part], scores[part] = near[part].gather(1, order[:, :k]).numpy(), best[:, :k].numpy()
    return rows, scores


def _reaching(
    block: torch.Tensor, real: int, floor: torch.Tensor, k: int, lower: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of the scores in the first `real` columns that reach the floor of their row, in that order.

    Every column shares a maximum with `COLUMNS` − 1 others: one pass over the block, and most of it is out. In the
    first block, where there is no floor, one is `lower` than the k-th largest of the maxima: k scores reach that.
    """
    stride = block.shape[1] // COLUMNS
    if stride < k:
        return (block[:, :real] >= floor[:, None]).nonzero(as_tuple=True)
    folded = block.view(len(block), COLUMNS, stride)
    maxima = folded.amax(1)
    if floor[0] == -np.inf:
        floor = lower(maxima.float().topk(k).values[:, -1])
    row, column = (maxima >= floor[:, None]).nonzero(as_tuple=True)
    which, fold = (folded[row, :, column] >= floor[row, None]).nonzero(as_tuple=True)
    row, column = row[which], fold * stride + column[which]
    order = (row * block.shape[1] + column).argsort()
    return row[order], column[order]


def _merged(
    best: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, scores: torch.Tensor, found: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`best`, `rows` [B, n] and further `scores` of the passages `found`, sorted by query and row: best first."""
    import torch

    counts = torch.bincount(query, minlength=len(best))
    place = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
    more = torch.full((len(best), int(counts.max())), -torch.inf)
    theirs = torch.full(more.shape, -1)
    more[query, place], theirs[query, place] = scores, found
    both, order = torch.cat([best, more], 1).sort(dim=1, descending=True, stable=True)
    return both, torch.cat([rows, theirs], 1).gather(1, order)


def _refuse_vectors(queries: np.ndarray, passages: np.ndarray) -> None:
    if queries.shape[1] != passages.shape[1]:
        raise Me5Error(f"queries have {queries.shape[1]} dimensions and passages {passages.shape[1]}: "
                       "encode both with one model")
    for name, vectors in (("query", queries), ("passage", passages)):
        bad = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float32)))
        if len(bad):
            raise Me5Error(f"the vector of {name} {bad[0]} is not finite ({len(bad)} of {len(vectors)} are not): "
                           "mend or leave out its text, or encode in fp32")


class Index:
    """Vectors of passages fp32 [P, d], to be searched exactly, or approximately by faiss: inverted lists or HNSW.

    `model` names what encoded them (any text); a search that names another one is refused.
    """

    def __init__(self, vectors: np.ndarray, kind: str = "auto", model: str = "") -> None:
        """`kind`: exact, ivf, hnsw; auto is exact below `LARGE` passages, then ivf. Raises `Me5Error` for another."""
        if kind not in (*KINDS, "auto"):
            raise Me5Error(f"there is no index {kind!r}: choose one of {', '.join(KINDS)}")
        self.kind = kind if kind != "auto" else KINDS[len(vectors) >= LARGE]
        self.vectors, self.model = vectors, model
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
        scores = self.search(vectors, NEIGHBOURS + 1, self.model)[1][:, 1:]
        return np.nan_to_num(scores.mean(axis=1) if scores.size else np.zeros(len(vectors)), neginf=0.0)

    def search(self, queries: np.ndarray, k: int, model: str = "") -> tuple[np.ndarray, np.ndarray]:
        """As `top_k`; an approximate index may give fewer (row -1, score -inf). Raises `Me5Error` for another model's
        vectors."""
        if model != self.model:
            raise Me5Error(f"the index was built with the model {self.model or '(unnamed)'}, the queries are of "
                           f"{model or '(unnamed)'}: build it again with the queries' model")
        if self._faiss is None:
            return top_k(queries, self.vectors, k)
        _refuse_vectors(queries, self.vectors[:1])
        scores, rows = self._faiss.search(np.ascontiguousarray(queries, np.float32), min(k, len(self.vectors)))
        return rows, np.where(rows < 0, -np.inf, scores).astype(np.float32)

    def recall(self, queries: np.ndarray, k: int) -> float | None:
        """Share of the exact `k` best that the index finds, on `SAMPLED` queries spread evenly; None: it is exact."""
        if self._faiss is None or not len(queries):
            return None
        some = queries[np.linspace(0, len(queries) - 1, min(SAMPLED, len(queries))).astype(int)]
        exact, near = top_k(some, self.vectors, k)[0], self.search(some, k, self.model)[0]
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(exact, near, strict=True))
        return hits / exact.size


def _approximate(vectors: np.ndarray, kind: str) -> Any:
    """An index of faiss by inner product, with room for a search: 4 √P lists of which 1/16 are read, or a graph of 32
    neighbours and 200 candidates (ours, after faiss' guidelines; what they are worth is measured by `Index.recall`)."""
    import faiss

    vectors = np.ascontiguousarray(vectors, np.float32)
    _refuse_vectors(vectors[:0], vectors)
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
    likeness: bool = False, model: str = "",
) -> Found:
    """`dense` for vectors: queries [Q, d], positives `right` [N, d] and the query `owner` [N] (ascending) of each."""
    rows, scores = (found[:, skip:] for found in index.search(asked, skip + depth, model))
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


class Words:
    """A BM25 index of `passages`, and of `more` texts that are scored but not found."""

    def __init__(self, passages: Sequence[str], more: Sequence[str] = ()) -> None:
        import bm25s

        self.size = len(passages)
        self._place = {text: i for i, text in reversed(list(enumerate(passages)))}
        extra = list(dict.fromkeys(text for text in more if text not in self._place))
        self._place |= {text: self.size + i for i, text in enumerate(extra)}
        self._index = bm25s.BM25()
        self._index.index([words(text) for text in [*passages, *extra]], show_progress=False)

    def search(
        self, queries: Sequence[str], positives: Sequence[Sequence[str]], depth: int, skip: int = 0
    ) -> Found:
        """Each query's passages ranked `skip` … `skip + depth`; -1 beyond those that share a word with it."""
        refuse_without_positive(queries, positives)
        shape = len(queries), max(0, min(skip + depth, self.size) - skip)
        rows, scores = np.full(shape, -1), np.zeros(shape, np.float32)
        own, chance = np.empty(len(queries), np.float32), np.empty(len(queries), np.float32)
        for i, query in enumerate(queries):
            tokens = words(query)
            every = self._index.get_scores(tokens) if tokens else np.zeros(len(self._place), np.float32)
            own[i] = max(every[self._place[text]] for text in positives[i])
            chance[i] = every[: self.size].mean() if self.size else 0.0
            near = _best(every[: self.size], skip + depth)[skip:]
            rows[i, : len(near)], scores[i, : len(near)] = near, every[near]
        return Found(rows, scores, own, chance)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the `k` largest scores above zero, best first, of equal ones the lower first."""
    some = np.flatnonzero(scores > 0)
    if len(some) > k:
        some = some[scores[some] >= np.partition(scores[some], -k)[-k]]
    return some[np.argsort(-scores[some], kind="stable")][:k]


def random(queries: Sequence[str], passages: Sequence[str], depth: int, seed: int) -> Found:
    """No search: passages drawn by a hash of (seed, query, draw), so that a query always gets the same ones."""
    keys = np.array([text_key(query) for query in queries], dtype=np.int64).view(np.uint64)
    draws = np.arange(depth, dtype=np.uint64) + np.uint64(depth * seed + 1)
    rows = (mix(keys[:, None] ^ mix(draws)[None]) % np.uint64(len(passages))).astype(np.int64)
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


def words(text: str) -> list[str]:
    """The words of a text for BM25: case-folded; pairs of characters in scripts that do not space their words."""
    found = []
    for word in re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()):
        if UNSPACED.search(word) and len(word) > 2:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            found.append(word)
    return found
