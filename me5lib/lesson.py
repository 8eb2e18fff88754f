"""What every notebook begins with: its scale, its folder, `expect`, and the record of what it measured.

    lesson = begin("06", SCALE, SEED, OUT, SET, OFFLINE)
    expect = lesson.expect
    expect(accuracy, "bitext.accuracy", tiny=(0.70, 0.90), smoke=(0.05, 1.0))

Results and timings are kept apart (`metrics.json`, `timings.json`), so that two runs with one seed leave equal results.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from me5lib import places, scale
from me5lib.places import Me5Error

if TYPE_CHECKING:
    from me5lib.model.encoder import Encoder


class Missed(AssertionError):
    """A number that the text of a notebook relies on fell outside its range."""


@dataclass
class Lesson:
    """One notebook at work: where it writes, at which scale, and what it has measured so far."""

    name: str
    scale: scale.Scale
    seed: int
    out: Path
    metrics: dict[str, float | str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """This notebook's own folder under the run's: `<out>/lessons/<name>`."""
        return self.out / "lessons" / self.name

    def expect(self, value: float, name: str, **ranges: tuple[float, float]) -> float:
        """Record `value` as `name` and hold it to this scale's range (`tiny=(low, high)`), ends included.

        Raises `Missed` outside the range or for NaN. A scale without a range is recorded and said to be unheld.
        """
        value = self.record(name, value)
        if self.scale.name not in ranges:
            print(f"{name} = {value:.4g} (no range is held at scale {self.scale.name})")
            return value
        low, high = ranges[self.scale.name]
        if not low <= value <= high:
            raise Missed(f"{name} = {value:.4g}, expected between {low:g} and {high:g} at scale {self.scale.name}")
        print(f"{name} = {value:.4g}  ✓ within {low:g} … {high:g}")
        return value

    def record(self, name: str, value: float | str) -> float | str:
        """Write `value` under `name` into this notebook's metrics.json; floats keep 6 significant digits."""
        value = value if isinstance(value, str) else float(value)
        kept = value if isinstance(value, str) or not math.isfinite(value) else float(f"{value:.6g}")
        self.metrics[name] = kept if isinstance(kept, str) or math.isfinite(kept) else str(kept)
        self._write("metrics.json", self.metrics)
        return value

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the seconds of a block into timings.json (kept apart from results)."""
        start = time.perf_counter()
        yield
        self.timings[name] = round(time.perf_counter() - start, 3)
        self._write("timings.json", self.timings)

    def encoder(self) -> Encoder:
        """The real model that this scale's lessons look at (`evaluate.model`), fp32, on the CPU or the GPU there is.

        At smoke, which downloads nothing, random weights of the scale's shape: the same cells run, and show nothing.
        """
        from me5lib.device import best_device
        from me5lib.model.encoder import Encoder

        if self.scale.evaluate.model != scale.UNTRAINED:
            return Encoder.load(self.scale.evaluate.model).to(best_device())
        from me5lib.data.corpus import open_corpus
        from me5lib.train.stages import vocabulary

        tokenizer = vocabulary(open_corpus(self.scale), self.scale, self.out)
        return Encoder.new(self.scale.model, tokenizer, self.seed).eval()

    def checkpoint(self, stage: str) -> Path:
        """The folder of a finished stage (`stage1`, `stage2`); raises `Me5Error` naming the command that makes it."""
        folder = self.out / stage
        if not (folder / "config.json").is_file():
            command = "pretrain" if stage == "stage1" else "finetune"
            raise Me5Error(f"no {stage} checkpoint in {folder}: "
                           f"run `me5 {command} --scale {self.scale.name} --seed {self.seed} --out {self.out}` first")
        return folder

    def _write(self, file: str, content: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / file).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf8")


def begin(name: str, scale_name: str, seed: int = 0, out: str = "", set: str = "", offline: bool = True) -> Lesson:  # noqa: A002
    """Open the lesson `name` with the notebook's parameters; an empty `out` is resolved by `me5lib.places.out`.

    `set` holds overrides separated by spaces (`"train.steps=100 train.lr=1e-3"`). With `offline` the hub libraries
    are told to stay off the network. The lesson's earlier metrics are forgotten.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    dial = scale.load(scale_name, set.split())
    lesson = Lesson(name, dial, seed, places.out(scale_name, seed, out))
    for file in ("metrics.json", "timings.json"):
        (lesson.folder / file).unlink(missing_ok=True)
    print(f"lesson {name} · scale {scale_name} · seed {seed} · {lesson.out}")
    return lesson
