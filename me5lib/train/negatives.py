"""Which wrong answers a labelled example learns from: its own, mined ones, BM25's, random ones.

    picked, report = pick(rows, "mined", encoder, stage, prefixes, seed)

Negatives come from the passages of the same source and language. Nothing is padded silently: what is filled in from
elsewhere or repeated is counted.

Cost at tiny: embedding the passages for mining is seconds.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from me5lib.config import Stage
from me5lib.device import precision
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled, text_key
from me5lib.train import mining
from me5lib.train.mining import MiningReport

KINDS = ("mined", "bm25", "random", "labelled")
DEV_EXAMPLES, DEV_GROUP = 1000, 8  # ours: held-out examples that judge the teacher, and passages in each one's group
SHORT, RANDOM, ELSEWHERE, REPEATED = (
    "examples with fewer than asked for", "random passages filled in", "taken from other languages or sources",
    "repeated in their group",
)  # fmt: skip

Prefixes = Callable[[str], tuple[str, str]]  # source → before its queries, before its passages
Pools = Callable[[str | None], list[str]]


def pick(
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
    """As `pick`, for rows that the plan comes back to: up to `stage.hard_negatives` negatives for each of their
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
    return distinct(text for row in rows for text in (*row.positives, *row.negatives))


def _pools(rows: Sequence[Labelled]) -> Pools:
    """`passages` of a source over all its languages, or (None) of all sources; each made when it is first asked for."""
    return functools.cache(lambda name: passages([row for row in rows if name in (None, row.source)]))


def own_negatives(row: Labelled) -> list[str]:
    """The wrong answers that a row brings along, without any that reads like its query or a right answer of it."""
    return distinct((row.query, *row.positives, *row.negatives))[len(distinct((row.query, *row.positives))) :]


def distinct(texts: Iterable[str]) -> list[str]:
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
        return mining.choose(found, asked, right, pool, n, stage.margin or None, **told)
    fast = precision(encoder.device).name  # neighbours are sought, not scores reported
    query, passage = (
        functools.partial(encoder.encode, prefix=side, max_tokens=longest, precision=fast)
        for side, longest in zip(sides, (stage.query_tokens, stage.passage_tokens), strict=True)
    )
    found = mining.dense(asked, right, pool, query, passage, stage.mine_depth, likeness=stage.near > 0)
    rules = [mining.near_positive(stage.near)] if stage.near else []
    return mining.choose(found, asked, right, pool, n, stage.margin or None, rules=rules, own=own, **told)


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
        both = distinct([*picked[i], *more])
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
