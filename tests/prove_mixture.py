"""`make prove`: Table 1 of the paper, planned whole. 980 million rows, 29,900 steps of 32,768, one source a batch.

    python tests/prove_mixture.py

The rows are not here, only their numbers; languages inside a source are laid out by a power law (the paper does not
publish them). Prints one line per claim and exits with 1 when one does not hold. A few minutes, one core.
"""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from statistics import median
from typing import NamedTuple

import numpy as np

from me5lib.data import cards
from me5lib.data.mixture import Mixture

STEPS, BATCH = 29_900, 32_768


class Counted(NamedTuple):
    """A stream of which only the number of rows is known."""

    rows: int
    columns: tuple[str, str] = ("query", "passage")


def table_1() -> dict[tuple[str, str], Counted]:
    """(source, language) → rows: the card's languages, the n-th with n^-1.2 of the largest's rows, at least 100."""
    streams = {}
    for name, card in cards.hub().items():
        if card.paper.table == 1:
            share = np.arange(1, len(card.languages) + 1) ** -1.2
            rows = np.maximum((share / share.sum() * card.paper.rows).astype(int), 100)
            rows[0] += card.paper.rows - rows.sum()
            streams |= {(name, language): Counted(int(n)) for language, n in zip(card.languages, rows, strict=True)}
    return streams


def quotas(mixture: Mixture) -> str:
    """Every source within one step of its exact share."""
    steps = Counter(mixture.plan(step, 0, BATCH).sources[0] for step in range(STEPS))
    total = sum(mixture.weights.values())
    worst = max(abs(steps[name] - STEPS * weight / total) for name, weight in mixture.weights.items())
    assert worst <= 1, worst
    return f"every source within {worst:.2f} steps of its quota"


def passes(mixture: Mixture, sample: int = 300) -> str:
    """Of sampled batches, neighbours of one source among them: within a pass no row of a stream comes twice.

    And at world 2, 3, 4 and 8 the ranks' rows are disjoint, complete, and the same global batch.
    """
    seen, sizes = set(), np.array([stream.rows for stream in mixture.streams])
    for step in np.random.default_rng(0).permutation(STEPS)[:sample].tolist():
        spec = mixture.plan(step)
        assert (spec.row >= 0).all() and (spec.row < sizes[spec.stream]).all()
        code = (spec.stream * 2**40 + spec.passes * 2**32 + spec.row).tolist()
        assert len(set(code)) == BATCH and not seen & set(code), f"step {step}: a row comes twice"
        seen.update(code)
        world = (2, 3, 4, 8)[step % 4]
        parts = [mixture.plan(step, rank, world) for rank in range(world)]
        for column in ("stream", "row", "passes"):
            assert (np.concatenate([getattr(part, column) for part in parts]) == getattr(spec, column)).all()
    return f"{len(seen):,} sampled rows, all different within their pass; worlds of 1, 2, 3, 4, 8 hold the same batch"


def cost(streams: dict[tuple[str, str], Counted]) -> str:
    """Memory of the planner, and the time of a plan."""
    tracemalloc.start()
    mixture = Mixture(streams, steps=STEPS, batch=BATCH, seed=0)
    mixture.plan(STEPS - 1)
    memory = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert memory <= 100, memory
    times = []
    for step in range(0, STEPS, 149):
        start = time.perf_counter()
        mixture.plan(step)
        times.append((time.perf_counter() - start) * 1e3)
    return (f"planner {memory:.1f} MB; a plan: median {median(times):.2f} ms, worst {max(times):.2f}; "
            f"{'within' if median(times) <= 1 else 'OVER'} 1 ms here")


if __name__ == "__main__":
    streams = table_1()
    mixture = Mixture(streams, steps=STEPS, batch=BATCH, seed=0)
    print(f"{sum(each.rows for each in streams.values()):,} rows in {len(streams)} streams, {STEPS:,} × {BATCH:,}")
    print(quotas(mixture), passes(mixture), cost(streams), sep="\n")
