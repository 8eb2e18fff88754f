"""The model card: what the hub's own reader gets from it, and that nothing is in it that was not given."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import EvalResult, ModelCard

from me5lib import config
from me5lib.cli import model
from me5lib.data import cards
from me5lib.evaluate.models import Opened, fingerprint_of
from me5lib.io import Me5Error
from me5lib.model import card, check, onnx
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import PROMPTS, instruct_prompts
from me5lib.model.text import train_tokenizer

COMMIT = "a" * 40


def about(**changes):
    plain = card.About("my-e5", 384, 512, PROMPTS, license="mit", base_model="microsoft/Multilingual-MiniLM-L12-H384")
    return plain._replace(**changes)


def sources():
    found = [card.Source("one", "One | two", "ODC-BY", "https://a.b", ("de", "zh-hant", "sw", "und-x"), ("a/b", "c/d"))]
    return (*found, card.Source("two", languages=("de", "kr-arab"), repositories=("c/d",)))


def measured(**changes):
    row = {"model": "me5/x", "revision": "f" * 16, "protocol": "paper", "dtype": "fp32", "task": "STSBenchmark",
           "dataset_revision": COMMIT, "mteb_version": "2.26.24", "split": "test", "subset": "default",
           "metric": "main_score", "value": 84.123456}  # fmt: skip
    return pd.DataFrame([row | change for change in changes.get("rows", [{}])])


def test_the_hubs_reader_gets_everything_back():
    found = card.results(measured(rows=[{}, {"task": "Tatoeba", "subset": "deu-eng", "metric": "f1", "value": 97.1}]),
                         lambda task: ("STS", "mteb/x"))  # fmt: skip
    data = ModelCard(card.write(about(sources=sources(), results=found))).data
    assert data.language == ["multilingual", "de", "kr", "sw", "und", "zh"]
    assert (data.license, data.base_model) == ("mit", "microsoft/Multilingual-MiniLM-L12-H384")
    assert data.library_name == "sentence-transformers" and "sentence-transformers" in data.tags
    assert data.datasets == ["a/b", "c/d"] and data.model_name == "my-e5"
    assert data.eval_results == [
        EvalResult(task_type="STS", dataset_type="mteb/x", dataset_name="MTEB STSBenchmark", dataset_config="default",
                   dataset_split="test", dataset_revision=COMMIT, metric_type="main_score", metric_value=84.1235,
                   metric_name="main_score, paper protocol, fp32",
                   metric_args={"protocol": "paper", "dtype": "fp32", "mteb": "2.26.24"}),
        EvalResult(task_type="STS", dataset_type="mteb/x", dataset_name="MTEB Tatoeba (deu-eng)",
                   dataset_config="deu-eng", dataset_split="test", dataset_revision=COMMIT, metric_type="f1",
                   metric_value=97.1, metric_name="f1, paper protocol, fp32",
                   metric_args={"protocol": "paper", "dtype": "fp32", "mteb": "2.26.24"}),
    ]  # fmt: skip


def test_nothing_is_invented():
    text = card.write(about(base_model="", license=card.UNKNOWN))
    data = ModelCard(text).data.to_dict()
    assert not {"model-index", "datasets", "language", "base_model"} & set(data) and data["license"] == "unknown"
    assert "None were measured" in text and "Not stated." in text and "a backbone that is not stated" in text
    assert "random weights" in card.write(about(base_model="", start="random weights"))


def test_two_ways_to_evaluate_stay_two_results():
    rows = [{}, {"protocol": "mteb", "value": 80.0}, {"dtype": "bf16", "value": 84.0}]
    found = card.results(measured(rows=rows), lambda task: ("STS", "mteb/x"))
    text = card.write(about(results=found))
    back = ModelCard(text).data.eval_results
    assert [(r.metric_args["protocol"], r.metric_args["dtype"], r.metric_value) for r in back] == [
        ("paper", "fp32", 84.1235), ("mteb", "fp32", 80.0), ("paper", "bf16", 84.0)]  # fmt: skip
    assert text.count("| STSBenchmark |") == 3  # nor is their mean taken


def test_means_over_subsets_are_those_of_the_rows():
    rows = [{"task": "Tatoeba", "subset": f"x{i}-eng", "value": value} for i, value in enumerate((90.0, 70.0, 50.5))]
    text = card.write(about(results=card.results(measured(rows=rows), lambda task: ("BitextMining", "mteb/t"))))
    assert f"| Tatoeba | test: main_score, paper protocol, fp32 | 3 | {np.mean([90.0, 70.0, 50.5]):.2f} |" in text


def test_incomplete_measurements_are_refused():
    with pytest.raises(ValueError, match="lacks the columns.*protocol"):
        card.results(measured().drop(columns="protocol"), lambda task: ("STS", "x"))
    with pytest.raises(ValueError, match="without a value"):
        card.results(measured(rows=[{"value": float("nan")}]), lambda task: ("STS", "x"))


def test_rows_of_another_revision_are_not_taken():
    opened = Opened("me5/x", "f" * 16, None, False)
    both = measured(rows=[{}, {"revision": "e" * 16}, {"model": "me5/y"}])
    assert model.own_rows(both, opened, "results").index.tolist() == [0]
    with pytest.raises(Me5Error, match="no results of me5/x at 0000.*me5/x at ffff.*evaluate this model"):
        model.own_rows(both, opened._replace(revision="0" * 16), "results")


def test_a_task_says_its_type_and_data_set():
    assert model.described("STSBenchmark") == ("STS", "mteb/stsbenchmark-sts")
    assert model.described("Of My Own") == ("sentence-similarity", "Of My Own")


def test_every_data_card_can_be_cited():
    names = cards.names()
    every = tuple(model._source(name, strict=True) for name in names)
    text = card.write(about(sources=every))
    data = ModelCard(text).data
    assert data.language[0] == "multilingual" and all(re.fullmatch("[a-z]{2,3}", code) for code in data.language[1:])
    assert {"de", "sw", "zh"} <= set(data.language) and "cfli/bge-e5data" in data.datasets
    table = [line for line in text.splitlines() if line.startswith("| ") and "](" in line]
    assert len(table) == len(names) and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in table)


def test_a_bar_in_a_licence_is_no_column():
    text = card.write(about(sources=sources()[:1]))
    assert r"| One \| two | 4 | ODC-BY |" in text and "[a/b](https://huggingface.co/datasets/a/b), [c/d]" in text


def test_both_kinds_of_prompts_are_explained():
    assert "`query: ` before a query and `passage: ` before a document" in card.write(about())
    text = card.write(about(prompts=instruct_prompts("Find songs")))
    assert "`Instruct: Find songs\\nQuery: ` before a query and nothing before a document" in text


# The command


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage 2 and the stage 1 that it went on from, as `me5` leaves them."""
    out = tmp_path_factory.mktemp("run")
    data = {"sources": ["cldr", "kolibri"], "labelled": ["cldr-facts"]}
    encoder = Encoder.new(config.load("smoke").model, train_tokenizer(check.samples(64), 2000), seed=0)
    for name, fingerprint, extra in (("stage1", "one", {}), ("stage2", "two", {"start": "one"})):
        encoder.save(out / name)
        settings = {"data": data, "model": {"backbone": "random"}, **extra}
        made = {"fingerprint": fingerprint, "settings": settings}
        (out / name / "stage.json").write_text(json.dumps(made), encoding="utf8")
    return out / "stage2"


def test_the_command_writes_a_card_of_what_the_folder_says(stage, tmp_path, capsys):
    model.export(model=str(stage), to=tmp_path / "mine", license="apache-2.0")
    loaded = ModelCard.load(tmp_path / "mine" / "README.md")
    assert loaded.data.license == "apache-2.0" and loaded.data.base_model is None and "random weights" in loaded.text
    titles = [cards.load(name).title for name in ("cldr", "kolibri", "cldr-facts")]
    assert [title in loaded.text for title in titles] == [True] * 3
    assert set(loaded.data.language) >= {code for code in cards.load("kolibri").languages if len(code) == 2}
    assert str(stage.parent) not in loaded.content and str(tmp_path) not in loaded.content
    assert re.search(r"texts in \d\d scripts.*sentence-transformers \de-0\d, transformers", capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_data_and_name_can_be_told(stage, tmp_path):
    model.export(model=str(stage), to=tmp_path / "mine", name="acme/e5", data="nllb, xp3")
    loaded = ModelCard.load(tmp_path / "mine" / "README.md")
    assert loaded.text.strip().startswith("# acme/e5") and loaded.data.license == "unknown"
    assert loaded.data.datasets[0] == "slone/nllb-200-10M-sample" and "CLDR" not in loaded.text
    with pytest.raises(Me5Error, match="no data card 'nllbb'"):
        model.export(model=str(stage), to=tmp_path / "other", data="nllbb")
    assert not (tmp_path / "other").exists()


def test_measured_results_of_this_model_come_onto_its_card(stage, tmp_path):
    name, revision = "me5/stage2", fingerprint_of(stage)

    def lay(protocol, revision, score):
        folder = tmp_path / "results" / f"{protocol}-fp32" / "results" / name.replace("/", "__") / revision
        folder.mkdir(parents=True)
        found = {"task_name": "STSBenchmark", "dataset_revision": COMMIT, "mteb_version": "2.26.24",
                 "scores": {"test": [{"main_score": score, "hf_subset": "default", "languages": ["eng-Latn"]}]}}
        (folder / "STSBenchmark.json").write_text(json.dumps(found), encoding="utf8")
        (folder / "model_meta.json").write_text(json.dumps({"name": name, "revision": revision}), encoding="utf8")

    lay("paper", "0" * 16, 0.9)
    with pytest.raises(Me5Error, match=f"no results of me5/stage2 at {revision[:12]}.*me5/stage2 at 0000"):
        model.export(model=str(stage), to=tmp_path / "mine", results=tmp_path / "results")
    lay("paper", revision, 0.5)
    lay("mteb", revision, 0.25)
    model.export(model=str(stage), to=tmp_path / "mine", results=tmp_path / "results")
    found = ModelCard.load(tmp_path / "mine" / "README.md").data.eval_results
    assert [(r.dataset_type, r.task_type, r.dataset_revision, r.metric_args["protocol"], r.metric_value)
            for r in found] == [("mteb/stsbenchmark-sts", "STS", COMMIT, "mteb", 25.0),
                                ("mteb/stsbenchmark-sts", "STS", COMMIT, "paper", 50.0)]  # fmt: skip


def test_the_code_on_the_card_runs(stage, tmp_path, capsys, monkeypatch):
    there = all(onnx.importlib.util.find_spec(name) for name in onnx.NEEDED)
    model.export(model=str(stage), to=tmp_path / "mine", onnx=there)
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "mine" / "README.md").read_text("utf8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1 + there
    spaces = [{} for _ in blocks]
    for block, space in zip(blocks, spaces, strict=True):
        exec(block, space)
    wanted = Encoder.load(stage).encode(["How do I pay?"])
    np.testing.assert_allclose(spaces[0]["queries"], wanted, atol=1e-5)
    if there:
        np.testing.assert_allclose(spaces[1]["vectors"], wanted, atol=1e-5)


def test_bases_of_stages():
    snapshot = "/anywhere/hub/models--intfloat--multilingual-e5-small/snapshots/abc"
    assert model._base({"model": {"backbone": snapshot}}) == ("intfloat/multilingual-e5-small", "")
    assert model._base({"model": {"backbone": "xlm-roberta-base"}}) == ("xlm-roberta-base", "")
    assert model._base({"start": "a/b@c0ffee", "model": {"backbone": "x"}}) == ("a/b", "")
    assert model._base({"start": "one", "model": {"backbone": "random"}}) == ("", "random weights")
    assert model._base({"model": {"backbone": "/some/folder"}}) == ("", "") == model._base({})


@pytest.mark.parametrize("instruct", [False, True])
def test_the_authors_models_are_credited_with_their_tables(instruct):
    names = model._cards_of_authors(instruct)
    assert {"nllb", "wikipedia", "miracl"} <= set(names) and ("synthetic" in names) == instruct
    assert not {"cldr", "gettext"} & set(names)
