"""`me5 evaluate` as a user meets it: what a run will take, one line for every mistake; fetched, offline, killed."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fixtures_tables
import mteb
import numpy as np
import pytest
from conftest import client_of
from fixtures_tables import FARM, commands, ends, files, tiny
from loopback import Loopback
from typer.testing import CliRunner

from me5lib.cli import app
from me5lib.evaluate import benchmarks, runs
from me5lib.evaluate.benchmarks import Amount, Shape


def me5(*words: str):
    """`me5 evaluate` in this process, of mE5-small where nothing else is said."""
    model = () if "--model" in words else ("--model", "intfloat/multilingual-e5-small")
    return CliRunner().invoke(app.app, ["evaluate", *model, *words])


def planned(*words: str) -> dict[str, list[str]]:
    """The words of each line of a plan, by its first one."""
    done = me5("--plan", *words)
    assert done.exit_code == 0, done.output
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


def test_a_plan_in_numbers_done_by_hand():
    lines = planned("--speed", "2", "--devices", "cpu", "--tasks", "SciFact,Banking77Classification")
    tokens = [5183 * (7771451 / 5183 / 3.8 + 4), 300 * (27104 / 300 / 3.8 + 4)]
    squares = tokens[0] ** 2 / 5183 + tokens[1] ** 2 / 300
    weights = 12 * (4 * 384**2 + 2 * 384 * 1536)
    flop = 2 * weights * sum(tokens) + 4 * 12 * 384 * squares
    texts, millions, peta, kept, hours = (float(word.replace(",", "")) for word in lines["SciFact"])
    assert (texts, millions) == (5483, round(sum(tokens) / 1e6, 1))
    assert peta == pytest.approx(flop / 1e15, abs=0.006) and kept == round(5483 * 384 * 4 / 1e9, 2)
    assert hours == pytest.approx(flop / 2e12 / 3600, abs=0.006)
    assert float(lines["together"][0].replace(",", "")) == 5483 + 3080
    assert "2 TFLOP/s a device (--speed), 1 of them" in " ".join(lines["assumed"])
    assert Shape(2, 8, 32).operations(Amount(1, 40, 10, 100)) == 2 * 10 * 2 * (4 * 64 + 2 * 8 * 32) + 4 * 2 * 8 * 100


def test_a_plan_of_everything_says_what_it_assumes(tmp_path):
    lines = planned("--table", "all", "--dtype", "fp16", "--out", str(tmp_path / "out"))
    assert len([name for name in lines if name in {t.metadata.name for t in benchmarks.table_tasks(3)}]) == 56
    assert {"MIRACLRetrieval", "BUCC", "Tatoeba", "together", "assumed"} <= lines.keys()
    assert "TFLOP/s" in " ".join(lines["assumed"]) and not (tmp_path / "out").exists()
    half, full = (float(planned("--table", "4", "--dtype", dtype)["together"][3].replace(",", ""))
                  for dtype in ("fp16", "fp32"))
    assert half == pytest.approx(full / 2, abs=0.02) and full > 100
    tatoeba, forum = benchmarks.named_tasks(["Tatoeba", "CQADupstackRetrieval"])
    tatoeba.hf_subsets = ["deu-eng"]
    assert 1900 < benchmarks.amount(tatoeba).texts <= 2000 and benchmarks.amount(forum).texts > 450_000


@pytest.mark.parametrize(("line", "words"), [
    ("--model= --tasks SciFact", "--table, --tasks and --suite evaluate a model: name one with --model"),
    ("", "say what to evaluate the model on: --table 3, 4, 5 or all, --suite lowres, or --tasks"),
    ("--tasks SciFact --protocol papr", "unknown protocol 'papr': choose one of paper, mteb"),
    ("--tasks SciFact --dtype int8", "unknown dtype 'int8': choose one of fp32, bf16, fp16"),
    ("--table 7", "--table 7: the tables that can be measured are 3, 4 and 5; or say all"),
    ("--tasks SciFacts", "mteb knows no task 'SciFacts': did you mean SciFact?"),
    ("--tasks qqqqqqq", "mteb knows no task 'qqqqqqq': "),
    ("--tasks Tatoeba --languages deu,xx", "none of the tasks (Tatoeba) has a subset for xx"),
    ("--tasks SciFact --model ./nowhere", "no model folder nowhere: check the path, or run"),
    ("--table 4", "this takes about "),
])  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_opened(line, words):
    done = me5(*line.split()) if "--model=" not in line else CliRunner().invoke(app.app, ["evaluate", *line.split()])
    assert done.exit_code == 2 and done.stderr.startswith(f"me5: {words}") and done.stderr.count("\n") == 1


CODES = "sw,bn,hi,te,th,de,fr"  # of MIRACL five, of BUCC two, of Tatoeba seven


def encoded(path: Path) -> Counter:
    """How often each (prefix, text) went through the encoder."""
    rows = map(json.loads, path.read_text("utf8").splitlines())
    return Counter((prefix, text) for prefix, texts in rows for text in texts)


@pytest.fixture(scope="module")
def done(tmp_path_factory, unplugged):
    """Made-up data of MIRACL's five small languages, BUCC and Tatoeba, under their own names: fetched, evaluated
    offline by hub id, and by folder with two kills on the way."""
    folder = tmp_path_factory.mktemp("tables")
    fixtures_tables.write_tables(folder / "root")
    model = tiny(folder / "root" / "models" / "own" / "e5-tiny")
    logs = [folder / f"{i}.log" for i in range(4)]
    whole = f"offline evaluate --model own/e5-tiny --yes --out {folder / 'out'} --against small --table"
    killed = f"offline evaluate --model {model} --yes --out {folder / 'killed'} --table 4,5 --quick --languages {CODES}"
    lines = commands("fetch --for table5 --plan", "fetch --for table4 --quick --model own/e5-tiny",
                     "fetch --for table5", "fetch --for table6",
                     (f"{whole} 4 --quick", logs[0], 0), (f"{whole} 5", logs[0], 0),
                     f"offline evaluate --model own/e5-tiny --tasks STSBenchmark --yes --out {folder / 'out'}",
                     (killed, logs[1], 4), (killed, logs[2], 16), (killed, logs[3], 0),
                     f"evaluate --model own/e5-tiny --suite lowres --languages doi --yes --out {folder / 'lowres'}"
                     " --against small")
    with Loopback(folder / "root") as hub:
        told = client_of(unplugged, folder)(FARM, lines, endpoint=hub.endpoint, USE_TORCH="1")
        asked = [path for _, path, _ in hub.requests if "/resolve/" in path]
    return SimpleNamespace(folder=folder, logs=logs, asked=asked, ends=ends(told.stdout), stderr=told.stderr,
                           stdout=told.stdout.split("ENDED"))


def test_tables_are_fetched(done):
    assert done.ends == [0, 0, 0, 2, 0, 0, 2, 9, 9, 0, 0], done.stderr[-3000:]
    plan, quick, *_ = done.stdout
    assert "BUCC: 1,444,025 texts, 146.0 M characters" in plan and "Tatoeba: " in plan
    assert "MIRACLRetrieval: 1,993,171 texts" in quick and "own/e5-tiny: " in quick
    assert "me5: --table 6: the tables that can be measured are" in done.stderr
    assert any("e5-tiny" in path and path.endswith("model.safetensors") for path in done.asked)
    for name in ("MIRACLRetrieval", "BUCC", "Tatoeba"):
        data = mteb.get_task(name).metadata.dataset
        assert any(f"/datasets/{data['path']}/resolve/" in path for path in done.asked), name


def test_fetched_tables_are_evaluated_offline(done):
    out, told = done.folder / "out", "".join(done.stdout)
    assert "me5: the data of STSBenchmark (mteb/stsbenchmark-sts at b0fddb56) cannot be had (" in done.stderr
    assert not list(out.rglob("STSBenchmark.json"))
    assert "Table 4, " in told and "Table 5, " in told
    value = runs.measured_values(out).set_index(["task", "subset", "metric"])["value"]
    metrics = ("main_score", "ndcg_at_10", "recall_at_100")
    assert set(value["MIRACLRetrieval"].index) == {(code, m) for code in fixtures_tables.LANGUAGES for m in metrics}
    assert value["MIRACLRetrieval", "sw", "recall_at_100"] == pytest.approx(100)  # 80 documents
    assert {task: len({subset for subset, _ in value[task].index}) for task in ("BUCC", "Tatoeba")} == {
        "BUCC": 4, "Tatoeba": 112}
    assert (out / "paper-fp32" / "table5.md").read_text("utf8").startswith("Table 5")
    assert (out / "reproduction.md").read_text("utf8").count("me5 evaluate") == 2
    history = json.loads((out / "paper-fp32" / "run.json").read_text("utf8"))["runs"]
    assert [list(run["tasks"]) for run in history][:2] == [["MIRACLRetrieval"], ["BUCC", "Tatoeba"]]


def test_after_two_kills_no_text_is_encoded_twice_and_the_scores_are_the_same_to_the_last_digit(done):
    straight, again = (runs.measured_values(done.folder / name) for name in ("out", "killed"))
    assert set(straight["model"]) == {"own/e5-tiny"} and set(again["model"]) == {"me5/e5-tiny"}
    assert again["revision"].nunique() == 1
    assert again.groupby("task")["subset"].nunique().to_dict() == {"BUCC": 2, "MIRACLRetrieval": 5, "Tatoeba": 7}
    about = ["task", "dataset_revision", "mteb_version", "split", "subset", "metric"]
    both = again.merge(straight, on=about, how="left", validate="one_to_one")
    np.testing.assert_array_equal(both["value_x"], both["value_y"])
    whole, *parts = map(encoded, done.logs)
    assert max(sum(parts, Counter()).values()) == 1 and set().union(*parts) <= set(whole)
    assert all(parts)
    history = json.loads((done.folder / "killed" / "paper-fp32" / "run.json").read_text("utf8"))["runs"]
    assert [(len(run["tasks"]), bool(run["finished"])) for run in history] == [(3, False), (3, False), (1, True)]


def test_a_suite_stands_beside_what_others_published_of_more_subsets(done):
    """Of all tasks of lowres only IN22Gen has Dogri, in 44 of its 506 pairs."""
    (path,) = files(done.folder / "lowres").values()
    scores = [row["main_score"] for row in json.loads(path.read_text("utf8"))["scores"]["test"]]
    (line,) = [line for line in done.stdout[-2].splitlines() if "mean of 506" in line]
    assert len(scores) == 44 and 0 < np.mean(scores) < 1
    assert line.split() == ["IN22GenBitextMining", "44", f"{100 * np.mean(scores):.2f}", "mean", "of", "506", "72.79",
                            "fd1525a9", "of", "other", "subsets"]  # fmt: skip
    assert "IN22GenBitextMining.json has 44 of 506 subsets (without test/" in done.stderr


def test_a_suite_is_planned_by_what_is_encoded_and_may_be_misspelt():
    """Of Flores's 41,412 pairs the 204 languages' 1,012 sentences are encoded once; six in a language are alike."""
    lines = planned("--suite", "lowres")
    assert set(benchmarks.SUITES["lowres"]) <= lines.keys()
    assert float(lines["FloresBitextMining"][0].replace(",", "")) == pytest.approx(204 * 1012, rel=0.001)
    assert float(lines["IN22GenBitextMining"][0].replace(",", "")) == pytest.approx(23 * 1024, rel=0.01)
    done = me5("--suite", "lowress")
    assert done.exit_code == 2 and "me5: unknown suite 'lowress': choose one of eng-mini, lowres" in done.stderr


def test_real_tasks(shared, client, tmp_path, monkeypatch):
    """STSBenchmark and SciFact, whole, and three pairs of Tatoeba, by mteb's revisions of their data."""
    monkeypatch.syspath_prepend(shared / "hub")
    import localhub

    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "datasets").symlink_to(shared / "hub" / "root" / "datasets")
    tiny(tmp_path / "root" / "models" / "own" / "e5-tiny")
    server, endpoint = localhub.serve(tmp_path / "root", log=tmp_path / "asked")
    line = (f"evaluate --tasks STSBenchmark,SciFact,Tatoeba --languages deu,fra,swh --yes --model own/e5-tiny "
            f"--revision {'c' * 40} --out {tmp_path / 'out'}")
    try:
        told = client(FARM, commands((line, tmp_path / "log", 0)), endpoint=endpoint, USE_TORCH="1")
    finally:
        server.shutdown()
    assert ends(told.stdout) == [0] and "superseded" not in told.stderr
    assert "Tatoeba.json has 3 of 112 subsets (without test/" in told.stderr and told.stderr.count("result file") == 1
    asked = (tmp_path / "asked").read_text("utf8")
    for name in ("STSBenchmark", "SciFact", "Tatoeba"):
        data = mteb.get_task(name).metadata.dataset
        assert f"/datasets/{data['path']}/resolve/{data['revision']}/" in asked, name
    assert f"own/e5-tiny/resolve/{'c' * 40}/model.safetensors" in asked
    found = runs.measured_values(tmp_path / "out")
    assert found.groupby("task")["subset"].nunique().to_dict() == {"STSBenchmark": 1, "SciFact": 1, "Tatoeba": 3}
    assert set(found["revision"]) == {"c" * 40}
    assert sum(n for (prefix, _), n in encoded(tmp_path / "log").items() if prefix == "passage: ") == 5183
