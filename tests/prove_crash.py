"""`make prove`: a training run killed at every moment that could hurt, resumed, and compared with one left in peace.

    python tests/prove_crash.py

SIGKILL at random moments of a step, before every write, fsync, rename and removal of a save (and of what the resumed
run does first), with files cut in half, twice in a row, and on one of two processes. Each time: no checkpoint is
unreadable, at most the steps since the last save are done again, and every step's loss, every evaluation and the final
weights equal those of the undisturbed run to the bit. Prints a line per kill and exits with 1 when one does not hold.
Some minutes on two cores, one thread a process; test_crash.py does three of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from me5lib import config, io
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.train import checkpoint, distributed, loop
from me5lib.train import loss as losses
from me5lib.train.gradcache import cached_step, mix

STEPS, SAVE_EVERY, SEED, BATCH, BUDGET = 8, 2, 3, 12, 64
STAGE = dataclasses.replace(config.load("smoke").train, steps=STEPS, warmup=2, lr=1e-2)
COLOURS = [("red", "rot"), ("green", "gruen"), ("blue", "blau"), ("white", "weiss"), ("black", "schwarz")]
PAIRS = [(f"{a} car {i}", f"{b} auto {i}") for a, b in COLOURS for i in range(8)]


class Fault(NamedTuple):
    """Where a process kills itself."""

    kind: str = "none"  # "operation": before the n-th; "torn": the n-th writes half; "moment": in step n, delayed;
    # "cut": the same, with half a row at the end of the log
    number: int = 0
    delay: float = 0.0
    rank: int = 0


def encoder() -> Encoder:
    """A tiny one, with dropout."""
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair], 400)
    return Encoder.new(config.Model("random", 1, 16, 2, 32, 400, 32), tokenizer, 0, 0.1)


def run(
    folder: Path, team: distributed.Team | None = None, started: Callable[[int], None] = lambda step: None
) -> Encoder:
    """The training that is killed: GradCache in small pieces, checkpoints, evaluations."""
    team = team or distributed.Team.alone(torch.device("cpu"))
    model = encoder()
    wrapped = team.wrap(model)

    def prepare(step: int) -> loop.Work:
        pairs = [PAIRS[(7 * step + 3 * i) % len(PAIRS)] for i in range(BATCH)]
        pairs = pairs[BATCH * team.rank // team.world : BATCH * (team.rank + 1) // team.world]
        queries, passages = [q for q, _ in pairs], [p for _, p in pairs]
        ids = model.tokenize(queries + passages, "query: ")
        related = losses.relations(queries, passages)

        def loss_of(vectors: torch.Tensor) -> torch.Tensor:
            held = distributed.sizes(related)
            q = distributed.gather(vectors[: len(pairs)], held.queries)
            p = distributed.gather(vectors[len(pairs) :], held.passages)
            everybody = distributed.gather_relations(related, held)
            total = losses.total_loss(q, p, everybody, 0.05, "one-way", held.mine)
            return distributed.global_mean(total, held.queries)

        def compute() -> torch.Tensor:
            started(step)
            return cached_step(wrapped, ids, loss_of, BUDGET, mix(SEED, step, team.rank))

        return loop.Work(compute, "colours", tokens=sum(map(len, ids)))

    def evaluate(model: Encoder, step: int) -> dict[str, float]:
        left, right = (model.encode([pair[side] for pair in PAIRS[::8]]) for side in (0, 1))
        return {"margin": float((left * right).sum(1).mean() - (left @ right.T).mean())}

    loop.train_loop(model, prepare, STAGE, loop.RunOptions(folder, SEED, "p", save_every=SAVE_EVERY, evaluate=evaluate,
                                                           every=3, progress=False, team=team))  # fmt: skip
    return model


def child(folder: Path, fault: Fault) -> None:
    """The killed process: `run`, in which the seams of `io` and safetensors count what is done to the disk."""
    team, count = distributed.join(), itertools.count(1)

    def die() -> None:
        if fault.kind == "cut":
            os.truncate(folder / "log.jsonl", (folder / "log.jsonl").stat().st_size - 9)
        os.kill(os.getpid(), signal.SIGKILL)

    def started(step: int) -> None:
        if fault.kind in ("moment", "cut") and (fault.number, fault.rank) == (step, team.rank):
            threading.Timer(fault.delay, die).start()

    def counted(name: str, act: Callable) -> Callable:
        def operation(*arguments: object, **options: object) -> object:
            path = next(x for x in arguments if isinstance(x, Path))
            number = next(count)
            if fault.kind == "none" and team.main:
                print("operation:", name, os.path.relpath(path, folder), flush=True)
            if (fault.kind, fault.number, fault.rank) == ("operation", number, team.rank):
                die()
            done = act(*arguments, **options)
            if (fault.kind, fault.number) == ("torn", number):
                for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
                    os.truncate(file, file.stat().st_size // 2)
                die()
            return done

        return operation

    for name in ("write", "sync", "rename", "remove"):
        setattr(io, name, counted(name, getattr(io, name)))
    checkpoint.save_file = counted("safetensors", checkpoint.save_file)
    run(folder, team, started)
    distributed.leave()


def command(folder: Path, fault: Fault) -> list[str]:
    """The command line of a `child`."""
    return [sys.executable, str(Path(__file__).resolve()), "child", str(folder), json.dumps(fault)]


# ---- one kill, and what must hold ------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict]:
    """The whole rows of the log: what a kill cut short is no row."""
    lines = (folder / "log.jsonl").read_text(encoding="utf8").split("\n") if (folder / "log.jsonl").is_file() else []
    return [json.loads(line) for line in lines[:-1]]


def killed(folder: Path, fault: Fault) -> list[str]:
    """Start a child of one thread, let it kill itself; the operations it told. AssertionError where it did not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf8"}
    done = subprocess.run(command(folder, fault), env=environment, capture_output=True, encoding="utf8", timeout=300)
    wanted = 0 if fault.kind == "none" else -signal.SIGKILL
    assert done.returncode == wanted, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return operations_of(done.stdout)


def operations_of(printed: str) -> list[str]:
    """Names of all operations of an undisturbed run, the first at index 0."""
    return [line.removeprefix("operation: ") for line in printed.splitlines() if line.startswith("operation: ")]


def kept(folder: Path) -> int:
    """After a kill: every checkpoint is whole, and no more than the steps since the last save are lost. The last one's
    step."""
    folders = sorted((folder / "checkpoints").glob("step-*"))
    for path in folders:
        assert not checkpoint.damage(path), f"{path.name}: {checkpoint.damage(path)}"
    last = int(folders[-1].name[5:]) if folders else 0
    done = sum("loss" in row for row in rows(folder))
    assert last >= (done - 1) // SAVE_EVERY * SAVE_EVERY, f"{done} steps were done, the last checkpoint is of {last}"
    return last


def same(folder: Path, other: Path) -> None:
    """Every step's loss and norm, and every evaluation, to the bit; the same last weights; nothing left."""
    assert rows(folder) == rows(other)
    place = f"checkpoints/step-{STEPS:06d}"
    ours, theirs = (safetensors.torch.load_file(at / place / "model.safetensors") for at in (folder, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert checkpoint.read_state(folder / place) == checkpoint.read_state(other / place)
    left = [path.relative_to(folder) for path in folder.rglob(".*") if path.name not in (".gitignore",)]
    assert not left, left


# ---- the table -------------------------------------------------------------------------------------------------------


def save_of(names: list[str], step: int) -> list[int]:
    """Numbers of the operations of the save at `step`."""
    first = next(i for i, name in enumerate(names) if f"step-{step:06d}" in name)
    end = next((i for i, name in enumerate(names) if i > first and name == "sync log.jsonl"), len(names))
    return list(range(first + 1, end + 1))


def faults(names: list[str]) -> Iterator[tuple[str, list[Fault]]]:
    """What is tried: a name, and the faults that come one after the other."""
    draw = random.Random(0)
    for _ in range(5):
        fault = Fault("moment", draw.randrange(STEPS), draw.uniform(0, 0.06))
        yield f"step {fault.number}, {1000 * fault.delay:.0f} ms in", [fault]
    for number in save_of(names, 6):
        yield f"before {names[number - 1]}", [Fault("operation", number)]
    for number in save_of(names, 4):
        if names[number - 1].startswith(("write", "safetensors")):
            yield f"half of {names[number - 1]}", [Fault("torn", number)]
    yield "in step 5, the log torn", [Fault("cut", 5)]
    for number in (2, 4, 6, 8):  # what a resumed run does first: it writes its logs anew
        yield f"in step 5, then at the resumed run's operation {number}", [
            Fault("moment", 5), Fault("operation", number)
        ]  # fmt: skip


def alone(folder: Path, name: str, chain: list[Fault], straight: Path) -> str:
    """Kill a run of one process by each of `chain`, finish it, compare."""
    last = []
    for fault in chain:
        killed(folder, fault)
        last.append(kept(folder))
    killed(folder, Fault())
    same(folder, straight)
    return f"{name}: went on from {', '.join(map(str, last))}"


def together(folder: Path, fault: Fault, straight: Path) -> str:
    """The same with two processes, one of which is killed."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    try:
        distributed.launch([command(folder / "run", fault)] * 2, logs, 300)
    except Me5Error as error:
        assert f"process {fault.rank} of 2 failed with exit code -9" in str(error), error
    else:
        raise AssertionError("nobody was killed")
    last = kept(folder / "run")
    distributed.launch([command(folder / "run", Fault())] * 2, logs, 300)
    same(folder / "run", straight)
    return f"two processes, {fault.kind} {fault.number} on rank {fault.rank}: went on from {last}"


def prove(folder: Path) -> None:
    """All of it."""
    straight, both = folder / "straight", folder / "both"
    tried = list(faults(killed(straight, Fault())))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in [pool.submit(alone, folder / str(i), *case, straight) for i, case in enumerate(tried)]:
            print(job.result(), flush=True)
    both.mkdir()
    distributed.launch([command(both / "run", Fault())] * 2, both, 300)
    names = operations_of((both / "rank0.log").read_text(encoding="utf8"))
    save = save_of(names, 6)
    rename = next(number for number in save if names[number - 1].startswith("rename"))
    pair = [Fault("moment", 3, 0.02, 0), Fault("moment", 5, 0.02, 1), Fault("operation", rename),
            Fault("operation", save[len(save) // 3])]  # fmt: skip
    for i, fault in enumerate(pair):
        print(together(folder / f"both-{i}", fault, both / "run"), flush=True)
    kills = sum(len(chain) for _, chain in tried) + len(pair)
    print(f"{kills} kills: every loss, evaluation and weight equal to the bit")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), Fault(*json.loads(sys.argv[3])))
    else:
        with tempfile.TemporaryDirectory(prefix="me5-") as scratch:
            prove(Path(scratch))
