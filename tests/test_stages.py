"""Both stages at smoke size: what is found again, moved aside, refused, gone on with; and what stage 2 learns from."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import interrupted_at
from prove_crash import forked
from sentence_transformers import SentenceTransformer

from me5lib import config, pairs
from me5lib.data.corpus import Bitext, open_corpus
from me5lib.evaluate.models import open_model
from me5lib.instruct.template import instructed
from me5lib.io import Me5Error
from me5lib.model import card
from me5lib.model.encoder import Encoder
from me5lib.model.save_load import INSTRUCTION
from me5lib.model.text import instruct
from me5lib.pairs import Labelled
from me5lib.train import checkpoint, distributed, labelled, loop, monitor, stages
from me5lib.train import loss as losses
from me5lib.train.distributed import Team
from me5lib.train.search import Pool

SMALL = ["train.steps=6", "train.batch=32", "finetune.steps=3", "finetune.batch=8", "finetune.teacher_steps=3"]
WHOLE = stages.Budget(2**20, 2**20)  # everything in one piece

def small(*overrides):
    return config.load("smoke", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(small(), progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory, corpus):
    """A run folder with a finished stage 1."""
    folder = tmp_path_factory.mktemp("base")
    stages.pretrain(small(), 0, folder, corpus=corpus, progress=False)
    return folder


@pytest.fixture
def out(base, tmp_path):
    """A copy of that folder, to spoil."""
    return shutil.copytree(base, tmp_path / "out")


def weights(folder):
    return torch.cat([p.detach().flatten() for p in Encoder.load(folder).parameters()])


def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "train_loop", refuse)


def test_stage_1_leaves_a_model_with_its_log_and_what_it_was_made_with(base):
    folder = base / "stage1"
    assert Encoder.load(folder).encode(["hello"]).shape == (1, 64)
    history = loop.read_log(folder)
    assert [row["step"] for row in history.steps] == list(range(6)) and history.steps[0]["source"] == "cldr"
    assert [row["step"] for row in history.evaluations] == list(range(7))
    assert {"accuracy", "alignment", "uniformity"} < set(history.evaluations[0])
    assert json.loads((folder / "stage.json").read_text(encoding="utf8"))["settings"]["stage"]["steps"] == 6
    assert not (base / "stage1.part").exists() and not list(folder.glob("*.safetensors.*"))


def test_a_finished_stage_is_found_and_returned_at_once(out, corpus, monkeypatch):
    no_training(monkeypatch)
    assert stages.pretrain(small(), 0, out, corpus=corpus, progress=False) == out / "stage1"


def test_a_stage_with_other_settings_is_moved_aside_not_reused(out, corpus, capsys):
    change = "data.language_temperature=0.3"
    before = weights(out / "stage1")
    stages.pretrain(small(change), 0, out, corpus=corpus, progress=False)
    aside = [path for path in out.glob("stage1.*") if path.is_dir()]
    assert len(aside) == 1 and torch.equal(weights(aside[0]), before)
    assert not torch.equal(weights(out / "stage1"), before)
    assert change.split("=")[0].split(".")[1] in capsys.readouterr().out


def test_unfinished_work_is_gone_on_with_or_refused_in_one_line(tmp_path, base, corpus):
    def stop(encoder, now):
        if now == 3:
            raise KeyboardInterrupt
        return {}

    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(KeyboardInterrupt):
        stages.pretrain(small(), 0, tmp_path, corpus=corpus, evaluate=stop, every=1, progress=False)
    with pytest.raises(Me5Error, match="stage.lr") as refusal:
        stages.pretrain(small("train.lr=0.001"), 0, tmp_path, corpus=corpus, progress=False)
    assert "\n" not in str(refusal.value) and not (tmp_path / "stage1").exists()
    stages.pretrain(small(), 0, tmp_path, corpus=corpus, progress=False)
    assert torch.equal(weights(tmp_path / "stage1"), weights(base / "stage1"))
    losses = [[row["loss"] for row in loop.read_log(folder / "stage1").steps] for folder in (tmp_path, base)]
    assert losses[0] == losses[1]


def work(encoder, pairs, stage, budget, sides=stages.card_prefixes):
    """The work of step 3 on `pairs`."""
    return stages.work_of(pairs, encoder, encoder, stage, Team.alone(), budget, (0, 3), sides)


def test_texts_are_asked_with_the_prefixes_of_their_source(corpus, base, monkeypatch):
    encoder, asked = Encoder.load(base / "stage1"), []
    monkeypatch.setattr(Encoder, "tokenize", lambda self, texts, prefix, longest: asked.append(texts) or [[0, 2]])
    pairs = corpus.mixture(small(), 0, small().train).batch(0)
    for side in ("query: ", "passage: "):
        work(encoder, pairs, small().train, WHOLE, lambda source, side=side: ("query: ", side))
    assert asked[0] == asked[2] == ["query: " + pair.query for pair in pairs]
    assert asked[1] == ["query: " + pair.passage for pair in pairs]
    assert asked[3] == ["passage: " + pair.passage for pair in pairs]


def test_translations_are_symmetric_and_facts_are_not():
    assert stages.card_prefixes("cldr") == ("query: ", "query: ")
    assert stages.card_prefixes("cldr-facts")[0] == "query: "


def one_step(base, mixture, stage, budget) -> tuple[float, torch.Tensor]:
    """The loss of step 3 and its flattened gradient."""
    encoder = Encoder.load(base / "stage1")
    loss = work(encoder, mixture.batch(3), stage, budget).compute()
    return loss.item(), torch.cat([weight.grad.flatten() for weight in encoder.parameters()])


def apart(got: torch.Tensor, right: torch.Tensor) -> float:
    return float((got - right).norm() / right.norm())


def test_gradcache_steps_in_where_one_graph_does_not_fit_and_gives_the_same_gradient(base, corpus):
    stage = small().train
    mixture = corpus.mixture(small(), 0, stage)
    loss, right = one_step(base, mixture, stage, WHOLE)
    replayed, got = one_step(base, mixture, stage, stages.Budget(64, 0))
    assert replayed == pytest.approx(loss, rel=1e-5) and apart(got, right) < 1e-5


def test_accumulated_batches_are_averaged_each_with_its_own_negatives(base, corpus):
    stage = small().train
    mixture = corpus.mixture(small(), 0, stage)
    loss, got = one_step(base, mixture, dataclasses.replace(stage, accumulate=3), stages.Budget(64, 0))
    pairs, size = mixture.batch(3), stage.batch
    parts = [pairs[: size // 3], pairs[size // 3 : 2 * size // 3], pairs[2 * size // 3 :]]  # ragged: 3 does not divide
    assert len({len(part) for part in parts}) == 2
    encoder, expected = Encoder.load(base / "stage1"), 0.0
    for part in parts:
        batch = losses.make_batch(part)
        sides = [encoder(encoder.tokenize(texts, "query: ", most)) for texts, most in
                 ((batch.queries, stage.query_tokens), (batch.passages, stage.passage_tokens))]
        one = losses.info_nce(*sides, batch.relations, stage.temperature, stage.loss) / 3
        one.backward()
        expected += one.item()
    right = torch.cat([weight.grad.flatten() for weight in encoder.parameters()])
    assert loss == pytest.approx(expected, rel=1e-5) and apart(got, right) < 1e-5


def test_each_rank_draws_a_dropout_of_its_own_and_the_same_again(base, corpus):
    stage, encoder = small().train, Encoder.load(base / "stage1").train()
    encoder.backbone.embeddings.dropout.p = 0.5
    rows = corpus.mixture(small(), 0, stage).batch(3)
    first, second, again = (
        stages.work_of(rows, encoder, encoder, stage, Team(rank, 1, torch.device("cpu")), WHOLE, (0, 3),
                       stages.card_prefixes).compute().item() for rank in (0, 1, 0))
    assert first == again != second


def a_rank(out):
    stages.pretrain(small(), 0, out, team=distributed.join(2), progress=False)
    distributed.leave()


def test_two_processes_train_what_one_trains(base, tmp_path):
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    assert forked(a_rank, tmp_path, world=2) == [0, 0]
    one, two = (loop.read_log(folder / "stage1").steps for folder in (base, tmp_path))
    assert len(one) == len(two) and [row["source"] for row in one] == [row["source"] for row in two]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=2e-2)  # bf16 where there is
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-3)


@pytest.fixture(scope="module")
def stage2(tmp_path_factory, base, corpus):
    """Stage 2 from stage 1, and from random weights."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("two") / "out")
    stages.finetune(small(), 0, folder, start=folder / "stage1", corpus=corpus, progress=False)
    stages.finetune(small(), 0, folder, start=None, name="stage2-only", corpus=corpus, progress=False)
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf8"))


def test_stage_2_says_what_was_mined_and_whether_the_teacher_was_better(stage2):
    found = report(stage2 / "stage2")
    assert found["mining"]["queries"] == len(labelled.read_groups(stage2 / "stage2" / "groups.jsonl"))
    teacher = found["teacher"]
    assert teacher["trusted"] == (teacher["teacher"] > teacher["student"]) and teacher["queries"] > 100
    rows = labelled.read_groups(stage2 / "stage2" / "groups.jsonl").values()
    assert [row.teacher_scores is not None for row in rows] == [teacher["trusted"]] * len(rows)
    assert report(stage2 / "stage2-only")["mining"]["queries"] == 0  # random weights mine nothing


def test_stage_2_starts_from_stage_1_or_not_at_all(stage2):
    first, after, alone = (weights(stage2 / name) for name in ("stage1", "stage2", "stage2-only"))
    near, far = (after - first).norm(), (alone - first).norm()
    assert 0 < near < far / 2


def test_stage_2_is_found_again_unless_its_stage_1_has_changed(stage2, tmp_path, corpus, monkeypatch):
    out = shutil.copytree(stage2, tmp_path / "out")
    with monkeypatch.context() as patch:
        no_training(patch)
        assert stages.finetune(small(), 0, out, start=out / "stage1", corpus=corpus, progress=False) == out / "stage2"
    stages.pretrain(small("train.lr=0.001"), 0, out, corpus=corpus, progress=False)
    with monkeypatch.context() as patch:
        no_training(patch)
        with pytest.raises(AssertionError, match="trained again"):  # all else is as it was
            stages.finetune(small(), 0, out, start=out / "stage1", corpus=corpus, progress=False)


def with_instructions(out, corpus, *more):
    scale, mixed = instructed(small("finetune.steps=24", *more), corpus)
    return stages.finetune(scale, 0, out, start=out / "stage1", name="instruct", teacher=False, corpus=mixed,
                           progress=False)


def test_a_stage_with_instructions_that_was_interrupted_ends_equal(out, corpus, tmp_path, monkeypatch):
    read, real = set(), Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, prefix="query: ", **more: read.add(prefix) or real(
        self, texts, prefix, **more))
    whole = with_instructions(shutil.copytree(out, tmp_path / "whole"), corpus)
    assert read == {"", "Instruct: Retrieve parallel sentences.\nQuery: "}  # mined with, and watched with
    with interrupted_at(6), pytest.raises(KeyboardInterrupt):
        with_instructions(out, corpus)
    assert open_model(str(checkpoint.latest(out / "instruct.part" / "checkpoints")), device="cpu").instruct
    with pytest.raises(Me5Error, match="unfinished work with other settings"):
        with_instructions(out, corpus, "instruct.drafts=1")
    again = with_instructions(out, corpus)
    assert torch.equal(weights(again), weights(whole)) and loop.read_log(again) == loop.read_log(whole)
    groups = labelled.read_groups(again / "groups.jsonl").values()
    for row in groups:
        symmetric = row.source in ("synthetic-sts", "synthetic-bitext")
        assert row.query.startswith("Instruct: ") and row.instruction is None
        assert {text.startswith("Instruct: ") for text in row.positives + row.negatives} == {symmetric}
    assert set(report(again)["passes"]) == {row.source for row in groups} and report(again)["teacher"] is None
    taken = [row["source"].startswith("synthetic-") for row in loop.read_log(again).steps]
    assert sum(taken) == 7  # 0.28 of 24
    assert card.trained_on(again) == ["cldr", "cldr-facts", "synthetic-v1"]
    opened, theirs = open_model(str(again), device="cpu"), SentenceTransformer(str(again), device="cpu")
    for encode, prompt in ((theirs.encode_query, instruct(INSTRUCTION, "")), (theirs.encode_document, "")):
        np.testing.assert_allclose(encode(["wie alt?"]), opened.encoder.encode(["wie alt?"], prompt), atol=1e-5)


def test_unknown_negatives_are_refused(tmp_path, corpus):
    with pytest.raises(Me5Error, match="mined, bm25, random, labelled"):
        stages.finetune(small(), 0, tmp_path, start=None, negatives="soft", corpus=corpus)


ROWS = [Labelled(f"question {i} about {w}", (f"answer {i} {w}",), (f"wrong {i}",), "s", "en")
        for i, w in enumerate(["cars", "trains", "ships", "planes", "bikes"] * 4)]  # fmt: skip


@pytest.mark.parametrize("kind", labelled.NEGATIVE_KINDS)
def test_negatives_of_every_kind_come_from_the_same_stream_and_fill_up(kind, base):
    encoder = Encoder.load(base / "stage1")
    other = [row._replace(language="de", query=row.query + " de") for row in ROWS[:3]]
    other = [row._replace(positives=(row.positives[0] + " de",), negatives=()) for row in other]
    found, *_ = labelled.add_negatives([*ROWS, *other], kind, encoder, small().finetune,
                                        lambda source: ("query: ", "passage: "), 0)
    pools = {"en": set(Pool.of(ROWS).texts), "de": set(Pool.of(other).texts)}
    for row, before in zip(found, [*ROWS, *other], strict=True):
        assert len(row.negatives) == 3 and set(row.negatives) <= pools[row.language]
        assert not set(row.negatives) & set(before.positives)
        if kind in ("mined", "labelled") and before.negatives:
            assert row.negatives[0] == before.negatives[0]  # its own wrong answer comes first


def test_the_plan_uses_every_example_of_a_stream_before_any_comes_again():
    stage = small("finetune.steps=10", "finetune.batch=4").finetune
    plan = labelled.SamplingPlan(ROWS, stage, 0, 0.5)
    drawn = [i for step in range(10) for i, _ in plan.draws(step)]
    assert sorted(drawn[:20]) == list(range(20)) == sorted(drawn[20:])
    assert list(plan.passes()) == list(range(20))
    assert plan.fingerprint != labelled.SamplingPlan(ROWS, stage, 1, 0.5).fingerprint


def test_held_out_groups_hold_the_own_wrong_answers_and_no_right_one():
    found = labelled.dev_groups(ROWS, 0, limit=10, size=6)
    assert len(found) == 10 and all(len(row.negatives) == 5 for row in found)
    assert all(row.negatives[0].startswith("wrong") for row in found)
    assert all(row.positives[0] not in row.negatives for row in found)
    assert labelled.dev_groups([], 0) == []


def test_a_corpus_without_held_out_languages_is_trained_on_unwatched():
    class Bare:
        task_names, task = ("heldout",), staticmethod(lambda name: Bitext(name, {}))

    assert monitor.watch(Bare()) is None


def test_the_watched_languages_are_of_different_scripts(corpus):
    found = monitor.watched(corpus, languages=6)
    assert len({pairs.script(texts) for _, texts in found.values()}) == 6
    assert len({len(side) for pair in found.values() for side in pair}) == 1


def test_bitext_accuracy_by_hand():
    english, texts = np.eye(3), np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]])
    assert monitor.top1_accuracy(texts, english) == pytest.approx(2 / 3)
