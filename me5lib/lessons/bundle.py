"""One archive of what a run has made, for a class: whoever has it can start at any notebook.

    left_out = write_bundle(lesson, Path("class.zip"))      # me5 run --export class.zip
    missing = unpack(Path("class.zip"), lesson)      # me5 run --from class.zip

A zip of checkpoints (`WEIGHTS`; where the data cards of all that they were trained on allow it, data_cards/README.md),
of scores (`SCORES`: tables, experiments, rows of tables that all runs of a user share), a notice, and the SHA-256 of
every file. No text of the packs is in it, and nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from me5lib import io
from me5lib.config import RELEASED, Scale
from me5lib.data import cards
from me5lib.data.cards import Card
from me5lib.data.packs import members
from me5lib.io import PACKAGE, Me5Error, sha256
from me5lib.lessons.lesson import Lesson

LIST = "me5-run-2.json"  # raise its number with any change after which an older me5 cannot read a bundle
NOTICE = "NOTICE.md"
TEXTS = "groups.jsonl"  # of a stage 2: what it learnt from
STAGES = ("stage1", "stage2")  # what the notebooks make
WEIGHTS = (*STAGES, "start", "tokenizer", "random/stage1", "random/tokenizer")  # each folder whole, or not at all
SCORES = ("evaluation", "experiments", "cache/evaluation")
_WORD = r"[0-9A-Za-z_][\w.+=-]*"  # never out of the run's folder, or the cache's
_NAME = re.compile(rf"{NOTICE}|({'|'.join(WEIGHTS)})(/{_WORD})+|(cache/)?evaluation(/{_WORD})+\.json|"
                   rf"experiments/\w+/[\w-]+/(plan|results|arms/{_WORD})\.json", re.ASCII)
_FAULTS = (Me5Error, LookupError, TypeError, ValueError, RuntimeError, EOFError, zlib.error)  # of zip and JSON


def write_bundle(lesson: Lesson, file: Path) -> dict[str, list[Card]]:
    """Write what the notebooks left in a run to `file`; returns the checkpoints that stay out: folder → data cards.

    Raises `Me5Error` where a stage is missing, or `file` is there already.
    """
    for stage in STAGES:
        lesson.checkpoint(stage)
    if file.exists():
        raise Me5Error(f"{file} is there already: choose another name")
    made = {part: trained_on(lesson.scale, part) for part in WEIGHTS if (lesson.out / part).is_dir()}
    left_out = {part: held for part, of in made.items() if (held := [c for c in of if c.weights[0] == "undecided"])}
    parts = [*(part for part in made if part not in left_out), *SCORES]
    found = {f"{part}/{path.relative_to(_place(lesson, part)).as_posix()}": path
             for part in parts for path in sorted(_place(lesson, part).rglob("*")) if path.is_file()}
    paths = {name: path for name, path in found.items() if _NAME.fullmatch(name) and path.name != TEXTS}
    notice = _notice(made, left_out)
    sums = {name: sha256(path) for name, path in paths.items()} | {NOTICE: hashlib.sha256(notice.encode()).hexdigest()}
    about = {"run": shlex.join(lesson.options), "left out": [*left_out], "files": sums}
    part = file.with_name(f"{file.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            archive.writestr(LIST, json.dumps(about, indent=1))
            archive.writestr(NOTICE, notice)
            for name, path in paths.items():
                archive.write(path, name)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Me5Error(f"cannot write {file} ({error.strerror}): choose another place") from None
    return left_out


def unpack(file: Path, lesson: Lesson) -> list[str]:
    """Put what a bundle holds in its places, all or nothing; what is there already stays. The stages still missing.

    Raises `Me5Error` for what is no bundle, a damaged one and one of another run.
    """
    if not file.is_file():
        raise Me5Error(f"there is no file {file}: give one that `me5 run --export` made")
    out, side = lesson.out, lesson.out / ".bundle.part"
    try:
        about = json.loads(dict(members(file, LIST))[LIST])
        sums, run = dict(about["files"]), about["run"]
        whole = {f"{stage}/config.json" for stage in STAGES if stage not in about["left out"]} <= set(sums)
        if not whole or not all(map(_NAME.fullmatch, sums)):
            raise ValueError
    except (*_FAULTS, OSError):
        raise Me5Error(f"{file} is no bundle that this me5 can read: make one with `me5 run --export`") from None
    if run != shlex.join(lesson.options):
        raise Me5Error(f"{file} is of another run: add {run}")
    units = [next((part for part in WEIGHTS if name.startswith(f"{part}/")), name) for name in sums]
    try:
        for name, content in members(file, "*"):
            if name != LIST and sums.pop(name, "") != hashlib.sha256(content).hexdigest():
                raise ValueError(name)
            (side / name).parent.mkdir(parents=True, exist_ok=True)
            (side / name).write_bytes(content)
        if sums:
            raise ValueError(f"without {next(iter(sums))}")
        for unit in dict.fromkeys(units):
            if not (target := _place(lesson, unit)).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(side / unit, target)
    except _FAULTS as error:
        raise Me5Error(f"{file} is damaged ({error}): copy or make it again; nothing was unpacked") from None
    except OSError as error:
        raise Me5Error(f"cannot unpack {file} to {out} ({error.strerror}): choose another with --out") from None
    finally:
        shutil.rmtree(side, ignore_errors=True)
    return [stage for stage in STAGES if not (out / stage / "config.json").is_file()]


def _place(lesson: Lesson, name: str) -> Path:
    """Where a file or folder of a bundle lies: in the run's folder, or in the user's cache."""
    return io.cache() / name.removeprefix("cache/") if name.startswith("cache/") else lesson.out / name


def trained_on(scale: Scale, part: str) -> list[Card]:
    """The data cards of all that went into one of `WEIGHTS`."""
    names = (scale.model.backbone, *scale.data.sources, *(scale.data.labelled if part == "stage2" else ()))
    return [cards.load_card(name) for name in dict.fromkeys(names) if name in cards.card_names()]


def _notice(made: Mapping[str, Sequence[Card]], left_out: Mapping[str, Sequence[Card]]) -> str:
    """What goes along: what the weights were trained on, under which licences, and why others stay out."""
    used = {card.name: card for part, of in made.items() if part not in left_out for card in of}
    return "\n".join([
        "# An archive of me5", "", "Scores, and weights; none of the texts that these were trained on. Licences:", "",
        *(f"* {card.title}: {card.licence}; {card.homepage}" for card in used.values()), "", "Left out:", "",
        *(f"* {part}, for {card.name}: {card.weights[1]}" for part, held in left_out.items() for card in held), "",
        *((PACKAGE / "model" / "released_notice.md").read_text(encoding="utf8") for name in used if name in RELEASED),
    ])  # fmt: skip
