"""Answers to the exercises of notebook 09, and plausible mistakes: each meets its own hint."""

import numpy as np


def rows_right(scores):
    return np.stack([scores[:, 0, 0] > scores[:, 0, 1], scores[:, 1, 1] > scores[:, 1, 0]], axis=1)


SOLUTIONS = {
    "09.1": lambda task, document: document,
    "09.2": 1 / 3,
    "09.3": lambda same_territory, same_instruction: not (same_territory and same_instruction),
    "09.4": lambda scores: rows_right(scores).all(axis=1).mean(),
    "09.5": 0.25,
}

WRONG = {
    "09.1": [
        lambda task, document: f"Instruct: {task}\nQuery: {document}",
        lambda task, document: f"passage: {document}",
        lambda task, document: f"query: {document}",
    ],
    "09.2": [0.5, 2 / 3, 1.0, 0.9],
    "09.3": [
        lambda same_territory, same_instruction: not same_territory,
        lambda same_territory, same_instruction: True,
        lambda same_territory, same_instruction: same_territory and not same_instruction,
    ],
    "09.4": [
        lambda scores: rows_right(scores).mean(),
        lambda scores: rows_right(scores).any(axis=1).mean(),
        lambda scores: rows_right(scores[:, ::-1]).all(axis=1).mean(),
        lambda scores: ((scores[:, 0, 0] >= scores[:, 0, 1]) & (scores[:, 1, 1] >= scores[:, 1, 0])).mean(),
        lambda scores: rows_right(scores.transpose(0, 2, 1)).all(axis=1).mean(),
        lambda scores: (np.trace(scores, axis1=1, axis2=2) > scores[:, 0, 1] + scores[:, 1, 0]).mean(),
    ],
    "09.5": [0.5, 0.0, 0.75, 1.0],
}
