"""Data cards: what every datum is. `data_cards/<name>.md` = YAML front matter, checked here, and prose.

Two kinds. A card with `files` (or neither) is of the offline packs: its files of the package index are pinned by
SHA-256, and the cards are the only list of what is downloaded. A card with `hub` is a source of the paper's Tables 1
and 2: which columns of which repositories become which pairs. What the paper does not say stands under `ours`.

The type of a column is a line of Arrow words: string, int64, float64, bool, `list<T>`, `struct<name: T, …>`; a `?`
behind any of them allows null.

    parse_type("list<struct<docid: string, text: string?>>")     # → pyarrow.Field
    row_fault({"title": "string"}, {"title": None})              # "title: null"; None where nothing is wrong
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

import pyarrow as pa
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from me5lib.io import Me5Error, asset

SCALARS = ("string", "int64", "float64", "bool")
_PYTHON = {"string": str, "int64": int, "double": (float, int), "bool": bool, "list": list, "struct": Mapping}
UNVERIFIED = "unverified"  # in `read_from`: nobody could read the page, the columns are from memory


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class File(_Strict):
    """One file of the package index, or of npm's. `file` is what is fetched; its name and SHA-256 pin it."""

    package: str
    version: str
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0)  # bytes
    registry: Literal["pip", "npm"] = "pip"  # whose settings say where it is; npm's may be missing


ColumnType = Annotated[str, AfterValidator(lambda text: parse_type(text) and text)]


class Hub(_Strict):
    """Rows of one repository of the hub that have one form, and the builder that makes pairs of them."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None  # commit, branch or tag; None: main, which may change
    files: str  # glob inside the repository, as data/*.parquet; {language} stands for one of `languages`
    languages: dict[str, str] = {}  # ISO 639 code → how the repository writes it; {}: `language` says it
    language: str | None = None  # of every row; None: told by {language}, or by the row
    columns: dict[str, ColumnType]  # name → type
    read_from: str  # address of the page or file that the columns were read from, or "unverified"
    rows: int | None = None  # how many the hub says there are, over all languages
    builder: str  # name in `builders.BUILDERS`
    options: dict[str, Any] = {}  # for the builder, as {query: title, passage: text}

    @model_validator(mode="after")
    def _files_can_be_read(self) -> Hub:
        if not re.search(r"\.(parquet|jsonl|json|jsonl\.gz|json\.gz|jsonl\.zst)$", self.files):
            raise ValueError(f"files {self.files!r} must be Parquet or JSON lines: no dataset scripts")
        if ("{language}" in self.files) != bool(self.languages):
            raise ValueError("languages and {language} in files come together or not at all")
        if self.read_from != UNVERIFIED and not self.read_from.startswith("https://"):
            raise ValueError("read_from must be an https address, or the word unverified")
        return self


class Paper(_Strict):
    """What the paper says of a source."""

    table: Literal[1, 2] | None  # None: of the instruct model's mixture, which has no table
    rows: int | None = None  # as sampled in training; None: not published
    joint: list[str] = []  # cards that share a printed count; `rows` is then our share of it
    pair: str  # its words for the pair, shortened


class Card(_Strict):
    """The front matter of one data card."""

    name: str
    title: str
    role: Literal["train", "evaluate", "train and evaluate", "baseline", "model"]
    files: list[File] = []  # of the package index; empty: comes with an ordinary dependency, or from the hub
    hub: list[Hub] = []
    paper: Paper | None = None
    homepage: str = Field(pattern=r"^https://")
    licence: str  # as the source states it
    # may a model that was trained on it be passed on, and why: ours, by the rule of data_cards/README.md
    weights: tuple[Literal["allowed", "undecided"], str] = ("undecided", "nobody has looked")
    translated_by: str  # people, machines, or both: as far as is known
    languages: list[str]
    counts: dict[str, int] = {}  # rows kept, by table; dropped rows under "dropped: <reason>"; of packs only
    pair: str  # how a pair is made of a row
    query_prefix: Literal["query: ", "passage: "]
    passage_prefix: Literal["query: ", "passage: "]
    instruction: str | None = None  # what the instruct model is told, of labelled sources
    filters: dict[str, dict[str, Any]] = {}  # name in `filters.STEPS` → its options, in the order of the build
    stand_in: str = ""  # what the original is, why it cannot be had, and why this is the best in its place
    ours: dict[str, str] = {}  # what the paper does not say → what was chosen, and why
    faults: list[str]  # known ones
    prose: str = ""

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Card:
        if self.files and self.hub:
            raise ValueError("a card has files of the package index or hub, not both")
        if bool(self.hub) != (self.paper is not None):
            raise ValueError("a hub source says what the paper says of it (paper), and no other card does")
        if not self.hub and not self.counts and self.role not in ("baseline", "model"):
            raise ValueError("a card of the offline packs has counts")
        return self

    @property
    def prefixes(self) -> tuple[str, str]:
        """Of queries and of passages."""
        return self.query_prefix, self.passage_prefix

    @property
    def sha256(self) -> str:
        """Hash of everything that the card says of texts: a build is of one card as it then was."""
        return hashlib.sha256(self.model_dump_json(exclude={"prose", "weights"}).encode("utf8")).hexdigest()


class CardTexts:
    """What training asks of a corpus beside its rows. Corpora inherit from it: the answers are those of their cards."""

    task_names: tuple[str, ...] = ()  # what can be evaluated while it trains
    tempered = False  # whether its languages were tempered when the rows were drawn
    prompts: dict[str, str] | None = None  # of the model; None: it keeps those that it has
    bitext_prefix = "query: "  # before held-out translations

    def prefixes(self, source: str) -> tuple[str, str]:
        """Of a source's queries and passages."""
        return load_card(source).prefixes

    def weights(self, weights: dict[str, float]) -> dict[str, float]:
        """Source → weight in stage 2, of those that its rows give it."""
        return weights


@cache
def load_card(name: str) -> Card:
    """The card `name`. Raises `Me5Error` naming the field when its front matter is wrong."""
    path = asset("data_cards") / f"{name}.md"
    if not path.is_file():
        raise Me5Error(f"no data card {name!r}: there are {', '.join(card_names())}")
    return parse_card(name, path.read_text(encoding="utf8"))


def parse_card(name: str, text: str) -> Card:
    """The card of that name with this text. Raises `Me5Error` naming the field when its front matter is wrong."""
    try:
        _, front, prose = text.split("---\n", 2)
        card = Card(**yaml.safe_load(front), prose=prose.strip())
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # a typo also lacks its key
        where = ".".join(str(part) for part in first["loc"]) or "front matter"
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise Me5Error(f"data card {name}.md: {where}: {what}") from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise Me5Error(f"data card {name}.md has no front matter that can be read: {told}") from None
    if card.name != name:
        raise Me5Error(f"data card {name}.md calls itself {card.name!r}")
    return card


def card_names() -> list[str]:
    """The names of all cards, sorted."""
    return sorted(path.stem for path in asset("data_cards").glob("*.md") if path.stem != "README")


def all_cards() -> dict[str, Card]:
    """Every card by name."""
    return {name: load_card(name) for name in card_names()}


def weights(sources: Iterable[str]) -> dict[str, float]:
    """Source → pairs that the paper drew from it: what a mixture of hub sources is weighted by (Tables 1 and 2).

    Raises `Me5Error` for a source whose count is not published, or that is no hub source.
    """
    found = {name: load_card(name).paper and load_card(name).paper.rows for name in sources}
    if missing := [name for name, rows in found.items() if rows is None]:
        raise Me5Error(f"the paper gives no count for {', '.join(missing)}: weigh the sources by hand")
    return {name: float(rows) for name, rows in found.items()}


def hub() -> dict[str, Card]:
    """The cards of the hub sources (Tables 1 and 2, and the instruct model's two), by name."""
    return {name: card for name, card in all_cards().items() if card.hub}


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
