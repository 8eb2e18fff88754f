"""The loop: the same weights whether or not it was killed, the schedule, what is logged and where."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from me5lib import scale
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.places import Me5Error
from me5lib.train import contrast, loop

STAGE = dataclasses.replace(scale.load("smoke").train, steps=8, warmup=2, lr=1e-2)
COLOURS = [("red", "rot"), ("green", "gruen"), ("blue", "blau"), ("white", "weiss"), ("black", "schwarz")]
PAIRS = [(f"{a} car {i}", f"{b} auto {i}") for a, b in COLOURS for i in range(8)]

CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_loop as t
t.train(t.encoder(), Path(sys.argv[1]), pause=float(sys.argv[2]))
"""


def encoder(dropout=0.1):
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair], 400)
    return Encoder.new(scale.Model("random", 1, 16, 2, 32, 400, 32), tokenizer, 0, dropout)


def work(model, pause=0.0):
    def prepare(step):
        pairs = [PAIRS[(7 * step + 3 * i) % len(PAIRS)] for i in range(8)]
        queries, passages = [q for q, _ in pairs], [p for _, p in pairs]
        ids = model.tokenize(queries + passages, "query: ")
        time.sleep(pause)

        def compute():
            vectors = model(ids)
            return contrast.info_nce(vectors[:8], vectors[8:], contrast.relations(queries, passages), 0.05)

        return loop.Work(compute, "colours")

    return prepare


def train(model, folder, pause=0.0, stage=STAGE, **options):
    options = {"seed": 3, "plan": "p", "save_every": 2, "progress": False, **options}
    return loop.train(model, work(model, pause), stage, folder, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happened to: its model and folder."""
    folder = tmp_path_factory.mktemp("straight")
    model = encoder()
    train(model, folder)
    return model, folder


def test_a_run_killed_in_the_middle_ends_with_the_same_weights_and_log(straight, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CHILD, str(tmp_path), "0.3", str(Path(__file__).parent)]
    child = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 240
    log = tmp_path / "log.jsonl"
    while child.poll() is None and not (log.is_file() and len(rows(log)) >= 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    assert child.wait() != 0
    assert (tmp_path / "checkpoints" / "step-000004").is_dir() and 5 <= len(rows(log)) < STAGE.steps
    model = encoder()
    history = train(model, tmp_path)
    assert torch.equal(weights(model), weights(straight[0]))
    assert rows(tmp_path / "log.jsonl") == rows(straight[1] / "log.jsonl")
    assert [row["step"] for row in history.steps] == list(range(STAGE.steps))


def test_two_runs_agree_and_another_seed_does_not(straight, tmp_path):
    again, other = encoder(), encoder()
    train(again, None)
    train(other, None, seed=4)
    assert torch.equal(weights(again), weights(straight[0]))
    assert not torch.equal(weights(other), weights(straight[0]))


def test_ctrl_c_finishes_the_step_keeps_a_checkpoint_and_the_next_call_goes_on(straight, tmp_path):
    def interrupt(model, step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return {}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        train(encoder(), tmp_path, save_every=0, evaluate=interrupt, every=1)
    assert signal.getsignal(signal.SIGINT) is before
    model = encoder()
    train(model, tmp_path)
    assert torch.equal(weights(model), weights(straight[0]))


def test_another_plan_is_refused(straight):
    with pytest.raises(Me5Error, match="another plan"):
        train(encoder(), straight[1], plan="q")


def test_results_and_timings_are_kept_apart(straight):
    log, timings = rows(straight[1] / "log.jsonl"), rows(straight[1] / "timings.jsonl")
    assert set(log[0]) == {"step", "loss", "grad_norm", "lr", "source"}
    assert set(timings[0]) == {"step", "seconds", "waited"}
    assert log[0]["source"] == "colours" and len(log) == len(timings) == STAGE.steps


def test_it_learns(straight):
    log = rows(straight[1] / "log.jsonl")
    assert log[-1]["loss"] < log[0]["loss"] - 0.1


def test_evaluations_come_first_last_and_in_between_and_leave_no_trace(straight, tmp_path):
    seen = []

    def evaluate(model, step):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(5)
        seen.append(step)
        return {"score": step / 10}

    model = encoder()
    train(model, tmp_path, evaluate=evaluate, every=3)
    assert seen == [0, 3, 6, 8]
    assert loop.read(tmp_path).evaluations == [{"step": s, "score": s / 10} for s in seen]
    assert torch.equal(weights(model), weights(straight[0]))


def test_the_rate_rises_linearly_to_its_peak_and_falls_to_nothing():
    stage = dataclasses.replace(STAGE, steps=100, warmup=9, lr=1.0)
    rates = [loop.rate(step, stage) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[9:] == pytest.approx([(100 - i) / 91 for i in range(9, 100)])
    assert max(rates) == 1.0 and 0 < rates[-1] < 0.02


def test_only_matrices_decay():
    groups = loop.optimiser(encoder(), STAGE).param_groups
    assert all(p.dim() > 1 for p in groups[0]["params"]) and groups[0]["weight_decay"] == STAGE.weight_decay
    assert all(p.dim() <= 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0


def test_the_gradient_is_clipped_before_the_step():
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    stage = dataclasses.replace(STAGE, steps=1, warmup=0, lr=0.1, clip=0.5, weight_decay=0.0)
    step = loop.Work(lambda: 8 * model.weight.sum())
    row = loop.train(model, lambda number: step, stage, None, seed=0, progress=False).steps[0]
    assert row["grad_norm"] == pytest.approx(8) and row["lr"] == 0.1
    assert before - model.weight.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_a_line(value):
    model = torch.nn.Linear(1, 1)
    step = loop.Work(lambda: model.weight.sum() * value)
    with pytest.raises(Me5Error, match="not finite at step 0"):
        loop.train(model, lambda number: step, STAGE, None, seed=0, progress=False)
    assert torch.isfinite(model.weight).all()


def test_the_next_batch_is_prepared_in_another_thread_while_a_step_is_computed():
    model, events, ready = torch.nn.Linear(1, 1), [], {i: threading.Event() for i in range(9)}

    def prepare(step):
        ready[step].set()
        events.append((step, threading.current_thread() is threading.main_thread()))

        def compute():
            assert step == STAGE.steps - 1 or ready[step + 1].wait(10)  # the next one comes while this one computes
            return model.weight.sum()

        return loop.Work(compute)

    loop.train(model, prepare, STAGE, None, seed=0, progress=False)
    assert events == [(step, False) for step in range(STAGE.steps)]


def test_an_error_while_preparing_reaches_the_caller():
    def prepare(step):
        raise ValueError("no such text")

    with pytest.raises(ValueError, match="no such text"):
        loop.train(torch.nn.Linear(1, 1), prepare, STAGE, None, seed=0, progress=False)


def test_the_precision_is_a_property_of_the_machine_and_says_why():
    first, second = loop.precision(torch.device("cpu")), loop.precision(torch.device("cpu"))
    assert first == second and first.name in {"bf16", "fp32"} and "CPU" in first.reason
