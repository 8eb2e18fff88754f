"""What encoding costs, and what fewer bits cost in quality: measured by processes, compared per language."""

import itertools
import subprocess

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from me5lib import config
from me5lib.evaluate import efficiency, quantised
from me5lib.evaluate.alignment import unit
from me5lib.evaluate.heldout import Search
from me5lib.model import text
from me5lib.model.encoder import Encoder

WORDS = [f"{a}{b}" for a, b in itertools.product("ka mo ti lu be".split(), "ran sol nu pit da fe".split())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "small"
    pieces = [*text.SPECIAL, *(f"▁{word}" for word in (*WORDS, "query:", "a")), "<mask>"]
    tokenizer = text.fast_tokenizer([(piece, -1.0 - i) for i, piece in enumerate(pieces)], text.charsmap())
    Encoder.new(config.Model("random", 1, 64, 2, 128, len(pieces), 64), tokenizer, seed=0).save(place)
    return place


def bitext(languages: str, problems: int) -> list[Search]:
    english = [f"en {i}" for i in range(problems)]
    return [Search.bitext(english, [f"{code} {i}" for i in range(problems)], ("", ""), code) for code in languages]


def test_a_language_that_loses_is_named_and_no_other():
    tests, draw = bitext("abc", 40), np.random.default_rng(0)
    meaning = {f"{i}": draw.normal(size=32) for i in range(40)}
    names = sorted({name for test in tests for side in test[:2] for name in side})
    before = {"": {name: unit(meaning[name.split()[1]] + draw.normal(size=32) / 9) for name in names}}
    wrong = ("a 3", "b 1", "b 4", "b 7", "b 8", "b 9", "b 11", "b 20", "b 31")
    after = {"": {name: np.roll(vector, 1) if name in wrong else vector for name, vector in before[""].items()}}
    sides = [quantised.answers(tests, space, np.inner, exact=True) for space in (before, after)]
    table = quantised.compared(*sides).assign(model="m", set="gsm", what="way").set_index("language", drop=False)
    assert table["difference"][["a", "b", "c", "all"]].tolist() == pytest.approx([-1 / 40, -8 / 40, 0, -9 / 120])
    assert table["agreement"].tolist() == pytest.approx([39 / 40, 32 / 40, 1, 111 / 120])
    assert table["low"]["b"] < -0.2 < table["high"]["b"] < 0 and table["high"]["a"] == 0
    assert quantised.losers(table)["losers"].tolist() == ["b -0.200"]
    same = quantised.compared(sides[0], sides[0]).assign(model="m", set="gsm", what="way")
    assert quantised.losers(same)["losers"].tolist() == ["none decided"]


def test_stored_vectors_are_compared_as_a_search_compares_them():
    vectors = unit(np.random.default_rng(1).normal(0.3, 1, (30, 16))).astype(np.float32)
    space = {"": {str(i): vector for i, vector in enumerate(vectors)}}
    for precision, limit in (("binary", np.median(vectors, axis=0)), ("binary-zero", 0)):
        differ = pairwise_distances(vectors > limit, metric="hamming") * 16
        np.testing.assert_allclose(quantised.stored(precision, space)(vectors, vectors), 16 - 2 * differ)
    low, step = vectors.min(axis=0), np.ptp(vectors, axis=0) / 255
    read = low + np.clip(np.floor((vectors - low) / step), 0, 255) * step
    found, wanted = quantised.stored("int8", space)(vectors, vectors), vectors @ read.T
    np.testing.assert_allclose(*(table - table[:, :1] for table in (found / 255, wanted)), atol=1e-5)
    assert (found.argsort(axis=1) == wanted.argsort(axis=1)).mean() > 0.98


def test_every_way_of_a_model_is_measured_once(folder, tmp_path, monkeypatch):
    tests = {"gsm": [test._replace(prefixes=("query: ", "query: ")) for test in bitext("ab", 12)]}
    table = quantised.quality(str(folder), tests, ("fp32", "bf16", "onnx int8"), tmp_path)
    assert set(table["what"]) == {"arithmetic fp32", "arithmetic bf16", *quantised.WEIGHTS, *quantised.STORED}
    reference = table[table["what"] == "arithmetic fp32"]
    assert (reference["difference"] == 0).all() and (reference["agreement"] == 1).all() and len(table) == 7 * 3
    monkeypatch.setattr(Encoder, "encode", None)  # all vectors are there
    assert quantised.quality(str(folder), tests, ("fp32", "bf16"), tmp_path).equals(table)


def test_measurements_are_taken_in_turns_kept_and_not_mixed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "RELEASED", (folder,))
    sets, asked = {"de": (WORDS, WORDS[::-1])}, []
    monkeypatch.setattr(efficiency, "QUERIES", 3)

    def run(command, **options):
        asked.append(tuple(command[3:5]))
        return subprocess.CompletedProcess(command, 0, f'a line\n{{"load_s": {len(asked)}}}\n', "")

    with monkeypatch.context() as patch:
        patch.setattr(efficiency.subprocess, "run", run)
        for rounds in (1, 3):
            kept = efficiency.measure(["m", "n"], ["fp32"], sets, 40, tmp_path, rounds)
        assert asked == [("m", "fp32"), ("n", "fp32")] * 3
        with pytest.raises(efficiency.Me5Error, match="other texts"):
            efficiency.measure(["m"], ["fp32"], sets, 60, tmp_path, 1)
    assert kept == {"m | fp32": [{"load_s": 1}, {"load_s": 3}, {"load_s": 5}],
                    "n | fp32": [{"load_s": 2}, {"load_s": 4}, {"load_s": 6}]}  # fmt: skip
    kept = efficiency.measure([str(folder)], ["fp32"], sets, 40, tmp_path / "real", 1)
    row = efficiency.frame(kept, tmp_path).iloc[0]
    assert 0 < row["query_ms_p50"] <= row["query_ms_p95"] and row["peak_mb"] > 0 and row["english_tokens_s"] > 0
    encoder = Encoder.load(folder)
    size = sum(weight.numel() for weight in encoder.backbone.parameters())
    assert (row["parameters"], row["active"]) == (size, size - 64 * len(encoder.tokenizer))
    assert row["disk_mb"] * 1e6 == pytest.approx(4 * (size + 64 * 65), rel=0.1)  # and a pooler


def test_a_graph_reads_as_the_encoder_does(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    efficiency.write_graphs(str(folder), tmp_path)
    texts = ["", *(" ".join(WORDS[:n]) for n in (1, 30, 3, 2)), " ".join(WORDS * 9)]
    expected = Encoder.load(folder).encode(texts, "query: ")
    for runtime, close in (("onnx fp32", 1 - 1e-6), ("onnx int8", 0.98)):
        found = efficiency.open_runtime(str(folder), runtime, tmp_path).encode(texts, "query: ")
        assert (found * expected).sum(axis=1).min() > close
    assert efficiency.disk(str(folder), "onnx int8", tmp_path) < efficiency.disk(str(folder), "onnx fp32", tmp_path)
