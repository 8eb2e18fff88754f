"""Checkpoints: whole or absent, exact, and never continued by another plan."""

import json

import pytest
import torch

from me5lib import scale
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.places import Me5Error
from me5lib.train import checkpoint

SHAPE = scale.Model("random", 1, 16, 2, 32, 400, 32)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{a} {b} number {i}" for i, a in enumerate("abcdefghij") for b in ("red", "green", "blue")]
    return train_tokenizer(texts, 400)


def made(tokenizer, steps=3, seed=0):
    """An encoder and its optimiser after a few steps."""
    encoder = Encoder.new(SHAPE, tokenizer, seed)
    adamw = torch.optim.AdamW(encoder.parameters(), lr=1e-2, fused=True)
    for _ in range(steps):
        step(encoder, adamw)
    return encoder, adamw


def step(encoder, adamw):
    vectors = encoder(encoder.tokenize(["a red number", "b green number"], "query: "))
    (vectors[0] @ vectors[1]).backward()
    adamw.step()
    adamw.zero_grad()


def weights(encoder):
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def test_going_on_from_a_checkpoint_gives_the_same_weights_to_the_bit(tokenizer, tmp_path):
    encoder, adamw = made(tokenizer)
    path = checkpoint.save(tmp_path, encoder, adamw, 3, "plan")
    step(encoder, adamw)
    other, its = made(tokenizer, steps=0, seed=1)
    assert checkpoint.load(path, other, its, "plan") == 3
    step(other, its)
    assert torch.equal(weights(encoder), weights(other))


def test_a_checkpoint_is_a_model_that_sentence_transformers_loads(tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder, adamw = made(tokenizer)
    path = checkpoint.save(tmp_path, encoder, adamw, 3, "plan")
    theirs = SentenceTransformer(str(path), device="cpu").encode("a red", prompt_name="query")
    assert theirs == pytest.approx(encoder.encode(["a red"])[0], abs=1e-5)
    assert not [file for file in path.rglob("*") if file.suffix in {".bin", ".pt", ".pkl", ".pth"}]


def test_another_plan_is_refused_in_one_line(tokenizer, tmp_path):
    encoder, adamw = made(tokenizer)
    path = checkpoint.save(tmp_path, encoder, adamw, 3, checkpoint.fingerprint({"steps": 300}))
    before = weights(encoder).clone()
    with pytest.raises(Me5Error, match="another plan") as refusal:
        checkpoint.load(path, encoder, adamw, checkpoint.fingerprint({"steps": 100}))
    assert "\n" not in str(refusal.value)
    assert torch.equal(weights(encoder), before)


def test_a_damaged_checkpoint_is_passed_over(tokenizer, tmp_path, capsys):
    encoder, adamw = made(tokenizer)
    good = checkpoint.save(tmp_path, encoder, adamw, 3, "plan")
    bad = checkpoint.save(tmp_path, encoder, adamw, 4, "plan")
    file = bad / "optimiser.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert checkpoint.latest(tmp_path) == good
    assert "damaged" in capsys.readouterr().out
    (bad / "optimiser.safetensors").unlink()
    assert checkpoint.latest(tmp_path) == good


def test_what_was_half_written_is_no_checkpoint(tokenizer, tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None
    encoder, adamw = made(tokenizer)
    (tmp_path / ".step-000009.part").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, encoder, adamw, 9, "plan")
    assert checkpoint.latest(tmp_path).name == "step-000009"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000009"]


def test_only_the_last_ones_are_kept(tokenizer, tmp_path):
    encoder, adamw = made(tokenizer)
    for number in (1, 2, 3, 10):
        checkpoint.save(tmp_path, encoder, adamw, number, "plan", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000010"]
    checkpoint.save(tmp_path, encoder, adamw, 4, "plan", keep=2)  # a run that went back: 10 is not its own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimiser.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped byte", "missing"])
def test_damage_is_named_and_the_one_before_is_taken(tokenizer, tmp_path, capsys, file, how):
    encoder, adamw = made(tokenizer)
    for number in (1, 2):
        checkpoint.save(tmp_path, encoder, adamw, number, "plan")
    path = tmp_path / "step-000002" / file
    if how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert checkpoint.latest(tmp_path).name == "step-000001"
    said = capsys.readouterr().out
    assert "step-000002 is damaged" in said and file in said


def test_a_full_disk_is_one_line_and_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    encoder, adamw = made(tokenizer)

    checkpoint.save(tmp_path, encoder, adamw, 1, "plan")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(Me5Error, match="no checkpoint of step 2 .*No space left.* the one before is kept; free some"):
        checkpoint.save(tmp_path, encoder, adamw, 2, "plan")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"] and checkpoint.whole(tmp_path / "step-000001")


def test_the_fingerprint_does_not_mind_the_order_and_minds_every_value():
    assert checkpoint.fingerprint({"a": 1, "b": [2, 3]}) == checkpoint.fingerprint({"b": [2, 3], "a": 1})
    assert checkpoint.fingerprint({"a": 1}) != checkpoint.fingerprint({"a": 2})
    assert len(checkpoint.fingerprint(json.loads("{}"))) == 16
