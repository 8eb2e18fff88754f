"""Requests of a plan to a language model, and its answers as examples. A folder holds, by lines of JSON:

    requests.jsonl    those without an answer, as batch APIs and `vllm run-batch` take them (in parts: `split -l 50000`)
    answers.jsonl     as a batch gives them back, in the order in which they came; `custom_id` is the plan and number
    examples.jsonl    what can be read of them, by number (tasks.jsonl of a plan without tasks); README.md is its card

Resume is the set difference. An answer stands in its file before its thread takes another request: a kill costs what is
in flight, one request a thread. Answers are read as JSON, never run. The endpoint's key comes from the environment and
goes to the endpoint alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import urllib3
from tqdm import tqdm

from me5lib import io
from me5lib.instruct.quality import REFUSAL
from me5lib.instruct.synthetic import Example
from me5lib.instruct.taxonomy import Plan, Request, one_line, requests
from me5lib.io import Me5Error
from me5lib.pairs import normalise, text_key

KEY = "ME5_API_KEY"  # of the environment
SIGNS, WRITTEN = 4, 360  # a token: signs of English (ours); an example: tokens (E5-mistral: 180 M for 500,000)
BODY = {"temperature": 1.0, "top_p": 1.0,  # E5-mistral's; the rest ours: two passages of 500 words, 3 tokens a word
        "max_tokens": 3_000, "response_format": {"type": "json_object"}}
PATIENCE = urllib3.Retry(8, connect=2, read=3, allowed_methods=None, backoff_factor=0.5, raise_on_status=False,
                         status_forcelist=[408, 409, 425, 429, *range(500, 600)])  # ours; Retry-After goes before
CARD = "# Synthetic examples\n\nBy a language model; nobody checked them: see `me5 synthesise --check FILE`.\n\n"


def batch(plan: Plan, numbers: Sequence[int], body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of requests.jsonl. `body`: the model, and what goes beside or before `BODY`; None takes a value out."""
    for one in requests(plan, numbers):
        asked = {"messages": [{"role": "user", "content": one.prompt}], "seed": one.seed} | BODY | body
        yield {"custom_id": f"{plan.key:.6}-{one.number}", "method": "POST", "url": "/v1/chat/completions",
               "body": {name: value for name, value in asked.items() if value is not None}}


def estimate(plan: Plan, numbers: Sequence[int], rate: float, price: Sequence[float]) -> list[str]:
    """What requests will take, in words. `price`: of a million tokens read, and written."""
    read = sum(len(one.prompt) for one in requests(plan, numbers)) / SIGNS / 1e6
    written = len(numbers) * WRITTEN / 1e6
    return [f"{len(numbers):,} requests",
            f"estimated: {read:,.2f} M tokens to read ({SIGNS} signs each), {written:,.2f} M to write ({WRITTEN} each, "
            f"E5-mistral's mean), {written * 1e6 / rate / 3600:,.1f} hours at {rate:,.0f} a second (--rate), "
            f"{read * price[0] + written * price[1]:,.2f} at {price[0]:g} and {price[1]:g} a million (--price)"]


def write_lines(beside: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write lines of JSON."""
    with beside.open("w", encoding="utf8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def answers(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and line of every answer in a file. Errors, and a line that a kill cut short, are none."""
    place = 0
    with path.open("rb") if path.is_file() else contextlib.nullcontext([]) as lines:
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                found = json.loads(line)
                if dict(**found["response"]["body"]["choices"][0]["message"]):
                    yield int(str(found["custom_id"]).rpartition("-")[2]), place, line
            place += len(line)


def unanswered(folder: Path, count: int) -> list[int]:
    """The numbers below `count` that have no answer."""
    done = {number for number, _, _ in answers(folder / "answers.jsonl")}
    return [number for number in range(count) if number not in done]


def appended(path: Path) -> BinaryIO:
    """A file to append to, without a last line that a kill cut short (of 16 MB at most: ours)."""
    file = path.open("a+b")
    file.seek(max(0, file.tell() - 2**24))
    tail = file.read()
    file.truncate(file.tell() - len(tail) + tail.rfind(b"\n") + 1)
    return file


def send(lines: Iterator[dict], total: int, folder: Path, url: str, threads: int, timeout: float) -> Counter[str]:
    """Post a batch's lines and append the answers; what was met, by name. Raises `Me5Error` where no more will come."""
    met, errors, lock, silent = Counter(), [], threading.Lock(), 0  # requests given up since the last answer
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it warns of is counted

    def work() -> None:
        """One thread's requests, until there is none left or one thread has failed."""
        nonlocal silent
        pool = urllib3.PoolManager(retries=PATIENCE, timeout=urllib3.Timeout(connect=min(timeout, 10.0), read=timeout))
        try:
            while not errors:
                with lock:
                    if (line := next(lines, None)) is None:
                        return
                found, names = _post(pool, url, line["body"])
                with lock:
                    met.update(names)
                    silent = 0 if found else silent + 1
                    if silent >= threads:
                        raise Me5Error(f"no answer {silent} times in a row ({names[-1]}): the same command goes on")
                    if found:
                        answer = {"response": {"status_code": 200, "body": found}, "error": None}
                        kept.write(json.dumps({"custom_id": line["custom_id"]} | answer).encode() + b"\n")
                        kept.flush()
                        bar.update()
        except Exception as error:  # for the thread that waits
            errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    bar = tqdm(total=total, desc="answers", disable=None)  # where a person looks on
    with appended(folder / "answers.jsonl") as kept, bar:
        for step in (threading.Thread.start, threading.Thread.join):
            for worker in workers:
                step(worker)
    for error in errors:
        raise io.unwritten(folder, error) if isinstance(error, OSError) else error
    return met


def _post(pool: urllib3.PoolManager, url: str, body: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The answer to a request, or None, and what was met on the way. Raises `Me5Error` for what no wait mends."""
    if not re.fullmatch(r"[!-~]*", key := os.environ.get(KEY, "").strip()):
        raise Me5Error(f"{KEY} holds signs that no key has")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        response = pool.request("POST", url, body=json.dumps(body), headers=headers, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        reason, failed = getattr(error, "reason", error), urllib3.exceptions
        if isinstance(reason, failed.NewConnectionError | failed.ConnectTimeoutError | failed.LocationParseError):
            raise Me5Error(f"no connection to {url}. Is it right, is the server up? The same command goes on") from None
        return None, [f"given up: {type(reason).__name__}"]
    met = [str(past.status or type(past.error).__name__) for past in response.retries.history]
    said = response.data.decode("utf8", "replace")
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        found = json.loads(said)
        if response.status == 200 and dict(**found["choices"][0]["message"]):
            return found, met
        said = str(found["error"]["message"])
    said = " ".join(said.replace(key or "\n", "…").split())[:200]  # some servers repeat the key
    if response.status in (401, 403, 404):
        remedy = "look at --endpoint and --model" if response.status == 404 else f"its key is read from {KEY}"
        raise Me5Error(f"{url} says {response.status}, {said}: {remedy}")
    return None, [*met, f"given up: {response.status} {said}"]


def read_answer(body: dict[str, Any], keys: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The object in an answer, whatever Markdown or thoughts stand around it; and why it is none, or ""."""
    choice = body["choices"][0]
    text, end = str(choice["message"].get("content") or "").rpartition("</think>")[2], choice.get("finish_reason")
    if end == "length":
        return {}, "cut by the token limit (--body '{\"max_tokens\": 6000}' raises it)"
    try:
        pairs, _ = json.JSONDecoder(object_pairs_hook=list).raw_decode(text, text.index("{"))
    except (ValueError, RecursionError):
        refused = choice["message"].get("refusal") or end == "content_filter" or REFUSAL.search(text)
        return {}, "a refusal" if refused else "no JSON object"
    if len(dict(pairs)) < len(pairs):
        return {}, "a key comes twice"
    texts: dict[str, Any] = {key: one_line(value) for key, value in pairs if key in keys and key != "tasks"}
    if keys == ["tasks"] and isinstance(tasks := dict(pairs).get("tasks"), list):
        texts["tasks"] = [text for each in tasks if (text := one_line(each))]
    return (texts, "") if all(map(texts.get, keys)) else ({}, "a key is missing, or holds no text")


def rows_of(plan: Plan, request: Request, texts: dict[str, Any], seen: dict[Any, int]) -> Iterator[dict[str, Any]]:
    """The tasks of an answer that are new, or its example. `seen`: a text → the first row that has it."""
    for words in texts.get("tasks", ()):
        if (key := (request.row["task_type"], normalise(words))) not in seen:
            seen[key] = request.number
            yield {"task_type": request.row["task_type"], "instruction": words, **request.row["dials"]}
    if "query" in texts:
        row = dict.fromkeys(Example._fields, "") | request.row | texts
        keys = [text_key(row["query"]), *[text_key(row["positive"])] * (row["task_type"] != "long-short")]  # no labels
        group = min((seen[key] for key in keys if key in seen), default=request.number)
        seen |= dict.fromkeys(keys, group)
        yield row | {"id": f"{plan.key[:6]}-{request.number}", "group": group}


def collect(plan: Plan, count: int, folder: Path, licence: str) -> list[str]:
    """Write the examples (or tasks) in the order of their numbers, and the card: what it says of them."""
    path, seen, met = folder / "answers.jsonl", {}, defaultdict(Counter)
    places = {number: place for number, place, _ in answers(path) if 0 <= number < count}

    def rows() -> Iterator[dict[str, Any]]:
        """Of every answer that can be read, counted on the way."""
        with path.open("rb") as lines:
            for request in requests(plan, sorted(places)):
                lines.seek(places[request.number])
                body = json.loads(lines.readline())["response"]["body"]
                met["written by"][one_line(str(body.get("model")))] += 1
                used = body["usage"].items() if isinstance(body.get("usage"), dict) else ()
                met["tokens"].update({one_line(name): n for name, n in used if isinstance(n, int)})
                texts, why = read_answer(body, request.keys)
                met["left out"].update([why] * bool(why))
                for row in rows_of(plan, request, texts, seen):
                    met["kept"][row["task_type"]] += 1
                    yield row

    name = "examples.jsonl" if plan.tasks else "tasks.jsonl"
    io.put(folder / name, partial(write_lines, rows=rows()))
    about = [f"{name}: " + ", ".join(f"{n:,} × {what}" for what, n in sorted(met[name].items()))
             for name in ("kept", "left out", "written by", "tokens") if met[name]]
    card = [f"licence and terms of the model, as who ran it states them: {licence}", *about,
            f"plan {plan.key}, seed {plan.seed}, {len(places):,} answers"]
    io.put_text(folder / "README.md", CARD + "".join(f"- {line}\n" for line in card))
    return about


def run(plan: Plan, count: int, folder: Path, body: dict[str, Any], url: str = "", threads: int = 8,
        timeout: float = 600.0, batches: Sequence[Path] = (), licence: str = "") -> Iterator[str]:
    """Take what batches gave back, send the rest or write it for one, collect: what came of it. Raises `Me5Error`."""
    if url and not re.fullmatch(r"https?://[^\s/@?]+(/[^\s@?]*)?", url):
        raise Me5Error(f"--endpoint: an address as http://127.0.0.1:8000/v1 is wanted; a key goes into {KEY}")
    with io.locked(folder / ".lock"):
        about = io.read_json(folder / "plan.json", {"plan": plan.key, "licence": "not stated: say it with --licence"})
        if about["plan"] != plan.key:
            raise Me5Error(f"{folder} has answers to other requests (by seed, tasks or languages): choose another "
                           "--out")
        about["licence"] = licence or about["licence"]
        io.put_json(folder / "plan.json", about)
        for file in batches:
            if not file.is_file():
                raise Me5Error(f"--answers {file}: there is no such file")
            wanted = set(unanswered(folder, count))
            whose = Counter(str(json.loads(line)["custom_id"])[: -len(str(n))] for n, _, line in answers(file))
            if not whose.keys() <= {"", f"{plan.key:.6}-"}:  # bare numbers: of requests that older versions wrote
                raise Me5Error(f"--answers {file} has answers to other requests than those of {folder}")
            yield f"{file}: {whose.total():,} answers"
            with appended(folder / "answers.jsonl") as kept:
                kept.writelines(line.rstrip() + b"\n" for number, _, line in answers(file) if number in wanted)
        todo = unanswered(folder, count)
        if url and todo:
            chat = url.rstrip("/") + "/chat/completions"
            met = send(batch(plan, todo, body), len(todo), folder, chat, threads, timeout)
            yield "met on the way: " + (", ".join(f"{n:,} × {what}" for what, n in met.most_common(9)) or "nothing")
            todo = unanswered(folder, count)
        elif todo and body.get("model"):
            io.put(folder / "requests.jsonl", partial(write_lines, rows=batch(plan, todo, body)))
        where = f": {folder / 'requests.jsonl'}" if todo and body.get("model") and not url else ""
        yield f"{len(todo):,} of {count:,} requests without an answer{where}"
        if len(todo) < count:
            yield from collect(plan, count, folder, about["licence"])
