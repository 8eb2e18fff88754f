"""Checkers of notebook 05: the weight in effect, naming a mistake, a rank's share of the mean, a mixed ratio."""

from __future__ import annotations

from collections.abc import Callable

from me5lib.lessons.exercises import attempt, exercise, hint_for, number

OWN, COUNTS = [[1.0, 2.0, 6.0], [], [5.0]], [3, 0, 1]

number("05.1", 0.2 / 8, {  # α / W
    1.6: "the other way round: InfoNCE comes out W times too small",
    0.2: "0.2 is what was asked for; the two terms no longer have the scale that α was chosen for",
    1 / 8: "that is the factor on InfoNCE; α is still to be multiplied by it",
}, "KL keeps its scale, InfoNCE is divided by the number of processes: what is left of α?")

number("05.4", 1 - (1 - 1 / 8) * 0.1, {  # 1 - 0.95 = (1 - 1/2) s, so s = 0.1
    1 / 8: "that is InfoNCE alone; here KL, which comes out right, is the larger part of the step",
    0.95: "InfoNCE is now divided by 8 instead of 2, so more of the step is missing",
    0.95 / 4: "only InfoNCE's part is divided: first find its share s from 0.95 = 1 - (1 - 1/2) s",
    0.8: "what is missing is (1 - 1/W) s: it cannot grow fourfold, for half of InfoNCE was missing already",
    0.9: "that is the step without any InfoNCE, W without end; on 8 processes an eighth of it is left",
}, "find InfoNCE's share s from 0.95 = 1 - (1 - 1/2) s, then put W = 8 into the same formula", 2e-3)


@exercise("05.2")
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


@exercise("05.3")
def rank_loss(answer: Callable) -> str | None:
    """W / Σ n × the sum of this rank's losses."""
    try:
        found = [float(attempt(answer, list(own), list(COUNTS))) for own in OWN]
    except ZeroDivisionError:
        return "a rank without rows divides by zero: sum its losses, and divide by what all ranks hold"
    mean = sum(found) / len(found)
    return hint_for(mean, 3.5, [
        (3.5 / 3, "DDP will divide by the number of ranks once more: multiply by it"),
        ((3.0 + 0.0 + 5.0) / 3,
         "that is each rank's own mean: a row of a rank with few rows weighs more than one of a rank with many"),
        (14.0 / 3, "the sum is not divided by the number of rows yet"),
    ], f"with rows 3, 0 and 1 the average of your three losses is {mean:.3f}; the mean over all rows is 3.5", 1e-9)
