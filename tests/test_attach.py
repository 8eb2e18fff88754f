"""A notebook attaches to training that goes on elsewhere: nothing, something in the making, something finished."""

import json
import os
import threading
import time

import pytest

from me5lib.io import Me5Error
from me5lib.train import checkpoint
from me5lib.train.attach import attach


def begun(folder, steps=10, fingerprint="a"):
    """What a stage writes before its first step."""
    folder.mkdir(parents=True)
    made = {"fingerprint": fingerprint, "settings": {"stage": {"steps": steps}}}
    (folder / "stage.json").write_text(json.dumps(made), encoding="utf8")
    return folder


def row(step):
    return json.dumps({"step": step, "loss": 4.0 - step, "grad_norm": 1.0, "lr": 0.1, "source": "x"}) + "\n"


def test_where_nothing_is_the_command_is_named(tmp_path):
    with pytest.raises(Me5Error, match=rf"me5 pretrain --scale base --seed 3 --out {tmp_path}") as refusal:
        attach(tmp_path, scale="base", seed=3)
    assert "\n" not in str(refusal.value)
    with pytest.raises(Me5Error, match="me5 finetune --scale"):
        attach(tmp_path, "stage2")
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_a_log_is_read_while_it_is_written(tmp_path):
    part = begun(tmp_path / "stage1.part")
    assert attach(tmp_path)[1:4] == (False, 0, 10) and attach(tmp_path).model is None
    lines, go_on = [row(step) for step in range(10)], threading.Event()

    def write():
        with (part / "log.jsonl").open("a", encoding="utf8") as log:
            for line in lines:
                log.write(line[: len(line) // 2])
                log.flush()  # a reader meets half a line
                time.sleep(0.01)
                log.write(line[len(line) // 2 :])
                log.flush()
        go_on.set()

    writer, seen = threading.Thread(target=write), []
    writer.start()
    while not go_on.wait(0.005):
        run = attach(tmp_path)
        assert [each["step"] for each in run.history.steps] == list(range(run.step))
        seen.append(run.step)
    writer.join()
    assert attach(tmp_path).step == 10 and seen == sorted(seen) and len(set(seen)) > 3
    assert "step 10 of 10" in str(attach(tmp_path)) and not attach(tmp_path).finished


def test_the_last_whole_checkpoint_is_the_model_so_far(tmp_path):
    part = begun(tmp_path / "stage1.part")
    for step in (5, 40, 200):
        checkpoint.at(part / "checkpoints", step).mkdir(parents=True)
    for step in (5, 40):  # 200 has no manifest
        (checkpoint.at(part / "checkpoints", step) / checkpoint.MANIFEST).write_text("{}", encoding="utf8")
    assert attach(tmp_path).model == checkpoint.at(part / "checkpoints", 40)


def test_how_long_it_is_quiet(tmp_path):
    part = begun(tmp_path / "stage1.part")
    (part / "log.jsonl").write_text(row(0), encoding="utf8")
    os.utime(part / "log.jsonl", (time.time() - 3600,) * 2)
    assert attach(tmp_path).quiet == pytest.approx(3600, abs=60)


def test_a_finished_stage_and_a_newer_one_in_the_making(tmp_path):
    final = begun(tmp_path / "stage1", steps=2)
    (final / "log.jsonl").write_text(row(0) + row(1), encoding="utf8")
    with pytest.raises(Me5Error, match="start it with"):
        attach(tmp_path)  # published only with its configuration
    (final / "config.json").write_text("{}", encoding="utf8")
    run = attach(tmp_path)
    assert (run.finished, run.step, run.steps, run.model) == (True, 2, 2, final) and "finished" in str(run)
    left = begun(tmp_path / "stage1.part")  # a kill between the renaming and the tidying up
    assert attach(tmp_path).finished
    (left / "stage.json").write_text(json.dumps({"fingerprint": "b", "settings": {"stage": {"steps": 7}}}), "utf8")
    assert attach(tmp_path)[:4] == (left, False, 0, 7)
