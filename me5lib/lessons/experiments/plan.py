"""An experiment before it is run: what is compared, for how many steps, by which metric and which test, as data.

`seal` writes it down before anything is trained, and refuses another plan where one has begun: neither arms nor seeds
nor steps are chosen after their results.

The arms of `stages` differ in nothing but which batches come when: negatives are the labelled ones in all of them, and
there is no teacher. Those of `negatives` start from the same stage 1 of their seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from me5lib import __version__, io
from me5lib.io import Me5Error

if TYPE_CHECKING:
    from me5lib.config import Scale, Stage

NAMES = ("stages", "negatives")
SEEDS, QUICK = 5, 10  # ours: seeds of a full run, and how many times fewer steps a quick one has
QUICK_SEEDS = {"stages": 2, "negatives": 1}  # ours: a minute or two
LEVEL = 0.95
OFFLINE = ("dev", "xquad", "bitext")  # tests of an offline scale, the first one primary
ENGLISH = (  # ours: eleven of the 56 tasks of English MTEB, of five types, the smaller ones
    "ArguAna", "FiQA2018", "NFCorpus", "SciFact", "AskUbuntuDupQuestions", "STSBenchmark", "SICK-R",
    "Banking77Classification", "ImdbClassification", "TwitterSemEval2015", "SprintDuplicateQuestions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to make a model. Without steps: untrained. `rule`: no model at all, "trigrams" or "chance"."""

    name: str
    pairs: int = 0  # steps on pairs, as in stage 1
    labelled: int = 0  # steps on labelled examples, as in stage 2
    mixed: bool = False  # both in one stage, shuffled, instead of one after the other
    negatives: str = "labelled"  # as `stages.finetune` knows them
    filtered: bool = False  # by the scale's filters of false negatives, else by none
    teacher: bool = False  # KD, if the teacher is better than the model that it started from
    rule: str = ""
    against: str = ""  # the arm that it is compared with; "" for none

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return self.name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment before it is run."""

    experiment: str
    question: str
    scale: Scale
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    quick: bool

    @property
    def metrics(self) -> tuple[str, ...]:
        """The tests, the first one primary."""
        return OFFLINE if self.scale.offline else ("mteb-english",)

    @property
    def level(self) -> float:
        """The level of each difference's interval on the primary metric, so that all hold together at 95 %."""
        return 1 - (1 - LEVEL) / max(1, sum(bool(arm.against) for arm in self.arms))

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        dials = dataclasses.asdict(self.scale)
        del dials["provenance"]
        plan = {
            "experiment": self.experiment, "question": self.question, "quick": self.quick, "scale": dials,
            "version": __version__,
            "seeds": self.seeds, "arms": [dataclasses.asdict(arm) for arm in self.arms],
            "primary metric": self.metrics[0], "secondary metrics": self.metrics[1:],
            "mteb tasks": () if self.scale.offline else ENGLISH,
            "test": "difference of means, paired by seed and by query; 95 % percentile intervals of a bootstrap that "
                    "resamples seeds and queries, on the primary metric widened for the number of differences "
                    f"(Bonferroni: {self.level:.4f} each); ahead or behind where 0 is outside, else undecided",
        }  # fmt: skip
        return json.loads(json.dumps(plan))

    def lines(self) -> Iterator[str]:
        """The plan to read."""
        how = f"quick: 1/{QUICK} of the steps; " if self.quick else ""
        yield f"{self.experiment}: {self.question}"
        yield f"scale {self.scale.name}, {how}seeds {', '.join(map(str, self.seeds))}; every arm is reported"
        for arm in self.arms:
            steps = f"{arm.pairs:,} on pairs, {arm.labelled:,} on labelled examples{' (mixed)' * arm.mixed}"
            against = f"; against {arm.against}" if arm.against else ""
            yield f"  {arm.name:24} steps: {arm.rule or steps}{against}"
        yield f"primary metric: {self.metrics[0]}; secondary: {', '.join(self.metrics[1:]) or 'none'}"
        yield f"test: {self.as_json()['test']}"


def planned(experiment: str, dial: Scale, seeds: int = SEEDS, quick: bool = False) -> Plan:
    """The plan of an experiment at a scale, for seeds 0 … `seeds` − 1. `quick`: fewer steps, and at most two seeds.

    Raises `Me5Error` for an unknown experiment or no seed.
    """
    if experiment not in NAMES:
        raise Me5Error(f"unknown experiment {experiment!r}: choose one of {', '.join(NAMES)}")
    if seeds < 1:
        raise Me5Error("an experiment needs at least one seed: --seeds 5")
    dial = quicker(dial) if quick else dial
    make, question = {
        "stages": (_stages, "do two stages (pairs, then labelled examples) beat one?"),
        "negatives": (_negatives, "which negatives teach in stage 2, and does a teacher's opinion of them help?"),
    }[experiment]
    seeds = min(seeds, QUICK_SEEDS[experiment]) if quick else seeds
    return Plan(experiment, question, dial, tuple(range(seeds)), make(dial), quick)


def quicker(dial: Scale) -> Scale:
    """The scale with a tenth of all steps."""

    def less(stage: Stage) -> Stage:
        steps = max(2, stage.steps // QUICK)
        teacher = max(2, stage.teacher_steps // QUICK)
        return dataclasses.replace(stage, steps=steps, warmup=stage.warmup // QUICK, teacher_steps=teacher)

    return dataclasses.replace(dial, train=less(dial.train), finetune=less(dial.finetune))


def _stages(dial: Scale) -> tuple[Arm, ...]:
    """Two stages, and the controls that make the comparison fair: as many steps, and the same batches mixed."""
    one, two, first = dial.train.steps, dial.finetune.steps, "two stages"
    return (
        Arm(first, pairs=one, labelled=two),
        Arm("stage 2 only", labelled=two, against=first),
        Arm("stage 2 only, all steps", labelled=one + two, against=first),
        Arm("mixed in one stage", pairs=one, labelled=two, mixed=True, against=first),
        Arm("stage 1 only", pairs=one, against=first),
        Arm("untrained", against=first),
        *((Arm("character trigrams", rule="trigrams", against=first), Arm("random order", rule="chance", against=first))
          if dial.offline else ()),
    )  # fmt: skip


def _negatives(dial: Scale) -> tuple[Arm, ...]:
    """Each kind of negatives against random ones, and the same with KD against itself without."""
    one, two, arms = dial.train.steps, dial.finetune.steps, []
    kinds = {"random": "random", "own wrong answers": "labelled", "BM25": "bm25", "mined": "mined",
             "mined, filtered": "mined"}  # fmt: skip
    for name, kind in kinds.items():
        plain = Arm(name, one, two, negatives=kind, filtered="filtered" in name, against="random" if arms else "")
        taught = dataclasses.replace(plain, name=f"{name} + KD", teacher=True, against=name)
        arms += [plain, taught]
    return *arms, Arm("stage 1 only", pairs=one, against="random")


def home(dial: Scale, quick: bool, given: str = "") -> Path:
    """Where experiments of a scale lie: `given`, else `runs/experiments/<scale>[-quick]`; made if absent."""
    base = io.run_folder("experiments", 0).parent / (dial.name + "-quick" * quick)
    return io.out(dial.name, 0, given or base)


def seal(plan: Plan, base: Path, corpus: str) -> tuple[Path, str]:
    """Write the plan down before anything else: its folder, and its fingerprint (corpus included).

    Raises `Me5Error` where the folder has another plan.
    """
    from me5lib.train.checkpoint import fingerprint

    folder, content = base / plan.experiment, plan.as_json() | {"corpus": corpus}
    path = folder / "plan.json"
    if path.is_file():
        before = io.read_json(path)
        if before != content:
            changed = sorted(key for key in before.keys() | content.keys() if before.get(key) != content.get(key))
            raise Me5Error(f"{path} was written before the run and says otherwise ({', '.join(changed)}): "
                           "go on with that plan, or give another folder with --out")
    else:
        (folder / "arms").mkdir(parents=True, exist_ok=True)
        io.put_json(path, content)
    return folder, fingerprint(content)


def record(folder: Path, seed: int, arm: Arm) -> Path:
    """Where the scores of an arm are kept."""
    return folder / "arms" / f"seed-{seed}.{arm.folder}.json"
