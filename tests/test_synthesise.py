"""`me5 synthesise`: requests by number, an endpoint with every fault, kills, batches."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from random import Random

from conftest import me5
from test_cli import invoke, one_line

from me5lib.instruct import synthesise, taxonomy
from me5lib.instruct.loopback import Loopback
from me5lib.instruct.synthesise import write_lines
from me5lib.instruct.synthetic import TASK_TYPES, Example, read_examples

FAULTS = {"429": 0.1, "500": 0.1, "time-out": 0.02, "half": 0.1, "cut": 0.05, "prose": 0.05, "refusal": 0.05,
          "key": 0.05, "twice": 0.05, "fenced": 0.1}
ONCE = ("429", "500", "time-out", "half")  # faults of a request's first try; the others are for good
SPOILT = {"cut": '{"query": "How do', "prose": "Here is what you asked for.", "refusal": "I'm sorry, I can't do that.",
          "key": '{"query": "alone"}', "twice": '{"query": "a", "query": "b"}', "fenced": "```json\n%s\n```"}
PLAN = taxonomy.Plan(0, taxonomy.read_tasks())
COUNT, THREADS = 150, 4
SEEDS = [one.seed for one in taxonomy.requests(PLAN, range(COUNT))]
BODY = {"model": Loopback.model}


class Faulty(Loopback):
    """Faults, and their shares of the requests; the seconds that an answer takes, and that one hangs that times out."""

    def __init__(self, faults, seconds=(0, 2), key=""):
        super().__init__(key=key)
        self.faults, self.seconds = faults, seconds

    def respond(self, asked, key):
        status, body = super().respond(asked, key)
        place, again = Random(asked["seed"]).random(), self.asked[asked["seed"]] > 1
        fault = next((name for name in self.faults if (place := place - self.faults[name]) < 0), "")
        fault = "" if status != 200 or (fault in ONCE and again) else fault
        time.sleep(self.seconds[fault == "time-out"])
        if fault == "half":
            raise ConnectionAbortedError
        for choice in body.get("choices", ()):
            text = choice["message"]["content"]
            choice |= {"message": {"content": SPOILT.get(fault, "%s").replace("%s", text)},
                       "finish_reason": "length" if fault == "cut" else "stop"}
        return int(fault) if fault.isdigit() else status, body


def lines(path):
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def answered(folder):
    return Counter(number for number, _, _ in synthesise.answers(folder / "answers.jsonl"))


def ran(folder, server=None, plan=PLAN, count=40, **options):
    """What a run in this process says."""
    return "\n".join(synthesise.run(plan, count, folder, BODY, server.url if server else "", **options))


def test_a_request_is_a_function_of_seed_number_and_tasks():
    some = list(taxonomy.requests(PLAN, range(3_000)))
    assert some[17:18] == list(taxonomy.requests(PLAN, [17])) and len({one.seed for one in some}) > 2_990
    for other in (PLAN._replace(seed=1), PLAN._replace(tasks=PLAN.tasks[1:]), PLAN._replace(languages=("en",))):
        assert other.key != PLAN.key and next(taxonomy.requests(other, [17])).prompt != some[17].prompt
    types, languages = (Counter(one.row[name] for one in some) for name in ("task_type", "language"))
    assert (set(types), len(languages)) == (set(TASK_TYPES), 93)
    assert abs(types["short-long"] / 3_000 - 167 / 507) < 0.03 and abs(languages["en"] / 3_000 - 0.431) < 0.03
    for one in some[:300]:
        wanted = [*one.row["dials"].values(), one.row["instruction"], taxonomy.language_name(one.row["language"])]
        assert all(words in one.prompt for words in wanted) and "{" not in one.prompt
        assert (one.row["language"] != one.row["passage_language"]) == (one.row["task_type"] == "bitext")
        assert ("negative" in one.keys) == (one.row["task_type"] not in ("short-short", "long-long"))  # as the paper's
    swahili = taxonomy.requests(PLAN._replace(languages=("sw", "sw", "yo")), range(300))
    assert 0.55 < Counter(one.row["language"] for one in swahili)["sw"] / 300 < 0.78


def test_a_plan_says_what_it_takes_and_is_the_same_twice(tmp_path):
    command = ("synthesise", "--out", str(tmp_path / "x"), "--count", "1500", "--price", "0.5", "1.5", "--model", "m")
    first, second = invoke(*command, "--plan"), invoke(*command, "--plan")
    assert first.stdout == second.stdout and not (tmp_path / "x").exists()
    assert all(words in first.stdout for words in ("1,500 requests", "0.54 M to write", "(--price)"))
    refused = invoke(*command, "--endpoint", "http://127.0.0.1:9/v1")
    assert refused.exit_code == 2 and "add --yes" in refused.stderr and refused.stdout == first.stdout
    assert invoke(*command).exit_code == 0  # for a batch, without an endpoint
    for number, line in enumerate(lines(tmp_path / "x" / "requests.jsonl")):
        name = f"{PLAN.key:.6}-{number}"
        assert (line["custom_id"], line["url"], line["body"]["model"]) == (name, "/v1/chat/completions", "m")


def test_killed_at_20_moments_it_loses_nothing_and_asks_for_no_answer_twice(tmp_path):
    straight, folder, again = tmp_path / "straight", tmp_path / "killed", 0
    with Faulty(FAULTS, seconds=(0.02, 1.5)) as server:
        ran(straight, server, count=COUNT, threads=THREADS, timeout=1.0)
    moments = [("asked", n) for n in range(8, 164, 13)] + [("seconds", 0.1 * n) for n in range(1, 9)]
    with Faulty(FAULTS, seconds=(0.02, 1.5)) as server:
        command = [sys.executable, "-m", "me5lib", "synthesise", "--out", folder, "--count", str(COUNT), "--threads",
                   str(THREADS), "--timeout", "1", "--model", Loopback.model, "--endpoint", server.url]
        for kind, moment in moments:
            done, before = answered(folder), server.asked.copy()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            time.sleep(moment if kind == "seconds" else 0)
            while kind == "asked" and server.asked.total() < moment and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            asked = {number for number, seed in enumerate(SEEDS) if server.asked[seed] != before[seed]}
            in_flight = asked - answered(folder).keys()
            assert not asked & done.keys() and len(in_flight) <= THREADS
            again += len(in_flight)
        last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0 and f"0 of {COUNT} requests without an answer" in last.stdout, last.stderr
    assert answered(folder) == Counter(range(COUNT)) and again > 10
    for name in ("examples.jsonl", "README.md"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()


def test_a_line_that_a_kill_cut_short_is_dropped_and_asked_for_again(tmp_path):
    with Loopback() as server:
        ran(tmp_path, server, threads=1)
        whole = {name: (tmp_path / name).read_bytes() for name in ("answers.jsonl", "examples.jsonl")}
        (tmp_path / "answers.jsonl").write_bytes(whole["answers.jsonl"][:-40])
        said = ran(tmp_path, server, threads=1)
        assert "0 of 40 requests without an answer" in said and server.asked.total() == 41
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_answers_are_counted_by_what_is_wrong_with_them(tmp_path):
    good = '{"query": "a  b", "positive": "c", "negative": "d"}'
    for text, why in (
            (good, ""), (f"<think>{{</think>\n```json\n{good}\n```", ""), (good.replace("d", "\\ud800"), ""),
            (good.replace('"a  b"', '" "'), "missing"), (good.replace('"c"', '["c"]'), "missing"), ("{}", "missing"),
            (good[:-1], "no JSON"), ('{"a":' * 99_999, "no JSON"), ("__import__('os').abort()", "no JSON"),
            ("I cannot help with that", "a refusal"), (good.replace("positive", "query"), "twice")):
        body = {"choices": [{"message": {"content": text}}]}
        found, said = synthesise.read_answer(body, ["query", "positive", "negative"])
        assert bool(why) == bool(said) != bool(found) and why in said and found.get("query", "a b") == "a b", text[:60]
        assert "".join(found.values()).encode("utf8") is not None  # no half of a character
    with Faulty(FAULTS, seconds=(0, 0.7)) as server:
        said = ran(tmp_path, server, count=120, timeout=0.5)
    for name in "429", "500", "ReadTimeout", "Protocol", "cut by", "no JSON", "a refusal", "a key comes", "a key is":
        assert f"× {name}" in said
    rows = [Example(*(row[name] for name in Example._fields)) for row in lines(tmp_path / "examples.jsonl")]
    assert rows == read_examples(tmp_path / "examples.jsonl", drafts=True) and len(rows) > 80


def test_the_key_comes_from_the_environment_and_stays_out_of_files_and_words(tmp_path):
    secret, wrong = "sk-of-the-house-1234", "sk-of-another-5678"
    words = ("synthesise", "--out", str(tmp_path), "--count", "12", "--model", Loopback.model, "--endpoint")
    with Faulty({"500": 0.3}, key=secret) as server:
        bad = me5(*words, server.url, ME5_API_KEY=wrong)
        one_line(bad, "401", "no key '…'", "ME5_API_KEY")
        good = me5(*words, server.url, "--licence", "MIT", ME5_API_KEY=secret)
    files = [path.read_text("utf8") for path in tmp_path.rglob("*") if path.is_file()]
    assert good.returncode == 0 and len(files) > 4 and "states them: MIT" in "".join(files), good.stderr
    assert "sk-" not in "".join([*files, bad.stdout, bad.stderr, good.stdout, good.stderr])


def test_what_cannot_go_on_is_one_line(tmp_path, monkeypatch):
    words = ("synthesise", "--out", str(tmp_path), "--count", "20", "--threads", "3")
    monkeypatch.setattr(synthesise, "PATIENCE", synthesise.PATIENCE.new(total=0))
    with Faulty({"500": 1.0}) as server:
        one_line(invoke(*words, "--model", "other", "--endpoint", server.url), "404", "no model 'other'", "--model")
        one_line(invoke(*words, "--model", server.model, "--endpoint", server.url), "3 times in a row (given up: 500")
    for option, value, said in (
            ("--endpoint", server.url, "is the server up"), ("--endpoint", "127.0.0.1:8000", "ME5_API_KEY"),
            ("--endpoint", "https://name:key@host/v1", "ME5_API_KEY"), ("--languages", "klingon", "'klingon'"),
            ("--endpoint", "https://host/v1?key=secret", "ME5_API_KEY"), ("--seed", "1", "other requests"),
            ("--body", "x", "--body"), ("--answers", "x", "no such file")):
        one_line(invoke(*words, "--model", "m", option, value), said)
    one_line(invoke(*words), "--model")


def test_a_batch_gives_the_same_examples_as_an_endpoint(tmp_path):
    endpoint, batch, part = tmp_path / "endpoint", tmp_path / "batch", tmp_path / "output.jsonl"
    with Faulty(FAULTS, seconds=(0, 0.7)) as server:
        ran(endpoint, server, count=60, timeout=0.5)
    ran(batch, count=60)
    done = {line["custom_id"]: line for line in lines(endpoint / "answers.jsonl")}
    given = [done[line["custom_id"]] for line in reversed(lines(batch / "requests.jsonl"))]
    write_lines(part, [given[0] | {"response": None, "error": {"code": "batch_expired"}}, {"custom_id": "x"},
               given[1] | {"response": {"status_code": 429, "body": {}}}, *given[2:], given[2]])
    assert "2 of 60 requests without an answer" in ran(batch, count=60, batches=[part])
    assert [line["custom_id"][7:] for line in lines(batch / "requests.jsonl")] == ["58", "59"]
    write_lines(part, given)
    assert "0 of 60" in ran(batch, count=60, batches=[part]) and answered(batch).total() == 61  # one came twice
    for name in ("examples.jsonl", "README.md"):
        assert (batch / name).read_bytes() == (endpoint / name).read_bytes()


def test_answers_to_another_plan_are_refused_and_those_taken_are_counted(tmp_path):
    given, endpoint, plain = (tmp_path / name for name in ("output.jsonl", "endpoint", "plain.jsonl"))
    with Loopback() as server:
        ran(endpoint, server, count=9)
    done = lines(endpoint / "answers.jsonl")
    write_lines(given, done)
    words = ("synthesise", "--out", str(tmp_path / "out"), "--count", "9", "--model", "m", "--answers", str(given))
    one_line(invoke(*words, "--seed", "1"), str(given), "other requests")
    assert not (tmp_path / "out" / "answers.jsonl").exists()
    write_lines(plain, [line | {"custom_id": line["custom_id"][7:]} for line in done])  # as older versions wrote them
    assert "9 answers\n0 of 9" in ran(tmp_path / "old", count=9, batches=[plain])
    plain.write_bytes(os.urandom(3_000))
    assert "plain.jsonl: 0 answers" in ran(tmp_path / "none", count=9, batches=[plain])


def test_answers_of_odd_forms_are_read_or_left_out(tmp_path):
    odd = [{"message": [["content", "x"]]}, {"message": {"content": "{}"}}, {"message": {"content": "{}"}}]
    bodies = [{"choices": [choice], "usage": [1], "model": "\ud800"} for choice in odd]
    names = ["0", "1", float("inf")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"custom_id": name, "response": {"body": body}})
                                                for name, body in zip(names, bodies, strict=True)))
    assert "2 of 3 requests without an answer" in ran(tmp_path / "out", count=3, batches=[tmp_path / "a.jsonl"])
    assert "written by: 1 × ?\n" in (tmp_path / "out" / "README.md").read_text("utf8")


def test_an_odd_address_or_reply_is_one_line(tmp_path, monkeypatch):
    words = ("synthesise", "--out", str(tmp_path), "--count", "3", "--threads", "2", "--model", Loopback.model)
    for host in ("127.0.0.1:999999", "[::1", "a" * 80 + ".invalid"):
        one_line(invoke(*words, "--endpoint", f"http://{host}/v1"), "is the server up", "same command")
    with Loopback() as server:
        monkeypatch.setattr(server.RequestHandlerClass, "end_headers", lambda self: self.send_header(
            "Content-Encoding", "gzip") or BaseHTTPRequestHandler.end_headers(self))  # which it is not
        one_line(invoke(*words, "--endpoint", server.url), "2 times in a row (given up: DecodeError)")


def test_what_cannot_be_read_or_written_is_one_line(tmp_path):
    words = ("synthesise", "--out", str(tmp_path / "out"), "--count", "3", "--model", "m")
    tasks = tmp_path / "tasks.jsonl"
    good = {"task_type": "sts", "instruction": "a"}
    for text in ("[" * 99_999, "", *(json.dumps(good | {"instruction": words}) for words in (" ", None, "\ud800"))):
        tasks.write_text(text, "utf8")
        one_line(invoke(*words, "--tasks", str(tasks)), "no list of tasks")
    tasks.write_text(json.dumps(good | {"instruction": "a\u2028b"}, ensure_ascii=False), "utf8")
    assert ("sts", "a\u2028b") in taxonomy.read_tasks(tasks)
    one_line(invoke(*words, "--body", '{"a":' * 99_999), "--body")
    one_line(invoke(*words, "--sheet", "x.csv"), "--check")
    (tmp_path / "out" / "answers.jsonl").mkdir(parents=True)
    one_line(invoke(*words, "--endpoint", "http://127.0.0.1:9/v1"), "answers.jsonl cannot be written")


def test_null_takes_any_value_out_of_a_request():
    body = next(synthesise.batch(PLAN, [0], {"seed": None, "top_p": None, "model": "m"}))["body"]
    assert set(body) == {"messages", "temperature", "max_tokens", "response_format", "model"}


def test_tasks_are_thought_of_then_used_and_their_list_is_frozen(tmp_path):
    listed = tmp_path / "brainstorm/tasks.jsonl"
    words = ("synthesise", "--out", str(tmp_path), "--model", Loopback.model)
    with Loopback() as server:
        assert invoke(*words, "--brainstorm", "--count", "20", "--endpoint", server.url).exit_code == 0
        assert invoke(*words, "--count", "30", "--endpoint", server.url).exit_code == 0
    tasks = lines(listed)
    known = {task["instruction"] for task in tasks} | {*taxonomy.WORDS["fixed"].values()}
    assert len({(task["task_type"], task["instruction"]) for task in tasks}) == len(tasks) > 60
    assert {row["instruction"] for row in lines(tmp_path / "examples.jsonl")} <= known
    write_lines(listed, tasks[1:])
    one_line(invoke(*words, "--count", "30"), "answers to other requests")
    write_lines(listed, [{"task_type": "none", "instruction": "?"}])
    one_line(invoke(*words), "tasks.jsonl", "'none'")
