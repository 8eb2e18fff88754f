"""Rows of a file that somebody made: CSV, JSON lines, Parquet. What cannot be read is named by its line, or refused.

    table = read(Path("faq.csv"))
    table.columns                  # ["question", "answer"]
    table.lines[0]                 # Line(number=2, fields={"question": "…", "answer": "…"}, surplus=())

A row is never guessed. A CSV's separator is the one under which most rows have the header's number of fields; the text
is UTF-8 (UTF-16 where its mark says so); half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD. Quotes are
double ones, around a whole field; see `_Quotes` for those that close in another line than they open in.
A row with too many fields is handed on with what was left over.

Cost: the file is held in memory; about 10 µs a row.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from me5lib.io import Me5Error

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 500  # ours: lines that decide on the separator
THOUSANDS = re.compile(r"(?<!\d)\d{1,3},\d{3}(?!\d)")
SURE_ROWS, ROWS_ALIKE = 8, 4  # ours: fewer rows do not tell how long rows are, fewer lines not that they are rows
# Names that columns commonly have, the likeliest first; case and the sign between words do not matter.
QUERY = ("query", "queries", "question", "questions", "anchor", "q")
PASSAGE = ("positive", "positives", "passage", "passages", "answer", "answers", "document", "documents", "pos", "doc")
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


class Line(NamedTuple):
    """One row."""

    number: int  # line of the file where it begins; of Parquet, the row; both from 1
    fields: dict[str, Any]  # column → value; a column that the row lacks is absent
    surplus: tuple[str, ...] = ()  # fields beyond the header's: a separator stands in a text, and no field is sure
    mended: bool = False  # whether U+FFFD stands in for half a surrogate pair


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
    try:
        table = _READERS[kind](path, encoding)
    except RecursionError:
        raise Me5Error(f"{path} cannot be read: lists or objects are nested too deeply in it") from None
    if not table.lines:
        raise Me5Error(f"{path} has no rows")
    return table


def plain(name: str) -> str:
    """A column's name without case, with "_" between its words."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those columns that have one of `names`, the likeliest first."""
    return [column for name in names for column in columns if plain(column) == name]


def _csv(path: Path, encoding: str) -> Table:
    text = _decoded(path, encoding).replace("\r\n", "\n").replace("\r", "\n")
    head = "\n".join(text.split("\n", LOOKED_AT)[:LOOKED_AT])
    separator = max(SEPARATORS, key=lambda one: _fit(head, one))
    records = _Quotes(text, separator).read(path)
    columns = [_whole(name).strip() for name in (records[0][1] if records else [])]
    while columns and not columns[-1]:  # separators at the end of the header
        columns.pop()
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise Me5Error(f"{path}: {len(twice)} column(s) come twice in line 1 ({', '.join(twice)}): rename one of each")
    lines = [_line(number, {name: text for name, text in zip(columns, fields, strict=False) if name},
                   fields[len(columns):]) for number, fields in records[1:]]
    return Table(path, f"CSV with {SEPARATORS[separator]}", "line", [name for name in columns if name], lines)


def _fit(text: str, separator: str) -> tuple[float, int]:
    """How well a separator fits: share of the rows that have the header's number of fields, and that number."""
    widths = [len(fields) for _, fields in _Quotes(text, separator).records()]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return widths.count(widths[0]) / len(widths), widths[0]


class _Quotes:
    """The rows of a CSV text by one separator.

    A field is quoted where it begins with a quote and a quote before a separator or a line's end closes it. Where that
    is in another line, it may be a text of several lines; or a sentence that opens with a quote and another, rows
    later, that ends with one. It is the latter where most of the further lines look like rows of their own; `_signs`
    decides on these if all rows have the header's number of fields under the former. Quotes that close nowhere, or
    there, are signs like others where no field of the file needs quotes; else the file is refused.
    """

    def __init__(self, text: str, separator: str) -> None:
        self.text, self.separator = text, separator
        self.bare = re.compile(rf"[^{re.escape(separator)}\n]*+")
        self.quoted = re.compile(rf'"(?:[^"]++|"")*+"(?=[{re.escape(separator)}\n]|\Z)')
        self.header, _ = self._fields(text)
        self.needed = False  # a field that cannot be read without its quotes
        self.unclosed: list[int] = []  # lines of rows with a quote that does not close in its row

    def read(self, path: Path) -> list[tuple[int, list[str]]]:
        """The line at which each row begins, and its fields. Raises `Me5Error` for quotes whose meaning is not sure."""
        rows = list(self.records(standard=True))
        if (any(len(fields) != len(self.header) or any(map(self._open, fields)) for _, fields in rows)
                or self._signs(path, rows)):
            rows = list(self.records())
            if self.unclosed and self.needed:
                raise Me5Error(f"{path}: the row that begins in line {self.unclosed[0]} cannot be read: no quote, or "
                               "only one in what looks like another row, closes one that opens in it, and other texts "
                               'are quoted: close every quote, and write a quote inside a quoted field twice ("")')
        return [(number, [field[1:-1].replace('""', '"') if self._closed(field) else field for field in fields])
                for number, fields in rows]

    def _signs(self, path: Path, rows: list[tuple[int, list[str]]]) -> bool:
        """Whether the quotes around lines that look like rows are signs: no other field needs its quotes, and most of
        these lines are as long as the other rows, column by column; they are quotes where none is in any column.
        Raises `Me5Error` where it is not sure."""
        doubts = {number: text for number, fields in rows[1:] if self._alone(text := self.separator.join(fields))}
        sure = [fields for number, fields in rows if number not in doubts]
        if not doubts or any(self._closed(field) and re.search(rf'[{self.separator}\n]|""', field[1:-1])
                             for fields in sure for field in fields):
            return False
        lengths = [{len(field) for field in column} for column in zip(*sure[1:], strict=True)]
        within = [[min(known) <= len(field) <= max(known)
                   for field, known in zip(line.split(self.separator), lengths, strict=False)]
                  for text in doubts.values() for line in text.split("\n")[1:]]
        alike = sum(map(all, within))
        if len(sure) > SURE_ROWS and (not any(map(any, within)) or alike >= max(ROWS_ALIKE, len(within) / 2)):
            return alike > 0
        raise Me5Error(f"{path}: the row that begins in line {min(doubts)} can be read in two ways: its quote closes "
                       "in a later line, and these lines can be rows: if it is one text, put quotes around all fields "
                       "of the file, the header's too; else remove the quote")

    def records(self, standard: bool = False) -> Iterator[tuple[int, list[str]]]:
        """The line at which each row begins, and its fields, quotes and all; afterwards `needed` and `unclosed` tell of
        the quotes. `standard`: all that open a field and are closed quote it."""
        at, number = 0, 1
        while at < len(self.text):
            fields, after = self._fields(self.text, at)
            if not standard and at and (line := self._alone(self.text[at:after])) is not None:
                fields, after = self._fields(line)[0], at + len(line)
            if not standard and any(field[:1] == '"' for field in fields):
                fields = self._judged(fields, self.text[at:after], number)
            if fields != [""]:  # an empty line is no row
                yield number, fields
            number += self.text.count("\n", at, after) + 1
            at = after + 1

    def _closed(self, field: str) -> bool:
        return field[:1] == '"' and self.quoted.fullmatch(field) is not None

    def _open(self, field: str) -> bool:
        return field[:1] == '"' and not self._closed(field)

    def _fields(self, text: str, at: int = 0, quotes: bool = True) -> tuple[list[str], int]:
        """The fields of the row of `text` that begins at `at`, quotes and all, and where it ends."""
        found = []
        while True:
            match = quotes and self.quoted.match(text, at) or self.bare.match(text, at)
            found.append(match[0])
            at = match.end()
            if text[at : at + 1] != self.separator:
                return found, at
            at += 1

    def _alone(self, text: str) -> str | None:
        """The first line of a row of several lines, where it is a row alone: most of the others look like rows, too."""
        line, *others = text.split("\n")
        like = [self._like_row(other) for other in others]
        return line if len(self._fields(line)[0]) <= len(self.header) and 2 * sum(like) > len(like) else None

    def _like_row(self, line: str) -> bool:
        """Whether a line has the header's fields, a quote first where the header has one, no open quote, no indent, and
        no comma of prose: with a space behind it where the header has none, or one of thousands."""
        fields, header = self._fields(line)[0], self.header
        opened = any(map(self._open, fields)) or not line[:1].strip(self.separator + " \t")
        spaced = not any(name[:1] == " " for name in header[1:])
        prose = any(spaced and right[:1] == " " or THOUSANDS.search(left[-4:] + self.separator + right[:4])
                    for left, right in itertools.pairwise(fields))
        quoted = header[0][:1] != '"' or line[:1] == '"'
        return len(fields) == len(header) and quoted and not opened and not prose

    def _judged(self, fields: list[str], text: str, number: int) -> list[str]:
        """The fields, or what they are without quotes where only that gives the header's number; notes what they tell.
        """
        bare, stop = self._fields(text, quotes=False)
        if stop == len(text) and len(bare) == len(self.header) != len(fields):
            return bare
        closed = [field for field in fields if self._closed(field)]
        if any(map(self._open, fields)):
            self.unclosed.append(number)
        self.needed |= stop < len(text) or bool(closed) and (
            len(bare) != len(fields) or any('""' in field[1:-1] for field in closed))
        return fields


def _json(path: Path, encoding: str) -> Table:
    text = _decoded(path, encoding)
    try:
        whole = json.loads(text)
    except ValueError as error:  # more than one value: JSON lines
        if text.lstrip().startswith("[") and getattr(error, "msg", "") != "Extra data":
            raise _no_json(path, 1, error) from None
        rows = [(i, _loaded(path, line, i)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        return _table_of(path, "JSON lines", rows, "line")
    return _table_of(path, "JSON", list(enumerate(_rows_of(path, whole), 1)), "row")


def _rows_of(path: Path, document: Any) -> list[Any]:
    """The rows of a JSON document: the members of a list, or of the one list of objects in an object that is no row by
    its names; columns of one length (lists, or objects by row as pandas has them) side by side; else the document is a
    row. Raises `Me5Error` for several lists of objects."""
    if isinstance(document, list):
        return document
    values = list(document.values()) if isinstance(document, dict) else []
    tables = [held for held in values if isinstance(held, list) and held and all(isinstance(row, dict) for row in held)]
    if tables and not (named(document, QUERY) and named(document, PASSAGE)):
        if len(tables) > 1:
            lists = ", ".join(repr(name) for name, held in document.items() if held in tables)
            raise Me5Error(f"{path} holds several lists of rows ({lists}): save the one that is wanted as its own file")
        return tables[0]
    if len(values) > 1 and all(isinstance(held, dict) and held.keys() == values[0].keys() for held in values):
        values = [list(held.values()) for held in values]
    if len(values) > 1 and all(isinstance(held, list) and len(held) == len(values[0]) for held in values):
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return [document]


def _loaded(path: Path, text: str, number: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _no_json(path, number, error) from None


def _no_json(path: Path, number: int, error: ValueError) -> Me5Error:
    where = number + getattr(error, "lineno", 1) - 1
    return Me5Error(f"{path}: line {where} is no JSON ({getattr(error, 'msg', error)})")


def _table_of(path: Path, kind: str, rows: list[tuple[int, Any]], unit: str) -> Table:
    if all(isinstance(row, list) and len(row) > 1 for _, row in rows):  # as pairs and triples are commonly written
        rows = [(number, {"query": row[0], "positive": row[1], "negatives": row[2:]}) for number, row in rows]
    if wrong := next((number for number, row in rows if not isinstance(row, dict)), None):
        raise Me5Error(f'{path}: {unit} {wrong} is no object as {{"query": "…", "positive": "…"}}')
    lines = [_line(number, row) for number, row in rows]
    return Table(path, kind, unit, list(dict.fromkeys(name for line in lines for name in line.fields)), lines)


def _line(number: int, fields: dict[str, Any], surplus: list[str] | tuple = ()) -> Line:
    """A row; surplus fields that are all empty are none."""
    given = fields, tuple(surplus) if any(map(str.strip, surplus)) else ()
    whole = _whole(given)
    return Line(number, *whole, mended=whole != given)


def _whole(value: Any) -> Any:
    """The same with U+FFFD for each half of a surrogate pair that stands alone, in all texts and names of columns."""
    if isinstance(value, str):
        if value.isascii() or not HALF.search(value):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {_whole(name): _whole(held) for name, held in value.items()}
    return type(value)(map(_whole, value)) if type(value) in (list, tuple) else value


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
        return raw.decode("utf-8-sig" if name == "utf-8" else name, "surrogatepass")  # see `_whole`
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Me5Error(f"{path}: line {line} is not {encoding} (byte 0x{raw[error.start]:02x}): save the file as "
                       "UTF-8, or name its encoding (--encoding cp1252, for one from Excel)") from None
    except (LookupError, UnicodeError):  # the latter of those for other things than files, as host names
        raise Me5Error(f"there is no encoding {encoding!r} of files: utf8, cp1252, shift_jis are some") from None


_READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _json, ".ndjson": _json, ".json": _json, ".parquet": _parquet}
