"""Models opened by folder and by hub id: which are E5s, what they give, and one line for what cannot be opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_tables import me5_like
from loopback import Loopback, missing

from me5lib.evaluate import models
from me5lib.evaluate.models import open_model
from me5lib.io import Me5Error
from me5lib.model import resolve
from me5lib.model.resolve import full_id
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer

TEXTS = ["kal mel", "nel pol rel sel tal ul " * 20, "mel", "a title and a body", ""]


def small(where: Path, seed: int = 0) -> Path:
    """mE5-small in little."""
    texts = [f"{a}{b} {b}{a} title body" for a in "klmnoprstu" for b in "aeiou"] * 4
    return me5_like(where, train_tokenizer(texts, 400), seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small(tmp_path_factory.mktemp("models") / "stage 2")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> Path:
    """LaBSE in little: the first token's vector, a dense layer, a norm."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    where = tmp_path_factory.mktemp("models")
    backbone = Transformer(str(small(where / "backbone", 1)), max_seq_length=64)
    dense = Dense(32, 16, activation_function=torch.nn.Tanh())
    model = SentenceTransformer(modules=[backbone, Pooling(32, pooling_mode="cls"), dense, Normalize()], device="cpu")
    model.save(str(where / "LaBSE"))
    return where / "LaBSE"


def test_no_text_is_read_further_than_512_tokens_and_the_tokenizer_is_xlm_rs(folder, tmp_path):
    """The hub's mE5-small says so by the tokenizer's class; a BERT tokenizer would lower case and split on its own."""
    from transformers import BertConfig, BertModel

    copy = shutil.copytree(folder, tmp_path / "long")
    for name, changes in (("config.json", {"max_position_embeddings": 600}),
                          ("tokenizer_config.json", {"model_max_length": 600,
                                                     "tokenizer_class": "XLMRobertaTokenizer"})):
        content = json.loads((copy / name).read_text(encoding="utf8")) | changes
        (copy / name).write_text(json.dumps(content), encoding="utf8")
    BertModel(BertConfig.from_pretrained(copy)).save_pretrained(copy)
    for where in (folder, copy):
        encoder = open_model(str(where), device="cpu").encoder.encoder
        assert encoder.max_tokens == 512 and encoder.backbone.config.pad_token_id == 0
    tokenizer = encoder.tokenizer
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert "Bert" not in type(tokenizer).__name__ and tokenizer.tokenize("kal")[0].startswith("▁")


def test_name_revision_and_precision_of_a_folder(folder, tmp_path):
    opened, again = open_model(str(folder), device="cpu"), open_model(str(folder), dtype="bf16", device="cpu")
    assert opened.name == "me5/stage-2" and opened.revision == again.revision and len(opened.revision) == 16
    assert not opened.instruct and (opened.dtype, again.dtype) == ("fp32", "bf16")
    assert open_model(str(small(tmp_path / "other", 5)), device="cpu").revision != opened.revision
    exact, near = (each.encoder.encode(TEXTS, QUERY) for each in (opened, again))
    assert (near * exact).sum(1).min() > 0.999 and not np.array_equal(near, exact)
    np.testing.assert_array_equal(again.encoder.encode(TEXTS, QUERY, precision="fp32"), exact)


def test_another_model_encodes_as_sentence_transformers_does_with_its_own_prompts(baseline, tmp_path):
    from sentence_transformers import SentenceTransformer

    opened = open_model(str(baseline), device="cpu")
    assert opened.name == "me5/LaBSE" and not opened.instruct
    expected = SentenceTransformer(str(baseline), device="cpu").encode(TEXTS)
    for prefix, normalise in ((QUERY, True), (PASSAGE, True), ("", False)):
        vectors = opened.encoder.encode(TEXTS, prefix, normalise=normalise)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    copy = shutil.copytree(baseline, tmp_path / "prompted")
    path = copy / "config_sentence_transformers.json"
    named = json.loads(path.read_text(encoding="utf8")) | {"prompts": {"query": "ask: ", "document": ""}}
    path.write_text(json.dumps(named), encoding="utf8")
    encoder = open_model(str(copy), device="cpu").encoder
    assert encoder.own_prompts == {"query": "ask: "}
    expected = SentenceTransformer(str(copy), device="cpu").encode_query(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS, "ask: "), expected, atol=1e-6)


def described(where: Path, prompts: dict | None = None, pooling: str = "mean", modules: bool = True) -> Path:
    """The JSON files of a sentence-transformers model, without weights."""
    (where / "1_Pooling").mkdir(parents=True)
    content = {"1_Pooling/config.json": {f"pooling_mode_{pooling}_tokens": True, "word_embedding_dimension": 8},
               "config.json": {}}
    if modules:
        content["modules.json"] = [{"type": f"sentence_transformers.models.{kind}"} for kind in (
            "Transformer", "Pooling", "Normalize")]
    if prompts is not None:
        content["config_sentence_transformers.json"] = {"prompts": prompts}
    for name, value in content.items():
        (where / name).write_text(json.dumps(value), encoding="utf8")
    return where


@pytest.mark.parametrize(("name", "about", "expected"), [
    ("intfloat/multilingual-e5-base", {}, True),
    ("intfloat/e5-large-v2", {"modules": False}, True),
    ("someone/my-mE5-tuned", {}, True),
    ("someone/tuned", {"prompts": {"query": QUERY, "document": PASSAGE}}, True),
    ("someone/tuned", {"prompts": {"query": "Instruct: Find.\nQuery: "}}, True),
    ("someone/plain-transformers", {"modules": False}, True),
    ("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", {}, False),
    ("intfloat/e5-mistral-7b-instruct", {"pooling": "last"}, False),
    ("someone/arctic", {"prompts": {"query": QUERY}}, False),
    ("me5/stage2", {"prompts": {"query": QUERY, "passage": PASSAGE}}, True),
    ("me5/tuned", {}, False),
    ("someone/tuned", {}, False),
    ("me5/labse", {"pooling": "cls"}, False),
    ("me5/bge", {"prompts": {"query": "Represent: "}}, False),
])  # fmt: skip
def test_which_models_are_e5s(name, about, expected, tmp_path):
    """By the same rule for a folder and for an id of the hub."""
    assert models.is_e5(name, described(tmp_path / "files", **about)) is expected


@pytest.mark.parametrize(("change", "expected"), [
    (("my-e5-instruct", None), True), (("stage2", {"query": "Instruct: Find.\nQuery: "}), True),
    (("my-e5-instruct", {"query": QUERY, "passage": PASSAGE}), False),
])  # fmt: skip
def test_which_folders_read_instructions(change, expected, folder, tmp_path):
    name, prompts = change
    copy = shutil.copytree(folder, tmp_path / name)
    if prompts:
        about = json.dumps({"prompts": prompts})
        (copy / "config_sentence_transformers.json").write_text(about, encoding="utf8")
    assert open_model(str(copy), device="cpu").instruct is expected


def test_short_names_and_a_revision_behind_the_id_or_beside_it():
    for name, full in (("multilingual-e5-large-instruct", "intfloat/multilingual-e5-large-instruct"), ("a/b", "a/b"),
                       ("LaBSE", "sentence-transformers/LaBSE"), ("xlm-roberta-base", "xlm-roberta-base")):
        assert full_id(name) == full
    assert [resolve.resolve("a/b@v2"), resolve.resolve("LaBSE", "v2"), resolve.resolve("a/b")] == [
        ("hub", "a/b", "v2"), ("hub", full_id("LaBSE"), "v2"), ("hub", "a/b", "")]


@pytest.mark.parametrize(("arguments", "line"), [
    (({"where": "./nowhere"}), "no model folder .*nowhere: check the path"),
    (({"where": ""}), "no model given"), (({"where": "~nobody-of-this-name/x"}), "is the name of no model"),
    (({"where": "x" * 5000}), "is the name of no model"), (({"where": "@x"}), "is the name of no model"),
    (({"where": "me5-small-q4@abc"}), "is a released model, which has no revisions"),
    (({"where": "{empty}"}), r"no model in .* \(config.json is missing\)"),
    (({"where": "{folder}", "revision": "main"}), "is a folder, which has no revisions"),
    (({"where": "{folder}", "dtype": "int8"}), "unknown dtype 'int8': choose one of fp32, bf16, fp16"),
    (({"where": "{folder}", "device": "cuda:99"}), "no device 'cuda:99' here"),
    (({"where": "{torn}"}), "cannot be read .*make"),
    (({"where": "{weightless}"}), "cannot be read .*make"),
])  # fmt: skip
def test_what_cannot_be_opened_is_one_line(arguments, line, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (shutil.copytree(folder, tmp_path / "torn") / "modules.json").write_text("[{", encoding="utf8")
    (shutil.copytree(folder, tmp_path / "weightless") / "model.safetensors").unlink()
    places = {name: tmp_path / name for name in ("empty", "torn", "weightless")} | {"folder": folder}
    with pytest.raises(Me5Error, match=line) as caught:
        open_model(**{key: value.format(**places) for key, value in arguments.items()})
    assert "\n" not in str(caught.value)


HUB = """
import json, sys
import huggingface_hub.constants
from me5lib.evaluate.models import open_model
from me5lib.io import Me5Error

found = []
for where, revision in json.loads(sys.argv[1]):
    huggingface_hub.constants.HF_HUB_OFFLINE = revision == "offline"
    revision = revision.removeprefix("offline")
    try:
        opened = open_model(where, revision=revision, device="cpu")
        vectors = opened.encoder.encode(["kal mel"], "query: ")
        found.append([opened.name, opened.revision, opened.instruct, vectors[0, :4].tolist()])
    except Me5Error as error:
        found.append(str(error))
print("FOUND" + json.dumps(found))
"""


class Strict(Loopback):
    """A hub that does not know the revision `nonesuch`."""

    def answer(self, target, body, span):
        return missing("RevisionNotFound") if "nonesuch" in target else super().answer(target, body, span)


def test_models_of_a_hub(folder, baseline, tmp_path, client):
    for name, source in (("intfloat/multilingual-e5-small", folder), ("sentence-transformers/LaBSE", baseline),
                         ("intfloat/multilingual-e5-large-instruct", folder)):
        shutil.copytree(source, tmp_path / "hub" / "models" / name)
        for unwanted in ("pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"):
            path = tmp_path / "hub" / "models" / name / unwanted
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"not for us")
    (tmp_path / "hub" / "models" / "someone" / "empty").mkdir(parents=True)
    (tmp_path / "hub" / "models" / "someone" / "empty" / "README.md").write_text("nothing\n", encoding="utf8")
    asked = [("multilingual-e5-small", ""), ("intfloat/multilingual-e5-large-instruct", "main"), ("LaBSE", ""),
             ("someone/missing", ""), ("intfloat/multilingual-e5-small", "nonesuch"), ("someone/empty", ""),
             ("multilingual-e5-small", "offline"), ("someone/else", "offline")]
    with Strict(tmp_path / "hub") as hub:
        said = client(HUB, json.dumps(asked), endpoint=hub.endpoint, USE_TORCH="1").stdout
        paths = [path for _, path, _ in hub.requests]
    small, instruct, other, *refused, again, unseen = json.loads(said.split("FOUND")[1])
    expected = open_model(str(folder), device="cpu").encoder.encode(["kal mel"], QUERY)[0, :4]
    assert small[0] == "intfloat/multilingual-e5-small" and len(small[1]) == 40 and not small[2]
    assert instruct[2] and other[0] == "sentence-transformers/LaBSE"
    np.testing.assert_allclose([small[3], instruct[3]], [expected, expected], atol=1e-6)
    own = open_model(str(baseline), device="cpu").encoder.encode(["kal mel"])[0, :4]
    np.testing.assert_allclose(other[3], own, atol=1e-6)
    assert [line.split(":")[0] for line in refused] == [
        "someone/missing is neither a folder here nor a model on the hub",
        "intfloat/multilingual-e5-small has no revision nonesuch on the hub",
        "someone/empty on the hub holds no model (config.json is missing)"]
    assert not [path for path in paths if path.endswith((".bin", ".onnx", "onnx/config.json"))]
    assert again == small and unseen.startswith("someone/else is not in the cache and the hub is out of reach")


@pytest.mark.parametrize(("status", "calls"), [(503, 3), (418, 1)])
def test_a_hub_that_fails_is_asked_again_and_one_that_refuses_is_not(monkeypatch, status, calls):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    answer, asked = httpx.Response(status, request=httpx.Request("HEAD", "http://hub")), []

    def failing(name, **_):
        asked.append(name)
        raise HfHubHTTPError(f"status {status}", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    monkeypatch.setattr(resolve.time, "sleep", lambda seconds: None)
    with pytest.raises(Me5Error, match=f"a/b cannot be had from the hub .status {status}.*: try again"):
        resolve.snapshot("a/b", "", ["*"])
    assert len(asked) == calls
