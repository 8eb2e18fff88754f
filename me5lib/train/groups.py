"""What stage 2 learns from: every labelled example with its hard negatives and, if the teacher earns it, its scores.

    labelled examples ──► tidy ──► plan ──► negatives (own, mined, BM25, random) ──► teacher compared, scores ──► groups

Only examples that the plan will use are mined and scored: the plan of all steps is known before the first. An example
that the plan comes back to gets the next of its negatives in every pass, where there are as many; that follows from
the plan alone, so it is the same for any number of processes and on resume. Negatives come from the passages of the
same source and language. Nothing is padded silently: what is dropped, filled in or repeated is counted in
`report.json` and said.

The result is written to `groups.jsonl`, so that a stage which is gone on with learns from the very same groups.
Interrupted before that, mining and the trained teacher are kept, and no pair is scored twice (`score_cache`).

Cost at tiny: embedding the passages for mining is seconds, training the teacher about as long as stage 2 itself. At the
paper's size 24 M pairs go through the teacher.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from me5lib.data.mixture import Mixture, rotated
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled, text_key
from me5lib.places import Me5Error, cache, give_back
from me5lib.scale import Stage
from me5lib.train import checkpoint, distill, loop, mining
from me5lib.train.mining import MiningReport
from me5lib.train.score_cache import Pair, ScoreCache, score_all

KINDS = ("mined", "bm25", "random", "labelled")
AT_ONCE = 32  # ours: groups of which the teacher's graph is held; half a GB at tiny
BLOCK = 4_096  # ours: groups whose pairs are held at once to be scored
DEV_EXAMPLES, DEV_GROUP = 1000, 8  # ours: held-out examples that judge the teacher, and passages in each one's group
GROUPS, MINED, REPORT = "groups.jsonl", "mined.json", "report.json"
SHORT, RANDOM, ELSEWHERE, REPEATED = (
    "examples with fewer than asked for", "random passages filled in", "taken from other languages or sources",
    "repeated in their group",
)  # fmt: skip

Prefixes = Callable[[str], tuple[str, str]]
Pools = Callable[[str | None], list[str]]


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

    def draws(self, step: int) -> list[tuple[int, int]]:
        """Positions of the examples of `step`, each with its pass: how often its stream was exhausted before."""
        spec, mixture = self._mixture.plan(step), self._mixture
        streams = [mixture.shards[mixture.streams[i][:2]] for i in spec.stream]
        drawn = zip(streams, spec.row, spec.passes.tolist(), strict=True)
        return [(int(stream.places[row]), turn) for stream, row, turn in drawn]

    def batch(self, step: int) -> list[int]:
        """Positions of the examples of `step`."""
        return [i for i, _ in self.draws(step)]

    def passes(self) -> dict[int, int]:
        """Position → number of passes, of all examples that any step uses, in order."""
        last: dict[int, int] = {}
        for step in range(self.steps):
            for i, turn in self.draws(step):
                last[i] = max(turn, last.get(i, 0))
        return {i: turn + 1 for i, turn in sorted(last.items())}

    def used(self) -> list[int]:
        """Positions of all examples that any step uses, in order."""
        return list(self.passes())


class Made(NamedTuple):
    """The groups of a stage: position → example with the negatives of all its passes, and scores of its first positive
    and of each of them."""

    rows: dict[int, Labelled]
    taught: bool  # whether the teacher's scores are there and used

    def group(self, place: int, turn: int, n: int) -> Labelled:
        """The example at a position with the `n` negatives of its pass `turn`."""
        return turned(self.rows[place], n, turn)


def turned(row: Labelled, n: int, turn: int) -> Labelled:
    """`row` with `n` of its negatives, from place turn · n on, wrapping round, and with their scores."""
    places = rotated(range(len(row.negatives)), n, turn)
    told = row.teacher_scores
    scores = told and (told[0], *(told[1 + j] for j in places))
    return row._replace(negatives=tuple(row.negatives[j] for j in places), teacher_scores=scores)


def tidy(rows: Iterable[Labelled]) -> tuple[list[Labelled], dict[str, int]]:
    """The examples that can be learnt from, in order, and what was wrong with others: fault → how many.

    An example without a query or a positive is dropped, an empty passage is left out. Negatives that read like the
    query or like a positive of their example are counted here; `own_negatives` leaves them out.
    """
    kept, faults = [], Counter()
    for row in rows:
        right, wrong = (tuple(text for text in side if text.strip()) for side in (row.positives, row.negatives))
        if not row.query.strip() or not right:
            faults["examples without a positive" if row.query.strip() else "examples without a query"] += 1
            continue
        faults["empty passages"] += len(row.positives) + len(row.negatives) - len(right) - len(wrong)
        known = {text_key(text) for text in right}
        for key in map(text_key, wrong):
            faults["negatives that are a positive too"] += key in known
            faults["negatives that are the query"] += key == text_key(row.query) and key not in known
        kept.append(row._replace(positives=right, negatives=wrong))
    return kept, {fault: n for fault, n in sorted(faults.items()) if n}


def make(
    encoder: Encoder, rows: Sequence[Labelled], plan: Plan, stage: Stage, folder: Path, *, kind: str, mines: bool,
    with_teacher: bool, dev: Sequence[Labelled], prefixes: Prefixes, seed: int, progress: bool = True,
    faults: Mapping[str, int] | None = None,
) -> Made:
    """The groups that `plan` will use, made once and kept in `folder`/groups.jsonl; a report beside them.

    `encoder` is the start model: it mines (unless `mines` is False: random weights find nothing) and a teacher that is
    trained here starts from a copy of it. `kind` is one of KINDS, `faults` what `tidy` counted, for the report.
    """
    if (folder / REPORT).is_file():
        return _read(folder)
    if not (folder / MINED).is_file():
        made, found = _mined(encoder if mines else None, rows, plan, stage, kind, prefixes, seed)
        _write(folder, made, MINED, {**found, "input": dict(faults or {}), "teacher": None})
        give_back()
    made, found = _read(folder).rows, json.loads((folder / MINED).read_text(encoding="utf8"))
    if progress:
        _say(found)
    if with_teacher:
        made, found["teacher"] = _taught(encoder, made, plan, stage, folder, dev, prefixes, seed, progress)
    _write(folder, made, REPORT, found)
    (folder / MINED).unlink()
    del made
    give_back()  # the teacher and its optimiser: the stage that follows wants as much
    return _read(folder)


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


def negatives(
    rows: Sequence[Labelled], kind: str, encoder: Encoder | None, stage: Stage, prefixes: Prefixes, seed: int
) -> tuple[list[Labelled], MiningReport]:
    """`rows` with exactly `stage.hard_negatives` negatives each, and what was mined, over each source and language.

    Own negatives come first ("mined", "labelled"); where a search leaves too few, random passages fill up.
    """
    return over_passes(rows, kind, encoder, stage, prefixes, seed, [1] * len(rows))[:2]


def over_passes(
    rows: Sequence[Labelled], kind: str, encoder: Encoder | None, stage: Stage, prefixes: Prefixes, seed: int,
    passes: Sequence[int],
) -> tuple[list[Labelled], MiningReport, Counter[str]]:
    """As `negatives`, for rows that the plan comes back to: up to `stage.hard_negatives` negatives for each of their
    `passes`, at least for one. And what was filled in, counted."""
    found: list[Labelled | None] = [None] * len(rows)
    reports, filling, pools, n = [], Counter(), _pools(rows), stage.hard_negatives
    for key, at in _streams(rows):
        own, most = [rows[i] for i in at], n * max(passes[i] for i in at)
        pool = passages(own)
        picked, report = _search(own, pool, kind, encoder, stage, prefixes(key[0]), most)
        reports += [report] if report else []
        filled, counts = _filled(own, picked, pool, pools, most if kind == "random" else n, seed)
        filling += counts
        for i, row, more in zip(at, own, filled, strict=True):
            found[i] = row._replace(negatives=tuple(more[: n * passes[i]]), teacher_scores=None)
    if kind == "random":  # asked for: nothing was short of them
        del filling[SHORT], filling[RANDOM]
    return found, mining.merge(reports), filling


def _streams(rows: Sequence[Labelled]) -> list[tuple[tuple[str, str], list[int]]]:
    """(source, language) and the positions of its rows, sorted."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault((row.source, row.language), []).append(i)
    return sorted(found.items())


def passages(rows: Sequence[Labelled]) -> list[str]:
    """All different passages of `rows` (positives and negatives), each text once, in order of appearance."""
    return _distinct(text for row in rows for text in (*row.positives, *row.negatives))


def _pools(rows: Sequence[Labelled]) -> Pools:
    """`passages` of a source over all its languages, or (None) of all sources; each made when it is first asked for."""
    return functools.cache(lambda name: passages([row for row in rows if name in (None, row.source)]))


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
    rows: list[Labelled], pool: list[str], kind: str, encoder: Encoder | None, stage: Stage, sides: tuple[str, str],
    n: int,
) -> tuple[list[list[str]], MiningReport | None]:
    """Each row's negatives by `kind`, at most `n`, not yet filled up; no report where nothing was searched."""
    if kind == "random":
        return [[] for _ in rows], None
    own = [own_negatives(row)[:n] for row in rows]
    if kind == "labelled" or (kind == "mined" and encoder is None):
        return own, None
    asked, right, spoken = [row.query for row in rows], [row.positives for row in rows], [rows[0].language] * len(pool)
    told = {"languages": [row.language for row in rows], "passage_languages": spoken}
    if kind == "bm25":
        found = mining.bm25(asked, right, pool, stage.mine_depth)
        return mining.choose(found, asked, right, pool, n, stage.margin, **told)
    fast = loop.precision(encoder.device).name  # neighbours are sought, not scores reported
    query, passage = (
        functools.partial(encoder.encode, prefix=side, max_tokens=longest, precision=fast)
        for side, longest in zip(sides, (stage.query_tokens, stage.passage_tokens), strict=True)
    )
    found = mining.dense(asked, right, pool, query, passage, stage.mine_depth)
    return mining.choose(found, asked, right, pool, n, stage.margin, own=own, **told)


def _filled(
    rows: list[Labelled], picked: list[list[str]], pool: list[str], pools: Pools, n: int, seed: int
) -> tuple[list[list[str]], Counter[str]]:
    """`picked`, each with random passages of the pool added up to `n`; in a pool too small they come again. And how
    many examples were short, how many passages were added, taken from elsewhere, repeated.

    Where the pool holds nothing but right answers, the source in all languages is drawn on, then all sources; raises
    `Me5Error` where even they hold none.
    """
    filled, counts = list(picked), Counter()
    short = [i for i, own in enumerate(picked) if len(own) < n]
    if not short:
        return filled, counts
    queries, right = [rows[i].query for i in short], [rows[i].positives for i in short]
    draws, _ = mining.choose(mining.random(queries, pool, 8 * n, seed), queries, right, pool, 2 * n, margin=None)
    for i, more in zip(short, draws, strict=True):
        both = _distinct([*picked[i], *more])
        if not both:
            both = _elsewhere(rows[i], pools)
            counts[ELSEWHERE] += min(n, len(both))
        counts[SHORT] += 1
        counts[RANDOM] += min(n, len(both)) - len(picked[i])
        counts[REPEATED] += max(0, n - len(both))
        filled[i] = [both[j % len(both)] for j in range(n)]
    return filled, +counts


def _elsewhere(row: Labelled, pools: Pools) -> list[str]:
    """Wrong answers to a row out of other languages of its source, else of other sources."""
    for name in (row.source, None):
        if found := own_negatives(row._replace(negatives=tuple(pools(name)))):
            return found
    raise Me5Error(f"there is no wrong answer to {row.query[:60]!r} ({row.source}): every passage of the labelled "
                   "examples is a right one; add examples with other passages")  # fmt: skip


def dev_groups(rows: Sequence[Labelled], seed: int, limit: int = DEV_EXAMPLES, size: int = DEV_GROUP) -> list[Labelled]:
    """At most `limit` held-out examples, spread evenly, each with `size` − 1 negatives: its own, then random ones."""
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)] if rows else []
    found: list[Labelled] = []
    pools = _pools(rows)
    for key, at in _streams(rows):
        own = [rows[i] for i in at]
        pool = passages(own)
        pool = pool if len(pool) >= 2 * size else pools(key[0])
        more, _ = _filled(own, [own_negatives(row)[: size - 1] for row in own], pool, pools, size - 1, seed)
        found += [row._replace(negatives=tuple(texts)) for row, texts in zip(own, more, strict=True)]
    return found


def _taught(
    encoder: Encoder, made: dict[int, Labelled], plan: Plan, stage: Stage, folder: Path, dev: Sequence[Labelled],
    prefixes: Prefixes, seed: int, progress: bool,
) -> tuple[dict[int, Labelled], dict[str, Any]]:
    """The groups with the teacher's scores if it is better than the start model, else as they were; and its report.

    One that was named (`finetune.teacher`) is used, too, where no held-out example can judge it.
    """
    teacher, home = _teacher(encoder, made, plan, stage, folder, prefixes, seed, progress)
    with ScoreCache(home, {**teacher.identity, "limits": list(_lengths(stage))}, teacher.name) as kept:
        verdict = compare(teacher, encoder, dev_groups(dev, seed), stage, prefixes, kept)
        used = verdict.trusted or not (verdict.queries or stage.teacher == distill.TRAINED)
        if progress:
            print(_judged(teacher.name, verdict, used))
        if used:
            made = score(teacher, made, stage, prefixes, kept, progress)
        if progress and used:
            print(f"{teacher.name}: {kept.scored:,} pairs scored, {len(kept):,} are kept in {kept.folder}")
    return made, {**verdict._asdict(), "trusted": used, "name": stage.teacher, "weights": teacher.identity}


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


def _plain(report: MiningReport) -> dict[str, Any]:
    """The report as JSON types, its examples cut to a few."""
    return {**report._asdict(), "examples": [example._asdict() for example in report.examples[:5]]}


def _write(folder: Path, made: dict[int, Labelled], name: str, found: dict[str, Any]) -> None:
    """groups.jsonl first, then the JSON file `name`, which says that the groups are whole."""
    beside = folder / f".{GROUPS}.part"
    try:
        with beside.open("w", encoding="utf8") as stream:
            stream.writelines(json.dumps([i, *row], ensure_ascii=True) + "\n" for i, row in made.items())
        os.replace(beside, folder / GROUPS)
    except OSError as error:
        raise checkpoint.unwritten(folder / GROUPS, error) from None
    checkpoint.put_text(folder / name, json.dumps(found, indent=1, sort_keys=True) + "\n")


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
