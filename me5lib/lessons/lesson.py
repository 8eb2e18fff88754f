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
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from me5lib import config, io
from me5lib.io import STAGES, Me5Error

if TYPE_CHECKING:
    from me5lib.model.encoder import Encoder

# A red bar at the bottom, until its cell is run again; not where a notebook that is opened later runs its scripts.
BAR = """if (Date.now() / 1000 - %d < 60) {
  const bar = document.body.appendChild(document.createElement("div"));
  Object.assign(bar, {className: "me5-failed", textContent: %s});
  bar.style = "position: fixed; bottom: 0; left: 0; right: 0; z-index: 1000; padding: 0.6em 1em; background: #b00020;" +
    "color: white; font: 14px/1.4 system-ui, sans-serif; overflow-wrap: anywhere; cursor: pointer";
  bar.onclick = () => { bar.remove(); element.scrollIntoView({block: "center"}); };
  const watch = setInterval(() => element.isConnected || clearInterval(watch, bar.remove()), 500);
}"""
LATE = 3.0  # seconds between two cells of Run All that JupyterLab goes on to send after a failure (ours)
_FAILED: list[float] = []  # when a cell failed, or the last one after it came


class Missed(Me5Error):
    """A number that the text of a notebook relies on fell outside its range."""


@dataclass
class Lesson:
    """One notebook at work: where it writes, at which scale, and what it has measured so far."""

    name: str
    scale: config.Scale
    seed: int
    out: Path
    metrics: dict[str, float | str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """This notebook's own folder under the run's: `<out>/lessons/<name>`."""
        return self.out / "lessons" / self.name

    @property
    def options(self) -> list[str]:
        """The options that tell a run from others: its scale, its seed and the settings that differ from the preset."""
        by_hand = [word for override in config.overrides(self.scale) for word in ("--set", override)]
        return ["--scale", self.scale.name, "--seed", str(self.seed), *by_hand]

    @property
    def from_random(self) -> tuple[config.Scale, Path]:
        """The scale that starts from random weights, with what was set by hand, and its run's folder: this lesson's
        own, if it does so itself."""
        if self.scale.model.backbone == "random":
            return self.scale, self.out
        return config.load("random", config.overrides(self.scale)), self.out / "random"

    def expect(self, value: float, name: str, **ranges: tuple[float, float]) -> float:
        """Record `value` as `name` and hold it to this scale's range (`tiny=(low, high)`), ends included.

        Raises `Missed` outside the range or for NaN. A scale without a range is recorded and said to be unheld; so is
        a value outside its range where settings differ from the preset, whose range it is.
        """
        value = self.record(name, value)
        if self.scale.name not in ranges:
            print(f"{name} = {value:.4g} (no range is held at scale {self.scale.name})")
            return value
        low, high = ranges[self.scale.name]
        if low <= value <= high:
            print(f"{name} = {value:.4g}  ✓ within {low:g} … {high:g}")
        elif by_hand := config.overrides(self.scale):
            print(f"{name} = {value:.4g}, outside {low:g} … {high:g}, which holds without {' '.join(by_hand)}")
        else:
            raise Missed(f"{name} = {value:.4g}, expected between {low:g} and {high:g} at scale {self.scale.name}")
        return value

    def record(self, name: str, value: float | str) -> float | str:
        """Write `value` under `name` into this notebook's metrics.json; floats keep 6 significant digits."""
        value = value if isinstance(value, str) else float(value)
        number = not isinstance(value, str) and math.isfinite(value)
        self.metrics[name] = float(f"{value:.6g}") if number else str(value)
        io.put_json(self.folder / "metrics.json", self.metrics, sort_keys=True)
        return value

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the seconds of a block into timings.json (kept apart from results), and show them as they pass."""
        from IPython.display import DisplayHandle

        start, shown = time.perf_counter(), DisplayHandle()

        def redraw() -> None:
            shown.update({"text/plain": f"{name}: {time.perf_counter() - start:.1f} s"}, raw=True)

        shown.display({"text/plain": f"{name} …"}, raw=True)  # above whatever the block prints
        with io.ticking(redraw):
            yield
        redraw()
        self.timings[name] = round(time.perf_counter() - start, 3)
        io.put_json(self.folder / "timings.json", self.timings, sort_keys=True)

    def encoder(self) -> Encoder:
        """The real model that this scale's lessons look at (`evaluate.model`), fp32, on the CPU or the GPU there is.

        At smoke, which downloads nothing, random weights of the scale's shape: the same cells run, and show nothing.
        """
        from me5lib.data.corpus import open_corpus
        from me5lib.device import best_device
        from me5lib.model.encoder import Encoder
        from me5lib.train.stages import initial_encoder

        if self.scale.evaluate.model != config.UNTRAINED:
            with self.timed("load the model"):
                return Encoder.load(self.scale.evaluate.model).to(best_device())
        return initial_encoder(self.scale, self.seed, self.out, open_corpus(self.scale)).eval()

    def checkpoint(self, stage: str) -> Path:
        """The folder of a finished stage, one of `STAGES`; raises `Me5Error` naming the commands that make it."""
        missing = [each for each in dict.fromkeys(["stage1", stage] if stage == "stage2" else [stage])
                   if not (self.out / each / "config.json").is_file()]
        if stage in missing:
            commands = " and ".join(f"`{shlex.join(['me5', *STAGES[each].split(), *self.options])} --out "
                                    f"{shlex.quote(str(self.out))}`" for each in missing)
            raise Me5Error(f"no {stage} checkpoint in {self.out / stage}: run {commands} first, or me5 run with "
                           "--from and the file of a class")
        return self.out / stage


def show_failures() -> None:
    """In JupyterLab, whose *Run All* scrolls to the end of a notebook, say in view which cell fails first."""
    from IPython import get_ipython

    _FAILED.clear()
    if "JPY_SESSION_NAME" in os.environ and (shell := get_ipython()):
        shell.events.register("post_run_cell", _draw_bar)
        if _skip_late not in shell.input_transformers_cleanup:
            shell.input_transformers_cleanup.append(_skip_late)


def _draw_bar(result: Any) -> None:
    from IPython.display import Javascript, display

    error = result.error_before_exec or result.error_in_exec
    if isinstance(error, Exception) and not _FAILED:  # an interrupt is none; what fails later fails for the first
        _FAILED.append(time.monotonic())
        kind = "" if isinstance(error, Me5Error) else f"{type(error).__name__}: "
        line = " ".join(f"Stopped at cell [{result.execution_count}]. {kind}{error}".split())[:600]
        display(Javascript(BAR % (time.time(), json.dumps(f"{line} (Click: to the cell.)"))))


def _skip_late(lines: list[str]) -> list[str]:
    if not _FAILED or time.monotonic() - _FAILED[0] > LATE:
        return lines
    _FAILED[0] = time.monotonic()
    return []


def begin(name: str, scale_name: str, seed: int = 0, out: str = "", set: str = "", offline: bool = True,  # noqa: A002
          runs: str = "") -> Lesson:
    """Open the lesson `name` with the notebook's parameters; an empty `out` is resolved by `me5lib.io.out`.

    `set` holds overrides separated by spaces (`"train.steps=100 train.lr=1e-3"`), quoted as in a shell where a value
    has some. With `offline` the hub libraries are told to stay off the network. `runs`: a folder of `me5 evaluate`.
    The lesson's earlier metrics are forgotten. Raises `Me5Error` for a parameter that cannot be, and for a checkpoint
    that the notebook needs and that is not there, at once.
    """
    show_failures()
    for parameter, value in {"SCALE": scale_name, "OUT": out, "SET": set, "RUNS": runs, "OFFLINE": offline}.items():
        if type(value) is not (bool if parameter == "OFFLINE" else str):
            kind = "True or False" if parameter == "OFFLINE" else "a text in quotes"
            raise Me5Error(f"{parameter} is {kind}, not {value!r}")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        scale = config.load(scale_name, shlex.split(set))
    except ValueError as error:
        raise Me5Error(f"SET cannot be read ({error}): overrides, as train.steps=100, with spaces between") from None
    lesson = Lesson(name, scale, io.valid_seed(seed), io.out(scale_name, seed, out))
    for path in io.asset("notebooks").glob(f"{name}_*.ipynb"):
        for stage in reversed(io.read_json(path)["metadata"]["me5"]["needs"]):  # of the last one all commands are told
            lesson.checkpoint(stage)
    if runs:
        from me5lib.evaluate.runs import measured_values

        measured_values(Path(runs))
    for file in ("metrics.json", "timings.json"):
        (lesson.folder / file).unlink(missing_ok=True)
    print(f"lesson {name} · scale {scale_name} · seed {seed} · {lesson.out}")
    return lesson
