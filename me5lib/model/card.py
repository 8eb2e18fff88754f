"""A model card in the hub's format: metadata in YAML, then what a reader needs before using the model.

    text = render(About("my-e5", encoder.width, ...))      # the README.md of an exported folder
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from me5lib.io import PACKAGE, Me5Error
from me5lib.model.resolve import stage_settings

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = PACKAGE / "model" / "card_template.md"
UNKNOWN = "unknown"  # the hub's word for a licence that nobody stated
TAGS = ("sentence-transformers", "sentence-similarity", "feature-extraction", "multilingual-e5")


class CitedSource(NamedTuple):
    """What a model was trained on, as its data card says."""

    name: str
    title: str = ""
    licence: str = ""
    homepage: str = ""
    languages: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()  # data sets of the hub


class About(NamedTuple):
    """What a card says of a model."""

    name: str
    width: int  # dimensions of a vector
    tokens: int  # of the longest text
    prompts: dict[str, str]
    license: str = UNKNOWN  # an identifier of the hub, as mit
    base_model: str = ""  # a hub id; "": random weights, or not known
    start: str = ""  # what it was trained from where that is no hub id, as "random weights"
    sources: tuple[CitedSource, ...] = ()
    results: tuple[tuple[str, str, int, str], ...] = ()  # `result_rows`
    onnx: bool = False
    cut_to: tuple[str, ...] = ()  # languages that its vocabulary was cut to
    notice: str = ""  # how its vocabulary was cut; what the licence of the weights asks to be passed on


def render(about: About) -> str:
    """The whole card: metadata between two lines of dashes, then Markdown."""
    trained = {code.partition("-")[0].lower() for source in about.sources for code in source.languages}
    spoken = {code.partition("-")[0] for code in about.cut_to} or trained
    codes = sorted(code for code in spoken if re.fullmatch("[a-z]{2,3}", code))  # what the hub takes for a language
    datasets = dict.fromkeys(repository for source in about.sources for repository in source.repositories)
    data = ModelCardData(
        model_name=about.name, license=about.license, library_name="sentence-transformers",
        language=["multilingual", *codes] if len(codes) > 1 else codes or None, pipeline_tag="sentence-similarity",
        tags=[*TAGS, *(["onnx"] if about.onnx else [])],
        base_model=about.base_model or None, datasets=list(datasets) or None,
    )  # fmt: skip
    start = f"`{about.base_model}`" if about.base_model else about.start or "a backbone that is not stated"
    card = ModelCard.from_template(
        data, template_str=TEMPLATE.read_text(encoding="utf8"), about=about, start=start, count=len(trained),
        query=about.prompts["query"], document=about.prompts["document"],
        cell=lambda text: " ".join(text.split()).replace("|", "\\|"), shown=lambda text: text.replace("\n", "\\n"),
    )  # fmt: skip
    return card.content


def result_rows(measured: pd.DataFrame) -> tuple[tuple[str, str, int, str], ...]:
    """Task, metric, number of subsets and their mean, of the rows of `evaluate.runs.measured_values`.

    Protocol and precision are told with the metric, so that two ways to evaluate stay two results. Raises `Me5Error`
    where a value is no number.
    """
    if measured["value"].isna().any():
        raise Me5Error("results cannot be put on a card (a row has no value): evaluate again")
    ways = measured.groupby(["task", "split", "metric", "protocol", "dtype"], sort=False)["value"]
    return tuple((task, f"{split}: {metric}, {protocol} protocol, {dtype}", len(values), f"{values.mean():.2f}")
                 for (task, split, metric, protocol, dtype), values in ways)


def base_of(settings: dict[str, Any]) -> tuple[str, str]:
    """The hub id that a stage's weights come from, or what else they come from: `(base model, words for the card)`."""
    start, at, _ = str(settings.get("start", "")).partition("@")
    backbone = start if at else str(settings.get("model", {}).get("backbone", ""))
    if backbone == "random":
        return "", "random weights"
    at_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", backbone) and not Path(backbone).exists()
    return (backbone if at_hub else ""), ""


def trained_on(folder: Path) -> list[str]:
    """Names of the data cards that a stage was trained on; first those of the stage beside it that it went on from."""
    stage = stage_settings(folder)
    settings = stage.get("settings", {})
    data, start = settings.get("data", {}), settings.get("start")
    if start is None:
        return list(data.get("sources", []))
    beside = (path.parent for path in sorted(folder.resolve().parent.glob("*/stage.json")))
    first = [name for other in beside if stage_settings(other).get("fingerprint") == start
             for name in trained_on(other)]
    return list(dict.fromkeys([*first, *data.get("labelled", [])]))
