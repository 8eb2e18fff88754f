"""InfoNCE, what it ignores, and three numbers that say how a batch of vectors lies.

Owns: `Relations` (who belongs to whom, as vectors of integers), the mask that follows from them, the loss of both
stages, in-batch accuracy, alignment and uniformity.

Design: one code path for stage 1 (as many passages as queries) and stage 2 (hard negatives too). Nothing here knows
how many processes there are: `rows` picks the queries that this process answers for, against everybody's passages.
A batch carries keys of its texts; the mask of any tile [rows, columns] is built from them on the spot.

Cost: dense. B × P logits and a mask of B × P bytes: 5 MB at B = P = 1,024, 5 GB at 32,768, twice that when symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from me5lib.pairs import Labelled, Pair, text_key

Rows = Tensor | slice
ALL = slice(None)


class Relations(NamedTuple):
    """Who belongs to whom in a batch of B queries and P passages: int64 vectors, no B × P matrix.

    Passages of one query form its group: its positive and its hard negatives, wherever they lie among the P.
    """

    query_key: Tensor  # [B] key of every query's text
    passage_key: Tensor  # [P] key of every passage's text
    positive: Tensor  # [B] index of query i's labelled positive among the P passages
    owner: Tensor  # [P] index of the query to whose group passage j belongs
    positive_keys: Tensor  # [B, M] keys of all texts known to answer query i; short rows repeat the labelled one

    def to(self, device: torch.device | str) -> Relations:
        """The same relations on another device."""
        return Relations(*(part.to(device) for part in self))


class Batch(NamedTuple):
    """Bare texts of one step (prefixes are added when they are tokenised), and their relations."""

    queries: list[str]  # B
    passages: list[str]  # P; row by row: the positive, then that row's hard negatives
    relations: Relations


def relations(
    queries: Sequence[str],
    passages: Sequence[str],
    positive: Sequence[int] | None = None,
    owner: Sequence[int] | None = None,
    positives: Sequence[Sequence[str]] | None = None,
) -> Relations:
    """Relations of texts. By default passage i is the positive of query i, and its only known one.

    `positive` [B] and `owner` [P] are indices as in `Relations`; `positives` [B] are all texts known to answer a query.
    """
    keys = [text_key(passage) for passage in passages]
    positive = list(range(len(queries)) if positive is None else positive)
    owner = list(range(len(passages)) if owner is None else owner)
    positives = [()] * len(queries) if positives is None else positives
    known = [[keys[p], *map(text_key, more)] for p, more in zip(positive, positives, strict=True)]
    longest = max(map(len, known), default=1)
    table = [row + row[:1] * (longest - len(row)) for row in known]
    return Relations(
        torch.tensor([text_key(query) for query in queries], dtype=torch.int64),
        torch.tensor(keys, dtype=torch.int64),
        torch.tensor(positive, dtype=torch.int64),
        torch.tensor(owner, dtype=torch.int64),
        torch.tensor(table, dtype=torch.int64).reshape(len(queries), longest),
    )


def from_pairs(pairs: Sequence[Pair]) -> Batch:
    """A batch of stage 1: passage i is the positive of query i, and every other passage its negative."""
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    return Batch(queries, passages, relations(queries, passages))


def from_labelled(rows: Sequence[Labelled]) -> Batch:
    """A batch of stage 2: each row's first positive, then its hard negatives, row after row.

    A row's further positives are not embedded, but nobody's copy of one is a negative of that row.
    """
    queries, passages, positive, owner = [row.query for row in rows], [], [], []
    for i, row in enumerate(rows):
        positive.append(len(passages))
        passages += [row.positives[0], *row.negatives]
        owner += [i] * (1 + len(row.negatives))
    return Batch(queries, passages, relations(queries, passages, positive, owner, [row.positives for row in rows]))


def ignored(related: Relations, rows: Rows = ALL, columns: Rows = ALL) -> Tensor:
    """Which passages are no fair negative of which queries: bool [rows, columns], True = left out of the softmax.

    Passage j is ignored for query i when its text is among i's positives, or its text is the query's own, or it
    belongs to another row with the same query; never when it is i's labelled positive. Texts are compared, not
    vectors: with dropout the same text has two vectors.
    """
    query, passage = related.query_key[rows, None], related.passage_key[columns]
    group, owner = torch.arange(len(related.query_key), device=query.device)[rows, None], related.owner[columns]
    found = passage == query
    for known in related.positive_keys[rows].unbind(1):
        found |= passage == known[:, None]
    found |= (related.query_key[owner] == query) & (owner != group)
    labelled = torch.arange(len(related.passage_key), device=query.device)[columns] == related.positive[rows, None]
    return found & ~labelled


def info_nce(
    queries: Tensor, passages: Tensor, related: Relations, temperature: float, loss: str = "one-way", rows: Rows = ALL
) -> Tensor:
    """The loss of a batch: the mean of `row_losses`, a scalar. Raises ValueError for an unknown `loss`."""
    return row_losses(queries, passages, related, temperature, loss, rows).mean()


def row_losses(
    queries: Tensor, passages: Tensor, related: Relations, temperature: float, loss: str = "one-way", rows: Rows = ALL
) -> Tensor:
    """InfoNCE of every query, [B] or [rows], at least fp32 (float64 stays float64; autocast is switched off).

    `queries` [B, d] and `passages` [P, d] are unit vectors; s = cosine / `temperature`.
    "one-way" (the paper, section 2): -log exp s(q, p⁺) / Σ_p exp s(q, p) over all P passages that are not ignored.
    "symmetric": the mean of that and of the way back, in which each labelled positive finds its query among the B.
    """
    if loss not in ("one-way", "symmetric"):
        raise ValueError(f"unknown loss {loss!r}: one-way or symmetric")
    with torch.autocast(queries.device.type, enabled=False):
        queries, passages, target = widen(queries), widen(passages), related.positive[rows]
        there = _cross_entropy(queries[rows], passages, ignored(related, rows), target, temperature)
        if loss == "one-way":
            return there
        itself = torch.arange(len(queries), device=queries.device)[rows]
        back = _cross_entropy(passages[target], queries, ignored(related, ALL, target).T, itself, temperature)
        return (there + back) / 2


def _cross_entropy(anchors: Tensor, candidates: Tensor, left_out: Tensor, target: Tensor, temperature: float) -> Tensor:
    """-log softmax of `target` among the candidates not left out: [anchors]. logsumexp takes the maximum off first."""
    logits = (anchors @ candidates.T / temperature).masked_fill(left_out, -torch.inf)
    return logits.logsumexp(1) - logits.gather(1, target[:, None]).squeeze(1)


def widen(vectors: Tensor) -> Tensor:
    """At least fp32: at τ = 0.01 the 4e-3 by which bf16 rounds a cosine is 0.4 of a logit."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


@torch.no_grad()
def alignment(queries: Tensor, positives: Tensor, power: float = 2.0) -> float:
    """Mean distance, to the power α, of unit vectors [n, d] that belong together: 0 is best (Wang and Isola 2020)."""
    return (widen(queries) - widen(positives)).norm(dim=1).pow(power).mean().item()


@torch.no_grad()
def uniformity(vectors: Tensor, scale: float = 2.0) -> float:
    """log of the mean Gaussian potential exp(-t d²) over all pairs: lower is more evenly spread (Wang and Isola 2020).

    [n, d] unit vectors, n ≥ 2; 0 where all coincide, about -2t (-4) where they are spread over a sphere of many
    dimensions. The n (n - 1) / 2 distances are held at once: give it a few thousand vectors.
    """
    distances = torch.nn.functional.pdist(widen(vectors))
    return (torch.logsumexp(-scale * distances.square(), 0) - torch.log(torch.tensor(float(len(distances))))).item()
