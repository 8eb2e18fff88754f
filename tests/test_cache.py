"""Vectors that stay on disk: a killed evaluation encodes the missing chunks alone and ends with the same results."""

import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from me5lib import io
from me5lib.evaluate import cache
from me5lib.evaluate.cache import CachedEncoder, on_devices
from me5lib.io import Me5Error

MODEL = {"model": "m", "revision": "a1"}


def hashed(text: str) -> np.ndarray:
    """Five numbers of a text, between 0.1 and 0.8."""
    digest = hashlib.sha1(text.encode("utf8", "surrogatepass")).digest()
    return 0.1 + np.frombuffer(digest, np.uint32).astype(np.float32) / 7e9


class Counting:
    """Vectors from a hash of prefix, norm and text; remembers every batch."""

    own_prompts = {"query": "q "}

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts, prefix="", *, normalise=True, **options):
        self.batches.append(list(texts))
        return np.array([hashed(f"{prefix}|{normalise}|{options}|{text}") for text in texts]).reshape(-1, 5)

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """300 different texts of several lengths, a lone surrogate among them; chunks are of 50 texts."""
    monkeypatch.setattr(cache, "TEXTS", 50)
    return [f"text {i} " + "ä" * (i * 37 % 90) for i in range(299)] + ["lone \ud800"]


def direct(texts, prefix="p: ", normalise=True):
    return Counting().encode(texts, prefix, normalise=normalise)


def chunks(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def test_vectors_are_the_encoders_in_order_each_text_encoded_once_and_read_by_the_next_process(tmp_path, texts):
    first, again, twice = Counting(), Counting(), [*texts, *texts[:7]]
    for encoder in (first, again):
        cached = CachedEncoder(encoder, tmp_path / "new" / "folder", MODEL)
        vectors_of = cached.encode(twice, "p: ")
        assert vectors_of.dtype == np.float32 and np.array_equal(vectors_of, direct(twice))
    assert sorted(first.texts) == sorted(texts) and [len(batch) for batch in first.batches] == [50] * 6
    lengths = [len(text) for text in first.texts]
    assert lengths == sorted(lengths, reverse=True) and not again.batches
    assert len(chunks(tmp_path)) == len(list(tmp_path.rglob("*.*"))) == 6
    assert cached.encode([]).shape == (0, 5) and len(chunks(tmp_path)) == 6


def test_all_that_decides_vectors_is_in_the_name(tmp_path, texts, monkeypatch):
    ways = [({}, "p: ", {}), ({}, "q: ", {}), ({}, "p: ", {"normalise": False}), ({}, "p: ", {"max_tokens": 8}),
            ({"revision": "b2"}, "p: ", {}), ({"dtype": "fp16"}, "p: ", {}), ({"dtype": "bf16"}, "p: ", {})]
    for i, (change, prefix, options) in enumerate(ways, start=1):
        before = chunks(tmp_path)
        encoder = Counting()
        cached = CachedEncoder(encoder, tmp_path, MODEL | {"revision": change.get("revision", "a1")},
                               change.get("dtype", "fp32"))
        expected = Counting().encode(texts, prefix, **options)
        made, half = cached.encode(texts, prefix, **options), "dtype" in change
        np.testing.assert_allclose(made, expected, rtol=2**-11 if half else 0)
        assert made.dtype == np.float32 and np.array_equal(cached.encode(texts, prefix, **options), made)  # as returned
        stored = {np.load(path).dtype for path in set(chunks(tmp_path)).difference(before)}
        assert stored == {np.dtype(np.float16 if half else np.float32)}
        assert len(encoder.texts) == 300 and len(chunks(tmp_path)) == 6 * i, (change, prefix, options)
    for other in (["ab", "cd"], ["cd", "ab"], ["abcd", ""], ["abc", "d"]):
        CachedEncoder(Counting(), tmp_path / "texts", MODEL).encode(other)
    assert len(chunks(tmp_path / "texts")) == 4
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    CachedEncoder(Counting(), tmp_path / "texts", MODEL).encode(["ab", "cd"])
    assert len(chunks(tmp_path / "texts")) == 5


def test_killed_with_a_chunk_beside_its_place_only_the_missing_ones_are_encoded(tmp_path, texts):
    """Before the fifth is renamed; `test_evaluate` kills whole evaluations."""
    child = os.fork()
    if not child:
        left, rename = iter(range(4)), io.rename
        io.rename = lambda *paths: rename(*paths) if next(left, None) is not None else os.kill(os.getpid(), 9)
        CachedEncoder(Counting(), tmp_path / "killed", MODEL).encode(texts, "p: ")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and len(chunks(tmp_path / "killed")) == 4
    rest = Counting()
    for name, encoder in (("straight", Counting()), ("killed", rest)):
        np.testing.assert_array_equal(CachedEncoder(encoder, tmp_path / name, MODEL).encode(texts, "p: "),
                                      direct(texts))
    assert [len(batch) for batch in rest.batches] == [50, 50]
    assert [path.read_bytes() for path in chunks(tmp_path / "killed")] == [
        path.read_bytes() for path in chunks(tmp_path / "straight")]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", [
    *(lambda path, size=size: path.write_bytes(path.read_bytes()[:size]) for size in (0, 100, -1)),
    *(lambda path, change=change: np.save(path, change(np.load(path))) for change in (
        lambda array: array[1:], lambda array: array[:, 0], np.float16, lambda array: array * np.nan)),
])  # fmt: skip
def test_a_damaged_chunk_is_said_in_one_line_and_encoded_again(tmp_path, texts, capsys, damage):
    CachedEncoder(Counting(), tmp_path, MODEL).encode(texts, "p: ")
    path = chunks(tmp_path)[2]
    damage(path)
    for count in (50, 0):
        encoder = Counting()
        np.testing.assert_array_equal(CachedEncoder(encoder, tmp_path, MODEL).encode(texts, "p: "), direct(texts))
        assert len(encoder.texts) == count
    assert capsys.readouterr().err == f"{path} is damaged: its 50 texts are encoded again\n"


def test_vectors_that_are_not_finite_are_refused_and_the_chunks_before_them_stay(tmp_path, texts):
    class Overflowing(Counting):
        def encode(self, texts, prefix="", **options):
            made = super().encode(texts, prefix, **options)
            made[1:3, 2] = np.inf if len(self.batches) == 3 else made[1:3, 2]
            return made

    with pytest.raises(Me5Error, match="gave 2 of 50 texts no finite vector .the first: 'text .*--dtype fp32"):
        CachedEncoder(Overflowing(), tmp_path, MODEL).encode(texts, "p: ")
    assert len(chunks(tmp_path)) == 2


def test_delete_leaves_other_models_and_other_calls_alone_and_a_bar_gets_every_character_once(tmp_path, texts):
    CachedEncoder(Counting(), tmp_path, {"model": "other"}).encode(texts)
    CachedEncoder(Counting(), tmp_path, MODEL).encode(texts[:250])
    before, counts = chunks(tmp_path), []
    cached = CachedEncoder(Counting(), tmp_path, MODEL, seen=counts.append)
    cached.encode([*texts[:200], *texts[:200]])
    new = set(chunks(tmp_path)) - set(before)
    next(iter(new)).unlink()
    cached.encode(texts[:200])
    assert sum(counts[:4]) == sum(map(len, texts[:200])) and len(new) == 4
    assert sorted(counts[4:])[:3] == [0, 0, 0] and max(counts[4:]) in counts[:4]  # read again; encoded again
    cached.delete()
    assert chunks(tmp_path) == before


def test_a_disk_that_refuses_is_one_line(tmp_path, texts, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(Me5Error, match=r"\.npy cannot be written .Not a directory.: free some space, then run"):
        CachedEncoder(Counting(), tmp_path / "file" / "x", MODEL).encode(texts)
    monkeypatch.setattr(io, "sync", lambda path: (tmp_path / "none").stat())
    with pytest.raises(Me5Error, match=r"\.npy cannot be written .No such file"):
        CachedEncoder(Counting(), tmp_path / "full", MODEL).encode(texts)
    assert not list((tmp_path / "full").iterdir())


class OnDevice(Counting):
    """Says by whom it was called, in the last number."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.encoder = device, self

    def encode(self, texts, prefix="", **options):
        if any(text.startswith("die") for text in texts):
            os._exit(3)
        made = super().encode(texts, prefix, **options)
        made[:, -1] = os.getpid()
        return made


def test_two_processes_encode_and_the_caller_drives(tmp_path, texts):
    with on_devices(OnDevice, ["cpu", "cpu"]) as encode:
        local = Counting()
        made = CachedEncoder(local, tmp_path, MODEL, encode=encode).encode(texts * 3, "p: ")
        np.testing.assert_array_equal(made[:, :-1], direct(texts * 3)[:, :-1])
        assert not local.texts and set(made[:, -1]) and os.getpid() not in set(made[:, -1].astype(int))
        again = CachedEncoder(local, tmp_path, MODEL, encode=encode).encode(texts, "p: ")
        np.testing.assert_array_equal(again, made[:300])
        with pytest.raises(Me5Error, match="a process that encodes has died"):
            list(encode([["die"]], ""))
