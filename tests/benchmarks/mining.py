"""Mining 100k queries against 100k passages: ours beside sentence-transformers' `mine_hard_negatives`.

    python tests/benchmarks/mining.py [--queries 100000] [--passages 100000] [--width 384] [--depth 50] [--rounds 1]

Both sides get the same precomputed unit vectors (a passage lies in one of 1,000 topics; a query is its positive with
noise), keep seven negatives of the best `--depth` + 1 (the positive is one of them) under a relative margin of 0.95,
and use two threads. Every run is a process of its own, contenders interleaved, peak memory is its VmHWM (Linux).

    whole     the call: search, filter, and the result as Python objects (theirs: a dataset)
    search    of it the search alone; theirs: from the end of encoding to the scores of the positives

Theirs scores by dot product, which on unit vectors saves it the norms of its default, cosine. Then ours is compared
with brute force in float64 on 1,000 queries: every row the same, but for scores that tie to 1e-6. Last, at a tenth of
the size, what an approximate index would save and miss.
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


def texts(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Vectors and names of queries and passages."""
    asked, found = np.load(folder / "queries.npy"), np.load(folder / "passages.npy")
    return asked, found, [f"query {i}" for i in range(len(asked))], [f"passage {i}" for i in range(len(found))]


def ours(folder: Path, depth: int) -> dict[str, float]:
    """Seconds of our mining; the rows found go to a file."""
    from me5lib.train import mining

    asked, found, queries, passages = texts(folder)
    positives = [[passages[i % len(passages)]] for i in range(len(queries))]
    owner = np.arange(len(queries))
    mining.top_k(asked[:64], found[:64], 8)  # imports and thread pools
    start = time.perf_counter()
    near = mining.nearest(asked, owner, found[owner % len(found)], mining.Index(found), depth + 1)
    searched = time.perf_counter() - start
    negatives, report = mining.choose(near, queries, positives, passages, NEGATIVES, MARGIN)
    whole = time.perf_counter() - start
    memory = peak()
    np.savez(folder / "found.npz", rows=near.rows, scores=near.scores)
    return {"whole": whole, "search": searched, "peak MB": memory, "kept": sum(map(len, negatives))}


class Given:
    """A model for `mine_hard_negatives` whose vectors are there already; notes when it is asked."""

    device = "cpu"

    def __init__(self, asked: np.ndarray, found: np.ndarray) -> None:
        self.asked, self.found, self.times = asked, found, []

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        """The passages' vectors: all of them, in order."""
        assert len(texts) == len(self.found)
        return self.found

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        """The queries'."""
        assert len(texts) == len(self.asked)
        self.times.append(time.perf_counter())
        return self.asked

    def get_embedding_dimension(self) -> int:
        """Their width."""
        return self.found.shape[1]

    def similarity(self, asked: Any, found: Any) -> Any:
        """All dot products."""
        from sentence_transformers import util

        return util.dot_score(asked, found)

    def similarity_pairwise(self, asked: Any, found: Any) -> Any:
        """Dot products row by row."""
        from sentence_transformers import util

        self.times.append(time.perf_counter())
        return util.pairwise_dot_score(asked, found)


def theirs(folder: Path, depth: int, use_faiss: bool) -> dict[str, float]:
    """Seconds of sentence-transformers' mining."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    asked, found, queries, passages = texts(folder)
    if use_faiss:
        import faiss  # noqa: F401 – as our torch, imported before the clock
    rows = Dataset.from_dict({"query": queries, "positive": [passages[i % len(passages)] for i in range(len(queries))]})
    model = Given(asked, found)
    start = time.perf_counter()
    made = mine_hard_negatives(rows, model, corpus=passages, range_max=depth, relative_margin=1 - MARGIN, verbose=False,
                               num_negatives=NEGATIVES, output_format="labeled-list", use_faiss=use_faiss)
    whole = time.perf_counter() - start
    memory = peak()
    kept = sum(len(row) - 1 for row in made["labels"])
    if not kept:  # it may find nothing without a word, and then its seconds are nobody's
        raise RuntimeError("sentence-transformers mined no negative: nothing to compare with")
    return {"whole": whole, "search": model.times[1] - model.times[0], "peak MB": memory, "kept": kept}


def peak() -> float:
    """Most memory that this process has held, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def check(folder: Path, sample: int = 1000) -> dict[str, float]:
    """Ours against brute force in float64 on a sample: how many rows differ, and by how much their scores do."""
    asked, found, *_ = texts(folder)
    mine = np.load(folder / "found.npz")
    some = np.linspace(0, len(asked) - 1, min(sample, len(asked))).astype(int)
    exact, differing, worst = found.astype(np.float64).T, 0, 0.0
    for part in np.array_split(some, max(1, len(some) // 100)):
        scores = asked[part].astype(np.float64) @ exact
        rows = mine["rows"][part]
        best = np.argsort(-scores, axis=1, kind="stable")[:, : rows.shape[1]]
        gaps = np.abs(np.take_along_axis(scores, best, 1) - np.take_along_axis(scores, rows, 1))
        differing += int((best != rows).sum())
        worst = max(worst, float(gaps.max()))
    assert worst <= TIE, worst
    return {"queries": len(some), "rows that differ": differing, "largest gap of scores": worst}


def approximate(folder: Path, depth: int) -> dict[str, dict[str, float]]:
    """Seconds of building and searching each kind of index at a tenth of the size, and its recall."""
    from me5lib.train import mining

    asked, found, *_ = texts(folder)
    asked, found = asked[::10], found[::10]
    rows = {}
    for kind in ("exact", "ivf", "hnsw"):
        start = time.perf_counter()
        index = mining.Index(found, kind)
        built = time.perf_counter() - start
        index.search(asked, depth)
        rows[kind] = {"build": built, "search": time.perf_counter() - start - built,
                      "recall": index.recall(asked, depth) or 1.0}
    return rows


def spawn(folder: Path, job: str, depth: int) -> dict[str, Any]:
    """What a process of its own prints last, as JSON."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, __file__, "--folder", str(folder), "--depth", str(depth), "--child", job]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", env=env)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: str, folder: Path, depth: int) -> dict[str, Any]:
    """What the parent asked for."""
    jobs = {"ours": lambda: ours(folder, depth), "theirs": lambda: theirs(folder, depth, False),
            "theirs, faiss": lambda: theirs(folder, depth, True), "check": lambda: check(folder),
            "approximate": lambda: approximate(folder, depth)}  # fmt: skip
    return jobs[job]()


def main() -> None:
    """Run and print; the figures as JSON last."""
    given = argparse.ArgumentParser()
    for name, value in (("queries", 100_000), ("passages", 100_000), ("width", 384), ("depth", 50), ("rounds", 1)):
        given.add_argument(f"--{name}", type=int, default=value)
    given.add_argument("--folder", type=Path)
    given.add_argument("--child")
    asked = given.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child, asked.folder, asked.depth)))
        return
    with tempfile.TemporaryDirectory(prefix="me5-") as temporary:
        folder = asked.folder or Path(temporary)
        print(f"load average {os.getloadavg()[0]:.1f} at the start", flush=True)
        make(folder, asked.queries, asked.passages, asked.width)
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(asked.rounds):
            for name in CONTENDERS:
                rows[name].append(one := spawn(folder, name, asked.depth))
                print(f"{name:14} whole {one['whole']:7.1f} s, search {one['search']:7.1f} s, "
                      f"peak {one['peak MB']:,.0f} MB, {one['kept']:,} negatives", flush=True)
        found: dict[str, Any] = {name: {key: median(one[key] for one in own) for key in own[0]}
                                 for name, own in rows.items()}
        for name in CONTENDERS[1:]:
            ratios = {key: found[name][key] / found["ours"][key] for key in ("whole", "search", "peak MB")}
            print(f"{name} over ours: " + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items()))
        found |= {job: spawn(folder, job, asked.depth) for job in ("check", "approximate")}
        print(f"against brute force: {found['check']}\napproximate, at a tenth of the size: {found['approximate']}")
        print(f"load average {os.getloadavg()[0]:.1f} at the end\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
