"""The folder of a stage: its settings, its checkpoints while it is trained, its place when it is finished.

    out/stage1.part/    unfinished work, never mixed with work of other settings
        stage.json, checkpoints/step-000100/ (a model that `SentenceTransformer` loads, AdamW's state, state.json)
    out/stage1/         the finished model, its logs and stage.json

A checkpoint is written under another name, flushed to the disk and renamed, so that a kill at any moment leaves all of
it or nothing; a manifest of SHA-256 sums names the file that went wrong afterwards. safetensors and JSON only.
Cost: three times the weights on disk; for the tiny model's 100 MB about 0.3 s, and what the disk takes to flush them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import me5lib
from me5lib import io
from me5lib.io import Me5Error, sha256
from me5lib.model.encoder import Encoder
from me5lib.model.resolve import pinned, resolve, stage_settings

KEEP = 2  # ours: the last one, and the one before in case the last is damaged
MANIFEST, STATE, OPTIMISER = "manifest.json", "state.json", "optimiser.safetensors"


def fingerprint(settings: Mapping[str, Any] | Sequence[Any]) -> str:
    """16 hex digits of everything in `settings` (JSON types; keys in any order)."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()


def conditions(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What the bits of a result depend on beside the plan: a run that is resumed under the same ones is bit-equal."""
    return {
        "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__, "transformers": version("transformers"), "me5lib": me5lib.__version__,
    }  # fmt: skip


# ---- a stage ---------------------------------------------------------------------------------------------------------


def model_identity(model: Path | str) -> str:
    """What tells a model from any other: of a stage its fingerprint, of another folder the SHA-256 of its weights, of
    the hub `id@commit`. Raises `Me5Error` for one that cannot be had."""
    ref = resolve(model)
    if ref.kind != "folder":
        return pinned(ref)
    made = stage_settings(Path(ref.name))
    return made["fingerprint"] if made else ",".join(map(sha256, sorted(Path(ref.name).rglob("*.safetensors"))))


class StageDir:
    """Where a stage is made (`<name>.part`) and where it stands when finished (`<name>`), and with which settings."""

    def __init__(self, out: Path, name: str, settings: dict[str, Any]) -> None:
        self.final, self.part, self.settings = out / name, out / f"{name}.part", settings
        self.fingerprint = fingerprint(settings)

    def finished(self, progress: bool = False) -> bool:
        """Whether the stage is there, made with these settings; says so with `progress`."""
        made = stage_settings(self.final)
        there = bool(made) and made["fingerprint"] == self.fingerprint and (self.final / "config.json").is_file()
        if there and progress:
            print(f"{self.final.name} was finished before with the same settings: not trained again")
        return there

    def open(self) -> None:
        """Make the folder to work in; raises `Me5Error` when it holds unfinished work with other settings."""
        made = stage_settings(self.part)
        if made and made["fingerprint"] != self.fingerprint:
            if latest(self.part / "checkpoints"):
                raise Me5Error(f"{self.part} is unfinished work with other settings ({self._changes(made)}): "
                               "go back to them to finish it, or delete that folder")
            shutil.rmtree(self.part)
        io.put_json(self.part / "stage.json", {"fingerprint": self.fingerprint, "settings": self.settings}, True)

    def publish(self, encoder: Encoder) -> None:
        """Put the trained encoder, its logs and settings in place in one step; an older stage is moved aside."""
        beside = self.part / "model"
        encoder.save(beside)
        for file in self.part.glob("*.json*"):
            shutil.copy2(file, beside / file.name)
        if self.final.exists():
            made = stage_settings(self.final) or {"fingerprint": "unknown", "settings": {}}
            aside = self.final.with_name(f"{self.final.name}.{made['fingerprint']}")
            print(f"{self.final} was made with other settings ({self._changes(made)}): moved to {aside.name}")
            io.replace(self.final, aside)
        beside.rename(self.final)
        shutil.rmtree(self.part, ignore_errors=True)

    def _changes(self, made: dict[str, Any]) -> str:
        """The settings that differ, as `stage.lr, stage.steps`."""
        import pandas as pd

        old, new = (pd.json_normalize(settings).to_dict("records")[0] for settings in (made["settings"], self.settings))
        return ", ".join(sorted(name for name in old | new if old.get(name) != new.get(name)))


# ---- its checkpoints -------------------------------------------------------------------------------------------------


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint before `step` lies."""
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → folder of every checkpoint under `folder`, damaged or not, the oldest first."""
    return dict(sorted((int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdecimal()))


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, step: int, plan: str,
    terms: Mapping[str, Any] | tuple[()] = (),
) -> Path:
    """Write the checkpoint before `step` (steps 0 … step − 1 are done) and forget all but the last `KEEP`.

    `model` has `save(folder)` and `load(folder)`, as `Encoder`; `plan` is the fingerprint of everything that decides
    the coming steps, `terms` are the `conditions`. The logs beside `folder` are flushed first: they must not end before
    their checkpoint. Raises `Me5Error` when it cannot be written (a full disk); nothing of it is left then, and no
    older one is touched.
    """
    final = at(folder, step)
    beside = folder / f".{final.name}.part"
    try:
        for log in sorted(folder.parent.glob("*.jsonl")):
            io.sync(log)
        folder.mkdir(parents=True, exist_ok=True)
        io.sync(folder.parent)
        for leftover in (".step-*.part", ".step-*.old", "..step-*.part.*"):  # of a killed save, and of `model.save`
            for path in folder.glob(leftover):
                io.remove(path)
        _write_files(beside, model, optimiser, {"step": step, "plan": plan, "conditions": dict(terms)})
        io.replace(beside, final)
    except Exception as error:
        with contextlib.suppress(OSError):
            io.remove(beside)
        # tokenizers says with a bare Exception that the disk refused
        if not isinstance(error, OSError | SafetensorError | Me5Error) and "(os error " not in str(error):
            raise
        raise Me5Error(f"no checkpoint of step {step} could be written to {folder} ({' '.join(str(error).split())}): "
                       "the one before is kept; free some space, then run the same command to go on") from None
    _forget(folder, step)
    return final


def _write_files(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """All files of a checkpoint, flushed to the disk; the manifest comes last."""
    io.write(folder, model.save)
    tensors = {  # flat, named `<parameter index>.<name>` (`3.exp_avg`)
        f"{index}.{name}": value.detach().contiguous() if value.dim() else value.detach().reshape(1)
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }
    io.write(folder / OPTIMISER, lambda path: save_file(tensors, path))
    io.write(folder / STATE, lambda path: io.write_json(path, state))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    io.write(folder / MANIFEST, lambda path: io.write_json(path, {"files": sums, "sum": _sum_of(sums)}))
    for path in (*sorted(folder.rglob("*")), folder):
        io.sync(path)


def _forget(folder: Path, step: int) -> None:
    """Remove all checkpoints but the last `KEEP` up to `step`. Later ones were damaged, or `step` would not come again.

    Each is renamed first: a kill leaves no torn folder under a checkpoint's name.
    """
    known = checkpoints(folder)
    for number in known.keys() - set([number for number in known if number <= step][-KEEP:]):
        old = folder / f".{known[number].name}.old"
        with contextlib.suppress(OSError):  # tidied up by the next save
            io.rename(known[number], old)
            io.remove(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that is whole, or None; a damaged one is passed over with a line."""
    for path in reversed(checkpoints(folder).values()):
        wrong = damage(path)
        if not wrong:
            return path
        print(f"checkpoint {path} is damaged ({wrong}): taking the one before it")
    return None


def load_checkpoint(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, plan: str) -> None:
    """Put the checkpoint `path` into `model` and `optimiser`, whose learning rates stay.

    Raises `Me5Error` when the checkpoint belongs to another plan: going on would mix two runs.
    """
    if (other := read_state(path)["plan"]) != plan:
        raise Me5Error(f"{path} belongs to another plan ({other}, now {plan}): "
                       f"go back to its settings or delete {path.parent}")
    model.load_state_dict(type(model).load(path).state_dict())
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / OPTIMISER).items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value.reshape(()) if name == "step" else value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `step`, `plan` and `conditions`."""
    return io.read_json(path / STATE)


def changed(path: Path, now: Mapping[str, Any]) -> list[str]:
    """The conditions that are others `now` than when `path` was written, as `threads 2 → 1`."""
    then = read_state(path)["conditions"]
    return [f"{name} {then[name]} → {now[name]}" for name in now if name in then and then[name] != now[name]]


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, naming the file; "" when nothing is. Files that were added do not matter."""
    file = MANIFEST
    try:
        manifest = io.read_json(path / MANIFEST)
        if manifest["sum"] != _sum_of(manifest["files"]):
            return f"{MANIFEST} does not have its sum"
        for file, expected in manifest["files"].items():
            if sha256(path / file) != expected:
                return f"{file} does not have its sum"
    except FileNotFoundError:
        return f"{file} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{file} cannot be read"
    return ""


def _sum_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode("utf8")).hexdigest()
