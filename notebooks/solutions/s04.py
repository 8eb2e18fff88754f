"""Solutions of notebook 04, and wrong answers that each meet a hint of their own."""

import math


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


SOLUTIONS = {"04.1": 4 / 3, "04.2": cut_by_budget, "04.3": 4.294967296, "04.4": derivative}
WRONG = {
    "04.1": [2, 1.5, 4, 1, 1.2],
    "04.2": [unsorted, by_sum, drops_the_last, one_each, empty_first],
    "04.3": [1.0737, 2.147, 0.000131, 4.294967e9, 4.0, 268.0],
    "04.4": [softmax, uphill, no_sum, only_the_right_one, one_number, lambda logits, target: [0.0] * len(logits)],
}
