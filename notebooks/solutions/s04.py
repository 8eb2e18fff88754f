"""Solutions of notebook 04, and wrong answers that each meet a hint of their own."""


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


SOLUTIONS = {"04.1": 4 / 3, "04.2": cut_by_budget, "04.3": 4.294967296}
WRONG = {
    "04.1": [2, 1.5, 4, 1, 1.2],
    "04.2": [unsorted, by_sum, drops_the_last, one_each, empty_first],
    "04.3": [1.0737, 2.147, 0.000131, 4.294967e9, 4.0, 268.0],
}
