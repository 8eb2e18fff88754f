"""Checkers of notebook 05: naming a mistake, the weight in effect, a mixed ratio, a rank's gathered loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from me5lib.lessons.exercises import attempt, exercise, hint_for, number, same

HELD, FIRST = [3, 0, 1], [0, 3, 3]  # rows of each rank, and where they begin

number("05.2", 0.2 / 8, {  # α / W
    1.6: "the other way round: InfoNCE comes out W times too small",
    0.2: "0.2 is what was asked for; the two terms no longer have the scale that α was chosen for",
    1 / 8: "that is the factor on InfoNCE; α is still to be multiplied by it",
}, "KL keeps its scale, InfoNCE is divided by the number of processes: what is left of α?")

number("05.3", 1 - (1 - 1 / 8) * 0.1, {  # 1 - 0.95 = (1 - 1/2) s, so s = 0.1
    1 / 8: "that is InfoNCE alone; here KL, which comes out right, is the larger part of the step",
    0.95: "InfoNCE is now divided by 8 instead of 2, so more of the step is missing",
    0.95 / 4: "only InfoNCE's part is divided: first find its share s from 0.95 = 1 - (1 - 1/2) s",
    0.8: "what is missing is (1 - 1/W) s: it cannot grow fourfold, for half of InfoNCE was missing already",
    0.9: "that is the step without any InfoNCE, W without end; on 8 processes an eighth of it is left",
}, "find InfoNCE's share s from 0.95 = 1 - (1 - 1/2) s, then put W = 8 into the same formula", 2e-3)


@exercise("05.1")
def name_the_mistake(answer: tuple[str, str]) -> str | None:
    """÷ W, then the dropped gradient."""
    first, second = (str(name).strip() for name in answer)
    if first in ("× W", "x W"):
        return "the first: 0.25 on four processes is too small, not too large"
    if first in ("local negatives", "dropped", "local mean"):
        return "the first: its direction is right (cosine 1.00), so nothing is missing but a factor"
    if first != "÷ W":
        return "the first: which mistake multiplies the gradient by 1/W and leaves its direction alone?"
    if second == "local negatives":
        return "the second: with local negatives the printed loss is lower, for there are fewer negatives"
    if second in ("÷ W", "× W"):
        return "the second: a factor alone would leave the cosine at 1"
    if second == "local mean":
        return "the second: with equal shards the local mean is right, and with unequal ones its printed loss is off"
    return None if second == "dropped" else "the second: right loss, direction slightly off: whose gradient is missing?"


@exercise("05.4")
def rank_loss(answer: Callable) -> str | None:
    """The average over three ranks has the value of one process's loss, and its gradient on queries and passages."""
    draw = torch.Generator().manual_seed(0)
    q, p = (functional.normalize(torch.randn(4, 3, dtype=torch.float64, generator=draw)).requires_grad_() for _ in "qp")

    def total(rows: slice, among: slice, first: int) -> torch.Tensor:
        right = torch.arange(len(q[rows])) + first
        return functional.cross_entropy(20 * q[rows] @ p[among].T, right, reduction="sum")

    own, whole = [slice(start, start + n) for start, n in zip(FIRST, HELD, strict=True)], slice(None)
    each = [attempt(answer, q[rows], p, start, list(HELD)) for rows, start in zip(own, FIRST, strict=True)]
    average, right = sum(each) / 3, total(whole, whole, 0) / 4
    if math.isnan(average.item()):
        return "a rank without rows gives nan: sum its losses, and divide by what all ranks hold"
    hint = hint_for(average.item(), right.item(), [
        (right.item() / 3, "DDP will divide by the number of ranks once more: multiply by it"),
        (right.item() * 4 / 3, "the sum is not divided by the number of rows yet"),
        (sum(total(rows, whole, rows.start).item() / n for rows, n in zip(own, HELD, strict=True) if n) / 3,
         "that is each rank's own mean: a row of a rank with few rows weighs more than one of a rank with many"),
        (sum(total(rows, whole, 0).item() for rows in own) / 4,
         "among everybody's passages a rank's own begin at `first`: its right answers are shifted by that"),
        (sum(total(rows, rows, 0).item() for rows in own if rows.stop > rows.start) / 4,
         "those are local negatives: hold each query against everybody's passages"),
    ], f"the average of your three losses is {average.item():.3f}; the mean over all rows is {right.item():.3f}", 1e-6)
    if hint is not None:
        return hint
    found, due = (torch.stack(torch.autograd.grad(loss, (q, p))).tolist() for loss in (average, right))
    return None if same(found, due, 1e-6) else "the loss is right, its gradient is not: let it flow to all passages"
