"""What a run will cost, before it is begun: memory, disk, hours, by the kind of GPU. Arithmetic alone: nothing is read.

    print("\\n".join(estimate(config.load("base")).lines()))

Known: steps, batch, weights, what AdamW and a checkpoint hold. Estimated: what autograd keeps of a token (counted with
`gradcache.GraphMeter`, see the tests). Assumed, and said so in the output: tokens of a pair, and the share of a GPU's
peak that a run reaches. What the paper states of its hardware stands beside it: next to nothing.

Cost: a second, most of it imports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from me5lib.config import Model, Scale, Stage
from me5lib.device import PEAK
from me5lib.train.checkpoint import KEEP
from me5lib.train.loop import worked_on
from me5lib.train.loss import TILE_LOGITS
from me5lib.train.stages import FIRST_BUDGET

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# GB of memory, from the makers' data sheets (nvidia.com: V100, A100 80GB, L40S, H100 SXM and H200 Tensor Core GPU data
# sheets; NVIDIA Ada GPU architecture white paper for the RTX 4090). Their peak FLOP/s: `device.PEAK`, same sources.
MEMORY = {"RTX 4090": 24, "V100": 32, "L40S": 48, "A100": 80, "H100": 80, "H200": 141}
USE = 0.35  # ours, an assumption: share of the peak that all products together reach; a run logs its own (mfu)
FILL = 0.5  # ours, an assumption: texts have so much of the most tokens that they are cut to, in the mean
ROOM = 0.9  # ours: share of a GPU's memory to be planned with; the rest is CUDA's own, and lost between pieces
CHECKPOINTS = (KEEP + 1) * 3 * 4  # bytes on disk for each weight: those kept and the one being written; two moments
PAPER = "the paper: says nothing of hardware or hours; English E5, which it follows, trained on {} GPUs of unknown kind"
PAPER_GPUS = {"small": 16, "base": 32, "large": 64, "large-instruct": 64}  # of E5's stage 1 (microsoft/unilm #1448)
PAPER_GPUS_2 = 8  # of E5's stage 2: recollection of its Table 11, unverified


class Size(NamedTuple):
    """Weights of an encoder: all, those every token is multiplied by, and those of the vocabulary's table."""

    all: int
    worked_on: int
    table: int


class Fleet(NamedTuple):
    """Some GPUs of one kind at work."""

    held: dict[str, int] | None  # bytes on each, by what they are; None where it does not fit
    piece: int  # padded tokens of the largest piece that fits
    hours: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a stage will take. `tokens` are those of a pair, or of a labelled example with its negatives."""

    scale: str
    name: str  # "stage1", "stage2" or "instruct", which has no teacher
    shape: Model
    stage: Stage
    size: Size
    tokens: float
    use: float

    @property
    def texts(self) -> int:
        """Texts of a pair, or of a labelled example."""
        return 2 + self.stage.hard_negatives * (self.name != "stage1")

    def operations(self, cached: bool) -> float:
        """FLOP of the stage: 2 for each weight and token forwards, 4 backwards, and again 2 for every replay.

        Attention's own products are in. Stage 2 reads each text at most twice more: to mine, and for the teacher.
        """
        longest = self.tokens / self.texts
        forward = 2 * self.size.worked_on + 4 * self.shape.layers * self.shape.width * longest
        replays = cached + bool(self.stage.gradient_checkpointing) + {"stage1": 0, "instruct": 1}.get(self.name, 2)
        return self.stage.steps * self.stage.batch * self.tokens * forward * (3 + replays)

    def fleet(self, gpu: str, count: int) -> Fleet:
        """What `count` GPUs of a kind will do, sharing each batch, with the largest piece that `stages` would find."""
        weights = 4 * self.size.all
        vectors = self.stage.batch * self.texts * self.shape.width * 4 * 3  # theirs, their gradient, a copy
        held = {
            "weights": weights, "optimiser": 2 * weights, "loss": vectors + 3 * 4 * TILE_LOGITS,
            "gradients": weights * (2 if count > 1 else 1) + 4 * self.size.table,  # DDP's buckets; one in the making
        }  # fmt: skip
        recomputed = bool(self.stage.gradient_checkpointing)
        room, piece = MEMORY[gpu] * 1e9 * ROOM - sum(held.values()), FIRST_BUDGET
        while piece >= 1_024 and (graph := graph_bytes(self.shape, self.size, piece, recomputed)) > room:
            piece //= 2
        cached = self.stage.batch / count * self.tokens > piece  # in several pieces, so by GradCache
        hours = self.operations(cached) / (PEAK[gpu] * self.use * count) / 3600
        return Fleet(held | {"activations": graph} if piece >= 1_024 else None, piece, hours)

    def lines(self) -> list[str]:
        """The estimate in words, saying what is known, what is estimated and what is assumed."""
        first, what = self.name == "stage1", "pairs" if self.name == "stage1" else "labelled examples"
        one = "a pair" if self.texts == 2 else f"an example of {self.texts} texts"
        gpus = (PAPER_GPUS[self.scale] if first else PAPER_GPUS_2) if self.scale in PAPER_GPUS else None
        source = "microsoft/unilm #1448" if first else "from memory, unverified"
        return [
            f"{self.name} at scale {self.scale}: {self.stage.steps:,} steps of {self.stage.batch:,} {what}, "
            f"{self.shape.backbone}; nothing is trained, this is what it will take",
            "on every GPU (data parallel: each holds everything)", *self._memory(), *self._hours(gpus or 1),
            f"assumed (ours): {self.tokens:g} tokens of {one} (--tokens), {self.use:.0%} of the data sheet's 16-bit "
            "peak (--use; a run logs its own as mfu)",
            "not reckoned: reading data, evaluation, checkpoints, the network between GPUs",
            *{"stage2": ["in it: mining and the teacher's scores, each text at most twice more (estimated)"],
              "instruct": ["in it: mining, each text at most once more (estimated)"]}.get(self.name, []),
            f"{PAPER.format(gpus)} ({source})" if gpus else "the paper has no such scale",
        ]

    def _memory(self) -> Iterator[str]:
        fleet, finished = self.fleet("A100", 8), 4 * self.size.all
        why = {
            "weights": f"{self.size.all / 1e6:.1f} M in fp32, {self.size.table / 1e6:.1f} M of them the vocabulary's",
            "gradients": "fp32; with DDP's buckets, and one of the vocabulary in the making",
            "optimiser": "AdamW's two moments, fp32",
            "loss": "vectors of the whole batch and a tile of logits",
            "activations": f"of one piece of {fleet.piece:,} padded tokens on an A100 (estimated); a batch of more "
                           "goes through in pieces (GradCache)",
            "checkpoints": f"on disk at most: {KEEP} kept, one being written; and {finished / 1e9:.2f} GB for the "
                           "finished model",
        }  # fmt: skip
        held = (fleet.held or {"weights": finished}) | {"checkpoints": CHECKPOINTS * self.size.all}
        yield from (f"  {name:12}{held[name] / 1e9:>8.2f} GB  {text}" for name, text in why.items() if name in held)

    def _hours(self, gpus: int) -> Iterator[str]:
        counts = sorted({1, 8, gpus})
        yield f"hours (a batch on so many GPUs; {self.operations(True):.2g} FLOP with GradCache's second forward)"
        heads = "".join(f"{f'{n} GPU' + 's' * (n > 1):>10}" for n in counts)
        yield f"  {'':10}{'GB':>5}{'TFLOP/s':>9}{'piece':>11}{heads}{'GPUs for a day':>16}"
        for gpu, memory in MEMORY.items():
            fleets = [self.fleet(gpu, n) for n in counts]
            line = f"  {gpu:10}{memory:>5}{PEAK[gpu] / 1e12:>9.0f}"
            if fleets[0].held is None:
                yield f"{line}{'too small':>11}"
                continue
            hours = [f"{fleet.hours:,.0f}" if fleet.hours >= 10 else f"{fleet.hours:.2g}" for fleet in fleets]
            day = max(1, -(-fleets[0].hours // 24))
            yield f"{line}{fleets[0].piece:>11,}{''.join(f'{each:>10}' for each in hours)}{day:>16,.0f}"


def estimate(scale: Scale, name: str = "stage1", tokens: float | None = None, use: float = USE) -> Estimate:
    """What stage `name` of a scale will take; `tokens` of a pair (of an example), `use` the share of a GPU's peak."""
    stage = scale.train if name == "stage1" else scale.finetune
    negatives = stage.hard_negatives if name != "stage1" else 0
    tokens = tokens or FILL * (stage.query_tokens + (1 + negatives) * stage.passage_tokens)
    return Estimate(scale.name, name, scale.model, stage, size(scale.model), tokens, use)


def size(shape: Model) -> Size:
    """Weights of the encoder of a shape, counted on a model without storage."""
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(configuration(shape), add_pooling_layer=False)
    table = model.get_input_embeddings().weight.numel()
    return Size(sum(p.numel() for p in model.parameters()), worked_on(model), table)


def configuration(shape: Model) -> PretrainedConfig:
    """The configuration of the backbone: XLM-R's by its name, else BERT's classes, as MiniLM's and the random one's.

    Multilingual MiniLM has XLM-R's vocabulary under BERT's padding id, 0, which is `<s>`.
    """
    from transformers import BertConfig, XLMRobertaConfig

    same = {"vocab_size": shape.vocabulary, "hidden_size": shape.width, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "intermediate_size": shape.feedforward}
    if "xlm-roberta" in shape.backbone:
        return XLMRobertaConfig(**same, max_position_embeddings=shape.max_tokens + 2, type_vocab_size=1,
                                layer_norm_eps=1e-5, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    segments = 1 if shape.backbone == "random" else 2
    return BertConfig(**same, max_position_embeddings=shape.max_tokens, type_vocab_size=segments, pad_token_id=0)


def graph_bytes(shape: Model, size: Size, tokens: int, recomputed: bool = False) -> int:
    """About what autograd keeps of `tokens` tokens under 16-bit autocast with attention that keeps no table.

    A layer: 28 bytes for each of its width and 4 for each of its feed-forward (norms and residuals are fp32), the
    embedding 8; and the 16-bit copies of the weights. `recomputed` (gradient checkpointing): a layer's input, and one
    layer whole.
    """
    layer = 28 * shape.width + 4 * shape.feedforward
    layers = 4 * shape.width * shape.layers + layer if recomputed else layer * shape.layers
    return tokens * (layers + 8 * shape.width) + 2 * size.worked_on
