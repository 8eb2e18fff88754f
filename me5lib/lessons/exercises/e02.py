"""Checkers of notebook 02: InfoNCE, the loss of equal cosines, the gradient of a row, the masked loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from me5lib.lessons.exercises import attempt, close, exercise, hint_for, number, softmax

ROW, POSITIVE, TEMPERATURE = [0.2, 0.7, 0.6, -0.1], 1, 0.25

number("02.2", math.log(1024), {  # whatever the temperature
    math.log2(1024): "right idea, other base: the loss uses the natural logarithm, as exp does",
    math.log(1024) / 0.05: "the temperature divides every cosine alike, and what is the same everywhere leaves a "
                           "softmax unchanged",
    0: "0 is the loss of a model that is certain and right; this one cannot tell its passages apart",
    (1024, 1 / 1024): "that is the number of classes, or the positive's share; the loss is minus the logarithm of the "
                      "share",
}, "equal cosines give equal shares: what is the share of one of 1,024, and minus its logarithm?")


@exercise("02.1")
def table_loss(answer: Callable) -> str | None:
    """A table of three by three at τ = 0.2, whose rows and columns have different losses."""
    rows, tau = [[0.8, 0.3, 0.1], [0.5, 0.7, 0.6], [0.2, 0.4, 0.9]], 0.2

    def loss(table: Sequence[Sequence[float]], temperature: float = tau) -> float:
        return sum(-math.log(softmax(row, temperature)[i]) for i, row in enumerate(table)) / len(table)

    own = [softmax(row, tau)[i] for i, row in enumerate(rows)]
    found = attempt(answer, [list(row) for row in rows], tau)
    return hint_for(found, loss(rows), [
        (loss(rows, 1.0), "the temperature is missing: divide every cosine by it before exp"),
        (loss(rows, 1 / tau), "you multiplied by the temperature: divide every cosine by it"),
        (loss(list(zip(*rows, strict=True))), "you went down the columns: a row is a query, and its passages compete"),
        (3 * loss(rows), "you have the sum over the rows: divide it by their number"),
        (-loss(rows), "the sign is turned: the logarithm of a share is below 0, and the loss is minus that"),
        (sum(own) / 3, "that is the mean share: take minus the logarithm of each row's share, then the mean"),
        (-math.log(sum(own) / 3), "take the logarithm of each row's share first, and the mean afterwards"),
        (sum(math.log(1 / share - 1) for share in own) / 3,
         "the passage on the diagonal takes part in the sum that it is divided by, too"),
    ], f"for {rows} at τ = {tau} it should be {loss(rows):.4f}; you returned {found}", 1e-5)


@exercise("02.3")
def row_gradient(answer: Callable) -> str | None:
    """(share − label) / τ, checked on one row."""
    found = list(attempt(answer, list(ROW), POSITIVE, TEMPERATURE))
    shares = softmax(ROW, TEMPERATURE)
    right = [(share - (j == POSITIVE)) / TEMPERATURE for j, share in enumerate(shares)]
    if len(found) != len(ROW):
        return f"a row of {len(ROW)} cosines has {len(ROW)} derivatives, not {len(found)}"
    return hint_for(found, right, [
        ([value * TEMPERATURE for value in right],
         "one factor is missing: the cosines are divided by τ before the softmax (chain rule)"),
        ([-value for value in right],
         "the sign is turned: the gradient points uphill; the positive's cosine should rise when we go down"),
        ([share / TEMPERATURE for share in shares],
         "that pushes the positive too: its label, 1, is still to be taken off its share"),
        ([(j == POSITIVE) * value for j, value in enumerate(right)],
         "the negatives feel a force as well: each its share"),
    ], "compare with (P_j − [j is the positive]) / τ, and check that your numbers sum to zero", 1e-6)


@exercise("02.4")
def masked_loss(answer: Callable) -> str | None:
    """The loss with a mask: right, masked, and finite at τ = 0.001."""
    row, ignored = [0.9, 0.8, 0.95, 0.1], [False, False, True, False]
    right = -math.log(softmax([0.9, 0.8, 0.1], 0.1)[1])
    found = attempt(answer, list(row), list(ignored), 1, 0.1)
    hint = hint_for(found, right, [
        (-math.log(softmax(row, 0.1)[1]), "the ignored passage still takes part in the sum"),
        (-math.log(softmax([0.9, 0.8, 0.0, 0.1], 0.1)[1]),
         "a cosine of 0 is not nothing: exp(0) = 1 still counts in the sum; leave the term out, or use -inf"),
    ], f"for cosines {row} with the third ignored, the second the positive and τ = 0.1 it should be {right:.4f}", 1e-6)
    if hint:
        return "a loss of this kind is never below 0: minus the logarithm of a share" if found < 0 else hint
    try:
        extreme = float(answer([1.0, 0.9, -1.0], [False] * 3, 0, 0.001))
    except (OverflowError, ZeroDivisionError, ValueError):
        extreme = math.nan
    if not close(extreme, 0.0, 1e-6):
        return "right, but at τ = 0.001 exp(1000) overflows: take the row's largest cosine off first"
    far = float(answer([-1.0, 1.0], [False, False], 0, 0.001))
    if not close(far, 2000.0, 1e-6):
        return "a positive far below the top has a share that rounds to 0: subtract logits instead of dividing shares"
    return None
