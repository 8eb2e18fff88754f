"""The `me5` command with all its parts, and those that run, report, hand out and experiment: `me5 --help` lists all.

Everything heavy is imported inside the commands, so that `me5 --help` answers at once.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from me5lib import config, io
from me5lib.cli import OneLineErrors, Out, ScaleName, Seed, Set, data, evaluate, model, split_names, train
from me5lib.io import Me5Error

app = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    add_completion=False,
    help="Learn and reproduce Multilingual E5: run its notebooks, or one stage at a time.",
)
app.add_typer(data.app, name="mixture")


def packs_command(
    export: Annotated[Path | None, typer.Option(help="Copy the packs to this folder, for --from.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Take the packs from such a folder, offline.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Only say what there is, and what is in the cache.")] = False,
    only: Annotated[str, typer.Option(help="Data cards, as me5-small-q4,gsm (default: all but baselines).")] = "",
) -> None:
    """Download the offline packs (about 400 MB, once), verified; what is there stays."""
    from me5lib.data import cards
    from me5lib.data import packs as store

    if listing:
        for card in cards.all_cards().values():
            for file in card.files:
                here = "in the cache" if (io.cache() / "packs" / file.file).is_file() else "to be fetched"
                print(f"{card.name:24} {file.size / 1e6:7.1f} MB  {here:13}  {file.file}")
        return
    names = split_names(only) or None
    paths = store.fetch(names, source=source)
    total = sum(path.stat().st_size for path in paths.values())
    print(f"{len(paths)} packs, {total / 1e6:.0f} MB, verified, in {io.cache() / 'packs'}")
    if export is not None:
        store.fetch(names, source=io.cache() / "packs", folder=export)
        print(f"copied; the others run: me5 packs --from {export}")


def run_command(
    scale: ScaleName = "tiny",
    seed: Seed = 0,
    only: Annotated[str, typer.Option(help="Numbers of notebooks, as 03,06 (default: all).")] = "",
    overrides: Set = [],  # noqa: B006
    out: Out = "",
    keep_going: Annotated[bool, typer.Option("--keep-going/--stop", help="Go on, or stop, at a failing one.")] = False,
    export: Annotated[Path | None, typer.Option(help="Only write what was made to this file, for --from.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Take what such a file holds; then run --only, or what "
                                                               "makes the checkpoints that it leaves out.")] = None,
) -> None:
    """Execute the notebooks that are not finished, and write the pages of the run."""
    numbers = [number.zfill(2) for number in split_names(only)]
    if export and (source or numbers):
        raise Me5Error("--export writes what is there: leave out --from and --only")
    from me5lib.lessons import run as runner

    cfg = config.load(scale, overrides)
    runner.needs_no_hub(cfg)
    folder = io.out(scale, seed, out)
    if export or source:
        missing = _bundle(cfg, seed, folder, export, source)
        numbers = numbers or [book.name for book in runner.books() if missing.intersection(book.makes)]
        if not numbers:
            return
    outcomes = runner.run_notebooks(cfg, seed, folder, numbers, overrides, keep_going)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} notebooks finished: {folder / 'index.html'}")
    if failed:
        raise typer.Exit(1)


def _bundle(cfg: config.Scale, seed: int, folder: Path, export: Path | None, source: Path | None) -> set[str]:
    """Write what the run in `folder` has made to a file, or put that of a file there: the stages still missing."""
    from me5lib.lessons import bundle
    from me5lib.lessons.lesson import Lesson

    lesson = Lesson("", cfg, seed, folder)
    with io.locked(folder / ".lock"):
        if export:
            for part, held in bundle.write_bundle(lesson, export).items():
                print(f"left out: {part}, for {', '.join(card.name for card in held)} (data_cards/README.md says why)")
            print(f"{export}, {export.stat().st_size / 1e6:.1f} MB; the others run: me5 run "
                  f"{shlex.join(lesson.options)} --from {export.name}")
            return set()
        missing = bundle.unpack(source, lesson)
    print(f"what {source} holds is in {folder}: " + (f"{', '.join(missing)} left out, for licences: made here, by the "
          "notebooks that make them" if missing else "any notebook can be started"))  # fmt: skip
    return set(missing)


def report_command(scale: ScaleName = "tiny", seed: Seed = 0, out: Out = "") -> None:
    """Write the pages of a run again and print its numbers."""
    from me5lib.lessons import report as pages

    folder = io.run_folder(scale, seed, out)
    if not (folder / "state.json").is_file():
        raise Me5Error(f"there is no run in {folder}: run `me5 run --scale {scale} --seed {seed}` first")
    for notebook in sorted((folder / "notebooks").glob("[0-9][0-9].ipynb")):
        pages.pages(notebook)
    print(pages.run_summary(folder))
    print(pages.index(folder))


def experiment_command(
    names: Annotated[list[str], typer.Argument(
        help="stages, negatives, forgetting, instructions, near-misses, transfer.")],  # fmt: skip
    scale: Annotated[str, typer.Option("--scale", help="Default: random for stages and transfer, else tiny.")] = "",
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds (0: as many as the experiment wants).")] = 0,
    pilot: Annotated[bool, typer.Option("--pilot", help="Only the pilot, and the plan that follows from it.")] = False,
    suite: Annotated[str, typer.Option("--suite", help="Of stages: eng-mini, or names of mteb's tasks.")] = "",
    overrides: Annotated[list[str], typer.Option("--set", help="A setting, as train.steps=100.")] = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder (default: runs/experiments/<scale>, or under ME5_OUT).")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Start at a scale of the hub, after reading the plan.")] = False,
) -> None:
    """Experiments: of each a pilot and the sealed plan, then every arm with intervals, a table and a figure."""
    from me5lib.lessons import experiments
    from me5lib.lessons.labs import Lab

    for name in dict.fromkeys(names):
        cfg = config.load(scale or experiments.LABS.get(name, Lab).runs_at, overrides)
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


for _command in (data.fetch_command, data.verify_released_command, packs_command, run_command, train.pretrain_command,
                 train.finetune_command, train.mine_command, train.teach_command, experiment_command,
                 data.synthesise_command, model.export_command, model.encode_command, evaluate.evaluate_command,
                 evaluate.atlas_command, evaluate.calibrate_command, evaluate.cost_command, evaluate.diagnose_command,
                 report_command):
    app.command(_command.__name__.removesuffix("_command").replace("_", "-"))(_command)
