"""What a cosine means: the shares of wrong and right pairs against a recomputation, and what is too little to tell."""

import json

import numpy as np
import pytest
from conftest import me5

from me5lib.evaluate import calibrate
from me5lib.pairs import Labelled


class Vectors:
    """Unit vectors kept by text: a passage is its query with noise; those of language b lie close together."""

    def __init__(self, rows):
        rng, self.of = np.random.default_rng(0), {}
        for row in rows:
            query = rng.normal(size=8) + 3 * (row.language == "b")
            self.of |= {row.query: query, row.positives[0]: query + 0.4 * rng.normal(size=8)}

    def encode(self, texts, prefix, **_):
        assert prefix in ("query: ", "passage: ")
        vectors = np.array([self.of[text] for text in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(language, n):
    return [Labelled(f"{language} query {i}", (f"{language} passage {i}",), (), "own", language) for i in range(n)]


@pytest.fixture(scope="module")
def rows():
    found = [*rows_of("a", 60), *rows_of("b", 80), *rows_of("c", 49)]
    twice = found[0]._replace(positives=(found[0].positives[0], found[1].positives[0]))  # a second right answer
    return [twice, *found[1:]]


@pytest.fixture(scope="module")
def table(rows):
    return calibrate.calibrate(Vectors(rows), rows, ("query: ", "passage: "))


def shares(rows, language, cosine):
    """Wrong and right pairs that reach a cosine, counted one by one; `across` languages or within one."""
    vectors = Vectors(rows)
    queries, passages = (vectors.encode(texts, "query: ") for texts in
                         ([row.query for row in rows], [row.positives[0] for row in rows]))
    wrong, right = [], []
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            reached = queries[i] @ passages[j] >= cosine
            inside = one.language == other.language and language in (one.language, "all")
            if i == j and language in (one.language, "all", "across"):
                right.append(reached)
            elif other.positives[0] not in one.positives and (one.language != other.language
                                                              if language == "across" else inside):
                wrong.append(reached)
    return np.mean(wrong), np.mean(right)


@pytest.mark.parametrize("language", ["a", "b", "all", "across"])
def test_shares_are_those_of_a_recomputation(table, rows, language):
    for row in table[table["language"] == language].itertuples():
        assert [row.wrong, row.right] == pytest.approx(shares(rows, language, row.cosine), abs=2e-3)
        assert row[5] <= row.wrong <= row[6] and row[8] <= row.right <= row[9]


def test_the_last_threshold_lets_one_wrong_pair_in_a_hundred_through_and_the_one_below_more(table, rows):
    for language in ("a", "b"):
        cosine = table[table["language"] == language]["cosine"].iloc[-1]
        assert shares(rows, language, cosine)[0] <= 0.01 < shares(rows, language, cosine - 0.002)[0]


def test_an_interval_holds_what_other_rows_of_the_kind_give():
    held = []
    for seed in range(20):
        own = [row._replace(query=f"{seed} {row.query}", positives=(f"{seed} {row.positives[0]}",))
               for row in rows_of("b", 60)]
        vectors = Vectors(own)
        rng = np.random.default_rng(100 + seed)  # Vectors has one seed: turn it into another draw of the same kind
        for row in own:
            query = rng.normal(size=8) + 3
            vectors.of |= {row.query: query, row.positives[0]: query + 0.4 * rng.normal(size=8)}
        found = calibrate.calibrate(vectors, own, thresholds=[0.95])
        held.append(tuple(found.query("language == 'b'").iloc[0][["wrong", "wrong low", "wrong high"]]))
    truth = np.mean([share for share, *_ in held])
    assert sum(low <= truth <= high for _, low, high in held) >= 16


def test_few_rows_say_nothing_and_are_said_to(table):
    (row,) = table[table["language"] == "c"].itertuples()
    assert row.pairs == 49 and np.isnan(row.wrong)
    assert any(line.startswith("c ") and "too few" in line for line in calibrate.lines(table))


def test_the_command_reads_ones_own_pairs(tmp_path):
    untrained = tmp_path / "model"
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"query": f"word {i}", "answer": f"thing {i}", "lang": "de"}) + "\n"
                            for i in range(60)), "utf8")
    done = me5("calibrate", "--model", str(untrained), "--data", str(file))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(untrained) in done.stderr
