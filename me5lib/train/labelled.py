"""Labelled examples of stage 2: the valid ones, laid out over the steps, with hard negatives and a teacher's scores.

    labelled examples ──► drop_invalid ──► SamplingPlan ──► add_negatives ──► teacher.add_scores ──► groups.jsonl

The plan of all steps is known before the first, so that only examples which will be used are mined and scored.
Negatives come from the passages of the same source and language; nothing is padded silently: what is filled in from
elsewhere or repeated is counted. An example that the plan comes back to gets the next of its negatives in every pass,
where there are as many; that follows from the plan alone, so it is the same for any number of processes and on resume.

The result is written to `groups.jsonl`, so that a stage which is gone on with learns from the very same groups, and
what was dropped, filled in or repeated to `report.json`. Interrupted before that, mining, the trained teacher and
the blocks that it has scored are kept.
"""

from __future__ import annotations

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from me5lib import io
from me5lib.config import Stage
from me5lib.data import cards
from me5lib.data.mixture import Mixture
from me5lib.device import precision
from me5lib.io import Me5Error, give_back
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import Labelled, text_key
from me5lib.train import search
from me5lib.train.distributed import Team
from me5lib.train.mining import Mining, MiningReport, PoolKey, by_pool, choose, mine
from me5lib.train.search import BM25Index, DenseIndex, Pool, texts_by_key

NEGATIVE_KINDS = ("mined", "bm25", "random", "labelled")
DEV_EXAMPLES, DEV_GROUP = 1000, 8  # ours: held-out examples that judge the teacher, and passages in each one's group
TOO_FEW, RANDOM_FILLED, ELSEWHERE, REPEATED = (
    "examples with fewer than asked for", "random passages filled in", "taken from other languages or sources",
    "repeated in their group",
)  # fmt: skip
GROUPS, REPORT = "groups.jsonl", "report.json"

Prefixes = Callable[[str], tuple[str, str]]  # source → before its queries, before its passages


def card_prefixes(source: str) -> tuple[str, str]:
    """The prefixes of a source's two sides, from its data card: "query: " on both where they are alike (translations),
    else "query: " and "passage: ", as where it has no card (the authors' model card; which each of their training sets
    had is not published)."""
    return cards.load_card(source).prefixes if source in cards.card_names() else (QUERY, PASSAGE)


def drop_invalid(rows: Iterable[Labelled]) -> tuple[list[Labelled], dict[str, int]]:
    """The examples that can be learnt from, in order, and what was wrong with others: fault → how many.

    An example without a query or a positive is dropped, an empty passage is left out. Negatives that read like the
    query or like a positive of their example are counted here; `own_negatives` leaves them out.
    """
    kept, faults = [], Counter()
    for row in rows:
        positives, negatives = (tuple(text for text in side if text.strip()) for side in (row.positives, row.negatives))
        if not row.query.strip() or not positives:
            faults["examples without a positive" if row.query.strip() else "examples without a query"] += 1
            continue
        faults["empty passages"] += len(row.positives) + len(row.negatives) - len(positives) - len(negatives)
        known = {text_key(text) for text in positives}
        for key in map(text_key, negatives):
            faults["negatives that are a positive too"] += key in known
            faults["negatives that are the query"] += key == text_key(row.query) and key not in known
        kept.append(row._replace(positives=positives, negatives=negatives))
    return kept, {fault: n for fault, n in sorted(faults.items()) if n}


class SamplingPlan:
    """Which examples make the batch of a step: stage 1's construction (`Mixture`) over the labelled examples.

    Sources and languages are both weighted by rows ** `temperature`, so that a large set does not drown a small one
    (ours: how mE5 mixed its labelled sets is known only by their sampled sizes); `weigh` alters the sources' weights.
    """

    def __init__(self, rows: Sequence[Labelled], stage: Stage, seed: int, temperature: float,
                 weigh: Callable[[dict[str, float]], dict[str, float]] = dict) -> None:
        streams, self.steps = defaultdict(list), stage.steps
        for i, row in enumerate(rows):
            streams[row.source, row.language].append(i)
        self._positions = {key: np.array(positions) for key, positions in streams.items()}
        sizes = Counter(row.source for row in rows)
        self._mixture = Mixture(
            {key: SimpleNamespace(columns=("query", "passage"), rows=len(own)) for key, own in streams.items()},
            steps=stage.steps, batch=stage.batch, seed=seed, temperature=temperature,
            weights=weigh({source: size**temperature for source, size in sizes.items()}),
        )  # fmt: skip
        self.turns = {source: round(steps * stage.batch / sizes[source], 3)  # passes over a source's examples
                      for source, steps in self._mixture.quotas.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the plan depends on."""
        return self._mixture.fingerprint

    def draws(self, step: int) -> list[tuple[int, int]]:
        """Positions of the examples of `step`, each with its pass: how often its stream was exhausted before."""
        spec, streams = self._mixture.plan(step), self._mixture.streams
        drawn = zip(spec.stream.tolist(), spec.row.tolist(), spec.passes.tolist(), strict=True)
        return [(int(self._positions[streams[i][:2]][row]), turn) for i, row, turn in drawn]

    def passes(self) -> dict[int, int]:
        """Position → number of passes, of all examples that any step uses, in order."""
        last: dict[int, int] = {}
        for step in range(self.steps):
            for i, turn in self.draws(step):
                last[i] = max(turn, last.get(i, 0))
        return {i: turn + 1 for i, turn in sorted(last.items())}

    def batch(self, rows: Mapping[int, Labelled], step: int, n: int, rank: int = 0, world: int = 1) -> list[Labelled]:
        """This rank's examples of `step`, out of the groups `rows`, each with the `n` negatives of its pass."""
        drawn = self.draws(step)
        mine = drawn[len(drawn) * rank // world : len(drawn) * (rank + 1) // world]
        return [negatives_for_pass(rows[i], n, turn) for i, turn in mine]


def negatives_for_pass(row: Labelled, n: int, turn: int) -> Labelled:
    """`row` with `n` of its negatives, from place turn · n on, wrapping round, and with their scores."""
    have = len(row.negatives)
    places = [(turn * n + i) % have for i in range(n)] if have > n else range(have)
    scores = row.teacher_scores and (row.teacher_scores[0], *(row.teacher_scores[1 + i] for i in places))
    return row._replace(negatives=tuple(row.negatives[i] for i in places), teacher_scores=scores)


# Negatives


def own_negatives(row: Labelled) -> list[str]:
    """The wrong answers that a row brings along, without any that reads like its query or a right answer of it."""
    right = texts_by_key((row.query, *row.positives))
    return [text for key, text in texts_by_key(row.negatives).items() if key not in right]


def add_negatives(
    rows: Sequence[Labelled], kind: str, encoder: Encoder | None, stage: Stage, prefixes: Prefixes, seed: int,
    passes: Sequence[int] | None = None,
) -> tuple[list[Labelled], MiningReport, Counter[str]]:
    """`rows` with `stage.hard_negatives` negatives for each of their `passes` (None: one), or fewer but for the first;
    what was mined, over each source and language; and what was filled in, counted.

    Own negatives come first ("mined", "labelled"); where a search leaves too few, random passages fill up.
    """
    n, passes = stage.hard_negatives, passes or [1] * len(rows)
    wanted = [n * turns for turns in passes]
    chosen = [own_negatives(row)[:most] if kind in ("mined", "labelled") else []
              for row, most in zip(rows, wanted, strict=True)]  # fmt: skip
    report = MiningReport()
    if kind in ("mined", "bm25"):
        dense = kind == "mined"
        cfg = Mining("dense" if dense else "bm25", stage.mine_depth, margin=stage.margin or None,
                     near=stage.near or None if dense else None)  # fmt: skip
        places, encode = by_pool(rows), functools.partial(encode_side, encoder, stage, prefixes)

        def open_pool(key: PoolKey) -> tuple[Pool, DenseIndex | BM25Index]:
            """All passages that the rows brought along; held while it is searched."""
            pool = Pool.of(rows[i] for i in places[key])
            return pool, DenseIndex(encode(pool.texts, key[0], side=1)) if dense else BM25Index(pool.texts)

        bare = [row._replace(negatives=tuple(texts)) for row, texts in zip(rows, chosen, strict=True)]
        chosen, report = mine(bare, cfg, wanted, open_pool, encode)
    filling = fill_up(rows, chosen, wanted if kind == "random" else [n] * len(rows), seed)
    if kind == "random":  # asked for: nothing was short of them
        del filling[TOO_FEW], filling[RANDOM_FILLED]
    found = [row._replace(negatives=tuple(texts[:most]), teacher_scores=None)
             for row, texts, most in zip(rows, chosen, wanted, strict=True)]  # fmt: skip
    return found, report, filling


def encode_side(
    encoder: Encoder, stage: Stage, prefixes: Prefixes, texts: Sequence[str], source: str, side: int = 0
) -> np.ndarray:
    """Unit vectors fp32 [n, d] of a source's queries (side 0) or passages (1), with the stage's prefixes and lengths;
    in the fastest precision: they are compared, not reported."""
    return encoder.encode(texts, prefixes(source)[side], max_tokens=(stage.query_tokens, stage.passage_tokens)[side],
                          precision=precision(encoder.device).name)  # fmt: skip


def fill_up(
    rows: Sequence[Labelled], chosen: list[list[str]], wanted: Sequence[int], seed: int, least: int = 0
) -> Counter[str]:
    """Add random passages of its pool to what is `chosen` for a row that has fewer than `wanted`, up to the most that
    one of the pool wants; in a pool too small they come again. Counted: examples that were short, and passages that
    were added, taken from elsewhere, repeated.

    A pool of fewer than `least` passages is the source's in all languages. Where it holds nothing but right answers,
    that is drawn on, then all sources; raises `Me5Error` where even they hold none.
    """
    counts: Counter[str] = Counter()
    elsewhere = functools.cache(lambda source: Pool.of(row for row in rows if source in (None, row.source)))
    for (source, _), places in by_pool(rows).items():
        n = max(wanted[i] for i in places)
        short = [i for i in places if len(chosen[i]) < n]
        if not short:
            continue
        pool = Pool.of(rows[i] for i in places)
        pool = pool if len(pool.texts) >= least else elsewhere(source)
        bare = [rows[i]._replace(negatives=()) for i in short]
        draws = search.random([row.query for row in bare], len(pool.texts), 8 * n, seed)
        for i, more in zip(short, choose(draws, bare, pool, 2 * n)[0], strict=True):
            both = list(texts_by_key((*chosen[i], *more)).values())
            if not both:
                others = (own_negatives(rows[i]._replace(negatives=elsewhere(name).texts)) for name in (source, None))
                both = next(filter(None, others), [])
                counts[ELSEWHERE] += min(n, len(both))
            if not both:
                raise Me5Error(f"there is no wrong answer to {rows[i].query[:60]!r} ({source}): every passage of the "
                               "labelled examples is a right one; add examples with other passages")
            counts[TOO_FEW] += 1
            counts[RANDOM_FILLED] += min(n, len(both)) - len(chosen[i])
            counts[REPEATED] += max(0, n - len(both))
            chosen[i] = [both[j % len(both)] for j in range(n)]
    return +counts


def dev_groups(rows: Sequence[Labelled], seed: int, limit: int = DEV_EXAMPLES, size: int = DEV_GROUP) -> list[Labelled]:
    """At most `limit` held-out examples, spread evenly, each with `size` − 1 negatives: its own, then random ones."""
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)] if rows else []
    chosen = [own_negatives(row)[: size - 1] for row in rows]
    fill_up(rows, chosen, [size - 1] * len(rows), seed, least=2 * size)
    return [rows[i]._replace(negatives=tuple(chosen[i])) for places in by_pool(rows).values() for i in places]


# Groups: position → example with the negatives of all its passes, and perhaps the teacher's scores of its first
# positive and of each of them


class GroupTask(NamedTuple):
    """What the preparation of a stage 2 works with, and who does it: every rank of `team`."""

    stage: Stage
    plan: SamplingPlan
    prefixes: Prefixes
    folder: Path  # of the unfinished stage
    seed: int
    team: Team
    progress: bool = True


def make_groups(
    encoder: Encoder, rows: Sequence[Labelled], task: GroupTask, kind: str, dev: Sequence[Labelled] | None = None,
    faults: Mapping[str, int] | None = None,
) -> dict[int, Labelled]:
    """The groups that the plan will use, made once and kept in `groups.jsonl`; a report beside them.

    `encoder` is the start model: it mines, and a teacher that is trained here starts from a copy of it. `kind` is one
    of `NEGATIVE_KINDS`; `dev` are the held-out examples that judge the teacher (None: no teacher); `faults` what
    `drop_invalid` counted, for the report. Every rank of the team calls this: rank 0 mines, all of them score, rank 0
    writes.
    """
    from me5lib.train import teacher

    folder, team = task.folder, task.team

    def mine_here() -> None:
        if not (folder / REPORT).is_file():
            write_groups(folder, *_mined(encoder, rows, task, kind, faults))
            give_back()

    team.by_main(mine_here)
    made, report = read_groups(folder / GROUPS), io.read_json(folder / REPORT)
    if dev is None or report["teacher"] is not None:
        return made
    made, report["teacher"] = teacher.add_scores(encoder, made, task, dev)
    team.by_main(lambda: write_groups(folder, made, report))
    give_back()  # the teacher and its optimiser: the stage that follows wants as much
    return read_groups(folder / GROUPS)


def _mined(
    encoder: Encoder, rows: Sequence[Labelled], task: GroupTask, kind: str, faults: Mapping[str, int] | None
) -> tuple[dict[int, Labelled], dict[str, Any]]:
    """Position → example with its negatives, and what was mined and filled in, which is also said."""
    passes = task.plan.passes()
    found, report, filling = add_negatives([rows[i] for i in passes], kind, encoder, task.stage, task.prefixes,
                                           task.seed, list(passes.values()))  # fmt: skip
    wanted, there = sum(passes.values()) * task.stage.hard_negatives, sum(len(row.negatives) for row in found)
    for what, counts in ("labelled examples", faults or {}), (f"of {there:,} negatives", filling):
        if counts and task.progress:
            print(f"{what}: {', '.join(f'{n:,} {name}' for name, n in sorted(counts.items()))}")
    if task.progress:
        print("passes over the data:", ", ".join(f"{name} {turns:.2g}" for name, turns in task.plan.turns.items()))
    return dict(zip(passes, found, strict=True)), {
        "negatives": kind, "input": dict(faults or {}), "passes": task.plan.turns,
        "filling": {"asked for": wanted, "there": there, **filling},
        "mining": report._replace(examples=report.examples[:5])._asdict(), "teacher": None,
    }  # fmt: skip


def write_groups(folder: Path, rows: Mapping[int, Labelled], report: Mapping[str, Any]) -> None:
    """groups.jsonl first, then the report, which says that they are whole."""
    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf8") as stream:
            stream.writelines(json.dumps([i, *row]) + "\n" for i, row in rows.items())

    io.put(folder / GROUPS, write)
    io.put_json(folder / REPORT, report, sort_keys=True)


def read_groups(path: Path) -> dict[int, Labelled]:
    """The groups of a groups.jsonl. Raises `Me5Error` that names a line which is none."""
    rows, texts = {}, {}
    with path.open(encoding="utf8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                i, *fields = json.loads(line)
                row = Labelled(*(tuple(field) if isinstance(field, list) else field for field in fields))
                rows[i] = row._replace(negatives=tuple(texts.setdefault(text, text) for text in row.negatives))
            except (ValueError, TypeError) as error:
                raise Me5Error(f"{path}: line {number} is no group ({error}): let a stage 2 make it again") from None
    return rows
