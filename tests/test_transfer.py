"""Transfer between families: who is left out and never seen; a planted effect is found in its cell and nowhere else."""

from types import SimpleNamespace

import numpy as np
import pytest

from me5lib import config
from me5lib.data.corpus import open_corpus
from me5lib.data.mixture import Mixture
from me5lib.io import Me5Error
from me5lib.lessons import experiments, transfer
from me5lib.lessons.transfer import ELSEWHERE, FAMILIES, Transfer, family_of

ARMS = {arm.name: arm for arm in Transfer.arms(config.load("smoke"))}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    scale = Transfer.settings(config.load("smoke", ["train.steps=6", "train.batch=48"]))
    return Transfer(scale, tmp_path_factory.mktemp("lab"), open_corpus(scale, progress=False))


def test_languages_have_the_family_of_the_table_or_of_glottolog_and_english_has_none():
    families = {"de": "Germanic", "lb": "Germanic", "ne": "Indo-Aryan", "or": "Indo-Aryan", "ky": "Turkic",
                "scn": "Italic", "fi": "Uralic", "sr-latn": "Slavic", "en": "", "mt": "", "xx": ""}  # fmt: skip
    assert {code: family_of(code) for code in families} == families


def test_a_control_leaves_out_as_much_of_languages_of_no_family(lab):
    drawn = {stream.language: n for stream, n in lab.corpus.mixture(lab.scale, 0).totals().items()}
    for family in FAMILIES:
        gone, control = (lab.left_out(ARMS[f"{kind} {family}"], 0) for kind in ("without", "random for"))
        assert gone == {code: n for code, n in drawn.items() if family_of(code) == family} and gone
        assert not any(map(family_of, control)) and "en" not in control
        rest = [n for code, n in drawn.items() if not family_of(code) and code not in (*control, "en")]
        assert 0 <= sum(gone.values()) - sum(control.values()) < min(rest)
    assert len({tuple(lab.left_out(ARMS["random for Italic"], seed)) for seed in range(3)}) > 1
    assert lab.left_out(ARMS["full"], 0) == {}


def test_an_arm_never_sees_what_it_leaves_out_and_keeps_the_steps_of_every_source(lab, monkeypatch):
    keys = [("facts", "de"), ("facts", "ru"), ("names", "ru"), ("names", "uk"), ("names", "ja"), ("manual", "ja")]
    shards = {key: SimpleNamespace(rows=64 * (i + 1), columns=("query", "passage"), read=lambda rows: (
        [f"q{i}" for i in rows], [f"p{i}" for i in rows])) for i, key in enumerate(keys)}  # fmt: skip
    full = Mixture(shards, steps=24, batch=8, seed=0, temperature=0.5)
    small, seen = Transfer(lab.scale, lab.base, SimpleNamespace(mixture=lambda scale, seed: full)), []
    monkeypatch.setattr(transfer.stages, "initial_encoder", lambda *_: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(transfer, "train_on", lambda encoder, batch, *_, **__: seen.extend(map(batch, range(24))))
    small.encoder(ARMS["without Slavic"], 0)
    assert {row.language for rows in seen for row in rows} == {"de", "ja"}
    assert [rows[0].source for rows in seen] == [full.plan(step).sources[0] for step in range(24)]


def test_a_planted_effect_is_found_in_its_cell_and_nowhere_else(lab):
    plan, rng, records = experiments.planned("transfer", lab.scale), np.random.default_rng(0), {}
    family = np.array([family_of(test.language) for test in lab.tests["all families"] for _ in test.queries])
    for seed in plan.seeds:
        base = rng.uniform(0.4, 0.6, len(family))
        for arm in plan.arms:
            own = base + rng.normal(0, 0.003) + rng.normal(0, 0.01, len(family))
            own -= 0.3 * (arm.name == "without Slavic") * (family == "Slavic")
            own += 0.2 * (arm.name == "without Uralic") * (family == "Turkic")
            scores = {name: own[family == name].tolist() for name in FAMILIES} | {"all families": own.tolist()}
            records[seed, arm.name] = {"scores": scores}
    found = experiments.summarise_arms(plan, records, lab.meanings()) | lab.beside(plan.arms, records, None)
    apart = {arm["own"]: arm["difference"] for arm in found["arms"] if arm.get("role") == "dropped"}
    sure = {(left, tested): round(apart[left][tested]["mean"], 1) for left in FAMILIES for tested in FAMILIES
            if apart[left][tested]["verdict"] in ("ahead", "behind")}
    assert sure == {("Slavic", "Slavic"): -0.3, ("Uralic", "Turkic"): 0.2}
    diagonal = [apart[own][own]["p"] for own in FAMILIES]  # Holm's first family: these six alone
    assert apart["Slavic"]["Slavic"]["adjusted"] == pytest.approx(6 * min(diagonal))
    cell = {(row["dropped"], row["tested"]): row for row in found["matrix"]}
    assert len(cell) == 6 * 7 and cell["Slavic", "Slavic"]["high"] < -0.2
    rest = [[np.mean(np.array(records[seed, f"{kind} Uralic"]["scores"]["all families"])[family != "Uralic"])
             for seed in plan.seeds] for kind in ("without", "random for")]
    assert cell["Uralic", ELSEWHERE]["mean"] == pytest.approx(np.mean(rest[0]) - np.mean(rest[1]))
    assert 0.05 < found["lexical"]["Italic"] <= 1
    results = {**found, "experiment": "transfer", "metrics": plan.metrics, "seeds": plan.seeds, "pilot": None}
    lines = "\n".join(experiments.sentences(results))
    assert "without Slavic came out behind random for Slavic: -0." in lines
    fell = sum(len(plan.seeds) - apart[own][own]["seeds ahead"] for own in FAMILIES)
    assert f"own languages are behind in {fell} of 18 pairs of family and seed" in lines
    assert "of 30 cells off the diagonal 1 are decided: Turkic without Uralic (+0.195)" in lines
    framed = {(int(box.get_y() + 0.5), int(box.get_x() + 0.5)) for box in transfer.heat_map(results).axes[0].patches}
    assert framed == {(FAMILIES.index(left), FAMILIES.index(tested)) for left, tested in sure}


def test_it_starts_from_random_weights_only_and_its_steps_may_be_set_by_hand():
    with pytest.raises(Me5Error, match="choose --scale random"):
        experiments.planned("transfer", config.load("tiny"))
    scales = [experiments.planned("transfer", config.load("random", own)).scale for own in ([], ["train.steps=9"])]
    assert [scale.train.steps for scale in scales] == [Transfer.values["steps"], 9]
