"""Models to evaluate, by hub id or folder: the mE5 and E5 models, checkpoints like them, any sentence-transformers one.

    opened = open_model("intfloat/multilingual-e5-small", revision="fd1525a9fd15316a2d503bf26ab031a61d056e98")
    opened.encoder.encode(["How do I pay?"], "query: ")       # fp32 [1, 384]

An E5 is read by `me5lib.model.encoder.Encoder`: average pooling over all non-padding tokens, prefix and special ones
included, 512 tokens. Any other model (LaBSE, a BGE) is read by sentence-transformers, as its own files say, with its
own prompts. Which of the two a model is, `is_e5` decides from its name and its JSON files, before its weights are read.

Cost: the download, once; the fingerprint of a folder reads its weights (2.2 GB of mE5-large: a few seconds).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from me5lib.model import text
from me5lib.model.export import first_line
from me5lib.model.text import PASSAGE, QUERY
from me5lib.places import Me5Error

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from me5lib.evaluate.protocol import TextEncoder
    from me5lib.model.encoder import Encoder

MAX_TOKENS = 512  # of the authors' scripts, for every model
DTYPES = ("fp32", "bf16", "fp16")
INSTRUCT = "Instruct: "
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_OTHER_RUNTIMES = ("onnx/*", "openvino/*")


class Known(NamedTuple):
    """What the model cards say of a model."""

    parameters: int  # all of them, embeddings too
    layers: int
    width: int
    instruct: bool = False


KNOWN = {
    "intfloat/multilingual-e5-small": Known(118_000_000, 12, 384),
    "intfloat/multilingual-e5-base": Known(278_000_000, 12, 768),
    "intfloat/multilingual-e5-large": Known(560_000_000, 24, 1024),
    "intfloat/multilingual-e5-large-instruct": Known(560_000_000, 24, 1024, instruct=True),
    **{f"intfloat/e5-{size}{version}": known for version in ("", "-v2") for size, known in (
        ("small", Known(33_000_000, 12, 384)), ("base", Known(109_000_000, 12, 768)),
        ("large", Known(335_000_000, 24, 1024)))},
}  # fmt: skip


class Opened(NamedTuple):
    """A model that is ready to encode."""

    name: str  # the hub id, or me5/<name of the folder>
    revision: str  # the hub's commit, or the fingerprint of the folder's files
    encoder: TextEncoder
    instruct: bool  # whether it reads instructions in place of prefixes


class E5:
    """An `Encoder` that computes in one precision; the caller's options win."""

    def __init__(self, encoder: Encoder, dtype: str = "fp32") -> None:
        self.encoder, self.dtype = encoder, dtype

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True, **options: Any) -> np.ndarray:
        """fp32 [n, width]: see `Encoder.encode`."""
        return self.encoder.encode(texts, prefix, normalise=normalise, **{"precision": self.dtype, **options})


class SentenceModel:
    """A sentence-transformers model, encoding as it stands: its own pooling, its own norm or none, its own prompts.

    `own_prompts` are what the hub's files, or mteb's list of models, give it: names of sides, tasks or types.
    """

    def __init__(self, model: SentenceTransformer, own_prompts: Mapping[str, str]) -> None:
        self.model, self.own_prompts = model, dict(own_prompts)

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True, **options: Any) -> np.ndarray:
        """fp32 [n, width]. A `prefix` that is none of its own prompts is an E5's, and left out; so is `normalise`."""
        kept, _ = text.clean(texts)
        prompt = prefix if prefix in self.own_prompts.values() else ""
        return np.asarray(self.model.encode(kept, prompt=prompt, show_progress_bar=False), np.float32)


def open_model(where: str, *, revision: str = "", dtype: str = "fp32", device: str = "") -> Opened:
    """The model of a folder, or of a hub id (`intfloat/` and `sentence-transformers/` may be left out).

    `revision`: commit, branch or tag of the hub (empty: its main branch). `dtype` is that of the computation: fp32,
    bf16 or fp16. `device`: empty for a GPU if there is one. Raises `Me5Error`, one line, for a folder without a model,
    an id or a revision that the hub does not have, a hub out of reach, weights that cannot be read, and for another
    dtype or device.
    """
    if dtype not in DTYPES:
        raise Me5Error(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    name, place, target = full_id(where), Path(where).expanduser(), _device(device)
    if place.exists() or place.is_absolute() or where[:1] in (".", "~") or where.count("/") > 1:
        return _of_folder(place.resolve(), revision, dtype, target)
    return _of_hub(name, revision, dtype, target)


def full_id(where: str) -> str:
    """The hub id that a short name stands for: `multilingual-e5-base` → `intfloat/…`, `LaBSE` → `sentence-…/LaBSE`."""
    if not where.strip("/ "):
        raise Me5Error("no model given: name a folder, or the id of a model on the hub")
    if "/" in where:
        return where
    return f"intfloat/{where}" if f"intfloat/{where}" in KNOWN else f"sentence-transformers/{where}"


def is_e5(name: str, folder: Path, on_hub: bool = True) -> bool:
    """Whether a model reads `query: ` and `passage: ` (or instructions) and pools by average, from its JSON files.

    A known name does. Else its prompts tell, if it has any. Else, if it pools by average and has no further layer, a
    folder does (what `me5` is mostly asked to evaluate), and on the hub one with `e5` in its name, or one without the
    files of sentence-transformers (ours).
    """
    if name in KNOWN:
        return True
    prompts = _prompts(folder)
    if prompts:
        e5 = prompts.get("query") == QUERY and PASSAGE in (prompts.get("passage"), prompts.get("document"))
        return (e5 or _instructs(prompts)) and _averages(folder)
    named = re.search(r"(^|[^a-z0-9])m?e5([^a-z0-9]|$)", name.lower().rpartition("/")[2])
    return _averages(folder) and bool(not on_hub or named or not (folder / "modules.json").is_file())


def fingerprint_of(folder: Path) -> str:
    """16 hexadecimal digits of the files that decide a model's vectors: configuration, vocabulary, weights."""
    digest = hashlib.blake2b(digest_size=8)
    kinds = ("config.json", "modules.json", "tokenizer.json", "vocab.txt", "*.model", "*.safetensors", "*.bin")
    for path in sorted({path for kind in kinds for path in folder.rglob(kind)} - set(folder.rglob("onnx/*"))):
        digest.update(path.relative_to(folder).as_posix().encode("utf8"))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _of_folder(folder: Path, revision: str, dtype: str, device: str) -> Opened:
    if not folder.is_dir():
        raise Me5Error(f"no model folder {folder}: check the path, or give the id of a model on the hub")
    if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise Me5Error(f"no model in {folder} (config.json is missing): give the folder of a checkpoint")
    if revision:
        raise Me5Error(f"{folder} is a folder, which has no revisions: leave the revision out")
    name = "me5/" + re.sub(r"[^\w.+-]+", "-", folder.name)
    encoder, instruct = _opened(name, folder, str(folder), "", dtype, device, on_hub=False)
    return Opened(name, fingerprint_of(folder), encoder, instruct)


def _of_hub(name: str, revision: str, dtype: str, device: str) -> Opened:
    folder = snapshot(name, revision, _SMALL_FILES)
    if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise Me5Error(f"{name} on the hub holds no model (config.json is missing): check the id")
    commit = folder.name
    if is_e5(name, folder):
        snapshot(name, commit, (*_SMALL_FILES, "model*.safetensors"))
    encoder, instruct = _opened(name, folder, name, commit, dtype, device)
    return Opened(name, commit, encoder, instruct)


def _opened(name: str, folder: Path, where: str, commit: str, dtype: str, device: str,
            on_hub: bool = True) -> tuple[TextEncoder, bool]:  # fmt: skip
    """The encoder, and whether it reads instructions."""
    if not is_e5(name, folder, on_hub):
        return _sentence_model(name, where, commit, dtype, device), False
    from me5lib.model.encoder import Encoder

    encoder = Encoder.load(folder).to(device).eval()
    encoder.max_tokens = min(MAX_TOKENS, encoder.max_tokens)
    known, prompts = KNOWN.get(name), _prompts(folder)
    instruct = known.instruct if known else _instructs(prompts) or (not prompts and "instruct" in name.lower())
    return E5(encoder, dtype), instruct


def _sentence_model(name: str, where: str, commit: str, dtype: str, device: str) -> SentenceModel:
    from sentence_transformers import SentenceTransformer

    from me5lib.model.export import quiet

    types = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    with quiet():
        try:
            model = SentenceTransformer(where, revision=commit or None, device=device,
                                        model_kwargs={"dtype": types[dtype]})
        except Exception as error:  # noqa: BLE001  # whatever its modules raise: they may be any code of the package
            raise Me5Error(f"sentence-transformers cannot read {where} ({first_line(error)}): "
                           "choose another model") from None
    return SentenceModel(model, _own_prompts(name, model))


def _own_prompts(name: str, model: SentenceTransformer) -> dict[str, str]:
    """mteb's for a model that it lists, else those of the model's own files."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    listed = MODEL_REGISTRY[name].loader_kwargs.get("model_prompts") if name in MODEL_REGISTRY else None
    return {side: prompt for side, prompt in (listed or model.prompts or {}).items() if prompt}


def snapshot(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub model's files that match; its last part is the commit. Raises `Me5Error` as `open_model`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns),
                                      ignore_patterns=list(_OTHER_RUNTIMES)))
    except RevisionNotFoundError:
        raise Me5Error(f"{name} has no revision {revision} on the hub: leave it out, or copy one from its list of "
                       "commits") from None
    except GatedRepoError:
        raise Me5Error(f"{name} is gated: ask for access on its page on the hub and log in with `hf auth "
                       "login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise Me5Error(f"{name} is neither a folder here nor a model on the hub: check the id") from None
    except LocalEntryNotFoundError:
        which = f"{name} at {revision}" if revision else name
        raise Me5Error(f"{which} is not in the cache and the hub is out of reach: fetch it where there is a network, "
                       "or give a folder") from None
    except (OSError, ValueError) as error:
        raise Me5Error(f"{name} cannot be had from the hub ({first_line(error)}): try again later") from None


def _device(wanted: str) -> str:
    import torch

    from me5lib.train.loop import best_device

    if not wanted:
        return str(best_device())
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise Me5Error(f"no device {wanted!r} here ({first_line(error)}): choose cpu, or leave it out") from None
    return wanted


def _prompts(folder: Path) -> dict[str, str]:
    """The prompts of sentence-transformers' configuration that are not empty."""
    found = _json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    return {side: prompt for side, prompt in found.items() if prompt}


def _instructs(prompts: Mapping[str, str]) -> bool:
    return any(prompt.startswith(INSTRUCT) for prompt in prompts.values())


def _averages(folder: Path) -> bool:
    """Whether nothing but average pooling and a norm follows the backbone; without the files that say so: yes."""
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in _json(folder / "modules.json", [])]
    pooling = _json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    modes = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    mean = pooling.get("pooling_mode", "mean" if modes == ["pooling_mode_mean_tokens"] else "") == "mean"
    return mean and set(kinds) <= {"Transformer", "Pooling", "Normalize"}


def _json(path: Path, otherwise: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise Me5Error(f"{path} cannot be read ({first_line(error)}): make the model's folder again") from None
