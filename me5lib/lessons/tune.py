"""Fine-tuning in the small and in memory: rows of a step → trained encoder, no folder; and the experiments with it.

The real second stage is `stages.finetune`. `Negatives` and `Forgetting` tune the upper layers of the real model
(`evaluate.model`) over kept hidden states, which all arms and seeds share (`train.upper`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from me5lib import config
from me5lib.config import Scale, Stage
from me5lib.data import split
from me5lib.device import best_device
from me5lib.evaluate import heldout, stats
from me5lib.evaluate.heldout import Question, Search, row_searches
from me5lib.instruct.synthetic import Example, read_examples
from me5lib.instruct.template import templated
from me5lib.lessons.labs import Arm, Lab, mixed, shuffled
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train import labelled as examples
from me5lib.train import mining, search, stages, teacher
from me5lib.train.distributed import Team
from me5lib.train.labelled import Prefixes
from me5lib.train.loop import RunOptions, Work, train_loop
from me5lib.train.monitor import watched
from me5lib.train.stages import Budget, Rows, card_prefixes, work_of
from me5lib.train.upper import UpperLayers

WHOLE = Budget(sys.maxsize, sys.maxsize)  # small batches: no replay
VERSIONS = (4, 1, 2, 3)  # of the planted copies, the right one first
TRAINED_LAYERS = 3  # ours: of the real model's twelve
TUNED = {  # ours: stage 2 of the real model in a minute or two on two cores; rate and τ from a trial on three seeds
    "steps": 60, "batch": 32, "lr": 1e-4, "warmup": 6, "temperature": 0.02, "query_tokens": 48, "passage_tokens": 64,
    "hard_negatives": 3, "teacher_steps": 50,
}  # fmt: skip
TAUGHT = Arm("what teachers learn from", negatives="mined", filtered=True)


def train_on(
    encoder: Encoder, rows_of: Callable[[int], Rows], stage: Stage, seed: int, sides: Prefixes, progress: bool = True
) -> Encoder:
    """Train `encoder` in place on the rows of each step for `stage.steps` steps, and return it; prefixes by source."""
    team = Team.alone(encoder.device)

    def prepare(step: int) -> Work:
        return work_of(rows_of(step), encoder, encoder, stage, team, WHOLE, (seed, step), sides)

    train_loop(encoder, prepare, stage, RunOptions(None, seed, name="tuning", progress=progress))
    return encoder


def tune(encoder: Encoder, rows: Sequence[Labelled], stage: Stage, seed: int, progress: bool = True) -> Encoder:
    """Fine-tune `encoder` in place on `rows`, which carry their own prefix or instruction, and return it.

    A batch holds one language, so that its negatives cannot be told apart by their script.
    """
    stage = dataclasses.replace(stage, passage_tokens=stage.query_tokens)
    pools = [[row for row in rows if row.language == language] for language in sorted({row.language for row in rows})]

    def batch(step: int) -> list[Labelled]:
        draw = np.random.default_rng((seed, step))
        pool = pools[draw.integers(len(pools))]
        return [pool[i] for i in draw.permutation(len(pool))[: stage.batch]]

    return train_on(encoder, batch, stage, seed, lambda source: ("", ""), progress)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def halves(found: Iterable[tuple[Labelled, str]]) -> list[Question]:
    """Rows with their meanings, of which half test, by hash."""
    return [Question(row, meaning, split.fraction(meaning) < 0.5) for row, meaning in found]


def headings(corpus: Any) -> list[Question]:
    """FastAPI: the path of headings finds its section; a page, in whatever language, is a meaning."""
    found = []
    for language, own in corpus.task("fastapi").sets.items():
        for identity, query in own.queries.items():
            (document,) = own.relevant[identity]
            rest = re.split("[/:]", document, maxsplit=1)[-1]
            row = Labelled(query, (own.documents[document][1],), (), "fastapi", language)
            found.append((row, f"fastapi: {rest.rpartition('/')[0] or rest}"))
    return halves(found)


def descriptions(corpus: Any, languages: int = 8) -> list[Question]:
    """Home Assistant: a title finds its description, in the languages with most; an English title is a meaning."""
    rows = [row for row in corpus.labelled() if row.source == "homeassistant-descriptions"]
    most = [language for language, _ in Counter(row.language for row in rows).most_common(languages)]
    english = {language: dict(zip(*reversed(corpus.memory(language)), strict=True)) for language in most}
    return halves((row, f"title: {split.mask(english[row.language].get(row.query, row.query))}")
                  for row in rows if row.language in most)  # fmt: skip


def exams(corpus: Any, most: int = 3000) -> list[Question]:
    """EXAMS with its wrong options: `dev` tests, and at most so many rows train. At smoke facts of CLDR, halved."""
    train, test = ([row for row in corpus.labelled(part) if row.source == "exams"] for part in ("stage 2", "dev"))
    if not test:
        return halves((row, heldout.fact_meaning(row)) for row in corpus.labelled("dev"))
    train = sorted(train, key=lambda row: split.fraction(row.query))[:most]
    return [Question(row, heldout.fact_meaning(row), part is test) for part in (train, test) for row in part]


def outdated_copies(corpus: Any, every: int = 4) -> list[Question]:
    """Word problems in every fourth language, and their English originals in a version that is the right one; copies
    with another number lie beside it, as wrong answers where they train and in the pool where they test.

    Nothing but such a copy can teach which version is wanted. (Copies with a number of the problem itself changed were
    tried first, one seed and 20 steps: start 0.79, random negatives 0.85, hard ones 0.85.)
    """
    found = []
    sets = corpus.task("gsm-raw").sets
    for language, (english, texts) in list(sets.items())[::every]:
        for text, original in zip(texts, english, strict=True):
            wanted, *others = (f"Version {number}. {original}" for number in VERSIONS)
            found.append((Labelled(text, (wanted,), tuple(others), "gsm", language), f"gsm: {original}"))
    return halves(found)


# ---- the experiments -------------------------------------------------------------------------------------------------


class Tuned(Lab):
    """Arms that tune the upper layers of the real model in memory, by the settings of stage 2."""

    values = TUNED
    trains = ("finetune",)  # so that no state has to be kept twice
    layers = TRAINED_LAYERS
    _last: Mapping[Any, Any] = {}

    @cached_property
    def upper(self) -> UpperLayers:
        """The start of every arm, and what all of them share."""
        real = self.scale.evaluate.model != config.UNTRAINED
        whole = (Encoder.load(self.scale.evaluate.model) if real
                 else stages.initial_encoder(self.scale, 0, self.base, self.corpus))  # fmt: skip
        return UpperLayers(whole.to(best_device()), self.layers)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, for as long as nothing with another `key` is asked for: weights are large."""
        if key not in self._last:
            self._last = {}  # before the next is made
            self._last = {key: make()}
        return self._last[key]


class Negatives(Tuned):
    """Every arm tunes the same model for the same steps on the same questions; what differs is the negatives, and
    whether a teacher's opinion of them is heard."""

    question = "which negatives teach in stage 2, and does a teacher's opinion of them help?"
    metrics = ("search", "fastapi", "descriptions", "exams", "near-misses")
    positive = ("own wrong answers", "random", "near-misses")
    sources: Mapping[str, Callable[[Any], list[Question]]] = {  # all of them train together, and each has its test
        "fastapi": headings, "descriptions": descriptions, "exams": exams, "near-misses": outdated_copies,
    }  # fmt: skip
    kinds = {"random": "random", "own wrong answers": "labelled", "BM25": "bm25", "mined": "mined",
             "mined, filtered": "mined"}  # fmt: skip
    with_teacher = ("mined, filtered",)

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """Each kind of negatives against random ones, and some with KD against themselves without."""
        arms = [Arm(name, "random" * (name != "random"), negatives=kind, filtered="filtered" in name)
                for name, kind in cls.kinds.items()]
        arms.insert(1, Arm("random again", "random", "A/A", negatives="random"))
        arms.append(Arm("not tuned", "random", start=True))
        heard = [dataclasses.replace(arm, name=f"{arm.name} + KD", against=arm.name, teacher=True)
                 for arm in arms if teacher and arm.name in cls.with_teacher]
        wrong = [dataclasses.replace(arm, name=f"{arm.name}, scores shuffled", role="shuffled") for arm in heard[-1:]]
        return *arms, *heard, *wrong

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """The questions of every source."""
        return {name: make(self.corpus) for name, make in self.sources.items()}

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """A test for every source; `search`, as where a source has nothing, is all but the planted near-misses."""
        tests = {name: row_searches(own) for name, own in self.questions.items()}
        together = [part for name, parts in tests.items() if name != "near-misses" for part in parts]
        return {name: tests.get(name) or together for name in self.metrics}

    @cached_property
    def training(self) -> list[Question]:
        """Those that train."""
        return [own for questions in self.questions.values() for own in questions if not own.tests]

    def groups(self, arm: Arm, seed: int) -> tuple[examples.SamplingPlan, dict[int, Labelled]]:
        """The plan of a seed, and its examples with the arm's negatives. Random ones are right answers of others: wrong
        answers that were made for a question are no random passages."""
        rows = [own.row._replace(negatives=()) if arm.negatives == "random" else own.row for own in self.training]
        stage = self.stage if arm.filtered else dataclasses.replace(self.stage, near=0.0, margin=0.0)
        plan = examples.SamplingPlan(rows, stage, seed, self.scale.data.language_temperature)
        passes = plan.passes()
        own = [rows[i] for i in passes]
        made, *_ = examples.add_negatives(own, arm.negatives, self.upper, stage, card_prefixes, seed)
        return plan, dict(zip(passes, made, strict=True))

    def half(self, groups: Mapping[int, Labelled], which: int) -> dict[int, Labelled]:
        """The groups of one half of the meanings, 0 or 1."""
        side = {i: split.fraction(f"fold {self.training[i].meaning}") < 0.5 for i in groups}
        return {i: row for i, row in groups.items() if side[i] == which}

    def teachers(self, seed: int) -> list[teacher.Teacher]:
        """Two, for each half of the meanings one that was trained on the other's mined and filtered groups: a teacher
        that has learnt a group's label gives it back, and its scores would teach nothing that InfoNCE does not."""
        groups, made = self.groups(TAUGHT, seed)[1], []
        for which in (0, 1):
            rest = dict(enumerate(self.half(groups, 1 - which).values()))
            stage = dataclasses.replace(self.stage, steps=self.stage.teacher_steps)
            plan = examples.SamplingPlan(list(rest.values()), stage, seed, 0.5)
            made.append(teacher.train_teacher(self.upper, rest, plan, self.stage, card_prefixes, seed, progress=False))
        return made

    def teacher_scores(self, groups: Mapping[int, Labelled], seed: int) -> np.ndarray:
        """Every group's scores by the teacher that did not learn its meaning: fp32 [groups, size]."""
        scores: dict[int, np.ndarray] = {}
        for which, own in enumerate(self.teachers(seed)):
            part = self.half(groups, which)
            scores |= zip(part, teacher.score_groups(own, list(part.values()), self.stage, card_prefixes), strict=True)
        return np.stack([scores[i] for i in groups])

    def teacher_lead(self, seed: int) -> dict[str, Any]:
        """How often teacher and start model put the positive of a group first that the teacher did not learn, and the
        interval of the difference, over meanings."""
        groups = self.groups(TAUGHT, seed)[1]
        theirs = teacher.student_scores(self.upper, list(groups.values()), card_prefixes, self.stage)
        heard, start = ((scores[:, 0] > scores[:, 1:].max(1)).astype(float)
                        for scores in (self.teacher_scores(groups, seed), theirs))  # fmt: skip
        means = stats.resampled((heard - start)[None, None], [self.training[i].meaning for i in groups])[0]
        return {"teacher": float(heard.mean()), "start": float(start.mean()), "groups": len(groups),
                **stats.interval(means, (heard - start).mean())._asdict()}  # fmt: skip

    def encoder(self, arm: Arm, seed: int) -> Encoder:
        """Tuned with InfoNCE on the arm's groups, with KL to the teacher's scores where it is heard."""
        if arm.start:
            return self.upper.copy()
        plan, groups = self.groups(arm, seed)
        if arm.teacher:
            scores = self.once(seed, lambda: self.teacher_scores(groups, seed))
            if arm.role == "shuffled":
                scores = np.random.default_rng(seed).permuted(scores, axis=1)
            groups = {i: row._replace(teacher_scores=tuple(own.tolist()))
                      for (i, row), own in zip(groups.items(), scores, strict=True)}  # fmt: skip
        encoder, n = self.upper.copy(), self.stage.hard_negatives
        train_on(encoder, lambda step: plan.batch(groups, step, n), self.stage, seed, card_prefixes, progress=False)
        return encoder


class NearMisses(Negatives):
    """The positive control alone, quick enough for a lesson."""

    question = "can negatives teach what random ones cannot: which of the copies of a text is wanted?"
    metrics = ("near-misses",)
    values = TUNED | {"steps": 12, "batch": 16, "lr": 3e-4, "warmup": 1}  # ours: seconds a model
    sources = {"near-misses": partial(outdated_copies, every=12)}
    kinds = {"random": "random", "own wrong answers": "labelled"}
    with_teacher = ()
    seeds = 3


class Forgetting(Tuned):
    """English pages of FastAPI are learnt; what becomes of the other languages, and of tests of other kinds?"""

    question = "what does tuning on one domain in one language gain, what does it cost elsewhere, and what helps?"
    metrics = ("target", "other languages", "gsm", "xquad", "strings")
    positive = ("plain", "start", "target")
    values = TUNED | {"lr": 1e-3}  # ours: high enough to forget by; at 3e-4 next to nothing was lost (one seed)

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """Ways to learn without forgetting, against plain tuning."""
        return (
            Arm("plain"), *(Arm(f"alpha {alpha}", "plain", alpha=alpha) for alpha in (0.25, 0.5, 0.75)),
            Arm("plain again", "plain", "A/A"), Arm("start", "plain", start=True),
            Arm("10 % replay", "plain", replay=0.1), Arm("a fifth of the rate", "plain", rate=0.2),
        )  # fmt: skip

    @cached_property
    def pages(self) -> dict[bool, list[Question]]:
        """Of the target's language, the one with most pages (True), and of all others."""
        every = headings(self.corpus)
        ((target, _),) = Counter(own.row.language for own in every).most_common(1)
        return {here: [own for own in every if (own.row.language == target) == here] for here in (True, False)}

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """Pages that were not learnt, in the target's language and in others; word problems; XQuAD; strings."""
        found = heldout.searches(self.corpus)
        strings = [Search.bitext(*both, card_prefixes("homeassistant")) for both in watched(self.corpus).values()]
        return {"target": row_searches(self.pages[True]), "other languages": row_searches(self.pages[False]),
                "gsm": found["gsm"][::4], "xquad": found["xquad"], "strings": strings}  # fmt: skip

    def tuned(self, arm: Arm, seed: int) -> dict[str, torch.Tensor]:
        """The weights after tuning on the target's pages, with the arm's replay and rate."""
        rows = [own.row for own in self.pages[True] if not own.tests]
        stage = dataclasses.replace(self.stage, lr=self.stage.lr * arm.rate, hard_negatives=0)
        pairs = self.corpus.mixture(self.scale, seed, stage)
        replayed = np.random.default_rng(seed).permutation(stage.steps) < round(arm.replay * stage.steps)

        def batch(step: int) -> Rows:
            """Pairs of stage 1's sources, or rows of the target."""
            if replayed[step]:
                return pairs.batch(step)
            drawn = np.random.default_rng((seed, step)).permutation(len(rows))[: stage.batch]
            return [rows[i] for i in drawn]

        return train_on(self.upper.copy(), batch, stage, seed, card_prefixes, progress=False).state_dict()

    def encoder(self, arm: Arm, seed: int) -> Encoder:
        """The start; the tuned model; or, without training again, the mean of both by weight alpha."""
        encoder = self.upper.copy()
        if not arm.start:
            tuned = self.once((arm.replay, arm.rate, seed), lambda: self.tuned(arm, seed))
            encoder.load_state_dict({name: start + arm.alpha * (tuned[name] - start)
                                     for name, start in encoder.state_dict().items()})  # fmt: skip
        return encoder


def code_lines(arm: Arm) -> int:
    """Lines of code that only arms like this need, docstrings and all: counted in the sources."""
    mined = [mining.choose, mining.mine, search.Pool]
    needed = [
        (arm.mixed, [mixed, shuffled]),
        (arm.negatives == "bm25", [*mined, search.BM25Index, search.lexical, search.words]),
        (arm.negatives == "mined", [*mined, search.DenseIndex, search.dense, search.top_k]),
        (arm.filtered, [mining.near_positive, search.margin_ratio_of]),
        (arm.instructed, [templated]), (arm.synthetic, [Example, read_examples]),
        (arm.teacher, [teacher, Negatives.half, Negatives.teachers, Negatives.teacher_scores]),
    ]
    return sum(len(inspect.getsource(part).splitlines()) for used, parts in needed if used for part in parts)
