"""Pairs and labelled examples out of the rows of a hub source: one builder for all repositories of one form.

A builder is a pure function of a row and of its `RowContext`, listed in `BUILDERS` by its name on the cards. It trusts
that the row has the types of its card (`hub.make_items` checks them first), gives bare stripped texts, and says with a
`Drop` why a row, or a part of it, gives none. Cost: 1 to 5 µs a row; 2 ms for 10,000 characters of HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from html.parser import HTMLParser
from types import MappingProxyType
from typing import Any, NamedTuple

from me5lib.data.text import language
from me5lib.pairs import Labelled, Pair, text_key

Row = Mapping[str, Any]  # as the hub has it: columns of `cards.Hub.columns`


class RowContext(NamedTuple):
    """Where a row comes from."""

    card: str
    language: str = ""  # ISO 639; "" where the row itself tells it
    options: Mapping[str, Any] = MappingProxyType({})  # of the card's hub entry


class Drop(NamedTuple):
    """Why a row, or a part of it, gives no pair: "empty title", "score below 1"."""

    reason: str


Builder = Callable[[Row, RowContext], Iterator[Pair | Labelled | Drop]]

_MARKDOWN_HEADING = re.compile(r"(#{1,6})\s+(.*?)[\s#]*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_END_TAG = re.compile(r"</[a-zA-Z][a-zA-Z0-9]*>|<[bh]r\s*/?>")
_BLOCKS = frozenset("p div br hr li ul ol dl dt dd pre blockquote table tr h1 h2 h3 h4 h5 h6 section article".split())
_GONE = frozenset(("[deleted]", "[removed]", "[deleted by user]"))  # what Reddit shows of a withdrawn text
NO_LANGUAGE = frozenset(("und", "mul", "mis", "zxx"))  # ISO 639 codes that name no language
_DIALECTS = {"prs": "fa", "pbt": "ps", "quy": "qu"}  # of NLLB, which CLDR leaves apart or knows only by region


def wikipedia(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """Hierarchical section title → the section's text, one pair a section; the lead's title is the article's.

    The row's `text` is Markdown; a table is no passage. Option `joint`: what stands between the titles of a hierarchy.
    """
    title = _text(row, "title")
    if not title:
        yield Drop("empty title")
        return
    for headings, passage in list(markdown_sections(_text(row, "text"))) or [([], "")]:
        path = [title, *(heading for heading in headings if heading.casefold() != title.casefold())]
        yield _make_pair(context.options.get("joint", " - ").join(path), passage, context)


def markdown_sections(markdown: str) -> Iterator[tuple[list[str], str]]:
    """The parts of a Markdown text as (headings over it, outermost first; its own text without tables).

    A heading that only holds further headings has no text of its own: "". What stands before the first heading is given
    only when there is any.
    """
    headings: list[tuple[int, str]] = []
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        fenced ^= _FENCE.match(line) is not None
        found = None if fenced else _MARKDOWN_HEADING.match(line)
        if found is None:
            lines += [] if line.lstrip().startswith("|") else [line.rstrip()]
            continue
        if headings or any(lines):
            yield [heading for _, heading in headings], "\n".join(lines).strip()
        lines = []
        headings = [each for each in headings if each[0] < len(found[1])] + [(len(found[1]), found[2])]
    if headings or any(lines):
        yield [heading for _, heading in headings], "\n".join(lines).strip()


def mc4(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """First line of a page → the rest of it. Option `title_most`: characters of a line that may be a title (200)."""
    title, _, content = _text(row, "text").partition("\n")
    if not content:
        yield Drop("page of one line")
    elif len(title) > context.options.get("title_most", 200):
        yield Drop("first line is no title")
    else:
        yield _make_pair(title, content, context)


def ccmatrix(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """English and another language, whose code the file gives: both directions."""
    yield from _both_ways((row.get("english"), "en"), (row.get("non_english"), context.language), context)


def nllb(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """Two texts with their NLLB codes (`eng_Latn`): both directions."""
    tags = [_text(row, f"lang{side}") for side in (1, 2)]
    bases = [tag.split("_")[0].casefold() for tag in tags]
    first, second = (_DIALECTS.get(base) or (None if base in NO_LANGUAGE else language(tag))
                     for base, tag in zip(bases, tags, strict=True))
    if not first or not second:
        yield Drop("unknown language")
    elif first == second:
        yield Drop("same language")
    else:
        yield from _both_ways((row.get("text1"), first), (row.get("text2"), second), context)


def reddit(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """Post → each of two responses, by E5's heuristics.

    Options `least_score` (1) and `most_chars` (4,096): a response with a lower score, or a longer text on either side,
    is dropped.
    """
    for side in ("A", "B"):
        if row[f"score_{side}"] < context.options.get("least_score", 1):
            yield Drop("score too low")
        else:
            yield _of_reddit(_text(row, "history"), _text(row, f"human_ref_{side}"), context)


def reddit_post(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """Title of a post → its body. Option `most_chars` (4,096) as in `reddit`; the rows have no score."""
    yield _of_reddit(_text(row, "title"), _text(row, "body"), context)


def stackexchange(row: Row, context: RowContext) -> Iterator[Pair | Drop]:
    """Question → its answer of the highest score, the first of equals; HTML is taken out of both.

    `pm_score` is a number, or the text of one. Option `least_score`: what the best answer must have (0).
    """
    highest, best = -math.inf, None
    for answer in row["answers"]:
        with suppress(TypeError, ValueError):  # no score
            if highest < float(answer["pm_score"]) < math.inf:
                highest, best = float(answer["pm_score"]), answer["text"]
    if best is None:
        yield Drop("no scored answer")
    elif highest < context.options.get("least_score", 0):
        yield Drop("score too low")
    else:
        yield _make_pair(without_html(_text(row, "question")), without_html(best), context)


def two_columns(row: Row, context: RowContext, query: str = "", passage: str = "",
                clean: Callable[[str], str] = str.strip) -> Iterator[Pair | Drop]:
    """One column → another, or → each text of a list in it. Options `query` and `passage`: their names."""
    query, found = (row.get(context.options.get(side, name)) for side, name in (("query", query), ("passage", passage)))
    for text in found if isinstance(found, list) else [found]:
        yield _make_pair(clean(query or ""), clean(text or ""), context)


def without_html(text: str) -> str:
    """The text of an HTML fragment: tags gone, entities resolved, one line break for a block. Code keeps its signs.

    A text without any end tag is no HTML and stays as it is: `a <b and b> c` is a comparison.
    """
    if not _END_TAG.search(text):
        return text.strip()
    reader = _Reader()
    reader.feed(text.replace("<![", "&lt;!["))  # a marked section that the parser does not know makes it raise
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    """Collects the text of an HTML fragment in `parts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0  # how many script and style elements are open

    def handle_starttag(self, tag: str, attrs: object = None, step: int = 1) -> None:
        """An element begins, or with `step` -1 ends; a block begins and ends a line."""
        self.silent = max(0, self.silent + step * (tag in ("script", "style")))
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """An element ends."""
        self.handle_starttag(tag, step=-1)

    def handle_data(self, data: str) -> None:
        """Text is kept unless it is a script's."""
        if not self.silent:
            self.parts.append(data)


def _text(row: Row, column: str) -> str:
    """The stripped text of a column; "" for null, or where a nullable column is absent."""
    return (row.get(column) or "").strip()


def _make_pair(query: str | None, passage: str | None, context: RowContext, language: str = "") -> Pair | Drop:
    """The pair of two texts, stripped, or why there is none."""
    query, passage = (query or "").strip(), (passage or "").strip()
    if not query or not passage:
        return Drop("empty passage" if query else "empty query")
    return Pair(query, passage, context.card, language or context.language)


def _both_ways(first: tuple[str | None, str], second: tuple[str | None, str],
               context: RowContext) -> Iterator[Pair | Drop]:
    """Both directions between two (text, language), by the language of the passage, or the one that is not English."""
    for (query, asked), (passage, given) in ((first, second), (second, first)):
        yield _make_pair(query, passage, context, asked if given == "en" else given)


def _of_reddit(query: str, passage: str, context: RowContext) -> Pair | Drop:
    """The pair of two texts of Reddit, unless one is withdrawn or too long."""
    if query.casefold() in _GONE or passage.casefold() in _GONE:
        return Drop("deleted text")
    if max(len(query), len(passage)) > context.options.get("most_chars", 4096):
        return Drop("text too long")
    return _make_pair(query, passage, context)


def passages(row: Row, context: RowContext) -> Iterator[Labelled | Drop]:
    """A query and passages with titles: the form of Tevatron (its docs/datasets.md), which Mr. TyDi shares.

    Title, a space, text; the text alone where the title has no letter or digit ("-" stands for none in MS MARCO), as in
    the authors' evaluation (unilm, e5). A passage without text is none: a title alone answers nothing.
    """
    def texts(column: str) -> Iterator[str]:
        for each in row[column] or ():
            title, text = _text(each, "title"), _text(each, "text")
            yield f"{title} {text}" if text and any(map(str.isalnum, title)) else text

    yield example(context, row["query"], texts("positive_passages"), texts("negative_passages"))


def labelled_columns(row: Row, context: RowContext, query: str) -> Iterator[Labelled | Drop]:
    """A query, right and wrong texts in columns of one text, or of a list of them.

    Options, names of columns: `query`; `positives` or `positive` ("positive") and `negatives` ("negative"), one or a
    list of them; `instruction`, the row's own (none).
    """
    def texts(names: str | list[str]) -> list[str | None]:
        values = [row.get(name) for name in ([names] if isinstance(names, str) else names)]
        return [text for value in values for text in (value if isinstance(value, list) else [value])]

    options = context.options
    right = texts(options.get("positives", options.get("positive", "positive")))
    told = _text(row, options["instruction"]) if "instruction" in options else None
    yield example(context, row[options.get("query", query)], right, texts(options.get("negatives", "negative")),
                  instruction=told or None)


def translation_examples(row: Row, context: RowContext) -> Iterator[Labelled | Drop]:
    """The pairs of `nllb`, one a direction, as examples without negatives."""
    for pair in nllb(row, context):
        yield pair if isinstance(pair, Drop) else Labelled(pair.query, (pair.passage,), (), pair.source, pair.language)


def example(context: RowContext, query: str | None, positives: Iterable[str | None], negatives: Iterable[str | None], *,
            instruction: str | None = None) -> Labelled | Drop:
    """The labelled example of these texts; a `Drop` without a query or a positive.

    By `text_key`, a positive that was there already goes, and so does a negative that is a positive, the query or
    another negative: it would be pushed away from what it should be near.
    """
    query = (query or "").strip()
    right = _by_key(positives)
    if not query or not right:
        return Drop("no positive" if query else "empty query")
    wrong = _by_key(negatives, but={*right, text_key(query)})
    return Labelled(query, tuple(right.values()), tuple(wrong.values()), context.card, context.language,
                    instruction=instruction)


def _by_key(texts: Iterable[str | None], but: Collection[int] = ()) -> dict[int, str]:
    """Key → text of those that are not empty and not in `but`; of equal ones the first, in the order given."""
    found: dict[int, str] = {}
    for text in texts:
        if (stripped := (text or "").strip()) and (key := text_key(stripped)) not in but:
            found.setdefault(key, stripped)
    return found


# Every builder by its name in the cards.
PAIR_BUILDERS: dict[str, Builder] = {
    "wikipedia": wikipedia, "mc4": mc4, "ccmatrix": ccmatrix, "nllb": nllb, "reddit": reddit,
    "reddit_post": reddit_post, "stackexchange": stackexchange, "columns": two_columns,
    "stackexchange_title": partial(two_columns, query="title_body", passage="upvoted_answer", clean=without_html),
    "cc_news": partial(two_columns, query="title", passage="maintext"),
    "s2orc": partial(two_columns, query="title", passage="abstract"),
    "xp3": partial(two_columns, query="inputs", passage="targets"),
}
LABELLED_BUILDERS: dict[str, Builder] = {
    "passages": passages, "lists": partial(labelled_columns, query="query"),
    "triplet": partial(labelled_columns, query="anchor"), "translations": translation_examples,
}
BUILDERS = PAIR_BUILDERS | LABELLED_BUILDERS
