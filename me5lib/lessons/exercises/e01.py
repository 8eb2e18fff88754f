"""Checkers of notebook 01: prefixes, the forward pass from token vectors on, who sees the norm, and the gap."""

from __future__ import annotations

from collections.abc import Callable
from math import log, log10

import numpy as np

from me5lib.lessons.exercises import attempt, exercise, hint_for, number


@exercise("01.1")
def which_prefix(answer: dict[str, str]) -> str | None:
    """Only the paragraphs of retrieval are passages."""
    prefixes = {name: str(value).strip().rstrip(":") for name, value in answer.items()}
    if unknown := sorted(set(prefixes.values()) - {"query", "passage"}):
        return f"there are two prefixes, 'query: ' and 'passage: '; {unknown[0]!r} is neither"
    passages = {name for name, value in prefixes.items() if value == "passage"}
    paragraph = "a paragraph, in retrieval"
    if passages == {paragraph}:
        return None
    if paragraph not in passages:
        return "a paragraph that is searched is the one thing called a passage"
    if "a question, in retrieval" in passages:
        return "a question asks: what is it, if the paragraph is the passage?"
    if any("Quora" in name for name in passages):
        return "on Quora both sides are questions, so the searched side is a query too"
    if any("bitext" in name for name in passages):
        return "a sentence and its translation are the same kind of text: both sides get the same prefix, query"
    return "classification has one side only; all that is not retrieval is read as a query"


@exercise("01.2")
def forward_pass(function: Callable) -> str | None:
    """Two texts, one of them padded with token vectors that are far from zero."""
    import torch

    hidden = np.array([[[1.0, 2.0], [3.0, 4.0], [90.0, -90.0]], [[2.0, 0.0], [4.0, 0.0], [6.0, 3.0]]])
    mask = np.array([[True, True, False], [True, True, True]])
    found = np.asarray(attempt(function, torch.tensor(hidden), torch.tensor(mask)), dtype=float)
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    if found.shape != mean.shape:
        return f"two texts of width 2 give two vectors of width 2, shape (2, 2); yours has {found.shape}"

    def unit(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=axis, keepdims=True)

    directions = unit(hidden)
    return hint_for(found, unit(mean), [
        (mean, "that is the mean itself: divide each row by its length"),
        (unit(hidden.mean(1)), "the padding is averaged in: its token vectors are not zero"),
        (unit(hidden[:, 0]), "that is the first token's vector"),
        (unit(hidden.max(1)), "that is the maximum of each dimension, padding and all: take the mean"),
        (unit(mean, axis=0), "you divided the columns by their lengths: a text is a row"),
        (unit((directions * mask[..., None]).sum(1)),
         "each token was scaled before the mean: longer ones count for more, so scale the mean only"),
    ], f"for the first text, tokens (1, 2) and (3, 4) and one padding, the mean is (2, 3), and at length 1 "
       f"{unit(mean)[0].round(3)}; you returned {found[0].round(3)}", 1e-5)


@exercise("01.3")
def norm_matters(answer: dict[str, bool]) -> str | None:
    """The norm moves whatever sees the vectors themselves; a cosine divides it out."""
    yes = {name for name, value in answer.items() if value}
    vectors = {"classification by logistic regression", "clustering by k-means"}
    if yes == vectors:
        return None
    if cosines := sorted(yes - vectors):
        return f"{cosines[0]}: a cosine divides by both lengths, so it is the same with and without the norm"
    if not yes:
        return "not every task compares by cosine: two of these are given the vectors themselves"
    if yes == {"classification by logistic regression"}:
        return "k-means goes by Euclidean distance, and that sees lengths"
    return "a logistic regression weighs the numbers in a vector, and longer vectors have larger ones"


# τ (ln(N − 1) + ln(p / (1 − p))) with N = 256, τ = 0.05, p = 0.9
number("01.4", 0.05 * (log(255) + log(9)), {
    0.05 * log(255): "at that gap the model is only 50 % sure: the odds p/(1 − p) are missing",
    0.01 * (log(255) + log(9)): "that is for τ = 0.01: here it is 0.05",
    log(255) + log(9): "multiply by the temperature",
    (log(255) + log(9)) / 0.05: "multiply by the temperature, do not divide by it",
    0.05 * (log10(255) + log10(9)): "the logarithms are natural ones",
    0.05 * (log(255) + log(99)): "that is for 99 %: here it is 90 %",
    0.05 * (log(255) - log(9)): "the logarithm of the odds p/(1 − p) is added: surer means further apart",
}, "put N = 256, τ = 0.05 and p = 0.9 into g = τ (ln(N − 1) + ln(p/(1 − p)))")
