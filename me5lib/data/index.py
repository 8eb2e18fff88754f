"""The package index as a place to download from: pip's own settings, where a pinned file lies, resumable transfer.

Nothing here builds, installs or runs what it downloads. `unearth` finds the link (it reads HTML and JSON indexes and
find-links, local or remote), this module reads pip's configuration for it, because it does not, and moves the bytes.

Cost: one small request per file to find it, then one stream; memory of one chunk (1 MiB).
"""

from __future__ import annotations

import ast
import logging
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from me5lib.data.cards import File
from me5lib.io import Me5Error

if TYPE_CHECKING:
    from unearth import Link
    from unearth.fetchers import PyPIClient

CHUNK = 1 << 20  # bytes
_SECTIONS = ("global", "install", "download", ":env:")  # the later one wins, as in `pip download`
_LINE = re.compile(r"^(global|install|download|:env:)\.([a-z-]+)=(.*)$")
_LISTS = {"extra-index-url", "find-links", "trusted-host"}
T = TypeVar("T")


class Unreachable(Me5Error):
    """No configured place of the package index answered."""


class Settings(NamedTuple):
    """What pip is told about indexes and the network. `indexes` is empty where pip's default index is meant."""

    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None  # file or folder of certificates
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0  # seconds; pip's default
    retries: int = 5  # pip's default
    no_index: bool = False


def pip_options() -> dict[str, str]:
    """pip's options by long name: its configuration files and `PIP_*`, as `python -m pip config list` has them.

    Without a pip module the environment variables alone count.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, encoding="utf8", stdin=subprocess.DEVNULL)
    if listed.returncode:
        variables = {key: value for key, value in os.environ.items() if key.startswith("PIP_") and value}
        return {key[4:].lower().replace("_", "-"): value for key, value in variables.items()}
    found = [match.groups() for line in listed.stdout.splitlines() if (match := _LINE.match(line))]
    found.sort(key=lambda entry: _SECTIONS.index(entry[0]))
    return {name: ast.literal_eval(value) for _, name, value in found}


def settings(options: dict[str, str] | None = None) -> Settings:
    """`Settings` out of pip's options; by default those of this machine."""
    given = pip_options() if options is None else options
    lists = {name: tuple(given.get(name, "").split()) for name in _LISTS}
    no_index = given.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t")
    main = (given["index-url"],) if given.get("index-url") else _default_index()
    timeout = given.get("timeout") or given.get("default-timeout") or Settings().timeout
    return Settings(
        indexes=() if no_index else (*main, *lists["extra-index-url"]),
        find_links=lists["find-links"],
        trusted_hosts=lists["trusted-host"],
        cert=given.get("cert") or None,
        client_cert=given.get("client-cert") or None,
        proxy=given.get("proxy") or None,
        timeout=float(timeout),
        retries=int(given.get("retries") or Settings().retries),
        no_index=no_index,
    )


def _default_index() -> tuple[str, ...]:
    from unearth import PackageFinder

    return tuple(source["url"] for source in PackageFinder().sources)


class Index:
    """The configured places of the package index, as one thing to download pinned files from.

        with Index() as index:
            index.download(file, part, advance=bar.update)
    """

    def __init__(self, given: Settings | None = None) -> None:
        self.settings = settings() if given is None else given
        self._client: PyPIClient | None = None

    def __enter__(self) -> Index:
        logging.getLogger("unearth").addHandler(logging.NullHandler())  # a 404 at one of many places is no news
        self._client = _client(self.settings)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def download(self, file: File, part: Path, advance: Callable[[int], None]) -> str:
        """Bring `part` to `file.size` bytes, going on where it ends; returns the (redacted) address it came from.

        `advance` is told the bytes gained (negative when a server makes us start again). The caller checks the hash.
        Raises `Unreachable` when no place answers, `Me5Error` when none has the file or one sends too much.
        """
        from httpx2 import HTTPError, StreamError

        problems = []
        for link in self._links(file):
            try:
                self._patiently(lambda link=link: self._stream(link, file, part, advance))
                return link.redacted
            except (HTTPError, StreamError) as error:
                problems.append(_reason(error))
        raise Unreachable(f"the package index cannot be reached: {file.file} broke off ({problems[-1]}); "
                          "run `me5 packs` again, it goes on where it stopped")

    def _links(self, file: File) -> list[Link]:
        """The links to `file` at all places, best first; places that state another hash are left out."""
        from httpx2 import HTTPError

        links, problems = [], []
        for place in self._places():
            try:
                found = self._patiently(lambda place=place: self._find(place, file))
            except (HTTPError, ValueError) as error:
                problems.append(_reason(error))
                continue
            links += found
            if links:
                return links
        if problems:
            raise Unreachable(f"the package index cannot be reached ({problems[0]}): check the network and pip's "
                              "settings (`python -m pip config list`), or use `me5 packs --from FOLDER`")
        raise Me5Error(f"{file.file} is at none of the {len(self._places())} places that pip is configured with "
                       "(`python -m pip config list`; plain http needs trusted-host): "
                       "add an index that has it, or copy the packs with `me5 packs --from FOLDER`")

    def _places(self) -> list[dict[str, list[str]]]:
        folders = [{"find_links": [place]} for place in self.settings.find_links]
        return folders + [{"index_urls": [place]} for place in self.settings.indexes]

    def _find(self, place: dict[str, list[str]], file: File) -> list[Link]:
        from unearth import PackageFinder

        # pinned by hash, and only read: Requires-Python, platform and yanking do not matter
        finder = PackageFinder(self._client, ignore_compatibility=True, **place)
        links = [package.link for package in finder.find_all_packages(file.package, allow_yanked=True)]
        return [link for link in links if link.filename == file.file
                and file.sha256 in (link.hash_option or {}).get("sha256", [file.sha256])]

    def _stream(self, link: Link, file: File, part: Path, advance: Callable[[int], None]) -> None:
        from httpx2 import RemoteProtocolError

        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with self._client.get_stream(link.normalized, headers=headers) as response:
            status, span = response.status_code, response.headers.get("Content-Range", "")
            resumed = status == 206 and span.startswith(f"bytes {have}-")
            if status == 416 or (status == 206 and not resumed):
                part.unlink(missing_ok=True)
                advance(-have)
                raise RemoteProtocolError("the server could not go on where the transfer stopped")
            response.raise_for_status()
            stated = span.rpartition("/")[2] if resumed else response.headers.get("Content-Length", "")
            if stated.isdigit() and int(stated) != file.size:
                raise Me5Error(f"{link.redacted} has {stated} bytes, expected {file.size}: "
                               "check which index pip is configured with (`python -m pip config list`)")
            if not resumed:
                advance(-have)
                have = 0
            with part.open("ab" if resumed else "wb") as handle:
                for chunk in response.iter_raw(CHUNK):
                    have += len(chunk)
                    if have > file.size:
                        part.unlink()
                        raise Me5Error(f"{link.redacted} sends more than the {file.size} bytes that it should: "
                                       "check which index pip is configured with (`python -m pip config list`)")
                    handle.write(chunk)
                    advance(len(chunk))
        if have < file.size:
            raise RemoteProtocolError(f"{have} of {file.size} bytes came")

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """`attempt()`, again after growing waits (0.25 s … 8 s) when the network fails."""
        from httpx2 import HTTPError, HTTPStatusError, StreamError

        for turn in range(self.settings.retries):
            try:
                return attempt()
            except (HTTPError, StreamError) as error:
                if isinstance(error, HTTPStatusError) and error.response.status_code < 500:
                    break  # asking again would not help
                time.sleep(min(0.25 * 2**turn, 8.0))
        return attempt()


def _reason(error: Exception) -> str:
    """An error in words, without the address: it may hold a password."""
    from httpx2 import HTTPStatusError

    text = f"HTTP {error.response.status_code}" if isinstance(error, HTTPStatusError) else str(error)
    return f"{type(error).__name__}: {text}"


def _client(given: Settings) -> PyPIClient:
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient, Response

    def raise_for_server(response: Response) -> None:
        if response.status_code >= 500:
            response.raise_for_status()

    client = PyPIClient(
        trusted_hosts=given.trusted_hosts, verify=_trust(given), proxy=given.proxy, timeout=given.timeout,
        follow_redirects=True, event_hooks={"response": [raise_for_server]},
    )
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=given.indexes)
    return client


def _trust(given: Settings) -> ssl.SSLContext | bool:
    """The certificates that pip is told to trust (`cert`) and to show (`client-cert`); True: the usual ones."""
    if not (given.cert or given.client_cert):
        return True
    where = "capath" if given.cert and Path(given.cert).is_dir() else "cafile"
    try:
        context = ssl.create_default_context(**{where: given.cert})
        if given.client_cert:
            context.load_cert_chain(given.client_cert)
    except OSError as error:
        raise Me5Error(f"pip's cert or client-cert cannot be used ({error}): see `python -m pip config list`") from None
    return context
