"""`me5 diagnose` on runs of which the cause is known: planted causes and healthy runs, none of which tuned it.

    python tests/benchmarks/diagnose.py [--out runs/diagnose] [--json FILE]
    python tests/benchmarks/diagnose.py --tuned             # those on which the ends of scales were set, only shown

Stage 1: preset random, 70 steps, a dozen random languages kept to a share of their rows. Stage 2: the upper layers of
the real model over kept hidden states, 40 steps of corpus rows with false negatives, or of random ones; with
instructions, as in lessons/instructed.py, 60 steps with some permuted or alike. Runs go through `stages.pretrain` and
`stages.finetune`, so that their records are a user's; of stage 2 `start_encoder` is replaced, to share kept states.
It goes on where it was stopped. Half a minute a run on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from me5lib import config, io
from me5lib.data.corpus import open_corpus
from me5lib.data.mixture import Mixture
from me5lib.evaluate.runs import hardware
from me5lib.instruct.synthetic import read_examples
from me5lib.instruct.template import templated
from me5lib.lessons import diagnose
from me5lib.lessons.instructed import human_rows, in_twos, permuted
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import instruct_prompts
from me5lib.pairs import Labelled
from me5lib.train import labelled, stages
from me5lib.train.upper import UpperLayers

ALIKE, LANGUAGES = "Retrieve what is wanted", 12
FINE = ["finetune.warmup=4", "finetune.query_tokens=64", "finetune.passage_tokens=64", "finetune.frozen=9"]
MINING = [*FINE, "finetune.steps=40", "finetune.batch=16", "finetune.lr=0.0001", "finetune.temperature=0.02",
          "finetune.hard_negatives=2"]  # fmt: skip
INSTRUCT = [*FINE, "finetune.steps=60", "finetune.batch=16", "finetune.lr=0.00015", "finetune.temperature=0.02",
            "finetune.hard_negatives=1"]  # fmt: skip
PRETRAIN = ["train.steps=70", "train.warmup=7"]


class Run(NamedTuple):
    """A run: what was planted (cause "" where nothing was), how, how much of it; its seed and settings."""

    stage: str  # pretrain, finetune, instruct
    cause: str
    kind: str
    share: float  # of the rows it is done to; of languages, what they keep
    seed: int
    settings: Sequence[str] = ()

    @property
    def name(self) -> str:
        """For people and folders."""
        return f"{self.stage}-{self.cause or 'healthy'}-{self.kind}-{self.share:g}-{self.seed}".replace(" ", "-")


LANGUAGE, NEGATIVE, INSTRUCTION = "data share", "mining", "instructions"
TUNED = [
    Run("pretrain", LANGUAGE, "starved", 0.3, 101), Run("pretrain", LANGUAGE, "starved", 0.1, 103),
    Run("pretrain", "", "whole", 1, 100), Run("pretrain", "", "whole", 1, 102, ["data.language_temperature=0.4"]),
    Run("pretrain", "", "whole", 1, 104, ["data.language_temperature=0.6", "train.lr=0.001"]),
    Run("finetune", NEGATIVE, "copies", 0.5, 111), Run("finetune", NEGATIVE, "random", 1, 112),
    Run("finetune", "", "mined", 1, 110),
    Run("instruct", INSTRUCTION, "permuted", 0.3, 122), Run("instruct", "", "true", 1, 120),
]
JUDGED = [
    *(Run("pretrain", LANGUAGE, "starved", share, i) for i, share in enumerate((0.3, 0.3, 0.1, 0.1, 0.0), 1)),
    *(Run("finetune", NEGATIVE, kind, share, i) for i, (kind, share) in enumerate(
        [("copies", 1.0), ("copies", 0.5), ("copies", 0.25), ("translations", 0.5), ("random", 1.0)], 11)),
    *(Run("instruct", INSTRUCTION, kind, share, i) for i, (kind, share) in enumerate(
        [("permuted", 1.0), ("permuted", 0.6), ("permuted", 0.3), ("alike", 1.0), ("alike", 0.6)], 21)),
    Run("pretrain", "", "whole", 1, 31), Run("pretrain", "", "whole", 1, 32, ["data.language_temperature=0.3"]),
    Run("pretrain", "", "whole", 1, 33, ["train.lr=0.001"]), Run("pretrain", "", "whole", 1, 34, ["train.steps=100"]),
    Run("finetune", "", "mined", 1, 41), Run("finetune", "", "mined", 1, 42, ["finetune.lr=0.00005"]),
    Run("finetune", "", "mined", 1, 43, ["finetune.hard_negatives=3", "finetune.steps=30"]),
    Run("instruct", "", "true", 1, 51), Run("instruct", "", "true", 1, 52, ["finetune.lr=0.0001"]),
    Run("instruct", "", "true", 1, 53, ["finetune.steps=80"]),
]  # fmt: skip


class View:
    """A corpus of which something is replaced."""

    def __init__(self, corpus: Any, **other: Any) -> None:
        self.corpus = corpus
        self.__dict__.update(other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpus, name)


@cache
def shared() -> tuple[Any, UpperLayers]:
    """The corpus, and the real model's upper layers over kept states."""
    return open_corpus(config.load("tiny")), UpperLayers(Encoder.load("me5-small-q4"), 4)


def starved(corpus: Any, run: Run) -> Callable[..., Mixture]:
    """Its mixture where random languages have fewer rows, so many that `share` of what was drawn of them is left."""
    languages = list(corpus.task("heldout").sets)
    out = np.random.default_rng(run.seed).choice(languages, LANGUAGES, replace=False).tolist() if run.cause else []

    def mixture(*arguments: Any) -> Mixture:
        full, shards = corpus.mixture(*arguments), {}
        for key, shard in full.shards.items():
            rows = round(shard.rows * run.share ** (1 / full.temperature)) if key[1] in out else shard.rows
            if rows:
                shards[key] = SimpleNamespace(rows=rows, columns=shard.columns, read=shard.read)
        weights = {source: full.weights[source] for source, _ in shards}
        return Mixture(shards, steps=full.steps, batch=full.batch_size, seed=full.seed, weights=weights,
                       temperature=full.temperature, homogeneous=full.homogeneous)  # fmt: skip

    return mixture


def pretrained(run: Run, folder: Path) -> diagnose.Stage:
    """Stage 1."""
    scale, kept = config.load("random", [*PRETRAIN, *run.settings]), folder.parent / "tokenizer"
    corpus = open_corpus(scale)
    if kept.is_dir():
        shutil.copytree(kept, folder / "tokenizer", dirs_exist_ok=True)
    view = View(corpus, mixture=starved(corpus, run))
    done = stages.pretrain(scale, run.seed, folder, corpus=view, evaluate=lambda *_: {}, every=10**6, progress=False)
    shutil.copytree(folder / "tokenizer", kept, dirs_exist_ok=True)
    start = stages.initial_encoder(scale, run.seed, folder, corpus)
    drawn = view.mixture(scale, run.seed, scale.train).languages()
    return diagnose.Stage(Encoder.load(done), start, corpus, drawn)


def with_false_negatives(rows: Sequence[Labelled], run: Run, corpus: Any) -> list[Labelled]:
    """In a share of the rows the first negative is a copy of the answer, edited; or its English, where it has one."""
    rng, english, found = np.random.default_rng(run.seed), {}, []
    for row in rows:
        right = row.positives[0]
        wrong = f"{right}."
        if run.kind == "translations":
            if row.language not in english:
                english[row.language] = dict(zip(*reversed(corpus.memory(row.language)), strict=True))
            wrong = english[row.language].get(right, wrong)
        found.append(row._replace(negatives=(wrong, *row.negatives)) if rng.random() < run.share else row)
    return found


def with_instructions(run: Run, corpus: Any) -> list[Labelled]:
    """Human text and synthetic rows; a share of the rows has another's instruction, or all the same."""
    rows = in_twos(human_rows(corpus)) + [row.labelled() for row in read_examples()]
    wrong = ([row._replace(instruction=ALIKE) for row in rows] if run.kind == "alike" else permuted(rows, run.seed))
    bad = np.random.default_rng(run.seed).random(len(rows)) < (run.share if run.cause else 0)
    return templated([other if ill else row for row, other, ill in zip(rows, wrong, bad, strict=True)])


def finetuned(run: Run, folder: Path) -> diagnose.Stage:
    """Stage 2, with instructions or without."""
    corpus, upper = shared()
    instructs = run.stage == "instruct"
    scale = config.load("tiny", [*(INSTRUCT if instructs else MINING), *run.settings])
    if instructs:
        rows, kind = with_instructions(run, corpus), "labelled"
    else:
        drawn = np.random.default_rng(run.seed).permutation(len(every := corpus.labelled()))[:1500]
        rows, kind = [every[i] for i in drawn], "random" if run.kind == "random" else "mined"
        if run.cause:
            rows = with_false_negatives(rows, run, corpus) if kind == "mined" else rows
    view = View(corpus, labelled=lambda part="stage 2": rows if part == "stage 2" else corpus.labelled(part),
                fingerprint=run.name)  # fmt: skip
    if instructs:
        view.__dict__.update(prefixes=lambda source: ("", ""), prompts=instruct_prompts())
    tuned = upper.copy()  # trained in place
    with mock.patch.object(stages, "start_encoder", lambda *_: tuned):
        done = stages.finetune(scale, run.seed, folder, start="me5-small-q4", teacher=False, negatives=kind,
                               corpus=view, evaluate=lambda *_: {}, progress=False)  # fmt: skip
    groups = list(labelled.read_groups(done / labelled.GROUPS).values())
    return diagnose.Stage(tuned.eval(), upper, corpus, groups=groups)


def judged(run: Run, out: Path) -> dict[str, Any]:
    """The suspects of a run, kept; its weights are not."""
    path = out / "records" / f"{run.name}.json"
    if not path.is_file():
        began, folder = time.monotonic(), out / run.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stage = (pretrained if run.stage == "pretrain" else finetuned)(run, folder)
        trained = time.monotonic() - began
        suspects = diagnose.suspects(stage, run.stage)
        io.put_json(path, {**run._asdict(), "trained": round(trained), "seconds": round(time.monotonic() - began),
                           "suspects": [{"cause": one.cause, "score": one.score, "named": one.score >= diagnose.NAMED,
                                         "measures": [{"mean": own.value.mean, "weight": own.weight}
                                                      for own in (one.symptom, *one.evidence)]} for one in suspects]})
        shutil.rmtree(folder)
    found = io.read_json(path)
    said = (f"| {one['cause']} {one['score']:.2f}: " + ", ".join(f"{own['mean']:.3f} → {own['weight']:.2f}"
            for own in one["measures"]) for one in found["suspects"])  # fmt: skip
    print(run.name, f"{found['trained']}+{found['seconds'] - found['trained']} s", *said, flush=True)
    return found


def table(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Planted cause → what was named first, how often ("none": nothing); names of runs that are wrong."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for one in records:
        first = next((each["cause"] for each in one["suspects"] if each["named"]), "none")
        counts[one["cause"] or "none"][first] += 1
        wrong += [Run(*(one[field] for field in Run._fields)).name] * (first != (one["cause"] or "none"))
    return {"planted": counts, "wrong": wrong}


def brief(one: dict[str, Any]) -> dict[str, Any]:
    """A record without the words that all share."""
    found = {each["cause"]: [round(each["score"], 3), *(round(own["mean"], 3) for own in each["measures"])]
             for each in one["suspects"]}  # fmt: skip
    return {**{field: one[field] for field in Run._fields}, "score, symptom, evidence": found}


def main() -> None:
    """See above."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("runs/diagnose"))
    options.add_argument("--json", type=Path, default=io.asset("notebooks") / "results" / "diagnose.json")
    options.add_argument("--tuned", action="store_true")
    asked = options.parse_args()
    records = [judged(run, asked.out) for run in (TUNED if asked.tuned else JUDGED)]
    if asked.tuned:
        return
    made = {"stored": "tests/benchmarks/diagnose.py", "date": str(date.today()), "hardware": hardware(),
            "named from": diagnose.NAMED, **table(records), "judged": list(map(brief, records))}  # fmt: skip
    io.put_json(asked.json, made)
    print(json.dumps({name: made[name] for name in ("planted", "wrong")}))


if __name__ == "__main__":
    main()
