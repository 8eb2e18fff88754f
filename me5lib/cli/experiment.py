"""`me5 experiment`: experiments from their plans to their figures."""

from __future__ import annotations

from typing import Annotated

import typer

from me5lib.io import Me5Error


def experiment_command(
    names: Annotated[list[str], typer.Argument(help="stages, negatives (default: both).")] = [],  # noqa: B006
    scale: Annotated[str, typer.Option("--scale", help="random (offline), or any other scale.")] = "random",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the steps, at most two seeds.")] = False,
    overrides: Annotated[list[str], typer.Option("--set", help="A setting, as train.steps=100.")] = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder (default: runs/experiments/<scale>, or under ME5_OUT).")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Start at a scale of the hub, after reading the plan.")] = False,
) -> None:
    """The first two experiments: of each its plan, then every arm with intervals, a table and a figure."""
    from me5lib import config
    from me5lib.lessons import experiments

    cfg = config.load(scale, overrides)
    plans = [experiments.planned(name, cfg, seeds, quick) for name in dict.fromkeys(names or experiments.QUESTIONS)]
    print("\n\n".join("\n".join(plan.lines()) for plan in plans), flush=True)
    if not cfg.offline and not yes:
        models = sum(len(plan.seeds) * len(plan.arms) for plan in plans)
        raise Me5Error(f"that is {models} models of scale {scale}: look at `me5 pretrain --scale {scale} --plan` and "
                       f"`me5 finetune --scale {scale} --plan` for what one takes, then add --yes")
    base = experiments.home(cfg, quick, out)
    for plan in plans:
        results = experiments.run_experiment(plan, base)
        print(experiments.arm_table(results).to_string(index=False, float_format="{:.3f}".format, na_rep=""))
        print("\n".join(experiments.sentences(results)))
        print(f"results.json, table.csv and figure.png: {base / plan.experiment}")
