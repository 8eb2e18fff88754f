"""The proof of `distributed`: the gradient and the steps of W real processes beside those of one, and usual mistakes.

    prove_gradient(world=2)                        # starts the processes on this machine: works from a notebook
    torchrun --nproc-per-node 8 -m me5lib.lessons.check_gradients    # on a cluster, for the processes launched there

A toy encoder in float64 under DistributedDataParallel, 32 labelled rows with a hard negative each and planted
duplicates, τ = 0.05. Every variant of `VARIANTS` is measured, for InfoNCE (`loss` a form of `loss.FORMS`) or for
stage 2's objective ("stage 2": KL to a teacher + α · InfoNCE); then the right one takes five steps of AdamW.

Nothing is assumed of the machine: gloo on the CPU, a file to meet at, children started by command line, ended after
`timeout` seconds. Cost: every child imports torch, about 3 s of processor time each.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from me5lib import io
from me5lib.io import Me5Error
from me5lib.train import distributed
from me5lib.train.distributed import Team, gather, gather_relations, global_mean, launch, local_slice, sizes
from me5lib.train.gradcache import cached_step
from me5lib.train.loss import Relations, group_scores, info_nce, kl_divergence

ROWS, VOCABULARY, WIDTH, TEMPERATURE, BUDGET = 32, 64, 8, 0.05, 40
ALPHA, STEPS, RATE = 0.2, 5, 1e-2  # the weight of InfoNCE beside KL; AdamW's steps and learning rate
STAGE_2 = "stage 2"


class GradientCheck(NamedTuple):
    """A gradient g beside the right one r, of a single process."""

    ratio: float  # ⟨g, r⟩ / ⟨r, r⟩: how much of the right step is taken
    cosine: float  # 1: the right direction
    loss: float  # mean over the ranks of the loss that each reports
    apart: float = float("nan")  # ‖Δθ − Δθ′‖ / ‖Δθ‖ after STEPS steps of AdamW; of "ours" alone


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
    world: int = 2, shards: Sequence[int] | None = None, losses: Sequence[str] = ("one-way",), seed: int = 0,
    timeout: float = 180.0,
) -> list[dict[str, GradientCheck]]:
    """Start `world` processes, and measure the gradient of each of `VARIANTS` against that of one process.

    Once for each of `losses`: a form of InfoNCE, or "stage 2". `shards`: rows of each rank (default: as equal as can
    be); they sum to 32. Raises `Me5Error` as `launch` does.
    """
    shards = _even(world) if shards is None else list(shards)
    if len(shards) != world or sum(shards) != ROWS or min(shards) < 0:
        raise Me5Error(f"shards {shards} must be {world} numbers of rows that sum to {ROWS}")
    with tempfile.TemporaryDirectory(prefix="me5-", ignore_cleanup_errors=True) as folder:
        io.write_json(Path(folder) / "task.json", {"shards": shards, "losses": losses, "seed": seed})
        launch([[sys.executable, "-m", "me5lib.lessons.check_gradients", folder]] * world, folder, timeout)
        found = io.read_json(Path(folder) / "found.json")
    return [{name: GradientCheck(*each[name]) for name in VARIANTS} for each in found]


def _even(world: int) -> list[int]:
    return [ROWS // world + (r < ROWS % world) for r in range(world)]


# ---- what a process does ---------------------------------------------------------------------------------------------


class Toy(torch.nn.Module):
    """The mean of word vectors, a tanh layer, a linear one, unit length."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = torch.nn.EmbeddingBag(VOCABULARY, 16, mode="mean", dtype=torch.float64)
        self.hidden = torch.nn.Linear(16, 16, dtype=torch.float64)
        self.out = torch.nn.Linear(16, WIDTH, bias=False, dtype=torch.float64)

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of n texts → unit vectors [n, WIDTH]; no texts: [0, WIDTH], part of the graph all the same."""
        texts = ids if len(ids) else [[0]]
        device = self.out.weight.device
        flat = torch.tensor([token for text in texts for token in text], dtype=torch.int64, device=device)
        starts = torch.tensor([0, *(len(text) for text in texts)], dtype=torch.int64, device=device).cumsum(0)[:-1]
        vectors = self.out(torch.tanh(self.hidden(self.words(flat, starts))))
        return torch.nn.functional.normalize(vectors, dim=1)[: len(ids)]


class Task(NamedTuple):
    """The global batch: row i is a query, its positive 2i and its hard negative 2i + 1; `mine` are this rank's rows."""

    queries: list[list[int]]
    passages: list[list[int]]
    related: Relations
    teacher: Tensor  # [ROWS, 2] scores of each row's own passages
    mine: slice
    loss: str

    def table(self, queries: Tensor, passages: Tensor, rows: slice) -> Tensor:
        """The sum of the losses of `rows` of the whole batch: InfoNCE, or its share of stage 2's objective."""
        form, weight = ("one-way", ALPHA) if self.loss == STAGE_2 else (self.loss, 1)
        related = self.related.to(queries.device)
        return weight * info_nce(queries, passages, related, TEMPERATURE, form, rows, reduction="sum")

    def lesson(self, queries: Tensor, passages: Tensor, rows: slice) -> Tensor:
        """The sum over `rows`, whose own vectors these are, of KL to the teacher (0 without one)."""
        if self.loss != STAGE_2 or not len(queries):
            return queries.sum() * 0
        scores = group_scores(queries, passages, TEMPERATURE)
        return kl_divergence(scores, self.teacher[rows].to(scores.device)) * len(queries)

    def alone(self, toy: Callable[..., Tensor]) -> Tensor:
        """The mean loss of one process that holds all rows: what every variant is measured against."""
        q, p, whole = toy(self.queries), toy(self.passages), slice(0, ROWS)
        return (self.table(q, p, whole) + self.lesson(q, p, whole)) / ROWS


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
    teacher = 2 * torch.randn(ROWS, 2, dtype=torch.float64, generator=draw)
    return Task(queries, passages, _relations_of(keys[:ROWS], keys[ROWS:]), teacher, mine, loss)


def _relations_of(queries: Tensor, passages: Tensor) -> Relations:
    """Relations of n rows by the keys of their queries [n] and passages [2n]."""
    positive, owner = 2 * torch.arange(len(queries)), torch.arange(2 * len(queries)) // 2
    return Relations(queries, passages, positive, owner, passages[positive, None])


def _loss(variant: str, task: Task, vectors: Tensor, own: int) -> Tensor:
    """The loss that this rank would call backward on: `vectors` are its `own` queries and then its passages."""
    q, p, mine = vectors[:own], vectors[own:], task.mine
    related = _relations_of(task.related.query_key[mine], task.related.passage_key[2 * mine.start : 2 * mine.stop])
    related = related.to(q.device)
    held, lesson = sizes(related), task.lesson(q, p, mine)
    lesson = lesson / max(1, own) if variant == "local mean" else global_mean(lesson, held.queries)
    if variant == "local negatives":
        return lesson + task._replace(related=related).table(q, p, slice(0, own)) / max(1, own)
    queries, passages = gather(q, held.queries), gather(p, held.passages)
    if variant in ("÷ W", "dropped"):  # all ranks' rows, of which only this rank's carry a gradient, as of `all_gather`
        before, after = local_slice(held.queries), local_slice(held.passages)
        queries, passages = (torch.cat([every[: rows.start].detach(), own_rows, every[rows.stop :].detach()])
                             for every, own_rows, rows in ((queries, q, before), (passages, p, after)))
    if variant in ("÷ W", "× W"):
        factor = distributed.world() if variant == "× W" else 1
        return lesson + task.table(queries, passages, slice(0, ROWS)) / ROWS * factor
    if variant in ("ours", "ours, replayed"):  # the relations are gathered as in training
        task = task._replace(related=gather_relations(related, held))
    total = task.table(queries, passages, mine)
    return lesson + (total / max(1, own) if variant == "local mean" else global_mean(total, held.queries))


def _step(model: Callable[..., Tensor], task: Task, variant: str, seed: int) -> Tensor:
    """Backward of this rank's rows as `variant` would; the loss that it reports."""
    queries = task.queries[task.mine]
    ids = queries + task.passages[2 * task.mine.start : 2 * task.mine.stop]
    budget = BUDGET if variant == "ours, replayed" else sys.maxsize
    return cached_step(model, ids, lambda vectors: _loss(variant, task, vectors, len(queries)), budget, seed)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def measure(task: Task, seed: int, team: Team) -> dict[str, GradientCheck]:
    """Every variant's gradient, as DistributedDataParallel leaves it, beside that of one process with all rows."""

    def gradient() -> Tensor:
        flat = _flat(weight.grad for weight in toy.parameters())
        toy.zero_grad()
        return flat

    toy = Toy(seed).to(team.device)
    task.alone(toy).backward()
    right, model, found = gradient(), team.wrap(toy), {}
    for variant in VARIANTS:
        loss, got = _step(model, task, variant, seed), gradient()
        ratio, cosine = got @ right / (right @ right), got @ right / (got.norm() * right.norm())
        found[variant] = GradientCheck(ratio.item(), cosine.item(), team.mean(loss.item()))
    found["ours"] = found["ours"]._replace(apart=_apart(task, seed, team))
    return found


def _apart(task: Task, seed: int, team: Team) -> float:
    """How far the weights of the team's steps are from those of one process, as a share of the way; by replay."""
    alone, together = Toy(seed).to(team.device), Toy(seed).to(team.device)
    start, model = _flat(alone.parameters()), team.wrap(together)
    for toy in (alone, together):
        optimiser = torch.optim.AdamW(toy.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimiser.zero_grad()
            task.alone(toy).backward() if toy is alone else _step(model, task, "ours, replayed", seed)
            optimiser.step()
    way = _flat(alone.parameters()) - start
    return ((_flat(together.parameters()) - start - way).norm() / way.norm()).item()


def main(folder: str = "") -> None:
    """One process: join the others, measure; rank 0 writes what was found, or prints it where no folder is given."""
    team = distributed.join()
    task = io.read_json(Path(folder) / "task.json") if folder else {}
    shards, seed = task.get("shards") or _even(team.world), task.get("seed", 0)
    begin, measured = sum(shards[: team.rank]), []
    for loss in task.get("losses", ["one-way", STAGE_2]):
        found = measure(toy_task(seed, slice(begin, begin + shards[team.rank]), loss), seed, team)
        measured.append(found)
        if team.main and not folder:
            print(f"{loss}, {team.world} process(es), against one; right: ratio 1, cosine 1, weights 0 apart")
            for name, (ratio, cosine, value, apart) in found.items():
                print(f"  {name:16} ratio {ratio:9.6f}   cosine {cosine:9.6f}   loss {value:8.4f}   apart {apart:.1e}")
    if team.main and folder:
        io.write_json(Path(folder) / "found.json", measured)
    team.barrier()
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
    # On Python's own way out torch now and then aborts over a gloo thread that is still running ("terminate called
    # without an active exception": seen once in some hundred exits).
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)
