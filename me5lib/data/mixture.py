"""The mixture: which rows make the batch of a step. A pure function of the step, so a run resumes by its number alone.

`Mixture.plan(step, rank, world)` depends on those three and on the mixture's `fingerprint`; there is no cursor and no
state of a random generator. The construction:

1. The S steps are apportioned to the sources by largest remainder. A seeded permutation of [0, S) sends each step into
   one source's interval; inside an interval steps keep their order: the offset there is that source's batch ordinal k.
2. A source's k-th batch holds its virtual slots [kB, (k + 1)B). They are dealt to its languages in proportion to
   rows ** temperature by Webster's method: unlike largest remainder it never takes back what it has given, so what a
   batch gets of a language is the difference between two apportionments, and nothing before it need be replayed.
3. A language's j-th slot is row perm(j mod n) of pass j div n: no row comes again before its stream is exhausted. The
   permutation is new in every pass. Blocks of 1,024 rows are scattered by a Feistel network; rows inside a block,
   which were shuffled when the shard was built, by a multiplication: memory-mapped reads stay local.
4. The batch is shuffled and cut into `world` contiguous pieces; joined in order they are the same batch for any world.

With `homogeneous` h < 1 a batch has round(h·B) rows of its own source, and the rest dealt to all sources by weight.

Cost: a millisecond to construct 30,000 steps; under a millisecond a plan, at any step and for any number of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

import numpy as np

from me5lib.data.shards import BLOCK, GOLDEN, Shard, runs, splitmix64
from me5lib.io import Me5Error
from me5lib.pairs import Pair

VERSION = 2  # of the construction; raise it with any change that gives other batches
TRANSLATIONS = ("english", "text")  # columns of a shard that can be read in both directions
PAIRS = ("query", "passage")
ROUNDS = 4  # ours: of the Feistel network; even, and four already look random
# Drawn at random between 2^30 and 2^31 (ours); that they are primes is all that counts.
_PRIMES = np.array([1_101_904_333, 1_420_623_697, 1_460_547_229, 1_462_263_463, 1_523_545_981, 1_536_484_109,
                    1_693_992_043, 1_744_723_873, 1_751_902_367, 1_791_399_277, 1_799_369_821, 1_820_818_123,
                    1_964_747_209, 1_973_166_469, 1_977_071_851, 2_106_134_243], dtype=np.int64)


class Stream(NamedTuple):
    """One source in one language."""

    source: str
    language: str
    rows: int


class BatchSpec(NamedTuple):
    """One rank's rows of one step's batch: n of them, in order."""

    sources: tuple[str, ...]  # of the whole batch, on every rank alike
    stream: np.ndarray  # int64 [n], index into `Mixture.streams`
    row: np.ndarray  # int64 [n], row of the stream
    passes: np.ndarray  # int64 [n], how often the stream was exhausted before


class Mixture:
    """Streams, their shares, and the plan of every step.

    `streams`: tuple of `Stream`; `weights`: source → weight; `quotas`: source → steps that are its own (sum: `steps`).
    """

    def __init__(self, shards: Mapping[tuple[str, str], Shard], *, steps: int, batch: int, seed: int,
                 weights: Mapping[str, float] | None = None, temperature: float = 0.5, homogeneous: float = 1.0):
        """`shards` by (source, language); `batch` is the global one; `weights` by source (None: a source's rows).

        Raises `Me5Error` for an empty mixture or shard, unknown columns or weights, and dials out of range.
        """
        self.shards = {key: shards[key] for key in sorted(shards)}
        self.streams = tuple(Stream(*key, int(shard.rows)) for key, shard in self.shards.items())
        self.steps, self.batch_size, self.seed = int(steps), int(batch), int(seed)
        self.temperature, self.homogeneous = float(temperature), float(homogeneous)
        self._refuse_nonsense()
        self._sizes = np.array([stream.rows for stream in self.streams])
        of = np.array([stream.source for stream in self.streams])
        self.sources = tuple(dict.fromkeys(of.tolist()))
        self._members = {source: np.flatnonzero(of == source) for source in self.sources}
        sizes = {source: self._sizes[own] for source, own in self._members.items()}
        if weights and set(weights) != set(self.sources):
            raise Me5Error(f"weights name {', '.join(sorted(weights))}, but the sources are {', '.join(self.sources)}")
        if weights and not (min(weights.values()) >= 0 and 0 < sum(weights.values()) < float("inf")):
            raise Me5Error("weights must be finite, none below 0 and at least one above")
        self.weights = {name: float(weights[name] if weights else sizes[name].sum()) for name in self.sources}
        quotas = largest_remainder(list(self.weights.values()), self.steps).tolist()
        self.quotas = dict(zip(self.sources, quotas, strict=True))
        scaled = {source: (rows / rows.max()) ** temperature for source, rows in sizes.items()}
        self._shares = {source: part / part.sum() for source, part in scaled.items()}
        self._own = round(self.homogeneous * self.batch_size)  # rows of a batch that come from the step's own source
        place = permute(np.arange(self.steps), self.steps, self._key("steps"))
        self._source_of = np.searchsorted(np.cumsum(quotas), place, side="right")  # step → index of its source
        self._steps_of = {source: np.flatnonzero(self._source_of == i) for i, source in enumerate(self.sources)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the plan depends on. A checkpoint stores it; a resume refuses another one."""
        known = [VERSION, self.seed, self.steps, self.batch_size, self.temperature, self.homogeneous, BLOCK]
        given = json.dumps([known, self.streams, self.weights], sort_keys=True)
        return hashlib.sha256(given.encode("utf8")).hexdigest()

    def plan(self, step: int, rank: int = 0, world: int = 1) -> BatchSpec:
        """This rank's rows of batch `step`; ranks differ by at most one row where `world` does not divide the batch.

        Raises `IndexError` for a step outside [0, steps) and `ValueError` for a rank outside [0, world).
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside the plan of {self.steps} steps")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not among {world}")
        stream, passes, start, stop = self._slots(step)
        row, count, size = self._rows(stream, passes, start, stop), stop - start, self.batch_size
        factor, summand = multiplier(self._key("batch", step))
        mine = np.arange(size * rank // world, size * (rank + 1) // world) * factor + summand
        mine -= mine // size * size  # numpy's % by one number takes three times as long
        present = tuple(dict.fromkeys(self.streams[i].source for i in stream.tolist()))
        return BatchSpec(present, np.repeat(stream, count)[mine], row[mine], np.repeat(passes, count)[mine])

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Pair]:
        """The texts of `plan(step, rank, world)`.

        A translation is read from English in one half of the rows and into English in the other; which half a row is
        in depends on a hash of its number, and changes with every pass.
        """
        spec = self.plan(step, rank, world)
        found = np.empty(len(spec.row), dtype=object)
        order = np.lexsort((spec.row, spec.stream))  # stream by stream, read forwards
        bounds = np.flatnonzero(np.diff(spec.stream[order], prepend=-1, append=-1)).tolist()
        for start, stop in pairwise(bounds):
            at = order[start:stop]
            found[at] = np.fromiter(self._read(spec, at), dtype=object, count=len(at))
        return found.tolist()

    def _read(self, spec: BatchSpec, at: np.ndarray) -> list[Pair]:
        """The rows at the places `at` of `spec`, all of one stream."""
        stream, row, passes = int(spec.stream[at[0]]), spec.row[at], spec.passes[at]
        source, language, _ = self.streams[stream]
        shard = self.shards[source, language]
        first, second = shard.read(row)
        if tuple(shard.columns) == TRANSLATIONS:
            coin = splitmix64(self._key("direction", stream) + row.astype(np.uint64)) >> np.uint64(63)
            turned = ((coin.astype(np.int64) + passes) % 2 == 1).tolist()
            both = [(b, a) if flip else (a, b) for a, b, flip in zip(first, second, turned, strict=True)]
            first, second = zip(*both, strict=True)
        # Pair(…) goes through Python; texts come by the million.
        texts = zip(first, second, repeat(source), repeat(language), strict=False)
        return list(map(tuple.__new__, repeat(Pair), texts))

    def totals(self) -> dict[Stream, int]:
        """Stream → rows drawn from it in all `steps` steps; divided by its rows it is the number of passes."""
        return {self.streams[i]: n for source, own in self._members.items()
                for i, n in zip(own.tolist(), self._dealt(source, self.steps).tolist(), strict=True)}

    def languages(self) -> Counter[str]:
        """Language → rows drawn of it in all `steps` steps."""
        found: Counter[str] = Counter()
        for stream, rows in self.totals().items():
            found[stream.language] += rows
        return found

    def _refuse_nonsense(self) -> None:
        if not self.streams:
            raise Me5Error("the mixture has no streams: name at least one source that has rows")
        for key, shard in self.shards.items():
            if shard.rows < 1 or tuple(shard.columns) not in (TRANSLATIONS, PAIRS):
                raise Me5Error(f"stream {'/'.join(key)} has {shard.rows} rows and columns {', '.join(shard.columns)}: "
                               "a stream needs rows, and columns english and text or query and passage")
        if self.steps < 1 or self.batch_size < 1:
            raise Me5Error(f"{self.steps} steps of {self.batch_size} pairs are no training: set both to at least 1")
        if not (0 <= self.homogeneous <= 1 and np.isfinite(self.temperature)):
            raise Me5Error(f"homogeneous={self.homogeneous} must be in 0 … 1, temperature={self.temperature} finite")

    def _dealt(self, source: str, step: int) -> np.ndarray:
        """Slots that the streams of `source` were dealt before `step`, int64 in the order of its streams."""
        before = self._own * int(np.searchsorted(self._steps_of[source], step))
        if self._own < self.batch_size:
            mixed = webster(list(self.weights.values()), (self.batch_size - self._own) * step)
            before += int(mixed[self.sources.index(source)])
        return webster(self._shares[source], before)

    def _slots(self, step: int) -> tuple[np.ndarray, ...]:
        """What `step` takes: (stream, pass, first slot of the pass, last + 1), int64 [n] each, in order.

        A stream whose pass ends within the batch comes twice.
        """
        pure = self._own == self.batch_size
        sources = [self.sources[self._source_of[step]]] if pure else self.sources
        stream = np.concatenate([self._members[source] for source in sources])
        start, stop = (np.concatenate([self._dealt(source, at) for source in sources]) for at in (step, step + 1))
        some = np.flatnonzero(stop > start)
        stream, start, stop = stream[some], start[some], stop[some]
        rows = self._sizes[stream]
        first = start // rows
        of, nth = runs((stop - 1) // rows - first + 1)
        passes, rows = first[of] + nth, rows[of]
        return (stream[of], passes, np.maximum(start[of] - passes * rows, 0),
                np.minimum(stop[of] - passes * rows, rows))

    def _rows(self, stream: np.ndarray, passes: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """The rows that the slots [start, stop) of these passes hold, in the order of the slots; int64 [stop - start].

        A pass reads its whole blocks in a permuted order, and the rows that fill no block last.
        """
        rows = self._sizes[stream]
        of, nth = runs((stop - 1) // BLOCK - start // BLOCK + 1)
        nth += (start // BLOCK)[of]
        key = splitmix64(splitmix64(self._key("rows") + stream.astype(np.uint64)) + passes.astype(np.uint64))[of]
        block = permute(nth, rows[of] // BLOCK, key)  # the short block, behind the last whole one, stays where it is
        size = np.minimum(BLOCK, rows[of] - block * BLOCK)
        low = np.maximum(start[of], nth * BLOCK)
        count = np.minimum(stop[of], nth * BLOCK + size) - low
        factor, summand = multiplier(splitmix64(key ^ splitmix64(block.astype(np.uint64) + np.uint64(1))))
        end = np.cumsum(count)
        columns = block * BLOCK, factor, factor * (low - nth * BLOCK - end + count) + summand
        first, each, begin = (np.repeat(column, count) for column in columns)
        place = each * np.arange(len(each)) + begin
        row = first + (place & (BLOCK - 1))
        for i in np.flatnonzero(size < BLOCK).tolist():  # at most one of each stream and pass
            at = slice(end[i] - count[i], end[i])
            row[at] = block[i] * BLOCK + place[at] % size[i]
        return row

    def _key(self, *name: str | int) -> np.uint64:
        digest = hashlib.blake2b(repr((self.seed, *name)).encode("utf8"), digest_size=8).digest()
        return np.uint64(int.from_bytes(digest, "little"))


# Dealing out, and shuffling, without any state ------------------------------------------------------------------------


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
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    sure = total - parties / 2 - 1  # rounding shares of this time cannot have dealt more than `total`
    dealt = np.maximum(np.floor(share * sure + 0.5), 0).astype(np.int64)
    # By the time total + parties / 2 all is dealt: nobody gets more than this many of the slots that are left.
    most = np.where(share > 0, np.ceil(share * (total + parties / 2 - max(sure, 0))) + 1, 0).astype(np.int64)
    party, nth = runs(most)
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
        size = n[walking]
        a = np.ceil(np.sqrt(size)).astype(np.int64)
        b = -(-size // a)
        left, right = np.divmod(found[walking], b)
        keys = key[walking] + np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * np.uint64(GOLDEN)
        for turn in range(0, ROUNDS, 2):
            left = (left + _round_function(keys[turn], right)) % a
            right = (right + _round_function(keys[turn + 1], left)) % b
        found[walking] = left * b + right
        walking = walking[found[walking] >= size]
    return found


def multiplier(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(factor, summand) of the cheap shuffle x → (factor · x + summand) mod n of [0, n), n ≤ 2^30, int64.

    The factor is a prime above any n, so it shares no divisor with n, and the map is one to one. A tenth of the cost of
    `permute`, and far less random: neighbours stay equally far apart. Fit for what lies in no order worth breaking.
    """
    return _PRIMES[(key & np.uint64(len(_PRIMES) - 1)).astype(np.int64)], (key >> np.uint64(33)).astype(np.int64)


def _round_function(key: np.ndarray, x: np.ndarray) -> np.ndarray:
    """61 bits of a hash, int64 and not negative."""
    return (splitmix64(key + x.astype(np.uint64) * np.uint64(GOLDEN)) >> np.uint64(3)).astype(np.int64)
