"""Vectors that stay on disk: never encoded twice, damaged files made again, half precision, several processes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from me5lib.evaluate import vectors
from me5lib.evaluate.vectors import Kept, Workers
from me5lib.places import Me5Error


def hashed(text: str) -> np.ndarray:
    """Five numbers of a text, between 0.1 and 0.8."""
    digest = hashlib.sha1(text.encode("utf8", "surrogatepass")).digest()
    return 0.1 + np.frombuffer(digest, np.uint32).astype(np.float32) / 7e9


class Counting:
    """Vectors from a hash of prefix, norm and text; remembers every batch, and stops at the `fails`-th."""

    own_prompts = {"query": "q "}

    def __init__(self, fails: int = 0) -> None:
        self.batches: list[list[str]] = []
        self.fails = fails

    def encode(self, texts, prefix="", *, normalise=True, **options):
        if len(self.batches) + 1 == self.fails:
            raise KeyboardInterrupt
        self.batches.append(list(texts))
        return np.array([hashed(f"{prefix}|{normalise}|{options}|{text}") for text in texts]).reshape(-1, 5)

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """300 different texts of several lengths, a lone surrogate among them; shards are of 50 texts."""
    monkeypatch.setattr(vectors, "TEXTS", 50)
    return [f"text {i} " + "ä" * (i * 37 % 90) for i in range(299)] + ["lone \ud800"]


def plain(texts, prefix="p: ", normalise=True):
    return Counting().encode(texts, prefix, normalise=normalise)


def test_vectors_are_the_encoders_in_order_and_nothing_is_encoded_twice(tmp_path, texts):
    first, asked = Counting(), [*texts, *texts[:7]]
    np.testing.assert_array_equal(Kept(first, tmp_path, "m").encode(asked, "p: "), plain(asked))
    assert sorted(first.texts) == sorted(texts)
    assert [len(batch) for batch in first.batches] == [50] * 6
    lengths = [len(text) for text in first.texts]
    assert lengths == sorted(lengths, reverse=True)
    again = Counting()
    kept = Kept(again, tmp_path, "m")
    other = texts[::-3] + ["one more"] * 2
    np.testing.assert_array_equal(kept.encode(other, "p: "), plain(other))  # another order, another call
    assert again.texts == ["one more"] and kept.encoded == 1
    np.testing.assert_array_equal(kept.encode(texts, "p: "), plain(texts))
    assert again.texts == ["one more"]
    assert not list(tmp_path.rglob("*.part")) and kept.own_prompts == {"query": "q "}


def test_prefix_norm_options_and_model_are_told_apart(tmp_path, texts):
    Kept(Counting(), tmp_path, "m").encode(texts, "p: ")
    for mark, given, options in (("m", "q: ", {}), ("m", "p: ", {"normalise": False}), ("m", "p: ", {"max_tokens": 8}),
                                 ("other revision", "p: ", {})):
        encoder = Counting()
        found = Kept(encoder, tmp_path, mark).encode(texts, given, **options)
        np.testing.assert_array_equal(found, Counting().encode(texts, given, **options))
        assert len(encoder.texts) == 300, (mark, given, options)


def test_a_run_that_stops_keeps_its_finished_shards(tmp_path, texts):
    with pytest.raises(KeyboardInterrupt):
        Kept(Counting(fails=4), tmp_path, "m").encode(texts, "p: ")
    again = Counting()
    np.testing.assert_array_equal(Kept(again, tmp_path, "m").encode(texts, "p: "), plain(texts))
    assert len(again.texts) == 150
    straight = Counting()
    straight.encode(texts)
    whole = Counting()
    Kept(whole, tmp_path / "other", "m").encode(texts, "p: ")
    assert again.batches == whole.batches[3:]  # the same batches, so the same last bits


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_shards_are_made_again_with_one_line(tmp_path, texts, capsys, damage):
    Kept(Counting(), tmp_path, "m").encode(texts, "p: ")
    path = sorted(tmp_path.rglob("*.safetensors"))[2]
    held = path.read_bytes()
    flipped = bytes([held[-5] ^ 0x40])
    path.write_bytes({"cut": held[:-9], "flipped": held[:-5] + flipped + held[-4:], "empty": b""}[damage])
    again = Counting()
    np.testing.assert_array_equal(Kept(again, tmp_path, "m").encode(texts, "p: "), plain(texts))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"me5: {path} is damaged (") and line.endswith("its texts are encoded again")
    assert len(again.texts) == 50
    last = Counting()
    Kept(last, tmp_path, "m").encode(texts, "p: ")
    assert not last.texts and capsys.readouterr().err == ""


def test_half_precision_takes_half_the_disk_and_reads_back_what_was_handed_out(tmp_path, texts):
    full, half = (Kept(Counting(), tmp_path / dtype, "m", dtype) for dtype in ("fp32", "bf16"))
    exact, rounded = full.encode(texts, "p: "), half.encode(texts, "p: ")
    assert rounded.dtype == np.float32 and 0 < np.abs(rounded / exact - 1).max() <= 2**-11
    again = Kept(Counting(), tmp_path / "bf16", "m", "bf16").encode(texts, "p: ")
    np.testing.assert_array_equal(again, rounded)
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).rglob("*.safetensors")) for name in ("fp32", "bf16")]
    assert sizes[0] - sizes[1] == pytest.approx(300 * 5 * 2, abs=100)


def test_few_texts_are_not_worth_a_file(tmp_path):
    encoder = Counting()
    kept = Kept(encoder, tmp_path, "m")
    for _ in range(2):
        np.testing.assert_array_equal(kept.encode(["a", "b", "a"]), plain(["a", "b", "a"], ""))
    assert encoder.texts.count("a") == 2 and not list(tmp_path.rglob("*.safetensors"))
    assert kept.encode([]).shape == (0, 5)


def test_shards_are_bounded_in_characters_too(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "CHARACTERS", 1000)
    lengths = [len(piece) for piece in vectors.cuts(np.array([5000, 300, 300, 300, 300, *[10] * 150]))]
    assert lengths == [1, 3, 3, 100, 48]


def test_forget_leaves_other_models_alone(tmp_path, texts):
    Kept(Counting(), tmp_path, "other").encode(texts)
    kept = Kept(Counting(), tmp_path, "m")
    kept.encode(texts)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 12
    kept.forget()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_a_bar_is_told_every_character_once(tmp_path, texts):
    for _ in range(2):
        told = []
        Kept(Counting(), tmp_path, "m", seen=told.append).encode([*texts, *texts])
        assert sum(told) == sum(map(len, texts))


def test_a_disk_that_refuses_is_one_line(tmp_path, texts):
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(Me5Error, match="cannot write .*free some space or choose --out"):
        Kept(Counting(), tmp_path / "file" / "x", "m").encode(texts)


class OnDevice(Counting):
    """Says by whom it was called, in the last number."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def encode(self, texts, prefix="", **options):
        if any(text.startswith("die") for text in texts):
            os._exit(3)
        found = super().encode(texts, prefix, **options)
        found[:, -1] = os.getpid()
        return found


def test_two_processes_encode_and_the_caller_drives(tmp_path, texts):
    with Workers(OnDevice, ["cpu", "cpu"]) as workers:
        local = Counting()
        found = Kept(local, Path(tmp_path), "m", encode=workers.encode).encode(texts * 3, "p: ")
        np.testing.assert_array_equal(found[:, :-1], plain(texts * 3)[:, :-1])
        assert not local.texts and set(found[:, -1]) and os.getpid() not in set(found[:, -1].astype(int))
        again = Kept(local, Path(tmp_path), "m", encode=workers.encode).encode(texts, "p: ")
        np.testing.assert_array_equal(again, found[:300])
        with pytest.raises(Me5Error, match="a process that encodes has died"):
            list(workers.encode([["die"]], ""))
