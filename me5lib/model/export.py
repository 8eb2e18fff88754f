"""A model's folder for others: written, read back by the libraries it is for, and given a card.

`sentence_transformers`, `transformers` and `onnx` each load the folder as their users do, with its own tokenizer and
prompts, and encode `check_texts`: texts of many scripts, empty ones, ones beyond the longest. Each gives the largest
difference between two coordinates of unit vectors, and raises `Me5Error` when that is over `TOLERANCE`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from me5lib.io import Me5Error
from me5lib.model.save_load import quiet

if TYPE_CHECKING:
    from me5lib.model.card import About
    from me5lib.model.encoder import Encoder

TOLERANCE = 1e-4  # of a coordinate of a unit vector; sums in another order come to some 1e-7
LOCALES = ("en", "de", "ru", "el", "ka", "hy", "he", "ar", "fa", "ur", "hi", "bn", "ta", "te", "th", "km", "my", "am",
           "zh", "ja", "ko")  # fmt: skip  # 19 scripts
SIZES = (1, 5, 3, 16)  # rows of the batches, in turn: a graph that is dynamic takes any


def export_model(encoder: Encoder, folder: Path, about: About) -> str:
    """Write `encoder` with its card, and with its graph where the card has one; what was checked, in words.

    Raises `Me5Error` where a library gives other vectors than the encoder, or the disk refuses: nothing is changed
    then.
    """
    from me5lib.model import card

    worst = {}

    def _complete(beside: Path) -> None:
        worst["sentence-transformers"] = sentence_transformers(beside, encoder, about.prompts)
        worst["transformers"] = transformers(beside, encoder, about.prompts)
        if about.onnx:
            from me5lib.model import onnx as graph

            graph.write_graph(encoder, beside)
            worst["onnxruntime"] = onnx(beside, encoder, about.prompts)
        (beside / "README.md").write_text(card.render(about), encoding="utf8")

    encoder.save(folder, about.prompts, _complete)
    count = len(check_texts(encoder.max_tokens))
    return (f"{count} texts in {script_count()} scripts, largest difference of a coordinate: "
            + ", ".join(f"{reader} {value:.0e}" for reader, value in worst.items()))


def check_texts(tokens: int) -> list[str]:
    """Texts of many scripts, short and long in turn, with empty ones and ones of more than `tokens` tokens."""
    from babel import Locale

    texts = ["", "   ", "a", "\n\t", "🎉🎉 \u200b ﬁ №５", "word " * (2 * tokens)]
    for code in LOCALES:
        names = list(Locale.parse(code).territories.values())
        texts += [names[0], ", ".join(names[: len(texts) % 40 + 2])]
    return [*texts, "永和九年" * tokens]


def script_count() -> int:
    """How many scripts the letters of `check_texts` are of, by their Unicode names."""
    letters = {letter for text in check_texts(1) for letter in text if letter.isalpha()}
    words = Counter(unicodedata.name(letter, "?").split()[0] for letter in letters)
    return sum(count > 5 for count in words.values())  # signs like ª and ー have names of their own


def sentence_transformers(folder: Path, encoder: Encoder, prompts: dict[str, str]) -> float:
    """`SentenceTransformer(folder)`, its queries and documents by their prompts."""
    from sentence_transformers import SentenceTransformer

    texts = check_texts(encoder.max_tokens)
    with quiet():
        model = SentenceTransformer(str(folder), device="cpu")
    theirs = [encode(texts, show_progress_bar=False) for encode in (model.encode_query, model.encode_document)]
    ours = [encoder.encode(texts, prompts[side]) for side in ("query", "document")]
    return _difference(np.concatenate(theirs), np.concatenate(ours), "sentence-transformers")


def transformers(folder: Path, encoder: Encoder, prompts: dict[str, str]) -> float:
    """`AutoTokenizer` and `AutoModel`, with the pooling of the authors' model card."""
    import torch
    from transformers import AutoModel

    with quiet():
        model = AutoModel.from_pretrained(str(folder), dtype="float32").eval()

    def _vectors(batch: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {name: torch.from_numpy(np.asarray(batch[name])) for name in ("input_ids", "attention_mask")}
        mask = inputs["attention_mask"]
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state.masked_fill(~mask[..., None].bool(), 0.0)
        return torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1)[:, None], dim=1).numpy()

    return _by_batches(folder, encoder, prompts["query"], _vectors, "transformers")


def onnx(folder: Path, encoder: Encoder, prompts: dict[str, str]) -> float:
    """`onnx/model.onnx` in onnxruntime, with the folder's tokenizer."""
    from me5lib.model import onnx as graph

    session = graph.session(folder / graph.NAME)

    def _vectors(batch: dict[str, np.ndarray]) -> np.ndarray:
        return graph.run_graph(session, batch)["sentence_embedding"]

    return _by_batches(folder, encoder, prompts["query"], _vectors, "onnxruntime")


def _by_batches(folder: Path, encoder: Encoder, prefix: str, vectors: Callable, reader: str) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts, theirs, start = check_texts(encoder.max_tokens), [], 0
    while start < len(texts):
        part = [prefix + text for text in texts[start : start + SIZES[len(theirs) % len(SIZES)]]]
        theirs.append(vectors(tokenizer(part, padding=True, truncation=True, return_tensors="np")))
        start += len(part)
    return _difference(np.concatenate(theirs), encoder.encode(texts, prefix), reader)


def _difference(theirs: np.ndarray, ours: np.ndarray, reader: str) -> float:
    """The largest between two coordinates. Raises `Me5Error` where it is too large."""
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        raise Me5Error(f"{reader} gives vectors {list(theirs.shape)} with numbers missing, not {list(ours.shape)}: "
                       "the export is refused")
    worst = abs(theirs - ours).max(axis=1)
    if worst.max() > TOLERANCE:
        raise Me5Error(f"{reader} gives other vectors than me5 for {int((worst > TOLERANCE).sum())} of {len(worst)} "
                       f"texts (by {worst.max():.1e}, at most {TOLERANCE:g}): the export is refused")
    return float(worst.max())
