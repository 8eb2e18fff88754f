"""Which model a name means: a released one, a folder, or one of the hub; the one rule for every command.

    resolve("me5-small-q4")                           # released: out of the package index (`model.released`)
    resolve("runs/tiny/seed-0/stage2")                # folder: what exists, or looks like a path
    resolve("intfloat/multilingual-e5-small")         # hub: anything else; "multilingual-e5-small" means the same

A folder with the name of a released model, or of a hub id, is meant by `./me5-small-q4`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from me5lib.config import RELEASED
from me5lib.io import Me5Error

SMALL_FILES = ("*.json", "*.txt", "*.model")  # of a model's repository: all but its weights
_OTHER_RUNTIMES = ("onnx/*", "openvino/*")  # the same weights again
_OF_INTFLOAT = re.compile(r"(multilingual-)?e5-(small|base|large)(-v2|-instruct)?")
_WITHOUT_OWNER = re.compile(r"(bert|xlm-roberta|roberta|distilbert)-.*")  # the hub's oldest ids have none


class ModelRef(NamedTuple):
    """A model by kind, and what it is called there: a released name, a folder's path, a hub id."""

    kind: Literal["released", "folder", "hub"]
    name: str
    revision: str = ""  # of the hub: commit, branch or tag; empty: its main branch

    @property
    def folder(self) -> Path:
        """The path of a model that is a folder."""
        return Path(self.name)


def resolve(model: str | Path, revision: str = "") -> ModelRef:
    """What `model` means, without looking at the network; `id@revision` is a hub's id at a revision.

    Raises `Me5Error` for no name, for a folder that is absent or holds no model, and for a revision of what has none.
    """
    text = str(model)
    if not text.strip("/ "):
        raise Me5Error("no model given: name a folder, the id of a model on the hub, or me5-small-q4")
    name, _, at = text.partition("@")
    if isinstance(model, str) and name in RELEASED:
        return _without_revision(ModelRef("released", name), revision or at)
    try:
        folder, there = Path(text).expanduser(), Path(text).expanduser().exists()
    except (OSError, RuntimeError) as error:
        raise Me5Error(f"{text[:80]!r} is the name of no model ({' '.join(str(error).split())[:80]})") from None
    like_a_path = isinstance(model, Path) or folder.is_absolute() or text[:1] in (".", "~") or text.count("/") > 1
    if like_a_path or there:
        _refuse_no_model(folder)
        return _without_revision(ModelRef("folder", str(folder)), revision)
    if not name.strip():
        raise Me5Error(f"{text!r} is the name of no model: write it as id@revision")
    return ModelRef("hub", full_id(name), revision or at)


def pinned(ref: ModelRef) -> str:
    """What tells a model that is no folder from any other, and from its own earlier state: `id@commit`."""
    if ref.kind == "hub":
        return f"{ref.name}@{local(ref, ('config.json',)).name}"
    from me5lib.model.released import WHEEL_SHA256

    return f"{ref.name}@{WHEEL_SHA256[:16]}"


def full_id(name: str) -> str:
    """The hub id that a short name stands for: `multilingual-e5-base` → `intfloat/…`, `LaBSE` → `sentence-…/LaBSE`."""
    if "/" in name or _WITHOUT_OWNER.fullmatch(name):
        return name
    return f"intfloat/{name}" if _OF_INTFLOAT.fullmatch(name) else f"sentence-transformers/{name}"


def _without_revision(ref: ModelRef, revision: str) -> ModelRef:
    if revision:
        raise Me5Error(f"{ref.name} is {'a folder' if ref.kind == 'folder' else 'a released model'}, which has no "
                       "revisions: leave the revision out")
    return ref


def _refuse_no_model(folder: Path) -> None:
    if not folder.is_dir():
        raise Me5Error(f"no model folder {folder}: check the path, run `me5 pretrain` first, or name a model of the "
                       "hub, or me5-small-q4")
    if not any((folder / name).is_file() for name in ("config.json", "modules.json", "teacher.json")):
        raise Me5Error(f"no model in {folder} (config.json is missing): give the folder of a checkpoint, as `me5 "
                       "pretrain` makes one")


def local(ref: ModelRef, patterns: Sequence[str] = SMALL_FILES) -> Path:
    """The folder on this machine of a model that has one: its own, or the snapshot of the hub's files that match."""
    return ref.folder if ref.kind == "folder" else snapshot(ref.name, ref.revision, patterns)


def snapshot(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub model's files that match; its last part is the commit.

    Raises `Me5Error`, one line, for an id or a revision that the hub does not have, and for a hub out of reach.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(_download(name, revision, patterns))
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
        raise Me5Error(f"{name} cannot be had from the hub ({' '.join(str(error).split())[:160]}): try again "
                       "later") from None


def _download(name: str, revision: str, patterns: Sequence[str], pauses: Sequence[int] = (1, 4)) -> str:
    """As huggingface_hub does it. Where its client gives up on a hub that fails (5xx; seen once, on a busy machine), it
    is called again after each of the `pauses` (seconds, ours)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(name, revision=revision or None, allow_patterns=list(patterns),
                                 ignore_patterns=list(_OTHER_RUNTIMES))
    except HfHubHTTPError as error:
        if not pauses or error.response is None or error.response.status_code < 500:
            raise
        time.sleep(pauses[0])
        return _download(name, revision, patterns, pauses[1:])
