"""Where models run, and in which numbers: decided in one place, and heeded by every command that encodes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from me5lib import config, device
from me5lib.cli.app import app
from me5lib.evaluate import models, offline_table
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer

NAMES = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("car", "house", "bird", "tree")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a stage 1 in it, untrained."""
    shape = dataclasses.replace(config.load("smoke").model, layers=1)
    folder = tmp_path_factory.mktemp("run")
    Encoder.new(shape, train_tokenizer(NAMES, 300), seed=1).save(folder / "stage1")
    return folder


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU: which device each encoder was moved to."""
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(Encoder, "to", lambda self, where: moved.append(str(where)) or self)
    return moved


def test_mining_runs_on_the_gpu(run, gpu, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"query": name, "positive": f"a {name}"}) + "\n" for name in NAMES))
    done = CliRunner().invoke(app, ["mine", "--data", str(data), "--model", str(run / "stage1"), "--out",
                                        str(tmp_path / "mined"), "--depth", "5"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert gpu == ["cuda"]


def test_the_offline_tables_run_on_the_gpu(run, gpu, monkeypatch):
    monkeypatch.setattr(offline_table, "untrained_rows", lambda corpus: {})
    rows = offline_table.standard_rows(config.load("smoke"), 0, run, SimpleNamespace())
    assert list(rows) == ["random weights", "stage 1 only"]
    assert gpu == ["cuda", "cuda"]  # the trained one and the random one


def test_a_model_by_name_runs_on_the_gpu(run, gpu, monkeypatch):
    models.open_model(str(run / "stage1"))
    assert gpu == ["cuda"]


@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_without_bf16_takes_fp32(monkeypatch, native, name):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    found = device.precision(torch.device("cuda"))
    assert found.name == name and "GPU" in found.reason


SHAPES = """
import torch
from me5lib import io
from me5lib.device import autocast

layer = torch.nn.Linear(384, 1536)
def resident():
    io.give_back()
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1000
with torch.inference_mode(), autocast(torch.device("cpu"), "bf16"):
    layer(torch.ones(2000, 384))
    before = resident()
    for rows in range(1000, 2000):
        layer(torch.ones(rows, 384))
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.skipif(device.precision(torch.device("cpu")).name != "bf16", reason="emulated bf16 keeps nothing")
def test_pieces_of_many_shapes_leave_no_memory_behind():
    ran = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 150  # MB; see the finding on what torch keeps
