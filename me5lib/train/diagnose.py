"""Failure signatures of stage 2: retrieval is weak; did the mining of hard negatives go wrong?

    for finding in negatives(report):                      # of `mining.choose`, or of me5 mine's report.json
        print(finding)
    negatives(rows, encode_query, encode_passage)          # of labelled examples, wherever their negatives are from

Three things go wrong, each told by a figure: right answers among the negatives (the loss pushes away what it should
pull), negatives as easy as random ones (the loss is zero and teaches nothing), and negatives in one language (the
language gives the wrong answer away, nothing has to be understood). A healthy mining gives no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from me5lib.pairs import Labelled, text_key
from me5lib.train.mining import MiningReport

ABOVE = 0.05  # ours: share of the negatives above their positive that is a finding; a margin leaves none of its own
EASY = 0.9  # ours: how near the gap to the positive may come to the gap that random passages have
ONE = 0.9  # ours: share of the negatives in one language that is a finding, where the right answers have less by half
SAMPLED = 1000  # ours: examples that are encoded

Encode = Callable[[Sequence[str]], np.ndarray]


class Finding(NamedTuple):
    """What went wrong, its figure (a share), and a sentence that says both and what to do."""

    name: str  # "positives among the negatives", "too easy", "one language"
    figure: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class _Facts(NamedTuple):
    """What is known of a mining."""

    negatives: int
    same: int  # that read like a positive or the query
    scores: Mapping[str, float]  # as `MiningReport.scores`
    asked: Counter[str]  # languages of the queries
    right: Counter[str]  # languages of the queries, and so of their right answers, of which the negatives are
    wrong: Counter[str]  # languages of those negatives


def negatives(
    mined: MiningReport | Sequence[Labelled], encode_query: Encode | None = None, encode_passage: Encode | None = None,
    languages: Mapping[str, str] | None = None,
) -> list[Finding]:
    """What is wrong with these negatives; empty where nothing is.

    Of rows the same texts are looked for in all; scores are measured on a sample where encoders (unit vectors) are
    given. `languages` says which language a negative is in; where it does not, the rows whose positive reads the same
    do. A report knows all this itself, as far as its search scored and was told languages.
    """
    facts = _of_report(mined) if isinstance(mined, MiningReport) else _of_rows(
        mined, encode_query, encode_passage, languages or {})
    found = [*_positives(facts), *_easy(facts), *_one_language(facts)]
    return found if facts.negatives else []


def _of_report(report: MiningReport) -> _Facts:
    asked = Counter({language: counts["queries"] for language, counts in report.by_language.items()})
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for language, theirs in report.languages.items():
        right[language] += sum(theirs.values())
        wrong.update(theirs)
    return _Facts(report.kept, 0, report.scores, asked, +right, wrong)


def _of_rows(
    rows: Sequence[Labelled], encode_query: Encode | None, encode_passage: Encode | None, languages: Mapping[str, str]
) -> _Facts:
    spoken = {text_key(text): row.language for row in reversed(rows) for text in row.positives}
    spoken |= {text_key(text): language for text, language in languages.items()}
    same, right, wrong = 0, Counter(), Counter()
    for row in rows:
        known = {text_key(text) for text in (row.query, *row.positives)}
        keys = [text_key(text) for text in row.negatives]
        same += sum(key in known for key in keys)
        told = [spoken[key] for key in keys if spoken.get(key)]
        wrong.update(told)
        right[row.language] += len(told)
    scores = _scores(rows, encode_query, encode_passage) if encode_query and encode_passage else {}
    asked = Counter(row.language for row in rows)
    return _Facts(sum(len(row.negatives) for row in rows), same, scores, asked, +right, wrong)


def _scores(rows: Sequence[Labelled], encode_query: Encode, encode_passage: Encode) -> dict[str, float]:
    """`MiningReport.scores` of a sample of the rows; chance is another row's positive."""
    rows = [row for row in rows if row.negatives]
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int)]
    if len(rows) < 2:
        return {}
    asked = encode_query([row.query for row in rows])
    positive = _best([row.positives for row in rows], asked, encode_passage)
    others = encode_passage([row.positives[0] for row in rows])
    owner = np.repeat(np.arange(len(rows)), [len(row.negatives) for row in rows])
    theirs = np.einsum("nd,nd->n", asked[owner], encode_passage([text for row in rows for text in row.negatives]))
    chance = (asked @ others.sum(0) - np.einsum("nd,nd->n", asked, others)) / (len(rows) - 1)
    return {"scored": len(theirs), "above": int((theirs > positive[owner]).sum()), "negative": float(theirs.mean()),
            "positive": float(positive[owner].mean()), "chance": float(chance[owner].mean())}  # fmt: skip


def _best(groups: Sequence[Sequence[str]], asked: np.ndarray, encode: Encode) -> np.ndarray:
    """Each query's score with the best of its positives: [n] of queries [n, d]."""
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    found = np.full(len(groups), -np.inf)
    vectors = encode([text for group in groups for text in group])
    np.maximum.at(found, owner, np.einsum("nd,nd->n", asked[owner], vectors))
    return found


def _positives(facts: _Facts) -> list[Finding]:
    found = []
    name = "positives among the negatives"
    if facts.same:
        share = facts.same / facts.negatives
        found.append(Finding(name, share, (
            f"{facts.same:,} of {facts.negatives:,} negatives ({share:.1%}) read like the query or one of its right "
            "answers: mine again with `mining.choose`, which drops the same text")))
    if facts.scores and (share := facts.scores["above"] / facts.scores["scored"]) > ABOVE:
        found.append(Finding(name, share, (
            f"{share:.1%} of the negatives score above the right answer, so many of them probably are right: look "
            "at them, and filter more (`near`, lower than 1.06, or a margin)")))
    return found


def _easy(facts: _Facts) -> list[Finding]:
    """A negative's gap to the positive, in gaps that a random passage has: 1 is as easy as random, 0 as hard as can be.

    Says nothing where random passages score as high as the positive: there the encoder is at fault, not the mining.
    """
    if "chance" not in facts.scores or facts.scores["positive"] <= facts.scores["chance"]:
        return []
    positive, negative, chance = (facts.scores[name] for name in ("positive", "negative", "chance"))
    share = (positive - negative) / (positive - chance)
    if share <= EASY:
        return []
    return [Finding("too easy", share, (
        f"the negatives score {positive - negative:.3f} below the right answer, {share:.0%} of the gap that random "
        f"passages have ({positive - chance:.3f}), so they teach little more: skip fewer of the first passages, or "
        "mine with a better encoder or in a larger pool"))]


def _one_language(facts: _Facts) -> list[Finding]:
    found = []
    if (one := _alone(facts.wrong, facts.right)) is not None:
        language, share, own = one
        found.append(Finding("one language", share, (
            f"{share:.0%} of the negatives are in {language}, but only {own:.0%} of the right answers, so the language "
            "alone tells them apart: mine within each language, or in a pool that has them all")))
    if (one := _alone(facts.right, facts.asked)) is not None:
        language, share, own = one
        found.append(Finding("one language", share, (
            f"{share:.0%} of the negatives belong to queries in {language}, but only {own:.0%} of the queries do, so "
            "the others learn from next to none: give their languages passages to mine, or mine across languages")))
    return found


def _alone(these: Counter[str], those: Counter[str]) -> tuple[str, float, float] | None:
    """The language that nearly all of `these` are in, but less than half as many of `those`; its share of both."""
    if not these.total() or not those.total():
        return None
    language, times = these.most_common(1)[0]
    share, own = times / these.total(), those[language] / those.total()
    return (language, share, own) if share > ONE and own < share / 2 else None
