"""`me5 export`: a checkpoint as others load it, checked, with a model card.

    me5 export --model runs/tiny/seed-0/stage2 --to my-e5
    me5 export --model me5-small-q4 --to e5-small --onnx
    me5 export --model runs/small/seed-0/stage2 --to my-e5 --results results --license mit

The folder holds safetensors, JSON, a README and, with --onnx, `onnx/model.onnx`. Before it takes its place,
sentence-transformers, transformers and onnxruntime each load it and encode texts of many scripts; where one of them
gives another vector than me5 (by more than 1e-4), nothing is written. Cost: seconds for tiny, a minute for base.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from me5lib.io import Me5Error

if TYPE_CHECKING:
    import pandas as pd

    from me5lib.evaluate.models import Opened
    from me5lib.model.card import About, Source
    from me5lib.model.encoder import Encoder

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SNAPSHOT = re.compile(r"models--([\w.-]+)--([\w.-]+)[/\\]snapshots")  # how the hub client's cache names a model
RANDOM = "random weights"


def export(
    model: Annotated[str, typer.Option(help="A checkpoint folder, a hub id, or me5-small-q4.")],
    to: Annotated[Path, typer.Option(help="The folder to write; an earlier export in it is replaced.")],
    revision: Annotated[str, typer.Option(help="Commit, branch or tag of a hub id.")] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx/model.onnx too (extra `export`).")] = False,
    name: Annotated[str, typer.Option(help="The model's name on its card (default: the folder's).")] = "",
    results: Annotated[Path | None, typer.Option(help="Results of `me5 evaluate --out`, for the card.")] = None,
    data: Annotated[str, typer.Option(help="Data cards it was trained on, as nllb,xp3 (default: as the folder "
                                           "says).")] = "",
    license: Annotated[str, typer.Option(help="Its licence, as the hub writes it: mit, apache-2.0 …")] = "",
    instruction: Annotated[str, typer.Option(help="Of an instruct model: the prompt of queries.")] = "",
) -> None:
    """Write a model for sentence-transformers, transformers and ONNX, checked, with a model card."""
    _refuse(to, model, license)
    if onnx:
        from me5lib.model.onnx import ready

        ready()
    from me5lib.evaluate import models
    from me5lib.model import save_load as checkpoint

    opened = models.open_model(model, revision=revision, device="cpu")
    encoder = getattr(opened.encoder, "encoder", None)
    if encoder is None:
        raise Me5Error(f"{opened.name} is no E5: me5 exports models with average pooling and prefixes or instructions")
    prompts = _prompts(opened.instruct, instruction, opened.name)
    about = _about(opened, encoder, model, name or to.name, prompts, data, license)._replace(onnx=onnx)
    if results is not None:
        about = about._replace(results=_results(results, opened))

    checkpoint.write(encoder, to, prompts, lambda folder: _complete(folder, encoder, about))
    print(f"{about.name}: {to}")


def _refuse(to: Path, model: str, license: str) -> None:
    """Raise `Me5Error` for a target that is not ours to replace, and for a licence that the hub would not take."""
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / "modules.json").is_file())):
        raise Me5Error(f"{to} exists and is no earlier export: choose another --to")
    if to.exists() and Path(model).expanduser().exists() and to.resolve() == Path(model).expanduser().resolve():
        raise Me5Error(f"{to} is the model itself: choose another --to")
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise Me5Error(f"--license {license!r} is no identifier of the hub: write it as mit, apache-2.0 or other")


def _prompts(instruct: bool, instruction: str, name: str) -> dict[str, str]:
    from me5lib.model import save_load as checkpoint

    if instruct:
        return checkpoint.instruct_prompts(instruction or checkpoint.INSTRUCTION)
    if instruction:
        raise Me5Error(f"{name} reads prefixes, not instructions: leave --instruction out")
    return dict(checkpoint.PROMPTS)


def _complete(folder: Path, encoder: Encoder, about: About) -> None:
    """Add the graph and the card, and hold the folder against the encoder; says what was checked."""
    from me5lib.model import card, check

    said = {"sentence-transformers": check.sentence_transformers(folder, encoder, about.prompts),
            "transformers": check.transformers(folder, encoder, about.prompts)}  # fmt: skip
    if about.onnx:
        from me5lib.model import onnx

        onnx.write(encoder, folder)
        said["onnxruntime"] = check.onnx(folder, encoder, about.prompts)
    (folder / "README.md").write_text(card.write(about), encoding="utf8")
    count = len(check.samples(encoder.max_tokens))
    print(f"{count} texts in {check.scripts()} scripts, largest difference of a coordinate: "
          + ", ".join(f"{reader} {worst:.0e}" for reader, worst in said.items()))


def _about(opened: Opened, encoder: Encoder, model: str, name: str, prompts: dict[str, str], data: str,
           license: str) -> About:  # fmt: skip
    from me5lib.evaluate.models import KNOWN
    from me5lib.model import released
    from me5lib.model.card import UNKNOWN, About
    from me5lib.model.resolve import resolve

    names = [each.strip() for each in data.split(",") if each.strip()]
    if (ref := resolve(model)).kind == "folder":
        folder = ref.folder
        base, start = _base(_made(folder).get("settings", {}))
        names = names or _cards_of(folder)
    else:
        base, start = opened.name, ""
        by_authors = "/multilingual-e5-" in (opened.published or opened.name)
        names = names or (_cards_of_authors(opened.instruct) if by_authors else [])
    in_four_bits = getattr(encoder.backbone.config, "derived_from", "") in (released.NAME, released.TUNED)
    if in_four_bits:
        base, license = released.HUB_ID, license or "mit"
    return About(
        name, encoder.width, encoder.max_tokens, prompts, base_model=base, start=start,
        license=license or ("mit" if opened.name in KNOWN else UNKNOWN),  # so say the authors' cards
        sources=tuple(_source(each, strict=bool(data)) for each in names),
        notice=released.NOTICE if in_four_bits else "",
    )  # fmt: skip


def _made(folder: Path) -> dict[str, Any]:
    """What a stage's folder says of how it was made: `fingerprint` and `settings`; {} where it does not say."""
    path = folder / "stage.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        return {"fingerprint": str(found["fingerprint"]), "settings": dict(found["settings"])}
    except (ValueError, KeyError, TypeError):
        raise Me5Error(f"{path} cannot be read: make the checkpoint again, or delete that file") from None


def _base(settings: dict[str, Any]) -> tuple[str, str]:
    """The hub id that a stage's weights come from, or what else they come from: `(base model, words for the card)`."""
    at_hub, at, _ = str(settings.get("start", "")).partition("@")
    backbone = at_hub if at else str(settings.get("model", {}).get("backbone", ""))
    if found := SNAPSHOT.search(backbone):
        return f"{found[1]}/{found[2]}", ""
    if backbone == "random":
        return "", RANDOM
    return (backbone, "") if HUB_ID.fullmatch(backbone) and not Path(backbone).exists() else ("", "")


def _cards_of(folder: Path) -> list[str]:
    """Names of the data cards that a stage was trained on; first those of the stage beside it that it went on from."""
    made = _made(folder)
    settings = made.get("settings", {})
    data, start = settings.get("data", {}), settings.get("start")
    if start is None:
        return list(data.get("sources", []))
    beside = (path.parent for path in sorted(folder.resolve().parent.glob("*/stage.json")))
    first = [name for other in beside if _made(other).get("fingerprint") == start for name in _cards_of(other)]
    return list(dict.fromkeys([*first, *data.get("labelled", [])]))


def _cards_of_authors(instruct: bool) -> list[str]:
    """Of Tables 1 and 2; for the instruct model those of its own mixture too."""
    from me5lib.data import cards

    tables = (1, 2, None) if instruct else (1, 2)
    return [name for name, card in cards.hub().items() if card.paper and card.paper.table in tables]


def _source(name: str, strict: bool) -> Source:
    """What a data card says; the bare name for one's own file, which has none."""
    from me5lib.data import cards
    from me5lib.model.card import Source

    if name not in cards.names() and not strict:
        return Source(name)
    card = cards.load(name)
    repositories = tuple(dict.fromkeys(hub.repository for hub in card.hub))
    return Source(name, card.title, card.licence, card.homepage, tuple(card.languages), repositories)


def _results(folder: Path, opened: Opened) -> tuple:
    """The measured rows of this very model and revision, as entries of a `model-index`."""
    from me5lib.evaluate import runs
    from me5lib.model import card

    if not folder.is_dir():
        raise Me5Error(f"no results folder {folder}: give the --out of `me5 evaluate`")
    try:
        return card.results(own_rows(runs.measured(folder), opened, folder), described)
    except ValueError as error:
        raise Me5Error(f"the results in {folder} cannot be put on a card ({error}): evaluate again") from None


def own_rows(measured: pd.DataFrame, opened: Opened, folder: Path) -> pd.DataFrame:
    """Those of `opened` by name and revision. Raises `Me5Error` where there are none, saying whose there are."""
    mine = measured[(measured["model"] == opened.name) & (measured["revision"] == opened.revision)]
    if mine.empty:
        pairs = measured[["model", "revision"]].drop_duplicates().itertuples(index=False)
        there = ", ".join(f"{name} at {revision[:12]}" for name, revision in pairs) or "none at all"
        raise Me5Error(f"{folder} has no results of {opened.name} at {opened.revision[:12]} ({there}): evaluate this "
                       "model, or leave --results out")
    return mine


def described(task: str) -> tuple[str, str]:
    """mteb's type of a task, and its data set's id on the hub; for a task that mteb does not know, its own name."""
    import mteb

    try:
        about = mteb.get_task(task).metadata
    except (KeyError, ValueError):
        return "sentence-similarity", task
    return about.type, about.dataset["path"]
