"""The plan: quotas, ranks, resume, passes, temperature. References are counted or dealt here by other means."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from me5lib.data.mixture import Mixture, largest_remainder, permute, webster
from me5lib.io import Me5Error


class Book:
    """A shard in memory whose texts say where they stand."""

    def __init__(self, name: str, rows: int, columns: tuple[str, ...] = ("english", "text")):
        self.name, self.rows, self.columns = name, rows, columns

    def read(self, rows):
        return [f"en {self.name} {row}" for row in rows], [f"xx {self.name} {row}" for row in rows]


ROWS = {("ui", "de"): 5000, ("ui", "fr"): 1300, ("ui", "sw"): 70, ("facts", "hi"): 900, ("facts", "ja"): 2500,
        ("wiki", "de"): 3000}


def build(rows=ROWS, **given) -> Mixture:
    shards = {key: Book("/".join(key), n, ("query", "passage") if key[0] == "wiki" else ("english", "text"))
              for key, n in rows.items()}
    return Mixture(shards, **{"steps": 97, "batch": 64, "seed": 3, **given})


def rows_of(spec) -> list[tuple[int, int, int]]:
    return list(zip(spec.stream.tolist(), spec.row.tolist(), spec.passes.tolist(), strict=True))


def test_every_source_meets_its_quota_to_one_step_in_batches_of_its_own():
    for weights in (None, {"ui": 1, "facts": 1, "wiki": 2}):
        mixture = build(weights=weights)
        found = [mixture.plan(step) for step in range(97)]
        assert all({mixture.streams[i].source for i in spec.stream} == set(spec.sources) for spec in found)
        steps = Counter(spec.sources for spec in found)
        shares = weights or {name: sum(n for key, n in ROWS.items() if key[0] == name) for name in mixture.sources}
        for source, share in shares.items():
            assert abs(steps[(source,)] - Fraction(97 * share, sum(shares.values()))) < 1
            assert steps[(source,)] == mixture.quotas[source]


@pytest.mark.parametrize("world", [2, 3, 64, 100])
@pytest.mark.parametrize("homogeneous", [1.0, 0.4, 0.0])
def test_the_ranks_together_hold_the_whole_batch_at_any_world_size(world, homogeneous):
    mixture = build(homogeneous=homogeneous)
    for step in (0, 41, 96):
        whole, parts = mixture.plan(step), [mixture.plan(step, rank, world) for rank in range(world)]
        assert list(itertools.chain(*map(rows_of, parts))) == rows_of(whole)
        assert {part.sources for part in parts} == {whole.sources}
        sizes = [len(part.row) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 64
        assert list(itertools.chain(*(mixture.batch(step, r, world) for r in range(world)))) == mixture.batch(step)


def test_a_fresh_mixture_resumes_at_any_step_on_the_same_texts():
    before, after = build(), build()
    assert [before.batch(step) for step in range(97)][40:] == [after.batch(step) for step in range(40, 97)]
    assert before.fingerprint == after.fingerprint


@pytest.mark.parametrize("homogeneous", [1.0, 0.5, 0.0])
def test_no_row_comes_again_before_its_stream_is_exhausted(homogeneous):
    mixture = build(steps=150, homogeneous=homogeneous)
    seen = {i: [] for i in range(len(mixture.streams))}
    last = dict.fromkeys(seen, 0)
    for spec in map(mixture.plan, range(150)):
        for stream in np.unique(spec.stream).tolist():
            rows, passes = (column[spec.stream == stream] for column in (spec.row, spec.passes))
            assert passes.min() >= last[stream]  # a pass is over before the next begins, also in time
            last[stream] = passes.max()
            seen[stream] += zip(passes.tolist(), rows.tolist(), strict=True)
    assert max(last.values()) >= 2
    for stream, drawn in seen.items():
        n = mixture.streams[stream].rows
        assert len(set(drawn)) == len(drawn) and all(0 <= row < n for _, row in drawn)
        tally = Counter(number for number, _ in drawn)
        assert all(tally[number] == n for number in range(last[stream]))  # an earlier pass is complete


def test_passes_differ_in_order_and_seeds_differ_in_everything():
    mixture = build(rows={("ui", "de"): 640}, steps=20)
    drawn = [row for step in range(20) for row in mixture.plan(step).row.tolist()]
    assert sorted(drawn[:640]) == sorted(drawn[640:]) == list(range(640))
    other = build(rows={("ui", "de"): 640}, steps=20, seed=4).plan(0).row.tolist()
    assert all(len(set(drawn[:64]) & set(rows)) < 30 for rows in (drawn[640:704], other))  # by chance: 6


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_languages_are_drawn_by_the_temperature(temperature):
    rows = {("ui", language): n for language, n in {"de": 40_000, "fr": 10_000, "sw": 2500, "yo": 100}.items()}
    mixture = build(rows=rows, steps=50, batch=200, temperature=temperature)
    drawn = Counter(mixture.streams[i].language for step in range(50) for i in mixture.plan(step).stream)
    total = sum(n ** temperature for n in rows.values())
    for (_, language), n in rows.items():
        assert abs(drawn[language] - 10_000 * n ** temperature / total) < 1.5
    first = Counter(mixture.streams[i].language for i in mixture.plan(7).stream)
    assert all(abs(first[language] - 200 * n ** temperature / total) < 2 for (_, language), n in rows.items())
    assert {stream.language: n for stream, n in mixture.totals().items()} == drawn


def test_the_dial_mixes_batches_and_keeps_the_shares():
    weights = {"ui": 5, "facts": 3, "wiki": 2}
    for homogeneous, own in ((0.0, 0), (0.25, 25), (0.5, 50)):
        mixture = build(weights=weights, steps=40, batch=100, homogeneous=homogeneous)
        drawn = Counter()
        for step in range(40):
            spec = mixture.plan(step)
            here = Counter(mixture.streams[i].source for i in spec.stream)
            drawn += here
            for source, count in here.items():
                expected = (100 - own) * weights[source] / 10
                assert min(abs(count - expected), abs(count - expected - own)) <= 1
        assert all(abs(drawn[source] - 400 * weight) <= own + 1 for source, weight in weights.items())


def test_a_batch_reads_few_blocks():
    mixture = build(rows={("ui", "de"): 1_000_000}, steps=10, batch=512)
    assert all(len(np.unique(mixture.plan(step).row // 1024)) <= 2 for step in range(10))
    visited = [int(mixture.plan(step).row[0]) // 1024 for step in range(10)]
    assert len(set(visited)) >= 4 and max(visited) - min(visited) > 100  # in shuffled order


def test_the_fingerprint_changes_with_every_ingredient():
    weights = {"ui": 1, "facts": 1, "wiki": 1}
    changed = [{}, {"steps": 98}, {"batch": 65}, {"seed": 4}, {"temperature": 0.6}, {"homogeneous": 0.9},
               {"weights": weights}, {"rows": {**ROWS, ("ui", "sw"): 71}}, {"rows": {**ROWS, ("ui", "yo"): 70}}]
    assert len({build(**given).fingerprint for given in changed}) == len(changed)
    assert build(weights=weights).fingerprint != build(weights=weights, rows={**ROWS, ("ui", "sw"): 71}).fingerprint
    assert build(rows=dict(reversed(ROWS.items()))).fingerprint == build().fingerprint


def test_translations_are_read_in_both_directions_and_others_in_one():
    mixture = build(rows={("ui", "de"): 1000, ("wiki", "de"): 1000}, steps=64, batch=50, homogeneous=0.0)
    pairs = [pair for step in range(64) for pair in mixture.batch(step)]
    wiki = [pair for pair in pairs if pair.source == "wiki"]
    assert wiki and all(pair.query.startswith("en") for pair in wiki)
    ui = [pair for pair in pairs if pair.source == "ui"]
    assert 0.45 < np.mean([pair.query.startswith("en") for pair in ui]) < 0.55
    once = {pair.query for pair in ui[:1000]}
    assert all((pair.query in once) == (pair.passage not in once) for pair in ui[:1000])
    turned = {pair.passage: pair.query for pair in ui[:1000]}
    assert all(pair.query in turned for pair in ui[1000:1600])  # a second pass reads every row the other way round
    assert all(pair.query.split(" ", 1)[1] == pair.passage.split(" ", 1)[1] for pair in pairs)


@pytest.mark.parametrize(("given", "says"), [
    ({"rows": {}}, "no streams"), ({"rows": {("ui", "de"): 0}}, "0 rows"), ({"steps": 0}, "at least 1"),
    ({"homogeneous": 1.5}, "0 … 1"), ({"weights": {"ui": 1}}, "weights name ui"),
    ({"weights": {"ui": 0, "facts": 0, "wiki": 0}}, "at least one above"), ({"temperature": float("nan")}, "finite"),
])
def test_nonsense_is_refused_in_one_line(given, says):
    with pytest.raises(Me5Error, match=says) as caught:
        build(**given)
    assert "\n" not in str(caught.value)
    with pytest.raises(IndexError):
        build().plan(97)
    with pytest.raises(ValueError):
        build().plan(0, 2, 2)


def test_permute_is_a_permutation_for_each_size_and_key():
    for n in (1, 2, 3, 5, 16, 1000, 1023, 1025, 4096):
        found = permute(np.arange(n), n, np.uint64(n + 5))
        assert sorted(found.tolist()) == list(range(n))
        assert n < 1000 or abs(np.corrcoef(found, np.arange(n))[0, 1]) < 0.1
    x, n, key = [2, 2, 50, 9], np.array([7, 7, 100, 3]), np.array([1, 2, 3, 4], dtype=np.uint64)
    one_by_one = [int(permute(np.array([i]), int(a), k)[0]) for i, a, k in zip(x, n, key, strict=True)]
    assert permute(np.array(x), n, key).tolist() == one_by_one and one_by_one[3] == 9  # outside its range: left alone


def test_webster_deals_slot_by_slot_like_the_textbook():
    weights = [50, 30, 15, 4, 1, 0]
    dealt = [0] * len(weights)
    for total in range(1, 400):
        first = max(range(len(weights)), key=lambda i: (Fraction(weights[i], 2 * dealt[i] + 1), -i))
        dealt[first] += 1
        assert webster(weights, total).tolist() == dealt
    assert webster([1 / 3, 1 / 3, 1 / 3], 10 ** 9).sum() == 10 ** 9


def test_largest_remainder_by_hand():
    assert largest_remainder([47, 16, 15.8, 12, 6.1, 3.1], 10).tolist() == [5, 2, 1, 1, 1, 0]
    assert largest_remainder([1, 1, 1], 2).tolist() == [1, 1, 0]
