"""The paper's evaluation protocol as an mteb encoder, and mteb's own, so that the difference can be measured.

    opened = models.open_model("intfloat/multilingual-e5-small")
    model = Protocol(opened.encoder, opened.name, revision=opened.revision, instruct=opened.instruct)
    mteb.evaluate(model, tasks)                                                # as the authors' scripts evaluate
    mteb.evaluate(Protocol(encoder, "stage2", protocol="mteb"), tasks)         # as mteb 2 evaluates an E5 today
    paper_rule("Reranking", "SciDocsRR")    # TaskRule("query: ", "query: ", title=True, normalise=True)

A `TaskRule` says what is put before a text, whether titles count, and whether vectors get unit length. `paper` is what
the authors' scripts do (microsoft/unilm, folder `e5`: `mteb_beir_eval.py`, `mteb_except_retrieval_eval.py`), `mteb`
what mteb 2.26 does with the same models. The rules depend on the type *and the name* of a task: mteb 2 hands rerankings
over as retrieval, with queries and documents, where the authors' script puts the same string on both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from me5lib.evaluate.paper import load_csv
from me5lib.io import Me5Error
from me5lib.model import encoder as encoders
from me5lib.model import text
from me5lib.model.text import PASSAGE, QUERY

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import PromptType

VERSION = 1  # of the results; raise it with any change of rules that gives other ones
PROTOCOLS = ("paper", "mteb")
MANY = 2**15  # texts of one list: more of them are seldom seen twice, and would fill what is kept (ours)
KEPT = 2**17  # texts whose vectors are kept while a task runs: 512 MB of a large model's (ours)
LINEAR = ("Classification", "MultilabelClassification", "Regression")  # a linear model is fitted to the vectors
RETRIEVAL = ("Retrieval", "InstructionRetrieval")
SIDED = (*RETRIEVAL, "Reranking", "InstructionReranking")  # queries and documents to mteb 2
_LIKE = {"InstructionRetrieval": "Retrieval", "InstructionReranking": "Reranking",
         "MultilabelClassification": "Classification", "Regression": "Classification"}  # unknown to the scripts: ours


class TaskRule(NamedTuple):
    """How the texts of one task are encoded."""

    query: str  # before queries, and before every text of a task that has no documents
    document: str  # before documents
    title: bool  # a document is its title and its text, joined by a space; else its text alone
    normalise: bool  # unit length (L2)


def paper_rule(task_type: str, name: str, instruct: bool = False) -> TaskRule:
    """The rule of the authors' scripts (microsoft/unilm `e5`, mteb 1.0.2) for a model with prefixes, or `instruct`.

    QuoraRetrieval's documents are questions: queries, without titles. The instruct model reads the instruction on every
    text but documents of retrieval, which are bare (title and text, Quora's too). What also fits a linear model, as
    classification does, and is unknown to the scripts goes without the L2 norm, too (ours).
    Raises `Me5Error` for a task that the scripts have no instruction for.
    """
    retrieval = task_type in RETRIEVAL
    if instruct:
        query = text.instruct(instruction(task_type, name), "")
        return TaskRule(query, "" if retrieval else query, title=True, normalise=task_type not in LINEAR)
    quora = retrieval and name.startswith("QuoraRetrieval")
    document = PASSAGE if retrieval and not quora else QUERY
    return TaskRule(QUERY, document, title=not quora, normalise=task_type not in LINEAR)


def mteb_rule(metadata: TaskMetadata, prompts: Mapping[str, str]) -> TaskRule:
    """The rule of mteb 2's own wrapper for a model with these prompts, as mteb picks them; always unit length."""
    from mteb.models.abs_encoder import get_prompt
    from mteb.types import PromptType

    sides = (PromptType.query, PromptType.document) if metadata.type in SIDED else (None, None)
    return TaskRule(*(get_prompt(dict(prompts), metadata, side) or "" for side in sides), title=True, normalise=True)


def mteb_instruct_rule(metadata: TaskMetadata) -> TaskRule:
    """The rule of mteb 2.26's `InstructSentenceTransformerModel` for the instruct model: the task's instruction in mteb
    (`metadata.prompt`), else its type's; documents bare, those of rerankings too (PAPER.md §5.3)."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import PromptType

    sided = metadata.type in SIDED
    asks = SimpleNamespace(prompt_priority=AbsEncoder.prompt_priority, prompts_dict=None)  # the look-up needs no model
    before = text.instruct(AbsEncoder.get_instruction(asks, metadata, PromptType.query if sided else None), "")
    return TaskRule(before, "" if sided else before, title=True, normalise=True)


def rule_of(protocol: str, metadata: TaskMetadata, instruct: bool = False) -> TaskRule:
    """The rule of a task of mteb for an E5 under `paper` or `mteb`. Raises `Me5Error` as `paper_rule` does."""
    if protocol == "paper":
        return paper_rule(metadata.type, metadata.name, instruct)
    return mteb_instruct_rule(metadata) if instruct else mteb_rule(metadata, {"query": QUERY, "document": PASSAGE})


def instruction(task_type: str, name: str) -> str:
    """The authors' instruction for a task (`tables/instruct_prompts.csv`, from unilm `e5/utils.py`).

    A later version of a task (`….v2`, `…HardNegatives`) has its first version's (ours: the scripts know neither).
    Raises `Me5Error` for a task without one.
    """
    first = re.sub(r"(HardNegatives)?(\.v\d+)?$", "", name)
    for row in load_csv("instruct_prompts").itertuples(index=False):
        if _LIKE.get(task_type, task_type) in row.task_type.split(",") and fnmatchcase(first, row.task):
            return row.instruction
    raise Me5Error(f"the authors' scripts have no instruction for {name} ({task_type}): leave it out, add it to "
                   "me5lib/evaluate/tables/instruct_prompts.csv, or choose the protocol mteb")


def encoder_fingerprint(encoder: Any) -> str:
    """16 hexadecimal digits of what an `Encoder`'s results depend on: weights, vocabulary, length, two versions."""
    digest = hashlib.blake2b(json.dumps([VERSION, encoders.VERSION]).encode("utf8"), digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode("utf8"))
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    vocabulary = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    used = {key: value for key, value in vocabulary.items() if key not in ("truncation", "padding")}
    digest.update(json.dumps([used, encoder.max_tokens], sort_keys=True).encode("utf8"))
    return digest.hexdigest()


def describe(name: str, revision: str) -> ModelMeta:
    """mteb's description of a model, what mteb knows of it kept; a name without an owner becomes `me5/…`."""
    from mteb.models import ModelMeta
    from mteb.models.model_implementations import MODEL_REGISTRY

    if name in MODEL_REGISTRY:
        return MODEL_REGISTRY[name].model_copy(update={"revision": revision})
    full = name if "/" in name else f"me5/{name}"
    return ModelMeta.create_empty(overwrites={"name": full.replace(" ", "-"), "revision": revision})


def texts_of(inputs: Iterable[dict], column: str = "text") -> list[str]:
    """The texts of an mteb data loader, in order; `text` stands in where it lacks `column`.

    Read as a column where there is a table behind: row by row mteb's loaders take 0.1 ms a text.
    """
    rows = getattr(inputs, "dataset", None)
    names = getattr(rows, "column_names", ())
    if "text" in names:
        return list(rows[column if column in names else "text"][:])
    return [text for batch in inputs for text in batch.get(column, batch["text"])]


class Protocol:
    """An mteb encoder around `encoder`, under the rules of a protocol (`paper` or `mteb`).

    `encoder.encode(texts, prefix, *, normalise)` gives [n, width]. One with `own_prompts` is no E5: they replace the
    protocol's prefixes. `options` go to it, too; `instruct` is for a model that reads instructions in place of
    prefixes. `revision`: the model's own (then results of two protocols or precisions need two folders); without one,
    the weights' fingerprint with protocol and options added. Raises `Me5Error` for an unknown protocol.

    A text is encoded once per task, prefix and norm: the English side of a hundred language pairs is free. Documents,
    and lists of more than `MANY` texts, go straight through: an encoder that keeps vectors on disk is handed the very
    same lists in every run.
    """

    languages: frozenset[str] | None = None  # those the model is evaluated in; None: all
    texts = 0  # encoded so far, for a bar

    def __init__(self, encoder: Any, name: str, protocol: str = "paper", revision: str | None = None, *,
                 instruct: bool = False, **options: Any) -> None:
        if protocol not in PROTOCOLS:
            raise Me5Error(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
        self.encoder, self.protocol, self.instruct, self.options = encoder, protocol, instruct, options
        marks = [protocol, *(f"{k}={v}" for k, v in sorted(options.items()) if v)]
        self.mteb_model_meta = describe(name, revision or "-".join([encoder_fingerprint(encoder), *marks]))
        self._task, self._known = "", {}  # (prefix, norm, text) → vector

    def rule(self, metadata: TaskMetadata) -> TaskRule:
        """How the texts of this task are encoded; a model that is no E5 keeps its own prompts."""
        inner = getattr(self.encoder, "encoder", None)  # what keeps vectors wraps the model
        prompts = getattr(self.encoder, "own_prompts", getattr(inner, "own_prompts", None))
        return rule_of(self.protocol, metadata, self.instruct) if prompts is None else mteb_rule(metadata, prompts)

    def encode(self, inputs: Iterable[dict], *, task_metadata: TaskMetadata, hf_split: str, hf_subset: str,
               prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        """fp32 [n, width]: the texts of a data loader of mteb, under this task's rule (mteb's encoder interface)."""
        rule = self.rule(task_metadata)
        document = prompt_type is not None and prompt_type.value == "document"
        # mteb joins title and text itself and keeps the bare text of a document as `body`
        texts = texts_of(inputs, "body" if document and not rule.title else "text")
        prefix = rule.document if document else rule.query
        if document or len(texts) > MANY:
            return self._encode(texts, prefix, rule.normalise)
        if len(self._known) > KEPT or task_metadata.name != self._task:
            self._known, self._task = {}, task_metadata.name
        keys = [(prefix, rule.normalise, text) for text in texts]
        if fresh := [key for key in dict.fromkeys(keys) if key not in self._known]:
            vectors = self._encode([text for *_, text in fresh], prefix, rule.normalise)
            self._known.update(zip(fresh, vectors, strict=True))
        return np.stack([self._known[key] for key in keys])

    def _encode(self, texts: list[str], prefix: str, normalise: bool) -> np.ndarray:
        vectors = np.asarray(self.encoder.encode(texts, prefix, normalise=normalise, **self.options), np.float32)
        self.texts += len(texts)
        return vectors

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines [n, m] of two blocks of vectors; of two single vectors a number [], as SummEval's evaluator needs."""
        from mteb.similarity_functions import cos_sim

        cosines = np.asarray(cos_sim(embeddings1, embeddings2))
        return cosines.reshape(()) if embeddings1.ndim == embeddings2.ndim == 1 else cosines

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines [n] of two blocks of vectors, row by row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return np.asarray(pairwise_cos_sim(embeddings1, embeddings2))
