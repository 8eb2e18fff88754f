"""Solutions of notebook 04, and wrong answers that each meet a hint of their own."""

import math

import torch


def cached(embed, ids, pieces, loss_of):
    """All vectors without a graph; the loss and its gradient on them; then each piece once more, with a graph."""
    found = {}
    with torch.no_grad():
        for piece in pieces:
            found |= zip(piece, embed([ids[i] for i in piece]), strict=True)
    vectors = torch.stack([found[i] for i in range(len(ids))]).requires_grad_()
    loss = loss_of(vectors)
    loss.backward()
    for piece in pieces:
        embed([ids[i] for i in piece]).backward(vectors.grad[piece])
    return loss.detach()


def no_replay(embed, ids, pieces, loss_of):
    with torch.no_grad():
        vectors = embed(ids)
    loss = loss_of(vectors.requires_grad_())
    loss.backward()
    return loss.detach()


def one_graph(embed, ids, pieces, loss_of):
    loss = loss_of(embed(ids))
    loss.backward()
    return loss.detach()


def accumulated(embed, ids, pieces, loss_of):
    losses = [loss_of(embed([ids[i] for i in piece])) / len(pieces) for piece in pieces]
    sum(losses).backward()
    return sum(losses).detach()


def in_the_order_of_pieces(embed, ids, pieces, loss_of):
    order = [i for piece in pieces for i in piece]
    return cached(embed, [ids[i] for i in order], [list(range(4)), [4, 5]], loss_of)


def twice(embed, ids, pieces, loss_of):
    one_graph(embed, ids, pieces, loss_of)
    return cached(embed, ids, pieces, loss_of)


def without_its_loss(embed, ids, pieces, loss_of):
    cached(embed, ids, pieces, loss_of)


def cut_by_budget(lengths, budget):
    cut = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if cut[-1] and (len(cut[-1]) + 1) * lengths[i] > budget:
            cut.append([])
        cut[-1].append(i)
    return cut


def unsorted(lengths, budget):
    cut = [[]]
    for i, length in enumerate(lengths):
        if cut[-1] and (len(cut[-1]) + 1) * max(length, *(lengths[j] for j in cut[-1])) > budget:
            cut.append([])
        cut[-1].append(i)
    return cut


def by_sum(lengths, budget):
    cut = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if cut[-1] and sum(lengths[j] for j in cut[-1]) + lengths[i] > budget:
            cut.append([])
        cut[-1].append(i)
    return cut


def drops_the_last(lengths, budget):
    return cut_by_budget(lengths, budget)[:-1]


def one_each(lengths, budget):
    return [[i] for i in sorted(range(len(lengths)), key=lambda i: lengths[i])]


def empty_first(lengths, budget):
    cut = cut_by_budget(lengths, budget)
    return [[], *cut] if lengths[cut[0][0]] > budget else cut


def softmax(logits, target):
    powers = [math.exp(z) for z in logits]
    return [power / sum(powers) for power in powers]


def derivative(logits, target):
    return [share - (j == target) for j, share in enumerate(softmax(logits, target))]


def uphill(logits, target):
    return [-value for value in derivative(logits, target)]


def no_sum(logits, target):
    return [math.exp(z) - (j == target) for j, z in enumerate(logits)]


def only_the_right_one(logits, target):
    return [(share - 1) * (j == target) for j, share in enumerate(softmax(logits, target))]


def one_number(logits, target):
    return [derivative(logits, target)[target]]


SOLUTIONS = {"04.1": cached, "04.2": cut_by_budget, "04.3": 4 / 3, "04.4": 4.294967296, "04.5": derivative}
WRONG = {
    "04.1": [no_replay, one_graph, accumulated, in_the_order_of_pieces, twice, without_its_loss],
    "04.3": [2, 1.5, 4, 1, 1.2],
    "04.2": [unsorted, by_sum, drops_the_last, one_each, empty_first],
    "04.4": [1.0737, 2.147, 0.000131, 4.294967e9, 4.0, 268.0],
    "04.5": [softmax, uphill, no_sum, only_the_right_one, one_number, lambda logits, target: [0.0] * len(logits)],
}
