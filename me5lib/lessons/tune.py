"""Fine-tuning in the small and in memory: rows of a step → trained encoder, no folder, no mining, no teacher.

For lessons and experiments that compare arms; the real second stage is `stages.finetune`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

import numpy as np

from me5lib.config import Stage
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train.distributed import Team
from me5lib.train.labelled import Prefixes
from me5lib.train.loop import RunOptions, Work, train_loop
from me5lib.train.stages import Budget, Rows, work_of

WHOLE = Budget(sys.maxsize, sys.maxsize)  # small batches: no replay


def train_on(
    encoder: Encoder, rows_of: Callable[[int], Rows], stage: Stage, seed: int, sides: Prefixes, progress: bool = True
) -> Encoder:
    """Train `encoder` in place on the rows of each step for `stage.steps` steps, and return it; prefixes by source."""
    team = Team.alone(encoder.device)

    def prepare(step: int) -> Work:
        return work_of(rows_of(step), encoder, encoder, stage, team, WHOLE, (seed, step), sides)

    train_loop(encoder, prepare, stage, RunOptions(None, seed, name="tuning", progress=progress))
    return encoder


def tune(encoder: Encoder, rows: Sequence[Labelled], stage: Stage, seed: int, progress: bool = True) -> Encoder:
    """Fine-tune `encoder` in place on `rows`, which carry their own prefix or instruction, and return it.

    A batch holds one language, so that its negatives cannot be told apart by their script.
    """
    stage = dataclasses.replace(stage, passage_tokens=stage.query_tokens)
    pools = [[row for row in rows if row.language == language] for language in sorted({row.language for row in rows})]

    def batch(step: int) -> list[Labelled]:
        draw = np.random.default_rng((seed, step))
        pool = pools[draw.integers(len(pools))]
        return [pool[i] for i in draw.permutation(len(pool))[: stage.batch]]

    return train_on(encoder, batch, stage, seed, lambda source: ("", ""), progress)
