"""Solutions of notebook 07, and wrong answers that each meet a hint of their own."""

import math


def highest(positive, margin):
    """The highest score that a negative may have."""
    return positive - (1 - margin) * abs(positive)


def _absolute(positive, margin):
    return positive - (1 - margin)


def _product(positive, margin):
    return margin * positive


def _above(positive, margin):
    return positive + (1 - margin) * abs(positive)


def _unsigned(positive, margin):
    return margin * abs(positive)


def _gap(positive, margin):
    return (1 - margin) * abs(positive)


_POWERS = [math.exp(20 * cosine) for cosine in (0.8, 0.7, 0.3)]
_BARE = [math.exp(cosine) for cosine in (0.8, 0.7, 0.3)]

SOLUTIONS = {"07.1": _POWERS[1] / sum(_POWERS), "07.2": highest, "07.3": 0.75 + 0.95 * (0.87 - 0.75),
             "07.4": 9 / 12, "07.5": 0.8 * math.log(1.6) + 0.2 * math.log(0.4)}
WRONG = {
    "07.1": [_POWERS[0] / sum(_POWERS), _BARE[1] / sum(_BARE), 0.7 / 1.8, _POWERS[1] / _POWERS[2]],
    "07.2": [_absolute, _product, _above, _unsigned, _gap],
    "07.3": [0.95 * 0.12, 0.95 * 0.87, 0.75 + 0.05 * 0.12, 0.95 * 0.75, 0.81],
    "07.4": [0.9, 3 / 190, 9 / 200, 0.25, 10 / 12],
    "07.5": [0.5 * math.log(0.625) + 0.5 * math.log(2.5), math.log(2), 0.2781, -0.1927, 0.8 * math.log(1.6)],
}
