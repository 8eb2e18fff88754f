"""A teacher of one's own: a cross-encoder trained on labelled groups, judged on held-out ones, and kept in a folder.

    verdict = teach(Path("groups.jsonl"), "runs/tiny/seed-0/stage1", Path("my-teacher"), scale.load("tiny").finetune)
    # then, for stage 2: --set finetune.teacher=my-teacher

The recipe is SimLM's: listwise softmax over a group of a positive and its negatives; the model is `distill.Teacher`,
which starts from an encoder. A tenth of the examples, by hash of the query, is kept out to judge it by.

Cost: `teacher_steps` batches of (1 + `hard_negatives`) joint inputs an example.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from me5lib.config import Stage
from me5lib.data import cards
from me5lib.device import best_device
from me5lib.io import Me5Error, sha256
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import Labelled, text_key
from me5lib.train import finetune_plan, negatives, teaching
from me5lib.train.distill import Verdict

DEV_SHARE = 0.1  # ours: of the examples, to judge the teacher by
OWN = "own data"  # the source of an example that names none


class Taught(NamedTuple):
    """What became of a training: how good the teacher is, what was wrong with the examples, and what was filled in."""

    verdict: Verdict
    examples: int
    faults: dict[str, int]
    filling: dict[str, int]


def teach(
    data: Path, start: str | Path, out: Path, stage: Stage, seed: int = 0, progress: bool = True
) -> Taught:
    """Train a teacher from the encoder `start` (folder or hub id) on the examples of `data`, and write it to `out`.

    `stage` has the dials of stage 2: `teacher_steps` (0: one pass over the examples), `batch`, `hard_negatives`, `lr`,
    the temperature and the lengths. Raises `Me5Error` for what cannot be read, and for an `out` that is there already.
    """
    if out.exists():
        raise Me5Error(f"{out} is there already: choose another --out, or delete it")
    rows, faults = finetune_plan.tidy(examples(data))
    train, dev = _split(rows, data)
    encoder = Encoder.load(start).to(best_device())
    if stage.query_tokens + stage.passage_tokens > encoder.max_tokens:
        raise Me5Error(f"a teacher from {start} reads {encoder.max_tokens} tokens of query and passage together: set "
                       "finetune.query_tokens and finetune.passage_tokens to less")
    steps = stage.teacher_steps or math.ceil(len(train) / stage.batch)
    stage = dataclasses.replace(stage, steps=steps, teacher_steps=steps)
    plan = finetune_plan.Plan(train, stage, seed, 1.0)
    passes = plan.passes()
    chosen, _, filling = negatives.over_passes(
        [train[i] for i in passes], "labelled", None, stage, prefixes, seed, list(passes.values())
    )
    made = dict(zip(passes, chosen, strict=True))
    teacher = teaching.train_teacher(encoder, made, plan, stage, prefixes, seed, progress)
    verdict = teaching.compare(teacher, encoder, negatives.dev_groups(dev, seed), stage, prefixes)
    teacher.save(out, _about(data, start, stage, seed, verdict))
    return Taught(verdict, len(rows), faults, dict(filling))


def examples(path: Path) -> Iterator[Labelled]:
    """The labelled examples of a file of JSON lines: objects with query, positives (or positive) and negatives, source
    and language if you like; or stage 2's own groups.jsonl. Raises `Me5Error` that names the line."""
    if not path.is_file():
        raise Me5Error(f"there is no file {path}: give --data, JSON lines of query, positives and negatives")
    with path.open(encoding="utf8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _example(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise Me5Error(f"{path}: line {number} is no example ({type(error).__name__}: {error}): as "
                                   '{"query": "…", "positives": ["…"], "negatives": ["…"]}') from None


def prefixes(source: str) -> tuple[str, str]:
    """The prefixes of a source's two sides: its data card's, or "query: " and "passage: " where it has none."""
    if source not in cards.names():
        return QUERY, PASSAGE
    card = cards.load(source)
    return card.query_prefix, card.passage_prefix


def _example(given: Any) -> Labelled:
    if isinstance(given, list):  # of groups.jsonl: a position, then the fields of `Labelled`
        given = dict(zip(Labelled._fields, given[1:], strict=True))
    positives = given["positives"] if "positives" in given else given["positive"]
    sides = [_texts(side) for side in (positives, given.get("negatives") or ())]
    if not isinstance(given["query"], str):
        raise TypeError("the query is no text")
    return Labelled(given["query"], *sides, given.get("source") or OWN, given.get("language") or "und")


def _texts(given: Any) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) for text in found):
        raise TypeError("a passage is no text")
    return found


def _split(rows: Sequence[Labelled], data: Path) -> tuple[list[Labelled], list[Labelled]]:
    """Examples to train on, and to judge by: `DEV_SHARE` of them, by hash of the query."""
    edge = int(DEV_SHARE * 2**64) - 2**63
    held = [text_key(row.query) < edge for row in rows]
    train, dev = ([row for row, out in zip(rows, held, strict=True) if out == part] for part in (False, True))
    if not train or not dev:
        raise Me5Error(f"{data} has {len(rows)} examples, {len(dev)} of them held out: too few to train a teacher and "
                       "to judge it; give some dozens")
    return train, dev


def _about(data: Path, start: str | Path, stage: Stage, seed: int, verdict: Verdict) -> dict[str, Any]:
    return {"data": sha256(data), "start": str(start), "seed": seed, "stage": dataclasses.asdict(stage),
            "verdict": {**verdict._asdict(), "trusted": verdict.trusted}}
