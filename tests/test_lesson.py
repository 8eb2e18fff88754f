"""The notebook helpers: ranges are held, results are kept apart from timings, a missing checkpoint is one line."""

import json

import pytest

from me5lib.lesson import Missed, begin
from me5lib.places import Me5Error


@pytest.fixture
def lesson(tmp_path):
    return begin("02", "smoke", 3, str(tmp_path))


def test_expect_holds_both_ends(lesson):
    assert lesson.expect(0.5, "a", smoke=(0.5, 0.5)) == 0.5
    for value in (0.49, 0.51, float("nan")):
        with pytest.raises(Missed, match="a = .* expected between 0.5 and 0.5 at scale smoke"):
            lesson.expect(value, "a", smoke=(0.5, 0.5))


def test_a_scale_without_a_range_is_said_to_be_unheld(lesson, capsys):
    lesson.expect(0.5, "b", tiny=(0.9, 1.0))
    assert "no range is held at scale smoke" in capsys.readouterr().out


def test_results_and_timings_are_kept_apart(lesson):
    with lesson.timed("slow"):
        lesson.record("value", 1 / 3)
    assert json.loads((lesson.folder / "metrics.json").read_text()) == {"value": 0.333333}
    assert set(json.loads((lesson.folder / "timings.json").read_text())) == {"slow"}


def test_beginning_again_forgets_what_was_measured(lesson, tmp_path):
    lesson.record("stale", 1.0)
    begin("02", "smoke", 3, str(tmp_path))
    assert not (lesson.folder / "metrics.json").exists()


def test_a_missing_checkpoint_names_the_command(lesson):
    with pytest.raises(Me5Error, match="me5 pretrain --scale smoke --seed 3 --out") as caught:
        lesson.checkpoint("stage1")
    assert "\n" not in str(caught.value)


def test_the_folder_does_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_OUT", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert begin("02", "smoke", 1).out == tmp_path / "runs" / "smoke" / "seed-1"
