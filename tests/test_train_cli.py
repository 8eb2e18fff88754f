"""`me5 pretrain` and `me5 finetune` as a user meets them: what is refused, resumed, thrown away; launchers; Slurm."""

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import interrupted_at, refused
from typer.testing import CliRunner

from me5lib import cli, config
from me5lib.cli.app import app
from me5lib.data.corpus import open_corpus
from me5lib.io import PACKAGE
from me5lib.train import distributed, dry_run, loop, stages
from me5lib.train.distributed import Team

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("train.steps=6", "train.batch=32")
SETS = [word for dial in SMALL for word in ("--set", dial)]
UNTRAINABLE = ("--set", "model.vocabulary=100")  # is met when the stage begins
SBATCH = PACKAGE / "slurm" / "pretrain.sbatch"


def run(*arguments, **environment):
    """The command in this process."""
    return CliRunner(env=environment).invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.parametrize(("command", "name"), [("pretrain", "workshop"), ("finetune --instruct", "large-instruct")])
def test_a_long_run_wants_yes_and_names_the_plan(command, name, tmp_path):
    out = tmp_path / "out"
    done = run(command.split()[0], "--scale", name, "--out", out)
    refused(done, f"me5 {command} --scale {name} --plan", "--yes", config.load(name).model.backbone)
    assert not out.exists()


def test_with_yes_a_run_begins_and_says_what_is_missing(tmp_path):
    done = run("pretrain", "--scale", "workshop", "--yes", "--out", tmp_path / "out", ME5_CACHE=str(tmp_path / "cache"))
    refused(done, "lacks", "me5 fetch --for workshop")
    refused(run("finetune", "--scale", "base", "--yes", "--out", tmp_path / "out"), "no stage1 checkpoint")


@pytest.mark.parametrize(("command", "scale", "stage"), [("pretrain", "base", "stage1"), ("finetune", "base", "stage2"),
                                                         ("finetune", "large-instruct", "instruct")])
def test_the_plan_is_printed_and_nothing_else_happens(command, scale, stage, tmp_path):
    out = tmp_path / "out"
    done = run(command, "--scale", scale, "--plan", "--tokens", 100, "--use", 0.5, "--out", out)
    assert done.exit_code == 0 and done.stdout.startswith(f"{stage} at scale {scale}")
    assert ("teacher" in done.stdout) == (stage == "stage2") and ("mining" in done.stdout) == (stage != "stage1")
    assert "100 tokens of" in done.stdout and "50% of the data sheet's" in done.stdout
    assert not out.exists()


def test_the_sample_is_the_file_that_ships():
    done = run("pretrain", "--sbatch-sample")
    assert done.stdout == SBATCH.read_text(encoding="utf8") and done.exit_code == 0
    assert subprocess.run(["bash", "-n", str(SBATCH)]).returncode == 0
    for word in ("--nodes=2", "--signal=B:TERM@120", "--requeue", "HF_HUB_OFFLINE=1"):
        assert word in done.stdout


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run folder whose stage 1 was stopped after some steps, as the command would have begun it."""
    folder, dial = tmp_path_factory.mktemp("stopped"), config.load("smoke", SMALL)
    with interrupted_at(4), pytest.raises(KeyboardInterrupt):
        stages.pretrain(dial, 0, folder, corpus=open_corpus(dial, False), every=1, progress=False)
    return folder


@pytest.fixture
def unfinished(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "unfinished")


def steps_of(folder):
    return [row["step"] for row in loop.read_log(folder / "stage1").steps]


def test_the_same_command_goes_on_with_unfinished_work_and_another_is_refused(unfinished):
    refused(run("pretrain", "--scale", "smoke", *SETS, "--set", "train.lr=0.001", "--out", unfinished), "stage.lr")
    done = run("pretrain", "--scale", "smoke", *SETS, "--out", unfinished)
    assert done.exit_code == 0 and re.search(r"stage 1: steps [45] … 6", done.stdout), done.stderr
    assert steps_of(unfinished) == list(range(6))


def test_other_ranks_wait_for_the_first_and_are_silent_about_what_all_meet(monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    for rank, lines in (("0", 1), ("1", 0)):
        done = run("pretrain", "--scale", "base", RANK=rank)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == lines and done.stdout == ""
    alone = Team.alone(torch.device("cpu"))
    monkeypatch.setattr(distributed, "join", lambda world: dataclasses.replace(alone, rank=1))
    monkeypatch.setattr(Team, "by_main", lambda team, act: act())
    done = run("pretrain", "--scale", "smoke", *UNTRAINABLE, "--out", tmp_path, RANK="1")
    assert done.exit_code == 2 and done.stderr.startswith("me5: rank 1: no vocabulary of 100 pieces"), done.stderr
    assert waited == [cli.FIRST_RANK] * 2


def test_another_number_of_processes_is_refused(tmp_path):
    refused(run("pretrain", "--scale", "smoke", "--processes", 2, "--out", tmp_path), "1 process(es) were launched")


@pytest.fixture
def faq(tmp_path):
    """A file of one's own, and a small model to start from."""
    names = [f"{a} {b}" for a in dry_run.territories("en")[:8] for b in dry_run.territories("de")[:6]]
    lines = [f"{name[::-1]} {i * 7919 % 97},{name} {i * 6007 % 89}" for i, name in enumerate(names)]
    path = tmp_path / "faq.csv"
    path.write_text("\n".join(["query,positive", *lines]), encoding="utf8")
    dry_run.write_backbone(config.Model("x", 1, 32, 2, 64, 2_000, 64), lines, tmp_path / "start")
    return ["finetune", "--data", path, "--from", tmp_path / "start", "--out", tmp_path / "out"]


def test_options_of_a_scale_and_of_your_own_file_do_not_mix(faq):
    refused(run("finetune", "--from", "x"), "--from", "belong to --data FILE")
    refused(run("finetune", "--query-column", "x"), "belong to --data FILE")
    refused(run("finetune", "--epochs", 3), "--set finetune.steps=100")
    refused(run("finetune", "--instruction", "x"), "--instruction", "belong to --data FILE")
    refused(run("finetune", "--scale", "smoke", "--instruct", "--scratch"), "starts from stage 1")
    refused(run(*faq, "--instruct"), "--instruction")
    refused(run(*faq, "--scale", "base"), "--scale does not go with --data")
    refused(run(*faq, "--scratch"), "--scratch does not go with --data")
    refused(run(*faq, "--dry-run"), "--dry-run does not go with --data")
    refused(run(*faq, "--plan", "--epochs", 0), "must be above zero")
    refused(run(*faq, "--passage-column", "answer"), "no column 'answer'", "'query', 'positive'")


def test_the_plan_of_your_own_file_trains_nothing(faq, tmp_path):
    done = run(*faq, "--plan", "--epochs", 1, "--set", "finetune.lr=0.001")
    assert done.exit_code == 0, done.stderr
    assert "query = 'query', passage = 'positive'" in done.stdout and "ours: set by hand" in done.stdout
    assert re.search(r"^  finetune.steps +\d+  ours: 1 epochs of \d+ examples", done.stdout, re.M)
    assert not (tmp_path / "out").exists()


def test_your_own_file_is_gone_on_with_like_a_stage(faq, tmp_path):
    four, five = (["--set", f"finetune.steps={n}"] for n in (4, 5))
    with interrupted_at(1):
        done = run(*faq, *four)
    assert done.exit_code == 130 and "the same command goes on" in done.stderr
    refused_text = run(*faq, *five).stderr
    assert "model.part is unfinished work with other settings" in refused_text and "stage.steps" in refused_text
    done = run(*faq, *four)
    assert done.exit_code == 0 and "model: steps 2 … 4" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "model")


def test_instructions_of_a_scale_and_of_your_own_file(unfinished, faq, tmp_path):
    smoke = ["--scale", "smoke", *SETS, "--set", "finetune.steps=4", "--out", unfinished]
    for command in (["pretrain"], ["finetune", "--instruct"]):
        done = run(*command, *smoke)
        assert done.exit_code == 0, done.stderr
    assert "passes over the data: cldr-facts" in done.stdout and (unfinished / "instruct" / "stage.json").is_file()
    done = run(*faq, "--set", "finetune.steps=1", "--instruction", "Find it")
    assert done.exit_code == 0, done.stderr
    prompts = json.loads((tmp_path / "out" / "model" / "config_sentence_transformers.json").read_text("utf8"))
    assert prompts["prompts"] == {"query": "Instruct: Find it\nQuery: ", "passage": "", "document": ""}
    assert "instruction: Find it" in (tmp_path / "out" / "data" / "faq.md").read_text("utf8")


LAUNCHERS = {
    "torchrun": ["torchrun", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"],
}


def launched(launcher, *arguments, **environment):
    """`arguments` of me5 in two processes of one thread each, by a documented line."""
    words = {"torchrun": ["-m", "torch.distributed.run", *LAUNCHERS[launcher][1:]],
             "accelerate": ["-m", "accelerate.commands.launch", *LAUNCHERS[launcher][2:], "--main_process_port", "0"]}
    command = [sys.executable, *words[launcher], "-m", "me5lib", *map(str, arguments)]
    one = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    return subprocess.run(command, env=os.environ | one, cwd=ROOT, capture_output=True, encoding="utf8",
                          stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(("launcher", "line", "words"), [
    ("torchrun", ["--scale", "base"], "--plan"),  # met before the processes know of each other
    ("accelerate", ["--scale", "smoke", *UNTRAINABLE], "no vocabulary of 100"),  # met by the first one, together
])
def test_a_mistake_under_a_launcher_is_said_once_even_if_the_first_rank_is_late(launcher, line, words, tmp_path):
    late = "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(2)\n"
    (tmp_path / "sitecustomize.py").write_text(late, encoding="utf8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = launched(launcher, "pretrain", *line, "--out", tmp_path / "out", PYTHONPATH=path)
    assert done.returncode != 0 and done.stderr.count("me5: ") == 1 and words in done.stderr, done.stderr[-3000:]


def test_the_documented_lines_are_those_that_were_tried():
    from me5lib.cli import train

    for text in (train.__doc__, (PACKAGE / "slurm" / "requeue.md").read_text(encoding="utf8")):
        for words in LAUNCHERS.values():
            assert " ".join(words[:-1]) + " 8 -m me5lib pretrain --scale base --yes --processes 8" in text


QUEUE = """#!{python}
# sbatch that runs the job here, and again as often as it is requeued; the signal comes once the log has three steps.
import os, pathlib, re, signal, subprocess, sys, time
script, arguments, folder = sys.argv[1], sys.argv[2:], pathlib.Path(os.environ["STUB"])
asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", open(script).read(), re.M))
assert asked["nodes"] == "2" and asked["signal"] == "B:TERM@120" and "requeue" in asked
slurm = dict(SLURM_JOB_ID="7", SLURM_JOB_NODELIST="node[1-2]", SLURM_NNODES="2", SLURM_NTASKS="2",
             SLURM_CPUS_PER_TASK="1")
for turn in range(3):
    job = subprocess.Popen(["bash", script, *arguments], env=os.environ | slurm)
    if turn == 0:
        log = pathlib.Path(os.environ["STUB_LOG"])
        while job.poll() is None and not (log.is_file() and log.read_text().count('"loss"') >= 3):
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
    with open(folder / "codes", "a") as codes:
        codes.write(f"{{job.wait()}}\\n")
    if not (folder / "requeued").exists():
        sys.exit(job.returncode)
    (folder / "requeued").unlink()
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$STUB/scontrol.log"
if [[ $1 == show ]]; then echo 127.0.0.1; else touch "$STUB/requeued"; fi
"""
SRUN = """#!{python}
# srun on one machine: a task of each rank, signals handed on, all ended after a bad exit, its code back.
import os, signal, subprocess, sys, time
command = [word for i, word in enumerate(sys.argv[1:]) if not (i == 0 and word.startswith("--"))]
tasks = [subprocess.Popen(command, env=os.environ | dict(SLURM_PROCID=str(r), SLURM_LOCALID="0")) for r in range(2)]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
while None in (codes := [task.poll() for task in tasks]):
    if bad := [code for code in codes if code]:
        [task.kill() for task in tasks]
        sys.exit(128 - bad[0] if bad[0] < 0 else bad[0])
    time.sleep(0.05)
sys.exit(max(codes))
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stubs of sbatch, srun and scontrol, which note in a folder what came."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": QUEUE, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text.format(python=sys.executable) if "{python}" in text else text, encoding="utf8")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("STUB", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def test_a_job_that_is_signalled_saves_and_goes_on_when_it_is_requeued(tmp_path, slurm, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("STUB_LOG", str(out / "stage1.part" / "log.jsonl"))
    few = ["--set", "train.steps=12", "--set", "train.batch=64"]  # and looks, so that the signal is in time
    done = subprocess.run(["sbatch", str(SBATCH), "pretrain", "--scale", "smoke", *few, "--out", str(out)],
                          capture_output=True, encoding="utf8", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (slurm / "codes").read_text(encoding="utf8").split() == ["143", "0"]
    assert "requeue 7" in (slurm / "scontrol.log").read_text(encoding="utf8").splitlines()
    first, second = json.loads((out / "stage1" / "run.json").read_text(encoding="utf8"))["starts"]
    assert first["step"] == 0 < second["step"] < 12 and first["processes"] == second["processes"] == 2
    assert "SIGTERM: stopped after step" in done.stderr and done.stdout.count(str(out / "stage1")) == 1
    assert steps_of(out) == list(range(12))


def test_a_job_that_fails_is_not_requeued(tmp_path, slurm, monkeypatch):
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "no-log"))
    done = subprocess.run(["sbatch", str(SBATCH), "pretrain", "--scale", "huge"], capture_output=True, encoding="utf8")
    assert done.returncode == 2 and "unknown scale 'huge'" in done.stderr
    assert (slurm / "codes").read_text(encoding="utf8").split() == ["2"]
    assert "requeue" not in (slurm / "scontrol.log").read_text(encoding="utf8")
