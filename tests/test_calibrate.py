"""What a cosine means: the shares of wrong and right pairs against a recomputation, and what is too little to tell."""

import numpy as np
import pytest
import torch
from conftest import me5
from scipy.stats import binomtest
from typer.testing import CliRunner

from me5lib.cli.app import app
from me5lib.evaluate import calibrate
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled


def made(sizes, seed=0):
    """Rows of each language, and a stand-in for an encoder: a passage is its query with noise, those of b lie close."""
    rng, of = np.random.default_rng(seed), {}
    rows = [Labelled(f"{code} query {i}", (f"{code} passage {i}",), (), "own", code)
            for code, n in sizes.items() for i in range(n)]
    for row in rows:
        query = rng.normal(size=8) + 3 * (row.language == "b")
        for text, vector in ((row.query, query), (row.positives[0], query + 0.4 * rng.normal(size=8))):
            of[text] = vector / np.linalg.norm(vector)
    rows[0] = rows[0]._replace(positives=(rows[0].positives[0], rows[1].positives[0]))  # a second right answer

    class Stub:
        device = torch.device("cpu")

        def to(self, device):
            return self

        def encode(self, texts, prefix, **_):
            return np.array([of[text] for text in texts], np.float32)

    return Stub(), rows


@pytest.fixture(scope="module")
def data():
    stub, rows = made({"a": 60, "b": 80, "c": 49})
    return stub, rows, calibrate.calibrate(stub, rows)


def shares(stub, rows, language, cosine):
    """Wrong and right pairs that reach a cosine, counted one by one; `across` languages or within one."""
    texts = [row.query for row in rows], [row.positives[0] for row in rows]
    queries, passages = (stub.encode(side, "") for side in texts)
    cosines, wrong = queries @ passages.T, []
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            same = one.language == other.language
            counts = not same if language == "across" else same and language in (one.language, "all")
            wrong += [cosines[i, j] >= cosine] * (counts and other.positives[0] not in one.positives)
    return np.mean(wrong), np.mean([cosines[i, i] >= cosine for i, row in enumerate(rows)
                                    if language in (row.language, "all", "across")])


@pytest.mark.parametrize("language", ["a", "b", "all", "across"])
def test_shares_are_those_of_a_recomputation_and_one_in_a_hundred_matches_at_the_last(data, language):
    stub, rows, table = data
    own = table[table["language"] == language]
    for row in own.itertuples():
        assert [row.wrong, row.right] == pytest.approx(shares(stub, rows, language, row.cosine), abs=1e-9)
        assert row[5] <= row.wrong <= row[6] and row[8] <= row.right <= row[9]
    assert row.wrong <= 0.01 < shares(stub, rows, language, row.cosine - 0.002)[0]


def test_an_interval_holds_the_share_of_other_rows_of_the_kind():
    drawn = [calibrate.calibrate(*made({"b": 60}, seed), thresholds=[0.95]).iloc[0] for seed in range(20)]
    truth = np.mean([row["wrong"] for row in drawn])
    assert sum(row["wrong low"] <= truth <= row["wrong high"] for row in drawn) >= 16


def test_none_of_few_is_not_never():
    low, high = binomtest(0, 60).proportion_ci()
    (row, *_) = calibrate.calibrate(*made({"b": 60}), thresholds=[1.0]).itertuples()
    assert row.wrong == row.right == 0 and (row[5], row[6]) == (row[8], row[9]) == pytest.approx((low, high))


def test_the_command_says_what_it_did_not_use_and_then_the_table(tmp_path, monkeypatch):
    stub, rows = made({"a": 60})
    monkeypatch.setattr(Encoder, "load", lambda model: stub)
    lines = ["query,answer,language", *(f"{row.query},{row.positives[0]},de" for row in rows[1:]), ",nothing,de"]
    (tmp_path / "my.csv").write_text("\n".join(lines), "utf8")
    done = CliRunner().invoke(app, ["calibrate", "--data", f"{tmp_path}/my.csv", "--out", f"{tmp_path}/table.csv"])
    said = done.stdout.splitlines()
    assert said[0].startswith("not used: 1") and "wrong ≥ 0.85" in said[1] and said[2].split()[:2] == ["de", "59"]
    assert (tmp_path / "table.csv").read_text("utf8").startswith(",".join(calibrate.COLUMNS))


def test_few_rows_say_nothing_and_are_said_to(data):
    table = data[2]
    assert table.query("language == 'c'")[["wrong", "right"]].isna().all(axis=None)
    assert any(line.split()[:2] == ["c", "49"] and "too few" in line for line in calibrate.lines(table))


def test_what_is_no_model_or_no_file_is_one_line(tmp_path):
    (tmp_path / "my.csv").write_text("question,answer\nwho,I\n", "utf8")
    for options in (["--data", tmp_path / "no.csv"], ["--data", tmp_path / "my.csv", "--model", tmp_path / "none"]):
        done = me5("calibrate", *map(str, options))
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(options[-1]) in done.stderr
