"""From the files of a data card to rows: `extract(card, archives)`. Pure: bytes in, tables out, nothing kept on disk.

    got = extract(card, archives(card.name))      # one path per entry of card.files, in the card's order
    got.tables["translations"]                    # pyarrow.Table, the schema of SCHEMAS["translations"]
    got.dropped                                   # {"empty": 12, "same as English": 340, ...}

A table's name is its kind: `homeassistant` gives "translations" and "pairs" (the training source and card
`homeassistant-descriptions`). Texts are plain (no markup, no placeholders) and bare (no prefix). The builders here are
of what is trained on in bulk, interface strings and history; those of questions and of what only evaluates are in
`questions.py`.

Cost: about 55 s of one core for all cards, half of it for Home Assistant's 44,000 files; 0.8 GB at the peak.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from me5lib.data import packs, questions
from me5lib.data.cards import Card
from me5lib.data.rows import SCHEMAS, Extracted, Reader, Rows
from me5lib.io import Me5Error

__all__ = ["BUILDERS", "SCHEMAS", "Extracted", "Reader", "Rows", "build", "extract"]

MOST_BODIES = 8  # ours: "Host" stands over 242 bodies in English; 8 keeps 99 % of the titles


def extract(card: Card, archives: Sequence[Path]) -> Extracted:
    """The tables of `card` out of its files, which come in the card's order. Deterministic: equal files, equal rows.

    Raises `Me5Error` for a card that nothing is extracted from.
    """
    if card.name not in BUILDERS:
        raise Me5Error(f"nothing is extracted for data card {card.name!r}: there are {', '.join(BUILDERS)}")
    return build(card.name, [partial(packs.members, path) for path in archives])


def build(name: str, readers: Iterable[Reader]) -> Extracted:
    """As `extract`, from anything that gives members by glob (one reader per archive)."""
    rows = Rows()
    for read in readers:
        BUILDERS[name](read, rows)
    return Extracted(rows.tables(), dict(sorted(rows.dropped.items())))


# Interface strings ----------------------------------------------------------------------------------------------------


def _homeassistant(read: Reader, rows: Rows) -> None:
    """`components/<component>/translations/<tag>.json`: the same tree of strings in every language."""
    files = read("*/components/*/translations/*.json")
    for folder, group in groupby(files, key=lambda file: file[0].rpartition("/")[0]):
        trees = {Path(name).stem: json.loads(content) for name, content in sorted(group)}
        english, component = dict(_leaves(trees.get("en", {}))), Path(folder).parts[-2]
        for tag, tree in trees.items():
            for path, text in _leaves(tree):
                if tag != "en":
                    _offer(rows, f"{component}.{path}", english.get(path), text, tag)
            for title, body in _titled(tree):
                if not tag.startswith("en-"):
                    rows.pair(title, body, tag)
    rows.limit_bodies(MOST_BODIES)


def _offer(rows: Rows, key: str, english: str | None, text: str, tag: str) -> None:
    if english is None:
        rows.drop("no English")
    else:
        rows.translation(key, english, text, tag)


def _leaves(tree: dict, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and value of every string in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        elif isinstance(value, str):
            yield path + key, value


def _titled(tree: dict) -> Iterator[tuple[str, str]]:
    """Title and body: `title` or `name` beside `description`, and a label of `data` with its `data_description`."""
    title, body = tree.get("title") or tree.get("name"), tree.get("description")
    if isinstance(title, str) and isinstance(body, str):
        yield title, body
    labels, helps = tree.get("data"), tree.get("data_description")
    if isinstance(labels, dict) and isinstance(helps, dict):
        yield from ((labels[key], helps[key]) for key in helps if isinstance(labels.get(key), str))
    for value in tree.values():
        if isinstance(value, dict):
            yield from _titled(value)


def _gettext(read: Reader, rows: Rows) -> None:
    """`…/<tag>/LC_MESSAGES/<domain>.mo`: of plural forms the first; fuzzy entries are not compiled into these files."""
    from babel.messages.mofile import read_mo

    for name, content in read("*/LC_MESSAGES/*.mo"):
        tag = name.split("/")[-3]
        for message in read_mo(io.BytesIO(content)):
            english, text = message.id, message.string
            english, text = (part if isinstance(part, str) else part[0] for part in (english, text))
            if english:  # the entry for "" is the header
                rows.translation(english, english, text, tag)


def _kolibri(read: Reader, rows: Rows) -> None:
    """`kolibri/locale/<tag>/LC_MESSAGES/<app>-messages.json`: by key; ICU choices (`{n, plural, …}`) are dropped."""
    catalogues: dict[str, dict[str, str]] = defaultdict(dict)
    for name, content in read("*kolibri/locale/*/LC_MESSAGES/*-messages.json"):
        catalogues[name.split("/")[-3]].update(json.loads(content))
    english = catalogues.pop("en", {})
    for tag, strings in sorted(catalogues.items()):
        for key, text in strings.items():
            if re.search(r"\{\s*\w+\s*,\s*(plural|select)", text + english.get(key, "")):
                rows.drop("plural expression")
            else:
                _offer(rows, key, english.get(key), text, tag)


# Sentences ------------------------------------------------------------------------------------------------------------

_EVENT = re.compile(r"\s*(\d{1,4})(?!\s*-?\s*(?:BC|B\.C|a\.\s?C|av\.|v\.\s?Chr|f\.\s?Kr))\s*[-–—:]?\s+(\S.*)")


def _history(read: Reader, rows: Rows) -> None:
    """`locale/<tag>/day_<d>_month_<m>_events.dialog`, `<year> - <sentence>` a line: joined with English by date.

    Lines do not run alike in every language, nor do the events of one year, so a date joins only where either side has
    one event on it. The year itself is left out: it would give the translation away.
    """
    events: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, content in read("*/locale/*/day_*_events.dialog"):
        tag, day = name.removesuffix("_events.dialog").split("/")[-2:]
        for line in content.decode("utf8").splitlines():
            found = _EVENT.fullmatch(line)
            if found:
                events[tag][f"{day}_{found[1]}"].append(found[2])
            elif line.strip() and not line.startswith("#"):
                rows.drop("no year")
    english = events.pop("en-US", {})
    for tag, dates in sorted(events.items()):
        for date, texts in sorted(dates.items()):
            if len(texts) == len(english.get(date, ())) == 1:
                rows.translation(date, english[date][0], texts[0], tag)
            else:
                rows.drop("several events on a date" if date in english else "date without its English", len(texts))


BUILDERS: dict[str, Callable[[Reader, Rows], None]] = {
    "homeassistant": _homeassistant,
    "gettext": _gettext,
    "kolibri": _kolibri,
    "history": _history,
    "exams": questions.exams,
    "gsm": questions.gsm,
    "xquad": questions.xquad,
    "fastapi": questions.fastapi,
    "intents": questions.intents,
}
