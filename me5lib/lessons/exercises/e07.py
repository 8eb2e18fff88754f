"""Checkers of notebook 07: the weight of a hard negative, two margins, a teacher's opinion, what a filter is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

from me5lib.lessons.exercises import attempt, exercise, hint_for, number, softmax

COSINES, TAU = (0.8, 0.7, 0.3), 0.05
SHARES = softmax(COSINES, TAU)

number("07.1", SHARES[1], {
    SHARES[0]: "that is the share of the right passage; the question is about the one at 0.7",
    softmax(COSINES)[1]: "you left out the temperature: divide the cosines by 0.05 first",
    softmax(COSINES, 1 / TAU)[1]: "you multiplied by the temperature: cosines are divided by it",
    0.7 / sum(COSINES): "those are shares of the cosines; a softmax takes shares of exp(cosine / τ)",
    SHARES[1] / SHARES[2]: "that is how many times the weight of the other negative it has; the question is its share",
}, "exp(0.7 / 0.05), divided by the sum of the three exponentials", 5e-3)

number("07.3", 0.75 + 0.95 * 0.12, {  # right answer 0.87, unrelated texts 0.75, 95 % of what is above
    0.95 * 0.12: "that is how far above 0.75 it may lie: add the 0.75 again",
    0.95 * 0.87: "that is 95 % of the whole score, NV-Retriever's; take it of what lies above 0.75 only",
    0.75 + 0.05 * 0.12: "that is 5 % of the way up from 0.75: the ceiling lies 5 % of the way down from 0.87",
    0.95 * 0.75: "that is below what unrelated texts score: nothing at all would be left",
}, "0.75, and 95 % of the distance from there to 0.87", 1e-4)

number("07.4", 9 / 12, {  # 12 dropped, 9 of them among the 10 lies of 200 candidates
    9 / 10: "that is the recall, the share of the lies that it drops; precision is a share of what it drops",
    3 / 190: "that is what it costs, the share of the real negatives that are lost",
    (9 / 200, 12 / 200): "a share of all candidates says little: most of them were never in question",
    3 / 12: "that is the share of the dropped that were no lies; precision counts those that were",
}, "of the 12 that were dropped, how many were rightly dropped?", 2e-3)

TERMS = [0.8 * math.log(0.8 / 0.5), 0.2 * math.log(0.2 / 0.5)]  # KL(teacher ‖ student) of (0.8, 0.2) and (0.5, 0.5)
number("07.5", sum(TERMS), {
    0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2): "that is KL(student ‖ teacher): here the teacher stands "
                                                           "first, and weighs the logarithms",
    -math.log(0.5): "that is the cross-entropy: take the teacher's entropy off it (the gradient stays, the value does "
                    "not)",
    sum(TERMS) / math.log(2): "that is in bits: take the natural logarithm",
    -sum(TERMS): "a divergence is never negative: which one stands above in the logarithm?",
    TERMS[0]: "that is the first term only: the second, negative one belongs to it",
}, "Σ t · ln(t / s) over the two passages", 5e-3)


@exercise("07.2")
def ceiling(answer: Callable[[float, float], float]) -> str | None:
    """`highest(positive, margin)`: positive − (1 − margin) · |positive|."""
    found = [float(attempt(answer, score, 0.95)) for score in (0.8, -0.8, 0.0)]
    return hint_for(found, (0.76, -0.84, 0), [
        ((0.75, -0.85, -0.05), "the margin is relative: a share of the score, not 0.05 off"),
        ((0.84, -0.76, 0), "that lets in what scores above the right answer: the ceiling lies below it"),
        ((0.76, -0.76, 0), "for a right answer at -0.8 your ceiling is -0.76: above the right answer itself"),
        ((0.76, 0.76, 0), "with a right answer at -0.8 your ceiling is +0.76: only the gap is taken without its sign"),
        ((0.04, 0.04, 0), "that is the gap; the ceiling is the score less the gap"),
    ], "test it: 0.8 gives 0.76, and -0.8 gives -0.84; both a little below the right answer", 1e-6)
