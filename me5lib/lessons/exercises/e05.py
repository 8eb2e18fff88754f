"""Checkers of notebook 05: the weight in effect, naming a mistake, a rank's share of the mean, a mixed ratio."""

from __future__ import annotations

from collections.abc import Callable

from me5lib.lessons.exercises import ask, close, exercise

OWN, COUNTS = [[1.0, 2.0, 6.0], [], [5.0]], [3, 0, 1]


@exercise("05.1")
def weight_in_effect(answer: float) -> str | None:
    """α / W = 0.025."""
    if close(answer, 0.2 / 8):
        return None
    if close(answer, 1.6):
        return "the other way round: InfoNCE comes out W times too small"
    if close(answer, 0.2):
        return "0.2 is what was asked for; the two terms no longer have the scale that α was chosen for"
    if close(answer, 1 / 8):
        return "that is the factor on InfoNCE; α is still to be multiplied by it"
    return "KL keeps its scale, InfoNCE is divided by the number of processes: what is left of α?"


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
        found = [float(ask(answer, list(own), list(COUNTS))) for own in OWN]
    except ZeroDivisionError:
        return "a rank without rows divides by zero: sum its losses, and divide by what all ranks hold"
    mean = sum(found) / len(found)
    if close(mean, 3.5, 1e-9):
        return None
    if close(mean, 3.5 / 3, 1e-9):
        return "DDP will divide by the number of ranks once more: multiply by it"
    if close(mean, (3.0 + 0.0 + 5.0) / 3, 1e-9):
        return "that is each rank's own mean: a row of a rank with few rows weighs more than one of a rank with many"
    if close(mean, 14.0 / 3, 1e-9):
        return "the sum is not divided by the number of rows yet"
    return f"with rows 3, 0 and 1 the average of your three losses is {mean:.3f}; the mean over all rows is 3.5"


@exercise("05.4")
def mixed_ratio(answer: float) -> str | None:
    """1 - 0.95 = (1 - 1/2) s, so s = 0.1, and 1 - (1 - 1/8) · 0.1 = 0.9125."""
    if close(answer, 1 - 7 / 8 * 0.1, 2e-3):
        return None
    if close(answer, 1 / 8):
        return "that is InfoNCE alone; here KL, which comes out right, is the larger part of the step"
    if close(answer, 0.95, 1e-3):
        return "InfoNCE is now divided by 8 instead of 2, so more of the step is missing"
    if close(answer, 0.95 / 4) or close(answer, 0.95 * 2 / 8):
        return "only InfoNCE's part is divided: first find its share s from 0.95 = 1 - (1 - 1/2) s"
    if close(answer, 0.8, 5e-3):
        return "what is missing is (1 - 1/W) s: it cannot grow fourfold, for half of InfoNCE was missing already"
    if close(answer, 0.9, 1e-3):
        return "that is the step without any InfoNCE, W without end; on 8 processes an eighth of it is left"
    return "find InfoNCE's share s from 0.95 = 1 - (1 - 1/2) s, then put W = 8 into the same formula"
