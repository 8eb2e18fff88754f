"""Models to evaluate, by hub id or folder: the mE5 and E5 models, checkpoints like them, any sentence-transformers one.

    opened = open_model("intfloat/multilingual-e5-small", revision="fd1525a9fd15316a2d503bf26ab031a61d056e98")
    opened.encoder.encode(["How do I pay?"], "query: ")       # fp32 [1, 384]

An E5 is read by `me5lib.model.encoder.Encoder`, any other model (LaBSE, a BGE) by sentence-transformers, as its own
files say, with its own prompts. Which of the two a model is, `is_e5` decides before its weights are read.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from me5lib.device import best_device
from me5lib.io import Me5Error
from me5lib.model import released, text
from me5lib.model.encoder import Encoder
from me5lib.model.resolve import first_line, model_folder, read_model_files, resolve
from me5lib.model.save_load import quiet_transformers
from me5lib.model.text import PASSAGE, QUERY

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_TOKENS = 512  # of the authors' scripts, for every model
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of the computation, and torch's names
FOUR_BITS = "4-bit (Q4_0)"
KNOWN = {  # hub id → layers and width, of the model cards
    **{f"intfloat/{family}-{size}{version}": shape
       for family, version in (("multilingual-e5", ""), ("e5", ""), ("e5", "-v2"))
       for size, shape in {"small": (12, 384), "base": (12, 768), "large": (24, 1024)}.items()},
    "intfloat/multilingual-e5-large-instruct": (24, 1024),
}


class Opened(NamedTuple):
    """A model that is ready to encode."""

    name: str  # the hub id, or me5/<name of the folder, or of the released model>
    revision: str  # the hub's commit, or the fingerprint of the folder's files
    encoder: Any  # `encode(texts, prefix, *, normalise)`, see `protocol.Protocol`
    instruct: bool  # whether it reads instructions in place of prefixes
    weights: str = "full"  # or FOUR_BITS: how they were kept before they were loaded
    published: str = ""  # the hub id whose published figures its own are compared with
    dtype: str = "fp32"  # of the computation


class E5:
    """An `Encoder` that computes in one precision; the caller's options win."""

    def __init__(self, encoder: Encoder, dtype: str = "fp32") -> None:
        self.encoder, self.dtype = encoder, dtype

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True, **options: Any) -> np.ndarray:
        """fp32 [n, width]: see `Encoder.encode`."""
        return self.encoder.encode(texts, prefix, normalise=normalise, **{"precision": self.dtype, **options})


class SentenceModel:
    """A sentence-transformers model, encoding as it stands: its own pooling, its own norm or none, its own prompts."""

    def __init__(self, model: SentenceTransformer, own_prompts: Mapping[str, str]) -> None:
        self.model, self.own_prompts = model, dict(own_prompts)

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True, **options: Any) -> np.ndarray:
        """fp32 [n, width]. A `prefix` that is none of its own prompts is an E5's, and left out; so is `normalise`."""
        kept = text.clean(texts)
        prompt = prefix if prefix in self.own_prompts.values() else ""
        return np.asarray(self.model.encode(kept, prompt=prompt, show_progress_bar=False), np.float32)


def open_model(where: str, *, revision: str = "", dtype: str = "fp32", device: str = "") -> Opened:
    """The model that `where` means by `model.resolve`: a released name, a folder, a hub id (short ones too).

    `revision`: commit, branch or tag of the hub (empty: its main branch); `dtype`: of the computation; `device`: empty
    for a GPU if there is one. Raises `Me5Error`, one line, for a folder without a model, an id or a revision that the
    hub does not have, a hub out of reach, weights that cannot be read, and for another dtype or device.
    """
    if dtype not in DTYPES:
        raise Me5Error(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    device, ref = _device(device), resolve(where, revision)
    if ref.kind == "released":
        encoder = _e5(ref.name, dtype, device)
        return Opened(f"me5/{ref.name}", released.WHEEL_SHA256[:16], encoder, False, FOUR_BITS, released.HUB_ID, dtype)
    folder = model_folder(ref)
    name = ref.name if ref.kind == "hub" else "me5/" + re.sub(r"[^\w.+-]+", "-", folder.resolve().name)
    commit = folder.name if ref.kind == "hub" else ""
    if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
        raise Me5Error(f"{name} on the hub holds no model (config.json is missing): check the id")
    # an export of the released model says in its configuration whence it comes; trained on, it is one of its own
    files = read_model_files(folder)
    four_bits = files.config.get("derived_from") == released.NAME
    weights, published = (FOUR_BITS, released.HUB_ID) if four_bits else ("full", name)
    e5, instruct = is_e5(name, folder), False
    print(f"{name} is read as {'an E5' if e5 else 'its own files say, without prefixes'}", file=sys.stderr)
    if e5:
        encoder = _e5(f"{ref.name}@{commit}" if commit else folder, dtype, device)
        instruct = "instruct" in name.lower() if name in KNOWN or not files.prompts else _instructs(files.prompts)
    else:
        encoder = _sentence_model(name, ref.name, commit, dtype, device)
    return Opened(name, commit or fingerprint_of(folder), encoder, instruct, weights, published, dtype)


def _device(wanted: str) -> str:
    try:
        torch.zeros(1, device=wanted or None)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise Me5Error(f"no device {wanted!r} here ({reason}): choose cpu, or leave it out") from None
    return wanted or str(best_device())


def _e5(place: str | Path, dtype: str, device: str) -> E5:
    encoder = Encoder.load(place).to(device).eval()
    encoder.max_tokens = min(MAX_TOKENS, encoder.max_tokens)
    return E5(encoder, dtype)


def _sentence_model(name: str, where: str, commit: str, dtype: str, device: str) -> SentenceModel:
    """With the prompts that mteb has for a model that it lists, else those of the model's own files."""
    from mteb.models.model_implementations import MODEL_REGISTRY
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        try:
            model = SentenceTransformer(where, revision=commit or None, device=device,
                                        model_kwargs={"dtype": DTYPES[dtype]})
        except Exception as error:  # noqa: BLE001  # whatever its modules raise: they may be any code of the package
            raise Me5Error(f"sentence-transformers cannot read {where} ({first_line(error)}): "
                           "choose another model") from None
    listed = MODEL_REGISTRY[name].loader_kwargs.get("model_prompts") if name in MODEL_REGISTRY else None
    return SentenceModel(model, {side: prompt for side, prompt in (listed or model.prompts or {}).items() if prompt})


def is_e5(name: str, folder: Path) -> bool:
    """Whether a model reads `query: ` and `passage: ` (or instructions) and pools by average, from its JSON files.

    A known name does. Else its prompts tell, if it has any. Else, if it pools by average and has no further layer, one
    with `e5` in its name does, and one without the files of sentence-transformers (ours).
    """
    if name in KNOWN:
        return True
    files = read_model_files(folder)
    if not files.averages:
        return False
    if prompts := files.prompts:
        e5 = prompts.get("query") == QUERY and PASSAGE in (prompts.get("passage"), prompts.get("document"))
        return e5 or _instructs(prompts)
    named = re.search(r"(^|[^a-z0-9])m?e5([^a-z0-9]|$)", name.lower().rpartition("/")[2])
    return bool(named) or not (folder / "modules.json").is_file()


def _instructs(prompts: Mapping[str, str]) -> bool:
    return any(prompt.startswith("Instruct: ") for prompt in prompts.values())


def fingerprint_of(folder: Path) -> str:
    """16 hexadecimal digits of the files that decide a model's vectors: configuration, vocabulary, weights."""
    digest = hashlib.blake2b(digest_size=8)
    kinds = ("*config*.json", "modules.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.safetensors",
             "*.bin")  # fmt: skip
    for path in sorted({path for kind in kinds for path in folder.rglob(kind)} - set(folder.rglob("onnx/*"))):
        digest.update(path.relative_to(folder).as_posix().encode("utf8"))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
