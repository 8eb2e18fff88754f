"""What preparing a step of stage 1 costs: tokenised on the fly beside token ids that were stored (`--pretokenised`).

    python tests/benchmarks/tokenising.py [--rounds 7] [--steps 12] [--folder DIR]

Needs the corpus of tiny. Preparing is what `stages.pretrain` does in its worker thread: plan, rows, ids, keys, all as
`loop.Work`; nothing else runs meanwhile. Cases:

    tiny-512, tiny-4096    the corpus of tiny at its own batch and at 4,096 pairs; its texts are short (some 10 tokens)
    long-4096              passages as long as the paper's limits: such texts joined, both sides cut at 128 tokens

Contenders: on the fly with one thread and with two (the tokenizer's own, RAYON_NUM_THREADS), and the store, whose
reading is one thread of Python. Cold: the files' pages were dropped just before; warm: the same steps again, the cache
of text keys emptied in between. Every run is a process of its own, contenders interleaved; printed are medians and
range.

Then `--steps` steps of tiny are trained both ways with two threads: seconds of a step, and the share of the time that
the step waited for its batch. Where that is nil on the fly, the store gains nothing, and the figures say so.

32,768 pairs a second on 8 GPUs, the paper's scale, ask 4,096 pairs/s of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from mixture_reading import drop_pages

CASES = {"tiny-512": (512, 20), "tiny-4096": (4096, 4), "long-4096": (4096, 2)}  # batch, steps timed
CONTENDERS = {"on the fly, 1 thread": 1, "on the fly, 2 threads": 2, "stored": 1}  # threads of the tokenizer
SKIPPED = 3  # steps of training before the clock: pools and caches fill
LONG = 20_000  # made-up pairs


def dial_of(case: str) -> Any:
    """The scale of a case."""
    from me5lib import scale

    batch, steps = CASES[case]
    limits = ["train.query_tokens=128", "train.passage_tokens=128"] if case.startswith("long") else []
    return scale.load("tiny", [f"train.batch={batch}", f"train.steps={steps + 1}", *limits])


def write_long(corpus: Any, folder: Path) -> None:
    """Pairs whose sides are texts of the corpus joined, most of them beyond 128 tokens."""
    import pyarrow as pa

    from me5lib.data import shards

    texts = corpus.sample_texts(60_000)
    sides = [[" ".join(texts[(97 * i + n + 7919 * k) % len(texts)] for k in range(14)) for i in range(LONG)]
             for n in range(2)]
    shards.write(pa.table({"query": sides[0], "passage": sides[1]}), folder / "long" / "homeassistant-descriptions-en")


def mixture_of(case: str, corpus: Any, folder: Path) -> Any:
    """The mixture of a case."""
    from me5lib.data import shards
    from me5lib.data.mixture import Mixture

    dial = dial_of(case)
    if not case.startswith("long"):
        return corpus.mixture(dial, 0)
    shard = shards.open_shard(folder / "long" / "homeassistant-descriptions-en")
    held = {("homeassistant-descriptions", "en"): shard}
    return Mixture(held, steps=dial.train.steps, batch=dial.train.batch, seed=0)


def opened(folder: Path) -> tuple[Any, Any]:
    """The corpus, and an untrained encoder over the vocabulary; then the cache is one in `folder`."""
    from me5lib import scale
    from me5lib.data.corpus import open_corpus
    from me5lib.model.encoder import Encoder
    from me5lib.train import stages

    dial = scale.load("tiny")
    corpus = open_corpus(dial, progress=False)
    assert corpus.shards  # opened before the cache is another
    encoder = Encoder.new(dial.model, stages.vocabulary(corpus, dial, folder), 0)
    os.environ["ME5_CACHE"] = str(folder / "cache")
    return corpus, encoder


def preparing(case: str, stored: bool, corpus: Any, encoder: Any, folder: Path) -> Callable[[int], Any]:
    """`prepare(step)` of stage 1."""
    from me5lib.train import stages, tokenised
    from me5lib.train.dist import Team

    mixture, dial = mixture_of(case, corpus, folder), dial_of(case)
    if stored:
        mixture = tokenised.over(mixture, encoder, dial.train, stages.prefixes, progress=False)
    return stages._stage1(encoder, Team.alone(), mixture, dial.train, 0, stages.Budget(2**20, 2**20), stored)


def measure(contender: str, case: str, folder: Path) -> dict[str, float]:
    """Pairs a second, cold and warm, and the megabytes that each pass read from the disk."""
    corpus, encoder = opened(folder)
    batch, steps = CASES[case]
    prepare = preparing(case, contender == "stored", corpus, encoder, folder)
    prepare(steps)  # what is done once is not counted
    for place in (corpus.folder / "stage1", folder / "long", folder / "cache"):
        drop_pages(place)
    found, tokens = {}, 0
    for state in ("cold", "warm"):
        _forget_keys()
        before, start = _read_bytes(), time.perf_counter()
        for step in range(steps):
            tokens += prepare(step).tokens
        found[state] = batch * steps / (time.perf_counter() - start)
        found[f"{state} MB"] = (_read_bytes() - before) / 1e6
    return found | {"tokens a pair": tokens / (2 * batch * steps)}


def _forget_keys() -> None:
    from me5lib.pairs import text_key

    text_key.cache_clear()


def _read_bytes() -> int:
    path = Path("/proc/self/io")
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), 0)


def train(stored: bool, steps: int, folder: Path) -> dict[str, float]:
    """Median seconds of a training step of tiny, the share of time that it waited, and the last loss."""
    from me5lib import scale
    from me5lib.train import loop, stages

    corpus, _ = opened(folder)
    dial = scale.load("tiny", [f"train.steps={steps + SKIPPED}", "train.warmup=5"])
    with tempfile.TemporaryDirectory(dir=folder) as out:
        shutil.copytree(folder / "tokenizer", Path(out) / "tokenizer")
        made = stages.pretrain(dial, 0, Path(out), corpus=corpus, evaluate=lambda encoder, step: {"none": 0.0},
                               every=10**6, progress=False, pretokenised=stored)
        lines = (made / "timings.jsonl").read_text(encoding="utf8").splitlines()
        rows = [json.loads(line) for line in lines][SKIPPED:]
        loss = loop.read(made).steps[-1]["loss"]
    waited, seconds = (sum(row[name] for row in rows) for name in ("waited", "seconds"))
    return {"seconds": median(row["seconds"] + row["waited"] for row in rows), "waits": waited / (waited + seconds),
            "loss": loss}  # fmt: skip


def write(folder: Path) -> dict[str, dict[str, float]]:
    """Write the stores, and say what that took."""
    corpus, encoder = opened(folder)
    write_long(corpus, folder)
    found = {}
    for case in ("tiny-512", "long-4096"):
        before, start = _bytes(folder / "cache"), time.perf_counter()
        preparing(case, True, corpus, encoder, folder)
        seconds = time.perf_counter() - start
        pairs = sum(stream.rows for stream in mixture_of(case, corpus, folder).streams)
        found[case] = {"pairs": pairs, "seconds": seconds, "pairs/s": pairs / seconds,
                       "bytes a pair": (_bytes(folder / "cache") - before) / pairs}  # fmt: skip
    return found


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.npy"))


def spawn(folder: Path, threads: int, torch_threads: int, **job: Any) -> dict[str, Any]:
    """What a process of its own prints last, as JSON."""
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
                        "OMP_NUM_THREADS": str(torch_threads), "HF_HUB_OFFLINE": "1"}  # fmt: skip
    command = [sys.executable, __file__, "--folder", str(folder), "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf8", env=env)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the parent asked for."""
    if job["role"] == "write":
        return write(folder)
    if job["role"] == "train":
        return train(job["stored"], job["steps"], folder)
    return measure(job["contender"], job["case"], folder)


def middle(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The median of every number."""
    return {name: median(row[name] for row in rows) for name in rows[0]}


def prepared(folder: Path, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Contender → case → medians of the interleaved rounds; printed too."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {(name, case): [] for case in CASES for name in CONTENDERS}
    for _ in range(rounds):
        for (name, case), own in rows.items():
            own.append(spawn(folder, CONTENDERS[name], 1, role="prepare", contender=name, case=case))
    found = {name: {case: middle(rows[name, case]) for case in CASES} for name in CONTENDERS}
    for case in CASES:
        for name in CONTENDERS:
            one, own = found[name][case], rows[name, case]
            least, most = ([edge(row[state] for row in own) for state in ("cold", "warm")] for edge in (min, max))
            print(f"{case:10} {name:22} cold {one['cold']:9,.0f} ({least[0]:,.0f} … {most[0]:,.0f}; "
                  f"{one['cold MB']:.0f} MB read)   warm {one['warm']:9,.0f} ({least[1]:,.0f} … {most[1]:,.0f}) "
                  f"pairs/s, {one['tokens a pair']:.0f} tokens a pair", flush=True)
    return found


def trained(folder: Path, rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """On the fly and stored: medians of the interleaved rounds; printed too."""
    rows: dict[str, list[dict[str, Any]]] = {"on the fly": [], "stored": []}
    for _ in range(rounds):
        for name, own in rows.items():
            own.append(spawn(folder, 2, 2, role="train", stored=name == "stored", steps=steps))
    assert len({row["loss"] for own in rows.values() for row in own}) == 1, "the losses differ"
    found = {name: middle(own) for name, own in rows.items()}
    for name, one in found.items():
        spread = sorted(row["seconds"] for row in rows[name])
        print(f"training tiny, {name:11} {one['seconds']:.3f} s a step ({spread[0]:.3f} … {spread[-1]:.3f}), "
              f"{one['waits']:.2%} of it waiting for the batch; loss {one['loss']}", flush=True)
    return found


def main() -> None:
    """Write, prepare, train; prints medians, and the figures as JSON last."""
    given = argparse.ArgumentParser()
    given.add_argument("--rounds", type=int, default=7)
    given.add_argument("--steps", type=int, default=12)
    given.add_argument("--folder", type=Path)
    given.add_argument("--child")
    asked = given.parse_args()
    if asked.child:
        print(json.dumps(child(json.loads(asked.child), asked.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="me5-") as temporary:
        folder = asked.folder or Path(temporary)
        print(f"load average {os.getloadavg()[0]:.1f} at the start", flush=True)
        written = spawn(folder, 2, 2, role="write")
        for case, one in written.items():
            print(f"written, {case:10} {one['pairs']:,.0f} pairs in {one['seconds']:.0f} s ({one['pairs/s']:,.0f} "
                  f"pairs/s), {one['bytes a pair']:.0f} bytes a pair", flush=True)
        found = {"written": written, "prepared": prepared(folder, asked.rounds),
                 "trained": trained(folder, asked.rounds, asked.steps)}  # fmt: skip
        for case in CASES:
            for state in ("cold", "warm"):
                rates = {name: own[case][state] for name, own in found["prepared"].items()}
                best = max(rate for name, rate in rates.items() if name != "stored")
                print(f"{case}, {state}: stored over the better on the fly {rates['stored'] / best:.2f}")
    print(f"load average {os.getloadavg()[0]:.1f} at the end\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
