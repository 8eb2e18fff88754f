"""A model's folder for others: written, its ONNX graph beside it, read back by the libraries it is for, given a card.

`sentence_transformers`, `transformers` and `onnxruntime` each load the folder as their users do and encode
`check_texts` as queries and as documents; their vectors are held against the encoder's.

The graph (any batch, any length, padded on either side) is made by torch.onnx's own exporter (`dynamo=True`, which
needs onnxscript); optimum pulls transformers back to 4. Cost: under a minute of one core for 12 layers × 384. Beyond
2 GB, protobuf's limit (large: 2.2 GB), the weights go to `model.onnx.data` beside the graph.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from babel import Locale
from torch import Tensor, nn

from me5lib.io import Me5Error
from me5lib.model.card import About, render
from me5lib.model.encoder import Encoder, average_pool
from me5lib.model.fast import LOCALES, first_position
from me5lib.model.resolve import first_line
from me5lib.model.save_load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ONNX = "onnx/model.onnx"  # where sentence-transformers and transformers.js look for it
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUTS, OUTPUTS = ("input_ids", "attention_mask"), ("token_embeddings", "sentence_embedding")
OPSET = 18  # what torch's exporter writes without converting (ours)
INLINE = 1_800_000_000  # bytes of weights that still fit one protobuf file of 2 GB beside the graph (ours)
TOLERANCE = 1e-4  # of a coordinate of a unit vector; sums in another order come to some 1e-7
SIZES = (1, 5, 3, 16)  # rows of the batches, in turn: a graph that is dynamic takes any
SIDES = ("query", "document")


def export_model(encoder: Encoder, folder: Path, about: About) -> str:
    """Write `encoder` with its card, and with its graph where the card has one; what was checked, in words.

    Raises `Me5Error` where a library gives other vectors than the encoder, or the disk refuses: nothing is changed
    then.
    """
    worst = {}

    def _complete(beside: Path) -> None:
        if about.onnx:
            write_graph(encoder, beside)
        for reader in (sentence_transformers, transformers, *((onnxruntime,) if about.onnx else ())):
            worst[reader.__name__] = difference(reader, beside, encoder, about.prompts)
        (beside / "README.md").write_text(render(about), encoding="utf8")

    encoder.save(folder, about.prompts, _complete)
    return (f"{len(check_texts(encoder.max_tokens))} texts in {len(LOCALES)} languages, largest difference of a "
            "coordinate: " + ", ".join(f"{reader.replace('_', '-')} {value:.0e}" for reader, value in worst.items()))


def check_texts(tokens: int) -> list[str]:
    """Texts of many scripts, short and long in turn, with empty ones and ones of more than `tokens` tokens."""
    texts = ["", "   ", "a", "\n\t", "🎉🎉 \u200b ﬁ №５", "word " * (2 * tokens)]
    for code in LOCALES:
        names = list(Locale.parse(code).territories.values())
        texts += [names[0], ", ".join(names[: len(texts) % 40 + 2])]
    return [*texts, "永和九年" * tokens]


def difference(reader: Callable, folder: Path, encoder: Encoder, prompts: Mapping[str, str]) -> float:
    """The largest difference of a coordinate between a reader's unit vectors of `check_texts` and the encoder's.

    Raises `Me5Error` where it is over `TOLERANCE`.
    """
    texts = check_texts(encoder.max_tokens)
    ours = np.concatenate([encoder.encode(texts, prompts[side]) for side in SIDES])
    theirs, name = reader(folder, texts, prompts), reader.__name__
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        raise Me5Error(f"{name} gives vectors {list(theirs.shape)} with numbers missing, not {list(ours.shape)}: "
                       "the export is refused")
    worst = abs(theirs - ours).max(axis=1)
    if worst.max() > TOLERANCE:
        raise Me5Error(f"{name} gives other vectors than me5 for {int((worst > TOLERANCE).sum())} of {len(worst)} "
                       f"texts (by {worst.max():.1e}, at most {TOLERANCE:g}): the export is refused")
    return float(worst.max())


def sentence_transformers(folder: Path, texts: list[str], prompts: Mapping[str, str]) -> np.ndarray:
    """Vectors of `texts` as queries, then as documents, by `SentenceTransformer(folder)` and the prompts in it."""
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        model = SentenceTransformer(str(folder), device="cpu")
    return np.concatenate([encode(texts, show_progress_bar=False)
                           for encode in (model.encode_query, model.encode_document)])


def transformers(folder: Path, texts: list[str], prompts: Mapping[str, str]) -> np.ndarray:
    """The same by `AutoTokenizer` and `AutoModel`, with the pooling of the authors' model card."""
    from transformers import AutoModel

    with quiet_transformers():
        model = AutoModel.from_pretrained(str(folder), dtype="float32").eval()

    def _vectors(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs = {name: torch.from_numpy(np.asarray(batch[name])) for name in INPUTS}
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        return nn.functional.normalize(average_pool(hidden, inputs["attention_mask"]), dim=1).numpy()

    return _by_batches(folder, texts, prompts, _vectors)


def onnxruntime(folder: Path, texts: list[str], prompts: Mapping[str, str]) -> np.ndarray:
    """The same by `onnx/model.onnx` in onnxruntime, with the folder's tokenizer."""
    return _by_batches(folder, texts, prompts, graph_reader(folder / ONNX, "sentence_embedding"))


def _by_batches(folder: Path, texts: list[str], prompts: Mapping[str, str], vectors: Callable) -> np.ndarray:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows, sizes, parts = [prompts[side] + text for side in SIDES for text in texts], cycle(SIZES), []
    while rows:
        part, rows = rows[: (size := next(sizes))], rows[size:]
        parts.append(vectors(tokenizer(part, padding=True, truncation=True, return_tensors="np")))
    return np.concatenate(parts)


class Graph(nn.Module):
    """What is exported: ids and mask in; token vectors, and their unit mean, out."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.offset = first_position(backbone.config.to_dict())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """fp32 [n, tokens, width] and [n, width] of int64 [n, tokens] ids and their 0/1 mask."""
        places = (attention_mask.cumsum(1) - 1).clamp(min=0) + self.offset
        blocked = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        hidden = self.backbone(
            input_ids=input_ids, attention_mask=blocked, position_ids=places, token_type_ids=torch.zeros_like(input_ids)
        ).last_hidden_state
        return hidden, nn.functional.normalize(average_pool(hidden, attention_mask), dim=-1)


def ready() -> None:
    """Raise `Me5Error` where a package of the extra `export` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Me5Error(f"ONNX needs {', '.join(missing)}: pip install 'me5[export]'")


def write_graph(encoder: Encoder, folder: Path) -> Path:
    """Write `folder/onnx/model.onnx` and return its path. Raises `Me5Error` when torch cannot export the backbone."""
    ready()
    path = folder / ONNX
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = Graph(encoder.backbone).eval()
    ids = torch.full((2, 7), encoder.tokenizer.unk_token_id or 0, device=encoder.device)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    size = sum(weight.numel() * weight.element_size() for weight in graph.parameters())
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=encoder.max_tokens)}
    config, disabled = encoder.backbone.config, logging.root.manager.disable
    attention = config._attn_implementation
    encoder.backbone.set_attn_implementation("eager")  # plain products and a softmax, in every opset
    logging.disable(logging.WARNING)  # the exporter's progress, and warnings about its own insides
    try:
        with warnings.catch_warnings(action="ignore"), torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(
                graph, (ids, mask), str(path), input_names=list(INPUTS), output_names=list(OUTPUTS), dynamo=True,
                dynamic_shapes=(axes, axes), opset_version=OPSET, external_data=size > INLINE, verbose=False,
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise Me5Error(f"torch cannot export this {config.model_type} backbone to ONNX ({first_line(error)})") from None
    finally:
        logging.disable(disabled)
        encoder.backbone.set_attn_implementation(attention)
    return path


def graph_reader(path: Path, output: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """What gives one of `OUTPUTS` for a tokenizer's batch of numpy arrays, on the CPU with as many threads as torch."""
    ready()
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run([output], {name: np.asarray(batch[name], dtype=np.int64) for name in INPUTS})[0]
