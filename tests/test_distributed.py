"""Real processes: the gradient of the right recipe, how far off each mistake is, and that a stuck child is ended."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from me5lib.io import Me5Error
from me5lib.lessons import check_gradients
from me5lib.lessons.check_gradients import VARIANTS, prove_gradient
from me5lib.pairs import Labelled
from me5lib.train import distributed
from me5lib.train.distributed import gather, global_mean, launch
from me5lib.train.loss import from_labelled


def loss_of_one_process(loss: str, seed: int = 0) -> float:
    task, toy = check_gradients.toy_task(seed, slice(0, 32), loss), check_gradients.Toy(seed)
    return task.table(toy(task.queries), toy(task.passages), slice(0, 32)).item() / 32


def right(found: check_gradients.GradientCheck, loss: str) -> bool:
    return found[:3] == pytest.approx((1, 1, loss_of_one_process(loss)), abs=1e-12)


def test_two_ragged_processes_and_the_usual_mistakes():
    found = prove_gradient(2, shards=(19, 13))
    assert list(found) == list(VARIANTS)  # in the order in which they are explained
    assert right(found["ours"], "one-way") and right(found["ours, replayed"], "one-way")
    assert found["ours"].apart < 1e-4  # the promise is 1e-4; AdamW magnifies the last digits where a gradient is near 0
    assert found["÷ W"][:2] == pytest.approx((0.5, 1), abs=1e-12)
    assert found["× W"][:2] == pytest.approx((2, 1), abs=1e-12)
    assert found["dropped"].loss == pytest.approx(found["ours"].loss)  # a silent bug: only the gradient tells
    for name in ("local mean", "dropped", "local negatives"):
        assert found[name].cosine < 0.995
    assert found["local negatives"].cosine < found["dropped"].cosine < found["local mean"].cosine


def test_three_processes_one_of_them_without_rows_symmetric_loss():
    found = prove_gradient(3, shards=(20, 0, 12), loss="symmetric")
    assert right(found["ours"], "symmetric") and right(found["ours, replayed"], "symmetric")
    assert found["÷ W"].ratio == pytest.approx(1 / 3) and found["× W"].ratio == pytest.approx(3)
    assert found["local mean"].ratio < 0.8  # an empty rank's zero is averaged in


def test_four_ragged_processes_and_kl_beside_infonce():
    found = prove_gradient(4, shards=(9, 0, 3, 20), loss=check_gradients.STAGE_2)
    for name in ("ours", "ours, replayed"):
        assert found[name][:2] == pytest.approx((1, 1), abs=1e-12)
    assert found["ours"].apart < 1e-4
    assert found["÷ W"].cosine < 0.999  # InfoNCE alone is four times too small: no common factor repairs it


def test_one_process_needs_no_group():
    vectors = torch.randn(3, 2, requires_grad=True)
    assert gather(vectors, [3]) is vectors
    assert (distributed.world(), distributed.rank()) == (1, 0)
    assert global_mean(vectors.sum(), [3]).item() == pytest.approx(vectors.sum().item() / 3)
    assert global_mean(torch.zeros(()), [0]).item() == 0.0
    related = from_labelled([Labelled("a", ("b", "c"), ("d",), "test", "en")]).relations
    held = distributed.sizes(related)
    assert held[:2] == ([1], [2]) and distributed.gather_relations(related, held) is related
    assert held.mine == slice(0, 1)
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


TOGETHER = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as processes
from accelerate import Accelerator
from me5lib import config
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair
from me5lib.train import distributed
from me5lib.train.loss import from_labelled, from_pairs
from me5lib.train.stages import MicroBatch, global_loss
folder = Path(sys.argv[1])
(folder / f"here{os.environ['RANK']}").touch()
while len(list(folder.glob("here?"))) < 2:  # a machine may be slow to start them: that is not what is tried here
    time.sleep(0.01)
distributed.PATIENCE = timedelta(seconds=3)
team = distributed.join(2)

rows = [Labelled(*row) for row in json.loads(Path(folder, "rows.json").read_text(encoding="utf8"))]
mine = rows[:1] if team.main else rows[1:]
related, whole = from_labelled(mine).relations, from_labelled(rows).relations
held = distributed.sizes(related)
found = distributed.gather_relations(related, held)
same = [torch.equal(a, b) for a, b in zip(found[:4], whole[:4])]
known = [set(a) == set(b) for a, b in zip(found.positive_keys.tolist(), whole.positive_keys.tolist())]
assert all(same) and all(known), (found, whole)
assert held.mine == (slice(0, 1) if team.main else slice(1, 3))
assert team.any(team.main) and team.sum(1.0 + team.rank) == 3.0

number = 3 + team.rank  # how many rows the ranks have is asked once a batch
related = from_pairs([Pair(f"{i} {number}", f"- {i} {number}", "s", "en") for i in range(number)]).relations
vectors = torch.nn.functional.normalize(torch.randn(2 * number, 8)).requires_grad_()
calls, reduce = [], processes.all_reduce
processes.all_reduce = lambda *given, **more: calls.append(1) or reduce(*given, **more)
global_loss(vectors, MicroBatch([], related), config.load("smoke").train)
assert len(calls) == 1
processes.all_reduce = reduce

made = team.main_process_first(lambda: (time.sleep(4 if team.main else 0), "made")[1])  # longer than a collective waits
assert made == "made" and team.sum(1.0) == 2.0

def act():
    raise Me5Error("nothing to mine")

try:
    team.by_main(act)
except Me5Error as error:
    print(error)
team.barrier()
distributed.leave()
"""


def test_two_ranks_share_relations_and_rank_0_may_work_alone_for_longer_than_a_collective_waits(tmp_path):
    said = [("a", ("b", "c", "d"), ("e",)), ("f", ("g",), ("a",)), ("a", ("h",), ("b",))]
    (tmp_path / "rows.json").write_text(json.dumps([(*row, "test", "en") for row in said]), encoding="utf8")
    launch([[sys.executable, "-c", TOGETHER, str(tmp_path)]] * 2, tmp_path, timeout=120)
    said = [(tmp_path / f"rank{r}.log").read_text(encoding="utf8").splitlines()[-1] for r in range(2)]
    assert said == ["nothing to mine", "rank 0 failed: it says why"]
