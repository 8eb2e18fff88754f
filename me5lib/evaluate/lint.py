"""Lint of results before they stand beside others: what cannot be, what is missing, what is not as was recorded.

    faults = list(faults_of(result, path, runs.record_of(path), benchmarks.full_subsets(result.task_name)))
    refusal(faults)     # "is of mteb 2.18.1, not 2.26.13 as run.json says"; "" for a good file

A fault is words and whether the file is refused for it: where no run can have given it, or where it is not of what it
says it is of. Else there is an honest reason (a run narrowed or not finished, ties at the first rank), and it is named.

MRR@1 and precision@1 are one number, unless equal scores are ranked in two ways. Since 2.18.19 (its issue 5136) mteb
ranks them in one. In files of earlier versions a difference is named, and refused where it is larger than ties make it:
of 1,347 public files of mE5 73 differ by more than 0.005, and those by more than 0.04 are faulty (mteb issue 5228).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mteb.results import TaskResult

ROUNDING, TIES = 0.005, 0.04  # largest |MRR@1 − precision@1| that is not named, and that ties excuse
ONE_ORDER = "2.18.19"  # the first mteb that ranks equal scores alike in both
CLOSE = 1e-5  # mteb rounds some metrics to five digits, others to six
BOUNDS = {  # what a metric's value lies between; others have no bounds or are not known
    r"(\w+_)?(ndcg|map|recall|precision|mrr|hit_rate|accuracy|f1|ap|lrap|hamming|v_measure)"
    r"(_weighted|_at_\d+)?": (0, 1),
    r"(\w+_)?(pearson|spearman|kendalltau|kappa|mcc)": (-1, 1), "main_score": (-math.inf, math.inf),
}  # fmt: skip
GROWS = re.compile(r"(map|recall|mrr|hit_rate)_at_(\d+)")  # never less with more documents
Told = tuple[str, bool]  # words, and whether the file is refused for it


def subsets_held(result: TaskResult) -> set[tuple[str, str]]:
    """(split, subset) that a result has scores of."""
    return {(split, row["hf_subset"]) for split, rows in result.scores.items() for row in rows}


def faults_of(result: TaskResult, path: Path, record: Mapping[str, Any] | None,
              whole: frozenset[tuple[str, str]] = frozenset(), wanted: Mapping[str, str] | None = None,
              ) -> Iterator[Told]:  # fmt: skip
    """All faults of a result file at `path`: coordinates other than `wanted` or recorded (`runs.record_of`), impossible
    metrics, missing ones of `whole`, the (split, subset) that the task has (`benchmarks.full_subsets`; empty: not
    known)."""
    protocol, _, dtype = path.parents[3].name.rpartition("-")
    own = {"protocol": protocol, "dtype": dtype, "data revision": result.dataset_revision,
           "mteb": str(result.mteb_version)}

    def others(expected: Mapping[str, str], by: str = "") -> list[Told]:
        return [(f"is of {name} {value}, not {expected[name]}{by}", True) for name, value in own.items()
                if expected.get(name, value) != value]

    yield from others(wanted or {})
    yield from impossible(result)
    yield from _missing(subsets_held(result), record or {}, whole)
    if record is None:
        yield "has no run recorded in run.json: its weights and dtype are not known", False
    else:
        yield from others(record, " as run.json says")


def refusal(faults: Iterable[Told]) -> str:
    """The first three faults for which a file is refused, in words; "" for none."""
    return " and ".join([what for what, refused in faults if refused][:3])


def _missing(held: set[tuple[str, str]], record: Mapping[str, Any], whole: frozenset) -> Iterator[Told]:
    """Subsets that the task has and the file lacks; refused where its run was finished and had been asked for them."""
    if absent := sorted(whole - held):
        names = ", ".join(map("/".join, absent[:3])) + " …" * (len(absent) > 3)
        what, made = f"has {len(whole) - len(absent)} of {len(whole)} subsets (without {names})", record.get("subsets")
        if refused := bool(made and record["finished"] and len(held) < made):
            what += f", of which its run made {made}"
        elif made:
            what += f": its run was {'narrowed' if record['finished'] else 'not finished'}"
        yield what, refused


def impossible(result: TaskResult) -> Iterator[Told]:
    """Numbers that no run can have given, each with the split and the subset where it stands."""
    if not subsets_held(result):
        yield "has no scores", True
    for split, rows in result.scores.items():
        for row in rows:
            for what, refused in (*_impossible_values(row), *_first_rank(row, str(result.mteb_version))):
                yield f"{what} ({split}, {row['hf_subset']})", refused


def _impossible_values(row: Mapping[str, Any]) -> Iterator[Told]:
    """Values out of their range, a main score that is no metric of the row, metrics that fall where they must grow."""
    numbers = {}
    for name, value in row.items():
        bounds = next((bounds for metric, bounds in BOUNDS.items() if re.fullmatch(metric, name)), None)
        if bounds is None or value is None and name != "main_score":
            continue
        if _finite(value):
            numbers[name] = value
            if not bounds[0] - CLOSE <= value <= bounds[1] + CLOSE:
                yield f"has {name} {value:g}, outside of {bounds[0]} to {bounds[1]}", True
        elif name not in ("ap", "ap_weighted"):  # NaN in mteb where there are many classes
            yield f"has {name} {value}, which is no number", True
    main = numbers.pop("main_score", None)
    others = [value for name, value in row.items() if name != "main_score" and _finite(value)]
    if main is not None and numbers and not any(abs(main - value) <= CLOSE for value in others):
        yield f"has main_score {main:g}, which is none of its metrics", True
    cuts = sorted((match[1], int(match[2]), numbers[name]) for name in numbers if (match := GROWS.fullmatch(name)))
    for (metric, k, less), (same, more, value) in zip(cuts, cuts[1:], strict=False):
        if metric == same and value < less - CLOSE:
            yield f"has {metric}_at_{more} {value:g}, below {metric}_at_{k} {less:g}", True


def _first_rank(row: Mapping[str, Any], version: str) -> Iterator[Told]:
    """MRR@1 against precision@1: see above."""
    mrr, precision = row.get("mrr_at_1"), row.get("precision_at_1")
    if _finite(mrr) and _finite(precision) and abs(mrr - precision) > ROUNDING + CLOSE:
        release, first = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (version, ONE_ORDER))
        excused = abs(mrr - precision) <= TIES + CLOSE and release < first
        yield f"has mrr_at_1 {mrr:g} and precision_at_1 {precision:g}{' (ties?)' * excused}", not excused


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
