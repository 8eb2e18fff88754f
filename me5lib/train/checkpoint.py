"""Checkpoints of a running stage: whole or absent, safetensors and JSON only, and never continued by another plan.

A checkpoint is a folder `step-000100` that loads like any finished model (`SentenceTransformer(path)`), with the
optimiser's state and `state.json` beside the weights. It is written under another name, flushed to the disk and renamed
into place, so a kill at any moment leaves either all of it or nothing; a manifest of SHA-256 sums names the file that
went wrong afterwards. No pickle anywhere.

Cost: three times the weights on disk; for the tiny model's 100 MB about 0.3 s, and what the disk takes to flush them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import me5lib
from me5lib import io
from me5lib.io import Me5Error, sha256

KEEP = 2  # ours: the last one, and the one before in case the last is damaged
MANIFEST, STATE, OPTIMISER = "manifest.json", "state.json", "optimiser.safetensors"


class Saved(Protocol):
    """What a model must offer to be checkpointed: `Encoder` does."""

    def save(self, folder: Path) -> None: ...  # noqa: D102

    @classmethod
    def load(cls, folder: Path) -> torch.nn.Module: ...  # noqa: D102


def fingerprint(settings: Mapping[str, Any] | Sequence[Any]) -> str:
    """16 hex digits of everything in `settings` (JSON types; keys in any order)."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()


def conditions(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What the bits of a result depend on beside the plan: a run that is resumed under the same ones is bit-equal."""
    cuda = device.type == "cuda"
    return {
        "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "processes": processes,
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "torch": torch.__version__, "transformers": version("transformers"), "me5lib": me5lib.__version__,
    }  # fmt: skip


def save(
    folder: Path, model: Saved, optimiser: torch.optim.Optimizer, step: int, plan: str,
    terms: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint before `step` (steps 0 … step − 1 are done) and forget all but the last `KEEP`.

    `plan` is the fingerprint of everything that decides the coming steps, `terms` are the `conditions`.
    Raises `Me5Error` when it cannot be written (a full disk); nothing of it is left then, and no older one is touched.
    """
    final = at(folder, step)
    beside = folder / f".{final.name}.part"
    state = {"step": step, "plan": plan, "conditions": dict(terms or {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        io.sync(folder.parent)
        _tidy(folder)
        io.write(beside, model.save)
        io.write(beside / OPTIMISER, lambda path: save_file(optimiser_tensors(optimiser), path))
        io.write(beside / STATE, lambda path: io.write_json(path, state))
        io.write(beside / MANIFEST, lambda path: io.write_json(path, _manifest(beside)))
        for path in (*sorted(beside.rglob("*")), beside):
            io.sync(path)
        io.replace(beside, final)
    except Exception as error:
        with contextlib.suppress(OSError):
            io.remove(beside)
        if not _refused(error):
            raise
        reason = " ".join(str(error).split())
        raise Me5Error(f"no checkpoint of step {step} could be written to {folder} ({reason}): the one before is kept; "
                       "free some space, then run the same command to go on") from None
    _forget(folder, step)
    return final


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint before `step` lies."""
    return folder / f"step-{step:06d}"


def latest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that is whole, or None; a damaged one is passed over with a line."""
    for path in reversed(_folders(folder)):
        wrong = damage(path)
        if not wrong:
            return path
        print(f"checkpoint {path} is damaged ({wrong}): taking the one before it")
    return None


def load(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, plan: str) -> int:
    """Put the checkpoint `path` into `model` and `optimiser` and return the step to go on with.

    Raises `Me5Error` when the checkpoint belongs to another plan: going on would mix two runs.
    """
    known = state(path)
    if known["plan"] != plan:
        raise Me5Error(f"{path} belongs to another plan ({known['plan']}, now {plan}): "
                       f"go back to its settings or delete {path.parent}")
    model.load_state_dict(type(model).load(path).state_dict())
    restore_optimiser(optimiser, load_file(path / OPTIMISER))
    return known["step"]


def state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `step`, `plan` and `conditions`."""
    return io.read_json(path / STATE)


def changed(path: Path, now: Mapping[str, Any]) -> list[str]:
    """The conditions that are others `now` than when `path` was written, as `threads 2 → 1`."""
    then = state(path)["conditions"]
    return [f"{name} {then[name]} → {now[name]}" for name in now if name in then and then[name] != now[name]]


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, naming the file; "" when nothing is. Files that were added do not matter."""
    try:
        manifest = io.read_json(path / MANIFEST)
        files = manifest["files"]
        if manifest["sum"] != _sum_of(files):
            return f"{MANIFEST} does not have its sum"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    for file, expected in files.items():
        try:
            if sha256(path / file) != expected:
                return f"{file} does not have its sum"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
    return ""


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat tensors, named `<parameter index>.<name>` (`3.exp_avg`)."""
    return {
        f"{index}.{name}": value.detach().contiguous() if value.dim() else value.detach().reshape(1)
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `optimiser_tensors` gave; learning rates stay the optimiser's own."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value.reshape(()) if name == "step" else value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _refused(error: Exception) -> bool:
    """Whether the disk refused; the tokenizers library says so with a bare Exception."""
    return isinstance(error, OSError | SafetensorError | Me5Error) or "(os error " in str(error)


def _tidy(folder: Path) -> None:
    """Remove what a killed save has left, and what the model's own was writing (`..step-000100.part.5f3c`)."""
    for left in (".step-*.part", ".step-*.old", "..step-*.part.*"):
        for path in folder.glob(left):
            io.remove(path)


def _forget(folder: Path, step: int) -> None:
    """Remove all checkpoints but the last `KEEP` up to `step`. Later ones were damaged, or `step` would not come again.

    Each is renamed first: a kill leaves no torn folder under a checkpoint's name.
    """
    known = _folders(folder)
    kept = [path for path in known if _step(path) <= step][-KEEP:]
    for path in known:
        if path in kept:
            continue
        old = path.with_name(f".{path.name}.old")
        with contextlib.suppress(OSError):  # tidied up by the next save
            io.rename(path, old)
            io.remove(old)


def _folders(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal())
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name[5:])


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    return {"files": sums, "sum": _sum_of(sums)}


def _sum_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode("utf8")).hexdigest()
