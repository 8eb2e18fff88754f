"""Instructions: two questions about one text, both arms trained on the same facts, the instruction decides."""

import pytest

from me5lib import config
from me5lib.config import load
from me5lib.data.cards import load_card
from me5lib.evaluate.protocol import paper_rule
from me5lib.instruct import tasks
from me5lib.instruct.synthetic import read_examples
from me5lib.instruct.template import Instructed, templated
from me5lib.lessons.tune import tune
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled, text_key


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


# The template


def test_training_and_evaluation_read_the_same_text():
    rows = [Labelled("Wie?", ("So.",), ("Nie.",), source, "de") for source in ("mrtydi", "history")]
    rules = [paper_rule("Retrieval", "MIRACLRetrieval", True), paper_rule("BitextMining", "gsm", True)]
    for row, (query, document, *_) in zip(templated(rows), rules, strict=True):
        assert row[:3] == (f"{query}Wie?", (f"{document}So.",), (f"{document}Nie.",))
    own, blank = rows[0]._replace(instruction="Find."), rows[1]._replace(query="", positives=(" ",), negatives=())
    bare = own._replace(source="my-file", instruction=None)
    assert templated([own, blank, bare]) == [bare._replace(query="Instruct: Find.\nQuery: Wie?", source="mrtydi"),
                                             blank, bare]


def test_synthetic_rows_of_symmetric_tasks_have_it_on_both_sides_and_twins_are_two_queries():
    examples = read_examples()
    rows = templated([each.labelled() for each in examples])
    for example, row in zip(examples, rows, strict=True):
        before = f"Instruct: {example.instruction}\nQuery: "
        other = before if example.task_type in ("sts", "bitext") else ""
        assert (row.query, *row.positives, *row.negatives) == (
            before + example.query, other + example.positive, other + example.negative)
    twins = [row for row in rows if row.query.endswith("cramp in the calf at night")]
    assert len(twins) == len({text_key(row.query) for row in twins}) == 2


def test_every_labelled_source_has_an_instruction_and_synthetic_ones_their_share():
    for scale in map(load, config.presets()):
        assert all(load_card(name).instruction for name in scale.data.labelled if name != "synthetic")
    found = Instructed(None, load("tiny")).weights({"exams": 60, "cldr-facts": 20, "synthetic-a": 3, "synthetic-b": 1})
    assert found == pytest.approx({"exams": 0.54, "cldr-facts": 0.18, "synthetic-a": 0.21, "synthetic-b": 0.07})
    drawn = {"synthetic": 5.0, "nq": 1.0}  # of the hub, in the paper's proportions
    assert Instructed(None, load("large-instruct")).weights(drawn) == drawn
