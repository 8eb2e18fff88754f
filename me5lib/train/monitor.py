"""What is looked at while a model trains: held-out translations of a few languages, in seconds.

It is a look, not the evaluation: `me5lib.evaluate` has the protocol and all languages.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from me5lib.device import precision
from me5lib.model.encoder import Encoder
from me5lib.model.text import QUERY
from me5lib.pairs import script
from me5lib.train import loss as losses
from me5lib.train.loop import Evaluator

if TYPE_CHECKING:
    from me5lib.data.corpus import Corpus

LANGUAGES, STRINGS = 8, 200  # ours: a second a look

Sets = dict[str, tuple[list[str], list[str]]]


@functools.lru_cache(maxsize=4)
def watched(corpus: Corpus, languages: int = LANGUAGES, strings: int = STRINGS) -> Sets:
    """Language → (English, text), held out and aligned: the largest sets, one of each script before a second of any.

    Sets have equally many strings, at most `strings`, so that their accuracies can be compared. Kept for a corpus that
    is asked again.
    """
    sets = next(task.sets for task in corpus.tasks() if task.name == "heldout")
    by_size = sorted(sets, key=lambda code: (-len(sets[code][0]), code))
    seen: Counter[str] = Counter()
    turn = {}
    for code in by_size:
        alphabet = script(sets[code][1])
        turn[code] = seen[alphabet]
        seen[alphabet] += 1
    chosen = sorted(sorted(by_size, key=lambda code: turn[code])[:languages])
    size = min([strings, *(len(sets[code][0]) for code in chosen)])
    return {code: (sets[code][0][:size], sets[code][1][:size]) for code in chosen}


def bitext_accuracy(texts: np.ndarray, english: np.ndarray) -> float:
    """Share of the unit vectors `texts` [n, d] for which their own row of `english` [n, d] is the nearest."""
    return float(((texts @ english.T).argmax(1) == np.arange(len(texts))).mean())


def watch(corpus: Corpus) -> Evaluator:
    """An evaluator for `loop.train`: accuracy by language and in the mean, alignment, uniformity of the same texts."""
    sets = watched(corpus)

    def look(encoder: Encoder, step: int) -> dict[str, float]:
        """The figures of this moment; `step` is the loop's own affair."""
        fast = precision(encoder.device).name
        both = {code: tuple(encoder.encode(side, QUERY, precision=fast) for side in pair)
                for code, pair in sets.items()}
        by_language = {code: bitext_accuracy(text, english) for code, (english, text) in both.items()}
        english = torch.from_numpy(np.concatenate([pair[0] for pair in both.values()]))
        texts = torch.from_numpy(np.concatenate([pair[1] for pair in both.values()]))
        found = {
            "accuracy": float(np.mean(list(by_language.values()))),
            "alignment": losses.alignment(english, texts),
            "uniformity": losses.uniformity(texts),
            **{f"accuracy.{code}": value for code, value in by_language.items()},
        }
        return {name: round(value, 6) for name, value in found.items()}

    return look
