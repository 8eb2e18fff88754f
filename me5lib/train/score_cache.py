"""A teacher's scores, kept on disk a block at a time: a scoring run that was killed continues, and loses one block.

    scores, cached = block_scores(pairs, pieces, "the teacher", cache() / "scores", {"model": …, "limits": …})

A block is one fp32 `.npy` file, named by a hash of all that decides its scores: the teacher and the pairs' texts. It is
renamed into place, so two processes that score the same block at once do no harm. Blocks share no scores: groups with
other negatives are other blocks.

Cost: 4 bytes a pair and 128 a block on disk; the paper's 1.6 M examples of 15 passages are 0.1 GB in 3,100 files.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from me5lib import io
from me5lib.io import Me5Error
from me5lib.model import encoder as encoders
from me5lib.train import checkpoint

VERSION = 1  # of the scores; raise it with any change in `distill` by which equal teachers and texts give others

Pair = tuple[str, str]
Scored = Iterator[tuple[np.ndarray, np.ndarray]]  # piece by piece: positions among the pairs, and their logits
Pieces = Callable[[Sequence[Pair]], Scored]


def block_scores(
    pairs: Sequence[Pair], pieces: Pieces, name: str, folder: Path | None, identity: Mapping[str, Any]
) -> tuple[np.ndarray, bool]:
    """The scores of `pairs`, fp32 [n], and whether they were read from `folder`; if not, they are put there.

    `identity` (JSON types) is what a score depends on beside the two texts. Raises `Me5Error` as `score_pairs` does,
    and for a folder that cannot be written; with `folder` None nothing is kept.
    """
    if folder is None:
        return score_pairs(pairs, pieces, name), False
    key = {"version": f"{VERSION}.{encoders.VERSION}", "teacher": identity, "pairs": pairs}
    path = folder / f"{checkpoint.fingerprint(key)}.npy"
    scores = io.read_array(path, np.float32, len(pairs), 1, f"its {len(pairs):,} pairs are scored again")
    if scores is not None:
        return scores, True
    try:  # before the teacher works for nothing
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise io.unwritten(folder, error) from None
    scores = score_pairs(pairs, pieces, name)
    io.put_array(path, scores, uuid.uuid4().hex)
    return scores, False


def score_pairs(pairs: Sequence[Pair], pieces: Pieces, name: str = "the teacher") -> np.ndarray:
    """The scores of `pairs`, fp32 [n]; `pieces` gets each different pair once.

    Raises `Me5Error` for pairs that it gives no finite score, with their number and the first one's query, and for a
    piece with another number of scores than pairs; `name` is the teacher's in the message.
    """
    place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    distinct = list(place)
    scores = np.full(len(distinct), np.nan, np.float32)
    for at, logits in pieces(distinct):
        if len(at) != len(logits):
            raise Me5Error(f"{name} gave {len(logits)} scores for {len(at)} pairs: one a pair is wanted")
        scores[at] = logits
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise Me5Error(f"{name} gave {len(wrong)} of {len(distinct)} pairs no finite score (the first: query "
                       f"{distinct[wrong[0]][0][:60]!r}): choose another teacher (finetune.teacher), or learn without "
                       "one")
    return scores[[place[pair] for pair in pairs]]
