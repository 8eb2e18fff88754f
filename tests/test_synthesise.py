"""`me5 synthesise`: requests by number, an endpoint with every fault, kills, batches, documents; nothing lost or paid twice."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import me5
from test_cli import invoke, one_line

from me5lib.instruct import synthesise, taxonomy
from me5lib.instruct.loopback import Loopback
from me5lib.instruct.synthetic import TASK_TYPES, Example, read_examples
from me5lib.io import Me5Error

FAULTS = {"429": 0.1, "500": 0.1, "time-out": 0.02, "half": 0.1, "cut": 0.05, "prose": 0.05, "refusal": 0.05, "key": 0.05,
          "twice": 0.05, "fenced": 0.1}
PLAN = taxonomy.Plan(0, taxonomy.read_tasks())
BODY = {"model": Loopback.model}


def lines(path):
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def ran(folder, server=None, plan=PLAN, count=40, **options):
    """What a run in this process says, a text."""
    return "\n".join(synthesise.run(plan, count, folder, BODY, server.url if server else "", **options))


def test_a_request_is_a_function_of_seed_number_and_tasks():
    some = list(taxonomy.requests(PLAN, range(3_000)))
    assert some[17:18] == list(taxonomy.requests(PLAN, [17])) and len({one.seed for one in some}) > 2_990
    for other in (PLAN._replace(seed=1), PLAN._replace(tasks=PLAN.tasks[1:]), PLAN._replace(languages=("en",))):
        assert next(taxonomy.requests(other, [17])).prompt != some[17].prompt and other.key != PLAN.key
    types = Counter(one.row["task_type"] for one in some)
    assert set(types) == set(TASK_TYPES) and abs(types["short-long"] / 3_000 - 167 / 507) < 0.03
    languages = Counter(one.row["language"] for one in some)
    assert abs(languages["en"] / 3_000 - 0.431) < 0.03 and len(languages) == 93
    for one in some[:300]:
        row = one.row
        assert all(value in one.prompt for value in row["dials"].values()) and row["instruction"] in one.prompt
        assert taxonomy.language_name(row["language"]) in one.prompt and "{" not in one.prompt
        assert (row["language"] != row["passage_language"]) == (row["task_type"] == "bitext")
        assert ("negative" in one.keys) == (row["task_type"] not in ("short-short", "long-long"))  # as the paper has it
    swahili = taxonomy.requests(PLAN._replace(languages=("sw", "sw", "yo")), range(300))
    assert 0.55 < Counter(one.row["language"] for one in swahili)["sw"] / 300 < 0.78


def test_a_plan_says_what_it_takes_and_is_the_same_twice(tmp_path):
    command = ("synthesise", "--out", str(tmp_path / "x"), "--count", "1500", "--price", "0.5", "1.5", "--model", "m")
    first, second = invoke(*command, "--plan"), invoke(*command, "--plan")
    assert first.stdout == second.stdout and not (tmp_path / "x").exists()
    assert "1,500 requests" in first.stdout and "0.54 M to write" in first.stdout and "--price" in first.stdout
    refused = invoke(*command, "--endpoint", "http://127.0.0.1:9/v1")
    assert refused.exit_code == 2 and "add --yes" in refused.stderr and refused.stdout == first.stdout
    assert invoke(*command).exit_code == 0  # written for a batch, with no endpoint at all
    written = (tmp_path / "x" / "requests.jsonl").read_bytes()
    assert hashlib.sha256(written).hexdigest() in first.stdout
    for number, line in enumerate(written.splitlines()):
        found = json.loads(line)
        assert found["custom_id"] == str(number) and found["url"] == "/v1/chat/completions" and found["body"]["model"] == "m"


def test_killed_at_20_moments_it_loses_nothing_and_asks_for_no_answer_twice(tmp_path):
    count, threads, draw = 150, 4, random.Random(0)
    with Loopback(FAULTS, seconds=(0.02, 0.5)) as server:
        ran(tmp_path / "straight", server, count=count, threads=threads, timeout=0.3)
    command = [sys.executable, "-m", "me5lib", "synthesise", "--out", str(tmp_path / "killed"), "--count", str(count),
               "--threads", str(threads), "--timeout", "0.3", "--model", Loopback.model, "--endpoint"]
    again, moments = 0, [("asked", n) for n in range(6, 126, 10)] + [("after", 0.1 * n) for n in range(1, 9)]
    with Loopback(FAULTS, seconds=(0.02, 0.5)) as server:
        for kind, moment in moments:
            done, before = set(answered(tmp_path / "killed")), server.asked.copy()
            process = subprocess.Popen([*command, server.url], stdout=subprocess.PIPE, text=True)
            if kind == "after":
                time.sleep(moment)
            while kind == "asked" and server.asked.total() < moment * 1.3 and process.poll() is None:
                time.sleep(draw.uniform(0, 0.01))
            process.send_signal(signal.SIGKILL)
            said = process.communicate()[0]
            assert not [number for number in done if server.asked[SEEDS[number]] != before[SEEDS[number]]]
            if "in flight" in said:
                assert 0 < int(said.split()[0]) <= threads
                again += int(said.split()[0])
        last = subprocess.run([*command, server.url], capture_output=True, text=True)
    assert last.returncode == 0 and f"0 of {count} requests without an answer" in last.stdout, last.stderr
    numbers = Counter(answered(tmp_path / "killed"))
    sent = Counter((tmp_path / "killed" / "sent.txt").read_text("utf8").split())
    assert set(numbers) == set(range(count)) and numbers.total() == count
    assert 20 < sent.total() - count <= again + threads
    for name in ("examples.jsonl", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


SEEDS = [one.seed for one in taxonomy.requests(PLAN, range(150))]


def answered(folder):
    return [number for number, _, _ in synthesise.answers(folder / "answers.jsonl")]


def test_a_line_that_a_kill_cut_short_is_dropped_and_asked_for_again(tmp_path):
    with Loopback() as server:
        ran(tmp_path, server, threads=1)
        whole = {name: (tmp_path / name).read_bytes() for name in ("answers.jsonl", "examples.jsonl")}
        (tmp_path / "answers.jsonl").write_bytes(whole["answers.jsonl"][:-40])
        assert "1 in flight when the last run ended: they go again" in ran(tmp_path, server, threads=1)
        assert server.asked.total() == 41
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_answers_are_counted_by_what_is_wrong_with_them(tmp_path):
    texts = {'{"query": "a b", "positive": "c", "negative": "d"}': "", '<think>{hm}</think>\n```json\n{"query": "q", "positive":'
             ' "p", "negative": "n"}\n```': "", '{"query": "q", "positive": 3, "negative": "n"}': "missing", "{": "no JSON",
             '{"query": " ", "positive": "p", "negative": "n"}': "missing", "__import__('os').abort()": "no JSON",
             "I cannot help with that": "a refusal", '{"query": "q", "query": "p"}': "twice", "[" * 99_999: "no JSON",
             '{"query": "\\ud800", "positive": "p", "negative": ["n"]}': "missing", '{"a":' * 99_999: "no JSON"}
    for text, why in texts.items():
        found, said = synthesise.read_answer({"choices": [{"message": {"content": text}}]}, ["query", "positive", "negative"])
        assert why in said and bool(found) == (said == ""), text[:60]
    for choice, why in (({"message": {"content": "{}"}, "finish_reason": "length"}, "cut by the token limit"),
                        ({"message": {"content": None, "refusal": "no"}}, "a refusal")):
        assert why in synthesise.read_answer({"choices": [choice]}, ["query"])[1]
    with Loopback(FAULTS, seconds=(0, 0.4)) as server:
        said = ran(tmp_path, server, count=120, timeout=0.3)
    for what in ("× 429", "× 500", "× ReadTimeoutError", "× ProtocolError", "× cut by", "× no JSON", "× a refusal",
                 "missing", "twice"):
        assert what in said
    rows = lines(tmp_path / "examples.jsonl")
    assert [Example(*(row[name] for name in Example._fields)) for row in rows] == read_examples(tmp_path / "examples.jsonl", True)
    assert "written by: 120 × synthetic-v1" in (tmp_path / "README.md").read_text("utf8")


def test_the_key_comes_from_the_environment_and_stays_out_of_files_and_words(tmp_path):
    secret, wrong = "sk-of-the-house-1234", "sk-of-another-5678"
    words = ("synthesise", "--out", str(tmp_path), "--count", "12", "--model", Loopback.model, "--endpoint")
    with Loopback(FAULTS, key=secret, seconds=(0, 0.4)) as server:
        bad = me5(*words, server.url, ME5_API_KEY=wrong)
        one_line(bad, "401", "no key '…'", "ME5_API_KEY")
        good = me5(*words, server.url, "--licence", "MIT", ME5_API_KEY=secret)
        assert good.returncode == 0 and "licence and terms of the model, as who ran it states them: MIT" in (
            tmp_path / "README.md").read_text("utf8"), good.stderr
        everything = bad.stdout + bad.stderr + good.stdout + good.stderr
        everything += "".join(path.read_text("utf8") for path in tmp_path.rglob("*") if path.is_file())
    assert secret not in everything and wrong not in everything and "sk-" not in everything


def test_what_an_endpoint_refuses_is_one_line(tmp_path, monkeypatch):
    with Loopback({"500": 0.0}) as server:
        for body, word in (({"model": "other"}, "no model 'other'"),):
            with pytest.raises(Me5Error, match=word):
                list(synthesise.run(PLAN, 4, tmp_path, body, server.url))
    with pytest.raises(Me5Error, match="is the server up"):
        ran(tmp_path, server, count=4)
    for url in ("127.0.0.1:8000", "https://name:secret@host/v1", "https://host/v1?key=secret"):
        one_line(invoke("synthesise", "--out", str(tmp_path), "--model", "m", "--endpoint", url), "ME5_API_KEY")
    with pytest.raises(Me5Error, match="answers to other requests"):
        ran(tmp_path, plan=PLAN._replace(seed=1))
    one_line(invoke("synthesise", "--out", str(tmp_path), "--model", "m", "--languages", "klingon"), "klingon")
    one_line(invoke("synthesise", "--out", str(tmp_path), "--model", "m", "--body", "x"), "--body")
    monkeypatch.setattr(synthesise, "PATIENCE", synthesise.PATIENCE.new(total=0))
    with Loopback({"500": 1.0}) as server, pytest.raises(Me5Error, match="no answer 3 times in a row .given up: 500"):
        ran(tmp_path, server, threads=3)


def test_a_batch_gives_the_same_examples_as_an_endpoint(tmp_path):
    with Loopback(FAULTS, seconds=(0, 0.4)) as server:
        ran(tmp_path / "endpoint", server, count=60, timeout=0.3)
        ran(tmp_path / "batch", count=60)
        asked = lines(tmp_path / "batch" / "requests.jsonl")
    done = {line["custom_id"]: line for line in lines(tmp_path / "endpoint" / "answers.jsonl")}
    given = [done[line["custom_id"]] for line in reversed(asked)]
    given[5] = given[5] | {"response": None, "error": {"code": "batch_expired"}}
    given[6] = given[6] | {"response": {"status_code": 429, "body": {}}}
    part = tmp_path / "output.jsonl"
    part.write_text("".join(json.dumps(line) + "\n" for line in [*given, given[0], {"custom_id": "x"}]), encoding="utf8")
    said = ran(tmp_path / "batch", count=60, batches=[part])
    assert "2 of 60 requests without an answer" in said and len(lines(tmp_path / "batch" / "requests.jsonl")) == 2
    part.write_text("".join(json.dumps(line) + "\n" for line in done.values()), encoding="utf8")
    assert "0 of 60" in ran(tmp_path / "batch", count=60, batches=[part])
    assert all((tmp_path / "batch" / name).read_bytes() == (tmp_path / "endpoint" / name).read_bytes()
               for name in ("examples.jsonl", "README.md"))


def test_tasks_are_thought_of_then_kept_then_used(tmp_path):
    words = ("synthesise", "--out", str(tmp_path), "--model", Loopback.model)
    with Loopback() as server:
        assert invoke(*words, "--brainstorm", "--count", "20", "--endpoint", server.url).exit_code == 0
        tasks = lines(tmp_path / "brainstorm" / "tasks.jsonl")
        assert len(tasks) == len({(task["task_type"], task["instruction"]) for task in tasks}) > 60
        assert invoke(*words, "--count", "30", "--endpoint", server.url).exit_code == 0
    known = {task["instruction"] for task in tasks} | set(taxonomy.WORDS["fixed"].values())
    assert {row["instruction"] for row in lines(tmp_path / "examples.jsonl")} <= known
    (tmp_path / "brainstorm" / "tasks.jsonl").write_text(json.dumps(tasks[0]) + "\n", encoding="utf8")
    one_line(invoke(*words, "--count", "30"), "answers to other requests")
    (tmp_path / "brainstorm" / "tasks.jsonl").write_text('{"task_type": "none"}\n', encoding="utf8")
    one_line(invoke(*words), "tasks.jsonl, line 1")


def test_questions_are_asked_of_documents_which_are_announced_to_leave(tmp_path, monkeypatch, capsys):
    own = tmp_path / "own"
    own.mkdir()
    texts = [f"Aya {n} ya hati hii inasema kwa urefu jinsi kijiji kinavyotunza visima vyake na kwa nini." for n in range(3)]
    (own / "a.txt").write_text("\n\n".join([*texts[:2], "fupi"]), encoding="utf8")
    (own / "b.jsonl").write_text(json.dumps({"text": texts[2], "language": "sw"}) + "\n", encoding="utf8")
    documents = taxonomy.read_documents(own)
    assert documents == ((texts[0], "und"), (texts[1], "und"), (texts[2], "sw"))
    plan = taxonomy.Plan(documents=documents)
    with Loopback() as server:
        ran(tmp_path / "out", server, plan, count=6)
    assert capsys.readouterr().err == ""
    rows = lines(tmp_path / "out" / "examples.jsonl")
    assert [row["positive"] for row in rows] == texts * 2 and [row["language"] for row in rows] == ["und", "und", "sw"] * 2
    assert rows[0]["group"] == rows[3]["group"] != rows[1]["group"] and "summary" not in rows[0]
    monkeypatch.setattr(synthesise, "send", lambda *_: Counter())
    list(synthesise.run(plan, 6, tmp_path / "far", BODY, "https://llm.invalid/v1"))
    assert capsys.readouterr().err == "me5: the documents leave this machine, for llm.invalid\n"
    with pytest.raises(Me5Error, match="no passage"):
        taxonomy.read_documents(tmp_path / "nowhere.txt")
