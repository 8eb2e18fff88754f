"""The paper's tables as data, with what is recomputed from them, and where the paper disagrees with itself.

    paper_table(5)                # the numbers of Table 5, a DataFrame, with the mean recomputed from the languages
    disagreements()               # every printed average that its own rows do not give
    beside(measured)              # the paper's rows and measured ones in one frame, labelled as not comparable

The figures lie in `tables/*.csv`, a few kilobytes. Sources: arXiv 2402.05672 (Tables 1 to 7), the authors' model cards
(values with two decimals; those of the bitext tasks as mteb's results repository keeps them), E5-mistral
(arXiv 2401.00368) Table 6 for the BM25 and mDPR columns of the MIRACL table.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from me5lib.places import Me5Error

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("small", "base", "large", "large-instruct")
NOT_COMPARABLE = "not comparable: other tasks, other pools, other size of model and of data"
_TABLE_7_AVERAGE = {"base": 59.4}  # the average row of Table 7 where it is known to differ from Table 3 (59.5)
_PRINTED_TOTALS = {1: 1_000_000_000, 2: 1_600_000}  # "~1B" and "~1.6M"


@cache
def _csv(name: str) -> pd.DataFrame:
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
    return _csv("tatoeba_per_language").copy()


def bucc() -> pd.DataFrame:
    """BUCC F1 of the four models and pairs, per cent: the cards' values, and later runs by mteb named in `source`."""
    return _csv("bucc").copy()


def instruct_prompts() -> pd.DataFrame:
    """The instructions of mE5-large-instruct by task type and task (`*`: every task of the type), from unilm `e5`."""
    return _csv("instruct_prompts").copy()


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
    seven = _csv("mteb_eng_v1_per_task").groupby("model")[["paper_table7", "model_card"]].mean()
    three = paper_table(3).set_index("model")["value"]
    for size, printed in _TABLE_7_AVERAGE.items():
        means = f"its 56 rows give {seven.loc[size].iloc[0]:.3f}, the cards {seven.loc[size].iloc[1]:.3f}"
        rows.append({"where": f"Table 3 against the average row of Table 7, mE5-{size}",
                     "printed": three[f"mE5-{size}"], "recomputed": printed, "from": f"Table 7 as printed; {means}"})
    return pd.DataFrame(rows)


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
    table = _csv("mixtures")
    table = table[table["table"] == number].drop(columns="table").reset_index(drop=True)
    table["share"] = table["sampled"] / table["sampled"].sum()
    return table if number == 1 else table.drop(columns="pair")


def _averages(number: int) -> pd.DataFrame:
    table = _csv("paper_tables")
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
    for size, mean in _csv("mteb_eng_v1_per_task").groupby("model")["model_card"].mean().items():
        found[f"mE5-{size}", "MTEB English average (56 tasks)"] = (mean, "56 values of the card")
    miracl = _csv("miracl_per_language").mean(numeric_only=True)
    columns = {"mE5-small": "small", "mE5-base": "base", "mE5-large": "large", "mE5-large-instruct": "instruct",
               "BM25": "bm25", "mDPR": "mdpr"}
    for model, column in columns.items():
        found[model, "MIRACL nDCG@10 (16 languages)"] = (miracl[f"{column}_ndcg10"], "16 rows of Table 6")
        found[model, "MIRACL R@100 (16 languages)"] = (miracl[f"{column}_r100"], "16 rows of Table 6")
    bitext, pairs = _csv("tatoeba_per_language").mean(numeric_only=True), _csv("bucc")
    pairs = pairs[pairs["source"].str.startswith("model card")].set_index("model")
    for size in SIZES:
        found[f"mE5-{size}", "Tatoeba F1 (112 languages)"] = (bitext[f"{size}_card_f1"], "112 values of the card")
        four = pairs.loc[size, ["de-en", "fr-en", "ru-en", "zh-en"]].astype(float).mean()
        found[f"mE5-{size}", "BUCC 2018 F1 (4 languages)"] = (four, "4 values of the card")
    return found


def _miracl(_: int) -> pd.DataFrame:
    import pandas as pd

    table = _csv("miracl_per_language")
    short = {"mE5-small": "small", "mE5-base": "base", "mE5-large": "large", "mE5-large-instruct": "instruct",
             "BM25": "bm25", "mDPR": "mdpr"}
    printed: dict[str, str | float] = {"lang": "mean (printed)"}
    for row in paper_table(4).itertuples():
        printed[f"{short[row.model]}_{'ndcg10' if 'nDCG' in row.metric else 'r100'}"] = row.value
    means = {"lang": "mean (recomputed)", **table.mean(numeric_only=True).round(2).to_dict()}
    return pd.concat([table, pd.DataFrame([printed, means])], ignore_index=True)


def _datasets(_: int) -> pd.DataFrame:
    return _csv("mteb_eng_v1_per_task").copy()
