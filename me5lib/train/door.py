"""Where a stage of training is made and where it stands when finished: found again, gone on with, moved aside.

A finished stage has a `stage.json` that says with which settings it was made. Unfinished work lies beside it, under
`<name>.part`, and is never mixed with work of other settings.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from me5lib import io
from me5lib.io import Me5Error
from me5lib.train import checkpoint

if TYPE_CHECKING:
    from me5lib.model.encoder import Encoder


def identity(folder: Path) -> str:
    """The fingerprint of a finished stage, or the hash of its weights if it was not made here."""
    made = io.read_json(folder / "stage.json", None)
    return made["fingerprint"] if made else checkpoint.sha256(folder / "model.safetensors")


class Door:
    """Where a stage is made (`<name>.part`) and where it stands when finished (`<name>`), and with which settings."""

    def __init__(self, out: Path, name: str, settings: dict[str, Any]) -> None:
        self.final, self.part, self.settings = out / name, out / f"{name}.part", settings
        self.fingerprint = checkpoint.fingerprint(settings)

    def finished(self, progress: bool = False) -> bool:
        """Whether the stage is there, made with these settings; says so with `progress`."""
        made = io.read_json(self.final / "stage.json", None)
        found = bool(made) and made["fingerprint"] == self.fingerprint and (self.final / "config.json").is_file()
        if found and progress:
            print(f"{self.final.name} was finished before with the same settings: not trained again")
        return found

    def open(self) -> Path:
        """The folder to work in; raises `Me5Error` when it holds unfinished work with other settings."""
        made = io.read_json(self.part / "stage.json", None)
        if made and made["fingerprint"] != self.fingerprint:
            if checkpoint.latest(self.part / "checkpoints"):
                changed = ", ".join(_changes(made["settings"], self.settings))
                raise Me5Error(f"{self.part} is unfinished work with other settings ({changed}): "
                               "go back to them to finish it, or delete that folder")
            shutil.rmtree(self.part)
        self.part.mkdir(parents=True, exist_ok=True)
        io.write_json(self.part / "stage.json", {"fingerprint": self.fingerprint, "settings": self.settings})
        return self.part

    def publish(self, encoder: Encoder) -> Path:
        """Put the trained encoder, its logs and settings in place in one step; an older stage is moved aside."""
        beside = self.part / "model"
        encoder.save(beside)
        for file in self.part.glob("*.json*"):
            shutil.copy2(file, beside / file.name)
        if self.final.exists():
            self._move_aside()
        beside.rename(self.final)
        shutil.rmtree(self.part, ignore_errors=True)
        return self.final

    def _move_aside(self) -> None:
        made = io.read_json(self.final / "stage.json", None) or {"fingerprint": "unknown", "settings": {}}
        aside = self.final.with_name(f"{self.final.name}.{made['fingerprint']}")
        print(f"{self.final} was made with other settings ({', '.join(_changes(made['settings'], self.settings))}): "
              f"moved to {aside.name}")
        io.replace(self.final, aside)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The dials that differ, as `stage.steps`."""
    old, new = _flat(before), _flat(now)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        found |= {f"{key}.{dial}": x for dial, x in value.items()} if isinstance(value, dict) else {key: value}
    return found
