"""Fetching packs, from a folder and from a server on the loopback: verified, exported; and read safely."""

import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from me5lib.data import cards, packs
from me5lib.io import Me5Error

WHEEL = "two_words-1.0-cp27-cp27m-win32.whl"  # neither our Python nor our platform
SDIST = "plain-2.0.tar.gz"
CARD = """---
{{name: {name}, title: a pack, role: train, files: {files}, homepage: "https://example.org", licence: none,
  translated_by: people, languages: [en], counts: {{pairs: 1}}, pair: none, query_prefix: "query: ",
  passage_prefix: "query: ", faults: []}}
---
prose
"""


@pytest.fixture(scope="module")
def files():
    """A wheel whose bytes do not compress, so that it takes several chunks; an sdist that must not be executed."""
    noise = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(100_000))
    wheel, sdist = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("two_words/translations/de.json", '{"a": "ü"}')
        archive.writestr("two_words/noise.bin", noise)
    with tarfile.open(fileobj=sdist, mode="w:gz") as archive:
        for name, content in (("plain-2.0/setup.py", b"raise SystemExit('executed')"), ("plain-2.0/a.txt", b"hello")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return {WHEEL: wheel.getvalue(), SDIST: sdist.getvalue()}


@pytest.fixture
def deck(tmp_path, monkeypatch, files, request):
    """One card `both` that pins both files; an empty cache; pip's configuration is ours alone."""
    pins = [{"package": name.split("-")[0].replace("_", "-"), "version": "1", "file": name, "size": len(content),
             "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()]
    folder = tmp_path / "assets" / "data_cards"
    folder.mkdir(parents=True)
    for name, own in (("both", pins), ("babel", [])):
        (folder / f"{name}.md").write_text(CARD.format(name=name, files=json.dumps(own)), encoding="utf8")
    monkeypatch.setattr(cards, "asset", lambda name: tmp_path / "assets" / name)
    cards.load_card.cache_clear()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "2")
    if "configuration" not in request.node.name:  # pip needs half a second to say what the environment says here
        monkeypatch.setattr(packs, "pip_options", lambda: {
            name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name.startswith("PIP_")})
    monkeypatch.setattr(packs.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "packs"
    cards.load_card.cache_clear()


class Server:
    """A package index on the loopback: simple pages, files, and faults on demand."""

    def __init__(self, files):
        self.files, self.requests, self.cut, self.down, self.lengths = files, [], 0, 0, True
        handler = type("Handler", (_Handler,), {"world": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/simple"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    world: Server

    def do_GET(self):
        world = self.world
        world.requests.append(self.path)
        if world.down:
            world.down -= 1
            return self.send_error(503)
        if self.path.startswith("/simple/"):
            project = self.path.split("/")[2].replace("-", "_")
            names = [name for name in world.files if name.startswith(project + "-")]
            links = [f'<a href="/files/{n}" data-requires-python="&lt;3" data-yanked="old">{n}</a>' for n in names]
            return self.answer(200 if names else 404, "".join(links).encode(), "text/html")
        cut, world.cut = world.cut, 0
        self.answer(200, world.files[self.path.rpartition("/")[2]], "application/octet-stream", cut)

    def answer(self, status, body, kind, cut=0):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.world.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut] if cut else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(deck, files, monkeypatch):
    server = Server(dict(files))
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    yield server
    server.stop()


def left(deck: Path) -> list[str]:
    return sorted(path.name for path in deck.iterdir())


def test_fetches_wheel_and_sdist_for_any_python_and_yanked_once(server, deck, files):
    got = packs.fetch()
    assert {name: path.read_bytes() for name, path in got.items()} == files
    assert packs.archives("both") == [deck / WHEEL, deck / SDIST] and packs.archives("babel") == []
    server.requests.clear()
    assert packs.fetch() == got and server.requests == []  # what is there stays
    assert left(deck) == sorted([".lock", WHEEL, SDIST])


def test_a_cut_transfer_and_a_server_that_stumbles_are_asked_again(server, deck, files):
    (deck / ".part").mkdir(parents=True)
    (deck / ".part" / WHEEL).write_bytes(files[WHEEL][:1000])  # of a process that was killed
    server.cut, server.down = 1_500_000, 1
    packs.fetch()
    assert server.requests.count(f"/files/{WHEEL}") == 2
    assert (deck / WHEEL).read_bytes() == files[WHEEL] and len(packs.archives("both")) == 2


@pytest.mark.parametrize(("wrong", "lengths", "says"), [
    (lambda right: right[:-1] + bytes([right[-1] ^ 1]), True, f"{WHEEL} has another SHA-256 than its card says"),
    (lambda right: right + b"more", True, r"has \d+7 bytes, expected \d+3"),
    (lambda right: right + b"more", False, r"has \d+7 bytes, expected"),  # here the connection's end is the file's
    (lambda right: right[:500_000], True, "has 500000 bytes, expected"),
])
def test_wrong_bytes_are_told_and_not_kept(server, deck, files, wrong, lengths, says):
    server.files[WHEEL], server.lengths = wrong(files[WHEEL]), lengths
    with pytest.raises(Me5Error, match=says):
        packs.fetch()
    assert left(deck) == [".lock"]


def test_a_file_that_went_wrong_in_the_cache_is_removed_and_fetched_again(server, deck, files, capsys):
    packs.fetch()
    with (deck / SDIST).open("r+b") as handle:
        handle.truncate(100)
    with pytest.raises(Me5Error, match=f"has 100 bytes, expected {len(files[SDIST])} bytes: it was removed: "):
        packs.archives("both")
    with pytest.raises(Me5Error, match=f"{SDIST} is not in the cache .*: run `me5 packs`"):
        packs.archives("both")
    damaged = bytearray(files[WHEEL])
    damaged[5000] ^= 1
    (deck / WHEEL).write_bytes(damaged)
    packs.fetch()
    assert f"{WHEEL} has " in capsys.readouterr().err
    assert (deck / WHEEL).read_bytes() == files[WHEEL] and len(packs.archives("both")) == 2


def test_find_links_and_no_index_are_honoured(server, deck, files, tmp_path, monkeypatch):
    for folder, name in (("a", WHEEL), ("b", SDIST)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(files[name])
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'a'} {(tmp_path / 'b').as_uri()}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    packs.fetch()
    assert len(packs.archives("both")) == 2 and server.requests == [] and (tmp_path / "a" / WHEEL).exists()


def test_pip_configuration_file_and_environment_are_read(server, deck, tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://user:secret@one/simple\ntimeout = 7\nextra-index-url =\n"
                      f"  https://two/s\n  {server.url}\n[download]\nproxy = http://proxy:3128\n[install]\n"
                      "proxy = http://other:1\n", encoding="utf8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL")
    options = packs.pip_options()
    assert (options["timeout"], options["proxy"]) == ("7", "http://proxy:3128")  # what `pip download` would take
    assert packs.places(options) == [{"index_urls": [url]} for url in
                                     ("https://user:secret@one/simple", "https://two/s", server.url)]
    monkeypatch.setenv("PIP_INDEX_URL", "https://four/simple")
    assert packs.places(packs.pip_options())[0] == {"index_urls": ["https://four/simple"]}
    assert len(packs.places({})) == 1 and packs.places({"no-index": "true", "index-url": "x"}) == []
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "none.pem"))
    with pytest.raises(Me5Error, match="pip's cert or client-cert cannot be used"):
        packs.fetch()


def test_unreachable_and_absent_are_told_apart_without_a_password(server, deck, monkeypatch):
    del server.files[SDIST]
    with pytest.raises(Me5Error, match=f"{SDIST} is at none of the places"):
        packs.fetch()
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("127.0.0.1", "user:secret@127.0.0.1"))
    server.down = 99
    with pytest.raises(Me5Error, match="the package index cannot be reached .*503.*me5 packs --from") as told:
        packs.fetch()
    server.down, server.files[SDIST] = 0, b"more" * 10_000
    with pytest.raises(Me5Error, match="expected") as also:
        packs.fetch()
    server.stop()
    with pytest.raises(Me5Error, match="the package index cannot be reached") as last:
        packs.fetch()
    assert "secret" not in str(told.value) + str(also.value) + str(last.value)


def test_a_classroom_copies_without_network(server, deck, files, tmp_path, monkeypatch):
    packs.fetch()
    packs.fetch(source=deck, folder=tmp_path / "usb")
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "other"))
    server.requests.clear()
    got = packs.fetch(source=tmp_path / "usb")
    assert {name: path.read_bytes() for name, path in got.items()} == files and server.requests == []

    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "third"))
    (tmp_path / "usb" / WHEEL).write_bytes(files[WHEEL][:1000])
    with pytest.raises(Me5Error, match="has 1000 bytes, expected"):
        packs.fetch(source=tmp_path / "usb")
    assert list((tmp_path / "third" / "packs").glob("*.whl*")) == []
    assert (tmp_path / "usb" / WHEEL).exists()  # the teacher's folder is not ours to clean
    (tmp_path / "usb" / SDIST).unlink()
    with pytest.raises(Me5Error, match=f"lacks {SDIST}: make it again"):
        packs.fetch(source=tmp_path / "usb")


NPM = """#!/bin/sh
echo "$@" >> {log}
cp {served} .
"""


def test_npm_brings_what_is_its_own_and_all_else_goes_on_without_it(server, deck, tmp_path, monkeypatch, capsys):
    tarball, served, log = "plain-3.0.0.tgz", tmp_path / "served", tmp_path / "log"
    pin = {"package": "plain", "version": "3.0.0", "file": tarball, "size": 5, "registry": "npm",
           "sha256": hashlib.sha256(b"right").hexdigest()}
    (tmp_path / "assets/data_cards/third.md").write_text(CARD.format(name="third", files=json.dumps([pin])))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tarball not in packs.fetch() and len(left(deck)) == 3  # no npm: one line, and the others are there
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(Me5Error, match="npm, which is not on this machine"):
        packs.fetch(["third"])
    served.mkdir()
    (tmp_path / "npm").write_text(NPM.format(log=log, served=served / "*"))
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    for content, says in ((b"", "npm did not bring"), (b"wrong", "SHA-256|has .*, expected")):
        if content:
            (served / tarball).write_bytes(content)
        with pytest.raises(Me5Error, match=says):
            packs.fetch(["third"])
    (served / tarball).write_bytes(b"right")
    assert packs.fetch()[tarball].read_bytes() == b"right"
    assert set(log.read_text().splitlines()) == {"pack plain@3.0.0 --ignore-scripts --silent"}
    usb = tmp_path / "usb"
    assert set(packs.fetch(source=deck, folder=usb)) == set(packs.fetch()) and (usb / tarball).is_file()


def test_a_disk_without_space_is_told_and_nothing_is_left_half_written(server, deck, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
        with pytest.raises(Me5Error, match="not enough disk space in .*MB needed, 1 MB free.*ME5_CACHE"):
            packs.fetch()
    assert server.requests == [] and left(deck) == [".lock"]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packs.os, "replace", full)
    with pytest.raises(Me5Error, match="No space left"):
        packs.fetch()
    assert left(deck) == [".lock"]


def test_a_second_fetch_waits_for_the_first(server, deck, capsys):
    deck.mkdir(parents=True)
    with ThreadPoolExecutor() as threads, FileLock(deck / ".lock") as first:
        second = threads.submit(packs.fetch)
        threading.Event().wait(0.2)
        assert not second.done() and not (deck / WHEEL).exists()
        first.release()
        assert len(second.result(timeout=60)) == 2
    assert "another me5 is at work in" in capsys.readouterr().err


def test_members_are_read_by_pattern_and_nothing_is_executed(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = dict(packs.members(tmp_path / WHEEL, "*/translations/*.json"))
    assert found == {"two_words/translations/de.json": '{"a": "ü"}'.encode()}
    assert dict(packs.members(tmp_path / SDIST, "*.txt")) == {"plain-2.0/a.txt": b"hello"}


@pytest.mark.parametrize("name", ["../up.txt", "a/../../up.txt", "/etc/up.txt", "C:/up.txt", "..\\up.txt"])
def test_names_that_lead_out_of_an_archive_are_refused_and_links_skipped(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(name, "x")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("a/passwd.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for path in (tmp_path / "bad.whl", tmp_path / "bad.tar.gz"):
        with pytest.raises(Me5Error, match="unsafe name"):
            list(packs.members(path, "*up.txt"))
    assert list(packs.members(tmp_path / "bad.tar.gz", "*passwd.txt")) == []


def test_sizes_and_counts_are_bounded(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            archive.writestr(f"{i}.txt", b"0" * 1000)
    path = tmp_path / "bomb.whl"
    for limit, value in (("MEMBER_BYTES", 999), ("TOTAL_BYTES", 3999), ("MEMBER_COUNT", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(packs, limit, value)
            with pytest.raises(Me5Error, match="not the file that the data card means"):
                list(packs.members(path, "*"))
    assert len(list(packs.members(path, "*"))) == 4
    (tmp_path / "cut.whl").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Me5Error, match="cut.whl cannot be read"):
        list(packs.members(tmp_path / "cut.whl", "*"))
