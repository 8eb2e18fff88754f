"""XQuAD across languages and in one pool: metrics against scikit-learn's, planted languages, what is kept."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from me5lib import config
from me5lib.data.corpus import Retrieval, RetrievalSet, open_corpus
from me5lib.evaluate import baselines, offline_table, xquad
from me5lib.evaluate.protocol import Protocol

LANGUAGES = ("de", "fi", "th")


class Planted:
    """The vector of a text ("de 3 …") is its meaning, one of five, `bias` times its language, and noise."""

    def __init__(self, bias: float, noise: float = 0.0) -> None:
        self.bias, self.noise, self.texts = bias, noise, []

    def encode(self, texts, prefix="", *, normalise=True):
        self.texts += [prefix + text for text in texts]
        vectors = self.noise * np.random.default_rng(0).normal(size=(len(texts), 8))
        for row, text in zip(vectors, texts, strict=True):
            row[int(text.split()[1])] += 1
            row[5 + LANGUAGES.index(text.split()[0])] += self.bias
        return vectors


def material(word: str = "") -> Retrieval:
    """Two questions to each of five paragraphs, whose titles tell them apart, in three languages."""
    sets = {}
    for code in LANGUAGES:
        questions = {f"{code}/{i}": f"{code} {i // 2} {i}{word}" for i in range(10)}
        paragraphs = {f"{code}:{i}": (f"{code} {i}", "paragraph") for i in range(5)}
        sets[code] = RetrievalSet(questions, paragraphs, {f"{code}/{i}": {f"{code}:{i // 2}"} for i in range(10)})
    return Retrieval("xquad", sets)


def planted(bias: float, noise: float = 0.0, **more) -> Protocol:
    row = Protocol(Planted(bias, noise), "planted", revision=f"{bias} {noise}")
    vars(row).update(more)
    return row


def crossed(folder, word: str = "", **rows) -> pd.DataFrame:
    return xquad.crossed_scores(rows, material(word), folder)


def test_scores_against_scikit_learn(tmp_path):
    found = crossed(tmp_path, noisy=planted(0.4, 0.5)).set_index("subset")["score"]
    encode, held = Planted(0.4, 0.5).encode, material().sets
    passages = encode([" ".join(both) for own in held.values() for both in own.documents.values()])
    relevant = np.tile(np.eye(5).repeat(2, axis=0), 3)
    for code, own in held.items():
        scores = encode(list(own.queries.values())) @ (passages / np.linalg.norm(passages, axis=1)[:, None]).T
        expected = {code: np.mean([average_precision_score(*both) for both in zip(relevant, scores, strict=True)])}
        for i, other in enumerate(LANGUAGES):
            expected[f"{code}-{other}"] = ndcg_score(*(side[:, 5 * i : 5 * i + 5] for side in (relevant, scores)))
        assert found[found.index.str.startswith(code)].to_dict() == pytest.approx(
            {key: value for key, value in expected.items() if key != f"{code}-{code}"}, abs=1e-6)
        assert found[code] < 1
    assert xquad.share_of_first(np.array([[2, 1, 1, 0]]), np.array([False, True, False, True]), 2) == 1 / 4


@pytest.mark.parametrize(("bias", "own", "score"), [  # with 3: the right one, four others of the language, two right
    (0.5, 1 / 3, 1.0), (3, 1.0, (1 + 3 / 7 + 3 / 7) / 3)])
def test_a_planted_bias_for_the_language_shows_in_the_pool_and_not_across(tmp_path, bias, own, score):
    found = crossed(tmp_path, ours=planted(bias)).set_index("task")
    assert (found.loc["xquad-across", "score"] == 1).all() and len(found) == 6 + 3
    assert found.loc["xquad-pooled", ["own_language", "score"]].to_numpy() == pytest.approx(
        np.tile([own, score], (3, 1)), abs=1e-6)


def test_texts_are_encoded_once_with_their_prefixes_and_scores_kept_by_texts_and_model(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    row, again, other = planted(1), planted(1), planted(2)
    first = crossed(tmp_path / "0", ours=row)
    texts = [f"query: {text}" for own in material().sets.values() for text in own.queries.values()]
    texts += [f"passage: {' '.join(both)}" for own in material().sets.values() for both in own.documents.values()]
    assert sorted(row.encoder.texts) == sorted(texts)
    pd.testing.assert_frame_equal(first, crossed(tmp_path / "0", ours=again))
    shared = [planted(1, shared=True), planted(1, shared=True)]
    for i in (0, 1):
        crossed(tmp_path / str(i), real=shared[i])
    assert [len(each.encoder.texts) for each in (again, *shared)] == [0, 45, 0]
    crossed(tmp_path / "0", word=" new", ours=again)
    crossed(tmp_path / "0", ours=other)
    assert len(again.encoder.texts) == len(other.encoder.texts) == 45


def test_lexical_rows_take_part_and_a_row_of_fewer_languages_is_compared_in_those_directions(tmp_path):
    rows = {"digits": baselines.digits(), "BM25": baselines.BM25Row(), "few": planted(0, languages={"de", "fi", "en"}),
            "translation memory": baselines.TranslationMemory(lambda language: ([], []))}
    found = crossed(tmp_path, **rows)
    assert found.groupby("model")["subset"].count().to_dict() == {"digits": 9, "BM25": 9, "few": 4}
    found.loc[found["model"] == "digits", "score"] = found["subset"].map({"de-fi": 0.3, "fi-de": 0.5}).fillna(0.0)
    assert offline_table.margin_over(found, "xquad-across", "few", over="digits").difference.mean == pytest.approx(0.6)
    assert set(offline_table.language_means(found)["task"]) == {"xquad-across", "xquad-pooled"}


def test_the_stand_in_of_smoke_has_both_forms(tmp_path):
    task = open_corpus(config.load("smoke"), progress=False).task("xquad")
    found = xquad.crossed_scores({"character trigrams": baselines.trigrams()}, task, tmp_path)
    assert found["subset"].tolist() == ["de-ja", "de", "ja-de", "ja"] and found["score"].between(0.05, 1).all()
