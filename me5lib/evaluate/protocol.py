"""The paper's evaluation protocol as an mteb encoder, and mteb's own, so that the difference can be measured.

    mteb.evaluate(Protocol(encoder, "stage2"), tasks)                       # as the authors' scripts evaluate
    mteb.evaluate(Protocol(encoder, "stage2", protocol="mteb"), tasks)      # as mteb 2 evaluates an E5 today

A `Rule` says what is put before a text, whether titles count and whether vectors get unit length. It depends on the
type *and the name* of the task: mteb 2 hands rerankings over as retrieval, with query and document sides, where the
authors' script puts `query: ` on both. `RULES` maps a protocol's name to its rule; an instruct model adds one more.

Cost: every text is encoded once per prefix and kept (at most `keep` bytes), so that the English side of a hundred
language pairs, and the second direction of each, are free.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from typing import Protocol as Interface

import numpy as np

from me5lib.model.text import PASSAGE, QUERY
from me5lib.places import Me5Error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import PromptType


class Rule(NamedTuple):
    """How the texts of one task are encoded."""

    query: str  # before queries, and before every text of a task that has no documents
    document: str  # before documents
    title: bool  # a document is its title and its text, joined by a space; else its text alone
    normalise: bool  # unit length (L2)


class TextEncoder(Interface):
    """What a `Protocol` needs of a model: `me5lib.model.encoder.Encoder` has it."""

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True) -> np.ndarray:
        """[n, width] vectors of `texts` with `prefix` before each, in order."""


def paper_rule(task_type: str, name: str) -> Rule:
    """The rule of the authors' scripts (microsoft/unilm `e5`, mteb 1.0.2).

    Retrieval: `query: ` and, on title and text, `passage: `. QuoraRetrieval: its documents are questions, so they are
    queries, without titles. Everything else, rerankings and bitext included: `query: ` on both sides. Classification
    alone goes without the L2 norm (multi-label classification and regression, which the scripts do not know, are
    treated alike: ours, as they also fit a linear model).
    """
    if task_type in ("Retrieval", "InstructionRetrieval"):
        if name.startswith("QuoraRetrieval"):
            return Rule(QUERY, QUERY, title=False, normalise=True)
        return Rule(QUERY, PASSAGE, title=True, normalise=True)
    linear = task_type in ("Classification", "MultilabelClassification", "Regression")
    return Rule(QUERY, QUERY, title=True, normalise=not linear)


def mteb_rule(task_type: str, name: str) -> Rule:
    """The rule of mteb 2's own wrapper for the mE5 models: prompts by side only, and always unit length.

    A text has a side in retrieval and reranking only; all other tasks get no prefix at all (since mteb 1.16).
    """
    sided = task_type in ("Retrieval", "InstructionRetrieval", "Reranking", "InstructionReranking")
    return Rule(QUERY if sided else "", PASSAGE if sided else "", title=True, normalise=True)


RULES = {"paper": paper_rule, "mteb": mteb_rule}


def fingerprint(encoder: Any) -> str:
    """16 hexadecimal digits of what an `Encoder`'s vectors depend on: weights, vocabulary, length, and its code."""
    sources = (inspect.getsource(inspect.getmodule(thing)) for thing in (type(encoder), fingerprint))
    digest = hashlib.blake2b("".join(sources).encode("utf8"), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode("utf8"))
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    vocabulary = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    used = {key: value for key, value in vocabulary.items() if key not in ("truncation", "padding")}
    digest.update(json.dumps([used, encoder.max_tokens], sort_keys=True).encode("utf8"))
    return digest.hexdigest()


def describe(name: str, revision: str) -> ModelMeta:
    """mteb's description of a model of this project; `revision` names its folder of results."""
    from mteb.models import ModelMeta

    return ModelMeta.create_empty(overwrites={"name": f"me5/{name.replace(' ', '-')}", "revision": revision})


def texts_of(inputs: Iterable[dict], column: str = "text") -> list[str]:
    """The texts of an mteb data loader, in order; `text` stands in where a batch lacks `column`."""
    return [text for batch in inputs for text in batch.get(column, batch["text"])]


class Protocol:
    """An mteb encoder around `encoder`, under the rules of a protocol (`paper` or `mteb`).

    `options` go to `encoder.encode`. `revision` defaults to the weights' fingerprint; protocol and options are added
    to it, so that results of two ways to evaluate never share a folder. Raises `Me5Error` for an unknown protocol.
    """

    languages: frozenset[str] | None = None  # those the model is evaluated in; None: all

    def __init__(self, encoder: TextEncoder, name: str, protocol: str = "paper", revision: str | None = None,
                 keep: int = 512 * 2**20, **options: Any) -> None:
        if protocol not in RULES:
            raise Me5Error(f"unknown protocol {protocol!r}: choose one of {', '.join(RULES)}")
        self.encoder, self.rule, self.options, self.keep = encoder, RULES[protocol], options, keep
        marks = [revision or fingerprint(encoder), protocol, *(f"{k}={v}" for k, v in sorted(options.items()) if v)]
        self.mteb_model_meta = describe(name, "-".join(marks))
        self._known: dict[tuple[str, bool, str], np.ndarray] = {}
        self._bytes = 0

    def encode(self, inputs: Iterable[dict], *, task_metadata: TaskMetadata, hf_split: str, hf_subset: str,
               prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        """fp32 [n, width]: the texts of a data loader of mteb, under this task's rule (mteb's encoder interface)."""
        rule = self.rule(task_metadata.type, task_metadata.name)
        document = prompt_type is not None and prompt_type.value == "document"
        # mteb joins title and text itself and keeps the bare text of a document as `body`
        texts = texts_of(inputs, "body" if document and not rule.title else "text")
        return self._vectors(texts, rule.document if document else rule.query, rule.normalise)

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines [n, m] of two blocks of vectors."""
        from mteb.similarity_functions import cos_sim

        return np.asarray(cos_sim(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines [n] of two blocks of vectors, row by row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return np.asarray(pairwise_cos_sim(embeddings1, embeddings2))

    def _vectors(self, texts: list[str], prefix: str, normalise: bool) -> np.ndarray:
        fresh = [t for t in dict.fromkeys(texts) if (prefix, normalise, t) not in self._known]
        if self._bytes > self.keep:
            self._known.clear()
            self._bytes, fresh = 0, list(dict.fromkeys(texts))
        if fresh:
            vectors = np.asarray(self.encoder.encode(fresh, prefix, normalise=normalise, **self.options), np.float32)
            self._known.update(((prefix, normalise, t), v) for t, v in zip(fresh, vectors, strict=True))
            self._bytes += vectors.nbytes
        return np.stack([self._known[prefix, normalise, t] for t in texts])
