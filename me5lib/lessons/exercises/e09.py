"""Checkers of notebook 09: instructions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from me5lib.lessons.exercises import attempt, exercise, number

number("09.2", 1 / 3, {  # three questions, one text: one of three at best
    0.5: "that was for two questions; count again how many of three the one first hit can be right for",
    2 / 3: "that is the share it must get wrong",
    1.0: "the same text gives the same vector and the same first hit, three times",
}, "one first hit, three questions that want three different answers: how many can it be right for?")


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
