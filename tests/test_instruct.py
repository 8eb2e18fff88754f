"""Instructions: two questions about one text, both arms trained on the same facts, the instruction decides."""

import pytest

from me5lib import config
from me5lib.config import load
from me5lib.instruct import tasks
from me5lib.lessons.tune import tune
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer


@pytest.fixture(scope="module")
def german():
    return tasks.questions(["de"])


def test_facts_are_those_of_the_world(german):
    by_name = {question.text: question.answers for question in german}
    assert by_name["Japan"] == {"currency": "Japanischer Yen", "language": "Japanisch"}
    assert by_name["Brasilien"] == {"currency": "Brasilianischer Real", "language": "Portugiesisch"}
    assert len(german) > 150


def test_the_two_arms_hold_the_same_facts(german):
    bare, told = tasks.examples(german, False), tasks.examples(german, True)
    assert [row.positives[0] for row in bare] == [row.positives[0] for row in told]
    assert told[0].query == f"Instruct: {tasks.INSTRUCTIONS['currency']}\nQuery: {german[0].text}"
    assert bare[0].query == bare[1].query == f"query: {german[0].text}"
    assert set(bare[0].positives) == set(bare[1].positives) and not bare[0].negatives
    assert told[0].negatives == told[1].positives


def test_the_instruction_decides_which_answer_comes_first(german, tmp_path):
    few = german[:24]
    rows = {told: tasks.examples(few, told) for told in (False, True)}
    texts = [text for told in rows for row in rows[told] for text in (row.query, *row.positives)]
    tokenizer = train_tokenizer(texts, 800, tmp_path)
    stage = config.Stage(steps=25, batch=48, lr=1e-2, warmup=5, weight_decay=0.0, clip=1.0, temperature=0.05,
                        loss="one-way", query_tokens=48, passage_tokens=48)
    scores = {}
    for told, examples in rows.items():
        encoder = tune(Encoder.new(load("smoke").model, tokenizer, 0), examples, stage, seed=0, progress=False)
        scores[told] = tasks.score_questions(encoder, few, lambda q, task, told=told: tasks.asked(q, task, told))
    assert scores[True].kind > 0.95
    assert scores[False].kind == 0.5 and scores[False].right <= 0.5, "a bare query has one first hit for two questions"
    assert all(found.within >= found.right for found in scores.values()), "a first hit is the first of its kind, too"
    assert scores[False].within > 0.5, "with the kind settled a bare query can be right both times"
