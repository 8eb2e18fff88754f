"""Answers to the exercises of notebook 01, and plausible mistakes: each meets its own hint."""

import math

import torch

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
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _unit(rows, dim=-1):
    return rows / rows.norm(dim=dim, keepdim=True)


def _scaled_before_the_mean(hidden, mask):
    return _unit((_unit(hidden) * mask[..., None]).sum(1))


SOLUTIONS = {
    "01.1": PREFIXES,
    "01.2": lambda hidden, mask: _unit(_average(hidden, mask)),
    "01.3": NORM,
    "01.4": 0.05 * (math.log(255) + math.log(9)),
}

WRONG = {
    "01.1": [
        PREFIXES | {"a paragraph, in retrieval": "query: "},
        PREFIXES | {"its translation, in bitext mining": "passage: "},
        PREFIXES | {"a question that may be a duplicate (Quora retrieval, the searched side)": "passage: "},
        PREFIXES | {"a tweet, in classification": ""},
    ],
    "01.2": [
        _average,
        lambda hidden, mask: _unit(hidden.mean(1)),
        lambda hidden, mask: _unit(hidden[:, 0]),
        lambda hidden, mask: _unit(hidden.amax(1)),
        lambda hidden, mask: _unit(_average(hidden, mask), dim=0),
        _scaled_before_the_mean,
        lambda hidden, mask: torch.ones(2, 3),
        lambda hidden, mask: -_unit(_average(hidden, mask)),
    ],
    "01.3": [
        dict.fromkeys(NORM, False),
        dict.fromkeys(NORM, True),
        NORM | {"clustering by k-means": False},
        NORM | {"classification by logistic regression": False},
        NORM | {"retrieval by cosine": True},
    ],
    "01.4": [
        0.05 * math.log(255),
        0.01 * (math.log(255) + math.log(9)),
        math.log(255) + math.log(9),
        (math.log(255) + math.log(9)) / 0.05,
        0.05 * (math.log(255) - math.log(9)),
    ],
}
