"""Experiments that can decide: a pilot says what they can see, the plan is sealed, every arm is run and reported.

    plan = planned("stages", config.load("random"))
    plan = piloted(plan, base)                            # base/stages/pilot.json, then the plan is complete
    results = run_experiment(plan, base)                  # base/stages/plan.json first, then arm after arm
    print("\n".join(sentences(results))); arm_table(results); figure(results)

    <base>/<experiment>/pilot.json      the reference and its A/A twin under two seeds of their own: the smallest
                                        difference that the full run can show, minutes of an arm, and whether a teacher
                                        is ahead of its student (if not, there is no arm with one)
    <base>/<experiment>/plan.json       what will be done: neither arms nor seeds nor steps are chosen after the results
    <base>/<experiment>/arms/           the score of every query, a file per seed and arm: a kill costs one arm
    <base>/<experiment>/results.json    means, intervals and verdicts of all arms, whether the controls came out, and
                                        the coordinates of the run; table.csv and figure.png beside it

What is asked, by which arms and on which tests: `labs`, `tune`, `instructed`. How it is judged: `evaluate.stats`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from me5lib import __version__, io
from me5lib.config import Scale
from me5lib.data.corpus import open_corpus
from me5lib.evaluate import benchmarks, stats
from me5lib.io import Me5Error
from me5lib.lessons.figures import COLOURS, GREY, canvas, keep, span
from me5lib.lessons.instructed import Instructions
from me5lib.lessons.labs import Arm, Lab, Stages
from me5lib.lessons.transfer import Transfer
from me5lib.lessons.tune import Forgetting, NearMisses, Negatives, code_lines
from me5lib.train.checkpoint import fingerprint

LABS: dict[str, type[Lab]] = {"stages": Stages, "negatives": Negatives, "forgetting": Forgetting,
                              "near-misses": NearMisses, "instructions": Instructions, "transfer": Transfer}
PILOT = 1000  # the first of the pilot's two seeds
KEPT, FORGOTTEN = 0.8, 0.2  # of gain and of forgetting: what a good point of the frontier has
LABELS = {"eng-mini": "mean main score, 11 tasks of English MTEB", "twins": "twins, both right"}
WORDS = {"ahead": "came out ahead of", "behind": "came out behind", "equal": "is within a point of",
         "undecided": "could not be told apart from"}  # fmt: skip
TEST = ("difference of means, paired by seed and by meaning; 95 % percentile intervals over meanings, each with all "
        "its queries, crossed with seeds; p-values of the same draws, Holm's over all comparisons of the first metric, "
        "and over those of all others (of the A/A twin without); ahead or behind at 5 %, equal where the 90 % interval "
        "lies within ± 0.01, else undecided")


# ---- the plan --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment before it is run."""

    experiment: str
    scale: Scale
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]  # the tests, the first one primary
    positive: tuple[str, str, str]  # the positive control: arm, the one that it must lead under every seed, metric
    suite: str = ""  # tasks of mteb that are measured in place of the experiment's own tests
    pilot: Mapping[str, Any] | None = None

    @property
    def lab(self) -> type[Lab]:
        """What makes and measures its arms."""
        return LABS[self.experiment]

    def as_json(self) -> dict[str, Any]:
        """All of it, and how it is judged, as JSON types."""
        plan = dataclasses.asdict(self) | {"arms": [arm.as_json() for arm in self.arms], "version": __version__,
                                           "question": self.lab.question, "test": TEST}  # fmt: skip
        del plan["scale"]["provenance"]
        return json.loads(json.dumps(plan))

    def lines(self) -> Iterator[str]:
        """The plan to read."""
        yield f"{self.experiment}: {self.lab.question}"
        yield f"scale {self.scale.name}, seeds {', '.join(map(str, self.seeds))}; every arm is reported"
        for arm in self.arms:
            about = [key if value is True else f"{key} {value}" for key, value in arm.as_json().items()
                     if key not in ("name", "against")]
            against = f"; against {arm.against}" if arm.against else ""
            yield f"  {arm.name:24} {', '.join(about)}{against}"
        yield f"primary metric: {self.metrics[0]}; secondary: {', '.join(self.metrics[1:]) or 'none'}"
        yield f"test: {TEST}"
        yield "positive control: {} must lead {} on {} under every seed".format(*self.positive)
        if self.pilot:
            minutes = self.pilot["seconds"] * len(self.arms) * len(self.seeds) / 60
            yield from (*_pilot_lines(self.pilot, self.metrics[0]), f"about {minutes:.0f} minutes")


def _pilot_lines(pilot: Mapping[str, Any], metric: str) -> Iterator[str]:
    """What the full run can show, and whether it has arms with a teacher."""
    seen, lead = pilot["metrics"][metric], pilot["teacher"]
    yield ("pilot: smallest difference that one comparison finds in 80 % of such experiments: "
           f"{seen['detectable']:.3f} ({seen['meanings']:,} meanings)")
    if lead:
        heard = "arms with KD" if lead["low"] > 0 else "not ahead, so no arm has one"
        yield (f"teacher first in {lead['teacher']:.3f} of groups that it did not learn, the start model in "
               f"{lead['start']:.3f} ({lead['low']:+.3f} to {lead['high']:+.3f}): {heard}")


def planned(experiment: str, scale: Scale, seeds: int = 0, suite: str = "") -> Plan:
    """The plan of an experiment at a scale, for seeds 0 … `seeds` − 1 (0: the experiment's own number).

    `suite`: "eng-mini", or names of mteb's tasks (scales of the hub always have one). Raises `Me5Error` for an unknown
    experiment, and for one that runs offline only.
    """
    if experiment not in LABS:
        raise Me5Error(f"unknown experiment {experiment!r}: choose one of {', '.join(LABS)}")
    lab = LABS[experiment]
    if not lab.hub and (suite or not scale.offline):
        raise Me5Error(f"{experiment} is run offline, on its own tests: choose --scale tiny, without --suite")
    suite, seeds = suite or "eng-mini" * (not scale.offline), seeds or lab.seeds
    if suite:  # a name that mteb lacks is said before anything is trained
        benchmarks.named_tasks(benchmarks.tasks_of(suite))
    if seeds == 1:
        raise Me5Error("one seed cannot be told from its luck: choose --seeds 2 or more")
    scale = lab.settings(scale)
    metrics, (first, second, metric) = (suite,) if suite else lab.metrics, lab.positive
    positive = first, second, metric if metric in metrics else metrics[0]
    return Plan(experiment, scale, tuple(range(seeds)), lab.arms(scale), metrics, positive, suite)


def home(scale: Scale, out: str = "") -> Path:
    """Where experiments of a scale lie: `out`, else `runs/experiments/<scale>`; made if absent."""
    return io.out(scale.name, 0, out or io.run_folder("experiments", 0).parent / scale.name)


# ---- running it ------------------------------------------------------------------------------------------------------


def piloted(plan: Plan, base: Path, progress: bool = True) -> Plan:
    """`plan` with what its pilot found, which is run where it is not there yet: the reference and its A/A twin (the
    same configuration) under two seeds each that the full run does not have. Raises `Me5Error` for another plan's."""
    path, seeds = base / plan.experiment / "pilot.json", [PILOT, PILOT + 1]
    bare = dataclasses.replace(plan, pilot=None, arms=plan.lab.arms(plan.scale))
    pair = [plan.arms[0], next(arm for arm in plan.arms if arm.role == "A/A")]
    with io.locked(base / ".lock"):
        lab, mark = _opened(bare, base, "pilot-plan.json", progress)
        found = io.read_json(path, None)
        if found is None:
            jobs = [(seed, arm) for arm in pair for seed in seeds]
            runs = list(_records(lab.measured, jobs, path.with_name("pilot"), mark, progress).values())
            found = {"seeds": seeds, "seconds": float(np.mean([run["seconds"] for run in runs])),
                     "teacher": lab.teacher_lead(PILOT) if lab.with_teacher else None, "metrics": {}}  # fmt: skip
            for metric, meanings in lab.meanings().items():
                scores = np.array([run["scores"][metric] for run in runs])
                least = stats.detectable(scores, meanings, len(plan.seeds))
                found["metrics"][metric] = {"mean": float(scores.mean()), "detectable": least,
                                            "queries": len(meanings), "meanings": len(set(meanings))}  # fmt: skip
            found = _rounded(found)
            io.put_json(path, found)
    teacher = bool(found["teacher"]) and found["teacher"]["low"] > 0
    return dataclasses.replace(plan, pilot=found, arms=plan.lab.arms(plan.scale, teacher))


def run_experiment(plan: Plan, base: Path, progress: bool = True) -> dict[str, Any]:
    """Run what is not done yet of `plan` in `base`, write the results and return them.

    Raises `Me5Error` where another plan has begun in `base`, and where another process is at work in it.
    """
    folder, jobs = base / plan.experiment, [(seed, arm) for seed in plan.seeds for arm in plan.arms]
    with io.locked(base / ".lock"):
        lab, mark = _opened(plan, base, "plan.json", progress)
        records = _records(lab.measured, jobs, folder / "arms", mark, progress)
        more = lab.beside(plan.arms, records,
                          lambda measure, jobs, name: _records(measure, jobs, folder / name, mark, progress))
        conditions = {json.dumps(record["conditions"], sort_keys=True) for record in records.values()}
        minutes = {arm.name: round(sum(records[seed, arm.name]["seconds"] for seed in plan.seeds) / 60, 2)
                   for arm in plan.arms}
        results = {
            "experiment": plan.experiment, "question": plan.lab.question, "plan": mark, "pilot": plan.pilot,
            "corpus": lab.corpus.fingerprint, "scale": plan.scale.name, "seeds": list(plan.seeds),
            "metrics": list(plan.metrics), "conditions": [json.loads(text) for text in sorted(conditions)],
            **summarise_arms(plan, records, lab.meanings()), **_rounded(more), "minutes": minutes,
        }  # fmt: skip
        io.put_json(folder / "results.json", results)
        arm_table(results).to_csv(folder / "table.csv", index=False)
        keep(figure(results), folder / "figure.png", "Left: each arm's mean, interval, seeds. Right: its difference.")
        if results["frontier"]:
            keep(frontier_figure(results), folder / "frontier.png", "Gain over what was forgotten, a point an arm.")
    return results


def _records(
    measure: Callable[..., dict[str, Any]], jobs: Sequence[tuple[int, Arm]], folder: Path, mark: str, progress: bool
) -> dict[tuple[int, str], dict[str, Any]]:
    """(seed, arm's name) → what it scored, of all `jobs`; kept in `folder`, and run where it is not there yet."""
    records = {}
    with tqdm(jobs, disable=not progress, unit=" arms") as bar:
        for seed, arm in bar:
            bar.set_postfix_str(f"seed {seed}, {arm.name}")
            path = folder / f"seed-{seed}.{arm.folder}.json"
            if not path.is_file():
                io.put_json(path, {"plan": mark, **measure(arm, seed)})
            records[seed, arm.name] = io.read_json(path)
            if (other := records[seed, arm.name]["plan"]) != mark:
                raise Me5Error(f"{path} is of another plan ({other}, now {mark}): give another folder with --out, or "
                               f"delete {folder.parent}")
    return records


def _opened(plan: Plan, base: Path, name: str, progress: bool) -> tuple[Lab, str]:
    """The lab, over its scale's corpus, and the fingerprint of the plan, corpus included, which is written down as
    `name` before anything is trained. Raises `Me5Error` where another plan stands there."""
    lab = plan.lab(plan.scale, base, open_corpus(plan.scale, progress), plan.suite)
    path = base / plan.experiment / name
    content = plan.as_json() | {"corpus": lab.corpus.fingerprint}
    before = io.read_json(path, None)
    if before is None:
        io.put_json(path, content)
    elif before != content:
        changed = sorted(key for key in before.keys() | content.keys() if before.get(key) != content.get(key))
        raise Me5Error(f"{path} was written before the run and says otherwise ({', '.join(changed)}): "
                       "go on with that plan, or give another folder with --out")
    return lab, fingerprint(content)


# ---- what came out ---------------------------------------------------------------------------------------------------


def summarise_arms(
    plan: Plan, records: Mapping[tuple[int, str], Mapping[str, Any]], meanings: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """`arms`: of every arm, in the plan's order, mean, interval and mean of every seed by metric, and its differences;
    `controls`; and `frontier`, of an experiment on forgetting.

    `records`: (seed, arm's name) → what `Lab.measured` gives. Rounded to six digits.
    """
    names, draws, means = [arm.name for arm in plan.arms], {}, {}
    rows = [{**arm.as_json(), "against": arm.against, "difference": {}, "lines": code_lines(arm)} for arm in plan.arms]
    for metric in plan.metrics:
        stack = np.array([[records[seed, name]["scores"][metric] for seed in plan.seeds] for name in names])
        means[metric] = stack.mean(axis=2)
        draws[metric] = stats.resampled(stack, meanings[metric])  # a draw weighs the seeds alike in all metrics
        for k, row in enumerate(rows):
            found = stats.interval(draws[metric][k], means[metric][k].mean())
            row[metric] = found._asdict() | {"seeds": means[metric][k].tolist()}
    for first in (True, False):
        _judge(plan, rows, first, draws, means)
    frontier = _frontier(names, draws) if plan.experiment == "forgetting" else []
    return _rounded({"arms": rows, "controls": _controls(plan, rows), "frontier": frontier})


def _judge(plan: Plan, rows: list[dict[str, Any]], first: bool, draws: Mapping[str, np.ndarray],
           means: Mapping[str, np.ndarray]) -> None:  # fmt: skip
    """Add to `rows` every arm's differences on its primary metric, or on all others, and what they say together."""
    names = [arm.name for arm in plan.arms]
    compared = [(k, names.index(arm.against), metric) for k, arm in enumerate(plan.arms) for metric in plan.metrics
                if arm.against and first == (metric == (arm.own or plan.metrics[0]))]  # fmt: skip
    apart = [draws[metric][k] - draws[metric][other] for k, other, metric in compared]
    p = np.array([stats.p_value(own) for own in apart])
    asked = np.array([plan.arms[k].role != "A/A" for k, *_ in compared], bool)  # a twin must fail the sharper test
    holm = p.copy()
    holm[asked] = stats.holm(p[asked])
    for (k, other, metric), own, raw, adjusted in zip(compared, apart, p.tolist(), holm.tolist(), strict=True):
        by_seed = means[metric][k] - means[metric][other]
        sure = "ahead" if by_seed.mean() > 0 else "behind"
        verdict = sure if adjusted < 1 - stats.LEVEL else "equal" if stats.equivalent(own) else "undecided"
        rows[k]["difference"][metric] = stats.interval(own, by_seed.mean())._asdict() | {
            "p": raw, "adjusted": adjusted, "verdict": verdict, "seeds ahead": int((by_seed > 0).sum())}


def _controls(plan: Plan, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the A/A twin could not be told apart, under how many seeds the positive control came out, and whether a
    teacher's shuffled scores did not help (None: there is no such arm)."""
    by_name, (first, second, metric) = {row["name"]: row for row in rows}, plan.positive
    apart = {row.get("role"): row["difference"][plan.metrics[0]]["verdict"] for row in rows if row["difference"]}
    ahead = np.array(by_name[first][metric]["seeds"]) > np.array(by_name[second][metric]["seeds"])
    return {
        "A/A undecided": apart["A/A"] in ("undecided", "equal"), "positive": [first, second, metric],
        "positive ahead": int(ahead.sum()),
        "shuffled scores do not help": apart["shuffled"] != "ahead" if "shuffled" in apart else None,
    }  # fmt: skip


def _frontier(names: Sequence[str], draws: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of every arm: gain on the target and loss on the tests of other kinds (their mean), both against the start, and
    how far they are beyond `KEPT` of plain tuning's gain and within `FORGOTTEN` of its loss (as differences: a share of
    a gain that may be none has no interval); a good point is so by both intervals."""
    elsewhere = np.mean([own for metric, own in draws.items() if metric not in ("target", "other languages")], axis=0)
    start, plain = names.index("start"), names.index("plain")
    gain, loss = draws["target"] - draws["target"][start], elsewhere[start] - elsewhere
    points = []
    for k, name in enumerate(names):
        figures = {"gain": gain[k], "forgetting": loss[k], "gain beyond": gain[k] - KEPT * gain[plain],
                   "forgetting within": FORGOTTEN * loss[plain] - loss[k]}  # fmt: skip
        point = {about: stats.interval(own, np.median(own)) for about, own in figures.items()}
        good = point["gain beyond"].low > 0 and point["forgetting within"].low > 0
        points.append({"name": name, **{about: own._asdict() for about, own in point.items()}, "good": good})
    return points


def _rounded(found: Any) -> Any:
    """As JSON types, six digits."""
    return json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 6))


def arm_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """A row per arm, all arms: the primary metric with its interval, the difference to the arm it is compared with, the
    means of the secondary metrics, and what it costs: minutes of all seeds, lines that only it needs."""
    first, *others = results["metrics"]
    rows = []
    for arm in results["arms"]:
        found, apart = arm[first], arm["difference"].get(first, {})
        rows.append({
            "arm": arm["name"], first: found["mean"], "low": found["low"], "high": found["high"],
            "minus": arm["against"], "difference": apart.get("mean"), "d.low": apart.get("low"),
            "d.high": apart.get("high"), "p (Holm)": apart.get("adjusted"), "verdict": apart.get("verdict", ""),
            "seeds ahead": apart.get("seeds ahead"), **{name: arm[name]["mean"] for name in others},
            "minutes": results["minutes"][arm["name"]], "lines": arm["lines"],
        })  # fmt: skip
    return pd.DataFrame(rows).astype({"seeds ahead": "Int64"})


def figure(results: Mapping[str, Any]) -> Figure:
    """Every arm's primary metric with its interval and the mean of each seed (left), and its difference (right)."""
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
    right.locator_params(axis="x", nbins=6)
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    left.set_ylim(len(arms) - 0.4, -0.8)
    left.set_xlabel(f"{LABELS.get(first, f'{first}: mean reciprocal rank')}; 95 % interval; grey: seeds", fontsize=9)
    several = {arm["against"] for arm in arms if arm["against"]}
    right.set_xlabel(f"minus {several.pop() if len(several) == 1 else 'the arm it is compared with'}", fontsize=9)
    page.suptitle(heading(results), fontsize=10)
    return page


def frontier_figure(results: Mapping[str, Any]) -> Figure:
    """Gain on the target over what was forgotten elsewhere, a point per arm with both intervals."""
    page, axis = canvas(7.0, 4.2)
    for i, point in enumerate(sorted(results["frontier"], key=lambda point: point["forgetting"]["mean"])):
        x, y = point["forgetting"], point["gain"]
        axis.errorbar(x["mean"], y["mean"], [[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
                      [[x["mean"] - x["low"]], [x["high"] - x["mean"]]], fmt="o", markersize=5, linewidth=1)
        axis.annotate(point["name"], (x["mean"], y["mean"]), (5, 5 if i % 2 else -11), textcoords="offset points",
                      fontsize=8)  # neighbours on different sides of their points
    axis.set(xlabel="forgotten: mean reciprocal rank lost on tests of other kinds", ylabel="gained on the target")
    axis.set_title(heading(results), fontsize=10)
    return page


def sentences(results: Mapping[str, Any]) -> list[str]:
    """The controls; then what came out of every comparison of the plan on the primary metric, whichever way it fell;
    then what the frontier has. A line each."""
    first, controls, seeds = results["metrics"][0], results["controls"], len(results["seeds"])
    one, other, metric = controls["positive"]
    said = {True: "yes", False: "NO"}
    shuffled = controls["shuffled scores do not help"]
    lines = [f"controls: A/A undecided: {said[controls['A/A undecided']]}; positive control ({one} over {other} on "
             f"{metric}) ahead in {controls['positive ahead']} of {seeds} seeds"
             + (f"; shuffled scores do not help: {said[shuffled]}" if shuffled is not None else "")]
    if results["pilot"]:
        lines += _pilot_lines(results["pilot"], first)
    for arm in results["arms"]:
        if apart := arm["difference"].get(arm.get("own", first)):
            lines.append(f"{arm['name']} {WORDS[apart['verdict']]} {arm['against']}: {apart['mean']:+.3f}, from "
                         f"{apart['low']:+.3f} to {apart['high']:+.3f}, p {apart['adjusted']:.3f}, ahead in "
                         f"{apart['seeds ahead']} of {seeds} seeds")
    for point in results["frontier"]:
        gain, loss = point["gain"], point["forgetting"]
        lines.append(f"{point['name']} gains {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}), forgets "
                     f"{loss['mean']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})")
    if results["frontier"]:
        good = [point["name"] for point in results["frontier"] if point["good"]]
        lines.append(f"more than {KEPT:.0%} of plain's gain at less than {FORGOTTEN:.0%} of its forgetting, by both "
                     f"intervals: {', '.join(good) or 'none'}")
    return lines + LABS[results["experiment"]].lines(results)


def heading(results: Mapping[str, Any]) -> str:
    """One line that says what was run."""
    seeds = len(results["seeds"])
    return f"{results['experiment']} (scale {results['scale']}, {seeds} seed{'s' * (seeds > 1)})"


def stored(experiment: str) -> dict[str, Any] | None:
    """The results of the full run that ship with the notebooks, or None where there are none."""
    return io.read_json(io.asset("notebooks") / "results" / f"{experiment}.json", None)
