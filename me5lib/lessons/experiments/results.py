"""What came out of an experiment: means, intervals, differences and verdicts of every arm; a table and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from me5lib import io
from me5lib.lessons.experiments.plan import LEVEL, Arm, Plan

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

LABELS = {"dev": "dev: mean reciprocal rank", "mteb-english": "mean main score, 11 tasks of English MTEB"}
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
Records = Mapping[tuple[int, str], Mapping[str, Any]]  # (seed, arm) → what `Lab.measured` gives


def summary(plan: Plan, records: Records) -> list[dict[str, Any]]:
    """Of every arm, in the plan's order: mean, interval and mean of every seed by metric, and its differences.

    `records` by (seed, arm) as `Lab.measured` gives them. Rounded to six digits.
    """
    import numpy as np

    from me5lib.evaluate.stats import interval, resampled

    names = [arm.name for arm in plan.arms]
    rows = [{**dataclasses.asdict(arm), "difference": {}, "KD used": _taught(plan, records, arm)} for arm in plan.arms]
    for metric in plan.metrics:
        stack = np.array([[records[seed, name]["scores"][metric] for seed in plan.seeds] for name in names])
        draws, means = resampled(stack), stack.mean(axis=2)
        for k, row in enumerate(rows):
            found = interval(draws[k], LEVEL, means[k].mean())
            row[metric] = _rounded(found._asdict() | {"seeds": means[k].tolist(), "queries": stack.shape[2]})
            if row["against"]:
                other = names.index(row["against"])
                apart = means[k] - means[other]
                level = plan.level if metric == plan.metrics[0] else LEVEL
                found = interval(draws[k] - draws[other], level, apart.mean())
                more = {"level": level, "verdict": found.verdict, "seeds ahead": int((apart > 0).sum())}
                row["difference"][metric] = _rounded(found._asdict() | more)
    return rows


def table(results: Mapping[str, Any]) -> pandas.DataFrame:
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
    from me5lib.lessons import figures

    arms, first = results["arms"], results["metrics"][0]
    canvas, (left, right) = figures.canvas(10.0, 1.5 + 0.36 * len(arms), columns=2, sharey=True)
    for i, arm in enumerate(arms):
        found, apart = arm[first], arm["difference"].get(first)
        left.plot(found["seeds"], [i] * len(found["seeds"]), "|", color=figures.GREY, markersize=9)
        left.plot([found["low"], found["high"]], [i, i], color=figures.COLOURS[0], linewidth=2)
        left.plot(found["mean"], i, "o", color=figures.COLOURS[0])
        if apart:
            colour = {"ahead": figures.COLOURS[2], "behind": figures.COLOURS[1]}.get(apart["verdict"], figures.GREY)
            right.plot([apart["low"], apart["high"]], [i, i], color=colour, linewidth=2)
            right.plot(apart["mean"], i, "o", color=colour)
            right.annotate(f"{apart['mean']:+.3f} {apart['verdict']}", (apart["mean"], i), (0, 6), ha="center",
                           textcoords="offset points", fontsize=7, bbox=PAPER)
    right.axvline(0, color="black", linewidth=1, zorder=1)
    right.margins(x=0.2)
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    left.set_ylim(len(arms) - 0.4, -0.8)
    left.set_xlabel(f"{LABELS.get(first, first)}; 95 % interval; grey: seeds", fontsize=9)
    several = {arm["against"] for arm in arms if arm["against"]}
    whom = several.pop() if len(several) == 1 else "random; KD minus the same without"
    right.set_xlabel(f"minus {whom}; 95 % of all together", fontsize=8)
    canvas.suptitle(title(results), fontsize=10)
    return canvas


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What came out of every comparison of the plan on the primary metric, a line each, whichever way it fell."""
    words = {"ahead": "came out ahead of", "behind": "came out behind", "undecided": "could not be told apart from"}
    first, found = results["metrics"][0], []
    for arm in results["arms"]:
        if apart := arm["difference"].get(first):
            found.append(f"{arm['name']} {words[apart['verdict']]} {arm['against']}: {apart['mean']:+.3f}, from "
                         f"{apart['low']:+.3f} to {apart['high']:+.3f}, ahead in {apart['seeds ahead']} of "
                         f"{len(results['seeds'])} seeds")
    return found


def title(results: Mapping[str, Any]) -> str:
    """One line that says what was run."""
    quick = ", quick" if results["quick"] else ""
    seeds = len(results["seeds"])
    return f"{results['experiment']} (scale {results['scale']}{quick}, {seeds} seed{'s' * (seeds > 1)})"


def stored(experiment: str) -> dict[str, Any] | None:
    """The results of the full run that ship with the notebooks, or None where there are none."""
    return io.read_json(io.asset("notebooks") / "results" / f"{experiment}.json", None)


def _taught(plan: Plan, records: Records, arm: Arm) -> int | None:
    """Of how many seeds the teacher was listened to; None for an arm without one."""
    found = [records[seed, arm.name]["facts"].get("teacher") for seed in plan.seeds]
    return sum(bool(teacher and teacher["trusted"]) for teacher in found) if arm.teacher else None


def _rounded(value: Any) -> Any:
    """Floats to six digits, in lists and dictionaries too."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value
