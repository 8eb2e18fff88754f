"""The encoder: text in, unit vectors out. Backbone, average pooling over all non-padding tokens, L2 norm.

    encoder = Encoder.load("runs/tiny/seed-0/stage1")
    vectors = encoder.encode(["How do I pay?"], QUERY)      # fp32 [1, width]
    encoder = FastEncoder.load("me5-small-q4")              # for reading alone: see there

`encode` is for reading (texts, no gradient), `tokenize` + `forward` for training (ids, with gradient). Both sort the
texts by length and cut them into pieces of equal padded size before the backbone sees them: padding is most of the
work otherwise. A BERT (XLM-R is one) is read on a CPU by `model.fast`. Pooling and norm are done in fp32 whatever the
backbone's dtype: at τ = 0.01 a cosine error of 4e-3 is 0.4 of a logit.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from me5lib import config
from me5lib.device import precision as native
from me5lib.device import seeded
from me5lib.io import Me5Error, give_back
from me5lib.model import fast, released, save_load, text
from me5lib.model.fast import HALVES, PRECISIONS
from me5lib.model.text import QUERY, clean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VERSION = 2  # of the vectors; raise it with any change by which equal weights and texts give others, here or in `text`
CPU_PIECE = 2_048  # padded tokens that go through the backbone together: what fits a core's cache (measured; ours)
GPU_PIECE = 65_536  # on a GPU, launches cost more than padding (ours)
WINDOW = 16_384  # texts that `encode` holds in tokens at a time


class Encoder(nn.Module):
    """A backbone and its tokenizer."""

    def __init__(self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.prompts = save_load.PROMPTS  # that it is saved with
        words = backbone.get_input_embeddings()
        if words.padding_idx not in (None, tokenizer.pad_token_id):
            words.padding_idx = None  # mE5-small's configuration names `<s>`, which torch would then never train (ours)
        self._packed: tuple[Any, fast.Weights | None] = None, None  # what they were packed of; `_weights`

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return self.backbone.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    @classmethod
    def new(cls, shape: config.Model, tokenizer: PreTrainedTokenizerFast, seed: int, dropout: float = 0.0) -> Encoder:
        """Random BERT weights of this shape, whatever its `backbone`, from `seed` and not torch's global generator.

        By default without dropout (ours: one pass over the data does not overfit).
        """
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=shape.width, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, intermediate_size=shape.feedforward,
            max_position_embeddings=shape.max_tokens, pad_token_id=tokenizer.pad_token_id, type_vocab_size=1,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        with seeded(seed):
            backbone = BertModel(config, add_pooling_layer=False)
        return cls(backbone, tokenizer, shape.max_tokens)

    @classmethod
    def load(cls, model: str | Path) -> Encoder:
        """The encoder of a folder, a hub id or `me5-small-q4`, in fp32 and evaluation mode: `save_load.read_model`."""
        return cls(*save_load.read_model(model)).eval()

    def trained_further(self) -> Encoder:
        """Itself; where it came in 4 bits, its configuration says from now on that it was trained or cut since."""
        if getattr(self.backbone.config, "derived_from", "") == released.NAME:
            self.backbone.config.derived_from = released.TUNED
        return self

    def copy(self) -> Self:
        """A copy with weights of its own; the tokenizer is the same one (XLM-R's takes 260 MB)."""
        return copy.deepcopy(self, {id(self.tokenizer): self.tokenizer})

    def freeze(self, depth: int) -> None:
        """Train the embeddings (`depth` 1) and the lower `depth` − 1 layers no further."""
        for part in [self.backbone.embeddings, *self.backbone.encoder.layer][:depth]:
            part.requires_grad_(False)

    def save(self, folder: str | Path, prompts: Mapping[str, str] | None = None,
             also: Callable[[Path], None] | None = None) -> None:
        """Write a folder that `SentenceTransformer` and `AutoModel` load: see `save_load.write_model`."""
        prompts = prompts or self.prompts
        save_load.write_model(self.backbone, self.tokenizer, self.max_tokens, Path(folder), prompts, also)

    def tokenize(self, texts: Sequence[str], prefix: str = "", max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of cleaned `prefix + text` with `<s>` and `</s>`, at most `max_tokens` (None: the encoder's)."""
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        return shortened(text.cut_by(self.tokenizer.backend_tokenizer, [prefix + each for each in clean(texts)]), limit)

    def forward(self, ids: Sequence[Sequence[int]], token_budget: int | None = None) -> Tensor:
        """Unit vectors, fp32 [n, width], of n rows of token ids, in their order and with gradient, in one graph."""
        return nn.functional.normalize(self.pool(ids, token_budget), dim=-1)

    def pool(self, ids: Sequence[Sequence[int]], token_budget: int | None = None,
             advance: Callable[[int], object] = lambda texts: None) -> Tensor:  # fmt: skip
        """The same without the L2 norm, as the authors' evaluation script wants it for Classification.

        For a gradient, the rows' tokens are looked up once, flat, and then dealt out to the pieces: a lookup per piece
        would leave a gradient as large as the whole vocabulary for each of them. Without one, each piece looks up its
        own: 16,384 texts of 70 tokens would take 1.8 GB at 384 dimensions. What is looked up for padding is masked out
        of attention and pooling, and gets no gradient. `advance` is told the number of texts of each piece.
        """
        if not len(ids):
            return self.pool([[self.tokenizer.cls_token_id or 0]])[:0]  # of the graph: a rank without rows takes part
        self.choose_attention()
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        pieces = list(by_length(lengths, token_budget or piece_tokens(self.device)))
        order = np.concatenate(pieces)
        flat = torch.tensor(list(chain.from_iterable(ids[i] for i in order)), device=self.device)
        look_up = self.backbone.get_input_embeddings()
        learns = torch.is_grad_enabled()
        parts = (look_up(flat) if learns else flat).split([int(lengths[piece].sum()) for piece in pieces])
        means = []
        for part, piece in zip(parts, pieces, strict=True):
            sizes, steps = lengths[piece], np.arange(lengths[piece[0]])
            shown = steps < sizes[:, None]
            places = np.where(shown, (np.cumsum(sizes) - sizes)[:, None] + steps, 0)  # in the flat part
            mask = torch.from_numpy(shown.astype(np.int64)).to(self.device)
            vectors = (part if learns else look_up(part))[torch.from_numpy(places).to(self.device)]
            # sorted by length: where the last is as long as the first nothing is padded, and attention needs no mask
            hidden = self.backbone(inputs_embeds=vectors, attention_mask=None if shown[-1].all() else mask)
            means.append(average_pool(hidden.last_hidden_state, mask))
            advance(len(piece))
        return torch.cat(means)[torch.from_numpy(np.argsort(order)).to(self.device)]

    def choose_attention(self) -> None:
        """Plain attention where a CPU trains: in bf16 a step takes 0.6 of what torch's fused kernel takes (measured).

        `encode`, which takes no gradient, uses that kernel everywhere: 0.85 of the time (measured).
        """
        wanted = "eager" if self.device.type == "cpu" and not torch.is_inference_mode_enabled() else "sdpa"
        if self.backbone.config._attn_implementation != wanted:
            self.backbone.set_attn_implementation(wanted)

    def encode(self, texts: Sequence[str], prefix: str = QUERY, *, normalise: bool = True,
               max_tokens: int | None = None, precision: str = "fp32", progress: bool = False) -> np.ndarray:
        """Vectors of `prefix + text`, fp32 [n, width], in the order of `texts`; no gradient, no dropout.

        `precision`: "fp32"; "bf16" or "fp16" (vectors then agree to about 1e-3); "int8", of a BERT on a CPU (about
        5e-4 of a cosine). Raises ValueError as `text.clean` does, and for a precision that is not to be had.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        weights = self._weights(precision)
        if weights is None and precision == "int8":
            raise ValueError("precision 'int8' is for a BERT, as mE5 is, on a CPU with fbgemm: choose bf16")
        with nullcontext() if weights else self._inference(precision):
            compute = self.pool if weights is None else partial(pooled, weights)
            return encode_with(compute, lambda part: self.tokenize(part, prefix, max_tokens), texts, self.width,
                               normalise, progress)

    def _weights(self, precision: str) -> fast.Weights | None:
        """The weights as `fast` reads them, packed anew where one of them has changed; None where it cannot."""
        parts = dict(self.backbone.named_parameters())
        if self.device.type != "cpu" or fast.PLACES not in parts or (precision == "int8" and not fast.int8_here()):
            return None
        # a fused optimiser leaves no trace in the version of what it changes, but it changes every number
        state = precision, [(each.data_ptr(), each._version, each.flatten()[0].item()) for each in parts.values()]
        if state != self._packed[0]:
            config, weights = self.backbone.config.to_dict(), None
            if fast.packable(config) and self.backbone.dtype == torch.float32:
                sample = self.tokenize(fast.calibration()) if precision == "int8" else ()
                with torch.inference_mode():
                    weights = fast.pack(parts.__getitem__, config, precision, sample)
            self._packed = state, weights
        return self._packed[1]

    @contextlib.contextmanager
    def _inference(self, precision: str) -> Iterator[None]:
        """Evaluation mode, no gradient, autocast as asked; mode and hook are put back afterwards.

        On a CPU, what goes from layer to layer is in half precision too: autocast alone leaves it in fp32 and casts it
        before every product, 1.24 of the time (measured).
        """
        half, was_training, handle = HALVES.get(precision), self.training, None
        embeddings = getattr(self.backbone, "embeddings", None)  # not of every backbone: T5 has none of that name
        if half is not None and self.device.type == "cpu" and embeddings is not None:
            handle = embeddings.register_forward_hook(lambda module, inputs, output: output.to(half))
        self.eval()
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=half is not None):
                yield
        finally:
            self.train(was_training)
            if handle is not None:
                handle.remove()


class FastEncoder:
    """An encoder that only reads, on a CPU: `Encoder.encode` without transformers, a gradient, or weights in fp32.

    Its vectors, of one precision, are those of `Encoder.encode`; its table stays where and as it lies on the disk.
    """

    def __init__(self, weights: fast.Weights, cut: Callable[[list[str]], list[list[int]]], max_tokens: int) -> None:
        self.weights, self.cut, self.max_tokens = weights, cut, max_tokens
        self.width = weights.positions.shape[1]

    @classmethod
    def load(cls, model: str | Path, precision: str = "") -> FastEncoder:
        """Of a folder, a hub id or `me5-small-q4`, in one of `PRECISIONS` ("": as `device.precision` says of the CPU).

        Raises `Me5Error` as `save_load.read_model` does, and for a model that is no BERT.
        """
        precision, parts = precision or native(torch.device("cpu")).name, save_load.read_parts(model)
        if parts is None or precision not in PRECISIONS or (precision == "int8" and not fast.int8_here()):
            raise Me5Error(f"{model} cannot be read so, in {precision}: use Encoder.load")
        cut = text.cutter(parts.tokenizer)
        rows = parts.config["vocab_size"]
        if rows in text.VOCABULARIES:
            text.check_golden(cut, f"the tokenizer of {model}")
        sample = shortened(cut(fast.calibration()), parts.max_tokens) if precision == "int8" else ()
        with torch.inference_mode():
            weights = fast.pack(parts.part, parts.config, precision, sample, parts.look_up)
        give_back()
        return cls(weights, cut, parts.max_tokens)

    def tokenize(self, texts: Sequence[str], prefix: str = "", max_tokens: int | None = None) -> list[list[int]]:
        """As `Encoder.tokenize`."""
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        return shortened(self.cut([prefix + each for each in clean(texts)]), limit)

    def encode(self, texts: Sequence[str], prefix: str = QUERY, *, normalise: bool = True,
               max_tokens: int | None = None, progress: bool = False) -> np.ndarray:
        """As `Encoder.encode`, in the precision that it was loaded in."""
        return encode_with(partial(pooled, self.weights), partial(self.tokenize, prefix=prefix, max_tokens=max_tokens),
                           texts, self.width, normalise, progress)


def encode_with(compute: Callable[..., Tensor], tokenize: Callable[[list[str]], list[list[int]]], texts: Sequence[str],
                width: int, normalise: bool, progress: bool) -> np.ndarray:  # fmt: skip
    """fp32 [n, width]: what `compute` makes of the ids of `texts`, `WINDOW` of them at a time, under a bar."""
    if isinstance(texts, str):
        raise ValueError("texts is one string: pass a list of texts")
    texts = clean(texts)
    vectors = np.empty((len(texts), width), dtype=np.float32)
    with torch.inference_mode(), tqdm(total=len(texts), disable=not progress, unit=" texts", desc="encode") as bar:
        for start in range(0, len(texts), WINDOW):
            means = compute(tokenize(texts[start : start + WINDOW]), advance=bar.update)
            means = nn.functional.normalize(means, dim=-1) if normalise else means
            vectors[start : start + WINDOW] = means.cpu().numpy()
    return vectors


def pooled(weights: fast.Weights, ids: Sequence[Sequence[int]], advance: Callable[[int], object]) -> Tensor:
    """`fast.pool` of all rows of ids, in pieces of `CPU_PIECE`."""
    return fast.pool(weights, ids, by_length([len(row) for row in ids], CPU_PIECE), advance)


def shortened(rows: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Rows of ids of at most `limit`: the last one, `</s>`, stays."""
    return [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]


def average_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token vectors where `mask` is 1: fp32 [n, width] of hidden [n, tokens, width] and mask [n, tokens].

    Prefix and special tokens count, padding does not (the authors' `average_pool`). Sums in at least fp32.
    """
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def piece_tokens(device: torch.device) -> int:
    """Padded tokens that go through a model together on `device`, where no gradient is taken."""
    return CPU_PIECE if device.type == "cpu" else GPU_PIECE


def by_length(lengths: Sequence[int], token_budget: int) -> Iterator[np.ndarray]:
    """Cut [0, n) into pieces of similar length: index arrays, longest first, each at most `token_budget` when padded;
    a longer row is a piece of its own. Rows of one length keep their order."""
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, int(sizes[order[start]])))
        yield order[start : start + rows]
        start += rows
