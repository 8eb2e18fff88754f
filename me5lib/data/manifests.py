"""Manifests of built cards, read back; and what the mixture of them is: rows and shares by source and language.

    found = built(out)                      # card → manifest, of the finished builds
    for part in mixtures(found, 0.5): …     # one per stage of training

A language's share is the one that `Mixture` draws: sources by the paper's counts, the languages inside a source by
rows ** temperature. Below `STARVED` a language is warned of: the first failure signature to look at when a model is
poor in some languages is how the data is spread over them. Reads nothing but JSON.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from me5lib import io
from me5lib.data.cards import Card
from me5lib.io import Me5Error

MANIFEST = "manifest.json"
SEALED = "sealed.json"  # in .build: key of the build whose shards are in place
STARVED = 0.001  # ours: a language with less gets under 33 rows of an average batch of 32,768


class Source(NamedTuple):
    """One card of a mixture. `wanted`: the paper's rows, None: not published; `missing`: its languages without rows."""

    name: str
    rows: int
    wanted: int | None
    share: float
    languages: dict[str, int]
    missing: list[str]


class Stage(NamedTuple):
    """The mixture of one stage: its sources, those not built yet, and language → (rows, share of what is drawn)."""

    title: str
    sources: list[Source]
    absent: dict[str, int | None]  # card → rows wanted
    languages: dict[str, tuple[int, float]]

    @property
    def starved(self) -> dict[str, float]:
        """Languages drawn less often than `STARVED`, the poorest first."""
        poor = {code: share for code, (_, share) in self.languages.items() if share < STARVED}
        return dict(sorted(poor.items(), key=lambda each: (each[1], each[0])))


def is_sealed(out: Path, folder: Path) -> bool:
    """Whether the shards in `out` (folder of a card) are those of the build in `folder`."""
    with contextlib.suppress(OSError, ValueError):
        return (out / MANIFEST).is_file() and io.read_json(out / ".build" / SEALED) == folder.name
    return False


def built(out: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the finished builds in `out`, by card. Raises `Me5Error` for one that cannot be read."""
    found = {}
    for file in sorted(Path(out).glob(f"*/{MANIFEST}")):
        try:
            given = io.read_json(file)
            found[given["card"]] = given | {"rows": int(given["rows"]), "languages": dict(given["languages"])}
        except (ValueError, KeyError, TypeError):
            raise Me5Error(f"{file} cannot be read: build the card again") from None
    return found


TITLES = {1: "stage 1 (Table 1)", 2: "stage 2 (Table 2)", None: "instruct"}


def mixtures(found: Mapping[str, Mapping], known: Mapping[str, Card], temperature: float = 0.5) -> list[Stage]:
    """The mixture of every stage of which a card is built. `known`: the hub cards, `cards.hub()`."""
    stages = []
    for table, title in TITLES.items():
        cards = {name: card for name, card in known.items() if card.paper.table == table}
        here = {name: found[name] for name in cards if name in found and found[name]["rows"]}
        if here:
            absent = {name: card.paper.rows for name, card in cards.items() if name not in here}
            stages.append(_stage(title, here, cards, absent, temperature))
    return stages


def _stage(title: str, here: Mapping[str, Mapping], cards: Mapping[str, Card], absent: dict[str, int | None],
           temperature: float) -> Stage:
    weights = {name: cards[name].paper.rows or given["rows"] for name, given in here.items()}
    total = sum(weights.values())
    sources, rows, shares = [], Counter(), Counter()
    for name, given in here.items():
        share, languages = weights[name] / total, given["languages"]
        tempered = {code: n**temperature for code, n in languages.items()}
        for code, n in languages.items():
            rows[code] += n
            shares[code] += share * tempered[code] / sum(tempered.values())
        missing = sorted(set(cards[name].languages) - set(languages))
        sources.append(Source(name, given["rows"], cards[name].paper.rows, share, languages, missing))
    order = sorted(shares, key=lambda code: (-shares[code], code))
    return Stage(title, sources, absent, {code: (rows[code], shares[code]) for code in order})
