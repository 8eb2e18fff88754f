"""`me5 mine` as a user meets it: what it reads, writes, refuses; what a crash leaves and the next run makes of it."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from me5lib import config
from me5lib.cli import mine
from me5lib.cli.app import Plain
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer
from me5lib.pairs import text_key

app = typer.Typer(cls=Plain, rich_markup_mode=None)
app.callback()(lambda: None)
app.command()(mine.mine)
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


def refused(done, *words):
    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 2 and line.startswith("me5: ") and all(word in line for word in words), line


def test_mined_rows_are_those_of_the_library(data, model, tmp_path):
    """Against a search written down here: cosines of the language's passages; what is liker the
    positive than both are to their four nearest left out, the best that remain."""
    out = tmp_path / "mined"
    done = mine("--data", data, "--model", model, "--out", out, "--negatives", 3, "--depth", 30, "--shard", 30,
                "--near", 1)
    assert done.exit_code == 0, done.output
    found, encoder = rows_of(out), Encoder.load(model)
    assert [row["query"] for row in found] == [row["query"] for row in pairs()]
    for language in FACTS:
        own = [row for row in pairs() if row["language"] == language]
        texts = list(dict.fromkeys(text for row in own for text in (row["positive"], *row.get("negatives", []))))
        vectors, asked = encoder.encode(texts, PASSAGE), encoder.encode([row["query"] for row in own], QUERY)
        alike = vectors @ vectors.T
        crowd = np.sort(alike, axis=1)[:, -5:-1].mean(axis=1)
        for query, row in zip(asked, own, strict=True):
            scores, wrong = vectors @ query, row.get("negatives", [])
            right = texts.index(row["positive"])
            best = [texts[j] for j in np.argsort(-scores, kind="stable")[:30]
                    if alike[j, right] <= (crowd[j] + crowd[right]) / 2
                    and texts[j] not in (row["positive"], *wrong)]
            (mined,) = [one for one in found if one["query"] == row["query"]]
            assert mined["negatives"] == [*wrong, *best][:3] and mined["positives"] == [row["positive"]]
            assert mined["language"] == language
    report = json.loads((out / "report.json").read_text(encoding="utf8"))
    assert report["kept"] == sum(len(row["negatives"]) for row in found) - 2
    assert report["dropped"]["near a positive"] > 0
    assert report["candidates"] == 80 * 30 == report["kept"] + sum(report["dropped"].values())
    assert set(report["by_language"]) == set(FACTS) and f"{report['kept']:,} kept" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["report.json", "settings.json", *(f"shard-0000{i}.json{end}" for i in range(3) for end in ("", "l"))])


@pytest.mark.parametrize("by", ["bm25", "random", "dense"])
def test_within_a_language_or_across(by, data, model, tmp_path):
    german = {row["positive"] for row in pairs() if row["language"] == "de"}
    mixed = {}
    mine("--data", data, "--by", by, "--model", model, "--out", tmp_path / "given")
    given = json.loads((tmp_path / "given" / "settings.json").read_text(encoding="utf8"))
    assert (given["near"], given["margin"]) == (1.06 if by == "dense" else None, None)
    for way in ("--within-language", "--across"):
        out = tmp_path / way
        done = mine("--data", data, "--by", by, "--model", model, "--out", out, way, "--near", 0, "--negatives", 4)
        assert done.exit_code == 0, done.output
        mixed[way] = sum((text in german) != (row["language"] == "de") for row in rows_of(out)
                         for text in row["negatives"] if "own" not in text and "another" not in text)
    assert mixed["--within-language"] == 0 < mixed["--across"]


class Crash(Exception):
    """What stands for a process that is killed."""


def test_after_a_crash_at_any_file_the_same_command_gives_the_same_bytes(data, model, tmp_path, monkeypatch):
    command = ["--data", data, "--model", model, "--shard", 25, "--negatives", 3, "--out"]
    assert mine(*command, tmp_path / "whole").exit_code == 0
    whole, replace = files(tmp_path / "whole"), mine.os.replace
    for crash in range(11):
        out, writes, searched = tmp_path / f"crash-{crash}", [], []

        def failing(first, second, writes=writes, crash=crash):
            writes.append(second)
            if len(writes) == crash + 1:
                raise Crash
            replace(first, second)

        monkeypatch.setattr(mine.os, "replace", failing)
        with pytest.raises(Crash):
            mine(*command, out)
        monkeypatch.setattr(mine.os, "replace", replace)
        finished = len(list(out.glob("shard-*.json")))
        mined = mine._mined
        monkeypatch.setattr(mine, "_mined", lambda *given, seen=searched, own=mined: seen.append(1) or own(*given))
        assert mine(*command, out).exit_code == 0
        monkeypatch.setattr(mine, "_mined", mined)
        assert len(searched) == 4 - finished  # what was finished is not mined again
        assert files(out) == whole
    assert len(writes) == 11  # settings, vectors, four shards of two files, the report


def test_a_killed_process_leaves_nothing_half(data, tmp_path):
    code = ("import os, signal, sys; from pathlib import Path; from me5lib.cli import mine\n"
            "real, seen = mine._mined, []\n"
            "def killed(*given):\n"
            "    seen.append(1)\n"
            "    return os.kill(os.getpid(), signal.SIGKILL) if len(seen) == 3 else real(*given)\n"
            "mine._mined = killed\n"
            "mine.mine(Path(sys.argv[1]), Path(sys.argv[2]), by='bm25', depth=20, negatives=3, shard=25)")
    done = subprocess.run([sys.executable, "-c", code, str(data), str(tmp_path / "out")], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out" / "report.json").exists() and len(rows_of(tmp_path / "out")) == 50
    command = ["--data", data, "--by", "bm25", "--depth", 20, "--negatives", 3, "--shard", 25, "--out"]
    assert mine(*command, tmp_path / "out").exit_code == 0 == mine(*command, tmp_path / "whole").exit_code
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_shard_does_not_change_what_is_mined(data, model, tmp_path):
    for by in ("bm25", "random"):
        one, many = tmp_path / f"{by}-one", tmp_path / f"{by}-many"
        for out, shard in ((one, 1000), (many, 7)):
            mine("--data", data, "--by", by, "--out", out, "--shard", shard)
        assert rows_of(one) == rows_of(many)


def test_what_was_begun_otherwise_is_refused(data, model, tmp_path):
    out = tmp_path / "mined"
    command = ["--data", data, "--model", model, "--out", out]
    assert mine(*command).exit_code == 0
    before = files(out)
    refused(mine(*command, "--depth", 9), "begun with another depth (200, not 9)", "--out")
    other = tmp_path / "other"
    encoder = Encoder.load(model)
    Encoder.new(config.load("smoke").model, encoder.tokenizer, seed=2).save(other)
    refused(mine("--data", data, "--model", other, "--out", out), "begun with another model")
    changed = write(tmp_path / "changed.jsonl", pairs()[1:])
    refused(mine("--data", changed, "--model", model, "--out", out), "begun with another data")
    assert files(out) == before


def test_what_is_wrong_with_the_file_is_named_and_counted(tmp_path):
    rows = pairs()[1:20]
    rows += [{"query": "nothing right?", "positive": ""}, {"query": "", "positive": "an answer"},
             {**rows[0], "negatives": [rows[0]["positive"].upper(), "fine", rows[0]["query"]]}]
    out = tmp_path / "mined"
    done = mine("--data", write(tmp_path / "bad.jsonl", rows), "--by", "bm25", "--out", out, "--negatives", 60)
    assert done.exit_code == 0, done.output
    for line in ("1 × no positive passage (line 20)", "1 × no query (line 21)",
                 "1 × a negative that is a positive of its query", "1 × a negative that repeats its query"):
        assert f"not used: {line}" in done.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf8"))
    assert report["not_used"]["no positive passage"] == [1, "line", [20]]
    found = rows_of(out)
    assert len(found) == 19 == report["short"] and "19 queries are short" in done.stdout
    assert found[0]["negatives"][0] == "fine" and all(len(row["negatives"]) < 60 for row in found)
    for row in found:
        keys = [text_key(text) for text in (row["query"], *row["positives"], *row["negatives"])]
        assert len(set(keys)) == len(keys)


def test_what_was_mined_of_half_characters_can_be_read_again(tmp_path):
    """Of a text cut within an emoji: no file that me5 writes is one that it cannot read."""
    rows = pairs()[:20]
    rows[3]["positive"] += " \ud83d"
    rows[0]["negatives"] = ["\udc00"]
    done = mine("--data", write(tmp_path / "x.jsonl", rows), "--by", "bm25", "--out", tmp_path / "out")
    assert done.exit_code == 0 and "2 × half a character" in done.stdout and "(line 1, 4)" in done.stdout
    assert rows_of(tmp_path / "out")[3]["positives"][0].endswith(" \ufffd")
    assert mine.read(tmp_path / "out" / "shard-00000.jsonl")[1] == {}


def test_languages_by_name_are_pools_of_their_own(tmp_path):
    names = {"en": "English", "de": "Deutsch"}
    rows = [{**row, "language": names[row["language"]]} for row in pairs()]
    rows[5]["language"] = "x-klingon"
    done = mine("--data", write(tmp_path / "x.jsonl", rows), "--by", "random", "--out", tmp_path / "out")
    assert {row["language"] for row in rows_of(tmp_path / "out")} == {"en", "de", "und"}
    assert "1 × a language that is not known" in done.stdout and "(line 6)" in done.stdout


def test_columns_of_other_names_are_named(tmp_path):
    frame = pd.DataFrame(pairs()[:20]).rename(columns={"query": "prompt", "positive": "größe", "language": "l"})
    frame.drop(columns="negatives").assign(wrong="no answer").to_csv(tmp_path / "x.csv", index=False, encoding="cp1252")
    command = ["--data", tmp_path / "x.csv", "--by", "bm25", "--out", tmp_path / "out", "--encoding", "cp1252"]
    refused(mine(*command), "which column is the query", "'prompt'", "--query-column")
    columns = ["--query-column", "prompt", "--passage-column", "größe", "--negative-columns", "wrong",
               "--language-column", "l"]
    assert mine(*command, *columns).exit_code == 0
    assert rows_of(tmp_path / "out")[0] == {"query": pairs()[0]["query"], "positives": [pairs()[0]["positive"]],
                                            "negatives": ["no answer", *rows_of(tmp_path / "out")[0]["negatives"][1:]],
                                            "language": "en"}
    refused(mine(*command, *columns[:-2]), "begun with another columns")


def test_the_reason_is_told_why_nothing_can_be_mined(tmp_path):
    rows = [{"query": ["Find the answer.", row["query"]], "positive": row["positive"]} for row in pairs()[:20]]
    refused(mine("--data", write(tmp_path / "x.jsonl", rows), "--by", "bm25", "--out", tmp_path / "out"),
            "no query with a positive", "20 × a value that is no text, or a query that is a list (line 1, 2")


def test_texts_without_a_word_and_languages_of_few_passages_are_mined(model, tmp_path):
    emoji = [{"query": chr(0x1F600 + i), "positive": chr(0x1F900 + i)} for i in range(12)]
    done = mine("--data", write(tmp_path / "x.jsonl", emoji), "--by", "bm25", "--out", tmp_path / "emoji")
    assert done.exit_code == 0 and "12 queries are short" in done.stdout
    rows = [row for i, row in enumerate(pairs()) if row["language"] == "en" or i % 8 == 0]
    done = mine("--data", write(tmp_path / "y.jsonl", rows), "--model", model, "--index", "ivf",
                "--out", tmp_path / "few")
    assert done.exit_code == 0 and {row["language"] for row in rows_of(tmp_path / "few") if row["negatives"]} == {
        "en", "de"}


def test_a_full_disk_is_one_line_and_nothing_half_is_left(data, model, tmp_path):
    """On a file system of 16 kB, where one may be made without rights: writing to a map beyond it would be fatal."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces without rights here")
    (tmp_path / "disk").mkdir()
    code = 'mount -t tmpfs -o size=16k none disk && "$@"; code=$?; ls disk/out; exit $code'
    command = [sys.executable, "-m", "me5lib", "mine", "--data", data, "--model", model, "--out", tmp_path / "disk/out"]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", code, "sh", *map(str, command)], capture_output=True,
                          encoding="utf8", cwd=tmp_path)
    assert done.returncode == 2 and "free some space" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.split() == ["settings.json"]


def test_csv_and_several_positives(tmp_path):
    path = tmp_path / "faq.csv"
    with path.open("w", encoding="utf8", newline="") as file:
        made = csv.writer(file)
        made.writerow(["question", "answer"])
        made.writerows([row["query"], row["positive"]] for row in pairs()[:12])
        made.writerow([pairs()[0]["query"], "a second right answer to the capital of France"])
    assert mine("--data", path, "--by", "bm25", "--out", tmp_path / "out").exit_code == 0
    found = rows_of(tmp_path / "out")
    assert len(found) == 12 and len(found[0]["positives"]) == 2
    assert not set(found[0]["positives"]) & set(found[0]["negatives"])


def test_a_query_of_several_rows_keeps_all_their_negatives(tmp_path):
    rows = [{"query": "q", "positive": "right", "negatives": ["a"]},
            {"query": "Q ", "positive": "too", "negatives": "b"},
            {"query": "other", "positive": "else"}]
    assert mine("--data", write(tmp_path / "x.jsonl", rows), "--by", "random", "--out", tmp_path / "out").exit_code == 0
    first, _ = rows_of(tmp_path / "out")
    assert first["positives"] == ["right", "too"] and first["negatives"] == ["a", "b", "else"]


def test_wrong_commands_are_one_line(data, model, tmp_path):
    out = tmp_path / "out"
    refused(mine("--data", data, "--out", out), "--model")
    refused(mine("--data", data, "--out", out, "--by", "tfidf"), "--by tfidf", "dense, bm25, random")
    refused(mine("--data", data, "--out", out, "--by", "bm25", "--near", 0.9), "--near")
    refused(mine("--data", data, "--out", out, "--model", model, "--index", "pq"), "--index pq", "hnsw")
    refused(mine("--data", tmp_path / "no.jsonl", "--out", out, "--by", "bm25"), "there is no file")
    refused(mine("--data", data, "--out", out, "--model", tmp_path / "none"), "no model folder")
    refused(mine("--data", write(tmp_path / "x.jsonl", [{"query": "q", "positive": ""}]), "--out", out, "--by", "bm25"),
            "no query with a positive")
    assert not out.exists()
    out.write_text("", encoding="utf8")
    refused(mine("--data", data, "--out", out, "--by", "bm25"), "cannot write")
