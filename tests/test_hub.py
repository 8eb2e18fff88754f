"""Drawing from the hub: the real clients against the project's own loopback hub, behind a guard of the network."""

import gzip
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fixtures_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import Loopback

from me5lib.data import cards, shards, streaming

TOY = """---
name: toy
title: Toy
role: train
hub:
  - repository: own/tables
    revision: {revision}
    files: data/{{language}}-*.parquet
    languages: {{de: deu, en: eng, sw: swh}}
    columns: {{id: int64, title: string, body: 'string?'}}
    read_from: unverified
    builder: toy
  - repository: own/lines
    files: '**/*.jsonl.gz'
    columns: {{id: int64, title: string, body: 'string?', lang: string}}
    read_from: unverified
    builder: toy
paper: {{table: 1, rows: 1000, pair: title and body}}
homepage: https://example.org/
licence: none
translated_by: nobody
languages: [de, en, sw]
pair: title → body
query_prefix: 'query: '
passage_prefix: 'passage: '
faults: []
{more}---
"""
WORK = """
import json, sys, time
from pathlib import Path
from me5lib.data import cards, hub, streaming
from me5lib.data.origin import Drop
from me5lib.pairs import Pair

def toy(row, origin):
    if row["body"] is None:
        yield Drop("no body")
    else:
        yield Pair(row["title"], row["body"], origin.card, origin.language or row["lang"])

BUILDERS = {"toy": toy}
time.sleep = lambda seconds, sleep=time.sleep: sleep(seconds / 50)  # the clients wait seconds before they try again
CARD = cards.parse("toy", Path(sys.argv[1]).read_text(encoding="utf8"))
given = sys.argv[2:]
"""
DRAW = WORK + "print(hub.draw(CARD, int(given[0]), builders=BUILDERS, progress=False))"


def toy_rows(first: int, n: int, **more: str) -> list[dict]:
    """Rows with running numbers; every seventh without a body."""
    return [{"id": i, "title": f"title {i}", "body": None if i % 7 == 0 else f"body {i}", **more}
            for i in range(first, first + n)]


def write_toy(root: Path) -> dict[str, list[dict]]:
    """Two repositories, three files of 40 rows a language; what is in each file, by its path."""
    number, found = itertools.count(0, 40), {}
    for code in ("deu", "eng", "swh"):
        for i in range(3):
            found[f"own/tables/data/{code}-{i}.parquet"] = toy_rows(next(number), 40, language=code)
    for i in range(3):
        found[f"own/lines/deep/{i}.jsonl.gz"] = toy_rows(next(number), 40, lang=("xx?", "de", "en")[i])
    for path, rows in found.items():
        file = root / "datasets" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=16)
        else:
            file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return found


def card_file(folder: Path, revision: str = "null", more: str = "") -> Path:
    path = folder / "toy.md"
    path.write_text(TOY.format(revision=revision, more=more), encoding="utf8")
    return path


def drawn(folder: str | Path) -> dict[str, list[tuple]]:
    """Language → rows of a drawing's shards, each hashed against its manifest."""
    parts = sorted(Path(folder).glob(f"*/{shards.MANIFEST}"))
    opened = {part.parent.name: shards.open_shard(part.parent) for part in parts}
    for shard in opened.values():
        assert {name: shards.sha256(shard.folder / name) for name in shard.manifest.sha256} == shard.manifest.sha256
    return {language: [dict(zip(shard.columns, row, strict=True)) for row in
                       sorted(shard.take(np.arange(shard.rows)), key=str)] for language, shard in opened.items()}


def hashes(folder: str | Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): shards.sha256(file) for file in sorted(Path(folder).rglob("*"))
            if file.is_file()}


def test_the_guard_refuses_all_but_the_loopback(client):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    assert "the network is unplugged: 192.0.2.1" in client(code, fine=False).stderr


def test_a_drawing_survives_503s_and_is_whole_without_the_hub(client, tmp_path):
    content = write_toy(tmp_path / "root")
    card = card_file(tmp_path)
    with Loopback(tmp_path / "root", lambda n: 0 if n % 5 else 503, page=2) as server:
        folder = client(DRAW, card, 2000, endpoint=server.endpoint).stdout.strip()
    statuses = Counter(status for _, path, status in server.requests if "/resolve/" in path)
    assert statuses[503] >= 3 and set(statuses) <= {200, 206, 503}
    about = json.loads((Path(folder) / "manifest.json").read_text("utf8"))
    expected: dict[str, list] = {"de": [], "en": [], "sw": []}
    for rows in content.values():
        code = rows[0].get("lang") or {"deu": "de", "eng": "en", "swh": "sw"}[rows[0]["language"]]
        for row in rows:
            if code in expected and row["body"] is not None:
                expected[code].append({"query": row["title"], "passage": row["body"]})
    found = drawn(folder)
    assert found == {code: sorted(rows, key=str) for code, rows in expected.items()}
    assert about["rows"] == {code: len(rows) for code, rows in expected.items()} and about["read"] == 480
    assert sum(about["dropped"][code]["no body"] for code in ("de", "en", "sw")) + about["dropped"][""]["no body"] == 69
    assert about["dropped"][""]["unknown language code"] == sum(
        row["body"] is not None for row in content["own/lines/deep/0.jsonl.gz"])
    before = hashes(folder)
    assert client(DRAW, card, 2000).stdout.strip() == folder  # the hub is gone
    assert client(DRAW, card, 2000, HF_HUB_OFFLINE="1").stdout.strip() == folder
    assert hashes(folder) == before


def test_a_hub_that_stays_busy_is_asked_again_where_the_reading_broke(client, tmp_path):
    write_toy(tmp_path / "root")
    code = WORK + """
commits, _, found = streaming.files(CARD, "sw")
_, _, files = found[0]
print(json.dumps([row["id"] for row in streaming.read(CARD.hub[0], commits[0], sorted(files))]))
"""
    outages = {  # the client gives up after six requests
        "busy": lambda n: 503 if 4 <= n < 12 else 0, "silent": lambda n: -1 if 4 <= n < 12 else 0,
        "busy for good": lambda n: 503 if n >= 4 else 0, "closed": lambda n: 403 if n >= 4 else 0,
    }
    found = {}
    for name, fails in outages.items():
        with Loopback(tmp_path / "root", fails) as server:
            found[name] = client(code, card_file(tmp_path), endpoint=server.endpoint, fine=False)
        failed = sum(status in (503, 403, -1) for _, _, status in server.requests)
        assert failed == {"busy for good": 18, "closed": 1}.get(name, 8)
    for name in ("busy", "silent"):
        assert json.loads(found[name].stdout) == list(range(240, 360)), found[name].stderr
    assert "Unreachable: the hub cannot be reached (" in found["busy for good"].stderr
    assert "own/tables: the hub refuses data/swh-0.parquet, data/swh-1.parquet (403)" in found["closed"].stderr


def test_rows_are_spread_over_languages_and_files(client, tmp_path):
    write_toy(tmp_path / "root")
    with Loopback(tmp_path / "root") as server:
        folder = client(DRAW, card_file(tmp_path), 48, endpoint=server.endpoint).stdout.strip()
    found = drawn(folder)
    assert set(found) == {"de", "en", "sw"} and sum(map(len, found.values())) == 48  # later files make up for a bad one
    assert min(map(len, found.values())) >= 8
    asked = {path.rpartition("/")[2] for _, path, _ in server.requests if "/resolve/" in path}
    assert asked == {f"{code}-{i}.parquet" for code in ("deu", "eng", "swh") for i in range(3)} | {
        f"{i}.jsonl.gz" for i in range(3)}
    starts = {int(row["query"].split()[1]) // 40 for rows in found.values() for row in rows}
    assert starts == set(range(12)) - {9}  # of every file but the one whose language is none


def test_a_plan_of_many_files_reads_evenly_spaced_ones(monkeypatch, tmp_path):
    card = cards.parse("toy", card_file(tmp_path).read_text("utf8"))
    sizes = {"de": 1_000_000, "en": 4_000_000, "sw": 10_000}
    listing = {f"data/{theirs}-{i:04d}.parquet": sizes[code] for code, theirs in card.hub[0].languages.items()
               for i in range(500)}
    listings = {"own/tables": listing, "own/lines": {"a/b/x.jsonl.gz": 500_000_000}}
    monkeypatch.setattr(streaming, "_listing", lambda card, entry: ("c" * 40, listings[entry.repository]))
    found = streaming.plan(card, 1_000_000)
    rows = {(stream.entry, stream.language): stream.rows for stream in found.streams}
    assert sum(rows.values()) == 1_000_000
    assert rows[0, "en"] / rows[0, "de"] == pytest.approx(2, rel=1e-4)  # square roots of bytes
    assert rows[0, "en"] / rows[0, "sw"] == pytest.approx(20, rel=1e-4)
    for stream in found.streams:
        assert sum(wanted for _, _, wanted in stream.files) == stream.rows
    english = next(stream for stream in found.streams if stream.language == "en")
    places = [int(path[-12:-8]) for path, _, wanted in english.files if wanted]
    assert len(places) == -(-english.rows // 50_000) and max(places) >= 400
    assert len(set(b - a for a, b in itertools.pairwise(places))) <= 2
    assert len(english.files) == 5 * len(places) and len({path for path, _, _ in english.files}) == len(english.files)


def test_a_killed_drawing_goes_on_and_gives_the_same_shards(client, tmp_path):
    write_toy(tmp_path / "root")
    card = card_file(tmp_path)
    with Loopback(tmp_path / "root") as server:
        whole = client(DRAW, card, 300, endpoint=server.endpoint, ME5_CACHE=str(tmp_path / "undisturbed")).stdout
        for done in (2, 7):
            before = len(server.requests)
            kill_when(client.environment(server.endpoint), card, tmp_path / "me5", done)
            drawn_again = [path for _, path, _ in server.requests[before:] if "deu-0.parquet" in path]
            assert bool(drawn_again) == (done == 2)
            (tmp_path / "root" / "datasets" / "own" / "tables" / f"{done}.md").write_text("the branch moves on")
        folder = client(DRAW, card, 300, endpoint=server.endpoint).stdout.strip()
    assert hashes(folder) == hashes(whole.strip()) and len(hashes(folder)) == 3 * 2 + 2
    assert [path.name for path in Path(folder).parent.iterdir() if path.suffix == ".part"] == []
    assert len({path.split("/")[5] for _, path, _ in server.requests if "own/tables/resolve" in path}) == 1  # commits


def kill_when(environment: dict, card: Path, cache: Path, done: int) -> None:
    """Draw, and SIGKILL the process when `done` files are finished; it must not have been done with all."""
    process = subprocess.Popen([sys.executable, "-c", DRAW, str(card), "300"], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(cache.glob("hub/toy/*.part/parts/*.json"))) < done:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(cache.glob(f"hub/toy/*/{shards.MANIFEST}"))


def test_bad_files_and_rows_are_named_and_counted_and_the_rest_is_drawn(client, tmp_path):
    write_toy(tmp_path / "root")
    tables = tmp_path / "root" / "datasets" / "own" / "tables" / "data"
    lines = tmp_path / "root" / "datasets" / "own" / "lines" / "deep"
    (tables / "deu-0.parquet").write_bytes((tables / "deu-0.parquet").read_bytes()[:-100])
    pq.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), tables / "deu-1.parquet")
    pq.write_table(pa.table({"id": [1, 2], "title": [3, 4], "body": ["a", None]}), tables / "eng-0.parquet")
    pq.write_table(pa.table({"id": [None, 2], "title": ["t", None], "body": ["a", "b"]},
                            schema=pa.schema([("id", "int64"), ("title", "string"), ("body", "string")])),
                   tables / "eng-1.parquet")
    dates = [{"id": i, "title": f"202{i}-01-01", "body": ("b", None)[i], "lang": "de"} for i in (0, 1)]
    (lines / "0.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in dates).encode()))
    again = toy_rows(200, 10, lang="en")  # that eng-2.parquet has too
    (lines / "2.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in again).encode()))
    (lines / "1.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "ti')[:-4])
    with Loopback(tmp_path / "root") as server:
        folder = client(DRAW, card_file(tmp_path, more="filters: {length: {query_most: 9}, exact: {}}\n"), 400,
                        endpoint=server.endpoint).stdout.strip()
    about = json.loads((Path(folder) / "manifest.json").read_text("utf8"))
    assert [fault.split(": after")[0] for fault in about["faults"]] == [
        "card toy: data/deu-0.parquet", "card toy: deep/1.jsonl.gz"]
    assert about["dropped"]["de"]["file that cannot be read on"] == 1
    assert about["dropped"]["de"]["missing column title"] == 2
    assert about["dropped"]["en"] == {"title: not string but int": 2, "id: null": 1, "title: null": 1,
                                      "exact duplicate": sum(i % 7 > 0 for i in range(200, 210)),
                                      "no body": about["dropped"]["en"]["no body"]}
    assert about["rows"]["de"] == sum(i % 7 > 0 for i in range(80, 120)) and set(about["rows"]) == {"de", "en", "sw"}
    assert about["dropped"]["de"]["query over 9 characters"] == 1  # a title that looks like a date stays a text


@pytest.mark.parametrize(("mend", "says"), [
    ({"HF_HUB_OFFLINE": "1"}, "the hub cannot be reached (HF_HUB_OFFLINE is set): run `me5 fetch --for"),
    ({}, "the hub cannot be reached ("),
], ids=["offline", "no network"])
def test_a_hub_out_of_reach_is_one_line(client, tmp_path, mend, says):
    done = client(DRAW, card_file(tmp_path), 10, fine=False, **mend)
    assert done.returncode and f"\nme5lib.data.streaming.Unreachable: {says}" in done.stderr
    assert "run `me5 fetch --for workshop` where there is a network" in done.stderr


LOAD_ALL = """
import json, sys
from collections import Counter
import fixtures_hub
from me5lib.data import cards, streaming

def counted(rows):
    return Counter(json.dumps(row, sort_keys=True) for row in rows)

for name, card in cards.hub().items():
    commits, sizes, found = streaming.files(card)
    for number, entry in enumerate(card.hub):
        paths = sorted({path for own, _, files in found if own == number for path in files})
        streamed, whole = (list(streaming.read(entry, commits[number], paths, streaming=s)) for s in (True, False))
        wrote = [row for seed in range(len(paths)) for row in fixtures_hub.rows(entry, 12, seed)]
        assert streamed == whole, f"{name} {number}: streamed and not streamed differ"
        assert counted(streamed) == counted(wrote), f"{name} {number}: {streamed[:1]} {wrote[:1]}"
        print(name, number, len(streamed))
"""


def test_every_card_of_the_hub_is_loaded_streamed_and_not(client, tmp_path):
    for card in cards.hub().values():
        for entry in card.hub:
            fixtures_hub.write_repository(tmp_path / "root", entry, 12, 2)
    with Loopback(tmp_path / "root") as server:
        done = client("import sys; sys.path.insert(0, sys.argv[1])\n" + LOAD_ALL, Path(__file__).parent,
                      endpoint=server.endpoint)
    loaded = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in loaded] == [name for name, card in cards.hub().items() for _ in card.hub]
    assert all(int(rows) >= 12 for _, _, rows in loaded) and len(cards.hub()) == 25


def test_a_card_that_names_what_is_not_there_stops_before_any_work(client, tmp_path):
    for more, says in (("filters: {lenght: {most: 9}}\n", "filters.lenght: no such filter"),
                       ("filters: {length: {more: 9}}\n", "filters.length.more: no such option")):
        with Loopback(tmp_path) as server:
            done = client(DRAW, card_file(tmp_path, more=more), 10, fine=False, endpoint=server.endpoint)
        assert says in done.stderr.splitlines()[-1] and server.requests == []
    with Loopback(tmp_path) as server:
        done = client(DRAW, card_file(tmp_path), 10, fine=False, endpoint=server.endpoint)
    assert "card toy: the hub has no own/tables at that revision for you" in done.stderr.splitlines()[-1]


def test_real_sets_are_loaded_by_name_from_the_loopback(client, shared):
    code = ("from datasets import load_dataset; data = load_dataset('mteb/stsbenchmark-sts', split='test'); "
            "print(len(data), data.column_names)")
    with Loopback(shared / "hub" / "root") as server:
        found = client(code, endpoint=server.endpoint).stdout.splitlines()[-1]
    table = pq.read_table(shared / "hub" / "root" / "datasets/mteb/stsbenchmark-sts/data/test.parquet")
    assert found == f"{table.num_rows} {table.column_names}"
