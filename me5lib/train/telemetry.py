"""What a run of training writes down, and what it shows while it runs.

    log.jsonl       results: a row a step (step, loss, grad_norm, lr, source), and a row an evaluation
    timings.jsonl   how long it took: seconds, waited, tokens_per_s, padding, mfu
    run.json        under which conditions it was started, each time: device, threads, versions, precision and why

Results and timings are kept apart: two runs with one seed leave the same `log.jsonl`, to the bit.

On the screen: a bar. Nothing leaves the machine.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from me5lib import io

# Dense 16-bit matrix products with fp32 sums, FLOP/s, from the makers' data sheets; the first name that fits counts.
PEAK = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "A40": 150e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "V100": 125e12,
    "T4": 65e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


class History(NamedTuple):
    """What a stage logged: one dict a step (step, loss, grad_norm, lr, source), one an evaluation (step, …)."""

    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


def read(folder: Path) -> History:
    """The history that a stage left in `folder`."""
    rows = _lines(folder / "log.jsonl")
    return History([r for r in rows if "loss" in r], [r["evaluate"] for r in rows if "evaluate" in r])


class Log:
    """log.jsonl and timings.jsonl of a stage; rows after the step that is resumed from are forgotten.

    Without a folder nothing is written: for a run that is not kept, and for all ranks but one.
    """

    def __init__(self, folder: Path | None, start: int) -> None:
        self.folder, self.history = folder, History([], [])
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("log.jsonl", "timings.jsonl"):
            kept = [row for row in _lines(folder / file) if _before(row, start)]
            io.put_text(folder / file, "".join(json.dumps(row) + "\n" for row in kept))
        self.history = read(folder)

    def start(self, row: dict[str, Any]) -> None:
        """Note in run.json under which conditions a run begins, or goes on."""
        if self.folder is not None:
            path = self.folder / "run.json"
            past = io.read_json(path, {"starts": []})["starts"]
            io.put_json(path, {"starts": [*past, row]})

    def step(self, row: dict[str, Any], timing: dict[str, Any]) -> None:
        """Note a step: its results and its timing."""
        self.history.steps.append(row)
        self._append("log.jsonl", row)
        self._append("timings.jsonl", {"step": row["step"], **timing})

    def evaluation(self, row: dict[str, Any]) -> None:
        """Note an evaluation."""
        self.history.evaluations.append(row)
        self._append("log.jsonl", {"evaluate": row})

    def sync(self) -> None:
        """Have the disk keep the rows so far: a checkpoint must not outlive what led to it."""
        for file in ("log.jsonl", "timings.jsonl"):
            if self.folder is not None and (self.folder / file).is_file():
                io.sync(self.folder / file)

    def _append(self, file: str, row: dict[str, Any]) -> None:
        if self.folder is None:
            return
        try:
            with (self.folder / file).open("a", encoding="utf8") as out:
                out.write(json.dumps(row) + "\n")
        except OSError as error:
            raise io.unwritten(self.folder / file, error) from None


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device's data sheet promises in 16 bits, or None where it is not known here."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in PEAK.items() if part in name), None)


def worked_on(model: torch.nn.Module) -> int:
    """Weights that every token is multiplied by: all but the tables that it is looked up in."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


class Speed(NamedTuple):
    """Turns tokens and seconds into the row of timings.jsonl."""

    weights: int  # as in `worked_on`
    peak: float | None  # of one device
    processes: int

    def timing(self, seconds: float, waited: float, tokens: float, padding: float | None) -> dict[str, Any]:
        """A step that took `seconds`, after `waited` more for its texts; `tokens` in the mean of all processes.

        mfu, model FLOP utilisation: 6 · weights · tokens, which forward and backward need at least (attention's own
        products, under a tenth at these lengths, and GradCache's second forward are not counted as useful), of what the
        devices could have done in that time.
        """
        row: dict[str, Any] = {"seconds": round(seconds, 4), "waited": round(waited, 4)}
        if tokens:
            rate = tokens / max(seconds + waited, 1e-9)
            row["tokens_per_s"] = round(rate * self.processes)
            row["mfu"] = round(6 * self.weights * rate / self.peak, 4) if self.peak else None
        return row if padding is None else {**row, "padding": round(padding, 4)}


class Live:
    """The bar on the screen."""

    def __init__(self, name: str, start: int, steps: int, shown: bool) -> None:
        self.looked: dict[str, str] = {}
        self.bar = tqdm(
            total=steps, initial=start, desc=name, disable=not shown, file=sys.stdout, mininterval=2, unit="step"
        )

    def step(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Show a step."""
        shown = {"loss": f"{row['loss']:.3f}", "norm": f"{row['grad_norm']:.2f}"}
        if timing.get("tokens_per_s"):
            shown["tok/s"] = f"{timing['tokens_per_s']:,}"
        if timing.get("mfu"):
            shown["mfu"] = f"{timing['mfu']:.0%}"
        self.bar.set_postfix({**shown, **self.looked}, refresh=False)
        self.bar.update()

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Show an evaluation: its first number beside the bar."""
        first = next((name for name in row if name != "step" and isinstance(row[name], float)), None)
        if first:
            self.looked = {first: f"{row[first]:.3f}"}

    def close(self) -> None:
        """End the bar's line."""
        self.bar.close()


def _before(row: dict[str, Any], start: int) -> bool:
    """Whether a row was written before the checkpoint of `start` (an evaluation after `start` steps was)."""
    return row["evaluate"]["step"] <= start if "evaluate" in row else row["step"] < start


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; one that a kill cut short is dropped."""
    rows = []
    for line in path.read_text(encoding="utf8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.append(row)
    return rows


def as_json(value: float) -> float | str:
    """A number that JSON has, or the name of one that it has not."""
    return value if math.isfinite(value) else str(value)
