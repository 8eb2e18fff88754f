"""Teachers, which read query and passage together, and the loss that hands on what they know.

    teacher = open_teacher("BAAI/bge-reranker-v2-m3", device)      # a cross-encoder of the hub, or a folder
    for places, scores in teacher.pieces([("Wie alt?", "Zwölf Jahre."), …], lengths=(192, 192)): …

The paper's stage 2 learns from a cross-encoder's scores: KL(teacher ‖ student) over each query's own group (its
positive and its hard negatives) plus α · InfoNCE over the batch (form from E5 and SimLM's code; mE5's teacher is not
public). Two kinds of teacher are here, and both score pairs sorted by length, in pieces of a budget of tokens.

`Reranker`: any cross-encoder with one logit that `AutoModelForSequenceClassification` loads, safetensors only, by hub
id (`id@revision` pins one) or folder; it reads bare texts, in the form of its own tokenizer.

`Teacher`, ours: the student's own backbone, one joint input `<s> query: … </s> passage: … </s>`, read off
by the two segments' mean vectors after they have attended to each other: their cosine over τ, plus a small network on
[q, p, |q − p|, q ∘ p] whose last layer starts at zero. So before its first step it knows about what the encoder knows
that it starts from; it is trained with SimLM's listwise softmax. A teacher that is no better than the student teaches
nothing: `Verdict` measures both on held-out groups, and stage 2 trusts the teacher only if it wins.

Cost: a joint input per passage: four passages a query cost about twice what embedding them apart costs, by our own
teacher. bge-reranker-v2-m3 (XLM-R large) is 2 · 303 M operations a token.
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from me5lib import io
from me5lib.device import autocast, precision
from me5lib.io import Me5Error, sha256
from me5lib.model import save_load
from me5lib.model.encoder import Encoder, average_pool, by_length, piece_tokens
from me5lib.model.resolve import resolve, snapshot
from me5lib.model.text import clean
from me5lib.pairs import Labelled
from me5lib.train import checkpoint
from me5lib.train.loss import widen
from me5lib.train.score_cache import Pair, Scored, score_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PIECE = 4096  # padded tokens at once in training (ours)
TRAINED = "trained"  # the dial `finetune.teacher`: a small one of one's own
SAFE = ("*.json", "*.safetensors", "*.model", "*.txt")  # files of a repository that hold no code
ABOUT, HEAD = "teacher.json", "head.safetensors"
Prefixes = tuple[str, str]


class Groups(NamedTuple):
    """Token ids of B queries with G passages each (the positive first), as the teacher reads them."""

    ids: list[list[int]]  # B·G joint inputs, group after group
    cuts: list[int]  # B·G: where the passage begins
    size: int  # G


class Verdict(NamedTuple):
    """Accuracy of teacher and student on the same held-out groups: how often the positive comes first of `size`."""

    teacher: float
    student: float
    queries: int
    size: int

    @property
    def trusted(self) -> bool:
        """Whether the teacher is better."""
        return self.teacher > self.student


class Teacher(nn.Module):
    """A cross-encoder over a copy of `encoder`'s backbone. It reads texts with their prefixes on."""

    prefixed = True

    def __init__(self, encoder: Encoder, temperature: float, seed: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.temperature = temperature
        self.name, self.identity = "the teacher trained here", {}  # which weights: known when it is loaded
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(4 * encoder.width, encoder.width), nn.Linear(encoder.width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(first, nn.GELU(), last)
        self.to(encoder.device)

    def tokenize(
        self, queries: Sequence[str], groups: Sequence[Sequence[str]], prefixes: Prefixes, lengths: tuple[int, int]
    ) -> Groups:
        """Joint inputs of B queries and their G passages each; both sides cut to `lengths` tokens.

        Raises ValueError when the groups differ in size, or are too long for the backbone together.
        """
        sizes = {len(group) for group in groups}
        if len(sizes) != 1:
            raise ValueError(f"groups of {sorted(sizes)} passages: all must have the same number")
        if sum(lengths) > self.encoder.max_tokens:
            raise ValueError(f"query and passage of {lengths} tokens do not fit into {self.encoder.max_tokens}")
        size = sizes.pop()
        asked = self.encoder.tokenize(queries, prefixes[0], lengths[0])
        found = self.encoder.tokenize([text for group in groups for text in group], prefixes[1], lengths[1])
        left = [row for row in asked for _ in range(size)]
        return Groups([q + p[1:] for q, p in zip(left, found, strict=True)], [len(q) for q in left], size)

    def forward(self, groups: Groups) -> Tensor:
        """Scores (logits, higher is better) of every passage of every group: fp32 [B, G]."""
        self.encoder.choose_attention()
        pieces = list(by_length([len(row) for row in groups.ids], PIECE))
        scores = torch.cat([self._piece([groups.ids[i] for i in p], [groups.cuts[i] for i in p]) for p in pieces])
        back = np.argsort(np.concatenate(pieces), kind="stable")
        return scores[torch.from_numpy(back).to(scores.device)].view(-1, groups.size)

    def _piece(self, rows: list[list[int]], cuts: list[int]) -> Tensor:
        device = self.encoder.device
        padding = self.encoder.tokenizer.pad_token_id
        ids = nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), True, padding).to(device)
        place = torch.arange(ids.shape[1], device=device)
        mask = (place < torch.tensor(list(map(len, rows)), device=device)[:, None]).long()
        left = place < torch.tensor(cuts, device=device)[:, None]
        hidden = self.encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        query, passage = average_pool(hidden, mask * left), average_pool(hidden, mask * ~left)
        cosine = nn.functional.cosine_similarity(query, passage) / self.temperature
        features = torch.cat([query, passage, (query - passage).abs(), query * passage], dim=-1)
        return widen(cosine) + widen(self.head(features).squeeze(-1))

    def score(
        self, queries: Sequence[str], groups: Sequence[Sequence[str]], prefixes: Prefixes, lengths: tuple[int, int]
    ) -> np.ndarray:
        """Scores of texts, fp32 [B, G], without gradient, in the precision that training has on this machine."""
        asked, found = prefixes
        pairs = [(asked + query, found + text) for query, group in zip(queries, groups, strict=True) for text in group]
        return score_pairs(pairs, functools.partial(self.pieces, lengths=lengths)).reshape(len(queries), -1)

    def pieces(self, pairs: Sequence[Pair], lengths: tuple[int, int]) -> Scored:
        """Logits of `pairs`, prefixes on, piece by piece: (places [n], fp32 [n]); sides are cut to `lengths` tokens."""
        _refuse_longer(self.name, self.encoder.max_tokens, lengths)
        self.eval()
        self.encoder.choose_attention()
        asked, found = (self.encoder.tokenize(side, "", most) for side, most in zip(zip(*pairs, strict=True), lengths,
                                                                                    strict=True))  # fmt: skip
        rows, cuts = [q + p[1:] for q, p in zip(asked, found, strict=True)], [len(q) for q in asked]
        for piece in by_length([len(row) for row in rows], piece_tokens(self.encoder.device)):
            yield piece, self._logits([rows[i] for i in piece], [cuts[i] for i in piece])

    @torch.inference_mode()
    def _logits(self, rows: list[list[int]], cuts: list[int]) -> np.ndarray:
        with autocast(self.encoder.device, precision(self.encoder.device).name):
            return self._piece(rows, cuts).cpu().numpy()

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write a folder that `Teacher.load` and `finetune.teacher` take: safetensors and JSON, whole or not at all.

        `about` (JSON types) is kept in its `teacher.json`: what it was made of, and how good it is.
        """
        from safetensors.torch import save_file

        beside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        self.encoder.save(beside / "encoder")
        try:
            save_file({name: tensor.detach().cpu() for name, tensor in self.head.state_dict().items()}, beside / HEAD)
            io.write_json(beside / ABOUT, {**(about or {}), "temperature": self.temperature})
            io.replace(beside, folder)
        except OSError as error:
            raise io.unwritten(folder, error) from None

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Teacher:
        """A teacher that `save` wrote. Raises `Me5Error` for a folder that is none, or is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            about = io.read_json(folder / ABOUT)
            teacher = cls(Encoder.load(folder / "encoder").to(device), about["temperature"], 0)
            teacher.head.load_state_dict(load_file(folder / HEAD))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            why = save_load.first_line(error)
            raise Me5Error(f"{folder} is no whole teacher ({why}): make it again with `me5 teach`") from None
        teacher.name, teacher.identity = str(folder), {"files": fingerprint(folder)}
        return teacher.eval()


class Reranker:
    """A cross-encoder of the hub, or of a folder of that form: one logit a pair of bare texts."""

    prefixed = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, identity: dict[str, Any]
    ) -> None:
        """`identity` says which weights these are, in JSON types."""
        self.model, self.tokenizer, self.name, self.identity = model.eval(), tokenizer, name, identity
        self.raw = tokenizer.backend_tokenizer
        self.raw.no_truncation(), self.raw.no_padding()
        self.segments = "token_type_ids" in tokenizer.model_input_names

    @classmethod
    def load(cls, name: str, device: torch.device) -> Reranker:
        """The cross-encoder of a folder or a hub id (`id@revision`: of that one), in fp32, on `device`.

        Raises `Me5Error` where it cannot be had (offline: it was not fetched), has no safetensors, is no cross-encoder
        (no classifier among its weights), or gives more than one logit.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder, identity = _have(name)
        try:
            with save_load.quiet():
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    str(folder), dtype="float32", use_safetensors=True, output_loading_info=True
                )
                tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            why = save_load.first_line(error)
            raise Me5Error(f"the teacher {name} cannot be read ({why}): a cross-encoder with weights as safetensors is "
                           "wanted") from None
        if report["missing_keys"]:
            raise Me5Error(f"{name} is no cross-encoder (it lacks {sorted(report['missing_keys'])[0]}): choose a "
                           "reranker, or finetune.teacher=trained")
        if model.config.num_labels != 1:
            many = model.config.num_labels
            raise Me5Error(f"{name} gives {many} logits a pair, a teacher needs one: choose a reranker")
        return cls(model.to(device), tokenizer, name, identity)

    def pieces(self, pairs: Sequence[Pair], lengths: tuple[int, int]) -> Scored:
        """Logits of `pairs` piece by piece: (places [n], fp32 [n]); each side is cut to its number of `lengths` tokens,
        special ones not counted."""
        room = save_load.positions(self.model) - self.raw.num_special_tokens_to_add(True)
        _refuse_longer(self.name, room, lengths)
        rows = self._encoded(pairs, lengths)
        for piece in by_length([row.shape[1] for row in rows], piece_tokens(self.model.device)):
            yield piece, self._logits([rows[i] for i in piece])

    def _encoded(self, pairs: Sequence[Pair], lengths: tuple[int, int]) -> list[np.ndarray]:
        """Token and type ids, int32 [2, tokens], of each pair in the form of this model's tokenizer. The same query
        comes with each passage of its group: it is cut into tokens once."""
        sides = []
        for side, most in zip(zip(*pairs, strict=True), lengths, strict=True):
            texts = list(dict.fromkeys(side))
            found = self.raw.encode_batch(clean(texts)[0], add_special_tokens=False)
            for encoding in found:
                encoding.truncate(most)
            known = dict(zip(texts, found, strict=True))
            sides.append([known[text] for text in side])
        joint = (self.raw.post_process(query, passage) for query, passage in zip(*sides, strict=True))
        return [np.array([both.ids, both.type_ids], np.int32) for both in joint]

    @torch.inference_mode()
    def _logits(self, rows: list[np.ndarray]) -> np.ndarray:
        def padded(numbers: Iterator[np.ndarray], padding: int) -> Tensor:
            return nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, numbers)), True, padding).to(self.model.device)

        given = {"input_ids": padded((row[0] for row in rows), self.tokenizer.pad_token_id),
                 "attention_mask": padded((np.ones(row.shape[1], np.int64) for row in rows), 0)}
        given |= {"token_type_ids": padded((row[1] for row in rows), 0)} if self.segments else {}
        with autocast(self.model.device, precision(self.model.device).name):
            return self.model(**given).logits.squeeze(-1).float().cpu().numpy()


def open_teacher(name: str, device: torch.device) -> Teacher | Reranker:
    """The teacher that `finetune.teacher` names: a folder of `me5 teach`, or a cross-encoder by folder or hub id."""
    folder = Path(name).expanduser()
    return Teacher.load(folder, device) if (folder / ABOUT).is_file() else Reranker.load(name, device)


def origin(name: str) -> str:
    """What tells one teacher from another before it is loaded: the hash of its folder's files, or its hub id."""
    if name == TRAINED or (ref := resolve(name)).kind != "folder":
        return name
    return fingerprint(ref.folder)


def fingerprint(folder: Path) -> str:
    """16 hex digits of the files of a model's folder that decide what it says: weights, JSON, vocabulary."""
    files = sorted({file for pattern in SAFE for file in folder.rglob(pattern)})
    return checkpoint.fingerprint([[file.relative_to(folder).as_posix(), sha256(file)] for file in files])


def _have(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a reranker, from the hub client's cache or the hub itself, and which weights are in it."""
    ref = resolve(name)
    if ref.kind == "released":
        raise Me5Error(f"{name} is an encoder, no cross-encoder: make a teacher of it with `me5 teach --from {name}`")
    if ref.kind == "folder":
        return ref.folder, {"files": fingerprint(ref.folder)}
    try:
        found = snapshot(ref.name, ref.revision, SAFE)
    except Me5Error as error:
        raise Me5Error(f"the teacher {error}; or set finetune.teacher=trained") from None
    return found, {"model": ref.name, "revision": found.name}


def _refuse_longer(name: str, room: int, lengths: tuple[int, int]) -> None:
    if sum(lengths) > room:
        raise Me5Error(f"{name} reads {room} tokens of query and passage together: set finetune.query_tokens and "
                       f"finetune.passage_tokens, {lengths[0]} and {lengths[1]} now, to less")


def listwise(scores: Tensor) -> Tensor:
    """Listwise softmax: −log of the positive's share of its group, mean over groups; scores [B, G], positive first."""
    return -widen(scores).log_softmax(1)[:, 0].mean()


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) over each group, mean over the groups: Σ_g t_g (log t_g − log s_g), a scalar.

    Both [B, G] logits; the student's are cosines over its own τ, the teacher's are divided by `temperature`.
    """
    target = (widen(teacher) / temperature).log_softmax(1)
    return (target.exp() * (target - widen(student).log_softmax(1))).sum(1).mean()


def group_scores(queries: Tensor, passages: Tensor, temperature: float) -> Tensor:
    """The student's logits over each query's own group: [B, G] of queries [B, d], passages [B·G, d]."""
    groups = widen(passages).view(len(queries), -1, passages.shape[-1])
    return torch.einsum("bd,bgd->bg", widen(queries), groups) / temperature


def first_place(scores: np.ndarray) -> np.ndarray:
    """Whether the positive (column 0) beats every other of its group: bool [B]; a tie is no win."""
    return scores[:, 0] > scores[:, 1:].max(1)


def student_scores(
    encoder: Encoder, rows: Sequence[Labelled], prefixes: Prefixes, lengths: tuple[int, int]
) -> np.ndarray:
    """Cosines of each row's query with its first positive and its negatives (equally many): fp32 [B, G]."""
    fast = precision(encoder.device).name  # as the teacher has it
    asked = encoder.encode([row.query for row in rows], prefixes[0], max_tokens=lengths[0], precision=fast)
    texts = [text for row in rows for text in (row.positives[0], *row.negatives)]
    found = encoder.encode(texts, prefixes[1], max_tokens=lengths[1], precision=fast)
    return np.einsum("bd,bgd->bg", asked, found.reshape(len(rows), -1, encoder.width))
