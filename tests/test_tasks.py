"""Offline tasks through the real `mteb.evaluate`, against scores worked out by hand."""

import math

import mteb
import numpy as np
import pytest

from me5lib.data.corpus import Bitext, Classification, Retrieval, RetrievalSet
from me5lib.evaluate import tasks
from me5lib.evaluate.protocol import Protocol

WORDS = "ant bee cat dog eel fox gnu hen ibis jay kite lynx mole newt ape owl".split()


class Hashed:
    """A random but fixed vector for every text, and near it the same text in capitals: a "translation" that is found
    except for words with an `e`."""

    def encode(self, texts, prefix="", *, normalise=True):
        rows = [self.vector(text) for text in texts]
        return np.array(rows, np.float32)

    @staticmethod
    def vector(text: str) -> np.ndarray:
        known = text.lower() if "e" not in text.lower() else text
        vector = np.random.default_rng(list(known.encode())).normal(size=16)
        return vector / np.linalg.norm(vector)


def scores(task) -> dict[str, dict]:
    """mteb's scores by subset."""
    result = mteb.evaluate(Protocol(Hashed(), "hashed", revision="0"), task, cache=None, show_progress_bar=False)
    return {score["hf_subset"]: score for score in result.task_results[0].scores["test"]}


def bitext(name: str = "heldout") -> Bitext:
    """German is the capitals, in `pt-br` the last word is missing."""
    capitals = [word.upper() for word in WORDS]
    return Bitext(name, {"de": (WORDS, capitals), "pt-br": (WORDS[:-1], capitals[:-1])})


def nearest(queries: list[str], documents: list[str]) -> list[int]:
    """The document of highest cosine for each query, one by one."""
    return [max(range(len(documents)), key=lambda j: float(Hashed.vector(q) @ Hashed.vector(documents[j])))
            for q in queries]


def weighted_f1(found: list[int]) -> float:
    """Mean over the right documents of F1 of "this document is chosen": each is right for exactly one query."""
    per_document = [2 * (found[i] == i) / (1 + found.count(i)) for i in range(len(found))]
    return sum(per_document) / len(per_document)


def test_bitext_both_ways_against_brute_force():
    (task,) = tasks.build([bitext()])
    found = scores(task)
    assert list(found) == ["de-en", "en-de", "pt-br-en", "en-pt-br"]
    for subset, (language, direction) in task.subsets.items():
        english, text = bitext().sets[language]
        chosen = nearest(text, english) if direction == "xx-en" else nearest(english, text)
        assert found[subset]["accuracy"] == pytest.approx(np.mean([c == i for i, c in enumerate(chosen)]))
        assert found[subset]["main_score"] == found[subset]["f1"] == pytest.approx(weighted_f1(chosen))
    assert 0.3 < found["de-en"]["accuracy"] < 1 and found["de-en"]["main_score"] != found["en-de"]["main_score"]
    assert found["pt-br-en"]["languages"] == ["por-Latn", "eng-Latn"]


def test_retrieval_against_ndcg_by_hand():
    documents = {f"d{i}": ("", word.upper()) for i, word in enumerate(WORDS)}
    queries = {"q1": "ant", "q2": "bee", "q3": "fox"}
    relevant = {"q1": {"d0"}, "q2": {"d1", "d2"}, "q3": {"d7", "d5"}}
    (task,) = tasks.build([Retrieval("xquad", {"en": RetrievalSet(queries, documents, relevant)})])
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
    same = Classification("intents", {"de": (train, labels, train[:10], labels[:10])})
    (task,) = tasks.build([same])
    found = scores(task)["de"]
    assert found["main_score"] == found["accuracy"] > 0.8
    assert len(found["scores_per_experiment"]) == tasks.EXPERIMENTS
    assert f"{tasks.EXPERIMENTS} experiments" in task.metadata.description


def test_tasks_are_mtebs_own_and_stay_for_the_next_model():
    (task,) = tasks.build([bitext()])
    assert isinstance(task, mteb.abstasks.AbsTaskBitextMining)
    first, second = scores(task), scores(task)
    assert [s["main_score"] for s in first.values()] == [s["main_score"] for s in second.values()]


def test_revision_follows_the_texts():
    def revision(material):
        return tasks.build([material])[0].metadata.revision

    changed = bitext()
    changed.sets["de"][1][3] = "dog"
    assert revision(bitext()) == revision(bitext())
    assert len({revision(bitext()), revision(changed)}) == 2
    sets = [RetrievalSet({"q": "x"}, {"a": ("", "x"), "b": ("", "y")}, {"q": ids}) for ids in ({"a", "b"}, {"b"})]
    assert revision(Retrieval("r", {"de": sets[0]})) != revision(Retrieval("r", {"de": sets[1]}))


@pytest.mark.parametrize(("code", "name"), [
    ("de", "deu-Latn"), ("zh", "zho-Hans"), ("zh-hant", "zho-Hant"), ("pt-br", "por-Latn"), ("sr-latn", "srp-Latn"),
    ("yor", "yor-Latn"), ("xx", "xx-Zyyy"),
])  # fmt: skip
def test_language_and_script_as_mteb_names_them(code, name):
    assert tasks.language_script(code) == name


def test_unknown_kind():
    with pytest.raises(TypeError, match="no task is known for a dict"):
        tasks.build([{}])
