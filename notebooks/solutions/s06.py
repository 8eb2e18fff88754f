"""Solutions of notebook 06, and wrong answers that each meet a hint of their own."""

import math


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


SOLUTIONS = {"06.1": math.log(1024), "06.2": rate, "06.3": (0.0, 0.0)}
WRONG = {
    "06.1": [1024, 1 / 1024, 10.0, 17.0, math.log(1024) / 0.05, -math.log(1024)],
    "06.2": [_from_zero, _no_rise, _no_fall, _cosine, _never_there],
    "06.3": [(0.0, 1.0), (0.0, -4.0), (1.0, 0.0), (0.0, math.inf)],
}
