"""Your own file of queries and passages: read, checked, split, and described by a data card.

    corpus = read_corpus("faq.csv")               # columns guessed by common names, or (…, query="q", passage="a")
    print("\\n".join(corpus.lines()))              # what was taken, and what of it cannot be used
    corpus.labelled(), corpus.labelled("dev")     # what is trained on, what is kept out
    corpus.write(folder)                          # the card, the dev split, every row that is not used

`stages.finetune` trains on it as on a `corpus.Corpus`. A row is never guessed and nothing is dropped in silence: what
cannot be read is refused with its line, what cannot be used is counted by reason and written down. A row of several
positives becomes an example of each, and no positive of a query is ever a negative of it.

Cost: some 0.2 ms a row (`split.clusters`); the file is held in memory.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from scipy import sparse
from scipy.sparse import csgraph

from me5lib.data import cards, split
from me5lib.data import text as cleaning
from me5lib.data.corpus import RetrievalSet
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, text_key

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 500  # ours: lines that decide on the separator
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no UTF-8 file can hold
SURPLUS = "…"  # key of a row's fields beyond the header's: a separator stands in a text, and no field is sure

# Names that columns commonly have, the likeliest first; case and the sign between words do not matter.
QUERY = ("query", "queries", "question", "questions", "anchor", "q")
PASSAGE = ("positive", "positives", "passage", "passages", "answer", "answers", "document", "documents", "pos", "doc")
NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_passages?)?_?\d*")
LANGUAGE = ("language", "lang", "locale")
PROMPTS = {"query": "query: ", "passage": "passage: ", "document": "passage: "}  # mE5's own
UNKNOWN = "und"  # ISO 639's code of a language that nobody said
NO_PAGE = "https://me5.invalid/your-own-file"  # `.invalid` is reserved: a card has an address, such a file has none

DEV_SHARE = 0.1  # ours: of the queries; what is left out teaches nothing, and fewer measure nothing
LEAST_DEV, MOST_DEV = 20, 1_000  # ours: queries; of a small file a quarter at most, of a large one no more are needed
LEAST_QUERIES = 8  # ours: fewer cannot be split into two parts that say anything
MOST_PASSAGES = 10_000  # ours: that a dev query is searched among: a minute or two of a small model on a CPU

REASONS = {  # why a row, or a part of one, is not used
    "fields": "more fields than the header",
    "text": "a value that is no text, or a query that is a list",
    "query": "no query",
    "passage": "no positive passage",
    "itself": "a positive passage that repeats its query",
    "duplicate": "the query and passage of an earlier row (negatives are kept)",
    "both": "a negative that is a positive of its query (the negative is left out)",
    "asked": "a negative that repeats its query (the negative is left out)",
    "language": f"a language that is not known (the row is used, its language `{UNKNOWN}`)",
    "half": "half a character, a lone surrogate (U+FFFD stands in its place)",
}
CHAINED = ("near-copies chain most queries of this file together, so the split goes by exact text and shared passages "
           "alone: dev figures flatter whoever has learnt a near-copy")
PROSE = ("Written by `me5 finetune --data` from what the file itself says. The rest is for you to fill in: whose texts "
         "these are, under which licence, who translated them, and what is wrong with them.")

FileRows = list[tuple[int, dict[str, Any]]]  # the line or row where each begins, and its fields by column


class ColumnRoles(NamedTuple):
    """Which column holds what."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()
    language: str | None = None
    beside: tuple[str, ...] = ()  # further columns that could have been the query or the passage

    def __str__(self) -> str:
        negatives, beside = (", ".join(map(repr, names)) for names in (self.negatives, self.beside))
        return (f"query = {self.query!r}, passage = {self.passage!r}, negatives = {negatives or 'none'}, "
                f"language = {repr(self.language) if self.language else 'none'}"
                + (f" (not taken: {beside})" if beside else ""))


class Unused(NamedTuple):
    """Something of the file that is not used: `why` is a key of `REASONS`."""

    number: int  # line or row
    why: str
    content: Any  # the row as it was read, or the text


@dataclass
class OwnCorpus(cards.CardTexts):
    """The examples of one file, and what of it is not used. Lines are counted from 1, as are rows of a JSON list."""

    name: str  # the file's, as the name of a source: small letters, digits and dashes
    path: Path
    kind: str  # as "CSV with commas"
    unit: str  # what is counted: "line" or "row"
    size: int  # rows
    columns: ColumnRoles
    rows: list[Labelled]  # an example for each query and positive, in the file's order
    unused: list[Unused]
    symmetric: bool = False
    instruction: str = ""  # of an instruct model, which has other `prompts`
    prompts: dict[str, str] = field(default_factory=PROMPTS.copy)

    @cached_property
    def _split(self) -> tuple[np.ndarray, bool]:
        try:
            return dev_split(self.rows)
        except Me5Error as error:
            raise Me5Error("; ".join([f"{self.path.name}: {error}", *self.reasons()])) from None

    @property
    def dev(self) -> np.ndarray:
        """Which examples are kept out: bool [rows]. Raises `Me5Error` where there are too few queries to split."""
        return self._split[0]

    def prefixes(self, source: str = "") -> tuple[str, str]:
        """What is put before queries and passages: of a symmetric task that of queries on both (the authors' card)."""
        return self.prompts["query"], self.prompts["query" if self.symmetric else "passage"]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits."""
        known = [self.prefixes(), self.dev.tolist(), self.rows]
        return hashlib.blake2b(json.dumps(known).encode("utf8"), digest_size=8).hexdigest()

    def labelled(self, part: str = "stage 2") -> list[Labelled]:
        """The examples to train on; `part="dev"`: those kept out."""
        return [row for row, out in zip(self.rows, self.dev, strict=True) if out == (part == "dev")]

    def retrieval(self, most: int = MOST_PASSAGES) -> RetrievalSet:
        """The dev queries and the passages that they are searched among: of the whole file, the right ones in any case.

        In the order of a hash, so that equal scores favour nobody.
        """
        queries, relevant = {}, defaultdict(set)
        for row in self.labelled("dev"):
            key = str(text_key(row.query))
            queries[key] = row.query
            relevant[key] |= {str(text_key(text)) for text in row.positives}
        positives = set().union(*relevant.values())
        texts = {str(text_key(text)): text for row in self.rows for text in (*row.positives, *row.negatives)}
        kept = sorted(texts, key=lambda key: (key not in positives, int(key)))[: max(most, len(positives))]
        return RetrievalSet(queries, {key: ("", texts[key]) for key in sorted(kept, key=int)}, dict(relevant))

    @property
    def unused_lines(self) -> dict[str, list[int]]:
        """Key of `REASONS` → the lines (or rows) in which it was met, in the file's order."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for each in self.unused:
            numbers[each.why].append(each.number)
        return dict(numbers)

    def reasons(self) -> list[str]:
        """For each reason not to use something, how often it was met, and in which lines first."""
        found = self.unused_lines
        return [f"not used: {len(met):,} × {words} ({self.unit} {', '.join(map(str, met[:5]))}"
                + " …" * (len(met) > 5) + ")" for why, words in REASONS.items() if (met := found.get(why))]

    def lines(self) -> list[str]:
        """What was read, in words: one line what was taken, one what came of it, one for each reason not to."""
        queries, dev = ({text_key(row.query) for row in rows} for rows in (self.rows, self.labelled("dev")))
        return [f"{self.path.name}: {self.size:,} rows ({self.kind}); {self.columns}",
                f"{len(self.rows):,} examples of {len(queries):,} queries; {len(dev):,} queries are kept out (dev)",
                *self.reasons(), *[CHAINED] * self._split[1]]

    def card(self) -> cards.Card:
        """The data card of this file, by the schema of `data_cards`."""
        met = self.unused_lines
        queries = len({row.query for row in self.labelled("dev")})
        dev = f"{queries:,} queries, by hash; near-copies and queries of one passage stay together"
        return cards.Card(
            name=self.name, title=f"your own file {self.path.name}", role="train and evaluate", homepage=NO_PAGE,
            licence="not stated: write it here", translated_by="not stated: write it here",
            languages=sorted({row.language for row in self.rows}), pair=str(self.columns),
            query_prefix="query: ", passage_prefix="query: " if self.symmetric else "passage: ",
            instruction=self.instruction or None, faults=["nobody has looked for faults yet: write them here"],
            counts={"labelled": len(self.rows), "dev": int(self.dev.sum()),
                    **{f"dropped: {words}": len(met[why]) for why, words in REASONS.items() if why in met}},
            ours={"dev": CHAINED if self._split[1] else dev}, prose=PROSE,
        )  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Put the card, the dev split and what is not used into `folder`: the card's path."""
        folder.mkdir(parents=True, exist_ok=True)
        card, path = self.card(), folder / f"{self.name}.md"
        front = yaml.safe_dump(card.model_dump(exclude={"prose"}, exclude_defaults=True), sort_keys=False,
                               allow_unicode=True, width=110)
        path.write_text(f"---\n{front}---\n\n{card.prose}\n", encoding="utf8")
        unused = [{self.unit: number, "why": REASONS[why], "content": content} for number, why, content in self.unused]
        dev = [row._asdict() for row in self.labelled("dev")]
        for name, rows in (("dev.jsonl", dev), ("not-used.jsonl", unused)):
            lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            (folder / name).write_text(lines, encoding="utf8")
        return path


def read_corpus(path: str | Path, *, query: str = "", passage: str = "", negatives: Sequence[str] = (),
                language: str = "", encoding: str = "utf8", symmetric: bool = False) -> OwnCorpus:
    """The examples of a CSV, JSON lines or Parquet file; columns that are not named are guessed (`choose_columns`).

    A value is a text, or (not in CSV) a list of texts. `symmetric`: both sides are queries, as of duplicate questions.
    Raises `Me5Error`: a file that cannot be read (naming the line), columns that are not there.
    """
    path = Path(path).expanduser()
    kind, unit, rows = read_table(path, encoding)
    rows, unused = _repair(rows)
    columns = choose_columns(path.name, rows, query, passage, negatives, language)
    name = re.sub(r"\W+", "-", path.stem.casefold()).strip("-_") or "own"
    return OwnCorpus(name, path, kind, unit, len(rows), columns, make_examples(rows, columns, name, unused),
                     sorted(unused, key=lambda each: (each.number, each.why)), symmetric)


def _named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those columns that have one of `names`, the likeliest first."""
    return [column for name in names for column in columns if _column_key(column) == name]


def _column_key(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def choose_columns(file: str, rows: FileRows, query: str, passage: str, negatives: Sequence[str],
                   language: str) -> ColumnRoles:
    """The columns: as named, else by common names. Raises `Me5Error` with those that there are."""
    columns = list(dict.fromkeys(name for _, fields in rows for name in fields if name != SURPLUS))
    there = f"{file} has the columns {', '.join(map(repr, columns))}"
    if missing := [name for name in (query, passage, *negatives, language) if name and name not in columns]:
        raise Me5Error(f"no column {missing[0]!r}: {there}")
    queries = [query] if query else _named(columns, QUERY)
    passages = [passage] if passage else [name for name in _named(columns, PASSAGE) if name != query]
    if not queries or not passages:
        side = "passage" if queries else "query"
        raise Me5Error(f"which column is the {side}? {there}: name it with --{side}-column ({side}=… in Python)")
    wrong = tuple(negatives) or tuple(name for name in columns if NEGATIVE.fullmatch(_column_key(name)))
    languages = [language] if language else _named(columns, LANGUAGE)[:1]
    taken = [queries[0], passages[0], *wrong, *languages]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise Me5Error(f"the column {twice[0]!r} cannot be two things: {there}")
    beside = tuple(name for name in (*queries, *passages) if name not in taken)
    return ColumnRoles(queries[0], passages[0], wrong, *(languages or [None]), beside)


def _repair(rows: FileRows) -> tuple[FileRows, list[Unused]]:
    """The rows with U+FFFD for each surrogate that stands alone; and which of them had one."""
    whole, unused = [], []
    for number, fields in rows:
        text = json.dumps(fields, ensure_ascii=False, default=str)
        if SURROGATE.search(text):
            fields = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
            unused.append(Unused(number, "half", fields))
        whole.append((number, fields))
    return whole, unused


def make_examples(rows: FileRows, columns: ColumnRoles, source: str, unused: list[Unused]) -> list[Labelled]:
    """An example for each query and positive of the file, in its order; what of it is not used goes to `unused`."""
    read = [(number, _row_texts(number, fields, columns, source, unused)) for number, fields in rows]
    positives: dict[int, dict[int, str]] = defaultdict(dict)  # key of a query → its positives by key
    for _, row in read:
        for text in row.positives:
            positives[text_key(row.query)].setdefault(text_key(text), text)
    made: dict[tuple[int, int], tuple[Labelled, dict[int, str]]] = {}  # keys of query, positive → first row, negatives
    for number, row in read:
        query, hard = text_key(row.query), {}
        for text in row.negatives:
            key = text_key(text)
            if key == query or key in positives[query]:
                unused.append(Unused(number, "asked" if key == query else "both", text))
            else:
                hard.setdefault(key, text)
        for text in row.positives:
            pair = query, text_key(text)
            if pair in made:
                unused.append(Unused(number, "duplicate", [row.query, text]))
            _, known = made.setdefault(pair, (row, {}))
            known |= {key: text for key, text in hard.items() if key not in known}
    examples = []
    for (query, positive), (row, hard) in made.items():
        others = [text for key, text in positives[query].items() if key != positive]
        examples.append(row._replace(positives=(positives[query][positive], *others), negatives=tuple(hard.values())))
    return examples


def _row_texts(number: int, fields: dict[str, Any], columns: ColumnRoles, source: str,
               unused: list[Unused]) -> Labelled:
    """The row's texts as they stand; without positives, and why in `unused`, where it makes no example."""
    names = columns.query, columns.passage, *columns.negatives, columns.language
    queries, passages, *wrong, said = [_field_texts(fields.get(name)) for name in names]
    usable = [text for text in passages or [] if text_key(text) != text_key("".join(queries or []))]
    why = ("fields" if SURPLUS in fields else "text" if None in (queries, passages, *wrong) or len(queries) > 1 else
           "query" if not queries else "passage" if not passages else "itself" if not usable else "")
    if why:
        unused.append(Unused(number, why, fields))
        return Labelled("", (), (), source, UNKNOWN)
    language = said[0] if said else ""
    code = cleaning.resolve_language(language)
    negatives = tuple(text for texts in wrong for text in texts)
    unused += [Unused(number, "itself", text) for text in passages if text not in usable]
    unused += [Unused(number, "language", language)] * bool(language and not code)
    return Labelled(queries[0], tuple(usable), negatives, source, code or UNKNOWN)


def _field_texts(value: Any) -> list[str] | None:
    """The texts in a field, stripped, without empty ones; None where it holds something else. Numbers are texts."""
    if isinstance(value, list | tuple):
        parts = [_field_texts(each) for each in value]
        return None if None in parts else [text for part in parts for text in part]
    if not isinstance(value, str | int | float | None):
        return None
    text = "" if value is None or value != value else str(value).strip()  # NaN is unlike itself
    return [text] if text else []


def dev_split(rows: Sequence[Labelled]) -> tuple[np.ndarray, bool]:
    """Which rows are kept out: bool [rows]; and whether near-copies chain so much that only exact text could decide.

    Raises `Me5Error` where there are too few queries, or all of them share their passages.
    """
    keys = np.array([text_key(row.query) for row in rows], dtype=np.int64)
    queries = len(set(keys.tolist()))
    if queries < LEAST_QUERIES:
        raise Me5Error(f"{queries} queries with a passage are too few: {LEAST_QUERIES} at least are needed to keep "
                       "some out")
    size = min(MOST_DEV, max(round(DEV_SHARE * queries), min(LEAST_DEV, queries // 4)))
    for near in (True, False):
        dev = _whole_groups(rows, _linked_groups(rows, keys, near), size)
        if len(set(keys[dev].tolist())) >= max(1, size // 2):
            return dev, not near
    raise Me5Error("no dev split can be made: the queries share their passages, so that nearly all of them hang "
                   "together; is the passage column a label?")


def _linked_groups(rows: Sequence[Labelled], keys: np.ndarray, near: bool) -> np.ndarray:
    """The group of each row, int64 [rows]: rows of one query, of near queries, and of one passage share it."""
    query = split.clusters([row.query for row in rows]) if near else np.unique(keys, return_inverse=True)[1]
    passage = np.unique([text_key(row.positives[0]) for row in rows], return_inverse=True)[1] + query.max() + 1
    nodes = int(passage.max()) + 1  # every row joins its query to its passage
    links = sparse.coo_matrix((np.ones(len(rows)), (query, passage)), shape=(nodes, nodes))
    return csgraph.connected_components(links, directed=False)[1][query]


def _whole_groups(rows: Sequence[Labelled], group: np.ndarray, size: int) -> np.ndarray:
    """Whole groups, by the hash of their first query in the alphabet, until there are `size` queries: bool [rows]."""
    members: dict[int, dict[int, str]] = defaultdict(dict)
    for row, number in zip(rows, group.tolist(), strict=True):
        members[number].setdefault(text_key(row.query), row.query)
    chosen, room = [], size
    for number in sorted(members, key=lambda number: split.fraction(min(map(split.mask, members[number].values())))):
        if len(members[number]) <= room:
            chosen.append(number)
            room -= len(members[number])
    return np.isin(group, chosen)


def read_table(path: Path, encoding: str = "utf8") -> tuple[str, str, FileRows]:
    """The kind of a .csv, .tsv, .jsonl (.ndjson, .json) or .parquet file, what counts its rows, and these.

    Raises `Me5Error` that names the line which cannot be read.
    """
    readers = {".csv": _csv_file, ".tsv": _csv_file, ".jsonl": _json_file, ".ndjson": _json_file, ".json": _json_file,
               ".parquet": _parquet_file}
    if path.suffix.lower() not in readers:
        raise Me5Error(f"{path}: a file that ends in {', '.join(readers)} is wanted (a spreadsheet: save it as CSV)")
    if not path.is_file():
        raise Me5Error(f"there is no file {path}")
    try:
        kind, unit, rows = readers[path.suffix.lower()](path, encoding)
    except RecursionError:
        raise Me5Error(f"{path} cannot be read: lists or objects are nested too deeply in it") from None
    if not rows:
        raise Me5Error(f"{path} has no rows")
    if all(isinstance(row, list) and len(row) > 1 for _, row in rows):  # as pairs and triples are commonly written
        rows = [(number, {"query": row[0], "positive": row[1], "negatives": row[2:]}) for number, row in rows]
    if wrong := next((number for number, row in rows if not isinstance(row, dict)), None):
        raise Me5Error(f'{path}: {unit} {wrong} is no object as {{"query": "…", "positive": "…"}}')
    return kind, unit, rows


def read_texts(path: Path, column: str = "text", encoding: str = "utf8") -> list[str]:
    """The lines of a .txt file; of any other (`read_table`) the texts in a column, a row each. Raises `Me5Error`."""
    if path.suffix.lower() == ".txt":
        return _decode(path, encoding).removesuffix("\n").replace("\r\n", "\n").split("\n")
    _, unit, rows = read_table(path, encoding)
    if wrong := next((number for number, row in rows if not isinstance(row.get(column), str)), None):
        raise Me5Error(f"{path}: {unit} {wrong} has no text in the column {column!r}: name another with --column")
    return [row[column] for _, row in rows]


def _decode(path: Path, encoding: str) -> str:
    """The text of a file. Raises `Me5Error` that names the line which is not in this encoding."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Me5Error(f"{path} cannot be read ({error.strerror})") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        name = codecs.lookup(encoding).name
        return raw.decode("utf-8-sig" if name == "utf-8" else name, "surrogatepass")  # see `_repair`
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Me5Error(f"{path}: line {line} is not {encoding} (byte 0x{raw[error.start]:02x}): save the file as "
                       "UTF-8, or name its encoding (--encoding cp1252, for one from Excel)") from None
    except (LookupError, UnicodeError):  # the latter of those for other things than files, as host names
        raise Me5Error(f"there is no encoding {encoding!r} of files: utf8, cp1252, shift_jis are some") from None


def _csv_file(path: Path, encoding: str) -> tuple[str, str, FileRows]:
    text = _decode(path, encoding).replace("\r\n", "\n").replace("\r", "\n")
    separator = max(SEPARATORS, key=lambda one: _separator_fit(text, one))
    (_, header), *lines = _csv_rows(path, text, separator) or [(1, [])]
    names = [name.strip() for name in header]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise Me5Error(f"{path}: {len(twice)} column(s) come twice in line 1 ({', '.join(twice)}): rename one of each")
    while names and not names[-1]:  # separators at the end of the header
        names.pop()
    rows = []
    for number, values in lines:
        fields = {name: value for name, value in zip_longest(names, values[: len(names)], fillvalue="") if name}
        surplus = values[len(names):]
        rows.append((number, fields | ({SURPLUS: surplus} if any(map(str.strip, surplus)) else {})))
    return f"CSV with {SEPARATORS[separator]}", "line", rows


def _separator_fit(text: str, separator: str) -> tuple[float, int]:
    """How well a separator fits: share of the rows that have the header's number of fields, and that number."""
    head, best = text.split("\n", LOOKED_AT)[:LOOKED_AT], (0.0, 0)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader([line + "\n" for line in head], delimiter=separator, quoting=quoting)
        widths = [len(fields) for fields in reader if fields]
        if widths and widths[0] > 1:
            best = max(best, (widths.count(widths[0]) / len(widths), widths[0]))
    return best


def _records(text: str, separator: str, quoting: int) -> list[tuple[int, list[str]]]:
    """The line at which each row begins, and its fields. Raises `csv.Error` that is the line of quotes not closed."""
    csv.field_size_limit(2**31 - 1)
    reader, rows, start = csv.reader(io.StringIO(text), delimiter=separator, quoting=quoting, strict=True), [], 1
    try:
        for fields in reader:
            rows += [(start, fields)] if fields else []  # an empty line is no row
            start = reader.line_num + 1
    except csv.Error:
        raise csv.Error(start) from None
    return rows


def _csv_rows(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The rows of a CSV text by the standard's quotes; or with every quote a sign of its text, where only that gives
    all rows the header's number of fields.

    A quote at the start of a sentence and another at the end of one, rows later, would swallow the rows between them.
    So where most further lines of a quoted text look like rows, and no other text of the file needs its quotes, the
    file is refused. Raises `Me5Error` that names the line for this, and for quotes that close nowhere.
    """
    bare = _records(text, separator, csv.QUOTE_NONE)
    even = all(len(fields) == len(bare[0][1]) for _, fields in bare)
    if '"' not in text:
        return bare
    try:
        rows = _records(text, separator, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if even:
            return bare
        raise Me5Error(f"{path}: the row that begins in line {error} cannot be read: a quote in it closes nowhere: "
                       'close every quote, and write a quote inside a quoted field twice ("")') from None
    if even and any(len(fields) != len(rows[0][1]) for _, fields in rows):
        return bare
    doubtful = {number for number, fields in rows[1:] if _swallows(fields, separator, rows[0][1], text[:1] == '"')}
    needed = any(re.search(rf"[{separator}\n]", field) for number, fields in rows if number not in doubtful
                 for field in fields)
    if doubtful and not needed:
        raise Me5Error(f"{path}: the row that begins in line {min(doubtful)} can be read in two ways: its quote closes "
                       "in a later line, and these lines can be rows: if it is one text, put quotes around all fields "
                       "of the file, the header's too; else remove the quote")
    return rows


def _swallows(fields: Sequence[str], separator: str, header: Sequence[str], quoted: bool) -> bool:
    """Whether the first line and most further lines of a row of several look like rows: with the header's fields, and
    the further ones with a quote first where the header has one, no indent, and no space behind a separator (prose)."""
    first, *further = separator.join(fields).split("\n")
    alike = 0
    for line in further:
        parts = line.split(separator)
        alike += (len(parts) == len(header) and not any(part[:1] == " " for part in parts)
                  and (not quoted or line[:1] == '"'))
    return 2 * alike > len(further) and first.count(separator) == len(header) - 1


def _json_file(path: Path, encoding: str) -> tuple[str, str, FileRows]:
    text, number = _decode(path, encoding), 1
    try:
        try:
            return "JSON", "row", list(enumerate(_rows_of(path, json.loads(text)), 1))
        except ValueError as error:  # more than one value: JSON lines
            if text.lstrip().startswith("[") and getattr(error, "msg", "") != "Extra data":
                raise
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            rows += [(number, json.loads(line))] if line.strip() else []
        return "JSON lines", "line", rows
    except ValueError as error:
        line = number + getattr(error, "lineno", 1) - 1
        raise Me5Error(f"{path}: line {line} is no JSON ({getattr(error, 'msg', error)})") from None


def _rows_of(path: Path, document: Any) -> list[Any]:
    """The rows of a JSON document: the members of a list, or of the one list of objects in an object that is no row by
    its names; columns of one length (lists, or objects by row as pandas has them) side by side; else the document is a
    row. Raises `Me5Error` for several lists of objects."""
    if isinstance(document, list):
        return document
    values = list(document.values()) if isinstance(document, dict) else []
    tables = [held for held in values if isinstance(held, list) and held and all(isinstance(row, dict) for row in held)]
    if tables and not (_named(document, QUERY) and _named(document, PASSAGE)):
        if len(tables) > 1:
            lists = ", ".join(repr(name) for name, held in document.items() if held in tables)
            raise Me5Error(f"{path} holds several lists of rows ({lists}): save the one that is wanted as its own file")
        return tables[0]
    values = [list(held.values()) if isinstance(held, dict) else held for held in values]
    if len(values) > 1 and all(isinstance(held, list) and len(held) == len(values[0]) for held in values):
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    return [document]


def _parquet_file(path: Path, encoding: str) -> tuple[str, str, FileRows]:
    try:
        return "Parquet", "row", list(enumerate(pq.ParquetFile(path).read().to_pylist(), 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Me5Error(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:160]})") from None
