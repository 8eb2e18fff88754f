"""One training loop for both stages, and for the teacher: prepare, compute, clip, step, log; resumable, deterministic.

Design. A stage is `steps` calls of `prepare(step)`. It runs in a worker thread, one step ahead, does what needs no
model (fetching texts, tokenising) and returns a `Work`, whose `compute()` runs in the main thread and gives the loss.
Everything that is random derives from (seed, step), so a resumed run needs the step number, the weights and AdamW's
moments, nothing else, and ends with the same weights as one that was never interrupted.

With a team of processes each rank computes its share with the wrapped model and steps the bare one; rank 0 alone
evaluates and writes, and whether to stop is decided together, so that all of them stop at the same step.

What is written and shown: `me5lib.train.telemetry`.

Cost at tiny on two cores: nearly all of a step is the encoder's; AdamW over the 8 M parameters of a 32k × 256 embedding
table takes about 10 ms fused, clipping 5 ms, tokenising nothing that is waited for.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from me5lib import io
from me5lib.config import Stage
from me5lib.device import autocast, precision
from me5lib.io import Me5Error, give_back
from me5lib.train import checkpoint, telemetry
from me5lib.train.distributed import Team
from me5lib.train.telemetry import History, read

__all__ = ["History", "Preempted", "Work", "device_of", "optimiser", "rate", "read", "train"]

BETAS, EPSILON = (0.9, 0.999), 1e-8  # ours: AdamW's defaults; not published
FAILED = "failed-step.json"
Evaluator = Callable[[torch.nn.Module, int], dict[str, float]]


class Work(NamedTuple):
    """One step, ready to be computed."""

    compute: Callable[[], torch.Tensor]  # the loss, a scalar; its gradients already accumulated if it needs no backward
    source: str = ""  # what the batch was made of, for the log
    tokens: int = 0  # of this rank's texts
    padding: float | None = None  # share of the positions given to the encoder that hold no token
    identity: Mapping[str, Any] | None = None  # JSON types: by what the batch is found again when its step fails
    figures: dict[str, float] | None = None  # results that `compute` fills in, for the log: alignment, uniformity


class Preempted(SystemExit):
    """SIGTERM came (Slurm's pre-emption), and everything is saved: exit code 143, upon which a job is queued again."""


def device_of(model: torch.nn.Module) -> torch.device:
    """The device that the model's weights are on."""
    return next(model.parameters()).device


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
    model: torch.nn.Module, prepare: Callable[[int], Work], stage: Stage, folder: Path | None, *, seed: int,
    plan: str = "", evaluate: Evaluator | None = None, every: int = 0, save_every: int = 0, progress: bool = True,
    name: str = "training", team: Team | None = None,
) -> History:
    """Train `model` for `stage.steps` steps and return what was logged.

    With a `folder`, goes on from its last whole checkpoint (of the same `plan`, a fingerprint; `Me5Error` for another)
    and writes one every `save_every` steps and after the last (0: only when interrupted). `evaluate` is called before
    the first step, every `every` steps and after the last.

    `model` is the bare one also with a `team`, of which every rank calls this. Ctrl-C or SIGTERM, on any rank, finishes
    the step, writes a checkpoint and raises KeyboardInterrupt or `Preempted`. Raises `Me5Error` when the loss stops
    being finite, before any weight is touched, and writes `failed-step.json`.
    """
    run = _Run(model, stage, folder, seed, plan, team or Team.alone(device_of(model)), evaluate, every)
    start = run.begin(name, progress)
    with _signals() as caught, run.shown(name, start, progress):
        run.look(start)
        for step, work, waited in _ahead(prepare, start, stage.steps):
            run.step(step, work, waited)
            done = step + 1
            leave = run.team.any(bool(caught()))
            saved = leave or bool(save_every) and (done % save_every == 0 or done == stage.steps)
            if saved:
                run.save(done)
            if not leave and run.due(done):
                run.look(done)
                leave = run.team.any(bool(caught()))
                if leave and not saved:
                    run.save(done)
            if leave:
                _leave(run.team, caught(), done)
    run.end()
    give_back()
    return run.log.history


@dataclasses.dataclass
class _Run:
    """What `train` was asked for, and what it has at hand."""

    model: torch.nn.Module
    stage: Stage
    folder: Path | None
    seed: int
    plan: str
    team: Team
    evaluate: Evaluator | None
    every: int

    def __post_init__(self) -> None:
        device = device_of(self.model)
        self.device, self.number, self.adamw = device, precision(device), optimiser(self.model, self.stage)
        self.terms = checkpoint.conditions(device, self.team.world)
        peak = telemetry.peak(device, self.number.name)
        self.speed = telemetry.Speed(telemetry.worked_on(self.model), peak, self.team.world)

    def begin(self, name: str, progress: bool) -> int:
        """Go on from the last checkpoint: the step to begin with. Every rank takes the one that rank 0 found."""
        path = checkpoint.latest(self.folder / "checkpoints") if self.folder and self.team.main else None
        start = int(self.team.sum(checkpoint.state(path)["step"] if path else 0))
        if start:
            path = checkpoint.at(self.folder / "checkpoints", start)
            if not path.is_dir():
                raise Me5Error(f"rank {self.team.rank} does not see {path}: all processes must share that folder")
            checkpoint.load(path, self.model, self.adamw, self.plan)
            changed = checkpoint.changed(path, self.terms)
            if changed and self.team.main:
                print(f"going on under other conditions ({', '.join(changed)}): the losses equal those of an "
                      "undisturbed run to a tolerance now, no longer to the bit")
        if progress and self.team.main and start < self.stage.steps:
            print(f"{name}: steps {start} … {self.stage.steps}, {self.number.name}: {self.number.reason}")
        self.log = telemetry.Log(self.folder if self.team.main else None, start)
        self.log.start({"step": start, **self.number._asdict(), **self.terms})
        self.model.train()
        return start

    @contextmanager
    def shown(self, name: str, start: int, progress: bool) -> Iterator[None]:
        """The bar, while it runs."""
        self.live = telemetry.Live(name, start, self.stage.steps, progress and self.team.main)
        try:
            yield
        finally:
            self.live.close()

    def step(self, step: int, work: Work, waited: float) -> None:
        """One update of the weights, logged."""
        began = time.perf_counter()
        # For the dropout of a plain forward; pieces of GradCache seed themselves.
        torch.manual_seed(self.seed * 1_000_003 + step + (self.team.rank << 40))
        lr = rate(step, self.stage)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        own, norm = self._gradient(work)
        loss = self.team.mean(own)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._failed(step, work, {"loss": own, "loss.mean": loss, "grad_norm": norm, "lr": lr})
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        row = {"step": step, "loss": loss, "grad_norm": norm, "lr": lr, "source": work.source, **(work.figures or {})}
        tokens = self.team.mean(work.tokens)
        timing = self.speed.timing(time.perf_counter() - began, waited, tokens, work.padding)
        self.log.step(row, timing)
        self.live.step(row, timing)

    def _gradient(self, work: Work) -> tuple[float, float]:
        """The loss of this rank, and the norm that the gradient had before it was clipped."""
        with autocast(self.device, self.number.name):
            loss = work.compute()
        if loss.requires_grad:
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip)
        return float(loss.detach()), float(norm)

    def _failed(self, step: int, work: Work, figures: Mapping[str, float]) -> Me5Error:
        """The error of a step that is not finite; each rank writes by what its batch is found again."""
        self.adamw.zero_grad(set_to_none=True)
        what = (f"the loss or its gradient is not finite at step {step} (loss {figures['loss.mean']}, gradient norm "
                f"{figures['grad_norm']}): lower the learning rate ({self.stage.lr})")
        if self.folder is None:
            return Me5Error(what)
        rank = self.team.rank
        path = self.folder / (FAILED if self.team.main else FAILED.replace(".", f".rank-{rank}."))
        found = {
            "step": step, "seed": self.seed, "rank": rank, "processes": self.team.world, "plan": self.plan,
            "precision": self.number.name, "source": work.source, "batch": work.identity,
            **{name: telemetry.as_json(value) for name, value in figures.items()},
        }  # fmt: skip
        io.put_json(path, found)
        return Me5Error(f"{what}; the batch is named in {path}, the weights are those of the last checkpoint")

    def end(self) -> None:
        """All steps are done: a step that once failed is no news any more."""
        self.model.eval()
        for path in self.folder.glob(FAILED.replace(".", "*.")) if self.log.folder else ():
            path.unlink()

    def save(self, step: int) -> None:
        """Rank 0 writes a checkpoint, the others wait for it."""
        if self.folder is not None:
            self.team.by_main(lambda: self._write(step))

    def _write(self, step: int) -> None:
        self.log.sync()
        checkpoint.save(self.folder / "checkpoints", self.model, self.adamw, step, self.plan, terms=self.terms)

    def due(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps."""
        ends = step in (0, self.stage.steps)
        return self.evaluate is not None and (ends or bool(self.every) and step % self.every == 0)

    def look(self, step: int) -> None:
        """Evaluate if it is due and not logged yet (rank 0; the others wait)."""
        if self.due(step):
            self.team.by_main(lambda: self._evaluate(step))

    def _evaluate(self, step: int) -> None:
        if any(row["step"] == step for row in self.log.history.evaluations):
            return
        self.model.eval()
        with torch.no_grad():
            row = {"step": step, **self.evaluate(self.model, step)}
        self.model.train()
        self.log.evaluation(row)
        self.live.evaluation(row)


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


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Turns Ctrl-C and SIGTERM into a number to ask for (0: none came), so that a step is never torn.

    A second Ctrl-C stops at once. Signals reach the main thread only; elsewhere they are left alone.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _leave(team: Team, caught: int, done: int) -> None:
    """Raise what all ranks leave with."""
    said = f"stopped after step {done}; the same command goes on from there"
    if team.any(caught == signal.SIGTERM):
        if team.main:
            print(f"SIGTERM: {said}", file=sys.stderr)
        raise Preempted(128 + signal.SIGTERM)
    raise KeyboardInterrupt(said)
