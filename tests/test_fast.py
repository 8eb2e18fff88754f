"""Reading on a CPU: the packed weights against the encoder that they are of, sentencepiece against tokenizers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_encoder import texts, tokenizer, xlm_r  # noqa: F401  # fixtures

from me5lib import config
from me5lib.io import Me5Error
from me5lib.model import fast, text
from me5lib.model.encoder import Encoder, FastEncoder
from me5lib.model.text import PASSAGE

SHAPE = dataclasses.replace(config.load("smoke").model, layers=3)
STRANGE = ["", "  ", "a</s>b", "<mask> <s>", "<unk>", "\u2581\u2581 a \u2581",
           "ﬁ\u0307n\u200d\u0301de", "\ue000\ue001x", "①\u0301\t②"]


@pytest.fixture
def wide(tokenizer):  # noqa: F811
    """An encoder with what makes int8 hard: some channels a hundred times as wide as others, some tokens likewise."""
    encoder = Encoder.new(SHAPE, tokenizer, seed=1).eval()
    with torch.no_grad():
        for layer in encoder.backbone.encoder.layer:
            layer.attention.output.LayerNorm.weight[5] = 100
            layer.attention.self.query.weight[:, 5] /= 10
            layer.intermediate.dense.weight[:, 5] /= 100
    return encoder


def test_int8_is_near_fp32_and_a_text_does_not_change_its_neighbours(wide, texts):  # noqa: F811
    full, fast_ = wide.encode(texts), wide.encode(texts, precision="int8")
    assert (full * fast_).sum(axis=1).min() > 0.999
    centred = [each - full.mean(axis=0) for each in (full, fast_)]
    cosine = (centred[0] * centred[1]).sum(axis=1) / np.prod([np.linalg.norm(each, axis=1) for each in centred], axis=0)
    assert np.quantile(cosine, 0.01) > 0.99
    alone = np.concatenate([wide.encode([each], precision="int8") for each in texts[::40]])
    np.testing.assert_allclose(alone, fast_[::40], atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_trained_weights_are_packed_anew(wide, fused):
    for precision in ("fp32", "int8"):
        before = wide.encode(["a text"], precision=precision)
        assert np.array_equal(before, wide.encode(["a text"], precision=precision))
        optimizer = torch.optim.AdamW(wide.backbone.encoder.parameters(), lr=0.05, fused=fused)
        (1 - wide(wide.tokenize(["a text"]))[0, 0]).backward()
        optimizer.step()
        after = wide.encode(["a text"], precision=precision)
        assert abs(after - before).max() > 0.05
        assert (after * wide.encode(["a text"])).sum() > 0.99


def test_folders_are_read_without_transformers_and_give_the_same_vectors(tokenizer, texts, tmp_path, client):  # noqa: F811
    encoders = {"bert": Encoder.new(SHAPE, tokenizer, seed=1).eval(), "xlm-r": xlm_r(tokenizer)}
    for name, encoder in encoders.items():
        encoder.save(tmp_path / name)
    some = [*texts[:150], *STRANGE]
    (tmp_path / "texts.json").write_text(json.dumps(some), encoding="utf8")
    client("""
import json, sys
import numpy as np
from me5lib.model.encoder import FastEncoder
from me5lib.model.fast import PRECISIONS
texts = json.load(open(sys.argv[1] + "/texts.json", encoding="utf8"))
for name in ("bert", "xlm-r"):
    for precision in PRECISIONS:
        encoder = FastEncoder.load(f"{sys.argv[1]}/{name}", precision)
        np.save(f"{sys.argv[1]}/{name}-{precision}", encoder.encode(texts, "passage: "))
assert "transformers" not in sys.modules
""", tmp_path)
    for name, encoder in encoders.items():
        for precision in fast.PRECISIONS:
            wanted = encoder.encode(some, PASSAGE, precision=precision)
            np.testing.assert_allclose(np.load(tmp_path / f"{name}-{precision}.npy"), wanted, atol=1e-6)


def test_sentencepiece_cuts_as_the_tokenizer_of_the_file_does(tokenizer, texts, tmp_path):  # noqa: F811
    tokenizer.save_pretrained(str(tmp_path))
    letters = "abcdef \u2581ßﬁ①\u200d\u0301\u3000\xa0\t語ঐ가🎉\ue000"
    drawn = np.random.default_rng(0).integers(0, len(letters), (300, 12))
    some = [*texts, *STRANGE, *("".join(letters[i] for i in row) for row in drawn)]
    for cut in (text.cutter(tmp_path / "tokenizer.json"), text.cutter(tmp_path / "tokenizer.json")):  # made, kept
        assert isinstance(cut, text.Segmenter)
        assert cut(some) == [tokenizer(each)["input_ids"] for each in some]


def test_another_kind_of_vocabulary_is_cut_by_tokenizers(tmp_path):
    from tokenizers import Tokenizer, models

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    raw.enable_padding(length=4)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert text.cutter(tmp_path / "tokenizer.json")(["a", "b"]) == [[1], [0]]


def test_the_released_model_is_read_in_four_bits(packs, texts):  # noqa: F811
    encoder, read = Encoder.load("me5-small-q4"), FastEncoder.load("me5-small-q4", "fp32")
    assert read.max_tokens == 512 and read.width == 384
    np.testing.assert_allclose(read.encode(texts[:20]), encoder.encode(texts[:20]), atol=1e-6)
    full, int8 = encoder.encode(texts[2:20]), FastEncoder.load("me5-small-q4", "int8").encode(texts[2:20])
    assert (full * int8).sum(axis=1).min() > 0.999


def test_what_cannot_be_read_so_is_said(tokenizer, tmp_path):  # noqa: F811
    from transformers import DistilBertConfig, DistilBertModel

    shape = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64,
                             pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    encoder = Encoder(DistilBertModel(shape), tokenizer, 64).eval()
    encoder.save(tmp_path / "other")
    assert encoder.encode(["a"]).shape == (1, 32)
    with pytest.raises(ValueError, match="int8"):
        encoder.encode(["a"], precision="int8")
    with pytest.raises(Me5Error, match=r"use Encoder\.load"):
        FastEncoder.load(tmp_path / "other")
    Encoder.new(SHAPE, tokenizer, seed=1).save(tmp_path / "bert")
    with pytest.raises(Me5Error, match="fp8"):
        FastEncoder.load(tmp_path / "bert", "fp8")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(Me5Error, match="cannot be read"):
        FastEncoder.load(tmp_path / "bert")
