"""Encoding for evaluation: `Encoder.encode` beside `SentenceTransformer.encode`, same weights, same texts, same dtype.

    python tests/benchmarks/encode.py [--texts 20000] [--rounds 7]

The model is random, 12 layers × 384 (mE5-small's shape, with a vocabulary of 8,000: looking a token up costs the same),
saved once and loaded by both. Texts are names of territories in 24 languages, joined to log-normal lengths: median 60
tokens, σ = 0.8 (ours: mean 83), cut at 512. Every run is a process of its own that loads, warms up on 64 texts and
times one call over all texts, from strings to a numpy array; contenders take turns in every round, and ours is held
against the faster of theirs in the medians. Printed too: how far the vectors agree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

DTYPES, BATCHES, THREADS = ("fp32", "bf16"), (32, 16), "2"  # fp32 is what others are held against
LOCALES = ("en", "de", "fr", "es", "pt", "ru", "uk", "zh", "ja", "ko", "th", "am", "ka", "hy", "he", "ar", "fa", "hi",
           "bn", "ta", "te", "el", "vi", "sw")  # fmt: skip
MEDIAN, SIGMA = 60, 0.8  # tokens; of their logarithm
PREFIX = "query: "
SPEED, HALF_SPEED = 0.95, 1.5  # bars: ours against theirs, our bf16 against our fp32
CLOSE, COSINE = 1e-5, 0.999  # bars: a coordinate in fp32, a cosine in bf16


def make(folder: Path, count: int) -> None:
    """Write the model and the texts to `folder`, and print what the texts are like."""
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
    source, texts = np.random.default_rng(0), []
    for length in np.exp(source.normal(np.log(MEDIAN), SIGMA, count)):
        drawn = source.integers(0, len(words), int(length) + 1)
        drawn = drawn[: 1 + int(np.searchsorted(np.cumsum(sizes[drawn]), length))]
        texts.append(" ".join(words[i] for i in drawn))
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf8")
    lengths = np.array([len(ids) for ids in encoder.tokenize(texts, PREFIX)])
    print(f"{count} texts, median {np.median(lengths):.0f} tokens, mean {lengths.mean():.1f}, "
          f"{(lengths == 512).mean():.1%} cut at 512", flush=True)


def measure(folder: Path, whose: str, dtype: str, batch: int) -> None:
    """Print the seconds of one call over the texts, and keep the vectors."""
    import resource

    import numpy as np

    texts = json.loads((folder / "texts.json").read_text(encoding="utf8"))
    if whose == "me5":
        from me5lib.model.encoder import Encoder

        encoder = Encoder.load(folder / "model")
        encode = partial(encoder.encode, prefix=PREFIX, precision=dtype)
    else:
        from sentence_transformers import SentenceTransformer

        options = {"dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype]}
        model = SentenceTransformer(str(folder / "model"), device="cpu", model_kwargs=options)
        encode = partial(model.encode, prompt=PREFIX, batch_size=batch, show_progress_bar=False)
    encode(texts[:64])
    start = time.perf_counter()
    vectors = encode(texts)
    took = time.perf_counter() - start
    np.save(folder / f"{whose} {dtype} {batch}.npy", np.asarray(vectors, dtype=np.float32))
    print(json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))


def compete(folder: Path, texts: int, rounds: int) -> bool:
    """The whole benchmark in `folder`; whether every bar holds."""
    import numpy as np

    make(folder, texts)
    env = os.environ | {"OMP_NUM_THREADS": THREADS, "RAYON_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1",
                        "TOKENIZERS_PARALLELISM": "true"}  # fmt: skip
    contenders = [(whose, dtype, batch) for dtype in DTYPES
                  for whose, batch in (("me5", 0), *(("st", batch) for batch in BATCHES))]
    seconds: dict[tuple, list[float]] = {each: [] for each in contenders}
    for each in contenders * rounds:
        command = [sys.executable, __file__, "--child", str(folder), *map(str, each)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", env=env, check=True)
        took, peak = json.loads(done.stdout.splitlines()[-1])
        seconds[each].append(took)
        print(f"{each}: {took:.2f} s, {peak:.2f} GB", flush=True)
    middle = {each: median(took) for each, took in seconds.items()}
    wanted, bars = np.load(folder / "me5 fp32 0.npy"), []
    for whose, dtype, batch in contenders:
        vectors = np.load(folder / f"{whose} {dtype} {batch}.npy")
        cosine = (vectors * wanted).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)
        close = abs(vectors - wanted).max() <= CLOSE if dtype == "fp32" else cosine.min() >= COSINE
        bars.append((f"vectors of {whose} {dtype} {batch}: cosine {cosine.min():.6f}", close))
    for dtype in DTYPES:
        ratio = min(middle["st", dtype, batch] for batch in BATCHES) / middle["me5", dtype, 0]
        bars.append((f"{dtype}: {ratio:.2f} of sentence-transformers' speed", ratio >= SPEED))
    half = middle["me5", "fp32", 0] / middle["me5", "bf16", 0]
    bars.append((f"bf16: {half:.2f} of fp32's speed", half >= HALF_SPEED))
    for line, holds in bars:
        print(f"{line}: {'holds' if holds else 'MISSED'}")
    return all(holds for _, holds in bars)


def main() -> int:
    """See above; exit code 1 where a bar is missed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--texts", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--child", nargs=4)
    args = options.parse_args()
    if args.child:
        folder, whose, dtype, batch = args.child
        measure(Path(folder), whose, dtype, int(batch))
        return 0
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        return int(not compete(Path(folder), args.texts, args.rounds))


if __name__ == "__main__":
    sys.exit(main())
