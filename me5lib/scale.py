"""One dial: `Scale`. Every hyperparameter of every stage, with where its value comes from.

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
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from me5lib.places import Me5Error

RELEASED = ("me5-small-q4",)  # models that come out of the package index (`model.released`)
UNTRAINED = "untrained"  # in place of a model's name: random weights of the scale's shape
BY_HAND = "set by hand"  # why an overridden dial has its value


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
    """The backbone: a hub id, a released model, or `random` for a BERT of the given shape with random weights."""

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
    freeze_positions: int = 0  # 1: position embeddings are not trained


@dataclass(frozen=True)
class Evaluate:
    """How much is evaluated offline."""

    heldout_strings: int  # a language takes part with at least so many held-out strings; so many make its pool
    intent_languages: int  # languages of the classification task
    map_sentences: int  # meanings (each in every language) on the UMAP map
    model: str  # the real model that lessons look at, as `model.resolve` takes it; UNTRAINED where none is at hand


@dataclass(frozen=True)
class Scale:
    """All dials of one size of the journey."""

    name: str
    data: Data
    model: Model
    train: Stage  # stage 1: contrastive pre-training
    finetune: Stage  # stage 2: supervised fine-tuning
    evaluate: Evaluate
    provenance: dict[str, tuple[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def offline(self) -> bool:
        """Whether everything this scale needs comes out of the package index."""
        return self.model.backbone in ("random", *RELEASED)


def paper(value: Any, why: str = "arXiv 2402.05672") -> Given:
    """A value that the mE5 report states."""
    return Given(value, "paper", why)


def card(value: Any, why: str = "model card of the authors") -> Given:
    """A value that the authors' model cards state."""
    return Given(value, "model card", why)


def e5(value: Any, why: str) -> Given:
    """A value taken over from English E5, as the report says of everything that it does not state."""
    return Given(value, "E5", why)


def ours(value: Any, why: str) -> Given:
    """A value that nothing published states."""
    return Given(value, "ours", why)


_OPTIMISER = {
    "weight_decay": ours(0.01, "not published; the AdamW value of most encoder fine-tuning"),
    "clip": ours(1.0, "not published; guards the first steps at a low temperature"),
}

_FILTERS = {
    "near": ours(1.06, "CCMatrix's threshold for translations; of planted false negatives and true ones, by a general "
                       "multilingual encoder, it was the only filter to part them (tests/prove_false_negatives.py)"),
    "margin": ours(0.0, "NV-Retriever's 0.95 dropped 60 % of the true negatives there; SimLM and E5 filter nothing"),
}

_TINY_DATA = {
    "sources": ours(("homeassistant", "homeassistant-descriptions", "gettext", "kolibri", "history", "cldr"),
                    "what the package index carries; the paper's sources need the hub"),
    "labelled": ours(("exams", "homeassistant-descriptions", "cldr-facts"), "labelled offline packs"),
    "language_temperature": ours(0.5, "not published; between equal languages (0) and equal rows (1)"),
    "homogeneous": ours(1.0, "not published; one source per batch, so that negatives are comparable"),
    "heldout_share": ours(0.1, "41 languages then have 300 held-out strings; nine tenths stay in training"),
}

_TINY = {
    "data": _TINY_DATA,
    "model": {
        "backbone": ours("random", "offline: no pretrained weights in the package index"),
        "layers": ours(1, "five minutes on two cores"),
        "width": ours(256, "five minutes on two cores"),
        "heads": ours(4, "64 dimensions a head, as in the paper's backbones"),
        "feedforward": ours(1024, "four times the width, as in the paper's backbones"),
        "vocabulary": ours(32_000, "trained on the packs; they cannot train the 250k rows of XLM-R's"),
        "max_tokens": ours(256, "longest offline passages; the paper has 512"),
    },
    "train": {
        "steps": ours(700, "about four minutes on two cores"),
        "batch": ours(512, "of the same pairs, 200 steps of 512 taught a random model more than 100 of 1,024"),
        "lr": ours(2e-3, "best of 1e-3, 2e-3 and 5e-3 in 200 steps; ten times the paper's rate for random weights"),
        "warmup": ours(70, "a tenth of the steps"),
        **_OPTIMISER,
        "temperature": ours(0.05, "0.01 starves a random model of gradient; 0.05 worked in a trial"),
        "loss": ours("symmetric", "twice the signal per batch for a short run; the paper's is one-way"),
        "query_tokens": ours(32, "interface strings are short"),
        "passage_tokens": ours(96, "descriptions and sections are cut here"),
    },
    "finetune": {
        "steps": ours(80, "half a minute on two cores; mining and the teacher take a minute more"),
        "batch": ours(128, "the paper's 512, scaled to the labelled examples at hand"),
        "lr": ours(2e-4, "a tenth of stage 1, as in the paper"),
        "warmup": ours(8, "a tenth of the steps"),
        **_OPTIMISER,
        "temperature": ours(0.05, "as in stage 1"),
        "loss": paper("one-way"),
        "query_tokens": ours(64, "exam questions"),
        "passage_tokens": ours(96, "as in stage 1"),
        "hard_negatives": ours(3, "EXAMS has three or four wrong options"),
        "contrastive_weight": e5(0.2, "recollection of E5's Table 11 (unverified); SimLM's script has the same"),
        "teacher_temperature": ours(1.0, "SimLM uses the teacher's raw logits"),
        "mine_depth": ours(30, "scaled from the top 200 of SimLM to small corpora"),
        **_FILTERS,
        "teacher": ours("trained", "offline: no cross-encoder in the package index"),
        "teacher_steps": ours(50, "under a minute on two cores"),
    },
    "evaluate": {
        "heldout_strings": ours(300, "every language with so many held-out strings, by rule"),
        "intent_languages": ours(12, "keeps the classification task under a minute"),
        "map_sentences": ours(60, "meanings on the map, each in every language"),
        "model": ours("me5-small-q4", "the released mE5-small, the one that the package index carries"),
    },
}

_SMOKE = {
    "data": {**_TINY_DATA, "sources": ours(("cldr",), "no download"), "labelled": ours(("cldr-facts",), "no download")},
    "model": {
        **_TINY["model"],
        "width": ours(64, "seconds"),
        "heads": ours(2, "seconds"),
        "feedforward": ours(128, "seconds"),
        "vocabulary": ours(4_000, "seconds"),
        "max_tokens": ours(64, "seconds"),
    },
    "train": {
        **_TINY["train"],
        "steps": ours(30, "seconds"),
        "batch": ours(128, "seconds"),
        "warmup": ours(3, "a tenth of the steps"),
        "query_tokens": ours(16, "names are short"),
        "passage_tokens": ours(16, "names are short"),
    },
    "finetune": {
        **_TINY["finetune"],
        "steps": ours(8, "seconds"),
        "batch": ours(32, "seconds"),
        "warmup": ours(1, "a tenth of the steps"),
        "query_tokens": ours(16, "names are short"),
        "passage_tokens": ours(16, "names are short"),
        "teacher_steps": ours(8, "seconds"),
    },
    "evaluate": {
        "heldout_strings": ours(20, "seconds"),
        "intent_languages": ours(3, "seconds"),
        "map_sentences": ours(10, "seconds"),
        "model": ours(UNTRAINED, "no download"),
    },
}

_ABLATE = {
    "data": _TINY_DATA,
    "model": {
        **_TINY["model"],
        "width": ours(128, "half of tiny: an experiment trains some eighty models"),
        "heads": ours(2, "64 dimensions a head, as in the paper's backbones"),
        "feedforward": ours(512, "four times the width, as in the paper's backbones"),
        "vocabulary": ours(16_000, "half of tiny: fewer pairs to learn its rows from"),
    },
    "train": {
        **_TINY["train"],
        "steps": ours(300, "about half a minute on two cores"),
        "batch": ours(256, "half of tiny, for more steps in the same time"),
        "warmup": ours(30, "a tenth of the steps"),
    },
    "finetune": {
        **_TINY["finetune"],
        "steps": ours(60, "a fifth of stage 1; ten seconds on two cores, with what it needs"),
        "batch": ours(64, "half of tiny, for more steps in the same time"),
        "warmup": ours(6, "a tenth of the steps"),
        "teacher_steps": ours(40, "a few seconds on two cores"),
    },
    "evaluate": {
        **_TINY["evaluate"],
        "map_sentences": ours(10, "no map is drawn"),
    },
}

_STAGE_1 = {
    "steps": paper(30_000, "30k steps of 32k pairs, about one pass over 1B pairs"),
    "batch": paper(32_768, "32k"),
    "warmup": e5(1000, "recollection of E5's Table 11 (unverified)"),
    **_OPTIMISER,
    "temperature": card(0.01, "FAQ of the card: low temperature 0.01"),
    "loss": paper("one-way", "InfoNCE, in-batch negatives only"),
    "query_tokens": e5(128, "recollection of E5's Table 11 (unverified)"),
    "passage_tokens": e5(128, "recollection of E5's Table 11 (unverified)"),
}

_STAGE_2 = {
    "steps": ours(6_234, "the paper's 2 epochs of 1,596k examples at batch 512, in steps"),
    "batch": paper(512),
    "warmup": e5(400, "recollection of E5's Table 11 (unverified)"),
    **_OPTIMISER,
    "temperature": card(0.01, "FAQ of the card: low temperature 0.01"),
    "loss": paper("one-way"),
    "query_tokens": e5(192, "recollection of E5's Table 11 (unverified)"),
    "passage_tokens": e5(192, "recollection of E5's Table 11 (unverified)"),
    "hard_negatives": e5(7, "recollection of E5's Table 11 (unverified); mE5's number is not published"),
    "contrastive_weight": e5(0.2, "recollection of E5's Table 11 (unverified); mE5's weight is not published"),
    "teacher_temperature": ours(1.0, "SimLM uses the teacher's raw logits"),
    "mine_depth": ours(200, "SimLM mines from the top 200; mE5's depth is not published"),
    **_FILTERS,
    "teacher": ours("BAAI/bge-reranker-v2-m3", "the paper's cross-encoder is not public; a public multilingual one"),
}

_HUB_DATA = {
    "sources": paper(
        ("wikipedia", "mc4", "cc-news", "nllb", "reddit", "s2orc", "stackexchange", "xp3", "sbert-misc"), "Table 1"
    ),
    "labelled": paper(
        ("msmarco-passage", "msmarco-document", "nq", "triviaqa", "squad", "nli", "eli5", "nllb-finetune", "dureader",
         "fever", "hotpotqa", "quora", "mrtydi", "miracl"), "Table 2"
    ),
    "language_temperature": ours(0.5, "not published"),
    "homogeneous": ours(1.0, "not published"),
    "heldout_share": ours(0.0, "evaluation sets are separate"),
}

_FULL_EVALUATE = {
    "heldout_strings": ours(1000, "the size of most Tatoeba sets"),
    "intent_languages": ours(51, "all languages of MASSIVE"),
    "map_sentences": ours(1000, "a Tatoeba set"),
    "model": ours("intfloat/multilingual-e5-small", "the released model of the smallest size"),
}


def _published(backbone: str, layers: int, width: int, heads: int, vocabulary: int, lr: float, **more: Given) -> dict:
    """A scale of the paper: the rows of its training table that differ between sizes."""
    return {
        "data": _HUB_DATA,
        "model": {
            "backbone": card(backbone),
            "layers": card(layers),
            "width": card(width),
            "heads": card(heads, "configuration of the backbone"),
            "feedforward": card(4 * width, "configuration of the backbone"),
            "vocabulary": card(vocabulary, "configuration of the backbone"),
            "max_tokens": card(512),
        },
        "train": {**_STAGE_1, "lr": paper(lr), **more},
        "finetune": {**_STAGE_2, "lr": paper(lr / 10)},
        "evaluate": _FULL_EVALUATE,
    }


_SMALL = _published("microsoft/Multilingual-MiniLM-L12-H384", 12, 384, 12, 250_037, 3e-4)
_LARGE = _published("xlm-roberta-large", 24, 1024, 16, 250_002, 1e-4)

PRESETS: dict[str, dict] = {
    "smoke": _SMOKE,
    "tiny": _TINY,
    "ablate": _ABLATE,
    "workshop": _published(
        "microsoft/Multilingual-MiniLM-L12-H384", 12, 384, 12, 250_037, 3e-4,
        steps=ours(2_000, "about two hours on one GPU"), batch=ours(4_096, "one GPU"),
    ),
    "small": _SMALL,
    "base": _published("xlm-roberta-base", 12, 768, 12, 250_002, 2e-4),
    "large": _LARGE,
    "large-instruct": _LARGE,
}
_ROOMS = {"data": Data, "model": Model, "train": Stage, "finetune": Stage, "evaluate": Evaluate}


def load(name: str, overrides: Iterable[str] = ()) -> Scale:
    """The preset `name` with `overrides` such as `train.steps=100`.

    Raises `Me5Error` for an unknown scale, an unknown dial or a value of the wrong type.
    """
    if name not in PRESETS:
        raise Me5Error(f"unknown scale {name!r}: choose one of {', '.join(PRESETS)}")
    given = {f"{room}.{key}": value for room, dials in PRESETS[name].items() for key, value in dials.items()}
    for override in overrides:
        key, _, text = override.partition("=")
        if key not in _dials():
            raise Me5Error(f"unknown dial {key!r}{_did_you_mean(key)}: dials are written as in train.steps=100")
        given[key] = ours(_parse(key, text), BY_HAND)
    rooms = {
        room: cls(**{k.partition(".")[2]: v.value for k, v in given.items() if k.startswith(f"{room}.")})
        for room, cls in _ROOMS.items()
    }
    return Scale(name, **rooms, provenance={k: (v.source, v.why) for k, v in given.items()})


def overrides(scale: Scale) -> list[str]:
    """The dials that were set by hand, as `load` takes them: `["train.steps=100"]`."""
    by_hand = [key for key, (_, why) in scale.provenance.items() if why == BY_HAND]
    values = {key: getattr(getattr(scale, key.partition(".")[0]), key.partition(".")[2]) for key in by_hand}
    return [f"{key}={','.join(value) if isinstance(value, tuple) else value}" for key, value in values.items()]


def _dials() -> dict[str, str]:
    return {f"{room}.{f.name}": str(f.type) for room, cls in _ROOMS.items() for f in dataclasses.fields(cls)}


def _did_you_mean(key: str) -> str:
    near = difflib.get_close_matches(key, _dials(), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _parse(key: str, text: str) -> Any:
    kind = _dials()[key]
    try:
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return {"int": int, "float": float, "str": str}[kind](text)
    except ValueError:
        raise Me5Error(f"{key} wants {kind}, not {text!r}") from None
