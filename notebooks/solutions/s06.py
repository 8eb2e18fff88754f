"""Solutions of notebook 06, and wrong answers that each meet a hint of their own."""

import math

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_


def both_ways(model, queries, passages, temperature):
    """The mean of which passage is the query's, and which query the passage's."""
    scores = model(queries) @ model(passages).T / temperature
    right = torch.arange(len(scores))
    return (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2


def training_step(model, adamw, queries, passages, temperature, clip):
    """Loss, gradient, clipped, one step; and the gradient is forgotten."""
    loss = both_ways(model, queries, passages, temperature)
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    adamw.step()
    adamw.zero_grad()
    return loss.item()


def _one_way(model, adamw, queries, passages, temperature, clip):
    scores = model(queries) @ model(passages).T / temperature
    return cross_entropy(scores, torch.arange(len(scores))).item()


def _summed(model, adamw, queries, passages, temperature, clip):
    return 2 * both_ways(model, queries, passages, temperature).item()


def _no_temperature(model, adamw, queries, passages, temperature, clip):
    return _one_way(model, adamw, queries, passages, 1.0, clip)


def _not_trained(model, adamw, queries, passages, temperature, clip):
    loss = both_ways(model, queries, passages, temperature)
    loss.backward()
    adamw.zero_grad()
    adamw.step()
    return loss


def _clipped_late(model, adamw, queries, passages, temperature, clip):
    loss = both_ways(model, queries, passages, temperature)
    loss.backward()
    adamw.step()
    clip_grad_norm_(model.parameters(), clip)
    adamw.zero_grad()
    return loss


def _added_up(model, adamw, queries, passages, temperature, clip):
    loss = both_ways(model, queries, passages, temperature)
    loss.backward()
    clip_grad_norm_(model.parameters(), clip)
    adamw.step()
    return loss


def _silent(model, adamw, queries, passages, temperature, clip):
    training_step(model, adamw, queries, passages, temperature, clip)


def _again(model, adamw, queries, passages, temperature, clip):
    training_step(model, adamw, queries, passages, temperature, clip)
    return both_ways(model, queries, passages, temperature)


def rate(step, steps, warmup, peak):
    """Up in equal parts, then down in a straight line."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (steps - step) / (steps - warmup)


def _from_zero(step, steps, warmup, peak):
    return peak * step / warmup if step < warmup else peak * (steps - step) / (steps - warmup)


def _no_rise(step, steps, warmup, peak):
    return peak if step < warmup else peak * (steps - step) / (steps - warmup)


def _no_fall(step, steps, warmup, peak):
    return peak * min(1, (step + 1) / (warmup + 1))


def _cosine(step, steps, warmup, peak):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _never_there(step, steps, warmup, peak):
    return peak * min((step + 1) / (warmup + 1), 1) * (steps - step) / steps


SOLUTIONS = {"06.1": math.log(1024), "06.2": training_step, "06.3": rate, "06.4": (0.0, 0.0)}
WRONG = {
    "06.1": [1024, 1 / 1024, 10.0, 17.0, math.log(1024) / 0.05, -math.log(1024)],
    "06.2": [_one_way, _summed, _no_temperature, _not_trained, _clipped_late, _added_up, _silent, _again],
    "06.3": [_from_zero, _no_rise, _no_fall, _cosine, _never_there],
    "06.4": [(0.0, 1.0), (0.0, -4.0), (1.0, 0.0), (0.0, math.inf)],
}
