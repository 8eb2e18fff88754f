"""`me5 pretrain` and `me5 finetune`: the two stages, alone or under a launcher; what they cost; a rehearsal of them.
And what stage 2 learns from: `me5 mine`, hard negatives for your pairs; `me5 teach`, a cross-encoder.

    accelerate launch --multi_gpu --num_processes 8 -m me5lib pretrain --scale base --yes --processes 8
    torchrun --standalone --nproc-per-node 8 -m me5lib pretrain --scale base --yes --processes 8

Unfinished work is gone on with. Under a launcher rank 0 alone speaks; an error that another rank meets is said with its
number. With --processes another number of them is refused: accelerate launch without --multi_gpu would start one, and
say nothing. Exit codes are those of `me5`, and 143 when SIGTERM came and everything is saved (torchrun and accelerate
launch make a 1 of each).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from me5lib import config, io
from me5lib.cli import OfRank, Out, Seed, Set, speaks, split_names
from me5lib.io import PACKAGE, Me5Error

if TYPE_CHECKING:
    from me5lib.data.userdata import OwnCorpus
    from me5lib.train.distributed import Team

START = "intfloat/multilingual-e5-small"
AnyScale = Annotated[str, typer.Option("--scale", help="smoke, tiny (offline, minutes); workshop, small, base, large, "
                                                       "large-instruct (data and backbone of the hub).")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what it will take: hours, GB, GPUs; of --data: dials.")]
Tokens = Annotated[float | None, typer.Option(min=1, help="Tokens of a pair that --plan reckons with (in stage 2, of "
                                              "an example with its negatives; default: half of the most).")]
Use = Annotated[float | None, typer.Option(min=0.001, max=1, help="Share of a GPU's peak that --plan reckons with.")]
Yes = Annotated[bool, typer.Option("--yes", help="Start a long run (every scale of the hub) without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Rehearse a scale of the hub: offline, random weights, "
                                                        "made-up rows, minutes.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Refuse to start with another number of processes.")]
Query = Annotated[str, typer.Option(help="With --data: its column of queries (default: guessed by name).")]
Passage = Annotated[str, typer.Option(help="Its column of right passages.")]
Negatives = Annotated[str, typer.Option(help="Its columns of wrong passages, as n1,n2.")]
Language = Annotated[str, typer.Option(help="Its column of language codes.")]
Encoding = Annotated[str, typer.Option(help="How the file is encoded.")]


def pretrain_command(
    scale: AnyScale = "tiny", seed: Seed = 0, overrides: Set = [], out: Out = "", plan: Plan = False,  # noqa: B006
    tokens: Tokens = None, use: Use = None, yes: Yes = False, dry_run: DryRun = False, processes: Processes = None,
    sbatch_sample: Annotated[bool, typer.Option("--sbatch-sample", help="Print a job script for Slurm.")] = False,
) -> None:
    """Stage 1: contrastive pre-training on pairs."""
    if sbatch_sample:
        print((PACKAGE / "slurm" / "pretrain.sbatch").read_text(encoding="utf8"), end="")
        return
    cfg = config.load(scale, overrides)
    _make_stage("stage1", cfg, seed, out, plan, tokens, use, yes, dry_run, processes)


def finetune_command(
    scale: AnyScale = "tiny", seed: Seed = 0, overrides: Set = [], out: Out = "",  # noqa: B006
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights: into stage2-only.")] = False,
    instruct: Annotated[bool, typer.Option("--instruct", help="With instructions, and synthetic examples: into "
                                                              "instruct; large-instruct does no other.")] = False,
    plan: Plan = False, tokens: Tokens = None, use: Use = None, yes: Yes = False, dry_run: DryRun = False,
    processes: Processes = None,
    start: Annotated[str, typer.Option("--from", help=f"With --data: the model to start from, a hub id or a folder "
                                                      f"(default: {START}).")] = "",
    data: Annotated[str, typer.Option(help="Train on your own file: .csv, .jsonl or .parquet, of queries and their "
                                           "passages; with a dev split and a table before and after.")] = "",
    query_column: Query = "", passage_column: Passage = "", negative_columns: Negatives = "",
    language_column: Language = "", encoding: Encoding = "utf8",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Both columns are queries, as of duplicate "
                                                                "questions.")] = False,
    instruction: Annotated[str, typer.Option(help="With --data: train an instruct model, whose queries begin with "
                                                  "this, as 'Given a question, retrieve its answer'.")] = "",
    epochs: Annotated[float | None, typer.Option(help="With --data: passes over it (default: 2).")] = None,
    teacher: Annotated[str, typer.Option(help="With --data: learn from a cross-encoder too: the hub id of one, or "
                                              "`trained`, a small one of your own (default: none).")] = "",
) -> None:
    """Stage 2: supervised fine-tuning of the stage-1 checkpoint, or of any mE5 on your own file (--data)."""
    if not data:
        of_file = (start, query_column, passage_column, negative_columns, language_column, epochs, teacher)
        if symmetric or encoding != "utf8" or any(value not in ("", None) for value in (instruction, *of_file)):
            raise Me5Error("--from, --epochs, --teacher, --instruction and the columns belong to --data FILE; "
                           "a scale's own dials are set as --set finetune.steps=100")
        cfg = config.load(scale, overrides)
        instruct |= "synthetic" in cfg.data.labelled  # such rows are read with their instructions or not at all
        if scratch and instruct:
            raise Me5Error("--scratch does not go with instructions: that stage starts from stage 1, as in the paper")
        name = "instruct" if instruct else "stage2-only" if scratch else "stage2"
        _make_stage(name, cfg, seed, out, plan, tokens, use, yes, dry_run, processes)
        return
    scaled = scale != "tiny"
    if wrong := "--scratch" * scratch or "--dry-run" * dry_run or "--instruct" * instruct or "--scale" * scaled:
        raise Me5Error(f"{wrong} does not go with --data: its dials are shown by --plan; an --instruction is another")
    from me5lib.data import userdata
    from me5lib.model.save_load import instruct_prompts
    from me5lib.train import fit

    fit.passes(epochs)
    columns = {"query": query_column, "passage": passage_column, "negatives": split_names(negative_columns),
               "language": language_column}
    corpus = userdata.read_corpus(data, **columns, encoding=encoding, symmetric=symmetric)
    if instruction:
        corpus = dataclasses.replace(corpus, instruction=instruction, prompts=instruct_prompts(instruction))
    settings = {"epochs": epochs, "overrides": overrides, "teacher": teacher}
    _tune_on_file(corpus, start or START, settings, seed, out, plan, processes)


def _make_stage(name: str, cfg: config.Scale, seed: int, out: str, plan: bool, tokens: float | None, use: float | None,
                yes: bool, dry_run: bool, processes: int | None) -> None:  # fmt: skip
    """Train stage1, stage2, stage2-only or instruct of a scale, or say what it will take, or rehearse it, as was asked
    for. Raises `Me5Error` for a long one without --yes."""
    from me5lib.instruct.template import instructed

    stage, start = cfg.train if name == "stage1" else cfg.finetune, None
    if plan:
        from me5lib.train.cost import USE, estimate

        if speaks():
            print(*estimate(cfg, name, tokens, use or USE).lines(), sep="\n")
        return
    if dry_run:
        from me5lib.train.dry_run import rehearse

        folder = io.run_folder(cfg.name, seed, out) / "dry-run"
        with _launched(processes) as team:
            rehearse(cfg, seed, folder, name, team, lambda line: _say(team, line), instructed)
        return
    if not cfg.offline and not yes:
        raise Me5Error(f"scale {cfg.name} trains {cfg.model.backbone} for {stage.steps:,} steps of {stage.batch:,}: "
                       f"look at `me5 {io.STAGES[name]} --scale {cfg.name} --plan`, then add --yes; or choose smoke or "
                       "tiny")
    folder = io.out(cfg.name, seed, out)
    if name in ("stage2", "instruct"):
        from me5lib.lessons.lesson import Lesson

        start = Lesson("", cfg, seed, folder).checkpoint("stage1")
    with _launched(processes) as team:
        from me5lib.data.corpus import open_corpus
        from me5lib.train import stages

        more = {"team": team, "progress": team.main}
        if name == "instruct":
            corpus = team.main_process_first(lambda: open_corpus(cfg, team.main))
            cfg, more["corpus"] = instructed(cfg, corpus)
        if name == "stage1":
            _say(team, stages.pretrain(cfg, seed, folder, **more))
        else:
            _say(team, stages.finetune(cfg, seed, folder, start=start, name=name, teacher=name != "instruct", **more))


def _tune_on_file(corpus: OwnCorpus, model: str, settings: dict, seed: int, out: str, plan: bool,
                  processes: int | None) -> None:
    """Fine-tune on one's own file: choose the settings, train, and compare before with after on the dev split."""
    from me5lib.device import precision
    from me5lib.evaluate.own import compare_on_dev
    from me5lib.model.encoder import Encoder
    from me5lib.train import fit

    with _launched(processes) as team:
        _say(team, *corpus.lines())
        start = team.main_process_first(lambda: fit.open_start(model, lambda line: _say(team, line)))
        cfg = fit.fit(corpus, Encoder.load(start), model, **settings)
        _say(team, f"{model}, to be tuned with", *fit.setting_lines(cfg))
        if plan:
            return
        folder = io.out(f"own-{corpus.name}", seed, out)  # a file may be called tiny, too
        if team.main:
            _say(team, f"data card: {corpus.write(folder / 'data')}")
        tuned = fit.finetune_on_file(corpus, start, folder, cfg, seed=seed, teacher=bool(settings["teacher"]),
                                     team=team, progress=team.main)
        if team.main:
            models = {"before": Encoder.load(start).to(team.device), "after": Encoder.load(tuned).to(team.device)}
            compared = compare_on_dev(corpus, models, precision=precision(team.device).name)
            compared.table.to_csv(folder / "dev.csv", index_label="model")
            _say(team, fit.mined_line(tuned), f"{compared}\n", tuned)


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


def _say(team: Team, *lines: object) -> None:
    if team.main:
        print(*lines, sep="\n", flush=True)


def mine_command(
    data: Annotated[Path, typer.Option(help="Your pairs: .csv, .jsonl or .parquet with query and positive columns.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards and the report.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of the encoder that searches.")] = "",
    by: Annotated[str, typer.Option(help="dense (the model's vectors) or bm25 (shared words).")] = "dense",
    depth: Annotated[int, typer.Option(min=1, help="Candidates of a query.")] = 200,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of a query, its own included.")] = 7,
    near: Annotated[float | None, typer.Option(help="Drop what is so much liker a positive than neighbours are to each "
                                                 "other (default: 1.06 with --by dense; 0: off).")] = None,
    margin: Annotated[float | None, typer.Option(help="Drop what scores above this share of the positive.")] = None,
    within: Annotated[bool, typer.Option("--within-language/--across", help="Search passages of the query's language, "
                                                                             "or of all.")] = True,
    query_column: Query = "", passage_column: Passage = "", negative_columns: Negatives = "",
    language_column: Language = "", encoding: Encoding = "utf8",
) -> None:
    """Mine hard negatives for your pairs. The same command goes on after a crash with the shards that are missing."""
    from me5lib.train import mining

    near = mining.DEFAULT_NEAR if near is None and by == "dense" else near or None
    cfg = mining.Mining(by, depth, negatives, near, margin or None, within)
    columns = {"query": query_column, "passage": passage_column, "negatives": split_names(negative_columns),
               "language": language_column}
    print(*mining.mine_file(data, out, cfg, model, columns, encoding, progress=sys.stderr.isatty()), sep="\n")


def teach_command(
    data: Annotated[Path, typer.Option("--data", help="JSON lines: query, positives, negatives; or a groups.jsonl.")],
    start: Annotated[str, typer.Option("--from", help="The encoder to start from: a folder or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The teacher's folder; made anew.")],
    scale: Annotated[str, typer.Option("--scale", help="The scale whose stage-2 settings it is trained by.")] = "tiny",
    seed: Seed = 0, overrides: Set = [],  # noqa: B006
) -> None:
    """Train a teacher: a cross-encoder with a listwise softmax over each group, judged on held-out groups."""
    stage = config.load(scale, overrides).finetune
    from me5lib.train.teacher import train_on_file

    print(*train_on_file(data, start, out, stage, seed, progress=sys.stderr.isatty()), sep="\n")
