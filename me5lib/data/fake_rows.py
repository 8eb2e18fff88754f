"""Made-up rows of the hub's sources: what `--dry-run` trains on, without a network and without the sources.

    filled = fill(config.load("base"), folder, rows=16)     # then, with ME5_CACHE = folder, the scale opens as it would

A row has the columns and types of its data card; texts are names of territories in the row's language, as Babel has
them, in one line or several. Rows go through the card's own builder and filters, and what is left is written where
`me5 mixture build` or `me5 fetch` would have put it: of every card of the scale some streams. They teach nothing.

Cost: 24 cards in about three seconds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from me5lib import io
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
    """What was written: pairs and labelled examples by (source, language), and their texts."""

    pairs: dict[tuple[str, str], int]
    labelled: dict[tuple[str, str], int]
    texts: list[str]


def fill(scale: Scale, folder: Path, rows: int, built: bool, seed: int = 0) -> Filled:
    """Fill `folder` as the cache of a scale, `rows` of a stream: stage 1 as `built` shards, or as drawings; stage 2.

    Raises `Me5Error` for a card none of whose made-up rows makes a pair.
    """
    filled, texts = Filled({}, {}, []), {}
    for name in (*scale.data.sources, *scale.data.labelled):
        card = cards.load(name)
        made = items(card, rows, seed)
        first = isinstance(made[0], Pair)
        if not first and not filled.labelled:  # some that `HubCorpus` keeps out of stage 2
            numbered = (made[0]._replace(query=f"{made[0].query} {i}") for i in range(10**6))
            edge = int(hub.DEV_SHARE * 2**64) - 2**63
            made += islice((each for each in numbered if text_key(each.query) < edge), DEV)
        place = folder / "mixture" / name if built and first else _drawing(scale, card, folder)
        for code in sorted({item.language for item in made}):
            own = [item for item in made if item.language == code]
            shards.write(_table(own), place / code / "part-00000")
            (filled.pairs if first else filled.labelled)[name, code] = len(own)
        for item in made:
            sides = [item.passage] if isinstance(item, Pair) else [*item.positives, *item.negatives]
            texts |= dict.fromkeys([item.query, *sides])
    return filled._replace(texts=list(texts))


def items(card: cards.Card, rows: int, seed: int = 0) -> list[Pair | Labelled]:
    """About `rows` pairs or examples of every entry of a card in each of some languages, by its builder and filters."""
    made, book = [], hub.Ledger()
    for number, entry in enumerate(card.hub):
        for code in list(entry.languages)[:LANGUAGES] or [entry.language or ""]:
            lines = raw(entry, code, TRIES * rows, f"{card.name} {number} {code} {seed}")
            file = hub.HubFile(number, "made up", code)
            made += islice(hub.make_items(card, file, enumerate(lines), builders.BUILDERS, book), rows)
    if not made:
        why = "; ".join(list(book.first)[:3])
        raise Me5Error(f"card {card.name}: no made-up row of its columns makes a pair ({why}): mend the card")
    return made


def raw(entry: cards.Hub, language: str, most: int, seed: str) -> Iterator[dict[str, Any]]:
    """`most` rows of the entry's columns, in one of its languages (""), the same for the same seed."""
    draw = random.Random(seed)
    kinds = {name: schema.parse_type(text) for name, text in entry.columns.items()}
    forms = SHORT if entry.builder in builders.LABELLED_BUILDERS else LONG
    for _ in range(most):
        own = language or draw.choice(sorted(TAGS))
        yield {name: _value(draw, own, forms, kind, name) for name, kind in kinds.items()}


def _value(draw: random.Random, language: str, forms: Sequence[tuple[int, ...]], kind: schema.Kind, name: str) -> Any:
    """A value of a type, of a column called `name`; a text has so many names in each line as one of `forms` says."""
    if kind.word == "list":
        return [_value(draw, language, forms, kind.parts[0][1], name) for _ in range(draw.randint(1, 3))]
    if kind.word == "struct":
        return {part: _value(draw, language, forms, inner, part) for part, inner in kind.parts}
    if kind.word == "bool":
        return draw.random() < 0.5
    if kind.word != "string":
        return draw.randint(1, 9) if kind.word == "int64" else draw.random()
    if _TELLS_LANGUAGE.fullmatch(name):
        return draw.choice([*TAGS, *TAGS.values()])
    if _TELLS_SCORE.fullmatch(name):
        return str(draw.randint(1, 9))
    known = names(language if draw.random() < 0.7 else "en")  # the other side of most translations
    return "\n".join(", ".join(draw.choices(known, k=k)) for k in draw.choice(forms)) + "."


@cache
def names(language: str) -> list[str]:
    """The names of all territories in a language; in English where CLDR does not have them."""
    from babel import Locale, UnknownLocaleError

    try:
        distinct = sorted(set(Locale.parse(language.replace("-", "_")).territories.values()))
    except (UnknownLocaleError, ValueError):
        distinct = []
    return distinct if len(distinct) > 20 else names("en")


def _drawing(scale: Scale, card: cards.Card, folder: Path) -> Path:
    """Where the drawing of a card lies in the cache `folder`, its manifest already there."""
    asked, temperature = hub.pairs_wanted(scale, card.name), scale.data.language_temperature
    home = folder / "hub" / card.name / hub.drawing_home(card, asked, temperature).name
    about = {"card_sha256": card.sha256, "version": hub.VERSION, "temperature": temperature, "asked": asked}
    io.put_json(home / shards.MANIFEST, about)
    return home


def _table(rows: Sequence[Pair] | Sequence[Labelled]) -> pa.Table:
    """The columns of a shard of one language."""
    text, texts = pa.string(), pa.list_(pa.string())
    types = {"query": text, "passage": text} if isinstance(rows[0], Pair) else {
        "query": text, "positives": texts, "negatives": texts, "instruction": text}  # fmt: skip
    if not any(getattr(row, "instruction", None) for row in rows):
        types.pop("instruction", None)
    return pa.table({name: [getattr(row, name) for row in rows] for name in types}, schema=pa.schema(types.items()))
