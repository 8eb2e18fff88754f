"""`me5 fetch` and what it leaves: a scale that opens offline. Against the loopback hub, behind the guard."""

import json
from pathlib import Path

import fixtures_hub
import pytest
from loopback import Loopback

from me5lib import config
from me5lib.data import cards, hub


def test_a_scale_draws_its_share_by_the_papers_counts():
    dial = config.load("workshop", ["data.labelled=msmarco-passage,quora"])
    assert hub.wanted(dial, "nllb") == -(-2_000 * 4_096 * 160 // 980)
    assert hub.wanted(dial, "sbert-misc") == -(-2_000 * 4_096 * 10 // 980)
    assert hub.wanted(dial, "msmarco-passage") == 500_000  # two epochs of the paper's rows: no more than there are


FETCH = """
import typer
from me5lib.cli.app import Plain
from me5lib.cli.hub import fetch
app = typer.Typer(cls=Plain)
app.command()(fetch)
app.command()(lambda: None)
app()
"""
OPENED = """
import json
from me5lib import config
from me5lib.data import hub
from me5lib.data.mixture import Mixture
import sys
dial = config.load("workshop", sys.argv[1:])
shards = hub.open_hub(dial)
mixture = Mixture(shards, steps=5, batch=16, seed=0, temperature=1)
right = hub.labelled(dial)
print(json.dumps({"streams": sorted(shards), "batch": mixture.batch(0), "labelled": len(right),
                  "sources": sorted({each.source for each in right}), "told": all(each.instruction for each in right)}))
"""


@pytest.fixture
def workshop(tmp_path) -> list[str]:
    """Repositories of all cards, backbone and teacher; the arguments that make the scale train on all of them."""
    for card in cards.hub().values():
        for entry in card.hub:
            fixtures_hub.write_repository(tmp_path / "root", entry, 40, 2)
    dial = config.load("workshop")
    for hub_id in (dial.model.backbone, dial.finetune.teacher):
        model = tmp_path / "root" / "models" / hub_id
        model.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "setup.py"):
            (model / name).write_text("{}", encoding="utf8")
    tables = {number: ",".join(name for name, card in cards.hub().items() if card.paper.table == number)
              for number in (1, 2)}
    return [f"data.sources={tables[1]}", f"data.labelled={tables[2]}"]


def test_fetch_fills_the_cache_and_the_scale_then_opens_offline(client, tmp_path, workshop):
    sets = [word for dial in workshop for word in ("--set", dial)]
    with Loopback(tmp_path / "root") as server:
        lacking = client(OPENED, *workshop, endpoint=server.endpoint, fine=False)
        assert "lacks cc-news, mc4, nllb, " in lacking.stderr and "run `me5 fetch --for workshop`" in lacking.stderr
        assert server.requests == []
        planned = client(FETCH, "fetch", "--rows", 60, "--plan", *sets, endpoint=server.endpoint).stdout
        assert not [path for _, path, _ in server.requests if "/resolve/" in path]
        assert {line.split()[0] for line in planned.splitlines()} >= set(",".join(workshop).replace("=", ",").split(",")
                                                                        ) - {"data.sources", "data.labelled"}
        done = client(FETCH, "fetch", "--rows", 60, *sets, endpoint=server.endpoint)
        asked = [path for _, path, _ in server.requests if "/resolve/" in path]
        for hub_id in (config.load("workshop").model.backbone, config.load("workshop").finetune.teacher):
            files = {path.rpartition("/")[2] for path in asked if hub_id in path}
            assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
            assert not {"pytorch_model.bin", "setup.py"} & files
    assert len(done.stdout.splitlines()) == 9 + 14 + 2
    found = json.loads(client(OPENED, *workshop, HF_HUB_OFFLINE="1").stdout)
    assert {source for source, _ in found["streams"]} == set(workshop[0].partition("=")[2].split(","))
    assert found["sources"] == sorted(workshop[1].partition("=")[2].split(",")) and found["labelled"] >= 14 * 20
    assert found["told"]  # each with its card's instruction
    assert len(found["batch"]) == 16 and all(len(pair) == 4 for pair in found["batch"])


def test_a_pickle_is_not_fetched_unasked(client, tmp_path):
    model = tmp_path / "root" / "models" / "own" / "model"
    model.mkdir(parents=True)
    for name in ("config.json", "pytorch_model.bin"):
        (model / name).write_text("{}", encoding="utf8")
    code = "import sys; from me5lib.cli.hub import backbone; print(backbone('own/model', *map(bool, sys.argv[1:])))"
    with Loopback(tmp_path / "root", lambda n: 0 if n % 3 else 503) as server:
        done = client(code, endpoint=server.endpoint, fine=False)
        assert "own/model has no weights as safetensors, and a pickle is not fetched unasked" in done.stderr
        assert not [path for _, path, _ in server.requests if path.endswith(".bin")]
        folder = client(code, "yes", endpoint=server.endpoint).stdout.strip()
    assert {path.name for path in Path(folder).iterdir()} == {"config.json", "pytorch_model.bin"}
