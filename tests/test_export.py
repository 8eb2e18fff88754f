"""`me5 export`: the folder, its model card and its ONNX graph; what is refused."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from test_encoder import xlm_r
from torch.nn.functional import normalize

from me5lib import config
from me5lib.cli import model as command
from me5lib.data import cards
from me5lib.data.corpus import open_corpus
from me5lib.evaluate.models import E5, Opened, fingerprint_of
from me5lib.io import Me5Error
from me5lib.model import card
from me5lib.model import export as room
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import PROMPTS, instruct_prompts
from me5lib.model.text import QUERY, train_tokenizer

COMMIT = "a" * 40
TEXTS = ["Wie bezahle ich?", "", "永和九年", "จ่ายเงินอย่างไร", "word " * 300, "a", "Как оплатить? " * 20, "</s> <pad> x"]
ONNX = all(importlib.util.find_spec(name) for name in room.NEEDED)
needed = pytest.mark.skipif(not ONNX, reason="needs the extra `export`")


@pytest.fixture(scope="module")
def encoder():
    shape = dataclasses.replace(config.load("smoke").model, layers=2)
    return Encoder.new(shape, train_tokenizer(room.check_texts(64), 3000), seed=1).eval()


@pytest.fixture(scope="module")
def stage(encoder, tmp_path_factory):
    """A stage 2 and the stage 1 that it went on from, as `me5` leaves them."""
    out = tmp_path_factory.mktemp("run")
    data = {"sources": ["cldr", "kolibri"], "labelled": ["cldr-facts"]}
    for name, fingerprint, extra in (("stage1", "one", {}), ("stage2", "two", {"start": "one"})):
        encoder.save(out / name)
        settings = {"data": data, "model": {"backbone": "random"}, **extra}
        made = {"fingerprint": fingerprint, "settings": settings}
        (out / name / "stage.json").write_text(json.dumps(made), encoding="utf8")
    return out / "stage2"


@pytest.fixture(scope="module")
def mine(stage, tmp_path_factory):
    """The folder of `me5 export` over an earlier export, and what it printed."""
    folder = tmp_path_factory.mktemp("out") / "mine"
    folder.mkdir()
    (folder / "modules.json").write_text("{}", encoding="utf8")
    (folder / "stale").write_text("", encoding="utf8")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.export_command(model=str(stage), to=folder, license="apache-2.0", onnx=ONNX)
    assert [path.name for path in folder.parent.iterdir()] == ["mine"] and not (folder / "stale").exists()
    return folder, printed.getvalue()


# The card


def about(**changes):
    plain = card.About("my-e5", 384, 512, PROMPTS, license="mit", base_model="microsoft/Multilingual-MiniLM-L12-H384")
    return plain._replace(**changes)


SOURCES = (card.CitedSource("one", "One | two", "ODC-BY", "https://a.b", ("de", "zh-hant", "sw", "und-x"),
                            ("a/b", "c/d")),
           card.CitedSource("two", languages=("de", "kr-arab"), repositories=("c/d",)))


def results(*changes):
    row = {"protocol": "paper", "dtype": "fp32", "task": "STSBenchmark", "split": "test", "metric": "main_score",
           "value": 84.123456}  # fmt: skip
    return card.result_rows(pd.DataFrame([row | change for change in changes]))


def test_the_hubs_reader_gets_everything_back():
    text = card.render(about(sources=SOURCES))
    data = ModelCard(text).data
    assert data.language == ["multilingual", "de", "kr", "sw", "und", "zh"]
    assert (data.license, data.base_model) == ("mit", "microsoft/Multilingual-MiniLM-L12-H384")
    assert data.library_name == "sentence-transformers" and "sentence-transformers" in data.tags
    assert data.datasets == ["a/b", "c/d"] and data.model_name == "my-e5"
    assert r"| One \| two | 4 | ODC-BY |" in text and "[a/b](https://huggingface.co/datasets/a/b), [c/d]" in text
    assert "`query: ` before a query and `passage: ` before a document" in text
    text = card.render(about(prompts=instruct_prompts("Find songs")))
    assert "`Instruct: Find songs\\nQuery: ` before a query and nothing before a document" in text


def test_nothing_is_invented():
    text = card.render(about(base_model="", license=card.UNKNOWN))
    data = ModelCard(text).data.to_dict()
    assert not {"datasets", "language", "base_model"} & set(data) and data["license"] == "unknown"
    assert "None were measured" in text and "Not stated." in text and "a backbone that is not stated" in text
    with pytest.raises(Me5Error, match="a row has no value"):
        results({"value": float("nan")})


def test_two_ways_to_evaluate_stay_two_results_and_subsets_are_averaged():
    subsets = [{"task": "Tatoeba", "subset": f"x{i}-eng", "value": value} for i, value in enumerate((90.0, 70.0, 50.5))]
    text = card.render(about(results=results({}, {"protocol": "mteb", "value": 80.0}, {"dtype": "bf16"}, *subsets)))
    for way in ("paper protocol, fp32 | 1 | 84.12", "mteb protocol, fp32 | 1 | 80.00",
                "paper protocol, bf16 | 1 | 84.12"):
        assert f"| STSBenchmark | test: main_score, {way} |" in text
    assert f"| Tatoeba | test: main_score, paper protocol, fp32 | 3 | {np.mean([90.0, 70.0, 50.5]):.2f} |" in text


def test_every_data_card_can_be_cited():
    text = card.render(about(sources=tuple(command.cited(name, strict=True) for name in cards.card_names())))
    data = ModelCard(text).data
    assert data.language[0] == "multilingual" and all(re.fullmatch("[a-z]{2,3}", code) for code in data.language[1:])
    assert {"de", "sw", "zh"} <= set(data.language) and "cfli/bge-e5data" in data.datasets
    table = [line for line in text.splitlines() if line.startswith("| ") and "](" in line]
    assert len(table) == len(cards.card_names()) and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in table)


@pytest.mark.parametrize(("settings", "base"), [
    ({"model": {"backbone": "xlm-roberta-base"}}, ("xlm-roberta-base", "")),
    ({"start": "a/b@c0ffee", "model": {"backbone": "x"}}, ("a/b", "")),
    ({"start": "one", "model": {"backbone": "random"}}, ("", "random weights")),
    ({"model": {"backbone": "/some/folder"}}, ("", "")), ({}, ("", "")),
])  # fmt: skip
def test_the_base_of_a_stage(settings, base):
    assert card.base_of(settings) == base


def test_the_authors_models_are_credited_with_their_tables(encoder):
    cited = []
    for name, reads in (("multilingual-e5-large", False), ("multilingual-e5-large-instruct", True)):
        opened = Opened(f"intfloat/{name}", "", E5(encoder), reads)
        cited.append({source.name for source in command.about_model(opened, opened.name, "x").sources})
    plain, instruct = cited
    assert {"nllb", "wikipedia", "miracl"} <= plain < instruct and "synthetic" in instruct - plain
    assert not {"cldr", "gettext"} & instruct


# The command


def test_a_card_says_what_the_folder_says(stage, encoder, mine):
    folder, printed = mine
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.license == "apache-2.0" and loaded.data.base_model is None and "random weights" in loaded.text
    assert all(cards.load_card(name).title in loaded.text for name in ("cldr", "kolibri", "cldr-facts"))
    assert set(loaded.data.language) >= {code for code in cards.load_card("kolibri").languages if len(code) == 2}
    assert str(stage.parent) not in loaded.content and str(folder.parent) not in loaded.content
    assert re.search(r"texts in \d\d languages.*sentence-transformers \de-0\d, transformers", printed)
    np.testing.assert_array_equal(Encoder.load(folder).encode(["a b"]), encoder.encode(["a b"]))


def test_what_is_told_goes_onto_the_card(encoder, tmp_path):
    encoder.save(tmp_path / "model", instruct_prompts("Find songs"))
    opened = Opened("me5/model", "", E5(encoder), True)
    assert command.about_model(opened, str(tmp_path / "model"), "x").prompts == instruct_prompts("Find songs")
    command.export_command(model=str(tmp_path / "model"), to=tmp_path / "mine", name="acme/e5", data="nllb, xp3",
                   instruction="Find poems")  # fmt: skip
    loaded = ModelCard.load(tmp_path / "mine" / "README.md")
    assert loaded.text.strip().startswith("# acme/e5") and loaded.data.license == "unknown"
    assert loaded.data.datasets[0] == "slone/nllb-200-10M-sample" and "CLDR" not in loaded.text
    prompts = json.loads((tmp_path / "mine" / "config_sentence_transformers.json").read_text("utf8"))["prompts"]
    assert prompts == {"query": "Instruct: Find poems\nQuery: ", "passage": "", "document": ""}


def test_a_vocabulary_is_cut_to_languages_and_a_file_and_the_card_says_so(stage, encoder, tmp_path):
    (tmp_path / "own.txt").write_text("永和九年\nZitronenöl", encoding="utf8")
    options = {"model": str(stage), "to": tmp_path / "cut", "scale": "smoke"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.export_command(**options, languages="de, fi", text=[tmp_path / "own.txt"])
    cut, corpus = Encoder.load(tmp_path / "cut"), open_corpus(config.load("smoke"))
    texts = [*corpus.training_texts("de")[:99], *corpus.training_texts("fi")[-99:], "永和九年", "Zitronenöl"]
    assert len(cut.tokenizer) < len(encoder.tokenizer) / 2 and "Zypern" in corpus.training_texts("de")
    np.testing.assert_allclose(cut.encode(texts), encoder.encode(texts), atol=1e-6)
    loaded = ModelCard.load(tmp_path / "cut" / "README.md")
    sizes = f"{len(encoder.tokenizer):,} tokens to {len(cut.tokenizer):,}"
    assert loaded.data.language == ["multilingual", "de", "fi"] and sizes in " ".join(loaded.text.split())
    assert sizes in printed.getvalue() and re.search(r"\nde +\d+\.\d.*\nfi +", printed.getvalue())
    assert corpus.training_texts("en") and "Cyprus" in corpus.training_texts("en")
    with pytest.raises(Me5Error, match=r"no text in xx .*add some, --text FILE"):
        command.export_command(**options, languages="de,xx")


def test_measured_results_of_this_very_model_come_onto_its_card(stage, tmp_path):
    name, revision = "me5/stage2", fingerprint_of(stage)

    def lay(protocol, revision, score):
        folder = tmp_path / "results" / f"{protocol}-fp32" / "results" / name.replace("/", "__") / revision
        folder.mkdir(parents=True)
        found = {"task_name": "STSBenchmark", "dataset_revision": COMMIT, "mteb_version": "2.26.24",
                 "evaluation_time": 1,
                 "scores": {"test": [{"main_score": score, "hf_subset": "default", "languages": ["eng-Latn"]}]}}
        (folder / "STSBenchmark.json").write_text(json.dumps(found), encoding="utf8")
        (folder / "model_meta.json").write_text(json.dumps({"name": name, "revision": revision}), encoding="utf8")

    lay("paper", "0" * 16, 0.9)
    with pytest.raises(Me5Error, match=f"no results of me5/stage2 at {revision[:12]}.*me5/stage2 at 0000"):
        command.export_command(model=str(stage), to=tmp_path / "mine", results=tmp_path / "results")
    lay("paper", revision, 0.5)
    lay("mteb", revision, 0.25)
    command.export_command(model=str(stage), to=tmp_path / "mine", results=tmp_path / "results")
    text = (tmp_path / "mine" / "README.md").read_text("utf8")
    for protocol, value in (("mteb", "25.00"), ("paper", "50.00")):
        assert f"| STSBenchmark | test: main_score, {protocol} protocol, fp32 | 1 | {value} |" in text


def test_what_export_refuses_is_one_line_and_writes_nothing(stage, encoder, tmp_path, monkeypatch):
    encoder.save(tmp_path / "model")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years", encoding="utf8")
    cases = [({"to": "thesis"}, "no earlier export"), ({"to": "thesis/chapter1"}, "no earlier export"),
             ({"to": "model"}, "is the model itself"), ({"license": "My own!"}, "no identifier"),
             ({"revision": "x"}, "revision"), ({"instruction": "Find songs"}, "reads prefixes, not instructions"),
             ({"data": "nllbb"}, "no data card 'nllbb'"), ({"model": str(tmp_path / "nowhere")}, "no model folder"),
             ({"tolerance": 0.0}, "the export is refused"), ({"pooling": "cls"}, "is no E5")]  # fmt: skip
    for options, line in cases:
        monkeypatch.setattr(room, "TOLERANCE", options.pop("tolerance", 1e-4))
        pooling = {"embedding_dimension": encoder.width, "pooling_mode": options.pop("pooling", "mean")}
        (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf8")
        to = tmp_path / options.pop("to", "mine")
        with pytest.raises(Me5Error, match=line) as caught:
            command.export_command(**{"model": str(tmp_path / "model"), "to": to, **options})
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "thesis"]
    assert (tmp_path / "thesis" / "chapter1").read_text("utf8") == "years"


def test_the_code_on_the_card_runs(stage, mine, monkeypatch):
    monkeypatch.chdir(mine[0].parent)
    blocks = re.findall(r"```python\n(.*?)```", (mine[0] / "README.md").read_text("utf8"), flags=re.DOTALL)
    assert len(blocks) == 1 + ONNX
    wanted = Encoder.load(stage).encode(["How do I pay?"])
    for block, name in zip(blocks, ("queries", "vectors"), strict=False):
        space = {}
        exec(block, space)
        np.testing.assert_allclose(space[name], wanted, atol=1e-5)


# The graph


@pytest.fixture(scope="module", params=["bert", "xlm-r"])
def exported(request, encoder, mine, tmp_path_factory):
    """An encoder, and a folder of it with its graph; the XLM-R's weights beside the graph, as of a large model."""
    if request.param == "bert":
        return encoder, mine[0]
    encoder, folder = xlm_r(encoder.tokenizer), tmp_path_factory.mktemp("onnx") / "model"
    before, attention = encoder.encode(TEXTS), encoder.backbone.config._attn_implementation
    encoder.save(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "INLINE", 1000)
        room.write_graph(encoder, folder)
    assert encoder.backbone.config._attn_implementation == attention
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)  # exporting left it as it was
    assert (folder / f"{room.ONNX}.data").is_file() and not (mine[0] / f"{room.ONNX}.data").exists()
    return encoder, folder.rename(folder.with_name("moved"))


@needed
def test_the_graph_gives_the_vectors_of_transformers_for_any_batch_and_length(exported):
    encoder, folder = exported
    tokens, sentence = (room.graph_reader(folder / room.ONNX, name) for name in room.OUTPUTS)
    for texts in (TEXTS[:7], TEXTS[5:6], TEXTS[:1], [QUERY + text for text in TEXTS[:7] * 3]):
        batch = encoder.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder.backbone(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        assert tokens(batch).shape == tuple(hidden.shape) and tokens(batch).dtype == np.float32
        expected = normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        np.testing.assert_allclose(sentence(batch), expected, atol=1e-5)
    batch = encoder.tokenizer(TEXTS[:1], return_tensors="np")
    pad = {"input_ids": encoder.tokenizer.pad_token_id, "attention_mask": 0}  # before a text it is padding too
    left = {name: np.pad(batch[name], ((0, 0), (5, 0)), constant_values=value) for name, value in pad.items()}
    np.testing.assert_allclose(sentence(batch), sentence(left), atol=1e-6)


@needed
def test_the_check_holds_and_refuses_another_vector(exported):
    encoder, folder = exported
    texts = room.check_texts(encoder.max_tokens)
    assert "" in texts and max(map(len, encoder.tokenizer(texts)["input_ids"])) > 64
    other = Encoder(type(encoder.backbone)(encoder.backbone.config, add_pooling_layer=False), encoder.tokenizer, 64)
    other.backbone.load_state_dict(encoder.backbone.state_dict())
    with torch.no_grad():
        other.eval().backbone.encoder.layer[-1].output.dense.bias[0] += 0.01
    for reader in (room.onnxruntime, room.sentence_transformers, room.transformers):
        assert room.difference(reader, folder, encoder, PROMPTS) < 1e-5
        with pytest.raises(Me5Error, match="gives other vectors than me5 for .* the export is refused"):
            room.difference(reader, folder, other, PROMPTS)


def test_a_missing_package_is_one_line(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(Me5Error, match=r"ONNX needs onnxscript: pip install 'me5\[export\]'"):
        room.write_graph(encoder, tmp_path)
    assert not list(tmp_path.iterdir())
