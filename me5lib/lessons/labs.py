"""What each experiment asks, its arms and tests, and how an arm is made and measured (`experiments` plans and runs).

    lab = LABS["negatives"](scale, base, corpus)
    lab.measured(arm, seed=0)                 # {"scores": {metric: [of every query]}, "facts": …, "seconds": …}

`Stages` trains from random weights, whole, in a folder. `Negatives` and `Forgetting` tune the upper layers of the real
model (`evaluate.model`) in memory, over kept hidden states that all arms and seeds share (`train.upper`).
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from me5lib import config
from me5lib.config import Scale, Stage
from me5lib.data import split
from me5lib.device import best_device, precision
from me5lib.evaluate import heldout, stats
from me5lib.evaluate.heldout import Search
from me5lib.lessons.tune import train_on
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train import checkpoint, loop, mining, search, stages, teacher
from me5lib.train import labelled as examples
from me5lib.train.checkpoint import StageDir
from me5lib.train.distributed import Team
from me5lib.train.monitor import watched
from me5lib.train.stages import Rows, card_prefixes
from me5lib.train.upper import UpperLayers

SUITES = {"eng-mini": (  # ours: eleven of the 56 tasks of English MTEB, of five types, the smaller ones
    "ArguAna", "FiQA2018", "NFCorpus", "SciFact", "AskUbuntuDupQuestions", "STSBenchmark", "SICK-R",
    "Banking77Classification", "ImdbClassification", "TwitterSemEval2015", "SprintDuplicateQuestions",
)}  # fmt: skip
OTHER = 100  # added to a seed for the A/A twin: the same configuration, luck of its own
VERSIONS = (4, 1, 2, 3)  # of the planted copies, the right one first
TRAINED_LAYERS = 3  # ours: of the real model's twelve
TUNED = {  # ours: stage 2 of the real model in a minute or two on two cores; rate and τ from a trial on three seeds
    "steps": 60, "batch": 32, "lr": 1e-4, "warmup": 6, "temperature": 0.02, "query_tokens": 48, "passage_tokens": 64,
    "hard_negatives": 3, "teacher_steps": 50,
}  # fmt: skip


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

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w.]+", "-", self.name)

    def as_json(self) -> dict[str, Any]:
        """What differs from an arm of that name alone."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value != getattr(Arm(""), key)}


class Lab(ABC):
    """An experiment's question, design and tests, and what its arms share. Each arm is made, measured and forgotten."""

    question: str
    metrics: tuple[str, ...]  # the first one primary
    positive: tuple[str, str, str]  # the positive control: arm, the one that it must lead under every seed, metric
    seeds = 5
    hub = False  # whether it runs at a scale of the hub

    def __init__(self, scale: Scale, base: Path, corpus: Any, suite: str = "") -> None:
        self.scale, self.base, self.corpus, self.suite = scale, base, corpus, suite

    @classmethod
    @abstractmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """The arms at a scale, the reference first; those with a teacher only where one is worth listening to."""

    @classmethod
    def settings(cls, scale: Scale) -> Scale:
        """The scale as the experiment uses it; it is the sealed one."""
        return scale

    def teacher_lead(self, seed: int) -> dict[str, Any] | None:
        """How far a teacher is ahead of its student; None for an experiment without."""
        return None

    @cached_property
    @abstractmethod
    def tests(self) -> dict[str, list[Search]]:
        """The searches of every metric."""

    @cached_property
    def tasks(self) -> list[Any]:
        """Tasks of mteb, where a suite is measured in place of the tests."""
        import mteb

        return [mteb.get_task(name) for name in SUITES.get(self.suite, self.suite.split(","))]

    def meanings(self) -> dict[str, list[str]]:
        """What every query is about; each task of a suite stands for itself."""
        return {self.suite: [task.metadata.name for task in self.tasks]} if self.suite else \
            heldout.query_meanings(self.tests)

    @abstractmethod
    def encoder(self, arm: Arm, seed: int) -> tuple[Encoder, dict[str, Any]]:
        """The model of `arm`, and facts to keep (JSON types)."""

    def measured(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Make the model of `arm` and measure it: `scores`, `facts`, `conditions` and `seconds`; JSON types."""
        began = time.perf_counter()
        encoder, facts = self.encoder(arm, seed + OTHER * (arm.role == "A/A"))
        if self.suite:
            found = {self.suite: on_mteb(encoder, arm.name, self.tasks, self.base / "mteb")}
        else:
            found = heldout.query_scores(self.tests, heldout.cosines(encoder, self.tests, self.longest))
        conditions = checkpoint.conditions(best_device()) | {"precision": precision(best_device()).name}
        return {"scores": {name: [round(float(value), 5) for value in values] for name, values in found.items()},
                "facts": facts, "conditions": conditions, "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip

    @property
    def longest(self) -> int:
        """Tokens of a text that are read when it is measured."""
        return max(max(stage.query_tokens, stage.passage_tokens) for stage in (self.scale.train, self.scale.finetune))


def on_mteb(encoder: Encoder, name: str, tasks: Sequence[Any], folder: Path) -> np.ndarray:
    """The main score of every task, in their order, float64; under the paper's protocol."""
    import mteb

    from me5lib.evaluate import runs
    from me5lib.evaluate.protocol import Protocol

    model, cache = Protocol(encoder, name), mteb.ResultCache(folder)
    with runs.quiet_mteb():
        return np.array([mteb.evaluate(model, task, cache=cache, co2_tracker=False).task_results[0].get_score()
                         for task in tasks], dtype=np.float64)


# ---- stages ----------------------------------------------------------------------------------------------------------


class Stages(Lab):
    """From a start without contrastive training. The arms differ in nothing but which batches come when: negatives are
    the labelled ones in all of them, there is no teacher, and all have as many steps."""

    question = "do two stages (pairs, then labelled examples) beat one?"
    metrics = ("dev", "gsm", "xquad")
    positive = ("two stages", "untrained", "")
    hub = True

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

    def encoder(self, arm: Arm, seed: int) -> tuple[Encoder, dict[str, Any]]:
        """Trained in a folder of its own, which is removed."""
        scale, out = self.scale, self.base / "work"
        untrained = stages.initial_encoder(scale, seed, self.base, self.corpus)
        if arm.start:
            return untrained.to(best_device()), {}
        for made in ("tokenizer", "start"):  # the same for every seed
            if (self.base / made).is_dir():
                shutil.copytree(self.base / made, out / made, dirs_exist_ok=True)
        options = {"corpus": self.corpus, "evaluate": lambda encoder, step: {}, "progress": False}
        if arm.mixed:
            made = mixed(scale, seed, out, self.corpus, arm.folder)
        else:
            first = dataclasses.replace(scale, train=_longer(scale.train, arm.pairs))
            second = dataclasses.replace(scale, finetune=_longer(scale.finetune, arm.labelled))
            made = stages.pretrain(first, seed, out, **options) if arm.pairs else None
            if arm.labelled:
                made = stages.finetune(second, seed, out, start=made, name=arm.folder, negatives="labelled",
                                       teacher=False, **options)  # fmt: skip
        encoder = Encoder.load(made).to(best_device())
        shutil.rmtree(out)
        return encoder, {}


def mixed(scale: Scale, seed: int, out: Path, corpus: Any, name: str) -> Path:
    """The control that knows no order: the batches of both stages, each with its own loss, shuffled into one stage.

    It begins with random weights and has stage 1's learning rate and one schedule throughout.
    """
    rows, last = examples.drop_invalid(corpus.labelled())[0], scale.finetune
    stage = _longer(scale.train, scale.train.steps + last.steps)
    temperature = scale.data.language_temperature if scale.offline else 1.0  # the hub's rows were tempered when drawn
    batches, plan = corpus.mixture(scale, seed), examples.SamplingPlan(rows, last, seed, temperature)
    made = StageDir(out, name, {
        "mixed": [batches.fingerprint, plan.fingerprint], "seed": seed, "corpus": corpus.fingerprint,
        **{part: dataclasses.asdict(getattr(scale, part)) for part in ("model", "train", "finetune")},
    })  # fmt: skip
    if made.finished():
        return made.final
    encoder = stages.initial_encoder(scale, seed, out, corpus).to(best_device())
    work, team = made.open(), Team.alone(encoder.device)
    task = examples.GroupTask(last, plan, card_prefixes, work, seed, team, progress=False)
    groups = examples.make_groups(encoder, rows, task, "labelled")
    turns, budget = shuffled(scale.train.steps, last.steps, seed), stages.Budget.on_cpu(scale.model)

    def prepare(step: int) -> loop.Work:
        """The batch of `step`, tokenised, and how its gradient is computed."""
        labelled, turn = turns[step]
        if labelled:
            drawn, own = plan.batch(groups, turn, last.hard_negatives), last
        else:
            drawn, own = batches.batch(turn), scale.train
        return stages.work_of(drawn, encoder, encoder, own, team, budget, (seed, step), card_prefixes)

    loop.train_loop(encoder, prepare, stage, loop.RunOptions(work, seed, made.fingerprint, name,
                                                             save_every=max(1, stage.steps // 5), progress=False))
    return made.publish(encoder)


def shuffled(pairs: int, labelled: int, seed: int) -> list[tuple[bool, int]]:
    """Of every step: whether its batch is a labelled one, and the how-manieth of its kind."""
    kinds = np.random.default_rng(seed).permutation(pairs + labelled) < labelled
    turns = np.where(kinds, kinds.cumsum(), (~kinds).cumsum()) - 1
    return list(zip(kinds.tolist(), turns.tolist(), strict=True))


def _longer(stage: Stage, steps: int) -> Stage:
    """The stage with so many steps, a tenth of them warm-up where they are others."""
    return stage if steps in (0, stage.steps) else dataclasses.replace(stage, steps=steps, warmup=steps // 10)


# ---- the real model's upper layers -----------------------------------------------------------------------------------


class Questions(NamedTuple):
    """Rows with what each is about, and which of them test: no meaning is on both sides."""

    rows: list[Labelled]
    meanings: list[str]
    tested: np.ndarray  # bool

    def part(self, tested: bool) -> tuple[list[Labelled], list[str]]:
        """The rows that test, or those that train, with their meanings."""
        places = np.flatnonzero(self.tested == tested)
        return [self.rows[i] for i in places], [self.meanings[i] for i in places]


def halves(rows: Sequence[Labelled], meanings: Sequence[str]) -> Questions:
    """Half of the meanings test, by hash, in every language alike."""
    side = {meaning: split.fraction(meaning) < 0.5 for meaning in set(meanings)}
    return Questions(list(rows), list(meanings), np.array([side[meaning] for meaning in meanings], dtype=bool))


def headings(corpus: Any) -> Questions:
    """FastAPI: the path of headings finds its section; a page, in whatever language, is a meaning."""
    rows, pages = [], []
    for language, own in next(task for task in corpus.tasks() if task.name == "fastapi").sets.items():
        for identity, query in own.queries.items():
            (document,) = own.relevant[identity]
            rest = re.split("[/:]", document, maxsplit=1)[-1]
            rows.append(Labelled(query, (own.documents[document][1],), (), "fastapi", language))
            pages.append(f"fastapi: {rest.rpartition('/')[0] or rest}")
    return halves(rows, pages)


def descriptions(corpus: Any, languages: int = 8) -> Questions:
    """Home Assistant: a title finds its description, in the languages with most; an English title is a meaning."""
    own = [row for row in corpus.labelled() if row.source == "homeassistant-descriptions"]
    most = [language for language, _ in Counter(row.language for row in own).most_common(languages)]
    rows = [row for row in own if row.language in most]
    english = {language: dict(zip(*reversed(corpus.memory(language)), strict=True)) for language in most}
    return halves(rows, [f"title: {split.mask(english[row.language].get(row.query, row.query))}" for row in rows])


def exams(corpus: Any, most: int = 3000) -> Questions:
    """EXAMS with its wrong options: `dev` tests, and at most so many rows train. At smoke facts of CLDR, halved."""
    train, test = ([row for row in corpus.labelled(part) if row.source == "exams"] for part in ("stage 2", "dev"))
    if not test:
        return halves(rows := corpus.labelled("dev"), heldout.fact_meanings(rows))
    train = sorted(train, key=lambda row: split.fraction(row.query))[:most]
    rows = [*train, *test]
    return Questions(rows, heldout.fact_meanings(rows), np.arange(len(rows)) >= len(train))


def outdated_copies(corpus: Any, every: int = 4) -> Questions:
    """Word problems in every fourth language, and their English originals in a version that is the right one; copies
    with another number lie beside it, as wrong answers where they train and in the pool where they test.

    Nothing but such a copy can teach which version is wanted. (Copies with a number of the problem itself changed were
    tried first, one seed and 20 steps: start 0.79, random negatives 0.85, hard ones 0.85.)
    """
    rows, meanings = [], []
    sets = next(task for task in corpus.tasks() if task.name == "gsm-raw").sets
    for language, (english, texts) in list(sets.items())[::every]:
        for text, original in zip(texts, english, strict=True):
            copies = [f"Version {number}. {original}" for number in VERSIONS]
            rows.append(Labelled(text, tuple(copies[:1]), tuple(copies[1:]), "gsm", language))
            meanings.append(f"gsm: {original}")
    return halves(rows, meanings)


class Tuned(Lab):
    """Arms that tune the upper layers of the real model in memory."""

    values = TUNED

    @classmethod
    def settings(cls, scale: Scale) -> Scale:
        """Stage 2 as in `values`, but for what was set by hand; at smoke the scale's own."""
        by_hand = {key for key, (_, why) in scale.provenance.items() if why == config.BY_HAND}
        values = {key: value for key, value in cls.values.items() if f"finetune.{key}" not in by_hand}
        real = scale.evaluate.model != config.UNTRAINED
        return dataclasses.replace(scale, finetune=dataclasses.replace(scale.finetune, **values)) if real else scale

    @property
    def stage(self) -> Stage:
        """Stage 2's settings."""
        return self.scale.finetune

    @property
    def longest(self) -> int:
        """As long as in training, so that no state has to be kept twice."""
        return max(self.stage.query_tokens, self.stage.passage_tokens)

    @cached_property
    def upper(self) -> UpperLayers:
        """The start of every arm, and what all of them share."""
        if self.scale.evaluate.model != config.UNTRAINED:
            whole = Encoder.load(self.scale.evaluate.model)
        else:
            whole = stages.initial_encoder(self.scale, 0, self.base, self.corpus)
        return UpperLayers(whole.to(best_device()), TRAINED_LAYERS)


class Negatives(Tuned):
    """Every arm tunes the same model for the same steps on the same questions; what differs is the negatives, and
    whether a teacher's opinion of them is heard."""

    question = "which negatives teach in stage 2, and does a teacher's opinion of them help?"
    metrics = ("search", "fastapi", "descriptions", "exams", "near-misses")
    positive = ("own wrong answers", "random", "near-misses")
    kinds = {"random": "random", "own wrong answers": "labelled", "BM25": "bm25", "mined": "mined",
             "mined, filtered": "mined"}  # fmt: skip
    with_teacher = ("own wrong answers", "mined, filtered")

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """Each kind of negatives against random ones, and some with KD against themselves without."""
        arms = [Arm(name, "random" * (name != "random"), negatives=kind, filtered="filtered" in name)
                for name, kind in cls.kinds.items()]
        arms.insert(1, dataclasses.replace(arms[0], name="random again", against="random", role="A/A"))
        arms.append(Arm("not tuned", "random", start=True))
        heard = [dataclasses.replace(arm, name=f"{arm.name} + KD", against=arm.name, teacher=True)
                 for arm in arms if teacher and arm.name in cls.with_teacher]
        wrong = [dataclasses.replace(arm, name=f"{arm.name}, scores shuffled", role="shuffled") for arm in heard[-1:]]
        return *arms, *heard, *wrong

    @cached_property
    def questions(self) -> dict[str, Questions]:
        """The sources: all of them train together."""
        found = {"fastapi": headings(self.corpus), "descriptions": descriptions(self.corpus),
                 "exams": exams(self.corpus),
                 "near-misses": outdated_copies(self.corpus)}
        return {name: own for name, own in found.items() if own.rows}

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """A test for every source; `search` is all of them but the planted near-misses."""
        tests = {name: heldout.row_searches(*own.part(True)) for name, own in self.questions.items()}
        together = [part for name, parts in tests.items() if name != "near-misses" for part in parts]
        return {"search": together, **{name: tests.get(name, together) for name in self.metrics[1:]}}

    @cached_property
    def training(self) -> tuple[list[Labelled], list[str]]:
        """The rows that train, with their meanings."""
        parts = [own.part(False) for own in self.questions.values()]
        return [row for rows, _ in parts for row in rows], [meaning for _, own in parts for meaning in own]

    def groups(self, arm: Arm, seed: int) -> tuple[examples.SamplingPlan, dict[int, Labelled], dict[str, Any]]:
        """The plan of a seed, its examples with the arm's negatives, and what was dropped on the way. Random ones are
        right answers of others: wrong answers that were made for a question are no random passages."""
        rows = [row._replace(negatives=() if arm.negatives == "random" else row.negatives) for row in self.training[0]]
        stage = self.stage if arm.filtered else dataclasses.replace(self.stage, near=0.0, margin=0.0)
        plan = examples.SamplingPlan(rows, stage, seed, self.scale.data.language_temperature)
        passes = plan.passes()
        made, report, filling = examples.add_negatives([rows[i] for i in passes], arm.negatives, self.upper, stage,
                                                       card_prefixes, seed)  # fmt: skip
        return plan, dict(zip(passes, made, strict=True)), {"dropped": report.dropped, "filled": dict(filling)}

    def folds(self, groups: dict[int, Labelled]) -> list[int]:
        """Two folds by meaning, for a teacher that scores what it did not learn."""
        return [int(split.fraction(f"fold {self.training[1][i]}") < 0.5) for i in groups]

    @cached_property
    def _teachers(self) -> dict[int, list[teacher.Teacher]]:
        return {}

    def teachers(self, seed: int) -> list[teacher.Teacher]:
        """The cross-fitted teachers of a seed, trained on its mined and filtered groups."""
        if seed not in self._teachers:
            arm = next(arm for arm in self.arms(self.scale) if arm.filtered)
            _, groups, _ = self.groups(arm, seed)
            self._teachers.clear()
            self._teachers[seed] = teacher.cross_fitted(self.upper, list(groups.values()), self.folds(groups),
                                                        self.stage, card_prefixes, seed)  # fmt: skip
        return self._teachers[seed]

    def teacher_lead(self, seed: int) -> dict[str, Any] | None:
        """How often teacher and start model put the positive of a group first that the teacher did not learn, and the
        interval of the difference, over meanings."""
        if not self.with_teacher:
            return None
        _, groups, _ = self.groups(next(arm for arm in self.arms(self.scale) if arm.filtered), seed)
        rows, about = list(groups.values()), [self.training[1][i] for i in groups]
        theirs = teacher.student_scores(self.upper, rows, card_prefixes, self.stage)
        ours = teacher.out_of_fold(self.teachers(seed), rows, self.folds(groups), self.stage, card_prefixes)
        first = [(scores[:, 0] > scores[:, 1:].max(1)).astype(float) for scores in (ours, theirs)]
        apart = first[0] - first[1]
        found = stats.interval(stats.resampled(apart[None, None], about)[0], 0.95, apart.mean())
        return {"teacher": float(first[0].mean()), "start": float(first[1].mean()), "groups": len(rows),
                **found._asdict()}  # fmt: skip

    def encoder(self, arm: Arm, seed: int) -> tuple[Encoder, dict[str, Any]]:
        """Tuned with InfoNCE on the arm's groups, with KL to the teacher's scores where it is heard."""
        if arm.start:
            return self.upper.fresh(), {}
        plan, groups, facts = self.groups(arm, seed)
        if arm.teacher:
            rows = list(groups.values())
            scores = teacher.out_of_fold(self.teachers(seed), rows, self.folds(groups), self.stage, card_prefixes)
            if arm.role == "shuffled":
                scores = np.random.default_rng(seed).permuted(scores, axis=1)
            groups = {i: row._replace(teacher_scores=tuple(own.tolist()))
                      for (i, row), own in zip(groups.items(), scores, strict=True)}  # fmt: skip
        n = self.stage.hard_negatives
        return train_on(self.upper.fresh(), lambda step: plan.batch(groups, step, n), self.stage, seed, card_prefixes,
                        progress=False), facts  # fmt: skip


class NearMisses(Negatives):
    """The positive control alone, quick enough for a lesson."""

    question = "can negatives teach what random ones cannot: which of the copies of a text is wanted?"
    metrics = ("near-misses",)
    values = TUNED | {"steps": 12, "batch": 16, "lr": 3e-4, "warmup": 1}  # ours: seconds a model
    with_teacher = ()
    kinds = {"random": "random", "own wrong answers": "labelled"}
    seeds = 3

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """Hard against random, the A/A twin of random, and the start."""
        return super().arms(scale)

    @cached_property
    def questions(self) -> dict[str, Questions]:
        """Word problems in fewer languages."""
        return {"near-misses": outdated_copies(self.corpus, every=12)}

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """Their test half."""
        return {"near-misses": heldout.row_searches(*self.questions["near-misses"].part(True))}


class Forgetting(Tuned):
    """English pages of FastAPI are learnt; what becomes of the other languages, and of tests of other kinds?"""

    question = "what does tuning on one domain in one language gain, what does it cost elsewhere, and what helps?"
    metrics = ("target", "other languages", "gsm", "xquad", "strings")
    positive = ("plain", "start", "target")

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """Ways to learn without forgetting, against plain tuning."""
        return (
            Arm("plain"), Arm("plain again", "plain", "A/A"), Arm("start", "plain", start=True),
            Arm("10 % replay", "plain", replay=0.1), Arm("a fifth of the rate", "plain", rate=0.2),
            *(Arm(f"alpha {alpha}", "plain", alpha=alpha) for alpha in (0.25, 0.5, 0.75)),
        )  # fmt: skip

    @cached_property
    def pages(self) -> dict[tuple[bool, bool], tuple[list[Labelled], list[str]]]:
        """(whether it tests, whether it is of the target's language, the one with most pages) → rows, meanings."""
        every, parts = headings(self.corpus), {}
        target = Counter(row.language for row in every.rows).most_common(1)[0][0]
        for tested, own in itertools.product((False, True), repeat=2):
            kept = [(row, meaning) for row, meaning in zip(*every.part(tested), strict=True)
                    if (row.language == target) == own]
            parts[tested, own] = tuple(map(list, zip(*kept, strict=True)))
        return parts

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """Pages that were not learnt, in the target's language and in others; word problems; XQuAD; strings."""
        found = heldout.searches(self.corpus)
        strings = [Search(texts, english, np.eye(len(texts), dtype=bool), card_prefixes("homeassistant"), english)
                   for english, texts in watched(self.corpus).values()]
        return {"target": heldout.row_searches(*self.pages[True, True]),
                "other languages": heldout.row_searches(*self.pages[True, False]),
                "gsm": found["gsm"][::4], "xquad": found["xquad"], "strings": strings}  # fmt: skip

    @cached_property
    def _weights(self) -> dict[tuple[Arm, int], dict[str, torch.Tensor]]:
        return {}

    def tuned(self, arm: Arm, seed: int) -> dict[str, torch.Tensor]:
        """The weights of `arm`, kept until the next training: an average needs them again."""
        if (arm, seed) not in self._weights:
            rows, encoder = self.pages[False, True][0], self.upper.fresh()
            stage = dataclasses.replace(self.stage, lr=self.stage.lr * arm.rate, hard_negatives=0)
            pairs = self.corpus.mixture(self.scale, seed, stage)
            replayed = np.random.default_rng(seed).permutation(stage.steps) < round(arm.replay * stage.steps)

            def batch(step: int) -> Rows:
                """Pairs of stage 1's sources, or rows of the target."""
                if replayed[step]:
                    return pairs.batch(step)
                drawn = np.random.default_rng((seed, step)).permutation(len(rows))[: stage.batch]
                return [rows[i] for i in drawn]

            self._weights.clear()
            self._weights[arm, seed] = train_on(encoder, batch, stage, seed, card_prefixes, progress=False).state_dict()
        return self._weights[arm, seed]

    def encoder(self, arm: Arm, seed: int) -> tuple[Encoder, dict[str, Any]]:
        """The start; the tuned model; or, without training, the mean of both by weight alpha."""
        encoder = self.upper.fresh()
        if not arm.start:
            tuned = self.tuned(dataclasses.replace(arm, name="", against="", role="", alpha=1.0), seed)  # as plain
            encoder.load_state_dict({name: start + arm.alpha * (tuned[name] - start)
                                     for name, start in encoder.state_dict().items()})  # fmt: skip
        return encoder, {}


LABS: dict[str, type[Lab]] = {"stages": Stages, "negatives": Negatives, "forgetting": Forgetting,
                              "near-misses": NearMisses}


def code_lines(arm: Arm) -> int:
    """Lines of code that only arms like this need, docstrings and all: counted in the sources."""
    parts: list[Any] = []
    if arm.mixed:
        parts += [mixed, shuffled]
    if arm.negatives in ("bm25", "mined"):
        parts += [mining.choose, mining.mine, search.Pool]
    if arm.negatives == "bm25":
        parts += [search.BM25Index, search.lexical, search.words]
    if arm.negatives == "mined":
        parts += [search.DenseIndex, search.dense, search.top_k]
    if arm.filtered:
        parts += [mining.near_positive, search.margin_ratio_of]
    if arm.teacher:
        parts += [teacher]
    return sum(len(inspect.getsource(part).splitlines()) for part in parts)
