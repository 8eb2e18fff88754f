"""What training costs: the step and the loss beside sentence-transformers', the paper's batch, two processes.

    python tests/benchmarks/training.py step|loss|big|processes [--cases small-64-30 …] [--dtype bf16] [--device cuda]

step: loss and gradient of a batch beside CachedMultipleNegativesRankingLoss. A case is shape-batch-fill: pairs, and
    percent of positions that hold a token when each side is padded to its longest. Equal on both sides: weights, token
    ids, τ = 0.01, dtype, dropout 0, no optimiser. On a GPU the peer's unpadded path is tried too.
loss: of unit vectors [batch, 384]; theirs is `calculate_loss` in chunks, dense is `cross_entropy(q @ p.T / τ)`.
big: a step of stage 1 at the paper's batch with tiny's backbone, from the texts' keys to the updated weights.
processes: `torchrun … me5 pretrain --scale tiny` in one process and in two, one thread each: efficiency t₁ / (2 t₂).

Every run is a process of its own, warmed up by a small batch. Every setting of theirs is run once and its gradient
compared with ours; its default and its three fastest go on to the interleaved rounds. Memory is what the step added.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

SHAPES = {"four": (4, 128, 4, 512), "small": (12, 384, 12, 1536), "base": (12, 768, 12, 3072)}
LENGTHS = {30: (29, 0.8), 90: (117, 0.06)}  # percent filled → median and σ of the log-normal lengths
SHORTEST, CAP = 4, 128  # tokens
VOCABULARY, TAU = 32_000, 0.01
TOLERANCE = 3e-5  # relative L2 distance of flattened gradients, fp32; 1.7e-5 was seen at 90 % fill, else ≤ 4e-6
DEFAULT = "st 32"
CASES = {"cpu": ["small-64-30", "small-256-30", "small-64-90", "four-1024-30"],
         "cuda": ["base-256-30", "base-1024-30", "base-1024-90"]}  # fmt: skip
SIDES = ((12, 32), (50, 96))  # of `big`: median and longest of queries and passages, tokens; tiny's limits
WARM_UP = 3  # steps of `processes` in which memory and kernels are got

# ---- the parent: imports nothing heavy, for a child's peak memory begins with its parent's ---------------------------


def spawn(job: dict[str, Any]) -> dict[str, Any]:
    """What a child prints last, as JSON. Raises with its last words."""
    threads = str(job["threads"])
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "child", "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", env=env)
    if done.returncode:
        raise RuntimeError(f"{job}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def contest(theirs: list[str], job: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Every contender once, compared with ours; then rounds of ours, their default and their three fastest, in turn."""
    reference, once = spawn(job | {"contender": "ours", "gradient": "ours", "dtype": "fp32"}), {}
    for name in ["ours", *theirs]:
        once[name] = found = spawn(job | {"contender": name, "gradient": "other"})
        distance, off = spawn(job | {"kind": "compare"})["distance"], abs(found["loss"] / reference["loss"] - 1)
        print(f"  {name:24} {found['seconds']:8.2f} s; gradient off by {distance:.1e}, loss by {off:.1e}", flush=True)
        if job["dtype"] == "fp32" and max(distance, off) > TOLERANCE:
            raise SystemExit(f"{name} does not agree with ours")
    best = sorted((name for name in once if name.startswith("st ")), key=lambda name: once[name]["seconds"])[:3]
    names = list(dict.fromkeys([name for name in ("ours", "dense", DEFAULT, *best) if name in once]))
    rows = [{name: spawn(job | {"contender": name}) for name in names} for _ in range(rounds)]
    return {name: [row[name] for row in rows] for name in names}


def show(rows: dict[str, list[dict[str, Any]]]) -> None:
    """A line a contender: its median, spread and memory, and how the first one stands to it."""
    middle = {name: {key: median(row[key] for row in own) for key in ("seconds", "added")}
              for name, own in rows.items()}  # fmt: skip
    first = next(iter(middle.values()))
    print(f"{'':24} {'median s':>9} {'least':>8} {'most':>8} {'added MB':>9} {'ours is':>9} {'of memory':>10}")
    for name, own in middle.items():
        seconds = [row["seconds"] for row in rows[name]]
        print(f"{name:24} {own['seconds']:9.2f} {min(seconds):8.2f} {max(seconds):8.2f} {own['added'] / 2**20:9,.0f} "
              f"{own['seconds'] / first['seconds']:7.2f} × {first['added'] / max(1, own['added']):10.2f}")


def step(asked: argparse.Namespace) -> None:
    """Our step beside theirs, case by case."""
    sizes, tokens = (8, 16, 32, 64, 128, 256), range(9, 15) if asked.device == "cpu" else range(12, 18)
    for case in asked.cases or CASES[asked.device]:
        theirs = [f"st {size}" for size in sizes if size <= int(case.split("-")[1])] + [f"st {2**k}t" for k in tokens]
        if asked.device == "cuda" and (find_spec("flash_attn") or find_spec("kernels")):
            theirs += [f"{name} flash_attention_2" for name in theirs]
        with tempfile.TemporaryDirectory(prefix="me5-") as folder:
            job = {"kind": "step", "folder": folder, "case": case, "threads": asked.threads, "dtype": asked.dtype,
                   "device": asked.device}  # fmt: skip
            made = spawn(job | {"kind": "make"})
            print(f"\n{case}, {asked.dtype}: {made['tokens']:,} tokens, {made['fill']:.1%} fill", flush=True)
            show(contest(theirs, job, asked.rounds))


def loss(asked: argparse.Namespace) -> None:
    """Our loss beside theirs and the dense one."""
    batch = asked.batch or 16_384
    print(f"\nB = {batch:,}", flush=True)
    theirs = [f"st {2**k}" for k in range(5, batch.bit_length())]
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        job = {"kind": "loss", "folder": folder, "batch": batch, "threads": asked.threads, "dtype": "fp32",
               "device": "cpu"}  # fmt: skip
        show(contest(["dense", *theirs], job, asked.rounds))


def big(asked: argparse.Namespace) -> None:
    """A step at the paper's batch."""
    job = {"kind": "big", "batch": asked.batch or 32_768, "threads": asked.threads, "dtype": asked.dtype,
           "device": "cpu"}  # fmt: skip
    rows = [spawn(job) for _ in range(asked.rounds)]
    seconds, peak = median(row["seconds"] for row in rows), max(row["peak"] for row in rows)
    print(f"\n{job['batch']:,} pairs, {asked.dtype}: {seconds:.1f} s, {rows[0]['tokens'] / seconds:,.0f} tokens/s, "
          f"{peak / 2**30:.2f} GB at most (6 are allowed)")


def processes(asked: argparse.Namespace) -> None:
    """Strong scaling of stage 1 on one machine; the corpus of tiny comes from the cache (`me5 packs`)."""

    def seconds(world: int) -> float:
        with tempfile.TemporaryDirectory(prefix="me5-") as out:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world),
                       "-m", "me5lib", "pretrain", "--scale", "tiny", "--out", out, "--processes", str(world),
                       "--set", "train.steps=12", "--set", "train.warmup=1"]  # fmt: skip
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, encoding="utf8")
            if done.returncode:
                raise SystemExit(done.stderr.strip().splitlines()[-1])
            lines = (Path(out) / "stage1" / "timings.jsonl").read_text(encoding="utf8").splitlines()
        return median(json.loads(line)["seconds"] for line in lines[WARM_UP:])

    rows = [(seconds(1), seconds(2)) for _ in range(asked.rounds)]
    one, two = (median(column) for column in zip(*rows, strict=True))
    print(f"\na step: {one:.3f} s in one process, {two:.3f} s in two: efficiency {one / two / 2:.0%}")


# ---- the children ----------------------------------------------------------------------------------------------------


def child(job: dict[str, Any]) -> dict[str, Any]:
    """What the parent asked for."""
    import torch

    torch.set_num_threads(job["threads"])
    return {"make": make, "compare": compare, "step": one_step, "loss": one_loss, "big": one_big}[job["kind"]](job)


def timed(compute: Callable[[], Any], device: str = "cpu") -> tuple[Any, dict[str, float]]:
    """What `compute` gives; its seconds, the process's peak memory, and what was added to it (bytes)."""
    import torch

    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    began = time.perf_counter()
    given = compute()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return given, {"seconds": seconds, "peak": peak, "added": peak - before}


def compare(job: dict[str, Any]) -> dict[str, float]:
    """Relative L2 distance of the two gradients that were written."""
    import numpy as np

    ours, other = (np.load(Path(job["folder"]) / f"{name}.npy").astype(np.float64) for name in ("ours", "other"))
    return {"distance": float(np.linalg.norm(ours - other) / np.linalg.norm(ours))}


def write_gradient(job: dict[str, Any], parts: list[Any]) -> None:
    """All gradients, flat, fp32, if that is asked."""
    import numpy as np

    if "gradient" in job:
        flat = np.concatenate([part.float().cpu().numpy().ravel() for part in parts])
        np.save(Path(job["folder"]) / f"{job['gradient']}.npy", flat)


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Write the model and the texts' ids; the same for everybody."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertModel

    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    shape, batch, fill = job["case"].split("-")
    layers, width, heads, feedforward = SHAPES[shape]
    draw, (middle, sigma) = np.random.default_rng(0), LENGTHS[int(fill)]
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=feedforward, max_position_embeddings=512, pad_token_id=1, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"a text of words and number {i}" for i in range(500)], 1_000)  # to make it whole
    Encoder(BertModel(config, add_pooling_layer=False), tokenizer, 512).save(Path(job["folder"]) / "model")
    lengths = np.clip(np.rint(draw.lognormal(np.log(middle), sigma, (2, int(batch)))), SHORTEST, CAP).astype(int)
    ids = draw.integers(10, VOCABULARY, int(lengths.sum()))
    np.savez(Path(job["folder"]) / "ids.npz", lengths=lengths, ids=ids)
    return {"tokens": int(lengths.sum()), "fill": lengths.sum() / (int(batch) * int(lengths.max(1).sum()))}


def one_step(job: dict[str, Any]) -> dict[str, float]:
    """Seconds and memory of one step, after a small one."""
    import numpy as np

    held = np.load(Path(job["folder"]) / "ids.npz")
    rows = [[0, *row[1:-1].tolist(), 2] for row in np.split(held["ids"], np.cumsum(held["lengths"].ravel())[:-1])]
    sides = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    model, prepare = (step_of_ours if job["contender"].startswith("ours") else step_of_theirs)(job)
    parameters = [own for name, own in sorted(model.named_parameters()) if not name.startswith("pooler")]
    prepare([side[:8] for side in sides])()
    compute = prepare(sides)
    for parameter in parameters:
        parameter.grad = None
    value, found = timed(lambda: float(compute()), job["device"])
    write_gradient(job, [own.new_zeros(own.shape) if own.grad is None else own.grad for own in parameters])
    return {"loss": value, **found}


def step_of_ours(job: dict[str, Any]) -> tuple[Any, Callable[[list], Callable[[], Any]]]:
    """Our encoder, and how a step of given ids is prepared: as `stages` cuts it."""
    from me5lib import config
    from me5lib.device import autocast
    from me5lib.model.encoder import Encoder
    from me5lib.train.gradcache import cached_step, fitting_budget
    from me5lib.train.loss import info_nce
    from me5lib.train.stages import Budget

    encoder = Encoder.load(Path(job["folder"]) / "model").to(job["device"]).train()
    layers, width, heads, feedforward = SHAPES[job["case"].split("-")[0]]
    budget = Budget.on_cpu(config.Model("random", layers, width, heads, feedforward, VOCABULARY, 512))

    def prepare(sides: list[list[list[int]]]) -> Callable[[], Any]:
        n, ids = len(sides[0]), sides[0] + sides[1]
        related = distinct(n).to(job["device"])

        def compute(tokens: int, whole: bool = False) -> Any:
            with autocast(encoder.device, job["dtype"]):
                return cached_step(encoder, ids, lambda vectors: info_nce(vectors[:n], vectors[n:], related, TAU),
                                   tokens, seed=0, keep_graph=whole)

        if job["device"] == "cuda":
            return functools.partial(compute, fitting_budget(compute, 2**20))
        whole = sum(map(len, ids)) <= budget.whole
        return functools.partial(compute, sys.maxsize if whole else budget.piece, whole)

    return encoder.backbone, prepare


def distinct(n: int) -> Any:
    """Relations of n pairs of different texts."""
    from me5lib.pairs import Pair
    from me5lib.train.loss import make_batch

    return make_batch([Pair(f"q{i}", f"p{i}", "none", "en") for i in range(n)]).relations


def step_of_theirs(job: dict[str, Any]) -> tuple[Any, Callable[[list], Callable[[], Any]]]:
    """sentence-transformers' model and loss: "st 32" texts, "st 4096t" tokens, "st 32 flash_attention_2"."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    _, size, *attention = job["contender"].split()
    options = {"attn_implementation": attention[0], "dtype": torch.bfloat16} if attention else {}
    model = SentenceTransformer(str(Path(job["folder"]) / "model"), device=job["device"], model_kwargs=options).train()
    if job["dtype"] == "bf16":  # autocast around the model's forward, and only that, as their trainer has it
        from accelerate.utils import convert_outputs_to_fp32

        model.forward = convert_outputs_to_fp32(torch.autocast(job["device"], torch.bfloat16)(model.forward))
    own = {"mini_batch_num_tokens": int(size[:-1])} if size.endswith("t") else {"mini_batch_size": int(size)}
    criterion = CachedMultipleNegativesRankingLoss(model, scale=1 / TAU, **own)

    def prepare(sides: list[list[list[int]]]) -> Callable[[], Any]:
        features = [collate(model, side, job["device"]) for side in sides]

        def compute() -> Any:
            value = criterion(features, None)
            value.backward()
            return value.detach()

        return compute

    return model[0].auto_model, prepare


def collate(model: Any, rows: list[list[int]], device: str) -> dict[str, Any]:
    """One column as sentence-transformers' collator gives it: padded to its longest, or flat where it can be."""
    import torch

    if model[0].can_flatten_inputs:
        flat = dict(model[0].data_collator([{"input_ids": row} for row in rows]))
        flat.pop("labels", None)
        flat["position_ids"] = flat["position_ids"] + model[0]._flatten_position_offset
        return {key: value.to(device) if hasattr(value, "to") else value for key, value in flat.items()}
    longest = max(map(len, rows))
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def one_loss(job: dict[str, Any]) -> dict[str, float]:
    """Seconds and memory of the loss of given vectors and its gradient, after a small one."""
    kind, *number = job["contender"].split()
    stage = {"ours": loss_of_ours, "dense": dense}.get(kind) or functools.partial(loss_of_theirs, chunk=int(number[0]))
    stage(*vectors(64))
    sides = vectors(job["batch"])
    (value, gradients), found = timed(lambda: stage(*sides))
    # Theirs normalises once more, so that its gradient has no part along the vector: only the rest is compared.
    pairs = [(gradient, side.detach()) for gradient, side in zip(gradients, sides, strict=True)]
    write_gradient(job, [gradient - (gradient * side).sum(1, keepdim=True) * side for gradient, side in pairs])
    return {"loss": float(value), **found}


def vectors(batch: int, width: int = 384) -> tuple[Any, Any]:
    """Queries and passages [batch, width], unit, fp32, with gradient, of about 0.2 cosine."""
    import torch

    generator, unit = torch.Generator().manual_seed(0), torch.nn.functional.normalize
    queries, noise = (unit(torch.randn(batch, width, generator=generator), dim=1) for _ in range(2))
    return queries.requires_grad_(), unit(0.2 * queries.detach() + noise, dim=1).requires_grad_()


def loss_of_ours(queries: Any, passages: Any) -> tuple[Any, tuple[Any, Any]]:
    """`info_nce`, the keys of the texts included."""
    from me5lib.train.loss import info_nce

    value = info_nce(queries, passages, distinct(len(queries)), TAU)
    value.backward()
    return value.detach(), (queries.grad, passages.grad)


def dense(queries: Any, passages: Any) -> tuple[Any, tuple[Any, Any]]:
    """What everybody writes first."""
    import torch

    value = torch.nn.functional.cross_entropy(queries @ passages.T / TAU, torch.arange(len(queries)))
    value.backward()
    return value.detach(), (queries.grad, passages.grad)


def loss_of_theirs(queries: Any, passages: Any, chunk: int) -> tuple[Any, tuple[Any, Any]]:
    """`calculate_loss` on what its first pass would hand over: leaves of mini_batch_size rows."""
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    # Of the model it asks only whether its first module is a static embedding.
    stage = CachedMultipleNegativesRankingLoss([None], scale=1 / TAU, mini_batch_size=chunk)
    leaves = [[part.detach().requires_grad_() for part in side.split(chunk)] for side in (queries, passages)]
    value = stage.calculate_loss(leaves, with_backward=True)
    return value, tuple(torch.cat([leaf.grad for leaf in side]) for side in leaves)


def one_big(job: dict[str, Any]) -> dict[str, float]:
    """Seconds of the second step of stage 1 in this process, and the peak of both."""
    import numpy as np
    import torch

    from me5lib import config
    from me5lib.device import autocast
    from me5lib.model.encoder import Encoder
    from me5lib.train import loop, stages
    from me5lib.train.distributed import Team

    class Vocabulary(list):
        """As much of a tokenizer as a new encoder asks for: nothing is tokenised here."""

        pad_token_id, cls_token_id = 1, 0

    tiny, batch, draw = config.load("tiny"), job["batch"], np.random.default_rng(0)
    ids = []
    for middle, longest in SIDES:
        lengths = np.clip(np.rint(draw.lognormal(np.log(middle), 0.6, batch)), 4, longest).astype(int)
        ids += [[0, *draw.integers(10, tiny.model.vocabulary, n - 2).tolist(), 2] for n in lengths]
    encoder = Encoder.new(tiny.model, Vocabulary(range(tiny.model.vocabulary)), 0).train()
    optimiser, budget = loop.optimiser(encoder, tiny.train), stages.Budget.on_cpu(tiny.model)

    def compute() -> None:
        with autocast(torch.device("cpu"), job["dtype"]):
            micro = stages.MicroBatch(ids, distinct(batch))
            stages.train_step(encoder, [micro], tiny.train, Team.alone(encoder.device), budget, (0,))
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), tiny.train.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    compute()
    return {"tokens": sum(map(len, ids)), **timed(compute)[1]}


def main() -> None:
    """The command line."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("what", choices=("step", "loss", "big", "processes", "child"))
    given.add_argument("--cases", nargs="+", help="as small-64-30 (default: those of the device)")
    given.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    given.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for option, value in (("rounds", 3), ("threads", 2), ("batch", 0)):
        given.add_argument(f"--{option}", type=int, default=value)
    given.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    asked = given.parse_args()
    if asked.what == "child":
        print(json.dumps(child(asked.job)))
    else:
        {"step": step, "loss": loss, "big": big, "processes": processes}[asked.what](asked)


if __name__ == "__main__":
    main()
