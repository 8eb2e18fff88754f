"""Answers to the exercises of notebook 01, and plausible mistakes: each meets its own hint."""

import math

import numpy as np

PREFIXES = {
    "a question, in retrieval": "query: ",
    "a paragraph, in retrieval": "passage: ",
    "an English sentence, in bitext mining": "query: ",
    "its translation, in bitext mining": "query: ",
    "a tweet, in classification": "query: ",
    "a question that may be a duplicate (Quora retrieval, the searched side)": "query: ",
}

NORM = {
    "retrieval by cosine": False,
    "STS by the rank correlation of cosines": False,
    "classification by logistic regression": True,
    "clustering by k-means": True,
}


def _average(hidden, mask):
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


SOLUTIONS = {"01.1": _average, "01.2": 0.05 * (math.log(1023) + math.log(9)), "01.3": PREFIXES, "01.4": NORM}

WRONG = {
    "01.1": [
        lambda hidden, mask: hidden.mean(1),
        lambda hidden, mask: (hidden * mask[..., None]).sum(1),
        lambda hidden, mask: (hidden * mask[..., None]).mean(1),
        lambda hidden, mask: hidden[:, 0],
        lambda hidden, mask: _average(hidden, mask) / np.linalg.norm(_average(hidden, mask), axis=1, keepdims=True),
        lambda hidden, mask: _average(hidden, mask).mean(0),
    ],
    "01.2": [
        0.05 * math.log(1023),
        0.01 * (math.log(1023) + math.log(9)),
        math.log(1023) + math.log(9),
        (math.log(1023) + math.log(9)) / 0.05,
        0.05 * (math.log(1023) - math.log(9)),
    ],
    "01.3": [
        PREFIXES | {"a paragraph, in retrieval": "query: "},
        PREFIXES | {"its translation, in bitext mining": "passage: "},
        PREFIXES | {"a question that may be a duplicate (Quora retrieval, the searched side)": "passage: "},
        PREFIXES | {"a tweet, in classification": ""},
    ],
    "01.4": [
        dict.fromkeys(NORM, False),
        dict.fromkeys(NORM, True),
        NORM | {"clustering by k-means": False},
        NORM | {"classification by logistic regression": False},
        NORM | {"retrieval by cosine": True},
    ],
}
