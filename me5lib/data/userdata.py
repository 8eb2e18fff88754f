"""Your own data: a file of queries and passages becomes a corpus of stage 2, with a dev split and a data card.

    corpus = read("faq.csv")                      # columns guessed by common names, or read(…, query="q", passage="a")
    print("\\n".join(corpus.lines()))              # what was taken, and what of it cannot be used
    corpus.labelled(), corpus.labelled("dev")     # what is trained on, what is kept out
    corpus.write(folder)                          # the card, the dev split, every row that is not used

The same face as `corpus.Corpus` and `hub_corpus.HubCorpus`, so `stages.finetune` trains on it; its prefixes are its
own, for no card of the library names them.

A row of several positives becomes an example of each, and all positives of a query are known to all of its examples, so
that none of them is ever a negative. What cannot be used is counted by reason, named by its line and written down:
nothing is dropped in silence.

The split is by query and leaves no near-copy on the other side: queries whose character trigrams are alike (`split`),
and queries that share a passage, stay together. Groups go to dev by the hash of their first query, until it is full:
no random state, and the same for every seed. A group larger than the whole dev split stays in training.

Cost: that of `split.clusters`, some 0.2 ms a row; the file is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy import sparse
from scipy.sparse import csgraph

from me5lib.data import cards, split, tabular
from me5lib.data import text as cleaning
from me5lib.data.corpus import RetrievalSet
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, text_key

# Names that columns commonly have, as `tabular.QUERY`.
NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_passages?)?_?\d*")
LANGUAGE = ("language", "lang", "locale")
UNKNOWN = "und"  # ISO 639's code of a language that nobody said
NO_PAGE = "https://me5.invalid/your-own-file"  # `.invalid` is reserved: a card has an address, such a file has none

DEV_SHARE = 0.1  # ours: of the queries; what is left out teaches nothing, and fewer measure nothing
LEAST_DEV, MOST_DEV = 20, 1_000  # ours: queries; of a small file a quarter at most, of a large one no more are needed
LEAST_QUERIES = 8  # ours: fewer cannot be split into two parts that say anything
MOST_PASSAGES = 10_000  # ours: that a dev query is searched among: a minute or two of a small model on a CPU

ROWS_LOST = {
    "fields": "more fields than the header",
    "text": "a value that is no text, or a query that is a list",
    "query": "no query",
    "passage": "no positive passage",
    "itself": "a positive passage that repeats its query",
    "duplicate": "the query and passage of an earlier row (negatives are kept)",
}
PARTS_LOST = {
    "both": "a negative that is a positive of its query (the negative is left out)",
    "asked": "a negative that repeats its query (the negative is left out)",
    "language": f"a language that is not known (the row is used, its language `{UNKNOWN}`)",
    "half": "half a character, a lone surrogate (U+FFFD stands in its place)",
}


class Columns(NamedTuple):
    """Which column holds what."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()
    language: str | None = None
    beside: tuple[str, ...] = ()  # further columns that could have been the query or the passage

    def __str__(self) -> str:
        found = f"query = {self.query!r}, passage = {self.passage!r}, "
        found += f"negatives = {', '.join(map(repr, self.negatives)) or 'none'}, language = "
        found += repr(self.language) if self.language else "none"
        return found + (f" (not taken: {', '.join(map(repr, self.beside))})" if self.beside else "")


class Fault(NamedTuple):
    """Something of the file that is not used: `why` is a key of ROWS_LOST or PARTS_LOST."""

    number: int  # line or row
    why: str
    content: Any  # the row as it was read, or the text


class OwnCorpus:
    """The examples of one file. `fingerprint` names them, their split and their prefixes."""

    def __init__(self, table: tabular.Table, columns: Columns, rows: list[Labelled], faults: list[Fault],
                 dev_share: float, symmetric: bool) -> None:
        """Raises `Me5Error` where there are too few queries to split."""
        self.table, self.columns, self.rows, self.faults = table, columns, rows, faults
        self.name, self.symmetric = name_of(table.path), symmetric
        try:
            self.dev, self.chained = dev_part(rows, dev_share)
        except Me5Error as error:
            raise Me5Error("; not used: ".join([f"{table.path.name}: {error}", *by_reason(faults, table.unit)])
                           ) from None

    def prefixes(self, source: str = "") -> tuple[str, str]:
        """What is put before queries and passages: of a symmetric task "query: " on both (the authors' card)."""
        return "query: ", "query: " if self.symmetric else "passage: "

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits."""
        known = [self.prefixes(), self.dev.tolist(), self.rows]
        return hashlib.blake2b(json.dumps(known).encode("utf8"), digest_size=8).hexdigest()

    def labelled(self, part: str = "stage 2") -> list[Labelled]:
        """The examples to train on; `part="dev"`: those kept out."""
        return [row for row, out in zip(self.rows, self.dev, strict=True) if out == (part == "dev")]

    def tasks(self) -> list:
        """None: there are no held-out translations to look at during training."""
        return []

    def retrieval(self, most: int = MOST_PASSAGES) -> RetrievalSet:
        """The dev queries and the passages that they are searched among: of the whole file, the right ones in any case.

        In the order of a hash, so that equal scores favour nobody.
        """
        dev = self.labelled("dev")
        queries = {str(text_key(row.query)): row.query for row in dev}
        relevant: dict[str, set[str]] = defaultdict(set)
        for row in dev:
            relevant[str(text_key(row.query))] |= {str(text_key(text)) for text in row.positives}
        right = set().union(*relevant.values())
        texts = {str(text_key(text)): text for row in self.rows for text in (*row.positives, *row.negatives)}
        chosen = sorted(texts, key=lambda key: (key not in right, int(key)))[: max(most, len(right))]
        return RetrievalSet(queries, {key: ("", texts[key]) for key in sorted(chosen, key=int)}, dict(relevant))

    def lines(self) -> list[str]:
        """What was read, in words: one line what was taken, one what came of it, one for each reason not to."""
        table = self.table
        queries, dev = ({text_key(row.query) for row in rows} for rows in (self.rows, self.labelled("dev")))
        found = [f"{table.path.name}: {len(table.lines):,} rows ({table.kind}); {self.columns}",
                 f"{len(self.rows):,} examples of {len(queries):,} queries; {len(dev):,} queries are kept out (dev)"]
        return found + [f"not used: {each}" for each in by_reason(self.faults, table.unit)] + [CHAINED] * self.chained

    def card(self) -> cards.Card:
        """The data card of this file, by the schema of `data_cards`."""
        dropped = {f"dropped: {words}": sum(fault.why == why for fault in self.faults)
                   for why, words in (ROWS_LOST | PARTS_LOST).items()}
        counts = {"labelled": len(self.rows), "dev": int(self.dev.sum()), **{k: n for k, n in dropped.items() if n}}
        side = self.prefixes()
        return cards.Card(
            name=self.name, title=f"your own file {self.table.path.name}", role="train and evaluate",
            homepage=NO_PAGE, licence="not stated: write it here", translated_by="not stated: write it here",
            languages=sorted({row.language for row in self.rows}), counts=counts, pair=str(self.columns),
            query_prefix=side[0], passage_prefix=side[1],
            ours={"dev": f"{len({row.query for row in self.labelled('dev')}):,} queries, by hash; near-copies and "
                         "queries of one passage stay together" if not self.chained else CHAINED},
            faults=["nobody has looked for faults yet: write them here"], prose=PROSE,
        )  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Put the card, the dev split and what is not used into `folder`: the card's path."""
        folder.mkdir(parents=True, exist_ok=True)
        made = self.card()
        front = yaml.safe_dump(made.model_dump(exclude={"prose"}, exclude_defaults=True), sort_keys=False,
                               allow_unicode=True, width=110)
        path = folder / f"{self.name}.md"
        path.write_text(f"---\n{front}---\n\n{made.prose}\n", encoding="utf8")
        words = ROWS_LOST | PARTS_LOST
        _write_lines(folder / "dev.jsonl", [row._asdict() for row in self.labelled("dev")])
        _write_lines(folder / "not-used.jsonl", [{self.table.unit: fault.number, "why": words[fault.why],
                                                  "content": fault.content} for fault in self.faults])
        return path


CHAINED = ("near-copies chain most queries of this file together, so the split goes by exact text and shared passages "
           "alone: dev figures flatter whoever has learnt a near-copy")
PROSE = ("Written by `me5 finetune --data` from what the file itself says. The rest is for you to fill in: whose texts "
         "these are, under which licence, who translated them, and what is wrong with them.")


def read(path: str | Path, *, query: str | None = None, passage: str | None = None, negatives: Sequence[str] = (),
         language: str | None = None, encoding: str = "utf8", dev_share: float = DEV_SHARE,
         symmetric: bool = False) -> OwnCorpus:
    """The corpus of a CSV, JSON lines or Parquet file; columns that are not named are guessed (`choose`).

    A value is a text, or (not in CSV) a list of texts. `symmetric`: both sides are queries, as of duplicate questions.
    Raises `Me5Error`: a file that cannot be read (naming the line), columns that are not there, too few queries.
    """
    if not 0 < dev_share < 1:
        raise Me5Error(f"the dev split is a share between 0 and 1, not {dev_share:g}")
    table = tabular.read(Path(path), encoding)
    columns = choose(table, query, passage, negatives, language)
    rows, faults = examples(table, columns, name_of(table.path))
    return OwnCorpus(table, columns, rows, faults, dev_share, symmetric)


def name_of(path: Path) -> str:
    """A file's name as the name of a source: small letters, digits and dashes."""
    return re.sub(r"\W+", "-", path.stem.casefold()).strip("-_") or "own"


def choose(table: tabular.Table, query: str | None = None, passage: str | None = None, negatives: Sequence[str] = (),
           language: str | None = None) -> Columns:
    """The columns: as named, else by common names. Raises `Me5Error` with those that there are."""
    there = f"{table.path.name} has the columns {', '.join(map(repr, table.columns))}"
    if missing := [name for name in (query, passage, *negatives, language) if name and name not in table.columns]:
        raise Me5Error(f"no column {missing[0]!r}: {there}")
    asked = tabular.named(table.columns, tabular.QUERY)
    answers = [name for name in tabular.named(table.columns, tabular.PASSAGE) if name != query]
    if not query and not asked or not passage and not answers:
        side = "passage" if query or asked else "query"
        raise Me5Error(f"which column is the {side}? {there}: name it with --{side}-column ({side}=… in Python)")
    query, passage = query or asked[0], passage or answers[0]
    wrong = tuple(negatives) or tuple(name for name in table.columns if NEGATIVE.fullmatch(tabular.plain(name)))
    said = language or next(iter(tabular.named(table.columns, LANGUAGE)), None)
    taken = [query, passage, *wrong, *filter(None, [said])]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise Me5Error(f"the column {twice[0]!r} cannot be two things: {there}")
    return Columns(query, passage, wrong, said, tuple(n for n in (*asked, *answers) if n not in taken))


class _Row(NamedTuple):
    """The texts of one row, tidied."""

    number: int
    query: str
    positives: list[str]
    negatives: list[str]
    language: str


def examples(table: tabular.Table, columns: Columns, source: str) -> tuple[list[Labelled], list[Fault]]:
    """An example for each query and positive of the file, in its order; and what of it is not used."""
    faults: list[Fault] = []
    rows = [row for line in table.lines if (row := _row(line, columns, faults))]
    right: dict[int, dict[int, str]] = defaultdict(dict)  # key of a query → its positives by key
    wrong: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}  # (query, positive) → negatives: line and text
    first: dict[tuple[int, int], _Row] = {}
    for row in rows:
        asked = text_key(row.query)
        for text in row.positives:
            pair = asked, text_key(text)
            if pair in first:
                faults.append(Fault(row.number, "duplicate", [row.query, text]))
            first.setdefault(pair, row)
            right[asked].setdefault(pair[1], text)
            kept = wrong.setdefault(pair, {})
            for negative in row.negatives:
                kept.setdefault(text_key(negative), (row.number, negative))
    found = []
    for (asked, answer), row in first.items():
        others = [text for key, text in right[asked].items() if key != answer]
        fair = _fair(wrong[asked, answer], asked, right[asked], faults)
        found.append(Labelled(row.query, (right[asked][answer], *others), fair, source, row.language))
    return found, _once(faults)


def _row(line: tabular.Line, columns: Columns, faults: list[Fault]) -> _Row | None:
    """The row's texts; None, and why in `faults`, where it makes no example."""
    found = {name: _texts(line.fields.get(name)) for name in (columns.query, columns.passage, *columns.negatives)}
    mixed = None in found.values() or len(found[columns.query]) > 1
    why = "fields" if line.surplus else "text" if mixed else ""
    if not why:
        asked, right = "".join(found[columns.query]), found[columns.passage]
        answers = [text for text in right if text_key(text) != text_key(asked)]
        why = "" if asked and answers else "query" if not asked else "itself" if right else "passage"
    if why:
        faults.append(Fault(line.number, why, {**line.fields, **({"…": line.surplus} if line.surplus else {})}))
        return None
    faults += [Fault(line.number, "itself", text) for text in right if text not in answers]
    said = next(iter(_texts(line.fields.get(columns.language)) or []), "") if columns.language else ""
    code = cleaning.resolve_language(said)
    faults += [Fault(line.number, "language", said)] * bool(said and not code)
    faults += [Fault(line.number, "half", line.fields)] * line.mended
    wrong = [text for name in columns.negatives for text in found[name]]
    return _Row(line.number, asked, answers, wrong, code or UNKNOWN)


def _texts(value: Any) -> list[str] | None:
    """The texts in a field, stripped, without empty ones; None where it holds something else. Numbers are texts."""
    if isinstance(value, list | tuple):
        parts = [_texts(each) for each in value]
        return None if None in parts else [text for part in parts for text in part]
    if value is None or isinstance(value, float) and np.isnan(value):
        return []
    if not isinstance(value, str | int | float):
        return None
    return [text] if (text := str(value).strip()) else []


def _fair(negatives: dict[int, tuple[int, str]], asked: int, right: dict[int, str],
          faults: list[Fault]) -> tuple[str, ...]:
    """The negatives that are neither the query nor a positive of it; the others go to `faults`."""
    found = []
    for key, (number, text) in negatives.items():
        if key == asked or key in right:
            faults.append(Fault(number, "asked" if key == asked else "both", text))
        else:
            found.append(text)
    return tuple(found)


def _once(faults: Sequence[Fault]) -> list[Fault]:
    """Each fault once, in the order of the file: a row of several positives meets its negatives several times."""
    found = {(fault.number, fault.why, json.dumps(fault.content, default=str)): fault for fault in faults}
    return [found[key] for key in sorted(found)]


def by_reason(faults: Sequence[Fault], unit: str) -> list[str]:
    """For each reason how often it was met, and in which lines first."""
    found = []
    for why, words in (ROWS_LOST | PARTS_LOST).items():
        if numbers := [fault.number for fault in faults if fault.why == why]:
            some = ", ".join(map(str, numbers[:5])) + (" …" if len(numbers) > 5 else "")
            found.append(f"{len(numbers):,} × {words} ({unit} {some})")
    return found


def dev_part(rows: Sequence[Labelled], share: float = DEV_SHARE) -> tuple[np.ndarray, bool]:
    """Which rows are kept out: bool [rows]; and whether near-copies chain so much that only exact text could decide.

    Raises `Me5Error` where there are too few queries, or all of them share their passages.
    """
    queries = {text_key(row.query) for row in rows}
    if len(queries) < LEAST_QUERIES:
        raise Me5Error(f"{len(queries)} queries with a passage are too few: {LEAST_QUERIES} at least are needed to "
                       "keep some out")
    size = min(MOST_DEV, max(round(share * len(queries)), min(LEAST_DEV, len(queries) // 4)))
    for near in (True, False):
        dev = _drawn(rows, _groups(rows, near), size)
        if len({text_key(row.query) for row, out in zip(rows, dev, strict=True) if out}) >= max(1, size // 2):
            return dev, not near
    raise Me5Error("no dev split can be made: the queries share their passages, so that nearly all of them hang "
                   "together; is the passage column a label?")


def _groups(rows: Sequence[Labelled], near: bool) -> np.ndarray:
    """The group of each row, int64 [rows]: rows of one query, of near queries, and of one passage share it."""
    texts = [row.query for row in rows]
    query = split.clusters(texts) if near else np.unique([text_key(text) for text in texts], return_inverse=True)[1]
    answer = np.unique([text_key(row.positives[0]) for row in rows], return_inverse=True)[1]
    nodes = int(query.max()) + 1 + int(answer.max()) + 1
    ends = query, answer + int(query.max()) + 1  # every row joins its query to its passage
    links = sparse.coo_matrix((np.ones(len(rows)), ends), shape=(nodes, nodes))
    return csgraph.connected_components(links, directed=False)[1][query]


def _drawn(rows: Sequence[Labelled], group: np.ndarray, size: int) -> np.ndarray:
    """Whole groups, by the hash of their first query in the alphabet, until there are `size` queries: bool [rows]."""
    members: dict[int, set[int]] = defaultdict(set)
    first: dict[int, str] = {}
    for row, number in zip(rows, group.tolist(), strict=True):
        members[number].add(text_key(row.query))
        first[number] = min(first.get(number, form := split.mask(row.query)), form)
    chosen, room = [], size
    for number in sorted(members, key=lambda number: split.fraction(first[number])):
        if len(members[number]) <= room:
            chosen.append(number)
            room -= len(members[number])
    return np.isin(group, chosen)


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf8")
