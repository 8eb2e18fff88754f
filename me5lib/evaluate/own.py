"""Before and after on the dev split of your own file, beside rows that learn nothing: random order, trigrams, BM25.

    found = compare(corpus, {"before": Encoder.load(start), "after": Encoder.load(model)})
    print(found)                       # the table, and how far apart the last two rows are
    found.table                        # a data frame

Every dev query is searched among the passages of the whole file (`OwnCorpus.retrieval`), the right ones of its own and
everyone else's. accuracy@1, MRR@10 and nDCG@10 are means over queries. The interval of a difference is a bootstrap over
queries, paired: what another few queries would change, not what another training seed would.

Cost: encoding the passages once for each model; the lexical rows about a millisecond a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from me5lib.evaluate import baselines
from me5lib.evaluate.stats import Interval, bootstrap
from me5lib.train.search import BM25Index, largest, top_k, words

if TYPE_CHECKING:
    from me5lib.data.corpus import RetrievalSet
    from me5lib.data.userdata import OwnCorpus
    from me5lib.model.encoder import Encoder

METRICS = ("accuracy@1", "MRR@10", "nDCG@10")
DEPTH = 10
BLOCK = 256  # queries whose scores are held at once by the trigrams


class Comparison(NamedTuple):
    """What `compare` found."""

    table: pd.DataFrame  # row → METRICS, means over queries
    difference: dict[str, Interval]  # metric → last row minus the one before it; empty for fewer than two models
    queries: int
    passages: int
    wordless: int = 0  # queries that BM25 has no word of

    def __str__(self) -> str:
        said = f"{self.queries:,} dev queries, each among {self.passages:,} passages\n"
        said += self.table.to_string(float_format="{:.3f}".format)
        said += f"\nBM25 finds nothing for {self.wordless:,} queries without a word" * bool(self.wordless)
        for metric, (mean, low, high) in self.difference.items():
            sure = "" if low > 0 or high < 0 else ": no difference that these queries could show"
            said += f"\n{metric} {self.table.index[-1]} − {self.table.index[-2]}: {mean:+.3f} "
            said += f"(95 % interval {low:+.3f} to {high:+.3f}){sure}"
        return said


def compare(corpus: OwnCorpus, models: Mapping[str, Encoder], **options: Any) -> Comparison:
    """The table of random order, the lexical rows and `models`, and how the last two of these differ.

    Texts get the corpus's prefixes; `options` go to `Encoder.encode` (by default: fp32, as long as a model can read).
    """
    dev = corpus.retrieval()
    queries, passages = list(dev.queries.values()), [text for _, text in dev.documents.values()]
    relevant = _relevant(dev)
    found = {"random": chance([len(each) for each in relevant], len(passages))}
    found["character trigrams"] = figures(trigrams(queries, passages), relevant)
    found["BM25"] = figures(_words(queries, passages), relevant)
    sides = corpus.prefixes()
    for name, encoder in models.items():
        asked, given = (encoder.encode(texts, side, **options)
                        for texts, side in zip((queries, passages), sides, strict=True))
        found[name] = figures(top_k(asked, given, DEPTH)[0], relevant)
    table = pd.DataFrame({name: each.mean(0) for name, each in found.items()}, index=list(METRICS)).T
    wordless = sum(not words(query) for query in queries)
    return Comparison(table, _difference(list(models), found), len(queries), len(passages), wordless)


def _difference(names: Sequence[str], found: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    if len(names) < 2:
        return {}
    gap = found[names[-1]] - found[names[-2]]
    return {metric: bootstrap(gap[:, i]) for i, metric in enumerate(METRICS)}


def _relevant(dev: RetrievalSet) -> list[set[int]]:
    """Rows of the passages that are right for each query."""
    row = {key: i for i, key in enumerate(dev.documents)}
    return [{row[key] for key in dev.relevant[query]} for query in dev.queries]


def figures(rows: np.ndarray, relevant: Sequence[set[int]]) -> np.ndarray:
    """METRICS of every query, float64 [Q, 3], of the passages found, best first: int64 [Q, up to 10], -1 for none."""
    hits = np.array([[row in right for row in found] for found, right in
                     zip(rows[:, :DEPTH].tolist(), relevant, strict=True)], dtype=bool)
    place = np.arange(1, hits.shape[1] + 1)
    first = np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
    return np.stack([hits[:, 0], first, (hits / np.log2(place + 1)).sum(1) / _ideal(relevant)], axis=1)


def _ideal(relevant: Sequence[set[int]]) -> np.ndarray:
    """The discounted gain of the best possible ranking: float64 [Q]."""
    gains = np.cumsum(1 / np.log2(np.arange(2, DEPTH + 2)))
    return gains[[min(len(right), DEPTH) - 1 for right in relevant]]


def chance(right: Sequence[int], passages: int) -> np.ndarray:
    """What a random order expects of queries with `right` right passages among `passages`: float64 [Q, 3]."""
    found = []
    for many in right:
        missed, first = 1.0, 0.0
        for place in range(1, min(DEPTH, passages) + 1):
            hit = many / (passages - place + 1) if passages - place + 1 > many else 1.0
            first, missed = first + missed * hit / place, missed * (1 - hit)
        gain = many / passages * (1 / np.log2(np.arange(2, min(DEPTH, passages) + 2))).sum()
        found.append((many / passages, first, gain / _ideal([set(range(many))])[0]))
    return np.array(found)


def trigrams(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
    """The best passages by character-trigram TF-IDF: int64 [Q, up to 10], -1 where no trigram is shared."""
    asked, given = (baselines.count_trigrams(texts) for texts in (queries, passages))
    rarity = baselines.Rarity.of(asked) + baselines.Rarity.of(given)
    left, right = rarity.weigh(asked), rarity.weigh(given).T.tocsc()
    found = []
    for start in range(0, len(queries), BLOCK):
        scores = (left[start : start + BLOCK] @ right).toarray()
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        found.append(np.where(np.take_along_axis(scores, best, axis=1) > 0, best, -1))
    return np.concatenate(found)


def _words(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
    index, found = BM25Index(passages), np.full((len(queries), min(DEPTH, len(passages))), -1)
    for row, query in zip(found, queries, strict=True):
        best = largest(index.scores(query), DEPTH)
        row[: len(best)] = best
    return found
