"""Mining against brute force; the rules that keep a right answer from being called wrong."""

import numpy as np
import pytest

from me5lib.train import mining

RNG = np.random.default_rng(0)


def unit(n, d=8, rng=RNG):
    vectors = rng.standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("q", "p", "k"), [(5, 40, 7), (9, 40, 40), (3, 4, 10), (1, 1, 1)])
def test_top_k_is_exact_across_blocks(monkeypatch, q, p, k):
    monkeypatch.setattr(mining, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(mining, "BLOCK_PASSAGES", 11)
    queries, passages = unit(q), unit(p)
    rows, scores = mining.top_k(queries, passages, k)
    for i in range(q):
        everything = sorted(range(p), key=lambda j: -float(queries[i] @ passages[j]))[:k]
        assert rows[i].tolist() == everything
        assert scores[i] == pytest.approx([queries[i] @ passages[j] for j in everything], abs=1e-6)


def test_equal_scores_are_given_in_the_order_of_the_passages(monkeypatch):
    monkeypatch.setattr(mining, "BLOCK_PASSAGES", 3)
    passages = np.ones((8, 2), np.float32)
    rows, _ = mining.top_k(passages[:2], passages, 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(("score", "limit"), [(0.8, 0.76), (0.0, 0.0), (-0.8, -0.84)])
def test_the_margin_lies_below_the_positive_whatever_its_sign(score, limit):
    assert mining.ceiling(np.array([score]), 0.95)[0] == pytest.approx(limit)


def hand(scores, positive):
    """What a search found for one query: passages 0, 1, 2 … with these scores."""
    return mining.Found(np.arange(len(scores))[None], np.array([scores], np.float32), np.array([positive], np.float32))


def test_the_rules_by_hand():
    passages = ["Paris", "PARIS ", "capital of France?", "Lyon", "Nice", "Lille", "lyon"]
    found = hand([0.99, 0.98, 0.97, 0.90, 0.85, 0.70, 0.60], 0.92)
    negatives, report = mining.choose(found, ["Capital of  France?"], [["Paris"]], passages, n=2, margin=0.95)
    assert negatives == [["Nice", "Lille"]]  # the limit is 0.95 × 0.92 = 0.874
    assert report.dropped == {"same text": 3, "too close": 1, "not needed": 1}
    assert (report.queries, report.candidates, report.kept, report.short) == (1, 7, 2, 0)
    assert report.examples == [mining.Dropped("Capital of  France?", "Paris", "Lyon", "too close",
                                              pytest.approx(0.90), pytest.approx(0.92))]


def test_a_negative_positive_score_still_drops_what_lies_above_it():
    found = hand([-0.50, -0.82, -0.90], -0.80)
    negatives, report = mining.choose(found, ["q"], [["right"]], ["a", "b", "c"], n=3, margin=0.95)
    assert negatives == [["c"]] and report.dropped["too close"] == 2 and report.short == 1


def test_every_candidate_is_accounted_for():
    passages = [f"text {i % 30}" for i in range(40)]
    queries = [f"query {i}" for i in range(6)]
    rows, scores = mining.top_k(unit(6), unit(40), 20)
    found = mining.Found(rows, scores, np.full(6, 0.5, np.float32))
    negatives, report = mining.choose(found, queries, [["text 3"]] * 6, passages, n=4, margin=0.95)
    assert report.candidates == 120 == report.kept + sum(report.dropped.values())
    assert report.kept == sum(map(len, negatives)) and all(len(set(row)) == len(row) for row in negatives)
    assert not any("text 3" in row for row in negatives)


def test_dense_scores_the_best_positive_and_skips_the_first():
    vectors = {f"p{i}": vector for i, vector in enumerate(unit(12))}
    asked = {"q": unit(1)[0]}

    def query(texts):
        return np.stack([asked[text] for text in texts])

    def passage(texts):
        return np.stack([vectors[text] for text in texts])

    ranked = sorted(vectors, key=lambda name: -float(asked["q"] @ vectors[name]))
    found = mining.dense(["q"], [("p4", "p7")], list(vectors), query, passage, depth=3, skip=2)
    assert [f"p{i}" for i in found.rows[0]] == ranked[2:5]
    assert found.positive[0] == pytest.approx(max(asked["q"] @ vectors["p4"], asked["q"] @ vectors["p7"]))


def test_bm25_finds_shared_words_and_nothing_else():
    passages = ["the capital of France is Paris", "trains in France", "東京は日本の首都です", "nothing here", "Paris"]
    found = mining.bm25(["capital of France", "日本の首都", "zzz", "?"], [["Paris"]] * 4, passages, depth=4)
    assert found.rows[0, 0] == 0 and set(found.rows[0, 1:]) == {1, -1}
    assert found.rows[1].tolist() == [2, -1, -1, -1]
    assert (found.rows[2:] == -1).all()
    outside = mining.bm25(["capital"], [["a capital answer"]], passages, depth=2)
    assert outside.positive[0] > 0  # a positive that is not among the passages is scored too


def test_bm25_scores_against_its_formula():
    texts = ["a a b", "b c", "c c c d"]
    found = mining.bm25(["a c"], [["b c"]], texts, depth=3)
    documents = [text.split() for text in texts]
    average, n = np.mean([len(d) for d in documents]), len(texts)

    def score(d):
        total = 0.0
        for term in ("a", "c"):
            df, tf = sum(term in other for other in documents), d.count(term)
            total += np.log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + 1.5 * (0.25 + 0.75 * len(d) / average))
        return total

    assert found.positive[0] == pytest.approx(score(documents[1]), rel=1e-5)
    assert found.scores[0] == pytest.approx(sorted((score(d) for d in documents), reverse=True), rel=1e-5)


def test_random_negatives_are_the_same_every_time_and_spread_over_the_pool():
    queries, passages = [f"q{i}" for i in range(400)], [f"p{i}" for i in range(10)]
    first, again, other = (mining.random(queries, passages, 5, seed) for seed in (1, 1, 2))
    assert (first.rows == again.rows).all() and (first.rows != other.rows).any()
    turned = mining.random(queries[::-1], passages, 5, 1)
    assert (turned.rows[::-1] == first.rows).all()  # a query's draw does not depend on its neighbours
    counts = np.bincount(first.rows.ravel(), minlength=10)
    assert counts.min() > 140 and counts.max() < 260  # 200 each, four standard deviations


def test_spread_takes_other_than_the_hardest_and_is_stable():
    found = hand(np.linspace(0.9, 0.1, 50), 2.0)
    passages = [f"p{i}" for i in range(50)]
    hard, _ = mining.choose(found, ["q"], [["right"]], passages, n=5)
    spread, _ = mining.choose(found, ["q"], [["right"]], passages, n=5, spread=True)
    again, _ = mining.choose(found, ["q"], [["right"]], passages, n=5, spread=True)
    assert hard == [passages[:5]] and spread != hard and spread == again


def test_planted_copies_of_the_answer_are_caught():
    """A search that ranks by meaning finds the planted paraphrase on top; the margin keeps it out."""
    answers = unit(30, 16)
    paraphrases = answers + 0.02 * unit(30, 16)
    paraphrases /= np.linalg.norm(paraphrases, axis=1, keepdims=True)
    queries = answers + 0.1 * unit(30, 16)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    texts = [f"answer {i}" for i in range(30)] + [f"paraphrase {i}" for i in range(30)]
    vectors = dict(zip(texts, np.concatenate([answers, paraphrases]), strict=True))
    asked = dict(zip([f"q{i}" for i in range(30)], queries, strict=True))
    found = mining.dense(list(asked), [[f"answer {i}"] for i in range(30)], texts,
                         lambda names: np.stack([asked[n] for n in names]),
                         lambda names: np.stack([vectors[n] for n in names]), depth=10)
    kept, _ = mining.choose(found, list(asked), [[f"answer {i}"] for i in range(30)], texts, 3, margin=None)
    assert sum(f"paraphrase {i}" in row for i, row in enumerate(kept)) == 30
    kept, _ = mining.choose(found, list(asked), [[f"answer {i}"] for i in range(30)], texts, 3, margin=0.95)
    assert sum(f"paraphrase {i}" in row for i, row in enumerate(kept)) == 0
