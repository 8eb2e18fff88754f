"""How fast batches of texts come off the disk: `Mixture.batch` beside what `datasets` offers, on the same rows.

    python tests/benchmarks/mixture_reading.py [--rows 40000] [--sources 24] [--steps 100] [--rounds 3]

Every contender runs in a process of its own and gives batches of 1,024 pairs, each of one source, as lists of strings.
Cold: the files' pages were dropped from the page cache just before. Warm: the same steps again in the same process.
Contenders, from the least to the most favourable to `datasets`:

    datasets, streams      24 iterable sets, shuffled by a buffer of 10,000, two loading workers, interleaved
    datasets, shuffled     a map-style set a source, `shuffle(seed)`, read by slices
    datasets, same rows    the very rows of our plan, map-style, Arrow format, one batched read
    datasets, same sorted  as before, with the rows sorted first (so the order within the batch is lost)

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

BATCH = 1024


def write(folder: Path, sources: int, rows: int) -> None:
    """Shards of random words: queries of 8, passages of 80."""
    from me5lib.data import shards

    draw = np.random.default_rng(0)
    words = np.array(["".join(draw.choice(list("etaoinshrdlu"), draw.integers(2, 9))) for _ in range(5000)])
    for number in range(sources):
        texts = [[" ".join(line) for line in words[draw.integers(0, 5000, (rows, n))]] for n in (8, 80)]
        shard = folder / f"s{number:02d}" / "en"
        shards.write(pa.table({"query": texts[0], "passage": texts[1]}), shard)
        with pa.OSFile(str(shard / shards.MAPPED)) as mapped:  # the same rows in the same order, as `datasets` wants
            pq.write_table(pa.ipc.open_file(mapped).read_all(), shard / "pairs.parquet", compression="zstd")


def mixture(folder: Path, steps: int):
    """The mixture of all shards of `folder`."""
    from me5lib.data import shards
    from me5lib.data.mixture import Mixture

    found = {(path.name, "en"): shards.open_shard(path / "en") for path in sorted(folder.glob("s??"))}
    return Mixture(found, steps=steps, batch=BATCH, seed=1)


def ours(folder: Path, steps: int) -> Callable[[], Iterator[list]]:
    """`Mixture.batch`, and the two lists that a tokenizer takes."""
    plan = mixture(folder, steps)

    def run() -> Iterator[list]:
        for batch in map(plan.batch, range(steps)):
            queries, passages, _, _ = zip(*batch, strict=True)
            yield [list(queries), list(passages)]

    return run


def _sets(folder: Path) -> dict:
    import datasets

    datasets.disable_progress_bars()
    cache = str(folder / "datasets")
    return {path.name: datasets.Dataset.from_parquet(str(path / "en" / "pairs.parquet"), cache_dir=cache)
            for path in sorted(folder.glob("s??"))}


def same_rows(folder: Path, steps: int, ordered: bool = False) -> Callable[[], Iterator[list]]:
    """`datasets`, Arrow format, the rows of our plan in one read."""
    held = {name: one.with_format("arrow") for name, one in _sets(folder).items()}
    plan = mixture(folder, steps)
    rows = [(plan.plan(step).sources[0], plan.plan(step).row) for step in range(steps)]  # planned outside the clock

    def run() -> Iterator[list]:
        for source, wanted in rows:
            found = held[source][np.sort(wanted) if ordered else wanted]
            yield [column.to_pylist() for column in found.columns]

    return run


def shuffled(folder: Path, steps: int) -> Callable[[], Iterator[list]]:
    """`datasets`, `shuffle`, slices one after another."""
    held = [one.shuffle(seed=1).with_format("arrow") for one in _sets(folder).values()]

    def run() -> Iterator[list]:
        for step in range(steps):
            one, start = held[step % len(held)], step // len(held) * BATCH
            yield [column.to_pylist() for column in one[start : start + BATCH].columns]

    return run


def streams(folder: Path, steps: int) -> Callable[[], Iterator[list]]:
    """`datasets`, iterable, buffer shuffle, batches of one source, interleaved, two workers."""
    import datasets
    from torch.utils.data import DataLoader

    held = [one.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=10_000).batch(BATCH)
            for one in _sets(folder).values()]
    mixed = datasets.interleave_datasets(held, seed=1, probabilities=[1 / len(held)] * len(held))

    def run() -> Iterator[list]:
        loader = iter(DataLoader(mixed, batch_size=None, num_workers=2))
        for _ in range(steps):
            batch = next(loader)
            yield [batch["query"], batch["passage"]]

    return run


CONTENDERS = {
    "ours": ours,
    "datasets, streams": streams,
    "datasets, shuffled": shuffled,
    "datasets, same rows": same_rows,
    "datasets, same sorted": lambda folder, steps: same_rows(folder, steps, ordered=True),
}


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
    given.add_argument("--contender")
    given.add_argument("--folder", type=Path)
    asked = given.parse_args()
    if asked.contender:
        print(json.dumps(measure(asked.contender, asked.folder, asked.steps)))
        return
    with tempfile.TemporaryDirectory(prefix="me5-") as temporary:
        folder = asked.folder or Path(temporary)
        if not list(folder.glob("s??")):
            write(folder, asked.sources, asked.rows)
        rates: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in CONTENDERS}
        for _ in range(asked.rounds):
            for name in CONTENDERS:
                command = [sys.executable, __file__, "--contender", name, "--folder", str(folder),
                           "--steps", str(asked.steps)]
                done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", check=True)
                for state, rate in json.loads(done.stdout.splitlines()[-1]).items():
                    rates[name][state].append(rate)
    found = {name: {state: median(all_of) for state, all_of in own.items()} for name, own in rates.items()}
    for name, own in found.items():
        print(f"{name:22} cold {own['cold']:10,.0f}   warm {own['warm']:10,.0f} pairs/s")
    ratio = {state: found["ours"][state] / max(own[state] for name, own in found.items() if name.startswith("datasets"))
             for state in ("cold", "warm")}
    print(f"ours over the best of the others: cold {ratio['cold']:.2f}, warm {ratio['warm']:.2f}")
    print(json.dumps({"rates": found, "ratio": ratio}))


if __name__ == "__main__":
    main()
