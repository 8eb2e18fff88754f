"""The tables: every row through mteb, kept and taken up again, means and margins with intervals."""

import itertools
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import mteb
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from fixtures_tables import Counting

from me5lib import config, io
from me5lib.data.corpus import Bitext, Classification, Retrieval, RetrievalSet, open_corpus
from me5lib.evaluate import baselines, offline_table
from me5lib.evaluate.heldout import mteb_tasks
from me5lib.evaluate.paper import load_csv
from me5lib.evaluate.protocol import Protocol
from me5lib.evaluate.stats import bootstrap
from me5lib.io import Me5Error


def material(last: str = "DREI") -> list:
    """One small task of each kind, in two languages."""
    words = ["one", "two", "three", "four", "five"]
    found = RetrievalSet({"q": "one"}, {"a": ("", "ONE"), "b": ("", "two")}, {"q": {"a"}})
    labelled = (words * 4, ["odd", "even", "odd", "even", "odd"] * 4, words, ["odd", "even", "odd", "even", "odd"])
    return [
        Bitext("heldout", {"de": (words, [*(w.upper() for w in words[:-1]), last]), "fr": (words, words[::-1])}),
        Retrieval("xquad", {"de": found}),
        Classification("intents", {"fr": labelled}),
    ]


def dense(shared: bool = False) -> Protocol:
    """A row that counts its texts; `shared` where no training changes it."""
    row = Protocol(Counting(), "dense", revision="0")
    row.shared = shared
    return row


def evaluated(folder, *, last: str = "DREI", tasks: slice = slice(None), **rows) -> pd.DataFrame:
    return offline_table.table_scores(rows, mteb_tasks(material(last)[tasks]), folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a dense row's results, and its frame."""
    folder = tmp_path_factory.mktemp("done")
    return folder, evaluated(folder, dense=dense())


def test_long_frame_and_which_row_takes_part_where(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(io, "TICK", 0.001)
    rows = {"dense": dense(), "BM25": baselines.BM25Row(),
            "translation memory": baselines.TranslationMemory(lambda language: ([], []))}
    found = offline_table.table_scores(rows, mteb_tasks(material()), tmp_path)
    assert tuple(found.columns) == offline_table.COLUMNS
    assert found.groupby("model", sort=False)["task"].unique().map(list).to_dict() == {
        "dense": ["heldout", "xquad", "intents"], "BM25": ["xquad"], "translation memory": ["heldout"]}
    row = found[(found["model"] == "dense") & (found["subset"] == "de-en")].iloc[0]
    assert (row["language"], row["direction"], row["accuracy"]) == ("de", "xx-en", 0.8)
    assert found[found["kind"] == "Retrieval"]["accuracy"].isna().all()
    shown = capfd.readouterr().err
    assert re.search(r"evaluate.*dense, heldout, \d+ texts", shown)
    assert "Matching" not in shown and "Standardizing" not in shown


@pytest.mark.parametrize("harm", ["", "gone", "cut short", "other mteb"])
def test_results_are_kept_in_mtebs_own_form_taken_up_again_and_made_again_where_lost_or_torn(done, tmp_path, harm):
    folder = shutil.copytree(done[0], tmp_path / "copy")
    (path,) = folder.glob("results/me5__dense/*/heldout.json")
    content = path.read_text(encoding="utf8")
    kept = mteb.results.TaskResult.from_disk(path)
    assert {row["hf_subset"] for row in kept.scores["test"]} == {"de-en", "en-de", "fr-en", "en-fr"}
    if harm == "gone":
        path.unlink()
    elif harm == "cut short":
        path.write_text(content[: len(content) // 2], encoding="utf8")
    elif harm:
        path.write_text(json.dumps(json.loads(content) | {"mteb_version": "2.0.0"}), encoding="utf8")
    again = dense()
    pd.testing.assert_frame_equal(done[1], evaluated(folder, dense=again))
    assert again.encoder.texts == 10 * bool(harm)  # five English, four capitals and DREI; no other task's texts


def test_rows_that_no_training_changes_are_evaluated_once_for_all_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    rows = [{"real": dense(shared=True), "dense": dense()} for _ in range(4)]
    first = evaluated(tmp_path / "seed-0", **rows[0])
    pd.testing.assert_frame_equal(first, evaluated(tmp_path / "seed-1", **rows[1]))
    assert rows[1]["real"].encoder.texts == 0 < rows[1]["dense"].encoder.texts
    changed = evaluated(tmp_path / "seed-0", last="FIVE", **rows[2])
    assert rows[2]["real"].encoder.texts == 10  # other texts of one task are another result …
    assert [f[f["subset"] == "de-en"]["accuracy"].tolist() for f in (first, changed)] == [[0.8] * 2, [1.0] * 2]
    evaluated(tmp_path / "seed-2", **rows[3])
    assert rows[3]["real"].encoder.texts == 0  # … beside the first one, not in its place


def test_a_result_that_another_process_is_making_is_waited_for(done, tmp_path):
    (there,) = done[0].glob("results/me5__dense/*/heldout.json")
    here = tmp_path / there.relative_to(done[0])
    here.parent.mkdir(parents=True)
    late = dense()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(here.with_suffix(".lock")):
            waiting = pool.submit(evaluated, tmp_path, tasks=slice(1), dense=late)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            shutil.copy(there, here)
        pd.testing.assert_frame_equal(done[1][done[1]["task"] == "heldout"], waiting.result(timeout=60))
    assert late.encoder.texts == 0


def test_a_row_keeps_to_its_languages_and_tasks(tmp_path):
    model, built = dense(), mteb_tasks(material())
    model.languages = frozenset({"fr"})
    found = offline_table.table_scores({"dense": model}, built, tmp_path)
    assert found["subset"].tolist() == ["fr-en", "en-fr", "fr"]
    assert built[0].hf_subsets == ["de-en", "en-de", "fr-en", "en-fr"]
    model.tasks = {"intents"}
    found = offline_table.table_scores({"dense": model}, built, tmp_path)
    assert found["subset"].tolist() == ["fr"]


def scores() -> pd.DataFrame:
    """Made-up scores: 4 languages, both directions; the model wins in three of them."""
    rows = []
    for model, base in (("ours", [0.9, 0.8, 0.7, 0.2]), ("digits", [0.1, 0.2, 0.1, 0.1]),
                        ("character trigrams", [0.5, 0.5, 0.5, 0.6])):  # fmt: skip
        for language, score in zip(("de", "fr", "ru", "zh"), base, strict=True):
            for direction, shift in (("xx-en", 0.05), ("en-xx", -0.05)):
                rows.append((model, "heldout", "BitextMining", language, direction, "", score + shift, score))
    return pd.DataFrame(rows, columns=offline_table.COLUMNS)


def test_directions_are_averaged_and_means_taken_over_languages():
    pivot = offline_table.per_language(scores(), "heldout")
    assert list(pivot.columns) == ["ours", "digits", "character trigrams"]
    assert list(pivot.index) == ["de", "fr", "ru", "zh"]
    assert pivot.loc["zh", "ours"] == pytest.approx(0.2)
    summary = offline_table.language_means(scores()).set_index("model")
    assert summary.loc["ours", "mean"] == pytest.approx(0.65) and summary.loc["ours", "languages"] == 4


def test_bootstrap_against_every_resample():
    values = [0.1, 0.5, 0.9, 0.2]
    every = sorted(np.mean(draw) for draw in itertools.product(values, repeat=4))
    low, high = np.quantile(every, [0.025, 0.975])
    found = bootstrap(values)
    assert found.mean == pytest.approx(0.425)
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)
    many = np.random.default_rng(0).random(30)
    assert bootstrap(many) == bootstrap(many) != bootstrap(many, seed=1)
    assert bootstrap([0.3, 0.3]) == (pytest.approx(0.3),) * 3
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_margin_is_paired_and_over_the_better_lexical_row():
    found = offline_table.margin_over(scores(), "heldout", "ours")
    assert offline_table.better_lexical(scores(), "heldout") == found.baseline == "character trigrams"
    assert found.difference.mean == pytest.approx(0.125) and (found.languages, found.ahead) == (4, 3)
    assert found.difference == pytest.approx(bootstrap([0.4, 0.3, 0.2, -0.4]))
    assert offline_table.margin_over(scores(), "heldout", "ours", over="digits").difference.mean == pytest.approx(0.525)
    with pytest.raises(Me5Error, match="no scores for task 'gsm': there are heldout"):
        offline_table.per_language(scores(), "gsm")


def test_exposure_has_one_word_for_every_row_and_column_and_a_reason():
    known = load_csv("exposure", keep_default_na=False)
    known = known.assign(row=known["row"].str.split(";"), column=known["column"].str.split(";"))
    words = known.explode("row").explode("column").pivot(index="row", columns="column", values="exposure")  # no doubles
    named = {*offline_table.LEXICAL, "random weights", "USE-multilingual", "me5-small-q4", "start", "stage 1 only"}
    assert set(words.index) == named | {"stage 1 + stage 2"} and known["reason"].ne("").all()
    assert set(words.columns) == {"heldout", "gsm", "xquad", "fastapi", "intents"}
    assert words.isna().sum().sum() == 3  # the translation memory takes no part in other than translations
    assert set(known["exposure"]) == {"trained on its training set", "same domain", "newer than the model", "unknown",
                                      "none", "as its start"}


def test_standard_rows_without_and_with_a_checkpoint(tmp_path, capsys):
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    scale = config.load("smoke")
    corpus = open_corpus(scale, progress=False)
    with pytest.raises(Me5Error, match="run `me5 pretrain --scale smoke --seed 0"):
        offline_table.standard_rows(scale, 0, tmp_path, corpus)
    tokenizer = train_tokenizer(corpus.sample_texts(2000), scale.model.vocabulary, tmp_path / "tokenizer")
    Encoder.new(scale.model, tokenizer, 0).save(tmp_path / "stage1")
    rows = offline_table.standard_rows(scale, 1, tmp_path, corpus)
    assert list(rows)[:5] == ["random weights", "digits", "character trigrams", "translation memory", "BM25"]
    assert list(rows)[-1] == "stage 1 only"
    read = rows["stage 1 only"].tasks  # our last row reads all but what lexical rows alone do
    assert read == rows["random weights"].tasks == set(corpus.task_names) - {"gsm-raw"}
    own = Encoder.load(tmp_path / "stage1")
    known = offline_table.standard_rows(scale, 1, tmp_path, corpus, {"stage 1 only": own})
    assert known["stage 1 only"].encoder is own
    assert "row left out: stage 1 + stage 2" in capsys.readouterr().out
    tasks = mteb_tasks([corpus.task("heldout")])
    found = offline_table.table_scores(rows, tasks, tmp_path / "evaluation")
    means = offline_table.per_language(found, "heldout", "accuracy").mean()
    assert means["random weights"] > 1 / 20 and found["score"].between(0, 1).all()
