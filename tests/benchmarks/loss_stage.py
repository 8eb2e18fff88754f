"""The loss stage alone: the loss of given vectors and its gradient on them. Ours, sentence-transformers', and dense.

    python tests/benchmarks/loss_stage.py [--batch 16384] [--width 384] [--rounds 7] [--tiles 20 21 22 23 24 25]

Unit vectors, fp32, τ = 0.01; a passage has about 0.2 cosine with its query (random ones reach that at this width, so
that the loss is neither 0 nor chance's). Ours is `contrast.info_nce`; theirs is `calculate_loss(with_backward=True)` of
CachedMultipleNegativesRankingLoss, whose chunk is its mini_batch_size: the default of 32, and 64 … the batch, each run
once, the three fastest again in every round; dense is `cross_entropy(q @ p.T / τ)`. Loss and gradient of each are
compared with ours first (relative L2 distance at most 1e-5, along the sphere: theirs normalises the vectors again).
`--tiles` adds ours with TILE_LOGITS = 2**k.

Every run is a process of its own; a small batch warms it up; peak memory is `ru_maxrss`, added is what the stage added.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_step import DEFAULT, TAU, TOLERANCE, Meter, _bar, compare, fastest, middle, spawn, workplace

BARS = {"default": 10.0, "best": 1.7, "dense": 1.5, "memory of dense": 0.2}
SHORT = 20  # seconds: shorter first runs are made twice, the better counts
Stage = Callable[[Any, Any], tuple[Any, tuple[Any, Any]]]  # queries, passages → loss, their gradients


def chunks(batch: int) -> list[str]:
    """Every chunk of sentence-transformers that is tried."""
    return [f"st {2**k}" for k in range(5, batch.bit_length()) if 2**k <= batch]


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Agreement first, then the rounds."""
    job = {"batch": asked.batch, "width": asked.width, "threads": asked.threads, "folder": str(folder),
           "patience": asked.patience}  # fmt: skip
    ours = ["ours", *(f"ours {k}" for k in asked.tiles)]
    print(f"B = {asked.batch:,}, d = {asked.width}; load average {os.getloadavg()[0]:.1f}", flush=True)
    reference = _once("ours", job | {"gradient": "ours"})
    screened = {name: _checked(name, job, reference) for name in [*ours, "dense", *chunks(asked.batch)]}
    names = list(dict.fromkeys([*ours, "dense", DEFAULT, *fastest(screened, 3)]))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name in names:
            rows[name].append(_once(name, job))
    figures = {name: middle(own) for name, own in rows.items()}
    return {"batch": asked.batch, "width": asked.width, "figures": figures, "screened": screened,
            "ratios": {name: ratios(figures, name) for name in ours}}  # fmt: skip


def _once(name: str, job: dict[str, Any]) -> dict[str, Any]:
    return spawn(__file__, job | {"role": "stage", "contender": name})


def _checked(name: str, job: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    found = _once(name, job | {"gradient": "other"})
    found["distance"] = spawn(__file__, job | {"role": "compare"})["distance"]
    if found["seconds"] < SHORT:
        found["seconds"] = min(found["seconds"], _once(name, job)["seconds"])
    off = abs(found["loss"] - reference["loss"])
    print(f"  {name:12} {found['seconds']:8.2f} s, {found['added'] / 2**20:6,.0f} MB added; gradient off ours by "
          f"{found['distance']:.1e}, loss by {off:.1e}; others {found['others']:.0%}", flush=True)
    if not (found["distance"] <= TOLERANCE and abs(found["loss"] / reference["loss"] - 1) <= TOLERANCE):
        raise SystemExit(f"{name} does not agree with ours")
    return found


def ratios(figures: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """How `name` stands to the three that the bars name."""
    best, own = fastest(figures, 1)[0], figures[name]
    return {
        "default": figures[DEFAULT]["seconds"] / own["seconds"], "best": figures[best]["seconds"] / own["seconds"],
        "best is": best, "dense": figures["dense"]["seconds"] / own["seconds"],
        "memory of dense": own["added"] / figures["dense"]["added"],
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """The table, and the bars."""
    print(f"\n{'contender':12} {'median s':>9} {'least':>8} {'most':>8} {'peak MB':>8} {'added MB':>9} {'others':>7}")
    for name, own in found["figures"].items():
        least, most = own["spread"]
        print(f"{name:12} {own['seconds']:9.2f} {least:8.2f} {most:8.2f} {own['peak'] / 2**20:8,.0f} "
              f"{own['added'] / 2**20:9,.0f} {own['others']:7.0%}")
    for name, ratio in found["ratios"].items():
        print(f"{name}: {_bar(ratio['default'], BARS['default'], '× its default chunk')}; "
              f"{_bar(ratio['best'], BARS['best'], '× its best chunk')} ({ratio['best is']}); "
              f"{_bar(ratio['dense'], BARS['dense'], '× dense')}; "
              f"{_bar(ratio['memory of dense'], BARS['memory of dense'], 'of the memory dense adds', most=True)}")


def child(job: dict[str, Any]) -> dict[str, Any]:
    """What the parent asked for."""
    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    if job["role"] == "compare":
        return compare(job)
    kind, *number = job["contender"].split()
    if kind == "ours" and number:
        from me5lib.train import loss as losses

        losses.TILE_LOGITS = 2 ** int(number[0])
    stage: Stage = {"ours": of_ours, "dense": of_dense}.get(kind) or functools.partial(of_theirs, chunk=int(number[0]))
    stage(*vectors(64, job["width"]))
    given = vectors(job["batch"], job["width"])
    with Meter() as meter:
        loss, gradients = stage(*given)
    if "gradient" in job:
        file = Path(job["folder"]) / f"{job['gradient']}.npy"
        pairs = zip(gradients, given, strict=True)
        np.save(file, torch.cat([tangential(gradient, at.detach()).flatten() for gradient, at in pairs]).numpy())
    return {"loss": float(loss), **meter.found}


def vectors(batch: int, width: int) -> tuple[Any, Any]:
    """Queries and passages [batch, width], unit, fp32, with gradient."""
    import torch

    generator = torch.Generator().manual_seed(0)
    queries, noise = (torch.nn.functional.normalize(torch.randn(batch, width, generator=generator), dim=1)
                      for _ in range(2))  # fmt: skip
    passages = torch.nn.functional.normalize(0.2 * queries + noise, dim=1)
    return queries.requires_grad_(), passages.requires_grad_()


def tangential(gradient: Any, vectors: Any) -> Any:
    """The gradient without its part along the vector: what is left of it below the encoder's L2 norm.

    sentence-transformers' `cos_sim` normalises once more, so that its gradient never has the other part.
    """
    return gradient - (gradient * vectors).sum(1, keepdim=True) * vectors


def of_ours(queries: Any, passages: Any) -> tuple[Any, tuple[Any, Any]]:
    """`contrast.info_nce`, the keys of the texts included."""
    from me5lib.pairs import Pair
    from me5lib.train.loss import from_pairs, info_nce

    related = from_pairs([Pair(f"q{i}", f"p{i}", "none", "en") for i in range(len(queries))]).relations
    loss = info_nce(queries, passages, related, TAU)
    loss.backward()
    return loss.detach(), (queries.grad, passages.grad)


def of_dense(queries: Any, passages: Any) -> tuple[Any, tuple[Any, Any]]:
    """What everybody writes first."""
    import torch

    loss = torch.nn.functional.cross_entropy(queries @ passages.T / TAU, torch.arange(len(queries)))
    loss.backward()
    return loss.detach(), (queries.grad, passages.grad)


def of_theirs(queries: Any, passages: Any, chunk: int) -> tuple[Any, tuple[Any, Any]]:
    """`calculate_loss` on what its first pass would hand over: leaves of mini_batch_size rows."""
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    stage = CachedMultipleNegativesRankingLoss(_NoModel(), scale=1 / TAU, mini_batch_size=chunk)
    leaves = [[part.detach().requires_grad_() for part in side.split(chunk)] for side in (queries, passages)]
    loss = stage.calculate_loss(leaves, with_backward=True)
    return loss, tuple(torch.cat([leaf.grad for leaf in side]) for side in leaves)


class _NoModel(list):
    """A model of which the loss stage asks only whether its first module is a static embedding."""

    def __init__(self) -> None:
        super().__init__([None])


def main() -> None:
    """All of it; the figures as JSON last."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option, value in (("batch", 16_384), ("width", 384), ("rounds", 7), ("threads", 2), ("patience", 0)):
        given.add_argument(f"--{option}", type=int, default=value)
    given.add_argument("--tiles", type=int, nargs="*", default=[], help="ours with 2**k logits a tile")
    given.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    asked = given.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child)))
        return
    with workplace() as folder:
        found = measure(asked, folder)
    show(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
