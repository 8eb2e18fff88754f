"""A chat endpoint on the loopback address that answers from synthetic-v1: for a class without a key, and for tests.

    with Loopback(busy=0.1) as server:           # share of the requests that are first told to come again (429)
        subprocess.run(["me5", "synthesise", "--endpoint", server.url, "--model", server.model])

No model is at work: an answer is a row of the task type, where there is one of the instruction and language asked for.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

from me5lib.instruct.synthetic import read_examples
from me5lib.instruct.taxonomy import WORDS, language_name


class Loopback(ThreadingHTTPServer):
    """The server. `busy`: the share of requests whose first try gets 429; `key`: the one that it wants."""

    model, daemon_threads = "synthetic-v1", True
    handle_error = staticmethod(lambda *_: None)  # a client may be gone before its answer

    def __init__(self, busy: float = 0.0, key: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.busy, self.key, self.rows = busy, key, read_examples()
        self.url, self.asked = f"http://127.0.0.1:{self.server_port}/v1", Counter()  # how often, by the request's seed
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def text(self, prompt: str, draw: Random) -> str:
        """The answer to a prompt."""
        name = next(name for name, words in WORDS["prompts"].items() if prompt.startswith(words.split("{")[0]))
        kind = next((kind for kind, words in WORDS["kinds"].items() if words in prompt), name)
        rows = [row for row in self.rows if row.task_type == kind]
        if name == "brainstorm":
            return json.dumps({"tasks": draw.sample(sorted({row.instruction for row in rows}), 12)})
        row = max(rows, key=lambda r: (r.instruction in prompt, language_name(r.language) in prompt, draw.random()))
        return json.dumps(row._asdict())

    def respond(self, asked: Mapping[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the response to a request that came with this key."""
        draw, prompt = Random(asked["seed"]), asked["messages"][0]["content"]
        self.asked[asked["seed"]] += 1
        if key != self.key or asked["model"] != self.model:
            unknown = f"no key {key!r}" if key != self.key else f"no model {asked['model']!r}"
            return 401 if key != self.key else 404, {"error": {"message": unknown}}
        if draw.random() < self.busy and self.asked[asked["seed"]] == 1:
            return 429, {}
        text = self.text(prompt, draw)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, {"model": self.model, "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    log_message = staticmethod(lambda *_: None)

    def do_POST(self) -> None:
        """What the server responds."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status, body = self.server.respond(asked, key)
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
