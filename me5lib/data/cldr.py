"""Rows of CLDR, out of Babel, without download: names and facts to train on; at `smoke` stand-ins for what evaluates.

The stand-ins are made of parts of CLDR that training never sees (units, dates, time zones, cities). Only locales that
inherit from nothing but CLDR's root are taken: Babel fills the gaps of `ht` from French and of `hi_Latn` from English.
Every table comes in a fixed order. Cost: about 0.3 s for the 24 smoke languages, about 3 s for all 150.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa
from babel import Locale, localedata
from babel.core import get_global
from babel.dates import format_date, format_timedelta
from babel.languages import get_official_languages
from babel.lists import format_list
from babel.units import format_unit

from me5lib.data.offline import COLUMNS, arrow_table
from me5lib.io import Me5Error
from me5lib.pairs import normalise

KINDS = {"territory": "territories", "language": "languages", "script": "scripts", "currency": "currency_names"}
LEAST = 400  # ours: a language with fewer names is left out; most of those are drafts
NEGATIVES = 4  # ours: as many wrong answers as EXAMS has at most

# Ours: 24 languages in 16 scripts, each with more than 800 names.
SMOKE = ("am", "ar", "bn", "de", "el", "es", "fa", "fi", "fr", "he", "hi", "hy", "it", "ja", "ka", "ko", "ml", "ru",
         "ta", "th", "tr", "uk", "vi", "zh")
PARALLEL = SMOKE[::3]  # ours: the languages of the stand-in for GSM
RETRIEVAL = ("de", "hi", "ja", "ru")  # ours: the languages of the stand-in retrieval task, four scripts

_UNITS = (
    "duration-hour", "duration-minute", "duration-day", "duration-week", "duration-month", "duration-year",
    "length-kilometer", "length-meter", "length-centimeter", "mass-kilogram", "mass-gram", "volume-liter",
    "volume-milliliter", "area-square-meter", "area-hectare", "temperature-celsius", "speed-kilometer-per-hour",
    "power-watt", "digital-megabyte", "angle-degree",
)  # ours: everyday units that every smoke language spells out
ZEROS = {"arab": "٠", "arabext": "۰", "beng": "০", "deva": "०"}  # Babel formats with ASCII digits only


@cache
def codes() -> list[str]:
    """The codes of all languages with at least `LEAST` names that are not the English ones; English itself left out.

    A script joins the code only where it is not the language's usual one: `zh`, `zh-hant`. Norwegian is Bokmål: `nb`.
    """
    found = []
    for name in localedata.locale_identifiers():
        language, *rest = name.split("_")
        usual = get_global("likely_subtags").get(language, "")
        other_script = len(rest) == 1 and len(rest[0]) == 4 and rest[0] not in usual
        independent = name not in get_global("parent_exceptions") and (not rest or other_script)
        code = "nb" if name == "no" else name.lower().replace("_", "-")
        if independent and language != "en" and _enough(code):
            found.append(code)
    return sorted(found)


def _locale(code: str) -> str:
    """The name of Babel's locale of a language code."""
    language, _, script = code.partition("-")
    return "no" if code == "nb" else f"{language}_{script.title()}" if script else language


@cache
def _enough(code: str) -> bool:
    return localedata.exists(_locale(code)) and sum(1 for _ in _name_pairs([code])) >= LEAST


def cldr_tables(languages: Iterable[str] | None = None) -> dict[str, pa.Table]:
    """All tables of CLDR: `translations` and `labelled` in `languages` (None: all), and the stand-ins of `smoke`.

    Columns are those of `offline.COLUMNS`. Raises `Me5Error` for a language without enough names.
    """
    wanted = codes() if languages is None else sorted(set(languages))
    if missing := [code for code in wanted if not _enough(code)]:
        raise Me5Error(f"CLDR has too few names in {', '.join(missing)}: choose among {', '.join(codes())}")
    rows = {"translations": _name_pairs(wanted), "labelled": _fact_rows(wanted), "parallel": _quantities(),
            "retrieval": _city_questions(), "labels": _labels()}
    return {kind: arrow_table(COLUMNS[kind], own) for kind, own in rows.items()}


@cache
def local_names(language: str) -> dict[str, dict[str, str]]:
    """Kind → key → name in `language` (`local_names("de")["territory"]["AT"]` is "Österreich"); every one its own."""
    data = localedata.load(_locale(language))  # merge_inherited=False would spoil Babel's cache for everyone else
    return {
        kind: {key: _spaced(text) for key, text in sorted(data.get(section, {}).items()) if text and text != key}
        for kind, section in KINDS.items()
    }


def _name_pairs(codes: Iterable[str]) -> Iterator[tuple]:
    english = local_names("en")
    for code in codes:
        for kind, own in local_names(code).items():
            for key, text in own.items():
                original = english[kind].get(key)
                if original and normalise(text) != normalise(original):
                    yield original, text, code


def _fact_rows(codes: Iterable[str]) -> Iterator[tuple]:
    for code in codes:
        asked: set[str] = set()
        for subject, key, kind, right, candidates in _facts():
            query, own = local_names(code)[subject].get(key, ""), local_names(code)[kind]
            positives = [own[key] for key in right if key in own]
            taken = {normalise(text) for text in positives}
            wrong = (own[key] for key in candidates if key in own and normalise(own[key]) not in taken)
            negatives = list(dict.fromkeys(islice(wrong, NEGATIVES)))
            if query and positives and negatives and normalise(query) not in asked:  # Fiji is a language and a country
                asked.add(normalise(query))
                yield query, positives, negatives, code


@cache
def _facts() -> list[tuple[str, str, str, list[str], list[str]]]:
    """Territory → its currency, and language → the territories where it is official: two kinds of question.

    Each as kind and key of the question, kind of the answers, keys of the right ones, and of wrong ones, best first: as
    many of these as have names are taken. A territory where the language is merely spoken is not a wrong answer.
    """
    money = {territory: code for territory in sorted(local_names("en")["territory"]) if (code := currency(territory))}
    facts = [("territory", territory, "currency", [code], _scattered(set(money.values()) - {code}, territory))
             for territory, code in money.items()]
    spoken = get_global("territory_languages")
    for language in sorted({language for territory in spoken for language in official(territory)}):
        homes = [territory for territory in sorted(spoken) if language in official(territory)]
        others = {territory for territory in money if language not in spoken.get(territory, {})}
        facts.append(("language", language, "territory", homes, _scattered(others, language)))
    return facts


def _scattered(keys: Iterable[str], seed: str) -> list[str]:
    """The first 24 of `keys` in an order that depends on `seed` alone; enough for a locale that lacks many names."""
    return sorted(keys, key=lambda key: hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest())[:24]


def currency(territory: str) -> str | None:
    """The legal tender in use, the newest where there are several; None where CLDR knows none."""
    known = get_global("territory_currencies").get(territory, [])
    used = [(start or (0, 0, 0), code) for code, start, end, tender in known if end is None and tender]
    return max(used)[1] if used else None


@cache
def official(territory: str) -> tuple[str, ...]:
    """Official languages, the most widely spoken first."""
    return get_official_languages(territory, de_facto=True)


def _quantities(meanings: int = 60) -> Iterator[tuple]:
    """Three quantities in words and digits, and, as the answer, twice as much of each: stands in for GSM.

    Amounts are 3 … 99, since Arabic and Hebrew write one and two as words; never the same three units twice. Where CLDR
    leaves out a long form of a unit, it equals the short one.
    """
    for code in ("en", *PARALLEL):
        locale, patterns = Locale.parse(_locale(code)), localedata.load(_locale(code))["unit_patterns"]
        zero = ord(ZEROS.get(locale.default_numbering_system, "0"))
        digits = {ord("0") + n: chr(zero + n) for n in range(10)}
        for meaning in range(meanings):
            step, first = divmod(meaning, len(_UNITS))
            units = [_UNITS[(first + shift) % len(_UNITS)] for shift in (0, 1 + step, 5 + 3 * step)]
            texts = []
            for times in (1, 2):
                amounts = [times * (3 + _stable_hash(f"{meaning} {unit}") % 97) for unit in units]
                forms = ["long" if "other" in patterns[unit].get("long", {}) else "short" for unit in units]
                words = [format_unit(*each, locale=locale) for each in zip(amounts, units, forms, strict=True)]
                texts.append(_spaced(format_list([word.translate(digits) for word in words], locale=locale)))
            yield f"quantity-{meaning:03d}", code, *texts


def _spaced(text: str) -> str:
    """One space for any run of white space: CLDR's no-break spaces differ from one release to the next."""
    return " ".join(text.split())


def _stable_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _city_questions(territories: int = 80) -> Iterator[tuple]:
    """"city, language" → what CLDR knows of the territory: stands in for the retrieval packs.

    No text here is a name that training sees: queries begin with a city, titles end with the territory's code.
    """
    zones, spoken = get_global("territory_zones"), get_global("territory_languages")
    for code in RETRIEVAL:
        own, cities = local_names(code), localedata.load(_locale(code)).get("time_zones", {})
        known = [t for t in sorted(own["territory"]) if t in zones and currency(t) and official(t)]
        for territory in sorted(known, key=lambda t: _stable_hash(t))[:territories]:
            zone = zones[territory][0]  # where CLDR has no name of its own, its identifier is the city's name
            city = cities.get(zone, {}).get("city") or zone.rsplit("/", 1)[-1].replace("_", " ")
            share = {each: facts["population_percent"] for each, facts in spoken[territory].items()}
            most = sorted(share, key=lambda each: (-share[each], each))[:5]
            tongues = [own["language"][each] for each in most if each in own["language"]]
            tongue, money = own["language"].get(official(territory)[0]), own["currency"].get(currency(territory))
            if not (tongues and tongue and money):
                continue
            title = f"{own['territory'][territory]} ({territory})"
            text = f"{', '.join(tongues)}; {money} ({currency(territory)})"
            yield f"{code}:{zone}", f"{city}, {tongue}", f"{code}:{territory}", title, text, code


def _labels(each: int = 40) -> Iterator[tuple]:
    """Up to `each` texts of four kinds (date, distance in time, unit, time zone) a language: stands in for intents."""
    for code in SMOKE:
        locale, own = Locale.parse(_locale(code)), localedata.load(_locale(code))
        days = (date(2001, 1, 1) + timedelta(days=97 * n) for n in range(each))
        amounts = [sign * n for n in range(2, 12) for sign in (-1, 1)]
        spans = (timedelta(**{unit: n}) for unit in ("minutes", "hours", "days") for n in amounts)
        kinds: dict[str, Iterable[str]] = {
            "date": (format_date(day, "full", locale=locale) for day in days),
            "time": (format_timedelta(span, threshold=99, add_direction=True, locale=locale) for span in spans),
            "unit": (_long(unit) for unit in own["unit_display_names"].values()),
            "zone": (_long(zone.get("long", {}).get("standard")) for zone in own["meta_zones"].values()),
        }
        trained = {normalise(name) for each_kind in local_names(code).values() for name in each_kind.values()}
        for label, texts in kinds.items():
            distinct = {_spaced(text) for text in texts if text and normalise(text) not in trained}
            yield from ((text, label, code) for text in sorted(distinct, key=_stable_hash)[:each])


def _long(found: Any) -> str:
    """The long form of a unit's display name, or the text itself."""
    return (found.get("long") if isinstance(found, Mapping) else found) or ""
