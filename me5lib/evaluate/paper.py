"""The paper's tables as data: published values, averages recomputed from them, where the paper disagrees with itself.

    paper_table(5)                # the numbers of Table 5, a DataFrame, with the mean recomputed from the languages
    expected(5, "small")          # its rows as `verdicts` wants them: a value and the coordinates it was made at
    recomputation()               # every printed average of Tables 3 to 5 beside the mean of its own rows
    load_csv("inconsistencies")   # where the paper and the cards contradict themselves or each other

Sources: arXiv 2402.05672 (Tables 1 to 7), the authors' model cards (two decimals; bitext tasks as mteb's results
repository keeps them; made with mteb 1.0.2 in fp16, of which commit of the weights they do not say), E5-mistral (arXiv
2401.00368) Table 6 for BM25 and mDPR on MIRACL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from me5lib.io import Me5Error

SIZES = ("small", "base", "large", "large-instruct")
MODELS = {  # name in the paper's tables → id on the hub
    **{f"mE5-{size}": f"intfloat/multilingual-e5-{size}" for size in SIZES},
    "LaBSE": "sentence-transformers/LaBSE", "mContriever-msmarco": "facebook/mcontriever-msmarco",
    "BGE-large-en-v1.5": "BAAI/bge-large-en-v1.5", "Cohere-multilingual-v3": "Cohere/Cohere-embed-multilingual-v3.0",
}  # fmt: skip
COORDINATES = ("model", "revision", "protocol", "dtype", "weights", "task", "dataset_revision", "mteb_version", "split",
               "subset", "metric", "value")
TABLES = (3, 4, 5)  # those that have results


def load_csv(name: str, **options: Any) -> pd.DataFrame:
    """The committed CSV `name` of evaluate/tables; `options` of `pandas.read_csv`.

    `bucc`, `tatoeba_per_language`: F1 of the four models (and accuracy) in per cent, from the cards and from mteb's
    results repository. `datasets`: the revision of each task's data that the cards' values were made of (not of
    English retrieval: there the cards say "None", for mteb 1.0.2 took it from BEIR's archives). `metric_changes`: where
    a number of today's mteb is not the paper's, whatever the protocol, and which files of the two packages say so.
    `instruct_prompts`: the instructions of mE5-large-instruct by task type and task (`*`: any), from unilm `e5`.
    `inconsistencies`: everything that does not add up in what was published: an `average` that its own finer rows do
    not give, a `cell` of Table 7 that is not the card's value rounded, a `label` of Table 7, the `total` of Table 1.
    `categories`: means of the cards' values, per cent, by category of English MTEB and size (ours).
    """
    path = Path(__file__).parent / "tables" / f"{name}.csv"
    return pd.read_csv(path, encoding="utf8", **{"float_precision": "round_trip"} | options)


def paper_table(number: int) -> pd.DataFrame:
    """Table `number` (1 to 7) of arXiv 2402.05672.

    1, 2: `source`, `sampled` (rows), `pair` (Table 1 only), `share` (of the sum of the rows; ours).
    3, 4, 5: `model`, `metric`, `value` (per cent, as printed), `recomputed` (per cent; NaN where nothing finer is
    published), `from` (what it was recomputed from: Tables 6 and 7 or the cards).
    6: a row per language, per cent, and two closing rows, the mean as printed and as recomputed.
    7: a row per dataset and size: `paper_table7` (one decimal), `model_card`, `mteb_1_12` and `head_value` (mteb's
    results repository at version 1.12 and at its head: other prompts and norms, hence other values).
    Raises `Me5Error` for another number.
    """
    if number not in range(1, 8):
        raise Me5Error(f"the paper has no Table {number}: choose one of 1 to 7")
    if number > 5:
        return load_csv({6: "table6", 7: "mteb_eng_v1_per_task"}[number])
    table = load_csv("mixtures" if number < 3 else "averages")
    table = table[table["table"] == number].drop(columns="table").reset_index(drop=True)
    if number > 2:
        return table.fillna({"from": ""})
    table["share"] = table["sampled"] / table["sampled"].sum()
    return table if number == 1 else table.drop(columns="pair")


def languages() -> pd.DataFrame:
    """The 112 languages of Tatoeba and English, by `code` (ISO 639-3): `short` (CLDR), `name`, `family`, `branch`,
    `script`. The script is CLDR's usual one; a set may hold others too (Serbian, Kurdish, Uzbek, Tatar)."""
    return load_csv("languages").set_index("code")


def model_named(name: str) -> str:
    """The hub id of a model of the paper's tables: `small`, `mE5-small` or the id itself. Raises `Me5Error`."""
    if name in (*MODELS.values(), "BM25", "mDPR"):
        return name
    if (known := MODELS.get(name) or MODELS.get(f"mE5-{name}")) is None:
        raise Me5Error(f"the paper has no figures for {name!r}: hold it against one of {', '.join([*SIZES, *MODELS])}")
    return known


def expected(number: int, model: str = "") -> pd.DataFrame:
    """The published values behind Table 3, 4 or 5, one a row, per cent, with the coordinates they were made at.

    Columns: `COORDINATES` ("" where nobody published one), then `mean` (True: an average as the table prints it; its
    `subset` is "mean of n") and `source` (of an average that its own rows do not give, also what they give). Models
    other than mE5 have averages only (in Table 4: languages, too). With `model` (as `model_named` takes it) its rows.
    Raises `Me5Error` for another table or model, and for a model that the table does not have.
    """
    if number not in TABLES:
        raise Me5Error(f"Table {number} has no results to expect: choose one of {', '.join(map(str, TABLES))}")
    table = _results("published", "table", str(number), revision="")
    table["mean"] = table["mean"] == "True"
    if model:
        table = table[table["model"] == model_named(model)].reset_index(drop=True)
        if table.empty:
            raise Me5Error(f"Table {number} does not have {model}: choose one of {', '.join(SIZES)}")
    return table


def repository(which: int | str, size: str) -> pd.DataFrame:
    """What mteb's public results repository holds of a size (Table 3, by mteb 1.12, or 5), as a measured frame.

    Other people's runs under mteb's own rules of their day: real figures to try `verdicts` on. Their dtype is not
    recorded (""). Of suite "lowres" means ("mean of n"), where a file had all subsets of its task.
    """
    runs = _results("runs_of_others", "set", str(which), protocol="mteb", dtype="", dataset_revision="")
    runs = runs[runs["model"] == model_named(size)].reset_index(drop=True)
    if runs.empty:
        raise Me5Error(f"no such runs are kept here: Table 3 or 5, or lowres, and a size of {', '.join(SIZES)}")
    return runs


def _results(name: str, column: str, value: str, **constant: str) -> pd.DataFrame:
    """The rows of a CSV of results whose `column` has `value`: `COORDINATES` and what other columns it has."""
    table = load_csv(name, dtype=str, keep_default_na=False)
    table = table[table[column] == value].drop(columns=column).assign(weights="full", **constant)
    table["value"] = table["value"].astype(float)
    more = [column for column in table.columns if column not in COORDINATES]
    return table[[*COORDINATES, *more]].reset_index(drop=True)


def recomputation() -> pd.DataFrame:
    """Every average of Tables 3 to 5 that has finer rows: `table`, `model`, `metric`, `printed`, `recomputed`, `holds`
    (equal at the printed precision: within half of the last digit), `from`."""
    table = load_csv("averages").dropna(subset="recomputed").rename(columns={"value": "printed"})
    table["holds"] = (table["printed"] - table["recomputed"]).abs() <= 0.05 + 1e-9
    return table[["table", "model", "metric", "printed", "recomputed", "holds", "from"]].reset_index(drop=True)
