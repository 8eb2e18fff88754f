"""Experiment 3: twins need the instruction, nothing that tests is learnt, permuted ones say nothing, all is told."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from me5lib import config
from me5lib.data import split
from me5lib.data.corpus import open_corpus
from me5lib.instruct.synthetic import DRAFTS
from me5lib.lessons import experiments, instructed
from me5lib.lessons.instructed import BOTH, NEITHER, PERMUTED, ROWS, START, Instructions
from me5lib.lessons.labs import Arm
from me5lib.model.text import instruct

SMALL = ["finetune.steps=3", "finetune.batch=8", "finetune.query_tokens=32", "finetune.passage_tokens=32"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    scale = config.load("smoke", SMALL)
    return Instructions(scale, tmp_path_factory.mktemp("lab"), open_corpus(scale, progress=False))


def test_both_are_right_only_for_who_reads_the_instruction(lab):
    twins, axes = [test.instructed() for test in lab.tests["twins"]], np.eye(2)
    reads = {text: axes[i] for test in twins for i in (0, 1) for text in (test.queries[i], test.passages[i])}
    noise = np.random.default_rng(0).normal(size=(2**10, 2))

    def scores(vector, instructs):
        encoder = SimpleNamespace(device=torch.device("cpu"), encode=lambda texts, *_, **__: np.array(
            [vector(text) for text in texts]))  # fmt: skip
        return lab.scores(Arm("", instructed=instructs), encoder)

    found = scores(lambda text: reads.get(text, axes[0]), True)
    assert found["twins"].mean() == found["twin rows"].mean() == 1
    for instructs in (False, True):  # all but the query is ignored
        found = scores(lambda text: noise[hash(text.split("\nQuery: ")[-1]) % 2**10], instructs)
        assert found["twins"].mean() == 0 and found["twin rows"].mean() == pytest.approx(0.5, abs=0.03)
    assert {name: len(own) for name, own in found.items()} == {name: len(own) for name, own in lab.meanings().items()}
    for name in ("xquad", "fastapi"):  # the passage is in the query's language, the translation is not among them
        assert {test.passages[0] for test in lab.tests["twins"] if test.meanings[0].startswith(name)} == {
            text for test in lab.tests[name] for text in test.passages}


def test_a_page_that_was_cut_otherwise_has_no_twins():
    def pages(code, *queries):
        keys = [f"{code}/page/{i}" for i in range(len(queries))]
        return SimpleNamespace(queries=dict(zip(keys, queries, strict=True)), relevant={key: {key} for key in keys},
                               documents={key: ("", f"{key}!") for key in keys})  # fmt: skip

    sets = {"en": pages("en", "A", "A > B"), "de": pages("de", "Ä", "Ä > C"), "fr": pages("fr", "É", "É > F", "É > G")}
    pairs, single = instructed.twin_tests("fastapi", sets)
    assert [test.language for test in pairs] == ["en", "en", "de", "de"] and len(single) == 2
    assert all("German" in test.instructions[1] for test in pairs[:2])


def test_no_fold_knows_the_tasks_or_texts_of_another(lab):
    rows, _, fold = lab.rows
    assert len(instructed.swapped_pairs(rows)) == 116 and np.bincount(fold).min() > 200
    for own in range(instructed.FOLDS):
        here, rest = ([row for row, f in zip(rows, fold, strict=True) if (f == own) == mine] for mine in (True, False))
        tasks = [sorted({split.mask(row.instruction) for row in side}) for side in (here, rest)]
        assert not split.near_copies(*tasks)[0].any()
        assert not {row.group for row in here} & {row.group for row in rest}
    trained = {row.query for row in lab.parts(Arm(BOTH, synthetic=0.5), 0)[1][0]}
    assert not trained & {row.query for row, f in zip(rows, fold, strict=True) if f == 0 or row.language in DRAFTS}


def test_human_text_that_trains_is_none_that_tests_and_its_instructions_are_new(lab):
    tests = [test for name, tests in lab.tests.items() if name != "synthetic rows" for test in tests]
    assert not {text for test in tests for text in test.queries} & {
        text for row in lab.human for text in (row.query, *row.positives)}
    trained = {split.mask(row.instruction) for row in [*lab.human, *(row.labelled() for row in lab.rows[0])]}
    tested = {split.mask(task) for test in tests for task in test.instructions}
    assert not split.near_copies(sorted(trained), sorted(tested))[0].any()
    twins = [pair for pair in zip(lab.human[::2], lab.human[1::2], strict=True) if pair[0].query == pair[1].query]
    assert len(twins) > len(lab.human) / 4
    assert all(one.positives == other.negatives and one.instruction != other.instruction for one, other in twins)


def test_arms_read_the_same_rows_with_true_with_wrong_and_without_instructions(lab):
    made = {arm.name: lab.parts(arm, 0) for arm in lab.arms(lab.scale) if not arm.start}
    assert {name: [each for _, each in parts] for name, parts in made.items()} == dict.fromkeys(made, [4, 4]) | {
        "instructions": [8, 0], NEITHER: [8, 0], "a quarter synthetic": [6, 2], "synthetic alone": [0, 8]}
    known = {}
    for row in [*lab.human, *(row.labelled() for row in lab.rows[0])]:
        known.setdefault(row.query, set()).add(row.instruction)
    for side in (0, 1):
        for true, wrong, bare in zip(*(made[name][side][0] for name in (BOTH, PERMUTED, ROWS)), strict=True):
            task = wrong.query.removeprefix("Instruct: ").partition("\nQuery: ")[0]
            assert true.query in {instruct(task, bare.query) for task in known[bare.query]}
            assert task not in known[bare.query] and not set(bare.positives) & set(bare.negatives)
    assert any(len(row.positives) > 1 for row in made[ROWS][1][0])


def test_it_runs_goes_on_and_tells_all(monkeypatch, lab, tmp_path):
    monkeypatch.setattr(instructed, "FOLDS", 2)
    plan = experiments.planned("instructions", lab.scale, seeds=2)
    few = tuple(arm for arm in plan.arms if arm.name.startswith((BOTH, PERMUTED, "untuned")))
    plan = dataclasses.replace(plan, arms=few)
    results = experiments.run_experiment(plan, tmp_path, progress=False)
    assert {row["metric"] for row in results["contrasts"]} == set(plan.metrics) and len(results["families"]) > 20
    assert {row["arm"] for row in results["swapped"] if "minus" not in row["arm"]} == {BOTH, PERMUTED, START, "lexical"}
    said = "\n".join(experiments.sentences(results))
    assert "twins: true over permuted: " in said and "swapped pairs, both right: lexical: 0." in said
    monkeypatch.setattr(instructed, "train_on", lambda *a, **k: pytest.fail("trained again"))
    assert experiments.run_experiment(plan, tmp_path, progress=False) == results
