"""The gradient of the replay against one autograd graph; the cut against its rule; the memory it saves."""

import math

import pytest
import torch

from me5lib.io import Me5Error
from me5lib.pairs import Pair
from me5lib.train.gradcache import GraphMeter, cached_step, fitting_budget, mix, pieces, seeded
from me5lib.train.loss import info_nce, make_batch

TEXTS, WIDTH, BUDGET = 24, 16, 60


class Small(torch.nn.Module):
    """A transformer of one layer with dropout; average pooling over all tokens, unit vectors."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(50, WIDTH)
        self.layer = torch.nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout, batch_first=True)
        self.calls = 0

    def forward(self, ids) -> torch.Tensor:
        self.calls += 1
        longest = max(map(len, ids))
        words = torch.tensor([list(row) + [0] * (longest - len(row)) for row in ids])
        pad = torch.arange(longest) >= torch.tensor([[len(row)] for row in ids])
        states = self.layer(self.words(words), src_key_padding_mask=pad).masked_fill(pad[..., None], 0)
        return torch.nn.functional.normalize(states.sum(1) / (~pad).sum(1, keepdim=True), dim=1)


def tokens(n: int = TEXTS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
    return [torch.randint(1, 50, (length,), generator=generator).tolist() for length in lengths]


PAIRS = make_batch([Pair(f"q{i}", f"p{i}", "t", "en") for i in range(TEXTS // 2)]).relations


def loss_of(vectors: torch.Tensor) -> torch.Tensor:
    return info_nce(vectors[: TEXTS // 2], vectors[TEXTS // 2 :], PAIRS, 0.05, "symmetric")


def gradient(encoder: torch.nn.Module) -> torch.Tensor:
    flat = torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])
    encoder.zero_grad()
    return flat


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("keep_graph", [False, True])
def test_gradient_is_that_of_one_graph_over_the_same_pieces_and_seeds_with_dropout(keep_graph):
    ids, encoder = tokens(), Small(dropout=0.3).train()
    loss = cached_step(encoder, ids, loss_of, BUDGET, seed=7, keep_graph=keep_graph)
    measured = gradient(encoder)
    rows: list = [None] * TEXTS
    for k, piece in enumerate(pieces([len(row) for row in ids], BUDGET)):  # written out: every piece, one graph
        torch.manual_seed(mix(7, k))
        for i, vector in zip(piece, encoder([ids[i] for i in piece]), strict=True):
            rows[i] = vector
    expected = loss_of(torch.stack(rows))
    expected.backward()
    assert len(pieces([len(row) for row in ids], BUDGET)) >= 5
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and not loss.requires_grad
    assert difference(measured, gradient(encoder)) < 1e-6


def test_without_dropout_it_is_the_padded_batch():
    ids, encoder = tokens(), Small(dropout=0.0)
    expected = loss_of(encoder(ids))
    expected.backward()
    whole = gradient(encoder)
    for budget in (30, 100, 10**6):
        loss = cached_step(encoder, ids, loss_of, budget, seed=0)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        assert difference(gradient(encoder), whole) < 1e-6


def test_dropout_differs_between_seeds_and_pieces_and_is_the_same_twice():
    ids, encoder = [[3, 4, 5]] * TEXTS, Small(dropout=0.3).train()
    seen: list[torch.Tensor] = []

    def look(vectors: torch.Tensor) -> torch.Tensor:
        seen.append(vectors.detach().clone())
        return loss_of(vectors)

    for seed in (1, 1, 2):
        cached_step(encoder, ids, look, token_budget=3, seed=seed)
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])
    assert not torch.allclose(seen[0][0], seen[0][1])  # the same text in two pieces


def test_the_random_numbers_of_others_go_on_undisturbed():
    encoder, ids = Small(0.3).train(), tokens()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cached_step(encoder, ids, loss_of, BUDGET, seed=1)
    with seeded(1):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_under_autocast_no_gradient_is_lost():
    ids, encoder = tokens(), Small(0.0)
    gradients = []
    for keep_graph in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            cached_step(encoder, ids, loss_of, BUDGET, seed=0, keep_graph=keep_graph)
        assert all(parameter.grad is not None for parameter in encoder.parameters())
        gradients.append(gradient(encoder))
    assert difference(gradients[1], gradients[0]) < 0.02


@pytest.mark.parametrize(("budget", "keep_graph"), [(10**6, False), (BUDGET, True), (BUDGET, False)])
def test_all_pieces_but_the_last_are_embedded_twice(budget, keep_graph):
    ids, encoder = tokens(), Small(0.0)
    cached_step(encoder, ids, loss_of, budget, seed=0, keep_graph=keep_graph)
    number = len(pieces([len(row) for row in ids], budget))
    assert encoder.calls == number + (0 if keep_graph else number - 1)


def test_pieces_cover_every_text_once_sorted_and_within_the_budget():
    lengths = [5, 1, 9, 200, 1, 9, 2, 30, 5]
    cut = pieces(lengths, 32)
    assert sorted(i for piece in cut for i in piece) == list(range(9))
    flat = [lengths[i] for piece in cut for i in piece]
    assert flat == sorted(lengths)
    assert all(len(piece) * max(lengths[i] for i in piece) <= 32 for piece in cut if 3 not in piece)
    assert [3] in cut  # longer than the budget: alone
    assert [len(piece) for piece in cut] == [5, 2, 1, 1]  # 1 1 2 5 5 (25), 9 9 (18: a third 9 is not there), 30, 200
    assert pieces([], 32) == [[]] and pieces([0, 0], 32) == [[0, 1]] and pieces([33, 40], 32) == [[0], [1]]
    many = [len(row) for row in tokens(300)]
    sizes = [len(piece) * max(many[i] for i in piece) for piece in pieces(many, 64)]
    assert max(sizes) <= 64 and sum(sizes) / len(sizes) > 48  # within the budget, and using it


def test_replay_keeps_the_graph_of_one_piece():
    ids, encoder, peaks = tokens(), Small(0.1).train(), {}
    for keep_graph in (True, False):
        with GraphMeter(encoder.parameters()).watch() as meter:
            cached_step(encoder, ids, loss_of, 30, seed=0, keep_graph=keep_graph)
        assert meter.now == 0  # everything was let go of
        peaks[keep_graph] = meter.peak
    assert peaks[False] < peaks[True] / 3


def test_meter_counts_a_storage_once_and_parameters_not():
    weight, x = torch.nn.Parameter(torch.ones(4, 4)), torch.ones(8, 4, requires_grad=True)
    with GraphMeter([weight]).watch() as meter:
        y = (x @ weight).tanh()  # keeps x, weight (not counted), and tanh's output
        assert meter.peak == 2 * 8 * 4 * 4
        total = (y * y).sum()  # keeps y twice: the same storage as tanh's output
    assert meter.peak == 2 * 8 * 4 * 4
    total.backward()
    assert meter.now == 0 and weight.grad is not None


def test_mix_is_stable_and_fits_torch():
    assert mix(1, 2, 3) != mix(1, 23) and mix(1, 2) != mix(2, 1)
    assert mix(0, 1, 2) == 4529435921577843265
    assert all(0 <= mix(0, k) < 2**63 for k in range(100)) and math.isfinite(mix(2**80))


def test_the_budget_is_halved_until_a_step_fits():
    tried = []

    def attempt(budget: int) -> None:
        tried.append(budget)
        if budget > 5_000:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert fitting_budget(attempt, 32_768) == 4_096 and tried == [32_768, 16_384, 8_192, 4_096]
    with pytest.raises(Me5Error, match="not even 1,024 tokens"):
        fitting_budget(lambda budget: attempt(budget + 5_000), 2_048)
    with pytest.raises(ValueError, match="something else"):  # only running out of memory makes it smaller
        fitting_budget(lambda budget: (_ for _ in ()).throw(ValueError("something else")), 2_048)
