"""`--dry-run`: a scale of the hub rehearsed in minutes, offline, before days of it are begun on many GPUs.

    rehearse(config.load("large"), seed=0, folder=Path("runs/dry-run"))      # prints what it did; leaves nothing

What is real: the scale's data settings over every one of its cards, the stage (`stages.pretrain`, `stages.finetune`)
with its loop, checkpoint, SIGTERM, resume and publication, the backbone's class and shape, the processes and their
device. What is not: the weights (random), the rows (made up), the vocabulary (a small one), two steps of eight. Where
the true shape does not fit into memory or onto the disk, layers are left out, and that is said.

A made-up row has the columns and types of its data card; texts are names of territories in the row's language, as Babel
has them. Rows go through the card's own builder and filters, and what is left is written where `me5 mixture build` or
`me5 fetch` would have put it. They teach nothing.

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
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from me5lib import io
from me5lib.config import Model, Scale
from me5lib.data import builders, cards, hub, schema, shards
from me5lib.data.corpus import open_corpus
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import DRY_RUN
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer
from me5lib.pairs import Labelled, Pair, text_key
from me5lib.train import checkpoint, cost, loop, stages
from me5lib.train.distributed import Team
from me5lib.train.monitor import top1_accuracy
from me5lib.train.teacher import TRAINED

STEPS, BATCH = 2, 8  # ours: a step in each leg, of a few pairs
ROWS = 16  # ours: of every stream
VOCABULARY = 2_000  # ours: pieces; the table of the backbone keeps its true size
PIECE = 128  # ours: padded tokens of a piece in the second leg, so that a batch of eight is many
MEMORY = 20  # bytes for each weight: weights, gradients, two moments, and what a resume reads; measured
FLOOR = 3 * 2**29  # bytes for everything else: libraries, texts, activations of a small batch; measured
DISK = 44  # bytes for each weight: three checkpoints of three copies, the backbone, the finished model
BUILT = ("small", "base", "large", "large-instruct")  # of shards that were built; the workshop's are drawn

LANGUAGES = 2  # ours: languages of an entry of a card that are made up, of those it names
TRIES = 200  # ours: rows made up at most for one that the filters leave
DEV = 4  # ours: labelled examples that the rule keeps out of stage 2, so that a teacher can be judged
TAGS = {"en": "eng_Latn", "de": "deu_Latn"}  # languages of rows that tell their own, and how NLLB writes them
SHORT = ((1,), (3,))
LONG = (*SHORT, (4, 20))  # a title and a page: some cards want 200 characters
_TELLS_LANGUAGE = re.compile(r"lang(uage)?(_code)?\d?")
_TELLS_SCORE = re.compile(r"(\w+_)?score")
Say = Callable[[str], object]


def rehearse(scale: Scale, seed: int, folder: Path, name: str = "stage1", team: Team | None = None,
             say: Say = print) -> loop.TrainingLog:
    """Rehearse stage `name` of a scale of the hub in `folder` (emptied before and after); the history of its steps.

    Every rank of a `team` calls this, in the main thread. Raises `Me5Error` for a scale without a hub, for a machine
    that is too small, and where a leg did not do what it should.
    """
    if scale.offline:
        raise Me5Error(f"--dry-run is for the scales of the hub: {scale.name} needs none and takes minutes, so run it")
    team, began = team or Team.alone(), time.perf_counter()
    with _scratch(folder, team):
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
        shape, short = shape_that_fits(scale.model, free_memory() // sharing, shutil.disk_usage(folder).free)
        small = shrunk(scale, shape, folder / "backbone")
        say(f"dry run of {name} at scale {scale.name}: random weights, made-up rows, {STEPS} steps of {BATCH}")
        which = f"{shape.layers} of {scale.model.layers} layers: {short}" if short else "its true shape"
        millions = cost.size(shape).all / 1e6
        say(f"backbone   {scale.model.backbone}, {shape.layers} × {shape.width}, {millions:.1f} M weights: {which}")
        team.by_main(lambda: prepare(small, shape, folder, say))
        history = _play(small, seed, folder / "run", name, team, say)
        say(f"took       {time.perf_counter() - began:.0f} s{_peak()}; nothing of it is kept")
    return history


def prepare(small: Scale, shape: Model, folder: Path, say: Say = lambda line: None) -> None:
    """Write the made-up cache and the random backbone that `small` names."""
    filled = fill_cache(small, folder / "cache", ROWS, small.name in BUILT)
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


def shrunk(scale: Scale, shape: Model, backbone: Path) -> Scale:
    """The scale with both stages cut to a few steps, starting from `backbone`; all else is as it was."""
    few = {"steps": STEPS, "batch": BATCH, "warmup": 1}
    return dataclasses.replace(
        scale, model=dataclasses.replace(shape, backbone=str(backbone)),
        train=dataclasses.replace(scale.train, **few),
        finetune=dataclasses.replace(scale.finetune, **few, teacher=TRAINED),  # nothing of the hub is there
    )  # fmt: skip


def shape_that_fits(shape: Model, memory: int, disk: int) -> tuple[Model, str]:
    """The shape with as many layers as fit into so many bytes, and why it has fewer ("" where it is the true one).

    Raises `Me5Error` where not even one layer fits.
    """
    one, two = (cost.size(dataclasses.replace(shape, layers=n)).all for n in (1, 2))
    most = min((memory - FLOOR) // MEMORY, disk // DISK)
    layers = min(shape.layers, 1 + (most - one) // (two - one))
    need = one + (shape.layers - 1) * (two - one)
    short = (f"all need {(MEMORY * need + FLOOR) / 1e9:.1f} GB of memory and {DISK * need / 1e9:.1f} GB of disk, "
             f"{memory / 1e9:.1f} and {disk / 1e9:.1f} GB are free")
    if layers < 1:
        raise Me5Error(f"not even one layer of {shape.backbone} fits here ({short}): rehearse on a larger machine")
    return dataclasses.replace(shape, layers=int(layers)), "" if layers == shape.layers else short


def free_memory() -> int:
    """Bytes of memory that this process may still take: the machine's, or its container's if that has less.

    The machine's is what Linux calls available; elsewhere half of the physical memory, or 8 GB where nobody tells.
    """
    free = 8 * 10**9
    with contextlib.suppress(AttributeError, ValueError, OSError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf8").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        free = min(free, int(limit.read_text(encoding="utf8")) - int(used.read_text(encoding="utf8")))
    return max(0, free)


def _peak() -> str:
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f", {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"


def _play(small: Scale, seed: int, out: Path, name: str, team: Team, say: Say) -> loop.TrainingLog:
    """Both legs of one stage; what was logged."""
    part, corpus, stops, began = out / f"{name}.part", open_corpus(small, progress=False), [True], time.perf_counter()

    def look(encoder: Encoder, step: int) -> dict[str, float]:
        """The evaluation: how often a passage of a batch is nearest to its own query. In the first leg it is where the
        SIGTERM comes from."""
        if stops[0]:
            signal.raise_signal(signal.SIGTERM)
        rows, stage = corpus.mixture(small, seed).batch(0), small.train
        queries = encoder.encode([row.query for row in rows], QUERY, max_tokens=stage.query_tokens)
        texts = [row.passage if isinstance(row, Pair) else row.positives[0] for row in rows]
        passages = encoder.encode(texts, PASSAGE, max_tokens=stage.passage_tokens)
        return {"accuracy": round(top1_accuracy(queries, passages), 6)}

    def leg() -> Path:
        """The stage, begun or gone on with."""
        io.give_back()
        common = {"corpus": corpus, "team": team, "evaluate": look, "progress": False}
        if name == "stage1":
            return stages.pretrain(small, seed, out, every=STEPS, **common)
        return stages.finetune(small, seed, out, start=Path(small.model.backbone), name=name, **common)

    with contextlib.suppress(loop.Preempted):
        leg()
        raise Me5Error("the rehearsal's SIGTERM did not stop the stage")
    if not checkpoint.at(part / "checkpoints", 1).is_dir():
        raise Me5Error(f"SIGTERM left no checkpoint in {part}")
    say(f"stopped    by SIGTERM after step 1 of {STEPS}, {_bytes(part) / 1e9:.2f} GB saved "
        f"({time.perf_counter() - began:.0f} s)")
    team.by_main(lambda: _change(part, name, seed))
    stops[0], began = False, time.perf_counter()
    final = leg()
    history = loop.read_log(final)
    if [row["step"] for row in history.steps] != list(range(STEPS)):
        raise Me5Error(f"{STEPS} steps were asked for, the log of {final} has {len(history.steps)}")
    losses = ", ".join(f"{row['loss']:.3f}" for row in history.steps)
    say(f"resumed    at step 1, to step {STEPS}, by GradCache in pieces of {PIECE} tokens; losses {losses} "
        f"({time.perf_counter() - began:.0f} s)")
    if team.main:
        _check_published(final, history, say)
    return history


def _change(part: Path, name: str, seed: int) -> None:
    """Before the second leg: small pieces; and in stage 2 a made-up teacher's scores of every group."""
    io.put_json(part / stages.BUDGET, stages.Budget(piece=PIECE, whole=0)._asdict())
    if name == "stage1":
        return
    draw, path = np.random.default_rng(seed), part / "groups.jsonl"  # a row is its number, then a `Labelled`
    scores, negatives = (1 + Labelled._fields.index(field) for field in ("teacher_scores", "negatives"))
    rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    for row in rows:
        row[scores] = draw.normal(size=1 + len(row[negatives])).round(4).tolist()
    io.put_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _check_published(final: Path, history: loop.TrainingLog, say: Say) -> None:
    """Say what was evaluated, and that the published model can be used."""
    seen = [f"{row['accuracy']:.2f} at step {row['step']}" for row in history.evaluations]
    say(f"evaluated  accuracy {', '.join(seen)}")
    encoder = Encoder.load(final)
    if not np.allclose(np.linalg.norm(encoder.encode(["one", "two"]), axis=1), 1, atol=1e-3):
        raise Me5Error(f"the model published in {final} gives no unit vectors")
    say(f"published  {_bytes(final) / 1e9:.2f} GB, loads, {encoder.width} dimensions")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextlib.contextmanager
def _scratch(folder: Path, team: Team) -> Iterator[None]:
    """`folder` made afresh, its `cache` in place of the user's, and all of it removed in the end, whatever happens."""
    if team.main:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    team.barrier()
    before = os.environ.get("ME5_CACHE")
    os.environ["ME5_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        os.environ.pop("ME5_CACHE")
        if before is not None:
            os.environ["ME5_CACHE"] = before
        if team.main:
            shutil.rmtree(folder, ignore_errors=True)


# ---- made-up rows ----------------------------------------------------------------------------------------------------


class Filled(NamedTuple):
    """What was written: pairs and labelled examples by (source, language), and their texts."""

    pairs: dict[tuple[str, str], int]
    labelled: dict[tuple[str, str], int]
    texts: list[str]


def fill_cache(scale: Scale, folder: Path, rows: int, built: bool, seed: int = 0) -> Filled:
    """Fill `folder` as the cache of a scale, `rows` of a stream: stage 1 as `built` shards, or as drawings; stage 2.

    Raises `Me5Error` for a card none of whose made-up rows makes a pair.
    """
    filled, texts = Filled({}, {}, []), {}
    for name in (*scale.data.sources, *scale.data.labelled):
        card = cards.load_card(name)
        made = fake_items(card, rows, seed)
        first = isinstance(made[0], Pair)
        if not first and not filled.labelled:  # some that `HubCorpus` keeps out of stage 2
            numbered = (made[0]._replace(query=f"{made[0].query} {i}") for i in range(10**6))
            edge = int(hub.DEV_SHARE * 2**64) - 2**63
            made += islice((each for each in numbered if text_key(each.query) < edge), DEV)
        place = folder / "mixture" / name if built and first else _drawing(scale, card, folder)
        for code in sorted({item.language for item in made}):
            own = [item for item in made if item.language == code]
            shards.write_shard(_shard_table(own), place / code / "part-00000")
            (filled.pairs if first else filled.labelled)[name, code] = len(own)
        for item in made:
            sides = [item.passage] if isinstance(item, Pair) else [*item.positives, *item.negatives]
            texts |= dict.fromkeys([item.query, *sides])
    return filled._replace(texts=list(texts))


def fake_items(card: cards.Card, rows: int, seed: int = 0) -> list[Pair | Labelled]:
    """About `rows` pairs or examples of every entry of a card in each of some languages, by its builder and filters."""
    made, book = [], hub.Ledger()
    for number, entry in enumerate(card.hub):
        for code in list(entry.languages)[:LANGUAGES] or [entry.language or ""]:
            lines = fake_rows(entry, code, TRIES * rows, f"{card.name} {number} {code} {seed}")
            file = hub.HubFile(number, "made up", code)
            made += islice(hub.make_items(card, file, enumerate(lines), builders.BUILDERS, book), rows)
    if not made:
        why = "; ".join(list(book.first)[:3])
        raise Me5Error(f"card {card.name}: no made-up row of its columns makes a pair ({why}): mend the card")
    return made


def fake_rows(entry: cards.Hub, language: str, most: int, seed: str) -> Iterator[dict[str, Any]]:
    """`most` rows of the entry's columns, in one of its languages (""), the same for the same seed."""
    draw = random.Random(seed)
    kinds = {name: schema.parse_type(text) for name, text in entry.columns.items()}
    forms = SHORT if entry.builder in builders.LABELLED_BUILDERS else LONG
    for _ in range(most):
        own = language or draw.choice(sorted(TAGS))
        yield {name: _value(draw, own, forms, kind, name) for name, kind in kinds.items()}


def _value(draw: random.Random, language: str, forms: Sequence[tuple[int, ...]], kind: schema.Kind, name: str) -> Any:
    """A value of a type, of a column called `name`; a text has so many names in each line as one of `forms` says."""
    if kind.word == "list":
        return [_value(draw, language, forms, kind.parts[0][1], name) for _ in range(draw.randint(1, 3))]
    if kind.word == "struct":
        return {part: _value(draw, language, forms, inner, part) for part, inner in kind.parts}
    if kind.word == "bool":
        return draw.random() < 0.5
    if kind.word != "string":
        return draw.randint(1, 9) if kind.word == "int64" else draw.random()
    if _TELLS_LANGUAGE.fullmatch(name):
        return draw.choice([*TAGS, *TAGS.values()])
    if _TELLS_SCORE.fullmatch(name):
        return str(draw.randint(1, 9))
    known = territories(language if draw.random() < 0.7 else "en")  # the other side of most translations
    return "\n".join(", ".join(draw.choices(known, k=k)) for k in draw.choice(forms)) + "."


@cache
def territories(language: str) -> list[str]:
    """The names of all territories in a language; in English where CLDR does not have them."""
    from babel import Locale, UnknownLocaleError

    try:
        distinct = sorted(set(Locale.parse(language.replace("-", "_")).territories.values()))
    except (UnknownLocaleError, ValueError):
        distinct = []
    return distinct if len(distinct) > 20 else territories("en")


def _drawing(scale: Scale, card: cards.Card, folder: Path) -> Path:
    """Where the drawing of a card lies in the cache `folder`, its manifest already there."""
    asked, temperature = hub.pairs_wanted(scale, card.name), scale.data.language_temperature
    home = folder / "hub" / card.name / hub.drawing_home(card, asked, temperature).name
    about = {"card_sha256": card.sha256, "version": hub.VERSION, "temperature": temperature, "asked": asked}
    io.put_json(home / shards.MANIFEST, about)
    return home


def _shard_table(rows: Sequence[Pair] | Sequence[Labelled]) -> pa.Table:
    """The columns of a shard of one language."""
    text, texts = pa.string(), pa.list_(pa.string())
    types = {"query": text, "passage": text} if isinstance(rows[0], Pair) else {
        "query": text, "positives": texts, "negatives": texts, "instruction": text}  # fmt: skip
    if not any(getattr(row, "instruction", None) for row in rows):
        types.pop("instruction", None)
    return pa.table({name: [getattr(row, name) for row in rows] for name in types}, schema=pa.schema(types.items()))
