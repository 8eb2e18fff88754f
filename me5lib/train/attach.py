"""A notebook looks at training that another process does: `attach` reads what is in the run's folder, never trains.

    run = attach(lesson.out, scale=lesson.scale.name, seed=lesson.seed)
    run.finished, run.step, run.steps          # False, 1200, 30000
    figures.loss_curve(run.history.steps, chance)   # the curve so far
    Encoder.load(run.model)                    # the finished model, or that of the last checkpoint

At the paper's scale `me5 pretrain` runs on many machines, for days; a kernel is no place for that.

Cost: reading the log, some milliseconds a thousand steps.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from me5lib import io
from me5lib.io import STAGES, Me5Error
from me5lib.train import checkpoint, telemetry
from me5lib.train.telemetry import History


class Attached(NamedTuple):
    """A stage, finished or not, as it was when `attach` looked."""

    folder: Path  # of its logs
    finished: bool
    step: int  # steps that are done
    steps: int  # steps that were asked for
    history: History
    model: Path | None  # the finished model, else the last checkpoint; None before the first one
    quiet: float  # seconds since a line was logged: many, and the run has probably stopped

    def __str__(self) -> str:
        if self.finished:
            return f"{self.folder.name} is finished: {self.steps:,} steps"
        return (f"{self.folder.name} is at step {self.step:,} of {self.steps:,}; "
                f"its last line is {self.quiet:.0f} seconds old")


def attach(out: Path, name: str = "stage1", *, scale: str = "SCALE", seed: int = 0) -> Attached:
    """The stage `name` of the run in `out`. Unfinished work comes before an older finished stage of other settings.

    Raises `Me5Error` naming the command that starts it where there is neither (`scale` and `seed` are for its words).
    """
    final, part = out / name, out / f"{name}.part"
    made, making = _settings(final), _settings(part)
    published = made is not None and (final / "config.json").is_file()
    if making and not (published and made["fingerprint"] == making["fingerprint"]):
        return _attached(part, False, making)
    if published:
        return _attached(final, True, made)
    command = STAGES.get(name, "finetune")
    raise Me5Error(f"there is no {name} in {out}, finished or begun: start it with "
                   f"`me5 {command} --scale {scale} --seed {seed} --out {out}`")


def _attached(folder: Path, finished: bool, made: dict[str, Any]) -> Attached:
    history = telemetry.read(folder)
    step = 1 + history.steps[-1]["step"] if history.steps else 0
    log = folder / "log.jsonl"
    quiet = max(0.0, time.time() - log.stat().st_mtime) if log.is_file() else 0.0
    model = folder if finished else _last_checkpoint(folder / "checkpoints")
    return Attached(folder, finished, step, made["settings"]["stage"]["steps"], history, model, quiet)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest one that was renamed into place; its sums are not held against its files, which takes seconds a GB."""
    whole = [path.parent for path in folder.glob(f"step-*/{checkpoint.MANIFEST}")]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _settings(folder: Path) -> dict[str, Any] | None:
    """What a stage's folder says that it is made with; None where there is no such folder, or its first line is due."""
    try:
        return io.read_json(folder / "stage.json")
    except (FileNotFoundError, ValueError):
        return None
