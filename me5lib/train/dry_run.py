"""`--dry-run`: a scale of the hub rehearsed in minutes, offline, before days of it are begun on many GPUs.

    rehearse(config.load("large"), seed=0, folder=Path("runs/dry-run"))      # prints what it did; leaves nothing

What is real: the scale's data settings over every one of its cards, with their builders and filters; the stage with its
loop, checkpoint, SIGTERM, resume and publication; the backbone's class and width; the processes and their device. What
is not: most layers, the weights (random), the rows (made up from the columns of the cards: names of territories, as
Babel has them), the vocabulary, two steps of eight. What all layers take, `--plan` says.

In the first leg SIGTERM comes after a step, as from Slurm; in the second the checkpoint is gone on with, the batch cut
into small pieces, so that both ways of making the gradient are taken. In stage 2 the first leg mines and trains the
teacher; the second learns from made-up scores, for that teacher is not trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from babel import Locale, UnknownLocaleError

from me5lib import io
from me5lib.config import Model, Scale
from me5lib.data import builders, cards, hub, shards
from me5lib.data.corpus import open_corpus
from me5lib.device import seeded
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled, Pair
from me5lib.train import checkpoint, cost, labelled, loop, stages
from me5lib.train.distributed import Team
from me5lib.train.teacher import TRAINED

STEPS, BATCH = 2, 8  # ours: a step in each leg, of a few pairs
ROWS = 16  # ours: of every stream
LAYERS, VOCABULARY = 2, 2_000  # ours: layers at most, and pieces: seconds and a GB, whatever the scale
PIECE = 128  # ours: padded tokens of a piece in the second leg, so that a batch of eight is many
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


def rehearse(scale: Scale, seed: int, folder: Path, name: str = "stage1", team: Team | None = None, say: Say = print,
             instructed: Callable[[Scale, Any], tuple[Scale, Any]] | None = None) -> loop.TrainingLog:
    """Rehearse stage `name` of a scale of the hub in `folder` (emptied before and after); the history of its steps.

    Every rank of a `team` calls this, in the main thread; `instruct` needs `template.instructed`. Raises `Me5Error`
    for a scale without a hub, and where a leg did not do what it should.
    """
    if scale.offline:
        raise Me5Error(f"--dry-run is for the scales of the hub: {scale.name} needs none and takes minutes, so run it")
    team, began, few = team or Team.alone(), time.perf_counter(), {"steps": STEPS, "batch": BATCH, "warmup": 1}

    def empty() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    team.by_main(empty)
    try:
        with mock.patch.dict(os.environ, ME5_CACHE=str(folder / "cache")):
            shape = dataclasses.replace(scale.model, layers=min(LAYERS, scale.model.layers), vocabulary=VOCABULARY)
            small = dataclasses.replace(
                scale, model=dataclasses.replace(shape, backbone=str(folder / "backbone")),
                train=dataclasses.replace(scale.train, **few),
                finetune=dataclasses.replace(scale.finetune, **few, teacher=TRAINED),  # nothing of the hub is there
            )  # fmt: skip
            say(f"dry run of {name} at scale {scale.name}: random weights, made-up rows, {STEPS} steps of {BATCH}")
            say(f"backbone   {scale.model.backbone}: {shape.layers} of {scale.model.layers} layers × {shape.width}, "
                f"{VOCABULARY:,} pieces (what all of it takes: --plan)")
            team.by_main(lambda: write_backbone(shape, fill_cache(small, say), folder / "backbone"))
            both = small, open_corpus(small, progress=False)
            both = instructed(*both) if name == "instruct" else both
            log = _play(*both, seed, folder / "run", name, team, say)
    finally:
        if team.main:
            shutil.rmtree(folder, ignore_errors=True)
    say(f"took       {time.perf_counter() - began:.0f} s; nothing of it is kept")
    return log


def write_backbone(shape: Model, texts: list[str], folder: Path) -> None:
    """A backbone of this shape with random weights, and a small tokenizer, as a repository of the hub has them."""
    from transformers import AutoModel

    with seeded(0):
        model = AutoModel.from_config(cost.configuration(shape), add_pooling_layer=False)
    Encoder(model, train_tokenizer(texts, VOCABULARY), shape.max_tokens).save(folder)


def _play(small: Scale, corpus: Any, seed: int, out: Path, name: str, team: Team, say: Say) -> loop.TrainingLog:
    """Both legs of one stage; what was logged."""
    part, stops, began = out / f"{name}.part", [True], time.perf_counter()

    def look(encoder: Encoder, step: int) -> dict[str, float]:
        """The evaluation; in the first leg it is where the SIGTERM comes from."""
        if stops[0]:
            signal.raise_signal(signal.SIGTERM)
        return {"norm": round(float(np.linalg.norm(encoder.encode(["one"]))), 3)}

    def leg() -> Path:
        """The stage, begun or gone on with."""
        io.give_back()
        common = {"corpus": corpus, "team": team, "evaluate": look, "progress": False}
        if name == "stage1":
            return stages.pretrain(small, seed, out, every=STEPS, **common)
        common |= {"start": Path(small.model.backbone), "teacher": name == "stage2"}
        return stages.finetune(small, seed, out, name=name, **common)

    with contextlib.suppress(loop.Preempted):
        leg()
        raise Me5Error("the rehearsal's SIGTERM did not stop the stage")
    if not checkpoint.at(part / "checkpoints", 1).is_dir():
        raise Me5Error(f"SIGTERM left no checkpoint in {part}")
    say(f"stopped    by SIGTERM after step 1 of {STEPS}, and saved ({time.perf_counter() - began:.0f} s)")
    team.by_main(lambda: _change(part, name, seed))
    stops[0], began = False, time.perf_counter()
    final = leg()
    log = loop.read_log(final)
    if [row["step"] for row in log.steps] != list(range(STEPS)):
        raise Me5Error(f"{STEPS} steps were asked for, the log of {final} has {len(log.steps)}")
    losses = ", ".join(f"{row['loss']:.3f}" for row in log.steps)
    say(f"resumed    at step 1, to step {STEPS}, by GradCache in pieces of {PIECE} tokens; losses {losses} "
        f"({time.perf_counter() - began:.0f} s)")
    if team.main and (norm := look(Encoder.load(final), STEPS)["norm"]) != 1:
        raise Me5Error(f"the model published in {final} gives vectors of length {norm}, not 1")
    prompt = io.read_json(final / "config_sentence_transformers.json")["prompts"]["query"]
    say(f"published  a model that loads, gives unit vectors and reads queries as {prompt + '…'!r}")
    return log


def _change(part: Path, name: str, seed: int) -> None:
    """Before the second leg: small pieces; and in stage 2 a made-up teacher's scores of every group."""
    io.put_json(part / stages.BUDGET, stages.Budget(piece=PIECE, whole=0)._asdict())
    if name == "stage2":
        draw, groups = np.random.default_rng(seed), labelled.read_groups(part / labelled.GROUPS)
        scored = {i: row._replace(teacher_scores=tuple(draw.normal(size=1 + len(row.negatives)).round(4).tolist()))
                  for i, row in groups.items()}
        labelled.write_groups(part, scored, io.read_json(part / labelled.REPORT))


# ---- made-up rows ----------------------------------------------------------------------------------------------------


def fill_cache(scale: Scale, say: Say) -> list[str]:
    """Fill the cache with made-up rows of all cards of a scale, as shards that were built, or as drawings; the texts.

    Raises `Me5Error` for a card none of whose made-up rows makes a pair.
    """
    streams, texts = Counter(), {}
    for name in (*scale.data.sources, *scale.data.labelled):
        card = cards.load_card(name)
        items = fake_items(card)
        if name in scale.data.labelled[:1]:  # some that `HubCorpus` keeps out of stage 2
            numbered = (items[0]._replace(query=f"{items[0].query} {i}") for i in range(10**6))
            items += islice((each for each in numbered if hub.is_held_out(each.query)), DEV)
        place = hub.built_home() / name
        if scale.name not in BUILT or name in scale.data.labelled:
            asked, temperature = hub.pairs_wanted(scale, name), scale.data.language_temperature
            place = hub.drawing_home(card, asked, temperature)
            about = {"card_sha256": card.sha256, "version": hub.VERSION, "temperature": temperature, "asked": asked}
            io.put_json(place / shards.MANIFEST, about)
        for code in sorted({item.language for item in items}):
            rows = [item for item in items if item.language == code]
            columns = ["query", "passage"] if isinstance(rows[0], Pair) else ["query", "positives", "negatives"]
            columns += ["instruction"] if any(getattr(row, "instruction", None) for row in rows) else []
            table = pa.table({column: [getattr(row, column) for row in rows] for column in columns})
            shards.write_shard(table, place / code / "part-00000")
            streams[name, code] = len(rows)
        for item in items:
            sides = [item.passage] if isinstance(item, Pair) else [*item.positives, *item.negatives]
            texts |= dict.fromkeys([item.query, *sides])
    say(f"rows       {streams.total()} of {len(scale.data.sources)} sources and {len(scale.data.labelled)} labelled "
        f"ones, in {len(streams)} streams")
    return list(texts)


def fake_items(card: cards.Card) -> list[Pair | Labelled]:
    """About `ROWS` pairs or examples of every entry of a card in each of some languages, by its builder and filters."""
    made, book = [], hub.Ledger()
    for number, entry in enumerate(card.hub):
        for code in list(entry.languages)[:LANGUAGES] or [entry.language or ""]:
            lines = fake_rows(entry, code, TRIES * ROWS, f"{card.name} {number} {code} 0")
            file = hub.HubFile(number, "made up", code)
            made += islice(hub.make_items(card, file, enumerate(lines), builders.BUILDERS, book), ROWS)
    if not made:
        why = "; ".join(list(book.first)[:3])
        raise Me5Error(f"card {card.name}: no made-up row of its columns makes a pair ({why}): mend the card")
    return made


def fake_rows(entry: cards.Hub, language: str, most: int, seed: str) -> Iterator[dict[str, Any]]:
    """`most` rows of the entry's columns, in one of its languages (""), the same for the same seed."""
    draw = random.Random(seed)
    kinds = {name: cards.parse_type(text).type for name, text in entry.columns.items()}
    forms = SHORT if entry.builder in builders.LABELLED_BUILDERS else LONG
    for _ in range(most):
        own = language or draw.choice(sorted(TAGS))
        yield {name: _value(draw, own, forms, kind, name) for name, kind in kinds.items()}


def _value(draw: random.Random, language: str, forms: Sequence[tuple[int, ...]], kind: pa.DataType, name: str) -> Any:
    """A value of a type, of a column called `name`; a text has so many names in each line as one of `forms` says."""
    if pa.types.is_list(kind):
        return [_value(draw, language, forms, kind.value_type, name) for _ in range(draw.randint(1, 3))]
    if pa.types.is_struct(kind):
        return {part.name: _value(draw, language, forms, part.type, part.name) for part in kind}
    if kind != pa.string():
        return {"bool": draw.random() < 0.5, "int64": draw.randint(1, 9), "double": draw.random()}[str(kind)]
    if _TELLS_LANGUAGE.fullmatch(name):
        return draw.choice([*TAGS, *TAGS.values()])
    if _TELLS_SCORE.fullmatch(name):
        return str(draw.randint(1, 9))
    known = territories(language if draw.random() < 0.7 else "en")  # the other side of most translations
    return "\n".join(", ".join(draw.choices(known, k=k)) for k in draw.choice(forms)) + "."


@cache
def territories(language: str) -> list[str]:
    """The names of all territories in a language; in English where CLDR does not have them."""
    try:
        distinct = sorted(set(Locale.parse(language.replace("-", "_")).territories.values()))
    except (UnknownLocaleError, ValueError):
        distinct = []
    return distinct if len(distinct) > 20 else territories("en")
