"""The rules that keep a right answer from being called wrong, the report; and `me5 mine`."""

import dataclasses
import json
import resource
import signal

import numpy as np
import pandas as pd
import pytest
import typer
from conftest import refused
from typer.testing import CliRunner

from me5lib import config, io
from me5lib.cli import OneLineErrors
from me5lib.cli import train as commands
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer
from me5lib.pairs import Labelled, text_key
from me5lib.train import mining, search
from me5lib.train.mining import MiningReport, choose, near_positive, relative_margin
from me5lib.train.search import DenseIndex, Pool, SearchResult

RNG = np.random.default_rng(0)
SCORES = [0.95, 0.86, 0.84, 0.79, 0.70, 0.60, 0.50, -0.20]
PASSAGES = [f"p{i}" for i in range(len(SCORES))]


def unit(n, d=16):
    vectors = RNG.standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_hand(scores, positive):
    """What a search found for one query: passages 0, 1, 2 … with these scores."""
    return SearchResult(np.arange(len(scores))[None], np.array([scores], np.float32), np.array([positive], np.float32))


def row(query="q", positives=("right",), negatives=(), language="en"):
    return Labelled(query, positives, negatives, "s", language)


def kept(positive, share):
    """Which of `PASSAGES` a query with a positive of this score keeps under a relative margin, and the report."""
    found = by_hand(SCORES, positive)
    (texts,), report = choose(found, [row()], Pool(PASSAGES), 8, {"relative margin": relative_margin(found, share)})
    return [int(name[1:]) for name in texts], report


# ---- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positive", "share", "left"), [
    (0.9, 0.95, range(2, 8)), (0.9, 0.5, [7]), (-0.1, 0.5, [7]), (-0.2, 0.95, []), (0.0, 0.95, [7]),
    (2.0, 1.0, range(8)),
])  # fmt: skip
def test_the_margin_lies_below_the_positive_whatever_its_sign(positive, share, left):
    """0.9 · 0.95 = 0.855; half of 0.9 is 0.45; half of |-0.1| below it is -0.15; 5 % below -0.2 is -0.21."""
    found, report = kept(positive, share)
    assert found == list(left)
    assert (report.kept, report.short) == (len(found), len(found) < 8)  # nothing is padded


def test_the_same_text_is_no_negative_and_the_rest_is_counted():
    pool = Pool(["Paris", "PARIS ", "capital of France?", "Lyon", "Nice", "Lille", "lyon"])
    found = by_hand([0.99, 0.98, 0.97, 0.90, 0.85, 0.70, 0.60], 0.92)
    negatives, report = choose(found, [row("Capital of  France?", ("Paris",))], pool, 2,
                               {"relative margin": relative_margin(found, 0.95)})
    assert negatives == [["Nice", "Lille"]]  # the limit is 0.95 × 0.92 = 0.874
    assert report.dropped == {"same text": 4, "relative margin": 1, "not needed": 0}  # lyon reads like Lyon
    assert (report.queries, report.candidates, report.kept, report.short) == (1, 7, 2, 0)
    assert report.examples == [{"query": "Capital of  France?", "positive": "Paris", "passage": "Lyon",
                                "rule": "relative margin", "score": pytest.approx(0.90),
                                "positive_score": pytest.approx(0.92), "language": "en"}]


def test_what_is_like_a_positive_is_dropped_however_it_scores():
    """Copies of the answers, which a search by meaning finds on top."""
    answers = unit(30)
    copies = answers + 0.02 * unit(30)
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    pool = Pool([f"answer {i}" for i in range(30)] + [f"copy {i}" for i in range(30)])
    rows = [row(f"q{i}", (f"answer {i}",)) for i in range(30)]
    index, queries = DenseIndex(np.concatenate([answers, copies])), answers + 0.1 * unit(30)
    found = search.dense(queries, [pool.positives(row) for row in rows], index, 10, margin_ratio=True)
    copied = [sum(f"copy {i}" in texts for i, texts in enumerate(choose(found, rows, pool, 3, filters)[0]))
              for filters in ({}, {"margin": relative_margin(found, 0.95)}, {"near": near_positive(found)})]
    assert copied == [30, 0, 0]


def test_own_negatives_come_first_and_are_not_mined_again():
    for n, texts, dropped in ((4, ["P1", "x", "p0", "p2"], {"same text": 1, "not needed": 5}),
                              ([1], ["P1"], {"same text": 1, "not needed": 7})):
        (found,), report = choose(by_hand(SCORES, 2.0), [row(negatives=("P1", "x"))], Pool(PASSAGES), n)
        assert found == texts and report.dropped == dropped and report.short == 0


def two_languages():
    """Negatives and report of four queries in two languages over six passages."""
    rows = np.array([[0, 1, 2], [1, 2, 3], [4, 5, 0], [5, 4, -1]])
    scores = np.array([[0.9, 0.5, 0.4], [0.5, 0.4, 0.3], [0.8, 0.2, 0.1], [0.7, 0.6, -np.inf]], np.float32)
    found = SearchResult(rows, scores, np.full(4, 0.75, np.float32))
    queries = [row(query, language=language) for query, language in zip("abcd", ("de", "de", "fr", "fr"), strict=True)]
    return choose(found, queries, Pool(PASSAGES), 2, {"relative margin": relative_margin(found, 1.0)})


def test_the_report_tells_the_languages_apart():
    negatives, report = two_languages()
    assert negatives == [["p1", "p2"], ["p1", "p2"], ["p5", "p0"], ["p5", "p4"]]
    dropped = {"same text": 0, "relative margin": 1, "not needed": 1}
    assert report.by_language["de"] == {"queries": 2, "candidates": 6, "kept": 4, "short": 0, "dropped": dropped}
    assert report.by_language["fr"] == {"queries": 2, "candidates": 5, "kept": 4, "short": 0,
                                        "dropped": dropped | {"not needed": 0}}
    assert [example["language"] for example in report.examples] == ["de", "fr"]
    text = "\n".join(mining.report_lines(report))
    assert "de       2 queries, 6 candidates: 4 kept" in text and "0.900, the right answer 0.750" in text


def test_reports_of_parts_merge_to_the_report_of_the_whole():
    _, whole = two_languages()
    other = kept(0.9, 0.95)[1]._replace(above=3)
    merged = mining.merge([whole, whole, other])
    assert merged.queries == 9 and merged.dropped["relative margin"] == 6
    assert merged.candidates == 30 == merged.kept + sum(merged.dropped.values())
    assert merged.by_language["de"]["candidates"] == 12 and merged.above == 3
    assert mining.merge([]) == MiningReport()
    assert json.loads(json.dumps(merged._asdict()))["kept"] == 22


# ---- me5 mine --------------------------------------------------------------------------------------------------------

app = typer.Typer(cls=OneLineErrors, rich_markup_mode=None)
app.callback()(lambda: None)
app.command("mine")(commands.mine_command)
FACTS = {"en": ("capital", "currency", "river", "king"), "de": ("Hauptstadt", "Währung", "Fluss", "König")}
LANDS = ("France", "Spain", "Norway", "Peru", "Chad", "Japan", "Iraq", "Cuba", "Mali", "Togo")


def pairs():
    """Eighty rows in two languages; each has one positive, some a negative of their own."""
    rows = [{"query": f"{fact} {land}?", "positive": f"the {fact} of {land} is {fact[:3]}{land[:3]}", "language": code}
            for code, facts in FACTS.items() for land in LANDS for fact in facts]
    rows[0]["negatives"] = ["an own wrong answer", "another one"]
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with an untrained encoder: the same words give near vectors."""
    texts = [text for row in pairs() for text in (row["query"], row["positive"])]
    shape = dataclasses.replace(config.load("smoke").model, layers=1)
    folder = tmp_path_factory.mktemp("model") / "untrained"
    Encoder.new(shape, train_tokenizer(texts, 400), seed=1).save(folder)
    return folder


def mine(*arguments):
    return CliRunner().invoke(app, ["mine", *map(str, arguments)], catch_exceptions=False)


def rows_of(out):
    return [json.loads(line) for path in sorted(out.glob("shard-*.jsonl"))
            for line in path.read_text(encoding="utf8").splitlines()]


def files(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize(("options", "near"), [((), mining.DEFAULT_NEAR), (("--near", 0), None), (("--near", 2), 2.0),
                                                (("--by", "bm25"), None)])  # fmt: skip
def test_near_copies_are_dropped_unless_that_is_turned_off(options, near, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "mine_file", lambda data, out, settings, *_, **__: [settings.near])
    assert mine("--data", tmp_path, "--out", tmp_path, *options).stdout == f"{near}\n"


def test_mined_rows_are_those_of_a_search_written_down_here(data, model, tmp_path):
    """Cosines of the language's passages; what is liker the positive than both are to their four nearest left out, the
    best that remain."""
    out = tmp_path / "mined"
    done = mine("--data", data, "--model", model, "--out", out, "--negatives", 3, "--depth", 30, "--near", 1)
    assert done.exit_code == 0, done.output
    found, encoder = rows_of(out), Encoder.load(model)
    assert [row["query"] for row in found] == [row["query"] for row in pairs()]
    for language in FACTS:
        own = [row for row in pairs() if row["language"] == language]
        texts = list(dict.fromkeys(text for row in own for text in (row["positive"], *row.get("negatives", []))))
        vectors, asked = encoder.encode(texts, PASSAGE), encoder.encode([row["query"] for row in own], QUERY)
        alike = vectors @ vectors.T
        knn_mean = np.sort(alike, axis=1)[:, -5:-1].mean(axis=1)
        for query, row in zip(asked, own, strict=True):
            scores, wrong = vectors @ query, row.get("negatives", [])
            right = texts.index(row["positive"])
            best = [texts[j] for j in np.argsort(-scores, kind="stable")[:30]
                    if alike[j, right] <= (knn_mean[j] + knn_mean[right]) / 2
                    and texts[j] not in (row["positive"], *wrong)]
            (mined,) = [one for one in found if one["query"] == row["query"]]
            assert mined == {"query": row["query"], "positives": [row["positive"]], "language": language,
                             "negatives": [*wrong, *best][:3]}
    report = json.loads((out / "report.json").read_text(encoding="utf8"))
    assert report["kept"] == sum(len(row["negatives"]) for row in found) - 2
    assert report["dropped"]["near a positive"] > 0
    assert report["candidates"] == 80 * 30 == report["kept"] + sum(report["dropped"].values())
    assert set(report["by_language"]) == set(FACTS) and f"{report['kept']:,} kept" in done.stdout
    assert list(files(out)) == ["report.json", "settings.json", "shard-00000.json", "shard-00000.jsonl"]


@pytest.mark.parametrize("by", ["bm25", "dense"])
def test_within_a_language_or_across(by, data, model, tmp_path):
    german, mixed = {row["positive"] for row in pairs() if row["language"] == "de"}, {}
    for way in ("--within-language", "--across"):
        near = [] if way == "--across" else ["--near", 0]
        done = mine("--data", data, "--by", by, "--model", model, "--out", tmp_path / way, way, "--negatives", 4, *near)
        assert done.exit_code == 0, done.output
        assert ("look: " in done.stdout) == (by == "dense")  # of random weights half of the negatives lie above
        mixed[way] = sum((text in german) != (row["language"] == "de") for row in rows_of(tmp_path / way)
                         for text in row["negatives"] if "own" not in text and "another" not in text)
    assert mixed["--within-language"] == 0 < mixed["--across"]
    settings = json.loads((tmp_path / "--across" / "settings.json").read_text(encoding="utf8"))
    assert (settings["near"], settings["margin"]) == (1.06 if by == "dense" else None, None)


class Crash(Exception):
    """What stands for a process that is killed."""


def test_after_a_crash_at_any_file_the_same_command_gives_the_same_bytes(data, model, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "QUERIES_A_SHARD", 40)
    command = ["--data", data, "--model", model, "--negatives", 3, "--out"]
    assert mine(*command, tmp_path / "whole").exit_code == 0
    whole, rename, mine_rows = files(tmp_path / "whole"), io.rename, mining.mine
    for crash in range(7):
        out, writes, searched = tmp_path / f"crash-{crash}", [], []

        def failing(first, second, writes=writes, crash=crash):
            writes.append(second)
            if len(writes) == crash + 1:
                raise Crash
            rename(first, second)

        monkeypatch.setattr(io, "rename", failing)
        with pytest.raises(Crash):
            mine(*command, out)
        monkeypatch.setattr(io, "rename", rename)
        finished = len(list(out.glob("shard-*.json")))
        monkeypatch.setattr(mining, "mine", lambda *given, seen=searched: seen.append(1) or mine_rows(*given))
        assert mine(*command, out).exit_code == 0
        monkeypatch.setattr(mining, "mine", mine_rows)
        assert len(searched) == 2 - finished and files(out) == whole  # what was finished is not mined again
    assert len(writes) == 7  # settings, vectors, two shards of two files, the report
    monkeypatch.setattr(mining, "QUERIES_A_SHARD", 1000)
    assert mine(*command, tmp_path / "one").exit_code == 0
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "whole")  # the shards do not change what is mined


def test_what_was_begun_otherwise_is_refused(data, model, tmp_path):
    out, other = tmp_path / "mined", tmp_path / "other"
    command = ["--data", data, "--model", model, "--out", out]
    assert mine(*command).exit_code == 0
    before = files(out)
    refused(mine(*command, "--depth", 9), "begun with another depth (200, not 9)", "--out")
    Encoder.new(config.load("smoke").model, Encoder.load(model).tokenizer, seed=2).save(other)
    refused(mine("--data", data, "--model", other, "--out", out), "begun with another model")
    changed = write(tmp_path / "changed.jsonl", pairs()[1:])
    refused(mine("--data", changed, "--model", model, "--out", out), "begun with another data")
    assert files(out) == before
    io.put_json(out / "settings.json", {**io.read_json(out / "settings.json"), "gone": 3})  # of an older version
    refused(mine(*command), "begun with another gone (3, not None)")


def test_what_of_the_file_is_not_used_is_counted_and_rows_of_one_query_are_one(tmp_path):
    rows, out = pairs()[1:20], tmp_path / "mined"
    rows += [{"query": "nothing right?", "positive": ""},
             {**rows[0], "negatives": [rows[0]["positive"].upper(), "fine", rows[0]["query"]]},
             {"query": rows[1]["query"].upper(), "positive": "a second answer", "negatives": ["wrong"]}]
    done = mine("--data", write(tmp_path / "bad.jsonl", rows), "--by", "bm25", "--out", out, "--negatives", 60)
    assert done.exit_code == 0, done.output
    for what, where in (("no positive passage", 20), ("a negative that is a positive of its query", 21)):
        assert any(line.startswith(f"not used: 1 × {what}") and line.endswith(f"(line {where})")
                   for line in done.stdout.splitlines()), what
    report, found = json.loads((out / "report.json").read_text(encoding="utf8")), rows_of(out)
    assert report["not_used"]["no positive passage"] == [1, "line", [20]]
    assert len(found) == 19 == report["short"] and "19 queries are short" in done.stdout
    assert found[0]["negatives"][0] == "fine" and all(len(row["negatives"]) < 60 for row in found)
    assert found[1]["positives"][1:] == ["a second answer"] and found[1]["negatives"][0] == "wrong"
    for row in found:
        keys = [text_key(text) for text in (row["query"], *row["positives"], *row["negatives"])]
        assert len(set(keys)) == len(keys)
    assert not mining.read_pairs(out / "shard-00000.jsonl")[1].unused  # what me5 writes it can read


def test_columns_of_other_names_are_named(tmp_path):
    frame = pd.DataFrame(pairs()[:20]).rename(columns={"query": "prompt", "positive": "größe", "language": "l"})
    frame.drop(columns="negatives").assign(wrong="no answer").to_csv(tmp_path / "x.csv", index=False, encoding="cp1252")
    command = ["--data", tmp_path / "x.csv", "--by", "bm25", "--out", tmp_path / "out", "--encoding", "cp1252"]
    refused(mine(*command), "which column is the query", "'prompt'", "--query-column")
    columns = ["--query-column", "prompt", "--passage-column", "größe", "--negative-columns", "wrong"]
    assert mine(*command, *columns, "--language-column", "l").exit_code == 0
    first = rows_of(tmp_path / "out")[0]
    assert first["positives"] == [pairs()[0]["positive"]] and first["negatives"][0] == "no answer"
    assert first["language"] == "en"
    refused(mine(*command, *columns), "begun with another columns")


def test_a_full_disk_is_one_line_and_nothing_half_is_left(data, model, tmp_path):
    """Files of more than 16 kB cannot be written, as on a disk that is full; the vectors need 20."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[0][1]))
    try:
        done = mine("--data", data, "--model", model, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    refused(done, "passages.npy", "cannot be written", "free some space")
    assert "None" not in done.stderr and list(files(tmp_path / "out")) == ["settings.json"]


def test_wrong_commands_are_one_line(data, model, tmp_path):
    out = tmp_path / "out"
    refused(mine("--data", data, "--out", out), "--model")
    refused(mine("--data", data, "--out", out, "--by", "tfidf"), "--by tfidf", "dense, bm25")
    refused(mine("--data", data, "--out", out, "--by", "bm25", "--near", 0.9), "--near")
    refused(mine("--data", tmp_path / "no.jsonl", "--out", out, "--by", "bm25"), "there is no file")
    refused(mine("--data", data, "--out", out, "--model", tmp_path / "none"), "no model folder")
    lists = [{"query": ["Find the answer.", row["query"]], "positive": row["positive"]} for row in pairs()[:20]]
    refused(mine("--data", write(tmp_path / "x.jsonl", lists), "--by", "bm25", "--out", out),
            "no query with a positive", "20 × a value that is no text, or a query that is a list (line 1, 2")
    assert not out.exists()
    out.write_text("", encoding="utf8")
    refused(mine("--data", data, "--out", out, "--by", "bm25"), "cannot write")
