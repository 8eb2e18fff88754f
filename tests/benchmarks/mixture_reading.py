"""How fast batches of texts come off the disk: `Mixture.batch` beside `datasets`, shuffled or on the same rows.

    python tests/benchmarks/mixture_reading.py [--rows 40000] [--sources 24] [--steps 100] [--rounds 3]

Every contender runs in a process of its own and gives batches of 1,024 pairs, each of one source, as lists of strings.
Cold: the files' pages were dropped from the page cache just before. Warm: the same steps again in the same process.
Timings mean little across machines; the ratio of one run is what is printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from me5lib.data import shards
from me5lib.data.mixture import Mixture

BATCH = 1024


def write(folder: Path, sources: int, rows: int) -> None:
    """Shards of random words: queries of 8, passages of 80; and the same rows as `datasets` wants them."""
    draw = np.random.default_rng(0)
    words = np.array(["".join(draw.choice(list("etaoinshrdlu"), draw.integers(2, 9))) for _ in range(5000)])
    for number in range(sources):
        texts = [[" ".join(line) for line in words[draw.integers(0, 5000, (rows, n))]] for n in (8, 80)]
        shard = folder / f"s{number:02d}"
        shards.write_shard(pa.table({"query": texts[0], "passage": texts[1]}), shard)
        with pa.OSFile(str(shard / shards.MAPPED)) as mapped:
            pq.write_table(pa.ipc.open_file(mapped).read_all(), shard / "pairs.parquet", compression="zstd")


def ours(folder: Path, steps: int) -> Callable[[], Iterator[list]]:
    """`Mixture.batch`, and the two lists that a tokenizer takes."""
    found = {(path.name, "en"): shards.Shard(path) for path in sorted(folder.glob("s??"))}
    plan = Mixture(found, steps=steps, batch=BATCH, seed=1)

    def run() -> Iterator[list]:
        for batch in map(plan.batch, range(steps)):
            queries, passages, _, _ = zip(*batch, strict=True)
            yield [list(queries), list(passages)]

    return run


def theirs(folder: Path, steps: int, shuffled: bool = False) -> Callable[[], Iterator[list]]:
    """`datasets`, map-style, Arrow format: the very rows of our plan, sorted, in one read; or `shuffle` and slices."""
    import datasets

    datasets.disable_progress_bars()
    held = {path.name: datasets.Dataset.from_parquet(str(path / "pairs.parquet"), cache_dir=str(folder / "datasets"))
            for path in sorted(folder.glob("s??"))}
    held = {name: (one.shuffle(seed=1) if shuffled else one).with_format("arrow") for name, one in held.items()}
    found = {(path.name, "en"): shards.Shard(path) for path in sorted(folder.glob("s??"))}
    plan = Mixture(found, steps=steps, batch=BATCH, seed=1)
    rows = [(plan.plan(step).sources[0], np.sort(plan.plan(step).row)) for step in range(steps)]  # outside the clock
    if shuffled:
        starts = [(name, step // len(held) * BATCH) for step, (name, _) in enumerate(rows)]
        rows = [(name, slice(start, start + BATCH)) for name, start in starts]

    def run() -> Iterator[list]:
        for source, wanted in rows:
            yield [column.to_pylist() for column in held[source][wanted].columns]

    return run


CONTENDERS = {"ours": ours, "datasets, same rows": theirs,
              "datasets, shuffled": lambda folder, steps: theirs(folder, steps, shuffled=True)}


def drop_pages(folder: Path) -> None:
    """Ask the system to forget the files' content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Pairs a second, cold and warm, of one contender in this process."""
    run = CONTENDERS[name](folder, steps)
    next(iter(run()))  # what a library does once, when it is first used, is not counted
    drop_pages(folder)
    found = {}
    for state in ("cold", "warm"):
        start, pairs = time.perf_counter(), 0
        for queries, passages in run():
            assert len(queries) == len(passages) == BATCH and isinstance(passages[0], str)
            pairs += len(queries)
        found[state] = pairs / (time.perf_counter() - start)
    return found


def main() -> None:
    """All contenders, in turn, `--rounds` times; prints medians and ratios, and the figures as JSON last."""
    given = argparse.ArgumentParser()
    for option, value in (("rows", 40_000), ("sources", 24), ("steps", 100), ("rounds", 3)):
        given.add_argument(f"--{option}", type=int, default=value)
    given.add_argument("--contender", nargs=2)
    asked = given.parse_args()
    if asked.contender:
        name, folder = asked.contender
        print(json.dumps(measure(name, Path(folder), asked.steps)))
        return
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        write(Path(folder), asked.sources, asked.rows)
        for name in list(CONTENDERS) * asked.rounds:
            command = [sys.executable, __file__, "--contender", name, folder, "--steps", str(asked.steps)]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", check=True)
            rates[name].append(json.loads(done.stdout.splitlines()[-1]))
    found = {name: {state: median(one[state] for one in own) for state in ("cold", "warm")}
             for name, own in rates.items()}
    for name, own in found.items():
        print(f"{name:22} cold {own['cold']:10,.0f}   warm {own['warm']:10,.0f} pairs/s")
    ratio = {state: found["ours"][state] / max(own[state] for name, own in found.items() if name != "ours")
             for state in ("cold", "warm")}
    print(f"ours over the best of the others: cold {ratio['cold']:.2f}, warm {ratio['warm']:.2f}")
    print(json.dumps({"rates": found, "ratio": ratio}))


if __name__ == "__main__":
    main()
