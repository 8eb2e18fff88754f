"""Vectors on the disk in fewer bytes, as `me5 encode` writes them, and their search with rescoring.

    write_vectors(open_model("me5-small-q4"), texts, "passage: ", "int8", Path("vectors.parquet"))
    rows, scores = search(Path("vectors.parquet"), query_vectors, k=10)

The numbers are sentence-transformers'. A manifest beside the file (`vectors.parquet.json`) says how they were made, and
their `calibration`: of int8 the range of each dimension, of binary its median (a question of XQuAD then keeps 7.1 of
mE5-small's ten nearest, at 0 it keeps 4.4), of binary-zero 0. While it is written, fp32 vectors lie on the disk, too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from me5lib import io
from me5lib.evaluate.cache import CachedEncoder
from me5lib.evaluate.models import Opened
from me5lib.io import Me5Error
from me5lib.model.text import clean
from me5lib.train.search import top_k

PRECISIONS = ("fp32", "fp16", "int8", "binary", "binary-zero")
GROUP = 16_384  # rows of vectors in memory (ours): 25 MB at 384 dimensions
CALIBRATION = 4_096  # texts, evenly spaced, that ranges and medians are taken from (ours)


def calibrate(vectors: np.ndarray, precision: str) -> np.ndarray:
    """What numbers are measured against: fp32 [2, width] of int8, [1, width] of binary, else unused."""
    if precision == "int8":
        return np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    return np.median(vectors, axis=0, keepdims=True) * np.float32(precision == "binary")


def quantise(vectors: np.ndarray, precision: str, calibration: np.ndarray) -> np.ndarray:
    """Vectors fp32 [n, width] in a `precision`: [n, width], of binary int8 [n, width / 8]."""
    from sentence_transformers.util.quantization import quantize_embeddings

    if precision in ("fp32", "fp16"):
        return vectors.astype(np.float16 if precision == "fp16" else np.float32)
    about_zero = vectors if precision == "int8" else vectors - calibration
    return quantize_embeddings(about_zero, precision.removesuffix("-zero"), ranges=calibration)


def write_vectors(opened: Opened, texts: list[str], prefix: str, precision: str, out: Path, bar: bool = False) -> None:
    """Write the vectors of `prefix + text` to `out`. What is finished stays, what a killed process began is gone on
    with. Raises `Me5Error` for an `out` that is of anything else than these texts by this model in this way."""
    if precision not in PRECISIONS:
        raise Me5Error(f"no precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    texts, model = clean(texts), {"model": opened.name, "revision": opened.revision}
    mark = hashlib.blake2b("\0".join(texts).encode("utf8"), digest_size=8).hexdigest()
    about = model | {"dtype": opened.dtype, "prefix": prefix, "precision": precision, "rows": len(texts), "texts": mark}
    beside, parts = out.with_name(f"{out.name}.json"), out.with_name(f".{out.name}.parts")

    def _write(path: Path) -> None:
        writer = None
        for start in range(0, len(texts), GROUP):
            group = texts[start : start + GROUP]
            codes = quantise(encoder.encode(group, prefix), precision, calibration)
            held = pa.FixedSizeListArray.from_arrays(codes.ravel(), codes.shape[1])
            table = pa.table({"text": group, "vector": held})
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()

    with (io.locked(out.with_name(f".{out.name}.lock")),
          tqdm(total=sum(map(len, texts)), desc="encode", unit=" letters", unit_scale=True, disable=not bar) as shown):
        known = io.read_json(beside, {"rows": 0} if out.exists() else {})
        if known and (other := [name for name, value in about.items() if known.get(name) != value]):
            raise Me5Error(f"{out} has other {', '.join(other)}: choose another --out, or delete it and {beside.name}")
        if not out.exists():
            encoder = CachedEncoder(opened.encoder, parts, model, opened.dtype, seen=shown.update)
            calibration = calibrate(encoder.encode(texts[:: -(-len(texts) // CALIBRATION)], prefix), precision)
            io.put_json(beside, about | {"calibration": calibration.tolist()})
            io.put(out, _write)
        io.remove(parts)


def search(file: Path, queries: np.ndarray, k: int = 10, rescore_multiplier: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best rows of each query (unit vectors, fp32 [Q, width]) by what is stored: (rows, scores), [Q, ≤ k].

    Of binary sentence-transformers takes the `k` × `rescore_multiplier` rows whose bits are likest, then sums what the
    query has above the thresholds where bits are 1 (no cosine). Raises `Me5Error` without a manifest.
    """
    if not (about := io.read_json(file.with_name(f"{file.name}.json"), {})):
        raise Me5Error(f"{file}.json is not there, the manifest of `me5 encode`: put it beside the file")
    held = pq.read_table(file, columns=["vector"])["vector"].combine_chunks()
    codes = held.flatten().to_numpy(zero_copy_only=False).reshape(len(held), -1)
    calibration = np.array(about["calibration"], np.float32)
    if about["precision"] == "int8":
        codes = (codes + np.float32(128)) * ((calibration[1] - calibration[0]) / 255) + calibration[0]
    if not about["precision"].startswith("binary"):
        return top_k(queries, codes, k)
    from sentence_transformers.util.quantization import semantic_search_faiss

    hits, _ = semantic_search_faiss(queries - calibration, codes.view(np.uint8) ^ 128, corpus_precision="ubinary",
                                    top_k=min(k, len(codes)), rescore_multiplier=rescore_multiplier)  # fmt: skip
    return tuple(np.array([[hit[name] for hit in own] for own in hits]) for name in ("corpus_id", "score"))
