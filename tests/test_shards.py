"""Shards: what is written is read back by row number, and a damaged one is refused in one line."""

import errno
import json

import numpy as np
import pyarrow as pa
import pytest

from me5lib.data import shards
from me5lib.io import Me5Error


@pytest.fixture
def table():
    return pa.table({"english": [f"text {i}" for i in range(3000)], "text": [f"теxт {i} 🎈" for i in range(3000)]})


def splitmix64(row: int, seed: int) -> int:
    """The published SplitMix64 finaliser in plain integers."""
    z = (row + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_rows_come_back_by_number_in_an_order_that_stays(table, tmp_path):
    first = shards.write_shard(table, tmp_path / "a", seed=1)
    assert first == shards.write_shard(table, tmp_path / "b", seed=1)
    assert first != shards.write_shard(table, tmp_path / "c", seed=2)
    shard = shards.Shard(tmp_path / "a")
    everything = shard.take(np.arange(shard.rows))
    rows = list(zip(table["english"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert everything == [rows[i] for i in sorted(range(3000), key=lambda row: splitmix64(row, 1))]
    asked = np.array([2999, 0, 17, 17, 1500])
    assert shard.take(asked) == [everything[i] for i in asked] and shard.take(np.array([], dtype=np.int64)) == []
    assert shard.columns == ("english", "text") and shard.rows == 3000
    block = [int(english.split()[1]) for english, _ in shard.take(np.arange(1024))]  # neighbours: a random sample
    assert abs(np.mean(block) - 1500) < 150 and np.std(block) > 750
    empty = pa.table({"query": pa.array([], pa.string()), "passage": pa.array([], pa.string())})
    shards.write_shard(empty, tmp_path / "empty")
    assert shards.Shard(tmp_path / "empty").rows == 0


def test_many_shards_stay_open_as_mappings_not_copies(tmp_path):
    resource = pytest.importorskip("resource")
    shards.write_shard(pa.table({"query": ["x" * 1000] * 20_000, "passage": ["y"] * 20_000}), tmp_path / "s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = pa.total_allocated_bytes()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        opened = [shards.Shard(tmp_path / "s") for _ in range(200)]
        assert pa.total_allocated_bytes() - before < 10_000_000
        assert all(shard.take(np.array([19_999])) == [("x" * 1000, "y")] for shard in opened)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_damaged_shard_is_refused_and_a_full_disk_leaves_nothing_behind(table, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    shards.write_shard(table, tmp_path / "s")
    manifest, mapped = tmp_path / "s" / shards.MANIFEST, tmp_path / "s" / shards.MAPPED
    right = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(right), "rows": 999}))
    with pytest.raises(Me5Error, match="rows or columns"):
        shards.Shard(tmp_path / "s")
    manifest.write_text(right)
    mapped.write_bytes(mapped.read_bytes()[:-10])
    for name in ("s", "nothing"):
        with pytest.raises(Me5Error, match="delete it and run again"):
            shards.Shard(tmp_path / name)
    monkeypatch.setattr(shards.pa.ipc, "new_file", full)
    with pytest.raises(Me5Error, match="ME5_CACHE"):
        shards.write_shard(table, tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_several_folders_read_like_one(tmp_path):
    folders = [tmp_path / "toy" / "de" / f"part-{i}" for i in range(4)]
    for part, n in enumerate((5, 1, 0, 1500)):
        columns = {"query": [f"q{i} {part}" for i in range(n)], "passage": [f"p{i} {part}" for i in range(n)]}
        shards.write_shard(pa.table(columns, pa.schema([(name, pa.string()) for name in columns])), folders[part])
    rows = [row for folder in folders for row in shards.Shard(folder).take(np.arange(shards.Shard(folder).rows))]
    (stream, joined), = shards.open_streams(tmp_path).items()
    assert stream == ("toy", "de") and joined.rows == 1506 and joined.take(np.arange(1506)) == rows
    asked = np.array([1505, 0, 5, 4, 5, 6, 300, 1100])
    assert joined.take(asked) == [rows[i] for i in asked] and joined.read(np.array([], dtype=np.int64)) == [[], []]
    shards.write_shard(pa.table({"english": ["a"], "text": ["b"]}), tmp_path / "b")
    with pytest.raises(Me5Error, match="same columns .*english, text"):
        shards.Shard(folders[0], tmp_path / "b")
    with pytest.raises(Me5Error, match="no built shards"):
        shards.open_streams(tmp_path / "toy")
