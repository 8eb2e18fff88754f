"""Verdicts on the paper's tables: expected beside measured, of one model and one run, and a log of such runs.

    rows = against_paper(runs.measured_values(out), table=5)    # expected | measured | delta | verdict
    verdict_line(rows), styled(rows), markdown(rows), csv_text(rows)
    log_line(out, rows, command="me5 evaluate --table 5")

A value agrees when it is within `TOLERANCE` of the published one (MIRACL has one decimal: up to 0.05 is rounding). What
was measured under two revisions, protocols, dtypes or versions of mteb is refused: such a mean is a number of nothing.
A table is *reproduced* where everything agrees that was published, by the very model (its recorded revision, its full
weights) in the precision of the published run; other weights or another dtype may agree, and reproduce nothing.
"""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from me5lib.evaluate import runs
from me5lib.evaluate.paper import COORDINATES, MODELS, expected, load_csv, model_named, repository
from me5lib.io import Me5Error, checkout

TOLERANCE = {"fp32": 0.1, "fp16": 0.3, "bf16": 0.3, "": 0.1}  # points; a dtype that nobody recorded gets the narrow one
AGREES, DIFFERS, NOT_MEASURED, NOT_PUBLISHED = "agrees", "differs", "not measured", "not published"
COLUMNS = ["task", "split", "subset", "metric", "expected", "measured", "delta", "verdict", "note"]
ONE_RUN = ("model", "revision", "protocol", "dtype", "weights", "mteb_version")  # a comparison has one value of each
LOG = "reproduction.md"
_KEY = ["task", "split", "subset", "metric"]
_COLOURS = {AGREES: "#DDF2E8", DIFFERS: "#FBE3D6"}
_NUMBERS = {"expected": "{:.2f}", "measured": "{:.2f}", "delta": "{:+.2f}"}


def against_paper(measured: pd.DataFrame, table: int, model: str = "") -> pd.DataFrame:
    """The values of Table `table` (3, 4 or 5) as published and as measured, and whether they agree.

    `measured` has `paper.COORDINATES`, per cent, one run of one model; rows of other tables are left alone. `model` is
    whose published values it is held against (`small`, `mE5-small`, a hub id; "": its own), and the one that is taken
    where several were measured. Returned: `COLUMNS`, a row per published or measured value, then the table's averages
    (over all their rows, or NaN); in `attrs` the run (`ONE_RUN`), `table`, `against`, `expected_dtype`,
    `expected_mteb`, `tolerance` and `line`. Raises `Me5Error` for a frame that mixes runs or data revisions, has a
    value twice or no row of the table, for an unknown dtype, and for a model that the paper lacks.
    """
    cells = expected(table, MODELS["mE5-small"]).query("not mean")[_KEY]
    results = _of_table(measured, table, cells, model)
    run = {name: _single(results[name], name) for name in ONE_RUN}
    if run["dtype"] not in TOLERANCE:
        raise Me5Error(f"no tolerance is set for dtype {run['dtype']!r}: measure in one of fp32, fp16, bf16")
    for task, revisions in results.groupby("task")["dataset_revision"]:
        _single(revisions, f"dataset_revision of {task}")
    published, tolerance = expected(table, model or run["model"]), TOLERANCE[run["dtype"]]
    rows = _value_rows(results, published, cells)
    rows = pd.concat([rows, _means(rows, published, cells, table)], ignore_index=True)
    rows["delta"] = rows["measured"] - rows["expected"]
    close = rows["delta"].abs() <= tolerance + 1e-9
    rows["verdict"] = np.select([rows["expected"].isna(), rows["measured"].isna(), close],
                                [NOT_PUBLISHED, NOT_MEASURED, AGREES], DIFFERS).astype(object)
    rows = rows[COLUMNS]
    rows.attrs = {**run, "table": table, "against": published["model"].iloc[0], "tolerance": tolerance,
                  "expected_dtype": published["dtype"].iloc[0], "expected_mteb": published["mteb_version"].iloc[0]}
    rows.attrs["line"] = _verdict_line(rows)
    return rows


def _single(values: pd.Series, name: str) -> str:
    """The one value of a coordinate, "" where it is not recorded. Raises `Me5Error` where there are several."""
    distinct = sorted(set(values.astype(object).where(values.notna(), "").astype(str)))
    if len(distinct) > 1:
        shown = " and ".join(value or "(not recorded)" for value in distinct[:3]) + " and others" * (len(distinct) > 3)
        raise Me5Error(f"these results mix {name} {shown}: compare one at a time, or measure again into a new folder")
    return distinct[0] if distinct else ""


def _of_table(measured: pd.DataFrame, table: int, cells: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of `measured` that are of the table and, where there are several models, of `model`.

    A task's `main_score` counts as the table's metric where it is that by another name.
    """
    rows = measured[measured["task"].isin(cells["task"])]
    if model and model_named(model) in set(rows["model"]):
        rows = rows[rows["model"] == model_named(model)]
    if rows.empty:
        raise Me5Error(f"nothing of Table {table} was measured: run `me5 evaluate --table {table}` with this model")
    metrics, have = set(cells["metric"]), set(zip(rows["task"], rows["metric"], strict=True))
    main = next((name for name in ("f1", "ndcg_at_10") if name in metrics), "main_score")
    rows = rows.assign(metric=[main if metric == "main_score" and (task, main) not in have else metric
                               for task, metric in zip(rows["task"], rows["metric"], strict=True)])
    return rows[rows["metric"].isin(metrics)]


def _value_rows(results: pd.DataFrame, published: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One row per value, published, measured or both, in the order of the table; others after it. No delta yet."""
    twice = results[results.duplicated(_KEY)]
    if len(twice):
        task, split, subset, metric = twice.iloc[0][_KEY]
        raise Me5Error(f"{task} ({split}, {subset}, {metric}) was measured twice: which of the two is meant?")
    ours = results[[*_KEY, "value", "dataset_revision"]].set_axis([*_KEY, "measured", "our_data"], axis=1)
    theirs = published.query("not mean")[[*_KEY, "value", "dataset_revision"]]
    theirs = theirs.set_axis([*_KEY, "expected", "their_data"], axis=1)
    rows = cells.merge(theirs, "left", _KEY).merge(ours, "left", _KEY)
    extra = ours.merge(rows[_KEY], "left", _KEY, indicator=True).query("_merge == 'left_only'").drop(columns="_merge")
    rows = pd.concat([rows, extra], ignore_index=True) if len(extra) else rows
    rows = rows[rows["expected"].notna() | rows["measured"].notna()].fillna({"our_data": "", "their_data": ""})
    rows["note"] = [f"data {ours[:8]}, published of {data[:8]}" if ours and data and ours != data else ""
                    for ours, data in zip(rows["our_data"], rows["their_data"], strict=True)]
    return rows


def _means(rows: pd.DataFrame, published: pd.DataFrame, cells: pd.DataFrame, table: int) -> pd.DataFrame:
    """The averages: printed, and measured where every one of their rows was."""
    have, lines = cells.merge(rows[[*_KEY, "measured"]], "left", _KEY), []
    for mean in published.query("mean").to_dict("records"):
        values = have[(have["metric"] == mean["metric"]) & ((have["task"] == mean["task"]) | (table == 3))]["measured"]
        note = mean["source"].partition("; ")[2]
        if values.isna().any():
            note = f"{values.count()} of {len(values)} are measured"
        lines.append({**{key: mean[key] for key in _KEY}, "expected": mean["value"],
                      "measured": values.mean(skipna=False), "note": note})
    return pd.DataFrame(lines)


def overall(rows: pd.DataFrame) -> str:
    """One word on a comparison, but for values that nobody published: `differs` if any value does, else `incomplete`
    if one is not measured, else `agrees`, or `reproduced` (see above)."""
    verdicts, about = set(rows["verdict"]) - {NOT_PUBLISHED}, rows.attrs
    if not verdicts:
        return NOT_PUBLISHED
    if verdicts != {AGREES}:
        return DIFFERS if DIFFERS in verdicts else "incomplete"
    same = (about["model"] == about["against"] and about["revision"] and about["weights"] == "full"
            and about["protocol"] == "paper" and about["dtype"] == about["expected_dtype"] != "")
    return "reproduced" if same else AGREES


def verdict_line(rows: pd.DataFrame) -> str:
    """The whole comparison in one line, also of a part of its rows: coordinates, how many came to which verdict."""
    return rows.attrs["line"]


def _verdict_line(rows: pd.DataFrame) -> str:
    about, counts = rows.attrs, rows["verdict"].value_counts()
    published = {"protocol": "paper", "dtype": about["expected_dtype"], "weights": "full",
                 "mteb": about["expected_mteb"]}
    words = [f"revision {about['revision'][:8] or 'not recorded'}"]
    for name, theirs in published.items():
        ours = about["mteb_version" if name == "mteb" else name]
        words.append(f"{name} {ours or 'not recorded'}" + f" (published: {theirs or 'not stated'})" * (ours != theirs))
    against = "" if about["against"] == about["model"] else f" against {about['against']}"
    phrases = {AGREES: f"agree within {about['tolerance']:g}", DIFFERS: "differ", NOT_MEASURED: NOT_MEASURED,
               NOT_PUBLISHED: NOT_PUBLISHED}
    verdicts = ", ".join(f"{counts[name]} {verdict}" for name, verdict in phrases.items() if name in counts)
    return f"Table {about['table']}, {about['model']}{against} ({', '.join(words)}): {overall(rows)} ({verdicts})"


def styled(rows: pd.DataFrame) -> Styler:
    """The comparison for a notebook: verdicts in colour, a caption with the coordinates."""
    colours = rows["verdict"].map({name: f"background-color: {code}" for name, code in _COLOURS.items()}).fillna("")
    styler = rows.style.format(_NUMBERS, na_rep="").apply(lambda column: colours)
    return styler.hide(axis="index").set_caption(verdict_line(rows))


def markdown(rows: pd.DataFrame) -> str:
    """The comparison as a Markdown table under its one-line summary."""
    texts = [["" if value != value else _NUMBERS.get(name, "{}").format(value)
              for name, value in row.items()] for row in rows.to_dict("records")]
    lines = [list(rows.columns), ["---"] * len(rows.columns), *texts]
    return "\n".join([verdict_line(rows), "", *map(_markdown_row, lines)])


def csv_text(rows: pd.DataFrame) -> str:
    """The comparison as CSV with all digits and, in columns of their own, the coordinates of the run."""
    about = {name: value for name, value in rows.attrs.items() if name != "line"}
    return rows.assign(**about).to_csv(index=False, lineterminator="\n")


def log_line(out: Path | str, rows: pd.DataFrame, command: str) -> str:
    """Add one line on this comparison to `<out>/reproduction.md` (made if absent), and return it.

    Raises `Me5Error` where the file cannot be written.
    """
    about, path = rows.attrs, Path(out) / LOG
    published = rows[rows["verdict"] != NOT_PUBLISHED]
    verdict = (f"{overall(rows)}: {(published['verdict'] == AGREES).sum()} of {len(published)} within "
               f"{about['tolerance']:g}")
    cells = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"), "commit": _commit(),
        "command": f"`{command}`", "hardware": runs.hardware(), "table": about["table"], "model": about["model"],
        "revision": about["revision"][:8], "protocol": about["protocol"], "dtype": about["dtype"],
        "weights": about["weights"], "mteb": about["mteb_version"], "verdict": verdict,
    }
    line, head = _markdown_row(cells.values()), f"{_markdown_row(cells)}\n{_markdown_row(['---'] * len(cells))}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf8", errors="replace") if path.exists() else ""
        title = "" if before else "# Reproduction log\n"
        start = "" if head in before else f"\n{head}"  # a log of other columns goes on with a table of its own
        with path.open("a", encoding="utf8") as file:
            file.write(f"{title}{start}{line}\n")
    except OSError as error:
        raise Me5Error(f"cannot write {path} ({error.strerror}): choose another folder with --out") from None
    return line


def _markdown_row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def _commit() -> str:
    """The commit of the checkout, `-dirty` where it was changed; "" where there is none or no git."""
    if (root := checkout()) is None:
        return ""
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10",
               "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf8", timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def protocol_delta(measured: pd.DataFrame) -> pd.DataFrame:
    """What the protocol alone is worth to a model: `task`, `subsets`, `paper`, `mteb`, `delta` (mteb minus paper).

    Of main scores: means over the splits and subsets that were measured under both protocols, in all else alike
    (`subsets`: how many). No row where there are none.
    """
    scores = measured[measured["metric"] == "main_score"]
    same = [name for name in COORDINATES if name not in ("protocol", "metric", "value")]
    both = [scores[scores["protocol"] == name].rename(columns={"value": name}) for name in ("paper", "mteb")]
    both = both[0][[*same, "paper"]].merge(both[1][[*same, "mteb"]], on=same).assign(subsets=1)
    for name in ("model", "revision", "dtype", "weights", "mteb_version"):
        _single(both[name], name)
    table = both.groupby("task", sort=False).agg({"subsets": "sum", "paper": "mean", "mteb": "mean"}).reset_index()
    return table.assign(delta=table["mteb"] - table["paper"])


def beside_others(measured: pd.DataFrame, model: str) -> pd.DataFrame:
    """Mean main scores of tasks of suite "lowres", per cent, beside those of others' runs (`paper.repository`; mteb's
    own protocol, data of their day: no verdict). `delta` is NaN, and `note` says so, where they are of other subsets.
    """
    theirs = repository("lowres", model).set_index("task")[["subset", "value", "revision"]]
    scores = measured[measured["metric"] == "main_score"].groupby("task", sort=False)
    rows = scores.agg(subsets=("subset", "nunique"), measured=("value", "mean")).join(theirs).reset_index()
    rows = rows.rename(columns={"value": "published", "subset": "published as"}).fillna({"published as": ""})
    same = rows["published as"] == "mean of " + rows["subsets"].astype(str)
    delta = (rows["measured"] - rows["published"]).where(same)
    return rows.assign(delta=delta, note=np.where(same | (rows["published as"] == ""), "", "of other subsets"))


def contamination(tasks: Iterable[str]) -> pd.DataFrame:
    """Which evaluation sets were seen in training, a row per task, in order: `task`, `flag`, `cards`, `evidence`.

    `training part`: the set's own training split is in the mixture (Table 2, or the instruct model's). `related set`: a
    labelled set of the mixture shares texts with it. `same source`: stage 1 read pages of the site or collection that
    it was made of. "": no card says anything of it, which is not: known to be clean.
    """
    rows = pd.DataFrame({"task": list(dict.fromkeys(tasks))})
    return rows.merge(load_csv("contamination"), "left", "task").fillna("")


def with_contamination(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` (any frame with a column `task`) with a column `trained on`: each task's flag, "" where there is none."""
    flags = contamination(rows["task"]).set_index("task")["flag"]
    marked = rows.assign(**{"trained on": rows["task"].map(flags)})
    marked.attrs = dict(rows.attrs)
    return marked
