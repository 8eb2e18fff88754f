"""`me5 evaluate` as a user meets it: what a run will take, one line for every mistake; fetched, and then offline."""

import json

import fixtures_tables
import pytest
from fixtures_tables import FARM, commands, ends, tiny
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
    ("--model= --tasks SciFact", "--table and --tasks evaluate a model: name one with --model"),
    ("", "say what to evaluate the model on: --table 3, 4, 5 or all, or --tasks"),
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


def test_fetched_tables_are_evaluated_offline(client, tmp_path):
    """Made-up data of MIRACL's five small languages, BUCC and Tatoeba, under their own names."""
    root, out = tmp_path / "root", tmp_path / "out"
    fixtures_tables.write_tables(root)
    tiny(root / "models" / "own" / "e5-tiny")
    with Loopback(root) as hub:
        done = client(FARM, commands(
            "fetch --for table5 --plan",
            "fetch --for table4 --quick --model own/e5-tiny",
            "fetch --for table5",
            "fetch --for table6",
        ), endpoint=hub.endpoint, USE_TORCH="1")  # fmt: skip
        asked = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert ends(done.stdout) == [0, 0, 0, 2]
    plan, quick, *_ = done.stdout.split("ENDED")
    assert "BUCC: 1,444,025 texts, 146.0 M characters" in plan and "Tatoeba: " in plan
    assert "MIRACLRetrieval: 1,993,171 texts" in quick and "own/e5-tiny: " in quick
    assert done.stderr.strip().splitlines()[-1].startswith("me5: --table 6: the tables that can be measured are")
    assert any("e5-tiny" in path and path.endswith("model.safetensors") for path in asked)

    lines = [f"evaluate --model own/e5-tiny --table {table} --yes --out {out} --against small"
             for table in ("4 --quick", "5")]
    lines.append(f"evaluate --model own/e5-tiny --tasks STSBenchmark --yes --out {out}")
    done = client(FARM, commands(*lines), USE_TORCH="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert ends(done.stdout) == [0, 0, 2], done.stderr[-2000:]
    assert done.stderr.strip().splitlines()[-1].startswith(
        "me5: the data of STSBenchmark (mteb/stsbenchmark-sts at b0fddb56) cannot be had (")
    assert not list(out.rglob("STSBenchmark.json"))
    assert "Table 4, " in done.stdout and "Table 5, " in done.stdout
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
