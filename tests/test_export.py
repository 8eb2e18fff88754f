"""A saved folder: whole or absent, and the same vectors in sentence-transformers and transformers."""

import errno
import json
import unicodedata

import numpy as np
import pytest
import torch

from me5lib import config
from me5lib.cli.model import export
from me5lib.io import Me5Error
from me5lib.model import check
from me5lib.model.encoder import Encoder, average_pool
from me5lib.model.save_load import instruct_prompts, write
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer, vocabulary_sha256

LOCALES = ("en", "de", "ru", "uk", "zh", "zh_Hant", "ja", "ko", "th", "am", "ka", "hy", "he", "ar", "fa", "hi", "bn",
           "ta", "te", "km", "my", "el", "si", "lo")  # fmt: skip


def texts():
    """Over 1,000 texts: names, and sentences with dates and numbers, of CLDR; then the awkward ones."""
    from datetime import datetime

    from babel import Locale, dates, numbers

    found = []
    for code in LOCALES:
        locale = Locale.parse(code)
        names = [*locale.territories.values(), *locale.languages.values()]
        found += names[:: len(names) // 42]
        moment = dates.format_datetime(datetime(2024, 2, 5, 14, 30), "full", locale=code)
        found += [f"{moment}: {numbers.format_currency(1234.5, 'EUR', locale=code)} – {', '.join(names[:12])}."]
    long = ["word " * 3000, "永和九年" * 2000, "x" * 9000, "x" * 99_999]
    return [*found, *long, "", "   ", "\n\t", "a", "🎉🎉 \u200b ﬁ №５", "</s> <pad>"]


def scripts(found):
    """The scripts of the letters, by their Unicode names."""
    return {unicodedata.name(c, "?").split()[0] for text in found for c in text if c.isalpha()}


@pytest.fixture(scope="module")
def corpus():
    return texts()


@pytest.fixture(scope="module")
def encoder(corpus):
    tokenizer = train_tokenizer(corpus, 4000)
    return Encoder.new(config.load("smoke").model, tokenizer, seed=3).eval()


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_sentence_transformers_gives_the_same_vectors(encoder, folder, corpus):
    from sentence_transformers import SentenceTransformer

    assert len(corpus) >= 1000 and len(scripts(corpus)) >= 10
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert theirs.max_seq_length == encoder.max_tokens
    np.testing.assert_allclose(theirs.encode_query(corpus), encoder.encode(corpus, QUERY), atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(corpus), encoder.encode(corpus, PASSAGE), atol=1e-5)
    np.testing.assert_allclose(theirs.encode(corpus), encoder.encode(corpus, ""), atol=1e-5)
    assert theirs.prompts["passage"] == PASSAGE


def test_transformers_gives_the_same_vectors_and_misses_no_weight(encoder, folder, corpus):
    from transformers import AutoModel, AutoTokenizer

    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    batch = AutoTokenizer.from_pretrained(folder)(
        [QUERY + text for text in corpus], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    expected = torch.nn.functional.normalize(average_pool(hidden, batch["attention_mask"]), dim=-1)
    np.testing.assert_allclose(expected.numpy(), encoder.encode(corpus, QUERY), atol=1e-5)


def test_loading_gives_the_same_encoder(encoder, folder, corpus):
    loaded = Encoder.load(folder)
    np.testing.assert_array_equal(loaded.encode(corpus[:50]), encoder.encode(corpus[:50]))
    assert loaded.max_tokens == encoder.max_tokens and not loaded.training
    assert vocabulary_sha256(loaded.tokenizer) == vocabulary_sha256(encoder.tokenizer)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in encoder.named_parameters()]


def test_an_xlm_r_reads_two_positions_less_than_it_has(encoder, tmp_path):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=50, pad_token_id=1,
    )  # fmt: skip
    Encoder(XLMRobertaModel(config, add_pooling_layer=False), encoder.tokenizer, 512).save(tmp_path / "xlm-r")
    loaded = Encoder.load(tmp_path / "xlm-r")
    assert loaded.max_tokens == 48 and np.isfinite(loaded.encode(["word " * 500])).all()


def test_saving_twice_gives_the_same_files(encoder, folder, tmp_path):
    Encoder.load(folder).save(tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)


def test_only_safetensors_and_json(folder):
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf8"))


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(encoder, folder, monkeypatch):
    import safetensors.torch

    before = (folder / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(Me5Error, match="No space left"):
            encoder.save(target)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_saving_over_an_older_checkpoint(encoder, folder):
    (folder / "stale.json").write_text("{}", encoding="utf8")
    encoder.save(folder)
    assert not (folder / "stale.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_missing_and_empty_folders_are_said_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", tmp_path / "empty"):
        with pytest.raises(Me5Error, match="no model (folder|in) .*me5 pretrain") as caught:
            Encoder.load(where)
        assert "\n" not in str(caught.value)


def test_damaged_checkpoints_are_said_in_one_line(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(Me5Error, match="cannot be read.*make it again"):
        Encoder.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Me5Error, match="cannot be read.*make it again"):
        Encoder.load(folder)


def test_weights_that_are_lacking_are_not_replaced_by_random_ones(folder):
    import safetensors.torch

    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state["encoder.layer.0.output.dense.weight"]
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Me5Error, match="lacks weights"):
        Encoder.load(folder)


def test_hub_id_offline_is_one_clear_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Me5Error, match="multilingual-e5-small is not in the cache and the hub is out") as caught:
        Encoder.load("intfloat/multilingual-e5-small")
    assert "\n" not in str(caught.value)


def test_an_instruct_model_has_its_instruction_as_prompt(encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    write(encoder, tmp_path / "model", instruct_prompts("Find songs"))
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = ["la la la", "ein Lied"]
    expected = encoder.encode([f"Instruct: Find songs\nQuery: {text}" for text in texts], "")
    np.testing.assert_allclose(theirs.encode_query(texts), expected, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(texts), encoder.encode(texts, ""), atol=1e-5)


def test_what_fails_while_a_folder_is_completed_leaves_the_old_one(encoder, folder):
    before = (folder / "model.safetensors").read_bytes()

    def refuse(beside):
        (beside / "README.md").write_text("half", encoding="utf8")
        raise Me5Error("the export is refused")

    for target in (folder, folder.with_name("new")):
        with pytest.raises(Me5Error, match="the export is refused"):
            write(encoder, target, also=refuse)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert (folder / "model.safetensors").read_bytes() == before and not (folder / "README.md").exists()


# me5 export


def test_export_replaces_its_own_folder_and_nothing_else(encoder, folder, tmp_path):
    export(model=str(folder), to=tmp_path / "mine")
    np.testing.assert_array_equal(Encoder.load(tmp_path / "mine").encode(["a b"]), encoder.encode(["a b"]))
    (tmp_path / "mine" / "stale").write_text("", encoding="utf8")
    export(model=str(folder), to=tmp_path / "mine")
    assert not (tmp_path / "mine" / "stale").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years", encoding="utf8")
    for target, said in (("thesis", "no earlier export"), ("thesis/chapter1", "no earlier export"),
                         ("checkpoint", "is the model itself")):  # fmt: skip
        with pytest.raises(Me5Error, match=said):
            export(model=str(folder), to=tmp_path / target)
    assert (tmp_path / "thesis" / "chapter1").read_text("utf8") == "years"


def test_an_instruct_model_is_told_by_its_prompts(encoder, tmp_path):
    write(encoder, tmp_path / "model", instruct_prompts("Find songs"))
    export(model=str(tmp_path / "model"), to=tmp_path / "mine", instruction="Find poems")
    prompts = json.loads((tmp_path / "mine" / "config_sentence_transformers.json").read_text("utf8"))["prompts"]
    assert prompts == {"query": "Instruct: Find poems\nQuery: ", "passage": "", "document": ""}


def test_a_failed_check_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "TOLERANCE", 0.0)
    with pytest.raises(Me5Error, match="the export is refused"):
        export(model=str(folder), to=tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_export_refuses_is_said_in_one_line(folder, tmp_path):
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text("utf8").replace('"mean"', '"cls"'), encoding="utf8")
    for options, said in (({}, "is no E5"), ({"license": "My own!"}, "no identifier"), ({"revision": "x"}, "revision")):
        with pytest.raises(Me5Error, match=said) as caught:
            export(model=str(folder), to=tmp_path / "mine", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(Me5Error, match="no model folder"):
        export(model=str(tmp_path / "nowhere"), to=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_model_with_prefixes_takes_no_instruction(folder, tmp_path):
    with pytest.raises(Me5Error, match="reads prefixes, not instructions"):
        export(model=str(folder), to=tmp_path / "mine", instruction="Find songs")
