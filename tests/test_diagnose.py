"""A mining that went wrong says so: each fault shown on a mining that was spoilt on purpose, and a healthy one."""

import json

import numpy as np
import pytest

from me5lib.pairs import Labelled
from me5lib.train import diagnose, mining

N, TOPICS, D = 120, 12, 24
NAMES = {"right": "positives among the negatives", "easy": "too easy", "language": "one language"}


class World:
    """Questions and answers of a few topics in three languages; an answer of the same topic is a hard negative.

    Every answer has a paraphrase, which is right too. A text's vector is its topic, a part of its own, some noise.
    """

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        topics, own = rng.standard_normal((TOPICS, D)), rng.standard_normal((N, D))
        self.languages = [("de", "fr", "en")[i % 3] for i in range(N)]
        meaning = [topics[i % TOPICS] + own[i] for i in range(N)]
        self.vectors = {}
        for kind, noise in (("question", 0.5), ("answer", 0.3), ("paraphrase", 0.3)):
            for i in range(N):
                vector = meaning[i] + noise * rng.standard_normal(D)
                self.vectors[f"{kind} {i}"] = (vector / np.linalg.norm(vector)).astype(np.float32)
        self.questions, self.answers, self.paraphrases = (
            [f"{kind} {i}" for i in range(N)] for kind in ("question", "answer", "paraphrase"))
        self.right = [[text] for text in self.answers]

    def encode(self, texts):
        """Unit vectors."""
        return np.stack([self.vectors[text] for text in texts])

    def mine(self, pool, languages=None, n=4, margin=0.95, depth=20, skip=0):
        """Negatives and report."""
        found = mining.dense(self.questions, self.right, pool, self.encode, self.encode, depth, skip)
        return mining.choose(found, self.questions, self.right, pool, n, margin, languages=self.languages,
                             passage_languages=languages or self.languages)

    def rows(self, negatives):
        """As labelled examples."""
        every = zip(self.questions, self.answers, negatives, self.languages, strict=True)
        return [Labelled(query, (right,), tuple(wrong), "made up", language) for query, right, wrong, language in every]


@pytest.fixture(scope="module")
def world():
    return World()


def names(findings):
    return [finding.name for finding in findings]


def both(world, negatives, report):
    """The findings of the report, which the rows must have too."""
    found = diagnose.negatives(report)
    assert names(diagnose.negatives(world.rows(negatives), world.encode, world.encode)) == names(found)
    return found


def test_a_healthy_mining_has_no_finding(world):
    assert both(world, *world.mine(world.answers)) == []
    within = []
    for language in ("de", "fr", "en"):
        at = [i for i in range(N) if world.languages[i] == language]
        queries, pool = [world.questions[i] for i in at], [world.answers[i] for i in at]
        right = [world.right[i] for i in at]
        found = mining.dense(queries, right, pool, world.encode, world.encode, 10)
        within.append(mining.choose(found, queries, right, pool, 2, languages=[language] * len(at),
                                    passage_languages=[language] * len(at))[1])
    report = mining.merge(within)
    assert diagnose.negatives(report) == [] and set(report.languages) == {"de", "fr", "en"}


def test_right_answers_among_the_negatives_are_found_by_their_scores(world):
    """Spoilt: the pool holds every answer's paraphrase, and no margin keeps them out."""
    pool, languages = world.answers + world.paraphrases, world.languages * 2
    negatives, report = world.mine(pool, languages, margin=None)
    (finding,) = both(world, negatives, report)
    assert finding.name == NAMES["right"] and finding.figure > diagnose.ABOVE
    assert finding.figure == report.scores["above"] / report.kept
    assert f"{finding.figure:.1%}" in str(finding) and "margin" in str(finding)
    assert NAMES["right"] not in names(diagnose.negatives(world.mine(pool, languages)[1]))


def test_right_answers_among_the_negatives_are_found_by_their_text(world):
    """Spoilt: every third row has its own positive, or its query, as a negative; told without an encoder."""
    negatives, _ = world.mine(world.answers)
    for i in range(0, N, 3):
        negatives[i][0] = world.answers[i].upper() if i % 2 else f" {world.questions[i]}"
    (finding,) = diagnose.negatives(world.rows(negatives))
    assert finding.name == NAMES["right"] and finding.figure == pytest.approx(40 / 480)
    assert "40 of 480 negatives (8.3%)" in str(finding)


def test_negatives_as_easy_as_random_ones_are_found(world):
    """Spoilt: the first half of the pool is skipped."""
    negatives, report = world.mine(world.answers, skip=N // 2)
    (finding,) = both(world, negatives, report)
    assert finding.name == NAMES["easy"] and finding.figure > diagnose.EASY
    positive, negative, chance = (report.scores[name] for name in ("positive", "negative", "chance"))
    assert finding.figure == pytest.approx((positive - negative) / (positive - chance))
    assert f"{positive - negative:.3f}" in str(finding) and "skip fewer" in str(finding)
    drawn, _ = mining.choose(mining.random(world.questions, world.answers, 8, 0), world.questions, world.right,
                             world.answers, 4)
    assert names(diagnose.negatives(world.rows(drawn), world.encode, world.encode)) == [NAMES["easy"]]


def test_chance_is_about_what_random_passages_score(world):
    """The report's cheap measure against all pairs."""
    _, report = world.mine(world.answers)
    every = world.encode(world.questions) @ world.encode(world.answers).T
    assert report.scores["chance"] == pytest.approx(every.mean(), abs=0.02)


def test_negatives_of_one_language_are_found(world):
    """Spoilt: questions in three languages, a pool in one."""
    pool = [world.answers[i] for i in range(N) if world.languages[i] == "en"]
    negatives, report = world.mine(pool, ["en"] * len(pool), n=3)
    (finding,) = both(world, negatives, report)
    assert finding.name == NAMES["language"] and finding.figure == 1.0
    assert "100% of the negatives are in en, but only" in str(finding)


def test_negatives_for_the_queries_of_one_language_only_are_found(world):
    """Spoilt: the others' pools were empty."""
    at = [i for i in range(N) if world.languages[i] == "de"]
    queries, right = [world.questions[i] for i in at], [world.right[i] for i in at]
    pool = [world.answers[i] for i in at]
    _, one = mining.choose(mining.dense(queries, right, pool, world.encode, world.encode, 9), queries, right, pool, 3,
                           languages=["de"] * len(at), passage_languages=["de"] * len(at))
    others = [mining.MiningReport(40, 0, 0, 40, {}, [], {language: {"queries": 40, "short": 40}})
              for language in ("fr", "en")]
    (finding,) = diagnose.negatives(mining.merge([one, *others]))
    assert finding.name == NAMES["language"] and "belong to queries in de, but only 33%" in str(finding)


def test_several_faults_are_all_told_and_nothing_is_nothing(world):
    rows = [Labelled("q", ("a",), ("A", "q"), "s", "en"), Labelled("r", ("b",), ("b",), "s", "en")]
    assert names(diagnose.negatives(rows)) == [NAMES["right"]]
    assert diagnose.negatives([]) == [] and diagnose.negatives(mining.merge([])) == []
    assert diagnose.negatives([Labelled("q", ("a",), (), "s", "en")]) == []
    report = world.mine(world.answers)[1]._replace(
        scores={"scored": 10, "above": 9, "positive": 0.5, "negative": 0.11, "chance": 0.1},
        languages={"de": {"en": 10}, "fr": {"en": 10}})
    findings = diagnose.negatives(report)
    assert names(findings) == list(NAMES.values())
    assert all("\n" not in str(finding) and "None" not in str(finding) for finding in findings)
    json.dumps([finding._asdict() for finding in findings])
