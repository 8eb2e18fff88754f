"""`me5 experiment`: experiments from their pilots to their figures."""

from __future__ import annotations

from typing import Annotated

import typer

from me5lib.io import Me5Error


def experiment_command(
    names: Annotated[list[str], typer.Argument(help="stages, negatives, forgetting, near-misses.")],
    scale: Annotated[str, typer.Option("--scale", help="Default: random for stages, tiny for the others.")] = "",
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds (0: as many as the experiment wants).")] = 0,
    pilot: Annotated[bool, typer.Option("--pilot", help="Only the pilot, and the plan that follows from it.")] = False,
    suite: Annotated[str, typer.Option("--suite", help="Of stages: eng-mini, or names of mteb's tasks.")] = "",
    overrides: Annotated[list[str], typer.Option("--set", help="A setting, as train.steps=100.")] = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder (default: runs/experiments/<scale>, or under ME5_OUT).")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Start at a scale of the hub, after reading the plan.")] = False,
) -> None:
    """Experiments: of each a pilot and the sealed plan, then every arm with intervals, a table and a figure."""
    from me5lib import config
    from me5lib.lessons import experiments

    for name in dict.fromkeys(names):
        cfg = config.load(scale or ("random" if name == "stages" else "tiny"), overrides)
        plan, base = experiments.planned(name, cfg, seeds, suite), experiments.home(cfg, out)
        if not cfg.offline and not yes:
            print("\n".join(plan.lines()), flush=True)
            raise Me5Error(f"that is {len(plan.seeds) * len(plan.arms)} models of scale {cfg.name}: look at `me5 "
                           f"pretrain --scale {cfg.name} --plan` and `me5 finetune --scale {cfg.name} --plan` for what "
                           "one takes, then add --yes")
        plan = experiments.piloted(plan, base)
        print("\n".join(plan.lines()), flush=True)
        if pilot:
            continue
        results = experiments.run_experiment(plan, base)
        print("\n".join(experiments.sentences(results)))
        print(experiments.arm_table(results).to_string(index=False, float_format="{:.3f}".format, na_rep=""))
        print(f"results.json, table.csv and figure.png: {base / plan.experiment}")
