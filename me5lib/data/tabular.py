"""Rows of a file that somebody made: CSV, JSON lines, Parquet. What cannot be read is named by its line, or refused.

    table = read(Path("faq.csv"))
    table.columns                  # ["question", "answer"]
    table.lines[0]                 # Line(number=2, fields={"question": "…", "answer": "…"}, surplus=())

A row is never guessed: a CSV's separator is the one under which most rows have the header's number of fields, quotes
are double ones, the text is UTF-8 (UTF-16 where its mark says so). A quote that does not close would swallow the rest
of the file, so it stops the reading; a row with too many fields is handed on with what was left over.

Cost: the file is held in memory; about 5 µs a row.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from me5lib.places import Me5Error

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 500  # ours: rows that decide on the separator
LONGEST = 2**31 - 1  # characters of a field; the csv module's own limit is 131,072


class Line(NamedTuple):
    """One row."""

    number: int  # line of the file where it begins; of Parquet, the row; both from 1
    fields: dict[str, Any]  # column → value; a column that the row lacks is absent
    surplus: tuple[str, ...] = ()  # fields beyond the header's: a separator stands in a text, and no field is sure


class Table(NamedTuple):
    """A file's rows, in order."""

    path: Path
    kind: str  # as "CSV with commas"
    unit: str  # what `Line.number` counts: "line" or "row"
    columns: list[str]
    lines: list[Line]


def read(path: Path, encoding: str = "utf8") -> Table:
    """The rows of a .csv, .tsv, .jsonl (.ndjson, .json) or .parquet file. Raises `Me5Error` that names the line."""
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise Me5Error(f"{path}: a file that ends in {', '.join(_READERS)} is wanted (a spreadsheet: save it as CSV)")
    if not path.is_file():
        raise Me5Error(f"there is no file {path}")
    table = _READERS[kind](path, encoding)
    if not table.lines:
        raise Me5Error(f"{path} has no rows")
    return table


def _csv(path: Path, encoding: str) -> Table:
    text = _decoded(path, encoding)
    csv.field_size_limit(LONGEST)
    separator = max(SEPARATORS, key=lambda one: _fit(text, one))
    records = _records(path, text, separator)
    columns = [name.strip() for name in next(records, (1, []))[1]]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise Me5Error(f"{path}: {len(twice)} column(s) come twice in line 1 ({', '.join(twice)}): rename one of each")
    lines = [Line(number, dict(zip(columns, fields, strict=False)), tuple(fields[len(columns) :]))
             for number, fields in records]
    return Table(path, f"CSV with {SEPARATORS[separator]}", "line", columns, lines)


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line at which each record begins, and its fields; lines without anything are no records."""
    reader, before = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 0
    try:
        for fields in reader:
            if fields:
                yield before + 1, fields
            before = reader.line_num
    except csv.Error as error:
        raise Me5Error(f"{path}: the row that begins in line {before + 1} cannot be read ({error}): close every "
                       'quote, and write a quote inside a quoted field twice ("")') from None


def _fit(text: str, separator: str) -> tuple[float, int]:
    """How well a separator fits: share of the first rows that have the header's number of fields, and that number."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    widths = [len(fields) for fields in itertools.islice(reader, LOOKED_AT) if fields]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return widths.count(widths[0]) / len(widths), widths[0]


def _json(path: Path, encoding: str) -> Table:
    text = _decoded(path, encoding)
    if text.lstrip().startswith("["):
        return _table_of(path, "JSON", list(enumerate(_loaded(path, text, 1), 1)), "row")
    rows = [(i, _loaded(path, line, i)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _table_of(path, "JSON lines", rows, "line")


def _loaded(path: Path, text: str, number: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = number + getattr(error, "lineno", 1) - 1
        raise Me5Error(f"{path}: line {where} is no JSON ({getattr(error, 'msg', error)})") from None


def _table_of(path: Path, kind: str, rows: list[tuple[int, Any]], unit: str) -> Table:
    if wrong := next((number for number, row in rows if not isinstance(row, dict)), None):
        raise Me5Error(f'{path}: {unit} {wrong} is no object as {{"query": "…", "positive": "…"}}')
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    return Table(path, kind, unit, columns, [Line(number, row) for number, row in rows])


def _parquet(path: Path, encoding: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Me5Error(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:160]})") from None
    return _table_of(path, "Parquet", list(enumerate(rows, 1)), "row")


def _decoded(path: Path, encoding: str) -> str:
    """The text of a file. Raises `Me5Error` that names the line which is not in this encoding."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Me5Error(f"{path} cannot be read ({error.strerror})") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        name = codecs.lookup(encoding).name
        return raw.decode("utf-8-sig" if name == "utf-8" else name)
    except LookupError:
        raise Me5Error(f"there is no encoding {encoding!r}: utf8, cp1252, shift_jis are some") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Me5Error(f"{path}: line {line} is not {encoding} (byte 0x{raw[error.start]:02x}): save the file as "
                       "UTF-8, or name its encoding (--encoding cp1252, for one from Excel)") from None


_READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _json, ".ndjson": _json, ".json": _json, ".parquet": _parquet}
