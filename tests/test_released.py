"""The released model out of the package index: its file, its tokenizer, its rule of four bits; and what is refused."""

import base64
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from loopback import Loopback
from typer.testing import CliRunner

from me5lib.cli.app import app
from me5lib.io import Me5Error
from me5lib.model import released, text
from me5lib.model.encoder import Encoder

SHAPE = dict(zip(released.SHAPE, (32, 1, 2, 64, 40, 16, 2, 1e-12), strict=True))


def q4_0(values: np.ndarray) -> bytes:
    """Q4_0 of a flat array by the plainest loop: a scale, then sixteen bytes of two weights each."""
    packed = b""
    for block in values.reshape(-1, 32):
        furthest = max(block, key=abs)
        scale = furthest / -8 + 0.0
        inverse = np.float32(1) / scale if scale else np.float32(0)
        steps = [min(15, int(value * inverse + np.float32(8.5))) for value in block]
        packed += struct.pack("<e", scale) + bytes(steps[i] | steps[i + 16] << 4 for i in range(16))
    return packed


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a small model, by the names of the file."""
    draw = np.random.default_rng(seed)
    sizes = {"emb.word": 40 * 32, "emb.pos": 16 * 32, "emb.type": 2 * 32, "emb.ln.w": 32, "emb.ln.b": 32}
    for name, out, width in (("q", 32, 32), ("k", 32, 32), ("v", 32, 32), ("ao", 32, 32), ("aln", 32, 1),
                             ("fi", 64, 32), ("fo", 32, 64), ("oln", 32, 1)):
        sizes |= {f"l0.{name}.w": out * width, f"l0.{name}.b": out}
    return {name: draw.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def four_bits(name: str) -> bool:
    return name == "emb.word" or (name.startswith("l0.") and name.endswith(".w") and "ln" not in name)


def written(values: dict[str, np.ndarray], pieces=("<s>", "<pad>", "</s>", "<unk>", "▁a"), **changes) -> bytes:
    """A file of these tensors as the format has it. `changes`: version, block, kind and start of the first tensor."""
    head = struct.pack("<4sI7ifi", b"E5S1", changes.get("version", 1), *SHAPE.values(), changes.get("block", 32))
    texts = [piece.encode("utf8") for piece in pieces]
    ends = np.cumsum([0, *map(len, texts)]).astype("<u4")
    words = struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, texts))) + ends.tobytes()
    words += np.arange(len(pieces), dtype="<f4").tobytes() + b"".join(texts)
    characters = struct.pack("<IBI", 0x2460, 1, 0x31)
    words += struct.pack("<iI", 1, len(characters)) + characters
    stored = {name: q4_0(value) if four_bits(name) else value.tobytes() for name, value in values.items()}
    size = sum(2 + len(name) + 21 for name in stored)
    at, entries = len(head) + len(words) + 4 + size, b""
    for i, (name, content) in enumerate(stored.items()):
        kind, start = 1 if four_bits(name) else 0, at
        if i == 0:
            kind, start = changes.get("kind", kind), changes.get("start", start)
        entries += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, values[name].size, start,
                                                                              len(content))
        at += len(content)
    return head + words + struct.pack("<i", len(stored)) + entries + b"".join(stored.values())


LAYER = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
         "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
         "fo": "output.dense", "oln": "output.LayerNorm"}
BERT = {"emb.word": "embeddings.word_embeddings.weight", "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight", "emb.ln.b": "embeddings.LayerNorm.bias",
        **{f"l0.{short}.{kind[0]}": f"encoder.layer.0.{name}.{kind}" for short, name in LAYER.items()
           for kind in ("weight", "bias")}}


def test_a_file_is_read_as_it_was_written():
    values = tensors()
    content = written(values)
    weights = released.parse_file(content)
    assert weights.shape == SHAPE and set(weights.tensors) == set(BERT.values())
    assert released.vocabulary_of(content) == [
        (piece, float(i)) for i, piece in enumerate(("<s>", "<pad>", "</s>", "<unk>", "▁a"))]
    for name, value in values.items():
        read = weights.tensors[BERT[name]]
        if not four_bits(name):
            np.testing.assert_array_equal(read, value)
            continue
        expected = np.frombuffer(q4_0(value), np.uint8).reshape(-1, 18)
        for block, blocks in zip(expected, released.dequantise(read).reshape(-1, 32), strict=True):
            scale = block[:2].view("<f2")[0].astype(np.float32)
            steps = [*(block[2:] & 15), *(block[2:] >> 4)]
            np.testing.assert_allclose(blocks, [(int(step) - 8) * scale for step in steps], rtol=1e-6)


def test_quantising_is_the_plain_loop_and_twice_is_once():
    values = np.random.default_rng(1).normal(size=32 * 50).astype(np.float32)
    values[:32] = 0
    values[40] = -values[32:64].max() * 2  # the furthest from zero below it
    blocks = released.quantise(values)
    assert blocks.tobytes() == q4_0(values)
    assert released.quantise(released.dequantise(blocks)).tobytes() == blocks.tobytes()


@pytest.mark.parametrize(("content", "line"), [
    (lambda: written(tensors(), version=2), "is of version .* 2 "), (lambda: written(tensors(), block=64), "of 64"),
    (lambda: written(tensors(), kind=7), "emb.word is of the unknown kind 7"),
    (lambda: written(tensors(), start=10**9), "emb.word lies outside the file"),
    (lambda: written(tensors(), start=-1 % 2**64), "emb.word lies outside the file"),
    (lambda: written(tensors() | {"emb.ln.w": np.full(32, np.nan, np.float32)}), "emb.ln.w holds NaN"),
    (lambda: written(tensors()).replace(q4_0(tensors()["l0.q.w"])[:18], b"\0\x7c" + bytes(16)), "l0.q.w holds NaN"),
    (lambda: written(tensors())[:500], "cannot be read"),
    (lambda: written(tensors())[:-5], "lies outside the file"),
    (lambda: b"", "cannot be read"),
    (lambda: b"PK" + bytes(100), "is of version"),
])  # fmt: skip
def test_a_file_that_is_not_right_is_one_line(content, line):
    with pytest.raises(Me5Error, match=line) as caught:
        released.parse_file(content())
    assert "\n" not in str(caught.value) and "me5 packs" in str(caught.value)


def test_another_wheel_is_refused_and_nothing_is_left(tmp_path):
    wheel = tmp_path / "packs" / released.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(released.MEMBER, written(tensors()))
    out = str(tmp_path / "out")
    for command in (("mine", "--data", "x.csv", "--out", out), ("export", "--to", out)):
        done = CliRunner().invoke(app, [*command, "--model", released.NAME], env={"ME5_CACHE": str(tmp_path)})
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "has another SHA-256: run `me5 packs --only me5-small-q4`" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["packs"]


# The real file.


@pytest.fixture(scope="module")
def real(packs) -> Encoder:
    return Encoder.load(released.NAME)


def test_the_tokenizer_is_me5s_id_for_id(real, shared):
    """Texts in 112 languages and 36 that are hard to cut, with the ids that mE5's own tokenizer gives them."""
    lines = (shared / "reference" / "golden_ids.jsonl").read_text(encoding="utf8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts, ids = ([row[key] for row in rows] for key in ("text", "ids"))
    assert len(rows) == 148
    assert real.tokenizer(texts)["input_ids"] == real.tokenize(texts) == ids


def test_its_characters_are_those_of_xlm_rs_own_map(shared):
    """Against the compiled map inside a tokenizer of XLM-R that was made long ago."""
    file = shared / "hub" / "root" / "models" / "fixtures" / "xlmr-tokenizer" / "tokenizer.json"
    normalisers = json.loads(file.read_text(encoding="utf8"))["normalizer"]["normalizers"]
    (theirs,) = [each["precompiled_charsmap"] for each in normalisers if each["type"] == "Precompiled"]
    assert base64.b64decode(theirs) == text.charsmap()


def test_vectors_are_those_of_a_model_that_knows_translations(real):
    """And in the cosines' range that the authors' card names."""
    pairs = [("How much protein should one eat?", "Wie viel Eiweiß sollte man essen?"),
             ("The cat sleeps on the sofa.", "猫がソファで寝ている。"), ("Where is the station?", "Où est la gare ?")]
    left, right = (real.encode([pair[side] for pair in pairs]) for side in (0, 1))
    cosines = left @ right.T
    assert (cosines.argmax(1) == np.arange(3)).all() and 0.6 < cosines.min() and cosines.max() < 1.0


def test_a_tokenizer_that_is_another_is_refused(real, tmp_path):
    """As one made up silently would be: here the joiner stays, as it does with today's Unicode."""
    from transformers import PreTrainedTokenizerFast

    state = json.loads(real.tokenizer.backend_tokenizer.to_str())
    state["normalizer"]["normalizers"][0] = {"type": "NFKC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf8")
    other = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **text.ROLES)
    with pytest.raises(Me5Error, match=r"is not XLM-R's: it cuts \d+ of 36 test sentences otherwise") as caught:
        text.check_golden(lambda texts: other(texts)["input_ids"], "the tokenizer of x")
    assert "\n" not in str(caught.value)
    text.check_golden(lambda texts: real.tokenizer(texts)["input_ids"], "the tokenizer of x")


def test_what_is_exported_says_whence_it_comes(tmp_path):
    """And stops to be called 4-bit once it is trained further, whatever is exported of it then."""
    from me5lib.cli.model import about_model
    from me5lib.evaluate import models

    small = released._bert(released.parse_file(written(tensors())))
    tokenizer = text.fast_tokenizer([(piece, 0.0) for piece in (*text.SPECIAL, "▁a", "<mask>")], text.charsmap())
    encoder = Encoder(small, tokenizer, 16)
    for name, expected in (("asis", ("4-bit (Q4_0)", released.HUB_ID)), ("tuned", ("full", "me5/tuned"))):
        encoder.save(tmp_path / name)
        opened = models.open_model(str(tmp_path / name), device="cpu")
        assert (opened.weights, opened.published) == expected
        about = about_model(opened, str(tmp_path / name), name)
        assert (about.base_model, about.license) == (released.HUB_ID, "mit")
        assert "Derived from 4-bit weights" in about.notice and "Permission is hereby granted" in about.notice
        encoder = Encoder.load(tmp_path / name).trained_further()


VERIFY = """
import sys
from me5lib.model import released

released.HUB_ID, released.REVISION = "me/small", ""
weights, (folder, full) = released.parse_file(open(sys.argv[1], "rb").read()), released.full_weights()
print("FOUND", released.verify(weights, full), full.shape)
"""


def test_the_hubs_weights_are_fetched_and_held_against_the_file(client, tmp_path):
    from safetensors.torch import save_file

    repository = tmp_path / "hub" / "models" / "me" / "small"
    repository.mkdir(parents=True)
    (repository / "config.json").write_text(json.dumps(SHAPE), encoding="utf8")
    state = {BERT[name]: torch.from_numpy(value.reshape(-1, 64 if name == "l0.fo.w" else 32)
                                          if four_bits(name) else value)
             for name, value in tensors().items()}  # fmt: skip
    state |= {"pooler.dense.bias": torch.zeros(32), "embeddings.position_ids": torch.arange(16)}  # not in the file
    (tmp_path / "q4.bin").write_bytes(written(tensors()))
    found = []
    for change in (0.0, 4.0):
        state["encoder.layer.0.output.dense.weight"][1, 2] += change
        state["embeddings.LayerNorm.bias"][7] += change
        save_file(state, repository / "model.safetensors", metadata={"format": "pt"})
        with Loopback(tmp_path / "hub") as hub:
            said = client(VERIFY, tmp_path / "q4.bin", endpoint=hub.endpoint, HF_HOME=str(tmp_path / f"hf{change}"))
        found.append(said.stdout.partition("FOUND ")[2].strip())
    differ = [("embeddings.LayerNorm.bias", 1, 32), ("encoder.layer.0.output.dense.weight", 1, 64)]  # of 64 blocks
    assert found == [f"[] {SHAPE}", f"{differ} {SHAPE}"]
