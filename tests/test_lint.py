"""The lint of result files: real ones of every kind pass, each fault that is planted in one is named or refused."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import mteb
import numpy as np
import pytest
from datasets import Dataset
from fixtures_tables import Counting, files, material, opened, tatoeba
from mteb.mocks.mock_tasks import retrieval
from packaging.version import Version

from me5lib.cli import model
from me5lib.evaluate import lint, runs
from me5lib.io import Me5Error

KINDS = ("bitext_mining.MockMultilingualBitextMiningTask", "classification.MockClassificationTask",
         "classification.MockMultilabelClassification", "sts.MockSTSTask", "clustering.MockClusteringTask",
         "clustering.MockMultilingualClusteringFastTask", "pair_classification.MockPairClassificationTask",
         "reranking.MockRerankingTask", "reranking.MockInstructionReranking", "retrieval.MockRetrievalTask",
         "retrieval.MockInstructionRetrieval", "regression.MockRegressionTask",
         "summarization.MockSummarizationTask", "reranking.MockAggregatedTask")


class Constant(Counting):
    """The same vector for every text: whatever is ranked is a tie."""

    def encode(self, texts, prefix="", *, normalise=True):
        return np.ones((len(texts), 8), np.float32) / np.sqrt(8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Results of a bitext (two subsets) and a retrieval (two subsets), and run.json beside them."""
    out = tmp_path_factory.mktemp("made")
    runs.evaluate(opened(), [*material(), retrieval.MockRetrievalTask()], out)
    return out


def planted(made: Path, folder: Path, task: str, change) -> Path:
    """A copy of the results with `change(whole file, its first row)` done to one of them."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    path = files(folder)[task]
    content = json.loads(path.read_text("utf8"))
    change(content, next(iter(content["scores"].values()))[0])
    path.write_text(json.dumps(content), encoding="utf8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_mteb_writes_of_each_kind_of_task_is_possible(tmp_path, kind):
    room, _, name = kind.partition(".")
    task = getattr(import_module(f"mteb.mocks.mock_tasks.{room}"), name)()
    (path,) = runs.evaluate(opened(), [task], tmp_path)
    assert list(lint.impossible(runs.read_result(path))) == []


def test_equal_scores_are_ranked_alike_in_both_metrics_of_the_mteb_in_use(tmp_path):
    """Why a difference is refused: 40 queries of nothing but ties, by mteb itself."""
    task = retrieval.MockRetrievalTask()
    task.load_data()
    for split in task.dataset["default"].values():
        order = np.random.default_rng(0).permutation(40)
        split["corpus"] = Dataset.from_dict({"id": [f"d{i}" for i in order], "text": [f"text {i}" for i in order],
                                             "title": [""] * 40})
        split["queries"] = Dataset.from_dict({"id": [f"q{i}" for i in range(40)], "text": ["?"] * 40})
        split["relevant_docs"] = {f"q{i}": {f"d{i % 7 + 33 * (i % 2)}": 1} for i in range(40)}
    (path,) = runs.evaluate(opened(encoder=Constant()), [task], tmp_path)
    row = runs.read_result(path).scores["test"][0]
    assert row["mrr_at_1"] == row["precision_at_1"] and 0 < row["mrr_at_10"] < 1
    assert Version(mteb.__version__) >= Version(lint.ONE_ORDER) and not list(lint.impossible(runs.read_result(path)))


FAULTS = [
    (lambda f, row: row.update(mrr_at_1=0.859, precision_at_1=0.179), "has mrr_at_1 0.859 and precision_at_1 0.179"),
    (lambda f, row: row.update(mrr_at_1=row["precision_at_1"] - 0.02), "has mrr_at_1 .* and precision_at_1 "),
    (lambda f, row: row.update(ndcg_at_10=65.9, main_score=65.9), "has ndcg_at_10 65.9, outside of 0 to 1"),
    (lambda f, row: row.update(map_at_5=-0.01), "has map_at_5 -0.01, outside of 0 to 1"),
    (lambda f, row: row.update(main_score=float("nan")), "has main_score nan, which is no number"),
    (lambda f, row: row.update(main_score=None), "has main_score None, which is no number"),
    (lambda f, row: row.update(ndcg_at_3="0.5"), "has ndcg_at_3 0.5, which is no number"),
    (lambda f, row: row.update(main_score=0.4321), "has main_score 0.4321, which is none of its metrics"),
    (lambda f, row: row.update(recall_at_100=0.1, recall_at_20=0.3), "has recall_at_100 0.1, below recall_at_20 0.3"),
    (lambda f, row: f.update(scores={"test": []}), "has no scores"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_impossible_metrics_are_refused_by_name(made, tmp_path, change, words):
    path = planted(made, tmp_path, "MockRetrievalTask", change)
    with pytest.raises(Me5Error, match=rf"result file {path} .*{words}.*: delete it, or run .* --again") as raised:
        runs.measured_values(tmp_path)
    assert "\n" not in str(raised.value) and (words == "has no scores" or "(val, default)" in str(raised.value))


def test_a_faulty_file_comes_on_no_card_and_is_made_again_on_demand(made, tmp_path):
    change, words = FAULTS[0]
    path, task = planted(made, tmp_path, "MockRetrievalTask", change), [retrieval.MockRetrievalTask()]
    with pytest.raises(Me5Error, match=rf"result file {path} .*{words}"):
        model._result_rows(tmp_path, opened())
    before = path.read_bytes()
    with pytest.raises(Me5Error, match=rf"result file {path} .*{words}.*add --again to replace it"):
        runs.evaluate(opened(), task, tmp_path)
    assert path.read_bytes() == before
    runs.evaluate(opened(), task, tmp_path, again=True)
    assert str(runs.read_result(path).scores) == str(runs.read_result(files(made)["MockRetrievalTask"]).scores)  # NaN


@pytest.mark.parametrize(("version", "change", "said"), [
    ("", {"nauc_mrr_at_1_max": -3.2, "nauc_ndcg_at_10_std": float("nan")}, ""),
    ("", {"cosine_spearman": -0.3, "v_measure": 0.0, "cosine_accuracy_threshold": 17.5, "ap": float("nan")}, ""),
    ("2.18.18", 0.02, "named"), ("1.0.2", 0.04, "named"), ("2.18.18", 0.05, "refused"), ("2.18.19", 0.02, "refused"),
    ("2.18.18", 0.005, ""), ("a fork", 0.02, "named"),
])  # fmt: skip
def test_odd_but_possible_values_pass_and_ties_excuse_a_little_in_files_of_earlier_versions(
        made, tmp_path, version, change, said):  # fmt: skip
    def plant(content, row):
        content["mteb_version"] = version or content["mteb_version"]
        row.update(change if isinstance(change, dict) else {"mrr_at_1": row["precision_at_1"] - change})

    faults = list(lint.impossible(runs.read_result(planted(made, tmp_path, "MockRetrievalTask", plant))))
    assert [refused for _, refused in faults] == {"named": [False], "refused": [True], "": []}[said]
    assert ["(ties?)" in what for what, _ in faults] == [not refused for _, refused in faults]


@pytest.mark.parametrize(("name", "value", "words"), [
    ("dtype", "bf16", "is of dtype fp32, not bf16 as run.json says"),
    ("protocol", "mteb", "is of protocol paper, not mteb as run.json says"),
    ("versions", {"mteb": "2.18.1"}, rf"is of mteb {mteb.__version__}, not 2.18.1 as run.json says"),
    ("tasks", {"Tatoeba": "0" * 40}, f"is of data revision .*, not {'0' * 40} as run.json says"),
])  # fmt: skip
def test_a_file_that_its_own_run_contradicts_is_refused(made, tmp_path, name, value, words):
    path = planted(made, tmp_path, "Tatoeba", lambda f, row: None)
    record = tmp_path / "paper-fp32" / "run.json"
    content = json.loads(record.read_text("utf8"))
    content["runs"][-1][name] = value
    record.write_text(json.dumps(content), encoding="utf8")
    with pytest.raises(Me5Error, match=rf"{path.parent}/\w+.json {words}"):
        runs.measured_values(tmp_path)
    with pytest.raises(Me5Error, match=rf"{path} {words}.*add --again to replace it"):
        runs.evaluate(opened(), material()[:1], tmp_path)


def test_a_file_from_elsewhere_is_named_and_its_weights_are_not_known(made, tmp_path, capsys):
    """Copied from another revision's folder: nothing in mteb's file says whose it is."""
    path = planted(made, tmp_path, "Tatoeba", lambda f, row: None)
    target = path.parent.with_name("bb22") / path.name
    target.parent.mkdir()
    path.rename(target)
    weights = runs.measured_values(tmp_path).groupby("task")["weights"].agg(set).to_dict()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no run" in line]
    assert line.startswith(f"me5: the result file {target} has no run recorded in run.json")
    assert weights == {"Tatoeba": {""}, "MIRACL": {"full"}, "MockRetrievalTask": {"full"}}


def test_missing_subsets_are_refused_where_the_run_had_them_and_named_where_it_was_narrowed(tmp_path, capsys):
    (path,) = runs.evaluate(opened(), [tatoeba(["deu-eng", "fra-eng", "swh-eng"])], tmp_path)
    assert len(runs.measured_values(tmp_path)) == 9  # three subsets, three metrics
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"me5: the result file {path} has 3 of 112 subsets (without test/afr-eng, ")
    assert line.endswith(": its run was narrowed")
    content = json.loads(path.read_text("utf8"))
    content["scores"]["test"].pop()
    path.write_text(json.dumps(content), encoding="utf8")
    with pytest.raises(Me5Error, match=r"has 2 of 112 subsets \(without .*\), of which its run made 3: delete it"):
        runs.measured_values(tmp_path)
    record = tmp_path / "paper-fp32" / "run.json"
    record.write_text(json.dumps({"runs": [{**json.loads(record.read_text("utf8"))["runs"][0], "finished": ""}]}))
    runs.measured_values(tmp_path)
    assert capsys.readouterr().err.strip().endswith(": its run was not finished")
