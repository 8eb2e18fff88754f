"""What the JSON files of a model's folder say of it, before its weights are read: pooling, prompts, limit; faults.

Other tools' folders come in many forms. What would be read wrongly is refused in one line with the true reason.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from me5lib.io import Me5Error

T = TypeVar("T")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # one of them holds the vocabulary
_MODE = re.compile(r"pooling_mode_(\w+?)(?:_tokens?)?")
NO_LIMIT = 1 << 30  # tokens
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_PLAIN = {"Transformer", "Pooling", "Normalize"}  # modules of an E5


def read_json(path: Path, otherwise: T) -> T:
    """A JSON file of a model's folder, with or without a byte order mark; `otherwise`, whose type the file must have,
    where there is none. Raises `Me5Error` for a file that is no JSON, or of another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, type(otherwise)):
            raise ValueError(f"it holds a {type(found).__name__}, not a {type(otherwise).__name__}")
        return found
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise Me5Error(f"{path} cannot be read ({' '.join(str(error).split())[:160]}): make the model's folder "
                       "again") from None


def prompts(folder: Path) -> dict[str, str]:
    """The prompts of sentence-transformers' configuration that are not empty."""
    found = read_json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    return {side: prompt for side, prompt in found.items() if prompt}


def modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers model, in order; [] for a folder of transformers alone."""
    return [module for module in read_json(folder / "modules.json", []) if isinstance(module, dict)]


def backbone(folder: Path) -> str:
    """The folder inside `folder` that holds the backbone and its tokenizer: itself (""), or `0_Transformer` of old."""
    listed = [module.get("path", "") for module in modules(folder) if _kind(module) == "Transformer"]
    return listed[0] if listed and (folder / listed[0] / "config.json").is_file() else ""


def poolings(folder: Path) -> set[str]:
    """The pooling modes that are on: {"mean"} of an E5, two for a model that concatenates; {} where nothing says."""
    about: dict[str, Any] = read_json(_pooling_file(folder), {})
    mode = about.get("pooling_mode")
    named = {mode} if isinstance(mode, str) else set(mode or ())
    old = {_MODE.fullmatch(key)[1]: on for key, on in about.items()
           if _MODE.fullmatch(key)}  # fmt: skip
    found = named | {mode for mode, on in old.items() if on} or ({"nothing"} if old else set())
    return found if about.get("include_prompt", True) else {f"{mode} without the prompt" for mode in found or {"mean"}}


def _pooling_file(folder: Path) -> Path:
    listed = [module.get("path", "") for module in modules(folder) if _kind(module) == "Pooling"]
    return folder / (listed[0] if listed and listed[0] else "1_Pooling") / "config.json"


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def averages(folder: Path) -> bool:
    """Whether nothing but average pooling and a norm follows the backbone; without the files that say so: yes."""
    return (poolings(folder) or {"mean"}) == {"mean"} and {_kind(module) for module in modules(folder)} <= _PLAIN


def limit(folder: Path) -> int:
    """The longest text in tokens that sentence-transformers' files allow; no limit where they say none."""
    given = _settings(folder).get("max_seq_length")
    return given if isinstance(given, int) and given > 0 else NO_LIMIT


def _settings(folder: Path) -> dict[str, Any]:
    """What sentence-transformers was told of the backbone, in a file that it names by the kind of backbone."""
    inner = folder / backbone(folder)
    files = (inner / f"sentence_{kind}_config.json" for kind in _KINDS)
    return read_json(next((file for file in files if file.is_file()), inner / "absent"), {})


def refuse_unreadable(name: str, folder: Path, on_hub: bool = False) -> None:
    """Raise `Me5Error` for a folder that would be read wrongly, or not at all. `on_hub`: its weights are elsewhere."""
    inner = folder / backbone(folder)
    config: dict[str, Any] = read_json(inner / "config.json", {})
    if (folder / "adapter_config.json").is_file():
        raise Me5Error(f"{name} is a LoRA adapter, without the model that it adapts: merge the two (peft's "
                       "merge_and_unload), and give the folder that is saved then")
    if not config:
        raise Me5Error(f"{name} holds no model of transformers (config.json is missing): check the id or the path")
    if "auto_map" in config:
        raise Me5Error(f"{name} brings code of its own, which me5 does not run: choose a model of transformers' own "
                       "classes")
    if not on_hub and any(inner.glob("pytorch_model*.bin")) and not any(inner.glob("*.safetensors")):
        raise Me5Error(f"{name} has its weights as a pickle only (pytorch_model.bin), which can run code: load it with "
                       "transformers and save it again with safe_serialization=True")
    if not any(any(inner.glob(pattern)) for pattern in _TOKENIZERS):
        raise Me5Error(f"{name} has no tokenizer (tokenizer.json is missing): copy the tokenizer's files from the "
                       "model that it was trained from")
    if not on_hub and (inner / "tokenizer.json").is_file() and not (inner / "tokenizer_config.json").is_file():
        raise Me5Error(f"{name} has a tokenizer.json and no tokenizer_config.json, which says of what class it is: "
                       "copy that file from the model that it was trained from")
    if _settings(folder).get("do_lower_case"):
        raise Me5Error(f"{name} wants its texts in lower case (do_lower_case), which me5 does not do: its vectors "
                       "would be wrong; choose another model")
    if other := {_kind(module) for module in modules(folder)} - _PLAIN:
        raise Me5Error(f"{name} has a module {min(other)} after its backbone, which mE5 has not: choose another model")
    if (found := poolings(folder)) and found != {"mean"}:
        raise Me5Error(f"{name} pools by {' and '.join(sorted(found))}, not by the average of all tokens as mE5 does: "
                       "choose another model")
