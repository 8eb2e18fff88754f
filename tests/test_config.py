"""The settings: every value has a provenance, the paper's values are the paper's, overrides are checked."""

import pytest

from me5lib import config
from me5lib.io import Me5Error


@pytest.mark.parametrize("name", config.presets())
def test_every_setting_that_is_set_says_where_its_value_comes_from(name):
    scale = config.load(name)
    for key, (source, why) in scale.provenance.items():
        assert source in {"paper", "model card", "E5", "ours"}, key
        assert source != "ours" or len(why) > 5, f"{key} is ours without a reason"


@pytest.mark.parametrize(("name", "lr"), [("small", 3e-4), ("base", 2e-4), ("large", 1e-4)])
def test_the_published_hyperparameters(name, lr):
    # arXiv 2402.05672: 32k x 30k, InfoNCE at 0.01, a tenth of the rate in stage 2, 512 a batch
    scale = config.load(name)
    assert (scale.train.steps, scale.train.batch, scale.train.lr) == (30_000, 32_768, lr)
    assert scale.train.temperature == scale.finetune.temperature == 0.01
    assert (scale.finetune.batch, scale.finetune.lr) == (512, pytest.approx(lr / 10))
    assert scale.finetune.steps == 2 * 1_596_000 // 512


def test_an_override_is_taken_and_is_marked_ours():
    scale = config.load("tiny", ["train.steps=7", "train.lr=1e-3", "data.sources=cldr,history"])
    assert (scale.train.steps, scale.train.lr, scale.data.sources) == (7, 1e-3, ("cldr", "history"))
    assert scale.provenance["train.steps"] == ("ours", "set by hand")
    assert scale.finetune == config.load("tiny").finetune


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("huge", "", "unknown scale 'huge': choose one of tiny, random, smoke"),
        ("tiny", "train.step=3", r"did you mean train.steps\?"),
        ("tiny", "steps", "unknown setting 'steps'"),
        ("tiny", "train.steps=many", "train.steps wants int, not 'many'"),
        ("tiny", "instruct.synthetic=2", "instruct.synthetic is a share"),
        ("tiny", "instruct.tokens=-500", "instruct.tokens is 0 or more"),
    ],
)
def test_bad_input_is_one_clear_line(name, override, message):
    with pytest.raises(Me5Error, match=message) as caught:
        config.load(name, [override] if override else [])
    assert "\n" not in str(caught.value)


def test_the_teacher_is_a_public_one_of_the_hub_and_trained_offline():
    teachers = {name: config.load(name).finetune.teacher for name in config.presets()}
    offline = {name for name in config.presets() if config.load(name).offline}
    assert offline == {"smoke", "tiny", "random"} and {teachers.pop(name) for name in offline} == {"trained"}
    assert set(teachers.values()) == {"BAAI/bge-reranker-v2-m3"}
