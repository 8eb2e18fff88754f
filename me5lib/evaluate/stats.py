"""Percentile intervals by the bootstrap: of a mean, and of comparisons over seeds and meanings (the experiments).

    bootstrap(scores)                                    # of a mean over languages or queries, at 95 %
    means = resampled(stack, meanings)                   # stack [arms, seeds, queries] → [arms, draws]
    interval(means[1] - means[0], difference)            # of a difference, paired by seed and by meaning
    holm([p_value(means[k] - means[0]) for k in (1, 2)]) # p-values that hold together

A score depends on a model's seed and on what is asked. In a draw meanings are resampled with replacement, each with all
its queries (one question in twelve languages is one witness, not twelve), the same ones for every arm; the mean is the
sum of scores over the number of queries that were drawn. Seeds are too few to be resampled: where it says 0.95, the
bootstrap of 5 normal values covers their mean in 0.84 of cases, of 2 in 0.50 (notebook 08). Their deviations get random
weights instead by which their mean has Student's t distribution with S - 1 degrees of freedom, exact where seeds are
normal (ours; tests measure the coverage). With one seed it is an interval over meanings alone. Cost: 8 arms, 5 seeds,
4,000 meanings in a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
DRAWS = 10_000  # ours: 36 of them lie beyond each end of a 99.3 % interval (seven comparisons)
BLOCK = 250  # draws that are held at once


class Interval(NamedTuple):
    """A mean and the two ends of its percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval of a difference says: "ahead" or "behind" where it leaves out 0, else "undecided"."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "undecided"


def resampled(
    stack: np.ndarray, meanings: Sequence[Any] | None = None, seed: int = 0, draws: int = DRAWS
) -> np.ndarray:
    """The mean of every arm in each of `draws` resamples: float64 [arms, draws] of `stack` [arms, seeds, queries].

    `meanings`: of each query, what it is about (None: each its own). Every arm meets the same resamples. Raises
    ValueError for a stack of another shape, an empty one, or NaN in it, and for another number of meanings.
    """
    stack = np.asarray(stack, dtype=np.float64)
    if stack.ndim != 3 or not stack.size:
        raise ValueError(f"scores of shape {stack.shape}: [arms, seeds, queries] is wanted, none of them 0")
    if not np.isfinite(stack).all():
        raise ValueError("scores that are not finite: every arm needs a score of every query under every seed")
    arms, seeds, queries = stack.shape
    if meanings is not None and len(meanings) != queries:
        raise ValueError(f"{len(meanings)} meanings for {queries} queries")
    group = np.arange(queries) if meanings is None else np.unique(np.asarray(meanings), return_inverse=True)[1]
    sizes = np.bincount(group).astype(np.float64)
    sums = np.stack([np.bincount(group, row) for row in stack.reshape(-1, queries)])
    rng, means = np.random.default_rng(seed), np.empty((arms, draws))
    of_seeds = seed_weights(rng, seeds, draws)
    for start in range(0, draws, BLOCK):
        part = slice(start, min(start + BLOCK, draws))
        drawn = resampling_weights(rng, len(sizes), part.stop - part.start).T
        by_seed = (sums @ drawn) / (sizes @ drawn)
        means[:, part] = np.einsum("asd,ds->ad", by_seed.reshape(arms, seeds, -1), of_seeds[part])
    return means


def seed_weights(rng: np.random.Generator, seeds: int, draws: int) -> np.ndarray:
    """Weights of `seeds`, float64 [draws, seeds], each row sums to 1: Σ w x is x̄ + t · s / √S with S - 1 degrees of
    freedom, s being the standard deviation of x."""
    if seeds == 1:
        return np.ones((draws, 1))
    normal = rng.normal(size=(draws, seeds))
    scale = np.sqrt(seeds * rng.chisquare(seeds - 1, (draws, 1)))
    return 1 / seeds + (normal - normal.mean(axis=1, keepdims=True)) / scale


def resampling_weights(rng: np.random.Generator, units: int, draws: int) -> np.ndarray:
    """Shares of `units` among as many, drawn with replacement: float64 [draws, units], each row sums to 1."""
    chosen = rng.integers(0, units, (draws, units)) + units * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * units).reshape(draws, units) / units


def interval(means: np.ndarray, value: float) -> Interval:
    """The percentile interval of resampled `means` [draws] at `LEVEL`, around the `value` that was measured."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def bootstrap(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Mean of `values` and its interval at `LEVEL` over `DRAWS` resamples of them. Raises ValueError for none."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("no values: an interval needs at least one")
    chosen = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    return interval(values[chosen].mean(axis=1), values.mean())


def clustered_draws(clusters: Sequence[Any], seed: int = 0, draws: int = 2_000) -> Iterator[np.ndarray]:
    """Places of values, drawn in two stages with replacement: clusters (language families), then members of each."""
    rng, group = np.random.default_rng(seed), np.unique(np.asarray(clusters), return_inverse=True)[1]
    members = [np.flatnonzero(group == cluster) for cluster in range(group.max() + 1)]
    for _ in range(draws):
        chosen = (members[i] for i in rng.integers(0, len(members), len(members)))
        yield np.concatenate([own[rng.integers(0, len(own), len(own))] for own in chosen])


def clustered_spearman(x: Any, y: Any, clusters: Sequence[Any], seed: int = 0, draws: int = 2_000) -> Interval:
    """Spearman's ρ of `x` and `y` [n] and its interval over `clustered_draws`; a draw without a spread says nothing."""
    from scipy.stats import rankdata

    def rho(places: np.ndarray) -> float:
        ranks = rankdata(x[places]), rankdata(y[places])
        return float(np.corrcoef(*ranks)[0, 1]) if min(map(np.ptp, ranks)) else np.nan

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    drawn = np.array([rho(places) for places in clustered_draws(clusters, seed, draws)])
    return interval(drawn[~np.isnan(drawn)], rho(np.arange(len(x))))


# Several comparisons, no difference, and how small a difference can be seen


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of "no difference" from its resamples [draws]; never below 2 / (draws + 1)."""
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    return min(1.0, 2 * (1 + float(min(below, above))) / (1 + len(differences)))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values of a family adjusted by Holm's step-down method, in their order."""
    p, order = np.asarray(p, dtype=np.float64), np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def equivalent(differences: np.ndarray, within: float = 0.01) -> bool:
    """Whether two one-sided tests at 5 % put the difference within ± `within`: its 90 % interval lies inside."""
    low, high = np.quantile(differences, [0.05, 0.95])
    return bool(-within < low and high < within)


def detectable(runs: np.ndarray, meanings: Sequence[Any], seeds: int) -> float:
    """The smallest difference of two arms of `seeds` seeds that one comparison finds in 80 % of experiments at 5 %.

    Two-sided and unadjusted: after Holm's adjustment, and with fewer than five seeds, it is found less often.

    `runs` [2n, queries]: scores of one configuration under 2n seeds, the first half against the other. Of the variance
    2 σ² / seeds is that of seeds, the rest the bootstrap's over meanings. Quantiles are of t, with Satterthwaite's
    degrees of freedom (with many seeds (1.96 + 0.84) · SE). It is a floor: two runs of one configuration differ less
    from meaning to meaning than two arms do.
    """
    from scipy.stats import t

    half = len(runs) // 2
    apart = runs[:half].mean(axis=0) - runs[half:].mean(axis=0)
    of_meanings = resampled(apart[None, None], meanings)[0].var()
    of_seeds = 2 * runs.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    freedom = (of_seeds + of_meanings) ** 2 / (of_seeds**2 / (seeds - 1)) if of_seeds else np.inf
    return float((t.ppf(0.975, freedom) + t.ppf(0.8, freedom)) * np.sqrt(of_seeds + of_meanings))
