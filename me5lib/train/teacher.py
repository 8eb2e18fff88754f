"""The teacher of stage 2, which reads query and passage together: had by name or trained here, judged, its scores kept.

    teacher = open_teacher("BAAI/bge-reranker-v2-m3", device)      # a cross-encoder of the hub, or a folder
    logits = teacher.scores([("Wie alt?", "Zwölf Jahre."), …], lengths=(192, 192))       # fp32 [n], higher is better
    train_on_file(Path("groups.jsonl"), "runs/tiny/seed-0/stage1", Path("my-teacher"), cfg.finetune)      # `me5 teach`

The paper's stage 2 learns from a cross-encoder's scores: KL(teacher ‖ student) over each query's own group (its
positive and its hard negatives) plus α · InfoNCE over the batch (form from E5 and SimLM's code; mE5's teacher is not
public). One that is no better than the student on held-out groups teaches nothing, and is not used.

Cost: a joint input per passage, with our own teacher about twice what embedding four passages a query apart costs; at
the paper's size 24 M pairs go through it. Scores are kept in blocks of groups (4 bytes a pair), one `.npy` file each,
named by a hash of the teacher and the texts: a run that was killed loses one block.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from me5lib import io
from me5lib.config import Stage
from me5lib.data import split, userdata
from me5lib.device import autocast, best_device, precision, seeded
from me5lib.io import Me5Error, sha256
from me5lib.model import encoder as encoders
from me5lib.model import save_load
from me5lib.model.encoder import Encoder, average_pool, by_length, piece_tokens
from me5lib.model.resolve import resolve, snapshot
from me5lib.model.text import clean
from me5lib.pairs import Labelled
from me5lib.train import checkpoint, labelled, loop, mining
from me5lib.train.labelled import GroupTask, Prefixes, SamplingPlan, card_prefixes, dev_groups
from me5lib.train.loss import widen

VERSION = 1  # of the scores; raise it with any change here by which equal teachers and texts give others
TRAINING_PIECE = 4096  # ours: tokens at once in training, and most of which the graph is held at a time
GROUPS_A_FILE = 512  # ours: of scores; a minute of a 12-layer MiniLM on two cores; fewer pad more on a GPU
TRAINED = "trained"  # `finetune.teacher`: a small one, trained by the stage
SAFE = ("*.json", "*.safetensors", "*.model", "*.txt")  # files of a repository that hold no code
TEACHER_JSON, HEAD = "teacher.json", "head.safetensors"
JUDGED_SHARE = 0.1  # ours: of the examples of `me5 teach`, to judge the teacher by
OWN_DATA = "own data"  # the source of an example that names none

TextPair = tuple[str, str]
Joint = dict[str, list[int]]  # `input_ids` of a query and a passage together, and `token_type_ids`: 0 up to the passage


class TeacherVerdict(NamedTuple):
    """Accuracy of teacher and student on the same held-out groups: how often the positive comes first of `size`."""

    teacher: float
    student: float
    queries: int
    size: int

    @property
    def trusted(self) -> bool:
        """Whether the teacher is better."""
        return self.teacher > self.student


class CrossEncoder(nn.Module):
    """A model that reads query and passage together, and gives one logit a pair: higher is better.

    A kind of it has `_cut` (a side's texts → their tokens, at most so many each), `_join` (both sides' tokens → a
    `Joint`), and `_read` (a padded batch of these → logits [n]).
    """

    prefixed = False  # whether it reads texts with their prefixes on

    def __init__(self, tokenizer: Any, room: int) -> None:
        super().__init__()
        self.tokenizer, self.room = tokenizer, room  # tokens of query and passage together
        self.name, self.identity = "the teacher trained here", {}  # which weights: known when it is loaded

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tokenize(self, pairs: Sequence[TextPair], lengths: tuple[int, int]) -> list[Joint]:
        """Joint inputs of `pairs`, each side cut to its number of `lengths` tokens."""
        if sum(lengths) > self.room:
            raise Me5Error(f"{self.name} reads {self.room} tokens of query and passage together: set "
                           f"finetune.query_tokens and finetune.passage_tokens, {lengths[0]} and {lengths[1]} now, to "
                           "less")
        sides = []
        for side, most in zip(zip(*pairs, strict=True), lengths, strict=True):
            texts = list(dict.fromkeys(side))  # the same query comes with each passage of its group
            known = dict(zip(texts, self._cut(texts, most), strict=True))
            sides.append([known[text] for text in side])
        return [self._join(query, passage) for query, passage in zip(*sides, strict=True)]

    def logits(self, rows: Sequence[Joint], token_budget: int) -> Tensor:
        """Of every row, in the order of `rows`: [n], those of like length at a time."""
        pieces = list(by_length([len(row["input_ids"]) for row in rows], token_budget))
        pad = functools.partial(self.tokenizer.pad, return_attention_mask=True, return_tensors="pt")
        found = torch.cat([self._read(**pad([rows[i] for i in piece]).to(self.device)) for piece in pieces])
        return found[torch.from_numpy(np.argsort(np.concatenate(pieces))).to(found.device)]

    def scores(self, pairs: Sequence[TextPair], lengths: tuple[int, int]) -> np.ndarray:
        """Logits of `pairs`, fp32 [n], without gradient; sides are cut to `lengths` tokens."""
        self.eval()
        rows = self.tokenize(pairs, lengths)
        with torch.inference_mode(), autocast(self.device, precision(self.device).name):
            return self.logits(rows, piece_tokens(self.device)).float().cpu().numpy()


class Teacher(CrossEncoder):
    """A cross-encoder over a copy of `encoder`'s backbone: one joint input `<s> query: … </s> passage: … </s>`.

    Its logit is the cosine of the two segments' mean vectors, after they have attended to each other, over τ, plus a
    small network on [q, p, |q − p|, q ∘ p] whose last layer starts at zero: before its first step it knows about what
    the encoder knows that it starts from. It is trained with SimLM's listwise softmax, on texts with their prefixes.
    """

    prefixed = True

    def __init__(self, encoder: Encoder, temperature: float, seed: int) -> None:
        super().__init__(encoder.tokenizer, encoder.max_tokens)
        self.encoder, self.temperature = encoder.copy(), temperature
        self.encoder.choose_attention()  # as for training, also where it scores
        with seeded(seed):
            first, last = nn.Linear(4 * encoder.width, encoder.width), nn.Linear(encoder.width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(first, nn.GELU(), last)
        self.to(encoder.device)

    def _cut(self, texts: Sequence[str], most: int) -> list[list[int]]:
        return self.encoder.tokenize(texts, "", most)

    def _join(self, query: list[int], passage: list[int]) -> Joint:
        return {"input_ids": query + passage[1:], "token_type_ids": [0] * len(query) + [1] * (len(passage) - 1)}

    def _read(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.encoder.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        query, passage = (average_pool(hidden, attention_mask * (token_type_ids == side)) for side in (0, 1))
        cosine = nn.functional.cosine_similarity(query, passage) / self.temperature
        features = torch.cat([query, passage, (query - passage).abs(), query * passage], dim=-1)
        return widen(cosine) + widen(self.head(features).squeeze(-1))

    def forward(self, rows: Sequence[Joint], size: int) -> Tensor:
        """Logits, with gradient, of B groups of `size` passages, the positive first: fp32 [B, size]."""
        return self.logits(rows, TRAINING_PIECE).view(-1, size)

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write a folder that `open_teacher` and `finetune.teacher` take: safetensors and JSON, whole or not at all.

        `about` (JSON types) is kept in its `teacher.json`: what it was made of, and how good it is.
        """
        with io.beside(folder) as side:
            self.encoder.save(side / "encoder")
            save_file({name: tensor.detach().cpu() for name, tensor in self.head.state_dict().items()}, side / HEAD)
            io.write_json(side / TEACHER_JSON, {**(about or {}), "temperature": self.temperature})

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Teacher:
        """A teacher that `save` wrote."""
        encoder = Encoder.load(folder / "encoder").to(device)
        teacher = cls(encoder, io.read_json(folder / TEACHER_JSON)["temperature"], 0)
        teacher.head.load_state_dict(load_file(folder / HEAD))
        return teacher


class Reranker(CrossEncoder):
    """A cross-encoder of the hub, or of a folder of that form, which reads bare texts by its own tokenizer.

    Special tokens do not count for the length of a side (sentence-transformers' `predict` would cut the longer one).
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        raw = tokenizer.backend_tokenizer
        raw.no_truncation(), raw.no_padding()
        super().__init__(tokenizer, save_load.positions(model) - raw.num_special_tokens_to_add(True))
        self.model = model

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Reranker:
        """In fp32. Raises ValueError for one without classifier among its weights, or with more than one logit."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with save_load.quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype="float32", use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        if report["missing_keys"] or model.config.num_labels != 1:
            raise ValueError("it is no cross-encoder with one logit a pair")
        return cls(model.to(device), tokenizer)

    def _cut(self, texts: Sequence[str], most: int) -> list[Any]:
        encodings = self.tokenizer.backend_tokenizer.encode_batch(clean(texts), add_special_tokens=False)
        for encoding in encodings:
            encoding.truncate(most)
        return encodings

    def _join(self, query: Any, passage: Any) -> Joint:
        both = self.tokenizer.backend_tokenizer.post_process(query, passage)
        fields = {"input_ids": both.ids, "token_type_ids": both.type_ids}
        return {name: ids for name, ids in fields.items() if name in self.tokenizer.model_input_names}

    def _read(self, **batch: Tensor) -> Tensor:
        return self.model(**batch).logits.squeeze(-1)


def open_teacher(name: str, device: torch.device) -> CrossEncoder:
    """The teacher that `finetune.teacher` names: a folder of `me5 teach`, or a cross-encoder by folder or hub id
    (`id@revision`: of that one), ready to score on `device`.

    Raises `Me5Error` where it cannot be had (offline: it was not fetched), is damaged, has no safetensors, or is no
    cross-encoder of one logit.
    """
    ref = resolve(name)
    if ref.kind == "released":
        raise Me5Error(f"{name} is an encoder, no cross-encoder: make a teacher of it with `me5 teach --from {name}`")
    if ref.kind == "folder":
        folder, identity = Path(ref.name), {"files": teacher_fingerprint(name)}
    else:
        try:
            folder = snapshot(ref.name, ref.revision, SAFE)
        except Me5Error as error:
            raise Me5Error(f"the teacher {error}; or set finetune.teacher=trained") from None
        identity = {"model": ref.name, "revision": folder.name}
    try:
        teacher = (Teacher if (folder / TEACHER_JSON).is_file() else Reranker).load(folder, device)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise Me5Error(f"the teacher {name} cannot be read ({save_load.first_line(error)}): name a folder that "
                       "`me5 teach` made, or a reranker with weights as safetensors, or set finetune.teacher=trained"
                       ) from None  # fmt: skip
    teacher.name, teacher.identity = name, identity
    return teacher.eval()


def teacher_fingerprint(name: str) -> str:
    """What tells one teacher from another before it is loaded: its hub id, or 16 hex digits of its folder's files that
    decide what it says (weights, JSON, vocabulary)."""
    if name == TRAINED or (ref := resolve(name)).kind != "folder":
        return name
    folder = Path(ref.name)
    files = sorted({file for pattern in SAFE for file in folder.rglob(pattern)})
    return checkpoint.fingerprint([[file.relative_to(folder).as_posix(), sha256(file)] for file in files])


# Scores


def score_pairs(pairs: Sequence[TextPair], teacher: CrossEncoder, lengths: tuple[int, int]) -> np.ndarray:
    """The teacher's scores of `pairs`, fp32 [n]; it reads each different pair once.

    Raises `Me5Error`, with the teacher's name and how many, for scores that are not finite.
    """
    distinct = list(dict.fromkeys(pairs))
    scores = dict(zip(distinct, teacher.scores(distinct, lengths), strict=True))
    if wrong := [pair for pair, score in scores.items() if not math.isfinite(score)]:
        raise Me5Error(f"{teacher.name} gave {len(wrong)} of {len(distinct)} pairs no finite score (the first: query "
                       f"{wrong[0][0][:60]!r}): choose another teacher (finetune.teacher), or learn without one")
    return np.array([scores[pair] for pair in pairs], np.float32)


def block_scores(
    pairs: Sequence[TextPair], teacher: CrossEncoder, lengths: tuple[int, int], folder: Path
) -> np.ndarray:
    """`score_pairs`, read from `folder` where they are kept there, else put there.

    A file is named by all that a score depends on, and renamed into place: two processes that score a block at once do
    no harm. Raises `Me5Error` for a folder that cannot be written.
    """
    key = {"version": f"{VERSION}.{encoders.VERSION}", "teacher": {**teacher.identity, "limits": lengths},
           "pairs": pairs}  # fmt: skip
    path = folder / f"{checkpoint.fingerprint(key)}.npy"
    scores = io.read_array(path, np.float32, len(pairs), 1, f"its {len(pairs):,} pairs are scored again")
    if scores is None:
        scores = score_pairs(pairs, teacher, lengths)
        io.put_array(path, scores, uuid.uuid4().hex)
    return scores


def score_groups(
    teacher: CrossEncoder, rows: Sequence[Labelled], stage: Stage, prefixes: Prefixes, folder: Path | None = None,
    progress: bool = False,
) -> list[np.ndarray]:
    """The teacher's logits of each row's first positive and its negatives, fp32 [1 + negatives] a row; kept in `folder`
    block by block. Raises `Me5Error` for scores that are not finite; the blocks before them stay kept."""
    groups, lengths = [], (stage.query_tokens, stage.passage_tokens)
    with tqdm(total=len(rows), unit="group", desc=teacher.name, disable=None if progress else True) as bar:
        for start in range(0, len(rows), GROUPS_A_FILE):
            block = rows[start : start + GROUPS_A_FILE]
            pairs = _text_pairs(teacher, block, prefixes)
            scores = (block_scores(pairs, teacher, lengths, folder) if folder is not None
                      else score_pairs(pairs, teacher, lengths))  # fmt: skip
            groups += np.split(scores, np.cumsum([1 + len(row.negatives) for row in block])[:-1])
            bar.update(len(block))
    io.give_back()
    return groups


def _text_pairs(teacher: CrossEncoder, rows: Sequence[Labelled], prefixes: Prefixes) -> list[TextPair]:
    """Each row's query with its first positive and with each negative, as the teacher reads them."""
    sides = {name: prefixes(name) if teacher.prefixed else ("", "") for name in {row.source for row in rows}}
    return [(sides[row.source][0] + row.query, sides[row.source][1] + text)
            for row in rows for text in (row.positives[0], *row.negatives)]


def student_scores(encoder: Encoder, rows: Sequence[Labelled], prefixes: Prefixes, stage: Stage) -> np.ndarray:
    """Cosines of each row's query with its first positive and its negatives (equally many): fp32 [B, G]."""
    scores = np.empty((len(rows), 1 + len(rows[0].negatives)), np.float32)
    for source in sorted({row.source for row in rows}):
        places = [i for i, row in enumerate(rows) if row.source == source]
        own = [rows[i] for i in places]
        texts = [text for row in own for text in (row.positives[0], *row.negatives)]
        queries = labelled.encode_side(encoder, stage, prefixes, [row.query for row in own], source)
        passages = labelled.encode_side(encoder, stage, prefixes, texts, source, side=1)
        scores[places] = np.einsum("bd,bgd->bg", queries, passages.reshape(len(own), -1, encoder.width))
    return scores


def judge(
    teacher: CrossEncoder, student: Encoder, rows: Sequence[Labelled], stage: Stage, prefixes: Prefixes,
    folder: Path | None = None,
) -> TeacherVerdict:
    """How often each puts the positive of a held-out group first, before all others (a tie is no win); the teacher's
    scores are kept in `folder`."""
    if not rows:
        return TeacherVerdict(0.0, 0.0, 0, 0)
    ours = np.stack(score_groups(teacher, rows, stage, prefixes, folder))
    theirs = student_scores(student, rows, prefixes, stage)
    shares = (float((scores[:, 0] > scores[:, 1:].max(1)).mean()) for scores in (ours, theirs))
    return TeacherVerdict(*shares, len(rows), ours.shape[1])


# Training, and its part in stage 2


def train_teacher(
    encoder: Encoder, rows: Mapping[int, Labelled], plan: SamplingPlan, stage: Stage, prefixes: Prefixes, seed: int,
    progress: bool = True,
) -> Teacher:
    """A teacher from a copy of `encoder`, trained for `stage.teacher_steps` on the plan's batches: listwise softmax."""
    teacher, steps = Teacher(encoder, stage.temperature, seed), stage.teacher_steps
    teacher.encoder.freeze(stage.frozen)
    size, lengths = 1 + stage.hard_negatives, (stage.query_tokens, stage.passage_tokens)
    most = max(1, TRAINING_PIECE // (size * sum(lengths)))

    def prepare(step: int) -> loop.Work:
        """A batch as the teacher reads it, in parts of as many groups as their graph may have."""
        own = plan.batch(rows, step % plan.steps, stage.hard_negatives)
        parts = [teacher.tokenize(_text_pairs(teacher, own[start : start + most], prefixes), lengths)
                 for start in range(0, len(own), most)]

        def mean_loss() -> Tensor:
            """Over all groups, detached; the gradient is accumulated part by part, which is exact: no group's loss
            depends on another group."""
            total = 0.0
            for part in parts:
                loss = -teacher(part, size).log_softmax(1)[:, 0].mean() * (len(part) // size / len(own))
                loss.backward()
                total = total + loss.detach()
            return total

        return loop.Work(mean_loss, own[0].source)

    cfg = dataclasses.replace(stage, steps=steps, warmup=steps // 10)  # the student's learning rate: ours
    loop.train_loop(teacher, prepare, cfg, loop.RunOptions(None, seed, name="teacher", progress=progress))
    return teacher


def add_scores(
    encoder: Encoder, rows: dict[int, Labelled], task: GroupTask, dev: Sequence[Labelled]
) -> tuple[dict[int, Labelled], dict[str, Any] | None]:
    """The groups with the teacher's scores if it is better than the start model, else as they were; and its report.

    One that was named (`finetune.teacher`) is used, too, where no held-out example can judge it. Every rank of the
    team calls this and scores its share; what is returned is whole on rank 0 alone.
    """
    stage, team, prefixes = task.stage, task.team, task.prefixes
    teacher, home = team.main_process_first(lambda: _stage_teacher(encoder, rows, task))
    verdict = team.by_main(lambda: judge(teacher, encoder, dev_groups(dev, task.seed), stage, prefixes, home))
    named = stage.teacher != TRAINED
    used = team.any(verdict is not None and (verdict.trusted or named and not verdict.queries))
    if task.progress and verdict:
        judged = (f" {verdict.teacher:.3f}, start model {verdict.student:.3f} first of {verdict.size} "
                  f"({verdict.queries} held-out examples)") if verdict.queries else ": no held-out example judges it"
        print(f"{teacher.name}{judged}: {'used' if used else 'not used'}")
    report = verdict and {**verdict._asdict(), "trusted": used, "name": stage.teacher, "weights": teacher.identity}
    if not used:
        return rows, report
    places = sorted(rows)
    share = [i for n, i in enumerate(places) if n // GROUPS_A_FILE % team.world == team.rank]  # as if alone
    scores = score_groups(teacher, [rows[i] for i in share], stage, prefixes, home, task.progress)
    team.barrier()
    if team.main and team.world > 1:  # the blocks of all ranks are in `home` now
        share, scores = places, score_groups(teacher, [rows[i] for i in places], stage, prefixes, home)
    return {i: rows[i]._replace(teacher_scores=tuple(round(logit, 4) for logit in logits.tolist()))
            for i, logits in zip(share, scores, strict=True)}, report  # fmt: skip


def _stage_teacher(encoder: Encoder, rows: dict[int, Labelled], task: GroupTask) -> tuple[CrossEncoder, Path]:
    """The teacher, ready to score, and where its scores are kept: those of one that nobody else has, in the stage's own
    folder. It is trained once, and saved there, so that an interrupted scoring goes on with the very same weights."""
    if task.stage.teacher != TRAINED:
        return open_teacher(task.stage.teacher, encoder.device), io.cache() / "scores"
    home = task.folder / "teacher"
    if not (home / TEACHER_JSON).is_file():
        train_teacher(encoder, rows, task.plan, task.stage, task.prefixes, task.seed, task.progress).save(home)
    teacher = open_teacher(str(home), encoder.device)
    teacher.name = "teacher"
    return teacher, task.folder / "scores"


# A teacher of one's own (`me5 teach`)


def train_on_file(
    data: Path, start: str | Path, out: Path, stage: Stage, seed: int = 0, progress: bool = True
) -> list[str]:
    """Train a teacher from the encoder `start` (folder or hub id) on the examples of `data`, and write it to `out`.

    `stage` is a stage 2's: `teacher_steps` (0: one pass over the examples), `batch`, `hard_negatives`, `lr`, the
    temperature and the lengths. A tenth of the examples, by hash of the query, is kept out to judge the teacher by.
    What became of it is returned, in lines. Raises `Me5Error` for what cannot be read, and for an `out` that exists.
    """
    if out.exists():
        raise Me5Error(f"{out} is there already: choose another --out, or delete it")
    rows, faults = read_examples(data)
    dev = [row for row in rows if split.fraction(row.query) < JUDGED_SHARE]
    train = [row for row in rows if split.fraction(row.query) >= JUDGED_SHARE]
    if not train or not dev:
        raise Me5Error(f"{data} has {len(rows)} examples, {len(dev)} of them held out: too few to train a teacher and "
                       "to judge it; give some dozens")
    encoder = Encoder.load(start).to(best_device())
    steps = stage.teacher_steps or math.ceil(len(train) / stage.batch)
    stage = dataclasses.replace(stage, steps=steps, teacher_steps=steps)
    plan = SamplingPlan(train, stage, seed, 1.0)
    passes = plan.passes()
    chosen, _, filling = labelled.add_negatives([train[i] for i in passes], "labelled", None, stage, card_prefixes,
                                                seed, list(passes.values()))
    teacher = train_teacher(encoder, dict(zip(passes, chosen, strict=True)), plan, stage, card_prefixes, seed, progress)
    verdict = judge(teacher, encoder, dev_groups(dev, seed), stage, card_prefixes)
    teacher.save(out, {"data": sha256(data), "start": str(start), "seed": seed, "stage": dataclasses.asdict(stage),
                       "verdict": {**verdict._asdict(), "trusted": verdict.trusted}})  # fmt: skip
    advice = "stage 2 would listen" if verdict.trusted else "no better than its start: stage 2 would not listen"
    return [
        f"{len(rows):,} examples" + "".join(f", {n:,} {what}" for what, n in (faults | filling).items()),
        f"first of {verdict.size} in {verdict.queries} held-out groups: teacher {verdict.teacher:.3f}, its start "
        f"{verdict.student:.3f}, chance {1 / verdict.size:.3f}; {advice}",
        f"written to {out}; for stage 2: --set finetune.teacher={out}",
    ]  # fmt: skip


def read_examples(path: Path) -> tuple[list[Labelled], dict[str, int]]:
    """The labelled examples of stage 2's own groups.jsonl, or of a file of pairs, as `me5 mine` reads or writes it;
    and how much of it is not used, by reason. Raises `Me5Error` for a file that cannot be read, with the line."""
    if path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            groups = file.read(1) == b"["
        if groups:
            return labelled.drop_invalid(labelled.read_groups(path).values())
    rows, file = mining.read_pairs(path)
    unused = Counter({userdata.REASONS[why]: len(met) for why, met in file.unused_lines.items()})
    return [row._replace(source=OWN_DATA) for row in rows], unused
