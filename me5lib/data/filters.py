"""Filters: why a pair is dropped. Named steps, made from the options that a data card gives.

    steps = sift("mc4", {"length": {"least": 20}, "language": {}})    # (name, step) in the card's order
    reason = steps[0][1](pair)                                         # "passage under 20 characters", or None: keep

`STEPS` look at one pair or labelled example. `WHOLE_CARD` are the steps that look at a whole card (`exact`, `near`);
here are only their options, the rest is the pipeline's. They come after the others, in that order, wherever the card
names them. Every threshold is ours unless a source is named.

Cost per pair on one core, at 1,000 signs: `length` 10 µs, `identical` 10 µs, `language` 0.1 ms, `boilerplate` 0.05 ms.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, validate_call

from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair, text_key

Item = Pair | Labelled
Filter = Callable[[Item], str | None]
Side = Literal["query", "passage", "both"]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def sides(item: Item, side: Side) -> list[tuple[str, str]]:
    """(side, text) of an item; a labelled example's passages are its positives, its negatives are left alone."""
    passages = [item.passage] if isinstance(item, Pair) else list(item.positives)
    found = [("query", item.query)] if side != "passage" else []
    return found + [("passage", text) for text in passages if side != "query"]


def length(least: Natural = 1, most: Natural = 10_000, query_least: Natural | None = None,
           query_most: Natural | None = None, passage_least: Natural | None = None,
           passage_most: Natural | None = None) -> Filter:
    """Drop where a side has fewer or more characters than this; `least` and `most` hold where the side has no own."""
    lows = {"query": least if query_least is None else query_least,
            "passage": least if passage_least is None else passage_least}
    highs = {"query": most if query_most is None else query_most,
             "passage": most if passage_most is None else passage_most}

    def step(item: Item) -> str | None:
        """The first side that is too short or too long."""
        for side, text in sides(item, "both"):
            if len(text) < lows[side]:
                return f"{side} under {lows[side]} characters"
            if len(text) > highs[side]:
                return f"{side} over {highs[side]} characters"
        return None

    return step


# Codes of py3langid that are others of ours, and languages that it cannot be trusted to tell apart (ours).
_OURS = {"no": "nb", "kik": "ki", "gug": "gn", "uzs": "uz", "grc": "el", "hbo": "he", "tl": "fil"}
_ALIKE = ({"nb", "nn", "da"}, {"bs", "hr", "sr", "sr-latn", "sh"}, {"id", "ms", "jv"}, {"zh", "zh-hant", "yue", "wuu"},
          {"cs", "sk"}, {"gl", "pt"}, {"ar", "ary", "arz"}, {"hi", "mr", "ne", "sa"}, {"xh", "zu"}, {"rw", "rn"},
          {"es", "ca", "gl", "ext", "an"}, {"bg", "mk"}, {"tt", "ba"}, {"az", "tr"}, {"uz", "ug"}, {"ku", "sdh"},
          {"bn", "as"}, {"nso", "st", "tn"}, {"fr", "gcf", "gcr", "ht", "wa"}, {"de", "lb"}, {"nl", "af"})
_NONE = "zxx"  # of py3langid: no language at all (addresses, numbers)


@cache
def _alike(one: str, other: str) -> bool:
    return one == other or any({one, other} <= relatives for relatives in _ALIKE)


@cache
def _identifier() -> tuple[Any, frozenset[str]]:
    """py3langid's identifier with probabilities, and the languages that it knows, in our codes."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return found, frozenset(_OURS.get(code, code) for code in found.labels)


def in_language(side: Side = "passage", least_chars: Natural = 40, sure: Share = 0.9) -> Filter:
    """Drop where py3langid gives another language, with its close relatives, a probability of `sure` or more.

    Kept: texts under `least_chars`; languages that it does not know; those that it takes for a close relative. The side
    `both` is for translations, of which one side is in the item's language and the other is not: dropped where neither
    is, or both are in one language.
    """
    def step(item: Item) -> str | None:
        """The side that surely is in another language."""
        base = item.language.split("-")[0]
        if base not in _identifier()[1]:
            return None
        found = [_surely(text, least_chars, sure) for _, text in sides(item, side)]
        other = [code is not None and not _alike(base, code) for code in found]
        if side != "both":
            return f"{side} in another language" if any(other) else None
        if all(other):
            return "neither side in its language"
        return "both sides in one language" if None not in found and len(set(found)) == 1 else None

    return step


def _surely(text: str, least_chars: int, sure: float) -> str | None:
    """The language that a text is in, in our code; None: short, not sure, or no language at all."""
    if len(text) < least_chars:
        return None
    found = [(_OURS.get(code, code), probability) for code, probability in _identifier()[0].rank(text[:2_000])]
    best = found[0][0]
    return best if best != _NONE and sum(p for code, p in found if _alike(best, code)) >= sure else None


_COOKIES = re.compile(
    r"(we|this (web)?site) uses? cookies|accept (all )?cookies|cookie (policy|settings)|verwende[nt] .{0,20}cookies"
    r"|utilis(ons|e) .{0,20}cookies|(utiliza(mos)?|usamos) .{0,20}cookies|utilizz(iamo|a) .{0,20}cookie"
    r"|gebruik(t|en) .{0,20}cookies|używa(my)? .{0,20}cookie|использу(ем|ет) .{0,20}cookie|cookie ?を使用"
    r"|(please )?enable javascript|javascript (is|must be) (disabled|enabled)", re.IGNORECASE)


_ENDS = ".,;:!?…。、！？।॥؟"  # no entry of a menu ends so


def boilerplate(side: Side = "passage", letters: Share = 0.4) -> Filter:
    """Drop filler text, short cookie notices, menus, one line over and over, and what is mostly not letters.

    `letters`: the least share of letters and their marks among what is not white space, of texts of 20 or more.
    """
    def step(item: Item) -> str | None:
        found = ((where, _boilerplate(text, letters)) for where, text in sides(item, side))
        return next((f"{where} is {reason}" for where, reason in found if reason), None)

    return step


def _boilerplate(text: str, letters: float) -> str | None:
    """What kind of boilerplate a text is; None: none. Notices only where they are most of a text (under 500 signs)."""
    if "lorem ipsum" in text[:5_000].casefold():
        return "filler text"
    if len(text) < 500 and _COOKIES.search(text):
        return "a cookie notice"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) >= 4 and Counter(lines).most_common(1)[0][1] > len(lines) / 2:
        return "one line repeated"
    entries = [line for line in lines if len(line) <= 25 and len(line.split()) <= 3 and line[-1] not in _ENDS]
    if len(lines) >= 10 and len(entries) >= 0.9 * len(lines):
        return "a menu"
    signs = [sign for sign in text[:1_000] if not sign.isspace()]
    written = sum(sign.isalpha() or unicodedata.category(sign)[0] == "M" for sign in signs)
    return "mostly not letters" if len(signs) >= 20 and written < letters * len(signs) else None


def identical() -> Filter:
    """Drop where the passage says what the query says (`text_key`): nothing is to be learnt from it."""
    def step(item: Item) -> str | None:
        keys = {text_key(text) for _, text in sides(item, "passage")}
        return "query equals passage" if text_key(item.query) in keys else None

    return step


def exact() -> None:
    """Of items with the same keys on both sides, over the card, one is kept."""


def minhash_bands(threshold: Annotated[float, Field(ge=0.3, lt=1)] = 0.8) -> tuple[int, int]:
    """Of items whose passages' character n-grams have this Jaccard similarity, over the card, one is kept (MinHash).

    (buckets, hashes per bucket): the strictest that catches nine in ten pairs at `threshold`, of 128 hashes.
    """
    catching = (rows for rows in range(64, 0, -1) if 1 - (1 - threshold**rows) ** (128 // rows) >= 0.9)
    rows = next(catching, 1)
    return 128 // rows, rows


STEPS: dict[str, Callable[..., Filter]] = {"length": length, "language": in_language, "boilerplate": boilerplate,
                                         "identical": identical}
WHOLE_CARD: dict[str, Callable[..., Any]] = {"exact": exact, "near": minhash_bands}


def make_filter(card: str, name: str, options: Mapping[str, Any]) -> Any:
    """The step `name` with these options: of `STEPS` a function, of `WHOLE_CARD` its options.

    Raises `Me5Error` naming card and key for an unknown step, an unknown option or a value that is none.
    """
    known = STEPS | WHOLE_CARD
    if name not in known:
        raise Me5Error(f"data card {card}.md: filters.{name}: no such filter: there are {', '.join(known)}")
    try:
        return validate_call(known[name])(**options)
    except ValidationError as error:
        first = error.errors()[0]
        what, where = first["msg"], ".".join(map(str, ("filters", name, *first["loc"])))
        if first["type"] == "unexpected_keyword_argument":
            what = f"no such option: there are {', '.join(inspect.signature(known[name]).parameters) or 'none'}"
        raise Me5Error(f"data card {card}.md: {where}: {what}") from None


def sift(card: str, given: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Filter]]:
    """The steps over one item that a card names, in its order. `Me5Error` as `make_filter`, for all of its steps."""
    made = [(name, make_filter(card, name, options)) for name, options in given.items()]
    return [(name, step) for name, step in made if name in STEPS]
