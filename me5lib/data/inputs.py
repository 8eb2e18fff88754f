"""The files of a hub card, and their rows: from the hub itself or from a copy of it, one row at a time, nothing lost.

    files, commits, absent = listed(card, mirror=None)     # before any work: what there is to read
    for number, row in rows(stream, "data/a.jsonl.gz", columns): …

Folders are those of fsspec: `hf://datasets/<repository>@<commit>` (honours `HF_ENDPOINT`), or `<mirror>/<repository>`.
A row that cannot be read comes as a `Drop` with its number; a file that cannot be read on raises `Broken`. Failures of
the network are neither: they stop the task, which is then done again.

Cost: memory of one Parquet batch (`BATCH` rows) or one line; JSON lines about 20 µs a kB, Parquet a fraction of that.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from me5lib.data import schema
from me5lib.data.cards import Card, Hub
from me5lib.data.origin import Drop, Row
from me5lib.data.text import language
from me5lib.io import Me5Error

ROW = 10_000_000  # bytes of text in one row (ours): beyond it is no passage but a dump
LINE = 8 * ROW  # bytes of one line of JSON, where signs may be escaped: beyond it is not parsed at all
BATCH = 256  # rows of Parquet at once
NO_LANGUAGE = {"und", "mul", "zxx", "mis"}  # codes of ISO 639 that name none


class Input(NamedTuple):
    """One file. `entry`: index into `Card.hub`; `stamp` changes when the file does."""

    entry: int
    path: str  # in the repository
    language: str  # "": the row tells it
    size: int  # bytes
    stamp: str


class Broken(Exception):
    """A file that cannot be read (on): cut short, or damaged."""


def known_language(code: str) -> bool:
    """Whether `code` is a language's, in the project's spelling (`plain.language`) or ISO 639's."""
    return code not in NO_LANGUAGE and language(code) is not None


def folder(hub: Hub, commit: str, mirror: Path | None) -> str:
    """Where an entry's files lie, for fsspec: in `mirror/<repository>` (or mirror/datasets/…), else on the hub."""
    if mirror is None:
        return f"hf://datasets/{hub.repository}@{quote(commit, safe='')}"
    nested = mirror / "datasets" / hub.repository
    return str(nested if nested.is_dir() else mirror / hub.repository)


def listed(card: Card, mirror: Path | None) -> tuple[list[Input], list[str], list[str]]:
    """All files of a card in order; by entry the commit (with a mirror: what the card says); and globs without files.

    Raises `Me5Error` where an entry has no file at all, a language is none, or the hub cannot be reached.
    """
    found, commits, absent = [], [], []
    for entry, hub in enumerate(card.hub):
        _refuse_codes(card, hub)
        commits.append(hub.revision or "main" if mirror else _commit(card, hub))
        here = folder(hub, commits[-1], mirror)
        before = len(found)
        for code, theirs in (hub.languages or {hub.language or "": ""}).items():
            pattern = hub.files.replace("{language}", theirs)
            matched = [Input(entry, path, code, size, stamp) for path, size, stamp in _glob(card, here, pattern)]
            found += matched
            absent += [] if matched else [f"{hub.repository}/{pattern}"]
        if len(found) == before:
            raise Me5Error(f"card {card.name}: no files {hub.files} in {here}: "
                           + ("the copy must lie in <folder>/<repository>" if mirror else "the card must be mended"))
    return found, commits, absent


def _refuse_codes(card: Card, hub: Hub) -> None:
    for code in (*hub.languages, *([hub.language] if hub.language else [])):
        if not known_language(code):
            raise Me5Error(f"data card {card.name}.md: {hub.repository}: unknown language code {code!r}: use ISO 639")


def _commit(card: Card, hub: Hub) -> str:
    """The commit that the entry's revision (or main) is now: what is built must not change while it is."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub.repository, revision=hub.revision).sha
    except Exception as error:  # of many classes, which change with the version of the client
        raise _no_hub(card, hub.repository, error) from None


def _no_hub(card: Card, what: str, error: Exception) -> Me5Error:
    why = " ".join(str(error).split())[:200]
    return Me5Error(f"card {card.name}: {what} cannot be had from the hub ({type(error).__name__}: {why}): build where "
                    "there is a network, or from a copy with --from DIR")


def _glob(card: Card, here: str, pattern: str) -> list[tuple[str, int, str]]:
    """(path in the folder, bytes, stamp) of the files that match, sorted."""
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(here)
        remote = "hf" in str(system.protocol)
        found = system.glob(f"{root}/{pattern}", detail=True, **({"expand_info": False} if remote else {}))
    except Exception as error:
        if here.startswith("hf://"):
            raise _no_hub(card, here, error) from None
        raise
    stamps = {path: str(info.get("blob_id") or info.get("mtime") or "") for path, info in found.items()}
    return [(path.removeprefix(root.rstrip("/") + "/"), int(info["size"]), stamps[path])
            for path, info in sorted(found.items()) if info["type"] == "file"]


def share(inputs: Sequence[Input], tasks: int) -> list[list[Input]]:
    """The files of each task: the largest first, always to the task with the fewest bytes so far. None is split."""
    import heapq

    loads = [(0, task) for task in range(tasks)]
    shares: list[list[Input]] = [[] for _ in range(tasks)]
    for each in sorted(inputs, key=lambda file: (-file.size, file.entry, file.path)):
        load, task = heapq.heappop(loads)
        shares[task].append(each)
        heapq.heappush(loads, (load + each.size, task))
    return [sorted(files) for files in shares]


def rows(stream: IO[bytes], path: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Row | Drop]]:
    """(number from 0, row) of a file, checked against the card's `columns`; a `Drop` for a row that does not fit.

    Raises `Broken` after the last row that can be read. An empty file has no rows.
    """
    for number, row in _parquet(stream, columns) if path.endswith(".parquet") else _lines(_unpacked(stream, path)):
        yield number, row if isinstance(row, Drop) else _checked(row, columns)


def _checked(row: Row, columns: Mapping[str, str]) -> Row | Drop:
    try:
        if _bytes(row) > ROW:
            return Drop(f"row over {ROW // 1_000_000} MB")
    except UnicodeEncodeError:
        return Drop("text that is not Unicode")
    fault = schema.row_fault(columns, row)
    return Drop(fault) if fault else row


def _bytes(value: Any) -> int:
    """UTF-8 bytes of all texts in a value."""
    if isinstance(value, str):
        return len(value.encode("utf8"))
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list) else 0


def _parquet(stream: IO[bytes], columns: Mapping[str, str]) -> Iterator[tuple[int, Row | Drop]]:
    number = 0
    if _is_empty(stream):
        return
    try:
        file = pq.ParquetFile(stream)
        names = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH, columns=names):
            for row in batch.to_pylist() if names else [{}] * batch.num_rows:
                yield number, row
                number += 1
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise _broken(error) from error


def _is_empty(stream: IO[bytes]) -> bool:
    first = stream.read(1)
    stream.seek(0)
    return not first


def _broken(error: Exception) -> Exception:
    """`Broken` where a file is to blame; the error itself where the way to it is."""
    # Arrow reports damage as ArrowInvalid or as a bare OSError; the system's errors and the hub's have more to them.
    damage = type(error) is not OSError or error.errno is None
    ours = isinstance(error, pa.ArrowInvalid | UnicodeDecodeError | EOFError | zlib.error | gzip.BadGzipFile)
    if ours or (type(error) is OSError and damage):
        return Broken(" ".join(str(error).split())[:200])
    return error


def _unpacked(stream: IO[bytes], path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=stream)
    if path.endswith(".zst"):
        return io.BufferedReader(_Zstd(stream)) if not _is_empty(stream) else io.BytesIO()
    return stream


class _Zstd(io.RawIOBase):
    """Bytes of a zstd stream, through Arrow's own decompressor, which every platform has."""

    def __init__(self, stream: IO[bytes]):
        self._stream = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; the number of bytes, 0 at the end."""
        found = self._stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, Row | Drop]]:
    number = 0
    try:
        while line := stream.readline(LINE + 1):
            long = len(line) > LINE
            while long and not line.endswith(b"\n") and (line := stream.readline(LINE)):
                pass
            if long or not line.isspace():
                yield number, Drop(f"row over {ROW // 1_000_000} MB") if long else _parsed(line)
            number += 1  # of the line: blank ones are no rows, but an editor counts them
    except (pa.ArrowInvalid, OSError, EOFError, zlib.error) as error:
        raise _broken(error) from error


_BOM = re.compile(b"^\xef\xbb\xbf")


def _parsed(line: bytes) -> Row | Drop:
    try:
        row = json.loads(_BOM.sub(b"", line))
    except (ValueError, RecursionError):
        return Drop("bad JSON line")
    return row if isinstance(row, dict) else Drop("bad JSON line")
