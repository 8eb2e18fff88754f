"""Runs of mteb's tasks with one model: what is finished stays, what was killed goes on, two ways never mix.

    paths = evaluate(opened, benchmarks.table_tasks(5), out)   # mteb's own result files, under `out`
    measured_values(out)                                       # a frame of everything that lies there

Every way to evaluate has a folder of its own: `<out>/<protocol>-<dtype>/results/<model>/<revision>/<Task>.json`, mteb's
format and layout, so that files can be sent to its public repository of results; `run.json` says how they came about,
`vectors/` keeps embeddings (`cache.CachedEncoder`). A task is skipped when its file is there, whole, and of the task's
data revision and this mteb. A damaged file is named and made again; one of another revision or mteb is refused before
anything is encoded: mteb itself would take it, or merge new subsets into it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.metadata
import logging
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from mteb import AbsTask
from mteb.results import TaskResult
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from tqdm import std
from tqdm.auto import tqdm

from me5lib import io
from me5lib.evaluate import benchmarks, lint
from me5lib.evaluate.cache import CachedEncoder
from me5lib.evaluate.models import Opened
from me5lib.evaluate.paper import COORDINATES
from me5lib.evaluate.protocol import Protocol
from me5lib.io import Me5Error

PACKAGES = ("me5", "mteb", "datasets", "torch", "transformers", "sentence-transformers", "scikit-learn", "numpy")
# Metrics besides the main one, by the beginning of a task's name: what Tables 4 and 5 have, and accuracy beside F1.
METRICS = {"MIRACL": ("ndcg_at_10", "recall_at_100"), "BUCC": ("f1", "accuracy"), "Tatoeba": ("f1", "accuracy")}
LOADING = {"batch_size": 4096, "show_progress_bar": False}  # of mteb's data loader; the encoder batches by tokens


def evaluate(opened: Opened, tasks: Sequence[AbsTask], out: Path, *, protocol: str = "paper", again: bool = False,
             keep: bool = True, command: str = "",
             encode: Callable[..., Iterator[np.ndarray]] | None = None) -> list[Path]:  # fmt: skip
    """Evaluate `opened` on `tasks`, those without a finished result; the result file of each task, in order.

    `encode`: of `cache.on_devices`. `again`: replace results that do not fit. `keep`: leave a task's
    vectors on disk. `command` goes into run.json. Raises `Me5Error` for results that do not fit, for data that cannot
    be had, for a second run in the same folder, and for a disk that refuses.
    """
    folder = Path(out) / f"{protocol}-{opened.dtype}"
    try:
        with io.locked(folder / ".lock"):
            if todo := pending(opened, tasks, folder, again):
                with _recorded(folder, opened, protocol, todo, command):
                    _evaluate(opened, todo, folder, protocol, keep, encode)
            return [_result_path(folder, opened, task) for task in tasks]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST):
            raise Me5Error(f"cannot write to {folder} ({error.strerror}): choose another folder with --out") from None
        raise


def pending(opened: Opened, tasks: Sequence[AbsTask], folder: Path, again: bool = False) -> list[AbsTask]:
    """The tasks without a finished result; damaged files are named and deleted.

    Files that do not fit are deleted with `again`, and else refused (`Me5Error`).
    """
    todo = []
    for task in tasks:
        for part in (*benchmarks.parts_of(task), task):
            result = _usable(_result_path(folder, opened, part), part, again)
        if result is None or not benchmarks.subsets_of(task) <= lint.subsets_held(result):
            todo.append(task)
    return todo


def _usable(path: Path, task: AbsTask, again: bool) -> TaskResult | None:
    """The result of a task where it is whole and fits; None where there is none."""
    if not path.exists():
        return None
    now = {"data revision": task.metadata.revision, "mteb": mteb.__version__}
    try:
        result = read_result(path)
        if not (refusal := lint.refusal(lint.faults_of(result, path, record_of(path), wanted=now))):
            return result
        if not again:
            raise Me5Error(f"the result file {path} {refusal}: choose another --out, or add --again to replace it")
    except ValueError as error:
        print(f"me5: the result file {path} is damaged ({error}): it is made again", file=sys.stderr)
    path.unlink(missing_ok=True)
    return None


def measured_values(out: Path) -> pd.DataFrame:
    """Every result under `out`: `COORDINATES`, a row per task, split, subset and metric; `value` in per cent.

    Metrics: `main_score` of every task, and those of `METRICS`. `weights` is "" without a record in run.json. What
    `lint.faults_of` says of a file and is no reason to refuse it goes to the error stream. Raises `Me5Error`, naming
    the file, for one that cannot be read, that is faulty, or that lies in the folder of another revision than
    `model_meta.json` there says; and for a folder without results.
    """
    rows = []
    for path in sorted(Path(out).glob("*-*/results/*/*/*.json")):
        if path.name == "model_meta.json":
            continue
        try:
            result = read_result(path)
        except ValueError as error:
            raise Me5Error(f"the result file {path} is damaged ({error}): delete it, or run the same `me5 evaluate` "
                           "again, which makes it again") from None
        record = record_of(path)
        faults = list(lint.faults_of(result, path, record, benchmarks.full_subsets(result.task_name)))
        if refusal := lint.refusal(faults):
            raise Me5Error(f"the result file {path} {refusal}: delete it, or run the same `me5 evaluate` with --again")
        for what, _ in faults:
            print(f"me5: the result file {path} {what}", file=sys.stderr)
        rows += _coordinate_rows(result, path, record["weights"] if record else "")
    if not rows:
        raise Me5Error(f"no results in {out}: run `me5 evaluate --model ... --out {out}` first")
    return pd.DataFrame(rows, columns=COORDINATES)


def _coordinate_rows(result: TaskResult, path: Path, weights: str) -> Iterator[tuple]:
    protocol, _, dtype = path.parents[3].name.rpartition("-")
    folder, task, meta = path.parent, result.task_name, {}
    with contextlib.suppress(OSError, ValueError):
        meta = io.read_json(folder / "model_meta.json")
    if meta and meta["revision"] != folder.name:
        raise Me5Error(f"{folder} holds results of revision {meta['revision']} (model_meta.json): results of two "
                       "revisions are mixed, put each into a folder of its own revision")
    name = meta.get("name") or folder.parent.name.replace("__", "/")
    metrics = ("main_score", *next((more for start, more in METRICS.items() if task.startswith(start)), ()))
    for split, rows in result.scores.items():
        for row in rows:
            for metric in (metric for metric in metrics if metric in row):
                value = math.nan if row[metric] is None else 100 * float(row[metric])
                yield (name, folder.name, protocol, dtype, weights, task, result.dataset_revision,
                       result.mteb_version, split, row["hf_subset"], metric, value)


def read_result(path: Path) -> TaskResult:
    """A result file in mteb's format. Raises ValueError, in a few words, for anything else."""
    try:
        result = TaskResult.model_validate_json(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[:120]) from None
    if result.task_name != path.stem:
        raise ValueError(f"it is of task {result.task_name}")
    return result


def record_of(path: Path) -> dict[str, Any] | None:
    """What run.json says of the last run of a result's task, model and revision; None where it says nothing.

    Keys: `protocol`, `dtype`, `data revision`, `mteb`; `weights`; `subsets`, how many it was asked for (0: not
    recorded); `finished`.
    """
    model, revision, task = path.parent.parent.name, path.parent.name, path.stem
    try:
        run = next(run for run in reversed(io.read_json(path.parents[3] / "run.json")["runs"]) if task in run["tasks"]
                   and (run["model"].replace("/", "__"), run["revision"]) == (model, revision))
        return {"protocol": run["protocol"], "dtype": run["dtype"], "data revision": run["tasks"][task],
                "mteb": run["versions"]["mteb"], "weights": run.get("weights", "full"),
                "subsets": run.get("subsets", {}).get(task, 0), "finished": bool(run["finished"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


@contextlib.contextmanager
def _recorded(folder: Path, opened: Opened, protocol: str, tasks: Sequence[AbsTask], command: str) -> Iterator[None]:
    """A line of run.json about what is done inside: `finished` stays empty when it does not come to its end."""
    def now() -> str:
        return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    file, runs, versions = folder / "run.json", [], {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        runs = list(io.read_json(file)["runs"])
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    every = {part.metadata.name: part for task in tasks for part in (task, *benchmarks.parts_of(task))}
    entry = {
        "command": command, "model": opened.name, "revision": opened.revision,
        "weights": opened.weights, "protocol": protocol, "dtype": opened.dtype,
        "tasks": {name: str(task.metadata.revision) for name, task in every.items()},
        "subsets": {name: len(benchmarks.subsets_of(task)) for name, task in every.items()},
        "hardware": hardware(), "versions": versions, "python": platform.python_version(), "begun": now(),
        "finished": "",
    }
    io.put_json(file, {"runs": [*runs, entry]}, sort_keys=True)
    yield
    io.put_json(file, {"runs": [*runs, entry | {"finished": now()}]}, sort_keys=True)


def _evaluate(opened: Opened, tasks: Sequence[AbsTask], folder: Path, protocol: str, keep: bool,
              encode: Callable[..., Iterator[np.ndarray]] | None) -> None:  # fmt: skip
    """Every task through mteb, with a bar of characters; mteb goes on with what it wrote for single subsets."""
    sizes = [size.characters if (size := benchmarks.amount(task)) else 0 for task in tasks]
    with tqdm(total=sum(sizes), disable=not sys.stderr.isatty(), unit=" characters", unit_scale=True,
              smoothing=0.05) as bar:
        for i, task in enumerate(tasks):
            bar.set_description(f"{task.metadata.name} ({i + 1} of {len(tasks)})")
            model = encoder_of(opened, folder, protocol, encode, bar.update)
            absent = [part for part in benchmarks.parts_of(task) if not part.data_loaded]
            load_task(task)
            with quiet_mteb():
                mteb.evaluate(model, task, cache=mteb.ResultCache(folder), co2_tracker=False,
                              encode_kwargs=LOADING.copy(), show_progress_bar=False)
            for part in absent:
                part.unload_data()
            bar.update(sum(sizes[: i + 1]) - bar.n)  # texts that a task has twice are encoded once
            if not keep:
                model.encoder.delete()


def encoder_of(opened: Opened, folder: Path, protocol: str, encode: Callable[..., Iterator[np.ndarray]] | None = None,
               seen: Callable[[int], None] = lambda characters: None) -> Protocol:  # fmt: skip
    """What mteb is given of a model: under a protocol, its vectors kept in `folder` and read from there."""
    identity = {"name": opened.name, "revision": opened.revision}
    store = folder / "vectors" / opened.name.replace("/", "__") / opened.revision
    cached = CachedEncoder(opened.encoder, store, identity, opened.dtype, encode, seen)
    return Protocol(cached, opened.name, protocol, revision=opened.revision, instruct=opened.instruct)


def load_task(task: AbsTask) -> None:
    """Load a task's data into memory, and so into the hub's cache. Raises `Me5Error` where it cannot be had.

    Both sides of a bitext become plain lists, as mteb has BUCC's: it copies them into a loader, text by text.
    """
    for part in benchmarks.parts_of(task):
        try:
            if not part.data_loaded:
                part.load_data()
            if part.metadata.type != "BitextMining" or getattr(part, "parallel_subsets", False):
                continue
            for splits in part.dataset.values():
                for split, rows in dict(splits).items() if hasattr(splits, "items") else ():
                    if isinstance(rows, Dataset) and {"sentence1", "sentence2"} <= set(rows.column_names):
                        splits[split] = {"gold": [(i, i) for i in range(len(rows))], **rows.to_dict()}
        except Exception as error:  # whatever datasets, the hub's client and a task's own code raise
            about = f"{part.metadata.dataset['path']} at {str(part.metadata.revision)[:8]}"
            raise Me5Error(f"the data of {part.metadata.name} ({about}) cannot be had "
                           f"({' '.join(str(error).split())[:120]}): run `me5 fetch --for table3` (or 4, 5) where "
                           "there is a network") from None


@contextlib.contextmanager
def quiet_mteb() -> Iterator[None]:
    """mteb without its progress bars (two per subset), convergence warnings, and advice to take newer tasks.

    The paper's tables are made of the old ones.
    """
    begin, log = std.tqdm.__init__, logging.getLogger("mteb")
    level = log.level
    std.tqdm.__init__ = lambda self, *args, **options: begin(self, *args, **{**options, "disable": True})
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (ConvergenceWarning, UndefinedMetricWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        std.tqdm.__init__ = begin
        log.setLevel(level)


def hardware() -> str:
    """This machine's GPUs, or its processor and cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores {platform.machine()} {platform.processor()}".strip()


def _result_path(folder: Path, opened: Opened, task: AbsTask) -> Path:
    return mteb.ResultCache(folder).get_task_result_path(task.metadata.name, opened.name, opened.revision)
