"""What is wrong with a run: each failure signature is measured on held-out material, and its cause looked for.

    found = diagnose(Path("runs/tiny/seed-0"))     # a run's folder, or that of a stage of it; the likeliest cause first
    found = slow_reading(my_encode)                # a function texts → vectors, by whatever library
    print(*write(found, folder), sep="\\n")         # leaves diagnosis.md, .json and .png there

A symptom is measured on a stage's model beside its start. Evidence of the suspected cause is in the stage's records:
the rows that its plan drew of each language, the groups that it learnt (`groups.jsonl`), read with the start model.
Each weighs from 0 (as where all is well) to 1. A symptom has many causes, so that evidence counts twice: a suspect's
score is (symptom + 2 · strongest evidence) / 3; it is named from `NAMED` on, which no symptom alone reaches. All ends
of scales are ours, set on ten runs of known cause and judged on others: tests/benchmarks/diagnose.py, LOG.md there.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from me5lib import config, io
from me5lib.config import RELEASED
from me5lib.data import cards
from me5lib.data.corpus import SPECIAL, Corpus, only_cldr, open_corpus
from me5lib.device import best_device, precision
from me5lib.evaluate import heldout, stats
from me5lib.evaluate.heldout import Question, Search, row_searches
from me5lib.evaluate.stats import Interval
from me5lib.instruct.template import templated
from me5lib.io import Me5Error
from me5lib.lessons import figures
from me5lib.lessons.instructed import twin_tests
from me5lib.lessons.run import needs_no_hub
from me5lib.model.encoder import Encoder, FastEncoder
from me5lib.model.resolve import stage_settings
from me5lib.model.text import instruct
from me5lib.pairs import Labelled, text_key
from me5lib.train import labelled, mining, stages
from me5lib.train.search import DenseIndex, Pool, margin_ratio_of

NAMED = 0.4  # score from which on a cause is named
STRINGS, SAMPLED, OF_A_POOL, TWINS = 60, 300, 40, 150  # of a language; rows looked at, of them of one pool; of a set
LONGEST = 96  # tokens of a text
ALT = ("Symptoms (squares) and evidence (dots) with intervals, between where all is well and as ill as can be told; in "
       "orange, of a cause that is named.")
ASKED, _, BETWEEN = instruct("\0", "").partition("\0")  # stands before an instruction, and between it and the query


class Measure(NamedTuple):
    """A number with its interval, and what it is where all is `well` and where it is as `ill` as can be told."""

    what: str
    value: Interval
    well: float
    ill: float

    @property
    def weight(self) -> float:
        """From 0 (well) to 1 (ill)."""
        return float(np.clip((self.value.mean - self.well) / (self.ill - self.well), 0, 1))


class Suspect(NamedTuple):
    """What a signature points to in a stage."""

    stage: str
    signature: str
    cause: str
    command: str  # to try next
    symptom: Measure
    evidence: Sequence[Measure]

    @property
    def score(self) -> float:
        """From 0 to 1."""
        return (self.symptom.weight + 2 * max(one.weight for one in self.evidence)) / 3


class Stage(NamedTuple):
    """A finished stage: its model, what it started from, held-out material, its records as far as they are known."""

    model: Encoder
    start: Encoder
    corpus: Corpus
    drawn: Mapping[str, int] = {}  # language → rows
    groups: Sequence[Labelled] = ()  # with their negatives

    def ranks(self, tests: Sequence[Search]) -> np.ndarray:
        """The reciprocal rank of every query by the start and by the model, float64 [2, queries]."""
        return np.stack([heldout.query_scores({"": tests}, encoder, LONGEST)[""] for encoder in self[1::-1]])

    def vectors(self, texts: Sequence[str], prefix: str = "") -> np.ndarray:
        """Unit vectors by the start, fp32 [n, d], in training's precision."""
        return self.start.encode(texts, prefix, max_tokens=LONGEST, precision=precision(self.start.device).name)


# ---- the signatures: symptom, evidence -------------------------------------------------------------------------------


def poor_languages(stage: Stage) -> tuple[Measure, list[Measure]]:
    """Do languages that were drawn least fall behind? Headroom is what the start left to gain."""
    sets = stage.corpus.task("heldout").sets
    tests = [Search.bitext(*(side[:STRINGS] for side in both)) for both in sets.values()]
    before, after = stage.ranks(tests).reshape(2, len(sets), -1).mean(axis=2)
    closed = (after - before) / np.maximum(1 - before, 1e-9)
    drawn = np.array([stage.drawn.get(language, 0) for language in sets])
    least, *_, third, most = np.array_split(np.argsort(drawn, kind="stable"), 4)
    half = max(1e-9, closed[np.concatenate([third, most])].mean())
    lack = 1 - drawn[least].mean() / max(1, drawn.mean())
    return (Measure("headroom that the least drawn quarter of languages left, of what the better half closed",
                    stats.bootstrap(1 - closed[least] / half), 0.35, 0.7),
            [Measure("rows that this quarter lacks, of an even share", Interval(lack, lack, lack), 0.62, 0.8)])


def weak_retrieval(stage: Stage) -> tuple[Measure, list[Measure]]:
    """Does held-out search gain little? Are negatives as like a positive as what `mining.near_positive` drops, or
    farther from the query than most passages? (Where instructions are read, a translation may well be wrong.)"""
    asked, dev = bool(instructed(stage.groups)), sampled(stage.corpus.labelled("dev"))
    tests = row_searches(Question(row, "") for row in (templated(dev) if asked else dev))
    before, after = stage.ranks([test._replace(prefixes=("", "")) for test in tests] if asked else tests)
    rows, false, easy = sampled([row for row in stage.groups if row.negatives]), [], []
    for places in mining.by_pool(rows).values():
        own = [rows[i] for i in places]
        pool, prefixes = Pool.of(own), ("", "") if asked else stages.card_prefixes(own[0].source)
        index = DenseIndex(stage.vectors(pool.texts, prefixes[1]))
        scores = stage.vectors([row.query for row in own], prefixes[0]) @ index.vectors.T
        for row, cosines in zip(own, scores, strict=True):
            wrong = np.array([pool.row_of[text_key(text)] for text in row.negatives])
            ratio = margin_ratio_of(wrong[None], [pool.positives(row)], index)
            false.append(not asked and ratio.max() > mining.DEFAULT_NEAR)
            easy.append((cosines[wrong] < np.median(cosines)).mean())
    return (Measure("gain in mean reciprocal rank of held-out search", stats.bootstrap(after - before), 0.0, -0.04),
            [Measure("groups with a negative as like the answer as a copy or a translation", stats.bootstrap(false),
                     0.08, 0.25),
             Measure("negatives farther from the query than most passages", stats.bootstrap(easy), 0.3, 0.45)])


def idle_instructions(stage: Stage) -> tuple[Measure, list[Measure]]:
    """Is a query read alike under two instructions? Is the own instruction no nearer to a row than another row's?"""
    sets = [twin_tests(name, stage.corpus.task(name).sets)[0] for name in ("xquad", "fastapi")]
    tests = [own[i].instructed() for own in sets for i in np.random.default_rng(0).permutation(len(own))[:TWINS]]
    right = (stage.ranks(tests)[1] == 1).reshape(-1, 2).all(axis=1)
    rows = sampled(instructed(stage.groups))
    texts = [" ".join(text.rpartition(BETWEEN)[2] for text in (row.query, row.positives[0])) for row in rows]
    tasks, own = np.unique([row.query[len(ASKED) :].partition(BETWEEN)[0] for row in rows], return_inverse=True)
    scores = stage.vectors(texts) @ stage.vectors(tasks.tolist()).T
    scores = (scores - scores.mean(axis=0))[:, own]  # of every row with the instructions of all rows, hubs brought down
    other = own[:, None] != own
    nearer = ((scores >= scores.diagonal()[:, None]) & other).sum(axis=1) / np.maximum(1, other.sum(axis=1))
    return (Measure("twins of held-out human text (one query, two instructions) of which not both are right",
                    stats.bootstrap(~right), 0.3, 0.6),
            [Measure("others' instructions nearer to a row than its own", stats.bootstrap(nearer), 0.22, 0.36),
             Measure("rows under the commonest instruction", stats.bootstrap(own == np.bincount(own).argmax()),
                     0.4, 0.9)])


def instructed(groups: Sequence[Labelled]) -> list[Labelled]:
    """Those that have an instruction."""
    return [row for row in groups if row.query.startswith(ASKED)]


def sampled(rows: Sequence[Labelled]) -> list[Labelled]:
    """About `SAMPLED` rows: pools (source and language) in a random order, each with at most `OF_A_POOL`."""
    rng, found, pools = np.random.default_rng(0), [], list(mining.by_pool(rows).values())
    for i in rng.permutation(len(pools)):
        if len(found) < SAMPLED:
            found += [rows[j] for j in rng.permutation(pools[i])[:OF_A_POOL]]
    return found


def slow_reading(encode: Callable[[Sequence[str]], object], model: str = RELEASED[0], rounds: int = 2) -> list[Suspect]:
    """Why is a function that encodes texts slow on this CPU? It is given short texts, long ones, both mixed, and one.

    The symptom is its time beside that of `FastEncoder` with the same threads; evidence are its own times beside one
    another, and with all threads. Of each the shortest of `rounds` counts. It takes as long as `encode` does for 800
    texts, half of them of 75 tokens. Batches of more than 64 hold short and long texts here, and count as padded.
    """
    ours, threads = FastEncoder.load(model, "fp32").encode, torch.get_num_threads()
    short, long = ["How do I pay for it?"] * 64, ["How do I pay for it? " * 12] * 64
    mixed = [text for both in zip(short, long, strict=True) for text in both]
    runs = {"short": (encode, short), "long": (encode, long), "mixed": (encode, mixed), "one": (encode, short[:1]),
            "ours": (ours, mixed), "ours, one": (ours, short[:1])}  # fmt: skip
    took: dict[str, list[float]] = defaultdict(list)
    seconds(encode, short[:1])  # what only a first call costs is no cause
    for _ in range(rounds):
        for name, (function, texts) in runs.items():
            took[name].append(seconds(function, texts))
        torch.set_num_threads(os.cpu_count() or threads)
        took["all threads"].append(seconds(encode, mixed))
        torch.set_num_threads(threads)
    best = {name: min(own) for name, own in took.items()}

    def _measure(what: str, value: float, well: float, ill: float) -> Measure:
        return Measure(what, Interval(value, value, value), well, ill)

    slower = _measure("times as long as FastEncoder takes for mixed texts", best["mixed"] / best["ours"], 2.5, 5)
    causes = {
        "loading": ("loading the model once", [_measure("times as long as FastEncoder takes for one text",
                                                        best["one"] / best["ours, one"], 8, 20)]),
        "padding": ("sorting texts by length, padding to a batch's longest",
                    [_measure("texts of two lengths mixed, of what they take apart",
                              best["mixed"] / (best["short"] + best["long"]), 1.25, 1.7),
                     _measure("short texts, of what long ones take", best["short"] / best["long"], 0.35, 0.7)]),
        "one text at a time": ("giving many texts at once", [_measure("a text among 64, of a text alone",
                                                                      best["short"] / 64 / best["one"], 0.5, 0.8)]),
        "few threads": ("torch.set_num_threads", [_measure("times as long as with all threads",
                                                           best["mixed"] / best["all threads"], 1.2, 1.5)]),
    }  # fmt: skip
    found = [Suspect("reading", "slow inference", cause, way, slower, own) for cause, (way, own) in causes.items()]
    return sorted(found, key=lambda one: -one.score)


def seconds(encode: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """What a call takes."""
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start


# ---- a run -----------------------------------------------------------------------------------------------------------


def suspects(stage: Stage, name: str) -> list[Suspect]:
    """What each signature that has its record points to, the likeliest cause first."""
    signatures = [
        (stage.drawn, "poor in some languages", "data share", "me5 pretrain --set data.language_temperature=0.3",
         poor_languages),
        (any(row.negatives for row in stage.groups), "weak retrieval", "mining",
         "me5 finetune --set finetune.near=1.03", weak_retrieval),
        (instructed(stage.groups), "instructions do not help", "instructions", "me5 synthesise --check",
         idle_instructions),
    ]  # fmt: skip
    found = [Suspect(name, *words, *measure(stage)) for there, *words, measure in signatures if there]
    return sorted(found, key=lambda one: -one.score)


def diagnose(folder: Path) -> list[Suspect]:
    """The suspects in the stages of a run, or in one stage, by its folder, the likeliest first.

    Raises `Me5Error` where there is no finished stage, none of which a record is known, or a start is not at hand.
    """
    places = [place for place in (folder, *sorted(folder.glob("*"))) if (place / "config.json").is_file()
              and stage_settings(place)]  # fmt: skip
    found = [one for place in places for one in suspects(open_stage(place), place.name)]
    if not found:
        why = "no record of what its stages drew or learnt" if places else "no finished stage of training"
        raise Me5Error(f"{folder} has {why}: name the folder of a run on the packs, as `me5 run` leaves it")
    return sorted(found, key=lambda one: -one.score)


def open_stage(folder: Path) -> Stage:
    """A finished stage by its folder; the start of a stage 2 is the stage beside it of that fingerprint, or a model."""
    made = stage_settings(folder)["settings"]
    data = {name: tuple(value) if isinstance(value, list) else value for name, value in made["data"].items()}
    data["labelled"] = tuple(name for name in data["labelled"] if name in SPECIAL or name in cards.card_names())
    scale = config.load("smoke" if only_cldr(own := config.Data(**data)) else "tiny")
    scale = dataclasses.replace(scale, data=own, model=config.Model(**made["model"]))
    needs_no_hub(scale)
    corpus, start = open_corpus(scale), made.get("start", stages.RANDOM)
    if start == stages.RANDOM:
        before = stages.initial_encoder(scale, made["seed"], folder.parent, corpus)
    else:
        beside = (place.parent for place in folder.parent.glob("*/stage.json"))
        same = [place for place in beside if stage_settings(place)["fingerprint"] == start]
        before = Encoder.load(same[0] if same else start.partition("@")[0])
    plan, groups = corpus.mixture(scale, made["seed"], config.Stage(**made["stage"])), folder / labelled.GROUPS
    return Stage(Encoder.load(folder).to(best_device()), before.to(best_device()), corpus,
                 plan.languages() if plan.fingerprint == made["plan"] else {},
                 list(labelled.read_groups(groups).values()) if groups.is_file() else ())


def write(found: Sequence[Suspect], folder: Path) -> list[str]:
    """Leave diagnosis.md, .json and .png in `folder`; the lines."""
    lines = []
    for one in found:
        verdict = f"suspected; try {one.command}" if one.score >= NAMED else "not suspected"
        lines.append(f"- {one.stage}: {one.signature}? {one.cause} (score {one.score:.2f}, from {NAMED} on): {verdict}")
        for kind, (what, value, well, ill) in (("symptom", one.symptom), *(("evidence", own) for own in one.evidence)):
            lines.append(f"  - {kind}: {what}: {value.mean:.2f} ({value.low:.2f} to {value.high:.2f}; well {well:g}, "
                         f"ill {ill:g})")
    page = ["# Diagnosis", "", *lines, "", f"![{ALT}](diagnosis.png)", ""]
    io.put_text(folder / "diagnosis.md", "\n".join(page))
    io.put_json(folder / "diagnosis.json", [one._asdict() | {"score": one.score} for one in found])
    figures.keep(picture(found), folder / "diagnosis.png",
                 ALT)
    return [*lines, f"diagnosis.md, .json and .png: {folder}"]


def picture(found: Sequence[Suspect]) -> Figure:
    """Where every measure lies between well (0) and ill (1), with its interval; in orange, a suspect that is named."""
    rows = [(one, own) for one in reversed(found) for own in (*reversed(one.evidence), one.symptom)]
    figure, axis = figures.canvas(8, 1 + 0.5 * len(rows))
    for y, (one, own) in enumerate(rows):
        at, low, high = np.clip((np.array(own.value) - own.well) / (own.ill - own.well), -0.5, 1.5)
        axis.plot([low, high], [y, y], color=(colour := figures.COLOURS[one.score >= NAMED]))
        axis.plot(at, y, "s" if own is one.symptom else "o", color=colour)
    words = [f"{one.stage}, {'symptom' if own is one.symptom else 'evidence'} of {one.cause}:\n"
             + textwrap.shorten(own.what, 60, placeholder=" …") for one, own in rows]  # fmt: skip
    axis.set_yticks(range(len(rows)), words, fontsize=8)
    axis.axvspan(0, 1, color=figures.GREY, alpha=0.15, linewidth=0)
    axis.set(xlim=(-0.6, 1.6), xticks=[0, 1], xticklabels=["well", "ill"], ylim=(-0.7, len(rows) - 0.3))
    return figure
