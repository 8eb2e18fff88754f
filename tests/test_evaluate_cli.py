"""`me5 evaluate` as a user meets it: what a run will take, and one line for every mistake."""

import json

import fixtures_tables
import pytest
from conftest import me5
from loopback import Loopback, missing
from test_cli import one_line

from me5lib.cli import evaluate
from me5lib.cli.evaluate import Asked, Shape
from me5lib.evaluate import benchmarks
from me5lib.io import Me5Error


def asked(**changes) -> Asked:
    return Asked(model="intfloat/multilingual-e5-small", table="", tasks="STSBenchmark")._replace(**changes)


def planned(capsys, **changes) -> dict[str, list[str]]:
    """The words of each line of a plan, by its first one."""
    evaluate.tables(asked(plan=True, **changes))
    return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}


def test_a_plan_in_numbers_done_by_hand(capsys):
    lines = planned(capsys, speed=2.0, devices="cpu", tasks="SciFact,Banking77Classification")
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


def test_a_plan_of_everything_says_what_it_assumes(capsys, tmp_path):
    lines = planned(capsys, tasks="", table="all", dtype="fp16", out=str(tmp_path / "out"))
    assert len([name for name in lines if name in {t.metadata.name for t in benchmarks.table_tasks(3)}]) == 56
    assert {"MIRACLRetrieval", "BUCC", "Tatoeba", "together", "assumed"} <= lines.keys()
    assert "TFLOP/s" in " ".join(lines["assumed"]) and not (tmp_path / "out").exists()
    half, full = (float(planned(capsys, tasks="", table="4", dtype=dtype)["together"][3].replace(",", ""))
                  for dtype in ("fp16", "fp32"))
    assert half == pytest.approx(full / 2, abs=0.02) and full > 100


def test_the_cost_follows_the_shape():
    amount = benchmarks.Amount(texts=1, characters=40, tokens=10, squares=100)
    assert Shape(2, 8, 32).operations(amount) == 2 * 10 * 2 * (4 * 64 + 2 * 8 * 32) + 4 * 2 * 8 * 100


@pytest.mark.parametrize(("changes", "words"), [
    ({"model": ""}, "--table and --tasks evaluate a model: name one with --model"),
    ({"tasks": ""}, "say what to evaluate the model on: --table 3, 4, 5 or all, or --tasks"),
    ({"protocol": "papr"}, "unknown protocol 'papr': choose one of paper, mteb"),
    ({"dtype": "int8"}, "unknown dtype 'int8': choose one of fp32, bf16, fp16"),
    ({"table": "7"}, "--table 7: the tables that can be measured are 3, 4 and 5; or say all"),
    ({"tasks": "SciFacts"}, "mteb knows no task 'SciFacts': did you mean SciFact?"),
    ({"tasks": "Tatoeba", "languages": "deu,xx"}, "none of the tasks (Tatoeba) has a subset for xx"),
    ({"model": "./nowhere"}, "no model folder nowhere: check the path, run"),
    ({"table": "4"}, "this takes about "),
])  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_opened(changes, words):
    with pytest.raises(Me5Error) as raised:
        evaluate.tables(asked(**changes))
    assert str(raised.value).startswith(words) and "\n" not in str(raised.value)


def test_mistakes_through_the_command(tmp_path):
    one_line(me5("evaluate", "--tasks", "SciFact"), "name one with --model")
    help = me5("evaluate", "--help").stdout
    assert all(word in help for word in ("--model", "--table", "--protocol", "--quick", "--plan", "--scale"))


class Strict(Loopback):
    """A hub that does not know the revision `nonesuch`."""

    def answer(self, target, body, span):
        return missing("RevisionNotFound") if "nonesuch" in target else super().answer(target, body, span)


def test_wrong_ids_revisions_and_data_of_a_hub_are_one_line(client, tmp_path):
    fixtures_tables.tiny(tmp_path / "root" / "models" / "own" / "e5-tiny")
    lines = [f"evaluate --tasks STSBenchmark --yes --out {tmp_path / 'out'} --model {rest}"
             for rest in ("own/nothing", "own/e5-tiny --revision nonesuch", "own/e5-tiny")]
    given = json.dumps([(line.split(), "", 0) for line in lines])
    with Strict(tmp_path / "root") as hub:
        done = client(fixtures_tables.FARM, given, endpoint=hub.endpoint, USE_TORCH="1")
    assert fixtures_tables.ends(done.stdout) == [2, 2, 2]
    said = [line for line in done.stderr.splitlines() if line.startswith("me5: ")]
    assert len(said) == 3
    assert said[0].startswith("me5: own/nothing is neither a folder here nor a model on the hub: check the id")
    assert said[1].startswith("me5: own/e5-tiny has no revision nonesuch on the hub")
    assert said[2].startswith("me5: the data of STSBenchmark (mteb/stsbenchmark-sts at b0fddb56) cannot be had (")
    assert not list((tmp_path / "out").rglob("STSBenchmark.json"))
