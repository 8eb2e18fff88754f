"""Experiments: intervals, Holm and power against closed forms; pilot and plan come first; resume; every arm told."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import typer
from typer.testing import CliRunner

from me5lib import config, io
from me5lib.cli.app import experiment_command
from me5lib.data.corpus import open_corpus
from me5lib.evaluate import benchmarks, heldout, stats
from me5lib.evaluate.stats import Interval, interval, resampled
from me5lib.io import Me5Error
from me5lib.lessons import experiments, labs, tune
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled
from me5lib.train import labelled as examples
from me5lib.train import stages, teacher
from me5lib.train.upper import UpperLayers

SMALL = ["train.steps=4", "train.batch=16", "finetune.steps=2", "finetune.batch=8", "finetune.teacher_steps=2"]


def small():
    return config.load("smoke", SMALL)


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(small(), progress=False)


def content(path):
    return json.loads(path.read_text(encoding="utf8"))


# Intervals ------------------------------------------------------------------------------------------------------------


def crossed(seeds, queries, noise=0.2):
    """Scores [seeds, queries] with an effect of the seed, of the query, and of both."""
    rng = np.random.default_rng(0)
    return (rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 0.3, queries)
            + rng.normal(0, noise, (seeds, queries)))  # fmt: skip


def test_seeds_alone_give_students_t_and_both_give_the_closed_form():
    values = np.repeat(np.array([0.1, 0.15, 0.3, 0.32, 0.5])[:, None], 7, axis=1)  # no query differs
    found = resampled(values[None], draws=40_000)[0]
    right = scipy.stats.t.interval(0.95, 4, values.mean(), scipy.stats.sem(values[:, 0]))
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx(right, abs=0.03 * (right[1] - right[0]))
    # two-way analysis of variance; a t of 7 degrees of freedom has 7 / 5 of the normal's variance
    values = crossed(8, 60)
    by_seed, by_query = values.mean(1) - values.mean(), values.mean(0) - values.mean()
    rest = values - values.mean() - by_seed[:, None] - by_query
    right = (by_seed**2).mean() / 7 * 7 / 5 + (by_query**2).mean() / 60 + (rest**2).mean() / (7 * 60) * 7 / 5
    assert resampled(values[None], draws=40_000)[0].var() == pytest.approx(right, rel=0.05)


def test_with_one_seed_it_is_scipys_bootstrap_over_queries():
    values = crossed(1, 80)
    right = scipy.stats.bootstrap((values[0],), np.mean, n_resamples=10_000, method="percentile", rng=1)
    found, ends = interval(resampled(values[None])[0], values.mean()), right.confidence_interval
    assert [found.low, found.high] == pytest.approx([ends.low, ends.high], abs=0.04 * (ends.high - ends.low))
    assert found.mean == values.mean()


def test_a_meaning_is_drawn_with_all_its_queries_and_counts_by_them():
    rng, about = np.random.default_rng(0), np.array(list("aaaaabbc"))
    values = rng.random(8)
    sums, sizes = ([fold[about == each].sum() for each in "abc"] for fold in (values, np.ones(8)))
    every = [sum(sums[i] for i in drawn) / sum(sizes[i] for i in drawn)
             for drawn in itertools.product(range(3), repeat=3)]  # all 27 equally likely draws  # fmt: skip
    found = resampled(values[None, None], about, draws=54_000)[0]
    assert set(found.round(9)) == set(np.round(every, 9))
    assert found.mean() == pytest.approx(np.mean(every), abs=0.005)
    with pytest.raises(ValueError, match="7 meanings for 8 queries"):
        resampled(values[None, None], about[:7])


@pytest.mark.parametrize("seeds", [2, 5])
def test_an_interval_covers_what_it_says_where_queries_come_in_clusters(seeds):
    rng, hits = np.random.default_rng(seeds), {"meanings": 0, "queries": 0}
    for trial in range(200):  # meanings of 1 to 11 queries each; the truth is 0
        about = np.repeat(np.arange(40), rng.integers(1, 12, 40))
        scores = rng.normal(0, 0.05, (seeds, 1)) + rng.normal(0, 0.3, 40)[about] + rng.normal(0, 0.1, len(about))
        for unit, names in (("meanings", about), ("queries", None)):
            low, high = np.quantile(resampled(scores[None], names, trial, 400)[0], [0.025, 0.975])
            hits[unit] += low < 0 < high
    assert hits["meanings"] >= 180 and hits["meanings"] - hits["queries"] > 2  # of 200: 190 are meant


def test_differences_are_paired_by_seed_and_by_query():
    values = crossed(3, 40, noise=0)
    means = resampled(np.stack([values, values + 0.05]))
    assert np.allclose(means[1] - means[0], 0.05)
    assert interval(means[1] - means[0], 0.05).verdict == "ahead"
    assert (resampled(np.stack([values, values[:, ::-1]]))[0] - means[0] == 0).all()  # the same draws every time


def test_a_verdict_needs_an_interval_without_0_and_scores_must_be_numbers():
    for low, high, verdict in ((0.1, 0.2, "ahead"), (-0.2, -0.1, "behind"), (-0.1, 0.1, "undecided"),
                               (0.0, 0.1, "undecided")):
        assert Interval((low + high) / 2, low, high).verdict == verdict
    for bad in (np.zeros((2, 3)), np.zeros((1, 0, 4)), np.full((1, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="scores"):
            resampled(bad)


def test_p_holm_and_equivalence_by_hand():
    draws = np.random.default_rng(0).normal(1.5, 1, 50_000)
    assert stats.p_value(draws) == pytest.approx(2 * scipy.stats.norm.sf(1.5), rel=0.03)
    assert stats.p_value(-draws) == stats.p_value(draws)
    assert stats.p_value(np.zeros(99)) == 1 and stats.p_value(np.ones(99)) == 0.02
    # 4 · 0.01; 3 · 0.02; 2 · 0.03, no less than the one before; 0.2, no less either: by the method's definition
    assert stats.holm([0.2, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.2, 0.04, 0.06, 0.06])
    assert stats.holm([0.6, 0.9]).tolist() == [1, 1] and not len(stats.holm([]))
    for centre, spread, same in ((0.0, 0.0055, True), (0.0, 0.007, False), (0.008, 0.001, True), (0.009, 0.001, False)):
        draws = centre + spread * scipy.stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)
        assert stats.equivalent(draws) == same == (abs(centre) + 1.645 * spread < 0.01)


def test_the_detectable_difference_is_found_in_four_of_five_experiments():
    rng, meanings, seeds, found = np.random.default_rng(3), np.arange(150), 5, []

    def runs(n):
        return rng.normal(0.5, 0.01, (n, 1)) + rng.normal(0, 0.25, (n, 150))

    least = np.mean([stats.detectable(runs(4), meanings, seeds) for _ in range(30)])
    for trial in range(150):
        stack = np.stack([runs(seeds), runs(seeds) + least])
        means = resampled(stack, meanings, trial, 400)
        found.append(stats.p_value(means[1] - means[0]) < 0.05)
    assert 0.7 < np.mean(found) < 0.97


# Measuring ------------------------------------------------------------------------------------------------------------


def test_reciprocal_ranks_by_hand():
    scores = np.array([[0.9, 0.2, 0.5, 0.7], [0.1, 0.8, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]])
    right = np.array([[0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=bool)
    assert heldout.reciprocal_ranks(scores, right) == pytest.approx([1 / 3, 1, 1 / 2.5])


def test_searches_have_answers_that_nobody_trained_on_and_one_meaning_in_all_languages(corpus):
    tests = heldout.searches(corpus)
    assert set(tests) == set(labs.Stages.metrics) and all(tests.values())
    assert all(part.relevant.any(axis=1).all() and part.relevant.shape == (len(part.queries), len(part.passages))
               and len(part.meanings) == len(part.queries) for parts in tests.values() for part in parts)  # fmt: skip
    dev, trained = corpus.labelled("dev"), {(row.query, row.language) for row in corpus.labelled()}
    assert sum(len(part.queries) for part in tests["dev"]) == len(dev)
    assert not trained & {(row.query, row.language) for row in dev}
    for right in (part.relevant for parts in tests.values() for part in parts):
        assert (heldout.reciprocal_ranks(right.astype(float), right) == 1).all()
        assert heldout.reciprocal_ranks(np.zeros(right.shape), right).max() < 1
    meanings = heldout.query_meanings(tests)
    assert {name: len(own) for name, own in meanings.items()} == {
        name: sum(len(part.queries) for part in parts) for name, parts in tests.items()}
    assert all(len(set(own)) < len(own) for own in meanings.values())
    rows = [Labelled(name, ("-",), (), "cldr-facts", code) for name, code in
            (("Germany", "en"), ("Deutschland", "de"), ("Німеччина", "uk"), ("France", "en"))]  # fmt: skip
    one, two, three, other = map(heldout.fact_meaning, rows)
    assert one == two == three != other
    sets = corpus.task("xquad").sets
    assert len(tests["xquad"]) == len(sets) * (len(sets) - 1)  # every pair of languages, both ways
    first, second = list(sets.values())[:2]
    part = tests["xquad"][0]
    assert part.queries[0] in first.queries.values()
    assert {f"{title} {text}" for title, text in second.documents.values()} == set(part.passages)


# The upper layers -----------------------------------------------------------------------------------------------------


def test_upper_layers_over_kept_states_are_the_encoder_and_learn_alone(monkeypatch, tmp_path, corpus):
    scale = config.load("smoke", [*SMALL, "model.layers=4"])
    whole = Encoder.new(scale.model, stages.run_tokenizer(corpus, scale, tmp_path), 0)
    texts = [row.query for row in corpus.labelled()[:40]]
    right, before = whole.encode(texts), {name: w.clone() for name, w in whole.state_dict().items()}
    whole_again = whole.encode([f"{text} again" for text in texts])
    upper = UpperLayers(whole, 3)
    assert np.einsum("nd,nd->n", upper.encode(texts), right).min() > 0.9999
    with monkeypatch.context() as patch:  # interrupted at the second piece: nothing is taken for kept
        patch.setattr("me5lib.train.upper.piece_tokens", lambda device: 64)
        run, calls = upper.backbone.embeddings.kept.lower.backbone.forward, []
        patch.setattr(upper.backbone.embeddings.kept.lower.backbone, "forward", lambda **batch: calls.append(1) or (
            run(**batch) if len(calls) < 2 else (_ for _ in ()).throw(KeyboardInterrupt)))
        with pytest.raises(KeyboardInterrupt):
            upper.encode([f"{text} again" for text in texts])
    again = [f"{text} again" for text in texts]
    assert np.einsum("nd,nd->n", upper.encode(again), whole_again).min() > 0.9999
    upper.encode(["another text"])  # the table grows, with room to spare, which the training below fills
    kept = len(upper.backbone.embeddings.kept.states)
    one = upper.copy()
    assert np.abs(one.encode(texts) - upper.encode(texts)).max() == 0
    assert len(one.backbone.embeddings.kept.states) == kept  # nothing is computed or kept twice
    tune.train_on(one, lambda step: corpus.labelled()[:8], scale.finetune, 0, stages.card_prefixes, progress=False)
    assert np.abs(one.encode(texts) - upper.encode(texts)).max() > 1e-3
    assert np.einsum("nd,nd->n", upper.encode(texts), right).min() > 0.9999
    assert all((whole.state_dict()[name] == before[name]).all() for name in whole.state_dict())  # the lower ones
    one.save(tmp_path / "whole")  # with the layers below
    assert np.einsum("nd,nd->n", Encoder.load(tmp_path / "whole").encode(texts), one.encode(texts)).min() > 0.9999
    # a teacher reads both sides together: the passage's score depends on the query before it
    logits = teacher.Teacher(upper, 0.05, 0).scores([("query: a b", "x"), ("query: c d", "x")], (8, 8))
    assert np.isfinite(logits).all() and logits[0] != logits[1]


# What the arms learn --------------------------------------------------------------------------------------------------


def test_questions_are_split_by_meaning_and_planted_copies_are_in_the_pool(corpus, tmp_path):
    lab = tune.Negatives(config.load("smoke", [*SMALL, "finetune.steps=10"]), tmp_path, corpus)
    for own in lab.questions.values():
        train, test = ({asked.meaning for asked in own if asked.tests == tested} for tested in (False, True))
        assert not train & test and bool(train) == bool(test) == bool(own)
    (search,) = lab.tests["near-misses"][:1]
    right = {text for text, of in zip(search.passages, search.relevant.any(axis=0), strict=True) if of}
    copies = [{f"Version {number}. {text.partition('. ')[2]}" for number in range(1, 5)} for text in right]
    assert set(search.passages) == set().union(*copies) and all(text.startswith("Version 4. ") for text in right)
    assert sum(map(bool, lab.questions.values())) > 2
    groups = {name: lab.groups(next(arm for arm in lab.arms(small()) if arm.name == name), 0)[1]
              for name in ("random", "own wrong answers")}  # fmt: skip
    for name, made in groups.items():
        rows = [row for row in made.values() if row.source == "gsm"]
        assert rows
        shown = {text.partition(". ")[0] for row in rows for text in row.negatives}
        assert shown == ({"Version 4"} if name == "random" else {"Version 1", "Version 2", "Version 3"})


def test_a_cross_fitted_teacher_has_not_learnt_what_it_scores(monkeypatch, tmp_path, corpus):
    learnt, train = [], teacher.train_teacher
    monkeypatch.setattr(teacher, "train_teacher", lambda encoder, rows, *a, **k: learnt.append(
        {row.query for row in rows.values()}) or train(encoder, rows, *a, **k))
    scored, score = [], teacher.score_groups
    monkeypatch.setattr(teacher, "score_groups", lambda model, rows, *a, **k: scored.append(
        {row.query for row in rows}) or score(model, rows, *a, **k))
    lab = tune.Negatives(small(), tmp_path, corpus)
    lead = lab.teacher_lead(0)
    assert len(learnt) == len(scored) == 2 and not any(a & b for a, b in zip(learnt, scored, strict=True))
    assert lead["groups"] == len(lab.groups(lab.arms(small())[5], 0)[1]) and lead["low"] <= lead["mean"] <= lead["high"]
    with_it = {arm.name: arm for arm in lab.arms(small(), teacher=True)}
    kept = {name: [] for name in ("mined, filtered + KD", "mined, filtered + KD, scores shuffled")}
    for name in kept:
        monkeypatch.setattr(tune, "train_on", lambda encoder, rows_of, *a, name=name, **k: kept[name].extend(
            rows_of(0)) or encoder)
        lab.encoder(with_it[name], 0)
    heard, mixed = ([row.teacher_scores for row in rows] for rows in kept.values())
    assert heard != mixed and [sorted(own) for own in heard] == [sorted(own) for own in mixed]  # within each group


def test_forgetting_replays_a_tenth_and_averages_weights(monkeypatch, tmp_path, corpus):
    scale = config.load("smoke", [*SMALL, "finetune.steps=20", "finetune.lr=1e-2"])
    lab, sources, train = tune.Forgetting(scale, tmp_path, corpus), [], tune.train_on
    monkeypatch.setattr(tune, "train_on", lambda encoder, rows_of, *a, **k: sources.append(
        Counter(row.source for step in range(20) for row in rows_of(step)[:1])) or train(encoder, rows_of, *a, **k))
    arms = {arm.name: arm for arm in lab.arms(scale)}
    plain, half, start, _ = (lab.encoder(arms[name], 0).state_dict()
                             for name in ("plain", "alpha 0.5", "start", "10 % replay"))
    assert sources == [{"fastapi": 20}, {"fastapi": 18, "cldr": 2}]  # and the average was not trained again
    name = next(name for name in plain if name.endswith("dense.weight"))
    assert (plain[name] - start[name]).abs().max() > 1e-3
    np.testing.assert_allclose(half[name], (plain[name] + start[name]) / 2, atol=1e-6)
    learnt = {page.row.query for page in lab.pages[True] if not page.tests}
    assert learnt and not learnt & {query for part in lab.tests["target"] for query in part.queries}


# The plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_has_one_primary_metric_controls_and_arms_that_differ_in_what_is_compared():
    for name, lab in experiments.LABS.items():
        plan = experiments.planned(name, small())
        names, written = [arm.name for arm in plan.arms], plan.as_json()
        assert len(set(names)) == len({arm.folder for arm in plan.arms}) == len(names)
        assert plan.seeds == tuple(range(lab.seeds)) and lab.seeds >= 3 + 2 * (name in ("stages", "negatives"))
        assert all(arm.against in names for arm in plan.arms if arm.against)
        assert written == json.loads(json.dumps(written)) and written["metrics"] == list(lab.metrics)
        assert "provenance" not in written["scale"] and written["scale"]["train"]["steps"] == 4
        assert all(name in "\n".join(plan.lines()) for name in names)
        twin = next(arm for arm in plan.arms if arm.role == "A/A")
        bare = [dataclasses.replace(arm, name="", against="") for arm in plan.arms if arm is not twin]
        assert len(set(bare)) == len(bare)  # no arm equals another by construction, but for the twin
        assert bare[0] == dataclasses.replace(twin, name="", against="", role="") and twin.against == names[0]
        assert set(plan.positive[:2]) <= set(names) and plan.positive[2] in plan.metrics
    steps = {arm.name: arm.pairs + arm.labelled for arm in experiments.planned("stages", small()).arms}
    assert set(steps.values()) == {6, 0} and steps["untrained"] == 0
    assert {arm.negatives for arm in experiments.planned("negatives", small()).arms} == {*examples.NEGATIVE_KINDS, ""}
    real = experiments.planned("negatives", config.load("tiny", ["finetune.lr=3e-5"])).scale.finetune
    assert (real.lr, real.temperature) == (3e-5, tune.TUNED["temperature"])  # by hand; else the experiment's own


def test_experiments_of_a_scale_lie_together(monkeypatch, tmp_path):
    monkeypatch.setenv("ME5_OUT", str(tmp_path))
    assert experiments.home(small()) == tmp_path / "experiments" / "smoke"
    assert experiments.home(small(), str(tmp_path / "mine")) == tmp_path / "mine"


@pytest.mark.parametrize(("name", "scale", "words"), [("stage", "smoke", "choose one of stages, negatives"),
                                                     ("negatives", "workshop", "run offline")])  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(name, scale, words):
    with pytest.raises(Me5Error, match=words):
        experiments.planned(name, config.load(scale))
    with pytest.raises(Me5Error, match="--seeds 2 or more"):
        experiments.planned("stages", small(), seeds=1)
    with pytest.raises(Me5Error, match="no task 'SciFakt': did you mean SciFact"):
        experiments.planned("stages", small(), suite="STSBenchmark, SciFakt")


# Running --------------------------------------------------------------------------------------------------------------


def pretended(monkeypatch, base, stop_at=None, lead=0.05):
    """No training: scores by the arm's name; the (seed, arm) that were run; asserts that the plan stands."""
    made, about = [], [f"meaning {k // 2}" for k in range(40)]

    def measured(self, arm, seed):
        part = "pilot-plan.json" if seed >= experiments.PILOT else "plan.json"
        assert any((folder / part).is_file() for folder in base.iterdir())
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append((seed, arm.name))
        rng = np.random.default_rng([seed, len(arm.name)])
        better = 0.3 * (arm.name in (self.positive[0], "start"))
        scores = {metric: (rng.random(40) * 0.5 + better).round(5).tolist() for metric in self.meanings()}
        return {"scores": scores, "conditions": {"threads": 1}, "seconds": 30.0}

    monkeypatch.setattr(labs.Lab, "measured", measured)
    monkeypatch.setattr(labs.Lab, "meanings", lambda self: dict.fromkeys(self.metrics, about))
    monkeypatch.setattr(tune.Negatives, "teacher_lead", lambda self, seed: {
        "teacher": 0.5, "start": 0.4, "groups": 9, "mean": lead, "low": lead - 0.04, "high": lead + 0.04})
    return made


def test_the_pilot_has_seeds_of_its_own_and_says_what_can_be_seen_and_whether_a_teacher_is_heard(monkeypatch, tmp_path):
    made = pretended(monkeypatch, tmp_path)
    plan = experiments.planned("negatives", small())
    done = experiments.piloted(plan, tmp_path, progress=False)
    assert made == [(seed, name) for name in ("random", "random again") for seed in (1000, 1001)]
    assert not {seed for seed, _ in made} & set(plan.seeds) and experiments.piloted(done, tmp_path, False) == done
    assert len(made) == 4 and done.pilot == content(tmp_path / "negatives" / "pilot.json")
    runs = np.array([content(tmp_path / "negatives" / "pilot" / f"seed-{seed}.{arm}.json")["scores"]["search"]
                     for arm in ("random", "random-again") for seed in (1000, 1001)])  # fmt: skip
    apart = (runs[:2].mean(0) - runs[2:].mean(0)).reshape(20, 2).mean(1)
    error = (2 * runs.mean(1).var(ddof=1) / 5 + apart.var() / 20) ** 0.5
    assert done.pilot["metrics"]["search"]["detectable"] == pytest.approx(2.8 * error, rel=0.15)  # more where t is
    assert done.pilot["metrics"]["search"]["meanings"] == 20
    text = "\n".join(done.lines())
    assert "about 22 minutes" in text and "arms with KD" in text
    assert sum(arm.teacher for arm in done.arms) == 2 and sum(arm.role == "shuffled" for arm in done.arms) == 1
    pretended(monkeypatch, tmp_path / "other", lead=0.03)
    (tmp_path / "other").mkdir()
    deaf = experiments.piloted(plan, tmp_path / "other", progress=False)
    assert not any(arm.teacher for arm in deaf.arms) and "no arm has one" in "\n".join(deaf.lines())
    lesson = experiments.piloted(experiments.planned("near-misses", small()), tmp_path / "other", progress=False)
    assert lesson.pilot["teacher"] is None and len(lesson.arms) == 4
    with pytest.raises(Me5Error, match="was written before"):
        experiments.piloted(experiments.planned("negatives", small(), seeds=6), tmp_path, progress=False)


def test_the_plan_is_written_before_any_arm_and_no_other_is_let_in(monkeypatch, tmp_path):
    made = pretended(monkeypatch, tmp_path)
    first = experiments.planned("stages", small(), seeds=2)
    experiments.run_experiment(first, tmp_path, progress=False)
    before = content(tmp_path / "stages" / "plan.json")
    for other in (experiments.planned("stages", small(), seeds=3),
                  experiments.planned("stages", config.load("smoke", [*SMALL, "train.lr=1e-3"]), seeds=2),
                  dataclasses.replace(first, arms=first.arms[:-1])):  # fmt: skip
        with pytest.raises(Me5Error, match=r"was written before the run[^\n]*$"):
            experiments.run_experiment(other, tmp_path, progress=False)
    assert content(tmp_path / "stages" / "plan.json") == before and len(made) == 2 * len(first.arms)
    with io.locked(tmp_path / ".lock"), pytest.raises(Me5Error, match="at work in"):
        experiments.run_experiment(first, tmp_path)
    (tmp_path / "stages" / "plan.json").unlink()  # the arms say, too, whose they are
    with pytest.raises(Me5Error, match="is of another plan"):
        experiments.run_experiment(other, tmp_path, progress=False)


def test_a_kill_costs_one_arm_and_every_arm_is_reported_with_its_difference(monkeypatch, tmp_path):
    plan, folder = experiments.planned("negatives", small(), seeds=3), tmp_path / "negatives"
    first = pretended(monkeypatch, tmp_path, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        experiments.run_experiment(plan, tmp_path, progress=False)
    assert not (folder / "results.json").exists()
    second = pretended(monkeypatch, tmp_path)
    results = experiments.run_experiment(plan, tmp_path, progress=False)
    assert Counter([*first, *second]) == Counter((seed, arm.name) for seed in plan.seeds for arm in plan.arms)
    again = pretended(monkeypatch, tmp_path)
    assert experiments.run_experiment(plan, tmp_path, progress=False) == results == content(folder / "results.json")
    assert not again

    names = [arm.name for arm in plan.arms]
    assert [arm["name"] for arm in results["arms"]] == list(pd.read_csv(folder / "table.csv")["arm"]) == names
    assert {"plan", "corpus", "scale", "seeds", "conditions"} <= set(results)
    assert set(results["minutes"].values()) == {1.5}
    scores = {arm.name: np.array([content(folder / "arms" / f"seed-{seed}.{arm.folder}.json")["scores"]["search"]
                                  for seed in plan.seeds]) for arm in plan.arms}
    p = {}
    for arm in results["arms"]:
        own = scores[arm["name"]]
        assert arm["search"]["low"] <= arm["search"]["mean"] <= arm["search"]["high"]
        assert arm["search"]["seeds"] == pytest.approx(own.mean(1).tolist(), abs=1e-6)
        assert bool(arm["difference"]) == bool(arm["against"])
        if arm["against"]:
            found, other = arm["difference"]["search"], scores[arm["against"]]
            assert found["mean"] == pytest.approx((own - other).mean(), abs=1e-6)
            assert found["seeds ahead"] == (own.mean(1) > other.mean(1)).sum()
            if arm["name"] == "random again":
                assert found["adjusted"] == found["p"]
            else:
                p[arm["name"]] = found["p"]
            assert (found["verdict"] in ("ahead", "behind")) == (found["adjusted"] < 0.05)
    least = min(p, key=p.get)
    by_name = {arm["name"]: arm for arm in results["arms"]}
    assert by_name[least]["difference"]["search"]["adjusted"] == pytest.approx(min(1, len(p) * p[least]), abs=1e-5)
    assert by_name["own wrong answers"]["difference"]["search"]["verdict"] == "ahead"
    assert results["controls"] == {"A/A undecided": True, "positive": ["own wrong answers", "random", "near-misses"],
                                   "positive ahead": 3, "shuffled scores do not help": None}  # fmt: skip
    said = experiments.sentences(results)
    assert said[0].startswith("controls: A/A undecided: yes; positive control (own wrong answers over random on near-")
    assert "ahead in 3 of 3 seeds" in said[0] and len(said) == 2 + len(p)
    assert by_name["BM25"]["lines"] > 50 and by_name["random"]["lines"] == 0
    assert (folder / "figure.png").stat().st_size > 10_000


def test_the_frontier_is_what_is_gained_and_forgotten_against_the_start():
    rng, names = np.random.default_rng(0), ["plain", "start", "good", "bad"]
    gain, loss = {"plain": 0.2, "start": 0, "good": 0.18, "bad": 0.05}, {"plain": 0.1, "start": 0, "good": 0.01,
                                                                         "bad": 0.05}  # fmt: skip
    draws = {"target": np.array([[0.5 + gain[name]] for name in names]) + rng.normal(0, 1e-4, 500),
             "other languages": np.zeros((4, 500)), "gsm": np.array([[0.7 - 2 * loss[name]] * 500 for name in names]),
             "xquad": np.array([[0.7] * 500 for _ in names])}  # fmt: skip
    points = {point["name"]: point for point in experiments._frontier(names, draws)}
    for name, point in points.items():
        assert point["gain"]["mean"] == pytest.approx(gain[name]) and point["good"] == (name == "good")
        assert point["forgetting"]["mean"] == pytest.approx(loss[name])
    assert points["good"]["gain beyond"]["mean"] == pytest.approx(0.18 - 0.8 * 0.2, abs=1e-3)
    assert points["good"]["forgetting within"]["mean"] == pytest.approx(0.2 * 0.1 - 0.01)


def test_the_mixed_control_has_the_very_batches_of_the_two_stages(monkeypatch, tmp_path, corpus):
    seen, made = [], []
    work, make = stages.work_of, examples.add_negatives
    monkeypatch.setattr(stages, "work_of", lambda rows, *a: seen.append(rows) or work(rows, *a))
    monkeypatch.setattr(examples, "add_negatives", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    scale = small()
    start = stages.initial_encoder(scale, 0, tmp_path, corpus)
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    encoder = labs.mixed(start, scale, 0, corpus)
    drawn, rows = corpus.mixture(scale, 0), examples.drop_invalid(corpus.labelled())[0]
    labelled = examples.SamplingPlan(rows, scale.finetune, 0, scale.data.language_temperature)
    right = [drawn.batch(k) for k in range(4)]
    groups = dict(zip(labelled.passes(), made[0][0], strict=True))
    right += [labelled.batch(groups, k, 3) for k in range(2)]
    assert all(len(row.negatives) >= 3 for row in groups.values())
    assert len(seen) == 6 and Counter(map(tuple, seen)) == Counter(map(tuple, right))
    assert any((weight != before[name]).any() for name, weight in encoder.state_dict().items())


def test_batches_are_shuffled_each_once():
    turns = labs.shuffled(30, 10, 3)
    assert sorted(turns) == [(False, k) for k in range(30)] + [(True, k) for k in range(10)]
    for kind in (False, True):
        own = [turn for labelled, turn in turns if labelled is kind]
        assert own == sorted(own)
    assert 0 < sum(labelled for labelled, _ in turns[:20]) < 10 and turns != labs.shuffled(30, 10, 4)


# The hub and the command ----------------------------------------------------------------------------------------------


def command(*arguments):
    app = typer.Typer()
    app.command("experiment")(experiment_command)
    return CliRunner().invoke(app, list(arguments))


def test_a_scale_of_the_hub_is_told_and_not_started():
    done = command("stages", "--scale", "workshop", "--suite", "eng-mini")
    assert isinstance(done.exception, Me5Error) and "--yes" in str(done.exception)
    assert "eng-mini" in done.output and "pairs 2000, labelled 6234" in done.output


def test_a_suite_is_measured_by_tasks_of_mteb_from_a_hub(shared, client, tmp_path, monkeypatch):
    import mteb

    tasks = benchmarks.SUITES["eng-mini"]
    known = mteb.get_tasks(tasks=list(tasks), languages=["eng"])
    assert sorted(task.metadata.name for task in known) == sorted(tasks) and len(tasks) >= 8
    assert {"STSBenchmark", "SciFact"} <= set(tasks)
    monkeypatch.syspath_prepend(shared / "hub")
    import localhub

    server, endpoint = localhub.serve(shared / "hub" / "root")
    code = """
import json, sys
from pathlib import Path
from me5lib import config
from me5lib.data.corpus import open_corpus
from me5lib.lessons import labs
scale = config.load("smoke")
lab = labs.Stages(scale, Path(sys.argv[1]), open_corpus(scale, False), "STSBenchmark,SciFact")
print(json.dumps([lab.meanings(), lab.measured(labs.Arm("untrained", start=True), 0)["scores"]]))
"""
    try:
        done = client(code, tmp_path / "lab", endpoint=endpoint, USE_TORCH="1")
    finally:
        server.shutdown()
    about, scores = json.loads(done.stdout.splitlines()[-1])
    assert about == {"STSBenchmark,SciFact": ["STSBenchmark", "SciFact"]}
    similar, found = scores["STSBenchmark,SciFact"]
    assert 0.2 < similar < 0.9 and 0.01 < found < 0.7  # a bag of random word vectors, no constant


def test_tasks_of_mteb_are_scored_in_order(tmp_path, corpus):
    from me5lib.evaluate import offline_table
    from me5lib.evaluate.protocol import Protocol

    scale = small()
    encoder = Encoder.new(scale.model, stages.run_tokenizer(corpus, scale, tmp_path), 0)
    tasks = heldout.mteb_tasks(map(corpus.task, ("xquad", "fastapi")))
    found = labs.on_mteb(encoder, "untrained", tasks, tmp_path / "mteb")
    rows = {"untrained": Protocol(encoder, "untrained")}
    scores = offline_table.table_scores(rows, tasks, tmp_path / "table")
    assert found == pytest.approx([scores[scores.task == t.metadata.name].score.mean() for t in tasks], abs=1e-4)


def test_the_command_prints_the_pilot_the_controls_and_every_arm(monkeypatch, tmp_path):
    made = pretended(monkeypatch, tmp_path)
    options = [part for override in SMALL for part in ("--set", override)]
    line = ("stages", "--scale", "smoke", "--out", str(tmp_path), *options)
    done = command(*line, "--pilot")
    assert done.exit_code == 0 and len(made) == 4 and "smallest difference" in done.output, done.exception
    done = command(*line)
    assert done.exit_code == 0, done.exception
    shown = done.output.split("primary metric")[-1]
    assert all(arm.name in shown for arm in experiments.planned("stages", small()).arms)
    assert str(tmp_path / "stages") in shown and "controls: A/A undecided" in shown
    assert len(made) == 4 + 5 * 6


@pytest.mark.parametrize("name", [name for name in experiments.LABS if name != "near-misses"])
def test_stored_results_are_those_of_a_full_run(name):
    found = experiments.stored(name)
    if found is None:
        pytest.skip("no full run is stored")
    assert found["experiment"] == name and len(found["seeds"]) >= experiments.LABS[name].seeds
    assert len(found["plan"]) == 16 and found["conditions"] and found["pilot"]
    assert found["controls"]["A/A undecided"] and found["controls"]["positive ahead"] == len(found["seeds"])
    assert len(experiments.arm_table(found)) == len(found["arms"])
