"""The paper's tables: the figures as published, what is recomputed from them, and where they disagree."""

import csv
from statistics import fmean

import pandas as pd
import pytest

from me5lib.evaluate import paper
from me5lib.io import PACKAGE, Me5Error


def rows(name: str) -> list[dict]:
    """A table's rows, read without pandas."""
    with (PACKAGE / "evaluate" / "tables" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_the_reference_material(shared):
    for path in sorted((shared / "reference").glob("*.csv")):
        assert rows(path.stem) == list(csv.DictReader(path.open(encoding="utf8", newline=""))), path.name


def test_headline_numbers_as_printed():
    three, four, five = (paper.paper_table(n).set_index(["model", "metric"])["value"] for n in (3, 4, 5))
    assert three["mE5-base", "MTEB English average (56 tasks)"] == 59.5
    assert four["mE5-large", "MIRACL nDCG@10 (16 languages)"] == 66.5
    assert five["mE5-large-instruct", "Tatoeba F1 (112 languages)"] == 83.8
    assert set(three.index.get_level_values("model")) >= {"LaBSE", "Cohere-multilingual-v3", "BGE-large-en-v1.5"}


def test_averages_are_recomputed_from_the_finer_rows():
    table = {(r["model"], r["metric"]): r["recomputed"] for n in (3, 4, 5)
             for r in paper.paper_table(n).to_dict("records")}
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
    found = paper.disagreements().set_index("where")
    both = found.loc["Table 3 against the average row of Table 7, mE5-base"]
    assert (both["printed"], both["recomputed"]) == (59.5, 59.4)
    mean = found.loc["Table 3, mE5-base, MTEB English average (56 tasks)", "recomputed"]
    assert mean == pytest.approx(59.446, abs=1e-3)
    assert (paper.disagreements(1.0)["where"].str.startswith("Table 3 against")).all()


def test_mixtures_sum_up_and_say_what_was_printed():
    totals = paper.totals().set_index("table")
    assert totals.loc[1].tolist() == [980_000_000, 1_000_000_000]
    assert totals.loc[2].tolist() == [1_596_000, 1_600_000]
    one, two = paper.paper_table(1), paper.paper_table(2)
    assert len(one) == 9 and one["share"].sum() == pytest.approx(1) and one["pair"].notna().all()
    assert len(two) == 12 and two.set_index("source").loc["MIRACL", "sampled"] == 40_000


def test_table_6_closes_with_both_means():
    table = paper.paper_table(6).set_index("lang")
    assert len(table) == 16 + 2
    assert table.loc["mean (printed)", "large_ndcg10"] == 66.5
    mean = fmean(float(r["large_ndcg10"]) for r in rows("miracl_per_language"))
    assert table.loc["mean (recomputed)", "large_ndcg10"] == pytest.approx(mean, abs=0.005)


def test_table_7_has_every_dataset_and_size():
    table = paper.paper_table(7)
    assert table.groupby("model")["task"].nunique().to_dict() == dict.fromkeys(paper.SIZES, 56)


def test_a_caller_cannot_spoil_the_data():
    seven, tatoeba = paper.paper_table(7), paper.tatoeba()
    seven["model_card"] = tatoeba["small_card_f1"] = 0.0
    assert paper.paper_table(7)["model_card"].min() > 1
    assert paper.tatoeba()["small_card_f1"].min() > 0


def test_unknown_table():
    with pytest.raises(Me5Error, match="no Table 8"):
        paper.paper_table(8)


def test_measured_rows_are_labelled_not_comparable():
    measured = pd.DataFrame([{"model": "tiny", "metric": "held-out F1", "value": 70.0}])
    both = paper.beside(measured)
    assert both["whose"].value_counts().to_dict() == {"paper": 31, "measured here": 1}
    assert both[both["whose"] == "measured here"]["note"].str.startswith("not comparable").all()
    with pytest.raises(ValueError, match="metric"):
        paper.beside(measured.drop(columns="metric"))


def test_instructions_are_there_for_the_instruct_model():
    prompts = paper.instruct_prompts()
    found = prompts.set_index("task").loc["SciFact", "instruction"]
    assert found == "Given a scientific claim, retrieve documents that support or refute the claim"


def test_expected_rows_are_the_published_ones():
    three, four, five = (paper.expected(number) for number in (3, 4, 5))
    for row in rows("mteb_eng_v1_per_task"):
        own = three[(three["task"] == row["task"]) & (three["model"] == f"intfloat/multilingual-e5-{row['model']}")]
        assert own["value"].item() == float(row["model_card"])
    for row in rows("miracl_per_language"):
        own = four[(four["subset"] == row["lang"]) & (four["model"] == "intfloat/multilingual-e5-large-instruct")]
        assert own.set_index("metric")["value"].to_dict() == {
            "ndcg_at_10": float(row["instruct_ndcg10"]), "recall_at_100": float(row["instruct_r100"])}
    for row in rows("tatoeba_per_language"):
        own = five[(five["subset"] == row["pair"]) & (five["model"] == "intfloat/multilingual-e5-base")]
        assert own["value"].item() == float(row["base_card_f1"])
    assert {n: int(t["mean"].sum()) for n, t in ((3, three), (4, four), (5, five))} == {3: 7, 4: 12, 5: 12}


def test_expected_rows_say_at_which_coordinates():
    for number, cells in ((3, 56), (4, 32), (5, 116)):
        table = paper.expected(number, "small")
        assert list(table.columns) == [*paper.COORDINATES, "mean", "source"]
        own = table[~table["mean"]]
        assert len(own) == cells and not own.duplicated(["task", "split", "subset", "metric"]).any()
        assert (own["protocol"] == "paper").all() and own["source"].str.len().min() > 5
    assert set(paper.expected(3, "small").query("task == 'MSMARCO'")["split"]) == {"dev"}
    four = paper.expected(4, "base")
    assert set(four["dtype"]) == set(four["mteb_version"]) == {""}, "nobody published these"
    assert set(paper.expected(5, "large").query("not mean")["mteb_version"]) == {"1.0.2"}


def test_expected_rows_are_those_that_mteb_evaluates():
    import mteb

    tasks = {task.metadata.name: task for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
    own = paper.expected(3, "small").query("not mean").set_index("task")
    assert set(own.index) == set(tasks)
    for name, task in tasks.items():
        assert list(task.eval_splits) == [own.loc[name, "split"]], name
        subsets = list(getattr(task, "hf_subsets", None) or ["default"])
        assert subsets == [own.loc[name, "subset"]], name
    for name in ("BUCC", "Tatoeba"):
        known = mteb.get_task(name)
        pairs = paper.expected(5, "small").query("not mean and task == @name")["subset"]
        assert set(known.hf_subsets) == set(pairs) and known.eval_splits == ["test"]
    languages = paper.expected(4, "small").query("not mean")["subset"]
    assert set(languages) < set(mteb.get_task("MIRACLRetrieval").hf_subsets)


def test_models_by_any_of_their_names_and_no_others():
    for name in ("small", "mE5-small", "intfloat/multilingual-e5-small"):
        assert paper.model_named(name) == "intfloat/multilingual-e5-small"
    with pytest.raises(Me5Error, match="no figures for 'tiny'"):
        paper.model_named("tiny")
    with pytest.raises(Me5Error, match="Table 4 does not have LaBSE"):
        paper.expected(4, "LaBSE")


def test_tables_3_to_5_recomputed_with_the_exceptions_listed():
    table = paper.recomputation()
    assert table["table"].value_counts().to_dict() == {3: 4, 4: 12, 5: 8}
    apart = {(row.table, row.model) for row in table.itertuples() if abs(row.printed - row.recomputed) > 0.0500001}
    assert apart == {(3, "mE5-base"), (4, "mE5-large")} == {
        (row.table, row.model) for row in table[~table["holds"]].itertuples()}


def test_all_inconsistencies_are_listed():
    found = paper.inconsistencies()
    assert found["what"].value_counts().to_dict() == {"average": 3, "cell": 13, "label": 1, "total": 1}
    cells = found[found["what"] == "cell"]
    apart = [row for row in rows("mteb_eng_v1_per_task")
             if abs(float(row["paper_table7"]) - float(row["model_card"])) > 0.0500001]
    assert sorted(cells["where"]) == sorted(f"Table 7, {row['task']}, mE5-{row['model']}" for row in apart)
    pairs = cells[cells["note"].str.contains("cosine")]
    assert len(pairs) == 4 and ((pairs["printed"] - pairs["found"]).abs() > 0.07).all()
    said = pairs["note"].str.extract(r"found ([\d.]+)")[0].astype(float)
    assert (pairs["printed"] - said).abs().max() <= 0.05
    rest = cells.drop(pairs.index)
    assert ((rest["printed"] - rest["found"]).abs() < 0.0551).all(), "what two roundings can do"


def test_means_of_the_categories():
    table = paper.categories()
    assert list(table.columns) == list(paper.SIZES) and len(table) == 8
    sts = [float(r["model_card"]) for r in rows("mteb_eng_v1_per_task") if (r["type"], r["model"]) == ("STS", "large")]
    assert table.loc["STS (10)", "large"] == pytest.approx(fmean(sts)) and len(sts) == 10


def test_scripts_of_the_languages_are_cldrs():
    from babel.core import get_global

    likely, table = get_global("likely_subtags"), paper.languages()
    names = {"Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari", "Beng": "Bengali",
             "Hebr": "Hebrew", "Grek": "Greek", "Ethi": "Ethiopic", "Armn": "Armenian", "Geor": "Georgian",
             "Hans": "Han", "Hant": "Han", "Jpan": "Japanese", "Kore": "Korean", "Khmr": "Khmer", "Mlym": "Malayalam",
             "Taml": "Tamil", "Telu": "Telugu", "Thai": "Thai"}
    known = {code: likely.get(row.short, "").split("_")[1:2] for code, row in table.iterrows()}
    known = {code: names.get(script[0], script[0]) for code, script in known.items() if script}
    assert len(known) >= 90
    assert {code: script for code, script in known.items() if table.loc[code, "script"] != script} == {}
    assert {r["pair"][:3] for r in rows("tatoeba_per_language")} | {"eng"} == set(table.index)
    assert {r["lang"] for r in rows("miracl_per_language")} <= set(table["short"])
    assert table["short"].is_unique


def test_revisions_of_the_data_are_the_cards():
    import mteb

    known = paper.dataset_revisions()
    tasks = {row["task"]: row["type"] for row in rows("mteb_eng_v1_per_task")} | {"BUCC": "", "Tatoeba": ""}
    assert set(known) == {task for task, kind in tasks.items() if kind != "Retrieval"}
    assert all(len(revision) == 40 and not revision.strip("0123456789abcdef") for revision in known.values())
    today = {task: mteb.get_task(task).metadata.revision for task in known}
    same = [task for task in known if today[task] == known[task]]
    assert len(same) >= 20, "the rest were uploaded anew since"
    assert not {"BUCC", "Tatoeba"} & set(same)
