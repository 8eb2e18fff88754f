"""Exact and approximate search against brute force; BM25 against its formula, and words in every script."""

import unicodedata

import numpy as np
import pytest

from me5lib import device
from me5lib.io import Me5Error
from me5lib.pairs import Labelled
from me5lib.train import search
from me5lib.train.search import BM25Index, DenseIndex, Pool

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


@pytest.mark.parametrize(("q", "p", "k"), [(5, 40, 7), (9, 40, 40), (3, 4, 10), (1, 1, 1), (6, 700, 2), (6, 700, 30),
                                           (0, 5, 2), (9, 65, 4), (9, 64, 4)])
def test_top_k_is_exact_across_blocks(monkeypatch, way, q, p, k):
    monkeypatch.setattr(search, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(search, "BLOCK_PASSAGES", 64)
    queries, passages = unit(q), unit(p)
    rows, scores = search.top_k(queries, passages, k)
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
    rows, _ = search.top_k(queries, passages, 20)
    true = queries.astype(np.float64) @ passages.astype(np.float64).T
    best = np.argsort(-true, axis=1)[:, :20]
    gaps = np.take_along_axis(true, best, 1) - np.take_along_axis(true, rows, 1)
    assert np.abs(gaps).max() < 5e-7  # the same rows, but where fp32 itself sees a tie


def test_where_bf16_tells_nothing_apart_fp32_does(way):
    """All passages within one step of bf16: the sieve gives up, the result stands."""
    passages = np.ones((3000, 4), np.float32)
    passages[:, 0] += np.random.default_rng(3).permutation(3000) * np.float32(1e-6)
    passages[:, 1] = np.linspace(-1, 1, 3000, dtype=np.float32)  # the mean of which is no passage
    queries = np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], np.float32)
    assert search.top_k(queries, passages, 3)[0].tolist() == brute(queries, passages, 3)


def test_equal_scores_are_given_in_the_order_of_the_passages(monkeypatch, way):
    monkeypatch.setattr(search, "BLOCK_PASSAGES", 32)
    passages = np.ones((80, 2), np.float32)
    for k in (2, 5):
        assert search.top_k(passages[:2], passages, k)[0].tolist() == [list(range(k))] * 2
    passages[[70, 75]] *= 2
    assert search.top_k(passages[:2], passages, 4)[0].tolist() == [[70, 75, 0, 1]] * 2
    parts = np.random.default_rng(4).integers(1, 4096, 60).astype(np.float32) / 4096
    rows, scores = search.top_k(np.ones((1, 2), np.float32), np.stack([parts, 1 - parts], axis=1), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] and (scores == 1).all()  # though bf16 sees them differ


def test_best_passages_that_come_last_are_found(monkeypatch, way):
    """Scores that rise with the row are the worst case: every block beats all before it."""
    monkeypatch.setattr(search, "BLOCK_PASSAGES", 48)
    passages = np.linspace(0, 1, 500, dtype=np.float32)[:, None]
    for sign, best in ((1, [499, 498, 497]), (-1, [0, 1, 2])):  # and all scores below zero
        assert search.top_k(sign * np.ones((3, 1), np.float32), passages, 3)[0].tolist() == [best] * 3


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(Me5Error, match="queries have 8 dimensions and passages 9"):
        search.top_k(unit(2), unit(2, 9), 1)
    spoilt = unit(5)
    spoilt[3, 2] = np.nan
    with pytest.raises(Me5Error, match=r"passage 3 is not finite \(1 of 5"):
        search.top_k(unit(2), spoilt, 1)
    with pytest.raises(Me5Error, match="query 3 is not finite"):
        search.top_k(spoilt, unit(2), 1)


def test_an_approximate_index_says_what_it_misses():
    rng = np.random.default_rng(1)
    passages, queries = unit(3000, 32, rng), unit(50, 32, rng)
    index = DenseIndex(passages, "ivf")
    rows, scores = index.search(queries, 10)
    exact, _ = search.top_k(queries, passages, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert index.recall(queries, 10) == pytest.approx(hits) and 0.1 < hits
    assert scores[0, 0] == pytest.approx(queries[0] @ passages[rows[0, 0]], abs=1e-6)
    assert search.dense(queries, [[i] for i in range(50)], index, 10).recall == pytest.approx(hits)
    with pytest.raises(Me5Error, match="queries have 8 dimensions"):
        index.search(unit(2), 10)
    assert DenseIndex(unit(200), "ivf").recall(unit(3), 2) is None  # too few for an index


def test_a_large_pool_is_searched_approximately_a_small_one_exactly(monkeypatch):
    assert DenseIndex(unit(300)).recall(unit(3), 2) is None
    monkeypatch.setattr(search, "LARGE", 300)
    assert DenseIndex(unit(300)).recall(unit(3), 2) is not None
    assert DenseIndex(unit(300), "exact").recall(unit(3), 2) is None


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_equal_passages_come_lowest_row_first_in_every_index(kind):
    one = unit(200, 16, np.random.default_rng(5))
    index, queries = DenseIndex(np.concatenate([one, one, one]), kind), one[:40]
    rows, scores = index.search(queries, 3)
    assert rows.tolist() == [[i, 200 + i, 400 + i] for i in range(40)] and (np.diff(scores, axis=1) <= 0).all()


def asked(query, *positives):
    return Labelled(query, positives, (), "s", "en")


def test_dense_scores_the_best_positive():
    vectors, query = unit(12), unit(1)
    pool = Pool([f"p{i}" for i in range(12)])
    assert pool.positives(asked("q", "p4", "P7")) == [4, 7]
    found = search.dense(query, [[4, 7]], DenseIndex(vectors), depth=3)
    assert found.rows[0].tolist() == np.argsort(-(vectors @ query[0]))[:3].tolist()
    assert found.positive[0] == pytest.approx(max(query[0] @ vectors[4], query[0] @ vectors[7]))
    with pytest.raises(Me5Error, match="the query 'b' has no positive"):
        pool.positives(asked("b"))


def test_the_margin_ratio_against_its_formula():
    """Pairs of near-copies among unrelated texts; each pair of texts at a time."""
    rng = np.random.default_rng(5)
    base = unit(30, 16, rng)
    copies = base + 0.05 * unit(30, 16, rng)
    passages = np.concatenate([base, copies / np.linalg.norm(copies, axis=1, keepdims=True)])
    found = search.dense(unit(2, 16, rng), [[3, 7], [11]], DenseIndex(passages), 60, margin_ratio=True)
    cosine = passages @ passages.T
    knn_mean = [np.sort(np.delete(row, i))[-4:].mean() for i, row in enumerate(cosine)]
    for i, own in enumerate(([3, 7], [11])):
        for j, row in enumerate(found.rows[i]):
            expected = max(cosine[row, one] / ((knn_mean[row] + knn_mean[one]) / 2) for one in own)
            assert found.margin_ratio[i, j] == pytest.approx(expected, abs=1e-4)


def words_search(rows, texts, depth):
    pool = Pool(texts)
    return search.lexical([row.query for row in rows], [pool.positives(row) for row in rows], BM25Index(texts), depth)


def test_bm25_finds_shared_words_and_nothing_else():
    passages = ["the capital of France is Paris", "trains in France", "東京は日本の首都です", "nothing here", "Paris"]
    rows = [asked(query, "Paris") for query in ("capital of France", "日本の首都", "zzz", "?")]
    found = words_search(rows, passages, 4)
    assert found.rows[0, 0] == 0 and set(found.rows[0, 1:]) == {1, -1}
    assert found.rows[1].tolist() == [2, -1, -1, -1]
    assert (found.rows[2:] == -1).all()
    silent = words_search([asked("😀", "🤐"), asked("🤐", "!")], ["🤐", "!"], 2)  # of texts without any word
    assert (silent.rows == -1).all() and not silent.positive.any()


def test_bm25_gives_equal_scores_in_the_order_of_the_passages():
    passages = ["dog", "cat one", "cat two", "cat red", "cat"]
    for depth, rows in ((3, [4, 1, 2]), (9, [4, 1, 2, 3, -1])):
        assert words_search([asked("cat", "cat")], passages, depth).rows.tolist() == [rows]


def test_bm25_scores_against_its_formula():
    texts = ["a a b", "b c", "c c c d"]
    found = words_search([asked("a c", "b c")], texts, depth=3)
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


SPELT = (  # words that are one, in scripts whose vowels or points are marks
    "किताब क़लम हिन्दी", "বাংলা ভাষা কৌতূহল", "தமிழ் மொழி", "తెలుగు భాష", "ශ්‍රී ලංකාව සිංහල", "മലയാളം അവന്‍", "བོད སྐད ཡིག",
    "שָׁלוֹם עֲלֵיכֶם", "العَرَبِيَّةُ لُغَةٌ", "می‌خواهم کتاب", "tiếng việt nam", "ẹ̀kọ́ yorùbá",
)


def test_marks_stay_with_their_letter_in_words():
    """However the text is composed."""
    for spelt in SPELT:
        for form in ("NFC", "NFD"):
            text = unicodedata.normalize(form, spelt)
            assert search.words(f"«{text}»!") == [unicodedata.normalize("NFKC", word) for word in text.split()]
    assert search.words("Donau\u00addampf ❤\ufe0f 1\ufe0f\u20e3 İSTANBUL istanbul don't 😀") == [
        "donaudampf", "1", "istanbul", "istanbul", "don", "t"]


@pytest.mark.parametrize(("text", "pairs"), [
    ("ภาษาไทย", "ภา าษ ษา าไ ไท ทย"), ("ที่นี่", "ที่นี่"), ("ດີຫຼາຍ", "ດີຫຼ ຫຼາ າຍ"), ("ភាសាខ្មែរ", "ភាសា សាខ្ ខ្មែ មែរ"),
    ("မြန်မာစာ", "မြန် န်မာ မာစာ"), ("日本語の本", "日本 本語 語の の本"), ("か゚き", "か゚き"), ("本", "本"),
])
def test_marks_stay_with_their_letter_in_pairs_of_unspaced_scripts(text, pairs):
    assert search.words(text) == unicodedata.normalize("NFKC", pairs).split()


def test_random_passages_are_the_same_every_time_and_spread_over_the_pool():
    queries = [f"q{i}" for i in range(400)]
    first, again, other = (search.random(queries, 10, 5, seed) for seed in (1, 1, 2))
    assert (first.rows == again.rows).all() and (first.rows != other.rows).any()
    turned = search.random(queries[::-1], 10, 5, 1)
    assert (turned.rows[::-1] == first.rows).all()  # a query's draw does not depend on its neighbours
    counts = np.bincount(first.rows.ravel(), minlength=10)
    assert counts.min() > 140 and counts.max() < 260  # 200 each, four standard deviations
