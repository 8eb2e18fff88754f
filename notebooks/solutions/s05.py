"""Solutions of notebook 05, and wrong answers that each meet a hint of their own."""


def rank_loss(own, counts):
    return sum(own) * len(counts) / sum(counts)


def forgot_world(own, counts):
    return sum(own) / sum(counts)


def own_mean(own, counts):
    return sum(own) / max(1, len(own))


def divides_by_zero(own, counts):
    return sum(own) / len(own)


def only_sums(own, counts):
    return sum(own)


SOLUTIONS = {"05.1": 0.025, "05.2": ("÷ W", "dropped"), "05.3": rank_loss, "05.4": 0.9125}
WRONG = {
    "05.1": [1.6, 0.2, 0.125, 0.5],
    "05.2": [("× W", "dropped"), ("local mean", "dropped"), ("ours", "dropped"), ("÷ W", "local negatives"),
             ("÷ W", "× W"), ("÷ W", "local mean"), ("÷ W", "ours")],
    "05.3": [forgot_world, own_mean, divides_by_zero, only_sums],
    "05.4": [0.125, 0.95, 0.2375, 0.8, 0.9, 0.5],
}
