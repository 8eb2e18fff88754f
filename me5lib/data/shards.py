"""Shards: one folder per stream (a source in one language), written once, read by row number.

    pairs.arrow      what training reads: uncompressed Arrow, a record batch per 1,024 rows, memory-mapped
    manifest.json    rows, columns, bytes and SHA-256 of that file

Rows are shuffled once at build by a stateless hash of the row number, so that a block of neighbouring rows is already a
random sample and the plan may permute blocks instead of rows. A shard of the corpus has the columns `english, text`
(translations, which can be read in both directions) or `query, passage` (title and body: one direction). Opening takes
under a millisecond and keeps no file handle (only the mapping), so hundreds of streams stay open at once. A block lies
in one piece on the disk, which makes a cold reading twice as fast as one record batch for all rows would.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from me5lib.io import Me5Error, sha256

MAPPED, MANIFEST = "pairs.arrow", "manifest.json"
BLOCK = 1024  # rows that lie together, and that the plan moves together
GOLDEN = 0x9E3779B97F4A7C15  # the step of SplitMix64: 2^64 over the golden ratio


class Rows(Protocol):
    """What is read of a stream: a shard, or several joined."""

    rows: int
    columns: tuple[str, ...]

    def read(self, rows: np.ndarray) -> Sequence[Sequence]:
        """The rows at these positions, in that order: a list per column."""


class Manifest(NamedTuple):
    """What a shard holds: the seed of its shuffle, and bytes and SHA-256 of its file."""

    rows: int
    columns: tuple[str, ...]
    seed: int
    bytes: dict[str, int]
    sha256: dict[str, str]


class Shard:
    """A finished shard, memory-mapped: `rows`, their number, and `columns`, their names. Read by position."""

    def __init__(self, folder: Path, manifest: Manifest, mapped: pa.ipc.RecordBatchFileReader):
        self.folder, self.manifest, self._mapped = folder, manifest, mapped
        self.rows, self.columns = manifest.rows, manifest.columns

    def take(self, rows: np.ndarray) -> list[tuple]:
        """The rows at the positions `rows` (int64 [n], 0 ≤ row < `self.rows`), as tuples in that order."""
        return list(zip(*self.read(rows), strict=True))

    def read(self, rows: np.ndarray) -> list[list]:
        """As `take`, a list per column."""
        block, offset = np.divmod(np.asarray(rows, dtype=np.int64), BLOCK)
        if len(rows) and (block == block[0]).all():
            return _block_rows(self._mapped.get_batch(int(block[0])), offset)
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order], prepend=-1, append=-1)).tolist()
        pieces = [order[start:stop] for start, stop in pairwise(cuts)]
        parts = [_block_rows(self._mapped.get_batch(int(block[at[0]])), offset[at]) for at in pieces]
        back = np.argsort(order).tolist()
        columns = [[value for part in parts for value in part[i]] for i in range(len(self.columns))]
        return columns if back == sorted(back) else [[column[i] for i in back] for column in columns]


class Joined:
    """Several shards read as one: row i of the second comes after the last of the first. Columns must be equal."""

    def __init__(self, parts: Sequence[Shard]):
        """Raises `Me5Error` for no parts, or parts of different columns."""
        if len({part.columns for part in parts}) != 1:
            told = "; ".join(f"{part.folder}: {', '.join(part.columns)}" for part in parts) or "there are none"
            raise Me5Error(f"shards that are read as one need the same columns ({told})")
        self.parts, self.columns = tuple(parts), parts[0].columns
        self._stops = np.cumsum([part.rows for part in parts])
        self.rows = int(self._stops[-1])

    def read(self, rows: np.ndarray) -> list[list]:
        """The rows at these positions, in that order: a list per column."""
        rows = np.asarray(rows, dtype=np.int64)
        part = np.searchsorted(self._stops, rows, side="right")
        found = [np.empty(len(rows), dtype=object) for _ in self.columns]
        for i in np.unique(part).tolist():
            at = np.flatnonzero(part == i)
            start = int(self._stops[i]) - self.parts[i].rows
            for column, values in zip(found, self.parts[i].read(rows[at] - start), strict=True):
                column[at] = np.fromiter(values, dtype=object, count=len(at))
        return [column.tolist() for column in found]


def write_shard(table: pa.Table, folder: Path, seed: int = 0) -> Manifest:
    """Write `table` as the shard `folder`, its rows shuffled; written beside and renamed, so never half there.

    An existing shard is replaced. The same table and seed give the same files (for one version of pyarrow).
    Raises `Me5Error` when the disk is full.
    """
    side = folder.with_name(folder.name + ".part")
    shutil.rmtree(side, ignore_errors=True)
    # 64-bit offsets: one record batch may then pass 2 GB of text.
    fields = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    table = table.combine_chunks().cast(pa.schema(fields)).take(pa.array(shuffled_rows(table.num_rows, seed)))
    try:
        side.mkdir(parents=True)
        file = side / MAPPED
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=BLOCK)
        manifest = Manifest(table.num_rows, tuple(table.column_names), seed, {MAPPED: file.stat().st_size},
                            {MAPPED: sha256(file)})
        (side / MANIFEST).write_text(json.dumps(manifest._asdict(), indent=1) + "\n", encoding="utf8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(side, folder)
    except OSError as error:
        shutil.rmtree(side, ignore_errors=True)
        raise full_disk(error, folder) from None
    return manifest


def open_shard(folder: Path) -> Shard:
    """Memory-map the shard `folder`. Raises `Me5Error` when it is missing, cut short, or not what its manifest says."""
    try:
        given = json.loads((folder / MANIFEST).read_text(encoding="utf8"))
        manifest = Manifest(**{**given, "columns": tuple(given["columns"])})
        if (folder / MAPPED).stat().st_size != manifest.bytes[MAPPED]:
            raise ValueError(f"{MAPPED} is not {manifest.bytes[MAPPED]} bytes long")
        with pa.memory_map(str(folder / MAPPED)) as source:  # closed: the mapping lives for as long as the buffer does
            mapped = pa.ipc.open_file(pa.BufferReader(source.read_buffer()))
        last = mapped.num_record_batches - 1
        rows = last * BLOCK + mapped.get_batch(last).num_rows if last >= 0 else 0
        if rows != manifest.rows or tuple(mapped.schema.names) != manifest.columns:
            raise ValueError("rows or columns differ from its manifest")
    except (FileNotFoundError, ValueError, TypeError, KeyError, pa.ArrowInvalid) as error:
        raise damaged(folder, " ".join(str(error).split()) or type(error).__name__) from None
    return Shard(folder, manifest, mapped)


def open_streams(folder: Path) -> dict[tuple[str, str], Joined]:
    """Every stream in `folder`, by (source, language): `<source>/<language>/part-…`, as `me5 mixture build` leaves it.

    Raises `Me5Error` where there is none, or one is damaged.
    """
    parts: dict[tuple[str, str], list[Shard]] = {}
    for manifest in sorted(folder.glob(f"*/*/part-*/{MANIFEST}")):
        language = manifest.parent.parent
        parts.setdefault((language.parent.name, language.name), []).append(open_shard(manifest.parent))
    if not parts:
        raise Me5Error(f"no built shards in {folder}: me5 mixture build --card NAME --out {folder}")
    return {stream: Joined(own) for stream, own in parts.items()}


def splitmix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser of an array: 64 bits in, 64 bits out, each depending on all; one to one.

    What is shuffled or drawn by it does not change with the version of numpy, as the stream of a `Generator` may.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled_rows(rows: int, seed: int) -> np.ndarray:
    """A permutation of `rows` row numbers, int64: the order of their SplitMix64 hashes. Without any state."""
    start = np.uint64((seed + 1) * GOLDEN % 2**64)
    return np.argsort(splitmix64(np.arange(rows, dtype=np.uint64) + start), kind="stable")


def runs(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`count` consecutive things for each i: which i each belongs to, and which of its things it is; int64."""
    of = np.repeat(np.arange(len(count)), count)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)


def damaged(folder: Path, what: str) -> Me5Error:
    """The one-line error for a folder of the cache that cannot be used."""
    return Me5Error(f"{folder} is damaged ({what}): delete it and run again")


def full_disk(error: OSError, folder: Path) -> Me5Error | OSError:
    """The one-line error for a disk that is full or must not be written to; any other `error` comes back as it is."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return Me5Error(f"cannot write to {folder.parent} ({error.strerror}): point ME5_CACHE to a folder of yours")
    if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return error
    return Me5Error(f"no space left for {folder}: free some, or point ME5_CACHE to a larger disk, and run again")


def _block_rows(batch: pa.RecordBatch, offsets: np.ndarray) -> list[list]:
    """Some rows of a block: a list per column."""
    if 2 * len(offsets) < batch.num_rows:
        return [column.to_pylist() for column in batch.take(pa.array(offsets)).columns]
    order = offsets.tolist()  # most of it: no copy of the texts in Arrow first
    return [[column[i] for i in order] for column in (column.to_pylist() for column in batch.columns)]
