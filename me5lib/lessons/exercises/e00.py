"""Checkers of notebook 00: search by cosine, two ways to score it, and the mean of each language taken off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from me5lib.lessons.exercises import attempt, exercise, hint_for, number

number("00.2", 1 / 40, {
    100 / 40: "that is in per cent; write it as a share",
    0.5: "one half would be right for two answers: here forty may come first",
    39 / 40: "that is how often a guess is wrong",
    0.0: "small, but not nothing: a blind guess is right once in so many times",
}, "a blind guess picks each of the forty answers equally often: how often is it the right one?")


@exercise("00.1")
def search_by_cosine(function: Callable) -> str | None:
    """Four passages of different lengths: inner product, distance and cosine order them differently."""
    query = np.array([1.0, 0.0])
    passages = np.array([[6.0, 6.0], [0.1, 0.0], [-5.0, 0.0], [2.0, 1.0]])  # cosines 0.71, 1, -1, 0.89
    found = [float(place) for place in np.asarray(attempt(function, query, passages, 3)).ravel()]
    if len(found) != 3:
        return f"k was 3 and you returned {len(found)}: keep the k best"
    if sorted(found, reverse=True) == found and any(value % 1 for value in found):
        return "those are the cosines themselves: return their places"
    return hint_for(found, [1, 3, 0], [
        ([0, 3, 1], "the longest vectors came first: that is the inner product; divide by the lengths"),
        ([2, 0, 3], "that is worst first: sorting goes upwards unless you turn it round"),
    ], f"the right places are 1, 3, 0 for {passages.tolist()} and query {query.tolist()}; you returned {found}")


@exercise("00.3")
def mean_reciprocal_rank(function: Callable) -> str | None:
    """Ranks 1, 2 and 3 in three rows."""
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.9, 0.2]])
    found = attempt(function, scores)
    columns = [int((scores[:, i] >= scores[i, i]).sum()) for i in range(3)]
    return hint_for(found, (1 + 1 / 2 + 1 / 3) / 3, [
        (2.0, "that is the mean rank: turn each rank into 1/rank before you average"),
        (0.5, "that is 1 over the mean rank: turn each rank into 1/rank first, then average"),
        (1 / 3, "that is the share of first places; a second place counts for half"),
        (1 + 1 / 2 + 1 / 3, "you have the sum: divide by the number of queries"),
        ((1 / 2 + 1 / 3 + 1 / 4) / 3, "your ranks begin at 2: the right passage itself is not among the better ones"),
        (sum(1 / rank for rank in columns) / 3, "a row is a query: you ranked along the columns"),
    ], f"with ranks 1, 2 and 3 the mean of 1/rank is 0.611; you returned {found}")


@exercise("00.4")
def take_means_off(function: Callable) -> str | None:
    """Two languages with different means, their rows mixed."""
    angles = np.array([0.1, 1.2, 0.5, 1.6, 0.2])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    languages = ["de", "ja", "de", "ja", "ja"]
    of = np.array([[other == own for other in languages] for own in languages], dtype=float)
    apart = vectors - of / of.sum(1, keepdims=True) @ vectors
    found = np.asarray(attempt(function, vectors.copy(), languages), dtype=float)
    if found.shape != vectors.shape:
        return f"five vectors of width 2 come back as an array of shape (5, 2); yours has {found.shape}"

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return hint_for(found, unit(apart), [
        (apart, "the means are off; now scale every row to length 1 again"),
        (vectors, "nothing has changed: take each language's mean off its rows"),
        (unit(vectors - vectors.mean(0)), "that is the mean of all texts: each language has one of its own"),
        (unit(vectors - of @ vectors), "that takes off the sum: divide it by the number of texts in the language"),
        (unit(vectors + vectors - apart), "you added the mean: take it off"),
    ], f"the first row, of language de, becomes {unit(apart)[0].round(3)}; yours is {found[0].round(3)}")
