"""Answers to the exercises of notebook 00, and plausible mistakes: each meets its own hint."""

import numpy as np


def _cosines(query, passages):
    return passages @ query / np.linalg.norm(passages, axis=1) / np.linalg.norm(query)


def _ranks(scores):
    return (scores > np.diag(scores)[:, None]).sum(axis=1) + 1


def _of(languages):
    return np.array([[other == own for other in languages] for own in languages], dtype=float)


def _means(vectors, languages):
    return _of(languages) @ vectors / _of(languages).sum(axis=1, keepdims=True)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


SOLUTIONS = {
    "00.1": lambda query, passages, k: np.argsort(-_cosines(query, passages))[:k],
    "00.2": 1 / 40,
    "00.3": lambda scores: (1 / _ranks(scores)).mean(),
    "00.4": lambda vectors, languages: _unit(vectors - _means(vectors, languages)),
}

WRONG = {
    "00.1": [
        lambda query, passages, k: np.argsort(-(passages @ query))[:k],
        lambda query, passages, k: np.argsort(_cosines(query, passages))[:k],
        lambda query, passages, k: np.argsort(-_cosines(query, passages)),
        lambda query, passages, k: np.sort(_cosines(query, passages))[::-1][:k],
    ],
    "00.2": [0.5, 39 / 40, 100 / 40, 0.0, 0.78],
    "00.3": [
        lambda scores: _ranks(scores).mean(),
        lambda scores: 1 / _ranks(scores).mean(),
        lambda scores: (_ranks(scores) == 1).mean(),
        lambda scores: (1 / _ranks(scores)).sum(),
        lambda scores: (1 / (_ranks(scores) + 1)).mean(),
        lambda scores: (1 / ((scores >= np.diag(scores)).sum(axis=0))).mean(),
    ],
    "00.4": [
        lambda vectors, languages: vectors - _means(vectors, languages),
        lambda vectors, languages: vectors,
        lambda vectors, languages: _unit(vectors - vectors.mean(axis=0)),
        lambda vectors, languages: _unit(vectors - _of(languages) @ vectors),
        lambda vectors, languages: _unit(vectors + _means(vectors, languages)),
        lambda vectors, languages: _means(vectors, languages)[:2],
    ],
}
