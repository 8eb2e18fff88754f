"""Checkers of notebook 04: the arithmetic of the replay, the cut by a budget, the table of cosines, the closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

from me5lib.lessons.exercises import attempt, exercise, hint_for, number

LENGTHS, BUDGET = [5, 1, 9, 40, 1, 9, 2, 30, 5, 9], 32
LOGITS, TARGET = [1.0, 3.0, 2.0, 0.5], 2
TABLE = 32_768**2 * 4 / 1e9  # GB

number("04.1", (1 + 1 + 2) / (1 + 2), {
    2: "only the forward pass is done twice, the backward pass once",
    1.5: "that counts the backward pass as one forward; it costs two",
    4: "that is GradCache's own cost in forward passes; divide by the plain step's",
    1: "the first pass, without a graph, is arithmetic too",
}, "count in forward passes: the plain step has 1 + 2 of them, GradCache 1 more", 1e-2)

number("04.3", TABLE, {
    TABLE / 4: "that is the number of cosines in billions; each takes four bytes",
    TABLE / 2: "that is at two bytes a number; fp32 has four",
    32_768 * 4 / 1e9: "a table has rows and columns: 32,768 × 32,768 numbers",
    (TABLE * 1e9, TABLE * 1e3): "the digits are right; give it in units of 10⁹ bytes",
    4.0: "4.0 is in GiB (2³⁰ bytes); in GB of 10⁹ bytes it is a little more",
}, "rows × columns × bytes per number, divided by 10⁹", 2e-2)


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


@exercise("04.4")
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
