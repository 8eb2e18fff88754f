"""Many processes, one gradient: a gather that gradients flow through, the scale contract, and the proof of both.

Design: every rank embeds its own rows; `gather` gives everyone all vectors; each rank computes the losses of its own
rows against everybody's passages; `global_mean` scales their sum so that what DistributedDataParallel then does (the
average of the ranks' gradients) is the gradient of the mean over the *global* batch. Ranks may hold unequal numbers
of rows, or none. Several such terms can be added: the weight between them is the same at every world size.

    vectors = gather(encoder(ids))
    loss = global_mean(row_losses(queries, passages, related, temperature, rows=mine))

`prove_gradient` starts real processes on this machine and measures the gradient against the one of a single process,
for this and for the usual mistakes. Nothing is assumed of the machine: gloo on the CPU, a file to meet at, `spawn` by
command line (works from a notebook and on Windows), every child ended after `timeout` seconds.

Cost: a gather sends each vector to every rank, and its gradient back. The proof takes as long as every child needs to
import torch and what DistributedDataParallel imports: about 3 s of processor time each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as processes
from torch import Tensor

from me5lib.places import PACKAGE, Me5Error
from me5lib.train.contrast import Relations, row_losses
from me5lib.train.gradcache import cached_step


def world() -> int:
    """How many processes train together: 1 where none were started."""
    return processes.get_world_size() if processes.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return processes.get_rank() if processes.is_initialized() else 0


def counts(rows: int) -> list[int]:
    """How many rows each rank holds, given how many this one does. Every rank must ask."""
    if world() == 1:
        return [rows]
    table = torch.zeros(world(), dtype=torch.int64)
    table[rank()] = rows
    processes.all_reduce(table)
    return table.tolist()


class _Gather(torch.autograd.Function):
    """All ranks' rows in the order of ranks; backwards, the sum of all ranks' gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        """[n_r, …] → [Σ n_r, …]."""
        held = counts(len(mine))
        padded = mine.new_zeros(max(held), *mine.shape[1:])  # collectives want equal shapes
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in held]
        processes.all_gather(parts, padded)
        ctx.begin, ctx.rows = sum(held[: rank()]), len(mine)
        return torch.cat([part[:rows] for part, rows in zip(parts, held, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """[Σ n_r, …] → [n_r, …]."""
        total = gradient.contiguous().clone()
        processes.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.rows]


def gather(mine: Tensor) -> Tensor:
    """[n_r, …] of every rank r → [Σ n_r, …] on all of them, rank by rank; gradients flow back to their rows.

    Ranks may hold unequal numbers of rows, or none. A collective, forwards and backwards: every rank must call it, and
    every rank must call backward, each with a tensor that wants a gradient or each with one that does not.
    """
    return mine if world() == 1 else _Gather.apply(mine)


def global_mean(losses: Tensor) -> Tensor:
    """This rank's share of the mean over all ranks' `losses` [n_r]: a scalar whose average over the ranks is that mean.

    So the average that DistributedDataParallel takes of the ranks' gradients is the gradient of the global mean. The
    divisor is the number of rows that there really are, not this rank's times the number of ranks.
    """
    return losses.sum() * (world() / max(1, sum(counts(len(losses)))))


class Measured(NamedTuple):
    """A gradient g beside the right one r, of a single process."""

    ratio: float  # ⟨g, r⟩ / ⟨r, r⟩: how much of the right step is taken
    cosine: float  # 1: the right direction
    loss: float  # mean over the ranks of the loss that each reports


VARIANTS = {
    "ours": "local rows × all passages, global mean",
    "ours, replayed": "the same through GradCache",
    "÷ W": "every rank the whole table, gradient to its own vectors only",
    "× W": "every rank the whole table times W, gradients summed in the gather",
    "local mean": "each rank the mean over its own rows",
    "dropped": "other ranks' vectors taken as constants",
    "local negatives": "no gather: each rank its own table",
}


def prove_gradient(
    world: int = 2, shards: Sequence[int] | None = None, loss: str = "one-way", seed: int = 0, timeout: float = 180.0
) -> dict[str, Measured]:
    """Start `world` processes, and measure the gradient of each of `VARIANTS` against that of one process.

    A toy encoder in float64 with dropout 0 under DistributedDataParallel, 32 labelled rows with a hard negative each
    and planted duplicates, τ = 0.05. `shards`: rows of each rank (default: as equal as can be); they sum to 32.
    Raises `Me5Error` when a process fails or has not finished after `timeout` seconds; none is left running.
    """
    shards = [ROWS // world + (r < ROWS % world) for r in range(world)] if shards is None else list(shards)
    if len(shards) != world or sum(shards) != ROWS or min(shards) < 0:
        raise Me5Error(f"shards {shards} must be {world} numbers of rows that sum to {ROWS}")
    with tempfile.TemporaryDirectory(prefix="me5-", ignore_cleanup_errors=True) as folder:
        task = {"world": world, "shards": shards, "loss": loss, "seed": seed, "folder": folder, "timeout": timeout}
        (Path(folder) / "task.json").write_text(json.dumps(task), encoding="utf8")
        launch([[sys.executable, "-m", "me5lib.train.dist", folder, str(r)] for r in range(world)], folder, timeout)
        found = json.loads((Path(folder) / "found.json").read_text(encoding="utf8"))
    return {name: Measured(*numbers) for name, numbers in found.items()}


def launch(commands: Sequence[Sequence[str]], folder: str | Path, timeout: float) -> None:
    """Run `commands` side by side until all have ended; what they print goes to files in `folder`.

    Raises `Me5Error` with the last line of the first to fail, or naming those that did not finish in `timeout` seconds.
    Whatever happens, an interrupt included, no child is left running.
    """
    children: list[subprocess.Popen] = []
    deadline = time.monotonic() + timeout
    logs = [Path(folder) / f"rank{r}.log" for r in range(len(commands))]
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as sink:
                children.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=_environment()))
        while any(child.poll() is None for child in children):
            _refuse_failed(children, logs)
            if time.monotonic() > deadline:
                late = ", ".join(str(r) for r, child in enumerate(children) if child.poll() is None)
                raise Me5Error(f"process {late} had not finished after {timeout:g} s and was ended: "
                               "if the machine is only slow, give a longer timeout")
            time.sleep(0.02)
        _refuse_failed(children, logs)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _refuse_failed(children: Sequence[subprocess.Popen], logs: Sequence[Path]) -> None:
    for r, child in enumerate(children):
        if child.poll():
            said = logs[r].read_text(encoding="utf8", errors="replace").strip().splitlines() or ["it said nothing"]
            raise Me5Error(f"process {r} of {len(children)} failed with exit code {child.returncode}: {said[-1]}")


def _environment() -> dict[str, str]:
    """One thread each, this very library, and the loopback device: the processes are all on this machine."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf8"}
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return {**({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}), **os.environ, **fixed}


# ---- what a child does -----------------------------------------------------------------------------------------------

ROWS, VOCABULARY, WIDTH, TEMPERATURE, BUDGET = 32, 64, 8, 0.05, 40


class Toy(torch.nn.Module):
    """The mean of word vectors, a tanh layer, a linear one, unit length. No rows in, no rows out."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = torch.nn.EmbeddingBag(VOCABULARY, 16, mode="mean", dtype=torch.float64)
        self.hidden = torch.nn.Linear(16, 16, dtype=torch.float64)
        self.out = torch.nn.Linear(16, WIDTH, bias=False, dtype=torch.float64)

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of n texts → unit vectors [n, WIDTH]."""
        flat = torch.tensor([token for text in ids for token in text], dtype=torch.int64)
        starts = torch.tensor([0, *(len(text) for text in ids)], dtype=torch.int64).cumsum(0)[:-1]
        return torch.nn.functional.normalize(self.out(torch.tanh(self.hidden(self.words(flat, starts)))), dim=1)


class Task(NamedTuple):
    """The global batch: row i is a query, its positive 2i and its hard negative 2i + 1; `mine` are this rank's rows."""

    queries: list[list[int]]
    passages: list[list[int]]
    related: Relations
    mine: slice
    loss: str

    def table(self, queries: Tensor, passages: Tensor, rows: slice) -> Tensor:
        """The losses of `rows` of the whole batch."""
        return row_losses(queries, passages, self.related, TEMPERATURE, self.loss, rows)


def toy_task(seed: int, mine: slice, loss: str) -> Task:
    """Random texts of 1 to 9 tokens: a positive shares tokens with its query; rows 3 and 20 ask the same question,
    and rows 5 and 25 have the same answer."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (3 * ROWS,), generator=draw).tolist()
    texts = [torch.randint(VOCABULARY, (length,), generator=draw).tolist() for length in lengths]
    queries, positives, negatives = texts[:ROWS], texts[ROWS : 2 * ROWS], texts[2 * ROWS :]
    queries[20] = queries[3]
    positives = [query[:2] + text for query, text in zip(queries, positives, strict=True)]
    positives[25] = positives[5]
    passages = [text for pair in zip(positives, negatives, strict=True) for text in pair]
    number: dict[tuple[int, ...], int] = {}
    keys = torch.tensor([number.setdefault(tuple(text), len(number)) for text in queries + passages])
    positive, owner = 2 * torch.arange(ROWS), torch.arange(2 * ROWS) // 2
    related = Relations(keys[:ROWS], keys[ROWS:], positive, owner, keys[ROWS:][positive, None])
    return Task(queries, passages, related, mine, loss)


def _own(task: Task, rows: slice) -> tuple[list[list[int]], int]:
    """Token ids of the queries and then the passages of `rows`, and how many queries there are."""
    queries = task.queries[rows]
    return queries + task.passages[2 * rows.start : 2 * rows.stop], len(queries)


def _others_constant(mine: Tensor) -> Tensor:
    """All ranks' rows, of which only this rank's own carry a gradient (what `all_gather` by itself gives)."""
    held = counts(len(mine))
    begin = sum(held[: rank()])
    everyone = gather(mine.detach())
    return torch.cat([everyone[:begin], mine, everyone[begin + len(mine) :]])


def _loss(variant: str, task: Task, vectors: Tensor, own: int) -> Tensor:
    """The loss that this rank would call backward on: `vectors` are its queries and then its passages."""
    q, p, whole = vectors[:own], vectors[own:], slice(0, ROWS)
    if variant == "local negatives":
        at = torch.arange(own)
        first = task.mine.start
        part = Relations(
            task.related.query_key[task.mine], task.related.passage_key[2 * first : 2 * first + 2 * own], 2 * at,
            torch.arange(2 * own) // 2, task.related.positive_keys[task.mine],
        )
        return row_losses(q, p, part, TEMPERATURE, task.loss).sum() / max(1, own)
    spread: Callable[[Tensor], Tensor] = _others_constant if variant in ("÷ W", "dropped") else gather
    q, p = spread(q), spread(p)
    if variant == "÷ W":
        return task.table(q, p, whole).mean()
    if variant == "× W":
        return task.table(q, p, whole).mean() * world()
    losses = task.table(q, p, task.mine)
    return losses.sum() / max(1, len(losses)) if variant == "local mean" else global_mean(losses)


def _gradient(model: torch.nn.Module) -> Tensor:
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return flat


def measure(task: Task, seed: int) -> dict[str, Measured]:
    """Every variant's gradient, as DistributedDataParallel leaves it, beside that of one process with all rows."""
    toy = Toy(seed)
    q, p = toy(task.queries), toy(task.passages)
    task.table(q, p, slice(0, ROWS)).mean().backward()
    right = _gradient(toy)
    model = torch.nn.parallel.DistributedDataParallel(toy)
    ids, own = _own(task, task.mine)
    found = {}
    for variant in VARIANTS:
        budget = BUDGET if variant == "ours, replayed" else sys.maxsize
        loss = cached_step(model, ids, lambda vectors, v=variant: _loss(v, task, vectors, own), budget, seed)
        processes.all_reduce(loss)
        got = _gradient(toy)
        ratio, cosine = got @ right / (right @ right), got @ right / (got.norm() * right.norm())
        found[variant] = Measured(ratio.item(), cosine.item(), loss.item() / world())
    return found


def main(folder: str, this: int) -> None:
    """One child: meet the others at a file, measure, and (rank 0) write what was found."""
    task = json.loads((Path(folder) / "task.json").read_text(encoding="utf8"))
    store = processes.FileStore(str(Path(folder) / "meet"), task["world"])
    processes.init_process_group(
        "gloo", store=store, rank=this, world_size=task["world"], timeout=timedelta(seconds=task["timeout"])
    )
    begin = sum(task["shards"][:this])
    mine = slice(begin, begin + task["shards"][this])
    found = measure(toy_task(task["seed"], mine, task["loss"]), task["seed"])
    if this == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf8")
    processes.barrier()
    processes.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    # Everything is written and the group is gone. On Python's own way out torch now and then aborts over a gloo thread
    # that is still running ("terminate called without an active exception": seen once in some hundred exits).
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)
