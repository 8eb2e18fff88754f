"""Every exercise of every notebook: its solution is right, each plausible mistake meets its own hint, `...` is open."""

import json
import re

import pytest

from me5lib.io import asset
from me5lib.lessons import exercises

NOTEBOOKS = {path.name[:2]: path for path in sorted(asset("notebooks").glob("[0-9][0-9]_*.ipynb"))}


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_solutions_are_right_mistakes_meet_their_hints_and_nonsense_never_raises(number, capsys):
    cells = json.loads(NOTEBOOKS[number].read_text(encoding="utf8"))["cells"]
    asked = set(re.findall(r'check\("(\d\d\.\d+)"', "\n".join("".join(cell["source"]) for cell in cells)))
    module = exercises.solutions(number)
    right, mistakes = module["SOLUTIONS"], module["WRONG"]
    assert asked and asked == set(right) == set(mistakes)
    for name in sorted(asked):
        assert exercises.verdict(name, right[name]) == exercises.CheckResult("right"), name
        hints = [exercises.verdict(name, wrong) for wrong in mistakes[name]]
        assert len(hints) >= 3 and all(v.state == "not yet" and len(v.hint) > 10 for v in hints), (name, hints)
        assert len({v.hint for v in hints}) == len(hints), f"{name}: two mistakes share a hint"
        assert sum("you returned" in v.hint for v in hints) <= 1, f"{name}: two mistakes meet the hint for any other"
        for nonsense in ("?", None, [], object(), lambda *a: 1 / 0, lambda *a: ...):
            assert exercises.verdict(name, nonsense).state in {"open", "not yet"}, name
        capsys.readouterr()
        exercises.check(name, ...)
        assert capsys.readouterr().out == f"exercise {name}: open\n"
        assert exercises.own_or_solution(name, right[name]) is right[name] and not capsys.readouterr().out
        stand_in = exercises.own_or_solution(name, ...)
        assert f"{name} is not right yet" in capsys.readouterr().out
        assert exercises.verdict(name, stand_in).state == "right"
