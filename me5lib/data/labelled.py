"""Row → labelled example: what Table 2 and the instruct model's mixture are made of.

A builder is a pure function of one row as its repository has it and of the row's `Origin`; it yields `Labelled`, or a
`Drop` that says why not. One builder serves all repositories whose rows have one form:

    passages      query_id, query, positive_passages[docid, title, text], negative_passages[…]   (Tevatron, Mr. TyDi)
    lists         a query and lists of texts, right and wrong ones                               (E5-R, BGE)
    triplet       a query, a right text, wrong texts in columns of their own, or none            (Sentence Transformers)
    translations  two texts and their languages, read in both directions                         (NLLB)

Texts are bare (no prefixes) and stripped. Empty ones go; so does a positive that was there already, and a negative that
is a positive, the query or another negative, by `text_key`: it would be pushed away from what it should be near.
A document is its title, a space and its text, as the authors' evaluation joins them (unilm, e5/mteb_beir_eval.py).

Cost: one key per text, 0.2 ms for a row of 30 passages of 650 characters. The pipeline has checked rows by their card.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from me5lib.data import sources
from me5lib.data.origin import Drop, Origin, Row
from me5lib.pairs import Labelled, text_key

Builder = Callable[[Row, Origin], Iterator[Labelled | Drop]]


def passages(row: Row, origin: Origin) -> Iterator[Labelled | Drop]:
    """A query and passages with titles: the form of Tevatron (its docs/datasets.md), which Mr. TyDi shares."""
    right, wrong = ([document(each) for each in row[f"{kind}_passages"] or ()] for kind in ("positive", "negative"))
    yield example(origin, row["query"], right, wrong)


def lists(row: Row, origin: Origin) -> Iterator[Labelled | Drop]:
    """A query and lists of texts. Options `positives`, `negatives` (columns; default "positive", "negative"),
    `instruction` (column of the row's own instruction; none by default)."""
    right, wrong = (row[origin.options.get(f"{kind}s", kind)] for kind in ("positive", "negative"))
    told = row.get(origin.options["instruction"]) if "instruction" in origin.options else None
    yield example(origin, row["query"], right or (), wrong or (), instruction=(told or "").strip() or None)


def triplet(row: Row, origin: Origin) -> Iterator[Labelled | Drop]:
    """One text a column. Options `query`, `positive` (default "anchor", "positive"), `negatives`: names of the columns
    with wrong texts (default ["negative"]; []: none)."""
    options = origin.options
    wrong = [row.get(name) for name in options.get("negatives", ["negative"])]
    yield example(origin, row[options.get("query", "anchor")], [row[options.get("positive", "positive")]], wrong)


def translations(row: Row, origin: Origin) -> Iterator[Labelled | Drop]:
    """The pairs of `sources.nllb`, one a direction, as examples without negatives."""
    for pair in sources.nllb(row, origin):
        yield pair if isinstance(pair, Drop) else Labelled(pair.query, (pair.passage,), (), pair.source, pair.language)


def document(passage: Mapping[str, Any]) -> str:
    """Title, a space, text; the text alone where the title has no letter or digit ("-" stands for none in MS MARCO).
    "" where there is no text: a title alone answers nothing."""
    title, text = ((passage.get(part) or "").strip() for part in ("title", "text"))
    return f"{title} {text}" if text and any(map(str.isalnum, title)) else text


def example(origin: Origin, query: str | None, positives: Iterable[str | None], negatives: Iterable[str | None], *,
            instruction: str | None = None) -> Labelled | Drop:
    """The labelled example of these texts, tidied as the module says; a `Drop` without a query or a positive."""
    query = (query or "").strip()
    right = _distinct(positives)
    if not query or not right:
        return Drop("no positive" if query else "empty query")
    wrong = _distinct(negatives, but={*right, text_key(query)})
    return Labelled(query, tuple(right.values()), tuple(wrong.values()), origin.card, origin.language,
                    instruction=instruction)


def _distinct(texts: Iterable[str | None], but: Collection[int] = ()) -> dict[int, str]:
    """Key → text of those that are not empty and not in `but`; of equal ones the first, in the order given."""
    found: dict[int, str] = {}
    for text in texts:
        if text and (stripped := text.strip()):
            found.setdefault(text_key(stripped), stripped)
    return {key: text for key, text in found.items() if key not in but}


BUILDERS: dict[str, Builder] = {each.__name__: each for each in (passages, lists, triplet, translations)}
