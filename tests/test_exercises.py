"""Every exercise of every notebook: its solution is right, each plausible mistake meets its own hint, `...` is open."""

import importlib.util
import json
import re

import pytest

from me5lib.io import asset
from me5lib.lessons import exercises

NOTEBOOKS = {path.name[:2]: path for path in sorted(asset("notebooks").glob("[0-9][0-9]_*.ipynb"))}


def answers(number: str):
    """The solutions module of notebook `number`."""
    path = asset("notebooks") / "solutions" / f"s{number}.py"
    spec = importlib.util.spec_from_file_location(f"s{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_solutions_are_right_mistakes_meet_their_hints_and_nonsense_never_raises(number, capsys):
    cells = json.loads(NOTEBOOKS[number].read_text(encoding="utf8"))["cells"]
    asked = set(re.findall(r'check\("(\d\d\.\d+)"', "\n".join("".join(cell["source"]) for cell in cells)))
    module = answers(number)
    assert asked and asked == set(module.SOLUTIONS) == set(module.WRONG)
    for name in sorted(asked):
        assert exercises.verdict(name, module.SOLUTIONS[name]) == exercises.CheckResult("right"), name
        hints = [exercises.verdict(name, wrong) for wrong in module.WRONG[name]]
        assert len(hints) >= 3 and all(v.state == "not yet" and len(v.hint) > 10 for v in hints), (name, hints)
        assert len({v.hint for v in hints}) == len(hints), f"{name}: two mistakes share a hint"
        for nonsense in ("?", None, [], object(), lambda *a: 1 / 0, lambda *a: ...):
            assert exercises.verdict(name, nonsense).state in {"open", "not yet"}, name
        capsys.readouterr()
        exercises.check(name, ...)
        assert capsys.readouterr().out == f"exercise {name}: open\n"
