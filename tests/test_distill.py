"""The teacher and what it hands on, against formulas written out by hand."""

import math

import numpy as np
import pytest
import torch

from me5lib import scale
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled
from me5lib.train import distill

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
PREFIXES, LENGTHS = ("query: ", "passage: "), (16, 16)


@pytest.fixture(scope="module")
def encoder():
    tokenizer = train_tokenizer([f"{a} {b} {i}" for a in COLOURS for b in ("car", "house") for i in range(5)], 400)
    return Encoder.new(scale.Model("random", 1, 32, 2, 64, 400, 48), tokenizer, 0)


def test_kl_is_from_teacher_to_student_by_hand():
    student, teacher = [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0], [3.0, 0.0, 0.0]]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [math.exp(x / 2) / sum(math.exp(y / 2) for y in t) for x in t]
        q = [math.exp(x) / sum(math.exp(y) for y in s) for x in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distill.kl(torch.tensor(student), torch.tensor(teacher), 2.0).item() == pytest.approx(total / 2, abs=1e-6)


def test_kl_is_nothing_when_they_agree_and_does_not_care_for_a_constant():
    scores = torch.randn(4, 5, dtype=torch.float64)
    assert distill.kl(scores, scores + 7).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_kl_is_what_the_student_gives_minus_what_the_teacher_gives():
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    distill.kl(student, teacher).backward()
    assert torch.allclose(student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 3)


def test_stage_2_is_kl_plus_alpha_times_info_nce():
    student, teacher, contrastive = torch.randn(3, 4), torch.randn(3, 4), torch.tensor(2.0)
    whole = distill.stage2_loss(student, teacher, contrastive, 0.2, 1.0)
    assert whole.item() == pytest.approx(distill.kl(student, teacher).item() + 0.4, abs=1e-6)
    assert distill.stage2_loss(student, None, contrastive, 0.2, 1.0).item() == 2.0


def test_a_row_weighs_the_same_in_any_batch():
    """The mean over two halves is the mean over the whole: no term depends on how the batch is cut."""
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    halves = (distill.kl(student[:3], teacher[:3]) + distill.kl(student[3:], teacher[3:])) / 2
    assert distill.kl(student, teacher).item() == pytest.approx(halves.item(), rel=1e-5)


def test_group_scores_are_the_cosines_of_a_query_with_its_own_passages():
    queries = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    passages = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    found = distill.group_scores(queries, passages, 0.05)
    for i in range(3):
        for g in range(4):
            assert found[i, g].item() == pytest.approx(20 * float(queries[i] @ passages[4 * i + g]), abs=1e-4)


def test_the_teacher_reads_both_texts_together(encoder):
    teacher = distill.Teacher(encoder, 0.05, 0)
    groups = teacher.tokenize(["red car"], [["green house", "blue house"]], PREFIXES, LENGTHS)
    alone = encoder.tokenize(["red car"], "query: ")[0]
    assert groups.ids[0][: len(alone)] == alone and groups.cuts == [len(alone)] * 2
    assert groups.ids[0][len(alone) :] == encoder.tokenize(["green house"], "passage: ")[0][1:]
    other = teacher.tokenize(["red car"], [["blue house", "green house"]], PREFIXES, LENGTHS)
    assert torch.allclose(teacher(groups), teacher(other).flip(1), atol=1e-5)  # order of passages is nothing to it


def test_scores_do_not_depend_on_how_the_inputs_are_cut_into_pieces(encoder, monkeypatch):
    teacher = distill.Teacher(encoder, 0.05, 0)
    texts = [[f"{a} car {i}", f"{a} house that is much longer than the car {i}"] for i, a in enumerate(COLOURS)]
    groups = teacher.tokenize([f"{a} car" for a in COLOURS], texts, PREFIXES, LENGTHS)
    whole = teacher(groups)
    monkeypatch.setattr(distill, "PIECE", 20)
    assert torch.allclose(teacher(groups), whole, atol=1e-4)
    one = teacher(teacher.tokenize(["blue car"], texts[2:3], PREFIXES, LENGTHS))
    assert torch.allclose(one, whole[2:3], atol=1e-4)


def test_a_teacher_is_a_copy_that_leaves_the_student_alone(encoder):
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    teacher = distill.Teacher(encoder, 0.05, 0)
    adamw = torch.optim.AdamW(teacher.parameters(), lr=0.01)
    distill.listwise(teacher(teacher.tokenize(["red"], [["car", "house"]], PREFIXES, LENGTHS))).backward()
    adamw.step()
    assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())


def test_the_teacher_learns_what_a_group_is_about(encoder):
    """Six colours: which passage names the query's colour cannot be read off the passage alone."""
    torch.manual_seed(0)
    teacher = distill.Teacher(encoder, 0.05, 0)
    rng = np.random.default_rng(0)
    queries = [COLOURS[i % 6] for i in range(48)]
    texts = [[f"{q} car", *(f"{c} car" for c in rng.permutation([c for c in COLOURS if c != q])[:3])] for q in queries]
    groups = teacher.tokenize(queries, texts, PREFIXES, LENGTHS)
    adamw = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    first = distill.listwise(teacher(groups)).item()
    for _ in range(30):
        adamw.zero_grad()
        loss = distill.listwise(teacher(groups))
        loss.backward()
        adamw.step()
    assert loss.item() < 0.1 < first
    assert distill.first_place(teacher.score(queries, texts, PREFIXES, LENGTHS)).mean() == 1.0


def test_unequal_groups_and_texts_too_long_together_are_refused(encoder):
    teacher = distill.Teacher(encoder, 0.05, 0)
    with pytest.raises(ValueError, match="same number"):
        teacher.tokenize(["a", "b"], [["c"], ["d", "e"]], PREFIXES, LENGTHS)
    with pytest.raises(ValueError, match="do not fit"):
        teacher.tokenize(["a"], [["c"]], PREFIXES, (32, 32))


def test_a_tie_is_no_win_and_only_a_better_teacher_is_trusted():
    assert distill.first_place(np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])).tolist() == [False, True, False]
    assert distill.Verdict(0.6, 0.5, 100, 8).trusted and not distill.Verdict(0.5, 0.5, 100, 8).trusted


def test_the_students_scores_are_its_cosines(encoder):
    rows = [Labelled("red car", ("car red",), ("blue house", "green house"), "s", "en"),
            Labelled("blue car", ("car blue",), ("red house", "white house"), "s", "en")]
    found = distill.student_scores(encoder, rows, PREFIXES, LENGTHS)
    left, right = encoder.encode(["blue car"], "query: "), encoder.encode(["white house"], "passage: ")
    assert found.shape == (2, 3) and found[1, 2] == pytest.approx(float(left[0] @ right[0]), abs=1e-5)
