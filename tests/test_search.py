"""Exact search against brute force; BM25 against its formula, and words in every script."""

import unicodedata

import numpy as np
import pytest

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


@pytest.mark.parametrize(("q", "p", "k"), [(5, 40, 7), (9, 40, 40), (3, 4, 10), (1, 1, 1), (6, 700, 2), (6, 700, 30),
                                           (0, 5, 2), (9, 65, 4), (9, 64, 4)])
def test_top_k_is_exact(q, p, k):
    queries, passages = unit(q), unit(p)
    rows, scores = search.top_k(queries, passages, k)
    assert rows.shape == scores.shape == (q, min(k, p)) and rows.tolist() == brute(queries, passages, k)
    for i in range(q):
        assert scores[i] == pytest.approx([queries[i] @ passages[j] for j in rows[i]], abs=1e-6)


def test_best_passages_that_come_last_are_found_and_of_equal_ones_the_first_comes_first():
    """Scores that rise with the row are the worst case: every block beats all before it."""
    passages = np.linspace(0, 1, 500, dtype=np.float32)[:, None]
    passages[[70, 71, 300]] = 2
    for sign, best in ((1, [70, 71, 300, 499]), (-1, [0, 1, 2, 3])):  # and all scores below zero
        assert search.top_k(sign * np.ones((3, 1), np.float32), passages, 4)[0].tolist() == [best] * 3


def test_vectors_that_do_not_fit_are_refused():
    spoilt, fine = unit(300), unit(300)
    spoilt[3, 2] = np.nan
    with pytest.raises(Me5Error, match="queries have 8 dimensions and passages 9"):
        search.top_k(fine, unit(300, 9), 1)
    with pytest.raises(Me5Error, match=r"passage 3 is not finite \(1 of 300"):
        search.top_k(fine, spoilt, 1)
    with pytest.raises(Me5Error, match="query 3 is not finite"):
        search.top_k(spoilt, fine, 1)


def test_dense_scores_the_best_positive():
    vectors, query = unit(12), unit(1)
    pool = Pool([f"p{i}" for i in range(12)])
    assert pool.positives(Labelled("q", ("p4", "P7"), (), "s", "en")) == [4, 7]
    found = search.dense(query, [[4, 7]], DenseIndex(vectors), depth=3)
    assert found.rows[0].tolist() == np.argsort(-(vectors @ query[0]))[:3].tolist()
    assert found.positive[0] == pytest.approx(max(query[0] @ vectors[4], query[0] @ vectors[7]))


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


def test_bm25_finds_shared_words_and_nothing_else():
    passages = ["the capital of France is Paris", "trains in France", "東京は日本の首都です", "nothing here", "Paris"]
    found = search.lexical(["capital of France", "日本の首都", "zzz", "?"], [[4]] * 4, BM25Index(passages), 4)
    assert found.rows[0, 0] == 0 and set(found.rows[0, 1:]) == {1, -1}
    assert found.rows[1].tolist() == [2, -1, -1, -1]
    assert (found.rows[2:] == -1).all()
    silent = search.lexical(["😀", "🤐"], [[0], [1]], BM25Index(["🤐", "!"]), 2)  # of texts without any word
    assert (silent.rows == -1).all() and not silent.positive.any()
    same = BM25Index(["dog", "cat one", "cat two", "cat red", "cat"])  # equal scores: in the order of the passages
    for depth, rows in ((3, [4, 1, 2]), (9, [4, 1, 2, 3, -1])):
        assert search.lexical(["cat"], [[4]], same, depth).rows.tolist() == [rows]


def test_bm25_scores_against_its_formula():
    texts = ["a a b", "b c", "c c c d"]
    found = search.lexical(["a c"], [[1]], BM25Index(texts), depth=3)
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
