"""Checkers of notebook 06: the loss of knowing nothing, the training step, the learning rate, a collapsed model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn

from me5lib import config
from me5lib.lessons.exercises import attempt, close, exercise, hint_for, number, same
from me5lib.pairs import Pair
from me5lib.train import loop, loss

number("06.1", math.log(1024), {  # equal cosines: the softmax is flat over 1,024 passages
    1024: "that is how many passages there are; the loss is a logarithm",
    1 / 1024: "that is the probability of the right one; the loss is minus its logarithm",
    (math.log2(1024), math.log10(1024)): "the logarithm of the loss is the natural one",
    (0.85 / 0.05, math.log(1024) + 0.85 / 0.05): "the same number stands above and below the fraction bar, and "
                                                 "cancels: what 0.85 / τ is does not matter",
    math.log(1024) / 0.05: "τ divides the cosines, and equal cosines cancel: it is gone before the logarithm",
    -math.log(1024): "a loss is minus the logarithm of a probability, so it is not negative",
}, "a flat softmax gives each of 1,024 one share: -ln of it", 5e-3)


STAGE = dataclasses.replace(config.load("smoke").train, steps=3, warmup=0, lr=0.1, clip=0.5, temperature=0.2)
ROWS = torch.randn(3, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # of three steps


def tiny() -> nn.Linear:
    """A model of 32 weights, always the same; in float64, which no autocast touches."""
    model = nn.Linear(8, 4, bias=False, dtype=torch.float64)
    nn.init.eye_(model.weight)
    return model


def trained_by_the_library(clip: float) -> list[list[float]]:
    """The weights of a `tiny` model after three steps of `loop.train_loop`."""
    model, related = tiny(), loss.make_batch([Pair(f"query {i}", f"passage {i}", "", "") for i in range(6)]).relations
    with torch.random.fork_rng(devices=[]):
        loop.train_loop(model, lambda step: loop.Work(
            lambda: loss.info_nce(*map(model, ROWS[step]), related, STAGE.temperature, STAGE.loss)
        ), dataclasses.replace(STAGE, clip=clip), loop.RunOptions(None, 0, progress=False))  # fmt: skip
    return model.weight.tolist()


@exercise("06.2")
def training_step(answer: Callable[..., float]) -> str | None:
    """`training_step(model, adamw, queries, passages, temperature, clip)`: its first loss, and three steps' weights."""
    model, found = tiny(), []
    adamw, scores = loop.optimiser(model, STAGE), (model(ROWS[0, 0]) @ model(ROWS[0, 1]).T).detach()
    for step, (queries, passages) in enumerate(ROWS):
        adamw.param_groups[0]["lr"] = loop.rate(step, STAGE)
        found.append(attempt(answer, model, adamw, queries, passages, STAGE.temperature, STAGE.clip))
    if None in found:
        return "it gives nothing back: return the loss of the batch, as a number"
    there, back, warm = (nn.functional.cross_entropy(table, torch.arange(6)).item() for table in (
        scores / STAGE.temperature, scores.T / STAGE.temperature, scores))
    hint = hint_for(torch.as_tensor(found[0]).item(), (there + back) / 2, [
        (there, "that is one way only: which query is each passage's? The loss is the mean of both ways"),
        (there + back, "that is the sum of both ways: the loss is their mean"),
        (warm, "the cosines are to be divided by the temperature"),
    ], "the loss you returned is not the batch's before the step: cross-entropy of cosines / temperature, both ways")
    if hint or same(model.weight.tolist(), tiny().weight.tolist(), 1e-9):
        return hint or ("the loss is right, the weights are what they were: backward() leaves a gradient in each, and "
                        "adamw.step() uses it, unless zero_grad() has emptied it before")
    kept = model.weight.grad is not None and model.weight.grad.any()
    return hint_for(model.weight.tolist(), trained_by_the_library(STAGE.clip), [
        (trained_by_the_library(math.inf), "the gradient is not clipped, or only after the step: clip_grad_norm_ "
                                           "stands between backward() and adamw.step()"),
    ], "the gradients of the step before are still there, and backward() adds to them: adamw.zero_grad()" if kept else
       "the loss you returned is right, not the weights: backward(), clip_grad_norm_, adamw.step(), zero_grad()", 1e-5)


@exercise("06.3")
def learning_rate(answer: Callable[[int, int, int, float], float]) -> str | None:
    """`rate(step, steps, warmup, peak)`: up to `peak` at step `warmup`, then straight down to 0 at `steps`."""
    found = [float(attempt(answer, step, 100, 9, 2.0)) for step in range(100)]
    up, down = [0.2 * (step + 1) for step in range(9)], [2.0 * (100 - step) / 91 for step in range(9, 100)]
    wrong = next((step for step in range(100) if not close(found[step], (up + down)[step], 1e-6)), 0)
    return hint_for(found, up + down, [
        ([2.0 * step / 9 for step in range(9)] + down, "step 0 would teach nothing: the rise begins at peak / "
                                                       "(warmup + 1), not at 0"),
        ([2.0] * 9 + down, "the rise is missing: steps 0 to warmup must climb"),
        (up + [2.0] * 91, "after the warm-up it stays at the peak: it must fall in a straight line"),
        (up + [1 + math.cos(math.pi * step / 91) for step in range(91)], "that is a cosine: this schedule falls in a "
                                                                         "straight line"),
        ([min(2.0, 0.2 * (step + 1)) * (1 - step / 100) for step in range(100)], "it falls from step 0 on, so the peak "
         "is never reached: the line starts at step warmup"),
    ], f"steps=100, warmup=9, peak=2: step {wrong} has {(up + down)[wrong]:.4f}, you returned {found[wrong]:.4f}", 1e-6)


# One vector for all: every distance is 0, so alignment 0 and uniformity log e^0 = 0.
exercise("06.4")(lambda answer: hint_for(list(answer), [0, 0], [
    ([0, 1], "the mean of e^0 is 1; uniformity is its logarithm"),
    ([0, -4], "-4 is about the best uniformity, that of texts spread all over the sphere: here they sit on one point"),
    ([0, math.inf], "distances of 0 make e^0, not a division by 0"),
], "all distances are 0, those of texts that belong together, too: put that into both formulas"))
