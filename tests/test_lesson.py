"""The notebook helpers: ranges are held, results are kept apart from timings, a missing checkpoint is one line."""

import json
import os
import re
import shlex
import time

import pytest
from jupyter_client.manager import run_kernel

from me5lib import io
from me5lib.io import Me5Error
from me5lib.lessons.lesson import LATE, Missed, begin


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


def test_with_dials_set_by_hand_a_missed_range_is_said_not_held(tmp_path, capsys):
    lesson = begin("02", "smoke", 3, str(tmp_path), "data.sources=cldr train.steps=20")
    lesson.expect(0.5, "b", smoke=(0.9, 1.0))
    assert "b = 0.5, outside 0.9 … 1, which holds without data.sources=cldr train.steps=20" in capsys.readouterr().out
    assert json.loads((lesson.folder / "metrics.json").read_text()) == {"b": 0.5}


def test_results_and_timings_are_kept_apart(lesson):
    with lesson.timed("slow"):
        lesson.record("value", 1 / 3)
    assert json.loads((lesson.folder / "metrics.json").read_text()) == {"value": 0.333333}
    assert set(json.loads((lesson.folder / "timings.json").read_text())) == {"slow"}


def test_a_timed_block_shows_a_clock_while_it_works_and_not_afterwards(lesson, capsys, monkeypatch):
    monkeypatch.setattr(io, "TICK", 0.02)
    with pytest.raises(ValueError), lesson.timed("long work"):
        time.sleep(0.2)
        shown = capsys.readouterr().out
        raise ValueError
    capsys.readouterr()
    time.sleep(0.1)
    assert shown.count("long work: 0.1 s") > 1 and capsys.readouterr().out == ""


def test_beginning_again_forgets_what_was_measured(lesson, tmp_path):
    lesson.record("stale", 1.0)
    begin("02", "smoke", 3, str(tmp_path))
    assert not (lesson.folder / "metrics.json").exists()


def test_a_missing_checkpoint_names_the_commands_that_make_it(tmp_path):
    def commands(stage):
        with pytest.raises(Me5Error, match=f"no {stage} checkpoint in [^\n]*$") as caught:
            lesson.checkpoint(stage)
        return [shlex.split(command) for command in re.findall("`(.*?)`", str(caught.value))]

    out = tmp_path / "my runs"
    lesson = begin("02", "smoke", 3, str(out), "data.sources=cldr,gettext train.steps=20 'finetune.teacher=my teacher'")
    of_run = ["--scale", "smoke", "--seed", "3", "--set", "data.sources=cldr,gettext", "--set", "train.steps=20",
              "--set", "finetune.teacher=my teacher", "--out", str(out)]
    assert commands("stage1") == [["me5", "pretrain", *of_run]]
    assert commands("stage2-only") == [["me5", "finetune", "--scratch", *of_run]]
    assert commands("stage2") == [["me5", "pretrain", *of_run], ["me5", "finetune", *of_run]]
    (out / "stage1").mkdir()
    (out / "stage1" / "config.json").write_text("{}", encoding="utf8")
    assert lesson.checkpoint("stage1") == out / "stage1"
    assert commands("stage2") == [["me5", "finetune", *of_run]]


def test_what_a_notebook_needs_is_asked_for_before_anything_is_done(tmp_path, capsys):
    for name, says in (("10", "no stage2 checkpoint .*`me5 pretrain .*`me5 finetune "), ("07", "no stage1 checkpoint")):
        with pytest.raises(Me5Error, match=says):
            begin(name, "smoke", 3, str(tmp_path))
    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "config.json").write_text("{}", encoding="utf8")
    with pytest.raises(Me5Error, match="no results in .*nowhere: run `me5 evaluate"):
        begin("10", "smoke", 3, str(tmp_path), runs=str(tmp_path / "nowhere"))
    assert capsys.readouterr().out == "" and begin("10", "smoke", 3, str(tmp_path))


@pytest.mark.parametrize(("given", "says"), [
    ({"scale_name": "tinny"}, "unknown scale 'tinny': choose one of"), ({"scale_name": 3}, "SCALE is a text in"),
    ({"out": 3}, "OUT is a text in quotes, not 3"), ({"set": None}, "SET is a text"), ({"runs": True}, "RUNS is"),
    ({"offline": "no"}, "OFFLINE is True or False, not 'no'"), ({"set": "train.stepps=3"}, "did you mean train.steps"),
])
def test_a_parameter_that_cannot_be_is_said_in_one_line(tmp_path, given, says):
    with pytest.raises(Me5Error, match=says) as caught:
        begin("02", **{"scale_name": "smoke", "out": str(tmp_path / "out")} | given)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_in_jupyterlab_the_first_failure_is_one_line_and_a_bar_in_view_and_what_comes_after_it_is_not_run(
        tmp_path, monkeypatch):
    """The bar is a script in the cell's output: of any error, not of an interrupt, and nowhere but in JupyterLab."""
    def outputs(*cells, **environment):
        with run_kernel(env=os.environ | environment) as kernel:
            found = []
            for cell in cells:
                time.sleep((LATE + 0.5) * (cell == "late"))
                kernel.execute_interactive(cell, output_hook=found.append, timeout=60)
        found = [message["content"] for message in found if message["msg_type"] in ("error", "display_data")]
        return [part["traceback"] if "traceback" in part else part["data"]["application/javascript"] for part in found]

    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    begin = "from me5lib.lessons.lesson import begin; begin({!r}, 'smoke', 3, {!r});"
    lab = {"JPY_SESSION_NAME": "10.ipynb"}
    traceback, other = outputs(begin.format("10", str(tmp_path)), "lesson")
    assert len(traceback) == 1 and traceback[0].startswith("Me5Error: no stage2 checkpoint in ") and "name" in other[-1]
    traceback, bar = outputs(begin.format("10", str(tmp_path)), "lesson", **lab)
    assert "cell [1]. no stage2 checkpoint in " in bar and "`me5 finetune --scale smoke" in bar
    traceback, bar, later = outputs(begin.format("02", str(tmp_path)) * 2, "1/0", "soon", "late", **lab)
    assert len(traceback) > 1 and "cell [2]. ZeroDivisionError: " in bar and "name 'late' is not defined" in later[-1]
    (traceback,) = outputs(begin.format("02", str(tmp_path)) + "raise KeyboardInterrupt", **lab)


@pytest.mark.parametrize("seed", ["abc", "1", -1, 2**32, 10**20, 1.0, True, None])
def test_what_is_no_seed_is_refused_at_once(seed, tmp_path):
    with pytest.raises(Me5Error, match="a seed is a whole number from 0 to 4294967295, not "):
        begin("02", "smoke", seed, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_overrides_are_read_as_in_a_shell(tmp_path):
    given = begin("02", "smoke", 0, str(tmp_path), """train.steps=20 finetune.teacher="models/my teacher" """).scale
    assert (given.train.steps, given.finetune.teacher) == (20, "models/my teacher")
    with pytest.raises(Me5Error, match="SET cannot be read .No closing quotation."):
        begin("02", "smoke", 0, str(tmp_path), "finetune.teacher='models/my teacher")


def test_the_folder_does_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_OUT", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert begin("02", "smoke", 1).out == tmp_path / "runs" / "smoke" / "seed-1"
