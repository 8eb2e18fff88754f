"""What stage 2 learns from: every labelled example with its hard negatives and, if the teacher earns it, its scores.

    labelled examples ──► `drawing`: tidy, plan ──► `picking`: negatives ──► `teaching`: scores ──► groups

The result is written to `groups.jsonl`, so that a stage which is gone on with learns from the very same groups, and
what was dropped, filled in or repeated to `report.json`. Interrupted before that, mining, the trained teacher and
the blocks that it has scored are kept.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from me5lib import io
from me5lib.config import Stage
from me5lib.io import Me5Error, give_back
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train import teaching
from me5lib.train.distributed import Team
from me5lib.train.finetune_plan import Plan, turned
from me5lib.train.mining import MiningReport
from me5lib.train.negatives import Prefixes, over_passes

GROUPS, MINED, REPORT = "groups.jsonl", "mined.json", "report.json"


class Made(NamedTuple):
    """The groups of a stage: position → example with the negatives of all its passes, and scores of its first positive
    and of each of them."""

    rows: dict[int, Labelled]
    taught: bool  # whether the teacher's scores are there and used

    def group(self, place: int, turn: int, n: int) -> Labelled:
        """The example at a position with the `n` negatives of its pass `turn`."""
        row = self.rows[place]
        return turned(row if self.taught else row._replace(teacher_scores=None), n, turn)


def make(
    encoder: Encoder, rows: Sequence[Labelled], plan: Plan, stage: Stage, folder: Path, *, kind: str, mines: bool,
    with_teacher: bool, dev: Sequence[Labelled], prefixes: Prefixes, seed: int, progress: bool = True,
    faults: Mapping[str, int] | None = None, team: Team | None = None,
) -> Made:
    """The groups that `plan` will use, made once and kept in `folder`/groups.jsonl; a report beside them.

    `encoder` is the start model: it mines (unless `mines` is False: random weights find nothing) and a teacher that is
    trained here starts from a copy of it. `kind` is one of `picking.KINDS`, `faults` what `drawing.tidy` counted, for
    the report. Every rank of a `team` calls this: rank 0 mines, all of them score, rank 0 writes.
    """
    team = team or Team.alone()

    def mine() -> bool:
        """Whether it had been made before; else there are mined groups now."""
        if (folder / REPORT).is_file():
            return True
        if not (folder / MINED).is_file():
            made, found = _mined(encoder if mines else None, rows, plan, stage, kind, prefixes, seed)
            _write(folder, made, MINED, {**found, "input": dict(faults or {}), "teacher": None})
            give_back()
        return False

    if not team.any(bool(team.by_main(mine))):
        _teach(encoder, plan, stage, folder, dev if with_teacher else None, prefixes, seed, progress, team)
        give_back()  # the teacher and its optimiser: the stage that follows wants as much
    return _read(folder)


def _teach(
    encoder: Encoder, plan: Plan, stage: Stage, folder: Path, dev: Sequence[Labelled] | None, prefixes: Prefixes,
    seed: int, progress: bool, team: Team,
) -> None:
    """Have the mined groups scored, by all ranks (`dev` None: by nobody), and write them with the whole report."""
    made, found = _read(folder).rows, io.read_json(folder / MINED)
    if progress:
        _say(found)
    if dev is not None:
        made, found["teacher"] = teaching.taught(encoder, made, plan, stage, folder, dev, prefixes, seed, progress,
                                                 team)  # fmt: skip

    def write() -> None:
        """The groups, and that they are whole."""
        _write(folder, made, REPORT, found)
        (folder / MINED).unlink()

    team.by_main(write)


def _mined(
    encoder: Encoder | None, rows: Sequence[Labelled], plan: Plan, stage: Stage, kind: str, prefixes: Prefixes,
    seed: int,
) -> tuple[dict[int, Labelled], dict[str, Any]]:
    """Position → example with its negatives, and what was mined and filled in."""
    passes = plan.passes()
    chosen, report, filling = over_passes(
        [rows[i] for i in passes], kind, encoder, stage, prefixes, seed, list(passes.values())
    )
    made = dict(zip(passes, chosen, strict=True))
    asked = sum(passes.values()) * stage.hard_negatives
    counts = {"asked for": asked, "there": sum(len(row.negatives) for row in chosen), **filling}
    return made, {"negatives": kind, "mining": _plain(report), "filling": counts}


def _say(found: Mapping[str, Any]) -> None:
    """What was wrong with the examples and what was filled in, if anything was."""
    if found["input"]:
        print("labelled examples: " + ", ".join(f"{n:,} {fault}" for fault, n in found["input"].items()))
    counts = {name: n for name, n in found["filling"].items() if name not in ("asked for", "there")}
    if counts:
        print("negatives: " + ", ".join(f"{n:,} {what}" for what, n in counts.items())
              + f" (of {found['filling']['there']:,})")  # fmt: skip


def _plain(report: MiningReport) -> dict[str, Any]:
    """The report as JSON types, its examples cut to a few."""
    return {**report._asdict(), "examples": [example._asdict() for example in report.examples[:5]]}


def _write(folder: Path, made: dict[int, Labelled], name: str, found: dict[str, Any]) -> None:
    """groups.jsonl first, then the JSON file `name`, which says that the groups are whole."""
    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf8") as stream:
            stream.writelines(json.dumps([i, *row], ensure_ascii=True) + "\n" for i, row in made.items())

    io.put(folder / GROUPS, write)
    io.put_json(folder / name, found, sort_keys=True)


def _read(folder: Path) -> Made:
    """What `_write` wrote. Raises `Me5Error`, with counts, for scores that do not fit their groups."""
    rows, texts = {}, {}
    for line in (folder / GROUPS).read_text(encoding="utf8").splitlines():
        i, *fields = json.loads(line)
        row = Labelled(*(tuple(field) if isinstance(field, list) else field for field in fields))
        rows[i] = row._replace(negatives=tuple(texts.setdefault(text, text) for text in row.negatives))
    _refuse_misfits(folder / GROUPS, rows.values())
    return Made(rows, bool(rows) and all(row.teacher_scores is not None for row in rows.values()))


def _refuse_misfits(path: Path, rows: Iterable[Labelled]) -> None:
    counts: Counter[str] = Counter()
    for row in rows:
        scores = row.teacher_scores
        counts["without scores" if scores is None else "with them"] += 1
        if scores is not None:
            counts["with another number of scores than passages"] += len(scores) != 1 + len(row.negatives)
            counts["with scores that are no numbers"] += not all(map(math.isfinite, scores))
    if not counts["with them"]:
        return
    if faults := {fault: n for fault, n in counts.items() if n and fault != "with them"}:
        said = ", ".join(f"{n} {fault}" for fault, n in faults.items())
        raise Me5Error(f"{path}: of {counts['with them'] + counts['without scores']} groups {said}: delete that folder "
                       "to make them again")  # fmt: skip
