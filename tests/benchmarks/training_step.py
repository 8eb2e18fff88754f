"""One training step, loss and gradient: ours beside sentence-transformers' CachedMultipleNegativesRankingLoss.

    python tests/benchmarks/training_step.py [--cases small-64-30 small-256-30 …] [--dtype fp32] [--rounds 7]
                                             [--pieces 2048 4096] [--threads 2] [--device cpu]

A case is shape-batch-fill: 12 × 384 with mE5-small's feed-forward ("small"), 4 × 128 ("four") or 12 × 768 ("base", for
GPUs); pairs; percent of the positions that hold a token when each side is padded to its longest. Equal on both sides:
the weights (random, saved by us, loaded by both), the texts (random token ids of a vocabulary of 32,000; what a
tokenizer takes is in nobody's time), τ = 0.01, batch, dtype, dropout 0, one-way InfoNCE, no optimiser.

Lengths are log-normal, both sides alike, cut at 128 tokens (what E5 and our presets train at): median 29 and σ 0.8 for
30 % fill, median 117 and σ 0.06 for 90 %.

Contenders of sentence-transformers: mini_batch_size 32 (its default) and 8 … 256, mini_batch_num_tokens 512 … 16,384,
and the three fastest once more with plain attention instead of torch's fused kernel (ours takes the plain one on a
CPU). All are run at least once, and what they give is compared with ours: loss, and relative L2 distance of the
flattened gradient, at most `TOLERANCE` in fp32. The three fastest go on to the interleaved rounds; the best median of
those is "its best".
Ours: as `me5lib.train.stages` would cut the step ("ours"), and with other pieces (`--pieces`); on a GPU the largest
that fits.

Every run is a process of its own: weights read, a step of eight pairs to warm up, then the one step that is timed.
Peak memory is `ru_maxrss` (on a GPU: torch's peak), and what of it was added by the step. "others" is the share of
the processors' time that went to other processes meanwhile; with `--patience` a disturbed run is made again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SHAPES = {"four": (4, 128, 4, 512), "small": (12, 384, 12, 1536), "base": (12, 768, 12, 3072)}
LENGTHS = {30: (29, 0.8), 90: (117, 0.06)}  # percent filled → median and σ of the log-normal lengths
SHORTEST, CAP = 4, 128  # tokens
VOCABULARY, TAU = 32_000, 0.01
TOLERANCE = 3e-5  # relative L2 distance of flattened gradients, fp32; 1.7e-5 was seen at 90 % fill, else ≤ 4e-6
DEFAULT = "st 32"
CROWDED = 0.06  # share of the processors' time
SHORT = 10  # seconds: a first run shorter than this is made twice, the better counts
CASES = ("small-64-30", "small-256-30", "small-64-90", "four-1024-30")
BARS = {  # what issue 4 asks: × its default, × its best, of its default's memory
    ("small", 30): (2.2, 1.8, 0.4), ("small", 90): (1.0, 1.0, None), ("four", 30): (4.0, 2.5, None),
}  # fmt: skip


class Case(NamedTuple):
    """What is measured."""

    shape: str
    batch: int  # pairs
    fill: int  # percent

    @classmethod
    def parse(cls, name: str) -> Case:
        """`small-64-30`."""
        shape, batch, fill = name.split("-")
        if shape not in SHAPES or int(fill) not in LENGTHS:
            raise SystemExit(f"unknown case {name}: shapes {', '.join(SHAPES)}; fills {', '.join(map(str, LENGTHS))}")
        return cls(shape, int(batch), int(fill))

    @property
    def name(self) -> str:
        """As it was parsed."""
        return f"{self.shape}-{self.batch}-{self.fill}"


# --- the parent: imports nothing heavy, for a child's peak memory begins with its parent's


def spawn(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """What `script --child job` prints last, as JSON; in a process of its own. Raises with its last words.

    A run of which others used more than `CROWDED` of the machine is made again, for `patience` seconds at most.
    """
    end = time.monotonic() + job.get("patience", 0)
    while (found := _spawn(script, job)).get("others", 0) > CROWDED and time.monotonic() < end:
        time.sleep(10)
    return found


def _spawn(script: str, job: dict[str, Any]) -> dict[str, Any]:
    threads = str(job["threads"])
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script, "--child", json.dumps(job)], capture_output=True, text=True, encoding="utf8", env=env
    )
    if done.returncode:
        raise RuntimeError(f"{job}: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def contenders(case: Case, device: str) -> list[str]:
    """Every setting of sentence-transformers: "st 64" texts, "st 4096t" tokens; on a GPU also its unpadded path."""
    sizes = sorted({size for size in (8, 16, 32, 64, 128, 256) if size <= case.batch} | {32})
    tokens = [2**k for k in range(9, 15)] if device == "cpu" else [2**k for k in range(12, 18)]
    names = [f"st {size}" for size in sizes] + [f"st {number}t" for number in tokens]
    return names + [f"{name} flash_attention_2" for name in names] if device == "cuda" and _flash() else names


def _flash() -> bool:
    from importlib.util import find_spec

    return find_spec("flash_attn") is not None or find_spec("kernels") is not None


def screen(case: Case, ours: list[str], peers: list[str], job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each contender once, its gradient compared with ours in fp32; if it has that dtype, a difference ends all."""
    found: dict[str, dict[str, Any]] = {}
    reference = _once(ours[0], job | {"gradient": "ours", "dtype": "fp32"})

    def run(name: str) -> None:
        try:
            one = found[name] = _once(name, job | {"gradient": "other"})
            if one["seconds"] < SHORT:
                one["seconds"] = min(one["seconds"], _once(name, job)["seconds"])
        except RuntimeError as error:
            if name in (DEFAULT, *ours):
                raise
            print(f"  {name:28} left out: {str(error)[-120:]}", flush=True)
            return
        one["distance"] = spawn(__file__, job | {"role": "compare"})["distance"]
        off = abs(one["loss"] - reference["loss"])
        print(f"  {name:28} {one['seconds']:8.2f} s, {one['added'] / 2**20:6,.0f} MB added; gradient off by "
              f"{one['distance']:.1e}, loss by {off:.1e}; others {one['others']:.0%}", flush=True)
        if job["dtype"] == "fp32" and not (one["distance"] <= TOLERANCE and _near(one["loss"], reference["loss"])):
            raise SystemExit(f"{case.name}: {name} does not agree with ours")

    for name in ours + (peers or contenders(case, job["device"])):
        run(name)
    if job["device"] == "cpu" and not peers:
        for name in fastest(found, 3):
            run(f"{name} eager")
    return found


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-5 * max(1.0, abs(b))


def _once(name: str, job: dict[str, Any]) -> dict[str, Any]:
    return spawn(__file__, job | {"role": "step", "contender": name})


def fastest(found: dict[str, dict[str, Any]], number: int) -> list[str]:
    """Names of sentence-transformers' fastest settings."""
    names = [name for name in found if name.startswith("st ")]
    return sorted(names, key=lambda name: found[name]["seconds"])[:number]


def measure(case: Case, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One case: agreement first, then `asked.rounds` rounds of every contender that is left, in turn."""
    job = {"folder": str(folder), "case": case.name, "threads": asked.threads, "dtype": asked.dtype,
           "device": asked.device, "patience": asked.patience}  # fmt: skip
    made = spawn(__file__, job | {"role": "make"})
    print(f"\n{case.name}, {asked.dtype}: {made['tokens']:,} tokens, {made['fill']:.1%} fill, longest "
          f"{made['longest']}; load average {os.getloadavg()[0]:.1f}", flush=True)
    ours = ["ours", *(f"ours {piece}" for piece in asked.pieces)] + (["ours one-pass"] if asked.one_pass else [])
    screened = screen(case, ours, asked.peers, job)
    names = list(dict.fromkeys([*ours, DEFAULT, *fastest(screened, 3)]))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name in names:
            rows[name].append(_once(name, job))
    figures = {name: middle(own) for name, own in rows.items()}
    return {"case": case.name, "dtype": asked.dtype, **made, "figures": figures, "screened": screened,
            "ratios": {name: ratios(figures, name) for name in ours}}  # fmt: skip


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of several runs, and their fastest and slowest."""
    seconds = [row["seconds"] for row in rows]
    return {key: median(row[key] for row in rows) for key in ("seconds", "peak", "added", "others")} | {
        "spread": [min(seconds), max(seconds)]
    }


def ratios(figures: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """How `name` stands to the default of sentence-transformers, and to the fastest of its settings."""
    best = fastest(figures, 1)[0]
    own, default, other = figures[name], figures[DEFAULT], figures[best]
    return {
        "default": default["seconds"] / own["seconds"], "best": other["seconds"] / own["seconds"], "best is": best,
        "memory": own["added"] / default["added"], "memory, best": own["added"] / other["added"],
        "whole process": own["peak"] / default["peak"], "whole process, best": own["peak"] / other["peak"],
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """The table of one case, and the bars that it is held against."""
    case = Case.parse(found["case"])
    print(f"\n{'contender':28} {'median s':>9} {'least':>8} {'most':>8} {'tokens/s':>9} {'peak MB':>8} "
          f"{'added MB':>9} {'others':>7}")
    for name, own in found["figures"].items():
        least, most = own["spread"]
        print(f"{name:28} {own['seconds']:9.2f} {least:8.2f} {most:8.2f} {found['tokens'] / own['seconds']:9,.0f} "
              f"{own['peak'] / 2**20:8,.0f} {own['added'] / 2**20:9,.0f} {own['others']:7.0%}")
    wanted = BARS.get((case.shape, case.fill), (None,) * 3) if found["dtype"] == "fp32" else (None,) * 3
    for name, ratio in found["ratios"].items():
        print(f"{name}: {_bar(ratio['default'], wanted[0], '× its default')}; "
              f"{_bar(ratio['best'], wanted[1], '× its best')} ({ratio['best is']}); "
              f"{_bar(ratio['memory'], wanted[2], 'of its default’s added memory', most=True)}, "
              f"{ratio['memory, best']:.2f} of its best's; whole process {ratio['whole process']:.2f} and "
              f"{ratio['whole process, best']:.2f}")


def _bar(value: float, bar: float | None, what: str, most: bool = False) -> str:
    if bar is None:
        return f"{value:.2f} {what}"
    met = value <= bar if most else value >= bar
    return f"{value:.2f} {what} (bar {'≤' if most else '≥'} {bar}: {'met' if met else 'MISSED'})"


# --- the children


def child(job: dict[str, Any]) -> dict[str, Any]:
    """What the parent asked for."""
    import torch

    torch.set_num_threads(job["threads"])
    return {"make": make, "step": step, "compare": compare}[job["role"]](job)


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Writes the model and the texts' ids; the same for everybody."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertModel

    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    case, folder = Case.parse(job["case"]), Path(job["folder"])
    layers, width, heads, feedforward = SHAPES[case.shape]
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("etaoinshrdlu"), draw.integers(2, 9))) for _ in range(4000)]
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=feedforward, max_position_embeddings=512, pad_token_id=1, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = train_tokenizer([" ".join(draw.choice(words, 20)) for _ in range(500)], 1_000)  # only to make it whole
    Encoder(BertModel(config, add_pooling_layer=False), tokenizer, 512).save(folder / "model")
    lengths = draw_lengths(draw, case.fill, (2, case.batch))
    np.savez(folder / "ids.npz", lengths=lengths, ids=draw.integers(10, VOCABULARY, int(lengths.sum())))
    padded = case.batch * int(lengths.max(1).sum())
    return {"tokens": int(lengths.sum()), "fill": lengths.sum() / padded, "longest": int(lengths.max())}


def draw_lengths(draw: Any, fill: int, size: tuple[int, ...]) -> Any:
    """Log-normal lengths, between `SHORTEST` and `CAP`."""
    import numpy as np

    middle, sigma = LENGTHS[fill]
    return np.clip(np.rint(draw.lognormal(np.log(middle), sigma, size)), SHORTEST, CAP).astype(np.int64)


def read_ids(folder: Path) -> list[list[list[int]]]:
    """Queries and passages, as lists of token ids that begin with `<s>` and end with `</s>`."""
    import numpy as np

    held = np.load(folder / "ids.npz")
    rows = [row.tolist() for row in np.split(held["ids"], np.cumsum(held["lengths"].ravel())[:-1])]
    whole = [[0, *row[1:-1], 2] for row in rows]
    return [whole[: len(whole) // 2], whole[len(whole) // 2 :]]


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peak memory of one step, after a small one; the gradient is written where that is asked."""

    folder, device = Path(job["folder"]), job["device"]
    sides = read_ids(folder)
    model, prepare = (of_ours if job["contender"].startswith("ours") else of_theirs)(job)
    parameters = named(model)
    prepare([side[:8] for side in sides])()
    compute = prepare(sides)
    for parameter in parameters.values():
        parameter.grad = None
    with Meter(device) as meter:
        loss = float(compute())
    if "gradient" in job:
        write_gradient(parameters, folder / f"{job['gradient']}.npy")
    return {"loss": loss, **meter.found}


Prepared = Callable[[list[list[list[int]]]], Callable[[], Any]]


def of_ours(job: dict[str, Any]) -> tuple[Any, Prepared]:
    """Our encoder, and how a step of given ids is prepared: "ours", "ours 4096" (tokens a piece), "ours one-pass"."""
    from me5lib.device import autocast
    from me5lib.model.encoder import Encoder
    from me5lib.pairs import Pair
    from me5lib.train.gradcache import cached_step, fitting_budget
    from me5lib.train.loss import from_pairs, info_nce

    encoder = Encoder.load(Path(job["folder"]) / "model").to(job["device"]).train()
    cut = job["contender"][5:]

    def prepare(sides: list[list[list[int]]]) -> Callable[[], Any]:
        n = len(sides[0])
        related = from_pairs([Pair(f"q{i}", f"p{i}", "none", "en") for i in range(n)]).relations.to(job["device"])

        def compute(tokens: int, whole: bool = False) -> Any:
            with autocast(encoder.device, job["dtype"]):
                return cached_step(
                    encoder, sides[0] + sides[1], lambda vectors: info_nce(vectors[:n], vectors[n:], related, TAU),
                    tokens, seed=0, keep_graph=whole,
                )  # fmt: skip

        if cut == "one-pass":
            return functools.partial(compute, sys.maxsize, True)
        if cut:
            return functools.partial(compute, int(cut))
        if job["device"] == "cuda":
            return functools.partial(compute, fitting_budget(compute, 2**20))
        return functools.partial(compute, *as_stages(job, sides))

    return encoder.backbone, prepare


def as_stages(job: dict[str, Any], sides: list[list[list[int]]]) -> tuple[int, bool]:
    """Tokens of a piece, and whether the step is one pass, by the rule of `stages` on a CPU."""
    from me5lib import config
    from me5lib.train import stages

    case = Case.parse(job["case"])
    layers, width, heads, feedforward = SHAPES[case.shape]
    shape = config.Model("random", layers, width, heads, feedforward, VOCABULARY, 512)
    budget = stages.Budget.on_cpu(shape)
    whole = sum(len(row) for side in sides for row in side) <= budget.whole
    return (sys.maxsize if whole else budget.piece), whole


def of_theirs(job: dict[str, Any]) -> tuple[Any, Prepared]:
    """sentence-transformers' model and loss: "st 32", "st 4096t" (tokens), "st 32 eager" (attention)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    _, size, *attention = job["contender"].split()
    kwargs = {"attn_implementation": attention[0]} if attention else {}
    if attention and attention[0].startswith("flash"):
        import torch

        kwargs["dtype"] = torch.bfloat16  # its kernels take nothing wider
    model = SentenceTransformer(str(Path(job["folder"]) / "model"), device=job["device"], model_kwargs=kwargs).train()
    if job["dtype"] == "bf16":
        _as_accelerate_does(model, job["device"])
    own = {"mini_batch_num_tokens": int(size[:-1])} if size.endswith("t") else {"mini_batch_size": int(size)}
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TAU, **own)

    def prepare(sides: list[list[list[int]]]) -> Callable[[], Any]:
        features = [collate(model, side, job["device"]) for side in sides]

        def compute() -> Any:
            value = loss(features, None)
            value.backward()
            return value.detach()

        return compute

    return model[0].auto_model, prepare


def _as_accelerate_does(model: Any, device: str) -> None:
    """Autocast around the model's forward, and only that: so sentence-transformers' trainer has it."""
    import torch
    from accelerate.utils import convert_outputs_to_fp32

    model.forward = convert_outputs_to_fp32(torch.autocast(device, torch.bfloat16)(model.forward))


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


class Meter:
    """Seconds and memory of a block: `found` has seconds, peak and added (bytes), and the share that others had."""

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = device == "cuda"

    def __enter__(self) -> Meter:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.before, self.foreign, self.start = self._now(), _foreign(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - self.start, self._peak()
        others = max(0.0, _foreign() - self.foreign) / (seconds * (os.cpu_count() or 1))
        self.found = {"seconds": seconds, "peak": peak, "added": peak - self.before, "others": others}

    def _now(self) -> int:
        if self.cuda:
            import torch

            return torch.cuda.memory_allocated()
        with contextlib.suppress(OSError):
            return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
        return self._peak()

    def _peak(self) -> int:
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _foreign() -> float:
    """Seconds that the processors have spent on other processes (or were taken away); 0 where that cannot be read."""
    with contextlib.suppress(OSError):
        fields = [int(field) for field in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = fields
        own = os.times()
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system
    return 0.0


def named(backbone: Any) -> dict[str, Any]:
    """The backbone's parameters by name; the pooler, which nobody asks, left out."""
    return {name: own for name, own in sorted(backbone.named_parameters()) if not name.startswith("pooler")}


def write_gradient(parameters: dict[str, Any], file: Path) -> None:
    """All gradients, flat, fp32, by name."""
    import numpy as np

    parts = [(own.new_zeros(own.shape) if own.grad is None else own.grad).float().cpu().numpy().ravel()
             for own in parameters.values()]  # fmt: skip
    np.save(file, np.concatenate(parts))


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """Relative L2 distance of the two gradients that were written."""
    import numpy as np

    ours, other = (np.load(Path(job["folder"]) / f"{name}.npy").astype(np.float64) for name in ("ours", "other"))
    return {"distance": float(np.linalg.norm(ours - other) / np.linalg.norm(ours))}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("--cases", nargs="+", default=list(CASES))
    given.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    given.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given.add_argument("--rounds", type=int, default=7)
    given.add_argument("--threads", type=int, default=2)
    given.add_argument("--pieces", type=int, nargs="*", default=[], help="of ours, padded tokens a piece")
    given.add_argument("--peers", nargs="*", default=[], help='only these of theirs, as "st 32" "st 2048t"')
    given.add_argument("--patience", type=int, default=0, help="seconds a run may be repeated, if others disturb it")
    given.add_argument("--one-pass", action="store_true", help="ours also without a replay")
    given.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return given.parse_args(argv)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="me5-") as name:
        yield Path(name)


def main(argv: list[str] | None = None) -> None:
    """Every case in turn; a table each, and all figures as JSON last."""
    asked = arguments(argv)
    if asked.child:
        print(json.dumps(child(asked.child)))
        return
    found = []
    for name in asked.cases:
        with workplace() as folder:
            found.append(measure(Case.parse(name), asked, folder))
        show(found[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
