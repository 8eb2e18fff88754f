"""`--dry-run`: a scale of the hub rehearsed in minutes, offline, before days of it are begun on many GPUs.

    rehearse(scale.load("large"), seed=0, folder=Path("runs/dry-run"))      # prints what it did; leaves nothing

What is real: the scale's data dials over every one of its cards, the stage (`stages.pretrain`, `stages.finetune`) with
its loop, checkpoint, SIGTERM, resume and publication, the backbone's class and shape, the processes and their device.
What is not: the weights (random), the rows (`data.made_up`), the vocabulary (a small one), two steps of eight. Where
the true shape does not fit into memory or onto the disk, layers are left out, and that is said.

Two legs. In the first one SIGTERM comes after a step, as from Slurm; in the second the checkpoint is gone on with, the
batch cut into small pieces, so that both ways of making the gradient are taken: one graph, and GradCache. In stage 2
the first leg mines and trains the teacher; the second learns from made-up scores, for that teacher is not trusted.

Cost on two cores, at the true shapes: small 25 s and 3 GB, base 52 s and 6 GB, large 107 s and 11 GB of memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from me5lib.config import Model, Scale, Stage
from me5lib.data import fake_rows
from me5lib.data.corpus import open_corpus
from me5lib.data.hub_corpus import HubCorpus
from me5lib.io import Me5Error, give_back
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import DRY_RUN
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer
from me5lib.pairs import Labelled, Pair
from me5lib.train import checkpoint, cost, distill, loop, stages
from me5lib.train.distributed import Team
from me5lib.train.monitor import bitext_accuracy

STEPS, BATCH = 2, 8  # ours: a step in each leg, of a few pairs
ROWS = 16  # ours: of every stream
VOCABULARY = 2_000  # ours: pieces; the table of the backbone keeps its true size
PIECE = 128  # ours: padded tokens of a piece in the second leg, so that a batch of eight is many
MEMORY = 20  # bytes for each weight: weights, gradients, two moments, and what a resume reads; measured
FLOOR = 3 * 2**29  # bytes for everything else: libraries, texts, activations of a small batch; measured
DISK = 44  # bytes for each weight: three checkpoints of three copies, the backbone, the finished model
BUILT = ("small", "base", "large", "large-instruct")  # of shards that were built; the workshop's are drawn

Say = Callable[[str], object]


class Shape(NamedTuple):
    """The backbone that is rehearsed: the scale's own, or one of fewer layers, and why."""

    model: Model
    weights: int
    why: str  # "" where it is the true one


def rehearse(dial: Scale, seed: int, folder: Path, name: str = "stage1", team: Team | None = None,
             say: Say = print) -> loop.History:
    """Rehearse stage `name` of a scale of the hub in `folder` (emptied before and after); the history of its steps.

    Every rank of a `team` calls this, in the main thread. Raises `Me5Error` for a scale without a hub, for a machine
    that is too small, and where a leg did not do what it should.
    """
    if dial.offline:
        raise Me5Error(f"--dry-run is for the scales of the hub: {dial.name} needs none and takes minutes, so run it")
    team = team or Team.alone()
    began = time.perf_counter()
    with _emptied(folder, team):
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
        found = fitting(dial.model, free_memory() // sharing, shutil.disk_usage(folder).free)
        small = shrunk(dial, found.model, folder / "backbone")
        say(f"dry run of {name} at scale {dial.name}: random weights, made-up rows, {STEPS} steps of {BATCH}")
        say(f"backbone   {_described(dial.model, found)}")
        team.by_main(lambda: prepare(small, found.model, folder, say))
        with _cache_at(folder / "cache"):
            history = _Stage(small, seed, folder / "run", name, team, say).play()
    say(f"took       {time.perf_counter() - began:.0f} s{_peak()}; nothing of it is kept")
    return history


def prepare(small: Scale, shape: Model, folder: Path, say: Say = lambda line: None) -> None:
    """Write the made-up cache and the random backbone that `small` names."""
    filled = fake_rows.fill(small, folder / "cache", ROWS, small.name in BUILT)
    say(f"rows       {sum(filled.pairs.values())} pairs of {len(small.data.sources)} sources in {len(filled.pairs)} "
        f"streams, {sum(filled.labelled.values())} labelled examples of {len(small.data.labelled)}")
    write_backbone(shape, filled.texts, Path(small.model.backbone))


def write_backbone(shape: Model, texts: list[str], folder: Path, seed: int = 0) -> None:
    """A backbone of this shape with random weights, and a small tokenizer, as a repository of the hub has them."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(cost.configuration(shape), add_pooling_layer=False)
    model.config.derived_from = DRY_RUN
    Encoder(model, train_tokenizer(texts, VOCABULARY), shape.max_tokens).save(folder)


def shrunk(dial: Scale, shape: Model, backbone: Path) -> Scale:
    """The scale with both stages cut to a few steps, starting from `backbone`; every other dial is as it was."""
    def cut(stage: Stage) -> Stage:
        """A few steps of a few rows."""
        return dataclasses.replace(stage, steps=STEPS, batch=BATCH, warmup=1)

    model = dataclasses.replace(shape, backbone=str(backbone))
    second = dataclasses.replace(cut(dial.finetune), teacher=distill.TRAINED)  # nothing of the hub is there
    return dataclasses.replace(dial, model=model, train=cut(dial.train), finetune=second)


def fitting(shape: Model, memory: int, disk: int) -> Shape:
    """The shape itself, or with as many layers as fit into so many bytes. Raises `Me5Error` where not even one does."""
    one, two = (cost.size(dataclasses.replace(shape, layers=n)).all for n in (1, 2))
    most = min((memory - FLOOR) // MEMORY, disk // DISK)
    layers = min(shape.layers, 1 + (most - one) // (two - one))
    need = one + (shape.layers - 1) * (two - one)
    short = f"all need {(MEMORY * need + FLOOR) / 1e9:.1f} GB of memory and {DISK * need / 1e9:.1f} GB of disk, " \
            f"{memory / 1e9:.1f} and {disk / 1e9:.1f} GB are free"
    if layers < 1:
        raise Me5Error(f"not even one layer of {shape.backbone} fits here ({short}): rehearse on a larger machine")
    cut = dataclasses.replace(shape, layers=int(layers))
    return Shape(cut, one + (cut.layers - 1) * (two - one), "" if cut.layers == shape.layers else short)


def free_memory() -> int:
    """Bytes of memory that this process may still take: the machine's, or its container's if that has less."""
    found = [_meminfo()]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        found.append(int(limit.read_text(encoding="utf8")) - int(used.read_text(encoding="utf8")))
    return max(0, min(found))


def _meminfo() -> int:
    """What Linux calls available; elsewhere half of the physical memory, or 8 GB where nobody tells (ours)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 * 10**9


def _described(shape: Model, found: Shape) -> str:
    which = "its true shape" if not found.why else f"{found.model.layers} of {shape.layers} layers: {found.why}"
    return f"{shape.backbone}, {found.model.layers} × {shape.width}, {found.weights / 1e6:.1f} M weights: {which}"


def _peak() -> str:
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f", {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"


class _Stage:
    """One stage at its rehearsal."""

    def __init__(self, small: Scale, seed: int, out: Path, name: str, team: Team, say: Say) -> None:
        self.small, self.seed, self.out, self.name, self.team, self.say = small, seed, out, name, team, say
        self.part = out / f"{name}.part"
        self.corpus: HubCorpus = open_corpus(small, progress=False)
        self.stops = False

    def play(self) -> loop.History:
        """Both legs; what was logged."""
        self.stops, began = True, time.perf_counter()
        try:
            self._leg()
        except loop.Preempted:
            pass
        else:
            raise Me5Error("the rehearsal's SIGTERM did not stop the stage")
        if not checkpoint.at(self.part / "checkpoints", 1).is_dir():
            raise Me5Error(f"SIGTERM left no checkpoint in {self.part}")
        self.say(f"stopped    by SIGTERM after step 1 of {STEPS}, {_bytes(self.part) / 1e9:.2f} GB saved "
                 f"({time.perf_counter() - began:.0f} s)")
        self.team.by_main(self._between)
        self.stops, began = False, time.perf_counter()
        final = self._leg()
        history = loop.read(final)
        if [row["step"] for row in history.steps] != list(range(STEPS)):
            raise Me5Error(f"{STEPS} steps were asked for, the log of {final} has {len(history.steps)}")
        losses = ", ".join(f"{row['loss']:.3f}" for row in history.steps)
        self.say(f"resumed    at step 1, to step {STEPS}, by GradCache in pieces of {PIECE} tokens; losses {losses} "
                 f"({time.perf_counter() - began:.0f} s)")
        self._told(final, history)
        return history

    def _leg(self) -> Path:
        give_back()
        if self.name == "stage1":
            return stages.pretrain(self.small, self.seed, self.out, corpus=self.corpus, team=self.team,
                                   evaluate=self.look, every=STEPS, progress=False)
        return stages.finetune(self.small, self.seed, self.out, start=Path(self.small.model.backbone), name=self.name,
                               corpus=self.corpus, team=self.team, evaluate=self.look, progress=False)

    def look(self, encoder: Encoder, step: int) -> dict[str, float]:
        """The evaluation: how often a passage of a batch is nearest to its own query. In the first leg it is where the
        SIGTERM comes from."""
        if self.stops:
            signal.raise_signal(signal.SIGTERM)
        pairs = self.corpus.mixture(self.small, self.seed).batch(0)
        queries = encoder.encode([pair.query for pair in pairs], QUERY, max_tokens=self.small.train.query_tokens)
        passages = encoder.encode([_passage(pair) for pair in pairs], PASSAGE,
                                  max_tokens=self.small.train.passage_tokens)
        return {"accuracy": round(bitext_accuracy(queries, passages), 6)}

    def _between(self) -> None:
        """Before the second leg: small pieces; and in stage 2 a teacher's scores."""
        cut = stages.Budget(piece=PIECE, whole=0)
        (self.part / stages.BUDGET).write_text(json.dumps(cut._asdict()) + "\n", encoding="utf8")
        if self.name != "stage1":
            _teach(self.part, self.seed)

    def _told(self, final: Path, history: loop.History) -> None:
        if not self.team.main:
            return
        seen = [f"{row['accuracy']:.2f} at step {row['step']}" for row in history.evaluations]
        self.say(f"evaluated  accuracy {', '.join(seen)}")
        encoder = Encoder.load(final)
        vectors = encoder.encode(["one", "two"])
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise Me5Error(f"the model published in {final} gives no unit vectors")
        self.say(f"published  {_bytes(final) / 1e9:.2f} GB, loads, {encoder.width} dimensions")


def _teach(folder: Path, seed: int) -> None:
    """Put a score of a made-up teacher to every passage of every group in `folder`."""
    draw = np.random.default_rng(seed)
    path, at = folder / "groups.jsonl", 1 + Labelled._fields.index("teacher_scores")
    rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    for row in rows:
        size = 1 + len(row[1 + Labelled._fields.index("negatives")])
        row[at] = draw.normal(size=size).round(4).tolist()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


def _passage(item: Pair | Labelled) -> str:
    return item.passage if isinstance(item, Pair) else item.positives[0]


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextlib.contextmanager
def _emptied(folder: Path, team: Team) -> Iterator[None]:
    """`folder` made afresh, and removed in the end, whatever happens."""
    if team.main:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    team.barrier()
    try:
        yield
    finally:
        if team.main:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    """`places.cache()` is `folder` inside."""
    before = os.environ.get("ME5_CACHE")
    os.environ["ME5_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("ME5_CACHE")
        if before is not None:
            os.environ["ME5_CACHE"] = before
