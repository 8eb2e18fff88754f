"""Token ids of stage 1, written once and read memory-mapped: what `me5 pretrain --pretokenised` learns from.

    stored = tokenised.over(mixture, encoder, scale.train, prefixes)        # writes what is missing
    ids, related = tokenised.ready(stored.batch(step), encoder, scale.train)

A stream (source, language) has one folder, `<cache>/tokens/<source>/<language>/<fingerprint>`, rows as in its shard:

    keys.npy          int64 [rows, 2]   `text_key` of both columns, from which the loss makes its relations
    ids-N.npy         int32 [tokens]    ids of side N: a column with a prefix in front, cut to the longest limit
    offsets-N.npy     int64 [rows + 1]  row i is ids[offsets[i] : offsets[i + 1]]
    manifest.json     what they were made with

The fingerprint covers all that decides the numbers: vocabulary, library and code that cut a text, prefixes, limit, the
SHA-256 of the shards. With any of them changed another folder is used; old ones stay until `<cache>/tokens` is deleted.
A translation is read in both directions, so where its sides have different prefixes each column is stored with both.

`over` gives the same `Mixture` with `Text`s where its strings were: plan and directions are those of the very same
code, so rows, order and losses are equal to the bit, and no setting of a stage knows of it.

Cost: 4 bytes a token, 32 a pair. Writing is that of tokenising each text once (and twice its key, in one thread of
Python); it goes on at the first stream that is not whole.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock

from me5lib import pairs
from me5lib.data.mixture import PAIRS, Mixture
from me5lib.data.shards import BLOCK, MAPPED, Joined, Shard, full_disk
from me5lib.model import text
from me5lib.model.encoder import Encoder
from me5lib.pairs import Pair, text_key
from me5lib.places import Me5Error, cache
from me5lib.scale import Stage
from me5lib.train import checkpoint
from me5lib.train.contrast import Relations

VERSION = 1  # of the files
MANIFEST = "manifest.json"
ID, PLACE = np.dtype("<i4"), np.dtype("<i8")  # XLM-R has 250,002 pieces: 16 bits would not do
CHUNK = 4 * BLOCK  # ours: rows tokenised at a time; enough for every thread of the tokenizer
SAMPLE = 256  # ours: rows of a stream from which its size is foretold; shards are shuffled, so the first ones do
SPARE = 1.1  # ours: a store is begun where so many times its foretold size is free
CODE = (text.clean, Encoder.tokenize, Encoder._clean, Encoder._ids, pairs.normalise, text_key.__wrapped__)
_NEW = tuple.__new__

Prefixes = Callable[[str], tuple[str, str]]
Tokenise = Callable[[list[str]], list[list[int]]]


class Text(NamedTuple):
    """A text as a step needs it."""

    key: int  # `text_key` of the bare text
    query: list[int]  # its ids where it is the query, prefix and special tokens included; not yet cut to that side
    passage: list[int]  # its ids where it is the passage


class Tokens:
    """The rows of a stream, as `Text`s; `rows` and `columns` are the shard's."""

    def __init__(self, stream: _Stream) -> None:
        """Memory-map the files of `stream`. Raises OSError, ValueError, KeyError or TypeError for what is not whole."""
        folder, self.rows, self.columns = stream.folder, stream.shard.rows, tuple(stream.shard.columns)
        given = json.loads((folder / MANIFEST).read_text(encoding="utf8"))
        if given["fingerprint"] != folder.name:
            raise ValueError(f"{MANIFEST} is of {given['fingerprint']}")
        self._keys = _mapped(folder / "keys.npy", PLACE, (self.rows, 2))
        self._sides = [self._side(folder, n) for n in range(len(stream.sides))]
        self._roles = [[stream.sides.index((c, prefix)) for prefix in two] for c, two in enumerate(stream.roles)]

    def _side(self, folder: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
        offsets = _mapped(folder / f"offsets-{n}.npy", PLACE, (self.rows + 1,))
        return offsets, _mapped(folder / f"ids-{n}.npy", ID, (int(offsets[-1]),))

    def read(self, rows: np.ndarray) -> list[list[Text]]:
        """The rows at these positions (int64 [n]), in that order: a list per column."""
        keys = self._keys[rows].T.tolist()
        sides = [_lists(offsets, ids, rows) for offsets, ids in self._sides]
        return [list(map(_NEW, repeat(Text), zip(key, sides[asked], sides[answered], strict=True)))
                for key, (asked, answered) in zip(keys, self._roles, strict=True)]


def over(mixture: Mixture, encoder: Encoder, stage: Stage, prefixes: Prefixes, progress: bool = True) -> Mixture:
    """The same mixture, whose batches hold `Text`s instead of strings; what is not in the cache is written first.

    `prefixes` gives a source's two. Says the size on the disk before it writes. Several processes may call this at
    once: a stream is written by one, the others wait. Raises `Me5Error` where the disk is full, or is going to be.
    """
    longest = _limit(max(stage.query_tokens, stage.passage_tokens), encoder)
    made_with = {
        "version": VERSION, "vocabulary": text.vocabulary_sha256(encoder.tokenizer), "longest": longest,
        "tokenizers": version("tokenizers"), "unicode": unicodedata.unidata_version, "max_chars": text.MAX_CHARS,
        "code": [inspect.getsource(each) for each in CODE],
    }  # fmt: skip
    streams = [_Stream(key, shard, prefixes(key[0]), made_with) for key, shard in mixture.shards.items()]
    missing = [stream for stream in streams if stream.fault()]
    if missing:
        _write_all(missing, lambda texts: encoder.tokenize(texts, "", longest), progress)
    stored = copy.copy(mixture)  # its plan depends on the rows of the streams, not on what they hold
    stored.shards = {stream.key: Tokens(stream) for stream in streams}
    return stored


def ready(batch: Sequence[Pair], encoder: Encoder, stage: Stage) -> tuple[list[list[int]], Relations]:
    """The ids of a batch's queries, then of its passages, each cut to its limit; and `contrast.from_pairs`' relations.

    `batch` is of a mixture that `over` gave.
    """
    queries, passages = [pair.query for pair in batch], [pair.passage for pair in batch]
    limits = [_limit(tokens, encoder) for tokens in (stage.query_tokens, stage.passage_tokens)]
    ids = [_cut(one.query, limits[0]) for one in queries] + [_cut(one.passage, limits[1]) for one in passages]
    asked, right = (torch.tensor([one.key for one in side], dtype=torch.int64) for side in (queries, passages))
    index = torch.arange(len(batch))  # passage i is the positive of query i, and its only known one
    return ids, Relations(asked, right, index, index, right[:, None])


def _limit(tokens: int, encoder: Encoder) -> int:
    return min(tokens, encoder.max_tokens)


def _cut(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]  # as `Encoder.tokenize` does, `</s>` stays


class _Stream:
    """A stream of the mixture, what its ids depend on, and where they lie.

    `roles`: for each column its prefix as a query and as a passage; `sides`: the (column, prefix) that are stored.
    """

    def __init__(self, key: tuple[str, str], shard: Shard | Joined, both: tuple[str, str], made_with: dict) -> None:
        self.key, self.shard = key, shard
        self.roles = [(side, side) for side in both] if tuple(shard.columns) == PAIRS else [both, both]
        self.sides = list(dict.fromkeys((c, prefix) for c, two in enumerate(self.roles) for prefix in two))
        files = [part.manifest.sha256[MAPPED] for part in getattr(shard, "parts", [shard])]
        self.made_with = {**made_with, "columns": list(shard.columns), "sides": self.sides, "files": files}
        self.folder = cache() / "tokens" / Path(*key) / checkpoint.fingerprint(self.made_with)

    def fault(self) -> str:
        """Why it cannot be read: "absent", or what is damaged; or ""."""
        if not self.folder.exists():
            return "absent"
        try:
            Tokens(self)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    def foretold(self, tokenise: Tokenise) -> int:
        """About how many bytes its files will take."""
        sample = self.shard.read(np.arange(min(SAMPLE, self.shard.rows)))
        tokens = sum(len(ids) for c, prefix in self.sides for ids in tokenise([prefix + one for one in sample[c]]))
        a_row = ID.itemsize * tokens / len(sample[0]) + PLACE.itemsize * (2 + len(self.sides))
        return int(a_row * self.shard.rows)

    def write(self, tokenise: Tokenise, bar: Any) -> None:
        """Write the folder, beside and then renamed. Raises `Me5Error` when the disk is full."""
        beside = self.folder.with_name(self.folder.name + ".part")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            self._fill(beside, tokenise, bar)
            made = {"fingerprint": self.folder.name, "rows": self.shard.rows, "made with": self.made_with}
            (beside / MANIFEST).write_text(json.dumps(made, indent=1) + "\n", encoding="utf8")
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(beside, self.folder)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise full_disk(error, self.folder) from None

    def _fill(self, folder: Path, tokenise: Tokenise, bar: Any) -> None:
        with ExitStack() as open_files:
            keys, *files = (open_files.enter_context(closing(file)) for file in self._files(folder))
            for start in range(0, self.shard.rows, CHUNK):
                columns = self.shard.read(np.arange(start, min(start + CHUNK, self.shard.rows)))
                keys.append(np.array([[text_key(one) for one in column] for column in columns], PLACE).T)
                for (column, prefix), ids, offsets in zip(self.sides, files[::2], files[1::2], strict=True):
                    found = tokenise([prefix + one for one in columns[column]])
                    offsets.append(ids.rows + np.cumsum([len(row) for row in found]))
                    ids.append(np.fromiter(chain.from_iterable(found), ID))
                bar.update(len(columns[0]))

    def _files(self, folder: Path) -> list[_Growing]:
        """The keys' file, then ids and offsets of each side."""
        files = [_Growing(folder / "keys.npy", PLACE, 2)]
        for n in range(len(self.sides)):
            files += [_Growing(folder / f"ids-{n}.npy", ID), _Growing(folder / f"offsets-{n}.npy", PLACE)]
            files[-1].append(np.zeros(1))
        return files


class _Growing:
    """A .npy file that is written piece by piece: numpy leaves room in its header for more rows."""

    def __init__(self, path: Path, dtype: np.dtype, *width: int) -> None:
        self.file, self.dtype, self.width, self.rows = path.open("wb"), dtype, width, 0
        self._head()

    def append(self, values: np.ndarray) -> None:
        """More rows, behind those that are there."""
        self.file.write(np.asarray(values, self.dtype).tobytes())
        self.rows += len(values)

    def close(self) -> None:
        """Say in the header how many they have become."""
        with self.file:
            self.file.seek(0)
            self._head()

    def _head(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.width)}
        np.lib.format.write_array_header_1_0(self.file, header)


def _write_all(missing: Sequence[_Stream], tokenise: Tokenise, progress: bool) -> None:
    """Write what is missing, after saying how much it is. Raises `Me5Error` where the disk has not so much left."""
    from tqdm import tqdm

    home, rows = cache() / "tokens", sum(stream.shard.rows for stream in missing)
    try:
        home.mkdir(parents=True, exist_ok=True)
        size, free = sum(stream.foretold(tokenise) for stream in missing), shutil.disk_usage(home).free
        told = f"about {size / 1e9:,.2f} GB, of {free / 1e9:,.1f} GB free, in {home}"
        if size * SPARE > free:
            raise Me5Error(f"the token ids take {told}: point ME5_CACHE to a larger disk, or leave out --pretokenised")
        if progress:
            print(f"token ids of {rows:,} pairs in {len(missing)} streams, written once: {told}")
        with tqdm(total=rows, desc="tokenise", unit=" pairs", disable=not progress) as bar:
            for stream in missing:
                _write_one(stream, tokenise, bar)
    except OSError as error:
        raise full_disk(error, home) from None


def _write_one(stream: _Stream, tokenise: Tokenise, bar: Any) -> None:
    """Write a stream, unless another process has done so meanwhile; a damaged one is named and replaced."""
    stream.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{stream.folder}.lock"):
        fault = stream.fault()
        if not fault:
            bar.update(stream.shard.rows)
            return
        if fault != "absent":
            print(f"{stream.folder} is damaged ({fault}): made anew", file=sys.stderr)
        stream.write(tokenise, bar)


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A .npy file, memory-mapped through Arrow, which keeps no file handle (numpy's own mapping does: there are
    thousands). Raises ValueError where it is not of this type and shape, or cut short."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        found, _, kind = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if (found, kind) != (shape, dtype):
        raise ValueError(f"{path.name} is {kind} {list(found)}, not {dtype} {list(shape)}")
    with pa.memory_map(str(path)) as source:
        return np.frombuffer(source.read_buffer(), dtype, offset=start).reshape(shape)  # refuses another length


def _lists(offsets: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """The ids of these rows. Taken in one go, in which numpy lets other threads run while the disk is waited for."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    stops = np.cumsum(lengths)
    flat = ids.take(np.arange(int(lengths.sum())) + np.repeat(starts - (stops - lengths), lengths)).tolist()
    return [flat[stop - length : stop] for stop, length in zip(stops.tolist(), lengths.tolist(), strict=True)]
