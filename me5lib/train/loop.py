"""One training loop for both stages and for the teacher: prepare, compute, clip, step, log; resumable to the bit.

A stage is `steps` calls of `prepare(step)`. It runs in a worker thread, one step ahead, does what needs no model
(fetching texts, tokenising) and returns a `Work`, whose `compute()` runs in the main thread and gives the loss.
Everything random derives from (seed, step), so a resumed run needs the step number, the weights and AdamW's moments,
nothing else, and ends with the same weights as one that was never interrupted. What it leaves in its folder:

    log.jsonl       results: a row a step (step, loss, grad_norm, lr, source), and a row an evaluation
    timings.jsonl   how long it took: seconds, waited, tokens_per_s, mfu
    run.json        under which conditions it was started, each time: device, threads, versions, precision and why

Two runs with one seed leave the same `log.jsonl`, to the bit. With a team of processes each rank computes its share
with the wrapped model and steps the bare one; rank 0 alone evaluates and writes, and whether to stop is decided
together, so that all of them stop at the same step.

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
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from me5lib import io
from me5lib.config import Stage
from me5lib.device import autocast, peak_flops, precision
from me5lib.io import Me5Error
from me5lib.train import checkpoint
from me5lib.train.distributed import Team

BETAS, EPSILON = (0.9, 0.999), 1e-8  # ours: AdamW's defaults; not published
FAILED = "failed-step.json"
LOGS = ("log.jsonl", "timings.jsonl")
Evaluator = Callable[[torch.nn.Module, int], dict[str, float]]


class Work(NamedTuple):
    """One step, ready to be computed."""

    compute: Callable[[], torch.Tensor]  # the loss, a scalar; its gradients already accumulated if it needs no backward
    source: str = ""  # what the batch was made of, for the log
    tokens: int = 0  # of this rank's texts


class RunOptions(NamedTuple):
    """Where a training is kept and how it is watched."""

    folder: Path | None  # None: nothing is written
    seed: int
    plan: str = ""  # fingerprint of what decides the steps: a checkpoint of another one is refused
    name: str = "training"  # beside the bar
    save_every: int = 0  # steps between checkpoints; 0: only when interrupted
    evaluate: Evaluator | None = None  # asked before the first step, every `every` steps (0: never) and after the last
    every: int = 0
    progress: bool = True
    team: Team | None = None


class TrainingLog(NamedTuple):
    """What a stage logged: one dict a step (step, loss, grad_norm, lr, source), one an evaluation (step, …)."""

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


class Preempted(SystemExit):
    """SIGTERM came (Slurm's pre-emption), and everything is saved: exit code 143, upon which a job is queued again."""


def train_loop(model: torch.nn.Module, prepare: Callable[[int], Work], stage: Stage, run: RunOptions) -> TrainingLog:
    """Train `model` for `stage.steps` steps and return what was logged.

    With a folder, goes on from its last whole checkpoint and writes one every `save_every` steps and after the last.
    `model` is the bare one also with a team, of which every rank calls this. Ctrl-C or SIGTERM, on any rank, finishes
    the step, writes a checkpoint and raises KeyboardInterrupt or `Preempted`. Raises `Me5Error` for a checkpoint of
    another plan, and, before any weight is touched, when the loss stops being finite (`failed-step.json` says more).
    """
    trainer = _Trainer(model, stage, run)
    start = trainer.resume()
    with _signals() as caught, closing(trainer.bar):
        trainer.evaluate(start)
        for step, work, waited in _ahead(prepare, start, stage.steps):
            trainer.step(step, work, waited)
            done = step + 1
            leave = trainer.team.any(bool(caught()))
            saved = leave or bool(run.save_every) and (done % run.save_every == 0 or done == stage.steps)
            if saved:
                trainer.save(done)
            if not leave and trainer.evaluate(done):
                leave = trainer.team.any(bool(caught()))
                if leave and not saved:
                    trainer.save(done)
            if leave:
                said = f"stopped after step {done}; the same command goes on from there"
                if not trainer.team.any(caught() == signal.SIGTERM):
                    raise KeyboardInterrupt(said)
                if trainer.team.main:
                    print(f"SIGTERM: {said}", file=sys.stderr)
                raise Preempted(128 + signal.SIGTERM)
    trainer.end()
    io.give_back()
    return trainer.history


class _Trainer:
    """A model, its optimiser, and the log of its steps, which only rank 0 writes, and only where there is a folder."""

    def __init__(self, model: torch.nn.Module, stage: Stage, run: RunOptions) -> None:
        self.model, self.stage, self.run = model, stage, run
        self.device = next(model.parameters()).device
        self.team = run.team or Team.alone(self.device)
        self.folder = run.folder if self.team.main else None
        self.precision = precision(self.device)
        self.optimiser = optimiser(model, stage)
        self.conditions = checkpoint.conditions(self.device, self.team.world)
        self.weights, self.peak = worked_on(model), peak_flops(self.device, self.precision.name)

    def resume(self) -> int:
        """Go on from the last checkpoint: the step to begin with. Every rank takes the one that rank 0 found."""
        team, path = self.team, checkpoint.latest(self.folder / "checkpoints") if self.folder else None
        start = int(team.sum(checkpoint.read_state(path)["step"] if path else 0))
        if start:
            path = checkpoint.at(self.run.folder / "checkpoints", start)
            if not path.is_dir():
                raise Me5Error(f"rank {team.rank} does not see {path}: all processes must share that folder")
            checkpoint.load_checkpoint(path, self.model, self.optimiser, self.run.plan)
            changed = checkpoint.changed(path, self.conditions)
            if changed and team.main:
                print(f"going on under other conditions ({', '.join(changed)}): the losses equal those of an "
                      "undisturbed run to a tolerance now, no longer to the bit")
        shown, (name, reason) = self.run.progress and team.main, self.precision
        if shown and start < self.stage.steps:
            print(f"{self.run.name}: steps {start} … {self.stage.steps}, {name}: {reason}")
        self.bar = tqdm(total=self.stage.steps, initial=start, desc=self.run.name, disable=not shown, file=sys.stdout,
                        mininterval=2, unit="step")
        self.looked: dict[str, str] = {}  # the last evaluation, beside the bar
        self.history = _begin_log(self.folder, {"step": start, **self.precision._asdict(), **self.conditions})
        self.model.train()
        return start

    def step(self, step: int, work: Work, waited: float) -> None:
        """One update of the weights, logged."""
        began = time.perf_counter()
        # For the dropout of a plain forward; pieces of GradCache seed themselves.
        torch.manual_seed(self.run.seed * 1_000_003 + step + (self.team.rank << 40))
        lr = rate(step, self.stage)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        with autocast(self.device, self.precision.name):
            loss = work.compute()
        if loss.requires_grad:
            loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip))
        own = float(loss.detach())
        mean = self.team.mean(own)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise self._failed(step, work.source, {"loss": own, "loss.mean": mean, "grad_norm": norm, "lr": lr})
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        tokens = self.team.mean(work.tokens)
        timing = self._timing(time.perf_counter() - began, waited, tokens)
        row = {"step": step, "loss": mean, "grad_norm": norm, "lr": lr, "source": work.source}
        self.history.steps.append(row)
        _append(self.folder, "log.jsonl", row)
        _append(self.folder, "timings.jsonl", {"step": step, **timing})
        shown = {"loss": f"{mean:.3f}", "norm": f"{norm:.2f}"}
        shown |= {"tok/s": f"{timing['tokens_per_s']:,}"} if timing.get("tokens_per_s") else {}
        shown |= {"mfu": f"{timing['mfu']:.0%}"} if timing.get("mfu") else {}
        self.bar.set_postfix({**shown, **self.looked}, refresh=False)
        self.bar.update()

    def _timing(self, seconds: float, waited: float, tokens: float) -> dict[str, Any]:
        """A step that took `seconds`, after `waited` more for its texts; `tokens` in the mean of all processes.

        mfu, model FLOP utilisation: 6 · weights · tokens, which forward and backward need at least (attention's own
        products, under a tenth at these lengths, and GradCache's second forward are not counted as useful), of what the
        devices could have done in that time.
        """
        row: dict[str, Any] = {"seconds": round(seconds, 4), "waited": round(waited, 4)}
        if tokens:
            rate = tokens / max(seconds + waited, 1e-9)
            row["tokens_per_s"] = round(rate * self.team.world)
            row["mfu"] = round(6 * self.weights * rate / self.peak, 4) if self.peak else None
        return row

    def _failed(self, step: int, source: str, figures: dict[str, float]) -> Me5Error:
        """The error of a step that is not finite; each rank writes down what it saw."""
        self.optimiser.zero_grad(set_to_none=True)
        what = (f"the loss or its gradient is not finite at step {step} (loss {figures['loss.mean']}, gradient norm "
                f"{figures['grad_norm']}): lower the learning rate ({self.stage.lr})")
        if self.run.folder is None:
            return Me5Error(what)
        rank = self.team.rank
        path = self.run.folder / (FAILED if self.team.main else FAILED.replace(".", f".rank-{rank}."))
        io.put_json(path, {
            "step": step, "seed": self.run.seed, "rank": rank, "processes": self.team.world, "plan": self.run.plan,
            "precision": self.precision.name, "source": source,
            **{name: value if math.isfinite(value) else str(value) for name, value in figures.items()},
        })  # fmt: skip
        return Me5Error(f"{what}; {path} says more, the weights are those of the last checkpoint")

    def save(self, step: int) -> None:
        """Rank 0 writes a checkpoint, the others wait for it."""

        def write() -> None:
            """First the log's rows: a checkpoint must not outlive what led to it."""
            for file in LOGS:
                if (self.folder / file).is_file():
                    io.sync(self.folder / file)
            checkpoint.save_checkpoint(self.folder / "checkpoints", self.model, self.optimiser, step, self.run.plan,
                            self.conditions)

        if self.run.folder is not None:
            self.team.by_main(write)

    def evaluate(self, step: int) -> bool:
        """Evaluate if it is due after `step` steps and not logged yet (rank 0; the others wait); whether it was due."""

        def look() -> None:
            """The figures of the model as it is, logged once; the first of them stands beside the bar."""
            if any(row["step"] == step for row in self.history.evaluations):
                return
            self.model.eval()
            with torch.no_grad():
                row = {"step": step, **self.run.evaluate(self.model, step)}
            self.model.train()
            self.history.evaluations.append(row)
            _append(self.folder, "log.jsonl", {"evaluate": row})
            numbers = [name for name, value in row.items() if name != "step" and isinstance(value, float)]
            self.looked = {name: f"{row[name]:.3f}" for name in numbers[:1]} or self.looked

        ends = step in (0, self.stage.steps)
        if self.run.evaluate is None or not (ends or self.run.every and step % self.run.every == 0):
            return False
        self.team.by_main(look)
        return True

    def end(self) -> None:
        """All steps are done: a step that once failed is no news any more."""
        self.model.eval()
        for path in self.folder.glob(FAILED.replace(".", "*.")) if self.folder else ():
            path.unlink()


def _begin_log(folder: Path | None, begins: dict[str, Any]) -> TrainingLog:
    """Note the start of a run in `folder`, and forget the rows after the step that it begins with; the rows before."""
    if folder is None:
        return TrainingLog([], [])
    start, runs = begins["step"], folder / "run.json"
    for file in LOGS:
        kept = [row for row in _rows(folder / file)
                if (row["evaluate"]["step"] <= start if "evaluate" in row else row["step"] < start)]
        io.put_text(folder / file, "".join(json.dumps(row) + "\n" for row in kept))
    io.put_json(runs, {"starts": [*io.read_json(runs, {"starts": []})["starts"], begins]})
    return read_log(folder)


def _append(folder: Path | None, file: str, row: dict[str, Any]) -> None:
    if folder is None:
        return
    try:
        with (folder / file).open("a", encoding="utf8") as out:
            out.write(json.dumps(row) + "\n")
    except OSError as error:
        raise io.unwritten(folder / file, error) from None


def read_log(folder: Path) -> TrainingLog:
    """The history that a stage left, or is just leaving, in `folder`."""
    rows = _rows(folder / "log.jsonl")
    return TrainingLog([row for row in rows if "loss" in row], [row["evaluate"] for row in rows if "evaluate" in row])


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; one that a kill cut short is dropped."""
    rows = []
    for line in path.read_text(encoding="utf8", errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def worked_on(model: torch.nn.Module) -> int:
    """Weights that every token is multiplied by: all but the tables that it is looked up in."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


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
