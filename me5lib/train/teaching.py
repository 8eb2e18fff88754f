"""The teacher of stage 2: had by name or trained here, judged on held-out examples, and its scores of all groups.

It speaks only if it is better than the model that stage 2 starts from; what was measured is in the stage's report. No
pair is scored twice (`score_cache`).

Cost: training the teacher takes about as long as stage 2 itself; at the paper's size 24 M pairs go through it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.places import cache
from me5lib.scale import Stage
from me5lib.train import distill, loop
from me5lib.train.dist import Team
from me5lib.train.drawing import Plan, turned
from me5lib.train.picking import Prefixes, dev_groups
from me5lib.train.score_cache import Pair, ScoreCache, score_all

AT_ONCE = 32  # ours: groups of which the teacher's graph is held; half a GB at tiny
BLOCK = 4_096  # ours: groups whose pairs are held at once to be scored


def taught(
    encoder: Encoder, made: dict[int, Labelled], plan: Plan, stage: Stage, folder: Path, dev: Sequence[Labelled],
    prefixes: Prefixes, seed: int, progress: bool, team: Team,
) -> tuple[dict[int, Labelled], dict[str, Any] | None]:
    """The groups with the teacher's scores if it is better than the start model, else as they were; and its report.

    One that was named (`finetune.teacher`) is used, too, where no held-out example can judge it. Every rank of the
    `team` calls this and scores its share; what is returned is whole on rank 0 alone.
    """
    teacher, home = team.first_here(lambda: _teacher(encoder, made, plan, stage, folder, prefixes, seed, progress))
    about = home, {**teacher.identity, "limits": list(_lengths(stage))}, teacher.name
    with ScoreCache(*about, team.rank) as kept:
        verdict = team.by_main(lambda: compare(teacher, encoder, dev_groups(dev, seed), stage, prefixes, kept))
        used = team.any(verdict is not None and _used(verdict, stage))
        if progress and verdict:
            print(_judged(teacher.name, verdict, used))
        if used:
            share = dict(sorted(made.items())[team.rank :: team.world])
            scored = score(teacher, share, stage, prefixes, kept, progress)
            if progress:
                print(f"{teacher.name}: {kept.scored:,} pairs scored, {len(kept):,} are kept in {kept.folder}")
    team.barrier()
    if used and team.main and team.world > 1:
        with ScoreCache(*about) as kept:  # which has the shares of all ranks now
            scored = score(teacher, made, stage, prefixes, kept)
    report = verdict and {**verdict._asdict(), "trusted": used, "name": stage.teacher, "weights": teacher.identity}
    return scored if used else made, report


def _used(verdict: distill.Verdict, stage: Stage) -> bool:
    return verdict.trusted or not (verdict.queries or stage.teacher == distill.TRAINED)


def _judged(name: str, verdict: distill.Verdict, used: bool) -> str:
    """The verdict in words."""
    if not verdict.queries:
        return f"{name}: no held-out example judges it; {'used all the same' if used else 'not used'}"
    return (f"{name} {verdict.teacher:.3f}, start model {verdict.student:.3f} first of {verdict.size} "
            f"({verdict.queries} held-out examples): {'used' if used else 'not used'}")


def _teacher(
    encoder: Encoder, made: dict[int, Labelled], plan: Plan, stage: Stage, folder: Path, prefixes: Prefixes, seed: int,
    progress: bool,
) -> tuple[distill.Teacher | distill.Reranker, Path]:
    """The teacher, ready to score, and where its scores are kept: those of one that nobody else has, in the stage's own
    folder. It is trained once, and saved there, so that an interrupted scoring goes on with the very same weights."""
    if stage.teacher != distill.TRAINED:
        return distill.open_teacher(stage.teacher, encoder.device), cache() / "scores"
    home = folder / "teacher"
    if not (home / distill.ABOUT).is_file():
        train_teacher(encoder, made, plan, stage, prefixes, seed, progress).save(home)
    teacher = distill.Teacher.load(home, encoder.device)
    teacher.name = "teacher"
    return teacher, folder / "scores"


def train_teacher(
    encoder: Encoder, made: dict[int, Labelled], plan: Plan, stage: Stage, prefixes: Prefixes, seed: int,
    progress: bool = True,
) -> distill.Teacher:
    """A teacher from a copy of `encoder`, trained for `stage.teacher_steps` on the plan's batches: listwise softmax."""
    teacher = distill.Teacher(encoder, stage.temperature, seed)
    steps, n = stage.teacher_steps, stage.hard_negatives
    own = dataclasses.replace(stage, steps=steps, warmup=steps // 10)  # the student's learning rate: ours

    def prepare(step: int) -> loop.Work:
        rows = [turned(made[i], n, turn) for i, turn in plan.draws(step % plan.steps)]
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
    teacher: distill.Teacher | distill.Reranker, student: Encoder, rows: Sequence[Labelled], stage: Stage,
    prefixes: Prefixes, kept: ScoreCache | None = None,
) -> distill.Verdict:
    """How often each puts the positive of a held-out group first; the teacher's scores go through the cache `kept`."""
    if not rows:
        return distill.Verdict(0.0, 0.0, 0, 0)
    size = 1 + len(rows[0].negatives)
    ours = distill.first_place(_scores(teacher, rows, stage, prefixes, kept).reshape(-1, size))
    theirs = []
    for source in sorted({row.source for row in rows}):
        own = [row for row in rows if row.source == source]
        theirs.append(distill.first_place(distill.student_scores(student, own, prefixes(source), _lengths(stage))))
    return distill.Verdict(float(ours.mean()), float(np.concatenate(theirs).mean()), len(rows), size)


def score(
    teacher: distill.Teacher | distill.Reranker, made: dict[int, Labelled], stage: Stage, prefixes: Prefixes,
    kept: ScoreCache | None = None, progress: bool = False,
) -> dict[int, Labelled]:
    """The same groups with the teacher's scores (logits; of the first positive, then of each negative)."""
    from tqdm.auto import tqdm

    found, places = {}, sorted(made)
    total = sum(1 + len(row.negatives) for row in made.values())
    with tqdm(total=total, unit="pair", desc=teacher.name, disable=None if progress else True) as bar:
        for start in range(0, len(places), BLOCK):
            part = places[start : start + BLOCK]
            scores = iter(_scores(teacher, [made[i] for i in part], stage, prefixes, kept).tolist())
            for i in part:
                own = tuple(round(next(scores), 4) for _ in range(1 + len(made[i].negatives)))
                found[i] = made[i]._replace(teacher_scores=own)
                bar.update(len(own))
    return found


def _scores(
    teacher: distill.Teacher | distill.Reranker, rows: Sequence[Labelled], stage: Stage, prefixes: Prefixes,
    kept: ScoreCache | None,
) -> np.ndarray:
    """The teacher's logits of each row's first positive and its negatives, row after row, fp32."""
    sides = {name: prefixes(name) if teacher.prefixed else ("", "") for name in {row.source for row in rows}}
    pairs = [pair for row in rows for pair in _pairs(row, *sides[row.source])]
    pieces = functools.partial(teacher.pieces, lengths=_lengths(stage))
    return kept.through(pairs, pieces) if kept is not None else score_all(pairs, pieces, teacher.name)


def _pairs(row: Labelled, query: str, passage: str) -> Iterator[Pair]:
    return ((query + row.query, passage + text) for text in (row.positives[0], *row.negatives))


def _texts(rows: Sequence[Labelled]) -> tuple[list[str], list[list[str]]]:
    return [row.query for row in rows], [[row.positives[0], *row.negatives] for row in rows]


def _by_source(rows: Sequence[Labelled], prefixes: Prefixes) -> list[tuple]:
    """(queries, groups) and prefixes of each source in a batch; one, where batches are homogeneous."""
    named = dict.fromkeys(row.source for row in rows)
    return [(_texts([row for row in rows if row.source == source]), prefixes(source)) for source in named]


def _lengths(stage: Stage) -> tuple[int, int]:
    return stage.query_tokens, stage.passage_tokens
