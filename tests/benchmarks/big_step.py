"""One true step of stage 1 at the paper's batch, 32,768 pairs, with the tiny backbone: seconds and peak memory.

    python tests/benchmarks/big_step.py [--batch 32768] [--rounds 3] [--threads 2] [--dtype fp32 bf16]

From the texts' keys to the updated weights, as `me5lib.train.stages` and `loop` do it: relations of the texts, the step
cut by the same rule, tiny's loss (symmetric, τ = 0.05), clipping, fused AdamW. Two such steps in a process of its own;
the second is timed, the peak is of both. Random token ids; lengths log-normal, queries of median 12 cut at 32, passages
of median 50 cut at 96 (σ 0.6; tiny's limits). The bar: peak memory of the whole process at most 6 GB.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from training_step import Meter, _bar, spawn

BAR = 6.0  # GB
SIDES = ((12, 32), (50, 96))  # median and longest of queries and passages, tokens
SIGMA = 0.6


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the second step and of its parts, and the peak of the process."""
    import torch

    torch.set_num_threads(job["threads"])
    encoder, texts, ids = prepare(job["batch"])
    step = steps(encoder, texts, ids, job["dtype"])
    step()
    with Meter() as meter:
        parts = step()
    return {"tokens": sum(map(len, ids)), "parts": parts, **meter.found}


def prepare(batch: int) -> tuple[Any, Any, list[list[int]]]:
    """Tiny's backbone over 32,000 pieces, the pairs, and the ids of all texts, queries first."""
    import numpy as np

    from me5lib import config
    from me5lib.model.encoder import Encoder
    from me5lib.pairs import Pair

    shape, draw = config.load("tiny").model, np.random.default_rng(0)
    ids = []
    for middle, longest in SIDES:
        lengths = np.clip(np.rint(draw.lognormal(np.log(middle), SIGMA, batch)), 4, longest).astype(int)
        ids += [[0, *draw.integers(10, shape.vocabulary, n - 2).tolist(), 2] for n in lengths]
    pairs = [Pair(f"the query of pair {i}", f"the passage of pair {i}", "none", "en") for i in range(batch)]
    return Encoder.new(shape, _Vocabulary(shape.vocabulary), 0).train(), pairs, ids


class _Vocabulary:
    """As much of a tokenizer as a new encoder asks for: nothing is tokenised here."""

    pad_token_id, cls_token_id = 1, 0

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return self.pieces


def steps(encoder: Any, pairs: Any, ids: list[list[int]], dtype: str) -> Callable[[], dict[str, float]]:
    """A function that makes one step and gives the seconds of its parts."""
    import torch

    from me5lib import config
    from me5lib.device import autocast
    from me5lib.train import loop, stages
    from me5lib.train import loss as losses
    from me5lib.train.gradcache import cached_step

    tiny = config.load("tiny")
    adamw, n = loop.optimiser(encoder, tiny.train), len(pairs)
    budget = stages.Budget.on_cpu(tiny.model)
    whole = sum(map(len, ids)) <= budget.whole

    def step() -> dict[str, float]:
        seconds, start = {}, time.perf_counter()

        def part(name: str) -> None:
            nonlocal start
            seconds[name], start = time.perf_counter() - start, time.perf_counter()

        def loss_of(vectors: Any) -> Any:
            own = time.perf_counter()
            loss = losses.info_nce(vectors[:n], vectors[n:], related, tiny.train.temperature, tiny.train.loss)
            seconds["of which the loss"] = time.perf_counter() - own
            return loss

        related = losses.from_pairs(pairs).relations
        part("relations")
        with autocast(torch.device("cpu"), dtype):
            cached_step(encoder, ids, loss_of, sys.maxsize if whole else budget.piece, 0, keep_graph=whole)
        part("loss and gradient")
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), tiny.train.clip)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        part("clipping and AdamW")
        return seconds

    return step


def main() -> None:
    """Medians, and the bar; JSON last."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option, value in (("batch", 32_768), ("rounds", 3), ("threads", 2), ("patience", 0)):
        given.add_argument(f"--{option}", type=int, default=value)
    given.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    given.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    asked = given.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child)))
        return
    run = functools.partial(spawn, __file__)
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    job = {"batch": asked.batch, "threads": asked.threads, "patience": asked.patience}
    rows = [[run(job | {"dtype": dtype}) for dtype in asked.dtype] for _ in range(asked.rounds)]
    found = {}
    for dtype, own in zip(asked.dtype, zip(*rows, strict=True), strict=True):
        middle = sorted(own, key=lambda row: row["seconds"])[len(own) // 2]
        found[dtype] = middle | {"peak": max(row["peak"] for row in own)}
        rate = middle["tokens"] / median(row["seconds"] for row in own)
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in middle["parts"].items())
        print(f"{asked.batch:,} pairs, {dtype}: {middle['seconds']:.1f} s ({rate:,.0f} tokens/s): {parts}; "
              f"{_bar(found[dtype]['peak'] / 2**30, BAR, 'GB at most', most=True)}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
