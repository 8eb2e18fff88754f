"""From the hub to shards: the real clients against the project's own loopback hub; `me5 fetch` and what it leaves."""

import gzip
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import fixtures_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_hub import HEAD, hashes
from loopback import Loopback
from typer.testing import CliRunner

from me5lib import config
from me5lib.data import cards, hub, pipeline, shards
from me5lib.data.builders import Drop
from me5lib.io import Me5Error, sha256
from me5lib.model.encoder import Encoder
from me5lib.pairs import Pair
from me5lib.train import dry_run, loop

TOY = HEAD + """hub:
  - repository: own/tables
    files: data/{language}-*.parquet
    languages: {de: deu, en: eng, sw: swh}
    columns: {id: int64, title: string, body: 'string?'}
    read_from: unverified
    builder: toy
  - repository: own/lines
    files: '**/*.jsonl.gz'
    columns: {id: int64, title: string, body: 'string?', lang: string}
    read_from: unverified
    builder: toy
"""
RERANKER = "BAAI/bge-reranker-v2-m3"
SET = ("data.sources=wikipedia,nllb,s2orc,stackexchange", "data.labelled=nli,miracl", "model.layers=1",
       "model.vocabulary=2000", "model.width=32", "model.heads=2", "model.feedforward=64", "train.steps=4",
       "train.batch=16", "train.warmup=1", "finetune.steps=6", "finetune.batch=64", "finetune.warmup=1",
       "finetune.mine_depth=30", "finetune.hard_negatives=2", f"finetune.teacher={RERANKER}")


def toy(row, origin):
    """Title → body."""
    if row["body"] is None:
        yield Drop("no body")
    else:
        yield Pair(row["title"], row["body"], origin.card, origin.language or row["lang"])


def card(more: str = "") -> cards.Card:
    return cards.parse_card("toy", TOY + more + "---\nMade up.\n")


def draw(pairs: int, more: str = "") -> Path:
    return pipeline.draw_card(card(more), pairs, builders={"toy": toy})


def toy_rows(first: int, n: int, **more: str) -> list[dict]:
    """Rows with running numbers; every seventh without a body."""
    return [{"id": i, "title": f"title {i}", "body": None if i % 7 == 0 else f"body {i}", **more}
            for i in range(first, first + n)]


@pytest.fixture
def online(tmp_path, monkeypatch, client):
    """Turns the hub's clients in this process to a loopback hub, with empty caches; the environment of other processes.
    """
    import datasets.config
    from huggingface_hub import HfFileSystem, constants

    def turn(server: Loopback) -> dict[str, str]:
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("ME5_CACHE", str(tmp_path / "me5"))
        HfFileSystem.clear_instance_cache()
        return client.environment(server.endpoint)

    pause = time.sleep  # the clients wait seconds before they try again
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(seconds / 100))
    yield turn
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def root(tmp_path) -> Path:
    """Two repositories, three files of 40 rows a language."""
    number = itertools.count(0, 40)
    for code in ("deu", "eng", "swh"):
        for i in range(3):
            file = tmp_path / "root/datasets/own/tables/data" / f"{code}-{i}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(toy_rows(next(number), 40)), file, row_group_size=16)
    for i in range(3):
        write_lines(tmp_path / "root", i, toy_rows(next(number), 40, lang=("xx?", "de", "en")[i]))
    return tmp_path / "root"


def write_lines(root: Path, i: int, rows: list[dict]) -> None:
    file = root / "datasets/own/lines/deep" / f"{i}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def rows_of(folder: Path) -> dict[str, list[tuple]]:
    """Language → rows of a drawing's shards, each hashed against its manifest."""
    for path in folder.glob("*/part-*/manifest.json"):
        assert json.loads(path.read_text("utf8"))["sha256"] == {
            shards.MAPPED: sha256(path.with_name(shards.MAPPED))}
    return {code: sorted(shard.take(np.arange(shard.rows)))
            for (_, code), shard in shards.open_card("toy", folder).items()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf8"))


def test_a_drawing_survives_503s_and_is_whole_without_the_hub(online, root):
    with Loopback(root, lambda n: 0 if n % 3 else 503, page=2) as server:
        online(server)
        folder = draw(2000)
    assert Counter(status for _, path, status in server.requests if "/resolve/" in path)[503] >= 3
    numbers = {"de": [*range(120), *range(400, 440)], "en": [*range(120, 240), *range(440, 480)],
               "sw": range(240, 360)}
    assert rows_of(folder) == {code: sorted((f"title {i}", f"body {i}") for i in own if i % 7)
                               for code, own in numbers.items()}
    about = manifest(folder)
    assert about["read"] == about["built"] == 480 and sum(about["dropped"]["no body"].values()) == 69
    assert about["dropped"]["unknown language code"] == {"und": sum(i % 7 > 0 for i in range(360, 400))}
    before = hashes(folder)
    assert draw(2000) == folder and hashes(folder) == before  # the hub is gone


@pytest.mark.parametrize(("fails", "failed", "says"), [
    (lambda n: 503 if n < 6 else 0, 5, ""),  # the client gives up after six requests
    (lambda n: -1 if n < 6 else 0, 5, ""),
    (lambda n: 503, 6, "the hub cannot be reached ("),
    (lambda n: -1, 6, "the hub cannot be reached ("),
    (lambda n: 403, 1, "the hub refuses data/swh-0.parquet (403): gated sets want `hf auth login`"),
], ids=["busy", "silent", "busy for good", "silent for good", "closed"])
def test_a_hub_that_is_busy_is_asked_again_and_one_that_stays_so_is_one_line(online, root, fails, failed, says):
    with Loopback(root, fails) as server:
        online(server)
        files, commits, _ = hub.list_files(card())
        given = hub.read_rows(hub.folder(card().hub[0], commits[0]), "data/swh-0.parquet", card().hub[0].columns)
        if says:
            with pytest.raises(Me5Error) as error:
                list(given)
            assert says in str(error.value)
        else:
            assert [row["id"] for _, row in given] == list(range(240, 280))
    assert sum(status in (503, 403, -1) for _, _, status in server.requests) == failed


@pytest.mark.parametrize(("error", "asked"), [(ConnectionResetError(104, "reset"), 3), (TimeoutError("slow"), 3),
                                              (OSError(5, "I/O error"), 1)])
def test_a_question_is_asked_again_where_only_the_way_broke(monkeypatch, error, asked):
    def question():
        questions.append(error)
        if len(questions) < 3 or not mended:
            raise RuntimeError("by way of it") from error
        return "answer"

    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for mended in (False, True):
        questions = []
        if mended and asked == 3:
            assert hub.ask_hub("card toy", "own/tables", question) == "answer"
        else:
            with pytest.raises(Me5Error if asked == 3 else RuntimeError):
                hub.ask_hub("card toy", "own/tables", question)
        assert len(questions) == asked


def test_rows_are_spread_over_languages_and_files_and_a_later_file_makes_up(online, root):
    with Loopback(root) as server:
        online(server)
        found = rows_of(draw(48))
    assert set(found) == {"de", "en", "sw"} and sum(map(len, found.values())) == 48  # one file has no language
    assert min(map(len, found.values())) >= 8
    starts = {int(query.split()[1]) // 40 for rows in found.values() for query, _ in rows}
    assert starts == set(range(12)) - {9}


def test_a_plan_of_many_files_reads_evenly_spaced_ones(monkeypatch):
    sizes = {"de": 1_000_000, "en": 4_000_000, "sw": 10_000}
    files = [hub.HubFile(0, f"data/{code}-{i:04d}.parquet", code, size) for code, size in sizes.items()
             for i in range(500)] + [hub.HubFile(1, "a/b/x.jsonl.gz", "", 500_000_000)]
    monkeypatch.setattr(hub, "list_files", lambda card: (files, ["c" * 40] * 2, []))
    found = {stream[0].language: stream for stream in hub.plan_drawing(card(), 1_000_000).streams}
    rows = {code: max(file.due for file in stream) for code, stream in found.items()}
    assert sum(rows.values()) == 1_000_000
    assert rows["en"] / rows["de"] == pytest.approx(2, rel=1e-4)  # square roots of bytes
    assert rows["en"] / rows["sw"] == pytest.approx(20, rel=1e-4)
    drawn = -(-rows["en"] // 50_000)
    places = [int(file.path[-12:-8]) for file in found["en"]]
    assert max(places[:drawn]) >= 400 and len({b - a for a, b in itertools.pairwise(places[:drawn])}) <= 2
    assert sorted(places) == list(range(len(places))) and found["en"][drawn - 1].due == found["en"][-1].due


def test_a_killed_drawing_goes_on_at_its_commits_with_the_next_file_and_gives_the_same_shards(online, root, tmp_path,
                                                                                              monkeypatch):
    read = hub.read_rows

    def dies(here, path, columns):
        for number, row in read(here, path, columns):
            if path == "data/eng-1.parquet" and number == 20:
                raise KeyboardInterrupt
            yield number, row

    with Loopback(root) as server:
        online(server)
        whole = hashes(draw(300))
        monkeypatch.setenv("ME5_CACHE", str(tmp_path / "killed"))
        monkeypatch.setattr(hub, "read_rows", dies)
        with pytest.raises(KeyboardInterrupt):
            draw(300)
        assert not list(tmp_path.glob("killed/hub/toy/*/manifest.json"))
        (root / "datasets/own/tables/more.md").write_text("the branch moves on")
        before = len(server.requests)
        online(server)
        monkeypatch.setenv("ME5_CACHE", str(tmp_path / "killed"))
        monkeypatch.setattr(hub, "read_rows", read)
        assert hashes(draw(300)) == whole
    again = {path.rpartition("/")[2] for _, path, _ in server.requests[before:] if "/resolve/" in path}
    assert not {"deu-0.parquet", "deu-1.parquet", "deu-2.parquet", "eng-0.parquet"} & again
    assert {"eng-1.parquet", "eng-2.parquet", "swh-0.parquet"} <= again
    assert len({path.split("/")[5] for _, path, _ in server.requests if "own/tables/resolve" in path}) == 1  # commits


def test_bad_files_and_rows_are_named_and_counted_and_the_rest_is_drawn(online, root):
    tables = root / "datasets/own/tables/data"
    (tables / "deu-0.parquet").write_bytes((tables / "deu-0.parquet").read_bytes()[:-100])
    pq.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), tables / "deu-1.parquet")
    pq.write_table(pa.table({"id": [1, 2], "title": [3, 4], "body": ["a", None]}), tables / "eng-0.parquet")
    pq.write_table(pa.table({"id": [None, 2], "title": ["t", None], "body": ["a", "b"]},
                            schema=pa.schema([("id", "int64"), ("title", "string"), ("body", "string")])),
                   tables / "eng-1.parquet")
    dates = [{"id": i, "title": f"202{i}-01-01", "body": ("b", None)[i], "lang": "de"} for i in (0, 1)]
    write_lines(root, 0, dates)
    write_lines(root, 1, [])
    (root / "datasets/own/lines/deep/1.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "ti')[:-4])
    write_lines(root, 2, toy_rows(200, 10, lang="en"))  # that eng-2.parquet has too
    with Loopback(root) as server:
        online(server)
        about = manifest(folder := draw(400, "filters: {length: {query_most: 9}, exact: {}, near: {}}\n"))
    assert [fault["file"] for fault in about["unreadable"]] == ["data/deu-0.parquet", "deep/1.jsonl.gz"]
    assert about["unfit"] == {"missing column title": {"de": 2}, "title: not string but int": {"en": 2},
                              "id: null": {"en": 1}, "title: null": {"en": 1}}
    assert about["dropped"]["exact duplicate"] == {"en": sum(i % 7 > 0 for i in range(200, 210))}
    assert about["dropped"]["query over 9 characters"] == {"de": 1}  # a title that looks like a date stays a text
    assert about["languages"]["de"] == sum(i % 7 > 0 for i in range(80, 120)) == len(rows_of(folder)["de"])
    assert about["left out"] == ["near"]


def test_a_card_of_which_nothing_is_left_is_refused(online, root):
    with Loopback(root) as server, pytest.raises(Me5Error, match="none of the 80 rows drawn makes a pair") as error:
        online(server)
        draw(4, "filters: {length: {least: 99}}\n")  # a pair of each stream: of 20 rows, and no more are read
    assert "query under 99 characters" in str(error.value) and "mend the card" in str(error.value)


def test_a_hub_out_of_reach_or_a_wrong_card_is_one_line(online, root, monkeypatch):
    with Loopback(root) as server:
        online(server)
    with pytest.raises(Me5Error, match="run `me5 fetch --for workshop` where there is a network"):
        draw(10)
    with Loopback(root / "models") as server:
        online(server)
        with pytest.raises(Me5Error, match="card toy: the hub has no own/tables at that revision for you"):
            draw(10)
        asked = len(server.requests)
        with pytest.raises(Me5Error, match="filters.lenght: no such filter"):
            draw(10, "filters: {lenght: {most: 9}}\n")
        assert len(server.requests) == asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Me5Error, match="HF_HUB_OFFLINE is set"):
        draw(10)


def test_rows_of_every_card_are_those_that_the_datasets_client_reads(online, tmp_path):
    from datasets import load_dataset

    for each in cards.hub().values():
        for entry in each.hub:
            fixtures_hub.write_repository(tmp_path / "root", entry, 12, 2)
    with Loopback(tmp_path / "root") as server:
        online(server)
        for name, each in cards.hub().items():
            files, commits, _ = hub.list_files(each)
            for number, entry in enumerate(each.hub):
                here, paths = hub.folder(entry, commits[number]), sorted({f.path for f in files if f.entry == number})
                read = [row for path in paths for _, row in hub.read_rows(here, path, entry.columns)]
                wrote = [row for seed in range(len(paths)) for row in fixtures_hub.rows(entry, 12, seed)]
                assert Counter(map(repr, read)) == Counter(map(repr, wrote)), f"{name} {number}"
                kind = "parquet" if paths[0].endswith(".parquet") else "json"
                data = load_dataset(kind, data_files=[f"{here}/{path}" for path in paths], split="train",
                                    streaming=True)
                assert [{column: row[column] for column in entry.columns} for row in data] == read, f"{name} {number}"
    assert len(cards.hub()) == 25


def test_zstd_lines_are_read_and_a_cut_file_is_broken(tmp_path):
    entry = cards.Hub(repository="a/b", files="x.jsonl.zst", language="de", columns={"t": "string"}, builder="b",
                      read_from="unverified")
    fixtures_hub.write(tmp_path / "x.jsonl.zst", entry, [{"t": f"ä{i}" * 50} for i in range(5_000)])
    read = list(hub.read_rows(str(tmp_path), "x.jsonl.zst", entry.columns))
    assert read == [(i, {"t": f"ä{i}" * 50}) for i in range(5_000)]
    (tmp_path / "cut.jsonl.zst").write_bytes((tmp_path / "x.jsonl.zst").read_bytes()[:-10])
    with pytest.raises(hub.Broken):
        list(hub.read_rows(str(tmp_path), "cut.jsonl.zst", entry.columns))


# ── me5 fetch ──


def test_a_scale_draws_its_share_by_the_papers_counts():
    cfg = config.load("workshop", ["data.labelled=msmarco-passage,quora"])
    assert hub.pairs_wanted(cfg, "nllb") == -(-2_000 * 4_096 * 160 // 980)
    assert hub.pairs_wanted(cfg, "sbert-misc") == -(-2_000 * 4_096 * 10 // 980)
    assert hub.pairs_wanted(cfg, "msmarco-passage") == 500_000  # two epochs of the paper's rows: no more than there are


def me5(*words: object) -> str:
    """`me5 …` in this process; what it prints."""
    from me5lib.cli.app import app

    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.stdout


def write_models(root: Path, cfg: config.Scale) -> None:
    """A backbone, and a cross-encoder of XLM-R's classes, random; beside its weights a pickle and code."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    texts = [f"{a}, {b}" for a in dry_run.territories("en") for b in dry_run.territories("de")[:20]]
    dry_run.write_backbone(cfg.model, texts, root / "models" / cfg.model.backbone)
    tokenizer, folder = Encoder.load(root / "models" / cfg.model.backbone).tokenizer, root / "models" / RERANKER
    XLMRobertaForSequenceClassification(XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514, pad_token_id=1, num_labels=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("pytorch_model.bin", "setup.py"):
        (folder / name).write_text("{}", encoding="utf8")


def test_a_scale_from_an_empty_cache_to_both_stages(online, tmp_path, monkeypatch):
    cfg, root, out = config.load("workshop", SET), tmp_path / "root", tmp_path / "out"
    dials = [word for dial in SET for word in ("--set", dial)]
    fixtures_hub.write_rows(root, cfg, 100, lambda row: not any(  # a random teacher that is judged is not listened to
        hub.is_held_out(value) for value in row.values() if isinstance(value, str)))
    write_models(root, cfg)
    names = {*cfg.data.sources, *cfg.data.labelled}
    with Loopback(root, lambda n: 503 if n % 7 == 3 else 0) as server:
        online(server)
        with pytest.raises(Me5Error, match="lacks wikipedia, nllb, .*run `me5 fetch --for workshop`"):
            hub.HubCorpus(cfg)
        assert server.requests == []
        planned = me5("fetch", "--for", "workshop", "--plan", *dials)
        assert {line.split()[0] for line in planned.splitlines()} >= names
        assert not [path for _, path, _ in server.requests if "/resolve/" in path]
        told = me5("fetch", "--for", "workshop", *dials)
    assert {line.partition(":")[0] for line in told.splitlines()} == {*names, cfg.model.backbone, RERANKER}
    asked = [path for _, path, _ in server.requests if f"/{RERANKER}/resolve/" in path]
    assert asked and all(path.endswith((".json", ".safetensors", ".model", ".txt")) for path in asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "in the cache" in me5("fetch", "--for", "workshop", "--plan", *dials)
    corpus = hub.HubCorpus(cfg)
    assert {source for source, _ in corpus.shards} == set(cfg.data.sources)
    labelled = corpus.labelled() + corpus.labelled("dev")
    assert {row.source for row in labelled} == set(cfg.data.labelled) and len(labelled) > 40
    assert all(row.instruction for row in labelled)  # each with its card's instruction

    me5("pretrain", "--scale", "workshop", "--yes", "--out", out, *dials)
    told = me5("finetune", "--scale", "workshop", "--yes", "--out", out, *dials)
    first, second = (loop.read_log(out / stage).steps for stage in ("stage1", "stage2"))
    assert [row["step"] for row in first] == [0, 1, 2, 3] and {row["source"] for row in first} <= set(cfg.data.sources)
    assert len(second) == 6 and all(np.isfinite(row["loss"]) for row in first + second)
    vectors = [Encoder.load(path).encode(["ein Satz", "a sentence"])
               for path in (root / "models" / cfg.model.backbone, out / "stage1", out / "stage2")]
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(vectors, vectors[1:], strict=False))  # both stages learnt
    report = json.loads((out / "stage2/report.json").read_text(encoding="utf8"))
    (commit,) = {path.parent.name for path in (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
                 if "bge-reranker" in str(path)}
    assert report["teacher"]["weights"] == {"model": RERANKER, "revision": commit} and report["teacher"]["trusted"]
    assert f"{RERANKER}: no held-out example judges it: used" in told


def test_a_pickle_is_not_fetched_unasked(online, tmp_path):
    from me5lib.cli.data import backbone

    folder = tmp_path / "root/models/own/model"
    folder.mkdir(parents=True)
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_text("{}", encoding="utf8")
    with Loopback(tmp_path / "root", lambda n: 0 if n % 3 else 503) as server:
        online(server)
        with pytest.raises(Me5Error, match="own/model has no weights as safetensors, and a pickle is not fetched"):
            backbone("own/model")
        assert not [path for _, path, _ in server.requests if path.endswith(".bin")]
        folder = backbone("own/model", True)
    assert {path.name for path in Path(folder).iterdir()} == {"config.json", "pytorch_model.bin"}
