"""The types of a hub source's columns, as its data card writes them: one line of Arrow words, read three ways.

    parse("list<struct<docid: string, text: string?>>")     # → Kind
    arrow(kind)                                             # the pyarrow type
    fault(kind, value)                                      # None, "null", or "not string but int"

Words: string, int64, float64, bool, `list<T>`, `struct<name: T, …>`; a `?` behind any of them allows null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import pyarrow as pa

_PLAIN = {"string": str, "int64": int, "float64": (float, int), "bool": bool}
_TOKEN = re.compile(r"\s*([A-Za-z_][\w .()-]*?(?=\s*[:<>,?]|\s*$)|[<>:,?])")


class Kind(NamedTuple):
    """A type: `word` is string, int64, float64, bool, list or struct; `parts` are its inner types by name."""

    word: str
    parts: tuple[tuple[str, Kind], ...] = ()  # of a list: one, named "item"
    nullable: bool = False


@cache
def parse(text: str) -> Kind:
    """The type written as `text`. Raises ValueError saying where it cannot be read."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens).replace(" ", "") != text.replace(" ", ""):
        raise ValueError(f"type {text!r} has signs that no type is written with")
    kind, rest = _kind(tokens, text)
    if rest:
        raise ValueError(f"type {text!r} goes on after its end: {' '.join(rest)}")
    return kind


def arrow(kind: Kind) -> pa.DataType:
    """The pyarrow type that a Parquet file of such a column has."""
    if kind.word == "list":
        return pa.list_(arrow(kind.parts[0][1]))
    if kind.word == "struct":
        return pa.struct([(name, arrow(part)) for name, part in kind.parts])
    return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}[kind.word]


def fault(kind: Kind, value: Any) -> str | None:
    """Why `value`, as pyarrow or JSON gives it, is not of this type; None where it is."""
    if value is None:
        return None if kind.nullable else "null"
    if kind.word == "list":
        if not isinstance(value, list):
            return f"not list but {type(value).__name__}"
        return next((f"{found} in it" for item in value if (found := fault(kind.parts[0][1], item))), None)
    if kind.word == "struct":
        if not isinstance(value, Mapping):
            return f"not struct but {type(value).__name__}"
        faults = ((name, fault(part, value.get(name))) for name, part in kind.parts)
        return next((f"{name}: {found}" for name, found in faults if found), None)
    right = isinstance(value, _PLAIN[kind.word]) and not (isinstance(value, bool) and kind.word != "bool")
    return None if right else f"not {kind.word} but {type(value).__name__}"


def row_fault(columns: Mapping[str, str], row: Mapping[str, Any]) -> str | None:
    """The first column of `row` that is not as `columns` (name → type) says: "missing column title", "title: null"."""
    for name, text in columns.items():
        kind = parse(text)
        if name not in row and not kind.nullable:
            return f"missing column {name}"
        if found := fault(kind, row.get(name)):
            return f"{name}: {found}"
    return None


def _kind(tokens: list[str], text: str) -> tuple[Kind, list[str]]:
    """The type at the head of `tokens`, and what is left of them."""
    word, rest = (tokens[0].strip(), tokens[1:]) if tokens else ("", [])
    parts: list[tuple[str, Kind]] = []
    if word in ("list", "struct"):
        rest = _expect("<", rest, text)
        while True:
            name = "item"
            if word == "struct":
                name, rest = (rest[0].strip(), _expect(":", rest[1:], text)) if rest else ("", rest)
            part, rest = _kind(rest, text)
            parts.append((name, part))
            if word == "list" or rest[:1] != [","]:
                break
            rest = rest[1:]
        rest = _expect(">", rest, text)
    elif word not in _PLAIN:
        raise ValueError(f"type {text!r} has the unknown word {word!r}: use {', '.join(_PLAIN)}, list<…>, struct<…>")
    nullable = rest[:1] == ["?"]
    return Kind(word, tuple(parts), nullable), rest[1:] if nullable else rest


def _expect(sign: str, tokens: list[str], text: str) -> list[str]:
    if tokens[:1] != [sign]:
        raise ValueError(f"type {text!r} lacks {sign!r} before {' '.join(tokens) or 'its end'}")
    return tokens[1:]
