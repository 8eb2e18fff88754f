"""`me5 encode`: the numbers of sentence-transformers, a file in which a kill leaves no trace; the search in it."""

import json
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers.util.quantization import quantize_embeddings
from typer.testing import CliRunner

from me5lib import config
from me5lib.cli.app import app
from me5lib.data.userdata import read_texts
from me5lib.evaluate import vectors
from me5lib.evaluate.models import Opened
from me5lib.evaluate.vectors import PRECISIONS, search, write_vectors
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer

TEXTS = [f"text {i} " + "ä" * (i * 37 % 90) for i in range(500)] + ["lone \ud800", ""]
BARE = [text.replace("\ud800", "\ufffd") for text in TEXTS]


class Stub:
    """Unit vectors of 24 dimensions, not centred, as E5's are not; kills its process at a certain batch."""

    def __init__(self, dies=0):
        self.batches, self.dies = 0, dies

    def encode(self, texts, prefix="", **options):
        self.batches += 1
        if self.batches == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        seeds = [int.from_bytes((prefix + text).encode("utf8"), "big") for text in texts]
        drawn = np.array([np.random.default_rng(seed).normal(1, 0.6, 24) for seed in seeds], np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


MODEL, FULL, ASKED = Opened("m", "r1", Stub(), False), Stub().encode(BARE, "p: "), Stub().encode([*"abcdefgh"], "q: ")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(vectors, "GROUP", 100)


def stored(file):
    held = pq.read_table(file)["vector"]
    return np.array(held.to_pylist(), held.type.value_type.to_pandas_dtype())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_holds_what_sentence_transformers_makes_and_the_search_finds_the_best_of_it(precision, tmp_path):
    write_vectors(MODEL, TEXTS, "p: ", precision, file := tmp_path / "v.parquet")
    centred = FULL - (np.median(FULL, axis=0) if precision == "binary" else 0)
    expected = {"fp32": FULL, "fp16": FULL.astype(np.float16), "int8": quantize_embeddings(FULL, "int8")}.get(
        precision, quantize_embeddings(centred, "binary"))  # fmt: skip
    np.testing.assert_array_equal(stored(file), expected, strict=True)
    assert pq.read_table(file)["text"].to_pylist() == BARE and pq.ParquetFile(file).num_row_groups == 6
    asked, held = ASKED - (FULL - centred)[0], expected
    if precision.startswith("binary"):  # of every row what the query has above the thresholds, where its bit is 1
        held = np.unpackbits(expected.view(np.uint8) ^ 128, axis=1)
    elif precision == "int8":
        held = (expected + 128.0) * (np.ptp(FULL, axis=0) / 255) + FULL.min(axis=0)
    best = -np.sort(-asked @ held.T.astype(np.float32), axis=1)[:, :5]
    rows, scores = search(file, ASKED, 5, rescore_multiplier=200)
    np.testing.assert_allclose(scores, best, rtol=1e-4)
    np.testing.assert_allclose((asked[:, None] * held[rows]).sum(axis=2), best, rtol=1e-4)
    assert search(file, ASKED, 1000)[0].shape == (8, len(TEXTS))


def test_a_killed_command_goes_on_and_nothing_but_the_same_is_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "CALIBRATION", 10)
    straight, killed = tmp_path / "straight.parquet", tmp_path / "killed.parquet"
    write_vectors(MODEL, TEXTS, "p: ", "int8", straight)
    expected = quantize_embeddings(FULL, "int8", calibration_embeddings=FULL[::51])  # from all over the file
    np.testing.assert_array_equal(stored(straight), expected)
    assert (expected == 127).sum() > 50, "what is beyond the ranges is clipped"
    if not (child := os.fork()):
        write_vectors(MODEL._replace(encoder=Stub(dies=4)), TEXTS, "p: ", "int8", killed)  # in its third group
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and not killed.exists()
    with pytest.raises(Me5Error, match="killed.parquet has other precision: choose another --out, or delete it"):
        write_vectors(MODEL, TEXTS, "p: ", "fp16", killed)
    rest = Stub()
    write_vectors(MODEL._replace(encoder=rest), TEXTS, "p: ", "int8", killed)
    assert rest.batches == 4 and not list(tmp_path.glob(".*part*")), "what was finished is not encoded again"
    for end in ("", ".json"):
        assert killed.with_name(killed.name + end).read_bytes() == straight.with_name(straight.name + end).read_bytes()
    write_vectors(MODEL._replace(encoder=None), TEXTS, "p: ", "int8", killed)  # encodes nothing
    for model, own, way, words in ((MODEL._replace(revision="r2"), TEXTS, "int8", "other revision"),
                                   (MODEL, TEXTS[1:], "int8", "other rows, texts"), (MODEL, TEXTS, "int4", "of fp32")):
        with pytest.raises(Me5Error, match=words):
            write_vectors(model, own, "p: ", way, killed)
    killed.with_name("killed.parquet.json").unlink()
    for use in (lambda: write_vectors(MODEL, TEXTS, "p: ", "int8", killed), lambda: search(killed, ASKED)):
        with pytest.raises(Me5Error, match="choose another --out|is not there"):
            use()
    assert killed.read_bytes() == straight.read_bytes()


def test_the_command_reads_lines_and_columns_and_refuses_in_one_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("eins\r\n\r\n\u2028zwei\n".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "eins"}\n{"body": 2}\n', encoding="utf8")
    (tmp_path / "c.csv").write_text("id,body\n1,eins\n2,zwei\n", encoding="utf8")
    assert read_texts(tmp_path / "c.csv", "body") == ["eins", "zwei"]
    with pytest.raises(Me5Error, match=r"b\.jsonl: line 2 has no text in the column 'text': name another"):
        read_texts(tmp_path / "b.jsonl")
    encoder = Encoder.new(config.load("smoke").model, train_tokenizer(["eins zwei drei"] * 30, 300), 0).eval()
    encoder.save(tmp_path / "model")
    line = ["encode", str(tmp_path / "a.txt"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "v.parquet")]
    done = CliRunner().invoke(app, [*line, "--prefix", "query"])
    assert done.exit_code == 0 and "3 vectors, fp32" in done.output, done.output
    expected = encoder.encode(["eins", "", "\u2028zwei"])
    np.testing.assert_allclose(stored(tmp_path / "v.parquet"), expected, atol=5e-3)  # bf16 where a processor has it
    assert json.loads((tmp_path / "v.parquet.json").read_text("utf8"))["model"] == "me5/model"
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2 and "has other prefix: choose another --out" in done.output
