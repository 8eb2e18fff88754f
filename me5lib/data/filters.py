"""Filters: why a pair is dropped. Functions of an item with the options that a data card gives.

    steps = sift("mc4", {"length": {"least": 20}, "language": {}})    # in the card's order
    reason = steps[0](pair)                                            # "passage under 20 characters", or None: keep

`STEPS` look at one pair or labelled example. `WHOLE_CARD` are those that look at a whole card: here are only their
options, the rest is the pipeline's. They come after the others, in that order, wherever the card names them. Every
threshold is ours unless a source is named.

Cost per pair on one core, at 1,000 signs: `length` 10 µs, `identical` 10 µs, `language` 0.1 ms, `boilerplate` 0.05 ms.
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal, get_type_hints

from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import ConfigDict, Field, ValidationError, create_model

from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair, text_key

Item = Pair | Labelled
Filter = Callable[[Item], str | None]
Side = Literal["passage", "both"]
Natural = Annotated[int, Field(ge=0)]


def sides(item: Item, side: Side) -> list[tuple[str, str]]:
    """(side, text) of an item; a labelled example's passages are its positives, its negatives are left alone."""
    passages = [item.passage] if isinstance(item, Pair) else list(item.positives)
    return [("query", item.query)] * (side == "both") + [("passage", text) for text in passages]


def length(item: Item, least: Natural = 1, most: Natural = 10_000, query_least: Natural | None = None,
           query_most: Natural | None = None, passage_least: Natural | None = None,
           passage_most: Natural | None = None) -> str | None:
    """Drop where a side has fewer or more characters than this; `least` and `most` hold where the side has no own."""
    for side, text in sides(item, "both"):
        low, high = (query_least, query_most) if side == "query" else (passage_least, passage_most)
        low, high = least if low is None else low, most if high is None else high
        if not low <= len(text) <= high:
            return f"{side} under {low} characters" if len(text) < low else f"{side} over {high} characters"
    return None


# Codes of py3langid that are others of ours, and languages that it cannot be trusted to tell apart (ours).
_OURS = {"no": "nb", "kik": "ki", "gug": "gn", "uzs": "uz", "grc": "el", "hbo": "he", "tl": "fil"}
_ALIKE = ({"nb", "nn", "da"}, {"bs", "hr", "sr", "sr-latn", "sh"}, {"id", "ms", "jv"}, {"zh", "zh-hant", "yue", "wuu"},
          {"cs", "sk"}, {"gl", "pt"}, {"ar", "ary", "arz"}, {"hi", "mr", "ne", "sa"}, {"xh", "zu"}, {"rw", "rn"},
          {"es", "ca", "gl", "ext", "an"}, {"bg", "mk"}, {"tt", "ba"}, {"az", "tr"}, {"uz", "ug"}, {"ku", "sdh"},
          {"bn", "as"}, {"nso", "st", "tn"}, {"fr", "gcf", "gcr", "ht", "wa"}, {"de", "lb"}, {"nl", "af"})
_NONE = "zxx"  # of py3langid: no language at all (addresses, numbers)
SURE = 0.9  # probability with which a text is in a language (ours)
UNSURE = {"oc"}  # what people wrote in it, it knows in fewer than nine of ten cases (tests/benchmarks/language_id.py)


@cache
def _alike(one: str, other: str) -> bool:
    return one == other or any({one, other} <= relatives for relatives in _ALIKE)


@cache
def _identifier() -> tuple[LanguageIdentifier, frozenset[str]]:
    """py3langid's identifier with probabilities, and the languages that it knows, in our codes."""
    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return found, frozenset(_OURS.get(code, code) for code in found.labels)


def in_language(item: Item, side: Side = "passage", least_chars: Natural = 40) -> str | None:
    """Drop where py3langid gives another language, with its close relatives, a probability of `SURE` or more.

    Kept: texts under `least_chars`; languages that it does not know, or knows badly (`UNSURE`); those that it takes for
    a close relative. The side `both` is for translations, of which one side is in the item's language and the other is
    not: dropped where neither is, or both are in one language.
    """
    base = item.language.split("-")[0]
    if not _trusted(base):
        return None
    found = [_language_of(text) if len(text) >= least_chars else None for _, text in sides(item, side)]
    other = [code is not None and not _alike(base, code) for code in found]
    if side != "both":
        return f"{side} in another language" if any(other) else None
    if all(other):
        return "neither side in its language"
    return "both sides in one language" if None not in found and len(set(found)) == 1 else None


def foreign(text: str, language: str) -> str | None:
    """The language that a text surely is in, where that is neither `language` nor a close relative of it, as a code."""
    base = language.split("-")[0]
    found = _language_of(text) if _trusted(base) else None
    return None if found is None or _alike(base, found) else found


def _trusted(base: str) -> bool:
    return base in _identifier()[1] and base not in UNSURE


def _language_of(text: str) -> str | None:
    """The language that a text is in, in our code; None: not sure, or no language at all."""
    found = [(_OURS.get(code, code), probability) for code, probability in _identifier()[0].rank(text[:2_000])]
    best = found[0][0]
    return best if best != _NONE and sum(p for code, p in found if _alike(best, code)) >= SURE else None


_COOKIES = re.compile(
    r"(we|this (web)?site) uses? cookies|accept (all )?cookies|cookie (policy|settings)|verwende[nt] .{0,20}cookies"
    r"|utilis(ons|e) .{0,20}cookies|(utiliza(mos)?|usamos) .{0,20}cookies|utilizz(iamo|a) .{0,20}cookie"
    r"|gebruik(t|en) .{0,20}cookies|używa(my)? .{0,20}cookie|использу(ем|ет) .{0,20}cookie|cookie ?を使用"
    r"|(please )?enable javascript|javascript (is|must be) (disabled|enabled)", re.IGNORECASE)


_ENDS = ".,;:!?…。、！？।॥؟"  # no entry of a menu ends so
LETTERS = 0.4  # least share of letters and their marks among what is not white space, of texts of 20 or more (ours)


def boilerplate(item: Item) -> str | None:
    """Drop passages of filler text, short cookie notices, menus, one line over and over, and mostly not letters."""
    kinds = (_boilerplate_kind(text) for _, text in sides(item, "passage"))
    return next((f"passage is {kind}" for kind in kinds if kind), None)


def _boilerplate_kind(text: str) -> str | None:
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
    return "mostly not letters" if len(signs) >= 20 and written < LETTERS * len(signs) else None


def identical(item: Item) -> str | None:
    """Drop where the passage says what the query says (`text_key`): nothing is to be learnt from it."""
    keys = {text_key(text) for _, text in sides(item, "passage")}
    return "query equals passage" if text_key(item.query) in keys else None


def exact() -> None:
    """Of items with the same keys on both sides, over the card, one is kept."""


def minhash_bands(threshold: Annotated[float, Field(ge=0.3, lt=1)] = 0.8) -> tuple[int, int]:
    """Of items whose passages' character n-grams have this Jaccard similarity, over the card, one is kept (MinHash).

    (buckets, hashes per bucket): the strictest that catches nine in ten pairs at `threshold`, of 128 hashes.
    """
    catching = (rows for rows in range(64, 0, -1) if 1 - (1 - threshold**rows) ** (128 // rows) >= 0.9)
    rows = next(catching, 1)
    return 128 // rows, rows


STEPS: dict[str, Callable[..., str | None]] = {"length": length, "language": in_language, "boilerplate": boilerplate,
                                               "identical": identical}
WHOLE_CARD: dict[str, Callable[..., Any]] = {"exact": exact, "near": minhash_bands}


def make_filter(card: str, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function `name` with these options. Raises `Me5Error` naming card and key where one of them is wrong."""
    known = STEPS | WHOLE_CARD
    if name not in known:
        raise Me5Error(f"data card {card}.md: filters.{name}: no such filter: there are {', '.join(known)}")
    types = get_type_hints(known[name], include_extras=True)
    fields = {option: (types[option], parameter.default)
              for option, parameter in inspect.signature(known[name]).parameters.items() if option != "item"}
    try:
        checked = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        what, where = first["msg"], ".".join(map(str, ("filters", name, *first["loc"])))
        if first["type"] == "extra_forbidden":
            what = f"no such option: there are {', '.join(fields) or 'none'}"
        raise Me5Error(f"data card {card}.md: {where}: {what}") from None
    return partial(known[name], **dict(checked))


def sift(card: str, given: Mapping[str, Mapping[str, Any]]) -> list[Filter]:
    """The steps over one item that a card names, in its order. `Me5Error` as `make_filter`, for all of its steps."""
    made = {name: make_filter(card, name, options) for name, options in given.items()}
    return [step for name, step in made.items() if name in STEPS]
