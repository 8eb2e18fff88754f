"""`me5 pretrain` and `me5 finetune`: the two stages, alone or under a launcher; what they cost; a rehearsal of them.
And what stage 2 learns from: `me5 mine`, hard negatives for your pairs; `me5 teach`, a cross-encoder.

    me5 pretrain --scale base --plan                                         # hours, GB, GPUs; nothing is trained
    me5 pretrain --scale base --dry-run                                      # minutes, offline, random weights
    me5 pretrain --scale base --yes                                          # one process
    accelerate launch --multi_gpu --num_processes 8 -m me5lib pretrain --scale base --yes --processes 8
    torchrun --standalone --nproc-per-node 8 -m me5lib pretrain --scale base --yes --processes 8
    me5 pretrain --sbatch-sample > pretrain.sbatch                           # two nodes, under Slurm
    me5 finetune --from intfloat/multilingual-e5-small --data my.csv         # your own file; or .jsonl, .parquet
    me5 mine --data faq.csv --by bm25 --out mined --negatives 5 --across     # or --model MODEL
    me5 teach --data groups.jsonl --from MODEL --out my-teacher              # then: --set finetune.teacher=my-teacher

Unfinished work is gone on with. Under a launcher rank 0 alone speaks; an error that another rank meets is said with its
number. With --processes another number of them is refused: accelerate launch without --multi_gpu would start one, and
say nothing. Exit codes are those of `me5`, and 143 when SIGTERM came and everything is saved (torchrun and accelerate
launch make a 1 of each).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from me5lib import io
from me5lib.cli import split_names
from me5lib.io import PACKAGE, Me5Error

if TYPE_CHECKING:
    from me5lib.data.userdata import OwnCorpus
    from me5lib.train.distributed import Team

ScaleName = Annotated[str, typer.Option("--scale", help="smoke (seconds) or tiny (minutes), both offline.")]
AnyScale = Annotated[str, typer.Option("--scale", help="smoke, tiny (offline, minutes); workshop, small, base, large, "
                                                       "large-instruct (data and backbone of the hub).")]
Seed = Annotated[int, typer.Option(callback=io.valid_seed, help="Seed of everything random.")]
Out = Annotated[str, typer.Option(help="Folder of the run (default: runs/<scale>/seed-<n>, or under ME5_OUT).")]
Set = Annotated[list[str], typer.Option("--set", help="A setting, as train.steps=100; may be given again.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what it will take: hours, GB, GPUs; of --data: dials.")]
Tokens = Annotated[float | None, typer.Option(min=1, help="Tokens of a pair that --plan reckons with (in stage 2, of "
                                              "an example with its negatives; default: half of the most).")]
Use = Annotated[float | None, typer.Option(min=0.001, max=1, help="Share of a GPU's peak that --plan reckons with.")]
Yes = Annotated[bool, typer.Option("--yes", help="Start a long run (every scale of the hub) without asking.")]
Resume = Annotated[bool | None, typer.Option("--resume/--fresh", help="Only go on with unfinished work, or throw it "
                                             "away and begin anew (default: go on where there is some, else begin).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Rehearse a scale of the hub: offline, random weights, "
                                                        "made-up rows, minutes.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Refuse to start with another number of processes.")]
Sample = Annotated[bool, typer.Option("--sbatch-sample", help="Print a job script for Slurm.")]
START = "intfloat/multilingual-e5-small"
From = Annotated[str, typer.Option("--from", help=f"With --data: the model to start from, a hub id or a folder "
                                                  f"(default: {START}).")]
Data = Annotated[str, typer.Option("--data", help="Train on your own file: .csv, .jsonl or .parquet, of queries and "
                                                  "their passages; with a dev split and a table before and after.")]
Query = Annotated[str, typer.Option(help="With --data: its column of queries (default: guessed by name).")]
Passage = Annotated[str, typer.Option(help="Its column of right passages.")]
Negatives = Annotated[str, typer.Option(help="Its columns of wrong passages, as n1,n2.")]
Language = Annotated[str, typer.Option(help="Its column of language codes.")]
Encoding = Annotated[str, typer.Option(help="How the file is encoded.")]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="Both columns are queries, as of duplicate questions.")]
Epochs = Annotated[float | None, typer.Option(help="With --data: passes over it (default: 2).")]
Steps = Annotated[int | None, typer.Option(help="With --data: steps, instead of --epochs.")]
Teaches = Annotated[str, typer.Option("--teacher", help="With --data: learn from a cross-encoder too: the hub id of "
                                                        "one, or `trained`, a small one of your own (default: none).")]


class OfRank(Me5Error):
    """An error of a rank that is not the first one: said, though that rank is otherwise quiet."""


def speaks() -> bool:
    """Whether this process is the one of its launch that talks."""
    return os.environ.get("RANK", "0") == "0"


def pretrain_command(
    scale: AnyScale = "tiny", seed: Seed = 0, overrides: Set = [], out: Out = "", plan: Plan = False,  # noqa: B006
    tokens: Tokens = None, use: Use = None, yes: Yes = False, resume: Resume = None, dry_run: DryRun = False,
    processes: Processes = None, sbatch_sample: Sample = False,
) -> None:
    """Stage 1: contrastive pre-training on pairs."""
    if sbatch_sample:
        print((PACKAGE / "slurm" / "pretrain.sbatch").read_text(encoding="utf8"), end="")
        return
    _make_stage(_Options(scale, seed, overrides, out, plan, tokens, use, yes, resume, dry_run, processes), "stage1")


def finetune_command(
    scale: AnyScale = "tiny", seed: Seed = 0, overrides: Set = [], out: Out = "",  # noqa: B006
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights: into stage2-only.")] = False,
    plan: Plan = False, tokens: Tokens = None, use: Use = None, yes: Yes = False, resume: Resume = None,
    dry_run: DryRun = False, processes: Processes = None, start_from: From = "", data: Data = "",
    query_column: Query = "", passage_column: Passage = "", negative_columns: Negatives = "",
    language_column: Language = "", encoding: Encoding = "utf8", symmetric: Symmetric = False, epochs: Epochs = None,
    steps: Steps = None, teacher: Teaches = "",
) -> None:
    """Stage 2: supervised fine-tuning of the stage-1 checkpoint, or of any mE5 on your own file (--data)."""
    of_file = (start_from, query_column, passage_column, negative_columns, language_column, epochs, steps, teacher)
    if data:
        wrong = "--scratch" if scratch else "--dry-run" if dry_run else "--scale" if scale != "tiny" else ""
        if wrong:
            raise Me5Error(f"{wrong} does not go with --data: your own file has its own dials, shown by --plan")
        if epochs is not None and steps is not None:
            raise Me5Error("--epochs and --steps say the same: leave one of them out")
        if epochs is not None and not 0 < epochs < float("inf"):
            raise Me5Error("--epochs must be above zero, and not endless")
        from me5lib.data import userdata

        corpus = userdata.read_corpus(
            data, query=query_column, passage=passage_column, language=language_column,
            negatives=split_names(negative_columns), encoding=encoding, symmetric=symmetric,
        )  # fmt: skip
        settings = {"epochs": epochs, "steps": steps, "overrides": overrides, "teacher": teacher}
        _tune_on_file(corpus, start_from or START, settings, seed, out, plan, resume, processes)
        return
    if symmetric or encoding != "utf8" or any(value not in ("", None) for value in of_file):
        raise Me5Error("--from, --epochs, --steps, --teacher and the columns belong to --data FILE; a scale's own "
                       "dials are set as --set finetune.steps=100")
    name = "stage2-only" if scratch else "stage2"
    _make_stage(_Options(scale, seed, overrides, out, plan, tokens, use, yes, resume, dry_run, processes), name)


class _Options(NamedTuple):
    """What both commands are asked of a scale."""

    scale: str
    seed: int
    overrides: list[str]
    out: str
    plan: bool
    tokens: float | None
    use: float | None
    yes: bool
    resume: bool | None
    dry_run: bool
    processes: int | None


def _make_stage(options: _Options, name: str) -> None:
    """Make the stage `name`; or say what it will take, or rehearse it, instead."""
    from me5lib import config

    cfg = config.load(options.scale, options.overrides)
    first = name == "stage1"
    kind, command, stage = ("stage1", "pretrain", cfg.train) if first else ("stage2", "finetune", cfg.finetune)
    if options.plan:
        from me5lib.train.cost import USE, estimate

        if speaks():
            print("\n".join(estimate(cfg, kind, options.tokens, options.use or USE).lines()))
        return
    if options.dry_run:
        from me5lib.train.dry_run import rehearse

        folder = io.run_folder(cfg.name, options.seed, options.out) / "dry-run"
        with _launched(options.processes) as team:
            rehearse(cfg, options.seed, folder, kind, team, lambda line: _say(team, line))
        return
    if not cfg.offline and not options.yes:
        raise Me5Error(f"scale {cfg.name} trains {cfg.model.backbone} for {stage.steps:,} steps of {stage.batch:,}: "
                       f"look at `me5 {command} --scale {cfg.name} --plan`, then add --yes; or choose smoke or tiny")
    folder = io.out(cfg.name, options.seed, options.out)
    start = None
    if name == "stage2":
        from me5lib.lessons.lesson import Lesson

        start = Lesson("", cfg, options.seed, folder).checkpoint("stage1")
    with _launched(options.processes) as team:
        _resume_or_begin(team, folder, name, stage.steps, options.resume)
        from me5lib.train import stages

        more = {"team": team, "progress": team.main}
        made = (stages.pretrain(cfg, options.seed, folder, **more) if first else
                stages.finetune(cfg, options.seed, folder, start=start, name=name, **more))
        _say(team, made)


def _tune_on_file(corpus: OwnCorpus, model: str, settings: dict[str, Any], seed: int, out: str, plan: bool,
                  resume: bool | None, processes: int | None) -> None:
    """Fine-tune on one's own file: choose the settings, train, and compare before with after on the dev split."""
    from me5lib.device import precision
    from me5lib.evaluate.own import compare_on_dev
    from me5lib.model.encoder import Encoder
    from me5lib.train import fit

    name = f"own-{corpus.name}"  # a file may be called tiny, too
    with _launched(processes) as team:
        _say(team, "\n".join(corpus.lines()))
        start = team.main_process_first(lambda: fit.open_start(model, lambda line: _say(team, line)))
        cfg = fit.fit(corpus, Encoder.load(start), model, **settings)
        _say(team, "\n".join([f"{model}, to be tuned with", *fit.setting_lines(cfg)]))
        if plan:
            return
        folder = io.out(name, seed, out)
        if team.main:
            _say(team, f"data card: {corpus.write(folder / 'data')}")
        _resume_or_begin(team, folder, fit.NAME, cfg.finetune.steps, resume)
        tuned = fit.finetune_on_file(corpus, start, folder, cfg, seed=seed, teacher=bool(settings["teacher"]),
                                     team=team, progress=team.main)
        if team.main:
            models = {"before": Encoder.load(start).to(team.device), "after": Encoder.load(tuned).to(team.device)}
            compared = compare_on_dev(corpus, models, precision=precision(team.device).name)
            compared.table.to_csv(folder / "dev.csv", index_label="model")
            _say(team, f"{fit.mined_line(tuned)}\n{compared}\n")
        _say(team, tuned)


@contextmanager
def _launched(processes: int | None) -> Iterator[Team]:
    """Those who were launched together, dissolved in the end; what goes wrong on another rank than 0 names it."""
    from me5lib.train import distributed

    team = distributed.join(processes)
    try:
        yield team
    except Me5Error as error:
        raise error if team.main else OfRank(f"rank {team.rank}: {error}") from None
    except (SystemExit, KeyboardInterrupt):  # all ranks leave together
        distributed.leave()
        raise
    distributed.leave()


def _resume_or_begin(team: Team, folder: Path, name: str, steps: int, resume: bool | None) -> None:
    """Before training: with --resume, that there is a checkpoint to go on with; with --fresh, that there is none.

    Rank 0 looks, and all of them hear of it.
    """
    from me5lib.train import checkpoint

    part, fault = folder / f"{name}.part", ""
    if team.main and resume is False and part.exists():
        print(f"{part} is thrown away")
        shutil.rmtree(part)
    elif team.main and resume:
        last = checkpoint.latest(part / "checkpoints")
        if last is None:
            done = (folder / name / "config.json").is_file()
            why = f"{name} is finished there" if done else f"no checkpoint of {name} is there"
            fault = f"nothing to resume in {folder} ({why}): leave out --resume"
        else:
            print(f"going on with {last} ({checkpoint.read_state(last)['step']:,} of {steps:,} steps are done)")
    if team.any(bool(fault)):
        raise Me5Error(fault) if team.main else typer.Exit(2)
    team.barrier()


def _say(team: Team, line: object) -> None:
    if team.main:
        print(line, flush=True)


def mine_command(
    data: Annotated[Path, typer.Option(help="Your pairs: .csv, .jsonl or .parquet with query and positive columns.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards and the report.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of the encoder that searches.")] = "",
    by: Annotated[str, typer.Option(help="dense (the model's vectors), bm25 (shared words) or random.")] = "dense",
    depth: Annotated[int, typer.Option(min=1, help="Candidates of a query.")] = 200,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of a query, its own included.")] = 7,
    near: Annotated[float | None, typer.Option(help="Drop what is so much liker a positive than neighbours are to each "
                                                 "other (default: 1.06 with --by dense; 0: off).")] = None,
    margin: Annotated[float | None, typer.Option(help="Drop what scores above this share of the positive.")] = None,
    within: Annotated[bool, typer.Option("--within-language/--across", help="Search passages of the query's language, "
                                                                             "or of all.")] = True,
    index: Annotated[str, typer.Option(help="exact or ivf (faiss); auto is exact below 2M passages.")] = "auto",
    seed: Seed = 0,
    shard: Annotated[int, typer.Option(min=1, help="Queries of a shard.")] = 10_000,
    query_column: Query = "", passage_column: Passage = "", negative_columns: Negatives = "",
    language_column: Language = "", encoding: Encoding = "utf8",
) -> None:
    """Mine hard negatives for your pairs. The same command goes on after a crash with the shards that are missing."""
    from me5lib.train import mining

    near = mining.DEFAULT_NEAR if near is None and by == "dense" else near or None
    cfg = mining.Mining(by, depth, negatives, near, margin or None, within, index, seed, shard)
    wrong = split_names(negative_columns)
    columns = {"query": query_column, "passage": passage_column, "negatives": wrong, "language": language_column}
    print("\n".join(mining.mine_file(data, out, cfg, model, columns, encoding, progress=sys.stderr.isatty())))


def teach_command(
    data: Annotated[Path, typer.Option("--data", help="JSON lines: query, positives, negatives; or a groups.jsonl.")],
    start: Annotated[str, typer.Option("--from", help="The encoder to start from: a folder or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The teacher's folder; made anew.")],
    scale: Annotated[str, typer.Option("--scale", help="The scale whose stage-2 settings it is trained by.")] = "tiny",
    seed: Seed = 0, overrides: Set = [],  # noqa: B006
) -> None:
    """Train a teacher: a cross-encoder with a listwise softmax over each group, judged on held-out groups."""
    from me5lib import config

    stage = config.load(scale, overrides).finetune
    from me5lib.train.teacher import train_on_file

    print("\n".join(train_on_file(data, start, out, stage, seed, progress=sys.stderr.isatty())))
