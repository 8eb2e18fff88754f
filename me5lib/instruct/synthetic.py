"""Synthetic examples: the form that `me5 synthesise` writes and `synthetic-v1` has, a JSON object a line.

    rows = read_examples()                                  # synthetic-v1, without the languages marked as drafts
    rows = read_examples(Path("mine.jsonl"), drafts=True)
    groups = [row.labelled() for row in rows]               # as stage 2 takes them

A language model wrote `synthetic-v1`, another reading of its kind reviewed it, no native speaker has (its data card).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from me5lib.data import text
from me5lib.io import PACKAGE, Me5Error
from me5lib.pairs import Labelled

SOURCE = "synthetic"
VERSION_1 = PACKAGE / "instruct" / "synthetic-v1.jsonl"
TASK_TYPES = ("short-long", "long-short", "short-short", "long-long", "sts", "bitext")  # E5-mistral's
SYMMETRIC = ("sts", "bitext")  # task types whose both sides are of one kind: both carry the instruction
DRAFTS = frozenset("am bn eu ha ka so sw ta te tl ur yo zu".split())  # ours: the least certain ones


class Example(NamedTuple):
    """One row: a query, what is looked for (the instruction), a right and a wrong text."""

    task_type: str
    instruction: str
    language: str  # of the query
    passage_language: str  # of both texts
    query: str
    positive: str
    negative: str  # "" where a task type has none
    id: str
    group: int  # rows that share a text or ask the same have one group: split by it

    def labelled(self) -> Labelled:
        """The row as an example of stage 2, with its instruction; each task type is a source of its own, so that a
        batch, which is of one source, holds texts of one kind."""
        return Labelled(self.query, (self.positive,), (self.negative,) if self.negative else (),
                        f"{SOURCE}-{self.task_type}", self.language, instruction=self.instruction)


def parse_example(line: str) -> Example:
    """The example of a line; keys that are no field are left out. Raises ValueError saying why it is none."""
    row = json.loads(line)
    json.dumps(row, ensure_ascii=False).encode()  # half a character, which no file can hold, is a ValueError
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    for name in Example._fields:
        value = row.get(name)
        right = type(value) is (int if name == "group" else str)
        if name in ("instruction", "query", "positive"):
            right = right and bool(value.strip())
        elif name == "task_type":
            right = value in TASK_TYPES
        elif right and name in ("language", "passage_language"):
            right = text.language(value) is not None
        if not right:
            raise ValueError(f"{name} is {value!r:.60}")
    return Example(*(row[name] for name in Example._fields))


def read_lines(path: Path) -> list[str]:
    """The lines of a file of examples. Raises `Me5Error` where it cannot be read."""
    try:
        return path.read_text("utf8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise Me5Error(f"{path} cannot be read ({why}): give a file that me5 synthesise wrote") from None


def read_examples(path: Path = VERSION_1, drafts: bool = False) -> list[Example]:
    """The rows of a file, without those of the languages in `DRAFTS` unless they are wanted.

    Raises `Me5Error` with the line that is no example.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            rows.append(parse_example(line))
        except (ValueError, RecursionError) as error:
            raise Me5Error(f"{path}, line {number}: no synthetic example ({error}); me5 synthesise --check {path} says "
                           "more") from None
    return [row for row in rows if drafts or row.language not in DRAFTS]
