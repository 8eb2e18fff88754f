"""Expected against measured: one table of the paper, one model, one run, a verdict a row, and a log of such runs.

    rows = compare(runs.measured(out), table=5)      # expected | measured | delta | verdict, a row per value
    summary(rows)                                    # one line
    styled(rows), markdown(rows), latex(rows), csv(rows)
    log_line(out, rows, command="me5 evaluate --table 5")

A value agrees when it is within `TOLERANCE` of the published one: 0.1 point in fp32, 0.3 in half precision, the same
for every task. MIRACL is published with one decimal only, so up to 0.05 of a difference there is rounding. What was
measured under two revisions, protocols, dtypes or versions of mteb is refused: such a mean is a number of nothing.

A table is *reproduced* where everything agrees that was published, by the very model (its recorded revision, its full
weights) in the precision of the published run. Weights of 4 bits, or another dtype, may agree; they reproduce nothing.
"""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from me5lib.evaluate.paper import COORDINATES, MODELS, TABLES, expected, model_named
from me5lib.evaluate.prompts import FORUMS
from me5lib.io import Me5Error, checkout

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

TOLERANCE = {"fp32": 0.1, "fp16": 0.3, "bf16": 0.3, "": 0.1}  # points; a dtype that nobody recorded gets the narrow one
AGREES, DIFFERS, NOT_MEASURED, NOT_PUBLISHED = "agrees", "differs", "not measured", "not published"
COLUMNS = ("task", "split", "subset", "metric", "expected", "measured", "delta", "verdict", "note")
REPRODUCED = "reproduced"
ONE_RUN = ("model", "revision", "protocol", "dtype", "weights", "mteb_version")  # a comparison has one value of each
LOG = "reproduction.md"
_KEY = ["task", "split", "subset", "metric"]
_FORUMS = {f"CQADupstack{name}Retrieval" for name in FORUMS}
_COLOURS = {AGREES: "#DDF2E8", DIFFERS: "#FBE3D6"}
_LOG_COLUMNS = ("date", "commit", "command", "hardware", "table", "model", "revision", "protocol", "dtype", "weights",
                "mteb", "verdict")


def compare(measured: pd.DataFrame, table: int, model: str = "") -> pd.DataFrame:
    """The values of Table `table` (3, 4 or 5) as published and as measured, and whether they agree.

    `measured` has `reference.COORDINATES`, per cent, one run of one model; rows of other tables are left alone. `model`
    is whose published values it is held against (`small`, `mE5-small`, a hub id); "": its own, which must then be a
    model of the paper. Where several models were measured, `model` also chooses the one.

    Returned: `COLUMNS`, a row per published or measured value, then the table's averages (over all their rows, or NaN).
    `delta` is measured − expected. `attrs` holds the run (`ONE_RUN`), `table`, `against`, the `expected_dtype` and
    `expected_mteb` of the published run, `tolerance`, `summary`.

    Raises `Me5Error` for a frame that mixes runs or data revisions, that has a value twice, that lacks a column or any
    row of the table, for an unknown dtype, and for a model that the paper does not have.
    """
    found = _of_table(measured, table, model)
    run = {name: single(found[name], name) for name in ONE_RUN}
    if run["dtype"] not in TOLERANCE:
        known = ", ".join(filter(None, TOLERANCE))
        raise Me5Error(f"no tolerance is set for dtype {run['dtype']!r}: measure in one of {known}")
    for task, revisions in found.groupby("task")["dataset_revision"]:
        single(revisions, f"dataset_revision of {task}")
    published = expected(table, model or run["model"])
    tolerance = TOLERANCE[run["dtype"]]
    rows = _values(found, published, table)
    rows = _joined(rows, _means(rows, published, table))
    rows["delta"] = rows["measured"] - rows["expected"]
    rows["verdict"] = [_verdict(row.expected, row.measured, tolerance) for row in rows.itertuples()]
    rows = rows[list(COLUMNS)]
    rows.attrs = {**run, "table": table, "against": published["model"].iloc[0], "tolerance": tolerance,
                  "expected_dtype": published["dtype"].iloc[0], "expected_mteb": published["mteb_version"].iloc[0]}
    rows.attrs["summary"] = _counts(rows)
    return rows


def complete(measured: pd.DataFrame) -> pd.DataFrame:
    """`measured` with every column of `reference.COORDINATES`; `weights` is "" where nobody recorded it.

    Raises `Me5Error` where another column is missing.
    """
    if absent := [name for name in COORDINATES if name not in measured.columns and name != "weights"]:
        raise Me5Error(f"what was measured lacks the columns {', '.join(absent)}: read it with runs.measured")
    return measured if "weights" in measured.columns else measured.assign(weights="")


def single(values: pd.Series, name: str) -> str:
    """The one value of a coordinate, "" where it is not recorded. Raises `Me5Error` where there are several."""
    found = sorted({"" if value != value or value is None else str(value) for value in values})
    if len(found) > 1:
        shown = " and ".join(value or "(not recorded)" for value in found[:3]) + (" and others" if found[3:] else "")
        raise Me5Error(f"these results mix {name} {shown}: compare one at a time, or measure again into a new folder")
    return found[0] if found else ""


def overall(rows: pd.DataFrame) -> str:
    """One word on a comparison: `differs` if any value does, else `incomplete` if one is not measured, else `agrees`,
    or `reproduced` where it is the same model, weights, protocol and dtype that agree.

    Values that nobody published count for nothing; where there are no others, `not published`.
    """
    found = set(rows["verdict"]) - {NOT_PUBLISHED}
    if not found:
        return NOT_PUBLISHED
    agree = REPRODUCED if _same(rows.attrs) else AGREES
    return DIFFERS if DIFFERS in found else "incomplete" if NOT_MEASURED in found else agree


def by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the subsets of a task that are published and measured: `task`, `metric`, `subsets`, `expected`,
    `measured`, `delta`."""
    both = rows[rows["delta"].notna() & ~rows["subset"].str.startswith("mean of")].assign(subsets=1)
    how = {"subsets": "sum", "expected": "mean", "measured": "mean", "delta": "mean"}
    return both.groupby(["task", "metric"], sort=False).agg(how).reset_index()


def summary(rows: pd.DataFrame) -> str:
    """The whole comparison in one line, of a part of its rows, too: coordinates, how many came to which verdict."""
    return rows.attrs["summary"]


def styled(rows: pd.DataFrame) -> Styler:
    """The comparison for a notebook: verdicts in colour, a caption with the coordinates."""
    def colour(row: pd.Series) -> list[str]:
        return [f"background-color: {_COLOURS[row['verdict']]}" if row["verdict"] in _COLOURS else ""] * len(row)

    numbers = {"expected": "{:.2f}", "measured": "{:.2f}", "delta": "{:+.2f}"}
    return (rows.style.format(numbers, na_rep="").apply(colour, axis=1).hide(axis="index")
            .set_caption(summary(rows)))


def markdown(rows: pd.DataFrame) -> str:
    """The comparison as a Markdown table under its one-line summary."""
    lines = [list(rows.columns), ["---"] * len(rows.columns), *_texts(rows)]
    return "\n".join([summary(rows), "", *("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)])


def latex(rows: pd.DataFrame) -> str:
    """The comparison as a LaTeX table (package booktabs) with the summary as its caption."""
    head, *body = (" & ".join(_tex(text) for text in line) + r" \\" for line in (list(rows.columns), *_texts(rows)))
    columns = "".join("r" if name in ("expected", "measured", "delta") else "l" for name in rows.columns)
    return "\n".join([r"\begin{table}", rf"\caption{{{_tex(summary(rows))}}}", rf"\begin{{tabular}}{{{columns}}}",
                      r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def csv(rows: pd.DataFrame) -> str:
    """The comparison as CSV with all digits and, in columns of their own, the coordinates of the run."""
    about = {name: value for name, value in rows.attrs.items() if name != "summary"}
    return rows.assign(**about).to_csv(index=False, lineterminator="\n")


def log_line(out: Path | str, rows: pd.DataFrame, command: str, *, hardware: str = "", commit: str = "",
             date: str = "") -> str:
    """Add one line on this comparison to `<out>/reproduction.md` (made if absent), and return it.

    Empty `hardware`, `commit` and `date` are found out: this machine's processor or GPU, the checkout's commit (with
    `-dirty` where files were changed; empty for an installed wheel), now in UTC. Raises `Me5Error` where the file
    cannot be written.
    """
    from me5lib.evaluate import runs

    about, path = rows.attrs, Path(out) / LOG
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    cells = (date or now, commit or _commit(), f"`{command}`", hardware or runs.hardware(), about["table"],
             about["model"], about["revision"][:8], about["protocol"], about["dtype"], about["weights"],
             about["mteb_version"], _counted(rows))
    line = "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |\n"
    columns = "".join(f"| {' | '.join(row)} |\n" for row in (_LOG_COLUMNS, ["---"] * len(cells)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf8", errors="replace") if path.exists() else "# Reproduction log\n"
        table = "" if columns in before else f"\n{columns}"  # a log of other columns goes on with a table of its own
        with path.open("a", encoding="utf8") as file:
            file.write(f"{'' if file.tell() else before}{table}{line}")
    except OSError as error:
        raise Me5Error(f"cannot write {path} ({error.strerror}): choose another folder with --out") from None
    return line.rstrip("\n")


def _of_table(measured: pd.DataFrame, table: int, model: str) -> pd.DataFrame:
    """The rows of `measured` that are of the table and, where there are several models, of `model`."""
    measured = complete(measured)
    cells = _cells(table)
    rows = measured[measured["task"].isin({*cells["task"], *(_FORUMS if table == 3 else ())})]
    if model and model_named(model) in set(rows["model"]):
        rows = rows[rows["model"] == model_named(model)]
    if rows.empty:
        raise Me5Error(f"nothing of Table {table} was measured: run `me5 evaluate --table {table}` with this model")
    return _folded(_named(rows, set(cells["metric"])))


def _named(rows: pd.DataFrame, metrics: set[str]) -> pd.DataFrame:
    """The rows of the table's metrics; a task's `main_score` counts as one of them where it is that by another name."""
    have = set(zip(rows["task"], rows["metric"], strict=True))
    also = next((name for name in ("f1", "ndcg_at_10") if name in metrics), "main_score")
    named = [also if metric == "main_score" and (task, also) not in have else metric
             for task, metric in zip(rows["task"], rows["metric"], strict=True)]
    return rows.assign(metric=named)[[name in metrics for name in named]]


def _folded(rows: pd.DataFrame) -> pd.DataFrame:
    """All rows, but the mean of CQADupstack's twelve forums for them, where all are there; mteb 2 keeps both."""
    import pandas as pd

    forum = rows["task"].isin(_FORUMS)
    whole = (rows["task"] == "CQADupstackRetrieval").any()
    if not whole and forum.sum() != len(_FORUMS):
        return rows
    mean = rows[forum].iloc[: 0 if whole else 1]
    mean = mean.assign(task="CQADupstackRetrieval", dataset_revision="", value=rows[forum]["value"].mean())
    return pd.concat([rows[~forum], mean]) if len(mean) else rows[~forum]


def _cells(table: int) -> pd.DataFrame:
    """What a table consists of: `_KEY` of the values that its averages are over."""
    if table not in TABLES:
        raise Me5Error(f"Table {table} has no results to expect: choose one of {', '.join(map(str, TABLES))}")
    rows = expected(table, MODELS["mE5-small"])
    return rows[~rows["mean"]][_KEY]


def _values(found: pd.DataFrame, published: pd.DataFrame, table: int) -> pd.DataFrame:
    """One row per value, published, measured or both, in the order of the table; others after it. No delta yet."""
    twice = found[found.duplicated(_KEY)]
    if len(twice):
        task, split, subset, metric = twice.iloc[0][_KEY]
        raise Me5Error(f"{task} ({split}, {subset}, {metric}) was measured twice: which of the two is meant?")
    own = found[[*_KEY, "value", "dataset_revision"]].rename(columns={"value": "measured", "dataset_revision": "ours"})
    theirs = published[~published["mean"]][[*_KEY, "value", "dataset_revision"]]
    theirs = theirs.rename(columns={"value": "expected", "dataset_revision": "data"})
    rows = _cells(table).merge(theirs, "left", _KEY).merge(own, "left", _KEY)
    extra = own.merge(rows[_KEY], "left", _KEY, indicator=True).query("_merge == 'left_only'").drop(columns="_merge")
    rows = _joined(rows, extra)
    rows = rows[rows["expected"].notna() | rows["measured"].notna()].reset_index(drop=True)
    rows["note"] = [_note(row) for row in rows.itertuples()]
    return rows


def _note(row: Any) -> str:
    """What to know about a value: data of another revision than the published one was made of."""
    if isinstance(row.ours, str) and isinstance(row.data, str) and row.ours and row.data and row.ours != row.data:
        return f"data {row.ours[:8]}, published of {row.data[:8]}"
    return ""


def _means(rows: pd.DataFrame, published: pd.DataFrame, table: int) -> pd.DataFrame:
    """The averages: printed, and measured where every one of their rows was."""
    import pandas as pd

    have = _cells(table).merge(rows[[*_KEY, "measured"]], "left", _KEY)
    lines = []
    for mean in published[published["mean"]].to_dict("records"):
        own = have[(have["metric"] == mean["metric"]) & ((have["task"] == mean["task"]) | (table == 3))]
        n, note = int(own["measured"].notna().sum()), mean["source"].partition("; ")[2]
        full = n == len(own)
        lines.append({**{key: mean[key] for key in _KEY}, "expected": mean["value"],
                      "measured": own["measured"].mean() if full else float("nan"),
                      "note": note if full else f"{n} of {len(own)} are measured"})
    return pd.DataFrame(lines)


def _joined(*frames: pd.DataFrame) -> pd.DataFrame:
    """Frames one under another; empty ones would change the types of the columns."""
    import pandas as pd

    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)


def _verdict(expected_: float, measured: float, tolerance: float) -> str:
    if expected_ != expected_:
        return NOT_PUBLISHED
    if measured != measured:
        return NOT_MEASURED
    return AGREES if abs(measured - expected_) <= tolerance + 1e-9 else DIFFERS


def _counts(rows: pd.DataFrame) -> str:
    about, counts = rows.attrs, rows["verdict"].value_counts()
    words = {AGREES: f"agree{_within(about)}", DIFFERS: "differ"}
    found = ", ".join(f"{counts[name]} {words.get(name, name)}"
                      for name in (AGREES, DIFFERS, NOT_MEASURED, NOT_PUBLISHED) if name in counts)
    return f"Table {about['table']}, {_run(about)}: {overall(rows)} ({found})"


def _run(about: dict) -> str:
    """The run in words, with what the published one was made with where that differs."""
    against = "" if about["against"] == about["model"] else f" against {about['against']}"
    published = {"protocol": "paper", "dtype": about["expected_dtype"], "weights": "full",
                 "mteb": about["expected_mteb"]}
    named = {"protocol": about["protocol"], "dtype": about["dtype"], "weights": about["weights"],
             "mteb": about["mteb_version"]}
    words = [f"revision {about['revision'][:8] or 'not recorded'}"]
    words += [f"{key} {value or 'not recorded'}"
              + f" (published: {published[key] or 'not stated'})" * (value != published[key])
              for key, value in named.items()]
    return f"{about['model']}{against} ({', '.join(words)})"


def _same(about: dict) -> bool:
    """Whether a run is the published one again: the model at a recorded revision, full weights, protocol and dtype."""
    return (about["model"] == about["against"] and bool(about["revision"]) and about["weights"] == "full"
            and about["protocol"] == "paper" and about["dtype"] == about["expected_dtype"] != "")


def _within(about: dict) -> str:
    return f" within {about['tolerance']:g}"


def _counted(rows: pd.DataFrame) -> str:
    """The verdict of the log: one word, and how many of the published values agree."""
    published = rows[rows["verdict"] != NOT_PUBLISHED]
    return f"{overall(rows)}: {(published['verdict'] == AGREES).sum()} of {len(published)}{_within(rows.attrs)}"


def _texts(rows: pd.DataFrame) -> list[list[str]]:
    """Every cell as text: two decimals, a sign on the delta, nothing for what is missing."""
    form = {"expected": "{:.2f}", "measured": "{:.2f}", "delta": "{:+.2f}"}
    return [["" if value != value else form.get(name, "{}").format(value) for name, value in row.items()]
            for row in rows.to_dict("records")]


def _tex(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _commit() -> str:
    """The commit of the checkout, `-dirty` where it was changed; "" where there is none or no git."""
    root = checkout()
    if root is None:
        return ""
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10",
               "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, encoding="utf8", timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

