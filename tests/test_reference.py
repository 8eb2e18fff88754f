"""The paper's tables: the figures as published, what is recomputed from them, and where they disagree."""

import csv
from statistics import fmean

import pandas as pd
import pytest

from me5lib.evaluate import reference
from me5lib.places import PACKAGE, Me5Error


def rows(name: str) -> list[dict]:
    """A table's rows, read without pandas."""
    with (PACKAGE / "evaluate" / "tables" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_the_reference_material(shared):
    for path in sorted((shared / "reference").glob("*.csv")):
        assert rows(path.stem) == list(csv.DictReader(path.open(encoding="utf8", newline=""))), path.name


def test_headline_numbers_as_printed():
    three, four, five = (reference.paper_table(n).set_index(["model", "metric"])["value"] for n in (3, 4, 5))
    assert three["mE5-base", "MTEB English average (56 tasks)"] == 59.5
    assert four["mE5-large", "MIRACL nDCG@10 (16 languages)"] == 66.5
    assert five["mE5-large-instruct", "Tatoeba F1 (112 languages)"] == 83.8
    assert set(three.index.get_level_values("model")) >= {"LaBSE", "Cohere-multilingual-v3", "BGE-large-en-v1.5"}


def test_averages_are_recomputed_from_the_finer_rows():
    table = {(r["model"], r["metric"]): r["recomputed"] for n in (3, 4, 5)
             for r in reference.paper_table(n).to_dict("records")}
    base = [float(r["model_card"]) for r in rows("mteb_eng_v1_per_task") if r["model"] == "base"]
    assert len(base) == 56
    assert table["mE5-base", "MTEB English average (56 tasks)"] == pytest.approx(fmean(base))
    tatoeba = [float(r["large_card_f1"]) for r in rows("tatoeba_per_language")]
    assert len(tatoeba) == 112
    assert table["mE5-large", "Tatoeba F1 (112 languages)"] == pytest.approx(fmean(tatoeba))
    recall = [float(r["bm25_r100"]) for r in rows("miracl_per_language")]
    assert table["BM25", "MIRACL R@100 (16 languages)"] == pytest.approx(fmean(recall))
    assert table["mE5-small", "BUCC 2018 F1 (4 languages)"] == pytest.approx(fmean([97.86, 92.661, 93.502, 88.792]))
    assert pd.isna(table["LaBSE", "BUCC 2018 F1 (4 languages)"])


def test_the_papers_own_disagreements_are_shown():
    found = reference.disagreements().set_index("where")
    both = found.loc["Table 3 against the average row of Table 7, mE5-base"]
    assert (both["printed"], both["recomputed"]) == (59.5, 59.4)
    mean = found.loc["Table 3, mE5-base, MTEB English average (56 tasks)", "recomputed"]
    assert mean == pytest.approx(59.446, abs=1e-3)
    assert (reference.disagreements(1.0)["where"].str.startswith("Table 3 against")).all()


def test_mixtures_sum_up_and_say_what_was_printed():
    totals = reference.totals().set_index("table")
    assert totals.loc[1].tolist() == [980_000_000, 1_000_000_000]
    assert totals.loc[2].tolist() == [1_596_000, 1_600_000]
    one, two = reference.paper_table(1), reference.paper_table(2)
    assert len(one) == 9 and one["share"].sum() == pytest.approx(1) and one["pair"].notna().all()
    assert len(two) == 12 and two.set_index("source").loc["MIRACL", "sampled"] == 40_000


def test_table_6_closes_with_both_means():
    table = reference.paper_table(6).set_index("lang")
    assert len(table) == 16 + 2
    assert table.loc["mean (printed)", "large_ndcg10"] == 66.5
    mean = fmean(float(r["large_ndcg10"]) for r in rows("miracl_per_language"))
    assert table.loc["mean (recomputed)", "large_ndcg10"] == pytest.approx(mean, abs=0.005)


def test_table_7_has_every_dataset_and_size():
    table = reference.paper_table(7)
    assert table.groupby("model")["task"].nunique().to_dict() == dict.fromkeys(reference.SIZES, 56)


def test_a_caller_cannot_spoil_the_data():
    seven, tatoeba = reference.paper_table(7), reference.tatoeba()
    seven["model_card"] = tatoeba["small_card_f1"] = 0.0
    assert reference.paper_table(7)["model_card"].min() > 1
    assert reference.tatoeba()["small_card_f1"].min() > 0


def test_unknown_table():
    with pytest.raises(Me5Error, match="no Table 8"):
        reference.paper_table(8)


def test_measured_rows_are_labelled_not_comparable():
    measured = pd.DataFrame([{"model": "tiny", "metric": "held-out F1", "value": 70.0}])
    both = reference.beside(measured)
    assert both["whose"].value_counts().to_dict() == {"paper": 31, "measured here": 1}
    assert both[both["whose"] == "measured here"]["note"].str.startswith("not comparable").all()
    with pytest.raises(ValueError, match="metric"):
        reference.beside(measured.drop(columns="metric"))


def test_instructions_are_there_for_the_instruct_model():
    prompts = reference.instruct_prompts()
    found = prompts.set_index("task").loc["SciFact", "instruction"]
    assert found == "Given a scientific claim, retrieve documents that support or refute the claim"
