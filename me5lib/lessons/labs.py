"""What an experiment is, how its arms are measured, and the first of them, `Stages`; the others: `tune`, `instructed`.

    lab = Stages(scale, base, corpus)
    lab.measured(arm, seed=0)                 # {"scores": {metric: [of every query]}, "conditions": …, "seconds": …}
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from me5lib import config, io
from me5lib.config import Scale, Stage
from me5lib.device import best_device, precision
from me5lib.evaluate import heldout, runs
from me5lib.evaluate.benchmarks import tasks_of
from me5lib.evaluate.heldout import Search
from me5lib.evaluate.protocol import Protocol
from me5lib.model.encoder import Encoder
from me5lib.train import checkpoint, loop, stages
from me5lib.train import labelled as examples
from me5lib.train.distributed import Team
from me5lib.train.stages import card_prefixes

OTHER = 100  # added to a seed for the A/A twin: the same configuration, luck of its own


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to make a model. What is not named is as in the scale; `start`: not trained at all."""

    name: str
    against: str = ""  # the arm that it is compared with; "" for none
    role: str = ""  # "A/A": the arm that it is compared with, under other seeds; "shuffled": must not help
    start: bool = False
    pairs: int = 0  # steps on pairs, as in stage 1
    labelled: int = 0  # steps on labelled examples, as in stage 2
    mixed: bool = False  # both in one stage, shuffled, instead of one after the other
    negatives: str = ""  # as `labelled.add_negatives` knows them
    filtered: bool = False  # by the scale's filters of false negatives, else by none
    teacher: bool = False  # KD with cross-fitted scores
    replay: float = 0.0  # share of steps on pairs of stage 1's sources
    rate: float = 1.0  # of the learning rate
    alpha: float = 1.0  # weight of what was tuned in a mean with the start's weights
    instructed: bool = False  # instructions are read, in training and in tests
    synthetic: float = 0.0  # share of a batch
    own: str = ""  # a language family, and the metric that is primary for the arm that leaves it out

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w.]+", "-", self.name)

    def as_json(self) -> dict[str, Any]:
        """What differs from an arm of that name alone."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value != getattr(Arm(""), key)}


class Lab:
    """An experiment's question, design and tests, and what its arms share. Each arm is made, measured and forgotten.

    A kind of it has `arms(scale, teacher)` (the reference first; with a teacher only where one is worth listening to),
    `tests` (metric → searches), and `encoder(arm, seed)` (the model of an arm); perhaps `beside(arms, records, run)`,
    more of the results, which runs what no arm has, and `lines(results)`, sentences about it.
    """

    question: str
    metrics: tuple[str, ...]  # the first one primary
    positive: tuple[str, str, str]  # the positive control: arm, the one that it must lead under every seed, metric
    seeds = 5
    runs_at = "tiny"  # the scale, unless another is asked for
    hub = False  # whether it runs at a scale of the hub
    trains = ("train", "finetune")  # stages of the scale: texts are read as far as in training
    values: Mapping[str, Any] = {}  # its own settings of the last of these stages
    with_teacher: tuple[str, ...] = ()  # arms that come with KD, too
    beside = staticmethod(lambda arms, records, run: {})
    lines = staticmethod(lambda results: [])

    def __init__(self, scale: Scale, base: Path, corpus: Any, suite: str = "") -> None:
        self.scale, self.base, self.corpus, self.suite = scale, base, corpus, suite
        self.stage = scale.finetune
        self.tasks = tasks_of(suite)  # of mteb, measured in place of the tests where a suite is
        trained = [getattr(scale, name) for name in self.trains]
        self.longest = max(max(stage.query_tokens, stage.passage_tokens) for stage in trained)

    @classmethod
    def settings(cls, scale: Scale) -> Scale:
        """The scale with its last stage as in `values`, but for what was set by hand; at smoke as it is."""
        by_hand, name = {key for key, (_, why) in scale.provenance.items() if why == config.BY_HAND}, cls.trains[-1]
        values = {key: value for key, value in cls.values.items() if f"{name}.{key}" not in by_hand}
        real = scale.evaluate.model != config.UNTRAINED
        return dataclasses.replace(scale, **{name: dataclasses.replace(getattr(scale, name), **values)} if real else {})

    def meanings(self) -> dict[str, list[str]]:
        """What every query is about; each task of a suite stands for itself."""
        return {self.suite: list(self.tasks)} if self.suite else heldout.query_meanings(self.tests)

    def scores(self, arm: Arm, encoder: Encoder) -> dict[str, np.ndarray]:
        """The score of every query, by metric."""
        return heldout.query_scores(self.tests, encoder, self.longest)

    def measured(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Make the model of `arm` and measure it: `scores`, `conditions` and `seconds`; JSON types."""
        began = time.perf_counter()
        encoder = self.encoder(arm, seed + OTHER * (arm.role == "A/A"))
        if self.suite:
            found = {self.suite: on_mteb(encoder, arm.name, self.tasks, self.base / "mteb")}
        else:
            found = self.scores(arm, encoder)
        conditions = checkpoint.conditions(best_device()) | {"precision": precision(best_device()).name}
        return {"scores": {name: [round(float(value), 5) for value in values] for name, values in found.items()},
                "conditions": conditions, "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


def on_mteb(encoder: Encoder, name: str, tasks: Sequence[Any], folder: Path) -> np.ndarray:
    """The main score of every task (mteb's, or its name), in their order, float64; under the paper's protocol."""
    import mteb

    model, cache = Protocol(encoder, name), mteb.ResultCache(folder)
    tasks = [mteb.get_task(task) if isinstance(task, str) else task for task in tasks]
    with runs.quiet_mteb():
        return np.array([mteb.evaluate(model, task, cache=cache, co2_tracker=False).task_results[0].get_score()
                         for task in tasks], dtype=np.float64)


# ---- stages ----------------------------------------------------------------------------------------------------------


class Stages(Lab):
    """From a start without contrastive training. The arms have as many steps, labelled negatives and no teacher. They
    differ in which batches come when, and in what comes with that: stage 2 after stage 1 has a tenth of the rate,
    `mixed` and `labelled only` have stage 1's throughout; a step on pairs has more texts."""

    question = "do two stages (pairs, then labelled examples) beat one?"
    metrics = ("dev", "gsm", "xquad")
    positive = ("two stages", "untrained", "")
    hub, runs_at = True, "random"

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """Two stages and the controls that make the comparison fair: as many steps, and the same batches mixed."""
        one, two, first = scale.train.steps, scale.finetune.steps, "two stages"
        return (
            Arm(first, pairs=one, labelled=two),
            Arm("two stages again", first, "A/A", pairs=one, labelled=two),
            Arm("pairs only, all steps", first, pairs=one + two),
            Arm("labelled only, all steps", first, labelled=one + two),
            Arm("mixed in one stage", first, pairs=one, labelled=two, mixed=True),
            Arm("untrained", first, start=True),
        )

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """Held-out questions, word problems, and XQuAD across languages."""
        return heldout.searches(self.corpus)

    def encoder(self, arm: Arm, seed: int) -> Encoder:
        """Trained in a folder that keeps the vocabulary for all arms, but no stage."""
        out, corpus = self.base / "work", self.corpus
        scale = dataclasses.replace(self.scale, train=_longer(self.scale.train, arm.pairs),
                                    finetune=_longer(self.scale.finetune, arm.labelled))  # fmt: skip
        if arm.start or arm.mixed:
            encoder = stages.initial_encoder(scale, seed, out, corpus).to(best_device())
            return mixed(encoder, scale, seed, corpus) if arm.mixed else encoder
        options = {"corpus": corpus, "evaluate": lambda encoder, step: {}, "progress": False}
        made = stages.pretrain(scale, seed, out, **options) if arm.pairs else None
        if arm.labelled:
            made = stages.finetune(scale, seed, out, start=made, name=arm.folder, negatives="labelled", teacher=False,
                                   **options)  # fmt: skip
        encoder = Encoder.load(made).to(best_device())
        for name in ("stage1", arm.folder):
            io.remove(out / name)
        return encoder


def mixed(encoder: Encoder, scale: Scale, seed: int, corpus: Any) -> Encoder:
    """The control that knows no order: `encoder` trained on the batches of both stages, each with its own loss,
    shuffled into one stage, which has stage 1's learning rate and one schedule throughout."""
    rows, last = examples.drop_invalid(corpus.labelled())[0], scale.finetune
    temperature = scale.data.language_temperature if scale.offline else 1.0  # the hub's rows were tempered when drawn
    pairs, plan = corpus.mixture(scale, seed), examples.SamplingPlan(rows, last, seed, temperature)
    passes = plan.passes()
    found, *_ = examples.add_negatives([rows[i] for i in passes], "labelled", None, last, card_prefixes, seed,
                                       list(passes.values()))  # fmt: skip
    groups, team = dict(zip(passes, found, strict=True)), Team.alone(encoder.device)
    turns, budget = shuffled(scale.train.steps, last.steps, seed), stages.Budget.on_cpu(scale.model)

    def prepare(step: int) -> loop.Work:
        """The batch of `step`, tokenised, and how its gradient is computed."""
        labelled, turn = turns[step]
        drawn = plan.batch(groups, turn, last.hard_negatives) if labelled else pairs.batch(turn)
        own = last if labelled else scale.train
        return stages.work_of(drawn, encoder, encoder, own, team, budget, (seed, step), card_prefixes)

    whole = _longer(scale.train, scale.train.steps + last.steps)
    loop.train_loop(encoder, prepare, whole, loop.RunOptions(None, seed, name="mixed", progress=False))
    return encoder


def shuffled(pairs: int, labelled: int, seed: int) -> list[tuple[bool, int]]:
    """Of every step: whether its batch is a labelled one, and the how-manieth of its kind."""
    kinds = np.random.default_rng(seed).permutation(pairs + labelled) < labelled
    turns = np.where(kinds, kinds.cumsum(), (~kinds).cumsum()) - 1
    return list(zip(kinds.tolist(), turns.tolist(), strict=True))


def _longer(stage: Stage, steps: int) -> Stage:
    """The stage with so many steps, a tenth of them warm-up where they are others."""
    return stage if steps in (0, stage.steps) else dataclasses.replace(stage, steps=steps, warmup=steps // 10)
