"""Exercise checkers: `check("02.1", answer)` prints `open`, `right`, or a hint that fits the mistake; it never raises.

A checker lives in `e<notebook>.py` and is a function from the learner's answer to None (right) or a hint:

    @exercise("02.1")
    def equal_cosines(answer: float) -> str | None:
        if close(answer, 4.0):
            return "that is the number of passages; the loss is its logarithm"
        ...

An untouched answer is `...`; an untouched function returns `...`. Solutions lie in `notebooks/solutions/`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

_CHECKERS: dict[str, Callable[[Any], str | None]] = {}


class Verdict(NamedTuple):
    """What `verdict` found: `open`, `right` or `not yet`, and the hint that goes with it."""

    state: str
    hint: str = ""


class Open(Exception):
    """The learner's function returned `...`: it has not been written yet."""


def exercise(name: str) -> Callable:
    """Register the decorated function as the checker of exercise `name` (`<notebook>.<number>`)."""

    def register(checker: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        _CHECKERS[name] = checker
        return checker

    return register


def ask(function: Callable, *arguments: Any) -> Any:
    """Call the learner's function; raises `Open` where it returns `...`."""
    result = function(*arguments)
    if result is ...:
        raise Open
    return result


def close(a: Any, b: float, tolerance: float = 1e-3) -> bool:
    """Whether `a` is a number within `tolerance` of `b`, relative to b's size but at least absolute."""
    try:
        return math.isclose(float(a), b, rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError):
        return False


def verdict(name: str, answer: Any) -> Verdict:
    """Judge `answer` without printing. Unknown names raise KeyError; a learner's error becomes a hint."""
    importlib.import_module(f"me5lib.lessons.exercises.e{name.partition('.')[0]}")
    checker = _CHECKERS[name]
    if answer is ...:
        return Verdict("open")
    try:
        hint = checker(answer)
    except Open:
        return Verdict("open")
    except Exception as error:  # whatever a learner's code raises is theirs to read
        return Verdict("not yet", f"your answer raised {type(error).__name__}: {error}")
    return Verdict("right") if hint is None else Verdict("not yet", hint)


def check(name: str, answer: Any) -> None:
    """Print what becomes of `answer`: `open`, `right`, or `not yet` with a hint."""
    found = verdict(name, answer)
    print(f"exercise {name}: {found.state}" + (f": {found.hint}" if found.hint else ""))
