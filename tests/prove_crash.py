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
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from me5lib import config, io
from me5lib.model.encoder import Encoder
from me5lib.model.text import ROLES, SPECIAL
from me5lib.pairs import Pair
from me5lib.train import checkpoint, distributed, loop, stages

STEPS, SAVE_EVERY, SEED, BATCH = 8, 2, 3, 12
PRELOAD = ["me5lib.train.stages", "sentence_transformers", "transformers.models.bert.modeling_bert"]
STAGE = dataclasses.replace(config.load("smoke").train, steps=STEPS, warmup=2, lr=1e-2)
COLOURS = [("red", "rot"), ("green", "gruen"), ("blue", "blau"), ("white", "weiss"), ("black", "schwarz")]
PAIRS = [Pair(f"{a} car {i}", f"{b} auto {i}", "colours", "de") for a, b in COLOURS for i in range(8)]


class Fault(NamedTuple):
    """Where a process kills itself."""

    kind: str = "none"  # "operation": before the n-th; "torn": the n-th writes half; "moment": in step n, delayed;
    # "cut": the same, with half a row at the end of the log
    number: int = 0
    delay: float = 0.0
    rank: int = 0


def encoder() -> Encoder:
    """A tiny one, with dropout, over the words of the pairs: to train a vocabulary takes longer than these runs."""
    words = sorted({word for pair in PAIRS for text in pair[:2] for word in text.split()})
    names = {name: i for i, name in enumerate([*SPECIAL, "query:", *words])}
    raw = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **ROLES)
    return Encoder.new(config.Model("random", 1, 16, 2, 32, len(names), 32), tokenizer, 0, 0.1)


def prepare_of(
    model: Encoder, team: distributed.Team, started: Callable[[int], None] = lambda step: None, seed: int = SEED
) -> Callable[[int], loop.Work]:
    """The steps of the training that is killed: those of stage 1, by GradCache in small pieces."""
    wrapped = team.wrap(model)

    def prepare(step: int) -> loop.Work:
        pairs = [PAIRS[(7 * step + 3 * i) % len(PAIRS)] for i in range(BATCH)]
        mine = pairs[BATCH * team.rank // team.world : BATCH * (team.rank + 1) // team.world]
        work = stages.work_of(mine, wrapped, model, STAGE, team, stages.Budget(64, 0), (seed, step),
                              lambda source: ("query: ", "query: "))
        return work._replace(compute=lambda: (started(step), work.compute())[1])

    return prepare


def run(
    folder: Path, team: distributed.Team | None = None, started: Callable[[int], None] = lambda step: None
) -> Encoder:
    """The training that is killed, with its checkpoints and evaluations."""
    team, model = team or distributed.Team.alone(torch.device("cpu")), encoder()

    def evaluate(model: Encoder, step: int) -> dict[str, float]:
        left, right = (model.encode([pair[side] for pair in PAIRS[::8]]) for side in (0, 1))
        return {"margin": float((left * right).sum(1).mean() - (left @ right.T).mean())}

    options = loop.RunOptions(folder, SEED, "p", save_every=SAVE_EVERY, evaluate=evaluate, every=3, progress=False,
                              team=team)  # fmt: skip
    loop.train_loop(model, prepare_of(model, team, started), STAGE, options)
    return model


def child(folder: Path, fault: Fault) -> None:
    """The killed process: `run`, in which the seams of `io` and safetensors count what is done to the disk.

    An undisturbed one writes the operations down, in `<folder>.operations`.
    """
    team, count, names = distributed.join(), itertools.count(1), []

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
            names.append(f"{name} {os.path.relpath(path, folder)}")
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
    if team.main:
        Path(f"{folder}.operations").write_text("\n".join(names), encoding="utf8")
    distributed.leave()


# ---- one kill, and what must hold ------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict]:
    """The whole rows of the log: what a kill cut short is no row."""
    lines = (folder / "log.jsonl").read_text(encoding="utf8").split("\n") if (folder / "log.jsonl").is_file() else []
    return [json.loads(line) for line in lines[:-1]]


def forked(target: Callable, *arguments: object, world: int = 1, seconds: float = 300) -> list[int]:
    """Exit codes of `target(*arguments)` in `world` processes, the ranks of one `join`; when one fails, all are ended.

    They are forked from a server that has imported torch before: an import takes longer than these trainings.
    """
    context, deadline = multiprocessing.get_context("forkserver"), time.monotonic() + seconds
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        ranks = [context.Process(target=_rank, args=(target, arguments, rank, world, f"{folder}/meet"))
                 for rank in range(world)]
        for process in ranks:
            process.start()
        while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
            if any(process.exitcode for process in ranks):
                break
            time.sleep(0.02)
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _rank(target: Callable, arguments: tuple, rank: int, world: int, meeting: str) -> None:
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                       distributed.MEETING: meeting, "GLOO_SOCKET_IFNAME": distributed.LOOPBACK[sys.platform]}
    torch.set_num_threads(1)
    target(*arguments)


def killed(folder: Path, fault: Fault, world: int = 1) -> list[str]:
    """Let a child kill itself; the operations of an undisturbed one. AssertionError where it did not do so."""
    codes = forked(child, folder, fault, world=world)
    wanted = 0 if fault.kind == "none" else -signal.SIGKILL
    assert codes[fault.rank] == wanted, f"exit codes {codes}"
    return [] if wanted else Path(f"{folder}.operations").read_text(encoding="utf8").split("\n")


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
    left = [path.relative_to(folder) for path in folder.rglob(".*")]
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


def tried_on(folder: Path, name: str, chain: list[Fault], straight: Path, world: int = 1) -> str:
    """Kill a run by each of `chain`, finish it, compare."""
    last = []
    for fault in chain:
        killed(folder, fault, world)
        last.append(kept(folder))
    killed(folder, Fault(), world)
    same(folder, straight)
    return f"{name}: went on from {', '.join(map(str, last))}"


def prove(folder: Path) -> None:
    """All of it."""
    straight, both = folder / "straight", folder / "both"
    tried = list(faults(killed(straight, Fault())))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in [pool.submit(tried_on, folder / str(i), *case, straight) for i, case in enumerate(tried)]:
            print(job.result(), flush=True)
    names = killed(both, Fault(), world=2)
    save = save_of(names, 6)
    rename = next(number for number in save if names[number - 1].startswith("rename"))
    pair = [Fault("moment", 3, 0.02, 0), Fault("moment", 5, 0.02, 1), Fault("operation", rename),
            Fault("operation", save[len(save) // 3])]  # fmt: skip
    for i, fault in enumerate(pair):
        name = f"two processes, {fault.kind} {fault.number} on rank {fault.rank}"
        print(tried_on(folder / f"both-{i}", name, [fault], both, world=2), flush=True)
    kills = sum(len(chain) for _, chain in tried) + len(pair)
    print(f"{kills} kills: every loss, evaluation and weight equal to the bit")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="me5-") as scratch:
        prove(Path(scratch))
