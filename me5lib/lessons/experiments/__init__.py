"""The first two experiments: do two stages beat one, and which negatives teach? Written down first, then run.

    plan = planned("stages", scale.load("ablate"), seeds=5)
    results = run(plan, base)                     # base/stages/plan.json first, then arm after arm
    print(table(results)); figure(results)

    <base>/seed-0/stage1/               once per seed, shared by the arms of both experiments
    <base>/<experiment>/plan.json       what will be done: `plan`
    <base>/<experiment>/arms/           the score of every query, a file per seed and arm: a kill costs one arm
    <base>/<experiment>/results.json    means, intervals and verdicts of all arms, with the coordinates of the run;
                                        table.csv, figure.png and timings.json beside it

Cost at `ablate` on two cores: see `timings.json` of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from me5lib import io
from me5lib.io import Me5Error
from me5lib.lessons.experiments.plan import NAMES, Arm, Plan, home, planned, record, seal
from me5lib.lessons.experiments.results import figure, sentences, stored, summary, table, title

__all__ = ["NAMES", "Arm", "Plan", "figure", "home", "planned", "run", "sentences", "stored", "summary", "table",
           "title"]  # fmt: skip


def run(plan: Plan, base: Path, progress: bool = True) -> dict[str, Any]:
    """Run what is not done yet of `plan` in `base`, write the results and return them.

    Raises `Me5Error` where another plan has begun in `base`, and where another process is at work in it.
    """
    from tqdm.auto import tqdm

    from me5lib.data.corpus import open_corpus
    from me5lib.lessons.experiments.arms import Lab

    base.mkdir(parents=True, exist_ok=True)
    with _alone(base):
        corpus = open_corpus(plan.scale, progress)
        folder, mark = seal(plan, base, corpus.fingerprint)
        lab = Lab(plan, base, corpus)
        jobs = [(seed, arm) for seed in plan.seeds for arm in plan.arms]
        with tqdm(jobs, disable=not progress, desc=plan.experiment, unit=" arms") as bar:
            for seed, arm in bar:
                bar.set_postfix_str(f"seed {seed}, {arm.name}")
                path = record(folder, seed, arm)
                if not path.is_file():
                    io.put_json(path, {"plan": mark, **lab.measured(arm, seed)})
        return _reported(plan, folder, mark, corpus.fingerprint)


def _reported(plan: Plan, folder: Path, mark: str, corpus: str) -> dict[str, Any]:
    """The results, written as JSON, table and picture; how long it took beside them."""
    from me5lib.lessons import figures

    records = {(seed, arm.name): io.read_json(record(folder, seed, arm))
               for seed in plan.seeds for arm in plan.arms}
    conditions = {json.dumps(each["conditions"], sort_keys=True) for each in records.values()}
    results = {
        "experiment": plan.experiment, "question": plan.question, "plan": mark, "corpus": corpus,
        "scale": plan.scale.name, "quick": plan.quick, "seeds": list(plan.seeds), "metrics": list(plan.metrics),
        "conditions": [json.loads(text) for text in sorted(conditions)], "arms": summary(plan, records),
    }  # fmt: skip
    io.put_json(folder / "results.json", results)
    seconds = {f"seed {seed}, {name}": each["seconds"] for (seed, name), each in records.items()}
    io.put_json(folder / "timings.json", seconds)
    table(results).to_csv(folder / "table.csv", index=False)
    figures.keep(figure(results), folder / "figure.png")
    return results


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(base / ".lock", timeout=0):
            yield
    except Timeout:
        raise Me5Error(f"another experiment is at work in {base}: wait for it, or choose another with --out") from None
