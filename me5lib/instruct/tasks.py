"""One query, two instructions, two right answers: what an instruction is for, measured.

A territory has a currency and an official language (CLDR). Asked by its bare name, the model cannot know which of the
two is wanted; an instruction says it. Two arms see the same facts for the same number of steps, one with the template
of E5-mistral (arXiv 2401.00368) on the query, one with `query: `, and are asked in languages whose facts neither saw.

No synthetic data is involved, and nothing is claimed about it. Cost: seconds per arm at `tiny`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from me5lib.data import cldr
from me5lib.model.encoder import Encoder
from me5lib.model.text import QUERY, instruct
from me5lib.pairs import Labelled, normalise, text_key

INSTRUCTIONS = {
    "currency": "Given a country or territory, retrieve its currency",
    "language": "Given a country or territory, retrieve its official language",
}  # ours, in the wording of E5-mistral's Table 14


class Question(NamedTuple):
    """A territory's name in one language, and its two right answers in the same language."""

    text: str
    answers: Mapping[str, str]  # "currency" → name, "language" → name
    language: str


class Scores(NamedTuple):
    """Shares of questions, each asked once for either answer, among all answers of both kinds in its language."""

    right: float  # the answer that was asked for comes first
    kind: float  # an answer of the kind that was asked for comes first
    either: float  # the right answer to either question comes first
    within: float  # the answer that was asked for comes first of those of its kind, the others left out
    questions: int


def questions(languages: Sequence[str]) -> list[Question]:
    """All territories whose name, currency and most widely spoken official language CLDR has in a language."""
    found = []
    for language in languages:
        own = cldr.local_names(language)
        for territory, text in own["territory"].items():
            spoken = cldr.official(territory)
            answers = {"currency": own["currency"].get(cldr.currency(territory) or ""),
                       "language": own["language"].get(spoken[0] if spoken else "")}
            if all(answers.values()) and normalise(answers["currency"]) != normalise(answers["language"]):
                found.append(Question(text, answers, language))
    return found


def asked(question: Question, task: str, instructed: bool) -> str:
    """The query as the encoder reads it, in full: with its instruction, or with the bare prefix."""
    return instruct(INSTRUCTIONS[task], question.text) if instructed else QUERY + question.text


def examples(known: Sequence[Question], instructed: bool) -> list[Labelled]:
    """Two labelled examples a question. Instructed, the other answer is a hard negative; bare, both answers are right.

    The query carries its template or prefix already; passages are bare, as the instruct model reads them.
    """
    rows = []
    for question in known:
        for task in INSTRUCTIONS:
            right = question.answers[task]
            other = next(text for name, text in question.answers.items() if name != task)
            positives, negatives = ((right,), (other,)) if instructed else ((right, other), ())
            query = asked(question, task, instructed)
            rows.append(Labelled(query, positives, negatives, "cldr-facts", question.language))
    return rows


def score_questions(encoder: Encoder, wanted: Sequence[Question], query_of: Callable[[Question, str], str]) -> Scores:
    """Ask every question for both answers, each time as `query_of(question, task)`, in its own language."""
    right = kind = either = within = 0
    for language in sorted({question.language for question in wanted}):
        own = [question for question in wanted if question.language == language]
        pool = sorted({(text_key(text), name, text) for q in own for name, text in q.answers.items()})
        vectors = encoder.encode([text for _, _, text in pool], "")
        texts = list(dict.fromkeys(query_of(q, task) for task in INSTRUCTIONS for q in own))  # bare ones are alike
        cosines = dict(zip(texts, encoder.encode(texts, "") @ vectors.T, strict=True))
        for task in INSTRUCTIONS:
            other = np.array([name != task for _, name, _ in pool])
            for question in own:
                row = cosines[query_of(question, task)]
                _, name, text = pool[row.argmax()]
                right += text == question.answers[task]
                kind += name == task
                either += text in question.answers.values()
                within += pool[np.where(other, -np.inf, row).argmax()][2] == question.answers[task]
    total = 2 * len(wanted)
    return Scores(right / total, kind / total, either / total, within / total, len(wanted))
