"""A chat endpoint on the loopback address that answers from synthetic-v1: for a class without a key, and for tests.

    with Loopback({"429": 0.1, "prose": 0.05}) as server:           # faults, and their shares of the requests
        subprocess.run(["me5", "synthesise", "--endpoint", server.url, "--model", server.model])

No model is at work: an answer is a row of the task type, where there is one of the instruction and language asked for.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

from me5lib.instruct.synthetic import read_examples
from me5lib.instruct.taxonomy import WORDS, language_name

ONCE = ("429", "500", "time-out", "half")  # faults of a request's first try; the others are for good
SPOILT = {"cut": '{"query": "How do', "prose": "Here is what you asked for.", "refusal": "I'm sorry, I can't do that.",
          "key": '{"query": "alone"}', "twice": '{"query": "a", "query": "b"}', "fenced": "```json\n%s\n```"}


class Loopback(ThreadingHTTPServer):
    """The server. `key`: the one that it wants; `seconds`: that an answer takes, and that one hangs that times out."""

    model, daemon_threads = "synthetic-v1", True
    handle_error = staticmethod(lambda *_: None)  # a client may be gone before its answer

    def __init__(self, faults: Mapping[str, float] | None = None, key: str = "", seconds: tuple[float, float] = (0, 2)):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.key, self.seconds, self.rows = faults or {}, key, seconds, read_examples()
        self.url, self.asked = f"http://127.0.0.1:{self.server_port}/v1", Counter()  # how often, by the request's seed
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def text(self, prompt: str, draw: Random) -> str:
        """The answer to a prompt."""
        name = next(name for name, words in WORDS["prompts"].items() if prompt.startswith(words.split("{")[0]))
        kind = next((kind for kind, words in WORDS["kinds"].items() if words in prompt), name)
        rows = [row for row in self.rows if row.task_type == kind.replace("document", "short-long")]
        if name == "brainstorm":
            return json.dumps({"tasks": draw.sample(sorted({row.instruction for row in rows}), 12)})
        row = max(rows, key=lambda r: (r.instruction in prompt, language_name(r.language) in prompt, draw.random()))
        return json.dumps({"summary": "this is synthetic-v1, of another passage", **row._asdict()})


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    log_message = staticmethod(lambda *_: None)

    def do_POST(self) -> None:
        """An answer, or the planted fault whose turn it is."""
        asked, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        key, draw = self.headers.get("Authorization", "").removeprefix("Bearer "), Random(asked["seed"])
        server.asked[asked["seed"]] += 1
        place, faults = draw.random(), server.faults
        fault = next((name for name in faults if (place := place - faults[name]) < 0), "")
        fault = "" if fault in ONCE and server.asked[asked["seed"]] > 1 else fault
        time.sleep(server.seconds[fault == "time-out"])
        text = SPOILT.get(fault, "%s").replace("%s", server.text(asked["messages"][0]["content"], draw))
        choice = {"message": {"content": text}, "finish_reason": "length" if fault == "cut" else "stop"}
        usage = {"prompt_tokens": len(str(asked["messages"]).split()), "completion_tokens": len(text.split())}
        status, body = fault if fault.isdigit() else 200, {"model": server.model, "choices": [choice], "usage": usage}
        if key != server.key or asked["model"] != server.model:
            status = 401 if key != server.key else 404
            body = {"error": {"message": f"no key {key!r}" if status == 401 else f"no model {asked['model']!r}"}}
        raw = json.dumps(body).encode()
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.close_connection = fault == "half"
        self.wfile.write(raw[: len(raw) // 2] if fault == "half" else raw)
