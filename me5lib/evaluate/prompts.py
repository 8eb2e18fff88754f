"""What is put before a text of a task, whether its title counts, and whether its vector gets unit length.

    paper_rule("Reranking", "SciDocsRR")        # Rule("query: ", "query: ", title=True, normalise=True)
    rule("paper", metadata, instruct=True)      # of a task of mteb, for mE5-large-instruct

`paper` is what the authors' scripts do (microsoft/unilm, folder `e5`: `mteb_beir_eval.py`, and
`mteb_except_retrieval_eval.py` for all other types), `mteb` what mteb 2.26 does with the same models. The rules depend
on the type *and the name* of a task: mteb 2 hands rerankings over as retrieval, with queries and documents, where the
authors' script puts the same string on both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from me5lib.io import Me5Error
from me5lib.model import text
from me5lib.model.text import PASSAGE, QUERY

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

LINEAR = ("Classification", "MultilabelClassification", "Regression")  # a linear model is fitted to the vectors
SIDED = ("Retrieval", "InstructionRetrieval", "Reranking", "InstructionReranking")  # queries and documents to mteb 2
FORUMS = ("Android", "English", "Gaming", "Gis", "Mathematica", "Physics", "Programmers", "Stats", "Tex", "Unix",
          "Webmasters", "Wordpress")  # CQADupstackRetrieval is the mean of the twelve
_LIKE = {"InstructionRetrieval": "Retrieval", "InstructionReranking": "Reranking",
         "MultilabelClassification": "Classification", "Regression": "Classification"}  # unknown to the scripts: ours


class Rule(NamedTuple):
    """How the texts of one task are encoded."""

    query: str  # before queries, and before every text of a task that has no documents
    document: str  # before documents
    title: bool  # a document is its title and its text, joined by a space; else its text alone
    normalise: bool  # unit length (L2)


def paper_rule(task_type: str, name: str) -> Rule:
    """The rule of the authors' scripts (microsoft/unilm `e5`, mteb 1.0.2) for the models with prefixes.

    Retrieval: `query: ` and, on title and text, `passage: `. QuoraRetrieval: its documents are questions, so they are
    queries, without titles. Everything else, rerankings and bitext included: `query: ` on both sides. Classification
    alone goes without the L2 norm (multi-label classification and regression, which the scripts do not know, are
    treated alike: ours, as they also fit a linear model).
    """
    if task_type in ("Retrieval", "InstructionRetrieval"):
        if name.startswith("QuoraRetrieval"):
            return Rule(QUERY, QUERY, title=False, normalise=True)
        return Rule(QUERY, PASSAGE, title=True, normalise=True)
    return Rule(QUERY, QUERY, title=True, normalise=task_type not in LINEAR)


def paper_instruct_rule(task_type: str, name: str) -> Rule:
    """The same scripts' rule for the instruct model: `Instruct: …`, a line break, `Query: `.

    On every text of every type but retrieval, whose documents are bare: title and text without anything, Quora's too.
    Raises `Me5Error` for a task that the scripts have no instruction for.
    """
    before = text.instruct(instruction(task_type, name), "")
    if task_type in ("Retrieval", "InstructionRetrieval"):
        return Rule(before, "", title=True, normalise=True)
    return Rule(before, before, title=True, normalise=task_type not in LINEAR)


def mteb_rule(task_type: str, name: str) -> Rule:
    """The rule of mteb 2's own wrapper for the mE5 models: prompts by side only, and always unit length.

    A text has a side in retrieval and reranking only; all other tasks get no prefix at all (since mteb 1.16).
    """
    sided = task_type in SIDED
    return Rule(QUERY if sided else "", PASSAGE if sided else "", title=True, normalise=True)


def mteb_instruct_rule(metadata: TaskMetadata) -> Rule:
    """The rule of mteb 2.26's `InstructSentenceTransformerModel` for the instruct model, documents without instruction.

    The instruction is the task's own in mteb (`metadata.prompt`), else its type's; it counts in the pooling, and every
    vector gets unit length. Rerankings have documents to mteb, so theirs are bare (PAPER.md §5.3). Of the tables'
    tasks, CQADupstack's forums have no instruction of their own there, and SummEval's ends in a full stop.
    """
    from mteb.types import PromptType

    sided = metadata.type in SIDED
    before = text.instruct(_mteb_instruction(metadata, PromptType.query if sided else None), "")
    return Rule(before, "" if sided else before, title=True, normalise=True)


def own_rule(prompts: Mapping[str, str], metadata: TaskMetadata) -> Rule:
    """The rule of another sentence-transformers model: its own prompts, picked as mteb picks them; none for LaBSE."""
    from mteb.models.abs_encoder import get_prompt
    from mteb.types import PromptType

    sided = metadata.type in SIDED
    sides = (PromptType.query, PromptType.document) if sided else (None, None)
    return Rule(*(get_prompt(dict(prompts), metadata, side) or "" for side in sides), title=True, normalise=True)


RULES = {"paper": paper_rule, "mteb": mteb_rule}


def rule(protocol: str, metadata: TaskMetadata, instruct: bool = False) -> Rule:
    """The rule of a task of mteb under `paper` or `mteb`. Raises `Me5Error` as `paper_instruct_rule` does."""
    if not instruct:
        return RULES[protocol](metadata.type, metadata.name)
    return mteb_instruct_rule(metadata) if protocol == "mteb" else paper_instruct_rule(metadata.type, metadata.name)


def instruction(task_type: str, name: str) -> str:
    """The authors' instruction for a task (`tables/instruct_prompts.csv`, from unilm `e5/utils.py`).

    A later version of a task (`….v2`, `…HardNegatives`) has its first version's (ours: the scripts know neither).
    Raises `Me5Error` for a task without one.
    """
    asked = re.sub(r"(HardNegatives)?(\.v\d+)?$", "", name)
    found = next((row for row in _instructions() if _LIKE.get(task_type, task_type) in row[0]
                  and fnmatchcase(asked, row[1])), None)  # fmt: skip
    if found is None:
        raise Me5Error(f"the authors' scripts have no instruction for {name} ({task_type}): leave it out, add it to "
                       "me5lib/evaluate/tables/instruct_prompts.csv, or choose the protocol mteb")
    return found[2]


@cache
def _instructions() -> list[tuple[tuple[str, ...], str, str]]:
    """Task types, name or pattern of a name, instruction."""
    from me5lib.evaluate.paper import instruct_prompts

    rows = instruct_prompts().itertuples(index=False)
    return [(tuple(row.task_type.split(",")), row.task, row.instruction) for row in rows]


def _mteb_instruction(metadata: TaskMetadata, side: PromptType | None) -> str:
    """What mteb's own encoders would ask for, by mteb's own code: the look-up needs no model."""
    from mteb.models.abs_encoder import AbsEncoder

    asks = SimpleNamespace(prompt_priority=AbsEncoder.prompt_priority, prompts_dict=None)
    return AbsEncoder.get_instruction(asks, metadata, side)
