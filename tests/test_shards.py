"""Shards: what is written is read back by row number, and a damaged one is refused in one line."""

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from me5lib.data import shards
from me5lib.io import Me5Error


@pytest.fixture
def table():
    return pa.table({"english": [f"text {i}" for i in range(1000)], "text": [f"теxт {i} 🎈" for i in range(1000)]})


def splitmix64(row: int, seed: int) -> int:
    """The published SplitMix64 finaliser in plain integers."""
    z = (row + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_rows_come_back_by_number(table, tmp_path):
    shards.write(table, tmp_path / "s", seed=3)
    shard = shards.open_shard(tmp_path / "s")
    everything = shard.take(np.arange(shard.rows))
    assert sorted(everything) == sorted(zip(table["english"].to_pylist(), table["text"].to_pylist(), strict=True))
    asked = np.array([999, 0, 17, 17])
    assert shard.take(asked) == [everything[i] for i in asked]
    assert shard.columns == ("english", "text") and shard.rows == 1000
    assert shard.take(np.array([], dtype=np.int64)) == []


def test_rows_are_shuffled_and_stay_so(table, tmp_path):
    first = shards.write(table, tmp_path / "a", seed=1)
    again = shards.write(table, tmp_path / "b", seed=1)
    other = shards.write(table, tmp_path / "c", seed=2)
    assert first == again and first.sha256 != other.sha256
    order = shards.shuffled(1000, 1)
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert list(shards.shuffled(200, 5)) == sorted(range(200), key=lambda row: splitmix64(row, 5))


def test_neighbouring_rows_are_a_random_sample(tmp_path):
    table = pa.table({"query": [str(i) for i in range(100_000)], "passage": ["p"] * 100_000})
    shards.write(table, tmp_path / "s")
    block = [int(q) for q, _ in shards.open_shard(tmp_path / "s").take(np.arange(1024))]
    assert abs(np.mean(block) - 50_000) < 5_000 and np.std(block) > 25_000


def test_training_reads_a_mapping_not_a_copy(tmp_path):
    shards.write(pa.table({"query": ["x" * 1000] * 20_000, "passage": ["y"] * 20_000}), tmp_path / "s")
    before = pa.total_allocated_bytes()
    shard = shards.open_shard(tmp_path / "s")
    assert pa.total_allocated_bytes() - before < 100_000 and shard.rows == 20_000


def test_many_shards_stay_open(tmp_path):
    resource = pytest.importorskip("resource")
    shards.write(pa.table({"query": ["a"], "passage": ["b"]}), tmp_path / "s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        opened = [shards.open_shard(tmp_path / "s") for _ in range(400)]
        assert all(shard.take(np.array([0])) == [("a", "b")] for shard in opened)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_cut_short_is_refused(table, tmp_path):
    shards.write(table, tmp_path / "s")
    path = tmp_path / "s" / shards.MAPPED
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Me5Error, match="delete it and run again"):
        shards.open_shard(tmp_path / "s")


def test_a_missing_or_wrong_manifest_is_refused(table, tmp_path):
    with pytest.raises(Me5Error, match="damaged"):
        shards.open_shard(tmp_path / "nothing")
    shards.write(table, tmp_path / "s")
    manifest = tmp_path / "s" / shards.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "rows": 999}))
    with pytest.raises(Me5Error, match="rows or columns"):
        shards.open_shard(tmp_path / "s")


def test_a_full_disk_leaves_nothing_behind(table, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.pa.ipc, "new_file", full)
    with pytest.raises(Me5Error, match="ME5_CACHE"):
        shards.write(table, tmp_path / "s")
    assert list(Path(tmp_path).iterdir()) == []


def test_an_empty_table_is_a_shard_too(tmp_path):
    shards.write(pa.table({"query": pa.array([], pa.string()), "passage": pa.array([], pa.string())}), tmp_path / "s")
    assert shards.open_shard(tmp_path / "s").rows == 0


def test_joined_shards_read_like_one(tmp_path):
    tables = [pa.table({"query": [f"q{i} {part}" for i in range(n)], "passage": [f"p{i} {part}" for i in range(n)]})
              for part, n in enumerate((5, 1, 700))]
    parts = [shards.open_shard(tmp_path / str(i)) for i, table in enumerate(tables)
             if shards.write(table, tmp_path / str(i))]
    joined = shards.Joined(parts)
    rows = [row for part in parts for row in part.take(np.arange(part.rows))]
    asked = np.array([705, 0, 5, 4, 5, 6, 300])
    assert joined.rows == 706 and list(zip(*joined.read(asked), strict=True)) == [rows[i] for i in asked]
    assert joined.read(np.array([], dtype=np.int64)) == [[], []]


def test_shards_of_different_columns_are_not_joined(tmp_path):
    shards.write(pa.table({"query": ["a"], "passage": ["b"]}), tmp_path / "a")
    shards.write(pa.table({"english": ["a"], "text": ["b"]}), tmp_path / "b")
    with pytest.raises(Me5Error, match="same columns .*english, text"):
        shards.Joined([shards.open_shard(tmp_path / name) for name in "ab"])
    with pytest.raises(Me5Error, match="there are none"):
        shards.Joined([])
