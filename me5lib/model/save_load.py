"""A checkpoint on disk: what `transformers` and `sentence-transformers` (6.x) need, and how it is read back.

Safetensors and JSON only, no pickle. Written beside and renamed into place, so a folder is whole or absent. The
prefixes (of an instruct model: its instruction) are saved as prompts, which sentence-transformers adds by itself.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from me5lib import io
from me5lib.io import Me5Error
from me5lib.model import fast, released, text
from me5lib.model.resolve import (
    SMALL_FILES,
    ModelFiles,
    ModelRef,
    first_line,
    model_folder,
    read_model_json,
    readable_files,
    resolve,
    snapshot,
)
from me5lib.model.text import PASSAGE, QUERY

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NO_LIMIT = 1 << 30  # tokens
TOKENIZER_FILES = ("config.json", "*token*.json", "vocab.json", "*.txt", "*.model")  # all that decide on one
PROMPTS = {"query": QUERY, "passage": PASSAGE, "document": PASSAGE}
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"  # of the authors' card


def instruct_prompts(task: str = INSTRUCTION) -> dict[str, str]:
    """Prompts of an instruct model: the instruction before a query, nothing before a document (the authors' card)."""
    return {"query": text.instruct(task, ""), "passage": "", "document": ""}


def write_model(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_tokens: int, folder: Path,
                prompts: Mapping[str, str] = PROMPTS, also: Callable[[Path], None] | None = None) -> None:
    """Write a model to `folder`, replacing what was there in one step. Raises `Me5Error` when the disk refuses.

    `also(beside)` adds to the folder, or checks it, before it takes its place; when it raises, nothing is changed.
    """
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    config = backbone.config
    if "embeddings.word_embeddings.weight" in state and "pooler.dense.weight" not in state:
        # the layer over the first token, of which a load says that it is missing; average pooling never asks for it
        state |= {"pooler.dense.weight": torch.eye(config.hidden_size),
                  "pooler.dense.bias": torch.zeros(config.hidden_size)}
    config.architectures, config.dtype = [type(backbone).__name__], str(backbone.dtype).split(".")[1]
    longest, tokenizer.model_max_length = tokenizer.model_max_length, max_tokens
    for circumstance in ("is_local", "local_files_only"):  # of an earlier load: no property of the tokenizer
        tokenizer.init_kwargs.pop(circumstance, None)
    try:
        beside.mkdir(parents=True)
        safetensors.torch.save_file(state, beside / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(beside))
        tokenizer.save_pretrained(str(beside))
        for name, content in sentence_transformers_files(config.hidden_size, prompts).items():
            (beside / name).parent.mkdir(exist_ok=True)
            (beside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
        if also is not None:
            also(beside)
        io.replace(beside, folder)
    except (OSError, SafetensorError) as error:
        raise Me5Error(f"cannot write {folder} ({first_line(error)}): free some space or choose --out") from None
    finally:
        tokenizer.model_max_length = longest  # of the models that share it
        shutil.rmtree(beside, ignore_errors=True)


def sentence_transformers_files(width: int, prompts: Mapping[str, str]) -> dict[str, Any]:
    """The JSON files that make a transformers folder a sentence-transformers model: file name → content.

    Kept as a file: its `save_pretrained` would load the weights a second time, and import for seconds.
    """
    files = io.read_json(io.PACKAGE / "model" / "sentence_transformers.json")
    files["1_Pooling/config.json"]["embedding_dimension"] = width
    files["config_sentence_transformers.json"]["prompts"] = dict(prompts)
    return files


def read_model(model: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, int]:
    """Backbone (fp32, without its pooler), tokenizer and longest text in tokens, of any model that `resolve` knows.

    Raises `Me5Error`, one line, for what cannot be had or read, and for what would give other vectors than its makers
    mean: see `resolve.readable_files`; a tokenizer that is not XLM-R's where the table has its rows.
    """
    from transformers import AutoTokenizer

    ref = resolve(model)
    if ref.kind == "released":
        return released.load_released()
    files = _files(ref)
    folder, loader = files.backbone, _loader(files.config, ref.name)
    with quiet_transformers():
        try:
            backbone, report = loader.from_pretrained(
                str(folder), dtype="float32", output_loading_info=True,
                use_safetensors=any(folder.glob("*.safetensors")) or None,
            )  # fmt: skip
            parts = sorted(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
            tokenizer = text.shared_tokenizer(parts, lambda: AutoTokenizer.from_pretrained(str(folder)))
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise Me5Error(f"{ref.name} cannot be read ({first_line(error)}): make it again, or fetch it again"
                           ) from None  # fmt: skip
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise Me5Error(f"the checkpoint {ref.name} lacks weights ({missing[0]} …): make it again")
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # the layer over the first token, which average pooling never asks for
    if tokenizer.pad_token_id is None:
        raise Me5Error(f"the tokenizer of {ref.name} has no padding token: mE5 needs XLM-R's")
    rows = backbone.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise Me5Error(f"the tokenizer of {ref.name} has {len(tokenizer)} tokens and its table {rows} rows: the table "
                       "was not resized; take the tokenizer that its weights were saved with")
    if rows in text.VOCABULARIES:
        text.check_golden(lambda texts: tokenizer(texts)["input_ids"], f"the tokenizer of {ref.name}")
    limit = files.settings.get("max_seq_length") or NO_LIMIT
    return backbone, tokenizer, min(positions(backbone), tokenizer.model_max_length, limit)


def read_parts(model: str | Path) -> fast.Parts | None:
    """The same for `fast.pack`, without transformers; None for what only `read_model` reads. Raises as that does."""
    ref = resolve(model)
    if ref.kind == "released":
        return released.packed_parts()
    files = _files(ref)
    weights, cut = files.backbone / "model.safetensors", files.backbone / "tokenizer.json"
    if not (fast.packable(files.config) and weights.is_file() and cut.is_file()):
        return None
    try:
        opened = safetensors.safe_open(weights, "pt")
        if released.WORDS not in opened.keys():  # noqa: SIM118  # of a model with a head: its names have a prefix
            return None
    except (OSError, SafetensorError) as error:
        raise Me5Error(f"{weights} cannot be read ({first_line(error)}): make it again, or fetch it again") from None
    places = files.config["max_position_embeddings"] - fast.first_position(files.config)
    limits = (places, files.settings.get("max_seq_length") or NO_LIMIT,
              read_model_json(files.backbone / "tokenizer_config.json", {}).get("model_max_length") or NO_LIMIT)
    return fast.Parts(opened.get_tensor, files.config, cut, int(min(limits)))


def _files(ref: ModelRef) -> ModelFiles:
    """The files of a folder's or the hub's model, its weights fetched. Raises as `readable_files` does."""
    folder = model_folder(ref)
    files = readable_files(ref, folder)
    if ref.kind == "hub":
        snapshot(ref.name, folder.name, (*SMALL_FILES, "*.safetensors"))
        if not any(files.backbone.glob("*.safetensors")):  # some models of the hub, MiniLM among them, have none
            snapshot(ref.name, folder.name, ("*pytorch_model*",))
    return files


def _loader(config: dict[str, Any], name: str) -> type:
    """The class of transformers that loads the encoder of a model. Raises `Me5Error` for what has none."""
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto import modeling_auto as known

    kind = config.get("model_type")
    if kind in known.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return AutoModelForTextEncoding
    causal = kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal or config.get("is_encoder_decoder") or "decoder_layers" in config:
        raise Me5Error(f"{name} is a {kind}, which is a decoder or has one: mE5 needs an encoder alone")
    return AutoModel


def positions(model: PreTrainedModel) -> int:
    """Positions that a text may fill: XLM-R counts them from its padding id + 1 (514 → 512), BERT from 0."""
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    padding = getattr(next(tables, None), "padding_idx", None)
    most = getattr(model.config, "max_position_embeddings", NO_LIMIT)
    return most - (0 if padding is None else padding + 1)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading without transformers' reports and bars: what matters of them is checked and raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
