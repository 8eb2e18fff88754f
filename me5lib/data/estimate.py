"""What a build will take, before it is begun: rows, GB and hours, from the listing and a small sample that is built.

Known: the files and their bytes. From the card: its rows, where it says them. Estimated from the sample: everything
else. The sample is the head of a few files, read, built, filtered, signed and written here, on one core.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from me5lib.data import filters, inputs
from me5lib.data.origin import Drop, Origin
from me5lib.data.pipeline import Prepared
from me5lib.places import Me5Error

FILES, ROWS = 4, 2_000  # the sample (ours)


class Estimate(NamedTuple):
    """`rows` and where they are from; `items` made of them; bytes read and written; `hours` on `workers` cores."""

    files: int
    bytes_read: int
    rows: int
    rows_from: str
    items: int
    bytes_written: int
    hours: float
    workers: int
    sample: int
    seconds_per_row: float

    def lines(self) -> list[str]:
        """The estimate in words, saying what is known and what is not."""
        guess = f"estimated from {self.sample:,} rows"
        return [
            f"files   {self.files:>16,}     {self.bytes_read / 1e9:,.2f} GB to read (as listed)",
            f"rows    {self.rows:>16,}     {self.rows_from}",
            f"pairs   {self.items:>16,}     {guess}; those that duplicates take away are still in",
            f"shards  {self.bytes_written / 1e9:>16,.2f} GB  {guess}; about half as much again while it is built",
            f"hours   {self.hours:>16,.2f}     with {self.workers} tasks at a time; {guess}: "
            f"{1e3 * self.seconds_per_row:.2f} ms a row on one core here",
            "        merging duplicates, the consistency filter, and a network slower than just now come on top",
        ]


def estimate(build: Prepared, workers: int) -> Estimate:
    """Build a sample and reckon. Raises `Me5Error` where no row of the sample can be read."""
    chosen = [build.files[i * len(build.files) // FILES] for i in range(min(FILES, len(build.files)))]
    chosen = list(dict.fromkeys(chosen))
    _sample(build, chosen[0], 1)  # loads what the filters need, once for a task of millions
    start = time.perf_counter()
    found, items, consumed = 0, [], 0.0
    for file in chosen:
        read, pairs, used = _sample(build, file, ROWS // len(chosen))
        found, items, consumed = found + read, items + pairs, consumed + used
    if not found:
        raise Me5Error(f"card {build.card.name}: no row could be read of {len(chosen)} files: is the card right?")
    written = _write(build, items)
    seconds = (time.perf_counter() - start) / found
    size = sum(file.size for file in build.files)
    said = [hub.rows for hub in build.card.hub]
    rows = sum(said) if all(said) else round(size * found / max(consumed, 1))
    source = "as the card says" if all(said) else "estimated from bytes a row"
    if build.options.limit is not None and build.options.limit < rows:
        size, rows, source = round(size * build.options.limit / rows), build.options.limit, "as --limit says"
    return Estimate(len(build.files), size, rows, source, round(rows * len(items) / found),
                    round(rows * written / found), rows * seconds / 3600 / workers, workers, found, seconds)


def _sample(build: Prepared, file: inputs.Input, most: int) -> tuple[int, list, float]:
    """(rows read, items kept, bytes of the file that these rows are)."""
    from fsspec.core import url_to_fs

    hub, commit = build.card.hub[file.entry], build.commits[file.entry]
    system, root = url_to_fs(inputs.folder(hub, commit, build.options.mirror))
    read, items, total = 0, [], None
    steps = filters.sift(build.card.name, build.card.filters)
    with system.open(f"{root}/{file.path}", "rb") as stream:
        if file.path.endswith(".parquet") and file.size:
            total = _parquet_rows(stream)
        try:
            for _, row in inputs.rows(stream, file.path, hub.columns):
                if read == most:
                    break
                read += 1
                items += _items(build, file, row, steps)
            else:
                total = read
        except inputs.Broken:
            pass
        at = 0 if stream.closed else stream.tell()
    used = file.size * read / total if total else min(at, file.size)
    return read, items, used


def _parquet_rows(stream: Any) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream).metadata.num_rows
    except (pa.ArrowInvalid, OSError):
        return None
    finally:
        stream.seek(0)


def _items(build: Prepared, file: inputs.Input, row: Any, steps: list[tuple[str, filters.Step]]
           ) -> Iterator[filters.Item]:
    if isinstance(row, Drop):
        return
    make, options = build.builders[file.entry]
    for item in make(row, Origin(build.card.name, file.language, options)):
        if not isinstance(item, Drop) and not any(step(item) for _, step in steps):
            yield item


def _write(build: Prepared, items: list) -> int:
    """Bytes of the shards of these items; and the time that signing and writing them takes is spent."""
    from me5lib.data import steps, whole

    given, written = filters.whole(build.card.name, build.card.filters), 0
    with tempfile.TemporaryDirectory() as folder:
        sign = whole.NearSignature(folder, given["near"]) if "near" in given else None
        heaps: dict[str, steps.Heap] = {}
        for item in items:
            heaps.setdefault(item.language, steps.Heap(build.card.name, item.language)).add(item)
            shingles = sign.get_shingles(steps.document(item).text) if sign else ()
            if len(shingles):
                sign.get_signature(shingles)
        for heap in heaps.values():
            written += sum(heap.flush(str(Path(folder) / "shards"), 0)["bytes"].values())
    return written
