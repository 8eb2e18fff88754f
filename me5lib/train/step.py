"""One step of either stage: texts → `MicroBatch` → `global_loss` → `train_step`; the experiments use the same.

    batch = collate(rows, encoder, stage, prefixes)                    # pairs of stage 1, or labelled examples
    loss = train_step(model, [batch], stage, team, budget, (seed, step, rank))    # gradients are in `.grad`

With accumulation a step has several micro-batches, each with in-batch negatives of its own, and its loss is the mean of
theirs. Cost: that of `gradcache.cached_step`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from me5lib.config import Model, Stage
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled, Pair
from me5lib.train import distill
from me5lib.train import loss as losses
from me5lib.train.distributed import Team, everyone, gather, share_of_mean, sizes
from me5lib.train.gradcache import cached_step, mix
from me5lib.train.loop import Work
from me5lib.train.negatives import Prefixes

PIECE_BYTES = 2**29  # ours: of which GradCache holds the graph on a CPU; smaller and larger pieces are no faster
GRAPH_BYTES = 3 * 2**29  # ours: above it a step is done by GradCache, so that a run stays under 4 GB


class MicroBatch(NamedTuple):
    """What one backward pass needs of B rows with P passages; tokenised in the loader thread."""

    ids: list[list[int]]  # token ids of the B queries, then of the P passages
    relations: losses.Relations  # who belongs to whom, and so who is no negative of whom
    teacher_scores: Tensor | None = None  # [B, P / B] logits, positive first; stage 2 only


class Budget(NamedTuple):
    """How a step is cut; kept in the stage's folder, so that a resumed run cuts the same pieces."""

    piece: int  # padded tokens of a piece of GradCache's
    whole: int  # tokens of a micro-batch up to which it is one piece, without a replay

    @classmethod
    def on_cpu(cls, shape: Model) -> Budget:
        """By what a run may hold."""
        token = graph_bytes(shape, 1)
        return cls(PIECE_BYTES // token, GRAPH_BYTES // token)


def graph_bytes(shape: Model, tokens: int) -> int:
    """About what autograd keeps of `tokens` tokens, fp32: a layer's 16 vectors of width and 3 of feed-forward."""
    return 4 * tokens * shape.layers * (16 * shape.width + 3 * shape.feedforward)


def collate(
    rows: Sequence[Pair] | Sequence[Labelled], encoder: Encoder, stage: Stage, prefixes: Prefixes
) -> MicroBatch:
    """Token ids of the rows' texts, each with the prefix of its source and cut to the stage's length, and relations."""
    labelled = bool(rows) and isinstance(rows[0], Labelled)
    batch = (losses.from_labelled if labelled else losses.from_pairs)(rows)
    before = [prefixes(row.source) for row in rows]
    queries = [query + text for (query, _), text in zip(before, batch.queries, strict=True)]
    owner = batch.relations.owner.tolist()
    passages = [before[i][1] + text for i, text in zip(owner, batch.passages, strict=True)]
    ids = encoder.tokenize(queries, "", stage.query_tokens) + encoder.tokenize(passages, "", stage.passage_tokens)
    taught = labelled and rows[0].teacher_scores is not None
    return MicroBatch(ids, batch.relations, torch.tensor([row.teacher_scores for row in rows]) if taught else None)


def global_loss(embeddings: Tensor, batch: MicroBatch, stage: Stage) -> Tensor:
    """This rank's share of the mean loss over all ranks' rows: DDP averages the shares, the mean's gradient.

    `embeddings` [B + P, d], queries first. InfoNCE against every rank's passages; with a teacher KL(teacher ‖ student)
    over each query's own group + α · InfoNCE (the form of E5 and SimLM). The student's logits are those of InfoNCE.
    """
    rows = len(batch.relations.query_key)
    queries, passages = embeddings[:rows], embeddings[rows:]
    related = batch.relations.to(embeddings.device)
    held = sizes(related)
    total = losses.total_loss(gather(queries, held.queries), gather(passages, held.passages), everyone(related, held),
                                stage.temperature, stage.loss, held.mine)
    if batch.teacher_scores is not None:
        student = distill.group_scores(queries, passages, stage.temperature)
        teacher = batch.teacher_scores.to(embeddings.device)
        total = rows * distill.kl(student, teacher, stage.teacher_temperature) + stage.contrastive_weight * total
    return share_of_mean(total, rows, held.queries)


def train_step(
    model: Callable[[Sequence[Sequence[int]]], Tensor], batches: Sequence[MicroBatch], stage: Stage, team: Team,
    budget: Budget, seed: tuple[int, ...],
) -> Tensor:
    """Backward through every micro-batch (GradCache); gradients are all-reduced with the last. The detached loss.

    `seed` stands for (seed, step, rank): dropout is drawn from it, piece by piece.
    """
    losses = []
    for k, batch in enumerate(batches):
        whole = not team.any(sum(map(len, batch.ids)) > budget.whole)
        losses.append(cached_step(
            model, batch.ids, lambda embeddings, batch=batch: global_loss(embeddings, batch, stage) / len(batches),
            sys.maxsize if whole else budget.piece, mix(*seed, k), keep_graph=whole, last=k == len(batches) - 1,
        ))  # fmt: skip
    return sum(losses)


def work_of(
    rows: Sequence[Pair] | Sequence[Labelled], model: Callable[..., Tensor], encoder: Encoder, stage: Stage, team: Team,
    budget: Budget, seed: tuple[int, int], prefixes: Prefixes,
) -> Work:
    """The step of this rank on its `rows`, tokenised and ready to be computed; `seed`: (seed, step)."""
    parts = stage.accumulate
    cut = [rows[len(rows) * k // parts : len(rows) * (k + 1) // parts] for k in range(parts)]
    batches = [collate(part, encoder, stage, prefixes) for part in cut]
    compute = functools.partial(train_step, model, batches, stage, team, budget, (*seed, team.rank))
    tokens = sum(len(ids) for batch in batches for ids in batch.ids)
    return Work(compute, "+".join(dict.fromkeys(row.source for row in rows)), tokens)
