"""`me5 mixture`: build the shards of a card, show what the mixture of all of them is, check it for leaks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from me5lib import io
from me5lib.io import Me5Error

if TYPE_CHECKING:
    from me5lib.data import manifests, pipeline

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The mixture of a billion pairs: build, show, check."
)
Out = Annotated[Path | None, typer.Option(help="Folder of the mixture (default: mixture, in the cache).")]


@app.command()
def build(
    card: Annotated[list[str], typer.Option(help="Name of a hub card, as nllb; may be given again.")],
    executor: Annotated[str, typer.Option(help="local (this machine), slurm or ray.")] = "local",
    tasks: Annotated[int, typer.Option(help="Parts that a build is cut into; the shards follow from it.")] = 16,
    workers: Annotated[int | None, typer.Option(help="Tasks at a time (local: processors; else no limit).")] = None,
    out: Out = None,
    source: Annotated[Path | None, typer.Option("--from", help="Read a copy of the hub: DIR/<repository>/…")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows to read of a card, spread evenly over its files.")] = None,
    time: Annotated[str, typer.Option(help="Slurm: limit of a task.")] = "24:00:00",
    partition: Annotated[str, typer.Option(help="Slurm: partition.")] = "",
    account: Annotated[str, typer.Option(help="Slurm: account.")] = "",
    mem: Annotated[int, typer.Option(help="GB of memory of a task (Slurm, Ray).")] = 4,
    env_command: Annotated[str, typer.Option(help="Slurm: run first, as: source .venv/bin/activate")] = "",
    sbatch: Annotated[list[str], typer.Option(help="Slurm: further option, key=value; may be given again.")] = [],  # noqa: B006
) -> None:
    """Build the shards of a card. The same command goes on after a crash with the tasks that were not finished."""
    from me5lib.data import cards, executors
    from me5lib.data import pipeline as builder

    if executor not in ("local", "slurm", "ray"):
        raise Me5Error(f"--executor {executor!r}: choose local, slurm or ray")
    slurm = executors.Slurm(time, partition, account, mem, env_command, _pairs(sbatch))
    options = builder.Options(tasks, source.expanduser().resolve() if source else None, limit)
    prepared = [builder.prepare(cards.load(name), out or builder.home(), options) for name in card]
    for each in prepared:
        _build(each, executor, workers, slurm, mem)


def _pairs(given: list[str]) -> dict[str, str]:
    for each in given:
        if "=" not in each:
            raise Me5Error(f"--sbatch {each!r}: give key=value")
    return dict(each.split("=", 1) for each in given)


def _build(build: pipeline.Prepared, executor: str, workers: int | None, slurm: Any, mem: int) -> None:
    from me5lib.data import manifests, pipeline

    name = build.card.name
    for absent in build.absent:
        print(f"me5: card {name}: no files {absent}", file=sys.stderr)
    if build.options.tasks > len(build.files):
        print(f"me5: card {name}: {build.options.tasks} tasks for {len(build.files)} files: the others have nothing to "
              "read, for a file is not split", file=sys.stderr)
    job = pipeline.run(build, executor, workers, slurm, float(mem))
    if job:
        print(f"{name}: submitted, the last job is {job}; when it has ended: me5 mixture show --out {build.out.parent}")
        return
    given = io.read_json(build.out / manifests.MANIFEST)
    unfit, dropped = (sum(n for each in given[what].values() for n in each.values()) for what in ("unfit", "dropped"))
    print(f"{name}: {given['rows']:,} rows in {len(given['languages'])} languages, in {build.out}")
    print(f"  {given['read']:,} rows read, {unfit:,} of them unfit, {len(given['unreadable'])} files unreadable; "
          f"{given['made']:,} pairs made, {dropped:,} of them dropped: see {manifests.MANIFEST}")


@app.command()
def show(
    out: Out = None,
    temperature: Annotated[float, typer.Option(help="Of the languages inside a source (ours: 0.5).")] = 0.5,
) -> None:
    """What is built: rows and shares by source and language, wanted and built; a picture; and who is starved."""
    from me5lib.data import cards, manifests, pipeline
    from me5lib.lessons import figures, mixture_figures

    folder = (out or pipeline.home()).expanduser().resolve()
    found = manifests.built(folder)
    stages = manifests.mixtures(found, cards.hub(), temperature)
    if not stages:
        raise Me5Error(f"no card is built in {folder}: me5 mixture build --card NAME")
    for number, stage in enumerate(stages):
        print("\n".join(_table(stage)))
        path = folder / f"mixture-{number + 1}.png"
        figures.keep(mixture_figures.picture(stage, manifests.STARVED), path)
        print(f"picture: {path}\n")
    _csv(stages, folder / "mixture.csv")
    print(f"every source and language: {folder / 'mixture.csv'}")


@app.command()
def check(
    scale: Annotated[str, typer.Option(help="The offline corpus whose rows are checked, without --out.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Check the shards that were built in this folder instead.")] = None,
    tasks: Annotated[str, typer.Option(help="mteb tasks, as Tatoeba,STSBenchmark, beside the offline ones.")] = "",
    texts: Annotated[Path | None, typer.Option(help="A file of evaluation texts, one a line, beside them.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write every leak to this CSV file.")] = None,
) -> None:
    """Hold every training row against every evaluation text; exit code 1 where one leaks."""
    from me5lib import config as scales
    from me5lib.data import leaks, shards
    from me5lib.data.corpus import open_corpus
    from me5lib.evaluate import heldout

    if texts is not None and not texts.is_file():
        raise Me5Error(f"--texts {texts}: there is no such file")
    streams = shards.open_streams(out.expanduser().resolve()) if out else None
    corpus = open_corpus(scales.load(scale))
    held = heldout.corpus_texts(corpus) | heldout.task_texts([name for name in tasks.split(",") if name])
    if texts is not None:
        held[texts.name, ""] = texts.read_text(encoding="utf8").splitlines()
    found = list(leaks.find(streams or corpus.shards, held, progress=sys.stderr.isatty()))
    rows = sum(shard.rows for shard in (streams or corpus.shards).values())
    print(f"{rows:,} rows against {sum(map(len, held.values())):,} evaluation texts: {len(found)} leaks")
    for leak in found[:20]:
        print(f"  {leak.source} {leak.language} row {leak.row} {leak.column}: {leak.trained[:60]!r} is "
              f"{'equal to' if leak.kind == 'exact' else 'near'} {leak.evaluated[:60]!r} of {leak.task}")
    if report is not None:
        _write_csv(report, leaks.Leak._fields, found)
    if found:
        raise typer.Exit(1)


def _table(stage: manifests.Stage, languages: int = 20) -> list[str]:
    lines = [f"{stage.title}", f"  {'source':20}{'built':>14}{'wanted':>14}{'of it':>10}{'share':>8}{'languages':>11}"]
    for source in stage.sources:
        wanted = f"{source.wanted:,}" if source.wanted else "unknown"
        part = f"{source.rows / source.wanted:.1%}" if source.wanted else ""
        lines.append(f"  {source.name:20}{source.rows:>14,}{wanted:>14}{part:>10}{source.share:>8.1%}"
                     f"{len(source.languages):>11}")
    lines += [f"  {name:20}{'not built':>14}{f'{wanted:,}' if wanted else 'unknown':>14}"
              for name, wanted in stage.absent.items()]
    lines.append(f"  {'language':20}{'built':>14}{'share drawn':>14}")
    shown = list(stage.languages.items())
    lines += [f"  {code:20}{rows:>14,}{share:>14.3%}" for code, (rows, share) in shown[:languages]]
    if len(shown) > languages:
        lines.append(f"  and {len(shown) - languages} more")
    return lines + _warnings(stage)


def _warnings(stage: manifests.Stage) -> list[str]:
    from me5lib.data.manifests import STARVED

    lines = []
    if stage.starved:
        poor = _some([f"{code} {share:.3%}" for code, share in stage.starved.items()])
        lines.append(f"  WARNING: starved languages, under {STARVED:.1%} of what is drawn (our threshold): {poor}")
    for source in stage.sources:
        if source.missing:
            lines.append(f"  WARNING: {source.name} has no rows in {_some(source.missing)}")
    return lines


def _some(given: list[str], most: int = 20) -> str:
    return ", ".join(given[:most]) + (f" and {len(given) - most} more" if len(given) > most else "")


def _csv(stages: list[manifests.Stage], path: Path) -> None:
    rows = ([stage.title, source.name, code, rows, f"{stage.languages[code][1]:.6f}"]
            for stage in stages for source in stage.sources for code, rows in sorted(source.languages.items()))
    _write_csv(path, ["stage", "source", "language", "rows built", "share of the language in its stage"], rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    import csv

    with path.open("w", encoding="utf8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
