"""Arithmetic of the plan: dealing a total out in proportion, and shuffling, both without any state.

Every function is pure and its cost does not grow with the numbers dealt or shuffled, only with how many are asked for:
that is what makes a seek to any step of training as cheap as the first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

ROUNDS = 6  # ours: of the Feistel network; four already look random, and two more are not felt
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def largest_remainder(weights: Sequence[float], total: int) -> np.ndarray:
    """`total` apportioned in proportion to `weights` (Hamilton's method), int64: within one of the exact share."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    found = np.floor(exact).astype(np.int64)
    found[np.argsort(found - exact, kind="stable")[: total - int(found.sum())]] += 1
    return found


def webster(weights: Sequence[float], total: int) -> np.ndarray:
    """`total` apportioned in proportion to `weights` by Webster's (Sainte-Laguë's) method, int64.

    It deals one slot at a time, a party's (s + 1)-th at time (s + ½) / share: as `total` grows none ever loses one.
    Nearly all are dealt at once, the last few by a heap: the cost does not grow with `total`.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    sure = total - len(share) / 2 - 1  # rounding shares of this time cannot have dealt more than `total`
    dealt = np.maximum(np.floor(share * sure + 0.5), 0).astype(np.int64)
    heap = [((dealt[i] + 0.5) / share[i], i) for i in range(len(share)) if share[i] > 0]
    heapq.heapify(heap)
    for _ in range(total - int(dealt.sum())):
        _, i = heap[0]
        dealt[i] += 1
        heapq.heapreplace(heap, ((dealt[i] + 0.5) / share[i], i))
    return dealt


def permute(x: np.ndarray, n: int | np.ndarray, key: np.uint64 | np.ndarray) -> np.ndarray:
    """Where a seeded permutation of [0, n) sends each `x`, int64; elements with x ≥ n come back as they are.

    A Feistel network over the next even number of bits, walked along its cycle until it is back below n: nothing is
    stored, whatever n is. `n` and `key` may differ from element to element.
    """
    x = np.asarray(x, dtype=np.int64)
    n, key = np.broadcast_to(n, x.shape), np.broadcast_to(np.asarray(key, dtype=np.uint64), x.shape)
    found = x.copy()
    walking = np.flatnonzero((x < n) & (n > 1))
    while len(walking):
        found[walking] = _feistel(found[walking], n[walking], key[walking])
        walking = walking[found[walking] >= n[walking]]
    return found


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: 64 bits in, 64 bits out, each depending on all; one to one."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _feistel(x: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    half = ((np.ceil(np.log2(n)).astype(np.int64) + 1) // 2).astype(np.uint64)
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = x.astype(np.uint64) >> half, x.astype(np.uint64) & low
    with np.errstate(over="ignore"):
        for turn in range(1, ROUNDS + 1):
            left, right = right, left ^ (mix(mix(key + np.uint64(turn) * _GOLDEN) + right) & low)
    return ((left << half) | right).astype(np.int64)
