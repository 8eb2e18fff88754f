"""The paper's tables as committed data: equal to the reference material, consistent among themselves and with mteb."""

import csv

import pytest

from me5lib.evaluate import benchmarks, paper
from me5lib.io import PACKAGE, Me5Error


def rows(name: str) -> list[dict]:
    """A table's rows, read without pandas."""
    with (PACKAGE / "evaluate" / "tables" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_the_reference_material(shared):
    for path in sorted((shared / "reference").glob("*.csv")):
        there = list(csv.DictReader(path.open(encoding="utf8", newline="")))
        own = rows("averages" if path.stem == "paper_tables" else path.stem)
        assert [{name: row[name] for name in there[0]} for row in own] == there, path.name


def test_tables_as_printed():
    three, four, five = (paper.paper_table(n).set_index(["model", "metric"])["value"] for n in (3, 4, 5))
    assert three["mE5-base", "MTEB English average (56 tasks)"] == 59.5
    assert four["mE5-large", "MIRACL nDCG@10 (16 languages)"] == 66.5
    assert five["mE5-large-instruct", "Tatoeba F1 (112 languages)"] == 83.8
    one, two, six, seven = (paper.paper_table(n) for n in (1, 2, 6, 7))
    assert len(one) == 9 and one["share"].sum() == pytest.approx(1) and one["pair"].notna().all()
    assert len(two) == 12 and two.set_index("source").loc["MIRACL", "sampled"] == 40_000
    assert six["lang"].tolist()[-2:] == ["mean (printed)", "mean (recomputed)"] and len(six) == 18
    assert seven.groupby("model")["task"].nunique().to_dict() == dict.fromkeys(paper.SIZES, 56)
    assert [table["sampled"].sum() for table in (one, two)] == [980_000_000, 1_596_000]
    assert paper.load_csv("categories", index_col=0).loc["average (56)", "large"] == pytest.approx(61.50, abs=0.005)
    with pytest.raises(Me5Error, match="no Table 8"):
        paper.paper_table(8)
    seven["model_card"] = 0.0  # a caller cannot spoil the data
    assert paper.paper_table(7)["model_card"].min() > 1


def test_averages_are_the_means_of_the_published_rows_but_where_the_paper_is_inconsistent():
    table = paper.recomputation()
    assert table["table"].value_counts().to_dict() == {3: 4, 4: 12, 5: 8}
    assert [(row.table, row.model) for row in table[~table["holds"]].itertuples()] == [(3, "mE5-base"),
                                                                                       (4, "mE5-large")]
    for number in paper.TABLES:
        published = paper.expected(number)
        means = published.query("not mean").groupby(["model", "metric", "task"] if number > 3 else ["model", "metric"])
        means = means["value"].mean().tolist()
        for value in table.query("table == @number")["recomputed"]:
            assert min(abs(value - mean) for mean in means) < 1e-9
    odd = paper.load_csv("inconsistencies")
    assert odd["what"].value_counts().to_dict() == {"average": 3, "cell": 13, "label": 1, "total": 1}


def test_expected_rows_and_their_coordinates():
    for number, cells, means in ((3, 56, 7), (4, 32, 12), (5, 116, 12)):
        assert paper.expected(number)["mean"].sum() == means
        table = paper.expected(number, "small")
        assert list(table.columns) == [*paper.COORDINATES, "mean", "source"]
        own = table[~table["mean"]]
        assert len(own) == cells and not own.duplicated(["task", "split", "subset", "metric"]).any()
        assert set(own["protocol"]) == {"paper"} and set(own["weights"]) == {"full"} and set(own["revision"]) == {""}
    assert set(paper.expected(4, "base")["dtype"]) == {""}, "nobody published it"
    assert set(paper.expected(5, "large").query("not mean")["mteb_version"]) == {"1.0.2"}
    revisions = paper.load_csv("datasets").set_index("task")["revision"]
    own = paper.expected(3, "small").query("not mean").set_index("task")["dataset_revision"]
    assert own[list(set(revisions.index) & set(own.index))].isin(revisions).all() and (own == "").sum() == 15


def test_expected_rows_are_those_that_are_evaluated():
    for number in paper.TABLES:
        own = paper.expected(number, "small").query("not mean")
        there = {name: set(zip(rows["split"], rows["subset"], strict=True)) for name, rows in own.groupby("task")}
        tasks = {task.metadata.name: benchmarks.subsets_of(task) for task in benchmarks.table_tasks(number)}
        assert there == tasks == {name: benchmarks.full_subsets(name) for name in tasks}
    assert set(benchmarks.table_tasks(4, quick=True)[0].hf_subsets) == {"sw", "bn", "hi", "te", "th"}
    assert len(benchmarks.full_subsets("STS22.v2")) > 10 and benchmarks.full_subsets("no task") == frozenset()
    assert benchmarks.table_numbers("all") == (3, 4, 5) and benchmarks.table_numbers("5, 3") == (3, 5)


def test_models_by_any_of_their_names_and_no_others():
    for name in ("small", "mE5-small", "intfloat/multilingual-e5-small"):
        assert paper.model_named(name) == "intfloat/multilingual-e5-small"
    with pytest.raises(Me5Error, match="no figures for 'tiny'"):
        paper.model_named("tiny")
    with pytest.raises(Me5Error, match="Table 4 does not have LaBSE"):
        paper.expected(4, "LaBSE")
    with pytest.raises(Me5Error, match="no such runs"):
        paper.repository(4, "small")


def test_scripts_of_the_languages_are_cldrs():
    from babel.core import get_global

    likely, table = get_global("likely_subtags"), paper.languages()
    names = {"Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari", "Beng": "Bengali",
             "Hebr": "Hebrew", "Grek": "Greek", "Ethi": "Ethiopic", "Armn": "Armenian", "Geor": "Georgian",
             "Hans": "Han", "Hant": "Han", "Jpan": "Japanese", "Kore": "Korean", "Khmr": "Khmer", "Mlym": "Malayalam",
             "Taml": "Tamil", "Telu": "Telugu", "Thai": "Thai"}
    known = {code: likely.get(row.short, "").split("_")[1:2] for code, row in table.iterrows()}
    known = {code: names.get(script[0], script[0]) for code, script in known.items() if script}
    assert len(known) >= 90 and table["short"].is_unique
    assert {code: script for code, script in known.items() if table.loc[code, "script"] != script} == {}
    assert {row["pair"][:3] for row in rows("tatoeba_per_language")} | {"eng"} == set(table.index)
