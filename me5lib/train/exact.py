"""The exact nearest neighbours of many vectors, in bounded memory.

    rows, scores = top_k(query_vectors, passage_vectors, k=50)

Of Q × P dot products `BLOCK_QUERIES` × `BLOCK_PASSAGES` are held at a time, whatever Q and P are. Cost:
`tests/benchmarks/LOG.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from me5lib.io import Me5Error

if TYPE_CHECKING:
    import torch

BLOCK_QUERIES, BLOCK_PASSAGES = 1024, 4096
AT_ONCE = 64  # queries whose candidates' vectors are held at once
WIDE = 16  # ours: candidates that bf16 may leave open, in times k, before all products are taken in fp32
COLUMNS = 16  # ours: passages of a block that share a maximum, by which most of them are passed over


def top_k(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact `k` largest dot products of each query: (rows int64, scores fp32), [Q, min(k, P)], best first.

    Equal scores: the lower row comes first. Where the CPU multiplies bf16 natively, all products are first taken in
    bf16, and those whose rounding leaves them a chance are taken again in fp32: same result, a fraction of the time.
    Raises `Me5Error` for vectors of different width and for NaN.
    """
    import torch

    from me5lib.device import precision

    refuse_vectors(queries, passages)
    k = min(k, len(passages))
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if not rows.size:
        return rows, scores
    passages = np.ascontiguousarray(passages, dtype=np.float32)
    native = precision(torch.device("cpu")).name == "bf16"
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
