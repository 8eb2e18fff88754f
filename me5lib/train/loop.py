"""One training loop for both stages, and for the teacher: prepare, compute, clip, step, log; resumable, deterministic.

Design. A stage is `steps` calls of `prepare(step)`. It runs in a worker thread, one step ahead, does what needs no
model (fetching texts, tokenising) and returns a `Work`, whose `compute()` runs in the main thread and gives the loss.
Everything that is random derives from (seed, step), so a resumed run needs the step number, the weights and AdamW's
moments, nothing else, and ends with the same weights as one that was never interrupted.

Results (`log.jsonl`) and timings (`timings.jsonl`) are kept apart: two runs with one seed leave the same results.

Cost at tiny on two cores: nearly all of a step is the encoder's; AdamW over the 8 M parameters of a 32k × 256 embedding
table takes about 10 ms fused, clipping 5 ms, tokenising nothing that is waited for.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from me5lib.places import Me5Error, give_back
from me5lib.scale import Stage
from me5lib.train import checkpoint

BETAS, EPSILON = (0.9, 0.999), 1e-8  # ours: AdamW's defaults; not published
Evaluator = Callable[[torch.nn.Module, int], dict[str, float]]


class Work(NamedTuple):
    """One step, ready to be computed."""

    compute: Callable[[], torch.Tensor]  # the loss, a scalar; its gradients already accumulated if it needs no backward
    source: str = ""  # what the batch was made of, for the log


class Precision(NamedTuple):
    """The dtype of the encoder's matrix products, and why."""

    name: str  # "bf16" or "fp32"
    reason: str


class History(NamedTuple):
    """What a stage logged: one dict a step (step, loss, grad_norm, lr, source), one an evaluation (step, …)."""

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


def device_of(model: torch.nn.Module) -> torch.device:
    """The device that the model's weights are on."""
    return next(model.parameters()).device


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it natively, else fp32: a fixed property of the machine, not a measurement.

    Measuring which is faster could fall either way from run to run, and two runs with one seed must agree.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bf16", "this GPU has bf16") if native else Precision("fp32", "this GPU has no native bf16")
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return Precision("bf16", "this CPU multiplies bf16 natively (amx or avx512_bf16)")
    return Precision("fp32", "this CPU has no native bf16")


def autocast(device: torch.device, name: str) -> torch.autocast:
    """The autocast context of a precision's `name`; losses and pooling take themselves out of it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def rate(step: int, stage: Stage) -> float:
    """Learning rate of `step`: linear warm-up to `stage.lr`, then linear decay to 0 (E5's schedule)."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / (stage.warmup + 1)
    return stage.lr * (stage.steps - step) / max(1, stage.steps - stage.warmup)


def optimiser(model: torch.nn.Module, stage: Stage) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, not on biases and norms."""
    named = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in named if p.dim() > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=stage.lr, betas=BETAS, eps=EPSILON, fused=True)


def train(
    model: torch.nn.Module,
    prepare: Callable[[int], Work],
    stage: Stage,
    folder: Path | None,
    *,
    seed: int,
    plan: str = "",
    evaluate: Evaluator | None = None,
    every: int = 0,
    save_every: int = 0,
    progress: bool = True,
    name: str = "training",
) -> History:
    """Train `model` for `stage.steps` steps and return what was logged.

    With a `folder`, goes on from its last whole checkpoint (of the same `plan`, a fingerprint; `Me5Error` for another)
    and writes one every `save_every` steps (0: only when interrupted). `evaluate` is called before the first step,
    every `every` steps and after the last. Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt.
    Raises `Me5Error` when the loss stops being finite.
    """
    adamw, number = optimiser(model, stage), precision(device_of(model))
    start = _resume(model, adamw, folder, plan)
    log = _Log(folder, start, evaluate, every, stage.steps)
    if progress and start < stage.steps:
        print(f"{name}: steps {start} … {stage.steps}, {number.name}: {number.reason}")
    model.train()
    log.evaluate(model, start)
    with _interrupts() as interrupted, tqdm(
        total=stage.steps, initial=start, desc=name, disable=not progress, file=sys.stdout, mininterval=2, unit="step"
    ) as bar:
        for step, work, waited in _ahead(prepare, start, stage.steps):
            began = time.perf_counter()
            row = _step(model, adamw, work, stage, step, seed, number)
            log.step(row, time.perf_counter() - began, waited)
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            bar.update()
            log.evaluate(model, step + 1)
            due = bool(save_every) and (step + 1) % save_every == 0 and step + 1 < stage.steps
            if folder is not None and (due or interrupted()):
                checkpoint.save(folder / "checkpoints", model, adamw, step + 1, plan)
            if interrupted():
                raise KeyboardInterrupt(f"stopped after step {step + 1}; the same command goes on from there")
    model.eval()
    give_back()
    return log.history


def read(folder: Path) -> History:
    """The history that a stage left in `folder`."""
    rows = _lines(folder / "log.jsonl")
    return History([r for r in rows if "loss" in r], [r["evaluate"] for r in rows if "evaluate" in r])


def _step(
    model: torch.nn.Module, adamw: torch.optim.AdamW, work: Work, stage: Stage, step: int, seed: int, number: Precision
) -> dict[str, Any]:
    """One update of the weights; its row of the log."""
    torch.manual_seed(seed * 1_000_003 + step)  # dropout of a plain forward; pieces of GradCache seed themselves
    lr = rate(step, stage)
    for group in adamw.param_groups:
        group["lr"] = lr
    with autocast(device_of(model), number.name):
        loss = work.compute()
    if loss.requires_grad:
        loss.backward()
    value = float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip))
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise Me5Error(f"the loss or its gradient is not finite at step {step}: lower the learning rate ({stage.lr})")
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    return {"step": step, "loss": round(value, 6), "grad_norm": round(norm, 6), "lr": lr, "source": work.source}


def _ahead(prepare: Callable[[int], Work], start: int, steps: int) -> Iterator[tuple[int, Work, float]]:
    """(step, its work, seconds waited for it), prepared one step ahead in a worker thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as worker:
        coming = worker.submit(prepare, start) if start < steps else None
        for step in range(start, steps):
            began = time.perf_counter()
            work = coming.result()
            waited = time.perf_counter() - began
            coming = worker.submit(prepare, step + 1) if step + 1 < steps else None
            yield step, work, waited


def _resume(model: torch.nn.Module, adamw: torch.optim.AdamW, folder: Path | None, plan: str) -> int:
    path = checkpoint.latest(folder / "checkpoints") if folder is not None else None
    return checkpoint.load(path, model, adamw, plan) if path else 0


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C into a flag, so that a step is never torn; a second Ctrl-C stops at once."""
    flag = threading.Event()

    def note(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if main else None
    try:
        yield flag.is_set
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


class _Log:
    """log.jsonl and timings.jsonl of a stage; rows after the step that is resumed from are forgotten."""

    def __init__(self, folder: Path | None, start: int, evaluator: Evaluator | None, every: int, steps: int) -> None:
        self.folder, self.evaluator, self.every, self.steps = folder, evaluator, every, steps
        self.history = History([], [])
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("log.jsonl", "timings.jsonl"):
            kept = [row for row in _lines(folder / file) if _before(row, start)]
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf8")
        past = read(folder)
        self.history = History(past.steps, past.evaluations)

    def step(self, row: dict[str, Any], seconds: float, waited: float) -> None:
        self.history.steps.append(row)
        self._append("log.jsonl", row)
        self._append("timings.jsonl", {"step": row["step"], "seconds": round(seconds, 4), "waited": round(waited, 4)})

    def evaluate(self, model: torch.nn.Module, step: int) -> None:
        """Evaluate if one is due after `step` steps and has not been logged before."""
        due = step in (0, self.steps) or (self.every and step % self.every == 0)
        if self.evaluator is None or not due or any(e["step"] == step for e in self.history.evaluations):
            return
        model.eval()
        with torch.no_grad():
            row = {"step": step, **self.evaluator(model, step)}
        model.train()
        self.history.evaluations.append(row)
        self._append("log.jsonl", {"evaluate": row})

    def _append(self, file: str, row: dict[str, Any]) -> None:
        if self.folder is not None:
            with (self.folder / file).open("a", encoding="utf8") as out:
                out.write(json.dumps(row) + "\n")


def _before(row: dict[str, Any], start: int) -> bool:
    """Whether a row was written before the checkpoint of `start` (an evaluation after `start` steps was)."""
    return row["evaluate"]["step"] <= start if "evaluate" in row else row["step"] < start


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; a last line that a kill cut short is dropped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
