"""Alignment in numbers, against plain loops and spaces whose answer is known."""

import numpy as np
import pytest

from me5lib.lessons import alignment


@pytest.fixture
def space():
    """Three languages, 20 meanings: a shared part, a direction of the language's own, a little noise."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(1, 20, 16)), 6 * rng.normal(size=(3, 1, 16))
    return shared + own + 0.05 * rng.normal(size=(3, 20, 16))


def test_bitext_accuracy_is_the_plain_loop(space):
    table = alignment.bitext_accuracy(space)
    for i in range(3):
        assert np.isnan(table[i, i])
        for j in range(3):
            if i != j:
                hits = 0
                for m in range(20):
                    cosines = [a @ space[i, m] / np.linalg.norm(a) for a in space[j]]
                    hits += int(np.argmax(cosines) == m)
                assert table[i, j] == pytest.approx(hits / 20)


def test_centring_removes_the_language_and_keeps_the_meaning(space):
    assert alignment.language_probe(space) == 1.0
    flat = alignment.centred(space)
    assert alignment.language_probe(flat) < 0.6
    assert np.nanmean(alignment.bitext_accuracy(flat)) > np.nanmean(alignment.bitext_accuracy(space)) + 0.1
    assert alignment.neighbour_agreement(flat, k=2) == 1.0
    assert alignment.neighbour_agreement(alignment.unit(space), k=2) < 0.1


def test_neighbour_agreement_is_the_plain_loop(space):
    points = space[..., :2]
    flat = points.reshape(-1, 2)
    hits = [0, 0, 0]
    for i, point in enumerate(flat):
        order = sorted((j for j in range(60) if j != i), key=lambda j: np.sum((flat[j] - point) ** 2))
        hits[i // 20] += sum(j % 20 == i % 20 for j in order[:3])
    assert alignment.agreement_by_language(points, k=3) == pytest.approx([own / 60 for own in hits])
    assert alignment.neighbour_agreement(points, k=3) == pytest.approx(sum(hits) / 180)


def test_a_hub_shows():
    rng = np.random.default_rng(1)
    even = rng.normal(size=(2, 100, 8))
    centre = even.reshape(-1, 8).mean(axis=0) + 3.0  # everything leans one way; texts near that way become hubs
    leaning = even * np.linspace(0.05, 1, 200).reshape(2, 100, 1) + centre
    assert alignment.hubness(leaning) > alignment.hubness(even) + 0.5
