"""What the protocol alone is worth: one model under both protocols, task by task, and why it moved.

    protocol_delta(runs.measured(out))          # task | paper | mteb | delta | why
    metric_changes()                            # where mteb 2's metrics are not mteb 1.0.2's, and which files say so

The reasons are not written down per task: they are what differs between the two rules of `evaluate.prompts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from me5lib.evaluate import prompts
from me5lib.evaluate.compare import complete, single
from me5lib.evaluate.paper import csv_table
from me5lib.io import Me5Error
from me5lib.model.text import PASSAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_PLACE = ["task", "split", "subset"]
NOTHING = "the same texts and the same norm"


def metric_changes() -> pd.DataFrame:
    """Where a number of today's mteb is not the paper's, whatever the protocol: tables/metric_changes.csv.

    `task_type`, `tasks` (which of the type), `then` (mteb 1.0.2, which the authors' scripts asked for), `now` (read at
    2.26), `moves` (whether a score of the paper's tables can move, and how), `source` (files of the two packages).
    """
    return csv_table("metric_changes")


def protocol_delta(measured: pd.DataFrame, model: str = "", metric: str = "main_score",
                   instruct: bool | None = None) -> pd.DataFrame:
    """One model under both protocols: `task`, `subsets`, `paper`, `mteb`, `delta` (mteb minus paper), `why`.

    `measured` has `reference.COORDINATES`, values in per cent. A task's value is the mean over the splits and subsets
    that both protocols have (`subsets`: how many); a task that one of them lacks is left out. `instruct`: whether the
    model reads instructions; None: whether its name says so. Raises `Me5Error` where a protocol is missing, where
    nothing is common, and where the two are of different models, revisions, precisions, data sets' revisions or
    versions of mteb: that would be a difference of more than the protocol.
    """
    import pandas as pd

    measured = complete(measured)
    paper, mteb = (_only(measured, protocol, model, metric) for protocol in ("paper", "mteb"))
    for column in ("model", "revision", "dtype", "weights", "mteb_version"):
        single(pd.concat([paper, mteb])[column], column)
    for found in (paper, mteb):
        single(found["dataset_revision"][found.duplicated(_PLACE, keep=False)], "dataset_revision")
    both = paper.merge(mteb, on=_PLACE, suffixes=("_paper", "_mteb"))
    if both.empty:
        raise Me5Error("the two protocols have no task in common: run the same tasks with --protocol paper and mteb")
    mixed = both[both["dataset_revision_paper"] != both["dataset_revision_mteb"]]
    if len(mixed):
        raise Me5Error(f"{mixed['task'].iloc[0]} was measured on two revisions of its data: run it again under both "
                       "protocols")
    grouped = both.groupby("task", sort=False)
    table = grouped[["value_paper", "value_mteb"]].mean().set_axis(["paper", "mteb"], axis=1)
    table.insert(0, "subsets", grouped.size())
    table["delta"] = table["mteb"] - table["paper"]
    instruct = "instruct" in str(paper["model"].iloc[0]).lower() if instruct is None else instruct
    table["why"] = [why(task, instruct) for task in table.index]
    return table.reset_index()


def why(task: str, instruct: bool = False) -> str:
    """What differs between the two protocols for an mteb task, from their rules. Raises `Me5Error` for no such task."""
    import mteb

    try:
        metadata = mteb.get_task(task).metadata
    except KeyError:
        raise Me5Error(f"mteb has no task {task}: check the name") from None
    parts = getattr(metadata, "tasks", ())  # of CQADupstackRetrieval: only the forums are encoded, all in one way
    about = parts[0].metadata if parts else metadata
    paper, now = (prompts.rule(protocol, about, instruct) for protocol in ("paper", "mteb"))
    return "; ".join(_reasons(metadata.type, paper, now)) or NOTHING


def _reasons(task_type: str, paper: prompts.Rule, now: prompts.Rule) -> list[str]:
    found = []
    if paper.query != now.query:
        kind = "instruction" if paper.query.startswith("Instruct: ") else "prefix"
        found.append(f"another {kind}: {now.query!r}" if now.query else f"{kind} dropped")
    sided = task_type in prompts.SIDED
    if sided and paper.document != now.document:
        place = "Quora's documents" if task_type == "Retrieval" else "documents"
        found.append(f"{place} as passages" if now.document == PASSAGE else f"{place} without instruction")
    if paper.normalise != now.normalise:
        found.append("normalised before the classifier")
    return found


def _only(measured: pd.DataFrame, protocol: str, model: str, metric: str) -> pd.DataFrame:
    """The rows of one protocol, model and metric."""
    of_model = measured[measured["model"] == model] if model else measured
    if of_model.empty:
        raise Me5Error(f"nothing measured of {model or 'any model'}: {_known(measured['model'].unique())}")
    found = of_model[(of_model["protocol"] == protocol) & (of_model["metric"] == metric)]
    if found.empty:
        raise Me5Error(f"no {metric} measured under the protocol {protocol}: run `me5 evaluate` with "
                       f"--protocol {protocol}")
    return found


def _known(names: Sequence[str]) -> str:
    return f"there is {', '.join(map(str, names))}" if len(names) else "run `me5 evaluate` first"
