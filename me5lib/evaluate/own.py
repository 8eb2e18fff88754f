"""Before and after on the dev split of your own file, beside rows that learn nothing: random order, trigrams, BM25.

    found = compare_on_dev(corpus, {"before": Encoder.load(start), "after": Encoder.load(model)})
    print(found)                       # the table, and how far apart the last two rows are
    found.table                        # a data frame

Every dev query is searched among the passages of the whole file (`OwnCorpus.retrieval`). The interval of a difference
is a bootstrap over queries, paired: what another few queries would change, not what another training seed would.

Cost: encoding the passages once for each model; the lexical rows about a millisecond a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from me5lib.data.userdata import OwnCorpus
from me5lib.evaluate import baselines
from me5lib.evaluate.stats import Interval, bootstrap
from me5lib.model.encoder import Encoder
from me5lib.train.search import BM25Index, top_k, top_places, words

METRICS = ("accuracy@1", "MRR@10", "nDCG@10")
DEPTH = 10
DISCOUNT = 1 / np.log2(np.arange(2, DEPTH + 2))  # of each place, in nDCG


class Comparison(NamedTuple):
    """What `compare_on_dev` measured."""

    table: pd.DataFrame  # row → METRICS, means over queries
    difference: dict[str, Interval]  # metric → last row minus the one before it; empty for fewer than two models
    queries: int
    passages: int
    wordless: int = 0  # queries that BM25 has no word of

    def __str__(self) -> str:
        lines = [f"{self.queries:,} dev queries, each among {self.passages:,} passages",
                 self.table.to_string(float_format="{:.3f}".format)]
        if self.wordless:
            lines.append(f"BM25 finds nothing for {self.wordless:,} queries without a word")
        for metric, (mean, low, high) in self.difference.items():
            sure = "" if low > 0 or high < 0 else ": no difference that these queries could show"
            lines.append(f"{metric} {self.table.index[-1]} − {self.table.index[-2]}: {mean:+.3f} "
                         f"(95 % interval {low:+.3f} to {high:+.3f}){sure}")
        return "\n".join(lines)


def compare_on_dev(corpus: OwnCorpus, models: Mapping[str, Encoder], **options: Any) -> Comparison:
    """The table of random order, the lexical rows and `models`, and how the last two of these differ.

    Texts get the corpus's prefixes; `options` go to `Encoder.encode` (by default: fp32, as long as a model can read).
    """
    dev = corpus.retrieval()
    queries, passages = list(dev.queries.values()), [text for _, text in dev.documents.values()]
    place = {key: i for i, key in enumerate(dev.documents)}
    positives = [{place[key] for key in dev.relevant[query]} for query in dev.queries]
    counts = [baselines.Counts(baselines.count_trigrams(texts)) for texts in (queries, passages)]
    cosines = baselines.tfidf_cosine(*counts)
    by_trigrams = np.argsort(-cosines, axis=1, kind="stable")[:, :DEPTH]
    shared = np.take_along_axis(cosines, by_trigrams, axis=1) > 0
    index, by_words = BM25Index(passages), np.full((len(queries), min(DEPTH, len(passages))), -1)
    for row, query in zip(by_words, queries, strict=True):
        best = top_places(index.scores(query), DEPTH)
        row[: len(best)] = best
    scores = {"random": random_order([len(rows) for rows in positives], len(passages)),
              "character trigrams": figures(np.where(shared, by_trigrams, -1), positives),
              "BM25": figures(by_words, positives)}
    for name, encoder in models.items():
        vectors = [encoder.encode(texts, prefix, **options)
                   for texts, prefix in zip((queries, passages), corpus.prefixes(), strict=True)]
        scores[name] = figures(top_k(*vectors, DEPTH)[0], positives)
    table = pd.DataFrame({name: each.mean(0) for name, each in scores.items()}, index=list(METRICS)).T
    difference = {}
    if len(models) > 1:
        before, after = [scores[name] for name in models][-2:]
        difference = {metric: bootstrap((after - before)[:, i]) for i, metric in enumerate(METRICS)}
    return Comparison(table, difference, len(queries), len(passages), sum(not words(query) for query in queries))


def figures(rows: np.ndarray, positives: Sequence[set[int]]) -> np.ndarray:
    """METRICS of every query, float64 [Q, 3], of the passages ranked, best first: int64 [Q, up to 10], -1 for none."""
    hits = np.array([[row in right for row in ranked] for ranked, right in
                     zip(rows[:, :DEPTH].tolist(), positives, strict=True)], dtype=bool)
    first = np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
    best = np.array([DISCOUNT[: len(right)].sum() for right in positives])
    return np.stack([hits[:, 0], first, (hits * DISCOUNT[: hits.shape[1]]).sum(1) / best], axis=1)


def random_order(positives: Sequence[int], passages: int) -> np.ndarray:
    """What a random order expects of queries with so many `positives` each among `passages`: float64 [Q, 3]."""
    rows, depth = [], min(DEPTH, passages)
    for many in positives:
        missed, first = 1.0, 0.0
        for place in range(1, depth + 1):
            hit = min(1.0, many / (passages - place + 1))
            first, missed = first + missed * hit / place, missed * (1 - hit)
        rows.append((many / passages, first, many / passages * DISCOUNT[:depth].sum() / DISCOUNT[:many].sum()))
    return np.array(rows)
