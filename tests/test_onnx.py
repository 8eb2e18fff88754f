"""The ONNX graph against plain transformers, and what is refused: an export that gives other vectors."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from me5lib import config
from me5lib.io import Me5Error
from me5lib.model import check, onnx
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import PROMPTS
from me5lib.model.text import QUERY, train_tokenizer

needed = pytest.mark.skipif(
    any(onnx.importlib.util.find_spec(name) is None for name in onnx.NEEDED), reason="needs the extra `export`"
)
TEXTS = ["Wie bezahle ich?", "", "永和九年", "จ่ายเงินอย่างไร", "word " * 300, "a", "Как оплатить? " * 20, "</s> <pad> x"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(check.samples(64), 3000)


def bert(tokenizer):
    import dataclasses

    shape = dataclasses.replace(config.load("smoke").model, layers=2)
    return Encoder.new(shape, tokenizer, seed=1).eval()


def xlm_r(tokenizer):
    """Its positions start behind the padding id."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(2)
    return Encoder(XLMRobertaModel(config, add_pooling_layer=False), tokenizer, 64).eval()


@pytest.fixture(scope="module", params=[bert, xlm_r], ids=["bert", "xlm-r"])
def exported(request, tokenizer, tmp_path_factory):
    """An encoder, and a folder of it with its graph."""
    encoder, folder = request.param(tokenizer), tmp_path_factory.mktemp("onnx") / "model"
    encoder.save(folder)
    onnx.write(encoder, folder)
    return encoder, folder


def by_hand(encoder, batch):
    """Transformers' own hidden states, averaged over the mask, unit length; positions as transformers counts them."""
    with torch.no_grad():
        hidden = encoder.backbone(**{name: torch.as_tensor(value) for name, value in batch.items()}).last_hidden_state
    mask = torch.as_tensor(batch["attention_mask"])[..., None]
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()


def tokenised(encoder, texts):
    batch = encoder.tokenizer(texts, padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="np")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@needed
def test_the_graph_gives_the_vectors_of_transformers_for_any_batch_and_length(exported):
    import onnxruntime

    encoder, folder = exported
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    for texts in (TEXTS[:7], TEXTS[5:6], TEXTS[:1], [QUERY + text for text in TEXTS[:7] * 3]):
        batch = tokenised(encoder, texts)
        tokens, vectors = session.run(["token_embeddings", "sentence_embedding"], batch)
        assert tokens.shape == (*batch["input_ids"].shape, encoder.width) and tokens.dtype == np.float32
        np.testing.assert_allclose(vectors, by_hand(encoder, batch), atol=1e-5)


@needed
def test_padding_before_a_text_is_padding_too(exported):
    encoder, folder = exported
    batch = tokenised(encoder, [TEXTS[0]])
    pad = {"input_ids": encoder.tokenizer.pad_token_id, "attention_mask": 0}
    left = {name: np.pad(batch[name], ((0, 0), (5, 0)), constant_values=value) for name, value in pad.items()}
    opened = onnx.session(folder / onnx.NAME)
    found = [onnx.run(opened, each)["sentence_embedding"] for each in (batch, left)]
    np.testing.assert_allclose(*found, atol=1e-6)


@needed
def test_the_check_holds_and_knows_many_scripts(exported):
    encoder, folder = exported
    texts = check.samples(encoder.max_tokens)
    assert check.scripts() >= 15 and "" in texts and max(map(len, encoder.tokenizer(texts)["input_ids"])) > 64
    for reader in (check.onnx, check.sentence_transformers, check.transformers):
        assert reader(folder, encoder, PROMPTS) < 1e-5
    opened = onnx.session(folder / onnx.NAME)
    odd = onnx.run(opened, tokenised(encoder, [QUERY + TEXTS[-1]]))["sentence_embedding"]
    np.testing.assert_allclose(odd, encoder.encode(TEXTS[-1:]), atol=1e-5)  # a text that spells <pad>


@needed
def test_the_file_is_whole_and_says_its_inputs(exported):
    import onnx as library

    _, folder = exported
    model = library.load(str(folder / "onnx" / "model.onnx"))
    library.checker.check_model(model)
    dims = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert list(dims) == ["input_ids", "attention_mask"] and all(all(names) for names in dims.values())
    assert [output.name for output in model.graph.output] == ["token_embeddings", "sentence_embedding"]
    assert {entry.domain for entry in model.opset_import} == {""} and model.opset_import[0].version == onnx.OPSET
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model.onnx"]


@needed
def test_another_vector_is_refused(exported):
    encoder, folder = exported
    other = Encoder(type(encoder.backbone)(encoder.backbone.config, add_pooling_layer=False), encoder.tokenizer, 64)
    other.backbone.load_state_dict(encoder.backbone.state_dict())
    with torch.no_grad():
        other.eval().backbone.encoder.layer[-1].output.dense.bias[0] += 0.01
    for reader in (check.onnx, check.sentence_transformers, check.transformers):
        with pytest.raises(Me5Error, match="gives other vectors than me5 for .* the export is refused"):
            reader(folder, other, PROMPTS)


@needed
def test_weights_beyond_one_file_lie_beside_the_graph(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "INLINE", 1000)
    encoder = xlm_r(tokenizer)
    encoder.save(tmp_path / "model")
    onnx.write(encoder, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model" / "onnx").iterdir()) == ["model.onnx", "model.onnx.data"]
    (tmp_path / "model").rename(tmp_path / "moved")
    assert check.onnx(tmp_path / "moved", encoder, PROMPTS) < 1e-5


def test_a_missing_package_is_one_line(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(Me5Error, match=r"ONNX needs onnxscript: pip install 'me5\[export\]'"):
        onnx.write(xlm_r(tokenizer), tmp_path)
    assert not list(tmp_path.iterdir())


@needed
def test_exporting_leaves_the_encoder_as_it_was(tokenizer, tmp_path):
    encoder = bert(tokenizer)
    before, attention = encoder.encode(TEXTS), encoder.backbone.config._attn_implementation
    onnx.write(encoder, tmp_path)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
    assert encoder.backbone.config._attn_implementation == attention
    assert all(weight.requires_grad for weight in encoder.parameters())
