"""`me5 evaluate`: the paper's tables with any model, and before that what they will take.

    me5 evaluate --model intfloat/multilingual-e5-small --table 5 --plan     # texts, FLOP, GB, hours; nothing is run
    me5 evaluate --model intfloat/multilingual-e5-small --table 5 --yes
    me5 evaluate --model runs/base/seed-0/stage2 --table 4 --quick --yes     # MIRACL's five small corpora
    me5 evaluate --model LaBSE --tasks STSBenchmark,SciFact --protocol mteb
    me5 evaluate --scale tiny                                                # the offline tables of a scale of this kit

A killed run is gone on with by the same command. Results lie under --out in mteb's format (see `evaluate.runs`).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from me5lib.io import Me5Error

if TYPE_CHECKING:
    import pandas as pd
    from mteb import AbsTask

    from me5lib.evaluate.benchmarks import Amount
    from me5lib.evaluate.models import Opened

Model = Annotated[str, typer.Option("--model", help="A model to evaluate: a hub id, or the folder of a checkpoint.")]
Table = Annotated[str, typer.Option("--table", help="With --model: a table of the paper, 3, 4, 5 or all.")]
Tasks = Annotated[str, typer.Option("--tasks", help="With --model: tasks by mteb's names, as STSBenchmark,SciFact.")]
Way = Annotated[str, typer.Option("--protocol", help="With --model: paper (as the authors evaluate) or mteb (as mteb "
                                                     "2 does).")]
Dtype = Annotated[str, typer.Option("--dtype", help="With --model: fp32, bf16 or fp16.")]
Languages = Annotated[str, typer.Option("--languages", help="With --model: only these, of tasks that have several, as "
                                                            "sw,th or deu-eng.")]
Quick = Annotated[bool, typer.Option("--quick", help="Of Table 4 the five small corpora only: sw, bn, hi, te, th.")]
Revision = Annotated[str, typer.Option("--revision", help="With --model: its commit, branch or tag on the hub.")]
Against = Annotated[str, typer.Option("--against", help="Whose figures of the paper to hold it against, as small "
                                                        "(default: its own).")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what it will take: texts, FLOP, GB, hours.")]
Speed = Annotated[float | None, typer.Option(min=0.001, help="TFLOP/s of one device that --plan reckons with.")]
Yes = Annotated[bool, typer.Option("--yes", help="Start a long run without asking.")]
Again = Annotated[bool, typer.Option("--again", help="Replace results of another data revision or version of mteb.")]
Devices = Annotated[str, typer.Option("--devices", help="Where to encode, as cuda:0,cuda:1 (default: all GPUs).")]
Drop = Annotated[bool, typer.Option("--drop-vectors", help="Delete a task's vectors once its result is there.")]

LONG = 1.0  # hours above which a run wants --yes (ours)
GPU_SHARE = 0.3  # of the data sheet's 16-bit peak, where it is known (ours: texts are short, tables are looked up)
GPU = 30.0  # TFLOP/s of any other GPU (ours)
CORE = 0.03  # TFLOP/s of a CPU core in fp32 (ours)


class Shape(NamedTuple):
    """What a model's configuration says that its cost depends on."""

    layers: int
    width: int
    feedforward: int

    def operations(self, amount: Amount) -> float:
        """FLOP of reading so much text once: 2 for each weight and token, and attention's own products."""
        weights = self.layers * (4 * self.width**2 + 2 * self.width * self.feedforward)
        return 2 * weights * amount.tokens + 4 * self.layers * self.width * amount.squares


class Asked(NamedTuple):
    """What the command was asked."""

    model: str
    table: str
    tasks: str
    protocol: str = "paper"
    dtype: str = "fp32"
    languages: str = ""
    quick: bool = False
    revision: str = ""
    out: str = ""
    against: str = ""
    plan: bool = False
    speed: float | None = None
    yes: bool = False
    again: bool = False
    devices: str = ""
    drop_vectors: bool = False


def tables(asked: Asked) -> None:
    """Evaluate a model on tables of the paper, or on tasks; or say what that will take."""
    _refuse(asked)
    from me5lib.evaluate import benchmarks

    numbers = benchmarks.tables(asked.table) if asked.table else ()
    tasks = chosen(numbers, asked)
    cost = Cost(tasks, _shape(asked), asked)
    if asked.plan:
        print("\n".join(cost.lines()))
        return
    if not asked.yes and not cost.hours <= LONG:
        long = "a time that cannot be told" if cost.hours != cost.hours else f"about {cost.hours:,.1f} hours"
        raise Me5Error(f"this takes {long}: look at it with --plan, then add --yes")
    folder, found = _run(asked, tasks)
    _tell(asked, numbers, folder, found)


def chosen(numbers: Sequence[int], asked: Asked) -> list[AbsTask]:
    """The tasks of the tables, then those asked for by name; each once."""
    from me5lib.evaluate import benchmarks

    languages = _words(asked.languages)
    tasks = [task for number in numbers for task in benchmarks.table_tasks(number, asked.quick)]
    names = {task.metadata.name for task in tasks}
    tasks += benchmarks.named_tasks([name for name in _words(asked.tasks) if name not in names])
    return benchmarks.narrowed(tasks, languages)


class Cost:
    """What a run will take, from mteb's statistics of the tasks and assumptions that are said."""

    def __init__(self, tasks: Sequence[AbsTask], shape: Shape | None, asked: Asked) -> None:
        from me5lib.evaluate import benchmarks

        self.amounts = {task.metadata.name: benchmarks.amount(task) for task in tasks}
        self.shape, self.asked = shape, asked
        self.speed, self.assumed = _speed(asked)

    @property
    def hours(self) -> float:
        """Of all tasks; NaN where it cannot be told of one."""
        return sum(self._hours(amount) for amount in self.amounts.values())

    def _hours(self, amount: Amount | None) -> float:
        if amount is None or self.shape is None:
            return float("nan")
        return self.shape.operations(amount) / (self.speed * 1e12) / 3600

    def lines(self) -> Iterator[str]:
        """A line per task, their sum, and what was assumed."""
        from me5lib.evaluate.benchmarks import Amount

        size = 2 if self.asked.dtype in ("fp16", "bf16") else 4
        yield f"{'task':40}{'texts':>13}{'M tokens':>11}{'PFLOP':>11}{'GB kept':>10}{'hours':>12}"
        known = [amount for amount in self.amounts.values() if amount]
        for name, amount in [*self.amounts.items(), ("together", sum(known, Amount()))]:
            if amount is None:
                yield f"{name:40}{'no statistics':>13}"
                continue
            work = self.shape.operations(amount) / 1e15 if self.shape else float("nan")
            kept = amount.texts * (self.shape.width if self.shape else 0) * size / 1e9
            yield (f"{name:40}{amount.texts:>13,.0f}{amount.tokens / 1e6:>11,.1f}{work:>11,.2f}{kept:>10,.2f}"
                   f"{self._hours(amount):>12,.2f}")
        yield f"assumed (ours): {self.assumed}; characters per token by language, 512 tokens of a text at most"
        text = 1.5 * sum(amount.characters for amount in known) / 1e9  # bytes of a character, ours
        yield (f"GB kept: vectors on disk, deleted task by task with --drop-vectors; data: {text:,.1f} GB of text, "
               "twice in the cache")
        yield "not reckoned: searching, classifiers, clustering; what an earlier run has finished"


def _speed(asked: Asked) -> tuple[float, str]:
    """TFLOP/s of all devices together, and where the figure comes from."""
    import os

    import torch

    from me5lib.device import peak_flops

    devices = _devices(asked)
    count = len(devices) or 1
    if asked.speed:
        return asked.speed * count, f"{asked.speed:g} TFLOP/s a device (--speed), {count} of them"
    if not torch.cuda.is_available() or devices and not devices[0].startswith("cuda"):
        cores = os.cpu_count() or 1
        return CORE * cores, f"{CORE:g} TFLOP/s for each of {cores} CPU cores (--speed)"
    peak = peak_flops(torch.device("cuda"), "bf16")
    one = GPU_SHARE * peak / 1e12 if peak else GPU
    if asked.dtype == "fp32":
        one /= 8  # fp32 without tensor cores; data sheets say a sixteenth to a fifth
    return one * count, f"{one:,.0f} TFLOP/s a GPU in {asked.dtype} (--speed), {count} of them"


def _shape(asked: Asked) -> Shape | None:
    """From the model's configuration; None where that does not say it. Raises `Me5Error` for no such model."""
    from me5lib.evaluate import models
    from me5lib.model import released
    from me5lib.model.resolve import local, resolve

    ref = resolve(asked.model, asked.revision)
    known = models.KNOWN.get(released.HUB_ID if ref.kind == "released" else ref.name)
    if known:
        return Shape(known.layers, known.width, 4 * known.width)
    place = local(ref, ("config.json",))
    try:
        given: dict[str, Any] = json.loads((place / "config.json").read_text(encoding="utf8"))
        return Shape(given["num_hidden_layers"], given["hidden_size"], given["intermediate_size"])
    except (OSError, ValueError, KeyError):
        return None


def _run(asked: Asked, tasks: list[AbsTask]) -> tuple[Path, Opened]:
    """Do it; the folder of results, and the model."""
    from me5lib.evaluate import runs

    out = _out(asked.out)
    with _opened(asked) as (opened, encode):
        paths = runs.evaluate(
            opened, tasks, out, protocol=asked.protocol, dtype=asked.dtype, again=asked.again, encode=encode,
            keep=not asked.drop_vectors, progress=sys.stderr.isatty(), command=_command(),
        )
    for path in paths:
        found = runs.read(path)
        scores = [row["main_score"] for rows in found.scores.values() for row in rows]
        print(f"{found.task:40}{100 * sum(scores) / len(scores):8.2f}   mean main score of {len(scores)}")
    return out, opened


@contextmanager
def _opened(asked: Asked) -> Iterator[tuple[Opened, Any]]:
    """The model, and what encodes: None for its own encoder, or that of processes on several devices."""
    from me5lib.evaluate.cache import Workers
    from me5lib.evaluate.models import open_model

    devices = _devices(asked)
    here = "cpu" if len(devices) > 1 else "".join(devices)
    opened = open_model(asked.model, revision=asked.revision, dtype=asked.dtype, device=here)
    if len(devices) < 2:
        yield opened, None
        return
    commit = opened.revision if asked.revision else ""
    with Workers(partial(_encoder, asked.model, commit, asked.dtype), devices) as workers:
        yield opened, workers.encode


def _encoder(model: str, revision: str, dtype: str, device: str) -> Any:
    """What a process of `Workers` opens."""
    from me5lib.evaluate.models import open_model

    return open_model(model, revision=revision, dtype=dtype, device=device).encoder


def _devices(asked: Asked) -> list[str]:
    """The devices to encode on; empty for the one that torch finds."""
    import torch

    if asked.devices:
        return _words(asked.devices)
    count = torch.cuda.device_count()
    return [f"cuda:{i}" for i in range(count)] if count > 1 else []


def _tell(asked: Asked, numbers: Sequence[int], out: Path, opened: Opened) -> None:
    """What the protocol is worth where both were run, and what was measured beside the published values, where there
    are some of this model, or of the one that its weights were made from; with --table also a line, a file each and the
    log. Tasks that were trained on are marked in the files."""
    from me5lib.evaluate import compare, contamination, paper, runs

    folder = runs.home(out, asked.protocol, asked.dtype)
    print(f"results in mteb's format: {folder / 'results'}")
    measured = runs.measured(out)
    _tell_delta(measured, asked, out, opened)
    try:
        against = paper.model_named(asked.against or opened.published or opened.name)
    except Me5Error:
        if asked.against:
            raise
        return
    found = _of_run(measured, asked, opened)
    named = found[found["task"].isin(_words(asked.tasks))]
    for number in paper.TABLES:
        if number in numbers:
            rows = compare.compare(found, number, against)
            table = compare.markdown(contamination.joined(rows)) + "\n"
            (folder / f"table{number}.md").write_text(table, encoding="utf8")
            compare.log_line(out, rows, _command())
        elif paper.publishes(number, against, set(named["task"])):
            rows = compare.compare(named, number, against)
        else:
            continue
        print(compare.by_task(rows).to_string(index=False, float_format="{:.2f}".format))
        print(compare.summary(rows))


def _tell_delta(measured: pd.DataFrame, asked: Asked, out: Path, opened: Opened) -> None:
    """`protocol_delta`, printed and as CSV, where this model was measured under both protocols."""
    from me5lib.evaluate.protocol_delta import protocol_delta

    wanted = {"model": opened.name, "revision": opened.revision, "dtype": asked.dtype, "metric": "main_score"}
    for column, value in wanted.items():
        measured = measured[measured[column] == value]
    by_protocol = measured.groupby("protocol")["task"].agg(set)
    if set(by_protocol.index) != {"paper", "mteb"} or not set.intersection(*by_protocol):
        return
    moved = protocol_delta(measured, instruct=opened.instruct)
    path = out / "protocol_delta.csv"
    moved.to_csv(path, index=False, encoding="utf8")
    print(moved.to_string(index=False, float_format="{:.2f}".format))
    print(f"one model under both protocols: {path}")


def _of_run(measured: pd.DataFrame, asked: Asked, opened: Opened) -> pd.DataFrame:
    wanted = {"model": opened.name, "revision": opened.revision, "protocol": asked.protocol, "dtype": asked.dtype}
    for column, value in wanted.items():
        measured = measured[measured[column] == value]
    return measured


def _refuse(asked: Asked) -> None:
    """Raise `Me5Error` for what does not go together, before anything heavy is imported."""
    if not asked.model:
        raise Me5Error("--table and --tasks evaluate a model: name one with --model, a hub id or a folder")
    if not asked.table and not asked.tasks:
        raise Me5Error("say what to evaluate the model on: --table 3, 4, 5 or all, or --tasks with mteb's names")
    choices = {"protocol": ("paper", "mteb"), "dtype": ("fp32", "bf16", "fp16")}
    for name, known in choices.items():
        if getattr(asked, name) not in known:
            raise Me5Error(f"unknown {name} {getattr(asked, name)!r}: choose one of {', '.join(known)}")


def _out(given: str) -> Path:
    """Where results of tables lie: `given`, else `tables` beside the runs of the scales."""
    from me5lib import io

    return Path(given).expanduser().resolve() if given else io.run_folder("tables", 0).parent


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _command() -> str:
    return shlex.join(["me5", *sys.argv[1:]])
