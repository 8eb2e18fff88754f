"""Hard negatives: passages that a search finds for a query although they are not its answer, and which of them lie.

    found = dense(queries, positives, passages, encode, encode, depth=30, likeness=True)  # or bm25(...), random(...)
    negatives, report = choose(found, queries, positives, passages, n=3, rules=[near_positive(1.06)])
    print(*lines(report), sep="\n")                                        # what every rule dropped, with samples

A search gives the best `depth` passages of every query, and the score of the query's own positive by the same measure.
`choose` then drops what is probably right after all: the same text as a positive or as the query, and whatever a `Rule`
says: likeness to a positive, NV-Retriever's relative margin (Moreira et al. 2024), others. Both ends are pure functions
of their inputs: no random state, and nothing is padded: a query that is left with fewer gets fewer, and is counted.

Cost: `choose` holds a few times what was found; a text's key is its dearest part, some µs a passage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from me5lib.data.shards import splitmix64
from me5lib.io import Me5Error
from me5lib.pairs import text_key
from me5lib.train.exact import top_k
from me5lib.train.search import Found, Index, Words, bm25, dense, nearest, random, refuse_without_positive

__all__ = ["Found", "Index", "Words", "bm25", "dense", "nearest", "random", "top_k"]  # mining is search and choice

FIRST, LAST = "same text", "not needed"  # the rules that always are, around those that are asked for
BLOCK = 1024  # queries whose candidates' texts are compared at a time


class Rule(NamedTuple):
    """A false-negative filter: which candidates of `found` may not be negatives, of those that are still `left`."""

    name: str
    drops: Callable[[Found, np.ndarray], np.ndarray]  # (found, left: bool [Q, depth]) → bool [Q, depth]


class Dropped(NamedTuple):
    """A passage that was found and not taken as a negative."""

    query: str
    positive: str
    passage: str
    rule: str
    score: float
    positive_score: float
    language: str = ""  # of the query


class MiningReport(NamedTuple):
    """What became of the candidates of all queries: kept, dropped by a rule, or not needed (`LAST`). JSON types but for
    `examples`."""

    queries: int
    candidates: int
    kept: int
    short: int  # queries that got fewer negatives than were asked for
    dropped: dict[str, int]  # rule → candidates
    examples: list[Dropped]  # some that the score rules dropped: probably right answers
    by_language: dict[str, dict[str, Any]] = {}  # language of the query → the five counts above
    languages: dict[str, dict[str, int]] = {}  # language of the query → of the passage → negatives kept
    scores: dict[str, float] = {}  # mean `positive`, `negative`, `chance` of the `scored` kept; how many are `above`
    recall: float | None = None  # lowest of the searches; None: all exact


def ceiling(positive: np.ndarray, margin: float) -> np.ndarray:
    """The highest score that a negative may have: `margin` × the positive's score, where that is positive.

    For a negative score the plain product would lie *above* it and let everything through, so the gap is taken off the
    score instead: positive − (1 − margin) · |positive|, which is the same for scores above zero.
    """
    return positive - (1 - margin) * np.abs(positive)


def relative_margin(share: float) -> Rule:
    """Drops what scores above `share` of the positive's score (NV-Retriever's TopK-PercPos), whatever its sign."""
    return Rule("relative margin", lambda found, _: found.scores > ceiling(found.positive, share)[:, None])


def absolute_margin(gap: float) -> Rule:
    """Drops what scores no more than `gap` below the positive (NV-Retriever's TopK-MarginPos)."""
    return Rule("absolute margin", lambda found, _: found.scores >= (found.positive - np.float32(gap))[:, None])


def max_score(highest: float) -> Rule:
    """Drops what scores above `highest`, whatever the positive has."""
    return Rule("maximum score", lambda found, _: found.scores > highest)


def near_positive(highest: float = 1.06) -> Rule:
    """Drops what is like a positive, a copy, an edit or a translation of the answer: `Found.likeness` above `highest`.

    However it scores with the query. 1.06 is where CCMatrix (Schwenk et al. 2021) takes two sentences for translations.
    """

    def drops(found: Found, _: np.ndarray) -> np.ndarray:
        """Likeness above the threshold; bool [Q, depth]."""
        if found.likeness is None:
            raise Me5Error("near_positive needs the candidates' likeness to the positives: dense(…, likeness=True)")
        return found.likeness > highest

    return Rule("near a positive", drops)


def choose(
    found: Found, queries: Sequence[str], positives: Sequence[Sequence[str]], passages: Sequence[str],
    n: int, margin: float | None = None, spread: bool = False, seed: int = 0, examples: int = 20, *,
    rules: Sequence[Rule] = (), own: Sequence[Sequence[str]] = (), languages: Sequence[str] = (),
    passage_languages: Sequence[str] = (),
) -> tuple[list[list[str]], MiningReport]:
    """Up to `n` negatives of every query out of what was found, and what was dropped by which rule.

    Dropped is the same text as a positive, the query or an earlier candidate; what `relative_margin(margin)` says
    (None: nothing); then what `rules` say. Of the rest the hardest are taken, or with `spread` any, by a stateless draw
    (SimLM samples from its top 200). The negatives that a query brings along, `own`, come first and count towards `n`.
    `languages` of queries and passages are for the report. Raises `Me5Error` for a query without a positive and for NaN
    among the scores.
    """
    refuse_without_positive(queries, positives)
    _refuse_nan(found, queries)
    keys = np.array([text_key(text) for text in passages], dtype=np.int64)
    asked = np.array([text_key(query) for query in queries], dtype=np.int64)
    own = own if len(own) else [()] * len(queries)
    left = found.rows >= 0
    known = [[*right, *wrong] for right, wrong in zip(positives, own, strict=True)]
    dropped = {FIRST: _same_text(found.rows, keys, asked, known)}
    left &= ~dropped[FIRST]
    for rule in [*([relative_margin(margin)] if margin is not None else []), *rules]:
        out = rule.drops(found, left) & left
        dropped[rule.name] = dropped[rule.name] | out if rule.name in dropped else out
        left &= ~out
    room = np.array([max(0, n - len(row)) for row in own], dtype=np.int64)
    taken = _taken(left, _draws(found.rows, keys, asked, seed) if spread else None, room)
    dropped[LAST] = left & ~taken
    chosen = [[*mine[:n], *(passages[j] for j in row[some])]
              for mine, row, some in zip(own, found.rows, taken, strict=True)]
    counts = _counts(found.rows, dropped, taken, room, languages)
    shown = _examples(found, dropped, (queries, positives, passages, languages), examples)
    return chosen, MiningReport(**counts[""], examples=shown, by_language={k: v for k, v in counts.items() if k},
                                languages=_pairs(found.rows, taken, languages, passage_languages),
                                scores=_scores(found, taken), recall=found.recall)


def _refuse_nan(found: Found, queries: Sequence[str]) -> None:
    """Scores are all there, or (a search that does not score) none is."""
    if len(found.rows) != len(queries):
        raise Me5Error(f"{len(queries)} queries, but candidates of {len(found.rows)}: search with the same queries")
    bad = (np.isnan(found.scores) & (found.rows >= 0)).any(axis=1) | np.isnan(found.positive)
    if bad.any() and not (np.isnan(found.scores).all() and np.isnan(found.positive).all()):
        first = int(np.flatnonzero(bad)[0])
        raise Me5Error(f"a score of query {first} ({queries[first][:40]!r}) is NaN ({bad.sum()} of {len(queries)} "
                       "queries have one): mend what scores them")


def _same_text(
    rows: np.ndarray, keys: np.ndarray, asked: np.ndarray, positives: Sequence[Sequence[str]]
) -> np.ndarray:
    """bool [Q, depth]: candidates that read like the query, a positive or an earlier candidate of theirs."""
    same = np.zeros(rows.shape, bool)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        theirs = keys[rows[part]]
        known = [np.array([key, *map(text_key, row)]) for key, row in zip(asked[part], positives[part], strict=True)]
        wide = max(map(len, known))
        table = np.stack([np.pad(row, (0, wide - len(row)), mode="edge") for row in known])
        order = theirs.argsort(axis=1, kind="stable")
        ranked = np.take_along_axis(theirs, order, axis=1)
        again = np.zeros(theirs.shape, bool)
        np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
        for column in table.T:
            again |= theirs == column[:, None]
        same[part] = again
    return same & (rows >= 0)


def _draws(rows: np.ndarray, keys: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """A hash of (seed, query, passage) for each candidate, uint64 [Q, depth]."""
    return splitmix64(keys.view(np.uint64)[rows] ^ splitmix64(asked.view(np.uint64) + np.uint64(seed))[:, None])


def _taken(left: np.ndarray, draws: np.ndarray | None, room: np.ndarray) -> np.ndarray:
    """bool [Q, depth]: of those left, the first as many as there is `room` [Q] for; the first by `draws`, if given."""
    if draws is None:
        return left & (left.cumsum(axis=1) <= room[:, None])
    order = np.lexsort((draws, ~left), axis=1)  # those left first, in the order of their draws
    taken = np.zeros(left.shape, bool)
    np.put_along_axis(taken, order, np.arange(left.shape[1]) < room[:, None], axis=1)
    return left & taken


# Report


def _counts(
    rows: np.ndarray, dropped: dict[str, np.ndarray], taken: np.ndarray, room: np.ndarray, languages: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Language → what `MiningReport` counts first; "" is all of them."""
    spoken = np.array(languages)
    found = {}
    for language in ["", *sorted(set(languages))]:
        own = spoken == language if language else np.ones(len(rows), bool)
        by_rule = {name: int(mask[own].sum()) for name, mask in dropped.items()}
        kept, candidates = taken[own].sum(axis=1), int((rows[own] >= 0).sum())
        found[language] = {"queries": int(own.sum()), "candidates": candidates, "kept": int(kept.sum()),
                           "short": int((kept < room[own]).sum()), "dropped": by_rule}  # fmt: skip
    return found


def _pairs(
    rows: np.ndarray, taken: np.ndarray, languages: Sequence[str], passage_languages: Sequence[str]
) -> dict[str, dict[str, int]]:
    """`MiningReport.languages`; empty where the languages are not told."""
    if not len(languages) or not len(passage_languages):
        return {}
    query, place = np.nonzero(taken)
    both = zip(np.array(languages)[query], np.array(passage_languages)[rows[query, place]], strict=True)
    found: dict[str, dict[str, int]] = {}
    for (left, right), times in sorted(Counter((str(q), str(p)) for q, p in both).items()):
        found.setdefault(left, {})[right] = times
    return found


def _scores(found: Found, taken: np.ndarray) -> dict[str, float]:
    """`MiningReport.scores`; empty where nothing was scored or kept."""
    query, place = np.nonzero(taken)
    if not len(query) or np.isnan(found.scores[query, place]).any():
        return {}
    theirs, own = found.scores[query, place], found.positive[query]
    means = {"positive": own, "negative": theirs, **({} if found.chance is None else {"chance": found.chance[query]})}
    return {"scored": len(query), "above": int((theirs > own).sum()),
            **{name: float(values.mean(dtype=np.float64)) for name, values in means.items()}}


def _examples(
    found: Found, dropped: dict[str, np.ndarray], texts: tuple[Sequence, Sequence, Sequence, Sequence], limit: int
) -> list[Dropped]:
    """The best-scoring candidate that each rule on scores dropped, of `limit` queries spread evenly, a rule."""
    queries, positives, passages, languages = texts
    shown = []
    for name, mask in dropped.items():
        asked = np.flatnonzero(mask.any(axis=1)) if name not in (FIRST, LAST) else np.empty(0, int)
        some = asked[np.linspace(0, len(asked) - 1, min(limit, len(asked))).astype(int)]
        for i in some.tolist():
            j = int(mask[i].argmax())
            shown.append(Dropped(queries[i], positives[i][0], passages[found.rows[i, j]], name,
                                 float(found.scores[i, j]), float(found.positive[i]),
                                 languages[i] if len(languages) else ""))
    return shown


def merge(reports: Sequence[MiningReport], examples: int = 20) -> MiningReport:
    """One report of several searches, with at most so many `examples` of each rule, spread evenly over the searches."""
    names = sorted({language for report in reports for language in report.by_language})
    by_language = {name: _added([report.by_language.get(name, {}) for report in reports]) for name in names}
    languages = {query: dict(_summed([report.languages.get(query, {}) for report in reports]))
                 for query in sorted({query for report in reports for query in report.languages})}
    recalls = [report.recall for report in reports if report.recall is not None]
    return MiningReport(**_added([report._asdict() for report in reports]), examples=_some(reports, examples),
                        by_language=by_language, languages=languages, scores=_mean_scores(reports),
                        recall=min(recalls, default=None))


def _summed(counts: Sequence[dict[str, int]]) -> Counter[str]:
    """The sums of all counts, zeros kept."""
    found: Counter[str] = Counter()
    for each in counts:
        found.update(each)
    return found


def _added(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("queries", "candidates", "kept", "short")
    dropped = {FIRST: 0, **_summed([part.get("dropped", {}) for part in parts])}
    last = dropped.pop(LAST, 0)
    return {**{name: sum(part.get(name, 0) for part in parts) for name in names}, "dropped": {**dropped, LAST: last}}


def _some(reports: Sequence[MiningReport], limit: int) -> list[Dropped]:
    shown = [example for report in reports for example in report.examples]
    found = []
    for rule in dict.fromkeys(example.rule for example in shown):
        own = [example for example in shown if example.rule == rule]
        found += [own[i] for i in np.linspace(0, len(own) - 1, min(limit, len(own))).astype(int)]
    return found


def _mean_scores(reports: Sequence[MiningReport]) -> dict[str, float]:
    scored = [report.scores for report in reports if report.scores]
    if not scored:
        return {}
    total = sum(each["scored"] for each in scored)
    means = [name for name in ("positive", "negative", "chance") if all(name in each for each in scored)]
    return {"scored": total, "above": sum(each["above"] for each in scored),
            **{name: sum(each[name] * each["scored"] for each in scored) / total for name in means}}


def lines(report: MiningReport, samples: int = 3) -> list[str]:
    """The report for human eyes: the counts, by language too, and some of what each rule dropped."""
    found = [_line("all", report._asdict())]
    found += [_line(language, counts) for language, counts in report.by_language.items()]
    if report.recall is not None:
        found.append(f"approximate search: recall {report.recall:.3f} against the exact one")
    for example in _some([report], samples):
        found.append(f"{example.rule}: {example.score:.3f}, the right answer {example.positive_score:.3f}"
                     + "".join(f"\n  {name:8} {' '.join(text.split())[:100]}" for name, text in (
                         ("query", example.query), ("right", example.positive), ("dropped", example.passage))))
    return found


def _line(name: str, counts: dict[str, Any]) -> str:
    dropped = ", ".join(f"{rule} {times:,}" for rule, times in counts["dropped"].items())
    return (f"{name:8} {counts['queries']:,} queries, {counts['candidates']:,} candidates: {counts['kept']:,} kept; "
            f"{dropped}; {counts['short']:,} queries are short of negatives")
