"""The two stages of training, `pretrain` and `finetune`, and the step that both take: texts → batch → loss → gradient.

    stage1 = pretrain(scale, seed, out)                       # out/stage1
    stage2 = finetune(scale, seed, out, start=stage1)         # out/stage2
    only = finetune(scale, seed, out, start=None, name="stage2-only")

Asked again with the same settings, a finished stage is returned at once; with other settings it is moved aside
(`stage1.<fingerprint>`) and made anew. Unfinished work lies in `<name>.part` and is gone on with; with other settings
it is refused. A stage's folder loads like any model, and has its logs beside the weights; of stage 2 also `report.json`
(what was mined, whether the teacher was better) and `groups.jsonl` (what was learnt).

Cost: that of the loop; the vocabulary some ten seconds, once a run (`out/tokenizer`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import me5lib
from me5lib import io
from me5lib.config import RELEASED, Model, Scale, Stage
from me5lib.data.corpus import Corpus, evaluation_texts, open_corpus
from me5lib.data.hub import HubCorpus
from me5lib.device import autocast, best_device, precision
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.resolve import pinned, resolve
from me5lib.model.shrink import cut_vocabulary, lower_layers
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled, Pair
from me5lib.train import labelled as examples
from me5lib.train import loop
from me5lib.train import loss as losses
from me5lib.train.checkpoint import StageDir, model_identity
from me5lib.train.distributed import Team, gather, gather_relations, global_mean, local_slice, sizes
from me5lib.train.gradcache import cached_step, fitting_budget, mix
from me5lib.train.labelled import NEGATIVE_KINDS, Prefixes, card_prefixes
from me5lib.train.monitor import watch
from me5lib.train.teacher import TRAINED, teacher_fingerprint

Rows = Sequence[Pair] | Sequence[Labelled]
BUDGET, RANDOM = "budget.json", "random weights"
LOOKS = 10  # ours: evaluations during stage 1
FIRST_BUDGET = 2**20  # ours: padded tokens tried first on a GPU; halved until they fit
TEXTS_PER_PIECE = 3  # ours: training texts read for each piece of the vocabulary
START_TEXTS = 150_000  # ours: training texts by which the vocabulary of a released start is cut
CHECKPOINTS = 5  # ours: times a stage writes one
PIECE_BYTES = 2**29  # ours: of which GradCache holds the graph on a CPU; smaller and larger pieces are no faster
GRAPH_BYTES = 2**30  # ours: above it a step is done by GradCache, so that a run stays under 3 GB


def pretrain(
    scale: Scale, seed: int, out: Path, *, corpus: Corpus | HubCorpus | None = None, team: Team | None = None,
    evaluate: loop.Evaluator | None = None, every: int = 0, progress: bool = True,
) -> Path:
    """Stage 1, contrastive pre-training on unlabelled pairs: the finished folder `out/stage1`.

    `evaluate(encoder, step)`, by default `monitor.watch(corpus)`, is logged before the first step, after the last, and
    after every `every` steps (0: ten times in all).
    """
    team, stage = team or Team.alone(), scale.train
    corpus = corpus or team.main_process_first(lambda: open_corpus(scale, progress))
    mixture = corpus.mixture(scale, seed, stage)
    place = StageDir(out, "stage1", _settings(scale, seed, corpus, stage, plan=mixture.fingerprint))
    if place.finished(progress):
        return place.final
    encoder = start_encoder(scale, seed, out, corpus, stage, team, None)
    team.main_process_first(place.open)
    run = loop.RunOptions(place.part, seed, place.fingerprint, "stage 1", max(1, stage.steps // CHECKPOINTS),
                          evaluate or watch(corpus), every or max(1, stage.steps // LOOKS), progress, team)
    rows_of = functools.partial(mixture.batch, rank=team.rank, world=team.world)
    return _trained(encoder, rows_of, scale, stage, card_prefixes, place, run)


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
    A `corpus` also says its texts' prefixes, its sources' weights, the model's prompts (`cards.CardTexts`).
    From random weights the learning rate is stage 1's (ours: stage 2's own would leave them nearly as they were).
    """
    stage, most = scale.finetune, scale.model.max_tokens
    if negatives not in NEGATIVE_KINDS:
        raise Me5Error(f"unknown negatives {negatives!r}: choose one of {', '.join(NEGATIVE_KINDS)}")
    if teacher and stage.teacher == TRAINED and stage.query_tokens + stage.passage_tokens > most:
        raise Me5Error(f"the teacher reads query and passage together: finetune.query_tokens + finetune.passage_tokens "
                       f"must be at most model.max_tokens, {most}")
    team = team or Team.alone()
    corpus = corpus or team.main_process_first(lambda: open_corpus(scale, progress))
    stage = stage if start else dataclasses.replace(stage, lr=scale.train.lr)
    sides = corpus.prefixes
    rows, faults = examples.drop_invalid(corpus.labelled())
    temperature = 1.0 if corpus.tempered else scale.data.language_temperature
    plan = examples.SamplingPlan(rows, stage, seed, temperature, corpus.weights)
    place = StageDir(out, name, _settings(
        scale, seed, corpus, stage, plan=plan.fingerprint, negatives=negatives, teacher=teacher,
        start=model_identity(start) if start else RANDOM,
        teacher_files=teacher_fingerprint(stage.teacher) if teacher else "",
    ))  # fmt: skip
    if place.finished(progress):
        return place.final
    encoder = start_encoder(scale, seed, out, corpus, stage, team, start)
    encoder.prompts = corpus.prompts or encoder.prompts
    team.main_process_first(place.open)
    task = examples.GroupTask(stage, plan, sides, place.part, seed, team, progress and team.main)
    kind = "labelled" if negatives == "mined" and start is None else negatives
    dev = examples.drop_invalid(corpus.labelled("dev"))[0] if teacher else None
    made = examples.make_groups(encoder, rows, task, kind, dev, faults)
    run = loop.RunOptions(place.part, seed, place.fingerprint, name, max(1, stage.steps // CHECKPOINTS),
                          evaluate or watch(corpus), progress=progress, team=team)
    return _trained(encoder, lambda step: plan.batch(made, step, stage.hard_negatives, team.rank, team.world),
                    scale, stage, sides, place, run)


def _trained(
    encoder: Encoder, rows_of: Callable[[int], Rows], scale: Scale, stage: Stage, sides: Prefixes, place: StageDir,
    run: loop.RunOptions,
) -> Path:
    """Train on this rank's `rows_of` each step, and publish."""
    team = run.team
    budget = team.main_process_first(lambda: _budget(place.part, team, encoder, scale.model, stage))
    model = team.wrap(encoder)

    def prepare(step: int) -> loop.Work:
        return work_of(rows_of(step), model, encoder, stage, team, budget, (run.seed, step), sides)

    loop.train_loop(encoder, prepare, stage, run)
    if team.main:
        place.publish(encoder)
    team.barrier()
    return place.final


def _settings(scale: Scale, seed: int, corpus: Corpus | HubCorpus, stage: Stage, **more: Any) -> dict[str, Any]:
    """Everything that decides what a stage becomes, as JSON types."""
    made = {
        "version": me5lib.__version__, "corpus": corpus.fingerprint, "seed": seed,
        "data": dataclasses.asdict(scale.data), "model": dataclasses.asdict(scale.model),
        "stage": dataclasses.asdict(stage), "precision": precision(best_device()).name, **more,
    }  # fmt: skip
    return json.loads(json.dumps(made))


def start_encoder(
    scale: Scale, seed: int, out: Path, corpus: Corpus | HubCorpus, stage: Stage, team: Team, start: Path | str | None
) -> Encoder:
    """The encoder that a stage starts from, on the team's device, with the stage's switches that save memory."""
    encoder = team.main_process_first(lambda: initial_encoder(scale, seed, out, corpus) if start is None
                                      else Encoder.load(start).trained_further()).to(team.device)
    if stage.gradient_checkpointing:
        encoder.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    encoder.freeze(stage.frozen)
    return encoder


def initial_encoder(scale: Scale, seed: int, out: Path, corpus: Corpus | HubCorpus) -> Encoder:
    """The encoder before any training: random weights by `seed`, a part of a released model, or a hub's backbone."""
    backbone = scale.model.backbone
    if backbone == "random":
        return Encoder.new(scale.model, run_tokenizer(corpus, scale, out), seed)
    encoder = Encoder.load(run_start(corpus, scale, out) if backbone in RELEASED else backbone).trained_further()
    encoder.max_tokens = min(scale.model.max_tokens, encoder.max_tokens)
    return encoder


def run_start(corpus: Corpus, scale: Scale, out: Path) -> Path:
    """`out/start`: the lower layers of the scale's released backbone, its vocabulary cut to the corpus; made once.

    The texts of the evaluation count for the vocabulary, too (ours: nothing is learnt from them, and a language that is
    only evaluated would be spelt in letters).
    """
    def _write(folder: Path) -> None:
        texts = corpus.sample_texts(START_TEXTS)
        texts += itertools.chain.from_iterable(evaluation_texts(corpus).values())
        encoder = lower_layers(Encoder.load(scale.model.backbone), scale.model.layers)
        for part in ("hidden", "attention_probs"):  # no dropout (ours): one pass does not overfit; 1.28 times as fast
            setattr(encoder.backbone.config, f"{part}_dropout_prob", 0.0)
        cut_vocabulary(encoder, list(dict.fromkeys(texts)), scale.model.vocabulary).trained_further().save(folder)

    backbone = pinned(resolve(scale.model.backbone))
    return _made_once(out / "start", corpus, scale, _write, layers=scale.model.layers, backbone=backbone,
                      start_texts=START_TEXTS)


def run_tokenizer(corpus: Corpus, scale: Scale, out: Path) -> Any:
    """The tokenizer of a run from random weights, trained once on the corpus's training texts: `out/tokenizer`."""
    from transformers import AutoTokenizer

    def _write(folder: Path) -> None:
        train_tokenizer(corpus.sample_texts(TEXTS_PER_PIECE * scale.model.vocabulary), scale.model.vocabulary, folder)

    return AutoTokenizer.from_pretrained(str(_made_once(out / "tokenizer", corpus, scale, _write)))


def _made_once(folder: Path, corpus: Corpus, scale: Scale, write: Callable[[Path], None], **more: Any) -> Path:
    """`folder`, which `write` fills, if it was not made of the same corpus and settings before."""
    known = {"corpus": corpus.fingerprint, "vocabulary": scale.model.vocabulary, "texts": TEXTS_PER_PIECE, **more}
    if io.read_json(folder / "made-with.json", None) != known:
        with io.beside(folder) as side:
            write(side)
            io.write_json(side / "made-with.json", known)
        io.give_back()
    return folder


class Budget(NamedTuple):
    """How a step is cut; kept in the stage's folder, so that a resumed run cuts the same pieces."""

    piece: int  # padded tokens of a piece of GradCache's
    whole: int  # tokens of a micro-batch up to which it is one piece, without a replay

    @classmethod
    def on_cpu(cls, shape: Model) -> Budget:
        """By what a run may hold. Autograd keeps of a token a layer's 16 vectors of width and 3 of feed-forward."""
        token = 4 * shape.layers * (16 * shape.width + 3 * shape.feedforward)
        return cls(PIECE_BYTES // token, GRAPH_BYTES // token)


def _budget(work: Path, team: Team, encoder: Encoder, shape: Model, stage: Stage) -> Budget:
    """As it was found before, else by trying (CUDA) or by what a run may hold (CPU)."""
    if kept := io.read_json(work / BUDGET, None):
        return Budget(**kept)
    longest = max(stage.query_tokens, stage.passage_tokens)

    def attempt(tokens: int) -> None:
        """Forwards and backwards, of texts as long as can come, twice: the second time the gradients are there."""
        for _ in range(2):
            with autocast(encoder.device, precision(encoder.device).name):
                encoder([[0] * longest] * (tokens // longest), tokens).sum().backward()

    budget = Budget.on_cpu(shape)
    if team.device.type == "cuda":
        trained = [weight for weight in encoder.parameters() if weight.requires_grad]
        moments = [torch.zeros_like(weight) for weight in trained for _ in range(2)]
        try:  # beside what AdamW is going to keep
            budget = Budget(*[fitting_budget(attempt, FIRST_BUDGET)] * 2)
        finally:
            del moments
            encoder.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    if team.main:
        io.write_json(work / BUDGET, budget._asdict())
    return budget


class MicroBatch(NamedTuple):
    """What one backward pass needs of B rows with P passages; tokenised in the loader thread."""

    ids: list[list[int]]  # token ids of the B queries, then of the P passages
    relations: losses.Relations  # who belongs to whom, and so who is no negative of whom
    teacher_scores: Tensor | None = None  # [B, P / B] logits, positive first; stage 2 only


def collate(rows: Rows, encoder: Encoder, stage: Stage, sides: Prefixes) -> MicroBatch:
    """Token ids of the rows' texts, each with the prefix of its source and cut to the stage's length, and relations."""
    batch, before = losses.make_batch(rows), [sides(row.source) for row in rows]
    queries = [query + text for (query, _), text in zip(before, batch.queries, strict=True)]
    owner = batch.relations.owner.tolist()
    passages = [before[i][1] + text for i, text in zip(owner, batch.passages, strict=True)]
    ids = encoder.tokenize(queries, "", stage.query_tokens) + encoder.tokenize(passages, "", stage.passage_tokens)
    scores = [getattr(row, "teacher_scores", None) for row in rows]
    return MicroBatch(ids, batch.relations, torch.tensor(scores) if any(scores) else None)


def global_loss(embeddings: Tensor, batch: MicroBatch, stage: Stage) -> Tensor:
    """This rank's share of the mean loss over all ranks' rows: DDP averages the shares, the mean's gradient.

    `embeddings` [B + P, d], queries first. InfoNCE against every rank's passages; with a teacher KL(teacher ‖ student)
    over each query's own group + α · InfoNCE (the form of E5 and SimLM). The student's logits are those of InfoNCE.
    """
    rows = len(batch.relations.query_key)
    queries, passages = embeddings[:rows], embeddings[rows:]
    related = batch.relations.to(embeddings.device)
    held = sizes(related)
    total = losses.info_nce(gather(queries, held.queries), gather(passages, held.passages),
                            gather_relations(related, held), stage.temperature, stage.loss,
                            rows=local_slice(held.queries), reduction="sum")
    if batch.teacher_scores is not None:
        student = losses.group_scores(queries, passages, stage.temperature)
        teacher = batch.teacher_scores.to(embeddings.device)
        divergence = losses.kl_divergence(student, teacher, stage.teacher_temperature)
        total = rows * divergence + stage.contrastive_weight * total
    return global_mean(total, held.queries)


def train_step(
    model: Callable[[Sequence[Sequence[int]]], Tensor], batches: Sequence[MicroBatch], stage: Stage, team: Team,
    budget: Budget, seed: tuple[int, ...],
) -> Tensor:
    """Backward through every micro-batch (GradCache); gradients are all-reduced with the last. The detached loss.

    With accumulation a step has several micro-batches, each with in-batch negatives of its own, and its loss is the
    mean of theirs. `seed` stands for (seed, step, rank): dropout is drawn from it, piece by piece.
    """
    total = []
    for k, batch in enumerate(batches):
        whole = not team.any(sum(map(len, batch.ids)) > budget.whole)
        total.append(cached_step(
            model, batch.ids, lambda embeddings, batch=batch: global_loss(embeddings, batch, stage) / len(batches),
            sys.maxsize if whole else budget.piece, mix(*seed, k), keep_graph=whole, last=k == len(batches) - 1,
        ))  # fmt: skip
    return sum(total)


def work_of(
    rows: Rows, model: Callable[..., Tensor], encoder: Encoder, stage: Stage, team: Team, budget: Budget,
    seed: tuple[int, int], sides: Prefixes,
) -> loop.Work:
    """The step of this rank on its `rows`, tokenised and ready to be computed; `seed`: (seed, step)."""
    parts = stage.accumulate
    cut = [rows[len(rows) * k // parts : len(rows) * (k + 1) // parts] for k in range(parts)]
    batches = [collate(part, encoder, stage, sides) for part in cut]
    compute = functools.partial(train_step, model, batches, stage, team, budget, (*seed, team.rank))
    tokens = sum(len(ids) for batch in batches for ids in batch.ids)
    return loop.Work(compute, "+".join(dict.fromkeys(row.source for row in rows)), tokens)
