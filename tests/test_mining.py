"""Mining against brute force; the rules that keep a right answer from being called wrong."""

import unicodedata

import numpy as np
import pytest

from me5lib import device
from me5lib.io import Me5Error
from me5lib.train import exact, mining, search

RNG = np.random.default_rng(0)


def unit(n, d=8, rng=RNG):
    vectors = rng.standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute(queries, passages, k):
    """Rows of the k largest products of each query, all of them sorted; the lower row first of equal ones."""
    return [sorted(range(len(passages)), key=lambda j: (-float(query @ passages[j]), j))[:k] for query in queries]


@pytest.fixture(params=["bf16", "fp32"])
def way(request, monkeypatch):
    """Both ways to the same result: a sieve in bf16, as where the CPU has it, and fp32 alone."""
    monkeypatch.setattr(device, "precision", lambda _: device.Precision(request.param, ""))
    return request.param


@pytest.mark.parametrize(("q", "p", "k"), [(5, 40, 7), (9, 40, 40), (3, 4, 10), (1, 1, 1), (6, 700, 2), (6, 700, 30),
                                           (0, 5, 2), (9, 65, 4), (9, 64, 4)])
def test_top_k_is_exact_across_blocks(monkeypatch, way, q, p, k):
    monkeypatch.setattr(exact, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(exact, "BLOCK_PASSAGES", 64)
    queries, passages = unit(q), unit(p)
    rows, scores = mining.top_k(queries, passages, k)
    assert rows.shape == scores.shape == (q, min(k, p)) and rows.tolist() == brute(queries, passages, k)
    for i in range(q):
        assert scores[i] == pytest.approx([queries[i] @ passages[j] for j in rows[i]], abs=1e-6)


@pytest.mark.parametrize("spread", [3e-1, 3e-2, 3e-3])
def test_scores_that_bf16_cannot_tell_apart_are_told_apart(way, spread):
    """Vectors about a common direction, as mE5's: cosines differ by less and less, down to a part of bf16's step."""
    rng = np.random.default_rng(2)
    common = rng.standard_normal(64)
    passages = common / np.linalg.norm(common) + spread * rng.standard_normal((5000, 64)) / 8
    queries = passages[:40] + spread * rng.standard_normal((40, 64)) / 8
    passages, queries = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (passages, queries))
    rows, _ = mining.top_k(queries, passages, 20)
    true = queries.astype(np.float64) @ passages.astype(np.float64).T
    best = np.argsort(-true, axis=1)[:, :20]
    gaps = np.take_along_axis(true, best, 1) - np.take_along_axis(true, rows, 1)
    assert np.abs(gaps).max() < 5e-7  # the same rows, but where fp32 itself sees a tie
    near = exact._Coarse.of(passages).sweep(queries, 20)
    assert (near is not None) == (spread == 3e-1)  # of the narrower ones bf16 leaves too many open
    if near is not None:
        assert 20 < near.shape[1] <= exact.WIDE * 20
        assert all(set(row) <= set(own) for row, own in zip(best.tolist(), near.tolist(), strict=True))


def test_where_bf16_tells_nothing_apart_fp32_does(way):
    """All passages within one step of bf16: the sieve gives up, the result stands."""
    passages = np.ones((3000, 4), np.float32)
    passages[:, 0] += np.random.default_rng(3).permutation(3000) * np.float32(1e-6)
    passages[:, 1] = np.linspace(-1, 1, 3000, dtype=np.float32)  # the mean of which is no passage
    queries = np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], np.float32)
    if way == "bf16":
        assert exact._Coarse.of(passages).sweep(queries, 3) is None
    rows, _ = mining.top_k(queries, passages, 3)
    assert rows.tolist() == brute(queries, passages, 3)


def test_equal_scores_are_given_in_the_order_of_the_passages(monkeypatch, way):
    monkeypatch.setattr(exact, "BLOCK_PASSAGES", 32)
    passages = np.ones((80, 2), np.float32)
    rows, _ = mining.top_k(passages[:2], passages, 2)
    assert rows.tolist() == [[0, 1]] * 2
    rows, _ = mining.top_k(passages[:2], passages, 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2
    passages[[70, 75]] *= 2
    rows, _ = mining.top_k(passages[:2], passages, 4)
    assert rows.tolist() == [[70, 75, 0, 1]] * 2


def test_scores_that_are_equal_in_fp32_only_are_too(way):
    """All products are exactly 1, though bf16 sees them differ."""
    parts = np.random.default_rng(4).integers(1, 4096, 60).astype(np.float32) / 4096
    rows, scores = mining.top_k(np.ones((1, 2), np.float32), np.stack([parts, 1 - parts], axis=1), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] and (scores == 1).all()


def test_best_passages_that_come_last_are_found(monkeypatch, way):
    """Scores that rise with the row are the worst case: every block beats all before it."""
    monkeypatch.setattr(exact, "BLOCK_PASSAGES", 48)
    passages = np.linspace(0, 1, 500, dtype=np.float32)[:, None]
    rows, _ = mining.top_k(np.ones((3, 1), np.float32), passages, 3)
    assert rows.tolist() == [[499, 498, 497]] * 3
    rows, _ = mining.top_k(-np.ones((3, 1), np.float32), passages, 3)
    assert rows.tolist() == [[0, 1, 2]] * 3  # and all scores below zero


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(Me5Error, match="queries have 8 dimensions and passages 9"):
        mining.top_k(unit(2), unit(2, 9), 1)
    spoilt = unit(5)
    spoilt[3, 2] = np.nan
    with pytest.raises(Me5Error, match=r"passage 3 is not finite \(1 of 5"):
        mining.top_k(unit(2), spoilt, 1)
    with pytest.raises(Me5Error, match="query 3 is not finite"):
        mining.top_k(spoilt, unit(2), 1)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_says_what_it_misses(kind):
    rng = np.random.default_rng(1)
    passages, queries = unit(3000, 32, rng), unit(50, 32, rng)
    index = mining.Index(passages, kind)
    rows, scores = index.search(queries, 10)
    exact, _ = mining.top_k(queries, passages, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert index.recall(queries, 10) == pytest.approx(hits) and 0.1 < hits
    assert scores[0, 0] == pytest.approx(queries[0] @ passages[rows[0, 0]], abs=1e-6)
    with pytest.raises(Me5Error, match="queries have 8 dimensions"):
        index.search(unit(2), 10)
    right = mining.nearest(queries, np.arange(50), queries, index, 10)
    _, report = mining.choose(right, [f"q{i}" for i in range(50)], [["right"]] * 50, [str(i) for i in range(3000)], 2)
    assert report.recall == pytest.approx(hits) and any("recall" in line for line in mining.lines(report))


def test_a_large_pool_is_searched_approximately_a_small_one_exactly(monkeypatch):
    assert mining.Index(unit(300), "auto").kind == "exact" and mining.Index(unit(300)).recall(unit(3), 5) is None
    monkeypatch.setattr(search, "LARGE", 200)
    assert mining.Index(unit(300), "auto").kind == "ivf"
    with pytest.raises(Me5Error, match="there is no index 'pq': choose one of exact, ivf, hnsw"):
        mining.Index(unit(3), "pq")


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
    assert report.dropped == {"same text": 4, "relative margin": 1, "not needed": 0}  # lyon reads like Lyon
    assert (report.queries, report.candidates, report.kept, report.short) == (1, 7, 2, 0)
    assert report.examples == [mining.Dropped("Capital of  France?", "Paris", "Lyon", "relative margin",
                                              pytest.approx(0.90), pytest.approx(0.92))]


def test_a_negative_positive_score_still_drops_what_lies_above_it():
    found = hand([-0.50, -0.82, -0.90], -0.80)
    negatives, report = mining.choose(found, ["q"], [["right"]], ["a", "b", "c"], n=3, margin=0.95)
    assert negatives == [["c"]] and report.dropped["relative margin"] == 2 and report.short == 1


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


SPELT = {  # words that are one, in scripts whose vowels or points are marks
    "Devanagari": "किताब क़लम हिन्दी", "Bengali": "বাংলা ভাষা কৌতূহল", "Tamil": "தமிழ் மொழி", "Telugu": "తెలుగు భాష",
    "Sinhala": "ශ්‍රී ලංකාව සිංහල", "Malayalam": "മലയാളം അവന്‍", "Tibetan": "བོད སྐད ཡིག", "Hebrew": "שָׁלוֹם עֲלֵיכֶם",
    "Arabic": "العَرَبِيَّةُ لُغَةٌ", "Persian": "می‌خواهم کتاب", "Vietnamese": "tiếng việt nam", "Yoruba": "ẹ̀kọ́ yorùbá",
}


@pytest.mark.parametrize("script", SPELT)
def test_marks_stay_with_their_letter_in_words(script):
    """However the text is composed."""
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, SPELT[script])
        assert search.words(f"«{text}»!") == [unicodedata.normalize("NFKC", word) for word in text.split()]


@pytest.mark.parametrize(("text", "pairs"), [
    ("ภาษาไทย", "ภา าษ ษา าไ ไท ทย"), ("ที่นี่", "ที่นี่"), ("ດີຫຼາຍ", "ດີຫຼ ຫຼາ າຍ"), ("ភាសាខ្មែរ", "ភាសា សាខ្ ខ្មែ មែរ"),
    ("မြန်မာစာ", "မြန် န်မာ မာစာ"), ("日本語の本", "日本 本語 語の の本"), ("か゚き", "か゚き"), ("本", "本"),
])
def test_marks_stay_with_their_letter_in_pairs_of_unspaced_scripts(text, pairs):
    assert search.words(text) == unicodedata.normalize("NFKC", pairs).split()


def test_signs_that_nobody_sees_and_turkish_capitals_do_not_part_a_word():
    assert search.words("Donau\u00addampf ❤\ufe0f 1\ufe0f\u20e3 İSTANBUL istanbul don't 😀") == [
        "donaudampf", "1", "istanbul", "istanbul", "don", "t"]


def test_texts_without_a_word_find_nothing_and_are_found_by_nothing():
    found = mining.bm25(["😀", "word"], [["🤐"], ["a word"]], ["🤐", "!", "a word"], depth=3)
    assert found.rows.tolist() == [[-1, -1, -1], [2, -1, -1]] and found.positive[0] == 0 < found.positive[1]
    found = mining.bm25(["😀", "🤐"], [["🤐"], ["!"]], ["🤐", "!"], depth=2)
    assert (found.rows == -1).all() and not found.positive.any()
    _, report = mining.choose(found, ["😀", "🤐"], [["🤐"], ["!"]], ["🤐", "!"], 1)
    assert (report.candidates, report.kept, report.short) == (0, 0, 2)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_equal_passages_come_lowest_row_first_in_every_index(kind):
    one = unit(200, 16, np.random.default_rng(5))
    index, queries = mining.Index(np.concatenate([one, one, one]), kind), one[:40]
    assert index.kind == kind
    rows, scores = index.search(queries, 3)
    assert rows.tolist() == [[i, 200 + i, 400 + i] for i in range(40)] and (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("n", [1, 5, 15, 200])
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_too_few_passages_for_an_index_are_searched_exactly(kind, n):
    passages, queries = unit(n), unit(3)
    index = mining.Index(passages, kind)
    assert index.kind == "exact" and index.recall(queries, 2) is None
    assert index.search(queries, 4)[0].tolist() == brute(queries, passages, 4)


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


PASSAGES = [f"p{i}" for i in range(8)]
SCORES = [0.95, 0.86, 0.84, 0.79, 0.70, 0.60, 0.50, -0.20]


def kept(positive=0.9, margin=None, scores=SCORES, **options):
    """Which of `PASSAGES` a query with a positive of this score keeps of all, and the report."""
    passages = options.pop("passages", PASSAGES)
    (found,), report = mining.choose(hand(scores, positive), ["q"], [["right"]], passages, 8, margin, **options)
    return [int(name[1:]) for name in found], report


def test_each_rule_by_hand():
    assert kept()[0] == list(range(8))
    assert kept(margin=0.95)[0] == list(range(2, 8))  # 0.855
    assert kept(rules=[mining.absolute_margin(0.1)])[0] == list(range(3, 8))  # 0.8: 0.84 is within 0.1 of 0.9
    assert kept(0.5, rules=[mining.absolute_margin(0.0)])[0] == [7]  # equal to the positive is dropped
    assert kept(rules=[mining.max_score(0.6)])[0] == [5, 6, 7]  # as high is not above
    assert kept(-0.1, margin=0.5)[0] == [7]  # -0.15
    _, report = kept(margin=0.95, rules=[mining.absolute_margin(0.1), mining.max_score(0.65)])
    assert report.dropped == {"same text": 0, "relative margin": 2, "absolute margin": 1, "maximum score": 2,
                              "not needed": 0}  # each counts what those before it left
    assert [example.rule for example in report.examples] == ["relative margin", "absolute margin", "maximum score"]
    assert [example.passage for example in report.examples] == ["p0", "p2", "p3"]


def test_what_is_like_a_positive_is_dropped_however_it_scores():
    """Pairs of near-copies among unrelated texts; the likeness against its formula, each pair of texts at a time."""
    rng = np.random.default_rng(5)
    base = unit(30, 16, rng)
    copies = base + 0.05 * unit(30, 16, rng)
    passages = np.concatenate([base, copies / np.linalg.norm(copies, axis=1, keepdims=True)])
    names = [f"p{i}" for i in range(60)]
    owner, right = np.array([0, 0, 1]), passages[[3, 7, 11]]
    found = mining.nearest(unit(2, 16, rng), owner, right, mining.Index(passages), 60, likeness=True)
    cosine = passages @ passages.T
    crowd = [np.sort(np.delete(row, i))[-4:].mean() for i, row in enumerate(cosine)]
    for i, own in enumerate(([3, 7], [11])):
        for j, row in enumerate(found.rows[i]):
            expected = max(cosine[row, one] / ((crowd[row] + crowd[one]) / 2) for one in own)
            assert found.likeness[i, j] == pytest.approx(expected, abs=1e-4)
    rules = [mining.near_positive()]
    kept, report = mining.choose(found, ["q", "r"], [["p3", "p7"], ["p11"]], names, 60, None, rules=rules)
    assert not {"p33", "p37"} & set(kept[0]) and "p41" not in kept[1]
    assert report.dropped["near a positive"] <= 5 and report.kept >= 112
    with pytest.raises(Me5Error, match="likeness=True"):
        mining.choose(hand(SCORES, 0.9), ["q"], [["right"]], PASSAGES, 8, None, rules=rules)


def test_bad_input_is_named():
    found = hand(SCORES, 0.9)
    with pytest.raises(Me5Error, match=r"query 0 \('what\?'\) has no positive \(1 of 1"):
        mining.choose(found, ["what?"], [[]], PASSAGES, 2)
    with pytest.raises(Me5Error, match="query 1 .* has no positive"):
        mining.bm25(["a", "b"], [["c"], []], ["c"], 1)
    with pytest.raises(Me5Error, match="2 queries, but candidates of 1"):
        mining.choose(found, ["a", "b"], [["c"], ["d"]], PASSAGES, 2)
    with pytest.raises(Me5Error, match="2 queries and positives of 1"):
        mining.choose(found, ["a", "b"], [["c"]], PASSAGES, 2)
    with pytest.raises(Me5Error, match=r"score of query 0 \('a'\) is NaN"):
        mining.choose(hand([0.9, np.nan], 0.9), ["a"], [["c"]], PASSAGES, 2)
    with pytest.raises(Me5Error, match="is NaN"):
        mining.choose(hand([0.9, 0.8], np.nan), ["a"], [["c"]], PASSAGES, 2)


def test_too_few_are_counted_and_nothing_is_padded():
    found, report = kept(rules=[mining.max_score(0.55)])
    assert found == [6, 7] and (report.kept, report.short) == (2, 1)


def test_own_negatives_come_first_and_are_not_mined_again():
    (found,), report = mining.choose(hand(SCORES, 2.0), ["q"], [["right"]], PASSAGES, 4, own=[["P1", "x"]])
    assert found == ["P1", "x", "p0", "p2"] and (report.kept, report.short) == (2, 0)
    assert report.dropped == {"same text": 1, "not needed": 5}
    (found,), report = mining.choose(hand(SCORES, 2.0), ["q"], [["right"]], PASSAGES, 1, own=[["P1", "x"]])
    assert found == ["P1"] and (report.kept, report.short) == (0, 0)


def two_languages():
    """A report of four queries in two languages over six passages in three."""
    rows = np.array([[0, 1, 2], [1, 2, 3], [4, 5, 0], [5, 4, -1]])
    scores = np.array([[0.9, 0.5, 0.4], [0.5, 0.4, 0.3], [0.8, 0.2, 0.1], [0.7, 0.6, -np.inf]], np.float32)
    found = mining.Found(rows, scores, np.full(4, 0.75, np.float32), np.array([0.1, 0.1, 0.3, 0.3], np.float32))
    return mining.choose(found, list("abcd"), [["r"]] * 4, [f"p{i}" for i in range(6)], 2, 1.0,
                         languages=["de", "de", "fr", "fr"], passage_languages=["de", "de", "en", "en", "fr", "fr"])


def test_the_report_tells_the_languages_apart():
    negatives, report = two_languages()
    assert negatives == [["p1", "p2"], ["p1", "p2"], ["p5", "p0"], ["p5", "p4"]]
    dropped = {"same text": 0, "relative margin": 1, "not needed": 1}
    assert report.by_language["de"] == {"queries": 2, "candidates": 6, "kept": 4, "short": 0, "dropped": dropped}
    assert report.by_language["fr"] == {"queries": 2, "candidates": 5, "kept": 4, "short": 0,
                                        "dropped": dropped | {"not needed": 0}}
    assert report.languages == {"de": {"de": 2, "en": 2}, "fr": {"de": 1, "fr": 3}}
    assert [example.language for example in report.examples] == ["de", "fr"]
    scores = [0.5, 0.4, 0.5, 0.4, 0.2, 0.1, 0.7, 0.6]
    assert report.scores == pytest.approx({"scored": 8, "above": 0, "positive": 0.75, "negative": np.mean(scores),
                                           "chance": 0.2})
    text = "\n".join(mining.lines(report))
    assert "de       2 queries, 6 candidates: 4 kept" in text and "0.900, the right answer 0.750" in text


def test_reports_of_parts_merge_to_the_report_of_the_whole():
    _, whole = two_languages()
    _, other = kept(margin=0.95)
    merged = mining.merge([whole, whole, other])
    assert merged.queries == 9 and merged.dropped["relative margin"] == 6
    assert merged.by_language["de"]["candidates"] == 12 and merged.languages["fr"] == {"de": 2, "fr": 6}
    assert merged.scores["scored"] == 22 and "chance" not in merged.scores  # one of them does not know it
    assert merged.scores["negative"] == pytest.approx((2 * 3.4 + sum(SCORES[2:])) / 22)
    assert mining.merge([]) == mining.MiningReport(0, 0, 0, 0, {"same text": 0, "not needed": 0}, [])
    import json

    assert json.loads(json.dumps(merged._replace(examples=[])._asdict()))["kept"] == 22


def test_bm25_gives_equal_scores_in_the_order_of_the_passages():
    passages = ["dog", "cat one", "cat two", "cat red", "cat"]
    assert mining.bm25(["cat"], [["cat"]], passages, depth=3).rows.tolist() == [[4, 1, 2]]
    assert mining.bm25(["cat"], [["cat"]], passages, depth=2, skip=1).rows.tolist() == [[1, 2]]
    assert mining.bm25(["cat"], [["cat"]], passages, depth=9, skip=3).rows.tolist() == [[3, -1]]


def test_a_draw_differs_from_query_to_query():
    found = mining.Found(np.tile(np.arange(40), (60, 1)), np.tile(np.linspace(0.9, 0.1, 40, dtype=np.float32), (60, 1)),
                         np.full(60, 2.0, np.float32))
    negatives, _ = mining.choose(found, [f"q{i}" for i in range(60)], [["r"]] * 60, [f"p{i}" for i in range(40)], 4,
                                 spread=True)
    assert len({name for row in negatives for name in row}) > 35 and len({tuple(row) for row in negatives}) > 55
