"""Encoding for evaluation: `Encoder.encode` beside `SentenceTransformer.encode`, same weights, same texts, same dtype.

    python tests/benchmarks/encode.py [--texts 20000] [--rounds 7] [--threads 2] [--dtypes fp32 bf16]
                                      [--batches 32 16 64 128] [--budgets 2048] [--folder DIR]

The model is random, 12 layers × 384 (mE5-small's shape, with a vocabulary of 8,000: looking a token up costs the same),
saved once and loaded by both. Texts are names of territories in 24 languages, joined to log-normal lengths: median 60
tokens, σ = 0.8 (ours: mean 83), cut at 512. Every run is a process of its own that loads, warms up on 64 texts and
times one call over all texts, from strings to a numpy array; contenders take turns in every round.

sentence-transformers runs at its default batch of 32 and at that of `--batches` which is fastest on a tenth of the
texts (tried before the rounds); the faster of the two in the medians is what ours is held against. In bf16 it holds its
weights in bf16. More than one of `--budgets` are contenders of their own: our padded tokens at once (0: the default).

Printed: medians and range, ratios, and how far the vectors agree: fp32 by coordinate, bf16 by cosine to our fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

LOCALES = ("en", "de", "fr", "es", "pt", "ru", "uk", "zh", "ja", "ko", "th", "am", "ka", "hy", "he", "ar", "fa", "hi",
           "bn", "ta", "te", "el", "vi", "sw")  # fmt: skip
MEDIAN, SIGMA = 60, 0.8  # tokens; of their logarithm
PREFIX = "query: "
SPEED, HALF_SPEED = 0.95, 1.5  # bars: ours against theirs, our bf16 against our fp32
CLOSE, COSINE = 1e-5, 0.999  # bars: a coordinate in fp32, a cosine in bf16


def make(folder: Path, count: int) -> dict[str, float]:
    """Write the model and the texts to `folder`; what the texts are like."""
    import numpy as np
    from babel import Locale

    from me5lib import config
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    words = [name for code in LOCALES for name in Locale.parse(code).territories.values()]
    tokenizer = train_tokenizer(words, 8_000)
    encoder = Encoder.new(config.Model("random", 12, 384, 12, 1_536, 8_000, 512), tokenizer, seed=0)
    encoder.save(folder / "model")
    sizes = np.array([len(ids) - 2 for ids in encoder.tokenize(words)])
    source = np.random.default_rng(0)
    texts = []
    for length in np.exp(source.normal(np.log(MEDIAN), SIGMA, count)):
        drawn = source.integers(0, len(words), int(length) + 1)
        drawn = drawn[: 1 + int(np.searchsorted(np.cumsum(sizes[drawn]), length))]
        texts.append(" ".join(words[i] for i in drawn))
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf8")
    lengths = [len(ids) for ids in encoder.tokenize(texts, PREFIX)]
    return {"texts": count, "median": float(np.median(lengths)), "mean": float(np.mean(lengths)),
            "cut": float(np.mean(np.array(lengths) == 512))}  # fmt: skip


def measure(folder: Path, contender: dict[str, Any], count: int, keep: str = "") -> dict[str, float]:
    """Seconds of one call over the first `count` texts; the vectors are kept under the name `keep`."""
    import numpy as np

    texts = json.loads((folder / "texts.json").read_text(encoding="utf8"))[:count]
    encode = ours(folder, contender) if contender["whose"] == "me5" else theirs(folder, contender)
    encode(texts[:64])
    start, before = time.perf_counter(), time.process_time()
    vectors = encode(texts)
    found = {"seconds": time.perf_counter() - start, "core seconds": time.process_time() - before, "GB": _peak()}
    if keep:
        np.save(folder / f"{keep}.npy", np.asarray(vectors, dtype=np.float32))
    return found


def ours(folder: Path, contender: dict[str, Any]) -> Any:
    """`Encoder.encode` as the evaluation calls it."""
    from me5lib.model.encoder import Encoder

    encoder = Encoder.load(folder / "model")
    budget = contender.get("budget") or None
    return lambda texts: encoder.encode(texts, PREFIX, precision=contender["dtype"], token_budget=budget)


def theirs(folder: Path, contender: dict[str, Any]) -> Any:
    """`SentenceTransformer.encode` with the same prompt."""
    from sentence_transformers import SentenceTransformer

    types = {"fp32": "float32", "bf16": "bfloat16"}
    options = {"dtype": types[contender["dtype"]]}
    model = SentenceTransformer(str(folder / "model"), device="cpu", model_kwargs=options)
    batch = contender["batch"]
    return lambda texts: model.encode(texts, prompt=PREFIX, batch_size=batch, show_progress_bar=False)


def _peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def spawn(folder: Path, threads: int, **job: Any) -> dict[str, Any]:
    """What a process of its own prints last, as JSON."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
                        "TOKENIZERS_PARALLELISM": "true"}  # fmt: skip
    command = [sys.executable, __file__, "--folder", str(folder), "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", env=env)
    if done.returncode:
        raise SystemExit(f"{job}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the parent asked for."""
    role = job.pop("role")
    return make(folder, **job) if role == "make" else measure(folder, **job)


def chosen(folder: Path, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The contenders by name: ours, theirs at 32, theirs at the fastest other batch size of a tenth of the texts."""
    found: dict[str, dict[str, Any]] = {}
    some = max(200, asked.texts // 10)
    for dtype in asked.dtypes:
        for budget in asked.budgets:
            found[f"me5 {dtype}" + (f" {budget}" if len(asked.budgets) > 1 else "")] = {
                "whose": "me5", "dtype": dtype, "budget": budget}  # fmt: skip
        trials = {batch: {"whose": "sentence-transformers", "dtype": dtype, "batch": batch} for batch in asked.batches}
        seconds = {
            batch: min(spawn(folder, asked.threads, role="measure", contender=each, count=some)["seconds"]
                       for _ in range(2)) for batch, each in trials.items()
        } if len(trials) > 1 else dict.fromkeys(trials, 0.0)  # fmt: skip
        best = min(seconds, key=lambda batch: seconds[batch])
        if len(trials) > 1:
            print(f"sentence-transformers {dtype}, {some} texts: "
                  + ", ".join(f"batch {batch} {took:.2f} s" for batch, took in seconds.items()), flush=True)
        for batch in dict.fromkeys((asked.batches[0], best)):
            found[f"st {dtype} {batch}"] = trials[batch]
    return found


def agreement(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """How far each contender's vectors are from our fp32 ones: largest difference, least cosine."""
    import numpy as np

    base = next(name for name in names if name.startswith("me5 fp32"))
    wanted = np.load(folder / f"{base}.npy")
    found = {}
    for name in names:
        own = np.load(folder / f"{name}.npy")
        cosines = (own * wanted).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(wanted, axis=1)
        found[name] = {"difference": float(abs(own - wanted).max()), "cosine": float(cosines.min())}
    return found


def verdicts(rows: dict[str, list[dict[str, float]]], agreed: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Every bar: what was found, and whether it holds. Ratios are of medians over the rounds."""
    middle = {name: median(row["seconds"] for row in own) for name, own in rows.items()}
    found: dict[str, Any] = {}
    for name in (name for name in rows if name.startswith("me5")):
        dtype = name.split()[1]
        others = {other: seconds for other, seconds in middle.items() if other.startswith(f"st {dtype}")}
        best = min(others, key=lambda other: others[other])
        found[f"{name} against {best}"] = (others[best] / middle[name], SPEED)
        fp32 = name.replace(dtype, "fp32")
        if dtype != "fp32" and fp32 in middle:
            found[f"{name} against {fp32}"] = (middle[fp32] / middle[name], HALF_SPEED)
    checked = {name: (ratio, bar, ratio >= bar) for name, (ratio, bar) in found.items()}
    for name, one in agreed.items():
        fp32 = name.split()[1] == "fp32"
        value, bar = (one["difference"], CLOSE) if fp32 else (one["cosine"], COSINE)
        checked[f"vectors of {name}"] = (value, bar, value <= bar if fp32 else value >= bar)
    return {name: {"found": value, "bar": bar, "holds": holds} for name, (value, bar, holds) in checked.items()}


def compete(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark in `folder`; printed as it goes, and returned."""
    about = spawn(folder, asked.threads, role="make", count=asked.texts)
    print(f"{about['texts']} texts, median {about['median']:.0f} tokens, mean {about['mean']:.1f}, "
          f"{about['cut']:.1%} cut at 512; {asked.threads} threads", flush=True)
    contenders = chosen(folder, asked)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(asked.rounds):
        for name, contender in contenders.items():
            rows[name].append(spawn(folder, asked.threads, role="measure", contender=contender, count=asked.texts,
                                    keep=name if turn == 0 else ""))  # fmt: skip
        print(f"round {turn + 1}: " + ", ".join(f"{name} {own[-1]['seconds']:.2f} s" for name, own in rows.items()),
              flush=True)  # fmt: skip
    for name, own in rows.items():
        seconds = [row["seconds"] for row in own]
        print(f"{name:14} median {median(seconds):7.2f} s ({min(seconds):.2f} … {max(seconds):.2f}), "
              f"{asked.texts / median(seconds):6.0f} texts/s, {median(row['GB'] for row in own):.2f} GB")
    agreed = agreement(folder, list(rows)) if "fp32" in asked.dtypes else {}
    bars = verdicts(rows, agreed)
    for name, one in bars.items():
        print(f"{name}: {one['found']:.6g} (bar {one['bar']:g}): {'holds' if one['holds'] else 'MISSED'}")
    return {"about": about, "rows": rows, "agreement": agreed, "bars": bars}


def main() -> None:
    """JSON last."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("--texts", type=int, default=20_000)
    given.add_argument("--rounds", type=int, default=7)
    given.add_argument("--threads", type=int, default=2)
    given.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    given.add_argument("--batches", nargs="+", type=int, default=[32, 16, 64, 128])
    given.add_argument("--budgets", nargs="+", type=int, default=[0])
    given.add_argument("--folder", type=Path)
    given.add_argument("--child", type=json.loads)
    asked = given.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child, asked.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="me5-") as own:
        print(json.dumps(compete(asked.folder or Path(own), asked)))


if __name__ == "__main__":
    main()
