"""The loop: the same weights whether or not it was killed, the schedule, what is logged and where."""

import dataclasses
import json
import math
import re
import shutil
import signal
import threading

import prove_crash
import pytest
import torch
from prove_crash import STAGE, encoder, prepare_of

from me5lib import device
from me5lib.io import Me5Error
from me5lib.train import checkpoint, distributed, loop
from me5lib.train.distributed import Team

RUN = loop.RunOptions(None, 3, "p", save_every=2, progress=False, team=Team.alone(torch.device("cpu")))


def train(model, prepare=None, **run):
    run = RUN._replace(**run)
    return loop.train_loop(model, prepare or prepare_of(model, run.team, seed=run.seed), STAGE, run)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happened to: its model and folder."""
    folder, model = tmp_path_factory.mktemp("straight"), encoder()
    train(model, folder=folder)
    return model, folder


def ends_like(straight, folder, model=None):
    """The run in `folder`, gone on with, has the weights and the log of an undisturbed one."""
    model = model or encoder()
    history = train(model, folder=folder)
    assert torch.equal(weights(model), weights(straight[0]))
    kept = [row for row in rows(folder / "log.jsonl") if "loss" in row]
    assert kept == rows(straight[1] / "log.jsonl") == history.steps


def test_a_run_learns_and_another_seed_is_another_run(straight):
    other = encoder()
    history = train(other, seed=4)
    assert not torch.equal(weights(other), weights(straight[0]))
    assert history.steps[-1]["loss"] < history.steps[0]["loss"]


@pytest.mark.parametrize(("number", "error", "code"), [(signal.SIGINT, KeyboardInterrupt, None),
                                                       (signal.SIGTERM, loop.Preempted, 143)])
def test_a_signal_finishes_the_step_keeps_a_checkpoint_and_the_next_call_goes_on(
    straight, tmp_path, capsys, number, error, code
):
    def interrupt(model, step):
        if step == 3:
            signal.raise_signal(number)
        return {}

    before = signal.getsignal(number)
    with pytest.raises(error) as left:
        train(encoder(), folder=tmp_path, save_every=0, evaluate=interrupt, every=1)
    assert "stopped after step 3" in str(left.value) + capsys.readouterr().err
    assert getattr(left.value, "code", None) == code and signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    ends_like(straight, tmp_path)


def test_a_signal_within_a_step_is_answered_before_a_long_evaluation():
    model, looked = torch.nn.Linear(1, 1), []

    def compute():
        signal.raise_signal(signal.SIGTERM)
        return model.weight.sum()

    with pytest.raises(loop.Preempted):
        train(model, prepare=lambda step: loop.Work(compute), every=1,
              evaluate=lambda model, step: looked.append(step) or {})  # fmt: skip
    assert looked == [0]


def test_a_second_interrupt_does_not_wait_for_the_step():
    def compute():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as left:
        train(torch.nn.Linear(1, 1), prepare=lambda step: loop.Work(compute))
    assert not str(left.value)  # not "stopped after step 1"


def test_what_breaks_in_an_evaluation_does_not_cost_the_steps_before_it(tmp_path):
    def broken(model, step):
        return {} if step < 4 else {}["no such key"]

    with pytest.raises(KeyError):
        train(encoder(), folder=tmp_path, save_every=4, evaluate=broken, every=4)
    assert (tmp_path / "checkpoints" / "step-000004").is_dir()


def test_another_plan_is_refused(straight):
    model = encoder()
    before = weights(model)
    with pytest.raises(Me5Error, match="another plan") as refusal:
        train(model, folder=straight[1], plan="q")
    assert "\n" not in str(refusal.value) and torch.equal(weights(model), before)


def test_results_and_timings_are_kept_apart(straight, tmp_path):
    log, timings = rows(straight[1] / "log.jsonl"), rows(straight[1] / "timings.jsonl")
    assert set(log[0]) == {"step", "loss", "grad_norm", "lr", "source"}
    assert log[0]["source"] == "colours" and len(log) == len(timings) == STAGE.steps
    model = torch.nn.Linear(1, 1)
    train(model, folder=tmp_path, save_every=0, prepare=lambda step: loop.Work(lambda: model.weight.sum(), "x", 1200))
    row = rows(tmp_path / "timings.jsonl")[0]
    assert set(row) == set(timings[0]) == {"step", "seconds", "waited", "tokens_per_s", "mfu"}
    assert row["tokens_per_s"] > 1200 / (row["seconds"] + row["waited"] + 0.001) and row["mfu"] is None


def test_a_log_that_a_kill_has_torn_is_mended(straight, tmp_path):
    folder = shutil.copytree(straight[1], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "step-000008")
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert len(loop.read_log(folder).steps) == STAGE.steps - 1
    ends_like(straight, folder)
    assert [row["step"] for row in rows(folder / "timings.jsonl")] == list(range(STAGE.steps))


def test_a_full_disk_stops_the_run_in_a_line_and_nothing_is_lost(straight, tmp_path, monkeypatch):
    model, save = encoder(), checkpoint.save_file

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    def prepare(step):
        if step == 5:
            monkeypatch.setattr(checkpoint, "save_file", full)
        return prepare_of(model, RUN.team)(step)

    with pytest.raises(Me5Error, match="step 6 .*No space left") as refusal:
        train(model, prepare=prepare, folder=tmp_path)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    monkeypatch.setattr(checkpoint, "save_file", save)
    ends_like(straight, tmp_path)


def test_other_conditions_are_said_in_a_line_and_noted(straight, tmp_path, monkeypatch, capsys):
    folder, now = shutil.copytree(straight[1], tmp_path / "run"), torch.get_num_threads()
    train(encoder(), folder=folder)
    assert "bit" not in capsys.readouterr().out
    monkeypatch.setattr(torch, "get_num_threads", lambda: now + 62)
    train(encoder(), folder=folder)
    said = capsys.readouterr().out
    assert f"threads {now} → {now + 62}" in said and "to a tolerance" in said and said.count("\n") == 1
    starts = json.loads((folder / "run.json").read_text(encoding="utf8"))["starts"]
    assert [(start["step"], start["threads"]) for start in starts] == [(0, now), (8, now), (8, now + 62)]
    assert starts[0]["reason"] == device.precision(torch.device("cpu")).reason


def test_model_flop_utilisation_is_of_what_the_data_sheet_promises(monkeypatch):
    model = encoder()
    tables = sum(p.numel() for name, p in model.named_parameters() if "embeddings" in name and "LayerNorm" not in name)
    assert loop.worked_on(model) == sum(p.numel() for p in model.parameters()) - tables
    timing = loop._timing(1.5, 0.5, 1_000_000, 100_000_000, 4, 1e15)  # 3e14 useful FLOP/s of each device's 1e15
    assert timing["mfu"] == 0.3 and timing["tokens_per_s"] == 2_000_000
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A10G": 70e12, "NVIDIA L4": 121e12,
             "NVIDIA L40S": 362e12, "Another 9000": None}  # fmt: skip
    for name, promised in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert device.peak_flops(torch.device("cuda"), "bf16") == promised
        assert device.peak_flops(torch.device("cuda"), "fp32") is device.peak_flops(torch.device("cpu"), "bf16") is None


def test_evaluations_come_first_last_and_in_between_and_leave_no_trace(straight, tmp_path):
    seen = []

    def evaluate(model, step):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(5)
        seen.append(step)
        return {"score": step / 10}

    model = encoder()
    train(model, folder=tmp_path, evaluate=evaluate, every=3)
    assert seen == [0, 3, 6, 8]
    assert loop.read_log(tmp_path).evaluations == [{"step": s, "score": s / 10} for s in seen]
    ends_like(straight, tmp_path, model)


def test_the_rate_rises_linearly_to_its_peak_and_falls_to_nothing():
    stage = dataclasses.replace(STAGE, steps=100, warmup=9, lr=1.0)
    rates = [loop.rate(step, stage) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[9:] == pytest.approx([(100 - i) / 91 for i in range(9, 100)])


def test_only_matrices_decay():
    groups = loop.optimiser(encoder(), STAGE).param_groups
    assert all(p.dim() > 1 for p in groups[0]["params"]) and groups[0]["weight_decay"] == STAGE.weight_decay
    assert all(p.dim() <= 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0


def test_the_gradient_is_clipped_before_the_step():
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    stage = dataclasses.replace(STAGE, steps=1, warmup=0, lr=0.1, clip=0.5, weight_decay=0.0)
    row = loop.train_loop(model, lambda number: loop.Work(lambda: 8 * model.weight.sum()), stage, RUN).steps[0]
    assert row["grad_norm"] == pytest.approx(8) and row["lr"] == 0.1
    assert before - model.weight.item() == pytest.approx(0.1, rel=1e-3)


def test_a_step_that_is_not_finite_is_told_and_nothing_is_touched(straight, tmp_path):
    model = encoder()

    def prepare(step):
        work = prepare_of(model, RUN.team)(step)
        return work if step != 5 else work._replace(compute=lambda: next(model.parameters()).sum() * math.nan)

    with pytest.raises(Me5Error, match=r"not finite at step 5 \(loss nan.*texts of colours\): lower .* rate") as error:
        train(model, prepare=prepare, folder=tmp_path)
    assert "\n" not in str(error.value)
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-000004"
    assert len(rows(tmp_path / "log.jsonl")) == 5 and all(p.grad is None for p in model.parameters())
    assert torch.isfinite(weights(model)).all()
    ends_like(straight, tmp_path)


def a_rank(out):
    """Preempted on rank 1 in step 3; then a loss that is not finite there."""
    team = distributed.join(2)

    def preempt(step):
        if step == 3 and team.rank == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Preempted) as left:
        prove_crash.run(out / "run", team, preempt)
    model = torch.nn.Linear(1, 1)
    bad = loop.Work(lambda: model.weight.sum() * (math.nan if team.rank else 1))
    with pytest.raises(Me5Error) as error:
        train(model, prepare=lambda step: bad, folder=out / "bad", team=team)
    (out / f"said-{team.rank}.json").write_text(json.dumps([left.value.code, str(error.value)]), encoding="utf8")
    distributed.leave()


def test_two_processes_stop_together(tmp_path):
    assert prove_crash.forked(a_rank, tmp_path, world=2) == [0, 0]
    for rank, loss in enumerate(("[^n]", "nan")):  # each tells its own
        code, error = json.loads((tmp_path / f"said-{rank}.json").read_text(encoding="utf8"))
        assert code == 143 and re.search(rf"not finite at step 0 \(loss {loss}.*, of all processes nan", error)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").name == "step-000004"
    log = rows(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in log if "loss" in row] == [0, 1, 2, 3]  # one row a step: rank 0 alone writes
    assert [row["evaluate"]["step"] for row in log if "evaluate" in row] == [0, 3]
    assert checkpoint.read_state(tmp_path / "run" / "checkpoints" / "step-000004")["conditions"]["processes"] == 2


def test_the_next_batch_is_prepared_in_another_thread_while_a_step_is_computed():
    model, events, ready = torch.nn.Linear(1, 1), [], {i: threading.Event() for i in range(9)}

    def prepare(step):
        ready[step].set()
        events.append((step, threading.current_thread() is threading.main_thread()))

        def compute():
            assert step == STAGE.steps - 1 or ready[step + 1].wait(10)  # the next one comes while this one computes
            return model.weight.sum()

        return loop.Work(compute)

    train(model, prepare=prepare)
    assert events == [(step, False) for step in range(STAGE.steps)]

    def broken(step):
        raise ValueError("no such text")

    with pytest.raises(ValueError, match="no such text"):
        train(model, prepare=broken)
