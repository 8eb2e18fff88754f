"""What stage 2 learns from: every labelled example with its hard negatives and, if the teacher earns it, its scores.

    labelled examples ──► plan ──► negatives (own, mined, BM25, random) ──► teacher trained and compared ──► groups

Only examples that the plan will use are mined and scored: the plan of all steps is known before the first. Negatives
come from the passages of the same source and language. The result is written to `groups.jsonl`, so that a stage which
is gone on with learns from the very same groups.

Cost at tiny: embedding the passages for mining is seconds, training the teacher about as long as stage 2 itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from me5lib.data.mixture import Mixture
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled, text_key
from me5lib.places import give_back
from me5lib.scale import Stage
from me5lib.train import distill, loop, mining
from me5lib.train.mining import MiningReport

KINDS = ("mined", "bm25", "random", "labelled")
AT_ONCE = 32  # ours: groups of which the teacher's graph is held; half a GB at tiny
DEV_EXAMPLES, DEV_GROUP = 1000, 8  # ours: held-out examples that judge the teacher, and passages in each one's group

Prefixes = Callable[[str], tuple[str, str]]


class _Stream:
    """The examples of one source in one language, as the mixture sees a shard: only their number matters."""

    columns = ("query", "passage")

    def __init__(self, places: list[int]) -> None:
        self.places, self.rows = np.array(places, dtype=np.int64), len(places)


class Plan:
    """Which examples make the batch of a step: stage 1's construction (`Mixture`) over the labelled examples.

    Sources and languages are both weighted by rows ** `temperature`, so that a large set does not drown a small one
    (ours: how mE5 mixed its labelled sets is known only by their sampled sizes).
    """

    def __init__(self, rows: Sequence[Labelled], stage: Stage, seed: int, temperature: float) -> None:
        places: dict[tuple[str, str], list[int]] = {}
        for i, row in enumerate(rows):
            places.setdefault((row.source, row.language), []).append(i)
        sizes: dict[str, int] = {}
        for (source, _), own in places.items():
            sizes[source] = sizes.get(source, 0) + len(own)
        weights = {source: size**temperature for source, size in sizes.items()}
        streams = {key: _Stream(own) for key, own in places.items()}
        self.steps = stage.steps
        self._mixture = Mixture(
            streams, steps=stage.steps, batch=stage.batch, seed=seed, weights=weights, temperature=temperature
        )

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the plan depends on."""
        return self._mixture.fingerprint

    def batch(self, step: int) -> list[int]:
        """Positions of the examples of `step`."""
        spec, mixture = self._mixture.plan(step), self._mixture
        streams = [mixture.shards[mixture.streams[i][:2]] for i in spec.stream]
        return [int(stream.places[row]) for stream, row in zip(streams, spec.row, strict=True)]

    def used(self) -> list[int]:
        """Positions of all examples that any step uses, in order."""
        return sorted({i for step in range(self.steps) for i in self.batch(step)})


class Made(NamedTuple):
    """The groups of a stage: position → example with exactly as many negatives as asked for, and its scores."""

    rows: dict[int, Labelled]
    taught: bool  # whether the teacher's scores are there and used


def make(
    encoder: Encoder, rows: Sequence[Labelled], plan: Plan, stage: Stage, folder: Path, *, kind: str, mines: bool,
    with_teacher: bool, dev: Sequence[Labelled], prefixes: Prefixes, seed: int, progress: bool = True,
) -> Made:
    """The groups that `plan` will use, made once and kept in `folder`/groups.jsonl; a report beside them.

    `encoder` is the start model: it mines (unless `mines` is False: random weights find nothing) and the teacher starts
    from a copy of it. `kind` is one of KINDS.
    """
    if (folder / "report.json").is_file():
        return _read(folder)
    used = plan.used()
    chosen, report = negatives([rows[i] for i in used], kind, encoder if mines else None, stage, prefixes, seed)
    made = dict(zip(used, chosen, strict=True))
    give_back()
    found: dict[str, Any] = {"negatives": kind, "mining": _plain(report), "teacher": None}
    if with_teacher:
        judge = dev_groups(dev, seed)
        teacher = train_teacher(encoder, made, plan, stage, prefixes, seed, progress)
        verdict = compare(teacher, encoder, judge, stage, prefixes)
        found["teacher"] = {**verdict._asdict(), "trusted": verdict.trusted}
        if progress:
            print(f"teacher {verdict.teacher:.3f}, start model {verdict.student:.3f} first of {verdict.size} "
                  f"({verdict.queries} held-out examples): {'used' if verdict.trusted else 'not used'}")
        if verdict.trusted:
            made = score(teacher, made, stage, prefixes)
        del teacher
    _write(folder, made, found)
    give_back()  # the teacher and its optimiser: the stage that follows wants as much
    return _read(folder)


def negatives(
    rows: Sequence[Labelled], kind: str, encoder: Encoder | None, stage: Stage, prefixes: Prefixes, seed: int
) -> tuple[list[Labelled], MiningReport]:
    """`rows` with exactly `stage.hard_negatives` negatives each, and what was mined, over each source and language.

    Own negatives come first ("mined", "labelled"); where a search leaves too few, random passages fill up.
    """
    found: list[Labelled | None] = [None] * len(rows)
    reports = []
    wide = _by_name(rows)
    for key in sorted({(row.source, row.language) for row in rows}):
        at = [i for i, row in enumerate(rows) if (row.source, row.language) == key]
        own = [rows[i] for i in at]
        pool = passages(own)
        picked, report = _search(own, pool, kind, encoder, stage, prefixes(key[0]))
        reports += [report] if report else []
        filled = _filled(own, picked, pool, wide[key[0]], stage.hard_negatives, seed)
        for i, row, more in zip(at, own, filled, strict=True):
            found[i] = row._replace(negatives=tuple(more))
    return found, mining.merge(reports)


def passages(rows: Sequence[Labelled]) -> list[str]:
    """All different passages of `rows` (positives and negatives), each text once, in order of appearance."""
    return _distinct(text for row in rows for text in (*row.positives, *row.negatives))


def _by_name(rows: Sequence[Labelled]) -> dict[str, list[str]]:
    """`passages` of each source, over all its languages."""
    return {name: passages([row for row in rows if row.source == name]) for name in {row.source for row in rows}}


def own_negatives(row: Labelled) -> list[str]:
    """The wrong answers that a row brings along, without any that reads like its query or a right answer of it."""
    return _distinct((row.query, *row.positives, *row.negatives))[len(_distinct((row.query, *row.positives))) :]


def _distinct(texts: Iterable[str]) -> list[str]:
    """`texts` without those that say the same (`text_key`) as an earlier one."""
    found: dict[int, str] = {}
    for text in texts:
        found.setdefault(text_key(text), text)
    return list(found.values())


def _search(
    rows: list[Labelled], pool: list[str], kind: str, encoder: Encoder | None, stage: Stage, sides: tuple[str, str]
) -> tuple[list[list[str]], MiningReport | None]:
    """Each row's negatives by `kind`, not yet filled up; no report where nothing was searched."""
    n, asked, right = stage.hard_negatives, [row.query for row in rows], [row.positives for row in rows]
    own = [own_negatives(row)[:n] for row in rows]
    if kind == "random":
        return [[] for _ in rows], None
    if kind == "labelled" or (kind == "mined" and encoder is None):
        return own, None
    if kind == "bm25":
        return mining.choose(mining.bm25(asked, right, pool, stage.mine_depth), asked, right, pool, n, stage.margin)
    fast = loop.precision(encoder.device).name  # neighbours are sought, not scores reported
    query, passage = (
        functools.partial(encoder.encode, prefix=side, max_tokens=longest, precision=fast)
        for side, longest in zip(sides, (stage.query_tokens, stage.passage_tokens), strict=True)
    )
    found = mining.dense(asked, right, pool, query, passage, stage.mine_depth)
    picked, report = mining.choose(found, asked, right, pool, n, stage.margin)
    return [_distinct([*mine, *more])[:n] for mine, more in zip(own, picked, strict=True)], report


def _filled(
    rows: list[Labelled], picked: list[list[str]], pool: list[str], wide: list[str], n: int, seed: int
) -> list[list[str]]:
    """`picked`, each with random passages of the pool added up to `n`; in a pool too small they come again.

    Where the pool holds nothing but right answers, `wide` (the source in all languages) is drawn on, last the query.
    """
    queries, right = [row.query for row in rows], [row.positives for row in rows]
    draws, _ = mining.choose(mining.random(queries, pool, 8 * n, seed), queries, right, pool, 2 * n, margin=None)
    filled = []
    for row, own, more in zip(rows, picked, draws, strict=True):
        both = _distinct([*own, *more]) or own_negatives(row._replace(negatives=(*pool, *wide))) or [row.query]
        filled.append([both[j % len(both)] for j in range(n)])
    return filled


def dev_groups(rows: Sequence[Labelled], seed: int, limit: int = DEV_EXAMPLES, size: int = DEV_GROUP) -> list[Labelled]:
    """At most `limit` held-out examples, spread evenly, each with `size` − 1 negatives: its own, then random ones."""
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)] if rows else []
    found: list[Labelled] = []
    wide = _by_name(rows)
    for key in sorted({(row.source, row.language) for row in rows}):
        own = [row for row in rows if (row.source, row.language) == key]
        pool = passages(own) if len(passages(own)) >= 2 * size else wide[key[0]]
        more = _filled(own, [own_negatives(row)[: size - 1] for row in own], pool, wide[key[0]], size - 1, seed)
        found += [row._replace(negatives=tuple(texts)) for row, texts in zip(own, more, strict=True)]
    return found


def train_teacher(
    encoder: Encoder, made: dict[int, Labelled], plan: Plan, stage: Stage, prefixes: Prefixes, seed: int,
    progress: bool = True,
) -> distill.Teacher:
    """A teacher from a copy of `encoder`, trained for `stage.teacher_steps` on the plan's batches: listwise softmax."""
    teacher = distill.Teacher(encoder, stage.temperature, seed)
    steps = stage.teacher_steps
    own = dataclasses.replace(stage, steps=steps, warmup=steps // 10)  # the student's learning rate: ours

    def prepare(step: int) -> loop.Work:
        rows = [made[i] for i in plan.batch(step % plan.steps)]
        parts = [part for texts, sides in _by_source(rows, prefixes) for part in _parts(teacher, texts, sides, stage)]
        return loop.Work(lambda: _mean_loss(teacher, parts), "+".join(dict.fromkeys(row.source for row in rows)))

    loop.train(teacher, prepare, own, None, seed=seed, progress=progress, name="teacher")
    return teacher


def _parts(teacher: distill.Teacher, texts: tuple, sides: tuple[str, str], stage: Stage) -> list[distill.Groups]:
    queries, found = texts
    return [teacher.tokenize(queries[at : at + AT_ONCE], found[at : at + AT_ONCE], sides, _lengths(stage))
            for at in range(0, len(queries), AT_ONCE)]


def _mean_loss(teacher: distill.Teacher, parts: Sequence[distill.Groups]) -> Tensor:
    """Mean over all groups of the batch, whatever sources they come from, detached; its gradient is accumulated part by
    part, which is exact: no group's loss depends on another group."""
    sizes = [len(part.cuts) // part.size for part in parts]
    total = 0.0
    for part, size in zip(parts, sizes, strict=True):
        loss = distill.listwise(teacher(part)) * (size / sum(sizes))
        loss.backward()
        total = total + loss.detach()
    return total


def compare(
    teacher: distill.Teacher, student: Encoder, rows: Sequence[Labelled], stage: Stage, prefixes: Prefixes
) -> distill.Verdict:
    """How often each puts the positive of a held-out group first."""
    ours, theirs = [], []
    for source in sorted({row.source for row in rows}):
        own = [row for row in rows if row.source == source]
        ours.append(distill.first_place(teacher.score(*_texts(own), prefixes(source), _lengths(stage))))
        theirs.append(distill.first_place(distill.student_scores(student, own, prefixes(source), _lengths(stage))))
    if not rows:
        return distill.Verdict(0.0, 0.0, 0, 0)
    size = 1 + len(rows[0].negatives)
    return distill.Verdict(float(np.concatenate(ours).mean()), float(np.concatenate(theirs).mean()), len(rows), size)


def score(teacher: distill.Teacher, made: dict[int, Labelled], stage: Stage, prefixes: Prefixes) -> dict[int, Labelled]:
    """The same groups with the teacher's scores (logits; positive first)."""
    found = {}
    for source in sorted({row.source for row in made.values()}):
        places = [i for i, row in made.items() if row.source == source]
        scores = teacher.score(*_texts([made[i] for i in places]), prefixes(source), _lengths(stage))
        for i, each in zip(places, scores, strict=True):
            found[i] = made[i]._replace(teacher_scores=tuple(round(float(x), 4) for x in each))
    return dict(sorted(found.items()))


def _texts(rows: Sequence[Labelled]) -> tuple[list[str], list[list[str]]]:
    return [row.query for row in rows], [[row.positives[0], *row.negatives] for row in rows]


def _by_source(rows: Sequence[Labelled], prefixes: Prefixes) -> list[tuple]:
    """(queries, groups) and prefixes of each source in a batch; one, where batches are homogeneous."""
    named = dict.fromkeys(row.source for row in rows)
    return [(_texts([row for row in rows if row.source == source]), prefixes(source)) for source in named]


def _lengths(stage: Stage) -> tuple[int, int]:
    return stage.query_tokens, stage.passage_tokens


def _plain(report: MiningReport) -> dict[str, Any]:
    """The report as JSON types, its examples cut to a few."""
    return {**report._asdict(), "examples": [example._asdict() for example in report.examples[:5]]}


def _write(folder: Path, made: dict[int, Labelled], found: dict[str, Any]) -> None:
    """groups.jsonl first, report.json last: the report says that the groups are whole."""
    lines = [json.dumps([i, *row], ensure_ascii=True) for i, row in made.items()]
    (folder / "groups.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
    (folder / "report.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf8")


def _read(folder: Path) -> Made:
    rows = {}
    for line in (folder / "groups.jsonl").read_text(encoding="utf8").splitlines():
        i, *fields = json.loads(line)
        rows[i] = Labelled(*(tuple(field) if isinstance(field, list) else field for field in fields))
    return Made(rows, all(row.teacher_scores is not None for row in rows.values()))
