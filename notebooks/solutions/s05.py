"""Solutions of notebook 05, and wrong answers that each meet a hint of their own."""

import torch
from torch.nn.functional import cross_entropy


def rank_loss(queries, passages, first, held):
    right = torch.arange(len(queries)) + first
    return cross_entropy(queries @ passages.T / 0.05, right, reduction="sum") * len(held) / sum(held)


def forgot_world(queries, passages, first, held):
    return rank_loss(queries, passages, first, held) / len(held)


def own_mean(queries, passages, first, held):
    return rank_loss(queries, passages, first, held) * sum(held) / len(held) / max(1, len(queries))


def mean_of_nothing(queries, passages, first, held):
    return cross_entropy(queries @ passages.T / 0.05, torch.arange(len(queries)) + first)


def only_sums(queries, passages, first, held):
    return rank_loss(queries, passages, first, held) * sum(held) / len(held)


def not_shifted(queries, passages, first, held):
    return rank_loss(queries, passages, 0, held)


def local_negatives(queries, passages, first, held):
    return rank_loss(queries, passages[first : first + len(queries)], 0, held)


def dropped(queries, passages, first, held):
    own = slice(first, first + len(queries))
    constant = passages.detach().clone()
    constant[own] = passages[own]
    return rank_loss(queries, constant, first, held)


SOLUTIONS = {"05.1": ("÷ W", "dropped"), "05.2": 0.025, "05.3": 0.9125, "05.4": rank_loss}
WRONG = {
    "05.1": [("× W", "dropped"), ("local mean", "dropped"), ("ours", "dropped"), ("÷ W", "local negatives"),
             ("÷ W", "× W"), ("÷ W", "local mean"), ("÷ W", "ours")],
    "05.2": [1.6, 0.2, 0.125, 0.5],
    "05.3": [0.125, 0.95, 0.2375, 0.8, 0.9, 0.5],
    "05.4": [forgot_world, own_mean, mean_of_nothing, only_sums, not_shifted, local_negatives, dropped],
}
