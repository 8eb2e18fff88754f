"""Solutions of notebook 02, and wrong answers that each meet a hint of their own."""

import math


def shares(row, temperature):
    weights = [math.exp((cosine - max(row)) / temperature) for cosine in row]
    return [weight / sum(weights) for weight in weights]


def info_nce(cosines, temperature):
    return sum(-math.log(shares(row, temperature)[i]) for i, row in enumerate(cosines)) / len(cosines)


def row_gradient(cosines, positive, temperature):
    return [(share - (j == positive)) / temperature for j, share in enumerate(shares(cosines, temperature))]


def masked_loss(cosines, ignored, positive, temperature):
    logits = [cosine / temperature for cosine, out in zip(cosines, ignored, strict=True) if not out]
    top = max(logits)
    return top + math.log(sum(math.exp(logit - top) for logit in logits)) - cosines[positive] / temperature


def no_temperature(cosines, positive, temperature):
    return [value * temperature for value in row_gradient(cosines, positive, temperature)]


def uphill(cosines, positive, temperature):
    return [-value for value in row_gradient(cosines, positive, temperature)]


def no_label(cosines, positive, temperature):
    right = row_gradient(cosines, positive, temperature)
    return [value + (j == positive) / temperature for j, value in enumerate(right)]


def positive_only(cosines, positive, temperature):
    return [value * (j == positive) for j, value in enumerate(row_gradient(cosines, positive, temperature))]


def unmasked(cosines, ignored, positive, temperature):
    return masked_loss(cosines, [False] * len(cosines), positive, temperature)


def zeroed(cosines, ignored, positive, temperature):
    kept = [0.0 if out else cosine for cosine, out in zip(cosines, ignored, strict=True)]
    return unmasked(kept, ignored, positive, temperature)


def overflowing(cosines, ignored, positive, temperature):
    weights = [math.exp(cosine / temperature) for cosine, out in zip(cosines, ignored, strict=True) if not out]
    return math.log(sum(weights)) - cosines[positive] / temperature


def underflowing(cosines, ignored, positive, temperature):
    rows = zip(cosines, ignored, strict=True)
    weights = [0.0 if out else math.exp((cosine - max(cosines)) / temperature) for cosine, out in rows]
    return -math.log(max(weights[positive] / sum(weights), 1e-300))


def negative(cosines, ignored, positive, temperature):
    return -masked_loss(cosines, ignored, positive, temperature)


def mean_share(cosines, temperature):
    return sum(shares(row, temperature)[i] for i, row in enumerate(cosines)) / len(cosines)


def without_the_positive(cosines, temperature):
    rows = [[math.exp(cosine / temperature) for cosine in row] for row in cosines]
    return sum(math.log((sum(row) - row[i]) / row[i]) for i, row in enumerate(rows)) / len(rows)


SOLUTIONS = {"02.1": info_nce, "02.2": math.log(1024), "02.3": row_gradient, "02.4": masked_loss}
WRONG = {
    "02.1": [
        lambda cosines, temperature: info_nce(cosines, 1.0),
        lambda cosines, temperature: info_nce(cosines, 1 / temperature),
        lambda cosines, temperature: info_nce(list(zip(*cosines, strict=True)), temperature),
        lambda cosines, temperature: info_nce(cosines, temperature) * len(cosines),
        lambda cosines, temperature: -info_nce(cosines, temperature),
        mean_share,
        lambda cosines, temperature: -math.log(mean_share(cosines, temperature)),
        without_the_positive,
        lambda cosines, temperature: [info_nce(cosines, temperature)],
    ],
    "02.2": [10.0, 0.0, 1024, math.log(1024) / 0.05, 3.5],
    "02.3": [no_temperature, uphill, no_label, positive_only],
    "02.4": [unmasked, zeroed, overflowing, underflowing, negative],
}
