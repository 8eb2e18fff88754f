"""The teacher of stage 2: had by name or trained here, judged on held-out examples, and its scores of all groups.

It speaks only if it is better than the model that stage 2 starts from; what was measured is in the stage's report. Its
scores are kept in blocks of groups (`score_cache`), so that a run which was killed continues with the next block.

Cost: training the teacher takes about as long as stage 2 itself; at the paper's size 24 M pairs go through it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from me5lib.config import Stage
from me5lib.io import cache
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train import distill, loop, score_cache
from me5lib.train.distributed import Team
from me5lib.train.finetune_plan import Plan, turned
from me5lib.train.negatives import Prefixes, dev_groups

AT_ONCE = 32  # ours: groups of which the teacher's graph is held; half a GB at tiny
BLOCK = 512  # ours: groups in a file of scores; a minute of a 12-layer MiniLM on two cores; fewer pad more on a GPU


def taught(
    encoder: Encoder, made: dict[int, Labelled], plan: Plan, stage: Stage, folder: Path, dev: Sequence[Labelled],
    prefixes: Prefixes, seed: int, progress: bool, team: Team,
) -> tuple[dict[int, Labelled], dict[str, Any] | None]:
    """The groups with the teacher's scores if it is better than the start model, else as they were; and its report.

    One that was named (`finetune.teacher`) is used, too, where no held-out example can judge it. Every rank of the
    `team` calls this and scores its share; what is returned is whole on rank 0 alone.
    """
    teacher, home = team.main_process_first(
        lambda: _teacher(encoder, made, plan, stage, folder, prefixes, seed, progress)
    )
    verdict = team.by_main(lambda: compare(teacher, encoder, dev_groups(dev, seed), stage, prefixes, home))
    named = stage.teacher != distill.TRAINED
    used = team.any(verdict is not None and (verdict.trusted or named and not verdict.queries))
    if progress and verdict:
        print(_judged(teacher.name, verdict, used))
    report = verdict and {**verdict._asdict(), "trusted": used, "name": stage.teacher, "weights": teacher.identity}
    if not used:
        return made, report
    made = dict(sorted(made.items()))
    share = {i: made[i] for n, i in enumerate(made) if n // BLOCK % team.world == team.rank}  # the same blocks as alone
    scored = score(teacher, share, stage, prefixes, home, progress)
    team.barrier()
    if team.main and team.world > 1:  # the blocks of all ranks are in `home` now
        scored = score(teacher, made, stage, prefixes, home)
    return scored, report


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
        parts = _parts(teacher, rows, prefixes, stage)
        return loop.Work(lambda: _mean_loss(teacher, parts), "+".join(dict.fromkeys(row.source for row in rows)))

    loop.train(teacher, prepare, own, loop.Run(None, seed, name="teacher", progress=progress))
    return teacher


def _parts(
    teacher: distill.Teacher, rows: Sequence[Labelled], prefixes: Prefixes, stage: Stage
) -> list[distill.Groups]:
    """A batch as the teacher reads it, source by source (one, where batches are homogeneous), `AT_ONCE` groups each."""
    parts = []
    for source in dict.fromkeys(row.source for row in rows):
        same = [row for row in rows if row.source == source]
        for start in range(0, len(same), AT_ONCE):
            part = same[start : start + AT_ONCE]
            passages = [[row.positives[0], *row.negatives] for row in part]
            parts.append(teacher.tokenize([row.query for row in part], passages, prefixes(source), _lengths(stage)))
    return parts


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
    prefixes: Prefixes, folder: Path | None = None,
) -> distill.Verdict:
    """How often each puts the positive of a held-out group first; the teacher's scores are kept in `folder`."""
    if not rows:
        return distill.Verdict(0.0, 0.0, 0, 0)
    size = 1 + len(rows[0].negatives)
    ours = distill.first_place(np.stack(_scores(teacher, rows, stage, prefixes, folder)))
    theirs = []
    for source in sorted({row.source for row in rows}):
        own = [row for row in rows if row.source == source]
        theirs.append(distill.first_place(distill.student_scores(student, own, prefixes(source), _lengths(stage))))
    return distill.Verdict(float(ours.mean()), float(np.concatenate(theirs).mean()), len(rows), size)


def score(
    teacher: distill.Teacher | distill.Reranker, made: dict[int, Labelled], stage: Stage, prefixes: Prefixes,
    folder: Path | None = None, progress: bool = False,
) -> dict[int, Labelled]:
    """The same groups with the teacher's scores (logits; of the first positive, then of each negative), kept in
    `folder`. Raises `Me5Error` for scores that are not finite; the blocks before them stay kept."""
    groups = _scores(teacher, list(made.values()), stage, prefixes, folder, progress)
    return {i: row._replace(teacher_scores=tuple(round(logit, 4) for logit in logits.tolist()))
            for (i, row), logits in zip(made.items(), groups, strict=True)}  # fmt: skip


def _scores(
    teacher: distill.Teacher | distill.Reranker, rows: Sequence[Labelled], stage: Stage, prefixes: Prefixes,
    folder: Path | None, progress: bool = False,
) -> list[np.ndarray]:
    """The teacher's logits of each row's first positive and its negatives, fp32 [1 + negatives] a row."""
    from tqdm.auto import tqdm

    sides = {name: prefixes(name) if teacher.prefixed else ("", "") for name in {row.source for row in rows}}
    identity = {**teacher.identity, "limits": _lengths(stage)}
    pieces = functools.partial(teacher.pieces, lengths=_lengths(stage))
    sizes = [1 + len(row.negatives) for row in rows]
    groups, counts = [], {True: 0, False: 0}  # of pairs: read from `folder`, or scored
    with tqdm(total=sum(sizes), unit="pair", desc=teacher.name, disable=None if progress else True) as bar:
        for start in range(0, len(rows), BLOCK):
            pairs = [(sides[row.source][0] + row.query, sides[row.source][1] + text)
                     for row in rows[start : start + BLOCK] for text in (row.positives[0], *row.negatives)]  # fmt: skip
            scores, cached = score_cache.block_scores(pairs, pieces, teacher.name, folder, identity)
            groups += np.split(scores, np.cumsum(sizes[start : start + BLOCK])[:-1])
            counts[cached] += len(pairs)
            bar.update(len(pairs))
    if progress:
        print(f"{teacher.name}: {counts[False]:,} pairs scored here, {counts[True]:,} read from {folder}")
    return groups


def _lengths(stage: Stage) -> tuple[int, int]:
    return stage.query_tokens, stage.passage_tokens
