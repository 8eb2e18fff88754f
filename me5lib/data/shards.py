"""Shards: one folder per stream (a source in one language), written once, read by row number.

    pairs.arrow      what training reads: uncompressed Arrow, a record batch per 1,024 rows, memory-mapped
    manifest.json    rows, columns, bytes and SHA-256 of that file

Rows are shuffled once at build by a stateless hash of the row number, so that a block of neighbouring rows is already a
random sample and the plan may permute blocks instead of rows. A shard of the corpus has the columns `english, text`
(translations, which can be read in both directions) or `query, passage` (title and body: one direction). Opening takes
under a millisecond and keeps no file handle (only the mapping), so hundreds of streams stay open at once.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from me5lib import io
from me5lib.io import Me5Error, sha256

MAPPED, MANIFEST = "pairs.arrow", "manifest.json"
BLOCK = 1024  # rows that lie together, and that the plan moves together
GOLDEN = 0x9E3779B97F4A7C15  # the step of SplitMix64: 2^64 over the golden ratio


class Manifest(NamedTuple):
    """What a shard holds: the seed of its shuffle, and bytes and SHA-256 of its file."""

    rows: int
    columns: tuple[str, ...]
    seed: int
    bytes: dict[str, int]
    sha256: dict[str, str]


class Shard:
    """The rows of a stream, memory-mapped: `rows`, their number, and `columns`, their names. Read by position.

    Of several folders, as a build leaves them, the rows of one come after those of the one before.
    """

    def __init__(self, *folders: Path):
        """Raises `Me5Error` for a folder that is missing, damaged or of other columns than the first, and for none."""
        opened = [_open_mapped(folder) for folder in folders]
        self.manifests, self._mapped = [manifest for manifest, _ in opened], [mapped for _, mapped in opened]
        if len({manifest.columns for manifest in self.manifests}) != 1:
            told = "; ".join(f"{folder}: {', '.join(manifest.columns)}"
                             for folder, manifest in zip(folders, self.manifests, strict=True)) or "there are none"
            raise Me5Error(f"shards that are read as one need the same columns ({told})")
        self.columns = self.manifests[0].columns
        rows = np.array([manifest.rows for manifest in self.manifests])
        blocks = -(-rows // BLOCK)
        self.rows, self._stops, self._starts = int(rows.sum()), np.cumsum(rows), np.cumsum(rows) - rows
        self._first_block = np.cumsum(blocks) - blocks  # of each folder, counted over all of them

    def take(self, rows: np.ndarray) -> list[tuple]:
        """The rows at the positions `rows` (int64 [n], 0 ≤ row < `self.rows`), as tuples in that order."""
        return list(zip(*self.read(rows), strict=True))

    def read(self, rows: np.ndarray) -> list[list]:
        """As `take`, a list per column."""
        rows = np.asarray(rows, dtype=np.int64)
        part = np.searchsorted(self._stops, rows, side="right")
        block, offset = np.divmod(rows - self._starts[part], BLOCK)
        block += self._first_block[part]
        if len(rows) and (block == block[0]).all():
            return self._read_block(part[0], block[0], offset)
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order], prepend=-1, append=-1)).tolist()
        pieces = [order[start:stop] for start, stop in pairwise(cuts)]
        read = [self._read_block(part[at[0]], block[at[0]], offset[at]) for at in pieces]
        back = np.argsort(order).tolist()
        columns = [[value for piece in read for value in piece[i]] for i in range(len(self.columns))]
        return columns if back == sorted(back) else [[column[i] for i in back] for column in columns]

    def _read_block(self, part: int, block: int, offsets: np.ndarray) -> list[list]:
        """Some rows of a block: a list per column."""
        batch = self._mapped[part].get_batch(int(block - self._first_block[part]))
        if 2 * len(offsets) < batch.num_rows:
            return [column.to_pylist() for column in batch.take(pa.array(offsets)).columns]
        order = offsets.tolist()  # most of it: no copy of the texts in Arrow first
        return [[column[i] for i in order] for column in (column.to_pylist() for column in batch.columns)]


def write_shard(table: pa.Table, folder: Path, seed: int = 0) -> Manifest:
    """Write `table` as the shard `folder`, its rows shuffled; written beside and renamed, so never half there.

    An existing shard is replaced. The same table and seed give the same files (for one version of pyarrow).
    Raises `Me5Error` when the disk is full.
    """
    # 64-bit offsets: one record batch may then pass 2 GB of text.
    fields = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    table = table.combine_chunks().cast(pa.schema(fields)).take(pa.array(shuffled_rows(table.num_rows, seed)))
    with io.beside(folder) as side:
        file = side / MAPPED
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=BLOCK)
        manifest = Manifest(table.num_rows, tuple(table.column_names), seed, {MAPPED: file.stat().st_size},
                            {MAPPED: sha256(file)})
        io.write_json(side / MANIFEST, manifest._asdict(), sort_keys=False)
    return manifest


def _open_mapped(folder: Path) -> tuple[Manifest, pa.ipc.RecordBatchFileReader]:
    """Memory-map the shard `folder`. Raises `Me5Error` when it is missing, cut short, or not what its manifest says."""
    try:
        given = io.read_json(folder / MANIFEST)
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
    return manifest, mapped


def open_card(name: str, folder: Path) -> dict[tuple[str, str], Shard]:
    """(card, language) → the shards of a card in `folder`: `<language>/part-…`, as a build or a drawing leaves them."""
    parts = defaultdict(list)
    for manifest in sorted(folder.glob(f"*/part-*/{MANIFEST}")):
        parts[name, manifest.parent.parent.name].append(manifest.parent)
    return {stream: Shard(*folders) for stream, folders in parts.items()}


def open_streams(folder: Path) -> dict[tuple[str, str], Shard]:
    """The shards of every card in `folder`. Raises `Me5Error` where there are none, or one is damaged."""
    found = [item for card in sorted(folder.glob("*/")) for item in open_card(card.name, card).items()]
    if not found:
        raise Me5Error(f"no built shards in {folder}: me5 mixture build --card NAME --out {folder}")
    return dict(found)


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
