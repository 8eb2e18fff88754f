"""Held-out searches of the offline corpus with a score for every query, so that two models can be compared in pairs.

    tests = searches(corpus)                                 # {"dev": [...], "xquad": [...], "bitext": [...]}
    measure(tests, cosines(encoder, tests, max_tokens=96))   # {"dev": [0.5, 1.0, 0.33, ...], ...}

`dev`: the labelled questions that stage 2 never saw; the answer is looked for among all passages of the test in the
same source and language. `xquad`: questions and paragraphs of Wikipedia, of a kind that nothing was trained on.
`bitext`: held-out translations of a few languages, as they are watched while a model trains.

It is a measure for experiments, in seconds; `evaluate.table` has mteb's own scores and all languages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import text_key

if TYPE_CHECKING:
    from me5lib.data.corpus import Corpus
    from me5lib.model.encoder import Encoder


class Search(NamedTuple):
    """Queries of one language (and source), all looking in the same pool."""

    queries: list[str]  # n
    passages: list[str]  # m
    right: np.ndarray  # bool [n, m]
    prefixes: tuple[str, str]


Scorer = Callable[[Search], np.ndarray]  # scores [n, m] of a search, higher is better


def searches(corpus: Corpus) -> dict[str, list[Search]]:
    """The tests by name; every query has at least one right passage in its pool."""
    from me5lib.train.monitor import watched

    xquad = next(task for task in corpus.tasks() if task.name == "xquad")
    return {
        "dev": list(_labelled(corpus)),
        "xquad": [_documents(found) for found in xquad.sets.values()],
        "bitext": [Search(texts, english, np.eye(len(texts), dtype=bool), (QUERY, QUERY))
                   for english, texts in watched(corpus).values()],
    }  # fmt: skip


def _labelled(corpus: Corpus) -> Iterator[Search]:
    from me5lib.train.negatives import passages
    from me5lib.train.stages import prefixes

    rows = corpus.labelled("dev")
    for key in sorted({(row.source, row.language) for row in rows}):
        own = [row for row in rows if (row.source, row.language) == key]
        pool = passages(own)
        keys = np.array([text_key(text) for text in pool])
        right = np.array([np.isin(keys, [text_key(text) for text in row.positives]) for row in own])
        yield Search([row.query for row in own], pool, right, prefixes(key[0]))


def _documents(found: object) -> Search:
    texts = [f"{title} {text}".strip() for title, text in found.documents.values()]
    right = np.array([[document in found.relevant[query] for document in found.documents] for query in found.queries])
    return Search(list(found.queries.values()), texts, right, (QUERY, PASSAGE))


def measure(tests: Mapping[str, Sequence[Search]], scorer: Scorer) -> dict[str, np.ndarray]:
    """The score of every query, float64: its reciprocal rank; of `bitext` whether the translation comes first."""
    found = {}
    for name, parts in tests.items():
        ranks = np.concatenate([reciprocal_ranks(scorer(part), part.right) for part in parts])
        found[name] = (ranks == 1).astype(np.float64) if name == "bitext" else ranks
    return found


def reciprocal_ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1 / the place of the best right passage of each query, float64 [n], of `scores` and `right` (bool) [n, m].

    Other right passages are no rivals. A wrong one with the same score takes half a place: where all scores are equal
    the right passage stands in the middle, not first.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    above, level = ((scores > best) & ~right).sum(axis=1), ((scores == best) & ~right).sum(axis=1)
    return 1 / (1 + above + level / 2)


def cosines(encoder: Encoder, tests: Mapping[str, Sequence[Search]], max_tokens: int | None = None) -> Scorer:
    """Cosines by `encoder` in these tests, in the precision that training has on this machine.

    It reads at most `max_tokens` of a text. All texts are encoded at once, each once per prefix: a call per language
    would cost three times as much.
    """
    from me5lib.device import precision

    options = {"max_tokens": max_tokens, "precision": precision(encoder.device).name}
    wanted: dict[str, dict[str, int]] = {}  # prefix → text → row
    for search in (search for parts in tests.values() for search in parts):
        for prefix, texts in zip(search.prefixes, search[:2], strict=True):
            rows = wanted.setdefault(prefix, {})
            for text in texts:
                rows.setdefault(text, len(rows))
    vectors = {prefix: encoder.encode(list(rows), prefix, **options) for prefix, rows in wanted.items()}

    def score(search: Search) -> np.ndarray:
        """fp32 [n, m]."""
        asked, found = (vectors[prefix][[wanted[prefix][text] for text in texts]]
                        for prefix, texts in zip(search.prefixes, search[:2], strict=True))  # fmt: skip
        return asked @ found.T

    return score


def trigrams(search: Search) -> np.ndarray:
    """TF-IDF cosines of character trigrams [n, m]: what shared letters alone find."""
    from me5lib.evaluate.baselines import Counts, count_trigrams, tfidf_cosine

    return tfidf_cosine(*(Counts(count_trigrams(side)) for side in (search.queries, search.passages)))


def chance(seed: int) -> Scorer:
    """Random scores, new ones for every search."""
    rng = np.random.default_rng(seed)
    return lambda search: rng.random(search.right.shape)
