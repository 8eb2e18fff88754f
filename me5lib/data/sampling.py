"""Arithmetic of the plan: dealing a total out in proportion, and shuffling, both without any state.

Every function is pure and its cost does not grow with the numbers dealt or shuffled, only with how many are asked for:
that is what makes a seek to any step of training as cheap as the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDS = 4  # ours: of the Feistel network; even, and four already look random
# Drawn at random between 2^30 and 2^31 (ours); that they are primes is all that counts.
_PRIMES = np.array([
    1_101_904_333, 1_420_623_697, 1_460_547_229, 1_462_263_463, 1_523_545_981, 1_536_484_109,
    1_693_992_043, 1_744_723_873, 1_751_902_367, 1_791_399_277, 1_799_369_821, 1_820_818_123,
    1_964_747_209, 1_973_166_469, 1_977_071_851, 2_106_134_243,
], dtype=np.int64)
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
    Nearly all are dealt at once, the last few in the order of their times: the cost does not grow with `total`.
    """
    parties = len(weights)
    if parties == 1:
        return np.array([total], dtype=np.int64)
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    sure = total - parties / 2 - 1  # rounding shares of this time cannot have dealt more than `total`
    dealt = np.maximum(np.floor(share * sure + 0.5), 0).astype(np.int64)
    # By the time total + parties / 2 all is dealt: nobody gets more than this many of the slots that are left.
    most = np.where(share > 0, np.ceil(share * (total + parties / 2 - max(sure, 0))) + 1, 0).astype(np.int64)
    party = np.repeat(np.arange(parties), most)
    nth = np.arange(len(party)) - np.repeat(np.cumsum(most) - most, most)
    time = (dealt[party] + nth + 0.5) / share[party]
    first = np.argsort(time, kind="stable")[: total - int(dealt.sum())]
    return dealt + np.bincount(party[first], minlength=parties)


def permute(x: np.ndarray, n: int | np.ndarray, key: np.uint64 | np.ndarray) -> np.ndarray:
    """Where a seeded permutation of [0, n) sends each `x`, int64; elements with x ≥ n come back as they are.

    A generalised Feistel network (Black and Rogaway 2002) over the smallest grid of a × b cells that holds n, a about
    √n; a cell outside [0, n) is sent on until it is back below n, which is rare. Nothing is stored, whatever n is.
    `n` and `key` may differ from element to element.
    """
    x = np.asarray(x, dtype=np.int64)
    n, key = np.broadcast_to(n, x.shape), np.broadcast_to(np.asarray(key, dtype=np.uint64), x.shape)
    found = x.copy()
    walking = np.flatnonzero((x < n) & (n > 1))
    while len(walking):
        found[walking] = _feistel(found[walking], n[walking], key[walking])
        walking = walking[found[walking] >= n[walking]]
    return found


def multiplier(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(factor, summand) of the cheap shuffle x → (factor · x + summand) mod n of [0, n), n ≤ 2^30, int64.

    The factor is a prime above any n, so it shares no divisor with n, and the map is one to one. A tenth of the cost of
    `permute`, and far less random: neighbours stay equally far apart. Fit for what lies in no order worth breaking.
    """
    return _PRIMES[(key & np.uint64(len(_PRIMES) - 1)).astype(np.int64)], (key >> np.uint64(33)).astype(np.int64)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser of an array: 64 bits in, 64 bits out, each depending on all; one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(x: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    a = np.ceil(np.sqrt(n)).astype(np.int64)
    b = -(-n // a)
    left, right = np.divmod(x, b)
    keys = key + np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * _GOLDEN
    for turn in range(0, ROUNDS, 2):
        left = (left + _hash(keys[turn], right)) % a
        right = (right + _hash(keys[turn + 1], left)) % b
    return left * b + right


def _hash(key: np.ndarray, x: np.ndarray) -> np.ndarray:
    """61 bits of a hash, int64 and not negative."""
    return (mix(key + x.astype(np.uint64) * _GOLDEN) >> np.uint64(3)).astype(np.int64)
