"""Runs of mteb's tasks with one model: what is finished stays, what was killed goes on, two ways never mix.

    paths = evaluate(opened, suites.table_tasks(5), out)       # mteb's own result files, under `out`
    measured(out)                                              # a frame of everything that lies there

Every way to evaluate has a folder of its own: `<out>/<protocol>-<dtype>/results/<model>/<revision>/<Task>.json`, mteb's
format and layout, so that files can be sent to its public repository of results; `run.json` says how they came about,
`vectors/` keeps embeddings (`vectors.CachedEncoder`). A task is skipped when its file is there, whole, and of the
task's data revision and this mteb. A damaged file is named and made again. One of another data revision or another mteb
is refused before anything is encoded: mteb itself would take it, or merge new subsets into it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.metadata
import json
import logging
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from me5lib import io
from me5lib.evaluate import benchmarks, lint
from me5lib.evaluate.paper import COORDINATES as COLUMNS
from me5lib.evaluate.protocol import Protocol
from me5lib.io import Me5Error

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mteb import AbsTask, ResultCache

    from me5lib.evaluate.models import Opened

PACKAGES = ("me5", "mteb", "datasets", "torch", "transformers", "sentence-transformers", "scikit-learn", "numpy")
# Metrics besides the main one, by the beginning of a task's name: what Tables 4 and 5 have, and accuracy beside F1.
METRICS = {"MIRACL": ("ndcg_at_10", "recall_at_100"), "BUCC": ("f1", "accuracy"), "Tatoeba": ("f1", "accuracy")}
_ENCODE = {"batch_size": 4096, "show_progress_bar": False}  # of mteb's data loader; the encoder batches by tokens


class Found(NamedTuple):
    """A result file as it lies there."""

    path: Path
    task: str
    dataset_revision: str
    mteb_version: str
    scores: dict[str, list[dict[str, Any]]]  # split → one dict a subset

    @property
    def held(self) -> set[tuple[str, str]]:
        """(split, subset) that it has scores of."""
        return {(split, row["hf_subset"]) for split, rows in self.scores.items() for row in rows}


class ByColumn(Protocol):
    """A `Protocol` that reads the texts of a data loader as a column: row by row mteb's loaders take 0.1 ms a text."""

    def encode(self, inputs: Any, **given: Any) -> np.ndarray:
        """See `Protocol.encode`."""
        rows = getattr(inputs, "dataset", None)
        if "text" in getattr(rows, "column_names", ()):
            inputs = [{name: rows[name][:] for name in ("text", "body") if name in rows.column_names}]
        return super().encode(inputs, **given)


def home(out: Path, protocol: str, dtype: str) -> Path:
    """The folder of one way to evaluate."""
    return Path(out) / f"{protocol}-{dtype}"


def evaluate(opened: Opened, tasks: Sequence[AbsTask], out: Path, *, protocol: str = "paper", dtype: str = "fp32",
             again: bool = False, keep: bool = True, progress: bool = False, command: str = "",
             encode: Callable[..., Iterator[np.ndarray]] | None = None) -> list[Path]:
    """Evaluate `opened` on `tasks`, those without a finished result; the result file of each task, in order.

    `dtype` is what the encoder was opened with. `encode`: `Workers.encode`, for several devices. `again`: replace
    results of another data revision or mteb. `keep`: leave a task's vectors on disk once its result is there. `command`
    goes into run.json. Raises `Me5Error` for results that do not fit, for data that cannot be had, for a second run in
    the same folder, and for a disk that refuses.
    """
    folder = home(out, protocol, dtype)
    with _alone(folder):
        paths = [_path(_cache(folder), opened, task) for task in tasks]
        todo = pending(opened, tasks, folder, again)
        if todo:
            with _recorded(folder, opened, protocol, dtype, todo, command):
                _work(opened, todo, folder, protocol, dtype, keep, progress, encode)
        return paths


def pending(opened: Opened, tasks: Sequence[AbsTask], folder: Path, again: bool = False) -> list[AbsTask]:
    """The tasks without a finished result. Damaged files are named and deleted; ones that do not fit are refused.

    Or, with `again`, deleted: raises `Me5Error` else.
    """
    cache, todo = _cache(folder), []
    for task in tasks:
        for part in benchmarks.parts(task):
            _usable(_path(cache, opened, part), part, again)
        found = _usable(_path(cache, opened, task), task, again)
        if found is None or not benchmarks.wanted(task) <= found.held:
            todo.append(task)
    return todo


def measured(out: Path) -> pd.DataFrame:
    """Every result under `out`: `COLUMNS`, a row per task, split, subset and metric; `value` in per cent.

    Metrics: `main_score` of every task, and those of `METRICS`. Models, revisions, protocols and dtypes stand beside
    each other, told apart by their columns; `weights` is "full", another word of run.json, or "" without a record.
    Every file goes through `lint.check`; what is no reason to refuse it is said on the error stream. Raises `Me5Error`,
    naming the file, for one that cannot be read, that is faulty, or that lies in the folder of another revision than
    `model_meta.json` there says; and for a folder without results.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for path in sorted(Path(out).glob("*-*/results/*/*/*.json")):
        if path.name == "model_meta.json":
            continue
        try:
            found = read(path)
        except ValueError as error:
            raise Me5Error(f"the result file {path} is damaged ({error}): delete it, or run the same `me5 evaluate` "
                           "again, which makes it again") from None
        record = recorded(found)
        faults = lint.check(found, record, benchmarks.whole(found.task))
        if refused := [fault.what for fault in faults if fault.refused]:
            raise Me5Error(f"the result file {path} {_few(refused)}: delete it, or run the same `me5 evaluate` with "
                           "--again")
        for fault in faults:
            print(f"me5: the result file {path} {fault.what}", file=sys.stderr)
        rows += _rows(found, record.weights if record else "")
    if not rows:
        raise Me5Error(f"no results in {out}: run `me5 evaluate --model ... --out {out}` first")
    return pd.DataFrame(rows, columns=COLUMNS)


def read(path: Path) -> Found:
    """A result file in mteb's format. Raises ValueError, in a few words, for anything else."""
    try:
        given = json.loads(path.read_text(encoding="utf8"))
        scores = {split: [dict(row) for row in rows] for split, rows in given["scores"].items()}
        found = Found(path, str(given["task_name"]), str(given["dataset_revision"]), str(given["mteb_version"]), scores)
        if found.task != path.stem:
            raise ValueError(f"it is of task {found.task}")
        for row in (row for rows in scores.values() for row in rows):
            row["main_score"], str(row["hf_subset"])
    except KeyError as error:
        raise ValueError(f"it lacks {error}") from None
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(" ".join(str(error).split())[:80]) from None
    return found


def hardware() -> str:
    """This machine's GPUs, or its processor and cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores {platform.machine()} {platform.processor()}".strip()


def _usable(path: Path, task: AbsTask, again: bool) -> Found | None:
    """The result of a task where it is whole and fits; None where there is none."""
    import mteb

    if not path.exists():
        return None
    try:
        found = read(path)
    except ValueError as error:
        print(f"me5: the result file {path} is damaged ({error}): it is made again", file=sys.stderr)
        path.unlink(missing_ok=True)
        return None
    there = {"data revision": found.dataset_revision, "mteb": found.mteb_version}
    wanted = {"data revision": task.metadata.revision, "mteb": mteb.__version__}
    faults = [*lint.other(there, wanted), *lint.check(found, recorded(found))]
    refused = [fault.what for fault in faults if fault.refused]
    if not refused:
        return found
    if not again:
        raise Me5Error(f"the result file {path} {_few(refused)}: choose another --out, or add --again to replace it")
    path.unlink()
    return None


def _work(opened: Opened, tasks: Sequence[AbsTask], folder: Path, protocol: str, dtype: str, keep: bool,
          progress: bool, encode: Callable[..., Iterator[np.ndarray]] | None) -> None:
    from tqdm.auto import tqdm

    sizes = [amount.characters if (amount := benchmarks.amount(task)) else 0 for task in tasks]
    with tqdm(total=sum(sizes), disable=not progress, unit=" characters", unit_scale=True, smoothing=0.05) as bar:
        for i, task in enumerate(tasks):
            bar.set_description(f"{task.metadata.name} ({i + 1} of {len(tasks)})")
            model = encoder_of(opened, folder, protocol, dtype, encode, bar.update)
            _one(model, task, folder)
            bar.update(sum(sizes[: i + 1]) - bar.n)  # texts that a task has twice are encoded once
            if not keep:
                model.encoder.delete()


def encoder_of(opened: Opened, folder: Path, protocol: str, dtype: str,
               encode: Callable[..., Iterator[np.ndarray]] | None = None,
               seen: Callable[[int], None] = lambda characters: None) -> ByColumn:  # fmt: skip
    """What mteb is given of a model: under a protocol, its vectors kept in `folder` and read from there."""
    from me5lib.evaluate.cache import CachedEncoder

    store = folder / "vectors" / opened.name.replace("/", "__") / opened.revision
    identity = {"name": opened.name, "revision": opened.revision}
    cached = CachedEncoder(opened.encoder, store, identity, dtype, encode, seen)
    return ByColumn(cached, opened.name, protocol, revision=opened.revision, instruct=opened.instruct)


def _one(model: Any, task: AbsTask, folder: Path) -> None:
    """One task through mteb; what it has written for single subsets of it is gone on with."""
    import mteb

    from me5lib.evaluate.offline import quiet

    try:
        with quiet(), _superseded(), _loaded(task):
            mteb.evaluate(model, task, cache=_cache(folder), co2_tracker=False, encode_kwargs=_ENCODE.copy(),
                          show_progress_bar=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise _refused(folder, error) from None
        raise


@contextlib.contextmanager
def _superseded() -> Iterator[None]:
    """mteb without its advice to take newer versions of tasks: the paper's tables are made of the old ones."""
    log = logging.getLogger("mteb")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _loaded(task: AbsTask) -> Iterator[None]:
    """The task with its data, from the hub's cache or the hub; afterwards without what was not there before."""
    absent = [part for part in benchmarks.parts(task) if not part.data_loaded]
    load(task)
    try:
        yield
    finally:
        for part in absent:
            part.unload_data()


def load(task: AbsTask) -> None:
    """Load a task's data into memory, and so into the hub's cache. Raises `Me5Error` where it cannot be had."""
    for part in benchmarks.parts(task):
        try:
            if not part.data_loaded:
                part.load_data()
            _by_column(part)
        except Exception as error:  # whatever datasets, the hub's client and a task's own code raise
            about = f"{part.metadata.dataset['path']} at {str(part.metadata.revision)[:8]}"
            said = " ".join(str(error).split())[:120]
            raise Me5Error(f"the data of {part.metadata.name} ({about}) cannot be had ({said}): run `me5 fetch --for "
                           "table3` (or 4, 5) where there is a network") from None


def _by_column(task: AbsTask) -> None:
    """Both sides of a bitext as plain lists, as mteb has BUCC's: it copies them into a loader, text by text."""
    from datasets import Dataset

    if task.metadata.type != "BitextMining" or getattr(task, "parallel_subsets", False):
        return
    for splits in task.dataset.values():
        for split, rows in dict(splits).items() if hasattr(splits, "items") else ():
            if isinstance(rows, Dataset) and {"sentence1", "sentence2"} <= set(rows.column_names):
                held = {"gold": [(i, i) for i in range(len(rows))], **rows.to_dict()}
                splits[split] = held


def _path(cache: ResultCache, opened: Opened, task: AbsTask) -> Path:
    return cache.get_task_result_path(task.metadata.name, opened.name, opened.revision)


def _cache(folder: Path) -> ResultCache:
    import mteb

    try:
        return mteb.ResultCache(folder)
    except OSError as error:
        raise _refused(folder, error) from None


def _refused(folder: Path, error: OSError) -> Me5Error:
    return Me5Error(f"cannot write to {folder} ({error.strerror}): choose another folder with --out")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder for this run alone."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise Me5Error(f"another run writes into {folder}: wait for it, or choose another --out") from None
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _recorded(folder: Path, opened: Opened, protocol: str, dtype: str, tasks: Sequence[AbsTask],
              command: str) -> Iterator[None]:
    """A line of run.json about what is done inside: `finished` stays empty when it does not come to its end."""
    file, runs = folder / "run.json", []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        runs = list(io.read_json(file)["runs"])
    every = {part.metadata.name: part for task in tasks for part in (task, *benchmarks.parts(task))}
    entry = {
        "command": command, "model": opened.name, "revision": opened.revision,
        "weights": opened.weights, "protocol": protocol, "dtype": dtype,
        "tasks": {name: str(task.metadata.revision) for name, task in every.items()},
        "subsets": {name: len(benchmarks.wanted(task)) for name, task in every.items()},
        "hardware": hardware(), "versions": versions(), "python": platform.python_version(), "begun": _now(),
        "finished": "",
    }
    io.put_json(file, {"runs": [*runs, entry]}, sort_keys=True)
    yield
    io.put_json(file, {"runs": [*runs, entry | {"finished": _now()}]}, sort_keys=True)


def versions() -> dict[str, str]:
    """Version of each of `PACKAGES` that is installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def recorded(found: Found) -> lint.Record | None:
    """What run.json says of the last run of a result's task, model and revision; None where it says nothing."""
    folder = found.path.parent
    try:
        runs = io.read_json(folder.parents[2] / "run.json")["runs"]
        run = next(run for run in reversed(runs) if (run["model"].replace("/", "__"), run["revision"]) ==
                   (folder.parent.name, folder.name) and found.task in run["tasks"])
        made = {"protocol": run["protocol"], "dtype": run["dtype"], "data revision": run["tasks"][found.task],
                "mteb": run["versions"]["mteb"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
    subsets = run.get("subsets", {}).get(found.task, 0)
    return lint.Record(made, run.get("weights", "full"), subsets, bool(run["finished"]))


def _few(faults: Sequence[str], most: int = 3) -> str:
    return " and ".join(faults[:most]) + f" and {len(faults) - most} more" * (len(faults) > most)


def _rows(found: Found, weights: str) -> list[dict[str, Any]]:
    """Rows of `COLUMNS` of one file."""
    folder = found.path.parent
    protocol, _, dtype = folder.parents[2].name.rpartition("-")
    name = folder.parent.name.replace("__", "/")
    with contextlib.suppress(OSError, ValueError):
        meta = io.read_json(folder / "model_meta.json")
        name = meta["name"]
        if meta["revision"] != folder.name:
            raise Me5Error(f"{folder} holds results of revision {meta['revision']} (model_meta.json): results of two "
                           "revisions are mixed, put each into a folder of its own revision")
    about = (name, folder.name, protocol, dtype, weights, found.task, found.dataset_revision, found.mteb_version)
    more = next((metrics for start, metrics in METRICS.items() if found.task.startswith(start)), ())
    return [
        dict(zip(COLUMNS, (*about, split, row["hf_subset"], metric, _per_cent(row[metric])), strict=True))
        for split, rows in found.scores.items() for row in rows for metric in ("main_score", *more) if metric in row
    ]


def _per_cent(value: float | None) -> float:
    return math.nan if value is None else 100 * float(value)
