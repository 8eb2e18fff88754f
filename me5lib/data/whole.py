"""Steps of a build that look at a whole card: exact and near duplicates (datatrove's), and E5's consistency filter.

Duplicates go in datatrove's way: each task writes signatures of its items, other tasks merge them and write which items
go, and whoever reads the items again leaves those out. Which of several copies stays follows from their order in the
tasks alone. Here are the key, the shingles and the steps around; the rest is `datatrove.pipeline.dedup`.

Near duplicates: MinHash over character 5-grams of the normalised passage (ours; words would need a tokenizer per
language). It is a sketch, not a comparison: at the threshold 0.8 (16 buckets of 8 hashes) a pair of Jaccard similarity
0.5 / 0.6 / 0.7 / 0.8 / 0.9 is taken for a duplicate with probability 0.06 / 0.24 / 0.61 / 0.95 / 1.00.

Cost: `exact` 20 µs an item and 14 bytes on disk; `near` 1 ms a passage of 1,000 signs and 1.1 kB on disk; the last
merge holds the pairs of duplicates in memory, in one task.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer

from me5lib.data import filters
from me5lib.data.deal import mix
from me5lib.pairs import Labelled, normalise, text_key

NGRAM = 5  # characters (ours)
SLACK = 3  # so many times more candidates than wanted are sampled, for what duplicates may still take away (ours)
Documents = Iterator[Document]


def exact_content(document: Document) -> bytes:
    """What two items must share to be the same: the keys of the query and of every positive."""
    item = document.metadata["item"]
    passages = item.positives if isinstance(item, Labelled) else (item.passage,)
    return b"".join(text_key(text).to_bytes(8, "little", signed=True) for text in (item.query, *passages))


def exact_config() -> ExactDedupConfig:
    """Of `ExactDedup*`: 64-bit hashes of `exact_content`; one false hit in 1,400 sets of 160 million items."""
    return ExactDedupConfig(content_getter=exact_content)


def near_config(options: filters.Near) -> MinhashConfig:
    """Of `MinhashDedup*`."""
    buckets, hashes = options.bands
    return MinhashConfig(n_grams=NGRAM, num_buckets=buckets, hashes_per_bucket=hashes)


class Characters(WordTokenizer):
    """A tokenizer that datatrove asks for and `NearSignature` does not use: a character is a word."""

    def word_tokenize(self, text: str) -> list[str]:
        """The characters."""
        return list(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """The text."""
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """The span of the text."""
        return [(0, len(text))]


class NearSignature(MinhashDedupSignature):
    """MinHash of a passage's character n-grams, in any language."""

    def __init__(self, folder: str, options: filters.Near):
        super().__init__(folder, near_config(options), language=Characters())

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the different n-grams of the normalised text, uint64 [n, 1]; none where it is shorter than one."""
        signs = np.frombuffer(normalise(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        grams = np.lib.stride_tricks.sliding_window_view(signs, NGRAM) if len(signs) >= NGRAM else np.empty((0, NGRAM))
        found = np.zeros(len(grams), dtype=np.uint64)
        for column in grams.astype(np.uint64).T:
            found = mix(found ^ column)
        return np.unique(found).reshape(-1, 1)


class Sample(PipelineStep):
    """Passages that may be rivals: those whose key lies below a bound that `SLACK` × `among` of the card's do."""

    name, type = "rivals sampled", "me5"

    def __init__(self, folder: str, ledger: str, among: int):
        super().__init__()
        self.folder, self.ledger, self.among = folder, ledger, among

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Nothing: the sample is written."""
        import json

        books = sorted((Path(self.ledger) / "items").glob("*.json"))
        counts = [count for book in books for count in json.loads(book.read_text(encoding="utf8"))["counts"]]
        total = sum(n for what, _, _, n in counts if what == "made")
        bound = 2**64 * min(1.0, SLACK * self.among / max(total, 1))
        texts = sorted({each.text for each in data if text_key(each.text) % 2**64 <= bound})
        write_texts(Path(self.folder) / f"{rank:05d}.parquet", texts)
        yield from ()


def write_texts(path: Path, texts: list[str]) -> None:
    """Write beside and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + ".part")
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), side, compression="zstd")
    os.replace(side, path)


class Gather(PipelineStep):
    """One task: of all that was sampled the `among` rivals, and their vectors."""

    name, type = "rivals encoded", "me5"

    def __init__(self, folder: str, among: int, encode: filters.Encode, prefix: str):
        super().__init__()
        self.folder, self.among, self.encode, self.prefix = folder, among, encode, prefix

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Nothing: keys and vectors are written."""
        files = sorted(Path(self.folder).glob("*.parquet"))
        texts = [text for file in files for text in pq.read_table(file)["text"].to_pylist()]
        found = filters.crowd(texts, self.encode, self.among, self.prefix)
        for name, values in zip(found._fields, found, strict=True):
            side = Path(self.folder) / f"{name}.part.npy"
            np.save(side, values)
            os.replace(side, Path(self.folder) / f"{name}.npy")
        yield from ()


class Consistent(PipelineStep):
    """Lets an item through that E5's consistency filter keeps; of a labelled example it judges the first positive."""

    name, type = "consistency filter", "me5"

    def __init__(self, folder: str, options: filters.Consistency, encode: filters.Encode, prefixes: tuple[str, str]):
        super().__init__()
        self.folder, self.options, self.encode, self.prefixes = folder, options, encode, prefixes

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """The items that are kept."""
        rivals = filters.Crowd(*(np.load(Path(self.folder) / f"{name}.npy") for name in filters.Crowd._fields))
        index = filters.exact_index(rivals) if len(rivals.keys) else None
        data = iter(data)
        while given := list(islice(data, filters.PIECE)):  # itertools.batched is not in Python 3.11
            queries = [each.metadata["item"].query for each in given]
            kept = filters.among_crowd(queries, [each.text for each in given], self.encode, self.options.top, rivals,
                                       self.prefixes, index)
            yield from (each for each, keep in zip(given, kept, strict=True) if keep)


def options_of(card: str, given: Mapping[str, Mapping[str, Any]], encoder: bool) -> tuple[dict[str, Any], list[str]]:
    """(whole-card steps that a build makes, what it leaves out and why)."""
    found = filters.whole(card, given)
    if "consistency" in found and not encoder:
        del found["consistency"]
        return found, ["consistency: no encoder was given"]
    return found, []
