"""Transfer between families: who is left out and never seen; a planted effect is found in its cell and nowhere else."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from me5lib import config
from me5lib.data.corpus import open_corpus
from me5lib.data.mixture import Mixture
from me5lib.io import Me5Error
from me5lib.lessons import experiments, transfer
from me5lib.lessons.transfer import ELSEWHERE, FAMILIES, FULL, Transfer, family_of

ARMS = {arm.name: arm for arm in Transfer.arms(config.load("smoke"))}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    scale = Transfer.settings(config.load("smoke", ["train.steps=6", "train.batch=48"]))
    return Transfer(scale, tmp_path_factory.mktemp("lab"), open_corpus(scale, progress=False))


def test_languages_have_the_family_of_the_table_or_of_glottolog_and_english_has_none():
    families = {"de": "Germanic", "lb": "Germanic", "frr": "Germanic", "ne": "Indo-Aryan", "gu": "Indo-Aryan",
                "or": "Indo-Aryan", "ky": "Turkic", "ba": "Turkic", "scn": "Italic", "sr-latn": "Slavic",
                "bs-cyrl": "Slavic", "fi": "Uralic", "en": "", "zh-hant": "", "mt": "", "eu": "", "xx": ""}  # fmt: skip
    assert {code: family_of(code) for code in families} == families


def test_a_control_leaves_out_as_much_of_languages_of_no_family(lab):
    drawn = lab.corpus.mixture(lab.scale, 0).totals()
    for family in FAMILIES:
        gone = lab.left_out(ARMS[f"without {family}"], 0)
        assert gone == {s.language: n for s, n in drawn.items() if family_of(s.language) == family} and gone
        control = [lab.left_out(ARMS[f"random for {family}"], seed) for seed in (0, 1, 2)]
        rest = [n for s, n in drawn.items() if not family_of(s.language) and s.language not in (*control[0], "en")]
        assert 0 <= sum(gone.values()) - sum(control[0].values()) < min(rest)
        assert not any(family_of(code) or code == "en" for code in set().union(*control))
        assert len({tuple(own) for own in control}) > 1 or len(gone) == 1
    assert lab.left_out(ARMS[FULL], 0) == {} == lab.left_out(ARMS["full again"], 0)


def test_an_arm_never_sees_what_it_leaves_out_and_keeps_the_steps_of_every_source(lab, monkeypatch):
    keys = [("facts", "de"), ("facts", "ru"), ("names", "ru"), ("names", "uk"), ("names", "ja"), ("manual", "ja")]
    shards = {key: SimpleNamespace(rows=64 * (i + 1), columns=("query", "passage"), read=lambda rows: (
        [f"q{i}" for i in rows], [f"p{i}" for i in rows])) for i, key in enumerate(keys)}  # fmt: skip
    full = Mixture(shards, steps=24, batch=8, seed=0, temperature=0.5)
    small = Transfer(dataclasses.replace(lab.scale), lab.base, SimpleNamespace(mixture=lambda scale, seed: full))
    seen = []
    monkeypatch.setattr(transfer.stages, "initial_encoder", lambda *_: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(transfer, "train_on", lambda encoder, batch, *_, **__: seen.extend(map(batch, range(24))))
    small.encoder(ARMS["without Slavic"], 0)
    languages = {row.language for rows in seen for row in rows}
    assert languages == {"de", "ja"}
    assert [rows[0].source for rows in seen] == [full.plan(step).sources[0] for step in range(24)]


def test_a_planted_effect_is_found_in_its_cell_and_nowhere_else(lab):
    plan = experiments.planned("transfer", lab.scale)
    tests, rng = lab.tests, np.random.default_rng(0)
    family = np.array([family_of(test.language) for test in tests["all families"] for _ in test.queries])
    records = {}
    for seed in plan.seeds:
        base = rng.uniform(0.4, 0.6, len(family))
        for arm in plan.arms:
            own = base + rng.normal(0, 0.003) + rng.normal(0, 0.01, len(family))
            own -= 0.3 * (arm.name == "without Slavic") * (family == "Slavic")
            own += 0.2 * (arm.name == "without Uralic") * (family == "Turkic")
            scores = {name: own[family == name].tolist() for name in FAMILIES} | {"all families": own.tolist()}
            records[seed, arm.name] = {"scores": scores}
    found = experiments.summarise_arms(plan, records, lab.meanings())
    own = {arm["own"]: arm["difference"] for arm in found["arms"] if arm.get("role") == "dropped"}
    sure = {(left, tested): round(own[left][tested]["mean"], 1) for left in FAMILIES for tested in FAMILIES
            if own[left][tested]["verdict"] in ("ahead", "behind")}
    assert sure == {("Slavic", "Slavic"): -0.3, ("Uralic", "Turkic"): 0.2}
    diagonal = [own[family][family] for family in FAMILIES]  # Holm's family: these six alone
    assert own["Slavic"]["Slavic"]["adjusted"] == pytest.approx(6 * min(each["p"] for each in diagonal))
    more = lab.beside(plan.arms, records, None)
    cell = {(row["dropped"], row["tested"], row["against"]): row for row in more["matrix"]}
    assert len(cell) == len(more["matrix"]) == 6 * 7 * 2
    for left in FAMILIES:
        for other, name in ((f"random for {left}", "own"), (FULL, FULL)):
            rest = [np.mean(np.array(records[s, f"without {left}"]["scores"]["all families"])[family != left]
                            - np.array(records[s, other]["scores"]["all families"])[family != left])
                    for s in plan.seeds]  # fmt: skip
            row = cell[left, ELSEWHERE, other]
            assert row["mean"] == pytest.approx(np.mean(rest)) and row["low"] < row["mean"] < row["high"], name
    low, high = cell["Slavic", "Slavic", "random for Slavic"]["languages"]
    assert low < cell["Slavic", "Slavic", "random for Slavic"]["mean"] < high < -0.2
    assert 0.05 < more["lexical"]["Italic"] <= 1 and set(more["tested"]) == set(FAMILIES)
    results = {**found, **more, "experiment": "transfer", "metrics": plan.metrics, "seeds": plan.seeds, "pilot": None}
    lines = experiments.sentences(results)
    assert any("without Slavic came out behind random for Slavic: -0." in line for line in lines)
    assert "of 30 other families' cells 1 are told apart from the control: Turkic without Uralic (+" in lines[-1]
    (axis,) = transfer.heat_map(results).axes
    assert [text.get_text() for text in axis.texts] == [f"{100 * own[left][tested]['mean']:+.1f}"
                                                        for left in FAMILIES for tested in FAMILIES]  # fmt: skip
    framed = {(int(cell.get_y() + 0.5), int(cell.get_x() + 0.5)) for cell in axis.patches}
    assert framed == {(FAMILIES.index(left), FAMILIES.index(tested)) for left, tested in sure}


def test_it_starts_from_random_weights_only():
    with pytest.raises(Me5Error, match="choose --scale random"):
        experiments.planned("transfer", config.load("tiny"))
    scale = experiments.planned("transfer", config.load("random")).scale
    assert (scale.train.steps, scale.train.warmup) == (Transfer.values["steps"], Transfer.values["warmup"])
    by_hand = config.load("random", ["train.steps=9"])
    assert experiments.planned("transfer", by_hand).scale.train.steps == 9
