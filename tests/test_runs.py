"""Runs of mteb's tasks: what is finished stays, bad files are named, ways and revisions never mix."""

import json
import shutil

import mteb
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from filelock import FileLock
from fixtures_tables import Counting, files, material, opened, tatoeba
from mteb.mocks.mock_tasks import bitext_mining as mock_bitext
from mteb.mocks.mock_tasks import retrieval

from me5lib.cli.evaluate import tell
from me5lib.evaluate import benchmarks, runs
from me5lib.evaluate.models import FOUR_BITS
from me5lib.evaluate.protocol import Protocol
from me5lib.io import Me5Error


def test_results_lie_as_mteb_lays_them_and_are_not_made_twice(tmp_path):
    model = opened()
    paths = runs.evaluate(model, material(), tmp_path, command="me5 evaluate")
    assert paths == [tmp_path / "paper-fp32" / "results" / "own__model" / "aa11" / f"{name}.json"
                     for name in ("Tatoeba", "MIRACL")]
    loaded = mteb.ResultCache(tmp_path / "paper-fp32").load_task_result("Tatoeba", "own/model", "aa11")
    assert (loaded.task_name, loaded.mteb_version) == ("Tatoeba", mteb.__version__)
    before, texts = [path.read_bytes() for path in paths], model.encoder.texts
    assert runs.evaluate(model, material(), tmp_path) == paths
    assert [path.read_bytes() for path in paths] == before and model.encoder.texts == texts
    (run,) = json.loads((tmp_path / "paper-fp32" / "run.json").read_text("utf8"))["runs"]  # the second did nothing
    assert (run["command"], run["model"], run["revision"], run["protocol"], run["dtype"]) == (
        "me5 evaluate", "own/model", "aa11", "paper", "fp32")
    assert run["tasks"].keys() == {"Tatoeba", "MIRACL"} and run["versions"]["mteb"] == mteb.__version__
    assert run["begun"] <= run["finished"] and run["hardware"]


def test_measured_has_every_value_with_its_coordinates_and_ways_stand_apart(tmp_path):
    runs.evaluate(opened(weights=FOUR_BITS), material(), tmp_path)
    runs.evaluate(opened(), material(), tmp_path, protocol="mteb")
    runs.evaluate(opened(dtype="bf16"), material()[:1], tmp_path)
    runs.evaluate(opened(revision="bb22"), material()[:1], tmp_path)
    found = runs.measured_values(tmp_path)
    assert not found.duplicated(list(found.columns[:-1])).any()
    ways = found.groupby(["revision", "protocol", "dtype", "weights"])["task"].unique().map(sorted).to_dict()
    both = ["MIRACL", "Tatoeba"]
    assert ways == {("aa11", "paper", "fp32", FOUR_BITS): both, ("aa11", "mteb", "fp32", "full"): both,
                    ("aa11", "paper", "bf16", "full"): ["Tatoeba"], ("bb22", "paper", "fp32", "full"): ["Tatoeba"]}
    mine = found[found["weights"] == FOUR_BITS]
    assert set(mine["model"]) == {"own/model"} and set(mine["mteb_version"]) == {mteb.__version__}
    value = mine.set_index(["task", "subset", "metric"])["value"]
    assert set(value["MIRACL"].index) == {(language, metric) for language in ("sw", "te")
                                          for metric in ("main_score", "ndcg_at_10", "recall_at_100")}
    gain = 100 * (1 + 1 / np.log2(3)) / 2  # the right one first for one query, second for the other
    assert value["MIRACL", "te", "ndcg_at_10"] == pytest.approx(gain, abs=0.01)
    assert value["MIRACL", "te", "recall_at_100"] == value["Tatoeba", "de-en", "f1"] == 100
    assert {metric for _, metric in value["Tatoeba"].index} == {"main_score", "f1", "accuracy"}
    revisions = dict(zip(mine["task"], mine["dataset_revision"], strict=True))
    assert revisions == {task.metadata.name: task.metadata.revision for task in material()}


def test_the_command_shows_what_the_protocol_is_worth_once_both_were_run(tmp_path, capsys):
    model, told = opened(), []
    for protocol in ("paper", "mteb"):
        runs.evaluate(model, material()[:1], tmp_path, protocol=protocol)
        tell(model, tmp_path, protocol, tasks=["Tatoeba"])
        told.append(capsys.readouterr().out)
    assert "protocol_delta.csv" in told[1] and "protocol_delta.csv" not in told[0]
    (row,) = pd.read_csv(tmp_path / "protocol_delta.csv").to_dict("records")
    found = runs.measured_values(tmp_path).query("metric == 'main_score'").groupby("protocol")["value"].mean()
    assert row["task"] == "Tatoeba" and row["subsets"] == 2
    assert [row["paper"], row["mteb"], row["delta"]] == pytest.approx(
        [found["paper"], found["mteb"], found["mteb"] - found["paper"]])


def test_the_command_sets_tasks_by_name_beside_the_published_values(tmp_path, capsys):
    """Of the model itself, and of one whose weights were made from a published one: with the mark of its weights."""
    full, deu = "intfloat/multilingual-e5-small", tatoeba(["deu-eng"])
    small = opened("me5/small", weights=FOUR_BITS, published=full)
    for model, words in ((small, (f"me5/small against {full} (", f"weights {FOUR_BITS} (published: full)")),
                         (opened(full), (f"{full} (", "weights full,")), (opened(), ())):
        runs.evaluate(model, [deu], tmp_path)
        tell(model, tmp_path, "paper", tasks=["Tatoeba"])
        told = capsys.readouterr().out
        assert all(word in told for word in words) and ("Table 5, " in told) == bool(words)
        if words:
            expected, value, delta = map(float, told.partition("Tatoeba     f1")[2].split()[1:4])
            assert expected == pytest.approx(97.5, abs=2.5) and delta == pytest.approx(value - expected, abs=0.011)
    assert not (tmp_path / "reproduction.md").exists()  # no table was asked for


def test_a_task_with_some_of_its_subsets_is_gone_on_with(tmp_path):
    model, (_, task) = opened(), material()
    task.hf_subsets = ["sw"]
    runs.evaluate(model, [task], tmp_path)
    (first,) = runs.read_result(files(tmp_path)["MIRACL"]).scores["test"]
    runs.evaluate(model, material()[1:], tmp_path)
    rows = runs.read_result(files(tmp_path)["MIRACL"]).scores["test"]
    assert [row["hf_subset"] for row in rows] == ["sw", "te"] and str(rows[0]) == str(first)  # NaN


@pytest.mark.parametrize("damage", [
    lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1]",
    lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "scores"}),
    lambda text: text.replace('"Tatoeba"', '"SciFact"'),
])  # fmt: skip
def test_a_damaged_result_is_named_and_made_again(tmp_path, capsys, damage):
    runs.evaluate(opened(), material()[:1], tmp_path)
    path = files(tmp_path)["Tatoeba"]
    whole = runs.read_result(path).scores
    path.write_text(damage(path.read_text("utf8")), encoding="utf8")
    with pytest.raises(Me5Error, match=rf"{path} is damaged \(.*\): delete it, or run"):
        runs.measured_values(tmp_path)
    model = opened()
    runs.evaluate(model, material()[:1], tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"me5: the result file {path} is damaged (") and line.endswith("it is made again")
    assert str(runs.read_result(path).scores) == str(whole) and model.encoder.texts == 0  # its vectors were still there


def test_results_of_another_mteb_or_data_are_refused_and_replaced_on_demand(tmp_path):
    runs.evaluate(opened(), material(), tmp_path)
    path, whole = files(tmp_path)["Tatoeba"], str(runs.measured_values(tmp_path))
    for file in (*files(tmp_path).values(), tmp_path / "paper-fp32" / "run.json"):
        file.write_text(file.read_text("utf8").replace(mteb.__version__, "2.0.0"), encoding="utf8")
    model, before = opened(), path.read_bytes()
    with pytest.raises(Me5Error, match=rf"{path} is of mteb 2.0.0, not .*: choose another --out, or add --again"):
        runs.evaluate(model, material(), tmp_path)
    assert path.read_bytes() == before and model.encoder.texts == 0
    runs.evaluate(model, material(), tmp_path, again=True)
    assert str(runs.measured_values(tmp_path)) == whole
    with pytest.raises(Me5Error, match="is of data revision"):  # other texts under the same name
        runs.evaluate(opened(), material(last="other")[:1], tmp_path)


def test_files_of_two_revisions_in_one_folder_are_refused(tmp_path):
    for revision in ("aa11", "bb22"):
        runs.evaluate(opened(revision=revision), material()[:1], tmp_path)
    folder = files(tmp_path)["Tatoeba"].parent
    other = folder.with_name("bb22" if folder.name == "aa11" else "aa11")
    for path in other.iterdir():
        shutil.copy(path, folder / path.name)
    with pytest.raises(Me5Error, match=rf"{folder} holds results of revision {other.name} .*results of two revisions"):
        runs.measured_values(tmp_path)


def test_one_run_at_a_time_and_places_that_are_none(tmp_path):
    (tmp_path / "paper-fp32").mkdir()
    with FileLock(tmp_path / "paper-fp32" / ".lock"), pytest.raises(Me5Error, match="another me5 is at work in"):
        runs.evaluate(opened(), material(), tmp_path)
    with pytest.raises(Me5Error, match="no results in .*: run `me5 evaluate"):
        runs.measured_values(tmp_path / "nowhere")
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(Me5Error, match="cannot write to .*choose another folder with --out"):
        runs.evaluate(opened(), material(), tmp_path / "file")


def quora() -> mteb.AbsTask:
    """A retrieval whose documents are read without their titles."""
    task = retrieval.MockRetrievalTask()
    task.metadata = task.metadata.model_copy(update={"name": "QuoraRetrieval"})
    task.load_data()
    for split in task.dataset["default"].values():
        corpus = split["corpus"]
        titles = [f"title {i}" for i in range(len(corpus))]
        split["corpus"] = Dataset.from_dict({"id": corpus["id"][:], "text": corpus["text"][:], "title": titles})
        split["queries"] = Dataset.from_dict({"id": split["queries"]["id"][:], "text": corpus["text"][:2]})
    return task


class RowByRow(Protocol):
    """Reads what mteb's own loaders give."""

    def encode(self, inputs, **given):
        return super().encode(list(inputs), **given)


@pytest.mark.parametrize("make", [quora, mock_bitext.MockMultilingualBitextMiningTask, mock_bitext.MockBitextMiningTask,
                                  mock_bitext.MockMultilingualParallelBitextMiningTask, retrieval.MockRetrievalTask])
def test_scores_are_those_of_mteb_without_the_shortcuts(tmp_path, make, capfd):
    """Texts read as columns, bitexts as plain lists."""
    plain = RowByRow(Counting(), "own/model", revision="aa11")
    expected = mteb.evaluate(plain, make(), cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
    capfd.readouterr()
    (path,) = runs.evaluate(opened(), [make()], tmp_path)
    assert json.loads(path.read_text("utf8"))["scores"] == json.loads(json.dumps(expected.to_dict()["scores"]))
    assert capfd.readouterr().err == ""


def test_vectors_go_when_they_are_not_wanted(tmp_path):
    runs.evaluate(opened(), material()[:1], tmp_path / "kept")
    runs.evaluate(opened(), material()[:1], tmp_path / "dropped", keep=False)
    assert list((tmp_path / "kept").rglob("*.npy")) and not list((tmp_path / "dropped").rglob("*.npy"))
    pd.testing.assert_frame_equal(runs.measured_values(tmp_path / "kept"), runs.measured_values(tmp_path / "dropped"))


def test_languages_narrow_the_tasks_that_have_several():
    by_code = benchmarks.narrowed(benchmarks.table_tasks(5), ["de", "jpn-eng"])
    assert {task.metadata.name: set(task.hf_subsets) for task in by_code} == {
        "BUCC": {"de-en"}, "Tatoeba": {"deu-eng", "jpn-eng"}}
    (only,) = benchmarks.narrowed(benchmarks.table_tasks(5), ["swh"])
    assert (only.metadata.name, list(only.hf_subsets)) == ("Tatoeba", ["swh-eng"])
    whole, _ = benchmarks.narrowed(benchmarks.named_tasks(["SciFact", "Tatoeba"]), ["deu"])
    assert whole.hf_subsets == ["default"]
    with pytest.raises(Me5Error, match="has a subset for en"):  # the other side of every pair
        benchmarks.narrowed(benchmarks.table_tasks(5), ["en"])
    with pytest.raises(Me5Error, match=r"none of the tasks \(BUCC, Tatoeba\) has a subset for xx, qq"):
        benchmarks.narrowed(benchmarks.table_tasks(5), ["de", "xx", "qq"])
