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
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import me5lib
from me5lib.data import cards
from me5lib.data.corpus import Corpus, open_corpus
from me5lib.data.mixture import Mixture
from me5lib.model.encoder import Encoder
from me5lib.places import Me5Error
from me5lib.scale import Model, Scale, Stage
from me5lib.train import checkpoint, contrast, distill, groups, loop
from me5lib.train.gradcache import cached_step, mix, seeded
from me5lib.train.watch import watch

PIECE = 16_384  # ours: padded tokens of which GradCache holds the graph; half a GB at tiny
GRAPH_BYTES = 2 * 2**30  # ours: above it a step is done by GradCache, so that a run stays under 4 GB
TEXTS_PER_PIECE = 3  # ours: training texts read for each piece of the vocabulary
CHECKPOINTS = 5  # ours: times a stage writes one


def pretrain(
    scale: Scale, seed: int, out: Path, *, corpus: Corpus | None = None,
    evaluate: loop.Evaluator | None = None, every: int = 0, progress: bool = True,
) -> Path:
    """Stage 1, contrastive pre-training on unlabelled pairs: the finished folder `out/stage1`.

    `evaluate(encoder, step)` is logged before the first step, after the last, and after every `every` steps (0: fifteen
    times in all); by default it is `watch.watch(corpus)`. It does not change what is trained.
    """
    corpus = corpus or open_corpus(scale, progress)
    mixture = corpus.mixture(scale, seed, scale.train)
    settings = _settings(scale, seed, corpus, scale.train, plan=mixture.fingerprint)
    door = Door(out, "stage1", settings)
    if door.finished(progress):
        return door.final
    encoder = Encoder.new(scale.model, vocabulary(corpus, scale, out), seed).to(loop.best_device())
    work = door.open()
    every = every or max(1, scale.train.steps // 15)
    loop.train(
        encoder, _stage1(encoder, mixture, scale, seed), scale.train, work, seed=seed, plan=door.fingerprint,
        evaluate=evaluate or watch(corpus), every=every, save_every=_save_every(scale.train), progress=progress,
        name="stage 1",
    )  # fmt: skip
    return door.publish(encoder)


def finetune(
    scale: Scale, seed: int, out: Path, *, start: Path | None, name: str = "stage2", negatives: str = "mined",
    teacher: bool = True, corpus: Corpus | None = None, evaluate: loop.Evaluator | None = None, progress: bool = True,
) -> Path:
    """Stage 2, fine-tuning on labelled examples with hard negatives and a teacher: the finished folder `out/<name>`.

    `start` is a stage-1 folder, or None for random weights over the same vocabulary. `negatives`: "mined" (each
    example's own wrong answers first, then the start model's nearest; without a start model the same as "labelled"),
    "bm25", "random", or "labelled" (own ones, then random). With `teacher`, a small cross-encoder is trained from the
    same start and its KL term is used if it is better than the start model on held-out examples.
    From random weights the learning rate is stage 1's (ours: stage 2's own would leave them nearly as they were).
    """
    if negatives not in groups.KINDS:
        raise Me5Error(f"unknown negatives {negatives!r}: choose one of {', '.join(groups.KINDS)}")
    corpus = corpus or open_corpus(scale, progress)
    stage = scale.finetune if start else dataclasses.replace(scale.finetune, lr=scale.train.lr)
    rows = corpus.labelled()
    plan = groups.Plan(rows, stage, seed, scale.data.language_temperature)
    settings = _settings(
        scale, seed, corpus, stage, plan=plan.fingerprint, negatives=negatives, teacher=teacher,
        start=identity(start) if start else "random weights",
    )  # fmt: skip
    door = Door(out, name, settings)
    if door.finished(progress):
        return door.final
    encoder = _start(scale, seed, out, corpus, start)
    work = door.open()
    made = groups.make(
        encoder, rows, plan, stage, work, kind=negatives, mines=start is not None, with_teacher=teacher,
        dev=corpus.labelled("dev"), prefixes=prefixes, seed=seed, progress=progress,
    )  # fmt: skip
    loop.train(
        encoder, _stage2(encoder, plan, made, stage, scale.model, seed), stage, work, seed=seed, plan=door.fingerprint,
        evaluate=evaluate or watch(corpus), save_every=_save_every(stage), progress=progress, name=name,
    )  # fmt: skip
    return door.publish(encoder)


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
    if _read_json(folder / "made-with.json") != known:
        beside = out / ".tokenizer.part"
        shutil.rmtree(beside, ignore_errors=True)
        train_tokenizer(corpus.sample_texts(TEXTS_PER_PIECE * scale.model.vocabulary), scale.model.vocabulary, beside)
        _write_json(beside / "made-with.json", known)
        checkpoint.replace(beside, folder)
    return AutoTokenizer.from_pretrained(str(folder))


def prefixes(source: str) -> tuple[str, str]:
    """The prefixes of a source's two sides, from its data card: "query: " on both where they are alike (translations),
    else "query: " and "passage: " (the authors' model card; which each of their training sets had is not published)."""
    card = cards.load(source)
    return card.query_prefix, card.passage_prefix


def identity(folder: Path) -> str:
    """The fingerprint of a finished stage, or the hash of its weights if it was not made here."""
    made = _read_json(folder / "stage.json")
    return made["fingerprint"] if made else checkpoint.sha256(folder / "model.safetensors")


class Door:
    """Where a stage is made (`<name>.part`) and where it stands when finished (`<name>`), and with which settings."""

    def __init__(self, out: Path, name: str, settings: dict[str, Any]) -> None:
        self.final, self.part, self.settings = out / name, out / f"{name}.part", settings
        self.fingerprint = checkpoint.fingerprint(settings)

    def finished(self, progress: bool = False) -> bool:
        """Whether the stage is there, made with these settings; says so with `progress`."""
        made = _read_json(self.final / "stage.json")
        found = bool(made) and made["fingerprint"] == self.fingerprint and (self.final / "config.json").is_file()
        if found and progress:
            print(f"{self.final.name} was finished before with the same settings: not trained again")
        return found

    def open(self) -> Path:
        """The folder to work in; raises `Me5Error` when it holds unfinished work with other settings."""
        made = _read_json(self.part / "stage.json")
        if made and made["fingerprint"] != self.fingerprint:
            if checkpoint.latest(self.part / "checkpoints"):
                changed = ", ".join(_changes(made["settings"], self.settings))
                raise Me5Error(f"{self.part} is unfinished work with other settings ({changed}): "
                               "go back to them to finish it, or delete that folder")
            shutil.rmtree(self.part)
        self.part.mkdir(parents=True, exist_ok=True)
        _write_json(self.part / "stage.json", {"fingerprint": self.fingerprint, "settings": self.settings})
        return self.part

    def publish(self, encoder: Encoder) -> Path:
        """Put the trained encoder, its logs and settings in place in one step; an older stage is moved aside."""
        beside = self.part / "model"
        encoder.save(beside)
        for file in self.part.glob("*.json*"):
            shutil.copy2(file, beside / file.name)
        if self.final.exists():
            self._move_aside()
        beside.rename(self.final)
        shutil.rmtree(self.part, ignore_errors=True)
        return self.final

    def _move_aside(self) -> None:
        made = _read_json(self.final / "stage.json") or {"fingerprint": "unknown", "settings": {}}
        aside = self.final.with_name(f"{self.final.name}.{made['fingerprint']}")
        print(f"{self.final} was made with other settings ({', '.join(_changes(made['settings'], self.settings))}): "
              f"moved to {aside.name}")
        checkpoint.replace(self.final, aside)


def _settings(scale: Scale, seed: int, corpus: Corpus, stage: Stage, **more: Any) -> dict[str, Any]:
    """Everything that decides what a stage becomes, as JSON types."""
    made = {
        "version": me5lib.__version__, "corpus": corpus.fingerprint, "seed": seed,
        "data": dataclasses.asdict(scale.data), "model": dataclasses.asdict(scale.model),
        "stage": dataclasses.asdict(stage), "precision": loop.precision(loop.best_device()).name, **more,
    }  # fmt: skip
    return json.loads(json.dumps(made))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The dials that differ, as `stage.steps`."""
    old, new = _flat(before), _flat(now)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        found |= {f"{key}.{dial}": x for dial, x in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _start(scale: Scale, seed: int, out: Path, corpus: Corpus, start: Path | None) -> Encoder:
    if start:
        return Encoder.load(start).to(loop.best_device())
    return Encoder.new(scale.model, vocabulary(corpus, scale, out), seed).to(loop.best_device())


def _stage1(encoder: Encoder, mixture: Mixture, scale: Scale, seed: int) -> Callable[[int], loop.Work]:
    stage = scale.train

    def prepare(step: int) -> loop.Work:
        """The batch of `step`, tokenised, and how its gradient is computed."""
        pairs = mixture.batch(step)
        batch = contrast.from_pairs(pairs)
        sides = [prefixes(pair.source) for pair in pairs]
        ids = _tokens(encoder, batch.queries, [q for q, _ in sides], stage.query_tokens)
        ids += _tokens(encoder, batch.passages, [p for _, p in sides], stage.passage_tokens)
        related = batch.relations.to(loop.device_of(encoder))

        def loss_of(vectors: Tensor) -> Tensor:
            """The loss of the batch's vectors, queries first."""
            queries, passages = vectors[: len(pairs)], vectors[len(pairs) :]
            return contrast.info_nce(queries, passages, related, stage.temperature, stage.loss)

        source = "+".join(dict.fromkeys(pair.source for pair in pairs))
        return loop.Work(lambda: _accumulate(encoder, ids, loss_of, scale.model, mix(seed, step)), source)

    return prepare


def _stage2(
    encoder: Encoder, plan: groups.Plan, made: groups.Made, stage: Stage, shape: Model, seed: int
) -> Callable[[int], loop.Work]:
    def prepare(step: int) -> loop.Work:
        """The batch of `step`, tokenised, and how its gradient is computed."""
        rows = [made.rows[i] for i in plan.batch(step)]
        batch = contrast.from_labelled(rows)
        sides = [prefixes(row.source) for row in rows]
        size = len(batch.passages) // len(rows)
        ids = _tokens(encoder, batch.queries, [q for q, _ in sides], stage.query_tokens)
        ids += _tokens(encoder, batch.passages, [p for _, p in sides for _ in range(size)], stage.passage_tokens)
        device = loop.device_of(encoder)
        related = batch.relations.to(device)
        scores = torch.tensor([row.teacher_scores for row in rows], device=device) if made.taught else None

        def loss_of(vectors: Tensor) -> Tensor:
            """The loss of the batch's vectors, queries first."""
            queries, passages = vectors[: len(rows)], vectors[len(rows) :]
            contrastive = contrast.info_nce(queries, passages, related, stage.temperature, stage.loss)
            student = distill.group_scores(queries, passages, stage.temperature)
            weight, temperature = stage.contrastive_weight, stage.teacher_temperature
            return distill.stage2_loss(student, scores, contrastive, weight, temperature)

        source = "+".join(dict.fromkeys(row.source for row in rows))
        return loop.Work(lambda: _accumulate(encoder, ids, loss_of, shape, mix(seed, step)), source)

    return prepare


def _tokens(encoder: Encoder, texts: Sequence[str], sides: Sequence[str], longest: int) -> list[list[int]]:
    """Ids of every text with its own prefix, cut to `longest`."""
    return encoder.tokenize([side + text for side, text in zip(sides, texts, strict=True)], "", longest)


def _accumulate(
    encoder: Encoder, ids: list[list[int]], loss_of: Callable[[Tensor], Tensor], shape: Model, seed: int
) -> Tensor:
    """The loss of a batch: one graph where that fits into GRAPH_BYTES, else by GradCache, gradient accumulated."""
    if graph_bytes(shape, sum(map(len, ids))) > GRAPH_BYTES:
        return cached_step(encoder, ids, loss_of, PIECE, seed)
    with seeded(seed):
        return loss_of(encoder(ids))


def graph_bytes(shape: Model, tokens: int) -> int:
    """About what autograd keeps of `tokens` tokens, fp32: a layer's 16 vectors of width and 3 of feed-forward."""
    return 4 * tokens * shape.layers * (16 * shape.width + 3 * shape.feedforward)


def _save_every(stage: Stage) -> int:
    return max(1, stage.steps // CHECKPOINTS)


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf8")

