"""Every exercise of every notebook: its solution is right, each plausible mistake meets its own hint, `...` is open."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from me5lib.io import asset
from me5lib.lessons import exercises

NOTEBOOKS = sorted(asset("notebooks").glob("[0-9][0-9]_*.ipynb"))


def answers(number: str):
    """The solutions module of notebook `number`."""
    path = asset("notebooks") / "solutions" / f"s{number}.py"
    spec = importlib.util.spec_from_file_location(f"s{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(path: Path) -> set[str]:
    """The exercises that a notebook checks."""
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    return set(re.findall(r'check\("(\d\d\.\d+)"', "\n".join("".join(c["source"]) for c in cells)))


CASES = [(p.name[:2], name) for p in NOTEBOOKS for name in sorted(asked(p))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name[:2])
def test_every_notebook_asks_and_every_exercise_has_its_answers(path):
    module = answers(path.name[:2])
    assert asked(path), "no exercise"
    assert asked(path) == set(module.SOLUTIONS) == set(module.WRONG)


@pytest.mark.parametrize(("number", "name"), CASES)
def test_the_solution_is_right(number, name):
    assert exercises.verdict(name, answers(number).SOLUTIONS[name]) == exercises.Verdict("right")


@pytest.mark.parametrize(("number", "name"), CASES)
def test_each_wrong_answer_meets_its_own_hint(number, name):
    found = [exercises.verdict(name, wrong) for wrong in answers(number).WRONG[name]]
    assert len(found) >= 3
    assert all(v.state == "not yet" and len(v.hint) > 10 for v in found), found
    assert len({v.hint for v in found}) == len(found), "two mistakes share a hint"


@pytest.mark.parametrize(("number", "name"), CASES)
def test_an_untouched_exercise_is_open(number, name, capsys):
    exercises.check(name, ...)
    assert capsys.readouterr().out == f"exercise {name}: open\n"


@pytest.mark.parametrize(("number", "name"), CASES)
def test_nonsense_never_raises(number, name, capsys):
    for nonsense in ("?", None, [], object(), lambda *a: 1 / 0, lambda *a: ...):
        assert exercises.verdict(name, nonsense).state in {"open", "not yet"}
