"""An encoder whose vectors stay on disk: what a killed run has encoded, the next one does not encode again.

    kept = Kept(encoder, folder, mark="intfloat/multilingual-e5-small fd1525a9 fp32")
    kept.encode(texts, "passage: ")          # encodes what is not there; writes a shard after each few thousand texts

A call's new texts are sorted by length and cut into shards, each one file (safetensors: keys, vectors, a checksum),
written beside and renamed. Vectors are found by text (a 128-bit hash), whatever call, order or task they came from:
FEVER's corpus serves ClimateFEVER. There is a folder of shards for every prefix, norm and option. A damaged file is
named in one line, deleted, and its texts are encoded again.

Vectors of half precision are kept, and handed out, rounded to fp16 (by at most 2⁻¹¹ of a value, less than bf16 loses):
half the disk, and the same scores whether they come from the encoder or from the file.

`Workers` encode on several devices: one process each, which does nothing else. With one device none is started.
Cost: 8 bytes of memory for the key of a text and 8 for its place; 4 × width bytes of disk, or 2 × width.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from me5lib.places import Me5Error

TEXTS = 4_096  # of a shard at most (ours: some seconds of a GPU, so that a kill costs seconds)
CHARACTERS = 1_000_000  # of a shard at most (ours: about 300,000 tokens, a minute or two of one CPU core for mE5-small)
VERSION = 1  # of what is kept; raise it with any change in `models` by which equal models and texts give other vectors
FEWEST = 64  # different texts of a call that is kept; fewer are encoded anew (ours: a file costs more)
HALF = ("fp16", "bf16")


class Kept:
    """`encoder` with its vectors kept in `folder`.

    `mark` names what vectors depend on besides the text: the model, its revision, the dtype; the code's versions are
    added. `dtype` is what they were computed in. `encode` does the work instead of `encoder.encode` where it is given
    (`Workers.encode`). `seen` is told the characters of every call as they are done, for a bar.
    """

    def __init__(self, encoder: Any, folder: Path, mark: str, dtype: str = "fp32",
                 encode: Callable[..., Iterator[np.ndarray]] | None = None,
                 seen: Callable[[int], None] = lambda characters: None) -> None:
        from me5lib.model import encoder as encoders

        self.encoder, self.folder, self.mark = encoder, Path(folder), f"{mark} {VERSION}.{encoders.VERSION}"
        self.stored = np.float16 if dtype in HALF else np.float32
        self._encode, self.seen = encode or self._here, seen
        self._shelves: dict[str, _Shelf] = {}
        self.encoded = 0  # texts that were encoded, not read

    def __getattr__(self, name: str) -> Any:
        """Whatever else the encoder has, such as prompts of its own."""
        if name == "encoder":
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True, **options: Any) -> np.ndarray:
        """fp32 [n, width] vectors of `prefix + text`, in the order of `texts`, from the disk or encoded now."""
        if not len(texts):
            return self.encoder.encode(texts, prefix, normalise=normalise, **options)
        shelf = self._shelf(prefix, normalise, options)
        digests = _digests(texts)
        _, first, where = np.unique(digests, return_index=True, return_inverse=True)
        vectors, found = shelf.read(digests[first])
        self.seen(sum(len(texts[i]) for i in first[found]))
        shelf = shelf if len(first) >= FEWEST else None
        for rows, made in self._missing(texts, first[~found], shelf, prefix, normalise=normalise, **options):
            if vectors is None:
                vectors = np.empty((len(first), made.shape[1]), np.float32)
            vectors[np.searchsorted(digests[first], digests[rows])] = made
        return vectors[where.reshape(-1)]

    def _missing(self, texts: Sequence[str], rows: np.ndarray, shelf: _Shelf | None, prefix: str,
                 **options: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Encode these rows, longest first, a shard at a time; each is on `shelf` before it is handed on."""
        lengths = np.array([len(texts[i]) for i in rows], dtype=np.int64)
        pieces = [rows[cut] for cut in cuts(lengths)]
        batches = [[texts[i] for i in piece] for piece in pieces]
        for piece, batch, made in zip(pieces, batches, self._encode(batches, prefix, **options), strict=True):
            made = np.asarray(made).astype(self.stored)
            if shelf is not None:
                shelf.write(_digests(batch), made)
            self.encoded += len(batch)
            self.seen(sum(map(len, batch)))
            yield piece, made

    def _here(self, batches: Sequence[Sequence[str]], prefix: str, **options: Any) -> Iterator[np.ndarray]:
        return (self.encoder.encode(batch, prefix, **options) for batch in batches)

    def _shelf(self, prefix: str, normalise: bool, options: dict[str, Any]) -> _Shelf:
        about = {"of": self.mark, "prefix": prefix, "normalise": normalise, "options": options}
        text = json.dumps(about, sort_keys=True, default=str)
        if text not in self._shelves:
            name = hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()
            self._shelves[text] = _Shelf(self.folder / name, text)
        return self._shelves[text]

    def forget(self) -> None:
        """Delete every shard that this process has opened or made."""
        for shelf in self._shelves.values():
            shelf.clear()
        self._shelves.clear()


class _Shelf:
    """The shards of one way to encode: which text lies in which, and their vectors."""

    def __init__(self, folder: Path, about: str) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self.checked: set[int] = set()
        self.fresh: list[tuple[Path, np.ndarray]] = []  # shards not yet among the sorted keys
        self.keys, self.places = np.empty(0, np.uint64), np.empty(0, np.int64)  # sorted; file << 32 | row
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "about.json").write_text(about + "\n", encoding="utf8")
        except OSError as error:
            raise _unwritten(folder, error) from None
        for path in folder.glob(".*.part"):  # of a run that was killed while it wrote
            path.unlink(missing_ok=True)
        held = [(path, _keys(path)) for path in sorted(folder.glob("*.safetensors"))]
        self.fresh = [(path, keys) for path, keys in held if keys is not None]

    def _merge(self) -> None:
        """Put the fresh shards among the sorted keys: once a call, since each time costs a pass over all keys."""
        keys, places = [self.keys], [self.places]
        for path, digests in self.fresh:
            keys.append(_short(digests))
            places.append((len(self.files) << 32) + np.arange(len(digests)))
            self.files.append(path)
        every = np.concatenate(keys)
        order = np.argsort(every, kind="stable")
        self.keys, self.places, self.fresh = every[order], np.concatenate(places)[order], []

    def read(self, digests: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """fp32 [n, width] (None where nothing is there) and bool [n]: the rows that were found."""
        vectors, found = None, np.zeros(len(digests), dtype=bool)
        if self.fresh:
            self._merge()
        if not len(self.keys):
            return vectors, found
        wanted = _short(digests)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        there = np.flatnonzero(self.keys[at] == wanted)
        places = self.places[at[there]]
        for number in np.unique(places >> 32):
            mine = places >> 32 == number
            rows, lines = there[mine], places[mine] & 0xFFFFFFFF
            held = self._open(int(number))
            if held is None:
                continue
            same = held.digests[lines] == digests[rows]  # all 128 bits
            if vectors is None:
                vectors = np.empty((len(digests), held.vectors.shape[1]), np.float32)
            vectors[rows[same]] = held.vectors[lines[same]]
            found[rows[same]] = True
        return vectors, found

    def _open(self, number: int) -> _Shard | None:
        path = self.files[number]
        held = _load(path, check=number not in self.checked)
        if held is None:
            left = self.places >> 32 != number
            self.keys, self.places = self.keys[left], self.places[left]
        self.checked.add(number)
        return held

    def write(self, digests: np.ndarray, vectors: np.ndarray) -> None:
        """Write a shard beside and rename it: whole or absent. Raises `Me5Error` where the disk refuses."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        name = hashlib.blake2b(digests.tobytes(), digest_size=8).hexdigest()
        beside, path = self.folder / f".{name}.{os.getpid()}.part", self.folder / f"{name}.safetensors"
        keys = digests.view(np.uint8).reshape(len(digests), 16)
        vectors = np.ascontiguousarray(vectors)
        try:
            save_file({"keys": keys, "vectors": vectors}, beside, {"crc32": str(_sum(keys, vectors))})
            os.replace(beside, path)
        except (OSError, SafetensorError) as error:
            beside.unlink(missing_ok=True)
            raise _unwritten(path, error) from None
        self.fresh.append((path, digests))

    def clear(self) -> None:
        """Delete all of it."""
        for path in (*self.files, *(path for path, _ in self.fresh), self.folder / "about.json"):
            path.unlink(missing_ok=True)
        self.files, self.fresh, self.keys, self.places = [], [], self.keys[:0], self.places[:0]


class _Shard(NamedTuple):
    """What a file holds."""

    digests: np.ndarray  # V16 [n]
    vectors: np.ndarray  # fp32 or fp16 [n, width]


def cuts(lengths: np.ndarray) -> list[np.ndarray]:
    """Index arrays, longest first, each of at most `TEXTS` texts and `CHARACTERS` characters (or one text).

    A pure function of the lengths: a rerun that has the same texts left cuts them alike.
    """
    order, found, start = np.argsort(-lengths, kind="stable"), [], 0
    while start < len(order):
        rows = max(1, min(TEXTS, CHARACTERS // max(1, int(lengths[order[start]]))))
        found.append(order[start : start + rows])
        start += rows
    return found


def _digests(texts: Sequence[str]) -> np.ndarray:
    """V16 [n]: 128-bit hashes of texts; lone surrogates count as they are."""
    raw = b"".join(hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(raw, dtype="V16")


def _short(digests: np.ndarray) -> np.ndarray:
    """uint64 [n]: the first half of each hash, which texts are looked up by."""
    return np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)[:, 0]


def _keys(path: Path) -> np.ndarray | None:
    """The hashes of a shard without its vectors; None, said and deleted, where the file is cut short or no shard."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return _as_digests(file.get_tensor("keys"))
    except Exception as error:  # safetensors raises what its parser does; a file of ours is made again in any case
        return _damaged(path, error)


def _load(path: Path, check: bool) -> _Shard | None:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
            if check and str(_sum(keys, vectors)) != (file.metadata() or {}).get("crc32"):
                raise ValueError("its checksum does not fit")
        return _Shard(_as_digests(keys), vectors)
    except Exception as error:
        return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> None:
    print(f"me5: {path} is damaged ({' '.join(str(error).split())[:80]}): its texts are encoded again", file=sys.stderr)
    path.unlink(missing_ok=True)


def _as_digests(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view("V16").reshape(-1)


def _sum(keys: np.ndarray, vectors: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(vectors), zlib.crc32(np.ascontiguousarray(keys)))


def _unwritten(path: Path, error: Exception) -> Me5Error:
    return Me5Error(f"cannot write {path} ({' '.join(str(error).split())[:120]}): free some space or choose --out")


class Workers:
    """One process a device that opens the model and encodes batches; the caller's process does all the rest.

    `open_on(device)` returns an encoder and is sent to the processes, so it must be a function of a module (or a
    `functools.partial` of one). Use as a context; processes end with it, and when the caller dies.
    """

    def __init__(self, open_on: Callable[[str], Any], devices: Sequence[str]) -> None:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        context = get_context("spawn")
        names = context.Queue()
        for device in devices:
            names.put(device)
        self._pool = ProcessPoolExecutor(len(devices), context, _begin, (open_on, names))

    def encode(self, batches: Sequence[Sequence[str]], prefix: str, **options: Any) -> Iterator[np.ndarray]:
        """Vectors of each batch, in order; as many batches at a time as there are processes."""
        from concurrent.futures.process import BrokenProcessPool

        try:
            yield from self._pool.map(_work, batches, [prefix] * len(batches), [options] * len(batches))
        except BrokenProcessPool:
            raise Me5Error("a process that encodes has died (memory?): what is finished is kept, start again, with "
                           "fewer --devices if it dies again") from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _begin(open_on: Callable[[str], Any], names: Any) -> None:
    from multiprocessing import parent_process

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _Worker.encoder = open_on(names.get())


class _Worker:
    """What a worker process holds."""

    encoder: Any = None


def _work(batch: Sequence[str], prefix: str, options: dict[str, Any]) -> np.ndarray:
    return _Worker.encoder.encode(batch, prefix, **options)
