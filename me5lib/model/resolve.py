"""Which model a name means, where its files are, and what its JSON files say of it before its weights are read.

    resolve("me5-small-q4")                           # released: out of the package index (`model.released`)
    resolve("e5-small"), resolve("minilm-l6")         # folder: unpacked in the cache (likewise)
    resolve("runs/tiny/seed-0/stage2")                # folder: what exists, or looks like a path
    resolve("intfloat/multilingual-e5-small")         # hub: anything else; "multilingual-e5-small" means the same

The one rule for every command. A folder with the name of a released model, or of a hub id, is meant by
`./me5-small-q4`. Other tools' folders come in many forms: what would be read wrongly is refused in one line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from me5lib.config import ENGLISH, RELEASED
from me5lib.io import Me5Error

T = TypeVar("T")
SMALL_FILES = ("*.json", "*.txt", "*.model")  # of a model's repository: all but its weights
PAUSES = (1, 4)  # ours: seconds before a hub that fails (5xx) is asked again
_OF_INTFLOAT = re.compile(r"(multilingual-)?e5-(small|base|large)(-v2|-instruct)?")
_WITHOUT_OWNER = re.compile(r"(bert|xlm-roberta|roberta|distilbert)-.*")  # the hub's oldest ids have none
_E5_MODULES = {"Transformer", "Pooling", "Normalize"}


class ModelRef(NamedTuple):
    """A model by kind, and what it is called there: a released name, a folder's path, a hub id."""

    kind: Literal["released", "folder", "hub"]
    name: str
    revision: str = ""  # of the hub: commit, branch or tag; empty: its main branch

def resolve(model: str | Path, revision: str = "") -> ModelRef:
    """What `model` means, without looking at the network; `id@revision` is a hub's id at a revision.

    Raises `Me5Error` for no name, for a folder that is absent or holds no model, and for a revision of what has none.
    """
    text = str(model)
    name, _, at = text.partition("@")
    if not text.strip("/ "):
        raise Me5Error("no model given: name a folder, the id of a model on the hub, or me5-small-q4")
    if isinstance(model, str) and name in RELEASED:
        if revision or at:
            raise Me5Error(f"{name} is a released model, which has no revisions: leave the revision out")
        return ModelRef("released", name)
    if isinstance(model, str) and model in ENGLISH:
        from me5lib.model.released import unpacked

        return ModelRef("folder", str(unpacked(model)))
    try:
        folder, there = Path(text).expanduser(), Path(text).expanduser().exists()
    except (OSError, RuntimeError) as error:
        raise Me5Error(f"{text[:80]!r} is the name of no model ({first_line(error)[:80]})") from None
    like_a_path = isinstance(model, Path) or folder.is_absolute() or text[:1] in (".", "~") or text.count("/") > 1
    if not like_a_path and not there:
        if not name.strip():
            raise Me5Error(f"{text!r} is the name of no model: write it as id@revision")
        return ModelRef("hub", full_id(name), revision or at)
    if not folder.is_dir():
        raise Me5Error(f"no model folder {folder}: check the path, or run `me5 pretrain` first")
    if not any((folder / file).is_file() for file in ("config.json", "modules.json", "teacher.json")):
        raise Me5Error(f"no model in {folder} (config.json is missing): give a checkpoint, as of `me5 pretrain`")
    if revision:
        raise Me5Error(f"{folder} is a folder, which has no revisions: leave the revision out")
    return ModelRef("folder", str(folder))


def full_id(name: str) -> str:
    """The hub id that a short name stands for: `multilingual-e5-base` → `intfloat/…`, `LaBSE` → `sentence-…/LaBSE`."""
    if "/" in name or _WITHOUT_OWNER.fullmatch(name):
        return name
    return f"intfloat/{name}" if _OF_INTFLOAT.fullmatch(name) else f"sentence-transformers/{name}"


def pinned(ref: ModelRef) -> str:
    """What tells a model that is no folder from any other, and from its earlier state: `id@commit`."""
    if ref.kind == "hub":
        return f"{ref.name}@{model_folder(ref, ('config.json',)).name}"
    from me5lib.model.released import WHEEL_SHA256

    return f"{ref.name}@{WHEEL_SHA256[:16]}"


def model_folder(ref: ModelRef, patterns: Sequence[str] = SMALL_FILES) -> Path:
    """The folder on this machine of a model that has one: its own, or the snapshot of the hub's files that match."""
    return Path(ref.name) if ref.kind == "folder" else snapshot(ref.name, ref.revision, patterns)


def snapshot(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub model's files that match; its last part is the commit.

    A hub that fails (5xx) is asked again after each of `PAUSES`. Raises `Me5Error`, one line, for an id or a revision
    that the hub does not have, and for a hub out of reach.
    """
    from huggingface_hub import errors, snapshot_download

    for pause in (*PAUSES, 0):
        try:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns),
                                          ignore_patterns=["onnx/*", "openvino/*"]))  # the same weights again
        except (OSError, ValueError) as error:
            fault = error
        if not pause or getattr(getattr(fault, "response", None), "status_code", 0) < 500:
            break
        time.sleep(pause)
    nothing = "is neither a folder here nor a model on the hub: check the id"
    lines = {
        errors.RevisionNotFoundError: f"has no revision {revision} on the hub: leave it out, or copy another",
        errors.GatedRepoError: "is gated: ask for access on its page on the hub, log in with `hf auth login`",
        errors.RepositoryNotFoundError: nothing, errors.HFValidationError: nothing,
        errors.LocalEntryNotFoundError: f"{f'at {revision} ' if revision else ''}is not in the cache and the hub is "
                                        "out of reach: fetch it where there is a network, or give a folder",
        Exception: f"cannot be had from the hub ({first_line(fault)}): try again later",
    }  # fmt: skip
    raise Me5Error(f"{name} {next(line for kind, line in lines.items() if isinstance(fault, kind))}") from None


def first_line(error: Exception) -> str:
    """What an error says, on one line of at most 160 characters."""
    return " ".join(str(error).split())[:160]


def read_model_json(path: Path, otherwise: T) -> T:
    """A JSON file of a model's folder, with or without a byte order mark; `otherwise`, whose type the file must have,
    where there is none. Raises `Me5Error` for a file that is no JSON, or of another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, type(otherwise)):
            raise ValueError(f"it holds a {type(content).__name__}, not a {type(otherwise).__name__}")
        return content
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise Me5Error(f"{path} cannot be read ({first_line(error)}): make the model's folder again") from None


def stage_settings(folder: Path) -> dict[str, Any]:
    """What a stage's folder says of how it was made: `fingerprint` and `settings`; {} where it does not say, or not
    yet. Raises `Me5Error` where that cannot be read."""
    path = folder / "stage.json"
    stage: dict[str, Any] = read_model_json(path, {})
    if stage and not (isinstance(stage.get("settings"), dict) and "fingerprint" in stage):
        raise Me5Error(f"{path} cannot be read: make the checkpoint again, or delete that file")
    return stage


class ModelFiles(NamedTuple):
    """What a model's JSON files say of it; those of sentence-transformers may be absent."""

    backbone: Path  # the folder of the backbone and its tokenizer: the model's own, or its `0_Transformer` of old
    config: dict[str, Any]  # of the backbone, for transformers
    settings: dict[str, Any]  # of the backbone, for sentence-transformers: `max_seq_length`, `do_lower_case`
    modules: set[str]  # kinds of module, as {"Transformer", "Pooling"}
    poolings: set[str]  # modes that are on: {"mean"} of an E5, two for a model that concatenates
    prompts: dict[str, str]  # side → prompt, where it is not empty

    @property
    def averages(self) -> bool:
        """Whether nothing but average pooling and a norm follows the backbone; where no file says so: yes."""
        return self.poolings <= {"mean"} and self.modules <= _E5_MODULES


def read_model_files(folder: Path) -> ModelFiles:
    """The JSON files of a model's folder. Raises `Me5Error` for one that cannot be read."""
    listed = [module for module in read_model_json(folder / "modules.json", []) if isinstance(module, dict)]
    paths = {str(module.get("type", "")).rpartition(".")[2]: module.get("path", "") for module in reversed(listed)}
    inner = folder / paths.get("Transformer", "")
    backbone = inner if (inner / "config.json").is_file() else folder
    settings = min(backbone.glob("sentence_*_config.json"), default=backbone / "none")  # named by the kind of backbone
    pooling = read_model_json(folder / (paths.get("Pooling") or "1_Pooling") / "config.json", {})
    prompts = read_model_json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    return ModelFiles(
        backbone, read_model_json(backbone / "config.json", {}), read_model_json(settings, {}), set(paths),
        _poolings(pooling), {side: prompt for side, prompt in prompts.items() if prompt},
    )  # fmt: skip


def _poolings(about: dict[str, Any]) -> set[str]:
    """The pooling modes that are on by the configuration of a `Pooling`, of whatever version."""
    mode = about.get("pooling_mode") or ()
    modes = {mode} if isinstance(mode, str) else set(mode)
    flags = {key: on for key, on in about.items() if key.startswith("pooling_mode_")}  # up to version 5
    modes |= {re.sub(r"^pooling_mode_|_tokens?$", "", key) for key, on in flags.items() if on}
    if flags and not modes:
        return {"nothing"}
    return modes if about.get("include_prompt", True) else {f"{mode} without the prompt" for mode in modes or {"mean"}}


def readable_files(ref: ModelRef, folder: Path) -> ModelFiles:
    """`read_model_files` of `folder`, where a model's small files lie. Raises `Me5Error` for one that would be read
    wrongly, or not at all."""
    files, here = read_model_files(folder), ref.kind == "folder"  # of the hub's, the weights lie elsewhere
    inner, other = files.backbone, files.modules - _E5_MODULES
    tokenizers = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # one of them holds the vocabulary
    faults = {
        "is a LoRA adapter, without the model that it adapts: merge the two (peft's merge_and_unload), and give that "
        "folder": (folder / "adapter_config.json").is_file(),
        "holds no model of transformers (config.json is missing): check the id or the path": not files.config,
        "brings code of its own, which me5 does not run: choose another model": "auto_map" in files.config,
        "has its weights as a pickle only, which can run code: save it again with safe_serialization=True":
            here and any(inner.glob("pytorch_model*.bin")) and not any(inner.glob("*.safetensors")),
        "has no tokenizer (tokenizer.json is missing): copy the tokenizer's files from the model that it was trained "
        "from": not any(any(inner.glob(pattern)) for pattern in tokenizers),
        "has no tokenizer_config.json, which says of what class it is: copy it from where tokenizer.json came from":
            here and (inner / "tokenizer.json").is_file() and not (inner / "tokenizer_config.json").is_file(),
        "wants its texts in lower case, which me5 does not do: choose another model":
            files.settings.get("do_lower_case"),
        f"has a module {min(other, default='')} after its backbone, which mE5 has not: choose another model": other,
        f"pools by {' and '.join(sorted(files.poolings))}, not by the average of all tokens: choose another model":
            files.poolings - {"mean"},
    }  # fmt: skip
    if line := next((line for line, wrong in faults.items() if wrong), ""):
        raise Me5Error(f"{ref.name} {line}")
    return files
