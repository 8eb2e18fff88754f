"""The teacher: a small cross-encoder that reads query and passage together, and the loss that hands on what it knows.

The paper's stage 2 learns from a cross-encoder's scores: KL(teacher ‖ student) over each query's own group (its
positive and its hard negatives) plus α · InfoNCE over the batch (form from E5 and SimLM's code; mE5's teacher is not
public).

Ours: the teacher has the student's own backbone, one joint input `<s> query: … </s> passage: … </s>`, and is read off
by the two segments' mean vectors after they have attended to each other: their cosine over τ, plus a small network on
[q, p, |q − p|, q ∘ p] whose last layer starts at zero. So before its first step it knows about what the encoder knows
that it starts from. A teacher that is no better than the student teaches nothing: `compare` measures both on held-out
groups, and stage 2 trusts the teacher only if it wins.

Cost: a joint input per passage: four passages a query cost about twice what embedding them apart costs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from me5lib.model.encoder import Encoder, average_pool, by_length
from me5lib.pairs import Labelled
from me5lib.train.contrast import widen
from me5lib.train.loop import autocast, precision

PIECE = 4096  # padded tokens at once, as in training (ours)
Prefixes = tuple[str, str]


class Groups(NamedTuple):
    """Token ids of B queries with G passages each (the positive first), as the teacher reads them."""

    ids: list[list[int]]  # B·G joint inputs, group after group
    cuts: list[int]  # B·G: where the passage begins
    size: int  # G


class Verdict(NamedTuple):
    """Accuracy of teacher and student on the same held-out groups: how often the positive comes first of `size`."""

    teacher: float
    student: float
    queries: int
    size: int

    @property
    def trusted(self) -> bool:
        """Whether the teacher is better."""
        return self.teacher > self.student


class Teacher(nn.Module):
    """A cross-encoder over a copy of `encoder`'s backbone."""

    def __init__(self, encoder: Encoder, temperature: float, seed: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.temperature = temperature
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(4 * encoder.width, encoder.width), nn.Linear(encoder.width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(first, nn.GELU(), last)
        self.to(encoder.device)

    def tokenize(
        self, queries: Sequence[str], groups: Sequence[Sequence[str]], prefixes: Prefixes, lengths: tuple[int, int]
    ) -> Groups:
        """Joint inputs of B queries and their G passages each; both sides cut to `lengths` tokens.

        Raises ValueError when the groups differ in size, or are too long for the backbone together.
        """
        sizes = {len(group) for group in groups}
        if len(sizes) != 1:
            raise ValueError(f"groups of {sorted(sizes)} passages: all must have the same number")
        if sum(lengths) > self.encoder.max_tokens:
            raise ValueError(f"query and passage of {lengths} tokens do not fit into {self.encoder.max_tokens}")
        size = sizes.pop()
        asked = self.encoder.tokenize(queries, prefixes[0], lengths[0])
        found = self.encoder.tokenize([text for group in groups for text in group], prefixes[1], lengths[1])
        left = [row for row in asked for _ in range(size)]
        return Groups([q + p[1:] for q, p in zip(left, found, strict=True)], [len(q) for q in left], size)

    def forward(self, groups: Groups) -> Tensor:
        """Scores (logits, higher is better) of every passage of every group: fp32 [B, G]."""
        self.encoder.choose_attention()
        pieces = list(by_length([len(row) for row in groups.ids], PIECE))
        scores = torch.cat([self._piece([groups.ids[i] for i in p], [groups.cuts[i] for i in p]) for p in pieces])
        back = np.argsort(np.concatenate(pieces), kind="stable")
        return scores[torch.from_numpy(back).to(scores.device)].view(-1, groups.size)

    def _piece(self, rows: list[list[int]], cuts: list[int]) -> Tensor:
        device = self.encoder.device
        padding = self.encoder.tokenizer.pad_token_id
        ids = nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), True, padding).to(device)
        place = torch.arange(ids.shape[1], device=device)
        mask = (place < torch.tensor(list(map(len, rows)), device=device)[:, None]).long()
        left = place < torch.tensor(cuts, device=device)[:, None]
        hidden = self.encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        query, passage = average_pool(hidden, mask * left), average_pool(hidden, mask * ~left)
        cosine = nn.functional.cosine_similarity(query, passage) / self.temperature
        features = torch.cat([query, passage, (query - passage).abs(), query * passage], dim=-1)
        return widen(cosine) + widen(self.head(features).squeeze(-1))

    @torch.no_grad()
    def score(
        self, queries: Sequence[str], groups: Sequence[Sequence[str]], prefixes: Prefixes, lengths: tuple[int, int]
    ) -> np.ndarray:
        """Scores of texts, fp32 [B, G], without gradient, in the precision that training has on this machine."""
        self.eval()
        device = self.encoder.device
        parts = [slice(start, start + 256) for start in range(0, len(queries), 256)]
        with autocast(device, precision(device).name):
            found = [self(self.tokenize(queries[part], groups[part], prefixes, lengths)) for part in parts]
        return torch.cat(found).cpu().numpy()


def listwise(scores: Tensor) -> Tensor:
    """Listwise softmax: −log of the positive's share of its group, mean over groups; scores [B, G], positive first."""
    return -widen(scores).log_softmax(1)[:, 0].mean()


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) over each group, mean over the groups: Σ_g t_g (log t_g − log s_g), a scalar.

    Both [B, G] logits; the student's are cosines over its own τ, the teacher's are divided by `temperature`.
    """
    target = (widen(teacher) / temperature).log_softmax(1)
    return (target.exp() * (target - widen(student).log_softmax(1))).sum(1).mean()


def group_scores(queries: Tensor, passages: Tensor, temperature: float) -> Tensor:
    """The student's logits over each query's own group: [B, G] of queries [B, d], passages [B·G, d]."""
    groups = widen(passages).view(len(queries), -1, passages.shape[-1])
    return torch.einsum("bd,bgd->bg", widen(queries), groups) / temperature


def stage2_loss(
    student: Tensor, teacher: Tensor | None, contrastive: Tensor, weight: float, temperature: float
) -> Tensor:
    """KL(teacher ‖ student) + `weight` · InfoNCE; without a teacher InfoNCE alone. All are means over the batch."""
    return contrastive if teacher is None else kl(student, teacher, temperature) + weight * contrastive


def first_place(scores: np.ndarray) -> np.ndarray:
    """Whether the positive (column 0) beats every other of its group: bool [B]; a tie is no win."""
    return scores[:, 0] > scores[:, 1:].max(1)


def student_scores(
    encoder: Encoder, rows: Sequence[Labelled], prefixes: Prefixes, lengths: tuple[int, int]
) -> np.ndarray:
    """Cosines of each row's query with its first positive and its negatives (equally many): fp32 [B, G]."""
    fast = precision(encoder.device).name  # as the teacher has it
    asked = encoder.encode([row.query for row in rows], prefixes[0], max_tokens=lengths[0], precision=fast)
    texts = [text for row in rows for text in (row.positives[0], *row.negatives)]
    found = encoder.encode(texts, prefixes[1], max_tokens=lengths[1], precision=fast)
    return np.einsum("bd,bgd->bg", asked, found.reshape(len(rows), -1, encoder.width))
