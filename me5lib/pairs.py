"""What everything is made of: a `Pair` (stage 1), a `Labelled` example (stage 2); `text_key`, `script` of texts.

Texts are kept bare: prefixes are added by `me5lib.model.text` when a text is tokenised, so a text has one key
whichever side it stands on.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
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


@lru_cache(maxsize=1 << 16)  # mining asks for the same passages over and over
def text_key(text: str) -> int:
    """64-bit key of the normalised text (taken before any prefix), stable across machines and Python versions.

    Fits a signed 64-bit integer, so that it can travel in a torch tensor and an Arrow column.
    Lone surrogates are hashed as they stand (`surrogatepass`).
    """
    digest = hashlib.blake2b(normalise(text).encode("utf8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def script(texts: Iterable[str]) -> str:
    """The script that most letters of `texts` are in, by the first word of their Unicode names: `latin`, `cjk`, …

    Of equally common ones the first in the alphabet; `none` where there is no letter.
    """
    letters = Counter(sign for text in texts for sign in text if sign.isalpha())
    scripts: Counter[str] = Counter()
    for sign, times in letters.items():
        scripts[unicodedata.name(sign, "?").split()[0].split("-")[0].lower()] += times
    return min(scripts, key=lambda name: (-scripts[name], name), default="none")
