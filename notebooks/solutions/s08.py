"""Solutions of notebook 08, and wrong answers that each meet a hint of their own."""

import numpy as np


def reciprocal_rank(scores, right):
    """1 / place of `right`, the highest score having place 1."""
    return 1 / (1 + sum(score > scores[right] for score in scores))


def interval(a, b):
    """95 % of the mean difference, over queries drawn with replacement, the same for both."""
    rng = np.random.default_rng(1)
    draws = rng.integers(0, len(a), (1000, len(a)))
    low, high = np.percentile((a - b)[draws].mean(1), [2.5, 97.5])
    return low, high


def _place(scores, right):
    return 1 / reciprocal_rank(scores, right)


def _upside_down(scores, right):
    return 1 / (1 + sum(score < scores[right] for score in scores))


def _from_zero(scores, right):
    return 1 / max(1, sum(score > scores[right] for score in scores))


def _hit(scores, right):
    return float(scores[right] == max(scores))


def _score(scores, right):
    return scores[right]


def _apart(a, b):
    rng = np.random.default_rng(1)
    means = [rng.choice(a, len(a)).mean() - rng.choice(b, len(b)).mean() for _ in range(1000)]
    return tuple(np.percentile(means, [2.5, 97.5]))


def _of_queries(a, b):
    return tuple(np.percentile(a - b, [2.5, 97.5]))


def _turned(a, b):
    return interval(b, a)


def _one_error(a, b):
    error = (a - b).std() / len(a) ** 0.5
    return (a - b).mean() - error, (a - b).mean() + error


def both(values):
    """95 % of the mean over seeds and queries drawn with replacement, the same queries for every drawn seed."""
    rng, (seeds, queries) = np.random.default_rng(1), values.shape
    means = [values[rng.integers(0, seeds, seeds)][:, rng.integers(0, queries, queries)].mean() for _ in range(2000)]
    return tuple(np.percentile(means, [2.5, 97.5]))


def _queries_only(values):
    return interval(values.mean(0), 0)


def _seeds_only(values):
    rng = np.random.default_rng(1)
    means = values.mean(1)[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def _single_scores(values):
    return interval(values.ravel(), 0)


def _spread(values):
    return tuple(np.percentile(values, [2.5, 97.5]))


SOLUTIONS = {"08.1": reciprocal_rank, "08.2": interval, "08.3": "undecided", "08.4": both}
WRONG = {
    "08.1": [_place, _upside_down, _from_zero, _score, _hit],
    "08.2": [_apart, _of_queries, _turned, _one_error],
    "08.3": ["better", "worse", "equal"],
    "08.4": [_queries_only, _seeds_only, _single_scores, _spread],
}
