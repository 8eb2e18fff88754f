"""Folders as other tools save them: read as their makers mean, or refused in one line with the true reason."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import me5

from me5lib import config
from me5lib.evaluate.models import fingerprint_of, open_model
from me5lib.io import Me5Error
from me5lib.model import check, described
from me5lib.model.encoder import Encoder
from me5lib.model.text import QUERY, train_tokenizer

TEXTS = check.samples(64)
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    Encoder.new(config.load("smoke").model, train_tokenizer(TEXTS, 2000), seed=0).save(folder)
    return folder


def content(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf8"))


def write(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf8")


def without_tokenizer(folder: Path) -> None:
    """As a trainer's checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_class(folder: Path) -> None:
    """A library would take the class that the backbone's type usually has, and add its special tokens."""
    (folder / "tokenizer_config.json").unlink()


def pooled(*modes: str):
    """As sentence-transformers up to 5 saves them."""
    def change(folder: Path) -> None:
        about = {f"pooling_mode_{mode}": mode in modes for mode in MODES}
        write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, **about})

    return change


def pooled_new(folder: Path) -> None:
    write(folder / "1_Pooling" / "config.json", {"embedding_dimension": 64, "pooling_mode": ["cls", "mean"]})


def pooled_elsewhere(folder: Path) -> None:
    """In a folder of another name: `modules.json` says which."""
    shutil.rmtree(folder / "1_Pooling")
    write(folder / "1_CLS" / "config.json", {"pooling_mode": "cls"})
    write(folder / "modules.json", [{**module, "path": module["path"].replace("1_Pooling", "1_CLS")}
                                    for module in content(folder / "modules.json")])


def pooled_without_prompt(folder: Path) -> None:
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})


def of_another_form(name: str, value: object):
    """A JSON file that holds something else than its readers expect."""
    def change(folder: Path) -> None:
        write(folder / name, value)

    return change


def with_decoder(folder: Path) -> None:
    write(folder / "config.json", content(folder / "config.json") | {"model_type": "bart", "is_encoder_decoder": True})


def lower_by_another_name(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    write(folder / "sentence_xlm-roberta_config.json", {"max_seq_length": 16, "do_lower_case": True})


def denser(folder: Path) -> None:
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    write(folder / "modules.json", [*content(folder / "modules.json"), dense])


def adapter(folder: Path) -> None:
    write(folder / "adapter_config.json", {"peft_type": "LORA"})
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_code(folder: Path) -> None:
    write(folder / "config.json", content(folder / "config.json") | {"auto_map": {"AutoModel": "modeling.Mine"}})


def lower(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})


def more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)


REFUSED = [
    (without_tokenizer, "has no tokenizer"), (without_vocabulary, "has no tokenizer"),
    (without_class, "no tokenizer_config.json, which says of what class"),
    (pooled("cls_token", "mean_tokens"), "pools by cls and mean, not by the average"),
    (pooled("cls_token"), "pools by cls,"), (pooled("lasttoken"), "pools by lasttoken,"),
    (pooled(), "pools by nothing"), (pooled_new, "pools by cls and mean"), (pooled_elsewhere, "pools by cls,"),
    (denser, "has a module Dense after its backbone"), (adapter, "is a LoRA adapter"),
    (pickled, "weights as a pickle only"), (with_code, "brings code of its own"), (lower, "in lower case"),
    (more_tokens, "the table was not resized"), (pooled_without_prompt, "pools by mean without the prompt"),
    (of_another_form("modules.json", {"a": 1}), "holds a dict, not a list"),
    (of_another_form("config.json", []), "holds a list, not a dict"),
    (of_another_form("1_Pooling/config.json", None), "holds a NoneType, not a dict"),
    (of_another_form("tokenizer.json", {}), "cannot be read"),
    (of_another_form("tokenizer_config.json", []), "cannot be read"),
    (with_decoder, "is a bart, which has a decoder"), (lower_by_another_name, "in lower case"),
]


@pytest.mark.parametrize(("change", "line"), REFUSED)
def test_what_would_give_other_vectors_is_refused(change, line, base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    change(folder)
    with pytest.raises(Me5Error, match=line) as caught:
        Encoder.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [
    ("mine", "--data", "{data}", "--out", "{out}", "--model"), ("export", "--to", "{out}", "--model"),
    ("finetune", "--data", "{data}", "--steps", "2", "--out", "{out}", "--from"),
    ("teach", "--data", "{data}", "--out", "{out}", "--from"),
    ("evaluate", "--tasks", "STSBenchmark", "--yes", "--out", "{out}", "--model"),
])  # fmt: skip
def test_every_command_refuses_a_model_without_tokenizer(command, base, tmp_path):
    """A library would make one up, of five tokens: all texts would have one vector."""
    folder, data, out = Path(shutil.copytree(base, tmp_path / "model")), tmp_path / "data.jsonl", tmp_path / "out"
    without_tokenizer(folder)
    rows = [{"query": f"question {i}", "positives": [f"answer {i}"], "negatives": [f"wrong {i}"]} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    done = me5(*(part.format(data=data, out=out) for part in command), str(folder))
    assert done.returncode == 2 and "has no tokenizer" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr and not list(out.rglob("*.safetensors"))


@pytest.mark.parametrize("where", ["sentence_bert_config.json", "tokenizer_config.json",
                                   "sentence_roberta_config.json"])  # fmt: skip
def test_its_own_limit_is_kept(where, base, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(base, tmp_path / "short"))
    key = "max_seq_length" if where.startswith("sentence") else "model_max_length"
    before = fingerprint_of(folder)
    about = content(folder / where) if (folder / where).is_file() else {}
    if "roberta" in where:
        (folder / "sentence_bert_config.json").unlink()
    write(folder / where, about | {key: 16})
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
def test_what_can_be_read_gives_the_same_vectors(change, base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    change(folder)
    np.testing.assert_array_equal(Encoder.load(folder).encode(TEXTS), Encoder.load(base).encode(TEXTS))


def backbones() -> dict[str, tuple]:
    import transformers as tf

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return {
        "modernbert": (tf.ModernBertModel, tf.ModernBertConfig, small | {"global_attn_every_n_layers": 1}),
        "distilbert": (tf.DistilBertModel, tf.DistilBertConfig, {"dim": 32, "n_layers": 1, "n_heads": 2,
                                                                 "hidden_dim": 64}),
        "mpnet": (tf.MPNetModel, tf.MPNetConfig, small), "roberta": (tf.RobertaModel, tf.RobertaConfig, small),
        "deberta": (tf.DebertaV2Model, tf.DebertaV2Config, small),
        "electra": (tf.ElectraModel, tf.ElectraConfig, small | {"embedding_size": 16}),
        "albert": (tf.AlbertModel, tf.AlbertConfig, small | {"embedding_size": 16}),
        "t5": (tf.T5EncoderModel, tf.T5Config, {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1,
                                                "num_heads": 2}),
        "qwen2": (tf.Qwen2Model, tf.Qwen2Config, small | {"num_key_value_heads": 2}),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(backbones()))
def test_any_encoder_of_transformers_is_read_and_others_are_said_to_be_none(name, base, tmp_path):
    from transformers import AutoTokenizer

    model, config, options = backbones()[name]
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    if name != "t5":  # has no positions of its own
        options = {"max_position_embeddings": 40, **options}
    model = model(config(vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0,
                         sep_token_id=2, decoder_start_token_id=1, **options)).eval()
    model.save_pretrained(tmp_path / name)
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path / name)
    if name == "qwen2":
        with pytest.raises(Me5Error, match="qwen2, which reads from left to right"):
            Encoder.load(tmp_path / name)
        return
    encoder = open_model(str(tmp_path / name), device="cpu").encoder
    assert encoder.encoder.max_tokens == {"t5": 512, "mpnet": 38, "roberta": 38}.get(name, 40)
    for text in (*TEXTS[:3], " ".join(TEXTS)):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=encoder.encoder.max_tokens)["input_ids"]
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(encoder.encode([text])[0], mean / mean.norm(), atol=1e-5)
    encoder.encode(TEXTS[:3], precision="bf16")


def test_one_rule_for_a_folder_and_a_hub_id(base, tmp_path, capsys):
    """Average pooling, no prompts, no e5 in its name: read as its own files say, and said so."""
    folder = Path(shutil.copytree(base, tmp_path / "plain"))
    (folder / "config_sentence_transformers.json").unlink()
    opened = open_model(str(folder), device="cpu")
    assert "me5/plain is read as its own files say, without prefixes" in capsys.readouterr().err
    np.testing.assert_allclose(opened.encoder.encode(TEXTS[:3], QUERY), Encoder.load(base).encode(TEXTS[:3], ""),
                               atol=1e-5)
    assert described.averages(folder)
