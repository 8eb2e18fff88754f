"""What a cosine of 0.85 means: in each language, which share of wrong pairs reaches it, and of right ones.

    table = calibrate(Encoder.load("me5-small-q4"), heldout_pairs(corpus))      # or rows of one's own file
    table.query("language == 'de'")          # of each threshold: share of wrong pairs and of right ones, with intervals

A wrong pair is a query beside the passage of another row of its language (ACROSS: of any other language), unless that
text is known to be right. Rows, and with them both sides of a wrong pair, are drawn again for an interval: the n² wrong
pairs of n rows are far from independent. `cosine at 1 %`: from where on one wrong pair in a hundred matches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from me5lib.data import split
from me5lib.evaluate.stats import resampling_weights
from me5lib.model.encoder import Encoder
from me5lib.model.text import QUERY
from me5lib.pairs import Labelled, text_key

THRESHOLDS = (0.75, 0.8, 0.85, 0.9, 0.95)
EDGES = np.round(np.arange(-1, 1.0015, 0.001), 3)  # of the bins in which cosines are counted
DRAWS = 200  # ours: five lie beyond each end of an interval
LEAST, MOST = 50, 300  # ours: rows of a language below which nothing is said, and above which more say little
POOLED = 1500  # ours: rows, spread evenly over languages, of all of them together
ALL, ACROSS, FALSE = "all", "across", 0.01
COLUMNS = ("language", "pairs", "cosine", "wrong", "wrong low", "wrong high", "right", "right low", "right high")


def heldout_pairs(sets: dict[str, tuple[list[str], list[str]]]) -> list[Labelled]:
    """Rows of a task of translations (`corpus.task("heldout").sets`): a text, and its English."""
    return [Labelled(text, (english,), (), "heldout", language) for language, (english_side, texts) in sets.items()
            for text, english in zip(texts, english_side, strict=True)]  # fmt: skip


def calibrate(encoder: Encoder, rows: Iterable[Labelled], prefixes: tuple[str, str] = (QUERY, QUERY),
              thresholds: Sequence[float] = THRESHOLDS, **options: object) -> pd.DataFrame:  # fmt: skip
    """`COLUMNS` of every language, of `ALL` of them and `ACROSS` them, at each threshold and where `FALSE` of the wrong
    pairs match; NaN for fewer than `LEAST` rows. Of a language the first `MOST` rows by hash; `options`: of `encode`.
    Cost: two texts a row to encode, and about five seconds for the intervals.
    """
    by_language: dict[str, list[Labelled]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: split.fraction(row.query)):
        by_language[row.language].append(row)
    kept = [row for _, own in sorted(by_language.items()) for row in own[:MOST]]
    sides = [row.query for row in kept], [row.positives[0] for row in kept]
    queries, passages = (encoder.encode(texts, prefix, **options) for texts, prefix in zip(sides, prefixes, strict=True))
    keys, known = np.array([*map(text_key, sides[1])]), [[*map(text_key, row.positives)] for row in kept]
    languages, found = np.array([row.language for row in kept]), []
    for language in [*sorted(by_language), ALL, ACROSS]:
        every = language in (ALL, ACROSS)
        own = np.arange(0, len(kept), -(-len(kept) // POOLED)) if every else np.flatnonzero(languages == language)
        wrong = ~np.array([np.isin(keys[own], known[i]) for i in own])
        wrong &= (languages[own, None] == languages[own]) ^ (language == ACROSS)
        found += _rows(language, np.digitize(queries[own] @ passages[own].T, EDGES[1:-1]), wrong, thresholds)
    return pd.DataFrame(found, columns=COLUMNS)


def _rows(language: str, bins: np.ndarray, wrong: np.ndarray, thresholds: Sequence[float]) -> list[tuple]:
    """The rows of one language: `bins` of cosines int [n, n], and which pairs are `wrong`, bool [n, n]."""
    n = len(bins)
    if n < LEAST or not wrong.any():
        return [(language, n, *[np.nan] * 7)]
    drawn = resampling_weights(np.random.default_rng(0), n, DRAWS)
    weights = np.vstack([np.full(n, 1 / n), drawn])
    i, j = np.nonzero(wrong)
    negatives = _reach(bins[i, j], lambda weight: weight[i] * weight[j], weights)
    positives = _reach(bins.diagonal(), lambda weight: weight, weights)
    at = np.searchsorted(EDGES, [*thresholds, EDGES[np.argmax(negatives[0] <= FALSE)]])
    sides = [(curve[0, at], *np.quantile(curve[1:, at], (0.025, 0.975), axis=0)) for curve in (negatives, positives)]
    return [(language, n, EDGES[at[k]], *(end[k] for side in sides for end in side)) for k in range(len(at))]


def _reach(bins: np.ndarray, weigh: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Share of pairs whose cosine reaches each edge, by each draw's `weights`: float64 [1 + draws, edges]."""
    counts = np.stack([np.bincount(bins, weigh(weight), len(EDGES)) for weight in weights])
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1] / counts.sum(axis=1, keepdims=True)


def lines(table: pd.DataFrame) -> list[str]:
    """The table in words: a line a language, per cent of its wrong pairs and of its right ones, with 95 % intervals."""
    thresholds = table["cosine"].dropna().unique()[:0]
    found = []
    for language, own in table.groupby("language", sort=False):
        *each, last = own.to_dict("records")
        if np.isnan(last["cosine"]):
            found.append(f"{language:8} {last['pairs']:>5} pairs are too few to tell: give {LEAST} or more")
            continue
        shares = [f"{100 * row['wrong']:5.1f} ({100 * row['wrong low']:.1f}–{100 * row['wrong high']:.1f})" for row in each]
        thresholds = [row["cosine"] for row in each]
        found.append(f"{language:8} {last['pairs']:>5}" + "".join(f"{share:>18}" for share in shares)
                     + f"{last['cosine']:>10.3f} {100 * last['right']:6.0f} ({100 * last['right low']:.0f}–"
                       f"{100 * last['right high']:.0f})")
    head = f"{'language':8} {'pairs':>5}" + "".join(f"{f'≥ {cosine:g}':>18}" for cosine in thresholds)
    return [f"{'':14}per cent of wrong pairs with a cosine", f"{head}{f'{FALSE:.0%} at':>10}   right pairs there", *found]
