"""The arms of an experiment: each is made, measured on every query and forgotten, but for the stage 1 that all share.

Offline scales are measured on held-out searches (`evaluate.heldout`); scales of the hub by their main scores on a
subset of English MTEB, as a table of the paper would be. All of it runs in one process.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from me5lib import io
from me5lib.lessons.experiments.plan import ENGLISH, Arm, Plan

if TYPE_CHECKING:
    from me5lib.config import Scale, Stage
    from me5lib.model.encoder import Encoder
    from me5lib.train.loop import Work

Scores = dict[str, np.ndarray]


class Lab:
    """What the arms of a plan share: corpus, tests, and a folder per seed with its stage 1."""

    def __init__(self, plan: Plan, base: Path, corpus: Any) -> None:
        self.plan, self.base, self.corpus = plan, base, corpus
        self._tests: Any = None

    def measured(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Make the model of `arm` and measure it: `scores`, `facts`, `conditions` and `seconds`; JSON types.

        Its folder is removed afterwards; stage 1 stays for the other arms.
        """
        from me5lib.device import best_device, precision
        from me5lib.train import checkpoint

        began = time.perf_counter()
        folder = None if arm.rule else self.trained(arm, seed)
        scores = self.scores(arm, seed, folder)
        facts = _facts(folder) if folder else {}
        if folder and folder.name != "stage1":
            shutil.rmtree(folder)
        rounded = {name: [round(float(value), 5) for value in values] for name, values in scores.items()}
        conditions = checkpoint.conditions(best_device())
        conditions["precision"] = precision(best_device()).name
        seconds = round(time.perf_counter() - began, 1)
        return {"scores": rounded, "facts": facts, "conditions": conditions, "seconds": seconds}

    def trained(self, arm: Arm, seed: int) -> Path | None:
        """The checkpoint of `arm`; None for an untrained one."""
        from me5lib.train import stages

        dial, out = self.plan.scale, self.base / f"seed-{seed}"
        options = {"corpus": self.corpus, "evaluate": _blind, "progress": False}
        if self._tokenizer:  # the same for every seed
            shutil.copytree(self.base / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
        if arm.mixed:
            return mixed(dial, seed, out, self.corpus, arm.folder)
        start = stages.pretrain(dial, seed, out, **options) if arm.pairs else None
        if not arm.labelled:
            return start
        filters = {} if arm.filtered else {"near": 0.0, "margin": 0.0}
        dial = dataclasses.replace(dial, finetune=dataclasses.replace(_longer(dial.finetune, arm.labelled), **filters))
        return stages.finetune(dial, seed, out, start=start, name=arm.folder, negatives=arm.negatives,
                               teacher=arm.teacher, **options)

    @cached_property
    def _tokenizer(self) -> Any:
        """The vocabulary of all arms; None where the backbone brings its own."""
        from me5lib.train import stages

        return stages.vocabulary(self.corpus, self.plan.scale, self.base)

    def scores(self, arm: Arm, seed: int, folder: Path | None) -> Scores:
        """Metric → score of every query (offline), or of every task (MTEB)."""
        from me5lib.evaluate import heldout

        dial = self.plan.scale
        if dial.offline:
            self._tests = self._tests or heldout.searches(self.corpus)
            longest = max(max(stage.query_tokens, stage.passage_tokens) for stage in (dial.train, dial.finetune))
            rules = {"trigrams": lambda: heldout.trigram_cosines, "chance": lambda: heldout.random_scores(seed),
                     "": lambda: heldout.cosines(self._encoder(seed, folder), self._tests, longest)}
            return heldout.query_scores(self._tests, rules[arm.rule]())
        import mteb

        self._tests = self._tests or mteb.get_tasks(tasks=list(ENGLISH), languages=["eng"])
        return {"mteb-english": on_mteb(self._encoder(seed, folder), arm.name, self._tests, self.base / "mteb")}

    def _encoder(self, seed: int, folder: Path | None) -> Encoder:
        from me5lib.device import best_device
        from me5lib.model.encoder import Encoder

        found = Encoder.load(folder) if folder else Encoder.new(self.plan.scale.model, self._tokenizer, seed)
        return found.to(best_device())


def on_mteb(encoder: Encoder, name: str, tasks: Sequence[Any], folder: Path) -> np.ndarray:
    """The main score of every task, in their order, float64; under the paper's protocol."""
    import mteb

    from me5lib.evaluate import runs
    from me5lib.evaluate.protocol import Protocol

    model, cache = Protocol(encoder, name), mteb.ResultCache(folder)
    with runs.quiet_mteb():
        return np.array([mteb.evaluate(model, task, cache=cache, co2_tracker=False).task_results[0].get_score()
                         for task in tasks], dtype=np.float64)


def mixed(dial: Scale, seed: int, out: Path, corpus: Any, name: str) -> Path:
    """The control that knows no order: the batches of both stages, each with its own loss, shuffled into one stage.

    It begins with random weights and has stage 1's learning rate and one schedule throughout.
    """
    from me5lib.device import best_device
    from me5lib.model.encoder import Encoder
    from me5lib.train import labelled as examples
    from me5lib.train import loop, stages
    from me5lib.train.checkpoint import StageDir
    from me5lib.train.distributed import Team

    rows, last = examples.drop_invalid(corpus.labelled())[0], dial.finetune
    stage = _longer(dial.train, dial.train.steps + last.steps)
    batches, plan = corpus.mixture(dial, seed), examples.Plan(rows, last, seed, _temperature(dial))
    door = StageDir(out, name, {
        "mixed": [batches.fingerprint, plan.fingerprint], "seed": seed, "corpus": corpus.fingerprint,
        **{room: dataclasses.asdict(getattr(dial, room)) for room in ("model", "train", "finetune")},
    })  # fmt: skip
    if door.finished():
        return door.final
    encoder = Encoder.new(dial.model, stages.vocabulary(corpus, dial, out), seed).to(best_device())
    work = door.open()
    team, budget = Team.alone(encoder.device), stages.Budget.on_cpu(dial.model)
    task = examples.Task(last, plan, stages.prefixes, work, seed, team, progress=False)
    made = examples.make_groups(encoder, rows, task, "labelled")
    turns = shuffled(dial.train.steps, last.steps, seed)

    def prepare(step: int) -> Work:
        """The batch of `step`, tokenised, and how its gradient is computed."""
        labelled, turn = turns[step]
        if labelled:
            drawn, own = made.batch(plan, turn, last.hard_negatives), last
        else:
            drawn, own = batches.batch(turn), dial.train
        return stages.work_of(drawn, encoder, encoder, own, team, budget, (seed, step), stages.prefixes)

    run = loop.Run(work, seed, door.fingerprint, name, save_every=max(1, stage.steps // 5), progress=False)
    loop.train(encoder, prepare, stage, run)
    return door.publish(encoder)


def _temperature(dial: Scale) -> float:
    """As in `stages.finetune`: what was drawn from the hub was tempered then."""
    return dial.data.language_temperature if dial.offline else 1.0


def shuffled(pairs: int, labelled: int, seed: int) -> list[tuple[bool, int]]:
    """Of every step: whether its batch is a labelled one, and the how-manieth of its kind."""
    kinds = np.random.default_rng(seed).permutation(pairs + labelled) < labelled
    turns = np.where(kinds, kinds.cumsum(), (~kinds).cumsum()) - 1
    return list(zip(kinds.tolist(), turns.tolist(), strict=True))


def _facts(folder: Path) -> dict[str, Any]:
    """What a stage says of its negatives and its teacher."""
    path = folder / "report.json"
    found = io.read_json(path, {})
    mining = {key: found["mining"][key] for key in ("queries", "candidates", "kept", "dropped")} if found else {}
    return {"mining": mining, "filling": found["filling"], "teacher": found["teacher"]} if found else {}


def _longer(stage: Stage, steps: int) -> Stage:
    """The stage with so many steps, a tenth of them warm-up where they are others."""
    return stage if steps == stage.steps else dataclasses.replace(stage, steps=steps, warmup=steps // 10)


def _blind(encoder: Any, step: int) -> dict[str, float]:
    """Nothing is looked at while an arm trains."""
    return {}
