"""The types of a hub source's columns, as its data card writes them: one line of Arrow words.

    parse_type("list<struct<docid: string, text: string?>>")     # → Kind
    row_fault({"title": "string"}, {"title": None})              # "title: null"; None where nothing is wrong

Words: string, int64, float64, bool, `list<T>`, `struct<name: T, …>`; a `?` behind any of them allows null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

_PYTHON = {"string": str, "int64": int, "float64": (float, int), "bool": bool, "list": list, "struct": Mapping}
_TOKEN = re.compile(r"\s*([A-Za-z_][\w .()-]*?(?=\s*[:<>,?]|\s*$)|[<>:,?])")


class Kind(NamedTuple):
    """A type: `word` is string, int64, float64, bool, list or struct; `parts` are its inner types by name."""

    word: str
    parts: tuple[tuple[str, Kind], ...] = ()  # of a list: one, named "item"
    nullable: bool = False


@cache
def parse_type(text: str) -> Kind:
    """The type written as `text`. Raises ValueError saying where it cannot be read."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens).replace(" ", "") != text.replace(" ", ""):
        raise ValueError(f"type {text!r} has signs that no type is written with")

    def take(expected: str = "") -> str:
        if not tokens or (expected and tokens[0] != expected):
            raise ValueError(f"type {text!r} lacks {expected or 'a type'!r} before {' '.join(tokens) or 'its end'}")
        return tokens.pop(0).strip()

    def kind() -> Kind:
        """The type at the head of the tokens."""
        word, parts = take(), []
        if word not in _PYTHON:
            raise ValueError(f"type {text!r} has the unknown word {word!r}: use {', '.join(_PYTHON)}")
        if word in ("list", "struct"):
            take("<")
            while not parts or (word == "struct" and tokens[:1] == [","] and take()):
                name = take() if word == "struct" else "item"
                parts.append((name, kind() if word == "list" or take(":") else None))
            take(">")
        return Kind(word, tuple(parts), tokens[:1] == ["?"] and bool(take()))

    found = kind()
    if tokens:
        raise ValueError(f"type {text!r} goes on after its end: {' '.join(tokens)}")
    return found


def type_fault(kind: Kind, value: Any) -> str | None:
    """Why `value`, as pyarrow or JSON gives it, is not of this type; None where it is."""
    if value is None:
        return None if kind.nullable else "null"
    if not isinstance(value, _PYTHON[kind.word]) or (isinstance(value, bool) and kind.word != "bool"):
        return f"not {kind.word} but {type(value).__name__}"
    if kind.word == "list":
        return next((f"{found} in it" for item in value if (found := type_fault(kind.parts[0][1], item))), None)
    faults = ((name, type_fault(part, value.get(name))) for name, part in kind.parts)
    return next((f"{name}: {found}" for name, found in faults if found), None)


def row_fault(columns: Mapping[str, str], row: Mapping[str, Any]) -> str | None:
    """The first column of `row` that is not as `columns` (name → type) says: "missing column title", "title: null"."""
    for name, text in columns.items():
        kind = parse_type(text)
        if name not in row and not kind.nullable:
            return f"missing column {name}"
        if found := type_fault(kind, row.get(name)):
            return f"{name}: {found}"
    return None
