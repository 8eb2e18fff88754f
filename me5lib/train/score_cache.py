"""The scores that a teacher has given, kept on disk by hash of both texts: nothing is ever scored twice.

    with ScoreCache(cache() / "scores", {"model": …, "revision": …, "limits": …}) as kept:
        scores = kept.through(pairs, pieces)          # fp32 [n]; only pairs that are not there yet are scored

One folder for each teacher, of one revision and under one set of limits: `about.json` says whose scores they are,
`scores.bin` has them in records of 24 bytes (128 bits of hash, the score, a sum over both). Records are only ever
appended, piece by piece as the teacher gives them: a kill costs at most the piece that was being computed. A record
that a crash has torn, or that lost its sum, is dropped, counted, and scored again. Pieces are cut by length inside
fixed windows of the pairs that were asked for, longest first, so what is left after a kill is cut as it would have
been, and the file ends up the same. One process scores at a time with one teacher (of ranks that work together, one
for each part); another one waits.

Cost: 24 bytes a pair on disk, 20 in memory, about 2 µs to hash one: the paper's 1.6 M examples of 15 passages are
0.6 GB. Scoring itself costs what the teacher costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from me5lib.data.deal import mix
from me5lib.places import Me5Error
from me5lib.train import checkpoint

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("score", "<f4"), ("sum", "<u4")])
SALT = np.uint64(0x6D65352073636F72)  # or a record of zeros, which a crash can leave, would have its sum
WINDOW = 16_384  # ours: pairs that the teacher is handed at a time; it cuts pieces of similar length out of them
RECENT = 2**20  # ours: records looked up apart from the others, so that adding some does not sort them all

Pair = tuple[str, str]
Pieces = Callable[[Sequence[Pair]], Iterator[tuple[np.ndarray, np.ndarray]]]  # places among the pairs, their scores


class ScoreCache:
    """What one teacher has scored; a context, inside of which this process alone adds to it.

    `scored` pairs were new, `dropped` records were damaged, since it was entered.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], name: str = "the teacher", part: int = 0) -> None:
        """`identity` (JSON types) is all that a score depends on beside the two texts; `name` is for messages. Ranks
        that score side by side each add to a `part` of their own, and read all of them."""
        self.identity, self.name = dict(identity), name
        digest = hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode("utf8"), digest_size=16)
        self._key, self.folder = digest.digest(), root / digest.hexdigest()[:16]
        self.path = self.folder / (f"scores-{part}.bin" if part else "scores.bin")
        self.scored = self.dropped = 0

    def __enter__(self) -> ScoreCache:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._alone()
            about = json.dumps(self.identity, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            (self.folder / "about.json").write_text(about, encoding="utf8")
            self._old, self._new = self._read(), _Index.of(np.empty(0, RECORD))
            self._file = self.path.open("ab")
        except OSError as error:
            raise checkpoint.unwritten(self.path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        checkpoint.sync(self.path)
        self._lock.release()

    def __len__(self) -> int:
        return len(self._old.high) + len(self._new.high)

    def through(self, pairs: Sequence[Pair], pieces: Pieces) -> np.ndarray:
        """The scores of `pairs`, fp32 [n]; `pieces` is asked for those that are not kept, each once.

        Raises `Me5Error`, with their number, for pairs that it gives no finite score; what it gave the others is kept.
        """
        keys = self._keys(pairs)
        first, back = distinct(keys)
        keys = keys[first]
        found = self._look_up(keys)
        fresh = []
        for at, scores in _scored([pairs[i] for i in first], np.isnan(found), pieces, self.name):
            found[at] = scores
            good = np.isfinite(scores)
            fresh.append(self._append(keys[at[good]], scores[good]))
        self._remember(fresh)
        refuse_unscored([pairs[i] for i in first], found, self.name)
        return found[back]

    def _alone(self) -> Any:
        from filelock import FileLock, Timeout

        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process scores with {self.name}: waiting for it", file=sys.stderr)
            lock.acquire()
        return lock

    def _read(self) -> _Index:
        """The records that are whole, of all parts; a torn one at this part's end is cut off, so that the next is
        written in its place."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if torn := size % RECORD.itemsize:
            os.truncate(self.path, size - torn)
        records = np.fromfile(self.path, RECORD) if size else np.empty(0, RECORD)
        whole = records["sum"] == _sum(records)
        self.dropped = bool(torn) + int((~whole).sum())
        if self.dropped:
            print(f"{self.path}: {self.dropped} damaged record(s) dropped, to be scored again", file=sys.stderr)
        others = [np.fromfile(path, RECORD) for path in sorted(self.folder.glob("scores*.bin")) if path != self.path]
        return _Index.of(np.concatenate([records[whole], *(found[found["sum"] == _sum(found)] for found in others)]))

    def _keys(self, pairs: Sequence[Pair]) -> np.ndarray:
        """uint64 [n, 2] of each pair's texts and the identity; the query's length says where the passage begins."""
        texts = (f"{len(query)}:{query}{passage}".encode("utf8", "surrogatepass") for query, passage in pairs)
        whole = b"".join(hashlib.blake2b(text, digest_size=16, key=self._key).digest() for text in texts)
        return np.frombuffer(whole, "<u8").reshape(-1, 2)

    def _look_up(self, keys: np.ndarray) -> np.ndarray:
        found = self._old.look_up(keys)
        return np.where(np.isnan(found), self._new.look_up(keys), found)

    def _append(self, keys: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Put records to the end of the file; out of this process's hands when it returns."""
        records = np.empty(len(keys), RECORD)
        records["high"], records["low"], records["score"] = keys[:, 0], keys[:, 1], scores
        records["sum"] = _sum(records)
        try:
            self._file.write(records.tobytes())
            self._file.flush()
        except OSError as error:
            raise checkpoint.unwritten(self.path, error) from None
        self.scored += len(records)
        return records

    def _remember(self, fresh: list[np.ndarray]) -> None:
        self._new = self._new.and_of(fresh)
        if len(self._new.high) > RECENT:
            self._old, self._new = self._old.and_of([self._new.records()]), _Index.of(np.empty(0, RECORD))


class _Index(NamedTuple):
    """Records sorted by the first half of their hash."""

    high: np.ndarray
    low: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, records: np.ndarray) -> _Index:
        """The index of some records, in any order."""
        records = records[np.argsort(records["high"], kind="stable")]
        return cls(*(np.ascontiguousarray(records[name]) for name in ("high", "low", "score")))

    def and_of(self, more: list[np.ndarray]) -> _Index:
        """The index of these records and more."""
        return _Index.of(np.concatenate([self.records(), *more])) if more else self

    def records(self) -> np.ndarray:
        """The records, without their sums."""
        found = np.zeros(len(self.high), RECORD)
        found["high"], found["low"], found["score"] = self
        return found

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """fp32 [n]; NaN for a key that is not there. (Of two keys with one first half the second is never found.)"""
        found = np.full(len(keys), np.nan, np.float32)
        if len(self.high):
            at = np.minimum(np.searchsorted(self.high, keys[:, 0]), len(self.high) - 1)
            there = (self.high[at] == keys[:, 0]) & (self.low[at] == keys[:, 1])
            found[there] = self.score[at[there]]
        return found


def score_all(pairs: Sequence[Pair], pieces: Pieces, name: str = "the teacher") -> np.ndarray:
    """The scores of `pairs`, fp32 [n], without a cache. Raises `Me5Error` as `ScoreCache.through`."""
    found = np.full(len(pairs), np.nan, np.float32)
    for at, scores in _scored(pairs, np.isnan(found), pieces, name):
        found[at] = scores
    refuse_unscored(pairs, found, name)
    return found


def refuse_unscored(pairs: Sequence[Pair], scores: np.ndarray, name: str) -> None:
    """Raise `Me5Error` where some scores are not finite, with their number and the first of their queries."""
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise Me5Error(f"{name} gave {len(wrong)} of {len(pairs)} pairs no finite score (the first: query "
                       f"{pairs[wrong[0]][0][:60]!r}): choose another teacher (finetune.teacher), or learn without one")


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different row of `keys` [n, 2] comes first, in order, int64 [m]; and which of them each row is [n]."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first of equal rows stays first
    ranked = keys[order]
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(1)
    first = order[fresh]
    turn = np.argsort(first)
    place = np.empty_like(turn)
    place[turn] = np.arange(len(turn))
    back = np.empty_like(order)
    back[order] = place[np.cumsum(fresh) - 1]
    return first[turn], back


def _scored(
    pairs: Sequence[Pair], wanted: np.ndarray, pieces: Pieces, name: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places among `pairs`, scores) of the `wanted` ones [n], window by window. Raises `Me5Error` for too few."""
    for start in range(0, len(pairs), WINDOW):
        lacking = start + np.flatnonzero(wanted[start : start + WINDOW])
        if not len(lacking):
            continue
        for at, scores in pieces([pairs[i] for i in lacking]):
            if len(at) != len(scores):
                raise Me5Error(f"{name} gave {len(scores)} scores for {len(at)} pairs: one a pair is wanted")
            yield lacking[at], np.asarray(scores, np.float32)


def _sum(records: np.ndarray) -> np.ndarray:
    """uint32 of each record's hash and score."""
    bits = np.ascontiguousarray(records["score"]).view("<u4").astype(np.uint64)
    return mix(mix(mix(records["high"] ^ SALT) ^ records["low"]) ^ bits).astype(np.uint32)
