"""The two doors of training: `pretrain` (stage 1) and `finetune` (stage 2). Each returns a finished checkpoint folder.

    stage1 = pretrain(scale, seed, out)                       # out/stage1
    stage2 = finetune(scale, seed, out, start=stage1)         # out/stage2
    only = finetune(scale, seed, out, start=None, name="stage2-only")

What a finished stage was made with is in its `stage.json`. Asked again with the same settings, the stage is found and
returned at once; with other settings it is moved aside (`stage1.<fingerprint>`, one such folder a stage) and made anew.
Unfinished work lies in `<name>.part` and is gone on with; with other settings it is refused in one line.

A stage's folder loads like any model, and has beside the weights `log.jsonl` (loss and evaluations), `timings.jsonl`
and, for stage 2, `report.json` (what was mined, whether the teacher was better) and `groups.jsonl` (what was learnt).

Cost: that of the loop; the vocabulary some ten seconds, once a run (`out/tokenizer`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import me5lib
from me5lib import io
from me5lib.config import Model, Scale, Stage
from me5lib.data import cards
from me5lib.data.corpus import Corpus, open_corpus
from me5lib.data.hub_corpus import HubCorpus
from me5lib.data.mixture import Mixture
from me5lib.device import autocast, best_device, precision
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.resolve import pinned, resolve
from me5lib.train import distill, finetune_plan, groups, loop
from me5lib.train.distributed import Team
from me5lib.train.door import Door, identity
from me5lib.train.gradcache import fitting_budget
from me5lib.train.monitor import watch
from me5lib.train.negatives import KINDS, Prefixes
from me5lib.train.step import Budget, work_of

T = TypeVar("T")
BUDGET = "budget.json"
LOOKS = 15  # ours: evaluations during stage 1
FIRST_BUDGET = 2**20  # ours: padded tokens tried first on a GPU; halved until they fit
TEXTS_PER_PIECE = 3  # ours: training texts read for each piece of the vocabulary
CHECKPOINTS = 5  # ours: times a stage writes one


def pretrain(
    scale: Scale, seed: int, out: Path, *, corpus: Corpus | HubCorpus | None = None, team: Team | None = None,
    evaluate: loop.Evaluator | None = None, every: int = 0, progress: bool = True,
) -> Path:
    """Stage 1, contrastive pre-training on unlabelled pairs: the finished folder `out/stage1`.

    `evaluate(encoder, step)` is logged before the first step, after the last, and after every `every` steps (0: fifteen
    times in all); by default it is `watch.watch(corpus)`. It does not change what is trained.
    """
    team = team or Team.alone()
    corpus = corpus or team.first_here(lambda: open_corpus(scale, progress))
    mixture = corpus.mixture(scale, seed, scale.train)
    settings = _settings(scale, seed, corpus, scale.train, plan=mixture.fingerprint)
    door = Door(out, "stage1", settings)
    if door.finished(progress):
        return door.final
    encoder = _ready(team.first_here(lambda: _start(scale, seed, out, corpus, None)), scale.train, team)
    work = team.first_here(door.open)
    cut = functools.partial(_budget, work, team, encoder, scale.model, scale.train)
    every = every or max(1, scale.train.steps // LOOKS)
    stage1 = _stage1(encoder, team, mixture, scale.train, seed, team.first_here(cut))
    loop.train(
        encoder, stage1, scale.train, work, seed=seed, plan=door.fingerprint, evaluate=evaluate or _look(corpus),
        every=every, save_every=_save_every(scale.train), progress=progress, name="stage 1", team=team,
    )  # fmt: skip
    return _published(door, encoder, team)


def finetune(
    scale: Scale, seed: int, out: Path, *, start: Path | str | None, name: str = "stage2", negatives: str = "mined",
    teacher: bool = True, corpus: Corpus | HubCorpus | None = None, team: Team | None = None,
    evaluate: loop.Evaluator | None = None, progress: bool = True,
) -> Path:
    """Stage 2, fine-tuning on labelled examples with hard negatives and a teacher: the finished folder `out/<name>`.

    `start` is a stage-1 folder, a hub id, or None for random weights over the same vocabulary. `negatives`: "mined"
    (each example's own wrong answers first, then the start model's nearest; without a start model the same as
    "labelled"), "bm25", "random", or "labelled" (own ones, then random); an example that comes again has the next ones.
    With `teacher`, the cross-encoder that `finetune.teacher` names scores them, or a small one that is trained from the
    same start, and its KL term is used if it is better than the start model on held-out examples.
    From random weights the learning rate is stage 1's (ours: stage 2's own would leave them nearly as they were).
    """
    _refuse_stage2(scale, negatives, teacher)
    team = team or Team.alone()
    corpus = corpus or team.first_here(lambda: open_corpus(scale, progress))
    stage = scale.finetune if start else dataclasses.replace(scale.finetune, lr=scale.train.lr)
    sides = getattr(corpus, "prefixes", prefixes)  # one's own file says them itself
    rows, faults = finetune_plan.tidy(corpus.labelled())
    plan = finetune_plan.Plan(rows, stage, seed, _heat(scale, corpus))
    settings = _settings(
        scale, seed, corpus, stage, plan=plan.fingerprint, negatives=negatives, teacher=teacher,
        start=_origin(start), teacher_files=distill.origin(stage.teacher) if teacher else "",
    )  # fmt: skip
    door = Door(out, name, settings)
    if door.finished(progress):
        return door.final
    encoder = _ready(team.first_here(lambda: _start(scale, seed, out, corpus, start)), stage, team)
    work = team.first_here(door.open)
    made = groups.make(
        encoder, rows, plan, stage, work, kind=negatives, mines=start is not None, with_teacher=teacher, faults=faults,
        dev=finetune_plan.tidy(corpus.labelled("dev"))[0], prefixes=sides, seed=seed, progress=progress and team.main,
        team=team,
    )  # fmt: skip
    cut = functools.partial(_budget, work, team, encoder, scale.model, stage)
    stage2 = _stage2(encoder, team, plan, made, stage, seed, team.first_here(cut), sides)
    loop.train(
        encoder, stage2, stage, work, seed=seed, plan=door.fingerprint, evaluate=evaluate or _look(corpus),
        save_every=_save_every(stage), progress=progress, name=name, team=team,
    )  # fmt: skip
    return _published(door, encoder, team)


def _refuse_stage2(scale: Scale, negatives: str, teacher: bool) -> None:
    """Raise `Me5Error` for what cannot work, before anything is read."""
    if negatives not in KINDS:
        raise Me5Error(f"unknown negatives {negatives!r}: choose one of {', '.join(KINDS)}")
    stage, most = scale.finetune, scale.model.max_tokens
    trained = teacher and stage.teacher == distill.TRAINED
    if trained and stage.query_tokens + stage.passage_tokens > most:
        raise Me5Error(f"the teacher reads query and passage together: finetune.query_tokens + finetune.passage_tokens "
                       f"must be at most model.max_tokens, {most}")


def _heat(scale: Scale, corpus: Corpus | HubCorpus) -> float:
    """How the sizes of labelled sets are tempered: what was drawn from the hub not at all. It has the paper's numbers
    already, and languages were tempered then; so twice 1,596k draws are two passes over every set."""
    return 1.0 if isinstance(corpus, HubCorpus) else scale.data.language_temperature


def _origin(start: Path | str | None) -> str:
    """What tells one start from another. Raises `Me5Error` for a model that cannot be had."""
    if start is None:
        return "random weights"
    ref = resolve(start)
    return identity(ref.folder) if ref.kind == "folder" else pinned(ref)


def _ready(encoder: Encoder, stage: Stage, team: Team) -> Encoder:
    """On the team's device, with the memory dials of the stage."""
    encoder.to(team.device)
    if stage.gradient_checkpointing:
        encoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    if stage.freeze_positions:
        encoder.backbone.embeddings.position_embeddings.requires_grad_(False)
    return encoder


def _look(corpus: Corpus | HubCorpus) -> loop.Evaluator | None:
    return watch(corpus) if corpus.tasks() else None


def _published(door: Door, encoder: Encoder, team: Team) -> Path:
    if team.main:
        door.publish(encoder)
    team.barrier()
    return door.final


def vocabulary(corpus: Corpus, scale: Scale, out: Path) -> Any:
    """The tokenizer of a run, trained once on the corpus's training texts and kept in `out/tokenizer`.

    A backbone of the hub brings its own (None is returned).
    """
    if scale.model.backbone != "random":
        return None
    from transformers import AutoTokenizer

    from me5lib.model.text import train_tokenizer

    folder = out / "tokenizer"
    known = {"corpus": corpus.fingerprint, "vocabulary": scale.model.vocabulary, "texts": TEXTS_PER_PIECE}
    if io.read_json(folder / "made-with.json", None) != known:
        beside = out / ".tokenizer.part"
        shutil.rmtree(beside, ignore_errors=True)
        train_tokenizer(corpus.sample_texts(TEXTS_PER_PIECE * scale.model.vocabulary), scale.model.vocabulary, beside)
        io.write_json(beside / "made-with.json", known)
        io.replace(beside, folder)
    return AutoTokenizer.from_pretrained(str(folder))


def prefixes(source: str) -> tuple[str, str]:
    """The prefixes of a source's two sides, from its data card: "query: " on both where they are alike (translations),
    else "query: " and "passage: " (the authors' model card; which each of their training sets had is not published)."""
    card = cards.load(source)
    return card.query_prefix, card.passage_prefix


def _settings(scale: Scale, seed: int, corpus: Corpus, stage: Stage, **more: Any) -> dict[str, Any]:
    """Everything that decides what a stage becomes, as JSON types."""
    made = {
        "version": me5lib.__version__, "corpus": corpus.fingerprint, "seed": seed,
        "data": dataclasses.asdict(scale.data), "model": dataclasses.asdict(scale.model),
        "stage": dataclasses.asdict(stage), "precision": precision(best_device()).name, **more,
    }  # fmt: skip
    return json.loads(json.dumps(made))


def _start(scale: Scale, seed: int, out: Path, corpus: Corpus | HubCorpus, start: Path | str | None) -> Encoder:
    if start is not None:
        return Encoder.load(start).trained_further()
    return Encoder.new(scale.model, vocabulary(corpus, scale, out), seed)


def _stage1(
    encoder: Encoder, team: Team, mixture: Mixture, stage: Stage, seed: int, budget: Budget
) -> Callable[[int], loop.Work]:
    model = team.wrap(encoder)

    def prepare(step: int) -> loop.Work:
        pairs = mixture.batch(step, team.rank, team.world)
        return work_of(pairs, model, encoder, stage, team, budget, (seed, step), prefixes)

    return prepare


def _stage2(
    encoder: Encoder, team: Team, plan: finetune_plan.Plan, made: groups.Made, stage: Stage, seed: int, budget: Budget,
    prefixes: Prefixes,
) -> Callable[[int], loop.Work]:
    model = team.wrap(encoder)

    def prepare(step: int) -> loop.Work:
        drawn = plan.draws(step)
        mine = drawn[len(drawn) * team.rank // team.world : len(drawn) * (team.rank + 1) // team.world]
        rows = [made.group(i, turn, stage.hard_negatives) for i, turn in mine]
        return work_of(rows, model, encoder, stage, team, budget, (seed, step), prefixes)

    return prepare


def _budget(work: Path, team: Team, encoder: Encoder, shape: Model, stage: Stage) -> Budget:
    """As it was found before, else by trying (CUDA) or by what a run may hold (CPU)."""
    kept = io.read_json(work / BUDGET, None)
    if kept is None:
        cuda = team.device.type == "cuda"
        kept = (Budget(*[_fitting(encoder, stage)] * 2) if cuda else Budget.on_cpu(shape))._asdict()
        if team.main:
            io.write_json(work / BUDGET, kept)
    return Budget(**kept)


def _fitting(encoder: Encoder, stage: Stage) -> int:
    """Padded tokens of which the graph fits onto this GPU, beside gradients and what AdamW is going to keep."""
    longest = max(stage.query_tokens, stage.passage_tokens)
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    moments = [torch.zeros_like(weight) for weight in weights for _ in range(2)]

    def attempt(tokens: int) -> None:
        """Forwards and backwards, of texts as long as can come, twice: the second time the gradients are there."""
        for _ in range(2):
            with autocast(encoder.device, precision(encoder.device).name):
                encoder([[0] * longest] * (tokens // longest), tokens).sum().backward()

    try:
        return fitting_budget(attempt, FIRST_BUDGET)
    finally:
        del moments
        encoder.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def _save_every(stage: Stage) -> int:
    return max(1, stage.steps // CHECKPOINTS)
