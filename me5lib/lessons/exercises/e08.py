"""Checkers of notebook 08: reciprocal rank, a paired interval, what an interval says, seeds and queries drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose

import numpy as np

from me5lib.lessons.exercises import attempt, exercise, hint_for


@exercise("08.1")
def reciprocal_rank(answer: Callable[[Sequence[float], int], float]) -> str | None:
    """`reciprocal_rank(scores, right)`: 1 / the place of passage `right` when the highest score is place 1."""
    found = [float(attempt(answer, *case)) for case in (([0.9, 0.2, 0.6, 0.7], 2), ([0.1, 0.8, 0.3], 1))]
    return hint_for(found, (1 / 3, 1), [
        ((3, 1), "that is the place; the reciprocal rank is 1 divided by it"),
        ((1 / 2, 1 / 3), "you sorted the other way: the highest score has place 1"),
        ((1 / 2, 1), "Python counts from 0: the first place is 1"),
        ((0.6, 0.8), "that is its score; look for its place among the scores"),
        ((0, 1), "only a hit on the first place would count that way; the third place still gives 1/3"),
    ], "the place: 1 + how many passages score higher")


@exercise("08.2")
def paired_interval(answer: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> str | None:
    """`interval(a, b)`: 2.5 % and 97.5 % of the mean of a − b over resampled queries, the same ones for both."""
    rng = np.random.default_rng(0)
    difficulty = rng.random(300)
    a, b = difficulty + 0.05 + 0.02 * rng.standard_normal(300), difficulty
    low, high = (float(end) for end in attempt(answer, a, b))
    error = (a - b).std() / np.sqrt(300)
    apart = np.sqrt(a.var() + b.var()) / np.sqrt(300)
    if low > high:
        return "the lower end comes first"
    if high < 0:
        return "the sign: a is the better one here, and a − b is asked for"
    if isclose(high - low, 2 * 1.96 * apart, rel_tol=0.25):
        return "you drew the queries of a and of b apart: then hard queries count as a difference of models"
    if isclose(high - low, np.subtract(*np.percentile(a - b, [97.5, 2.5])), rel_tol=0.1):
        return "that is the spread of single queries; asked for is that of their mean: resample, take the mean, repeat"
    if isclose(high - low, 2 * error, rel_tol=0.2):
        return "that is one standard error to each side; 95 % of the means lie within about two"
    fine = isclose(high - low, 2 * 1.96 * error, rel_tol=0.25) and low < (a - b).mean() < high
    return None if fine else "draw queries with replacement, take the mean of a − b, 1,000 times; then percentiles"


@exercise("08.3")
def reading(answer: str) -> str | None:
    """A difference of +0.012, interval -0.004 … +0.028: undecided."""
    hints = {
        "undecided": None,
        "better": "the interval holds 0 and values below it: with other queries it may have come out the other way",
        "worse": "most of the interval lies above 0; and what lies on both sides of it says neither",
        "equal": "not finding a difference is not finding that there is none: +0.028 is in the interval too",
    }
    return hints.get(str(answer).strip().lower(), f"answer with one of {', '.join(sorted(hints))}")


@exercise("08.4")
def seeds_and_queries(answer: Callable[[np.ndarray], tuple[float, float]]) -> str | None:
    """`both(values)`: 2.5 % and 97.5 % of the mean of [seeds, queries], both drawn again, the same queries for all."""
    of_seed, of_query = np.linspace(-0.3, 0.3, 6)[:, None], np.linspace(-0.5, 0.5, 20)[None]
    low, high = (float(end) for end in attempt(answer, of_seed + of_query))
    wide = (high - low) / (2 * 1.96)
    by_seed, by_query = of_seed.std() / 6**0.5, of_query.std() / 20**0.5
    if low > high:
        return "the lower end comes first"
    if wide > 2 * np.hypot(by_seed, by_query):
        return "that is the spread of single scores; asked for is that of their mean"
    if wide < 0.85 * by_query:
        return "you drew single scores: the 20 queries of a seed share its luck, so they are not 120 witnesses"
    if isclose(wide, by_query, rel_tol=0.12):
        return "the queries were drawn again, the seeds were not: as if other seeds had to give the same"
    if isclose(wide, by_seed, rel_tol=0.12):
        return "the seeds were drawn again, the queries were not: as if no other queries could be asked"
    fine = 0.91 * np.hypot(by_seed, by_query) < wide < 1.2 * np.hypot(by_seed, by_query)
    return None if fine else "draw rows, draw columns, both with replacement; mean of what is left; 1,000 times"
