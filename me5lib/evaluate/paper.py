"""The paper's tables as data, with what is recomputed from them, and where the paper disagrees with itself.

    paper_table(5)                # the numbers of Table 5, a DataFrame, with the mean recomputed from the languages
    expected(5, "small")          # its rows as `compare` wants them: a value and the coordinates it was made at
    recomputation()               # every printed average of Tables 3 to 5 beside the mean of its own rows
    inconsistencies()             # where the paper and the cards contradict themselves or each other
    beside(measured)              # the paper's rows and measured ones in one frame, labelled as not comparable

The figures lie in `tables/*.csv`, a few kilobytes. Sources: arXiv 2402.05672 (Tables 1 to 7), the authors' model cards
(values with two decimals; those of the bitext tasks as mteb's results repository keeps them), E5-mistral
(arXiv 2401.00368) Table 6 for the BM25 and mDPR columns of the MIRACL table. Families of `languages` are from common
knowledge (ours); its scripts are those of CLDR, held against Babel by a test.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from me5lib.io import Me5Error

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd

SIZES = ("small", "base", "large", "large-instruct")
MODELS = {  # name in the paper's tables → id on the hub
    **{f"mE5-{size}": f"intfloat/multilingual-e5-{size}" for size in SIZES},
    "LaBSE": "sentence-transformers/LaBSE", "mContriever-msmarco": "facebook/mcontriever-msmarco",
    "BGE-large-en-v1.5": "BAAI/bge-large-en-v1.5", "Cohere-multilingual-v3": "Cohere/Cohere-embed-multilingual-v3.0",
}  # fmt: skip
COORDINATES = ("model", "revision", "protocol", "dtype", "weights", "task", "dataset_revision", "mteb_version", "split",
               "subset", "metric", "value")
TABLES = (3, 4, 5)  # those that have results
NOT_COMPARABLE = "not comparable: other tasks, other pools, other size of model and of data"
_TABLE_7_AVERAGE = {"base": 59.4}  # the average row of Table 7 where it is known to differ from Table 3 (59.5)
_PRINTED_TOTALS = {1: 1_000_000_000, 2: 1_600_000}  # "~1B" and "~1.6M"
_SUBSETS = {  # of the English tasks that have others than "default"
    "AmazonCounterfactualClassification": "en", "AmazonReviewsClassification": "en", "MTOPDomainClassification": "en",
    "MTOPIntentClassification": "en", "MassiveIntentClassification": "en", "MassiveScenarioClassification": "en",
    "STS17": "en-en", "STS22": "en",
}  # fmt: skip
_MEANS = {  # metric as Tables 3 to 5 print it → task, metric and subset of the row in `expected`
    "MTEB English average (56 tasks)": ("MTEB English", "main_score", "mean of 56"),
    "MIRACL nDCG@10 (16 languages)": ("MIRACLRetrieval", "ndcg_at_10", "mean of 16"),
    "MIRACL R@100 (16 languages)": ("MIRACLRetrieval", "recall_at_100", "mean of 16"),
    "BUCC 2018 F1 (4 languages)": ("BUCC", "f1", "mean of 4"),
    "Tatoeba F1 (112 languages)": ("Tatoeba", "f1", "mean of 112"),
}
_ROUNDED = {"Table 3": "; rounded twice, first to 59.45 (an inference)",
            "Table 4": "; each printed with one decimal, so their mean is known to 0.05 only"}
# What the cards' values were made with: unilm `e5` asks for mteb 1.0.2 and runs in fp16. Which commit of the weights it
# was, the cards do not say; nor is there a script for MIRACL.
_CARD = {"revision": "", "protocol": "paper", "dtype": "fp16", "mteb_version": "1.0.2"}
_PAPER = {"revision": "", "protocol": "paper", "dtype": "", "mteb_version": ""}
_AT_1_12 = {"small": "e4ce9877", "base": "d13f1b27", "large": "4dc6d853", "large-instruct": "baa7be48"}
_PAIRS = ("de-en", "fr-en", "ru-en", "zh-en")  # of BUCC
_BITEXT_RUNS = {"small": ("fd1525a9", "1.36.32")}  # of `*_mtebrepo_f1`; the other sizes: `_AT_1_12`, 1.12.75


@cache
def csv_table(name: str) -> pd.DataFrame:
    """The committed CSV `name` of evaluate/tables."""
    import pandas as pd

    return pd.read_csv(Path(__file__).parent / "tables" / f"{name}.csv", encoding="utf8")


def paper_table(number: int) -> pd.DataFrame:
    """Table `number` (1 to 7) of arXiv 2402.05672.

    1, 2: `source`, `sampled` (rows), `pair` (Table 1 only), `share` (of the sum of the rows; ours).
    3, 4, 5: `model`, `metric`, `value` (per cent, as printed), `recomputed` (per cent, from Tables 6 and 7 or the
    cards; NaN where nothing finer is published), `from` (what it was recomputed from).
    6: a row per language, per cent, and two closing rows, the mean as printed and as recomputed.
    7: a row per dataset and size: `paper_table7` (one decimal), `model_card`, `mteb_1_12` and `head_value` (mteb's
    results repository at version 1.12 and at its head: other prompts, other normalisation, hence other values).

    Raises `Me5Error` for another number.
    """
    makers = {1: _mixture, 2: _mixture, 3: _averages, 4: _averages, 5: _averages, 6: _miracl, 7: _datasets}
    if number not in makers:
        raise Me5Error(f"the paper has no Table {number}: choose one of 1 to 7")
    return makers[number](number)


def tatoeba() -> pd.DataFrame:
    """Tatoeba F1 and accuracy of the four models for each of the 112 pairs, per cent (cards; results repository)."""
    return csv_table("tatoeba_per_language").copy()


def bucc() -> pd.DataFrame:
    """BUCC F1 of the four models and pairs, per cent: the cards' values, and later runs by mteb named in `source`."""
    return csv_table("bucc").copy()


def instruct_prompts() -> pd.DataFrame:
    """The instructions of mE5-large-instruct by task type and task (`*`: every task of the type), from unilm `e5`."""
    return csv_table("instruct_prompts").copy()


def languages() -> pd.DataFrame:
    """The 112 languages of Tatoeba and English, by `code` (ISO 639-3): `short` (CLDR), `name`, `family`, `branch`,
    `script`. The script is CLDR's usual one; a set may hold others too (Serbian, Kurdish, Uzbek, Tatar)."""
    return csv_table("languages").set_index("code")


def dataset_revisions() -> dict[str, str]:
    """Task → revision of the data that the cards' values were made of, from the `model-index` of the cards.

    The English retrieval tasks are missing: there the cards say "None", for mteb 1.0.2 took them from BEIR's archives.
    """
    return csv_table("datasets").set_index("task")["revision"].to_dict()


def model_named(name: str) -> str:
    """The hub id of a model of the paper's tables: `small`, `mE5-small` or the id itself. Raises `Me5Error`."""
    known = {**MODELS, **{size: MODELS[f"mE5-{size}"] for size in SIZES}, **{own: own for own in MODELS.values()}}
    known |= {"BM25": "BM25", "mDPR": "mDPR"}
    if name not in known:
        raise Me5Error(f"the paper has no figures for {name!r}: hold it against one of {', '.join([*SIZES, *MODELS])}")
    return known[name]


def expected(number: int, model: str = "") -> pd.DataFrame:
    """The published values behind Table 3, 4 or 5, one a row, per cent, with the coordinates they were made at.

    Columns: `COORDINATES`, then `mean` (True: an average as the table prints it; its `subset` is "mean of n") and
    `source` (of an average that its own rows do not give, also what they give). A coordinate that nobody published is
    "". Table 3: 56 tasks a size, from the cards; 4: 16 languages and two metrics, one decimal, from Table 6; 5: 4 and
    112 pairs, from the cards. The tables' other models have averages only (those of Table 4: languages, too). With
    `model` (a name as `model_named` takes) its rows alone.

    Raises `Me5Error` for another table or model, and for a model that the table does not have.
    """
    import pandas as pd

    makers = {3: _english, 4: _retrieval, 5: _bitext}
    if number not in makers:
        raise Me5Error(f"Table {number} has no results to expect: choose one of {', '.join(map(str, TABLES))}")
    columns = [name for name in (*COORDINATES, "mean", "source") if name != "weights"]
    table = pd.DataFrame([*makers[number](), *_printed(number)], columns=columns)
    table.insert(COORDINATES.index("weights"), "weights", "full")
    if model:
        table = table[table["model"] == model_named(model)].reset_index(drop=True)
        if table.empty:
            raise Me5Error(f"Table {number} does not have {model}: choose one of {', '.join(SIZES)}")
    return table


def publishes(number: int, model: str, tasks: Collection[str]) -> bool:
    """Whether Table 3, 4 or 5 has more than averages of a model (its hub id) on one of these tasks."""
    table = expected(number)
    return bool((table["task"].isin(tasks) & (table["model"] == model) & ~table["mean"]).any())


def repository(number: int, size: str, head: bool = False) -> pd.DataFrame:
    """What mteb's public results repository holds of a size, in the form of a measured frame (`COORDINATES`).

    Other people's runs under mteb's own rules of their day: real figures to try `compare` on. Table 3: those of mteb
    1.12, or with `head` the repository's newest, which mix versions; Table 5: as last seen. It has no Table 4 here.
    The dtype of those runs is not recorded ("").
    """
    import pandas as pd

    if number not in (3, 5) or size not in SIZES:
        raise Me5Error(f"no such runs are kept here: Table 3 or 5, and a size of {', '.join(SIZES)}")
    rows = _english_runs(size, head) if number == 3 else _bitext_runs(size)
    table = pd.DataFrame(rows, columns=[name for name in COORDINATES if name != "weights"])
    return table.assign(weights="full")[list(COORDINATES)]


def totals() -> pd.DataFrame:
    """Rows of the two mixtures, summed, beside the printed totals: Table 1 says about 1B and sums to 980M."""
    import pandas as pd

    rows = [{"table": n, "sum of rows": int(paper_table(n)["sampled"].sum()), "printed": printed}
            for n, printed in _PRINTED_TOTALS.items()]
    return pd.DataFrame(rows)


def disagreements(tolerance: float = 0.05) -> pd.DataFrame:
    """Averages whose printed value is not what their own finer rows give, rounded to one decimal.

    `tolerance` (points) is half of the last printed digit. mE5-base on English MTEB is the known one: Table 3 prints
    59.5, Table 7's own average row 59.4, and the mean of the 56 rows is 59.450 (59.446 from the cards' decimals).
    """
    import pandas as pd

    rows = [
        {"where": f"Table {number}, {row['model']}, {row['metric']}", "printed": row["value"],
         "recomputed": row["recomputed"], "from": row["from"]}
        for number in (3, 4, 5) for row in paper_table(number).to_dict("records")
        if abs(row["value"] - row["recomputed"]) > tolerance + 1e-9
    ]
    seven = csv_table("mteb_eng_v1_per_task").groupby("model")[["paper_table7", "model_card"]].mean()
    three = paper_table(3).set_index("model")["value"]
    for size, printed in _TABLE_7_AVERAGE.items():
        means = f"its 56 rows give {seven.loc[size].iloc[0]:.3f}, the cards {seven.loc[size].iloc[1]:.3f}"
        rows.append({"where": f"Table 3 against the average row of Table 7, mE5-{size}",
                     "printed": three[f"mE5-{size}"], "recomputed": printed, "from": f"Table 7 as printed; {means}"})
    return pd.DataFrame(rows)


def recomputation(tolerance: float = 0.05) -> pd.DataFrame:
    """Every average of Tables 3 to 5 that has finer rows: `table`, `model`, `metric`, `printed`, `recomputed`, `holds`
    (equal at the printed precision: within `tolerance`, half of the last digit), `from`."""
    import pandas as pd

    found = pd.concat([paper_table(number).assign(table=number) for number in TABLES], ignore_index=True)
    found = found[found["recomputed"].notna()].rename(columns={"value": "printed"})
    found["holds"] = (found["printed"] - found["recomputed"]).abs() <= tolerance + 1e-9
    return found[["table", "model", "metric", "printed", "recomputed", "holds", "from"]].reset_index(drop=True)


def inconsistencies() -> pd.DataFrame:
    """Everything that does not add up in what was published: `what`, `where`, `printed`, `found`, `note`.

    Averages (`disagreements`), cells of Table 7 that are not the card's value rounded to one decimal, a label of
    Table 7, and the total of Table 1.
    """
    import pandas as pd

    averages = [{"what": "average", "where": row["where"], "printed": row["printed"], "found": row["recomputed"],
                 "note": row["from"] + _ROUNDED.get(row["where"].split(",")[0], "")}
                for row in disagreements().to_dict("records")]
    seven = csv_table("mteb_eng_v1_per_task")
    apart = seven[(seven["paper_table7"] - seven["model_card"]).abs() > 0.05 + 1e-9]
    cells = [{"what": "cell", "where": f"Table 7, {row.task}, mE5-{row.model}", "printed": row.paper_table7,
              "found": row.model_card, "note": _why(row)} for row in apart.itertuples()]
    total = totals().set_index("table").loc[1]
    cqa = seven[seven["task"] == "CQADupstackRetrieval"].set_index("model")
    label = {"what": "label", "where": "Table 7, the row called CQADupstackAndroidRetrieval in its LaTeX, mE5-small",
             "printed": cqa.loc["small", "paper_table7"], "found": cqa.loc["small", "model_card"],
             "note": "the mean of all 12 forums; Android alone is 44.9"}
    return pd.DataFrame([*averages, *cells, label, {
        "what": "total", "where": "Table 1, pairs in millions", "printed": total["printed"] / 1e6,
        "found": total["sum of rows"] / 1e6, "note": "its rows, summed"}])


def categories() -> pd.DataFrame:
    """[the seven categories of English MTEB and `average`, the four sizes]: means of the cards' values, per cent.

    Ours: the paper prints no average of a category.
    """
    table = csv_table("mteb_eng_v1_per_task").rename(columns={"type": "category"})
    means = table.pivot_table(index="category", columns="model", values="model_card", sort=False)[list(SIZES)]
    means.index = [f"{name} ({n})" for name, n in zip(means.index, table.groupby("category", sort=False)["task"]
                                                      .nunique().loc[means.index], strict=True)]
    means.loc["average (56)"] = table.groupby("model")["model_card"].mean()[list(SIZES)]
    return means


def beside(measured: pd.DataFrame) -> pd.DataFrame:
    """The paper's Tables 3 to 5 and `measured` in one frame; every measured row says that it is not comparable.

    `measured` has `model`, `metric` and `value` (per cent). Returned: `model`, `metric`, `value`, `whose`, `note`.
    """
    import pandas as pd

    missing = {"model", "metric", "value"} - set(measured.columns)
    if missing:
        raise ValueError(f"measured lacks the columns {sorted(missing)}")
    paper = pd.concat([paper_table(n)[["model", "metric", "value"]] for n in (3, 4, 5)])
    paper = paper.assign(whose="paper", note="arXiv 2402.05672")
    ours = measured[["model", "metric", "value"]].assign(whose="measured here", note=NOT_COMPARABLE)
    return pd.concat([paper, ours], ignore_index=True)


def _mixture(number: int) -> pd.DataFrame:
    table = csv_table("mixtures")
    table = table[table["table"] == number].drop(columns="table").reset_index(drop=True)
    table["share"] = table["sampled"] / table["sampled"].sum()
    return table if number == 1 else table.drop(columns="pair")


def _averages(number: int) -> pd.DataFrame:
    table = csv_table("paper_tables")
    table = table[table["table"] == number].reset_index(drop=True)[["model", "metric", "value"]]
    finer = _recomputed()
    keys = zip(table["model"], table["metric"], strict=True)
    found = [finer.get(key, (float("nan"), "")) for key in keys]
    table["recomputed"], table["from"] = [value for value, _ in found], [source for _, source in found]
    return table


@cache
def _recomputed() -> dict[tuple[str, str], tuple[float, str]]:
    """(model, metric as Tables 3 to 5 name it) → mean of the finer rows, and which they are."""
    found = {}
    for size, mean in csv_table("mteb_eng_v1_per_task").groupby("model")["model_card"].mean().items():
        found[f"mE5-{size}", "MTEB English average (56 tasks)"] = (mean, "56 values of the card")
    miracl = csv_table("miracl_per_language").mean(numeric_only=True)
    columns = {"mE5-small": "small", "mE5-base": "base", "mE5-large": "large", "mE5-large-instruct": "instruct",
               "BM25": "bm25", "mDPR": "mdpr"}
    for model, column in columns.items():
        found[model, "MIRACL nDCG@10 (16 languages)"] = (miracl[f"{column}_ndcg10"], "16 rows of Table 6")
        found[model, "MIRACL R@100 (16 languages)"] = (miracl[f"{column}_r100"], "16 rows of Table 6")
    bitext, pairs = csv_table("tatoeba_per_language").mean(numeric_only=True), csv_table("bucc")
    pairs = pairs[pairs["source"].str.startswith("model card")].set_index("model")
    for size in SIZES:
        found[f"mE5-{size}", "Tatoeba F1 (112 languages)"] = (bitext[f"{size}_card_f1"], "112 values of the card")
        four = pairs.loc[size, list(_PAIRS)].astype(float).mean()
        found[f"mE5-{size}", "BUCC 2018 F1 (4 languages)"] = (four, "4 values of the card")
    return found


def _miracl(_: int) -> pd.DataFrame:
    import pandas as pd

    table = csv_table("miracl_per_language")
    short = {"mE5-small": "small", "mE5-base": "base", "mE5-large": "large", "mE5-large-instruct": "instruct",
             "BM25": "bm25", "mDPR": "mdpr"}
    printed: dict[str, str | float] = {"lang": "mean (printed)"}
    for row in paper_table(4).itertuples():
        printed[f"{short[row.model]}_{'ndcg10' if 'nDCG' in row.metric else 'r100'}"] = row.value
    means = {"lang": "mean (recomputed)", **table.mean(numeric_only=True).round(2).to_dict()}
    return pd.concat([table, pd.DataFrame([printed, means])], ignore_index=True)


def _datasets(_: int) -> pd.DataFrame:
    return csv_table("mteb_eng_v1_per_task").copy()


def _why(row) -> str:
    """Why a cell of Table 7 is not the card's. The card of mE5-large has both APs: 93.13, 75.28, 85.83 by cosine."""
    if row.type == "PairClassification":
        return f"AP by cosine (mteb 1.12 found {row.mteb_1_12:.2f}); the card's main score is the best AP"
    return "rounded twice, first to the card's two decimals (an inference)"


def _english() -> list[tuple]:
    table, made, data = csv_table("mteb_eng_v1_per_task"), _CARD, dataset_revisions()
    return [(f"intfloat/multilingual-e5-{row.model}", made["revision"], made["protocol"], made["dtype"], row.task,
             data.get(row.task, ""), made["mteb_version"], "dev" if row.task == "MSMARCO" else "test",
             _SUBSETS.get(row.task, "default"), "main_score", row.model_card, False, "model card")
            for row in table.itertuples()]


def _retrieval() -> list[tuple]:
    table, rows = csv_table("miracl_per_language").set_index("lang"), []
    for column, values in table.items():
        name, metric = column.rsplit("_", 1)
        model = model_named({"instruct": "large-instruct", "bm25": "BM25", "mdpr": "mDPR"}.get(name, name))
        made = _PAPER if name in ("small", "base", "large", "instruct") else dict.fromkeys(_PAPER, "")
        source = "arXiv 2402.05672, Table 6" if made is _PAPER else "arXiv 2401.00368, Table 6"
        rows += [(model, made["revision"], made["protocol"], made["dtype"], "MIRACLRetrieval", "", made["mteb_version"],
                  "dev", language, {"ndcg10": "ndcg_at_10", "r100": "recall_at_100"}[metric], value, False, source)
                 for language, value in values.items()]
    return rows


def _bitext() -> list[tuple]:
    pairs, four = csv_table("tatoeba_per_language").set_index("pair"), csv_table("bucc")
    four = four[four["source"].str.startswith("model card")].set_index("model")
    data = dataset_revisions()
    found = [(size, "BUCC", pair, four.loc[size, pair]) for size in SIZES for pair in _PAIRS]
    found += [(size, "Tatoeba", pair, value) for size in SIZES for pair, value in pairs[f"{size}_card_f1"].items()]
    return [(f"intfloat/multilingual-e5-{size}", _CARD["revision"], _CARD["protocol"], _CARD["dtype"], task,
             data[task], _CARD["mteb_version"], "test", pair, "f1", float(value), False, "model card")
            for size, task, pair, value in found]


def _printed(number: int) -> list[tuple]:
    """The averages of a table as it prints them."""
    rows = []
    for row in paper_table(number).itertuples():
        task, metric, subset = _MEANS[row.metric]
        made = _PAPER if row.model.startswith("mE5") else dict.fromkeys(_PAPER, "")
        apart = abs(row.value - row.recomputed) > 0.05 + 1e-9
        rows.append((model_named(row.model), made["revision"], made["protocol"], made["dtype"], task, "",
                     made["mteb_version"], "dev" if number == 4 else "test", subset, metric, row.value, True,
                     f"arXiv 2402.05672, Table {number}" + f"; its own rows give {row.recomputed:.3f}" * apart))
    return rows


def _english_runs(size: str, head: bool) -> list[tuple]:
    table = csv_table("mteb_eng_v1_per_task")
    table = table[table["model"] == size].assign(at=_AT_1_12[size], version="1.12", value=table["mteb_1_12"])
    if head:
        table = table.assign(at=table["head_rev"], version=table["head_mteb"].fillna(""), value=table["head_value"])
    return [(f"intfloat/multilingual-e5-{size}", row.at, "mteb", "", row.task, "", row.version,
             "dev" if row.task == "MSMARCO" else "test", _SUBSETS.get(row.task, "default"), "main_score", row.value)
            for row in table[table["value"].notna()].itertuples()]


def _bitext_runs(size: str) -> list[tuple]:
    revision, version = _BITEXT_RUNS.get(size, (_AT_1_12[size], "1.12.75"))
    model = f"intfloat/multilingual-e5-{size}"
    rows = [(model, revision, "mteb", "", "Tatoeba", "", version, "test", pair, "f1", value)
            for pair, value in csv_table("tatoeba_per_language").set_index("pair")[f"{size}_mtebrepo_f1"].items()]
    runs = csv_table("bucc")
    runs = runs[(runs["model"] == size) & runs["source"].str.match(r"BUCC mteb .* HEAD")]
    for run in runs.to_dict("records"):
        _, _, version, revision, _ = run["source"].split()
        rows += [(model, revision, "mteb", "", "BUCC", "", version, "test", pair, "f1", run[pair]) for pair in _PAIRS]
    return rows
