"""The paper's evaluation protocol as an mteb encoder, and mteb's own, so that the difference can be measured.

    opened = models.open_model("intfloat/multilingual-e5-small")
    model = Protocol(opened.encoder, opened.name, revision=opened.revision, instruct=opened.instruct)
    mteb.evaluate(model, tasks)                                                # as the authors' scripts evaluate
    mteb.evaluate(Protocol(encoder, "stage2", protocol="mteb"), tasks)         # as mteb 2 evaluates an E5 today

What is put before a text, whether titles count, and whether vectors get unit length is a `Rule` of `evaluate.prompts`.

Cost: a text is encoded once per task, prefix and norm, and kept (at most `keep` bytes), so that the English side of a
hundred language pairs, and the second direction of each, are free. Documents, and lists of more than `MANY` texts, go
straight through: an encoder that keeps vectors on disk is handed the very same lists in every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

import numpy as np

from me5lib.evaluate import prompts
from me5lib.evaluate.prompts import RULES, Rule, mteb_rule, paper_rule
from me5lib.io import Me5Error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import PromptType

__all__ = ["RULES", "Protocol", "Rule", "TextEncoder", "describe", "fingerprint", "mteb_rule", "paper_rule", "texts_of"]
VERSION = 1  # of the results; raise it with any change of rules, here or in `prompts`, that gives other ones
MANY = 2**15  # texts of one list: more of them are seldom seen twice, and would fill what is kept (ours)


class TextEncoder(Interface):
    """What a `Protocol` needs of a model: `me5lib.model.encoder.Encoder` has it.

    One with `own_prompts` (a mapping, empty for most) is no E5: its own prompts replace the protocol's prefixes.
    """

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True) -> np.ndarray:
        """[n, width] vectors of `texts` with `prefix` before each, in order."""


def fingerprint(encoder: Any) -> str:
    """16 hexadecimal digits of what an `Encoder`'s results depend on: weights, vocabulary, length, two versions."""
    from me5lib.model import encoder as encoders

    digest = hashlib.blake2b(json.dumps([VERSION, encoders.VERSION]).encode("utf8"), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode("utf8"))
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    vocabulary = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    used = {key: value for key, value in vocabulary.items() if key not in ("truncation", "padding")}
    digest.update(json.dumps([used, encoder.max_tokens], sort_keys=True).encode("utf8"))
    return digest.hexdigest()


def describe(name: str, revision: str) -> ModelMeta:
    """mteb's description of a model; `name` and `revision` name its folder of results.

    A name without an owner gets this project's (`me5/…`); a model that mteb knows keeps what mteb knows of it.
    """
    from mteb.models import ModelMeta
    from mteb.models.model_implementations import MODEL_REGISTRY

    if name in MODEL_REGISTRY:
        return MODEL_REGISTRY[name].model_copy(update={"revision": revision})
    full = name if "/" in name else f"me5/{name}"
    return ModelMeta.create_empty(overwrites={"name": full.replace(" ", "-"), "revision": revision})


def texts_of(inputs: Iterable[dict], column: str = "text") -> list[str]:
    """The texts of an mteb data loader, in order; `text` stands in where a batch lacks `column`."""
    return [text for batch in inputs for text in batch.get(column, batch["text"])]


def _own_prompts(encoder: Any) -> Mapping[str, str] | None:
    """`own_prompts` of the encoder, or of one that it wraps as `encoder`; None for an E5."""
    while encoder is not None and not hasattr(encoder, "own_prompts"):
        encoder = getattr(encoder, "encoder", None)
    return getattr(encoder, "own_prompts", None)


class Protocol:
    """An mteb encoder around `encoder`, under the rules of a protocol (`paper` or `mteb`).

    `options` go to `encoder.encode`; `instruct` is for a model that reads instructions in place of prefixes.
    `revision`, if given, is the model's own and is taken as it stands: then results of two protocols, or of two
    precisions, need two folders. Without one it is the weights' fingerprint, with protocol and options added, so that
    results of two ways to evaluate never meet. Raises `Me5Error` for an unknown protocol.
    """

    languages: frozenset[str] | None = None  # those the model is evaluated in; None: all

    def __init__(self, encoder: TextEncoder, name: str, protocol: str = "paper", revision: str | None = None,
                 keep: int = 512 * 2**20, *, instruct: bool = False, **options: Any) -> None:
        if protocol not in RULES:
            raise Me5Error(f"unknown protocol {protocol!r}: choose one of {', '.join(RULES)}")
        self.encoder, self.protocol, self.instruct = encoder, protocol, instruct
        self.options, self.keep = options, keep
        marks = [protocol, *(f"{k}={v}" for k, v in sorted(options.items()) if v)]
        self.mteb_model_meta = describe(name, revision or "-".join([fingerprint(encoder), *marks]))
        self._task = ""
        self._known: dict[tuple[str, bool, str], np.ndarray] = {}
        self._bytes = 0

    def rule(self, metadata: TaskMetadata) -> Rule:
        """How the texts of this task are encoded."""
        own = _own_prompts(self.encoder)
        if own is not None:
            return prompts.own_rule(own, metadata)
        return prompts.rule(self.protocol, metadata, self.instruct)

    def encode(self, inputs: Iterable[dict], *, task_metadata: TaskMetadata, hf_split: str, hf_subset: str,
               prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        """fp32 [n, width]: the texts of a data loader of mteb, under this task's rule (mteb's encoder interface)."""
        rule = self.rule(task_metadata)
        document = prompt_type is not None and prompt_type.value == "document"
        # mteb joins title and text itself and keeps the bare text of a document as `body`
        texts = texts_of(inputs, "body" if document and not rule.title else "text")
        prefix = rule.document if document else rule.query
        if document or len(texts) > MANY:
            return self._encoded(texts, prefix, rule.normalise)
        return self._vectors(task_metadata.name, texts, prefix, rule.normalise)

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines [n, m] of two blocks of vectors; of two single vectors a number [], as SummEval's evaluator needs."""
        from mteb.similarity_functions import cos_sim

        found = np.asarray(cos_sim(embeddings1, embeddings2))
        return found.reshape(()) if embeddings1.ndim == embeddings2.ndim == 1 else found

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines [n] of two blocks of vectors, row by row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return np.asarray(pairwise_cos_sim(embeddings1, embeddings2))

    def _encoded(self, texts: list[str], prefix: str, normalise: bool) -> np.ndarray:
        return np.asarray(self.encoder.encode(texts, prefix, normalise=normalise, **self.options), np.float32)

    def _vectors(self, task: str, texts: list[str], prefix: str, normalise: bool) -> np.ndarray:
        if self._bytes > self.keep or task != self._task:
            self._known.clear()
            self._bytes, self._task = 0, task
        fresh = [t for t in dict.fromkeys(texts) if (prefix, normalise, t) not in self._known]
        if fresh:
            vectors = self._encoded(fresh, prefix, normalise)
            self._known.update(((prefix, normalise, t), v) for t, v in zip(fresh, vectors, strict=True))
            self._bytes += vectors.nbytes
        return np.stack([self._known[prefix, normalise, t] for t in texts])
