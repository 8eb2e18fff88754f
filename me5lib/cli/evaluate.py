"""`me5 evaluate`: a model on tables of the paper or on mteb's tasks, by the paper's protocol; what a run will take.
`me5 cost`: its speed, memory and disk, and what fewer bits cost in quality. `me5 atlas`: a page on which its space is
explored. `me5 calibrate`: what its cosines mean. `me5 diagnose`: what is wrong with a run.

A killed run is gone on with by the same command. Results lie under --out in mteb's format (see `evaluate.runs`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from me5lib import config, io
from me5lib.cli import Out, ScaleName, Seed, Set, split_names
from me5lib.cli.train import Encoding, Language, Passage, Query
from me5lib.io import Me5Error

if TYPE_CHECKING:
    from me5lib.evaluate.models import Opened

LONG = 1.0  # hours above which a run wants --yes (ours)


def evaluate_command(
    scale: ScaleName = "tiny", seed: Seed = 0, overrides: Set = [], out: Out = "",  # noqa: B006
    model: Annotated[str, typer.Option(help="A model to evaluate: a hub id, or the folder of a checkpoint.")] = "",
    table: Annotated[str, typer.Option(help="With --model: a table of the paper, 3, 4, 5 or all.")] = "",
    tasks: Annotated[str, typer.Option(help="With --model: tasks by mteb's names, as STSBenchmark,SciFact.")] = "",
    suite: Annotated[str, typer.Option(help="With --model: tasks that belong together, lowres or eng-mini.")] = "",
    protocol: Annotated[str, typer.Option(help="With --model: paper (as the authors do) or mteb's own.")] = "paper",
    dtype: Annotated[str, typer.Option(help="With --model: fp32, bf16 or fp16.")] = "fp32",
    languages: Annotated[str, typer.Option(help="With --model: only these, of several, as sw,th or deu-eng.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Of Table 4 the five small corpora only.")] = False,
    revision: Annotated[str, typer.Option(help="With --model: its commit, branch or tag on the hub.")] = "",
    against: Annotated[str, typer.Option(help="The model of the paper to hold it against, as small.")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it will take: texts, FLOP, GB, hours.")] = False,
    speed: Annotated[float | None, typer.Option(min=0.001, help="TFLOP/s of one device, for --plan.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start a long run without asking.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Replace results of other data, or another mteb.")] = False,
    devices: Annotated[str, typer.Option(help="Where to encode, as cuda:0,cuda:1 (default: all GPUs).")] = "",
    drop_vectors: Annotated[bool, typer.Option("--drop-vectors", help="Keep no vectors of a finished task.")] = False,
) -> None:
    """The paper's tables with any model (--model); or every checkpoint of a run and the baselines, offline."""
    if not (model or table or tasks or suite):
        _offline_tables(scale, seed, overrides, out)
        return
    if not model:
        raise Me5Error("--table, --tasks and --suite evaluate a model: name one with --model, a hub id or a folder")
    if not (table or tasks or suite):
        raise Me5Error("say what to evaluate the model on: --table 3, 4, 5 or all, --suite lowres, or --tasks "
                       "with mteb's names")
    for name, value, known in (("protocol", protocol, ("paper", "mteb")), ("dtype", dtype, ("fp32", "bf16", "fp16"))):
        if value not in known:
            raise Me5Error(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    import torch

    from me5lib.evaluate import benchmarks, runs
    from me5lib.evaluate.cache import on_devices
    from me5lib.evaluate.models import open_model

    numbers, names, chosen = benchmarks.chosen(table, split_names(tasks), suite, split_names(languages), quick)
    gpus = torch.cuda.device_count()
    where = split_names(devices) or [f"cuda:{i}" for i in range(gpus) if gpus > 1]  # none: what torch finds
    hours, lines = benchmarks.cost_of_run(chosen, benchmarks.shape_of(model, revision), dtype, speed, where)
    if plan:
        print(*lines, sep="\n")
        return
    if not yes and not hours <= LONG:
        long = "a time that cannot be told" if hours != hours else f"about {hours:,.1f} hours"
        raise Me5Error(f"this takes {long}: look at it with --plan, then add --yes")
    folder = Path(out).expanduser().resolve() if out else io.run_folder("tables", 0).parent
    several = len(where) > 1
    opened = open_model(model, revision=revision, dtype=dtype, device="cpu" if several else "".join(where))
    open_on = partial(open_model, model, revision=opened.revision if revision else "", dtype=dtype)
    with on_devices(open_on, where) if several else nullcontext() as encode:
        paths = runs.evaluate(opened, chosen, folder, protocol=protocol, again=again, encode=encode,
                              keep=not drop_vectors, command=_command())
    for path in paths:
        scores = [row["main_score"] for rows in runs.read_result(path).scores.values() for row in rows]
        print(f"{path.stem:40}{100 * sum(scores) / len(scores):8.2f}   mean main score of {len(scores)}")
    tell(opened, folder, protocol, numbers, names, against)


def tell(opened: Opened, out: Path, protocol: str, numbers: Sequence[int] = (), tasks: Sequence[str] = (),
         against: str = "") -> None:  # fmt: skip
    """Print, and keep in files, what the protocol is worth where both were run, and the measured values beside those
    that are published of this model; of the tables `numbers` and of single `tasks`."""
    from me5lib.evaluate import benchmarks, paper, runs, verdicts

    home = out / f"{protocol}-{opened.dtype}"
    print(f"results in mteb's format: {home / 'results'}")
    measured = runs.measured_values(out)
    for column, value in {"model": opened.name, "revision": opened.revision, "dtype": opened.dtype}.items():
        measured = measured[measured[column] == value]
    if len(moved := verdicts.protocol_delta(measured)):
        moved.to_csv(out / "protocol_delta.csv", index=False, encoding="utf8")
        print(moved.to_string(index=False, float_format="{:.2f}".format))
        print(f"one model under both protocols: {out / 'protocol_delta.csv'}")
    try:
        whose = paper.model_named(against or opened.published or opened.name)
    except Me5Error:
        if against:
            raise
        return
    measured = measured[measured["protocol"] == protocol]
    named = measured[measured["task"].isin(tasks)]
    if len(lowres := named[named["task"].isin(benchmarks.SUITES["lowres"])]):
        with suppress(Me5Error):  # a model whose runs nobody has published
            print(verdicts.beside_others(lowres, whose).to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    for number in paper.TABLES:
        published = paper.expected(number).query("not mean and model == @whose")
        if number not in numbers and not published["task"].isin(named["task"]).any():
            continue
        rows = verdicts.against_paper(measured if number in numbers else named, number, whose)
        if number in numbers:
            table = verdicts.markdown(verdicts.with_contamination(rows)) + "\n"
            (home / f"table{number}.md").write_text(table, encoding="utf8")
            verdicts.log_line(out, rows, _command())
        both = rows[rows["delta"].notna() & ~rows["subset"].str.startswith("mean of")].assign(subsets=1)
        how = {"subsets": "sum", "expected": "mean", "measured": "mean", "delta": "mean"}
        means = both.groupby(["task", "metric"], sort=False).agg(how).reset_index()
        print(means.to_string(index=False, float_format="{:.2f}".format))
        print(verdicts.verdict_line(rows))


def _offline_tables(name: str, seed: int, overrides: list[str], out: str) -> None:
    """The offline tables of a scale, printed and as CSV."""
    from me5lib.data.corpus import open_corpus
    from me5lib.evaluate import offline_table
    from me5lib.lessons import run

    scale = config.load(name, overrides)
    run.needs_no_hub(scale)
    folder = io.out(name, seed, out)
    _, scores = offline_table.standard_scores(scale, seed, folder, open_corpus(scale))
    path = folder / "evaluation" / "scores.csv"
    scores.to_csv(path, index=False)
    means = offline_table.language_means(scores).pivot_table(index="model", columns="task", values="mean", sort=False)
    print(means.to_string(float_format="{:.3f}".format, na_rep=""))
    print(f"means over languages, between 0 and 1; every language and direction: {path}")


def calibrate_command(
    model: Annotated[str, typer.Option(help="Checkpoint folder, hub id or released model.")] = config.RELEASED[0],
    data: Annotated[str, typer.Option(help="Your own pairs: .csv, .jsonl or .parquet (default: held-out "
                                           "translations).")] = "",
    scale: ScaleName = "tiny",
    query_column: Query = "", passage_column: Passage = "", language_column: Language = "", encoding: Encoding = "utf8",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Both columns are queries.")] = False,
    out: Annotated[str, typer.Option(help="A file for the table, as CSV.")] = "",
) -> None:
    """What a cosine of 0.85 means: how many wrong pairs reach it, language by language, and how many right ones."""
    from me5lib.data import userdata
    from me5lib.data.corpus import open_corpus
    from me5lib.device import best_device, precision
    from me5lib.evaluate import calibrate
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import QUERY

    if data:
        file = userdata.read_corpus(data, query=query_column, passage=passage_column, language=language_column,
                                    encoding=encoding, symmetric=symmetric)
        rows, prefixes, unused = file.rows, file.prefixes(), file.reasons()
    else:
        rows = calibrate.heldout_pairs(open_corpus(config.load(scale)).task("heldout").sets)
        prefixes, unused = (QUERY, QUERY), []
    encoder = Encoder.load(model).to(best_device())
    table = calibrate.calibrate(encoder, rows, prefixes, precision=precision(encoder.device).name,
                                progress=sys.stderr.isatty())
    if out:
        io.put_text(Path(out).expanduser(), table.to_csv(index=False))
    print(*unused, *calibrate.lines(table), sep="\n")


def cost_command(
    models: Annotated[list[str], typer.Argument(help="Models.")] = [*config.RELEASED, *config.ENGLISH],  # noqa: B006
    out: Annotated[str, typer.Option(help="Folder to write (default: runs/cost, or under ME5_OUT).")] = "",
    texts: Annotated[int, typer.Option(min=40, help="To encode, of mean 60 tokens in 20 languages.")] = 2_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of a model and runtime.")] = 7,
    runtimes: Annotated[str, typer.Option(help="Such as fp32,int8,onnx int8 (default: all that run here).")] = "",
    quality: Annotated[bool, typer.Option("--quality", help="What bits cost in quality, by language.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="base and large too: true shape, random weights.")] = False,
) -> None:
    """Speed, memory and disk by model and runtime; what fewer bits of arithmetic, vectors, weights cost in quality."""
    from me5lib.data import packs
    from me5lib.data.corpus import open_corpus
    from me5lib.evaluate import efficiency, quantised

    if set(config.ENGLISH).intersection(models):
        packs.fetch(config.ENGLISH)
    folder = Path(out).expanduser().resolve() if out else io.run_folder("cost", 0).parent
    corpus, chosen = open_corpus(config.load("tiny")), split_names(runtimes) or efficiency.runtimes()
    if quality:
        table = quantised.qualities(models, corpus, chosen, folder / "vectors")
        efficiency.record(folder, quality=table)
        told = quantised.losers(table)
    else:
        models = [*models, *(efficiency.RANDOM if plan else ())]
        kept = efficiency.measure(models, chosen, corpus.task("gsm").sets, texts, folder, rounds)
        told = efficiency.frame(kept, folder)
        efficiency.record(folder, costs=told, storage=efficiency.storage(384))
    print(told.to_string(index=False, float_format="{:.4g}".format))
    print(f"cost.json: {folder}")


def diagnose_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of one of its stages.")],
    out: Annotated[Path | None, typer.Option(help="Folder for diagnosis.md, .json, .png (default: RUN).")] = None,
) -> None:
    """What is wrong with a run: poor languages, weak retrieval, idle instructions; the suspected cause, what to try."""
    from me5lib.lessons import diagnose

    folder = run.expanduser()
    print(*diagnose.write(diagnose.diagnose(folder), out or folder), sep="\n")


def atlas_command(
    model: Annotated[str, typer.Option(help="Checkpoint folder, hub id or released model.")] = config.RELEASED[0],
    against: Annotated[str, typer.Option(help="A second model, to go over to on the page.")] = "",
    data: Annotated[str, typer.Option(help="heldout (interface strings), gsm (word problems in every language), or a "
                                           "CSV with a column a language.")] = "heldout",
    out: Annotated[Path | None, typer.Option(help="The page to write, as atlas.html.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="A table of the UMAP map for outside viewers, as "
                                                      "atlas.parquet.")] = None,
    scale: ScaleName = "tiny", seed: Seed = 0, overrides: Set = [],  # noqa: B006
) -> None:
    """A map of translations as one page that needs nothing but a browser, or as a table for outside viewers."""
    for option, path, kind in (("--out", out, ".html"), ("--parquet", parquet, ".parquet")):
        if path and path.suffix != kind:
            raise Me5Error(f"{option} names the file to write, which ends in {kind}: not {path}")
    if not (out or parquet):
        raise Me5Error("say what to write: --out atlas.html, or --parquet atlas.parquet")
    from me5lib.evaluate.models import open_model
    from me5lib.lessons import atlas

    texts = atlas.parallel_texts(config.load(scale, overrides), data)
    spaces = {name: atlas.encoded(open_model(name), texts) for name in filter(None, (model, against))}
    maps = atlas.lay_out_maps(spaces, seed)
    if out:
        io.put_text(out, atlas.explorer(spaces[model], texts, maps).html)
    if parquet:
        atlas.write_points(parquet, spaces[model], texts, maps[0])
    print(*(f"{path}: {path.stat().st_size / 1e6:.1f} MB" for path in (out, parquet) if path), sep="\n")


def _command() -> str:
    return shlex.join(["me5", *sys.argv[1:]])
