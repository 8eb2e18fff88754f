"""Fine-tuning in the small: InfoNCE on labelled rows that carry their own prefix or instruction, no mining, no teacher.

For lessons that compare arms in seconds; the real second stage is `stages.finetune`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from me5lib.config import Stage
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train.distributed import Team
from me5lib.train.loop import RunOptions, Work, train_loop
from me5lib.train.stages import Budget, work_of

WHOLE = Budget(sys.maxsize, sys.maxsize)  # small batches: no replay


def tune(encoder: Encoder, rows: Sequence[Labelled], stage: Stage, seed: int, progress: bool = True) -> Encoder:
    """Fine-tune `encoder` in place on `rows` with InfoNCE for `stage.steps` steps, and return it.

    A batch holds one language, so that its negatives cannot be told apart by their script.
    """
    stage = dataclasses.replace(stage, passage_tokens=stage.query_tokens)
    team = Team.alone(encoder.device)
    pools = [[row for row in rows if row.language == language] for language in sorted({row.language for row in rows})]

    def prepare(step: int) -> Work:
        draw = np.random.default_rng((seed, step))
        pool = pools[draw.integers(len(pools))]
        batch = [pool[i] for i in draw.permutation(len(pool))[: stage.batch]]
        return work_of(batch, encoder, encoder, stage, team, WHOLE, (seed, step), lambda source: ("", ""))

    train_loop(encoder, prepare, stage, RunOptions(None, seed, name="tuning", progress=progress))
    return encoder
