"""`make prove`: Table 1 of the paper, planned whole. 980 million rows, 29,900 steps of 32,768, one source a batch.

    python tests/prove_mixture.py

The rows are not here, only their numbers; languages inside a source are laid out by a power law (the paper does not
publish them). Prints one line per claim and exits with 1 when one does not hold. A few minutes, one core.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
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
    steps = dict.fromkeys(mixture.sources, 0)
    for step in range(STEPS):
        steps[mixture.plan(step, 0, BATCH).sources[0]] += 1
    total = sum(mixture.weights.values())
    worst = max(abs(steps[name] - STEPS * weight / total) for name, weight in mixture.weights.items())
    assert worst <= 1, worst
    return f"every source within {worst:.2f} steps of its quota"


def passes(mixture: Mixture, sample: int = 300) -> str:
    """Of sampled runs of neighbouring batches of a source: within a pass no row of a stream comes twice."""
    draw, seen, rows = np.random.default_rng(0), set(), 0
    steps = {name: [] for name in mixture.sources}
    for step in draw.permutation(STEPS)[: sample * 10].tolist():
        steps[mixture.plan(step, 0, BATCH).sources[0]].append(step)
    for own in steps.values():
        for step in own[: sample // len(steps)]:
            spec = mixture.plan(step)
            assert (spec.row >= 0).all() and (spec.row < np.array([s.rows for s in mixture.streams])[spec.stream]).all()
            code = (spec.stream * 2**40 + spec.passes * 2**32 + spec.row).tolist()
            assert len(set(code)) == BATCH and not seen & set(code), f"step {step}: a row comes twice"
            seen.update(code)
            rows += BATCH
    return f"{rows:,} sampled rows, all different within their pass"


def worlds(mixture: Mixture) -> str:
    """Any step at world 1, 2, 3, 4, 8: the same global batch, the ranks' rows disjoint and complete."""
    for step in np.random.default_rng(1).integers(0, STEPS, 40).tolist():
        whole = mixture.plan(step)
        for world in (2, 3, 4, 8):
            parts = [mixture.plan(step, rank, world) for rank in range(world)]
            for column in ("stream", "row", "passes"):
                assert (np.concatenate([getattr(part, column) for part in parts]) == getattr(whole, column)).all()
    return "40 steps: worlds of 1, 2, 3, 4 and 8 hold the same batch, disjoint and complete"


def cost(streams: dict[tuple[str, str], Counted]) -> str:
    """Memory of the planner, and the time of a plan."""
    tracemalloc.start()
    mixture = Mixture(streams, steps=STEPS, batch=BATCH, seed=0)
    mixture.plan(STEPS - 1)
    memory = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    took: dict[int, list[float]] = {1: [], 8: []}
    for world, times in took.items():
        for step in range(0, STEPS, 149):
            start = time.perf_counter()
            mixture.plan(step, 0, world)
            times.append((time.perf_counter() - start) * 1e3)
    assert memory <= 100, memory
    told = ", ".join(f"world {world}: median {median(times):.2f} ms, worst {max(times):.2f}"
                     for world, times in took.items())
    return f"planner {memory:.1f} MB; a plan: {told}; {'within' if median(took[1]) <= 1 else 'OVER'} 1 ms here"


def main() -> int:
    """All claims."""
    streams = table_1()
    mixture = Mixture(streams, steps=STEPS, batch=BATCH, seed=0)
    print(f"{sum(each.rows for each in streams.values()):,} rows in {len(streams)} streams, {STEPS:,} × {BATCH:,}")
    for claim in (lambda: quotas(mixture), lambda: passes(mixture), lambda: worlds(mixture), lambda: cost(streams)):
        print(claim(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
