"""What the tests share: the fetched packs, the cache, the folder of reference material."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: threads of one would wait for the other's

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _no_colour():
    """Plain output of commands, whatever the terminal."""
    before = {name: os.environ.get(name) for name in ("NO_COLOR", "FORCE_COLOR")}
    os.environ["NO_COLOR"] = "1"
    os.environ.pop("FORCE_COLOR", None)
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Inside, Ctrl-C comes while a training does `step`."""
    from me5lib.train import loop

    rate = loop.rate

    def rate_of(number, stage):
        if number == step:
            signal.raise_signal(signal.SIGINT)
        return rate(number, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "rate", rate_of)
        yield


def me5(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the `me5` command as a user does; `environment` is added to ours."""
    command = [sys.executable, "-m", "me5lib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf8", stdin=subprocess.DEVNULL, cwd=ROOT,
                          env=os.environ | environment)


def refused(done, *words: str) -> None:
    """Exit code 2 and one line that holds `words`."""
    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 2 and line.startswith("me5: ") and all(word in line for word in words), line
    assert done.stdout == ""


UNPLUGGED = """
import socket
local = ("127.", "localhost", "::1", "0.0.0.0")
connect, look_up = socket.socket.connect, socket.getaddrinfo

def fine(host):
    return host is None or not isinstance(host, (str, bytes)) or str(host).strip("b'").startswith(local)

def guarded_connect(self, address):
    if isinstance(address, tuple) and not fine(address[0]):
        raise OSError(101, f"the network is unplugged: {address[0]}")
    return connect(self, address)

def guarded_look_up(host, *arguments, **options):
    if not fine(host):
        raise socket.gaierror(-3, f"the network is unplugged: {host}")
    return look_up(host, *arguments, **options)

socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_look_up
"""


@pytest.fixture(scope="session")
def unplugged(tmp_path_factory) -> dict[str, str]:
    """Environment variables under which Python processes reach the loopback only, with an empty cache."""
    folder = tmp_path_factory.mktemp("unplugged")
    (folder / "sitecustomize.py").write_text(UNPLUGGED, encoding="utf8")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "ME5_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def smoke_run(unplugged, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """`me5 run --scale smoke` of all notebooks, without network: the finished process and the run's folder."""
    out = tmp_path_factory.mktemp("smoke")
    return me5("run", "--scale", "smoke", "--keep-going", "--out", str(out), **unplugged), out


@pytest.fixture(scope="session")
def browser():
    """Chromium, which reaches files only; skips where there is none."""
    driver = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed: the pages were not looked at in a browser")
    with driver.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found)


@pytest.fixture(scope="session")
def packs() -> dict[str, list[Path]]:
    """The verified pack files that `me5 packs` fetches, by card; skips only where the package index is unreachable."""
    from me5lib.data import cards
    from me5lib.data.packs import archives

    done = me5("packs")
    if "the package index cannot be reached" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return {name: archives(name) for name, card in cards.all_cards().items()
            if card.files and card.role != "baseline" and all(file.registry == "pip" for file in card.files)}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout, which is no part of the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder of reference material at {folder}")
    return folder


@pytest.fixture
def client(unplugged, tmp_path):
    """`client_of` in a folder of this test."""
    return client_of(unplugged, tmp_path)


def client_of(unplugged: dict[str, str], folder: Path):
    """Runs Python code in a process that reaches the loopback only, with caches of its own in `folder`."""

    def environment(endpoint: str, **more: str) -> dict[str, str]:
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "USE_TORCH": "0"}
        caches = {"HF_HOME": str(folder / "hf"), "ME5_CACHE": str(folder / "me5"), "HF_ENDPOINT": endpoint}
        return os.environ | unplugged | online | caches | more

    def run(code: str, *arguments: object, endpoint: str = "http://127.0.0.1:9", fine: bool = True, **more: str):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment(endpoint, **more), capture_output=True, encoding="utf8")
        assert done.returncode == 0 or not fine, done.stderr[-3000:]
        return done

    run.environment = environment
    return run


def pytest_collection_modifyitems(items):
    """The notebooks first: they take minutes in one process, which at the end would run alone."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
