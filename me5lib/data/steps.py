"""What a task of a build does, as datatrove pipeline steps: read, make pairs, filter, keep; and write the shards.

A `Document` of datatrove carries a `Pair` or `Labelled` under `metadata["item"]`; its text is the (first) passage.
Steps hold names, options and builders of modules, no closures and no open files: they are pickled to other processes,
and machines. What a task leaves is written beside and renamed when the task is done: a killed one leaves nothing.

Every step counts in a `Ledger`, a file per step and task. Units: a *row* is a record of a file (a line of JSON, a
row of Parquet); an *item* is a pair or labelled example that a builder made of a row, or its word why there is none. So

    rows read = rows that did not fit + rows built          items made = items dropped + items kept

Cost: about 50 µs a row beside its filters; memory of `Shards`, which holds `HELD` bytes of text at most.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseDiskReader
from loguru import logger

from me5lib import io
from me5lib.data import filters, inputs, shards
from me5lib.data.origin import Drop, Origin
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair

PART = 256_000_000  # bytes of text after which a part of a shard is written (ours)
HELD = 1_000_000_000  # bytes of text in all languages that a task holds (ours): the largest part is then written early
GROUP = 2_000  # rows of an intermediate file, or of a chunk in memory, at once
LABELLED = ("query", "positives", "negatives")  # and instruction, where rows bring their own
_TEXTS = pa.list_(pa.string())
_KEPT = pa.schema([("query", pa.string()), ("positives", _TEXTS), ("negatives", _TEXTS), ("language", pa.string()),
                   ("labelled", pa.bool_()), ("instruction", pa.string())])
Documents = Iterator[Document]


def document(item: Pair | Labelled) -> Document:
    """The document of an item."""
    text = item.passage if isinstance(item, Pair) else item.positives[0]
    return Document(text=text, id="", metadata={"item": item})


class Ledger:
    """What a step of a task counted: rows and items by what became of them, reason and language; written by `save`."""

    def __init__(self, folder: str, step: str, rank: int):
        self.path = Path(folder) / step / f"{rank:05d}.json"
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.first: dict[str, str] = {}
        self.broken: list[dict[str, Any]] = []

    def count(self, what: str, language: str = "", reason: str = "", where: str = "", n: int = 1) -> None:
        """Count n rows or items; the first of a reason is logged and kept, with where it was."""
        self.counts[what, reason, language or "und"] += n
        if where and reason not in self.first:
            self.first[reason] = where
            logger.warning(f"{where}: {reason} (further ones are only counted)")

    def save(self) -> None:
        """Write beside and rename."""
        counts = sorted([*key, n] for key, n in self.counts.items() if n)
        io.put_json(self.path, {"counts": counts, "first": self.first, "broken": self.broken}, sort_keys=True)


class Rows(BaseDiskReader):
    """Reader of one entry of a card: its files, rows checked against its columns, true row numbers."""

    name = "rows of a hub card"

    def __init__(self, card: str, entry: int, columns: Mapping[str, str], folder: str,
                 shares: Sequence[Sequence[inputs.Input]], limit: int | None, ledger: str):
        """`shares`: files of each task; `limit`: rows read of a file at most; `ledger`: folder of counts."""
        super().__init__(folder)
        self.card, self.entry, self.columns, self.most, self.ledger = card, entry, dict(columns), limit, ledger
        self.shares = [[file for file in share if file.entry == entry] for share in shares]

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        """The documents before it, then a document per fitting row of this task's files."""
        yield from data or ()
        book = Ledger(self.ledger, f"rows-{self.entry:03d}", rank)
        for file in self.shares[rank]:
            self.stat_update("input_files")
            yield from self._documents(file, book)
        book.save()

    def read_file(self, filepath: str) -> Documents:
        """Not how it is used: a file here has a language and a row limit beside its path."""
        raise NotImplementedError

    def _documents(self, file: inputs.Input, book: Ledger) -> Documents:
        number = -1
        try:
            with self.data_folder.open(file.path, "rb") as stream:
                for number, row in inputs.rows(stream, file.path, self.columns):
                    if self.most is not None and number >= self.most:
                        break
                    where = f"card {self.card}, {file.path}, row {number}"
                    book.count("read", file.language)
                    if isinstance(row, Drop):
                        book.count("unfit", file.language, row.reason, where)
                        continue
                    known = {"row": row, "entry": self.entry, "language": file.language, "where": where}
                    yield Document(text="", id=where, metadata=known)
        except inputs.Broken as error:
            logger.error(f"card {self.card}, {file.path}: unreadable file after row {number}: {error}")
            book.broken.append({"file": file.path, "rows_read": number + 1, "why": str(error)})
            book.count("broken", file.language, "unreadable file")


class Build(PipelineStep):
    """Row → items by the card's builders, one per entry, and the filters that look at one item."""

    name, type = "pairs of rows", "me5"

    def __init__(self, card: str, builders: Sequence[tuple[Callable, Mapping[str, Any]]],
                 steps: Mapping[str, Mapping[str, Any]], ledger: str):
        """`builders`: (function, options) of each entry; `steps`: the card's filters."""
        super().__init__()
        self.card, self.builders, self.steps, self.ledger = card, list(builders), dict(steps), ledger

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Items that no filter drops."""
        book = Ledger(self.ledger, "items", rank)
        sift = filters.sift(self.card, self.steps)
        for row in data:
            known = row.metadata
            book.count("built", known["language"])
            for item in self._items(row):
                language = known["language"] if isinstance(item, Drop) else item.language
                reason = item.reason if isinstance(item, Drop) else self._reason(item, sift)
                book.count("made", language if not reason or inputs.known_language(language) else "")
                if reason:
                    spelt = language if inputs.known_language(language) else ""
                    book.count("dropped", spelt, reason, f"{known['where']} ({language or 'no language'})")
                else:
                    yield document(item)
        book.save()

    def _items(self, row: Document) -> Iterator[Pair | Labelled | Drop]:
        build, options = self.builders[row.metadata["entry"]]
        try:
            found = list(build(row.metadata["row"], Origin(self.card, row.metadata["language"], options)))
        except Exception as error:
            name = getattr(build, "__name__", "builder")
            raise Me5Error(f"{row.metadata['where']}: {name} failed ({type(error).__name__}: {error}): mend the builder"
                           ) from error
        return iter(found or [Drop("no pair in the row")])

    @staticmethod
    def _reason(item: Pair | Labelled, sift: Sequence[tuple[str, filters.Step]]) -> str | None:
        if not inputs.known_language(item.language):
            return "unknown language code"
        return next((reason for _, step in sift if (reason := step(item))), None)


class Keep(PipelineStep):
    """Writes the items of a task to an intermediate file and hands them on."""

    name, type = "items kept", "me5"

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """The same documents."""
        path = Path(self.folder) / f"{rank:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = path.with_name(path.name + ".part")
        with pq.ParquetWriter(side, _KEPT, compression="zstd") as writer:
            held: list[tuple] = []
            for given in data:
                held.append(_flat(given.metadata["item"]))
                if len(held) == GROUP:
                    writer.write_table(_table(held))
                    held.clear()
                yield given
            writer.write_table(_table(held))
        os.replace(side, path)


def _flat(item: Pair | Labelled) -> tuple:
    if isinstance(item, Pair):
        return item.query, [item.passage], [], item.language, False, None
    return item.query, list(item.positives), list(item.negatives), item.language, True, item.instruction


def _table(rows: Sequence[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(_KEPT)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, _KEPT, strict=True)], schema=_KEPT)


class Again(PipelineStep):
    """Reads what `Keep` wrote, in the same order."""

    name, type = "items again", "me5"

    def __init__(self, card: str, folder: str):
        super().__init__()
        self.card, self.folder = card, folder

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        """A document per item."""
        with pq.ParquetFile(Path(self.folder) / f"{rank:05d}.parquet") as file:
            for batch in file.iter_batches(GROUP):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield document(self._item(*row))

    def _item(self, query: str, positives: list[str], negatives: list[str], language: str, labelled: bool,
              instruction: str | None) -> Pair | Labelled:
        if not labelled:
            return Pair(query, positives[0], self.card, language)
        return Labelled(query, tuple(positives), tuple(negatives), self.card, language, instruction=instruction)


class Counted(PipelineStep):
    """Another step that lets fewer documents through, and the count of those it drops, under one reason."""

    type = "me5"

    def __init__(self, inner: PipelineStep, reason: str, ledger: str):
        super().__init__()
        self.inner, self.reason, self.ledger = inner, reason, ledger
        self.name = reason

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """What `inner` lets through."""
        book = Ledger(self.ledger, self.reason.replace(" ", "-"), rank)

        def tapped() -> Documents:
            for given in data:
                book.count("dropped", given.metadata["item"].language, self.reason)
                yield given

        for given in self.inner.run(tapped(), rank, world_size):
            book.count("dropped", given.metadata["item"].language, self.reason, n=-1)
            yield given
        book.save()


class Shards(PipelineStep):
    """Writes the items of a task, by language, as shards `<language>/part-<rank>-<n>`."""

    name, type = "shards", "me5"

    def __init__(self, card: str, folder: str, ledger: str):
        super().__init__()
        self.card, self.folder, self.ledger = card, folder, ledger

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Nothing: all is written."""
        for stale in Path(self.folder).glob(f"*/part-{rank:05d}-*"):
            shutil.rmtree(stale)
        book, heaps, written = Ledger(self.ledger, "shards", rank), {}, []
        for given in data:
            item = given.metadata["item"]
            heap = heaps.setdefault(item.language, Heap(self.card, item.language))
            heap.add(item)
            if heap.bytes >= PART or sum(each.bytes for each in heaps.values()) >= HELD:
                written.append(max(heaps.values(), key=lambda each: each.bytes).flush(self.folder, rank))
        written += [heap.flush(self.folder, rank) for _, heap in sorted(heaps.items()) if heap.bytes]
        for part in written:
            book.count("kept", part["language"], n=part["rows"])
        io.put_json(Path(self.ledger) / "parts" / f"{rank:05d}.json", written, sort_keys=True)
        book.save()
        yield from ()


class Heap:
    """Items of one language that wait to be written; `bytes` of their text."""

    def __init__(self, card: str, language: str):
        self.card, self.language, self.bytes, self.parts = card, language, 0, 0
        self.chunks: list[pa.Table] = []
        self.rows: list[tuple] = []
        self.labelled: bool | None = None

    def add(self, item: Pair | Labelled) -> None:
        """Hold one more. Raises `Me5Error` where pairs and labelled examples come in one stream."""
        row = _flat(item)
        if self.labelled not in (None, row[4]):
            raise Me5Error(f"card {self.card}, language {self.language}: its builders make pairs and labelled examples:"
                           " give each a card of its own")
        self.labelled = row[4]
        self.rows.append(row)
        self.bytes += len(row[0].encode()) + sum(len(text.encode()) for texts in row[1:3] for text in texts) + 1
        if len(self.rows) == GROUP:
            self._pack()

    def _pack(self) -> None:
        # A million small Python strings take three times the memory of their text; packed, they take little more.
        self.chunks.append(_table(self.rows))
        self.rows = []

    def flush(self, folder: str, rank: int) -> dict[str, Any]:
        """Write what is held as the next part; what the manifest says of it."""
        self._pack()
        table = pa.concat_tables(self.chunks)
        own = ("instruction",) if table["instruction"].null_count < table.num_rows else ()
        table = table.select(LABELLED + own) if self.labelled else _as_pairs(table)
        name = f"{self.language}/part-{rank:05d}-{self.parts:04d}"
        done = shards.write(table, Path(folder) / name, seed=rank * 10_000 + self.parts)
        self.chunks, self.bytes, self.parts = [], 0, self.parts + 1
        return {"folder": name, "language": self.language, "rows": done.rows, "columns": list(done.columns),
                "bytes": done.bytes, "sha256": done.sha256}


def _as_pairs(table: pa.Table) -> pa.Table:
    passages = pa.chunked_array([chunk.flatten() for chunk in table["positives"].chunks], pa.string())
    return pa.table({"query": table["query"], "passage": passages})
