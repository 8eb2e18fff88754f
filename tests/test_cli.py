"""The `me5` command as a user meets it: answers, exit codes, one line for what can be mended."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import me5
from test_run import wait_for, write_book
from typer.testing import CliRunner

from me5lib.cli.app import app

ROOT = Path(__file__).resolve().parents[1]


def invoke(*command: str, **environment: str):
    """The command in this process: what is refused is refused before anything heavy is imported."""
    return CliRunner().invoke(app, command, env=environment)


def one_line(done, *words):
    """Exit code 2 and one line on stderr that holds `words`."""
    assert getattr(done, "exit_code", None) == 2 or done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("me5: ") and all(word in line for word in words), line
    assert done.stdout == ""


def test_help_is_quick_and_names_the_commands():
    start = time.perf_counter()
    done = me5("--help")
    assert done.returncode == 0 and time.perf_counter() - start < 5
    for command in ("packs", "run", "pretrain", "finetune", "evaluate", "report"):
        assert f"  {command} " in done.stdout
    assert "--keep-going" in invoke("run", "--help").stdout


@pytest.mark.parametrize("command", ["run", "pretrain", "finetune", "evaluate"])
def test_bad_scales_and_dials_are_one_line(command, tmp_path):
    out = str(tmp_path)
    one_line(invoke(command, "--scale", "huge", ME5_OUT=out), "unknown scale 'huge'", "tiny, random, smoke")
    one_line(invoke(command, "--scale", "large", ME5_OUT=out), "scale large", "smoke or tiny")
    one_line(invoke(command, "--scale", "smoke", "--set", "train.step=1", ME5_OUT=out), "did you mean train.steps")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [
    ("run",), ("pretrain",), ("finetune",), ("evaluate",), ("report",),
    ("teach", "--data", "x", "--from", "y", "--out", "z"),
], ids=lambda command: command[0])
def test_bad_seeds_are_one_line(command, tmp_path):
    for seed in ("-1", "99999999999999999999"):
        done = invoke(*command, f"--seed={seed}", ME5_OUT=str(tmp_path))
        one_line(done, f"a seed is a whole number from 0 to 4294967295, not {seed}")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_checkpoints_starts_a_notebook_anywhere(wheel_like, tmp_path):
    """Export on one machine, unpack on another, whose notebook finds what it needs without a maker."""
    from me5lib.lessons.bundle import STAGES

    books, made = wheel_like / "me5lib" / "_assets" / "notebooks", tmp_path / "out" / "smoke" / "seed-0"
    write_book(books, "01_one", needs=list(STAGES))
    write_book(books, "02_two", "1 / 0", makes=list(STAGES))
    for stage in STAGES:
        (made / stage).mkdir(parents=True)
        (made / stage / "config.json").write_text("{}", encoding="utf8")

    file, smoke = str(tmp_path / "class.zip"), ("run", "--scale", "smoke")
    done = invoke(*smoke, "--export", file, ME5_OUT=str(tmp_path / "out"))
    assert done.exit_code == 0 and "the others run: me5 run --scale smoke --seed 0 --from class.zip" in done.stdout
    one_line(invoke(*smoke, "--export", file, "--only", "1"), "--export writes what is there")
    other_seed = invoke(*smoke, "--seed", "1", "--from", file, ME5_OUT=str(tmp_path / "out"))
    one_line(other_seed, "add --scale smoke --seed 0")
    done = invoke(*smoke, "--from", file, ME5_OUT=str(tmp_path / "other"))
    assert done.exit_code == 0 and "any notebook can be started" in done.stdout and "finished" not in done.stdout
    done = run_in(wheel_like, *smoke, "--only", "01", out=tmp_path / "other")
    assert done.returncode == 0 and "1 of 1 notebooks finished" in done.stdout, done.stdout + done.stderr


def test_missing_things_are_one_line(tmp_path):
    out, cache = {"ME5_OUT": str(tmp_path / "out")}, {"ME5_CACHE": str(tmp_path / "cache")}
    smoke = ("finetune", "--scale", "smoke")
    one_line(invoke(*smoke, **out), "no stage1 checkpoint", "me5 pretrain --scale smoke --seed 0")
    one_line(invoke("report", "--scale", "tiny", **out), "there is no run", "me5 run --scale tiny --seed 0")
    assert not (tmp_path / "out" / "tiny").exists()  # asking leaves nothing behind
    one_line(invoke("run", "--scale", "smoke", "--only", "77", **out), "there is no notebook 77")
    blanks = invoke("mixture", "check", "--scale", "smoke", "--tasks", " ,SciFacts ", **out)
    one_line(blanks, "task 'SciFacts' cannot be loaded")
    (tmp_path / "file").write_text("", encoding="utf8")
    one_line(invoke("finetune", "--out", str(tmp_path / "file" / "x")), "cannot write to", "--out")
    one_line(invoke("packs", "--from", str(tmp_path / "nowhere"), **cache), "lacks", "me5 packs --export")
    one_line(invoke("packs", ME5_CACHE=str(tmp_path / "file")), "cannot write to", "ME5_CACHE")
    done = invoke("packs", "--list", PIP_NO_INDEX="1", **cache)
    files = [line.split()[-1] for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and all(name.endswith((".whl", ".tar.gz", ".tgz")) for name in files)
    assert files and "in the cache" not in done.stdout


@pytest.fixture
def wheel_like(tmp_path):
    """A copy of the library with two small notebooks of its own, as a wheel would be installed."""
    site = tmp_path / "site"
    skip = shutil.ignore_patterns("__pycache__", "_assets")
    shutil.copytree(ROOT / "me5lib", site / "me5lib", ignore=skip)
    assets = site / "me5lib" / "_assets"
    shutil.copytree(ROOT / "data_cards", assets / "data_cards")
    (assets / "notebooks").mkdir()
    noise = "import os\nos.write(2, b'a kernel\\'s own')\n"
    write_book(assets / "notebooks", "01_one", noise + 'expect(1, "one", tiny=(0, 2), smoke=(0, 2))')
    write_book(assets / "notebooks", "02_two", 'expect(2, "two", tiny=(0, 1), smoke=(0, 1))')
    return site


def command_of(site, *arguments, out):
    command = [sys.executable, "-m", "me5lib", *arguments]
    return command, {"cwd": site, "env": os.environ | {"ME5_OUT": str(out), "PYTHONPATH": str(site)}, "text": True,
                     "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}


def run_in(site, *arguments, out):
    command, options = command_of(site, *arguments, out=out)
    return subprocess.run(command, **options)


def test_run_tells_each_notebook_and_fails_on_a_miss(wheel_like, tmp_path):
    same = ("--scale", "smoke", "--seed", "3")
    done = run_in(wheel_like, "run", *same, out=tmp_path / "out")
    assert done.returncode == 1
    assert "1 of 2 notebooks finished" in done.stdout and "a kernel's own" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "failed" in line]
    assert line.startswith("notebook 02 failed: Missed: two = 2, expected between 0 and 1 at scale smoke")
    folder = tmp_path / "out" / "smoke" / "seed-3"
    assert json.loads((folder / "results.json").read_text("utf8")) == {"01": {"one": 1.0}}
    assert nbformat.read(folder / "notebooks" / "01.ipynb", 4).cells  # what papermill left can be opened

    done = run_in(wheel_like, "run", *same, "--only", "1", out=tmp_path / "out")
    assert done.returncode == 0 and "01  kept" in done.stdout
    done = run_in(wheel_like, "report", *same, out=tmp_path / "out")
    assert done.returncode == 0 and "one" in done.stdout and "index.html" in done.stdout


def test_interrupt_is_one_line_and_130(wheel_like, tmp_path):
    long = "import time\nlesson.record('at', 1)\ntime.sleep(600)"
    write_book(wheel_like / "me5lib" / "_assets" / "notebooks", "02_two", long)
    command, options = command_of(wheel_like, "run", "--scale", "smoke", out=tmp_path / "out")
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job begins with it ignored
    process = subprocess.Popen(command, preexec_fn=listen, **options)
    wait_for((tmp_path / "out" / "smoke" / "seed-0" / "lessons" / "02" / "metrics.json").is_file)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("me5: interrupted")
    assert "01  finished" in output
