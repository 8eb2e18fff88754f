"""The settings: every value has a provenance, the paper's values are the paper's, overrides are checked."""

import dataclasses

import pytest

from me5lib import config
from me5lib.io import Me5Error


@pytest.mark.parametrize("name", config.presets())
def test_every_dial_that_is_set_says_where_its_value_comes_from(name):
    dial = config.load(name)
    for key, (source, why) in dial.provenance.items():
        assert source in {"paper", "model card", "E5", "ours"}, key
        assert source != "ours" or len(why) > 5, f"{key} is ours without a reason"


@pytest.mark.parametrize(("name", "lr"), [("small", 3e-4), ("base", 2e-4), ("large", 1e-4)])
def test_the_published_hyperparameters(name, lr):
    # arXiv 2402.05672: 32k x 30k, InfoNCE at 0.01, a tenth of the rate in stage 2, 512 a batch
    dial = config.load(name)
    assert (dial.train.steps, dial.train.batch, dial.train.lr) == (30_000, 32_768, lr)
    assert dial.train.temperature == dial.finetune.temperature == 0.01
    assert (dial.finetune.batch, dial.finetune.lr) == (512, pytest.approx(lr / 10))
    assert dial.finetune.steps == 2 * 1_596_000 // 512


def test_an_override_reaches_its_dial_and_is_marked_ours():
    dial = config.load("tiny", ["train.steps=7", "train.lr=1e-3", "data.sources=cldr,history"])
    assert (dial.train.steps, dial.train.lr, dial.data.sources) == (7, 1e-3, ("cldr", "history"))
    assert dial.provenance["train.steps"] == ("ours", "set by hand")
    assert dial.finetune == config.load("tiny").finetune


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("huge", "", "unknown scale 'huge': choose one of tiny, smoke"),
        ("tiny", "train.step=3", r"did you mean train.steps\?"),
        ("tiny", "steps", "unknown setting 'steps'"),
        ("tiny", "train.steps=many", "train.steps wants int, not 'many'"),
    ],
)
def test_bad_input_is_one_clear_line(name, override, message):
    with pytest.raises(Me5Error, match=message) as caught:
        config.load(name, [override] if override else [])
    assert "\n" not in str(caught.value)


def test_the_teacher_is_a_public_one_of_the_hub_and_trained_offline():
    teachers = {name: config.load(name).finetune.teacher for name in config.presets()}
    offline = {name for name in config.presets() if config.load(name).offline}
    assert offline == {"smoke", "tiny", "ablate"} and {teachers.pop(name) for name in offline} == {"trained"}
    assert set(teachers.values()) == {"BAAI/bge-reranker-v2-m3"}
    assert config.load("base").provenance["finetune.teacher"][0] == "ours"
    assert config.load("tiny", ["finetune.teacher=some/reranker"]).finetune.teacher == "some/reranker"


def test_ablate_is_tiny_made_smaller():
    tiny, ablate = config.load("tiny"), config.load("ablate")
    assert ablate.data == tiny.data and ablate.offline
    for room in ("model", "train", "finetune", "evaluate"):
        small, large = dataclasses.asdict(getattr(ablate, room)), dataclasses.asdict(getattr(tiny, room))
        assert all(small[key] <= large[key] for key in small if isinstance(small[key], int | float)), room
    assert ablate.train.steps * ablate.train.batch * 4 < tiny.train.steps * tiny.train.batch
    assert ablate.finetune.query_tokens + ablate.finetune.passage_tokens <= ablate.model.max_tokens
