"""Many processes, one gradient: who trains together, a gather that gradients flow through, and the scale contract.

Every rank embeds its own rows; `gather` gives everyone all vectors, `gather_relations` the relations of all rows; each
rank computes the losses of its own rows against everybody's passages; `global_mean` scales their sum so that what
DistributedDataParallel then does (the average of the ranks' gradients) is the gradient of the mean over the *global*
batch (`stages.global_loss`). Ranks may hold unequal numbers of rows, or none. Several such terms can be added: the
weight between them is the same at every world size. The proof on your own machines: `me5lib.lessons.check_gradients`.

Ranks run unequal numbers of pieces, which sharded parameters (FSDP, ZeRO-2 and 3) would deadlock on, so those are
refused; 560 M parameters need neither. Cost: a gather sends each vector to every rank, and its gradient back.
"""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections import UserList
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as processes
import torch.distributed.nn  # before there is a group, which its functions' defaults would hold for ever
from torch import Tensor

from me5lib.device import best_device
from me5lib.io import PACKAGE, Me5Error
from me5lib.train.loss import Relations

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # the network that is this machine
MEETING = "ME5_MEET"  # a file at which the processes that `launch` starts find each other: no port, so none is taken
PATIENCE = timedelta(hours=2)  # ours: a collective's, for a rank that is slow; nobody waits in one for work of hours
T = TypeVar("T")
_meetings = itertools.count()
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # accelerate's switches, as ACCELERATE_USE_<name>


@dataclass(frozen=True)
class Team:
    """Who trains together. `Team.alone()` is one process, without any process group."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def alone(cls, device: torch.device | None = None) -> Team:
        """One process on `device` (a GPU if there is one)."""
        return cls(0, 1, device or best_device())

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def wrap(self, model: torch.nn.Module) -> Callable[[Any], Tensor]:
        """`model` itself, or behind DistributedDataParallel: called with token ids, with `no_sync` of its own."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.13 has another name for it, which earlier releases do not know
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return _Parallel(model, devices, broadcast_buffers=False)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. A collective."""
        return self.sum(float(flag)) > 0

    def mean(self, value: float) -> float:
        """The mean of every rank's `value`. A collective."""
        return self.sum(value) / self.world

    def sum(self, value: float) -> float:
        """The sum of every rank's `value`. A collective."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        processes.all_reduce(total)
        return total.item()

    def barrier(self) -> None:
        """Wait for the others, however long they take: at the store where they met, not in a collective, which would
        give up after `PATIENCE`."""
        if self.world == 1:
            return
        store, here, pause = processes.distributed_c10d._get_default_store(), f"me5/{next(_meetings)}", 0.001
        store.add(here, 1)
        while store.add(here, 0) < self.world:
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def by_main(self, act: Callable[[], T]) -> T | None:
        """What `act` gives on rank 0, None on the others, which wait for it; if it fails they all do, so that nobody
        waits for a rank that has gone."""
        made = error = None
        if self.main:
            try:
                made = act()
            except Exception as caught:  # noqa: BLE001
                error = caught
        self.barrier()
        if self.any(error is not None):
            raise error or Me5Error("rank 0 failed: it says why")
        return made

    def main_process_first(self, make: Callable[[], T]) -> T:
        """What `make` gives, on every rank; rank 0 first, so that what it builds or downloads is there for the rest."""
        made = self.by_main(make)
        return made if self.main else make()


class _Parallel(torch.nn.parallel.DistributedDataParallel):
    """DistributedDataParallel around an encoder, called as the encoder is."""

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of n texts → vectors [n, d]."""
        return super().forward(UserList(ids))  # it would walk through a list, number by number


def join(world: int | None = None) -> Team:
    """The processes that a launcher (torchrun, accelerate, srun, `launch`) started together; one alone without one.

    Raises `Me5Error` where the launcher was told to shard parameters, and, with `world`, when another number came
    together: without GPUs `accelerate launch --num_processes 2` starts but one.
    """
    if sharded := [name for name in SHARDED if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"]:
        raise Me5Error(f"{sharded[0]} shards parameters, and ranks of unequal numbers of pieces would deadlock: "
                       "launch with plain data parallelism (accelerate launch --multi_gpu)")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if world is not None and launched != world:
        raise Me5Error(f"{launched} process(es) were launched, {world} were asked for: "
                       f"torchrun --nproc-per-node {world}, or on GPUs accelerate launch --num_processes {world}")
    if launched == 1:
        return Team.alone()
    number, device, meeting = int(os.environ["RANK"]), torch.device("cpu"), os.environ.get(MEETING)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    store = processes.FileStore(meeting, launched) if meeting else None  # without: where MASTER_ADDR says
    processes.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=PATIENCE, world_size=launched,
                                 rank=number, store=store)
    return Team(number, launched, device)


def leave() -> None:
    """Dissolve the group, if there is one, and gloo's threads with it: one that lives on may abort the interpreter when
    it ends."""
    if processes.is_initialized():
        gc.collect()  # DistributedDataParallel lies in a circle of references, and holds the group
        processes.destroy_process_group()


def world() -> int:
    """How many processes train together: 1 where none were started."""
    return processes.get_world_size() if processes.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return processes.get_rank() if processes.is_initialized() else 0


class Sizes(NamedTuple):
    """How much of a batch every rank holds, so that this is asked once and not by every collective."""

    queries: list[int]  # of rank 0, 1 …
    passages: list[int]
    known: int  # the most texts that answer one query, on any rank


def sizes(related: Relations) -> Sizes:
    """The sizes of all ranks' parts of a batch, of which `related` is this one's. One collective."""
    table = torch.zeros(world(), 3, dtype=torch.int64, device=related.query_key.device)
    row = [len(related.query_key), len(related.passage_key), related.positive_keys.shape[1]]
    table[rank()] = torch.tensor(row, device=table.device)
    if world() > 1:
        processes.all_reduce(table)
    queries, passages, known = table.T.tolist()
    return Sizes(queries, passages, max(known))


def local_slice(held: Sequence[int]) -> slice:
    """Where this rank's rows lie among everybody's, of which rank r holds `held[r]`."""
    begin = sum(held[: rank()])
    return slice(begin, begin + held[rank()])


class _Gather(torch.autograd.Function):
    """All ranks' rows in the order of ranks; backwards, the sum of all ranks' gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, held: Sequence[int]) -> Tensor:
        """[n_r, …] → [Σ n_r, …], of ranks that hold so many."""
        padded = mine.new_zeros(max(held), *mine.shape[1:])  # collectives want equal shapes
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in held]
        processes.all_gather(parts, padded)
        ctx.own = local_slice(held)
        return torch.cat([part[:rows] for part, rows in zip(parts, held, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """[Σ n_r, …] → [n_r, …]."""
        total = gradient.contiguous().clone()
        processes.all_reduce(total)
        return total[ctx.own], None


def gather(mine: Tensor, held: Sequence[int]) -> Tensor:
    """[n_r, …] of every rank r → [Σ n_r, …] on all of them, rank by rank; gradients flow back to their rows.

    `held`: every rank's n_r, which may be unequal, or 0. A collective, forwards and backwards: every rank must call it,
    and every rank must call backward, each with a tensor that wants a gradient or each with one that does not.
    """
    return mine if world() == 1 else _Gather.apply(mine, held)


def gather_relations(related: Relations, held: Sizes) -> Relations:
    """The relations of all ranks' rows, rank by rank: those of the vectors that `gather` gives. A collective."""
    queries, passages, known = held
    padding = related.positive_keys[:, :1].expand(-1, known - related.positive_keys.shape[1])  # it repeats the first
    return Relations(
        gather(related.query_key, queries), gather(related.passage_key, passages),
        gather(related.positive + sum(passages[: rank()]), queries),
        gather(related.owner + sum(queries[: rank()]), passages),
        gather(torch.cat([related.positive_keys, padding], 1), queries),
    )  # fmt: skip


def global_mean(total: Tensor, held: Sequence[int]) -> Tensor:
    """This rank's share of a mean over all ranks' rows (`held[r]` of rank r), of the `total` loss of its own: a scalar.

    The average of the ranks' shares is that mean, so the average that DistributedDataParallel takes of the gradients is
    the mean's gradient.
    """
    return total * (world() / max(1, sum(held)))


def launch(commands: Sequence[Sequence[str]], folder: str | Path, timeout: float) -> None:
    """Run `commands` side by side, as the ranks of one `join`, one thread each; they print to, and meet in, `folder`.

    Raises `Me5Error` with the last line of the first to fail, or naming those that did not finish in `timeout` seconds.
    No child is left running.
    """
    children: list[subprocess.Popen] = []
    deadline, world, meeting = time.monotonic() + timeout, str(len(commands)), Path(folder) / "meet"
    logs = [Path(folder) / f"rank{number}.log" for number in range(len(commands))]
    environment = {
        **({"GLOO_SOCKET_IFNAME": LOOPBACK[sys.platform]} if sys.platform in LOOPBACK else {}), **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf8", "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        MEETING: str(meeting),
    }  # fmt: skip
    if torch.cuda.device_count() < len(commands):  # NCCL refuses two ranks on one GPU
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        meeting.unlink(missing_ok=True)
        for number, command in enumerate(commands):
            with logs[number].open("wb") as sink:
                seat = {"RANK": str(number), "LOCAL_RANK": str(number)}
                children.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment | seat))
        while late := [number for number, child in enumerate(children) if child.poll() != 0]:
            if failed := [number for number in late if children[number].returncode]:
                said = logs[failed[0]].read_text(encoding="utf8", errors="replace").strip() or "it said nothing"
                raise Me5Error(f"process {failed[0]} of {world} failed with exit code "
                               f"{children[failed[0]].returncode}: {said.splitlines()[-1]}")
            if time.monotonic() > deadline:
                raise Me5Error(f"process {', '.join(map(str, late))} had not finished after {timeout:g} s and was "
                               "ended: if the machine is only slow, give a longer timeout")
            time.sleep(0.02)
    finally:
        for child in children:
            child.kill()
            child.wait()
