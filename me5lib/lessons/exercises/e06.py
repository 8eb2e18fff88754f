"""Checkers of notebook 06: the loss of knowing nothing, the learning rate, a collapsed model."""

from __future__ import annotations

import math
from collections.abc import Callable

from me5lib.lessons.exercises import attempt, close, exercise, hint_for, number

number("06.1", math.log(1024), {  # equal cosines: the softmax is flat over 1,024 passages
    1024: "that is how many passages there are; the loss is a logarithm",
    1 / 1024: "that is the probability of the right one; the loss is minus its logarithm",
    (math.log2(1024), math.log10(1024)): "the logarithm of the loss is the natural one",
    (0.85 / 0.05, math.log(1024) + 0.85 / 0.05): "the same number stands above and below the fraction bar, and "
                                                 "cancels: what 0.85 / τ is does not matter",
    math.log(1024) / 0.05: "τ divides the cosines, and equal cosines cancel: it is gone before the logarithm",
    -math.log(1024): "a loss is minus the logarithm of a probability, so it is not negative",
}, "a flat softmax gives each of 1,024 one share: -ln of it", 5e-3)


@exercise("06.2")
def learning_rate(answer: Callable[[int, int, int, float], float]) -> str | None:
    """`rate(step, steps, warmup, peak)`: up to `peak` at step `warmup`, then straight down to 0 at `steps`."""
    found = [float(attempt(answer, step, 100, 9, 2.0)) for step in range(100)]
    if close(found[0], 0.0, 1e-9):
        return "step 0 would teach nothing: the rise begins at peak / (warmup + 1), not at 0"
    if all(close(value, 2.0) for value in found[:10]):
        return "the rise is missing: steps 0 to warmup must climb"
    if all(close(value, 2.0) for value in found[9:]):
        return "after the warm-up it stays at the peak: it must fall in a straight line"
    if close(found[30], 1 + math.cos(math.pi * 21 / 91)):
        return "that is a cosine: this schedule falls in a straight line"
    if close(found[30], 2.0 * 70 / 100):
        return "it falls from step 0 on, so the peak is never reached: the line starts at step warmup"
    exact = [2.0 * min((step + 1) / 10, (100 - step) / 91) for step in range(100)]
    wrong = [step for step in range(100) if not close(found[step], exact[step], 1e-6)]
    if wrong:
        pair = f"{exact[wrong[0]]:.4f}, yours has {found[wrong[0]]:.4f}"
        return f"steps=100, warmup=9, peak=2: step {wrong[0]} should have {pair}"
    return None


@exercise("06.3")
def collapsed(answer: tuple[float, float]) -> str | None:
    """One vector for all: every distance is 0, so alignment 0 and uniformity log e^0 = 0."""
    alignment, uniformity = answer
    if not close(alignment, 0):
        return ("alignment is the distance of texts that belong together: how far apart are equal vectors?"
                if close(uniformity, 0) else "all distances are 0: put that into both formulas")
    return hint_for(uniformity, 0, [
        (1, "the mean of e^0 is 1; uniformity is its logarithm"),
        (-4, "-4 is about the best uniformity, that of texts spread all over the sphere: here they sit on one point"),
        (math.inf, "distances of 0 make e^0, not a division by 0"),
    ], "all distances are 0: put that into both formulas")
