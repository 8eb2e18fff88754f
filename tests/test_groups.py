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
from me5lib.train import labelled, stages, teacher
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


def test_a_resume_and_any_world_size_meet_the_same_groups(encoder, tmp_path):
    made, plan = make(encoder, tmp_path / "w")
    assert make(None, tmp_path / "w")[0] == made
    for step in (3, 0):
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


def test_a_held_out_pool_that_is_too_small_takes_passages_of_its_source_in_other_languages():
    lone = Labelled("eine Frage", ("eine Antwort",), ("falsch",), "s", "de")
    (row,) = (row for row in labelled.dev_groups([*ROWS, lone], 0, size=6) if row.language == "de")
    assert row.negatives[0] == "falsch" and len(set(row.negatives)) == 5  # alone, its pool would have given one


def test_an_example_to_which_nothing_is_wrong_is_refused():
    rows = [Labelled("a", ("yes",), (), "s", "en"), Labelled("b", ("Yes ",), (), "t", "de")]
    with pytest.raises(Me5Error, match="no wrong answer to 'a'"):
        labelled.add_negatives(rows, "labelled", None, stage_of(), sides, 0)


# ---- teachers --------------------------------------------------------------------------------------------------------


class Told:
    """A teacher that knows by heart: a passage that says the query's colour is right."""

    prefixed, name, identity = False, "the told one", {"model": "told"}

    def __init__(self, sign=1.0):
        self.sign, self.asked = sign, []

    def scores(self, pairs, lengths):
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
    said = re.search(r"the told one (\S+), start model (\S+) first of 8 .24 held-out", capsys.readouterr().out)
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


def test_work_that_was_interrupted_goes_on_with_the_block_and_neither_mines_nor_trains_again(
    encoder, tmp_path, monkeypatch
):
    options = {"stage": stage_of(teacher_steps=3), "dev": HELD[:6], "kind": "mined"}
    monkeypatch.setattr(teacher, "GROUPS_A_FILE", 5)
    monkeypatch.setattr(teacher.TeacherVerdict, "trusted", True)
    right, _ = make(encoder, tmp_path / "whole", **options)
    scores, blocks = teacher.Teacher.scores, []

    def interrupted(self, pairs, lengths):
        blocks.append(pairs)
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return scores(self, pairs, lengths)

    monkeypatch.setattr(teacher.Teacher, "scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(encoder, tmp_path / "part", **options)
    monkeypatch.setattr(labelled, "mine", lambda *_, **__: pytest.fail("mined again"))
    monkeypatch.setattr(teacher, "train_teacher", lambda *_: pytest.fail("trained again"))
    made, _ = make(encoder, tmp_path / "part", **options)
    assert made == right and scored(made)
    assert blocks[3] == blocks[4] and len(blocks) == 2 + 5 + 1  # of held-out groups, of the others, and that one again
    assert {path.name for path in (tmp_path / "part").iterdir()} == {"groups.jsonl", "report.json", "scores", "teacher"}


# ---- the loss of stage 2, and several processes ----------------------------------------------------------------------


def taught(**dials):
    return stage_of(**{"steps": 3, "batch": 6, "loss": "one-way", "temperature": 0.1, "teacher_temperature": 2.0,
                       "query_tokens": 99, "passage_tokens": 99} | dials)  # fmt: skip


class Toy(torch.nn.Module):
    """Unit vectors in float64 out of the sum of a text's letters: an encoder as far as a step sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.letters = torch.nn.EmbeddingBag(128, 6, mode="mean", dtype=torch.float64)

    def tokenize(self, texts, prefix="", longest=None):
        return [[ord(letter) % 128 for letter in text[:longest]] for text in texts]

    def forward(self, ids, *_):
        if not len(ids):
            return self.forward([[0]])[:0]
        flat = torch.tensor([token for row in ids for token in row])
        starts = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0)[:-1]
        return torch.nn.functional.normalize(self.letters(flat, starts), dim=1)


def examples():
    """Nine rows of two passes' negatives, scored; two share a query, one's answer is another's wrong one."""
    draw = np.random.default_rng(0)
    queries = [f"{COLOURS[i % 6]} thing {i}" for i in range(8)] + ["red thing 0"]
    rows = [Labelled(query, (f"answer {i} {query}",), tuple(f"wrong {i} {j}" for j in range(4)), "s", "en",
                     tuple(draw.normal(size=5).round(3))) for i, query in enumerate(queries)]
    return [rows[0]._replace(negatives=(rows[1].positives[0], *rows[0].negatives[1:])), *rows[1:]]


def measured(team, stage, steps=(0, 1, 2)):
    """Loss and gradient of some steps, as the stage has them."""
    toy, rows = Toy(), examples()
    plan, made = labelled.SamplingPlan(rows, stage, 0, 1.0), dict(enumerate(rows))
    found = []
    for step in steps:
        batch = plan.batch(made, step, 2, team.rank, team.world)
        value = stages.work_of(batch, team.wrap(toy), toy, stage, team, stages.Budget(2**20, 2**20), (0, step),
                               lambda source: ("query: ", "passage: ")).compute()
        found.append([team.mean(value.item()), toy.letters.weight.grad.flatten().tolist()])
        toy.zero_grad()
    return found


def by_hand(stage, step):
    """KL and InfoNCE of a step in plain loops: means over its rows."""
    toy, rows = Toy(), examples()
    group = []
    for i, turn in labelled.SamplingPlan(rows, stage, 0, 1.0).draws(step):
        places = [(turn * 2 + j) % 4 for j in range(2)]
        group.append((rows[i], [rows[i].negatives[j] for j in places],
                      [rows[i].teacher_scores[0], *(rows[i].teacher_scores[1 + j] for j in places)]))  # fmt: skip

    def vector(text):
        return toy(toy.tokenize([text])).detach()[0]

    texts = [(text, own) for own, (row, wrong, _) in enumerate(group) for text in (row.positives[0], *wrong)]
    divergence = contrast = 0.0
    for own, (row, wrong, scores) in enumerate(group):
        asked = vector("query: " + row.query)
        logits = [float(asked @ vector("passage: " + text)) / 0.1 for text in (row.positives[0], *wrong)]
        s = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
        t = [math.exp(x / 2) / sum(math.exp(y / 2) for y in scores) for x in scores]
        divergence += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)) / len(group)
        rivals = [math.exp(float(asked @ vector("passage: " + text)) / 0.1) for text, of in texts
                  if of == own or (group[of][0].query != row.query and text != row.positives[0])]
        contrast += -math.log(math.exp(logits[0]) / sum(rivals)) / len(group)
    return divergence, contrast


def test_stage_2_is_kl_plus_alpha_times_info_nce_by_hand():
    for alpha in (0.0, 0.2, 3.0):
        stage = taught(contrastive_weight=alpha)
        for step, (found, _) in enumerate(measured(Team.alone(), stage)):
            divergence, contrast = by_hand(stage, step)
            assert divergence > 0.05 and contrast > 0.5
            assert found == pytest.approx(divergence + alpha * contrast, abs=1e-6)


RANK = """
import sys
import weakref
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_groups as the
from me5lib.train import distributed, teacher
folder, team = Path(sys.argv[1]), distributed.join(2)
told, teacher.GROUPS_A_FILE = the.Told(), 4
teacher.io.cache, teacher.open_teacher = lambda: folder / "cache", lambda name, device: told
made, _ = the.make(the.Bare(), folder / "w", stage=the.NAMED, dev=(), team=team)
losses = [the.measured(team, the.taught(contrastive_weight=alpha, batch=5)) for alpha in (0.0, 1.0)]
(folder / f"rank{team.rank}.json").write_text(the.json.dumps([repr(made), told.asked, losses]), encoding="utf8")
team.barrier()
group = weakref.ref(distributed.processes.group.WORLD)
distributed.leave()
assert group() is None, "the group, and gloo's threads, outlive it"
"""


class Bare:
    """As much of an encoder as a stage needs that neither mines nor judges."""

    device = torch.device("cpu")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder of two processes that made groups together; of each the groups, what it scored, its losses."""
    folder = tmp_path_factory.mktemp("ranks")
    launch([[sys.executable, "-c", RANK, str(folder), str(Path(__file__).parent)]] * 2, folder, timeout=120)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf8")) for rank in range(2)]


def test_two_processes_score_half_each_and_have_what_one_has(ranks, tmp_path, told, monkeypatch):
    folder, found = ranks
    alone = told(Told())
    right, _ = make(Bare(), tmp_path / "alone", stage=NAMED, dev=())
    assert scored(right) and [made for made, *_ in found] == [repr(right)] * 2
    asked = [pairs for _, pairs, _ in found]
    assert [len(pairs) for pairs in asked] == [24 * 5 / 2] * 2  # three blocks of four groups each
    assert sorted(map(tuple, asked[0] + asked[1])) == sorted(alone.asked)
    monkeypatch.setattr(teacher, "GROUPS_A_FILE", 4)
    monkeypatch.setattr(teacher.io, "cache", lambda: folder / "cache")
    alone = told(Told())
    assert make(Bare(), tmp_path / "later", stage=NAMED, dev=())[0] == right
    assert not alone.asked  # their blocks are those of one process


def test_each_term_and_their_ratio_are_the_same_at_every_world_size(ranks):
    """Five rows on one process and on two (two and three rows): KL alone, and with InfoNCE, in float64."""
    for alpha, steps in zip((0.0, 1.0), ranks[1][0][2], strict=True):
        right = measured(Team.alone(), taught(contrastive_weight=alpha, batch=5))
        for (value, gradient), (one, whole) in zip(steps, right, strict=True):
            assert value == pytest.approx(one, rel=1e-6) and gradient == pytest.approx(whole, rel=1e-6, abs=1e-9)
