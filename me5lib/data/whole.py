"""Steps of a build that look at a whole card: exact and near duplicates (datatrove's).

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

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer

from me5lib.data import filters
from me5lib.data.shards import splitmix64
from me5lib.pairs import Labelled, normalise, text_key

NGRAM = 5  # characters (ours)


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
            found = splitmix64(found ^ column)
        return np.unique(found).reshape(-1, 1)
