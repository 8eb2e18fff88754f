"""Made-up rows of the hub's sources: what `--dry-run` trains on, without a network and without the sources.

    filled = fill(scale.load("base"), folder, rows=16)     # then, with ME5_CACHE = folder, the scale opens as it would

A row has the columns and types of its data card; texts are names of territories in the row's language, as Babel has
them, in one line or several. Rows go through the card's own builder and filters, and what is left is written where
`me5 mixture build` or `me5 fetch` would have put it: of every card of the scale some streams. They teach nothing.

Cost: 24 cards in about three seconds.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from me5lib.data import builders, cards, hub, schema, shards
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair, text_key

if TYPE_CHECKING:
    from me5lib.config import Scale

LANGUAGES = 2  # ours: languages of an entry of a card that are made up, of those it names
TRIES = 200  # ours: rows made up at most for one that the filters leave
DEV = 4  # ours: labelled examples that the rule keeps out of stage 2, so that a teacher can be judged
TAGS = {"en": "eng_Latn", "de": "deu_Latn"}  # languages of rows that tell their own, and how NLLB writes them
SHORT = ((1,), (3,))
LONG = (*SHORT, (4, 20))  # a title and a page: some cards want 200 characters
_TELLS_LANGUAGE = re.compile(r"lang(uage)?(_code)?\d?")
_TELLS_SCORE = re.compile(r"(\w+_)?score")


class Filled(NamedTuple):
    """What was written: pairs and labelled examples by (source, language), and some of their texts."""

    pairs: dict[tuple[str, str], int]
    labelled: dict[tuple[str, str], int]
    texts: list[str]


def fill(dial: Scale, folder: Path, rows: int, built: bool, seed: int = 0) -> Filled:
    """Fill `folder` as the cache of a scale, `rows` of a stream: stage 1 as `built` shards, or as drawings; stage 2.

    Raises `Me5Error` for a card none of whose made-up rows makes a pair.
    """
    found: tuple[dict, dict] = {}, {}
    texts: dict[str, None] = {}
    for kind, names in enumerate((dial.data.sources, dial.data.labelled)):
        for name in names:
            card = cards.load(name)
            given = items(card, rows, seed)
            given += _dev(given[0]) if kind and not any(found[1].values()) else []
            texts |= dict.fromkeys(text for item in given for text in _texts(item))
            home = folder / "mixture" / name if built and not kind else _drawing(dial, card, folder)
            found[kind].update({(name, code): n for code, n in _write(given, home).items()})
    return Filled(*found, list(texts))


def items(card: cards.Card, rows: int, seed: int = 0) -> list[Pair | Labelled]:
    """About `rows` pairs or examples of every entry of a card in each of some languages, by its builder and filters."""
    found: list[Pair | Labelled] = []
    book = hub.Ledger()
    for number, entry in enumerate(card.hub):
        for code in list(entry.languages)[:LANGUAGES] or [entry.language or ""]:
            made = raw(entry, code, TRIES * rows, f"{card.name} {number} {code} {seed}")
            file = hub.HubFile(number, "made up", code)
            found += islice(hub.make_items(card, file, enumerate(made), builders.BUILDERS, book), rows)
    if not found:
        why = "; ".join(list(book.first)[:3])
        raise Me5Error(f"card {card.name}: no made-up row of its columns makes a pair ({why}): mend the card")
    return found


class _Hand(NamedTuple):
    """What writes the values of a row."""

    draw: random.Random
    language: str
    forms: tuple[tuple[int, ...], ...]  # names in each line of a text, one form is drawn

    def value(self, kind: schema.Kind, name: str) -> Any:
        """A value of a type; `name` is its column's."""
        if kind.word == "list":
            return [self.value(kind.parts[0][1], name) for _ in range(self.draw.randint(1, 3))]
        if kind.word == "struct":
            return {part: self.value(inner, part) for part, inner in kind.parts}
        if kind.word == "string":
            return self.string(name)
        if kind.word == "bool":
            return self.draw.random() < 0.5
        return self.draw.randint(1, 9) if kind.word == "int64" else self.draw.random()

    def string(self, name: str) -> str:
        """A text, or what a column called `name` holds as text: a language code, a score."""
        if _TELLS_LANGUAGE.fullmatch(name):
            return self.draw.choice([*TAGS, *TAGS.values()])
        if _TELLS_SCORE.fullmatch(name):
            return str(self.draw.randint(1, 9))
        known = names(self.language if self.draw.random() < 0.7 else "en")  # the other side of most translations
        return "\n".join(", ".join(self.draw.choices(known, k=k)) for k in self.draw.choice(self.forms)) + "."


def raw(entry: cards.Hub, language: str, most: int, seed: str) -> Iterator[dict[str, Any]]:
    """`most` rows of the entry's columns, in one of its languages (""), the same for the same seed."""
    draw = random.Random(seed)
    kinds = {name: schema.parse_type(text) for name, text in entry.columns.items()}
    forms = SHORT if entry.builder in builders.LABELLED_BUILDERS else LONG
    for _ in range(most):
        hand = _Hand(draw, language or draw.choice(sorted(TAGS)), forms)
        yield {name: hand.value(kind, name) for name, kind in kinds.items()}


@cache
def names(language: str) -> list[str]:
    """The names of all territories in a language; in English where CLDR does not have them."""
    from babel import Locale, UnknownLocaleError

    try:
        found = Locale.parse(language.replace("-", "_")).territories
    except (UnknownLocaleError, ValueError):
        found = {}
    distinct = sorted(set(found.values()))
    return distinct if len(distinct) > 20 else names("en")


def _dev(row: Labelled) -> list[Labelled]:
    """Examples like `row` that `HubCorpus` keeps out of stage 2."""
    edge = int(hub.DEV_SHARE * 2**64) - 2**63
    numbered = (row._replace(query=f"{row.query} {i}") for i in range(10**6))
    return list(islice((each for each in numbered if text_key(each.query) < edge), DEV))


def _texts(item: Pair | Labelled) -> list[str]:
    return [item.query, *([item.passage] if isinstance(item, Pair) else [*item.positives, *item.negatives])]


def _drawing(dial: Scale, card: cards.Card, folder: Path) -> Path:
    """Where the drawing of a card lies in the cache `folder`, its manifest already there."""
    asked, heat = hub.pairs_wanted(dial, card.name), dial.data.language_temperature
    home = folder / "hub" / card.name / hub.drawing_home(card, asked, heat).name
    home.mkdir(parents=True)
    about = {"card_sha256": card.sha256, "version": hub.VERSION, "temperature": heat, "asked": asked}
    (home / shards.MANIFEST).write_text(json.dumps(about) + "\n", encoding="utf8")
    return home


def _write(given: list[Pair | Labelled], home: Path) -> dict[str, int]:
    """A shard per language of the items; rows by language."""
    written = {}
    for code in sorted({item.language for item in given}):
        own = [item for item in given if item.language == code]
        columns = ["query", "passage"] if isinstance(own[0], Pair) else ["query", "positives", "negatives"]
        if isinstance(own[0], Labelled) and any(item.instruction for item in given):
            columns.append("instruction")
        table = pa.table({name: [getattr(item, name) for item in own] for name in columns}, schema=_schema(columns))
        shards.write(table, home / code / "part-00000")
        written[code] = len(own)
    return written


def _schema(columns: list[str]) -> pa.Schema:
    lists = ("positives", "negatives")
    return pa.schema([(name, pa.list_(pa.string()) if name in lists else pa.string()) for name in columns])
