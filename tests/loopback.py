"""A small Hugging Face hub on the loopback address: what the real clients are tested against, without a network.

    with Loopback(root, fails=lambda n: 503 if n % 5 == 0 else 0) as hub:
        subprocess.run(…, env={"HF_ENDPOINT": hub.endpoint})
    hub.requests                               # [("GET", "/datasets/…/resolve/…", 206), …]

It serves `root/{datasets,models}/<owner>/<name>/…`, read-only: information on a repository and on paths, its tree in
pages, files by HEAD or GET, whole or in a range. A repository has one commit, whatever revision it is asked for by.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Answer(Exception):
    """Ends a request: status, body, headers."""
    def __init__(self, status: int, body: bytes = b"", **headers: str):
        self.status, self.body, self.headers = status, body, {k.replace("_", "-"): v for k, v in headers.items()}


def data(given: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(given).encode(), Content_Type="application/json", **headers)


def missing(code: str, **headers: str) -> Answer:
    return data({}, 404, X_Error_Code=code, X_Error_Message="not here", **headers)


class Loopback:
    """The running hub. The n-th request for a file (from 1) gets the status `fails(n)`; 0: the file, −1: no answer."""

    def __init__(self, root: Path, fails: Callable[[int], int] = lambda n: 0, page: int = 1000):
        self.root, self.fails, self.page = Path(root), fails, page
        self.requests: list[tuple[str, str, int]] = []  # method, path, status
        self.asked, self.lock = 0, threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Loopback:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, target: str, body: str, span: str) -> Answer:
        """What the hub says to a request; `span` is its Range header."""
        parts = [unquote(part) for part in urlsplit(target).path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("datasets", "models"):
            return self._api(self._files(parts[1], *parts[2:4]), parts[2:], body, target)
        kind, rest = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        if len(rest) > 4 and rest[2] == "resolve":
            return self._file(self._files(kind, *rest[:2]), "/".join(rest[4:]), span)
        return missing("EntryNotFound")

    def _api(self, files: dict[str, Path], parts: list[str], body: str, target: str) -> Answer:
        verb = "".join(parts[2:3])
        if verb == "tree":
            return self._tree(files, "/".join(parts[4:]), parse_qs(urlsplit(target).query), target)
        if verb == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            return data([entry for path in asked if (entry := _entry(files, path.strip("/")))])
        return data({"id": "/".join(parts[:2]), "sha": _commit(files), "private": False, "gated": False, "tags": [],
                     "downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in files]})

    def _tree(self, files: dict[str, Path], under: str, query: dict[str, list[str]], target: str) -> Answer:
        start = f"{under}/" if under else ""
        folders = {str(parent) for file in files for parent in Path(file).parents} - {"."}
        names = sorted(path for path in folders | set(files) if path.startswith(start))
        if not names:
            return missing("EntryNotFound")
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            names = [path for path in names if "/" not in path.removeprefix(start)]
        first = int(query.get("cursor", ["0"])[0])
        base = self.endpoint + re.sub(r"[?&]cursor=\d+", "", target)
        link = {"Link": f'<{base}{"&" if "?" in base else "?"}cursor={first + self.page}>; rel="next"'}
        shown = [_entry(files, path) for path in names[first:first + self.page]]
        return data(shown, **(link if first + self.page < len(names) else {}))

    def _file(self, files: dict[str, Path], path: str, span: str) -> Answer:
        if path not in files:
            return missing("EntryNotFound", X_Repo_Commit=_commit(files))
        with self.lock:
            self.asked += 1
            if status := self.fails(self.asked):
                return Answer(status)
        content = files[path].read_bytes()
        size, tag = len(content), f'"{hashlib.sha1(content).hexdigest()}"'
        about = {"ETag": tag, "X-Repo-Commit": _commit(files), "Accept-Ranges": "bytes"}
        if not (found := re.fullmatch(r"bytes=(\d*)-(\d*)", span)):
            return Answer(200, content, **about)
        low, high = (int(digits) if digits else None for digits in found.groups())
        start = max(0, size - (high or 0)) if low is None else low
        stop = size if low is None or high is None else min(high + 1, size)
        return Answer(206, content[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{size}", **about)

    def _files(self, kind: str, owner: str, name: str) -> dict[str, Path]:
        folder = self.root / kind / owner / name
        if ".." in (owner, name) or not folder.is_dir():
            raise missing("RepoNotFound")
        return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _commit(files: dict[str, Path]) -> str:
    seen = [f"{name} {file.stat().st_size} {file.stat().st_mtime_ns}" for name, file in files.items()]
    return hashlib.sha1("\n".join(seen).encode()).hexdigest()


def _entry(files: dict[str, Path], path: str) -> dict | None:
    about = {"path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
    if path in files:
        return about | {"type": "file", "size": files[path].stat().st_size}
    return about | {"type": "directory", "size": 0} if any(file.startswith(path + "/") for file in files) else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's acknowledgement of its head
    hub: Loopback

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        try:
            answer = self.hub.answer(self.path, body, self.headers.get("Range") or "")
        except Answer as raised:
            answer = raised
        self.hub.requests.append((self.command, self.path, answer.status))
        if answer.status < 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = _serve

    def log_message(self, *_: object) -> None:
        """Quiet: requests are in `Loopback.requests`."""
