"""The mixture: which rows make the batch of a step. A pure function of the step, so a run resumes by its number alone.

`Mixture.plan(step, rank, world)` depends on those three and on the mixture's `fingerprint`; there is no cursor and no
state of a random generator. The construction:

1. The S steps are apportioned to the sources by largest remainder. A seeded permutation of [0, S) sends each step into
   one source's interval; inside an interval steps keep their order: the offset there is that source's batch ordinal k.
2. A source's k-th batch holds its virtual slots [kB, (k + 1)B). They are dealt to its languages in proportion to
   rows ** temperature by Webster's method: unlike largest remainder it never takes back what it has given, so what a
   batch gets of a language is the difference between two apportionments, and nothing before it need be replayed.
3. A language's j-th slot is row perm(j mod n) of pass j div n: no row comes again before its stream is exhausted. The
   permutation, new in every pass, moves blocks of 1,024 rows, and rows inside a block: memory-mapped reads stay local.
4. The batch is shuffled and cut into `world` contiguous pieces; joined in order they are the same batch for any world.

With `homogeneous` h < 1 a batch has round(h·B) rows of its own source, and the rest dealt to all sources by weight.

Cost: construction tables the S steps (a millisecond for 30,000). A plan costs the same at any step: a few numpy passes
over the batch, milliseconds at 32,768 rows. Reading the texts costs more; `prefetch` does it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from me5lib.data.deal import largest_remainder, mix, permute, webster
from me5lib.pairs import Pair
from me5lib.places import Me5Error

VERSION = 1  # of the construction; raise it with any change that gives other batches
BLOCK = 1024  # rows that are read from one neighbourhood
TRANSLATIONS = ("english", "text")  # columns of a shard that can be read in both directions
PAIRS = ("query", "passage")


class Rows(Protocol):
    """What a mixture needs of a shard."""

    rows: int
    columns: tuple[str, ...]

    def take(self, rows: np.ndarray) -> list[tuple]:
        """The rows at these positions, as tuples in that order."""


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
        spans = [span for source in self.sources for span in self._spans(source, step)]
        stream = np.repeat([each[0] for each in spans], [stop - start for _, start, stop in spans]).astype(np.int64)
        slot = np.concatenate([np.arange(start, stop, dtype=np.int64) for _, start, stop in spans])
        size = self.batch_size
        mine = np.arange(size * rank // world, size * (rank + 1) // world)
        mine = permute(mine, size, self._key("batch", step))
        stream, slot = stream[mine], slot[mine]
        passes, slot = np.divmod(slot, self._sizes[stream])
        present = tuple(dict.fromkeys(self.streams[i].source for i, _, _ in spans))
        return BatchSpec(step, present, stream, self._rows(stream, slot, passes), passes)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Pair]:
        """The texts of `plan(step, rank, world)`.

        A translation is read from English in one half of the rows and into English in the other; which half a row is
        in depends on a hash of its number, and changes with every pass.
        """
        spec = self.plan(step, rank, world)
        pairs: list[Pair | None] = [None] * len(spec.row)
        for index in np.unique(spec.stream):
            at = np.flatnonzero(spec.stream == index)
            at = at[np.argsort(spec.row[at], kind="stable")]  # read forwards
            source, language, _ = self.streams[index]
            shard = self.shards[source, language]
            turned = self._turned(index, spec.row[at], spec.passes[at]) & (tuple(shard.columns) == TRANSLATIONS)
            for place, flip, texts in zip(at, turned, shard.take(spec.row[at]), strict=True):
                pairs[place] = Pair(*(reversed(texts) if flip else texts), source, language)
        return pairs

    def prefetch(self, start: int = 0, rank: int = 0, world: int = 1, depth: int = 2) -> Iterator[list[Pair]]:
        """The batches `start`, `start + 1` … `steps` − 1, read by a thread up to `depth` ahead.

        An error of the thread is raised here. The thread ends with the iterator, or with the program.
        """
        ready: queue.Queue = queue.Queue(depth)
        closed = threading.Event()

        def work() -> None:
            """What the thread does."""
            try:
                for step in range(start, self.steps):
                    if not _offer(ready, self.batch(step, rank, world), closed):
                        return
                _offer(ready, None, closed)
            except Exception as error:  # handed over to the thread that asked
                _offer(ready, error, closed)

        worker = threading.Thread(target=work, name="me5-prefetch")
        worker.start()
        try:
            while (found := ready.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            closed.set()
            worker.join()

    def shares(self, source: str) -> dict[str, float]:
        """Language → its share of the rows drawn from `source`."""
        pairs = zip(self._members[source], self._shares[source].tolist(), strict=True)
        return {self.streams[i].language: share for i, share in pairs}

    def totals(self) -> dict[Stream, int]:
        """Stream → rows drawn from it in all `steps` steps; divided by its rows it is the number of passes."""
        return {self.streams[i]: stop for source in self.sources for i, stop in self._dealt(source, self.steps)}

    def _refuse_nonsense(self) -> None:
        if not self.streams:
            raise Me5Error("the mixture has no streams: name at least one source that has rows")
        for key, shard in self.shards.items():
            if shard.rows < 1 or tuple(shard.columns) not in (TRANSLATIONS, PAIRS):
                raise Me5Error(f"stream {'/'.join(key)} has {shard.rows} rows and columns {', '.join(shard.columns)}: "
                               "a stream needs rows, and columns english and text, or query and passage")
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

    def _dealt(self, source: str, step: int) -> list[tuple[int, int]]:
        """(stream, slots it was dealt before `step`) for the streams of `source`."""
        before = self._own * int(np.searchsorted(self._steps_of[source], step))
        if self._own < self.batch_size:
            mixed = webster(list(self.weights.values()), (self.batch_size - self._own) * step)
            before += int(mixed[self.sources.index(source)])
        return list(zip(self._members[source].tolist(), webster(self._shares[source], before).tolist(), strict=True))

    def _spans(self, source: str, step: int) -> list[tuple[int, int, int]]:
        """(stream, first slot, last slot + 1) of what `step` takes of `source`; empty ones left out."""
        if self._own == self.batch_size and self.sources[self._source_of[step]] != source:
            return []
        both = zip(self._dealt(source, step), self._dealt(source, step + 1), strict=True)
        return [(stream, start, stop) for (stream, start), (_, stop) in both if stop > start]

    def _rows(self, stream: np.ndarray, slot: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """The row at each slot of a pass, all int64 [n]: blocks are permuted, then the rows in a block."""
        rows = self._sizes[stream]
        key = mix(mix(self._key("rows") + stream.astype(np.uint64)) + passes.astype(np.uint64))
        whole = rows // BLOCK
        turn = (key >> np.uint64(2)).astype(np.int64) % rows
        slot = (slot + turn) % rows  # so that the short block is not always read last
        block, offset = slot // BLOCK, slot % BLOCK
        block = np.where(block < whole, permute(block, whole, key), block)
        size = np.where(block < whole, BLOCK, rows % BLOCK)
        return block * BLOCK + permute(offset, size, mix(key ^ mix(block.astype(np.uint64) + np.uint64(1))))

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


def _tempered(rows: np.ndarray, temperature: float) -> np.ndarray:
    """Shares of the languages of a source, float64, summing to 1: rows ** temperature, scaled by the largest first."""
    scaled = (rows / rows.max()) ** temperature
    return scaled / scaled.sum()


def _offer(ready: queue.Queue, item: object, closed: threading.Event) -> bool:
    """Put `item` in the queue; False when the reader has gone or the program is ending."""
    # A daemon thread would need no such care, but one cut off inside numpy or Arrow aborts the program as it ends.
    while not closed.is_set() and threading.main_thread().is_alive():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
