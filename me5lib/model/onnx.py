"""The encoder as ONNX: backbone, average pooling and L2 norm in one graph, for onnxruntime and what builds on it.

    path = write_graph(encoder, folder)                        # folder/onnx/model.onnx; opset 18, any batch, any length
    vectors = run_graph(session(path), batch)["sentence_embedding"]

Inputs are `input_ids` and `attention_mask`, int64 [n, tokens], padded on either side; outputs `token_embeddings`, fp32
[n, tokens, width], and `sentence_embedding`, fp32 [n, width] of unit length. Positions are counted in the graph from
the mask alone, as the encoder counts them, so a text that spells `<pad>` is read alike. Made by torch.onnx's own
exporter (`dynamo=True`, which needs onnxscript); optimum is not used, as it pulls transformers back to 4.

Cost: under a minute of one core for 12 layers × 384. Beyond 2 GB, protobuf's limit (large: 2.2 GB), the weights go
to `model.onnx.data` beside the graph.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from me5lib.io import Me5Error
from me5lib.model.encoder import average_pool
from me5lib.model.resolve import first_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import PreTrainedModel

    from me5lib.model.encoder import Encoder

NAME = "onnx/model.onnx"  # where sentence-transformers and transformers.js look for it
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUTS, OUTPUTS = ("input_ids", "attention_mask"), ("token_embeddings", "sentence_embedding")
OPSET = 18  # what torch's exporter writes without converting (ours)
INLINE = 1_800_000_000  # bytes of weights that still fit one protobuf file of 2 GB beside the graph (ours)


class Graph(nn.Module):
    """What is exported: ids and mask in; token vectors, and their unit mean, out."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        config = backbone.config
        self.offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0  # XLM-R's first position

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
    path = folder / NAME
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


def session(path: Path) -> InferenceSession:
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    ready()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: InferenceSession, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Both outputs by name, of a tokenizer's batch of numpy arrays; what else it holds is left out."""
    inputs = {name: np.asarray(batch[name], dtype=np.int64) for name in INPUTS}
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True))
