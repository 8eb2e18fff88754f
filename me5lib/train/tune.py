"""Fine-tuning in the small: InfoNCE on labelled rows that carry their own prefix or instruction, no mining, no teacher.

For lessons that compare arms in seconds; the real second stage is `stages.finetune`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.scale import Stage
from me5lib.train.contrast import from_labelled, info_nce
from me5lib.train.loop import Work, train


def tune(encoder: Encoder, rows: Sequence[Labelled], stage: Stage, seed: int, progress: bool = True) -> Encoder:
    """Fine-tune `encoder` in place on `rows` with InfoNCE for `stage.steps` steps, and return it.

    A batch holds one language, so that its negatives cannot be told apart by their script.
    """
    pools = [[row for row in rows if row.language == language] for language in sorted({row.language for row in rows})]

    def prepare(step: int) -> Work:
        draw = np.random.default_rng((seed, step))
        pool = pools[draw.integers(len(pools))]
        return _work(encoder, [pool[i] for i in draw.permutation(len(pool))[: stage.batch]], stage)

    train(encoder, prepare, stage, None, seed=seed, progress=progress, name="tuning")
    return encoder


def _work(encoder: Encoder, rows: Sequence[Labelled], stage: Stage) -> Work:
    batch = from_labelled(rows)
    ids = encoder.tokenize([*batch.queries, *batch.passages], "", stage.query_tokens)

    def compute() -> torch.Tensor:
        vectors = encoder(ids)
        queries, passages = vectors[: len(rows)], vectors[len(rows) :]
        return info_nce(queries, passages, batch.relations, stage.temperature, stage.loss)

    return Work(compute, rows[0].source)
