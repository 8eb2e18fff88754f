"""The types of a hub source's columns, as its data card writes them: one line of Arrow words.

    parse_type("list<struct<docid: string, text: string?>>")     # → pyarrow.Field
    row_fault({"title": "string"}, {"title": None})              # "title: null"; None where nothing is wrong

Words: string, int64, float64, bool, `list<T>`, `struct<name: T, …>`; a `?` behind any of them allows null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pyarrow as pa

SCALARS = ("string", "int64", "float64", "bool")
_PYTHON = {"string": str, "int64": int, "double": (float, int), "bool": bool, "list": list, "struct": Mapping}


@cache
def parse_type(text: str, name: str = "item") -> pa.Field:
    """The field `name` of the type written as `text`. Raises ValueError for one that cannot be read."""
    word = text.strip().removesuffix("?")
    if inner := re.fullmatch(r"list<(.+)>", word):
        kind = pa.list_(parse_type(inner[1]))
    elif inner := re.fullmatch(r"struct<(.+)>", word):
        members = (member.partition(":") for member in _members(inner[1]))
        kind = pa.struct([parse_type(each, name.strip()) for name, _, each in members])
    elif word in SCALARS:
        kind = pa.type_for_alias(word)
    else:
        raise ValueError(f"type {text!r} cannot be read: use {', '.join(SCALARS)}, list<T>, struct<name: T, …>")
    return pa.field(name, kind, text.strip().endswith("?"))


def _members(text: str) -> list[str]:
    """The members of a struct: `text`, cut at the commas that stand in no brackets."""
    members = [""]
    for piece in text.split(","):
        if members[-1].count("<") > members[-1].count(">"):
            members[-1] += f",{piece}"
        else:
            members.append(piece)
    return members[1:]


def type_fault(field: pa.Field, value: Any) -> str | None:
    """Why `value`, as pyarrow or JSON gives it, is not of this type; None where it is."""
    if value is None:
        return None if field.nullable else "null"
    word = str(field.type).partition("<")[0]
    if not isinstance(value, _PYTHON[word]) or (isinstance(value, bool) and word != "bool"):
        return f"not {word} but {type(value).__name__}"
    if word == "list":
        return next((f"{found} in it" for each in value if (found := type_fault(field.type.value_field, each))), None)
    members = field.type if word == "struct" else ()
    faults = ((member.name, type_fault(member, value.get(member.name))) for member in members)
    return next((f"{name}: {found}" for name, found in faults if found), None)


def row_fault(columns: Mapping[str, str], row: Mapping[str, Any]) -> str | None:
    """The first column of `row` that is not as `columns` (name → type) says: "missing column title", "title: null"."""
    for name, text in columns.items():
        field = parse_type(text)
        if name not in row and not field.nullable:
            return f"missing column {name}"
        if found := type_fault(field, row.get(name)):
            return f"{name}: {found}"
    return None
