"""One training loop for both stages and for the teacher: prepare, compute, clip, step, log; resumable to the bit.

A stage is `steps` calls of `prepare(step)`, in a worker thread, one step ahead: it does what needs no model (fetching
texts, tokenising) and returns a `Work`, whose `compute()` gives the loss in the main thread. Everything random derives
from (seed, step), so that a resumed run needs the step number, the weights and AdamW's moments, nothing else, and ends
with the same weights and the same `log.jsonl` as one that was never interrupted. What it leaves in its folder:

    log.jsonl       results: a row a step (step, loss, grad_norm, lr, source), and a row an evaluation
    timings.jsonl   how long it took: seconds, waited, tokens_per_s, mfu
    run.json        under which conditions it was started, each time: device, threads, versions, precision and why

With a team of processes each rank computes its share with the wrapped model and steps the bare one; rank 0 alone
evaluates and writes, and whether to stop is decided together, so that all of them stop at the same step.
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
from contextlib import contextmanager, suppress
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
Evaluator = Callable[[torch.nn.Module, int], dict[str, float]]
Row = dict[str, Any]


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

    steps: list[Row]
    evaluations: list[Row]


class Preempted(SystemExit):
    """SIGTERM came (Slurm's pre-emption), and everything is saved: exit code 143, upon which a job is queued again."""


def train_loop(model: torch.nn.Module, prepare: Callable[[int], Work], stage: Stage, run: RunOptions) -> TrainingLog:
    """Train `model` for `stage.steps` steps and return what was logged.

    With a folder, goes on from its last whole checkpoint and writes one every `save_every` steps and after the last.
    `model` is the bare one also with a team, of which every rank calls this. Ctrl-C or SIGTERM, on any rank, finishes
    the step, writes a checkpoint and raises KeyboardInterrupt or `Preempted`. Raises `Me5Error` for a checkpoint of
    another plan, and, before any weight is touched, when the loss stops being finite.
    """
    device = next(model.parameters()).device
    run = run._replace(team=run.team or Team.alone(device))
    team, adamw, terms = run.team, optimiser(model, stage), checkpoint.conditions(device, run.team.world)
    folder = run.folder and run.folder / "checkpoints"
    start = _resume(folder, model, adamw, run, terms) if folder else 0
    log = _begin_log(run, {"step": start, **precision(device)._asdict(), **terms})
    dtype, weights = precision(device).name, worked_on(model)

    def save(step: int) -> None:
        if folder:
            team.by_main(lambda: checkpoint.save_checkpoint(folder, model, adamw, step, run.plan, terms))

    model.train()
    with _signals() as caught, _progress_bar(run, start, stage.steps, device) as bar:
        _look(model, start, stage, run, log)
        for step, work, waited in _ahead(prepare, start, stage.steps):
            began, lr = time.perf_counter(), rate(step, stage)
            for group in adamw.param_groups:
                group["lr"] = lr
            torch.manual_seed(run.seed * 1_000_003 + step + (team.rank << 40))  # pieces of GradCache seed themselves
            with autocast(device, dtype):
                loss = work.compute()
            if loss.requires_grad:
                loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip))
            own = float(loss.detach())
            row = {"step": step, "loss": team.mean(own), "grad_norm": norm, "lr": lr, "source": work.source}
            if not (math.isfinite(row["loss"]) and math.isfinite(norm)):
                adamw.zero_grad(set_to_none=True)
                raise Me5Error(f"the loss or its gradient is not finite at step {step} (loss {own:g}, of all processes "
                               f"{row['loss']:g}, gradient norm {norm:g}; texts of {work.source}): lower the learning "
                               f"rate ({stage.lr}), and go on from the last checkpoint")
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            timing = _timing(time.perf_counter() - began, waited, team.mean(work.tokens), weights,
                             team.world, peak_flops(device, dtype))
            _log_step(row, timing, log, run, bar)

            done = step + 1
            due = bool(run.save_every) and (done % run.save_every == 0 or done == stage.steps)
            if due:
                save(done)
            leave = team.any(bool(caught))
            if not leave and _look(model, done, stage, run, log):
                leave = team.any(bool(caught))
            if leave:
                if not due:
                    save(done)
                raise _stopped(done, team, caught)
    model.eval()
    io.give_back()
    return log


def _resume(folder: Path, model: torch.nn.Module, adamw: torch.optim.Optimizer, run: RunOptions, terms: Row) -> int:
    """Go on from the last checkpoint: the step to begin with. Every rank takes the one that rank 0 found."""
    latest = checkpoint.latest(folder) if run.team.main else None
    start = int(run.team.sum(checkpoint.read_state(latest)["step"] if latest else 0))
    if start:
        path = checkpoint.at(folder, start)
        if not path.is_dir():
            raise Me5Error(f"rank {run.team.rank} does not see {path}: all processes must share that folder")
        checkpoint.load_checkpoint(path, model, adamw, run.plan)
        changed = checkpoint.changed(path, terms)
        if changed and run.team.main:
            print(f"going on under other conditions ({', '.join(changed)}): the losses equal those of an undisturbed "
                  "run to a tolerance now, no longer to the bit")
    return start


def _look(model: torch.nn.Module, step: int, stage: Stage, run: RunOptions, log: TrainingLog) -> bool:
    """Evaluate if it is due after `step` steps and not logged yet (rank 0; the others wait); whether it was due."""

    def _evaluated() -> None:
        if any(row["step"] == step for row in log.evaluations):
            return
        model.eval()
        with torch.no_grad():
            row = {"step": step, **run.evaluate(model, step)}
        model.train()
        log.evaluations.append(row)
        _append(run, "log.jsonl", {"evaluate": row})

    if run.evaluate is None or not (step in (0, stage.steps) or run.every and step % run.every == 0):
        return False
    run.team.by_main(_evaluated)
    return True


def _stopped(done: int, team: Team, caught: list[int]) -> BaseException:
    """What to raise after a signal, when everything is saved."""
    said = f"stopped after step {done}; the same command goes on from there"
    if not team.any(signal.SIGTERM in caught):
        return KeyboardInterrupt(said)
    if team.main:
        print(f"SIGTERM: {said}", file=sys.stderr)
    return Preempted(128 + signal.SIGTERM)


def _timing(seconds: float, waited: float, tokens: float, weights: int, world: int, peak: float | None) -> Row:
    """A step that took `seconds`, after `waited` more for its texts; `tokens` in the mean of all processes.

    mfu, model FLOP utilisation: 6 · weights · tokens, which forward and backward need at least (attention's own
    products, under a tenth at these lengths, and GradCache's second forward are not counted as useful), of the `peak`
    FLOP/s of the devices.
    """
    row: Row = {"seconds": round(seconds, 4), "waited": round(waited, 4)}
    if tokens:
        a_second = tokens / max(seconds + waited, 1e-9)
        row["tokens_per_s"] = round(a_second * world)
        row["mfu"] = round(6 * weights * a_second / peak, 4) if peak else None
    return row


def _progress_bar(run: RunOptions, start: int, steps: int, device: torch.device) -> tqdm:
    """The bar of the steps, and a line before it; of rank 0 alone."""
    shown, (dtype, reason) = run.progress and run.team.main, precision(device)
    if shown and start < steps:
        print(f"{run.name}: steps {start} … {steps}, {dtype}: {reason}")
    return tqdm(total=steps, initial=start, desc=run.name, disable=not shown, file=sys.stdout, mininterval=2,
                unit="step")


def _log_step(row: Row, timing: Row, log: TrainingLog, run: RunOptions, bar: tqdm) -> None:
    """Log a step, and show it beside the bar with the first figure of the last evaluation."""
    log.steps.append(row)
    _append(run, "log.jsonl", row)
    _append(run, "timings.jsonl", {"step": row["step"], **timing})
    shown = {"loss": f"{row['loss']:.3f}", "norm": f"{row['grad_norm']:.2f}"}
    shown |= {"tok/s": f"{timing['tokens_per_s']:,}"} if timing.get("tokens_per_s") else {}
    shown |= {"mfu": f"{timing['mfu']:.0%}"} if timing.get("mfu") else {}
    looks = [(name, value) for name, value in (log.evaluations or [{}])[-1].items() if isinstance(value, float)]
    bar.set_postfix(shown | {name: f"{value:.3f}" for name, value in looks[:1]}, refresh=False)
    bar.update()


def _begin_log(run: RunOptions, begins: Row) -> TrainingLog:
    """Note the start of a run in its folder, and forget the rows after the step it begins with; the rows before."""
    if run.folder is None or not run.team.main:
        return TrainingLog([], [])
    start, runs = begins["step"], run.folder / "run.json"
    for path in (run.folder / file for file in ("log.jsonl", "timings.jsonl")):
        kept = [row for row in _log_rows(path)
                if (row["evaluate"]["step"] <= start if "evaluate" in row else row["step"] < start)]
        io.put_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    io.put_json(runs, {"starts": [*io.read_json(runs, {"starts": []})["starts"], begins]})
    return read_log(run.folder)


def _append(run: RunOptions, file: str, row: Row) -> None:
    """A row more of a log: rank 0 alone writes, and only where there is a folder."""
    if run.folder is None or not run.team.main:
        return
    try:
        with (run.folder / file).open("a", encoding="utf8") as out:
            out.write(json.dumps(row) + "\n")
    except OSError as error:
        raise io.unwritten(run.folder / file, error) from None


def read_log(folder: Path) -> TrainingLog:
    """What a stage logged, or is just logging, in `folder`."""
    rows = _log_rows(folder / "log.jsonl")
    return TrainingLog([row for row in rows if "loss" in row], [row["evaluate"] for row in rows if "evaluate" in row])


def _log_rows(path: Path) -> list[Row]:
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
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
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
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted in the list that is given, so that a step is never torn.

    A second Ctrl-C stops at once. Signals reach the main thread only; elsewhere they are left alone.
    """
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
