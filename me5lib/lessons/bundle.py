"""One archive of a run's checkpoints for a class: whoever has it can start at any notebook.

    write_bundle(lesson, Path("class.zip"))      # me5 run --export class.zip
    unpack(Path("class.zip"), lesson)      # me5 run --from class.zip

A zip of the folders `STAGES`, and a list of the SHA-256 of every file. Nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import zipfile
import zlib
from pathlib import Path

from me5lib.data.packs import members
from me5lib.io import Me5Error, sha256
from me5lib.lessons.lesson import Lesson

LIST = "me5-run-1.json"  # raise its number with any change after which an older me5 cannot read a bundle
STAGES = ("stage1", "stage2")  # what the notebooks make
_NAME = re.compile(rf"({'|'.join(STAGES)})(/[0-9A-Za-z_][\w.-]*)+", re.ASCII)  # never out of the run's folder
_FAULTS = (Me5Error, LookupError, TypeError, ValueError, RuntimeError, EOFError, zlib.error)  # of zip and JSON


def write_bundle(lesson: Lesson, file: Path) -> None:
    """Write the checkpoints of a run to `file`. Raises `Me5Error` where one is missing, or `file` is there already."""
    found = {path.relative_to(lesson.out).as_posix(): path
             for stage in STAGES for path in sorted(lesson.checkpoint(stage).rglob("*")) if path.is_file()}
    paths = {name: path for name, path in found.items() if _NAME.fullmatch(name)}  # others are of a file browser
    if file.exists():
        raise Me5Error(f"{file} is there already: choose another name")
    about = {"run": shlex.join(lesson.options), "files": {name: sha256(path) for name, path in paths.items()}}
    part = file.with_name(f"{file.name}.part")
    try:
        with zipfile.ZipFile(part, "w", strict_timestamps=False) as archive:
            archive.writestr(LIST, json.dumps(about, indent=1))
            for name, path in paths.items():
                archive.write(path, name)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Me5Error(f"cannot write {file} ({error.strerror}): choose another place") from None


def unpack(file: Path, lesson: Lesson) -> None:
    """Put the checkpoints of a bundle into the run's folder, all or none; those that are there already, equal, stay.

    Raises `Me5Error` for what is no bundle, a damaged one, one of another run, and another checkpoint in its place.
    """
    if not file.is_file():
        raise Me5Error(f"there is no file {file}: give one that `me5 run --export` made")
    out, side = lesson.out, lesson.out / ".bundle.part"
    try:
        about = json.loads(dict(members(file, LIST))[LIST])
        sums, run = dict(about["files"]), about["run"]
        if not {f"{stage}/config.json" for stage in STAGES} <= set(sums) or not all(map(_NAME.fullmatch, sums)):
            raise ValueError
    except (*_FAULTS, OSError):
        raise Me5Error(f"{file} is no bundle that this me5 can read: make one with `me5 run --export`") from None
    if run != shlex.join(lesson.options):
        raise Me5Error(f"{file} is of another run: add {run}")
    missing = [stage for stage in STAGES if not (out / stage).exists()]
    for name, expected in sums.items():
        if name.partition("/")[0] not in missing and not ((out / name).is_file() and sha256(out / name) == expected):
            raise Me5Error(f"{out / name} is not that of {file}: move its folder away, or choose another with --out")
    try:
        for name, content in members(file, "*/*"):
            if sums.pop(name, "") != hashlib.sha256(content).hexdigest():
                raise ValueError(name)
            (side / name).parent.mkdir(parents=True, exist_ok=True)
            (side / name).write_bytes(content)
        if sums:
            raise ValueError(f"without {next(iter(sums))}")
        for stage in missing:
            (side / stage).rename(out / stage)
    except _FAULTS as error:
        raise Me5Error(f"{file} is damaged ({error}): copy or make it again; nothing was unpacked") from None
    except OSError as error:
        raise Me5Error(f"cannot unpack {file} to {out} ({error.strerror}): choose another with --out") from None
    finally:
        shutil.rmtree(side, ignore_errors=True)
