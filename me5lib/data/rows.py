"""Rows: what a source's builder offers, and what of it is kept. The tables that come out, and why an item is dropped.

A builder reads members and offers items to `Rows`, which cleans them, keeps what is fit and counts the rest by reason.
No row comes twice. Cost: one dict entry a row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa

from me5lib.data.text import has_letter, in_script, language, plain
from me5lib.pairs import normalise

Reader = Callable[[str], Iterable[tuple[str, bytes]]]  # glob → names and contents of an archive's members
_LIST = pa.list_(pa.string())


def _strings(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


SCHEMAS: dict[str, pa.Schema] = {
    "translations": _strings("key", "english", "text", "language"),
    "pairs": _strings("query", "passage", "language"),
    "labelled": pa.schema(
        [("query", pa.string()), ("positives", _LIST), ("negatives", _LIST), ("language", pa.string())]
    ),
    "parallel": _strings("id", "language", "text", "answer"),
    "retrieval": _strings("query_id", "query", "document_id", "title", "text", "language"),
    "labels": _strings("text", "label", "language"),
}


class Extracted(NamedTuple):
    """What one card's files hold: tables by kind, and how many items were dropped, by reason."""

    tables: dict[str, pa.Table]
    dropped: dict[str, int]


class Rows:
    """Collects rows by kind; what is unfit is counted in `dropped`, by reason, and not kept."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[tuple, tuple]] = defaultdict(dict)  # by kind: identity of a row → row
        self.dropped: Counter[str] = Counter()

    def drop(self, reason: str, items: int = 1) -> None:
        """Count `items` as dropped for `reason`."""
        if items:
            self.dropped[reason] += items

    def keep(self, kind: str, identity: tuple, row: tuple) -> None:
        """Keep `row` unless one of the same `identity` is there."""
        if identity in self.kept[kind]:
            self.drop("duplicate")
        else:
            self.kept[kind][identity] = row

    def translation(self, key: str, english: str, text: str, tag: str) -> None:
        """Offer a string and its translation, both as the source has them."""
        code, english, text = language(tag), plain(english), plain(text)
        if code is None or code == "en":
            self.drop("not a language" if code is None else "variant of English")
        elif reason := unfit(text, code) or unfit(english, "en"):
            self.drop(reason)
        elif english == text or normalise(english) == normalise(text):
            self.drop("same as English")
        else:
            self.keep("translations", (english, text, code), (key, english, text, code))

    def pair(self, query: str, passage: str, tag: str) -> None:
        """Offer a title and its body, as the source has them."""
        code, query, passage = language(tag), plain(query), plain(passage)
        if code is None:
            self.drop("not a language")
        elif reason := unfit(query, code) or unfit(passage, code):
            self.drop(reason)
        elif normalise(passage).startswith(normalise(query)) and len(passage) < len(query) + 3:
            self.drop("body repeats title")
        else:
            self.keep("pairs", (query, passage, code), (query, passage, code))

    def limit_bodies(self, most: int) -> None:
        """Drop the pairs of a title that stands over more than `most` bodies in its language: it names none of them."""
        bodies = Counter((query, code) for query, _, code in self.kept["pairs"])
        crowded = [identity for identity in self.kept["pairs"] if bodies[identity[0], identity[2]] > most]
        for identity in crowded:
            del self.kept["pairs"][identity]
        self.drop("title of many bodies", len(crowded))

    def tables(self) -> dict[str, pa.Table]:
        """The kept rows as Arrow tables."""
        return {kind: _table(kind, list(rows.values())) for kind, rows in self.kept.items()}


def unfit(text: str, code: str) -> str | None:
    """Why `text` cannot be a text in `code`, or None."""
    if not text:
        return "empty"
    if not has_letter(text):
        return "no letter"
    return None if in_script(text, code) else "wrong script"


def _table(kind: str, rows: list[tuple]) -> pa.Table:
    schema = SCHEMAS[kind]
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
