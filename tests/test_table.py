"""The tables: every row through mteb, kept and taken up again, means and margins with intervals."""

import itertools
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import mteb
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from fixtures_tables import Counting

from me5lib import config
from me5lib.data.corpus import Bitext, Classification, Retrieval, RetrievalSet, open_corpus
from me5lib.evaluate import baselines, offline, tasks
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


def models() -> dict:
    """A dense row and two lexical ones."""
    return {"dense": Protocol(Counting(), "dense", revision="0"), "BM25": baselines.BM25(),
            "translation memory": baselines.TranslationMemory(lambda language: ([], []))}


def test_long_frame_and_which_row_takes_part_where(tmp_path, capfd):
    found = offline.evaluate(models(), tasks.build(material()), tmp_path)
    assert tuple(found.columns) == offline.COLUMNS
    assert found.groupby("model", sort=False)["task"].unique().map(list).to_dict() == {
        "dense": ["heldout", "xquad", "intents"], "BM25": ["xquad"], "translation memory": ["heldout"]}
    row = found[(found["model"] == "dense") & (found["subset"] == "de-en")].iloc[0]
    assert (row["language"], row["direction"], row["accuracy"]) == ("de", "xx-en", 0.8)
    assert found[found["kind"] == "Retrieval"]["accuracy"].isna().all()
    shown = capfd.readouterr().err
    assert "evaluate" in shown and "Matching" not in shown and "Standardizing" not in shown


def test_results_are_kept_in_mtebs_own_form_and_taken_up_again(tmp_path):
    first = offline.evaluate(models(), tasks.build(material()), tmp_path, progress=False)
    again = models()
    second = offline.evaluate(again, tasks.build(material()), tmp_path, progress=False)
    pd.testing.assert_frame_equal(first, second)
    assert again["dense"].encoder.texts == 0
    (path,) = tmp_path.glob("results/me5__dense/*/heldout.json")
    kept = mteb.results.TaskResult.from_disk(path)
    assert {s["hf_subset"] for s in kept.scores["test"]} == {"de-en", "en-de", "fr-en", "en-fr"}


@pytest.mark.parametrize("harm", ["gone", "cut short", "other mteb"])
def test_a_lost_or_torn_result_is_made_again(tmp_path, harm):
    first = offline.evaluate(models(), tasks.build(material()), tmp_path, progress=False)
    (path,) = tmp_path.glob("results/me5__dense/*/heldout.json")
    content = path.read_text(encoding="utf8")
    if harm == "gone":
        path.unlink()
    elif harm == "cut short":
        path.write_text(content[: len(content) // 2], encoding="utf8")
    else:
        path.write_text(json.dumps(json.loads(content) | {"mteb_version": "2.0.0"}), encoding="utf8")
    again = models()
    pd.testing.assert_frame_equal(first, offline.evaluate(again, tasks.build(material()), tmp_path, progress=False))
    assert again["dense"].encoder.texts == 10  # five English, four capitals and DREI; no other task's texts


def test_other_texts_are_evaluated_anew(tmp_path):
    first = offline.evaluate(models(), tasks.build(material()), tmp_path, progress=False)
    changed = offline.evaluate(models(), tasks.build(material(last="FIVE")), tmp_path, progress=False)
    dense = [f[(f["model"] == "dense") & (f["subset"] == "de-en")]["accuracy"].item() for f in (first, changed)]
    assert dense == [0.8, 1.0]


def shared(name: str = "real") -> Protocol:
    """A row that no training changes."""
    row = Protocol(Counting(), name, revision="0")
    row.shared = True
    return row


def test_rows_that_no_training_changes_are_evaluated_once_for_all_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    rows = [{"real": shared(), "dense": models()["dense"]} for _ in range(4)]
    first = offline.evaluate(rows[0], tasks.build(material()), tmp_path / "seed-0", progress=False)
    again = offline.evaluate(rows[1], tasks.build(material()), tmp_path / "seed-1", progress=False)
    pd.testing.assert_frame_equal(first, again)
    assert rows[1]["real"].encoder.texts == 0 < rows[1]["dense"].encoder.texts
    offline.evaluate(rows[2], tasks.build(material("FIVE")), tmp_path / "seed-0", progress=False)
    assert rows[2]["real"].encoder.texts == 10  # other texts of one task are another result …
    offline.evaluate(rows[3], tasks.build(material()), tmp_path / "seed-2", progress=False)
    assert rows[3]["real"].encoder.texts == 0  # … beside the first one, not in its place


def test_a_result_that_another_process_is_making_is_waited_for(tmp_path):
    built = tasks.build(material()[:1])
    first = offline.evaluate({"dense": models()["dense"]}, built, tmp_path / "done", progress=False)
    (done,) = (tmp_path / "done").glob("results/me5__dense/*/heldout.json")
    here = tmp_path / "now" / done.relative_to(tmp_path / "done")
    here.parent.mkdir(parents=True)
    late = models()["dense"]
    with ThreadPoolExecutor(1) as pool:
        with FileLock(here.with_suffix(".lock")):
            waiting = pool.submit(offline.evaluate, {"dense": late}, built, tmp_path / "now", progress=False)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            shutil.copy(done, here)
        pd.testing.assert_frame_equal(first, waiting.result(timeout=60))
    assert late.encoder.texts == 0


def test_a_row_keeps_to_its_languages(tmp_path):
    model = Protocol(Counting(), "dense", revision="0")
    model.languages = frozenset({"fr"})
    built = tasks.build(material())
    found = offline.evaluate({"dense": model}, built, tmp_path, progress=False)
    assert found["subset"].tolist() == ["fr-en", "en-fr", "fr"]
    assert built[0].hf_subsets == ["de-en", "en-de", "fr-en", "en-fr"]


def scores() -> pd.DataFrame:
    """Made-up scores: 4 languages, both directions; the model wins in three of them."""
    rows = []
    for model, base in (("ours", [0.9, 0.8, 0.7, 0.2]), ("digits", [0.1, 0.2, 0.1, 0.1]),
                        ("character trigrams", [0.5, 0.5, 0.5, 0.6])):  # fmt: skip
        for language, score in zip(("de", "fr", "ru", "zh"), base, strict=True):
            for direction, shift in (("xx-en", 0.05), ("en-xx", -0.05)):
                rows.append((model, "heldout", "BitextMining", language, direction, "", score + shift, score))
    return pd.DataFrame(rows, columns=offline.COLUMNS)


def test_directions_are_averaged_and_means_taken_over_languages():
    pivot = offline.by_language(scores(), "heldout")
    assert list(pivot.columns) == ["ours", "digits", "character trigrams"]
    assert list(pivot.index) == ["de", "fr", "ru", "zh"]
    assert pivot.loc["zh", "ours"] == pytest.approx(0.2)
    summary = offline.summary(scores()).set_index("model")
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
    found = offline.margin(scores(), "heldout", "ours")
    assert offline.better_lexical(scores(), "heldout") == found.baseline == "character trigrams"
    assert found.difference.mean == pytest.approx(0.125) and (found.languages, found.ahead) == (4, 3)
    assert found.difference == pytest.approx(bootstrap([0.4, 0.3, 0.2, -0.4]))
    assert offline.margin(scores(), "heldout", "ours", over="digits").difference.mean == pytest.approx(0.525)
    with pytest.raises(Me5Error, match="no scores for task 'gsm': there are heldout"):
        offline.by_language(scores(), "gsm")


def test_quiet_lets_go_of_progress_bars(capfd):
    from tqdm.auto import tqdm

    with offline.quiet():
        list(tqdm(range(3), disable=False))
    assert capfd.readouterr().err == ""
    list(tqdm(range(3)))
    assert "3/3" in capfd.readouterr().err


def test_standard_rows_without_and_with_a_checkpoint(tmp_path, capsys):
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    dial = config.load("smoke")
    corpus = open_corpus(dial, progress=False)
    with pytest.raises(Me5Error, match="run `me5 pretrain --scale smoke --seed 0"):
        offline.standard_rows(dial, 0, tmp_path, corpus)
    tokenizer = train_tokenizer(corpus.sample_texts(2000), dial.model.vocabulary, tmp_path / "tokenizer")
    Encoder.new(dial.model, tokenizer, 0).save(tmp_path / "stage1")
    rows = offline.standard_rows(dial, 1, tmp_path, corpus)
    assert list(rows)[:5] == ["random weights", "digits", "character trigrams", "translation memory", "BM25"]
    assert list(rows)[-1] == "stage 1 only"
    assert "row left out: stage 2 only" in capsys.readouterr().out
    found = offline.evaluate(rows, tasks.build(corpus.tasks()[:1]), tmp_path / "evaluation", progress=False)
    means = offline.by_language(found, "heldout", "accuracy").mean()
    assert means["random weights"] > 1 / 20 and found["score"].between(0, 1).all()
    with offline._from_the_end(dial, 1, tmp_path, wanted=True):  # a second process begins with the last row and task
        end = time.monotonic() + 300
        while not list(tmp_path.glob("evaluation/results/me5__stage-1-only/*/intents.json")):
            assert time.monotonic() < end, "the second process made nothing"
            time.sleep(0.1)
