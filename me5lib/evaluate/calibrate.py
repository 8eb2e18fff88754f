"""What a cosine of 0.85 means: in each language, the share of wrong pairs that reach it, and of right ones.

    table = calibrate(Encoder.load("me5-small-q4"), heldout_pairs(corpus))      # or rows of one's own file

A wrong pair is a query beside the passage of another row of its language (`ACROSS`: of any other language), unless that
text is known to be right. For an interval rows are drawn again, and with them both sides of a wrong pair: the n² wrong
pairs of n rows are far from independent. Where none or all of n rows match, drawing them again says nothing: the open
end is then Clopper and Pearson's for n rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
LEAST, MOST, POOLED = 50, 300, 1500  # ours: rows of a language that say something, that are read; of all together
ALL, ACROSS, FALSE = "all", "across", 0.01
COLUMNS = ("language", "pairs", "cosine", "wrong", "wrong low", "wrong high", "right", "right low", "right high")


def heldout_pairs(sets: dict[str, tuple[list[str], list[str]]]) -> list[Labelled]:
    """Rows of a task of translations (`corpus.task("heldout").sets`): a text, and its English."""
    return [Labelled(text, (english,), (), "heldout", language) for language, both in sets.items()
            for english, text in zip(*both, strict=True)]  # fmt: skip


def calibrate(encoder: Encoder, rows: Iterable[Labelled], prefixes: tuple[str, str] = (QUERY, QUERY),
              thresholds: Sequence[float] = THRESHOLDS, **options: object) -> pd.DataFrame:  # fmt: skip
    """`COLUMNS` of every language, of `ALL` of them and `ACROSS` them, at each threshold and, last, where `FALSE` of
    the wrong pairs match; NaN for fewer than `LEAST` rows. Of a language the first `MOST` rows by hash are read.

    `options`: of `encode`. Cost: two texts a row to encode, and some seconds for the intervals.
    """
    ordered = pd.Series(sorted(rows, key=lambda row: (row.language, split.fraction(row.query))), dtype=object)
    kept = ordered.groupby(ordered.map(lambda row: row.language)).head(MOST).tolist()
    sides = [row.query for row in kept], [row.positives[0] for row in kept]
    queries, passages = (encoder.encode(*side, **options) for side in zip(sides, prefixes, strict=True))
    keys, known = np.array([*map(text_key, sides[1])]), [[*map(text_key, row.positives)] for row in kept]
    languages, found = np.array([row.language for row in kept]), []
    for language in [*np.unique(languages).tolist(), ALL, ACROSS]:
        every = language in (ALL, ACROSS)
        own = np.arange(0, len(kept), -(-len(kept) // POOLED)) if every else np.flatnonzero(languages == language)
        wrong = ~np.array([np.isin(keys[own], known[i]) for i in own])
        wrong &= (languages[own, None] == languages[own]) ^ (language == ACROSS)
        found += _rows(language, np.digitize(queries[own] @ passages[own].T, EDGES[1:-1]), wrong, thresholds)
    return pd.DataFrame(found, columns=COLUMNS)


def _rows(language: str, bins: np.ndarray, wrong: np.ndarray, thresholds: Sequence[float]) -> list[tuple]:
    """The rows of one language: `bins` of cosines int [n, n], and which pairs are `wrong`, bool [n, n]."""
    n, (i, j) = len(bins), np.nonzero(wrong)
    if n < LEAST or not len(i):
        return [(language, n, *[np.nan] * 7)]
    weights = np.vstack([np.full(n, 1 / n), resampling_weights(np.random.default_rng(0), n, DRAWS)])
    curves = []  # share that reaches each edge: float64 [1 + draws, edges], of wrong pairs and of right ones
    for cells, shares in ((bins[i, j], (draw[i] * draw[j] for draw in weights)), (bins.diagonal(), weights)):
        counts = np.stack([np.bincount(cells, share, len(EDGES)) for share in shares])
        curves.append(counts[:, ::-1].cumsum(axis=1)[:, ::-1] / counts.sum(axis=1, keepdims=True))
    at = np.searchsorted(EDGES, [*thresholds, EDGES[np.argmax(curves[0][0] <= FALSE)]])
    ends = []
    for curve in curves:
        mean, (low, high), certain = curve[0, at], np.quantile(curve[1:, at], (0.025, 0.975), axis=0), 0.025 ** (1 / n)
        ends += [mean, np.where(mean == 1, certain, low), np.where(mean == 0, 1 - certain, high)]
    return [(language, n, *row) for row in zip(EDGES[at], *ends, strict=True)]


def lines(table: pd.DataFrame) -> list[str]:
    """The table in words: a line a language, per cent with 95 % intervals."""
    thresholds, found = [], []
    for language, own in table.groupby("language", sort=False):
        if own["wrong"].isna().any():
            found.append(f"{language:8}{own['pairs'].iloc[0]:>6} pairs are too few to tell: {LEAST} or more are wanted")
            continue
        *thresholds, cosine = own["cosine"]
        shares = [f"{100 * mean:.1f} ({100 * low:.1f}–{100 * high:.1f})" for _, mean, low, high in own[
            ["wrong", "wrong low", "wrong high"]].itertuples()]  # fmt: skip
        mean, low, high = 100 * own.iloc[-1][["right", "right low", "right high"]]
        found.append(f"{language:8}{own['pairs'].iloc[0]:>6}" + "".join(f"{share:>18}" for share in shares[:-1])
                     + f"{cosine:>10.3f}{mean:>7.0f} ({low:.0f}–{high:.0f})")  # fmt: skip
    head = f"{'':8}{'pairs':>6}" + "".join(f"{f'wrong ≥ {value:g}, %':>18}" for value in thresholds)
    return [f"{head}{f'{FALSE:.0%} at':>10}  of right ones, %", *found]
