"""Checkers of notebook 07: the weight of a hard negative, two margins, a teacher's opinion, what a filter is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

from me5lib.lessons.exercises import ask, close, exercise

_COSINES, _TAU = (0.8, 0.7, 0.3), 0.05


def _softmax(logits: tuple[float, ...]) -> list[float]:
    powers = [math.exp(x) for x in logits]
    return [power / sum(powers) for power in powers]


@exercise("07.1")
def weight_of_a_hard_negative(answer: float) -> str | None:
    """Cosines 0.8 (right), 0.7, 0.3 at τ = 0.05: the softmax share of the second is 0.119."""
    shares = _softmax(tuple(cosine / _TAU for cosine in _COSINES))
    if close(answer, shares[0], 5e-3):
        return "that is the share of the right passage; the question is about the one at 0.7"
    if close(answer, _softmax(_COSINES)[1], 5e-3):
        return "you left out the temperature: divide the cosines by 0.05 first"
    if close(answer, _softmax(tuple(cosine * _TAU for cosine in _COSINES))[1], 2e-3):
        return "you multiplied by the temperature: cosines are divided by it"
    if close(answer, 0.7 / sum(_COSINES), 5e-3):
        return "those are shares of the cosines; a softmax takes shares of exp(cosine / τ)"
    if close(answer, shares[1] / shares[2], 1e-2):
        return "that is how many times the weight of the other negative it has; the question is its share"
    return None if close(answer, shares[1], 5e-3) else "exp(0.7 / 0.05), divided by the sum of the three exponentials"


@exercise("07.2")
def ceiling(answer: Callable[[float, float], float]) -> str | None:
    """`highest(positive, margin)`: positive − (1 − margin) · |positive|."""
    above, below, none = (float(ask(answer, score, 0.95)) for score in (0.8, -0.8, 0.0))
    if close(above, 0.75, 1e-6) or close(below, -0.85, 1e-6):
        return "the margin is relative: a share of the score, not 0.05 off"
    if close(above, 0.84, 1e-6):
        return "that lets in what scores above the right answer: the ceiling lies below it"
    if close(above, 0.76, 1e-6) and close(below, -0.76, 1e-6):
        return "for a right answer at -0.8 your ceiling is -0.76: above the right answer itself"
    if close(above, 0.76, 1e-6) and close(below, 0.76, 1e-6):
        return "with a right answer at -0.8 your ceiling is +0.76: only the gap is taken without its sign"
    if close(above, 0.04, 1e-6):
        return "that is the gap; the ceiling is the score less the gap"
    fine = close(above, 0.76, 1e-6) and close(below, -0.84, 1e-6) and close(none, 0.0, 1e-9)
    return None if fine else "test it: 0.8 gives 0.76, and -0.8 gives -0.84; both a little below the right answer"


@exercise("07.3")
def divergence(answer: float) -> str | None:
    """KL(teacher ‖ student) of (0.8, 0.2) and (0.5, 0.5): 0.193."""
    teacher, student = (0.8, 0.2), (0.5, 0.5)
    terms = [t * math.log(t / s) for t, s in zip(teacher, student, strict=True)]
    if close(answer, sum(s * math.log(s / t) for t, s in zip(teacher, student, strict=True)), 5e-3):
        return "that is KL(student ‖ teacher): here the teacher stands first, and weighs the logarithms"
    if close(answer, -sum(t * math.log(s) for t, s in zip(teacher, student, strict=True)), 5e-3):
        return "that is the cross-entropy: take the teacher's entropy off it (the gradient stays, the value does not)"
    if close(answer, sum(terms) / math.log(2), 5e-3):
        return "that is in bits: take the natural logarithm"
    if close(answer, -sum(terms), 5e-3):
        return "a divergence is never negative: which one stands above in the logarithm?"
    if close(answer, terms[0], 5e-3):
        return "that is the first term only: the second, negative one belongs to it"
    return None if close(answer, sum(terms), 5e-3) else "Σ t · ln(t / s) over the two passages"


@exercise("07.4")
def precision(answer: float) -> str | None:
    """12 dropped, 9 of them among the 10 lies of 200 candidates: 0.75."""
    if close(answer, 9 / 10, 5e-3):
        return "that is the recall, the share of the lies that it drops; precision is a share of what it drops"
    if close(answer, 3 / 190, 2e-3):
        return "that is what it costs, the share of the real negatives that are lost"
    if close(answer, 9 / 200, 2e-3) or close(answer, 12 / 200, 2e-3):
        return "a share of all candidates says little: most of them were never in question"
    if close(answer, 3 / 12, 5e-3):
        return "that is the share of the dropped that were no lies; precision counts those that were"
    return None if close(answer, 9 / 12, 5e-3) else "of the 12 that were dropped, how many were rightly dropped?"


@exercise("07.5")
def margin_above_the_floor(answer: float) -> str | None:
    """Right answer 0.87, unrelated texts 0.75, 95 % of what is above: 0.75 + 0.95 · 0.12 = 0.864."""
    if close(answer, 0.95 * 0.12, 1e-4):
        return "that is how far above 0.75 it may lie: add the 0.75 again"
    if close(answer, 0.95 * 0.87, 1e-4):
        return "that is 95 % of the whole score, NV-Retriever's; take it of what lies above 0.75 only"
    if close(answer, 0.75 + 0.05 * 0.12, 1e-4):
        return "that is 5 % of the way up from 0.75: the ceiling lies 5 % of the way down from 0.87"
    if close(answer, 0.95 * 0.75, 1e-4):
        return "that is below what unrelated texts score: nothing at all would be left"
    return None if close(answer, 0.864, 1e-4) else "0.75, and 95 % of the distance from there to 0.87"
