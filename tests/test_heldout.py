"""Offline tasks through the real `mteb.evaluate`, against scores worked out by hand; which texts are evaluated on."""

import math
from types import SimpleNamespace

import mteb
import numpy as np
import pytest

from me5lib.config import load
from me5lib.data.corpus import Bitext, Classification, Retrieval, RetrievalSet, evaluation_texts, open_corpus
from me5lib.evaluate import heldout
from me5lib.evaluate.protocol import Protocol
from me5lib.io import Me5Error

WORDS = "ant bee cat dog eel fox gnu hen ibis jay kite lynx mole newt ape owl".split()


class Hashed:
    """A random but fixed vector for every text, and near it the same text in capitals: a "translation" that is found
    except for words with an `e`."""

    def encode(self, texts, prefix="", *, normalise=True):
        return np.array([self.vector(text) for text in texts], np.float32)

    @staticmethod
    def vector(text: str) -> np.ndarray:
        known = text.lower() if "e" not in text.lower() else text
        vector = np.random.default_rng(list(known.encode())).normal(size=16)
        return vector / np.linalg.norm(vector)


def scores(task) -> dict[str, dict]:
    """mteb's scores by subset."""
    result = mteb.evaluate(Protocol(Hashed(), "hashed", revision="0"), task, cache=None, show_progress_bar=False)
    return {score["hf_subset"]: score for score in result.task_results[0].scores["test"]}


def bitext() -> Bitext:
    """German is the capitals, in `pt-br` the last word is missing."""
    capitals = [word.upper() for word in WORDS]
    return Bitext("heldout", {"de": (WORDS, capitals), "pt-br": (WORDS[:-1], capitals[:-1])})


def test_bitext_both_ways_against_brute_force():
    (task,) = heldout.mteb_tasks([bitext()])
    assert isinstance(task, mteb.abstasks.AbsTaskBitextMining)
    found, again = scores(task), scores(task)  # the data stays for the next model
    assert list(found) == ["de-en", "en-de", "pt-br-en", "en-pt-br"]
    assert [row["f1"] for row in found.values()] == [row["f1"] for row in again.values()]
    for subset, (language, direction) in task.subsets.items():
        english, text = bitext().sets[language]
        queries, documents = (text, english) if direction == "xx-en" else (english, text)
        vectors = np.array([Hashed.vector(document) for document in documents])
        chosen = [int(np.argmax(vectors @ Hashed.vector(query))) for query in queries]
        f1 = np.mean([2 * (chosen[i] == i) / (1 + chosen.count(i)) for i in range(len(chosen))])
        assert found[subset]["accuracy"] == pytest.approx(np.mean([c == i for i, c in enumerate(chosen)]))
        assert found[subset]["main_score"] == found[subset]["f1"] == pytest.approx(f1)
    assert 0.3 < found["de-en"]["accuracy"] < 1 and found["de-en"]["main_score"] != found["en-de"]["main_score"]
    assert found["pt-br-en"]["languages"] == ["por-Latn", "eng-Latn"]


def test_retrieval_against_ndcg_by_hand():
    documents = {f"d{i}": ("", word.upper()) for i, word in enumerate(WORDS)}
    queries = {"q1": "ant", "q2": "bee", "q3": "fox"}
    relevant = {"q1": {"d0"}, "q2": {"d1", "d2"}, "q3": {"d7", "d5"}}
    (task,) = heldout.mteb_tasks([Retrieval("xquad", {"en": RetrievalSet(queries, documents, relevant)})])
    assert task.metadata.main_score == "ndcg_at_10"
    gains = []
    for query, right in relevant.items():
        order = sorted(documents, key=lambda d: -float(Hashed.vector(queries[query]) @ Hashed.vector(documents[d][1])))
        gain = sum(1 / math.log2(rank + 2) for rank, d in enumerate(order[:10]) if d in right)
        gains.append(gain / sum(1 / math.log2(rank + 2) for rank in range(len(right))))
    assert scores(task)["en"]["main_score"] == pytest.approx(np.mean(gains), abs=1e-5)


def test_classification_learns_what_can_be_learnt():
    train = [word + str(i) for i in range(10) for word in ("ant", "bob")]
    labels = ["insect", "man"] * 10
    (task,) = heldout.mteb_tasks([Classification("intents", {"de": (train, labels, train[:10], labels[:10])})])
    found = scores(task)["de"]
    assert found["main_score"] == found["accuracy"] > 0.8
    assert len(found["scores_per_experiment"]) == heldout.EXPERIMENTS
    assert f"{heldout.EXPERIMENTS} experiments" in task.metadata.description


def test_revision_follows_the_texts():
    def revision(material):
        return heldout.mteb_tasks([material])[0].metadata.revision

    changed = bitext()
    changed.sets["de"][1][3] = "dog"
    assert revision(bitext()) == revision(bitext()) != revision(changed)
    sets = [RetrievalSet({"q": "x"}, {"a": ("", "x"), "b": ("", "y")}, {"q": ids}) for ids in ({"a", "b"}, {"b"})]
    assert revision(Retrieval("r", {"de": sets[0]})) != revision(Retrieval("r", {"de": sets[1]}))


def test_languages_as_mteb_names_them_and_as_the_shards_do():
    scripts = {"de": "deu-Latn", "zh": "zho-Hans", "zh-hant": "zho-Hant", "pt-br": "por-Latn", "sr-latn": "srp-Latn",
               "yor": "yor-Latn", "xx": "xx-Zyyy"}
    assert {code: heldout.language_script(code) for code in scripts} == scripts
    short = {"deu": "de", "cmn": "zh", "swh": "sw", "yue": "yue", "en": "en"}
    assert {code: heldout.short_code(code) for code in short} == short


def test_the_offline_tasks_give_every_text_once():
    corpus = open_corpus(load("smoke"), progress=False)
    found = evaluation_texts(corpus)
    task = corpus.task("heldout")
    language = next(iter(task.sets))
    assert set(task.sets[language][1]) == set(found["heldout", language])
    assert set(task.sets[language][0]) <= set(found["heldout", "en"])
    assert {task for task, _ in found} == set(corpus.task_names)
    assert all(len(own) == len(set(own)) for own in found.values())
    assert evaluation_texts(SimpleNamespace(task_names=())) == {}  # one of the hub has no tasks of its own


def test_texts_of_mtebs_tasks_by_language(monkeypatch):
    """Of a bitext both sides, each in its own language; of a retrieval the queries, and no documents."""
    from mteb.mocks.mock_tasks import bitext_mining, retrieval, sts

    tasks = {"bitext": bitext_mining.MockMultilingualBitextMiningTask, "sts": sts.MockSTSTask,
             "search": retrieval.MockRetrievalTask}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name]())
    found = heldout.task_texts(list(tasks))
    loaded = tasks["search"]()
    loaded.load_data()
    queries = [loaded.dataset["default"][split]["queries"]["text"][:] for split in loaded.metadata.eval_splits]
    assert set(found["search", "en"]) == {text for texts in queries for text in texts}
    assert len(found["sts", "en"]) > 2 and len({language for name, language in found if name == "bitext"}) > 1
    assert all(isinstance(text, str) and text for texts in found.values() for text in texts)
    with pytest.raises(Me5Error, match="evaluation task 'nothing' cannot be loaded"):
        heldout.task_texts(["nothing"])
