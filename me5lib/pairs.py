"""The two things that everything is made of: a `Pair` (stage 1) and a `Labelled` example (stage 2); and `text_key`.

Texts are kept bare: prefixes are added by `me5lib.model.text` when a text is tokenised, so a text has one key
whichever side it stands on.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import NamedTuple


class Pair(NamedTuple):
    """Two texts that belong together (Table 1 of the paper: title and body, question and answer, translation)."""

    query: str
    passage: str
    source: str
    language: str  # ISO 639 code of the passage; for translations, of the side that is not English


class Labelled(NamedTuple):
    """A query with right and wrong passages (Table 2 of the paper)."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    source: str
    language: str
    teacher_scores: tuple[float, ...] | None = None  # one per positive, then one per negative; logits, higher is better
    instruction: str | None = None


def normalise(text: str) -> str:
    """The form under which two texts count as the same: NFKC, case-folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> int:
    """64-bit key of the normalised text (taken before any prefix), stable across machines and Python versions.

    Fits a signed 64-bit integer, so that it can travel in a torch tensor and an Arrow column.
    Lone surrogates are hashed as they stand (`surrogatepass`).
    """
    digest = hashlib.blake2b(normalise(text).encode("utf8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
