"""The first two experiments: do two stages beat one, and which negatives teach? Written down first, then run.

    plan = planned("stages", config.load("random"), seeds=5)
    results = run_experiment(plan, base)                     # base/stages/plan.json first, then arm after arm
    print(arm_table(results)); figure(results)

    <base>/seed-0/stage1/               once per seed, shared by the arms of both experiments
    <base>/<experiment>/plan.json       what will be done: neither arms nor seeds nor steps are chosen after the results
    <base>/<experiment>/arms/           the score of every query, a file per seed and arm: a kill costs one arm
    <base>/<experiment>/results.json    means, intervals and verdicts of all arms, with the coordinates of the run;
                                        table.csv, figure.png and timings.json beside it

The arms of `stages` differ in nothing but which batches come when: negatives are the labelled ones in all of them, and
there is no teacher. Those of `negatives` start from the same stage 1 of their seed. Offline scales are measured on
held-out searches (`evaluate.heldout`); scales of the hub by their main scores on a subset of English MTEB.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from me5lib import __version__, io
from me5lib.io import Me5Error

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from me5lib.config import Scale, Stage
    from me5lib.model.encoder import Encoder
    from me5lib.train.loop import Work

QUESTIONS = {
    "stages": "do two stages (pairs, then labelled examples) beat one?",
    "negatives": "which negatives teach in stage 2, and does a teacher's opinion of them help?",
}
SEEDS, QUICK = 5, 10  # ours: seeds of a full run, and how many times fewer steps a quick one has
QUICK_SEEDS = {"stages": 2, "negatives": 1}  # ours: a minute or two
LEVEL = 0.95
OFFLINE = ("dev", "xquad", "bitext")  # tests of an offline scale, the first one primary
ENGLISH = (  # ours: eleven of the 56 tasks of English MTEB, of five types, the smaller ones
    "ArguAna", "FiQA2018", "NFCorpus", "SciFact", "AskUbuntuDupQuestions", "STSBenchmark", "SICK-R",
    "Banking77Classification", "ImdbClassification", "TwitterSemEval2015", "SprintDuplicateQuestions",
)  # fmt: skip
LABELS = {"dev": "dev: mean reciprocal rank", "mteb-english": "mean main score, 11 tasks of English MTEB"}
WORDS = {"ahead": "came out ahead of", "behind": "came out behind", "undecided": "could not be told apart from"}


# ---- the plan --------------------------------------------------------------------------------------------------------


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
        settings = dataclasses.asdict(self.scale)
        del settings["provenance"]
        plan = {
            "experiment": self.experiment, "question": QUESTIONS[self.experiment], "quick": self.quick,
            "scale": settings, "version": __version__, "seeds": self.seeds,
            "arms": [dataclasses.asdict(arm) for arm in self.arms],
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
        yield f"{self.experiment}: {QUESTIONS[self.experiment]}"
        yield f"scale {self.scale.name}, {how}seeds {', '.join(map(str, self.seeds))}; every arm is reported"
        for arm in self.arms:
            steps = f"{arm.pairs:,} on pairs, {arm.labelled:,} on labelled examples{' (mixed)' * arm.mixed}"
            against = f"; against {arm.against}" if arm.against else ""
            yield f"  {arm.name:24} steps: {arm.rule or steps}{against}"
        yield f"primary metric: {self.metrics[0]}; secondary: {', '.join(self.metrics[1:]) or 'none'}"
        yield f"test: {self.as_json()['test']}"


def planned(experiment: str, scale: Scale, seeds: int = SEEDS, quick: bool = False) -> Plan:
    """The plan of an experiment at a scale, for seeds 0 … `seeds` − 1. `quick`: a tenth of all steps, fewer seeds.

    Raises `Me5Error` for an unknown experiment or no seed.
    """
    if experiment not in QUESTIONS:
        raise Me5Error(f"unknown experiment {experiment!r}: choose one of {', '.join(QUESTIONS)}")
    if seeds < 1:
        raise Me5Error("an experiment needs at least one seed: --seeds 5")
    if quick:
        less = {name: dataclasses.replace(stage, steps=max(2, stage.steps // QUICK), warmup=stage.warmup // QUICK,
                                          teacher_steps=max(2, stage.teacher_steps // QUICK))
                for name, stage in (("train", scale.train), ("finetune", scale.finetune))}  # fmt: skip
        scale, seeds = dataclasses.replace(scale, **less), min(seeds, QUICK_SEEDS[experiment])
    arms = {"stages": _stages, "negatives": _negatives}[experiment](scale)
    return Plan(experiment, scale, tuple(range(seeds)), arms, quick)


def _stages(scale: Scale) -> tuple[Arm, ...]:
    """Two stages, and the controls that make the comparison fair: as many steps, and the same batches mixed."""
    one, two, first = scale.train.steps, scale.finetune.steps, "two stages"
    return (
        Arm(first, pairs=one, labelled=two),
        Arm("stage 2 only", labelled=two, against=first),
        Arm("stage 2 only, all steps", labelled=one + two, against=first),
        Arm("mixed in one stage", pairs=one, labelled=two, mixed=True, against=first),
        Arm("stage 1 only", pairs=one, against=first),
        Arm("untrained", against=first),
        *((Arm("character trigrams", rule="trigrams", against=first), Arm("random order", rule="chance", against=first))
          if scale.offline else ()),
    )  # fmt: skip


def _negatives(scale: Scale) -> tuple[Arm, ...]:
    """Each kind of negatives against random ones, and the same with KD against itself without."""
    one, two, arms = scale.train.steps, scale.finetune.steps, []
    kinds = {"random": "random", "own wrong answers": "labelled", "BM25": "bm25", "mined": "mined",
             "mined, filtered": "mined"}  # fmt: skip
    for name, kind in kinds.items():
        arm = Arm(name, one, two, negatives=kind, filtered="filtered" in name, against="random" if arms else "")
        arms += [arm, dataclasses.replace(arm, name=f"{name} + KD", teacher=True, against=name)]
    return *arms, Arm("stage 1 only", pairs=one, against="random")


# ---- running it ------------------------------------------------------------------------------------------------------


def home(scale: Scale, quick: bool, out: str = "") -> Path:
    """Where experiments of a scale lie: `out`, else `runs/experiments/<scale>[-quick]`; made if absent."""
    base = io.run_folder("experiments", 0).parent / (scale.name + "-quick" * quick)
    return io.out(scale.name, 0, out or base)


def run_experiment(plan: Plan, base: Path, progress: bool = True) -> dict[str, Any]:
    """Run what is not done yet of `plan` in `base`, write the results and return them.

    Raises `Me5Error` where another plan has begun in `base`, and where another process is at work in it.
    """
    from tqdm.auto import tqdm

    from me5lib.data.corpus import open_corpus
    from me5lib.lessons import figures

    folder, jobs = base / plan.experiment, [(seed, arm) for seed in plan.seeds for arm in plan.arms]
    with io.locked(base / ".lock"):
        lab = Lab(plan, base, open_corpus(plan.scale, progress))
        mark, records = preregister(plan, folder, lab.corpus.fingerprint), {}
        with tqdm(jobs, disable=not progress, desc=plan.experiment, unit=" arms") as bar:
            for seed, arm in bar:
                bar.set_postfix_str(f"seed {seed}, {arm.name}")
                path = folder / "arms" / f"seed-{seed}.{arm.folder}.json"
                if not path.is_file():
                    io.put_json(path, {"plan": mark, **lab.measured(arm, seed)})
                records[seed, arm.name] = io.read_json(path)
        conditions = {json.dumps(record["conditions"], sort_keys=True) for record in records.values()}
        results = {
            "experiment": plan.experiment, "question": QUESTIONS[plan.experiment], "plan": mark,
            "corpus": lab.corpus.fingerprint, "scale": plan.scale.name, "quick": plan.quick, "seeds": list(plan.seeds),
            "metrics": list(plan.metrics),
            "conditions": [json.loads(text) for text in sorted(conditions)], "arms": summarise_arms(plan, records),
        }  # fmt: skip
        io.put_json(folder / "results.json", results)
        seconds = {f"seed {seed}, {name}": record["seconds"] for (seed, name), record in records.items()}
        io.put_json(folder / "timings.json", seconds)
        arm_table(results).to_csv(folder / "table.csv", index=False)
        figures.keep(figure(results), folder / "figure.png")
    return results


def preregister(plan: Plan, folder: Path, corpus: str) -> str:
    """Write the plan down before anything is trained; its fingerprint, corpus included.

    Raises `Me5Error` where the folder has another plan.
    """
    from me5lib.train.checkpoint import fingerprint

    path, content = folder / "plan.json", plan.as_json() | {"corpus": corpus}
    before = io.read_json(path, None)
    if before is None:
        io.put_json(path, content)
    elif before != content:
        changed = sorted(key for key in before.keys() | content.keys() if before.get(key) != content.get(key))
        raise Me5Error(f"{path} was written before the run and says otherwise ({', '.join(changed)}): "
                       "go on with that plan, or give another folder with --out")
    return fingerprint(content)


@dataclasses.dataclass
class Lab:
    """What the arms of a plan share: corpus, tests, vocabulary, and a folder per seed with its stage 1.

    Each arm is made, measured on every query and forgotten. All of it runs in one process.
    """

    plan: Plan
    base: Path
    corpus: Any

    @cached_property
    def tokenizer(self) -> Any:
        """The vocabulary of all arms; None where the backbone brings its own."""
        from me5lib.train import stages

        return stages.run_tokenizer(self.corpus, self.plan.scale, self.base)

    @cached_property
    def tests(self) -> Any:
        """Searches of an offline scale, tasks of mteb of another."""
        if self.plan.scale.offline:
            from me5lib.evaluate import heldout

            return heldout.searches(self.corpus)
        import mteb

        return mteb.get_tasks(tasks=list(ENGLISH), languages=["eng"])

    def measured(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Make the model of `arm` and measure it: `scores`, `facts`, `conditions` and `seconds`; JSON types.

        Its folder is removed afterwards; stage 1 stays for the other arms.
        """
        from me5lib.device import best_device, precision
        from me5lib.train import checkpoint

        began, facts = time.perf_counter(), {}
        folder = None if arm.rule else self.trained(arm, seed)
        scores = {name: [round(float(value), 5) for value in values]
                  for name, values in self.scores(arm, seed, folder).items()}
        if folder and (report := io.read_json(folder / "report.json", {})):  # of stage 2's negatives and its teacher
            mining = {key: report["mining"][key] for key in ("queries", "candidates", "kept", "dropped")}
            facts = {"mining": mining, "filling": report["filling"], "teacher": report["teacher"]}
        if folder and folder.name != "stage1":
            shutil.rmtree(folder)
        conditions = checkpoint.conditions(best_device()) | {"precision": precision(best_device()).name}
        seconds = round(time.perf_counter() - began, 1)
        return {"scores": scores, "facts": facts, "conditions": conditions, "seconds": seconds}

    def trained(self, arm: Arm, seed: int) -> Path | None:
        """The checkpoint of `arm`; None for an untrained one."""
        from me5lib.train import stages

        scale, out = self.plan.scale, self.base / f"seed-{seed}"
        options = {"corpus": self.corpus, "evaluate": lambda encoder, step: {}, "progress": False}
        if self.tokenizer:  # the same for every seed
            shutil.copytree(self.base / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
        if arm.mixed:
            return mixed(scale, seed, out, self.corpus, arm.folder)
        start = stages.pretrain(scale, seed, out, **options) if arm.pairs else None
        if not arm.labelled:
            return start
        filters = {} if arm.filtered else {"near": 0.0, "margin": 0.0}
        stage = dataclasses.replace(_longer(scale.finetune, arm.labelled), **filters)
        return stages.finetune(dataclasses.replace(scale, finetune=stage), seed, out, start=start, name=arm.folder,
                               negatives=arm.negatives, teacher=arm.teacher, **options)

    def scores(self, arm: Arm, seed: int, folder: Path | None) -> dict[str, np.ndarray]:
        """Metric → score of every query (offline), or of every task (MTEB)."""
        from me5lib.device import best_device
        from me5lib.evaluate import heldout
        from me5lib.model.encoder import Encoder

        scale = self.plan.scale
        if arm.rule:
            rule = heldout.random_scores(seed) if arm.rule == "chance" else heldout.trigram_cosines
            return heldout.query_scores(self.tests, rule)
        encoder = Encoder.load(folder) if folder else Encoder.new(scale.model, self.tokenizer, seed)
        encoder = encoder.to(best_device())
        if not scale.offline:
            return {"mteb-english": on_mteb(encoder, arm.name, self.tests, self.base / "mteb")}
        longest = max(max(stage.query_tokens, stage.passage_tokens) for stage in (scale.train, scale.finetune))
        return heldout.query_scores(self.tests, heldout.cosines(encoder, self.tests, longest))


def on_mteb(encoder: Encoder, name: str, tasks: Sequence[Any], folder: Path) -> np.ndarray:
    """The main score of every task, in their order, float64; under the paper's protocol."""
    import mteb

    from me5lib.evaluate import runs
    from me5lib.evaluate.protocol import Protocol

    model, cache = Protocol(encoder, name), mteb.ResultCache(folder)
    with runs.quiet_mteb():
        return np.array([mteb.evaluate(model, task, cache=cache, co2_tracker=False).task_results[0].get_score()
                         for task in tasks], dtype=np.float64)


def mixed(scale: Scale, seed: int, out: Path, corpus: Any, name: str) -> Path:
    """The control that knows no order: the batches of both stages, each with its own loss, shuffled into one stage.

    It begins with random weights and has stage 1's learning rate and one schedule throughout.
    """
    from me5lib.device import best_device
    from me5lib.model.encoder import Encoder
    from me5lib.train import labelled as examples
    from me5lib.train import loop, stages
    from me5lib.train.checkpoint import StageDir
    from me5lib.train.distributed import Team

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
    encoder = Encoder.new(scale.model, stages.run_tokenizer(corpus, scale, out), seed).to(best_device())
    work, team = made.open(), Team.alone(encoder.device)
    task = examples.GroupTask(last, plan, stages.card_prefixes, work, seed, team, progress=False)
    groups = examples.make_groups(encoder, rows, task, "labelled")
    turns, budget = shuffled(scale.train.steps, last.steps, seed), stages.Budget.on_cpu(scale.model)

    def prepare(step: int) -> Work:
        """The batch of `step`, tokenised, and how its gradient is computed."""
        labelled, turn = turns[step]
        if labelled:
            drawn, own = plan.batch(groups, turn, last.hard_negatives), last
        else:
            drawn, own = batches.batch(turn), scale.train
        return stages.work_of(drawn, encoder, encoder, own, team, budget, (seed, step), stages.card_prefixes)

    loop.train_loop(encoder, prepare, stage, loop.RunOptions(work, seed, made.fingerprint, name,
                                                 save_every=max(1, stage.steps // 5), progress=False))  # fmt: skip
    return made.publish(encoder)


def shuffled(pairs: int, labelled: int, seed: int) -> list[tuple[bool, int]]:
    """Of every step: whether its batch is a labelled one, and the how-manieth of its kind."""
    kinds = np.random.default_rng(seed).permutation(pairs + labelled) < labelled
    turns = np.where(kinds, kinds.cumsum(), (~kinds).cumsum()) - 1
    return list(zip(kinds.tolist(), turns.tolist(), strict=True))


def _longer(stage: Stage, steps: int) -> Stage:
    """The stage with so many steps, a tenth of them warm-up where they are others."""
    return stage if steps == stage.steps else dataclasses.replace(stage, steps=steps, warmup=steps // 10)


# ---- what came out ---------------------------------------------------------------------------------------------------


def summarise_arms(plan: Plan, records: Mapping[tuple[int, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every arm, in the plan's order: mean, interval and mean of every seed by metric, and its differences.

    `records`: (seed, arm's name) → what `Lab.measured` gives. Rounded to six digits.
    """
    from me5lib.evaluate.stats import interval, resampled

    names, rows = [arm.name for arm in plan.arms], []
    for arm in plan.arms:
        trust = [records[seed, arm.name]["facts"].get("teacher") for seed in plan.seeds] if arm.teacher else None
        used = None if trust is None else sum(bool(teacher and teacher["trusted"]) for teacher in trust)
        rows.append({**dataclasses.asdict(arm), "difference": {}, "KD used": used})
    for metric in plan.metrics:
        stack = np.array([[records[seed, name]["scores"][metric] for seed in plan.seeds] for name in names])
        draws, means = resampled(stack), stack.mean(axis=2)
        for k, row in enumerate(rows):
            found = interval(draws[k], LEVEL, means[k].mean())
            row[metric] = found._asdict() | {"seeds": means[k].tolist(), "queries": stack.shape[2]}
            if row["against"]:
                other = names.index(row["against"])
                apart, level = means[k] - means[other], plan.level if metric == plan.metrics[0] else LEVEL
                found = interval(draws[k] - draws[other], level, apart.mean())
                row["difference"][metric] = found._asdict() | {
                    "level": level, "verdict": found.verdict, "seeds ahead": int((apart > 0).sum())}
    return json.loads(json.dumps(rows), parse_float=lambda digits: round(float(digits), 6))


def arm_table(results: Mapping[str, Any]) -> pandas.DataFrame:
    """A row per arm, all arms: the primary metric with its interval, the difference to the arm it is compared with,
    and the means of the secondary metrics."""
    import pandas as pd

    first, *others = results["metrics"]
    rows = []
    for arm in results["arms"]:
        found, apart = arm[first], arm["difference"].get(first, {})
        rows.append({
            "arm": arm["name"], "pairs": arm["pairs"], "labelled": arm["labelled"],
            first: found["mean"], "low": found["low"], "high": found["high"], "minus": arm["against"],
            "difference": apart.get("mean"), "d.low": apart.get("low"), "d.high": apart.get("high"),
            "verdict": apart.get("verdict", ""), "seeds ahead": apart.get("seeds ahead"),
            **{name: arm[name]["mean"] for name in others}, "KD used": arm["KD used"],
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"seeds ahead": "Int64", "KD used": "Int64"})


def figure(results: Mapping[str, Any]) -> Figure:
    """Every arm's primary metric with its interval and the mean of each seed (left), and its difference (right)."""
    from me5lib.lessons.figures import COLOURS, GREY, canvas, span

    arms, first = results["arms"], results["metrics"][0]
    page, (left, right) = canvas(10.0, 1.5 + 0.36 * len(arms), columns=2, sharey=True)
    for i, arm in enumerate(arms):
        found, apart = arm[first], arm["difference"].get(first)
        left.plot(found["seeds"], [i] * len(found["seeds"]), "|", color=GREY, markersize=9)
        span(left, i, found["mean"], found["low"], found["high"])
        if apart:
            colour = {"ahead": COLOURS[2], "behind": COLOURS[1]}.get(apart["verdict"], GREY)
            span(right, i, apart["mean"], apart["low"], apart["high"], colour,
                 f"{apart['mean']:+.3f} {apart['verdict']}")
    right.axvline(0, color="black", linewidth=1, zorder=1)
    right.margins(x=0.2)
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    left.set_ylim(len(arms) - 0.4, -0.8)
    left.set_xlabel(f"{LABELS.get(first, first)}; 95 % interval; grey: seeds", fontsize=9)
    several = {arm["against"] for arm in arms if arm["against"]}
    whom = several.pop() if len(several) == 1 else "random; KD minus the same without"
    right.set_xlabel(f"minus {whom}; 95 % of all together", fontsize=8)
    page.suptitle(heading(results), fontsize=10)
    return page


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What came out of every comparison of the plan on the primary metric, a line each, whichever way it fell."""
    first, lines = results["metrics"][0], []
    for arm in results["arms"]:
        if apart := arm["difference"].get(first):
            lines.append(f"{arm['name']} {WORDS[apart['verdict']]} {arm['against']}: {apart['mean']:+.3f}, from "
                         f"{apart['low']:+.3f} to {apart['high']:+.3f}, ahead in {apart['seeds ahead']} of "
                         f"{len(results['seeds'])} seeds")
    return lines


def heading(results: Mapping[str, Any]) -> str:
    """One line that says what was run."""
    seeds, quick = len(results["seeds"]), ", quick" if results["quick"] else ""
    return f"{results['experiment']} (scale {results['scale']}{quick}, {seeds} seed{'s' * (seeds > 1)})"


def stored(experiment: str) -> dict[str, Any] | None:
    """The results of the full run that ship with the notebooks, or None where there are none."""
    return io.read_json(io.asset("notebooks") / "results" / f"{experiment}.json", None)
