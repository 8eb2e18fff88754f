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

Cost: construction tables the S steps (a millisecond for 30,000). A plan costs the same at any step: a few numpy passes
over a rank's rows, and over the blocks that the batch touches; under a millisecond. Reading the texts costs more.
Nothing grows with the rows of a stream: 980 million cost what 980 do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple, Protocol

import numpy as np

from me5lib.data.sampling import largest_remainder, mix, multiplier, permute, webster
from me5lib.data.shards import BLOCK
from me5lib.io import Me5Error
from me5lib.pairs import Pair

VERSION = 2  # of the construction; raise it with any change that gives other batches
TRANSLATIONS = ("english", "text")  # columns of a shard that can be read in both directions
PAIRS = ("query", "passage")
_NEW = tuple.__new__


class Rows(Protocol):
    """What a mixture needs of a shard."""

    rows: int
    columns: tuple[str, ...]

    def read(self, rows: np.ndarray) -> Sequence[Sequence]:
        """The rows at these positions, in that order: a list per column."""


class Stream(NamedTuple):
    """One source in one language."""

    source: str
    language: str
    rows: int


class BatchSpec(NamedTuple):
    """One rank's rows of one step's batch: n of them, in order."""

    step: int
    sources: tuple[str, ...]  # of the whole batch, on every rank alike
    stream: np.ndarray  # int64 [n], index into `Mixture.streams`
    row: np.ndarray  # int64 [n], row of the stream
    passes: np.ndarray  # int64 [n], how often the stream was exhausted before


class _Blocks(NamedTuple):
    """The parts of blocks that a batch is made of, in order; columns [n]."""

    stream: np.ndarray
    passes: np.ndarray
    first: np.ndarray  # row of the stream that the block begins with
    size: np.ndarray  # rows of the whole block
    count: np.ndarray  # rows of it in this batch
    skip: np.ndarray  # rows of it that came before, in the order of the shuffled block
    key: np.ndarray  # uint64, of the shuffle inside


class Mixture:
    """Streams, their shares, and the plan of every step.

    `streams`: tuple of `Stream`; `weights`: source → weight; `quotas`: source → steps that are its own (sum: `steps`).
    """

    def __init__(
        self,
        shards: Mapping[tuple[str, str], Rows],
        *,
        steps: int,
        batch: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        temperature: float = 0.5,
        homogeneous: float = 1.0,
    ):
        """`shards` by (source, language); `batch` is the global one; `weights` by source (None: a source's rows).

        Raises `Me5Error` for an empty mixture or shard, unknown columns or weights, and dials out of range.
        """
        self.shards = {key: shards[key] for key in sorted(shards)}
        self.streams = tuple(Stream(*key, int(shard.rows)) for key, shard in self.shards.items())
        self.steps, self.batch_size, self.seed = int(steps), int(batch), int(seed)
        self.temperature, self.homogeneous = float(temperature), float(homogeneous)
        self.sources = tuple(dict.fromkeys(stream.source for stream in self.streams))
        self._refuse_nonsense()
        self.weights = _weights(self.streams, weights)
        quotas = largest_remainder(list(self.weights.values()), self.steps).tolist()
        self.quotas = dict(zip(self.sources, quotas, strict=True))
        self._sizes = np.array([stream.rows for stream in self.streams])
        self._members = {source: self._streams_of(source) for source in self.sources}
        self._shares = {source: _tempered(self._sizes[own], temperature) for source, own in self._members.items()}
        self._own = round(self.homogeneous * self.batch_size)  # rows of a batch that come from the step's own source
        self._source_of, self._steps_of = self._schedule()

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
        stream, start, stop = self._spans(step)
        blocks = self._blocks(*self._passes(stream, start, stop))
        size = self.batch_size
        factor, summand = multiplier(self._key("batch", step))
        mine = np.arange(size * rank // world, size * (rank + 1) // world) * factor + summand
        mine -= mine // size * size  # numpy's % by one number takes three times as long
        present = tuple(dict.fromkeys(self.streams[i].source for i in stream.tolist()))
        of_stream, of_pass = (np.repeat(column, blocks.count)[mine] for column in (blocks.stream, blocks.passes))
        return BatchSpec(step, present, of_stream, _rows(blocks)[mine], of_pass)

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
            turned = self._turned(stream, row, passes).tolist()
            both = [(b, a) if flip else (a, b) for a, b, flip in zip(first, second, turned, strict=True)]
            first, second = zip(*both, strict=True)
        # Pair(…) goes through Python; texts come by the million.
        return list(map(_NEW, repeat(Pair), zip(first, second, repeat(source), repeat(language), strict=False)))

    def shares(self, source: str) -> dict[str, float]:
        """Language → its share of the rows drawn from `source`."""
        pairs = zip(self._members[source], self._shares[source].tolist(), strict=True)
        return {self.streams[i].language: share for i, share in pairs}

    def totals(self) -> dict[Stream, int]:
        """Stream → rows drawn from it in all `steps` steps; divided by its rows it is the number of passes."""
        dealt = {source: self._dealt(source, self.steps).tolist() for source in self.sources}
        return {self.streams[i]: n for source, all_of in dealt.items()
                for i, n in zip(self._members[source].tolist(), all_of, strict=True)}

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

    def _streams_of(self, source: str) -> np.ndarray:
        return np.flatnonzero([stream.source == source for stream in self.streams])

    def _schedule(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Step → index of its source, int64 [steps]; and source → its steps in order."""
        bounds = np.cumsum(list(self.quotas.values()))
        place = permute(np.arange(self.steps), self.steps, self._key("steps"))
        source_of = np.searchsorted(bounds, place, side="right")
        return source_of, {s: np.flatnonzero(source_of == i) for i, s in enumerate(self.sources)}

    def _dealt(self, source: str, step: int) -> np.ndarray:
        """Slots that the streams of `source` were dealt before `step`, int64 in the order of its streams."""
        before = self._own * int(np.searchsorted(self._steps_of[source], step))
        if self._own < self.batch_size:
            mixed = webster(list(self.weights.values()), (self.batch_size - self._own) * step)
            before += int(mixed[self.sources.index(source)])
        return webster(self._shares[source], before)

    def _spans(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(stream, first slot, last slot + 1) of what `step` takes, int64 [n] each; empty ones left out."""
        pure = self._own == self.batch_size
        sources = [self.sources[self._source_of[step]]] if pure else self.sources
        stream = np.concatenate([self._members[source] for source in sources])
        start, stop = (np.concatenate([self._dealt(source, at) for source in sources]) for at in (step, step + 1))
        some = np.flatnonzero(stop > start)
        return stream[some], start[some], stop[some]

    def _passes(self, stream: np.ndarray, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, ...]:
        """The spans of slots, cut where a pass ends: (stream, pass, first slot of the pass, last + 1), int64 [n]."""
        rows = self._sizes[stream]
        first = start // rows
        count = (stop - 1) // rows - first + 1
        of, nth = _runs(count)
        turn, rows = first[of] + nth, rows[of]
        return stream[of], turn, np.maximum(start[of] - turn * rows, 0), np.minimum(stop[of] - turn * rows, rows)

    def _blocks(self, stream: np.ndarray, passes: np.ndarray, start: np.ndarray, stop: np.ndarray) -> _Blocks:
        """The blocks that the slots [start, stop) of these passes lie in, in the order of the slots; all int64 [n].

        A pass reads its whole blocks in a permuted order, and the rows that fill no block last.
        """
        rows = self._sizes[stream]
        first = start // BLOCK
        of, nth = _runs((stop - 1) // BLOCK - first + 1)
        nth += first[of]
        key = mix(mix(self._key("rows") + stream.astype(np.uint64)) + passes.astype(np.uint64))[of]
        block = permute(nth, rows[of] // BLOCK, key)  # the short block, behind the last whole one, stays where it is
        size = np.minimum(BLOCK, rows[of] - block * BLOCK)
        low, high = np.maximum(start[of], nth * BLOCK), np.minimum(stop[of], nth * BLOCK + size)
        inner = mix(key ^ mix(block.astype(np.uint64) + np.uint64(1)))
        return _Blocks(stream[of], passes[of], block * BLOCK, size, high - low, low - nth * BLOCK, inner)

    def _turned(self, stream: int, row: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """Whether a translation is read into English, bool [n]."""
        coin = mix(self._key("direction", int(stream)) + row.astype(np.uint64)) >> np.uint64(63)
        return (coin.astype(np.int64) + passes) % 2 == 1

    def _key(self, *name: str | int) -> np.uint64:
        digest = hashlib.blake2b(repr((self.seed, *name)).encode("utf8"), digest_size=8).digest()
        return np.uint64(int.from_bytes(digest, "little"))


def _weights(streams: Sequence[Stream], given: Mapping[str, float] | None) -> dict[str, float]:
    rows: dict[str, float] = {}
    for stream in streams:
        rows[stream.source] = rows.get(stream.source, 0.0) + stream.rows
    if given is None:
        return rows
    if set(given) != set(rows):
        raise Me5Error(f"weights name {', '.join(sorted(given))}, but the sources are {', '.join(sorted(rows))}")
    if min(given.values()) < 0 or not 0 < sum(given.values()) < float("inf"):
        raise Me5Error("weights must be finite, none below 0 and at least one above")
    return {source: float(given[source]) for source in rows}


def _runs(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`count` consecutive things for each i: which i each belongs to, and which of its things it is; int64."""
    of = np.repeat(np.arange(len(count)), count)
    return of, np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)


def _rows(blocks: _Blocks) -> np.ndarray:
    """Every row of these blocks that the batch holds, shuffled inside each block; int64 [sum of counts]."""
    factor, summand = multiplier(blocks.key)
    stop = np.cumsum(blocks.count)
    start = stop - blocks.count
    columns = blocks.first, factor, factor * (blocks.skip - start) + summand
    first, factor, begin = (np.repeat(column, blocks.count) for column in columns)
    place = factor * np.arange(len(factor)) + begin
    row = first + (place & (BLOCK - 1))
    for i in np.flatnonzero(blocks.size < BLOCK).tolist():  # at most one of each stream and pass
        at = slice(start[i], stop[i])
        row[at] = blocks.first[i] + place[at] % blocks.size[i]
    return row


def _tempered(rows: np.ndarray, temperature: float) -> np.ndarray:
    """Shares of the languages of a source, float64, summing to 1: rows ** temperature, scaled by the largest first."""
    scaled = (rows / rows.max()) ** temperature
    return scaled / scaled.sum()
