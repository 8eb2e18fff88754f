"""An exported folder, read back by the libraries it was written for, and held against the encoder it came from.

`sentence_transformers`, `transformers` and `onnx` each load the folder as their users do, with its own tokenizer and
prompts, and encode `samples`: texts of many scripts, empty ones, ones beyond the longest. Each gives the largest
difference between two coordinates of unit vectors, and raises `Me5Error` when that is over `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from me5lib.io import Me5Error

if TYPE_CHECKING:
    from me5lib.model.encoder import Encoder

TOLERANCE = 1e-4  # of a coordinate of a unit vector; sums in another order come to some 1e-7
LOCALES = ("en", "de", "ru", "el", "ka", "hy", "he", "ar", "fa", "ur", "hi", "bn", "ta", "te", "th", "km", "my", "am",
           "zh", "ja", "ko")  # fmt: skip  # 19 scripts
SIZES = (1, 5, 3, 16)  # rows of the batches: a graph that is dynamic takes any


def samples(tokens: int) -> list[str]:
    """Texts of many scripts, short and long in turn, with empty ones and ones of more than `tokens` tokens."""
    from babel import Locale

    found = ["", "   ", "a", "\n\t", "🎉🎉 \u200b ﬁ №５", "word " * (2 * tokens)]
    for code in LOCALES:
        names = list(Locale.parse(code).territories.values())
        found += [names[0], ", ".join(names[: len(found) % 40 + 2])]
    return [*found, "永和九年" * tokens]


def scripts() -> int:
    """How many scripts the letters of `samples` are of, by their Unicode names."""
    import unicodedata
    from collections import Counter

    letters = {letter for text in samples(1) for letter in text if letter.isalpha()}
    words = Counter(unicodedata.name(letter, "?").split()[0] for letter in letters)
    return sum(count > 5 for count in words.values())  # signs like ª and ー have names of their own


def sentence_transformers(folder: Path, encoder: Encoder, prompts: dict[str, str]) -> float:
    """`SentenceTransformer(folder)`, its queries and documents by their prompts."""
    from sentence_transformers import SentenceTransformer

    from me5lib.model.save_load import quiet

    texts = samples(encoder.max_tokens)
    with quiet():
        theirs = SentenceTransformer(str(folder), device="cpu")
    found = np.concatenate([theirs.encode_query(texts, show_progress_bar=False),
                            theirs.encode_document(texts, show_progress_bar=False)])  # fmt: skip
    wanted = np.concatenate([encoder.encode(texts, prompts[side]) for side in ("query", "document")])
    return _same(found, wanted, "sentence-transformers")


def transformers(folder: Path, encoder: Encoder, prompts: dict[str, str]) -> float:
    """`AutoTokenizer` and `AutoModel`, with the pooling of the authors' model card."""
    import torch
    from transformers import AutoModel

    from me5lib.model.save_load import quiet

    with quiet():
        model = AutoModel.from_pretrained(str(folder), dtype="float32").eval()

    def vectors(batch: dict[str, np.ndarray]) -> np.ndarray:
        given = {name: torch.from_numpy(np.asarray(batch[name])) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = model(**given).last_hidden_state.masked_fill(~given["attention_mask"][..., None].bool(), 0.0)
        return torch.nn.functional.normalize(hidden.sum(1) / given["attention_mask"].sum(1)[:, None], dim=1).numpy()

    return _by_batches(folder, encoder, prompts["query"], vectors, "transformers")


def onnx(folder: Path, encoder: Encoder, prompts: dict[str, str]) -> float:
    """`onnx/model.onnx` in onnxruntime, with the folder's tokenizer."""
    from me5lib.model import onnx as graph

    opened = graph.session(folder / graph.NAME)
    return _by_batches(folder, encoder, prompts["query"], lambda batch: graph.run(opened, batch)["sentence_embedding"],
                       "onnxruntime")  # fmt: skip


def _by_batches(folder: Path, encoder: Encoder, prefix: str, vectors: Callable, reader: str) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = samples(encoder.max_tokens)
    options = {"padding": True, "truncation": True, "return_tensors": "np"}
    found = [vectors(tokenizer([prefix + text for text in part], **options)) for part in _batches(texts)]
    return _same(np.concatenate(found), encoder.encode(texts, prefix), reader)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    start = turn = 0
    while start < len(texts):
        rows = SIZES[turn % len(SIZES)]
        yield texts[start : start + rows]
        start, turn = start + rows, turn + 1


def _same(found: np.ndarray, wanted: np.ndarray, reader: str) -> float:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        raise Me5Error(f"{reader} gives vectors {list(found.shape)} with numbers missing, not {list(wanted.shape)}: "
                       "the export is refused")
    worst = abs(found - wanted).max(axis=1)
    if worst.max() > TOLERANCE:
        raise Me5Error(f"{reader} gives other vectors than me5 for {int((worst > TOLERANCE).sum())} of {len(worst)} "
                       f"texts (by {worst.max():.1e}, at most {TOLERANCE:g}): the export is refused")
    return float(worst.max())
