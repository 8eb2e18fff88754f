"""InfoNCE against a plain double loop, its mask against the rule in words, its numbers at the edges."""

import math
import time

import pytest
import torch

from me5lib.pairs import Labelled, Pair
from me5lib.train import loss as losses
from me5lib.train.loss import FORMS, false_negative_mask, info_nce, make_batch

DOUBLE = torch.float64


def unit(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, dtype=DOUBLE, generator=generator), dim=1)


def by_loop(queries, passages, rows: list[Labelled], temperature: float, form: str) -> list[float]:
    """The rule of the design in words, over texts: no keys, no tensors, no shared code."""
    same = lambda a, b: " ".join(a.casefold().split()) == " ".join(b.casefold().split())  # noqa: E731
    flat = [(i, text) for i, row in enumerate(rows) for text in (row.positives[0], *row.negatives)]
    own = [[i for i, _ in flat].index(i) for i in range(len(rows))]  # each row's positive comes first
    cosine = lambda i, j: sum(float(a) * float(b) for a, b in zip(queries[i], passages[j], strict=True))  # noqa: E731

    def skip(i: int, j: int) -> bool:
        owner, text = flat[j]
        answers = any(same(text, known) for known in rows[i].positives)
        asked_elsewhere = owner != i and same(rows[owner].query, rows[i].query)
        return j != own[i] and (answers or asked_elsewhere or same(text, rows[i].query))

    losses = []
    for i in range(len(rows)):
        there = [math.exp(cosine(i, j) / temperature) for j in range(len(flat)) if not skip(i, j)]
        back = [math.exp(cosine(k, own[i]) / temperature) for k in range(len(rows)) if not skip(k, own[i])]
        hit = cosine(i, own[i]) / temperature
        one, other = math.log(sum(there)) - hit, math.log(sum(back)) - hit
        losses.append({"one-way": one, "symmetric": (one + other) / 2}[form])
    return losses


def labelled(query: str, positives: tuple, negatives: tuple) -> Labelled:
    return Labelled(query, positives, negatives, "test", "en")


STAGE_1 = [labelled(q, (p,), ()) for q, p in [("a", "A1"), ("b", "B1"), ("c", "C1"), ("d", "D1"), ("e", "E1")]]
PLANTED = [  # every clause of the rule is met at least once
    labelled("capital of France?", ("Paris", "The city of Paris"), ("Lyon", "Marseille")),
    labelled("Capital of  france?", ("Lutetia",), ("Nice", "Toulouse")),  # the same query again
    labelled("largest city of Texas?", ("Houston",), ("paris", "Dallas")),  # another row's positive as a hard negative
    labelled("the city of paris", ("Île-de-France",), ("Houston", "Rome")),  # a query that is somebody's positive
    labelled("Rome", ("Italy",), ("Rome", "Spain")),  # a hard negative that is the query itself
    labelled("where is Lyon?", ("Paris", "France"), ("France", "Bonn")),  # shares a positive; contradicts itself
]


@pytest.mark.parametrize("rows", [STAGE_1, PLANTED], ids=["stage 1", "stage 2 with planted duplicates"])
@pytest.mark.parametrize("loss", FORMS)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("logits", [2**22, 40, 1], ids=["one tile", "tiles of some rows", "tiles of one row"])
def test_loss_is_that_of_a_plain_double_loop(rows, loss, temperature, logits, monkeypatch):
    monkeypatch.setattr(losses, "TILE_LOGITS", logits)
    batch = make_batch(rows)
    queries, passages = unit(len(batch.queries), seed=1), unit(len(batch.passages), seed=2)
    expected = by_loop(queries, passages, rows, temperature, loss)
    for i, value in enumerate(expected):
        one = info_nce(queries, passages, batch.relations, temperature, loss, slice(i, i + 1))
        assert one.item() == pytest.approx(value, rel=1e-12)
    mean = info_nce(queries, passages, batch.relations, temperature, loss)
    assert mean.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


@pytest.mark.parametrize("loss", FORMS)
def test_rows_of_several_processes_together_make_the_whole(loss):
    batch = make_batch(PLANTED)
    queries, passages = unit(len(batch.queries), seed=1), unit(len(batch.passages), seed=2)
    whole, *parts = (info_nce(queries, passages, batch.relations, 0.1, loss, rows, reduction="sum")
                     for rows in (slice(None), slice(0, 2), slice(2, 2), slice(2, 6)))
    assert parts[1].item() == 0.0
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("loss", FORMS)
@pytest.mark.parametrize("logits", [2**22, 40])
def test_gradient_is_right_in_float64(loss, logits, monkeypatch):
    monkeypatch.setattr(losses, "TILE_LOGITS", logits)
    batch = make_batch(PLANTED)
    queries, passages = unit(6, seed=3).requires_grad_(), unit(len(batch.passages), seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, p: 3 * info_nce(q, p, batch.relations, 0.3, loss), (queries, passages)
    )


def test_no_table_is_kept_for_the_backward_pass():
    from me5lib.train.gradcache import GraphMeter

    n, d = 512, 8
    batch = make_batch([Pair(f"q{i}", f"p{i}", "t", "fr") for i in range(n)])
    queries, passages = (unit(n, d, seed).float().requires_grad_() for seed in (1, 2))
    with GraphMeter().watch() as meter:
        info_nce(queries, passages, batch.relations, 0.05).backward()
    assert meter.peak < n * n * 4 / 4  # a quarter of one table of logits; both gradients are a thirtieth of it


def test_an_ignored_passage_gets_no_gradient():
    batch = make_batch([Pair(q, p, "t", "fr") for q, p in [("red", "rouge"), ("blue", "bleu"), ("Red ", "ROUGE")]])
    assert false_negative_mask(batch.relations).tolist() == [[False, False, True], [False] * 3, [True, False, False]]
    queries, passages = unit(3, seed=5), unit(3, seed=6).requires_grad_()
    info_nce(queries, passages, batch.relations, 0.1, rows=slice(0, 1)).backward()
    assert passages.grad[1].abs().sum() > 0 and passages.grad[2].abs().sum() == 0


def test_hard_negatives_of_every_row_are_candidates_of_every_query():
    batch = make_batch([labelled("a", ("A",), ("x", "y")), labelled("b", ("B",), ("z",))])
    assert batch.passages == ["A", "x", "y", "B", "z"] and not false_negative_mask(batch.relations).any()
    assert batch.relations.positive.tolist() == [0, 3] and batch.relations.owner.tolist() == [0, 0, 0, 1, 1]
    equal = torch.ones(5, 4, dtype=DOUBLE) / 2
    assert info_nce(equal[:2], equal, batch.relations, 0.01).item() == pytest.approx(math.log(5))
    both = info_nce(equal[:2], equal, batch.relations, 0.01, "symmetric").item()
    assert both == pytest.approx((math.log(5) + math.log(2)) / 2)  # the way back: two queries to choose from


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_cosines(dtype):
    batch = make_batch([Pair(f"q{i}", f"p{i}", "t", "en") for i in range(4)])
    axis = torch.zeros(4, 8, dtype=dtype)
    axis[:, 0] = 1
    for queries in (axis, -axis):  # every cosine +1, every cosine -1
        queries = queries.clone().requires_grad_()
        loss = info_nce(queries, axis, batch.relations, 0.001, "symmetric")
        loss.backward()
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log(4), rel=1e-4)
        assert queries.grad.isfinite().all()
    worst = torch.eye(4, dtype=dtype)
    loss = info_nce(worst, worst.roll(1, 0), batch.relations, 0.001)  # the positive at 0, one negative at 1
    assert loss.item() == pytest.approx(1000, rel=1e-3)


def test_precision_does_not_follow_autocast_or_the_encoder():
    batch = make_batch([Pair(f"q{i}", f"p{i}", "t", "en") for i in range(32)])
    queries, passages = unit(32, 64, seed=9), unit(32, 64, seed=10)
    exact = info_nce(queries, passages, batch.relations, 0.01)
    assert exact.dtype == DOUBLE
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(queries.float(), passages.float(), batch.relations, 0.01)
    assert inside.dtype == torch.float32 and inside.item() == pytest.approx(exact.item(), rel=1e-5)


def test_unknown_loss_is_refused():
    batch = make_batch([Pair("a", "b", "t", "en")])
    with pytest.raises(ValueError, match="one-way, symmetric"):
        info_nce(unit(1), unit(1), batch.relations, 0.1, "both")


def test_alignment_and_uniformity_by_hand():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert losses.alignment(east, east) == 0.0
    assert losses.alignment(east, north) == pytest.approx(2.0)  # squared distance of a right angle
    assert losses.alignment(east, north, power=1) == pytest.approx(math.sqrt(2))
    assert losses.uniformity(torch.cat([east] * 5)) == pytest.approx(0.0)
    four = torch.cat([east, north, -east, -north])
    assert losses.uniformity(four) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))


def test_a_sharp_softmax_costs_no_more_than_a_flat_one():
    """At τ = 0.01 a model that tells texts apart well has shares near 1e-40, denormal in fp32: slow, if they stay."""
    generator = torch.Generator().manual_seed(0)
    queries, noise = (torch.nn.functional.normalize(torch.randn(1024, 256, generator=generator)) for _ in range(2))
    related = make_batch([Pair(f"q{i}", f"p{i}", "none", "en") for i in range(1024)]).relations

    def seconds(passages):
        took = []
        for _ in range(3):
            own = queries.clone().requires_grad_(), passages.clone().requires_grad_()
            began = time.perf_counter()
            info_nce(*own, related, 0.01).backward()
            took.append(time.perf_counter() - began)
        assert torch.isfinite(own[0].grad).all()
        return min(took)

    sharp = torch.nn.functional.normalize(queries + 0.2 * noise)
    spread = torch.exp((queries @ sharp.T - 1) / 0.01)
    assert ((spread > 0) & (spread < 1e-38)).float().mean() > 0.1  # the case is there
    assert seconds(sharp) < 6 * seconds(noise)
