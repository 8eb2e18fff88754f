"""InfoNCE of both stages and its false-negative mask, a teacher's KL, and two numbers on how a batch of vectors lies.

Nothing here knows how many processes there are: `rows` picks the queries that this process answers for, against
everybody's passages. The loss is worked in tiles of some anchors against all candidates: a tile's logits become its
share of the loss and of the gradient at once, in closed form (softmax minus one-hot, over τ), and are then overwritten
by the next tile's. A tile finds what it must ignore by looking its keys up in the sorted keys of the batch, so that a
mask costs what it masks.

Cost: three matrix products of B × P × d, as dense autograd has, without its B × P tables: at B = P = 16,384 a dense
loss holds 3 GB, this one `TILE_LOGITS` numbers twice (32 MB) and a copy of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from me5lib.pairs import Labelled, Pair, text_key

ALL = slice(None)
FORMS = ("one-way", "symmetric")
Places = tuple[Tensor, Tensor]  # (row, column) of logits
TILE_LOGITS = 2**22  # ours: logits of a tile, 16 MB in fp32; measured from 2**20 to 2**23 (tests/benchmarks/LOG.md)
NEGLIGIBLE = 1e-30  # ours: smaller shares count as nothing. Near 1e-38 fp32 turns denormal, where a CPU's matrix
# product takes a hundred times as long: a sharp model at τ = 0.01 has most of its shares there


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


def make_batch(rows: Sequence[Pair] | Sequence[Labelled]) -> Batch:
    """A batch of pairs (stage 1: every other row's passage is a negative) or of labelled examples (stage 2).

    Of an example the first positive and the hard negatives are embedded. Its further positives are not, but nobody's
    copy of one is a negative of that row.
    """
    queries, passages, positive, owner, known = [row.query for row in rows], [], [], [], []
    for i, row in enumerate(rows):
        right, wrong = ((row.passage,), ()) if isinstance(row, Pair) else (row.positives, row.negatives)
        positive.append(len(passages))
        passages += [right[0], *wrong]
        owner += [i] * (1 + len(wrong))
        known.append([text_key(text) for text in right])
    longest = max(map(len, known), default=1)
    columns = (
        [text_key(query) for query in queries], [text_key(passage) for passage in passages], positive, owner,
        [keys + keys[:1] * (longest - len(keys)) for keys in known],
    )  # fmt: skip
    related = Relations(*(torch.tensor(column, dtype=torch.int64) for column in columns))
    return Batch(queries, passages, related._replace(positive_keys=related.positive_keys.reshape(len(rows), longest)))


def false_negative_mask(related: Relations) -> Tensor:
    """Which passages are no fair negative of which queries: bool [B, P], True = left out of the softmax.

    Passage j is ignored for query i when its text is among i's positives, or its text is the query's own, or it
    belongs to another row with the same query; never when it is i's labelled positive. Texts are compared, not
    vectors: with dropout the same text has two vectors.
    """
    queries = torch.arange(len(related.query_key), device=related.query_key.device)
    mask = torch.zeros(len(queries), len(related.passage_key), dtype=torch.bool, device=queries.device)
    mask[_FalseNegatives(related).passages(queries)] = True
    return mask


class _SortedKeys:
    """Keys [m], sorted, to be looked up in by binary search."""

    def __init__(self, keys: Tensor) -> None:
        self.keys, self.order = keys.sort()

    def find(self, wanted: Tensor) -> Places:
        """All (place in `wanted` [n], place in the keys) that are equal, int64 each."""
        low = torch.searchsorted(self.keys, wanted)
        count = torch.searchsorted(self.keys, wanted, right=True) - low
        row = torch.repeat_interleave(torch.arange(len(wanted), device=wanted.device), count)
        before = count.cumsum(0) - count
        at = torch.arange(len(row), device=wanted.device) + (low - before)[row]
        return row, self.order[at]


class _FalseNegatives:
    """What some rows leave out, as (row, column) places: found by key, tile by tile, for a batch of any size."""

    def __init__(self, related: Relations) -> None:
        self.related, self.known = related, related.positive_keys.shape[1]
        self.by_query, self.by_passage = _SortedKeys(related.query_key), _SortedKeys(related.passage_key)
        self.by_owner = _SortedKeys(related.query_key[related.owner])  # a passage by the query of its group
        self.by_positive = _SortedKeys(related.positive_keys.flatten())

    def passages(self, rows: Tensor) -> Places:
        """Of `rows` (int64 [t], queries): the passages that are no fair negatives."""
        related = self.related
        texts = torch.cat([related.query_key[rows, None], related.positive_keys[rows]], 1)
        row, column = self.by_passage.find(texts.flatten())
        row = row // texts.shape[1]
        again, same = self.by_owner.find(related.query_key[rows])
        foreign = related.owner[same] != rows[again]
        row, column = torch.cat([row, again[foreign]]), torch.cat([column, same[foreign]])
        fair = column == related.positive[rows][row]
        return row[~fair], column[~fair]

    def queries(self, rows: Tensor) -> Places:
        """The same seen from the labelled positive of each of `rows`: queries that it may not be held against."""
        related, own = self.related, self.related.positive[rows]
        row, column = self.by_query.find(related.passage_key[own])
        other, answered = self.by_positive.find(related.passage_key[own])
        again, same = self.by_query.find(related.query_key[related.owner[own]])
        foreign = same != related.owner[own][again]
        row = torch.cat([row, other, again[foreign]])
        column = torch.cat([column, answered // self.known, same[foreign]])
        fair = related.positive[column] == own[row]
        return row[~fair], column[~fair]


def info_nce(
    queries: Tensor, passages: Tensor, related: Relations, temperature: float, loss: str = "one-way", rows: slice = ALL,
    reduction: str = "mean",
) -> Tensor:
    """The "mean" or the "sum", over the queries that `rows` picks, of their losses: a scalar.

    `queries` [B, d] and `passages` [P, d] are unit vectors; s = cosine / `temperature`; at least fp32 (float64 stays,
    autocast is off).
    "one-way" (the paper, section 2): -log exp s(q, p⁺) / Σ_p exp s(q, p) over all P passages that are not ignored.
    "symmetric": the mean of that and of the way back, in which each labelled positive finds its query among the B.
    Raises ValueError for an unknown `loss`.
    """
    if loss not in FORMS:
        raise ValueError(f"unknown loss {loss!r}: choose one of {', '.join(FORMS)}")
    with torch.autocast(queries.device.type, enabled=False):
        queries, passages = widen(queries), widen(passages)
        number = torch.arange(len(queries), device=queries.device)[rows]
        target, ignored = related.positive[number], _FalseNegatives(related)
        wants = torch.is_grad_enabled() and (queries.requires_grad or passages.requires_grad)
        total = _Tiled.apply(queries[number], passages, target, number, ignored.passages, temperature, wants)
        if loss == "symmetric":
            back = _Tiled.apply(passages[target], queries, number, number, ignored.queries, temperature, wants)
            total = (total + back) / 2
    return total / max(1, len(number)) if reduction == "mean" else total


class _Tiled(torch.autograd.Function):
    """Loss and gradient of a softmax, tile by tile; the gradient waits, ready made, for backward."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor, target: Tensor, rows: Tensor,
        ignored: Callable[[Tensor], Places], temperature: float, wants_gradient: bool,
    ) -> Tensor:
        """Σ -log softmax at column `target` [n] of the anchors [n, d] over the candidates [m, d]: a scalar.

        The anchors are the `rows` [n] of the batch, of which `ignored` gives the places that are left out.
        """
        anchors, candidates = anchors.detach(), candidates.detach()
        gradients = [torch.zeros_like(anchors), torch.zeros_like(candidates)] if wants_gradient else []
        tile = max(1, min(len(rows), TILE_LOGITS // max(1, len(candidates))))
        logits = anchors.new_empty(tile, len(candidates))
        shares = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for start in range(0, len(rows), tile):
            part = slice(start, start + tile)
            anchor, column = anchors[part] / temperature, target[part, None]
            of_tile, share = logits[: len(anchor)], shares[: len(anchor)]
            torch.mm(anchor, candidates.T, out=of_tile)
            right = of_tile.gather(1, column)
            of_tile[ignored(rows[part])] = -torch.inf
            torch.softmax(of_tile, 1, out=share)
            hit = share.gather(1, column)
            loss = -hit.log()
            if (lost := hit.squeeze(1) < NEGLIGIBLE).any():  # too small to take the logarithm of
                loss[lost] = of_tile[lost].logsumexp(1, keepdim=True) - right[lost]
            total += loss.double().sum()
            if gradients:  # d loss / d logit is the share, less one at the target
                torch.threshold_(share, NEGLIGIBLE, 0)
                own, others = gradients[0][part], gradients[1]
                torch.mm(share, candidates, out=own)
                others.addmm_(share.T, anchor)
                own -= candidates[target[part]]
                others.index_add_(0, target[part], anchor, alpha=-1)
                own /= temperature
        ctx.save_for_backward(*gradients)
        return total.to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times what comes from above: a scalar, for the rows' losses were summed."""
        return *(gradient * upstream for gradient in ctx.saved_tensors), None, None, None, None, None


def widen(vectors: Tensor) -> Tensor:
    """At least fp32: at τ = 0.01 the 4e-3 by which bf16 rounds a cosine is 0.4 of a logit."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) over each group, mean over the groups: Σ_g t_g (log t_g − log s_g), a scalar.

    Both [B, G] logits; the student's are cosines over its own τ, the teacher's are divided by `temperature`.
    """
    target = (widen(teacher) / temperature).log_softmax(1)
    return (target.exp() * (target - widen(student).log_softmax(1))).sum(1).mean()


def group_scores(queries: Tensor, passages: Tensor, temperature: float) -> Tensor:
    """The student's logits over each query's own group: [B, G] of queries [B, d], passages [B·G, d]."""
    groups = widen(passages).view(len(queries), -1, passages.shape[-1])
    return torch.einsum("bd,bgd->bg", widen(queries), groups) / temperature


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
