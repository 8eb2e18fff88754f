"""Answers to the exercises of notebook 00, and plausible mistakes: each meets its own hint."""

import numpy as np


def _cosines(query, passages):
    return passages @ query / np.linalg.norm(passages, axis=1) / np.linalg.norm(query)


def _ranks(scores):
    return (scores > np.diag(scores)[:, None]).sum(axis=1) + 1


SOLUTIONS = {
    "00.1": lambda query, passages, k: np.argsort(-_cosines(query, passages))[:k],
    "00.2": 1 / 60,
    "00.3": lambda scores: (1 / _ranks(scores)).mean(),
}

WRONG = {
    "00.1": [
        lambda query, passages, k: np.argsort(-(passages @ query))[:k],
        lambda query, passages, k: np.argsort(_cosines(query, passages))[:k],
        lambda query, passages, k: np.argsort(-_cosines(query, passages)),
        lambda query, passages, k: np.sort(_cosines(query, passages))[::-1][:k],
    ],
    "00.2": [0.5, 59 / 60, 100 / 60, 0.0, 0.8],
    "00.3": [
        lambda scores: _ranks(scores).mean(),
        lambda scores: 1 / _ranks(scores).mean(),
        lambda scores: (_ranks(scores) == 1).mean(),
        lambda scores: (1 / _ranks(scores)).sum(),
        lambda scores: (1 / (_ranks(scores) + 1)).mean(),
        lambda scores: (1 / ((scores >= np.diag(scores)).sum(axis=0))).mean(),
    ],
}
