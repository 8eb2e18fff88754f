"""An encoder whose vectors stay on disk: a killed evaluation goes on where it was, and loses one chunk a device.

    encoder = CachedEncoder(model, folder, {"model": "intfloat/multilingual-e5-small", "revision": "fd1525a9"})
    encoder.encode(texts, "passage: ")          # reads the chunks that are there, encodes and writes the others

The different texts of a call are sorted by length and cut into chunks. A chunk is one `.npy` file, named by a hash of
all that decides its vectors: model, dtype, code, prefix, norm, options and its texts in order. The same list of texts
is read back in any task (ClimateFEVER has FEVER's corpus), another list with some of the same texts is encoded.

Vectors of half precision are kept, and returned, rounded to fp16: the same scores from the encoder as from the file.
Cost: 4 × width bytes of disk a text, or 2 × width; memory for the vectors of one call, twice.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from me5lib import io
from me5lib.io import Me5Error
from me5lib.model import encoder as encoders
from me5lib.train import checkpoint

VERSION = 1  # of what is kept; raise it with any change in `models` by which equal models and texts give other vectors
# Texts of a chunk (ours): a kill costs a second or two of a GPU, a few minutes of a CPU core with mE5-small; a file has
# 3 MB at 384 dimensions, MIRACL's English corpus 2,700 of them; mteb's 50,000 documents a call keep eight devices busy.
TEXTS = 2_048
HALF = ("fp16", "bf16")


class CachedEncoder:
    """`encoder` with its vectors kept in `folder`, for one process at a time.

    `identity` (JSON types) is what vectors depend on besides the text: the model and its revision; `dtype`, what they
    are computed in, and the code's versions are added. `encode` (of `on_devices`) does the work of `encoder.encode`.
    `seen` gets the number of characters of each chunk once it is there (0 from then on), for a progress bar.
    """

    def __init__(self, encoder: Any, folder: Path, identity: Mapping[str, Any], dtype: str = "fp32",
                 encode: Callable[..., Iterator[np.ndarray]] | None = None,
                 seen: Callable[[int], None] = lambda characters: None) -> None:
        self.encoder, self.folder, self.seen = encoder, Path(folder), seen
        self._key = {"version": f"{VERSION}.{encoders.VERSION}", "model": identity, "dtype": dtype}
        self._stored = np.float16 if dtype in HALF else np.float32
        self._encode = encode or (lambda chunks, *args, **more: (encoder.encode(chunk, *args, **more)
                                                                 for chunk in chunks))
        self._used: set[Path] = set()

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True, **options: Any) -> np.ndarray:
        """fp32 [n, width] vectors of `prefix + text`, in the order of `texts`, read or encoded; each text once.

        Raises `Me5Error` for vectors that are not finite and for a disk that refuses; the chunks before them stay.
        """
        options["normalise"] = normalise
        if not len(texts):
            return self.encoder.encode(texts, prefix, **options)
        # by length over the call: of chunks in the order of `texts`, a GPU reads a quarter more, padding (simulated)
        distinct = sorted(dict.fromkeys(texts), key=len, reverse=True)
        chunks = [distinct[start : start + TEXTS] for start in range(0, len(distinct), TEXTS)]
        # a file is named by all that decides its vectors
        keys = [self._key | {"prefix": prefix, "options": options, "texts": chunk} for chunk in chunks]
        paths = [self.folder / f"{checkpoint.fingerprint(key)}.npy" for key in keys]
        again = self._used.intersection(paths)
        self._used.update(paths)
        vectors = [io.read_array(path, self._stored, len(chunk), 2, f"its {len(chunk):,} texts are encoded again")
                   for path, chunk in zip(paths, chunks, strict=True)]
        missing = [i for i, array in enumerate(vectors) if array is None]
        for i in set(range(len(chunks))).difference(missing):
            self.seen(sum(map(len, chunks[i])) * (paths[i] not in again))
        encoded = self._encode([chunks[i] for i in missing], prefix, **options)
        for i, array in zip(missing, encoded, strict=True):  # one is on disk before the next is begun
            vectors[i] = np.asarray(array).astype(self._stored)
            wrong = np.flatnonzero(~np.isfinite(vectors[i]).all(axis=1))
            if len(wrong):
                raise Me5Error(f"the model gave {len(wrong)} of {len(chunks[i])} texts no finite vector (the first: "
                               f"{chunks[i][wrong[0]][:60]!r}): compute in fp32 (--dtype fp32), or choose another "
                               "model")
            io.put_array(paths[i], vectors[i])
            self.seen(sum(map(len, chunks[i])))
        row = {text: i for i, text in enumerate(distinct)}
        return np.concatenate(vectors, dtype=np.float32)[[row[text] for text in texts]]

    def delete(self) -> None:
        """Delete the chunks that this encoder has read or written; those of other tasks and models stay."""
        for path in self._used:
            path.unlink(missing_ok=True)
        self._used.clear()


@contextmanager
def on_devices(open_on: Callable[..., Any], devices: Sequence[str]) -> Iterator[Callable[..., Iterator[np.ndarray]]]:
    """One process a device that opens the model and encodes batches; the caller's process does all the rest.

    Gives what encodes: vectors of each batch, in order, as many batches at a time as there are processes.
    `open_on(device=...)`, which opens a model (`models.Opened`), is sent to the processes, so it must be a function of
    a module (or a `functools.partial` of one). The processes end with the context, and when the caller dies.
    """
    context = get_context("spawn")
    names = context.Queue()
    for device in devices:
        names.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _start_worker, (open_on, names))

    def encode(batches: Sequence[Sequence[str]], prefix: str, **options: Any) -> Iterator[np.ndarray]:
        """The vectors of each batch, in order, from whichever process is free."""
        try:
            yield from pool.map(_encode_batch, batches, [prefix] * len(batches), [options] * len(batches))
        except BrokenProcessPool:
            raise Me5Error("a process that encodes has died (memory?): what is finished is kept, start again, with "
                           "fewer --devices if it dies again") from None

    try:
        yield encode
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(open_on: Callable[..., Any], names: Any) -> None:
    """The start of a worker: it opens its model, and ends when the process that made it does."""
    global _encoder
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    _encoder = open_on(device=names.get()).encoder


def _encode_batch(batch: Sequence[str], prefix: str, options: dict[str, Any]) -> np.ndarray:
    """The vectors of a batch, in a process that `_start_worker` began."""
    return _encoder.encode(batch, prefix, **options)
