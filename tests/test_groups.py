"""The groups of stage 2: negatives that rotate by pass, bad input that is counted, teachers, and work that goes on."""

import dataclasses
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from me5lib import config
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled, text_key
from me5lib.train import labelled, teacher
from me5lib.train.distributed import Team, launch

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
ROWS = [Labelled(f"which {COLOURS[i % 6]} thing is number {i}", (f"{COLOURS[i % 6]} answer {i}",),
                 tuple(f"{COLOURS[(i + j) % 6]} mistake {i} {j}" for j in range(1, 6)), "s", "en")
        for i in range(24)]  # fmt: skip


def stage_of(**dials):
    given = {"steps": 6, "batch": 8, "hard_negatives": 2, "teacher_steps": 2, "query_tokens": 16, "passage_tokens": 16}
    return dataclasses.replace(config.load("smoke").finetune, **given | dials)


def sides(source):
    return "query: ", "passage: "


@pytest.fixture(scope="module")
def encoder():
    texts = [text for row in ROWS for text in (row.query, *row.positives, *row.negatives)]
    return Encoder.new(config.Model("random", 1, 16, 2, 32, 400, 48), train_tokenizer(texts, 400), 0)


def make(encoder, folder, rows=ROWS, kind="labelled", dev=None, stage=None, team=None, progress=False, faults=None):
    folder.mkdir(exist_ok=True)
    stage, team = stage or stage_of(), team or Team.alone(torch.device("cpu"))
    plan = labelled.SamplingPlan(rows, stage, 0, 1.0)
    task = labelled.GroupTask(stage, plan, sides, folder, 0, team, progress)
    return labelled.make_groups(encoder, rows, task, kind, dev, faults), plan


def scored(made):
    return all(row.teacher_scores for row in made.values())


# ---- passes ----------------------------------------------------------------------------------------------------------


def test_what_was_drawn_from_the_hub_is_gone_through_as_often_as_the_dial_says():
    """6,234 steps of 512 are two passes over 1,596k; here 24 steps of 10 over 120 rows in three sets of unlike size."""
    sizes = {"large": 70, "middle": 40, "small": 10}
    rows = [Labelled(f"{name} {i}", ("a",), (), name, "en") for name, n in sizes.items() for i in range(n)]
    plan = labelled.SamplingPlan(rows, stage_of(steps=24, batch=10), 0, 1.0)  # as `finetune` has it for a HubCorpus
    times = Counter(i for step in range(24) for i, _ in plan.draws(step))
    assert set(times) == set(range(120)) and set(times.values()) == {2}
    hub = config.load("workshop").finetune
    assert hub.steps * hub.batch == pytest.approx(2 * 1_596_000, rel=1e-3)


def test_every_pass_over_an_example_has_the_next_of_its_negatives(encoder, tmp_path):
    made, plan = make(encoder, tmp_path / "w")
    seen = {i: [] for i in range(24)}
    for step in range(6):
        for (i, turn), row in zip(plan.draws(step), plan.batch(made, step, 2), strict=True):
            assert turn == len(seen[i])
            seen[i].append(row.negatives)
    assert list(seen.values()) == [[row.negatives[:2], row.negatives[2:4]] for row in ROWS]
    assert plan.passes() == dict.fromkeys(range(24), 2)


def test_fewer_negatives_than_passes_want_come_round_again_with_their_scores():
    row = Labelled("q", ("p", "other"), ("a", "b", "c"), "s", "en", (9.0, 1.0, 2.0, 3.0))
    for turn, right in enumerate([(("a", "b"), (9.0, 1.0, 2.0)), (("c", "a"), (9.0, 3.0, 1.0))]):
        assert labelled.negatives_for_pass(row, 2, turn)[2::3] == right
    assert labelled.negatives_for_pass(row, 3, 5) == row


def test_mining_finds_as_many_as_all_passes_want(encoder):
    bare = [row._replace(negatives=()) for row in ROWS]
    stage = stage_of(margin=10.0)
    one, report, _ = labelled.add_negatives(bare, "mined", encoder, stage, sides, 0)
    found, _, filling = labelled.add_negatives(bare, "mined", encoder, stage, sides, 0, [3] * 12 + [1] * 12)
    assert [len(row.negatives) for row in found] == [6] * 12 + [2] * 12 and not filling and report.short == 0
    assert all(a.negatives[:2] == b.negatives for a, b in zip(found, one, strict=True))  # the first pass is as ever
    assert all(len(set(row.negatives)) == len(row.negatives) for row in found)
    many, *_ = labelled.add_negatives(bare, "random", None, stage, sides, 0, [3] * 24)
    assert all(len(set(row.negatives)) == 6 for row in many)


def test_any_world_size_and_a_resume_meet_the_same_groups(encoder, tmp_path):
    made, plan = make(encoder, tmp_path / "w")
    again, _ = make(None, tmp_path / "w")
    assert again == made
    for step in (3, 0, 5):
        whole = plan.batch(made, step, 2)
        for world in (2, 3):
            assert sum((plan.batch(made, step, 2, rank, world) for rank in range(world)), []) == whole


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_bad_examples_are_dropped_and_counted():
    good = ROWS[0]
    rows = [good, good._replace(positives=()), good._replace(query=" "), good._replace(positives=("", "right")),
            good._replace(positives=(" ",)),
            good._replace(negatives=("RED  answer 0", good.query.upper(), "wrong", ""))]  # fmt: skip
    kept, faults = labelled.drop_invalid(rows)
    assert kept == [good, good._replace(positives=("right",)), rows[-1]._replace(negatives=rows[-1].negatives[:3])]
    assert faults == {"examples without a positive": 2, "examples without a query": 1, "empty passages": 2,
                      "negatives that are a positive too": 1, "negatives that are the query": 1}
    assert labelled.own_negatives(kept[-1]) == ["wrong"]
    assert labelled.drop_invalid(ROWS) == (ROWS, {})


def test_what_is_filled_in_is_counted_said_and_reported(encoder, tmp_path, capsys):
    few = [row._replace(negatives=row.negatives[: i % 3]) for i, row in enumerate(ROWS)]
    lone = [Labelled("eine Frage", ("eine Antwort",), (), "s", "de"), Labelled("dritte", ("ja",), ("nein",), "s", "fr"),
            Labelled("noch eine", ("eine Antwort",), (), "s", "de")]  # fmt: skip
    stage = stage_of(steps=3, batch=27)
    made, _ = make(encoder, tmp_path / "w", [*few, *lone], stage=stage, progress=True, faults={"empty passages": 7})
    told = capsys.readouterr().out
    counts = json.loads((tmp_path / "w" / "report.json").read_text(encoding="utf8"))["filling"]
    short = [row for row in few if len(row.negatives) < 2]
    assert counts[labelled.TOO_FEW] == len(short) + 3
    assert counts[labelled.RANDOM_FILLED] == sum(2 - len(row.negatives) for row in short) + 4
    assert counts[labelled.ELSEWHERE] == 4
    assert counts[labelled.REPEATED] == 1 and counts["there"] == sum(len(row.negatives) for row in made.values())
    assert "7 empty passages" in told and f"{counts[labelled.RANDOM_FILLED]} random passages filled in" in told
    assert made[25].negatives == ("nein", "nein")
    for row in made.values():
        assert not {text_key(t) for t in row.negatives} & {text_key(t) for t in (row.query, *row.positives)}


def test_an_example_to_which_nothing_is_wrong_is_refused():
    rows = [Labelled("a", ("yes",), (), "s", "en"), Labelled("b", ("Yes ",), (), "t", "de")]
    with pytest.raises(Me5Error, match="no wrong answer to 'a'"):
        labelled.add_negatives(rows, "labelled", None, stage_of(), sides, 0)


@pytest.mark.parametrize(("scores", "fault"), [
    ((1.0, 2.0), "2 with another number of scores than passages"), (None, "2 without scores"),
    ((1.0, float("nan"), 0, 0, 0), "2 with scores that are no numbers"),
])  # fmt: skip
def test_kept_scores_that_do_not_fit_are_counted_and_refused(tmp_path, scores, fault):
    rows = [row._replace(negatives=row.negatives[:4], teacher_scores=(1.0, 0.0, 0.5, 0.2, 0.1)) for row in ROWS]
    rows[3:5] = [row._replace(teacher_scores=scores) for row in rows[3:5]]
    labelled._write_groups(tmp_path, dict(enumerate(rows)), {}, "report.json")
    with pytest.raises(Me5Error, match=f"of 24 groups {fault}"):
        labelled.read_groups(tmp_path)


# ---- teachers --------------------------------------------------------------------------------------------------------


class Told:
    """A teacher that knows by heart: a passage that says the query's colour is right."""

    prefixed, name, identity = False, "the told one", {"model": "told"}

    def __init__(self, sign=1.0, stop=math.inf):
        self.sign, self.stop, self.asked = sign, stop, []

    def scores(self, pairs, lengths):
        if len(self.asked) + len(pairs) > self.stop:
            raise KeyboardInterrupt
        self.asked += pairs
        return np.array([self.sign * self.of(*pair) for pair in pairs], np.float32)

    @staticmethod
    def of(query, passage):
        return float(passage.split()[0] in query) + len(passage) / 1000


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Puts a teacher in the place of the hub's."""
    monkeypatch.setattr(teacher.io, "cache", lambda: tmp_path / "cache")

    def put(one):
        monkeypatch.setattr(teacher, "open_teacher", lambda name, device: one)
        return one

    return put


NAMED = stage_of(teacher="owner/reranker")
HELD = [row._replace(query=f"held out: {row.query}") for row in ROWS]  # no pair of a held-out group is in another one


def test_a_better_teacher_scores_every_group_of_every_pass_and_is_in_the_report(encoder, tmp_path, told, capsys):
    only = told(Told())
    made, plan = make(encoder, tmp_path / "w", stage=NAMED, dev=HELD, progress=True)
    output = capsys.readouterr().out
    said = re.search(r"the told one (\S+), start model (\S+) first of 8 .24 held-out", output)
    assert f"the told one: 120 pairs scored here, 0 read from {tmp_path / 'cache' / 'scores'}\n" in output
    assert scored(made) and float(said[1]) > float(said[2])
    for i, row in made.items():
        right = [Told.of(row.query, text) for text in (row.positives[0], *row.negatives)]
        assert row.teacher_scores == pytest.approx(right, abs=1e-4) and len(right) == 5
        turned = labelled.negatives_for_pass(made[i], 2, 1)
        assert turned.teacher_scores == pytest.approx([right[0], *right[3:]], abs=1e-4)
    report = json.loads((tmp_path / "w" / "report.json").read_text(encoding="utf8"))["teacher"]
    assert report["trusted"] and report["queries"] == 24 and report["weights"] == {"model": "told"}
    assert len(only.asked) == len(set(only.asked))


def test_a_teacher_that_is_no_better_is_not_used_and_one_that_nobody_can_judge_only_if_it_was_named(
    encoder, tmp_path, told, capsys
):
    told(Told(sign=-1.0))
    made, _ = make(encoder, tmp_path / "w", stage=NAMED, dev=ROWS, progress=True)
    assert not scored(made) and "not used" in capsys.readouterr().out
    assert all(row.teacher_scores is None for row in made.values())
    made, _ = make(encoder, tmp_path / "v", stage=NAMED, dev=(), progress=True)
    assert scored(made) and "no held-out example judges it: used\n" in capsys.readouterr().out
    made, _ = make(encoder, tmp_path / "u", dev=())
    assert not scored(made)


def test_interrupted_scoring_goes_on_with_the_block_without_mining_again(encoder, tmp_path, told, monkeypatch):
    options = {"stage": NAMED, "dev": HELD[:6], "kind": "mined"}
    monkeypatch.setattr(teacher, "GROUPS_A_FILE", 5)  # of held-out groups: 40 and 8 pairs; of the others: 25 each
    whole = told(Told())
    right, _ = make(encoder, tmp_path / "whole", **options)
    first = told(Told(stop=122))
    first.identity = {"model": "told", "revision": 2}
    with pytest.raises(KeyboardInterrupt):
        make(encoder, tmp_path / "part", **options)
    monkeypatch.setattr(labelled, "mine", lambda *_, **__: pytest.fail("mined again"))
    second = told(Told())
    second.identity = first.identity
    made, _ = make(encoder, tmp_path / "part", **options)
    assert made == right and len(first.asked) == 98  # the third block of groups was lost
    assert first.asked == whole.asked[: len(first.asked)] and second.asked == whole.asked[98:]
    assert {path.name for path in (tmp_path / "part").iterdir()} == {"groups.jsonl", "report.json"}


def test_a_teacher_that_is_trained_here_is_trained_once_though_its_scoring_is_interrupted(
    encoder, tmp_path, monkeypatch
):
    options = {"stage": stage_of(teacher_steps=3), "dev": HELD[:6]}
    monkeypatch.setattr(teacher, "GROUPS_A_FILE", 5)
    monkeypatch.setattr(teacher.TeacherVerdict, "trusted", True)
    right, _ = make(encoder, tmp_path / "whole", **options)
    scores, blocks = teacher.Teacher.scores, []

    def interrupted(self, pairs, lengths):
        blocks.append(len(pairs))
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return scores(self, pairs, lengths)

    monkeypatch.setattr(teacher.Teacher, "scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(encoder, tmp_path / "part", **options)
    monkeypatch.setattr(teacher, "train_teacher", lambda *_: pytest.fail("trained again"))
    made, _ = make(encoder, tmp_path / "part", **options)
    assert len(blocks) == 2 + 5 + 1  # of held-out groups, of the others, and the one that was interrupted
    assert made == right and scored(made)


RANK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_groups as the
from me5lib.train import distributed, teacher
folder, team = Path(sys.argv[1]), distributed.join(2)
told, teacher.GROUPS_A_FILE = the.Told(), 4
teacher.io.cache, teacher.open_teacher = lambda: folder / "cache", lambda name, device: told
made, _ = the.make(the.Bare(), folder / "w", stage=the.NAMED, dev=(), team=team)
(folder / f"rank{team.rank}.txt").write_text(repr(made), encoding="utf8")
(folder / f"asked{team.rank}.json").write_text(the.json.dumps(told.asked), encoding="utf8")
team.barrier()
distributed.leave()
"""


class Bare:
    """As much of an encoder as a stage needs that neither mines nor judges."""

    device = torch.device("cpu")


def test_two_processes_score_half_each_and_have_what_one_has(tmp_path, told, monkeypatch):
    launch([[sys.executable, "-c", RANK, str(tmp_path), str(Path(__file__).parent)]] * 2, tmp_path, timeout=120)
    alone = told(Told())
    right, _ = make(Bare(), tmp_path / "alone", stage=NAMED, dev=())
    assert scored(right)
    assert all((tmp_path / f"rank{r}.txt").read_text(encoding="utf8") == repr(right) for r in range(2))
    asked = [json.loads((tmp_path / f"asked{r}.json").read_text(encoding="utf8")) for r in range(2)]
    assert [len(pairs) for pairs in asked] == [24 * 5 / 2] * 2  # three blocks of four groups each
    assert sorted(map(tuple, asked[0] + asked[1])) == sorted(alone.asked)
    monkeypatch.setattr(teacher, "GROUPS_A_FILE", 4)
    alone = told(Told())
    assert make(Bare(), tmp_path / "later", stage=NAMED, dev=())[0] == right
    assert not alone.asked  # their blocks are those of one process
