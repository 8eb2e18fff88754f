"""Every hyperparameter of every stage, with where its value comes from: `Scale`, read from presets.yaml.

    scale = load("tiny")                          # a preset
    scale = load("tiny", ["train.steps=100"])     # the same with an override, as `me5 run --set train.steps=100`
    scale.train.temperature                       # 0.05
    scale.provenance["train.temperature"]         # ("ours", "…why")

A value is `paper` (arXiv 2402.05672), `model card` (the authors' cards), `E5` (arXiv 2212.03533 and its threads), or
`ours`: chosen here because nothing published states it, with the reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from me5lib.io import PACKAGE, Me5Error

RELEASED = ("me5-small-q4",)  # models that come out of the package index (`model.released`)
ENGLISH = ("e5-small", "minilm-l6")  # and two that it is held against, for costs
UNTRAINED = "untrained"  # in place of a model's name: random weights of the scale's shape
BY_HAND = "set by hand"  # why an overridden value is what it is


class Given(NamedTuple):
    """A value and its provenance."""

    value: Any
    source: str  # "paper", "model card", "E5" or "ours"
    why: str


@dataclass(frozen=True)
class Data:
    """What is trained on. `sources` are names of data cards."""

    sources: tuple[str, ...]  # stage 1: unlabelled pairs
    labelled: tuple[str, ...]  # stage 2: labelled examples
    language_temperature: float  # languages inside a source are drawn in proportion to rows ** temperature
    homogeneous: float  # 1.0: every global batch comes from one source; 0.0: rows of all sources mixed
    heldout_share: float  # share of near-duplicate clusters kept out of training


@dataclass(frozen=True)
class Model:
    """The backbone: a hub id, `random` for a BERT of this shape with random weights, or a released model, of which the
    lower `layers` are taken and about `vocabulary` pieces."""

    backbone: str
    layers: int
    width: int
    heads: int
    feedforward: int
    vocabulary: int
    max_tokens: int  # positions; longer texts are cut


@dataclass(frozen=True)
class Stage:
    """One stage of training, always a number of steps (never of seconds)."""

    steps: int
    batch: int  # global batch, in pairs (stage 1) or labelled examples (stage 2)
    lr: float
    warmup: int  # steps
    weight_decay: float
    clip: float  # largest gradient norm
    temperature: float  # τ of InfoNCE
    loss: str  # "one-way" (query → passage) or "symmetric" (both ways, averaged)
    query_tokens: int
    passage_tokens: int
    hard_negatives: int = 0
    contrastive_weight: float = 1.0  # α in KL + α·InfoNCE; stage 1 has no KL
    teacher_temperature: float = 1.0
    mine_depth: int = 0  # negatives are taken from the top `mine_depth` of the stage-1 model
    near: float = 0.0  # a candidate is dropped that is so much liker a positive than neighbours are (0: off)
    margin: float = 0.0  # a candidate is dropped that scores above `margin` × the positive's score (0: off)
    teacher: str = "trained"  # a hub id of a cross-encoder, or `trained`: a small one of one's own
    teacher_steps: int = 0  # steps to train that small one
    accumulate: int = 1  # batches, each with its own negatives, that a rank's share of a step is cut into
    gradient_checkpointing: int = 0  # 1: layers are computed again in the backward pass instead of kept
    frozen: int = 0  # 1: the embeddings are not trained; 1 + n: nor the n lower layers


@dataclass(frozen=True)
class Evaluation:
    """How much is evaluated offline."""

    heldout_strings: int  # a language takes part with at least so many held-out strings; so many make its pool
    intent_languages: int  # languages of the classification task
    map_sentences: int  # meanings (each in every language) on the UMAP map
    model: str  # the real model that lessons look at, as `model.resolve` takes it; UNTRAINED where none is at hand


@dataclass(frozen=True)
class Instruct:
    """What stage 2 with instructions has of its own; all else is `finetune`'s."""

    synthetic: float = 0.0  # share of the steps that take rows of `file`; 0: none are mixed in
    file: str = ""  # of rows as `me5 synthesise` writes them; "": synthetic-v1, which ships
    drafts: int = 0  # 1: also those in the languages that are marked as drafts
    tokens: int = 0  # by which a query may be longer than in stage 2

    def __post_init__(self) -> None:
        if not 0 <= self.synthetic < 1 or self.tokens < 0:
            raise Me5Error("instruct.synthetic is a share, from 0 to below 1; instruct.tokens is 0 or more")


@dataclass(frozen=True)
class Scale:
    """All settings of one size of the journey."""

    name: str
    data: Data
    model: Model
    train: Stage  # stage 1: contrastive pre-training
    finetune: Stage  # stage 2: supervised fine-tuning
    evaluate: Evaluation
    instruct: Instruct
    provenance: dict[str, tuple[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def offline(self) -> bool:
        """Whether everything this scale needs comes out of the package index."""
        return self.model.backbone in ("random", *RELEASED)


_GROUPS = {"data": Data, "model": Model, "train": Stage, "finetune": Stage, "evaluate": Evaluation,
           "instruct": Instruct}
_TYPES = {f"{group}.{f.name}": str(f.type) for group, cls in _GROUPS.items() for f in dataclasses.fields(cls)}
_PARSERS = {"int": int, "float": float, "str": str}


@functools.cache
def presets() -> dict[str, dict[str, Given]]:
    """Every scale of presets.yaml: its values by `train.steps`, with what they inherit from the scale it extends."""
    import yaml

    scales: dict[str, dict[str, Given]] = {}
    for name, groups in yaml.safe_load((PACKAGE / "presets.yaml").read_text(encoding="utf8")).items():
        scales[name] = dict(scales.get(groups.pop("extends", ""), {}))
        for group, values in groups.items():
            for key, (value, source, why) in values.items():
                value = tuple(value) if isinstance(value, list) else value
                scales[name][f"{group}.{key}"] = Given(value, source, " ".join(why.split()))
    return scales


def load(name: str, overrides: Iterable[str] = ()) -> Scale:
    """The preset `name` with `overrides` such as `train.steps=100`.

    Raises `Me5Error` for an unknown scale, an unknown setting or a value of the wrong type.
    """
    if name not in presets():
        raise Me5Error(f"unknown scale {name!r}: choose one of {', '.join(presets())}")
    given = dict(presets()[name])
    for override in overrides:
        key, _, text = override.partition("=")
        if key not in _TYPES:
            near = difflib.get_close_matches(key, _TYPES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise Me5Error(f"unknown setting {key!r}{hint}: settings are written as in train.steps=100")
        kind = _TYPES[key]
        try:
            value = tuple(filter(None, map(str.strip, text.split(",")))) if "tuple" in kind else _PARSERS[kind](text)
        except ValueError:
            raise Me5Error(f"{key} wants {kind}, not {text!r}") from None
        given[key] = Given(value, "ours", BY_HAND)
    groups = {
        group: cls(**{key.partition(".")[2]: v.value for key, v in given.items() if key.startswith(f"{group}.")})
        for group, cls in _GROUPS.items()
    }
    return Scale(name, **groups, provenance={key: (v.source, v.why) for key, v in given.items()})


def overrides(scale: Scale) -> list[str]:
    """What was set by hand, as `load` takes it: `["train.steps=100"]`."""
    by_hand = [key for key, (_, why) in scale.provenance.items() if why == BY_HAND]
    values = {key: operator.attrgetter(key)(scale) for key in by_hand}
    return [f"{key}={','.join(value) if isinstance(value, tuple) else value}" for key, value in values.items()]
