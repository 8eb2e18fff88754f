"""A saved folder: whole or absent, the same vectors everywhere; other tools' folders: read as meant, or refused."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from babel import Locale
from typer.testing import CliRunner

from me5lib import config
from me5lib.cli.app import app
from me5lib.evaluate.models import fingerprint_of, open_model
from me5lib.io import Me5Error
from me5lib.model import resolve, save_load
from me5lib.model.encoder import Encoder
from me5lib.model.export import check_texts
from me5lib.model.save_load import instruct_prompts
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer, vocabulary_sha256

LOCALES = ("de", "ru", "uk", "zh", "ja", "ko", "th", "am", "ka", "hy", "he", "ar", "hi", "bn", "ta", "km", "si", "lo")
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


NAMES = [name for code in LOCALES for name in list(Locale.parse(code).languages.values())[::25]]
TEXTS = [*check_texts(64), *NAMES, ", ".join(NAMES), "x" * 99_999, "</s> <pad>"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.new(config.load("smoke").model, train_tokenizer(TEXTS, 2000), seed=3).eval()


@pytest.fixture
def folder(encoder, tmp_path) -> Path:
    encoder.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def content(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf8"))


def write(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf8")


# What is written


def test_sentence_transformers_gives_the_same_vectors(encoder, folder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu")
    assert theirs.max_seq_length == encoder.max_tokens and theirs.prompts["passage"] == PASSAGE
    for encode, prefix in ((theirs.encode_query, QUERY), (theirs.encode_document, PASSAGE), (theirs.encode, "")):
        np.testing.assert_allclose(encode(TEXTS), encoder.encode(TEXTS, prefix), atol=1e-5)
    encoder.save(folder, instruct_prompts("Find songs"))
    theirs = SentenceTransformer(str(folder), device="cpu")
    for encode, prefix in ((theirs.encode_query, "Instruct: Find songs\nQuery: "), (theirs.encode_document, "")):
        np.testing.assert_allclose(encode(TEXTS[:20]), encoder.encode(TEXTS[:20], prefix), atol=1e-5)


def test_transformers_misses_no_weight(folder):  # and gives the same vectors: see test_export
    from transformers import AutoModel

    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report


def test_loading_gives_the_same_encoder_and_saving_it_the_same_files(encoder, folder, tmp_path):
    loaded = Encoder.load(folder)
    np.testing.assert_array_equal(loaded.encode(TEXTS[:50]), encoder.encode(TEXTS[:50]))
    assert loaded.max_tokens == encoder.max_tokens and not loaded.training
    assert vocabulary_sha256(loaded.tokenizer) == vocabulary_sha256(encoder.tokenizer)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in encoder.named_parameters()]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "stale.json").write_text("{}", encoding="utf8")
    loaded.save(tmp_path / "again")
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "checkpoint"]


def test_models_of_equal_tokenizers_share_one_and_weights_never(encoder, folder, tmp_path):
    one, other = Encoder.load(folder), Encoder.load(folder)
    copied = one.copy()
    assert one.tokenizer is other.tokenizer is copied.tokenizer
    with torch.no_grad():
        one.backbone.embeddings.word_embeddings.weight.zero_()
    right = encoder.encode(TEXTS[:5])
    assert np.abs(one.encode(TEXTS[:5]) - right).max() > 0.01
    assert all(np.abs(model.encode(TEXTS[:5]) - right).max() == 0 for model in (other, copied))
    other.max_tokens = 9
    other.save(tmp_path / "short")
    assert one.max_tokens == Encoder.load(folder).max_tokens == encoder.max_tokens
    assert Encoder.load(tmp_path / "short").max_tokens == 9


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(at_the_end, encoder, folder, monkeypatch):
    import safetensors.torch

    before = (folder / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", safetensors.torch.save_file if at_the_end else full)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(Me5Error, match="No space left"):
            encoder.save(target, also=full if at_the_end else None)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert (folder / "model.safetensors").read_bytes() == before


# What cannot be read


def test_missing_empty_and_damaged_folders_are_said_in_one_line(folder, tmp_path, monkeypatch):
    import huggingface_hub.constants
    import safetensors.torch

    def refused(where, line):
        with pytest.raises(Me5Error, match=line) as caught:
            Encoder.load(where)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", tmp_path / "empty"):
        refused(where, "no model (folder|in) .*me5 pretrain")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("intfloat/multilingual-e5-small", "multilingual-e5-small is not in the cache and the hub is out")
    weights = folder / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    del state["encoder.layer.0.output.dense.weight"]
    safetensors.torch.save_file(state, weights, metadata={"format": "pt"})
    refused(folder, "lacks weights")  # and random ones do not take their place
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(folder, "cannot be read.*make it again")
    weights.unlink()
    refused(folder, "cannot be read.*make it again")


def changed(name: str, **keys: object):
    """A folder whose JSON file has other values under these keys."""
    return lambda folder: write(folder / name, (content(folder / name) if (folder / name).is_file() else {}) | keys)


def replaced(name: str, value: object):
    """A folder whose JSON file holds something else."""
    return lambda folder: write(folder / name, value)


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def pooled(*modes: str):
    """As sentence-transformers up to 5 saves them."""
    flags = {f"pooling_mode_{mode}": mode in modes for mode in MODES}
    return replaced("1_Pooling/config.json", {"word_embedding_dimension": 64, **flags})


def pooled_elsewhere(folder: Path) -> None:
    """In a folder of another name: `modules.json` says which."""
    shutil.rmtree(folder / "1_Pooling")
    write(folder / "1_CLS" / "config.json", {"pooling_mode": "cls"})
    write(folder / "modules.json", [{**module, "path": module["path"].replace("1_Pooling", "1_CLS")}
                                    for module in content(folder / "modules.json")])


def lower_by_another_name(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    write(folder / "sentence_xlm-roberta_config.json", {"max_seq_length": 16, "do_lower_case": True})


def more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("change", "line"), [
    (without("tokenizer.json"), "has no tokenizer"),
    (without("tokenizer_config.json"), "no tokenizer_config.json, which says of what class"),  # else one is guessed
    (pooled("cls_token", "mean_tokens"), "pools by cls and mean, not by the average"),
    (pooled("lasttoken"), "pools by lasttoken,"), (pooled(), "pools by nothing"),
    (replaced("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}), "pools by cls and mean"),
    (replaced("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}), "mean without the prompt"),
    (pooled_elsewhere, "pools by cls,"),
    (replaced("modules.json", [{"path": "3_Dense", "type": "models.Dense"}]), "has a module Dense after its backbone"),
    (replaced("adapter_config.json", {"peft_type": "LORA"}), "is a LoRA adapter"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "weights as a pickle only"),
    (changed("config.json", auto_map={"AutoModel": "modeling.Mine"}), "brings code of its own"),
    (changed("config.json", model_type="bart", is_encoder_decoder=True), "is a bart, which is a decoder or has one"),
    (changed("sentence_bert_config.json", do_lower_case=True), "in lower case"),
    (lower_by_another_name, "in lower case"), (more_tokens, "the table was not resized"),
    (replaced("modules.json", {"a": 1}), "holds a dict, not a list"),
    (replaced("config.json", []), "holds a list, not a dict"), (replaced("tokenizer.json", {}), "cannot be read"),
    (replaced("1_Pooling/config.json", None), "holds a NoneType, not a dict"),
    (replaced("tokenizer_config.json", []), "cannot be read"),
])  # fmt: skip
def test_what_would_give_other_vectors_is_refused(change, line, folder):
    change(folder)
    with pytest.raises(Me5Error, match=line) as caught:
        Encoder.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [
    ("mine", "--data", "{data}", "--out", "{out}", "--model"), ("export", "--to", "{out}", "--model"),
    ("finetune", "--data", "{data}", "--out", "{out}", "--from"),
])  # fmt: skip
def test_commands_refuse_a_model_without_tokenizer(command, folder, tmp_path):
    """A library would make one up, of five tokens: all texts would have one vector."""
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    without("tokenizer.json", "tokenizer_config.json")(folder)
    rows = [{"query": f"question {i}", "positives": [f"answer {i}"], "negatives": [f"wrong {i}"]} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    done = CliRunner().invoke(app, [*(part.format(data=data, out=out) for part in command), str(folder)])
    assert done.exit_code == 2 and "has no tokenizer" in done.stderr.strip().splitlines()[-1]
    assert not list(out.rglob("*.safetensors"))


# What can be read


@pytest.mark.parametrize("where", ["sentence_bert_config.json", "tokenizer_config.json",
                                   "sentence_roberta_config.json"])  # fmt: skip
def test_its_own_limit_is_kept(where, folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    key = "max_seq_length" if where.startswith("sentence") else "model_max_length"
    before = fingerprint_of(folder)
    if "roberta" in where:
        (folder / "sentence_bert_config.json").unlink()
    changed(where, **{key: 16})(folder)
    assert fingerprint_of(folder) != before
    encoder, long = Encoder.load(folder), [QUERY + " ".join(TEXTS[5:15])]
    assert encoder.max_tokens == 16 and max(map(len, encoder.tokenize(TEXTS))) == 16
    if "roberta" not in where:  # sentence-transformers' newest version asks for that name only of an XLM-R
        theirs = SentenceTransformer(str(folder), device="cpu").encode(long)
        np.testing.assert_allclose(encoder.encode(long, ""), theirs, atol=1e-5)
    encoder.save(tmp_path / "again")
    assert Encoder.load(tmp_path / "again").max_tokens == 16


def old_layout(folder: Path) -> None:
    """`0_Transformer` of the first versions of sentence-transformers."""
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    write(folder / "0_Transformer" / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    (folder / "sentence_bert_config.json").unlink()
    write(folder / "modules.json", [{**module, "path": module["path"] or "0_Transformer"}
                                    for module in content(folder / "modules.json")])


def marked(folder: Path) -> None:
    """JSON with a byte order mark, and prompts that are null."""
    for name in ("modules.json", "config_sentence_transformers.json"):
        value = content(folder / name)
        value = value | {"prompts": None} if isinstance(value, dict) else value
        (folder / name).write_text("\ufeff" + json.dumps(value), encoding="utf8")


@pytest.mark.parametrize("change", [old_layout, marked, pooled("mean_tokens")])
def test_what_can_be_read_gives_the_same_vectors(change, encoder, folder):
    change(folder)
    np.testing.assert_array_equal(Encoder.load(folder).encode(TEXTS), encoder.encode(TEXTS))


def test_a_model_of_the_hub_is_read_from_its_safetensors_or_from_its_pickle(encoder, folder, monkeypatch):
    from safetensors.torch import load_file

    fetched = []
    for module in (resolve, save_load):
        monkeypatch.setattr(module, "snapshot", lambda name, revision, patterns: fetched.append(patterns[-1]) or folder)
    for last in ("*.safetensors", "*pytorch_model*"):
        np.testing.assert_array_equal(Encoder.load("a/b").encode(TEXTS[:5]), encoder.encode(TEXTS[:5]))
        assert fetched[-1] == last
        if last == "*.safetensors":
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BACKBONES = {
    "ModernBert": SMALL | {"global_attn_every_n_layers": 1}, "Roberta": SMALL, "DebertaV2": SMALL,
    "DistilBert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}, "Albert": SMALL | {"embedding_size": 16},
    "T5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    "Qwen2": SMALL | {"num_key_value_heads": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_any_encoder_of_transformers_is_read_and_others_are_said_to_be_none(name, encoder, tmp_path):
    import transformers

    tokenizer = encoder.tokenizer
    torch.manual_seed(0)
    positions = {} if name == "T5" else {"max_position_embeddings": 40}  # T5 has none of its own
    shape = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
        decoder_start_token_id=1, **positions, **BACKBONES[name])  # fmt: skip
    model = getattr(transformers, "T5EncoderModel" if name == "T5" else f"{name}Model")(shape).eval()
    model.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    changed("tokenizer_config.json", model_max_length=10**30)(tmp_path / name)
    if name == "Qwen2":
        with pytest.raises(Me5Error, match="qwen2, which is a decoder or has one"):
            Encoder.load(tmp_path / name)
        return
    opened = Encoder.load(tmp_path / name)
    most = {"T5": 1 << 30, "Roberta": 38}.get(name, 40)
    assert opened.max_tokens == most
    for text in (*TEXTS[:3], " ".join(TEXTS[:-2])):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)["input_ids"]
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(opened.encode([text], "")[0], mean / mean.norm(), atol=1e-5)
    opened.encode(TEXTS[:3], precision="bf16")


def test_average_pooling_without_prompts_is_read_as_its_own_files_say(encoder, folder, capsys):
    (folder / "config_sentence_transformers.json").unlink()
    opened = open_model(str(folder), device="cpu")
    assert "me5/checkpoint is read as its own files say, without prefixes" in capsys.readouterr().err
    np.testing.assert_allclose(opened.encoder.encode(TEXTS[:3], QUERY), encoder.encode(TEXTS[:3], ""), atol=1e-5)
