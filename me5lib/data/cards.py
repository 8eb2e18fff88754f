"""Data cards: what every datum is. `data_cards/<name>.md` = YAML front matter, checked here, and prose.

The cards are the only list of what is downloaded: a file of the package index by name, version, size and SHA-256.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from me5lib.places import Me5Error, asset


class File(BaseModel):
    """One file of the package index. `file` is what is fetched; its name and SHA-256 pin it."""

    model_config = ConfigDict(extra="forbid")
    package: str
    version: str
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0)  # bytes


class Card(BaseModel):
    """The front matter of one data card."""

    model_config = ConfigDict(extra="forbid")
    name: str
    title: str
    role: Literal["train", "evaluate", "train and evaluate", "baseline"]
    files: list[File] = []  # empty: comes with an ordinary dependency
    homepage: str
    licence: str  # as the source states it
    translated_by: str  # people, machines, or both: as far as is known
    languages: list[str]
    counts: dict[str, int]  # rows kept, by table; dropped rows under "dropped: <reason>"
    pair: str  # how a pair is made of a row
    query_prefix: Literal["query: ", "passage: "]
    passage_prefix: Literal["query: ", "passage: "]
    faults: list[str]  # known ones
    prose: str = ""


@cache
def load(name: str) -> Card:
    """The card `name`. Raises `Me5Error` naming the field when its front matter is wrong."""
    path = asset("data_cards") / f"{name}.md"
    if not path.is_file():
        raise Me5Error(f"no data card {name!r}: there are {', '.join(names())}")
    _, front, prose = path.read_text(encoding="utf8").split("---\n", 2)
    try:
        card = Card(**yaml.safe_load(front), prose=prose.strip())
    except (ValidationError, TypeError) as error:
        raise Me5Error(f"data card {path.name}: {' '.join(str(error).split())}") from None
    if card.name != name:
        raise Me5Error(f"data card {path.name} calls itself {card.name!r}")
    return card


def names() -> list[str]:
    """The names of all cards, sorted."""
    return sorted(path.stem for path in asset("data_cards").glob("*.md") if path.stem != "README")


def all_cards() -> dict[str, Card]:
    """Every card by name."""
    return {name: load(name) for name in names()}
