"""Checkers of notebook 04: GradCache, its arithmetic, the cut by a budget, the table of cosines, the closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import torch
from torch.nn import functional

from me5lib.lessons.exercises import attempt, close, exercise, hint_for, number

IDS, PIECES = [[i] for i in range(6)], [[4, 0, 2, 5], [1, 3]]
LENGTHS, BUDGET = [5, 1, 9, 40, 1, 9, 2, 30, 5, 9], 32
LOGITS, TARGET = [1.0, 3.0, 2.0, 0.5], 2
TABLE = 32_768**2 * 4 / 1e9  # GB

number("04.3", (1 + 1 + 2) / (1 + 2), {
    2: "only the forward pass is done twice, the backward pass once",
    1.5: "that counts the backward pass as one forward; it costs two",
    4: "that is GradCache's own cost in forward passes; divide by the plain step's",
    1: "the first pass, without a graph, is arithmetic too",
}, "count in forward passes: the plain step has 1 + 2 of them, GradCache 1 more", 1e-2)

number("04.4", TABLE, {
    TABLE / 4: "that is the number of cosines in billions; each takes four bytes",
    TABLE / 2: "that is at two bytes a number; fp32 has four",
    32_768 * 4 / 1e9: "a table has rows and columns: 32,768 × 32,768 numbers",
    (TABLE * 1e9, TABLE * 1e3): "the digits are right; give it in units of 10⁹ bytes",
    4.0: "4.0 is in GiB (2³⁰ bytes); in GB of 10⁹ bytes it is a little more",
}, "rows × columns × bytes per number, divided by 10⁹", 2e-2)


@exercise("04.1")
def cached_gradient(answer: Callable) -> str | None:
    """Six texts, the first three queries, in two pieces: the loss and the gradient of one graph, and no graph twice."""
    draw, graphs = torch.Generator().manual_seed(0), []
    table, weight = (torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in ((6, 4), (4, 3)))
    weight.requires_grad_()

    def embed(rows: list) -> torch.Tensor:
        graphs.append(torch.is_grad_enabled())
        return functional.normalize(table[[row[0] for row in rows]] @ weight, dim=1)

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        half = len(vectors) // 2
        return functional.cross_entropy(10 * vectors[:half] @ vectors[half:].T, torch.arange(half))

    def gradient(loss: torch.Tensor) -> numpy.ndarray:
        return torch.autograd.grad(loss, weight)[0].numpy()

    whole = loss_of(embed(IDS))
    alone = gradient(sum(loss_of(embed([IDS[i] for i in piece])) for piece in PIECES))
    misplaced = gradient(loss_of(embed([IDS[i] for piece in PIECES for i in piece])))
    graphs.clear()
    loss = attempt(answer, embed, IDS, PIECES, loss_of)
    if weight.grad is None:
        return "the weights have no gradient: embed each piece again, and push its rows of the vectors' gradient on"
    accumulation = "that is accumulation: each piece was compared with itself alone"
    hint = hint_for(weight.grad.numpy(), gradient(whole), [
        (alone, accumulation), (alone / 2, accumulation),
        (misplaced, "the vectors stood in the order of the pieces: put each at its text's place before the loss"),
    ], "that is not the gradient of the whole batch: first the loss of all vectors, then piece by piece", 1e-5)
    if hint is None and all(graphs):
        return "the gradient is right, but all graphs wait for the loss: make the first pass under torch.no_grad()"
    return hint or (None if close(loss, whole.item()) else "the gradient is right; return the whole batch's loss, too")


@exercise("04.2")
def cut_by_budget(answer: Callable) -> str | None:
    """Sorted, whole, within the budget of padded tokens, and not wasteful."""
    cut = [list(piece) for piece in attempt(answer, list(LENGTHS), BUDGET)]
    flat = [i for piece in cut for i in piece]
    if sorted(flat) != list(range(len(LENGTHS))):
        return f"every text once: {len(LENGTHS)} went in, {len(flat)} came out, {len(set(flat))} of them different"
    if any(not piece for piece in cut):
        return "there is an empty piece: a first text longer than the budget must not close a piece that has none"
    if [LENGTHS[i] for i in flat] != sorted(LENGTHS):
        return "the texts are not sorted by length, so a long one pads its short neighbours"
    if any(len(piece) > 1 and len(piece) * max(LENGTHS[i] for i in piece) > BUDGET for piece in cut):
        return "a piece is over the budget once padded: count texts × longest, not the sum of the lengths"
    if len(cut) > 5:
        return f"within the budget, but {len(cut)} pieces where 5 do: go on filling a piece while it fits"
    first = [list(piece) for piece in answer([50], BUDGET)]
    return None if first == [[0]] else "a single text longer than the budget should come back as one piece: [[0]]"


@exercise("04.5")
def closed_form(answer: Callable) -> str | None:
    """The softmax, less one at the right passage."""
    powers = [math.exp(value) for value in LOGITS]
    share = [power / sum(powers) for power in powers]
    right = [s - (j == TARGET) for j, s in enumerate(share)]
    found = [float(value) for value in attempt(answer, list(LOGITS), TARGET)]
    if len(found) != len(LOGITS):
        return f"one number for each logit: {len(LOGITS)} went in, {len(found)} came out"
    return hint_for(found, right, [
        (share, "that is the softmax: one thing is missing at the right passage"),
        ([-value for value in right], "the sign: raising the right passage's logit must lower the loss"),
        ([power - (j == TARGET) for j, power in enumerate(powers)],
         "that leaves the sum under the fraction bar out: divide the powers by it"),
        ([(s - 1) * (j == TARGET) for j, s in enumerate(share)],
         "the other passages count too: raising the logit of any of them raises the loss"),
    ], f"logits {LOGITS}, the right one at place {TARGET}: the derivatives are {[round(r, 3) for r in right]}", 1e-6)
