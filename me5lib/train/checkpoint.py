"""Checkpoints of a running stage: whole or absent, safetensors and JSON only, and never continued by another plan.

A checkpoint is a folder `step-000100` that loads like any finished model (`SentenceTransformer(path)`), with the
optimiser's state and the step beside the weights. It is written under another name and renamed into place, so a kill
leaves either all of it or nothing; a manifest of SHA-256 sums finds what went wrong afterwards. No pickle anywhere.

Cost: three times the weights on disk; about 0.3 s for the tiny model's 100 MB.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from me5lib.places import Me5Error, sha256

KEEP = 2  # ours: the last one, and the one before in case the last is damaged


class Saved(Protocol):
    """What a model must offer to be checkpointed: `Encoder` does."""

    def save(self, folder: Path) -> None: ...  # noqa: D102

    @classmethod
    def load(cls, folder: Path) -> torch.nn.Module: ...  # noqa: D102


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits of everything in `settings` (JSON types; keys in any order)."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()


def save(folder: Path, model: Saved, optimiser: torch.optim.Optimizer, step: int, plan: str, keep: int = KEEP) -> Path:
    """Write the checkpoint before `step` (steps 0 … step − 1 are done) and forget all but the last `keep`.

    `plan` is the fingerprint of everything that decides the coming steps. Raises `Me5Error` when the disk is full.
    """
    final = folder / f"step-{step:06d}"
    beside = folder / f".step-{step:06d}.part"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save(beside)
        save_file(optimiser_tensors(optimiser), beside / "optimiser.safetensors")
        _write_json(beside / "state.json", {"step": step, "plan": plan})
        _write_json(beside / "manifest.json", _sums(beside))
        replace(beside, final)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise _disk(error, folder) from None
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that is whole, or None; a damaged one is passed over with a line."""
    for path in reversed(_folders(folder)):
        if whole(path):
            return path
        print(f"checkpoint {path} is damaged: taking the one before it")
    return None


def load(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, plan: str) -> int:
    """Put the checkpoint `path` into `model` and `optimiser` and return the step to go on with.

    Raises `Me5Error` when the checkpoint belongs to another plan: going on would mix two runs.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf8"))
    if state["plan"] != plan:
        raise Me5Error(f"{path} belongs to another plan ({state['plan']}, now {plan}): "
                       f"go back to its settings or delete {path.parent}")
    model.load_state_dict(type(model).load(path).state_dict())
    restore_optimiser(optimiser, load_file(path / "optimiser.safetensors"))
    return state["step"]


def whole(path: Path) -> bool:
    """Whether every file of the manifest is there with its sum."""
    try:
        return json.loads((path / "manifest.json").read_text(encoding="utf8")) == _sums(path)
    except (OSError, ValueError):
        return False


def replace(beside: Path, final: Path) -> None:
    """Rename the folder `beside` to `final`; one that is already there makes way."""
    if final.exists():
        shutil.rmtree(final)
    beside.rename(final)


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


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf8")


def _disk(error: OSError, folder: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        return Me5Error(f"no space left for a checkpoint in {folder}: free some, then run the same command to go on")
    return error
