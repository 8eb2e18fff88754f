"""Real processes: the gradient of the right recipe, how far off each mistake is, and that a stuck child is ended."""

import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta

import pytest
import torch
from prove_crash import forked

from me5lib import config
from me5lib.io import Me5Error
from me5lib.lessons import check_gradients
from me5lib.lessons.check_gradients import VARIANTS, prove_gradient
from me5lib.pairs import Labelled, Pair
from me5lib.train import distributed, stages
from me5lib.train.distributed import gather, global_mean, launch
from me5lib.train.loss import make_batch


def right(found: check_gradients.GradientCheck, loss: str) -> bool:
    task, toy = check_gradients.toy_task(0, slice(0, 32), loss), check_gradients.Toy(0)
    return found[:3] == pytest.approx((1, 1, task.alone(toy).item()), abs=1e-12)


def test_two_ragged_processes_and_the_usual_mistakes():
    found, mixed = prove_gradient(2, shards=(19, 13), losses=("symmetric", check_gradients.STAGE_2))
    assert list(found) == list(VARIANTS)  # in the order in which they are explained
    assert right(found["ours"], "symmetric") and right(found["ours, replayed"], "symmetric")
    assert right(mixed["ours"], check_gradients.STAGE_2)
    assert found["ours"].apart < 1e-4  # the promise is 1e-4; AdamW magnifies the last digits where a gradient is near 0
    assert found["÷ W"][:2] == pytest.approx((0.5, 1), abs=1e-12)
    assert found["× W"][:2] == pytest.approx((2, 1), abs=1e-12)
    assert found["dropped"].loss == pytest.approx(found["ours"].loss)  # a silent bug: only the gradient tells
    for name in ("local mean", "dropped", "local negatives"):
        assert found[name].cosine < 0.995


def test_three_ragged_processes_one_of_them_without_rows_and_kl_beside_infonce():
    (found,) = prove_gradient(3, shards=(20, 0, 12), losses=[check_gradients.STAGE_2])
    assert right(found["ours"], check_gradients.STAGE_2) and right(found["ours, replayed"], check_gradients.STAGE_2)
    assert found["ours"].apart < 1e-4
    assert found["÷ W"].cosine < 0.999  # InfoNCE alone is three times too small: no common factor repairs it
    assert found["local mean"].ratio < 0.8  # an empty rank's zero is averaged in


def test_one_process_needs_no_group():
    vectors = torch.randn(3, 2, requires_grad=True)
    assert gather(vectors, [3]) is vectors
    assert (distributed.world(), distributed.rank()) == (1, 0)
    assert global_mean(vectors.sum(), [3]).item() == pytest.approx(vectors.sum().item() / 3)
    assert global_mean(torch.zeros(()), [0]).item() == 0.0
    related = make_batch([Labelled("a", ("b", "c"), ("d",), "test", "en")]).relations
    held = distributed.sizes(related)
    assert held == ([1], [2], 2) and distributed.local_slice(held.queries) == slice(0, 1)
    assert all(map(torch.equal, distributed.gather_relations(related, held), related))
    team = distributed.Team.alone()
    assert (team.any(True), team.mean(2.0), team.main) == (True, 2.0, True)
    assert team.wrap(check_gradients) is check_gradients


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_parameters_are_refused(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(Me5Error, match=f"{name} shards parameters.*launch with plain data parallelism"):
        distributed.join()


def test_a_world_that_did_not_come_together_is_refused():
    with pytest.raises(Me5Error, match="1 process.es. were launched, 2 were asked for: torchrun --nproc-per-node 2"):
        distributed.join(world=2)


def test_torchrun_proves_its_own_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "me5lib.lessons.check_gradients"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 2
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ours ")]
    assert len(lines) == 2 and all((line[2], line[4]) == ("1.000000", "1.000000") for line in lines)


@pytest.mark.parametrize("shards", [(16, 15), (32,), (33, -1)])
def test_shards_must_make_the_batch(shards):
    with pytest.raises(Me5Error, match="2 numbers of rows that sum to 32"):
        prove_gradient(2, shards=shards)


def gone(pid: int) -> bool:
    import psutil  # comes with Jupyter's kernel

    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("other", "timeout", "error"), [
    ("print('done')", 3, "process 1 had not finished after 3 s and was ended"),
    ("import os, time\nwhile not os.path.exists(PID): time.sleep(0.05)\nraise ValueError('no such file')", 120,
     "process 0 of 2 failed with exit code 1: ValueError: no such file"),
], ids=["hung", "failed"])  # fmt: skip
def test_a_child_that_hangs_or_whose_neighbour_fails_is_ended_with_a_clear_error(tmp_path, other, timeout, error):
    pid, start = tmp_path / "pid", time.monotonic()
    waits = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    with pytest.raises(Me5Error, match=error):
        launch([[sys.executable, "-c", program] for program in (other.replace("PID", repr(str(pid))), waits)],
               tmp_path, timeout)
    assert time.monotonic() - start < 60 and gone(int(pid.read_text(encoding="utf8")))


ROWS = [Labelled(*row, "test", "en") for row in
        (("a", ("b", "c", "d"), ("e",)), ("f", ("g",), ("a",)), ("a", ("h",), ("b",)))]  # fmt: skip


def a_rank():
    """One of two, which hold one and two rows."""
    distributed.PATIENCE = timedelta(seconds=2)
    team = distributed.join(2)
    related, whole = (make_batch(rows).relations for rows in (ROWS[:1] if team.main else ROWS[1:], ROWS))
    held = distributed.sizes(related)
    found = distributed.gather_relations(related, held)
    assert all(torch.equal(a, b) for a, b in zip(found[:4], whole[:4], strict=True))
    assert list(map(set, found.positive_keys.tolist())) == list(map(set, whole.positive_keys.tolist()))
    assert distributed.local_slice(held.queries) == (slice(0, 1) if team.main else slice(1, 3))
    assert team.any(team.main) and team.sum(1.0 + team.rank) == 3.0

    with warnings.catch_warnings():  # a launch of eight would show each of them eight times
        warnings.simplefilter("error")
        team.wrap(torch.nn.Linear(2, 2))
    number = 3 + team.rank  # how many rows the ranks have is asked once a batch
    related = make_batch([Pair(f"{i} {number}", f"- {i} {number}", "s", "en") for i in range(number)]).relations
    vectors = torch.nn.functional.normalize(torch.randn(2 * number, 8)).requires_grad_()
    calls, reduce = [], torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *given, **more: calls.append(1) or reduce(*given, **more)
    stages.global_loss(vectors, stages.MicroBatch([], related), config.load("smoke").train)
    assert len(calls) == 1
    torch.distributed.all_reduce = reduce

    made = team.main_process_first(lambda: (time.sleep(3 if team.main else 0), "made")[1])  # longer than `PATIENCE`
    assert made == "made" and team.sum(1.0) == 2.0

    def act():
        raise Me5Error("nothing to mine")

    with pytest.raises(Me5Error, match="nothing to mine" if team.main else "rank 0 failed: it says why"):
        team.by_main(act)
    team.barrier()
    distributed.leave()


def test_two_ranks_share_relations_and_rank_0_may_work_alone_for_longer_than_a_collective_waits():
    assert forked(a_rank, world=2) == [0, 0]
