"""Exercise checkers: `check("02.1", answer)` prints `open`, `right`, or a hint that fits the mistake; it never raises.

A checker lives in `e<notebook>.py`. An exercise that asks for a number is a table of the mistakes and their hints:

    number("02.1", math.log(1024), {1024: "that is the number of classes", …}, "minus the logarithm of what share?")

Any other is a function from the learner's answer to None (right) or a hint, which `hint_for` picks likewise:

    @exercise("02.2")
    def row_gradient(answer: Callable) -> str | None: …

An untouched answer, or part of one, is `...`; an untouched function returns `...`. Solutions lie in
`notebooks/solutions/`; one of them stands in for an answer that is not right yet where the notebook goes on with it
(`own_or_solution`).
"""

from __future__ import annotations

import importlib
import math
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from me5lib.io import asset

_CHECKERS: dict[str, Callable[[Any], str | None]] = {}


class CheckResult(NamedTuple):
    """What `verdict` found: `open`, `right` or `not yet`, and the hint that goes with it."""

    state: str
    hint: str = ""


class Open(Exception):
    """The learner's function returned `...`: it has not been written yet."""


def exercise(name: str) -> Callable:
    """Register the decorated function as the checker of exercise `name` (`<notebook>.<number>`)."""
    return lambda checker: _CHECKERS.setdefault(name, checker)


def attempt(function: Callable, *arguments: Any) -> Any:
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


def same(a: Any, b: Any, tolerance: float = 1e-3) -> bool:
    """Whether two numbers are `close`, or two sequences of one length (of sequences, too) element by element."""
    if isinstance(b, (Sequence, np.ndarray)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return close(a, b, tolerance)


def hint_for(
    found: Any, right: Any, mistakes: Sequence[tuple[Any, str]], otherwise: str, tolerance: float = 1e-3
) -> str | None:
    """None where `found` is `right`; the hint of the first mistake (what it gives, hint) that it is; or `otherwise`."""
    if same(found, right, tolerance):
        return None
    return next((hint for wrong, hint in mistakes if same(found, wrong, tolerance)), otherwise)


def number(
    name: str, right: float, mistakes: Mapping[float | tuple[float, ...], str], otherwise: str, tolerance: float = 1e-3
) -> None:
    """Register an exercise whose answer is `right`; a mistake is a number, or several that share a hint."""
    pairs = [(one, hint) for wrong, hint in mistakes.items()
             for one in (wrong if isinstance(wrong, tuple) else (wrong,))]
    exercise(name)(lambda answer: hint_for(answer, right, pairs, otherwise, tolerance))


def softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    """The shares of exp(value / temperature)."""
    weights = [math.exp((value - max(row)) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def verdict(name: str, answer: Any) -> CheckResult:
    """Judge `answer` without printing. Unknown names raise KeyError; a learner's error becomes a hint."""
    importlib.import_module(f"me5lib.lessons.exercises.e{name.partition('.')[0]}")
    checker = _CHECKERS[name]
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, tuple) else [answer]
    if any(part is ... for part in parts):
        return CheckResult("open")
    try:
        hint = checker(answer)
    except Open:
        return CheckResult("open")
    except Exception as error:  # whatever a learner's code raises is theirs to read
        return CheckResult("not yet", f"your answer raised {type(error).__name__}: {error}")
    return CheckResult("right") if hint is None else CheckResult("not yet", hint)


def check(name: str, answer: Any) -> None:
    """Print what becomes of `answer`: `open`, `right`, or `not yet` with a hint."""
    found = verdict(name, answer)
    print(f"exercise {name}: {found.state}" + (f": {found.hint}" if found.hint else ""))


def own_or_solution(name: str, answer: Any) -> Any:
    """`answer` where it is right, else the solution, which is said: the cells that follow can work with it."""
    if verdict(name, answer).state == "right":
        return answer
    print(f"exercise {name} is not right yet: its solution stands in from here on")
    return solutions(name.partition(".")[0])["SOLUTIONS"][name]


def solutions(notebook: str) -> dict[str, Any]:
    """What the file of a notebook's solutions defines: `SOLUTIONS` and `WRONG`, by exercise."""
    return runpy.run_path(str(asset("notebooks") / "solutions" / f"s{notebook}.py"))
