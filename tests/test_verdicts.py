"""Expected against measured: verdicts, what is refused, what is missing, forms, the log; the protocols; the flags."""

import io
import re

import pandas as pd
import pytest

from me5lib.data import cards
from me5lib.evaluate import paper, runs, verdicts
from me5lib.evaluate.verdicts import against_paper
from me5lib.io import Me5Error

SMALL = "intfloat/multilingual-e5-small"


def published(number: int, size: str, **other: object) -> pd.DataFrame:
    """A run that found the published values of a table, in fp32; `other` replaces coordinates."""
    frame = paper.expected(number, size).query("not mean")[list(paper.COORDINATES)].reset_index(drop=True)
    run = {"revision": "abc", "dtype": "fp32", "dataset_revision": "d", "mteb_version": "2.26.13"}
    return frame.assign(**run | other)


def bitext(**other: object) -> pd.DataFrame:
    return published(5, "small", **other)


def moved(frame: pd.DataFrame, subset: str, by: float) -> pd.DataFrame:
    return frame.assign(value=frame["value"] + by * (frame["subset"] == subset))


def by_subset(found: pd.DataFrame) -> pd.DataFrame:
    return found.set_index("subset")


def test_a_run_that_finds_the_published_values_agrees():
    found = against_paper(bitext(), 5)
    assert list(found.columns) == verdicts.COLUMNS
    assert len(found) == 4 + 112 + 2 and set(found["verdict"]) == {"agrees"} == {verdicts.overall(found)}
    assert by_subset(found).loc["mean of 4", "expected"] == 93.2
    assert by_subset(found).loc["mean of 112", "measured"] == pytest.approx(64.2, abs=0.05)
    assert by_subset(found).loc["fra-eng", "note"] == "data d, published of 90804000"
    assert (found.attrs["against"], found.attrs["tolerance"]) == (SMALL, 0.1)


@pytest.mark.parametrize(("dtype", "by", "word"), [
    ("fp32", 0.0999, "agrees"), ("fp32", -0.1001, "differs"), ("bf16", 0.29, "agrees"), ("fp16", -0.299, "agrees"),
    ("fp16", 0.301, "differs"), ("", 0.29, "differs"),
])  # fmt: skip
def test_the_tolerance_is_the_dtypes_own_for_every_task(dtype, by, word):
    found = by_subset(against_paper(moved(bitext(dtype=dtype), "fra-eng", by), 5))
    assert found.loc["fra-eng", "verdict"] == word and found.loc["fra-eng", "delta"] == pytest.approx(by)
    assert (found["verdict"].drop("fra-eng") == "agrees").all()
    for number in paper.TABLES:
        frame = published(number, "small", dtype=dtype)
        cells = against_paper(frame.assign(value=frame["value"] + by), number)
        assert set(cells[~cells["subset"].str.startswith("mean")]["verdict"]) == {word}


def test_missing_on_either_side_is_shown():
    frame = bitext()[lambda table: table["subset"] != "deu-eng"]
    extra = frame[frame["subset"] == "fra-eng"].assign(subset="vol-eng")
    rows = against_paper(pd.concat([moved(frame, "fra-eng", 11.0), extra]), 5)
    found = by_subset(rows)
    assert found["verdict"][["deu-eng", "vol-eng"]].tolist() == ["not measured", "not published"]
    assert found.loc["mean of 112", ["verdict", "note"]].tolist() == ["not measured", "111 of 112 are measured"]
    assert "1 differ, 2 not measured, 1 not published" in verdicts.verdict_line(rows)
    assert verdicts.overall(rows) == "differs" and verdicts.overall(against_paper(frame, 5)) == "incomplete"


@pytest.mark.parametrize(("name", "other"), [
    ("revision", "def"), ("protocol", "mteb"), ("dtype", "bf16"), ("mteb_version", "2.27.0"), ("weights", "4-bit"),
    ("revision", None), ("dataset_revision", "x"),
])  # fmt: skip
def test_mixed_runs_are_refused_in_one_line(name, other):
    frame = bitext()
    frame.loc[frame.index[-1], name] = other
    with pytest.raises(Me5Error, match=rf"mix {name} .*") as caught:
        against_paper(frame, 5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "table", "words"), [
    (lambda f: pd.concat([f, f[f["subset"] == "fra-eng"]]), 5, r"Tatoeba \(test, fra-eng, f1\) was measured twice"),
    (lambda f: f.assign(dtype="int8"), 5, "no tolerance is set for dtype 'int8'"),
    (lambda f: f, 4, "nothing of Table 4 was measured"), (lambda f: f, 7, "Table 7 has no results"),
    (lambda f: f.assign(model="me5/mine"), 5, "no figures for 'me5/mine'"),
    (lambda f: pd.concat([f, f.assign(model="me5/mine")]), 5, "mix model"),
])  # fmt: skip
def test_what_cannot_be_compared(change, table, words):
    with pytest.raises(Me5Error, match=words):
        against_paper(change(bitext()), table)


def test_another_model_is_held_against_a_named_one_and_one_of_several_is_chosen():
    found = against_paper(bitext(model="me5/mine"), 5, "small")
    assert verdicts.overall(found) == "agrees" and f"me5/mine against {SMALL}" in verdicts.verdict_line(found)
    two = pd.concat([bitext(), bitext(model=paper.MODELS["mE5-base"], value=1.0), published(3, "small", dtype="bf16")])
    assert verdicts.overall(against_paper(two, 5, "mE5-small")) == "agrees"
    labse = by_subset(against_paper(bitext(model=paper.MODELS["LaBSE"], value=81.15), 5))  # has averages only
    assert labse["verdict"][["fra-eng", "mean of 112", "mean of 4"]].tolist() == ["not published", "agrees", "differs"]


@pytest.mark.parametrize(("change", "word"), [
    ({}, "reproduced"), ({"dtype": "fp32"}, "agrees"), ({"weights": "4-bit (Q4_0)"}, "agrees"),
    ({"weights": ""}, "agrees"), ({"revision": ""}, "agrees"), ({"protocol": "mteb"}, "agrees"),
    ({"model": "me5/mine"}, "agrees"),
])  # fmt: skip
def test_reproduced_is_a_word_for_the_same_weights_in_the_same_dtype(tmp_path, change, word):
    """The cards' values were made in fp16 under the paper's protocol; whatever else agrees, only agrees."""
    found = against_paper(bitext(dtype="fp16").assign(**change), 5, "small")
    assert set(found["verdict"]) == {"agrees"} and verdicts.overall(found) == word
    texts = (verdicts.markdown(found), verdicts.log_line(tmp_path, found, "x"))
    assert [("reproduced" in text) for text in texts] == [word == "reproduced"] * 2


def test_the_line_says_every_difference_to_the_published_run():
    found = against_paper(bitext(model="me5/q4", weights="4-bit (Q4_0)", dtype="bf16"), 5, "small")
    line = verdicts.verdict_line(found)
    assert line.startswith(f"Table 5, me5/q4 against {SMALL} (revision abc, protocol paper, dtype bf16 (published: ")
    assert "weights 4-bit (Q4_0) (published: full)" in line and "mteb 2.26.13 (published: 1.0.2)" in line


def test_main_scores_count_under_either_name_and_other_metrics_are_left_alone():
    frame = bitext(metric="main_score")
    found = against_paper(pd.concat([frame, frame.assign(metric="accuracy", value=1.0)]), 5)
    assert verdicts.overall(found) == "agrees" and len(found) == 118
    assert verdicts.overall(against_paper(pd.concat([bitext(), frame.assign(value=1.0)]), 5)) == "agrees"


def test_the_average_rounded_twice_says_so():
    mean = against_paper(published(3, "base"), 3).iloc[-1]
    assert mean[["task", "expected", "verdict", "note"]].tolist() == [
        "MTEB English", 59.5, "agrees", "its own rows give 59.446"]


def test_one_verdict_in_three_forms():
    found = against_paper(moved(bitext(), "fra-eng", 1.0), 5)
    page = verdicts.styled(found).to_html()
    assert "#FBE3D6" in page and "+1.00" in page and SMALL in page
    lines = verdicts.markdown(found).splitlines()
    assert lines[0] == verdicts.verdict_line(found) and len(lines) == 2 + 2 + 118
    assert next(line for line in lines if "fra-eng" in line).split("|")[7:9] == [" +1.00 ", " differs "]
    read = pd.read_csv(io.StringIO(verdicts.csv_text(found)))
    assert read.loc[read["subset"] == "fra-eng", "delta"].item() == pytest.approx(1.0)
    assert read[["revision", "mteb_version", "expected_dtype"]].drop_duplicates().values.tolist() == [
        ["abc", "2.26.13", "fp16"]]


def test_the_log_grows_by_one_line_per_run(tmp_path):
    found, out = against_paper(bitext(), 5), tmp_path / "run"
    first = verdicts.log_line(out, found, "me5 evaluate --table 5")
    verdicts.log_line(out, against_paper(moved(bitext(), "fra-eng", 1.0), 5), "me5 a | b")
    lines = (out / "reproduction.md").read_text(encoding="utf8").splitlines()
    assert lines[0].startswith("# ") and lines[4] == first and len(lines) == 6
    date, commit, *cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", date) and re.fullmatch(r"([0-9a-f]{10}(-dirty)?)?", commit)
    assert cells == ["`me5 evaluate --table 5`", runs.hardware(), "5", SMALL, "abc", "paper", "fp32", "full",
                     "2.26.13", "agrees: 118 of 118 within 0.1"]
    assert "differs: 117 of 118" in lines[5] and r"a \| b" in lines[5]
    old = "# Reproduction log\n\n| date | dtype | mteb | verdict |\n| --- | --- | --- | --- |\n| a | b | c | d |\n"
    (out / "reproduction.md").write_text(old, encoding="utf8")  # of other columns: no line stands under a wrong name
    for _ in range(2):
        verdicts.log_line(out, found, "x")
    text = (out / "reproduction.md").read_text(encoding="utf8")
    assert text.startswith(old) and text.count("| date |") == 2 and text.count("agrees: 118 of 118") == 2
    with pytest.raises(Me5Error, match="cannot write"):
        verdicts.log_line(out / "reproduction.md" / "x", found, "x")


def test_runs_of_others_are_compared_and_mixed_ones_refused():
    found = against_paper(paper.repository(5, "small"), 5)
    assert found.iloc[-1]["delta"] == pytest.approx(68.94 - 64.2, abs=0.01)
    assert "protocol mteb (published: paper)" in verdicts.verdict_line(found)
    with pytest.raises(Me5Error, match="mix mteb_version"):
        against_paper(paper.repository(5, "base"), 5)


def under_both(**changes: object) -> pd.DataFrame:
    """Two subsets of four tasks under both protocols."""
    values = {"paper": (81.8, 60.0, 87.0, 50.0), "mteb": (74.9, 64.0, 88.0, 51.0)}
    names = ("Banking77Classification", "Tatoeba", "QuoraRetrieval", "SciDocsRR")
    rows = [(SMALL, "fd1525a9", protocol, "fp32", "full", task, "d0", "2.26.0", "test", subset, "main_score", value + i)
            for protocol, of in values.items() for task, value in zip(names, of, strict=True)
            for i, subset in enumerate("ab")]
    return pd.DataFrame(rows, columns=list(paper.COORDINATES)).assign(**changes)


def test_protocol_delta_says_what_moved_on_the_same_data():
    frame = under_both()
    table = verdicts.protocol_delta(frame).set_index("task")
    assert table.loc["Banking77Classification", ["subsets", "paper", "mteb"]].tolist() == [2, 82.3, 75.4]
    assert table["delta"].tolist() == pytest.approx([-6.9, 4.0, 1.0, 1.0])
    fewer = frame.drop(frame.query("protocol == 'mteb' and task == 'Tatoeba'").index[:1])
    assert verdicts.protocol_delta(fewer).set_index("task").loc["Tatoeba", ["subsets", "paper"]].tolist() == [1, 61.0]
    paper_side = frame["protocol"] == "paper"
    for column in ("model", "revision", "dtype", "weights", "mteb_version", "dataset_revision"):
        assert not len(verdicts.protocol_delta(frame.assign(**{column: frame[column].where(paper_side, "another")})))
    with pytest.raises(Me5Error, match="these results mix revision"):
        verdicts.protocol_delta(pd.concat([frame, under_both(revision="0123abcd")]))


def test_sets_whose_training_part_was_in_the_mixture_are_flagged():
    expected = {
        **dict.fromkeys(("MIRACLRetrieval", "MrTidyRetrieval", "NQ", "HotpotQA", "FEVER", "MSMARCO", "QuoraRetrieval"),
                        "training part"),
        "XQuADRetrieval": "related set", "ClimateFEVER": "related set", "SciFact": "same source",
        "CQADupstackRetrieval": "same source", "STSBenchmark": "", "Banking77Classification": "", "TRECCOVID": "",
    }  # fmt: skip
    found = verdicts.contamination(expected)
    assert found.set_index("task")["flag"].to_dict() == expected and all(found["evidence"][found["flag"] != ""])
    assert found.set_index("task").loc["MrTidyRetrieval", "cards"] == "mrtydi, wikipedia"
    marked = verdicts.with_contamination(against_paper(published(3, "base"), 3))
    assert marked.set_index("task").loc["FEVER", "trained on"] == "training part" and marked.attrs["table"] == 3
    assert verdicts.markdown(marked).count("training part") == 5


def test_flags_are_those_that_mteb_itself_gives_to_me5():
    from mteb.models.model_implementations.e5_models import ME5_TRAINING_DATA

    tasks = set(paper.expected(3, "small")["task"]) | {"MIRACLRetrieval", "BUCC", "Tatoeba"}
    flagged = verdicts.contamination(sorted(tasks)).set_index("task")["flag"]
    assert set(flagged.index[flagged == "training part"]) == (ME5_TRAINING_DATA & tasks) | {"QuoraRetrieval"}


def test_the_evidence_of_a_flag_is_what_the_cards_say():
    """A fault that a card no longer has, or another number of rows, makes the table stale."""
    known = cards.hub()
    bonds = ("SPECTER, arXiv 2004.07180", "BEIR, arXiv 2104.08663", "mteb counts it among", "Stack Overflow is a site")
    for row in paper.load_csv("contamination").itertuples():
        for name in row.cards.split(", "):
            card = known[name]
            said = [*card.faults, f"{card.title}; {card.paper.rows or 0:,} rows, Table {card.paper.table}"]
            assert any(f"{name}: {text}" in row.evidence for text in said) or any(map(row.evidence.__contains__, bonds))
