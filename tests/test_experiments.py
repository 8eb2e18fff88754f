"""Experiments: intervals against closed forms; the plan before the run; resume; every arm reported."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import typer
from typer.testing import CliRunner

from me5lib import config, io
from me5lib.cli import experiment
from me5lib.data.corpus import open_corpus
from me5lib.evaluate import heldout
from me5lib.evaluate.stats import Interval, interval, resampled
from me5lib.io import Me5Error
from me5lib.lessons import experiments
from me5lib.train import labelled as examples
from me5lib.train import loop, stages

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


def test_the_spread_of_resampled_means_is_that_of_the_closed_form():
    # two-way analysis of variance; of S seeds S - 1 are drawn, of Q queries Q
    values = crossed(5, 60)
    by_seed, by_query = values.mean(1) - values.mean(), values.mean(0) - values.mean()
    rest = values - values.mean() - by_seed[:, None] - by_query
    right = (by_seed**2).mean() / 4 + (by_query**2).mean() / 60 + (rest**2).mean() / (4 * 60)
    means = resampled(values[None], draws=20_000)[0]
    assert means.mean() == pytest.approx(values.mean(), abs=3 * means.std() / 20_000**0.5)
    assert means.var() == pytest.approx(right, rel=0.04)


def test_with_one_seed_it_is_scipys_bootstrap_over_queries():
    values = crossed(1, 80)
    right = scipy.stats.bootstrap((values[0],), np.mean, n_resamples=10_000, method="percentile", rng=1)
    found, ends = interval(resampled(values[None])[0], 0.95, values.mean()), right.confidence_interval
    assert [found.low, found.high] == pytest.approx([ends.low, ends.high], abs=0.04 * (ends.high - ends.low))
    assert found.mean == values.mean()


def test_differences_are_paired_by_seed_and_by_query():
    values = crossed(3, 40, noise=0)
    means = resampled(np.stack([values, values + 0.05]))
    assert np.allclose(means[1] - means[0], 0.05)
    assert interval(means[1] - means[0], 0.95, 0.05).verdict == "ahead"
    assert (resampled(np.stack([values, values[:, ::-1]]))[0] - means[0] == 0).all()  # the same draws every time


def test_a_verdict_needs_an_interval_without_0_and_scores_must_be_numbers():
    for low, high, verdict in ((0.1, 0.2, "ahead"), (-0.2, -0.1, "behind"), (-0.1, 0.1, "undecided"),
                               (0.0, 0.1, "undecided")):
        assert Interval((low + high) / 2, low, high).verdict == verdict
    for bad in (np.zeros((2, 3)), np.zeros((1, 0, 4)), np.full((1, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="scores"):
            resampled(bad)


# Measuring ------------------------------------------------------------------------------------------------------------


def test_reciprocal_ranks_by_hand():
    scores = np.array([[0.9, 0.2, 0.5, 0.7], [0.1, 0.8, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]])
    right = np.array([[0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=bool)
    assert heldout.reciprocal_ranks(scores, right) == pytest.approx([1 / 3, 1, 1 / 2.5])


def test_searches_have_answers_that_nobody_trained_on_and_rules_score_what_they_should(corpus):
    tests = heldout.searches(corpus)
    assert set(tests) == set(experiments.OFFLINE) and all(tests.values())
    assert all(part.relevant.any(axis=1).all() and part.relevant.shape == (len(part.queries), len(part.passages))
               for parts in tests.values() for part in parts)  # fmt: skip
    dev, trained = corpus.labelled("dev"), {(row.query, row.language) for row in corpus.labelled()}
    assert sum(len(part.queries) for part in tests["dev"]) == len(dev)
    assert not trained & {(row.query, row.language) for row in dev}
    perfect = heldout.query_scores(tests, lambda search: search.relevant.astype(float))
    assert all((values == 1).all() for values in perfect.values())
    level = heldout.query_scores(tests, lambda search: np.zeros(search.relevant.shape))
    assert level["bitext"].mean() == 0 and level["dev"].max() < 1
    once, again = (heldout.query_scores(tests, heldout.random_scores(3)) for _ in range(2))
    assert all((once[name] == again[name]).all() for name in tests)
    assert heldout.query_scores(tests, heldout.trigram_cosines)["bitext"].mean() > once["bitext"].mean()


# The plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_has_one_primary_metric_and_arms_that_differ_in_what_is_compared_and_in_nothing_else():
    for name in experiments.QUESTIONS:
        plan = experiments.planned(name, small(), seeds=3)
        names, written = [arm.name for arm in plan.arms], plan.as_json()
        assert len(set(names)) == len({arm.folder for arm in plan.arms}) == len(names) and plan.seeds == (0, 1, 2)
        assert all(arm.against in names for arm in plan.arms if arm.against)
        assert written == json.loads(json.dumps(written)) and written["primary metric"] == "dev"
        assert "provenance" not in written["scale"] and written["scale"]["train"]["steps"] == 4
        assert all(name in "\n".join(plan.lines()) for name in names)
    plan = experiments.planned("stages", small())
    by_name = {arm.name: arm for arm in plan.arms}
    two, longer, mixed = (by_name[name] for name in ("two stages", "stage 2 only, all steps", "mixed in one stage"))
    assert two.pairs + two.labelled == longer.labelled == mixed.pairs + mixed.labelled == 6
    assert mixed.mixed and not two.mixed and by_name["stage 2 only"].labelled == two.labelled
    assert not any(arm.teacher or arm.negatives != "labelled" for arm in by_name.values())
    assert plan.level == pytest.approx(1 - 0.05 / 7)  # together the differences hold at 95 %
    found = {arm.name: arm for arm in experiments.planned("negatives", small()).arms}
    for arm in found.values():
        if arm.name.endswith("+ KD"):
            other = dataclasses.replace(found[arm.against], name="", against="")
            assert dataclasses.replace(arm, name="", teacher=False, against="") == other
    assert found["mined, filtered"].filtered and not found["mined"].filtered
    assert {arm.negatives for arm in found.values()} == set(examples.NEGATIVE_KINDS)


def test_quick_is_fewer_steps_and_seeds_and_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ME5_OUT", str(tmp_path))
    full, quick = (experiments.planned("stages", config.load("random"), quick=quick) for quick in (False, True))
    assert quick.scale.train.steps == full.scale.train.steps // 10 and quick.seeds == (0, 1) and len(full.seeds) >= 5
    assert "quick" in "\n".join(quick.lines())
    homes = [experiments.home(full.scale, quick) for quick in (False, True)]
    assert homes == [tmp_path / "experiments" / "random", tmp_path / "experiments" / "random-quick"]
    assert experiments.home(full.scale, True, str(tmp_path / "mine")) == tmp_path / "mine"


@pytest.mark.parametrize(("name", "seeds", "words"), [("stage", 5, "choose one of stages, negatives"),
                                                     ("stages", 0, "at least one seed")])  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(name, seeds, words):
    with pytest.raises(Me5Error, match=words):
        experiments.planned(name, small(), seeds)


# Running --------------------------------------------------------------------------------------------------------------


def pretended(monkeypatch, base, stop_at=None):
    """No training: scores by the arm's name; the (seed, arm) that were run; asserts that the plan stands."""
    made = []

    def measured(self, arm, seed):
        written = content(base / self.plan.experiment / "plan.json")
        assert written["arms"] == json.loads(json.dumps([dataclasses.asdict(each) for each in self.plan.arms]))
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append((seed, arm.name))
        rng = np.random.default_rng([seed, len(arm.name)])
        scores = {metric: rng.random(20).round(5).tolist() for metric in self.plan.metrics}
        facts = {"teacher": {"trusted": seed == 0}} if arm.teacher else {}
        return {"scores": scores, "facts": facts, "conditions": {"threads": 1}, "seconds": 1.0}

    monkeypatch.setattr(experiments.Lab, "measured", measured)
    return made


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


def test_a_kill_costs_one_arm_and_every_arm_is_reported_with_its_difference(monkeypatch, tmp_path):
    plan, folder = experiments.planned("negatives", small(), seeds=2), tmp_path / "negatives"
    first = pretended(monkeypatch, tmp_path, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        experiments.run_experiment(plan, tmp_path, progress=False)
    assert not (folder / "results.json").exists()
    second = pretended(monkeypatch, tmp_path)
    results = experiments.run_experiment(plan, tmp_path, progress=False)
    assert Counter([*first, *second]) == Counter((seed, arm.name) for seed in (0, 1) for arm in plan.arms)
    again = pretended(monkeypatch, tmp_path)
    assert experiments.run_experiment(plan, tmp_path, progress=False) == results == content(folder / "results.json")
    assert not again

    names = [arm.name for arm in plan.arms]
    assert [arm["name"] for arm in results["arms"]] == list(pd.read_csv(folder / "table.csv")["arm"]) == names
    assert {"plan", "corpus", "scale", "seeds", "conditions", "quick"} <= set(results)
    scores = {arm.name: np.array([content(folder / "arms" / f"seed-{seed}.{arm.folder}.json")["scores"]["dev"]
                                  for seed in (0, 1)]) for arm in plan.arms}
    for arm in results["arms"]:
        own = scores[arm["name"]]
        assert arm["dev"]["low"] <= arm["dev"]["mean"] <= arm["dev"]["high"]
        assert arm["dev"]["seeds"] == pytest.approx(own.mean(1).tolist(), abs=1e-6)
        assert arm["KD used"] == (1 if arm["teacher"] else None) and bool(arm["difference"]) == bool(arm["against"])
        if arm["against"]:
            found, other = arm["difference"]["dev"], scores[arm["against"]]
            assert found["mean"] == pytest.approx((own - other).mean(), abs=1e-6)
            assert found["seeds ahead"] == (own.mean(1) > other.mean(1)).sum()
    assert (folder / "figure.png").stat().st_size > 10_000
    assert "seconds" not in (folder / "results.json").read_text(encoding="utf8")


def test_the_mixed_control_has_the_very_batches_of_the_two_stages(monkeypatch, tmp_path, corpus):
    seen, made = [], []
    work, make = stages.work_of, examples.make_groups
    monkeypatch.setattr(stages, "work_of", lambda rows, *a: seen.append(rows) or work(rows, *a))
    monkeypatch.setattr(examples, "make_groups", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    scale = small()
    folder = experiments.mixed(scale, 0, tmp_path, corpus, "mixed")
    drawn, rows = corpus.mixture(scale, 0), examples.drop_invalid(corpus.labelled())[0]
    labelled = examples.SamplingPlan(rows, scale.finetune, 0, scale.data.language_temperature)
    right = [drawn.batch(k) for k in range(4)]
    right += [labelled.batch(made[0], k, 3) for k in range(2)]
    assert Counter(map(tuple, seen)) == Counter(map(tuple, right))
    assert len(loop.read_log(folder).steps) == 6
    assert experiments.mixed(scale, 0, tmp_path, corpus, "mixed") == folder and len(made) == 1  # found again


def test_batches_are_shuffled_each_once():
    turns = experiments.shuffled(30, 10, 3)
    assert sorted(turns) == [(False, k) for k in range(30)] + [(True, k) for k in range(10)]
    for kind in (False, True):
        own = [turn for labelled, turn in turns if labelled is kind]
        assert own == sorted(own)
    assert 0 < sum(labelled for labelled, _ in turns[:20]) < 10 and turns != experiments.shuffled(30, 10, 4)


# The hub and the command ----------------------------------------------------------------------------------------------


def command(*arguments):
    app = typer.Typer()
    app.command("experiment")(experiment.experiment_command)
    return CliRunner().invoke(app, list(arguments))


def test_a_scale_of_the_hub_is_told_and_not_started():
    done = command("stages", "--scale", "workshop")
    assert isinstance(done.exception, Me5Error) and "--yes" in str(done.exception)
    assert "mteb-english" in done.output and "2,000 on pairs, 6,234 on labelled examples" in done.output
    assert "trigrams" not in done.output


def test_tasks_of_mteb_are_known_and_scored_in_order(tmp_path, corpus):
    import mteb

    from me5lib.evaluate import offline_table
    from me5lib.evaluate.protocol import Protocol
    from me5lib.model.encoder import Encoder

    known = mteb.get_tasks(tasks=list(experiments.ENGLISH), languages=["eng"])
    assert sorted(task.metadata.name for task in known) == sorted(experiments.ENGLISH)
    scale = small()
    encoder = Encoder.new(scale.model, stages.run_tokenizer(corpus, scale, tmp_path), 0)
    tasks = [task for task in heldout.mteb_tasks(corpus.tasks()) if task.metadata.name in ("xquad", "fastapi")]
    found = experiments.on_mteb(encoder, "untrained", tasks, tmp_path / "mteb")
    rows = {"untrained": Protocol(encoder, "untrained")}
    scores = offline_table.table_scores(rows, tasks, tmp_path / "table", progress=False)
    assert found == pytest.approx([scores[scores.task == t.metadata.name].score.mean() for t in tasks], abs=1e-4)


def test_the_command_prints_every_arm(monkeypatch, tmp_path):
    pretended(monkeypatch, tmp_path)
    options = [part for override in SMALL for part in ("--set", override)]
    done = command("stages", "--scale", "smoke", "--quick", "--out", str(tmp_path), *options)
    assert done.exit_code == 0, done.exception
    shown = done.output.split("primary metric")[-1]
    assert all(arm.name in shown for arm in experiments.planned("stages", small()).arms)
    assert str(tmp_path / "stages") in shown


@pytest.mark.parametrize("name", experiments.QUESTIONS)
def test_stored_results_are_those_of_a_full_run(name):
    found = experiments.stored(name)
    if found is None:
        pytest.skip("no full run is stored")
    assert found["experiment"] == name and not found["quick"] and len(found["seeds"]) >= 5
    assert len(found["plan"]) == 16 and found["conditions"]
    assert [arm["name"] for arm in found["arms"]] == [
        arm.name for arm in experiments.planned(name, config.load("random")).arms]
    assert len(experiments.arm_table(found)) == len(found["arms"])
