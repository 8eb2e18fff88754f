"""Real processes: the gradient of the right recipe, how far off each mistake is, and that a stuck child is ended."""

import sys
import time

import pytest
import torch

from me5lib.places import Me5Error
from me5lib.train import dist
from me5lib.train.dist import VARIANTS, gather, global_mean, launch, prove_gradient


def loss_of_one_process(loss: str, seed: int = 0) -> float:
    task, toy = dist.toy_task(seed, slice(0, 32), loss), dist.Toy(seed)
    return task.table(toy(task.queries), toy(task.passages), slice(0, 32)).mean().item()


def test_two_ragged_processes_and_the_usual_mistakes():
    found = prove_gradient(2, shards=(19, 13))
    assert set(found) == set(VARIANTS)
    for name in ("ours", "ours, replayed"):
        assert found[name] == pytest.approx((1, 1, loss_of_one_process("one-way")), abs=1e-12)
    assert found["÷ W"][:2] == pytest.approx((0.5, 1), abs=1e-12)
    assert found["× W"][:2] == pytest.approx((2, 1), abs=1e-12)
    assert found["dropped"].loss == pytest.approx(found["ours"].loss)  # a silent bug: only the gradient tells
    for name in ("local mean", "dropped", "local negatives"):
        assert found[name].cosine < 0.995
    assert found["local negatives"].cosine < found["dropped"].cosine < found["local mean"].cosine


def test_three_processes_one_of_them_without_rows_symmetric_loss():
    found = prove_gradient(3, shards=(20, 0, 12), loss="symmetric")
    for name in ("ours", "ours, replayed"):
        assert found[name] == pytest.approx((1, 1, loss_of_one_process("symmetric")), abs=1e-12)
    assert found["÷ W"].ratio == pytest.approx(1 / 3) and found["× W"].ratio == pytest.approx(3)
    assert found["local mean"].ratio < 0.8  # an empty rank's zero is averaged in


def test_one_process_needs_no_group():
    vectors = torch.randn(3, 2, requires_grad=True)
    assert gather(vectors) is vectors and dist.counts(3) == [3] and (dist.world(), dist.rank()) == (1, 0)
    assert global_mean(vectors).item() == pytest.approx(vectors.sum().item() / 3)
    assert global_mean(torch.zeros(0)).item() == 0.0


@pytest.mark.parametrize("shards", [(16, 15), (32,), (33, -1)])
def test_shards_must_make_the_batch(shards):
    with pytest.raises(Me5Error, match="2 numbers of rows that sum to 32"):
        prove_gradient(2, shards=shards)


def child(program: str) -> list[str]:
    return [sys.executable, "-c", program]


REPORT = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); "


def gone(pid: int) -> bool:
    import psutil  # comes with Jupyter's kernel

    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_hung_child_is_ended_with_a_clear_error(tmp_path):
    hung = [*child(REPORT + "time.sleep(600)"), str(tmp_path / "pid")]
    with pytest.raises(Me5Error, match="process 1 had not finished after 4 s and was ended"):
        launch([child("print('done')"), hung], tmp_path, timeout=4)
    assert gone(int((tmp_path / "pid").read_text(encoding="utf8")))


def test_one_failing_child_ends_the_others_at_once(tmp_path):
    waiting = [*child(REPORT + "time.sleep(600)"), str(tmp_path / "pid")]
    failing = child(
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'pid')!r}).exists(): time.sleep(0.05)\n"
        "raise ValueError('no such file')"
    )
    start = time.monotonic()
    with pytest.raises(Me5Error, match="process 1 of 2 failed with exit code 1: ValueError: no such file"):
        launch([waiting, failing], tmp_path, timeout=120)
    assert time.monotonic() - start < 60
    assert gone(int((tmp_path / "pid").read_text(encoding="utf8")))
