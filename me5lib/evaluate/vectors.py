"""Vectors on the disk in fewer bytes, written by `me5 encode`; their search, with rescoring.

    write_vectors(open_model("me5-small-q4"), texts, "passage: ", "int8", Path("vectors.parquet"))
    rows, scores = search(Path("vectors.parquet"), query_vectors, k=10)

A Parquet file of `text` and `vector`, in the order of the texts; `int8` and `binary` are sentence-transformers' own
(`quantize_embeddings`). A manifest beside it and in its metadata (`me5`) names model, prefix, precision, rows, and the
`calibration`: least and greatest of each dimension (int8), its median (binary) or 0 (binary-zero, as others have it).

Cost: texts and `GROUP` vectors in memory; till the end 2 or 4 bytes a dimension on the disk, with which the command
goes on when it was killed. A search reads all vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

PRECISIONS = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8, "binary": np.int8, "binary-zero": np.int8}
GROUP = 16_384  # rows (ours): 25 MB of fp32 at 384 dimensions
CALIBRATION = 4_096  # texts, evenly spaced, that ranges and medians are taken from (ours)


def calibrate(vectors: np.ndarray, precision: str) -> np.ndarray:
    """What numbers of a `precision` are measured against: fp32 [2, width] of int8, [1, width] of binary, else [0]."""
    made = {"int8": lambda: [vectors.min(axis=0), vectors.max(axis=0)], "binary": lambda: [np.median(vectors, axis=0)],
            "binary-zero": lambda: [np.zeros(vectors.shape[1])]}  # fmt: skip
    return np.array(made.get(precision, list)(), np.float32)


def quantise(vectors: np.ndarray, precision: str, calibration: np.ndarray) -> np.ndarray:
    """Vectors fp32 [n, width] in a `precision`: [n, width], of binary int8 [n, width / 8]."""
    from sentence_transformers.util.quantization import quantize_embeddings

    if precision.startswith("binary"):
        return quantize_embeddings(vectors - calibration, "binary")
    if precision == "int8":
        return quantize_embeddings(vectors, "int8", ranges=calibration)
    return vectors.astype(PRECISIONS[precision])


def write_vectors(opened: Opened, texts: Sequence[str], prefix: str, precision: str, out: Path,
                  progress: bool = False) -> dict[str, Any]:  # fmt: skip
    """Write the vectors of `prefix + text` to `out`; the manifest. What is finished stays, what was begun is gone on
    with. Raises `Me5Error` for an `out` that is of anything else than these texts in this way."""
    if precision not in PRECISIONS:
        raise Me5Error(f"no precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    texts, model = clean(texts), {"model": opened.name, "revision": opened.revision}
    digest = hashlib.blake2b("\0".join(texts).encode("utf8"), digest_size=8).hexdigest()
    about = model | {"dtype": opened.dtype, "prefix": prefix, "precision": precision, "rows": len(texts), "of": digest}
    beside, parts = out.with_name(f"{out.name}.json"), out.with_name(f".{out.name}.parts")
    with io.locked(out.with_name(f".{out.name}.lock")):
        known = read_manifest(out) if out.exists() else io.read_json(beside, {})
        if known and (other := [name for name, value in about.items() if known.get(name) != value]):
            raise Me5Error(f"{out} is of another {', '.join(other)}: choose another, or delete it and {beside.name}")
        if not known:
            sample = CachedEncoder(opened.encoder, parts, model, opened.dtype).encode(
                texts[:: -(-len(texts) // CALIBRATION)], prefix)  # fmt: skip
            io.put_json(beside, known := about | {"calibration": calibrate(sample, precision).tolist()})
        if not out.exists():
            with tqdm(total=sum(map(len, texts)), desc="encode", unit_scale=True, disable=not progress) as bar:
                cached = CachedEncoder(opened.encoder, parts, model, opened.dtype, seen=bar.update)
                io.put(out, lambda path: _write(path, cached, texts, known))
        io.remove(parts)
    return known


def _write(path: Path, encoder: CachedEncoder, texts: Sequence[str], about: dict[str, Any]) -> None:
    calibration, writer = np.array(about["calibration"], np.float32), None
    for start in range(0, len(texts), GROUP):
        group = texts[start : start + GROUP]
        codes = quantise(encoder.encode(group, about["prefix"]), about["precision"], calibration)
        held = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1])
        table = pa.table({"text": group, "vector": held}).replace_schema_metadata({"me5": json.dumps(about)})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()


def read_manifest(file: Path) -> dict[str, Any]:
    """What a file's metadata says. Raises `Me5Error` for a file that is not of `me5 encode`."""
    try:
        return json.loads(pq.read_schema(file).metadata[b"me5"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        raise Me5Error(f"{file} is no file of `me5 encode`: choose another") from None


def search(file: Path, queries: np.ndarray, k: int = 10, rescore_multiplier: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best rows of each query (unit vectors, fp32 [Q, width]): (rows int64, scores fp32), both [Q, ≤ k].

    By dot product with what is stored. Of binary (the sum of a query where a bit is 1: no cosine) that is reckoned for
    the `k` × `rescore_multiplier` rows that differ from the query's own bits in the fewest places.
    """
    about, held = read_manifest(file), pq.read_table(file, columns=["vector"])["vector"].combine_chunks()
    codes, calibration = held.flatten().to_numpy(zero_copy_only=False), np.array(about["calibration"], np.float32)
    codes = codes.reshape(len(held), -1)
    if about["precision"] == "int8":
        codes = (codes + np.float32(128)) * ((calibration[1] - calibration[0]) / 255) + calibration[0]
    if not about["precision"].startswith("binary"):
        return top_k(queries, codes, k)
    import faiss

    asked, bits = (each.view(np.uint8) ^ 128 for each in (quantise(queries, about["precision"], calibration), codes))
    index = faiss.IndexBinaryFlat(8 * bits.shape[1])
    index.add(bits)
    rows = index.search(asked, min(k * rescore_multiplier, len(bits)))[1]
    scores = np.einsum("qd,qkd->qk", queries, np.unpackbits(bits[rows], axis=-1)[..., : queries.shape[1]])
    order = np.argsort(-scores, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
