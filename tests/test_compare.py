"""Expected against measured: verdicts, what is refused, what is missing, forms, the log; and the flags."""

import csv
import io
import re
from statistics import fmean

import pandas as pd
import pytest

from me5lib.evaluate import compare as comparing
from me5lib.evaluate import contamination, paper
from me5lib.evaluate.compare import compare
from me5lib.io import PACKAGE, Me5Error

SMALL = "intfloat/multilingual-e5-small"


def rows(name: str) -> list[dict]:
    """A table's rows, read without pandas."""
    with (PACKAGE / "evaluate" / "tables" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def bitext(**other: object) -> pd.DataFrame:
    """A run of mE5-small on BUCC and Tatoeba that found the card's values, in fp32; `other` replaces coordinates."""
    four = next(row for row in rows("bucc") if row["model"] == "small" and row["source"].startswith("model card"))
    values = [("BUCC", pair, float(four[pair])) for pair in ("de-en", "fr-en", "ru-en", "zh-en")]
    values += [("Tatoeba", row["pair"], float(row["small_card_f1"])) for row in rows("tatoeba_per_language")]
    run = {"model": SMALL, "revision": "abc", "protocol": "paper", "dtype": "fp32", "dataset_revision": "d",
           "mteb_version": "2.26.13", "split": "test", "metric": "f1", "weights": "full"}
    return pd.DataFrame([{**run, "task": task, "subset": pair, "value": value} for task, pair, value in values]
                        ).assign(**other)


def moved(frame: pd.DataFrame, subset: str, by: float) -> pd.DataFrame:
    """The frame with one value moved."""
    return frame.assign(value=frame["value"] + by * (frame["subset"] == subset))


def verdict(found: pd.DataFrame, subset: str) -> str:
    """The verdict of one subset's row."""
    return found.set_index("subset").loc[subset, "verdict"]


def test_a_run_that_finds_the_published_values_agrees():
    found = compare(bitext(), 5)
    assert list(found.columns) == list(comparing.COLUMNS)
    assert len(found) == 4 + 112 + 2 and set(found["verdict"]) == {"agrees"} == {comparing.overall(found)}
    means = found.set_index("subset")
    assert means.loc["mean of 4", "expected"] == 93.2
    assert means.loc["mean of 112", "measured"] == pytest.approx(
        fmean(float(row["small_card_f1"]) for row in rows("tatoeba_per_language")))
    assert found.attrs["against"] == SMALL and found.attrs["tolerance"] == 0.1


@pytest.mark.parametrize(("dtype", "by", "word"), [
    ("fp32", 0.0999, "agrees"), ("fp32", -0.1001, "differs"), ("fp32", 0.29, "differs"), ("bf16", 0.29, "agrees"),
    ("fp16", -0.299, "agrees"), ("fp16", 0.301, "differs"), ("", 0.29, "differs"),
])  # fmt: skip
def test_the_tolerance_is_the_dtypes_own(dtype, by, word):
    found = compare(moved(bitext(dtype=dtype), "fra-eng", by), 5)
    assert verdict(found, "fra-eng") == word
    assert found.set_index("subset").loc["fra-eng", "delta"] == pytest.approx(by)
    assert (found.set_index("subset")["verdict"].drop("fra-eng") == "agrees").all()


def test_nobody_widens_it_for_one_task():
    import inspect

    assert comparing.TOLERANCE == {"fp32": 0.1, "fp16": 0.3, "bf16": 0.3, "": 0.1}
    assert list(inspect.signature(compare).parameters) == ["measured", "table", "model"]
    for number in (3, 4, 5):
        whole = paper.expected(number, "small")
        whole = whole[~whole["mean"]][list(paper.COORDINATES)].assign(dtype="fp32")
        whole["value"] += 0.11
        cells = compare(whole, number)
        assert (cells[~cells["subset"].str.startswith("mean")]["verdict"] == "differs").all()


def test_missing_on_either_side_is_shown():
    frame = bitext()
    frame = frame[frame["subset"] != "deu-eng"]
    extra = frame[frame["subset"] == "fra-eng"].assign(subset="vol-eng")
    found = compare(pd.concat([frame, extra]), 5)
    assert verdict(found, "deu-eng") == "not measured" and verdict(found, "vol-eng") == "not published"
    mean = found.set_index("subset").loc["mean of 112"]
    assert mean["verdict"] == "not measured" and "111 of 112" in mean["note"]
    assert verdict(found, "mean of 4") == "agrees" and comparing.overall(found) == "incomplete"
    assert "115 not" not in comparing.summary(found) and "2 not measured, 1 not published" in comparing.summary(found)


@pytest.mark.parametrize(("name", "other"), [
    ("revision", "def"), ("protocol", "mteb"), ("dtype", "bf16"), ("mteb_version", "2.27.0"), ("weights", "4-bit"),
    ("revision", None),
])  # fmt: skip
def test_mixed_runs_are_refused_in_one_line(name, other):
    frame = bitext()
    frame.loc[frame.index[-1], name] = other
    with pytest.raises(Me5Error, match=rf"mix {name} ") as caught:
        compare(frame, 5)
    assert "\n" not in str(caught.value)


def test_two_revisions_of_one_set_are_refused_and_two_sets_have_their_own():
    frame = bitext()
    frame["dataset_revision"] = frame["task"]
    assert comparing.overall(compare(frame, 5)) == "agrees"
    frame.loc[frame.index[-1], "dataset_revision"] = "other"
    with pytest.raises(Me5Error, match="mix dataset_revision of Tatoeba Tatoeba and other"):
        compare(frame, 5)


def test_other_data_than_the_published_is_noted():
    note = compare(bitext(), 5).set_index("subset").loc["fra-eng", "note"]
    assert note == "data d, published of 90804000"
    same = bitext()
    same["dataset_revision"] = same["task"].map(paper.dataset_revisions())
    assert compare(same, 5).set_index("subset").loc["fra-eng", "note"] == ""


def test_a_value_twice_an_unknown_dtype_and_a_missing_column():
    frame = bitext()
    with pytest.raises(Me5Error, match=r"Tatoeba \(test, fra-eng, f1\) was measured twice"):
        compare(pd.concat([frame, frame[frame["subset"] == "fra-eng"]]), 5)
    with pytest.raises(Me5Error, match="no tolerance is set for dtype 'int8'"):
        compare(frame.assign(dtype="int8"), 5)
    with pytest.raises(Me5Error, match="lacks the columns protocol"):
        compare(frame.drop(columns="protocol"), 5)
    with pytest.raises(Me5Error, match="nothing of Table 4 was measured"):
        compare(frame, 4)
    with pytest.raises(Me5Error, match="Table 7 has no results"):
        compare(frame, 7)


def test_a_model_of_ones_own_is_held_against_a_named_one():
    frame = bitext(model="me5/mine")
    with pytest.raises(Me5Error, match="no figures for 'me5/mine'"):
        compare(frame, 5)
    found = compare(frame, 5, "small")
    assert comparing.overall(found) == "agrees" and f"me5/mine against {SMALL}" in comparing.summary(found)


def test_of_several_models_one_is_chosen():
    two = pd.concat([bitext(), bitext(model=paper.MODELS["mE5-base"], value=1.0)])
    with pytest.raises(Me5Error, match="mix model"):
        compare(two, 5)
    assert comparing.overall(compare(two, 5, "mE5-small")) == "agrees"
    mine = two.assign(model=two["model"].map({SMALL: "me5/a"}).fillna("me5/b"))
    with pytest.raises(Me5Error, match="mix model me5/a and me5/b"):
        compare(mine, 5, "small")


@pytest.mark.parametrize(("change", "word"), [
    ({}, "reproduced"), ({"dtype": "fp32"}, "agrees"), ({"weights": "4-bit (Q4_0)"}, "agrees"),
    ({"weights": ""}, "agrees"), ({"revision": ""}, "agrees"), ({"protocol": "mteb"}, "agrees"),
    ({"model": "me5/mine"}, "agrees"),
])  # fmt: skip
def test_reproduced_is_a_word_for_the_same_weights_in_the_same_dtype(tmp_path, change, word):
    """The cards' values were made in fp16 under the paper's protocol; whatever else agrees, only agrees."""
    found = compare(bitext(dtype="fp16").assign(**change), 5, "small")
    assert set(found["verdict"]) == {"agrees"} and comparing.overall(found) == word
    texts = (comparing.summary(found), comparing.markdown(found), comparing.latex(found),
             comparing.log_line(tmp_path, found, "x"))
    assert [("reproduced" in text) for text in texts] == [word == "reproduced"] * 4
    apart = compare(moved(bitext(dtype="fp16").assign(**change), "fra-eng", 1.0), 5, "small")
    assert comparing.overall(apart) == "differs" and "reproduced" not in comparing.markdown(apart)


def test_weights_of_four_bits_are_said_with_every_difference():
    found = compare(bitext(model="me5/q4", weights="4-bit (Q4_0)", dtype="bf16"), 5, "small")
    line = comparing.summary(found)
    assert line.startswith(f"Table 5, me5/q4 against {SMALL} (revision abc, protocol paper, dtype bf16 (published: ")
    assert "weights 4-bit (Q4_0) (published: full)" in line and "mteb 2.26.13 (published: 1.0.2)" in line
    read = pd.read_csv(io.StringIO(comparing.csv(found)))
    assert set(read["weights"]) == {"4-bit (Q4_0)"} and set(read["expected_dtype"]) == {"fp16"}
    old = compare(bitext().drop(columns="weights"), 5)  # a frame of before there was such a column
    assert "weights not recorded (published: full)" in comparing.summary(old)


def test_means_by_task_are_over_what_is_published_and_measured():
    frame = moved(bitext(), "fra-eng", 11.0)
    found = comparing.by_task(compare(frame[frame["subset"] != "deu-eng"], 5)).set_index("task")
    assert found.loc["Tatoeba", ["subsets", "delta"]].tolist() == pytest.approx([111, 11 / 111])
    published = [float(row["small_card_f1"]) for row in rows("tatoeba_per_language") if row["pair"] != "deu-eng"]
    assert found.loc["Tatoeba", "expected"] == pytest.approx(fmean(published))
    assert found.loc["BUCC", "subsets"] == 4 and set(found["metric"]) == {"f1"}


def test_a_baseline_has_averages_only():
    found = compare(bitext(model=paper.MODELS["LaBSE"], value=81.15), 5)
    assert verdict(found, "fra-eng") == "not published"
    assert verdict(found, "mean of 112") == "agrees" and verdict(found, "mean of 4") == "differs"


def test_main_scores_count_under_either_name_and_other_metrics_are_left_alone():
    frame = bitext(metric="main_score")
    found = compare(pd.concat([frame, frame.assign(metric="accuracy", value=1.0)]), 5)
    assert comparing.overall(found) == "agrees" and len(found) == 118
    both = compare(pd.concat([bitext(), frame.assign(value=1.0)]), 5)
    assert comparing.overall(both) == "agrees"


def english(**other: object) -> pd.DataFrame:
    """A run of mE5-base on English MTEB that found the card's values."""
    table = paper.expected(3, "base")
    return table[~table["mean"]][list(paper.COORDINATES)].assign(dtype="fp32", revision="abc", **other)


def test_the_average_that_the_paper_rounded_twice_agrees_and_says_so():
    mean = compare(english(), 3).iloc[-1]
    assert (mean["task"], mean["expected"], mean["verdict"]) == ("MTEB English", 59.5, "agrees")
    assert mean["measured"] == pytest.approx(59.446, abs=1e-3) and mean["note"] == "its own rows give 59.446"


def test_the_twelve_forums_make_one_task():
    frame = english()
    whole = frame[frame["task"] == "CQADupstackRetrieval"]
    forums = [whole.assign(task=task, value=whole["value"] + step, dataset_revision=task)
              for step, task in enumerate(sorted(comparing._FORUMS), -5)]
    rest = frame[frame["task"] != "CQADupstackRetrieval"]
    found = compare(pd.concat([rest, *forums]), 3).set_index("task")
    assert found.loc["CQADupstackRetrieval", "delta"] == pytest.approx(0.5) and len(found) == 57
    assert len(compare(pd.concat([frame, *forums]), 3)) == 57
    part = compare(pd.concat([rest, *forums[:5]]), 3).set_index("task")
    assert part.loc["CQADupstackRetrieval", "verdict"] == "not measured"
    assert part.loc["CQADupstackAndroidRetrieval", "verdict"] == "not published"


def test_rows_of_other_tables_are_left_alone():
    both = pd.concat([bitext(), english(model=SMALL, mteb_version="2.26.13")])
    assert len(compare(both, 5)) == 118


def test_one_verdict_in_four_forms():
    found = compare(moved(bitext(), "fra-eng", 1.0), 5)
    page = comparing.styled(found).to_html()
    assert "#FBE3D6" in page and "+1.00" in page and SMALL in page
    lines = comparing.markdown(found).splitlines()
    assert lines[0] == comparing.summary(found) and len(lines) == 2 + 2 + 118
    assert next(line for line in lines if "fra-eng" in line).split("|")[7:9] == [" +1.00 ", " differs "]
    tex = comparing.latex(found)
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 118 and all(line.count(" & ") == 8 for line in body)
    assert r"\bottomrule" in tex
    other = comparing.latex(compare(english(), 3))
    assert r"main\_score" in other and not re.search(r"(?<!\\)[_%&#$](?! )", other)
    read = pd.read_csv(io.StringIO(comparing.csv(found)))
    assert read.loc[read["subset"] == "fra-eng", "delta"].item() == pytest.approx(1.0)
    assert read["revision"].unique().tolist() == ["abc"] and read["mteb_version"].unique().tolist() == ["2.26.13"]


def test_the_log_grows_by_one_line_per_run(tmp_path):
    found, out = compare(bitext(), 5), tmp_path / "run"
    first = comparing.log_line(out, found, "me5 evaluate --table 5", hardware="1 × H200", commit="c0ffee", date="today")
    comparing.log_line(out, compare(moved(bitext(), "fra-eng", 1.0), 5), "me5 a | b")
    lines = (out / "reproduction.md").read_text(encoding="utf8").splitlines()
    assert lines[0].startswith("# ") and lines[4] == first and len(lines) == 6
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["today", "c0ffee", "`me5 evaluate --table 5`", "1 × H200", "5", SMALL, "abc", "paper", "fp32",
                     "full", "2.26.13", "agrees: 118 of 118 within 0.1"]
    assert "differs: 117 of 118" in lines[5] and r"a \| b" in lines[5]
    assert re.match(r"\| \d{4}-\d\d-\d\d \d\d:\d\d \|", lines[5]) and (" cores " in lines[5] or " × " in lines[5])


def test_a_log_of_other_columns_goes_on_with_a_table_of_its_own(tmp_path):
    """As it was before weights were recorded: no line stands under another column's name."""
    old = "# Reproduction log\n\n| date | dtype | mteb | verdict |\n| --- | --- | --- | --- |\n| a | b | c | d |\n"
    (tmp_path / "reproduction.md").write_text(old, encoding="utf8")
    for _ in range(2):
        comparing.log_line(tmp_path, compare(bitext(), 5), "x")
    text = (tmp_path / "reproduction.md").read_text(encoding="utf8")
    assert text.startswith(old) and text.count("| date |") == 2 and text.count("agrees: 118 of 118") == 2


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(Me5Error, match="cannot write"):
        comparing.log_line(tmp_path / "file" / "run", compare(bitext(), 5), "x")


def test_runs_of_others_are_compared_and_mixed_ones_refused():
    found = compare(paper.repository(5, "small"), 5)
    assert found.iloc[-1]["delta"] == pytest.approx(68.94 - 64.2, abs=0.01)
    assert "protocol mteb (published: paper)" in comparing.summary(found)
    with pytest.raises(Me5Error, match="mix mteb_version"):
        compare(paper.repository(3, "small", head=True), 3)
    with pytest.raises(Me5Error, match="no such runs"):
        paper.repository(4, "small")


def test_sets_whose_training_part_was_in_the_mixture_are_flagged():
    found = contamination.flags(
        ["MIRACLRetrieval", "MrTidyRetrieval", "NQ", "HotpotQA", "FEVER", "MSMARCO", "QuoraRetrieval", "XQuADRetrieval",
         "ClimateFEVER", "SciFact", "CQADupstackRetrieval", "STSBenchmark", "Banking77Classification", "TRECCOVID"])
    flag = found.set_index("task")["flag"].to_dict()
    assert [task for task, own in flag.items() if own == "training part"] == list(flag)[:7]
    assert flag["XQuADRetrieval"] == flag["ClimateFEVER"] == "related set"
    assert flag["SciFact"] == flag["CQADupstackRetrieval"] == "same source"
    assert flag["STSBenchmark"] == flag["Banking77Classification"] == flag["TRECCOVID"] == ""
    assert all(found["evidence"][found["flag"] != ""])
    assert [bond.card for bond in contamination.bonds("MrTidyRetrieval")] == ["mrtydi", "wikipedia"]


def test_flags_are_those_that_mteb_itself_gives_to_me5():
    mteb = pytest.importorskip("mteb.models.model_implementations.e5_models")
    tasks = set(paper.expected(3, "small")["task"]) | {"MIRACLRetrieval", "BUCC", "Tatoeba"}
    listed = mteb.ME5_TRAINING_DATA & tasks
    flagged = contamination.flags(sorted(tasks)).set_index("task")["flag"]
    assert listed == {"FEVER", "HotpotQA", "NQ", "MSMARCO", "MIRACLRetrieval"}
    assert (flagged[list(listed)] == "training part").all()
    assert set(flagged.index[flagged == "training part"]) == listed | {"QuoraRetrieval"}  # Table 2 has it, mteb not


def test_flags_join_a_comparison():
    marked = contamination.joined(compare(english(), 3))
    assert marked.set_index("task").loc["FEVER", "trained on"] == "training part"
    assert marked.attrs["table"] == 3 and "trained on" in comparing.markdown(marked)
    assert comparing.latex(marked).count("training part") == 5
