"""Reading on a CPU: a BERT's forward pass over tokens without padding, its matrices packed for it, down to int8.

    weights = pack(state, config, "int8", encoder.tokenize(calibration()))
    means = pool(weights, ids, pieces)               # fp32 [texts, width], before the L2 norm

A step is nothing but torch's own kernels, called on all tokens of a piece at once; only attention sees padding. In
int8 a weight's scale is its output channel's, an activation's its token's, so that no text changes another's vector.
Wide input channels are brought down first (SmoothQuant, arXiv 2211.10438, equation 4), by what `calibration` shows of
them. What each precision costs in quality, language by language, is in notebook 10; in time, in
tests/benchmarks/LOG.md.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from babel import Locale
from torch import Tensor
from torch.nn import functional as F

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *HALVES, "int8")
LOCALES = ("en", "de", "ru", "el", "ka", "hy", "he", "ar", "fa", "ur", "hi", "bn", "ta", "te", "th", "km", "my", "am",
           "zh", "ja", "ko")  # fmt: skip  # 19 scripts
SMOOTH = 0.5  # how much of a channel's width goes over to the weights (the paper's α; 0.65 was as good, 0.8 not)
TOP = 100  # largest int8 weight: products of 127 overflow 16 bits in kernels for AVX2 (ours; 85 and 115 were worse)
PLACES = "embeddings.position_embeddings.weight"
KINDS = ("bert", "xlm-roberta", "roberta")


class Parts(NamedTuple):
    """A backbone that `pack` can take, and how its texts are cut."""

    part: Callable[[str], Tensor]  # name in a `BertModel` → its weights
    config: Mapping[str, Any]
    tokenizer: Path  # a tokenizer.json
    max_tokens: int
    look_up: Callable[[Tensor], Tensor] | None = None  # of the table of tokens, where it is kept in another form


def calibration() -> list[str]:
    """Texts that show which channels are wide: names of territories in 21 languages, about 1,000 tokens (ours)."""
    return ["query: " + ", ".join(list(Locale.parse(code).territories.values())[:12]) for code in LOCALES]


class Norm(NamedTuple):
    """A layer norm."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Dense(NamedTuple):
    """x W' + b."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8(NamedTuple):
    """The same in int8, of tokens [n, inputs]; fp32 in and out."""

    packed: Any  # fbgemm's
    bias: Tensor
    shrink: Tensor | None  # [inputs]: what the input's channels are multiplied by

    def __call__(self, x: Tensor) -> Tensor:
        x = x if self.shrink is None else x * self.shrink
        scale = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True)).clamp_(min=1e-12)
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x / scale, 1 / 127, 128, self.packed)
        return torch.addcmul(self.bias, y, scale)


class Layer(NamedTuple):
    """A layer's matrices and norms."""

    qkv: Dense | Int8
    attention_out: Dense | Int8
    attention_norm: Norm
    widen: Dense | Int8
    narrow: Dense | Int8
    norm: Norm


class Weights(NamedTuple):
    """A backbone, packed."""

    look_up: Callable[[Tensor], Tensor]  # token ids [n] → the table's rows, fp32
    positions: Tensor  # with the only token type's row; [longest text, width]
    norm: Norm
    layers: list[Layer]
    heads: int
    dtype: torch.dtype  # of what goes from layer to layer


class Piece(NamedTuple):
    """Texts that go through together: where their tokens lie in [texts · longest], and what padding adds to a logit."""

    sizes: np.ndarray
    places: Tensor | None  # None: all are of one length
    bias: Tensor | None

    @classmethod
    def of(cls, sizes: np.ndarray, dtype: torch.dtype) -> Piece:
        """Of texts of `sizes` tokens."""
        if (sizes == sizes[0]).all():
            return cls(sizes, None, None)
        shown = torch.from_numpy(np.arange(sizes.max()) < sizes[:, None])
        bias = torch.zeros(shown.shape, dtype=dtype).masked_fill_(~shown, -torch.inf)
        return cls(sizes, shown.flatten().nonzero().squeeze(1), bias[:, None, None])


def int8_here() -> bool:
    """Whether this machine's torch has the kernels: of x86."""
    return hasattr(torch, "quantize_per_channel") and "fbgemm" in torch.backends.quantized.supported_engines


def packable(config: Mapping[str, Any]) -> bool:
    """Whether a backbone of this configuration is a BERT as `pool` computes it (XLM-R is)."""
    return (config.get("model_type") in KINDS and config.get("hidden_act") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute" and not config.get("is_decoder"))


def first_position(config: Mapping[str, Any]) -> int:
    """The row of a text's first token in the table of positions: XLM-R counts from behind its padding id."""
    return config["pad_token_id"] + 1 if "roberta" in config["model_type"] else 0


def pack(part: Callable[[str], Tensor], config: Mapping[str, Any], precision: str, sample: Sequence[Sequence[int]] = (),
         look_up: Callable[[Tensor], Tensor] | None = None) -> Weights:  # fmt: skip
    """The weights that `part` gives by name, for `pool`; `look_up` where the table is kept in another form.

    For int8, `sample` are the token ids of `calibration()`: they go through each layer before it is packed.
    """
    dtype = HALVES.get(precision, torch.float32)
    epsilon, words = config["layer_norm_eps"], "embeddings.word_embeddings.weight"

    def _dense(*names: str) -> Dense:
        both = [[part(f"{name}.{kind}").detach().to(dtype) for name in names] for kind in ("weight", "bias")]
        return Dense(*(tensors[0] if len(tensors) == 1 else torch.cat(tensors) for tensors in both))

    def _norm(name: str) -> Norm:
        return Norm(*_dense(name), epsilon)

    places = part(PLACES).detach()[first_position(config) :].float()
    places = places + part("embeddings.token_type_embeddings.weight").detach()[0].float()
    norm = Norm(*(tensor.float() for tensor in _dense("embeddings.LayerNorm")), epsilon)
    look_up = look_up or functools.partial(F.embedding, weight=part(words).detach())
    weights = Weights(look_up, places, norm, [], config["num_attention_heads"], dtype)
    if precision == "int8":
        sizes = np.array([len(row) for row in sample])
        x, piece = embed(weights, sample, sizes), Piece.of(sizes, dtype)
    for i in range(config["num_hidden_layers"]):
        self, out = (f"encoder.layer.{i}.attention.{name}" for name in ("self", "output"))
        layer = Layer(
            _dense(f"{self}.query", f"{self}.key", f"{self}.value"), _dense(f"{out}.dense"), _norm(f"{out}.LayerNorm"),
            _dense(f"encoder.layer.{i}.intermediate.dense"), _dense(f"encoder.layer.{i}.output.dense"),
            _norm(f"encoder.layer.{i}.output.LayerNorm"),
        )  # fmt: skip
        if precision == "int8":
            between = attend(x, layer, piece, weights.heads)
            after = feed(between, layer)
            layer, x = layer._replace(
                qkv=_quantise(layer.qkv, x.abs().amax(0)), attention_out=_quantise(layer.attention_out),
                widen=_quantise(layer.widen, between.abs().amax(0)), narrow=_quantise(layer.narrow),
            ), after  # fmt: skip
        weights.layers.append(layer)
    return weights


def _quantise(dense: Dense, widest: Tensor | None = None) -> Int8:
    """In int8; with `widest` [inputs], the widest values seen, channels are narrowed by √(theirs / their weights')."""
    weight, shrink = dense.weight, None
    if widest is not None:
        wide, heavy = (values.clamp(min=1e-5) for values in (widest, weight.abs().amax(0)))
        factor = wide**SMOOTH / heavy ** (1 - SMOOTH)
        factor = factor / factor.median()
        weight, shrink = weight * factor, 1 / factor
    scales = (weight.abs().amax(1) / TOP).clamp(min=1e-12).double()
    engine = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "fbgemm"
        with warnings.catch_warnings(action="ignore"):  # that a later torch may go without: see `int8_here`
            zeros = torch.zeros(len(weight), dtype=torch.long)
            whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        return Int8(torch.ops.quantized.linear_prepack(whole, None), dense.bias, shrink)
    finally:
        torch.backends.quantized.engine = engine


def embed(weights: Weights, rows: Sequence[Sequence[int]], sizes: np.ndarray) -> Tensor:
    """[tokens, width]: what goes into the first layer, all tokens of `rows` one after another."""
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64, sizes.sum()))
    steps = torch.from_numpy(np.concatenate([np.arange(size) for size in sizes]))
    return weights.norm(weights.look_up(ids).float() + weights.positions[steps]).to(weights.dtype)


def attend(x: Tensor, layer: Layer, piece: Piece, heads: int) -> Tensor:
    """The first half of a layer, [tokens, width]."""
    texts, longest, width = len(piece.sizes), int(piece.sizes.max()), x.shape[1]
    mixed = layer.qkv(x)
    if piece.places is not None:
        mixed = mixed.new_zeros(texts * longest, 3 * width).index_copy_(0, piece.places, mixed)
    q, k, v = mixed.view(texts, longest, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=piece.bias).transpose(1, 2).reshape(-1, width)
    return layer.attention_norm(layer.attention_out(y if piece.places is None else y[piece.places]).add_(x))


def feed(x: Tensor, layer: Layer) -> Tensor:
    """The second half, [tokens, width]."""
    return layer.norm(layer.narrow(F.gelu(layer.widen(x))).add_(x))


def pool(weights: Weights, ids: Sequence[Sequence[int]], pieces: Iterable[np.ndarray],
         advance: Callable[[int], object] = lambda texts: None) -> Tensor:  # fmt: skip
    """fp32 [n, width]: the mean over all tokens of each of n rows of ids, of which `pieces` are index arrays."""
    means = torch.empty(len(ids), weights.positions.shape[1])
    for indices in pieces:
        rows = [ids[i] for i in indices]
        sizes = np.array([len(row) for row in rows])
        x, piece = embed(weights, rows, sizes), Piece.of(sizes, weights.dtype)
        for layer in weights.layers:
            x = feed(attend(x, layer, piece, weights.heads), layer)
        text = torch.from_numpy(np.repeat(np.arange(len(rows)), sizes))
        total = torch.zeros(len(rows), x.shape[1]).index_add_(0, text, x.float())
        means[torch.from_numpy(indices)] = total / torch.from_numpy(sizes)[:, None]
        advance(len(rows))
    return means
