"""Checkers of notebook 09: instructions and synthetic data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from me5lib.lessons.exercises import attempt, exercise, hint_for, number

number("09.2", 1 / 3, {  # three questions, one text: one of three at best
    0.5: "that was for two questions; count again how many of three the one first hit can be right for",
    2 / 3: "that is the share it must get wrong",
    1.0: "the same text gives the same vector and the same first hit, three times",
}, "one first hit, three questions that want three different answers: how many can it be right for?")

number("09.5", 0.25, {  # a coin for each row
    0.5: "so many single rows does a coin get right; a twin needs two of them",
    0.0: "that is who ignores the instruction: the same text comes first both times. A coin falls anew for each row",
    0.75: "that is at least one of the two; asked for is both",
    1.0: "only who always reads the instruction gets there",
}, "two tosses for each twin, and both have to come out right")


@exercise("09.1")
def document_text(function: Callable[[str, str], str]) -> str | None:
    """A document is read bare."""
    found = attempt(function, "Find the capital", "Paris is the capital of France.")
    if found == "Paris is the capital of France.":
        return None
    if "Instruct:" in str(found):
        return "the instruction stands on the query only; look again at which side the template goes on"
    if str(found).startswith("passage: "):
        return "that is how the models without instructions read a passage; the instruct model has no prefix here"
    if str(found).startswith("query: "):
        return "a document is not a query, and the instruct model has no prefix at all"
    return f"for the document 'Paris is the capital of France.' your function gave {found!r}"


@exercise("09.3")
def is_negative(function: Callable[[bool, bool], bool]) -> str | None:
    """Only the same territory under the same instruction has the same right answer."""
    table = {case: bool(attempt(function, *case)) for case in product((True, False), repeat=2)}
    if table == {(True, True): False, (True, False): True, (False, True): True, (False, False): True}:
        return None
    if not table[True, False]:
        return "masked like this, nothing tells the model that the other answer is wrong under this instruction"
    if table[True, True]:
        return "the same territory under the same instruction has the same right answer: pushing it away teaches a lie"
    return "another territory's answer is wrong whatever the instruction: it may always serve as a negative"


@exercise("09.4")
def both_right(function: Callable[[np.ndarray], float]) -> str | None:
    """`both_right(scores)` of [twins, instructions, texts]: the share of twins with the right text first twice."""
    scores = np.array([[[0.9, 0.2], [0.3, 0.8]], [[0.6, 0.5], [0.9, 0.7]], [[0.4, 0.6], [0.2, 0.7]],
                       [[0.6, 0.3], [0.5, 0.4]], [[0.2, 0.6], [0.9, 0.1]], [[0.9, 0.4], [0.1, 0.9]],
                       [[0.7, 0.7], [0.1, 0.2]], [[0.9, 0.5], [0.4, 0.6]], [[0.2, 0.6], [0.1, 0.9]]])  # fmt: skip
    return hint_for(attempt(function, scores), 3 / 9, [
        (11 / 18, "that is the share of single rows; a twin counts only where both of its rows are right"),
        (8 / 9, "one of the two rows is right there; whoever ignores the instruction gets as far"),
        (1 / 9, "the right text of instruction i is text i: these are the twins that are wrong twice"),
        (4 / 9, "one text is level with the right one there: level is not right, nothing was told apart"),
        (6 / 9, "you held two instructions against each other for one text; a search compares texts for one query"),
        (7 / 9, "right scores may outweigh wrong ones in their sum while one of the rows is wrong"),
    ], "row i of a twin is right where scores[:, i, i] is above the other text's score; both rows have to be")
