"""Mining 100k queries against 100k passages: ours beside sentence-transformers' `mine_hard_negatives`.

    python tests/benchmarks/mining.py [--queries 100000] [--passages 100000] [--width 384] [--depth 50] [--rounds 1]

Both sides get the same precomputed unit vectors (a passage lies in one of 1,000 topics; a query is its positive with
noise), keep seven negatives of the best `--depth` + 1 (the positive is one of them) under a relative margin of 0.95,
and use two threads. Every run is a process of its own, contenders interleaved, peak memory is its VmHWM (Linux).
The seconds are those of the call: search, filter, and the result as Python objects (theirs: a dataset).

Theirs scores by dot product, which on unit vectors saves it the norms of its default, cosine. `ours` is compared with
brute force in float64 on a sample: every row the same, but for scores that tie to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np

CONTENDERS = ("ours", "theirs", "theirs, faiss")
NEGATIVES, MARGIN, TIE = 7, 0.95, 1e-6


def make(folder: Path, queries: int, passages: int, width: int) -> None:
    """The vectors of both sides: query i belongs to passage i."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((1000, width), dtype=np.float32)
    texts = topics[rng.integers(0, 1000, passages)] + rng.standard_normal((passages, width), dtype=np.float32)
    asked = texts[np.arange(queries) % passages] + rng.standard_normal((queries, width), dtype=np.float32)
    for name, vectors in (("passages", texts), ("queries", asked)):
        np.save(folder / f"{name}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def ours(queries: np.ndarray, passages: np.ndarray, depth: int) -> dict[str, float]:
    """Seconds of our mining, whose rows are those of brute force."""
    from me5lib.pairs import Labelled
    from me5lib.train import mining, search

    texts = [f"passage {i}" for i in range(len(passages))]
    rows = [Labelled(f"query {i}", (texts[i % len(texts)],), (), "s", "en") for i in range(len(queries))]
    search.top_k(queries[:64], passages[:64], 8)  # imports and thread pools
    start = time.perf_counter()
    pool, right = search.Pool(texts), (np.arange(len(queries)) % len(texts))[:, None]
    near = search.dense(queries, right, search.DenseIndex(passages), depth + 1)
    searched = time.perf_counter() - start
    _, report = mining.choose(near, rows, pool, NEGATIVES, {"relative margin": mining.relative_margin(near, MARGIN)})
    figures = {"whole": time.perf_counter() - start, "search": searched, "kept": report.kept}
    some = np.linspace(0, len(queries) - 1, min(1000, len(queries))).astype(int)
    true = queries[some].astype(np.float64) @ passages.astype(np.float64).T
    best = -np.sort(-true, axis=1)[:, : depth + 1]
    assert np.abs(best - np.take_along_axis(true, near.rows[some], 1)).max() <= TIE
    return figures


def theirs(queries: np.ndarray, passages: np.ndarray, depth: int, use_faiss: bool) -> dict[str, float]:
    """Seconds of sentence-transformers' mining, with a model whose vectors are there already."""
    from datasets import Dataset
    from sentence_transformers import util

    if use_faiss:
        import faiss  # noqa: F401 – as our torch, imported before the clock
    texts = [f"passage {i}" for i in range(len(passages))]
    model = SimpleNamespace(
        device="cpu", encode_document=lambda texts, **_: passages, encode_query=lambda texts, **_: queries,
        get_embedding_dimension=lambda: passages.shape[1], similarity=util.dot_score,
        similarity_pairwise=util.pairwise_dot_score,
    )  # fmt: skip
    rows = Dataset.from_dict({"query": [f"query {i}" for i in range(len(queries))],
                              "positive": [texts[i % len(texts)] for i in range(len(queries))]})
    start = time.perf_counter()
    made = util.mine_hard_negatives(
        rows, model, corpus=texts, range_max=depth, relative_margin=1 - MARGIN, verbose=False,
        num_negatives=NEGATIVES, output_format="labeled-list", use_faiss=use_faiss)
    whole = time.perf_counter() - start
    kept = sum(len(row) - 1 for row in made["labels"])
    if not kept:  # it may find nothing without a word, and then its seconds are nobody's
        raise RuntimeError("sentence-transformers mined no negative: nothing to compare with")
    return {"whole": whole, "kept": kept}


def child(name: str, folder: str, depth: int) -> dict[str, float]:
    """One run; it has a process of its own."""
    queries, passages = (np.load(Path(folder, f"{side}.npy")) for side in ("queries", "passages"))
    who, _, kind = name.partition(", ")
    found = ours(queries, passages, depth) if who == "ours" else theirs(queries, passages, depth, bool(kind))
    lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return found | {"peak MB": next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3}


def main() -> None:
    """Run and print; the figures as JSON last."""
    options = argparse.ArgumentParser()
    for name, value in (("queries", 100_000), ("passages", 100_000), ("width", 384), ("depth", 50), ("rounds", 1)):
        options.add_argument(f"--{name}", type=int, default=value)
    cfg = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # of the processes
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        make(Path(folder), cfg.queries, cfg.passages, cfg.width)
        for _ in range(cfg.rounds):
            for name, done in rows.items():
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    done.append(process.submit(child, name, folder, cfg.depth).result())
                print(f"{name:14} {done[-1]}", flush=True)
    found = {name: {key: median(one[key] for one in own) for key in own[0]} for name, own in rows.items()}
    print(f"theirs over ours: {found['theirs']['whole'] / found['ours']['whole']:.2f}\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
