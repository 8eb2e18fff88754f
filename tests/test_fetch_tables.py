"""`me5 fetch --for table4`, and then the tables without a network."""

import json

import fixtures_tables
import pytest
from loopback import Loopback

from me5lib.evaluate import runs


def commands(*lines: str) -> str:
    return json.dumps([(line.split(), "", 0) for line in lines])


def test_fetched_tables_are_evaluated_offline(client, tmp_path):
    """Made-up data of MIRACL's five small languages, BUCC and Tatoeba, under their own names."""
    root, out = tmp_path / "root", tmp_path / "out"
    fixtures_tables.write_tables(root)
    fixtures_tables.tiny(root / "models" / "own" / "e5-tiny")
    with Loopback(root) as hub:
        done = client(fixtures_tables.FARM, commands(
            "fetch --for table5 --plan",
            "fetch --for table4 --quick --model own/e5-tiny",
            "fetch --for table5",
            "fetch --for table6",
        ), endpoint=hub.endpoint, USE_TORCH="1")  # fmt: skip
        asked = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert fixtures_tables.ends(done.stdout) == [0, 0, 0, 2]
    planned, quick, *_ = done.stdout.split("ENDED")
    assert "BUCC: 1,444,025 texts, 146.0 M characters" in planned and "Tatoeba: " in planned
    assert "MIRACLRetrieval: 1,993,171 texts" in quick and "own/e5-tiny: " in quick
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert line.startswith("me5: --table 6: the tables that can be measured are 3, 4 and 5")
    assert any("e5-tiny" in path and path.endswith("model.safetensors") for path in asked)

    lines = [f"evaluate --model own/e5-tiny --table {table} --yes --out {out} --against small"
             for table in ("4 --quick", "5")]
    lines.append(f"evaluate --model own/e5-tiny --tasks STSBenchmark --yes --out {out}")
    done = client(fixtures_tables.FARM, commands(*lines), USE_TORCH="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert fixtures_tables.ends(done.stdout) == [0, 0, 2], done.stderr[-2000:]
    assert "the data of STSBenchmark (mteb/stsbenchmark-sts at " in done.stderr.strip().splitlines()[-1]
    assert "Table 4, " in done.stdout and "Table 5, " in done.stdout
    found = runs.measured(out)
    value = found.set_index(["task", "subset", "metric"])["value"]
    metrics = ("main_score", "ndcg_at_10", "recall_at_100")
    assert set(value["MIRACLRetrieval"].index) == {(code, m) for code in fixtures_tables.LANGUAGES for m in metrics}
    assert value["MIRACLRetrieval", "sw", "recall_at_100"] == pytest.approx(100)  # 80 documents
    assert len({subset for subset, _ in value["BUCC"].index}) == 4
    assert len({subset for subset, _ in value["Tatoeba"].index}) == 112
    assert (out / "paper-fp32" / "table5.md").read_text("utf8").startswith("Table 5")
    assert (out / "reproduction.md").read_text("utf8").count("me5 evaluate") == 2
