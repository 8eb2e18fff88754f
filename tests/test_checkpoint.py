"""Checkpoints: whole or absent, exact, never continued by another plan; and a notebook that attaches to a stage."""

import json
import os
import threading
import time

import pytest
import torch

from me5lib import config, io
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.train import checkpoint
from me5lib.train.monitor import attach

SHAPE = config.Model("random", 1, 16, 2, 32, 400, 32)


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


def test_a_checkpoint_is_a_model_to_load_and_going_on_gives_the_same_weights_to_the_bit(tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder, adamw = made(tokenizer)
    path = checkpoint.save_checkpoint(tmp_path, encoder, adamw, 3, "plan")
    theirs = SentenceTransformer(str(path), device="cpu").encode("a red", prompt_name="query")
    assert theirs == pytest.approx(encoder.encode(["a red"])[0], abs=1e-5)
    assert not [file for file in path.rglob("*") if file.suffix in {".bin", ".pt", ".pkl", ".pth"}]
    step(encoder, adamw)
    other, its = made(tokenizer, steps=0, seed=1)
    checkpoint.load_checkpoint(path, other, its, "plan")
    step(other, its)
    assert torch.equal(weights(encoder), weights(other))


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_the_file_is_named(tokenizer, tmp_path, capsys):
    encoder, adamw = made(tokenizer)
    good = checkpoint.save_checkpoint(tmp_path, encoder, adamw, 3, "plan")
    bad = checkpoint.save_checkpoint(tmp_path, encoder, adamw, 4, "plan")
    assert checkpoint.latest(tmp_path) == bad
    files = [file.relative_to(bad).as_posix() for file in bad.rglob("*") if file.is_file()]
    assert {"model.safetensors", "optimiser.safetensors", "state.json", "manifest.json", "1_Pooling/config.json",
            "tokenizer.json"} < set(files)  # fmt: skip
    for name in files:
        before = (bad / name).read_bytes()
        flip(bad / name, len(before) // 2)
        assert checkpoint.latest(tmp_path) == good
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and str(bad) in said and f"({name} " in said
        (bad / name).unlink()
        assert checkpoint.latest(tmp_path) == good
        assert f"({name} is missing)" in capsys.readouterr().out
        (bad / name).write_bytes(before)
    for at in range(0, len((bad / "manifest.json").read_bytes()), 60):
        flip(bad / "manifest.json", at)
        assert checkpoint.damage(bad).startswith("manifest.json")  # is not blamed on another file
        flip(bad / "manifest.json", at)
    assert not checkpoint.damage(bad)
    (bad / ".DS_Store").write_bytes(b"of a file browser")
    assert checkpoint.latest(tmp_path) == bad


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_of_a_killed_save_are_no_checkpoint_and_are_tidied_up(tokenizer, tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None
    encoder, adamw = made(tokenizer)
    for left in (".step-000009.part", "..step-000001.part.0f1e2d3c", ".step-000000.old"):
        (tmp_path / left).mkdir()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save_checkpoint(tmp_path, encoder, adamw, 2, "plan")
    assert names(tmp_path) == ["step-000002"]


def test_only_the_last_ones_are_kept_and_damaged_later_ones_do_not_push_out_good_ones(tokenizer, tmp_path, monkeypatch):
    encoder, adamw = made(tokenizer)
    for number in (1, 2, 999_999, 1_000_000):
        checkpoint.save_checkpoint(tmp_path / "a", encoder, adamw, number, "plan")
    assert names(tmp_path / "a") == ["step-1000000", "step-999999"]
    assert checkpoint.latest(tmp_path / "a").name == "step-1000000"
    monkeypatch.setattr(checkpoint, "KEEP", 3)
    for number in (4, 6, 8):
        checkpoint.save_checkpoint(tmp_path / "b", encoder, adamw, number, "plan")
    for number in (6, 8):
        flip(tmp_path / "b" / f"step-{number:06d}" / "model.safetensors")
    monkeypatch.undo()
    checkpoint.save_checkpoint(tmp_path / "b", encoder, adamw, 5, "plan")  # gone on from 4, interrupted
    assert names(tmp_path / "b") == ["step-000004", "step-000005"]


SEAMS = ("write", "sync", "rename", "remove")


def test_a_disk_that_fills_up_at_any_moment_leaves_the_one_before_and_nothing_torn(tokenizer, tmp_path, monkeypatch):
    encoder, adamw = made(tokenizer)
    checkpoint.save_checkpoint(tmp_path, encoder, adamw, 1, "plan")
    good = checkpoint.save_checkpoint(tmp_path, encoder, adamw, 2, "plan")
    seams = {name: getattr(io, name) for name in SEAMS}
    done = []

    def limited(name, limit):
        def act(*arguments):
            done.append(name)
            if len(done) == limit:
                raise OSError(28, "No space left on device")
            return seams[name](*arguments)

        return act

    refused = 0
    for limit in range(1, 200):
        for name in SEAMS:
            monkeypatch.setattr(io, name, limited(name, limit))
        done.clear()
        try:
            checkpoint.save_checkpoint(tmp_path, encoder, adamw, 3, "plan")
        except Me5Error as error:
            refused += 1
            assert "No space left" in str(error) and "\n" not in str(error)
        assert not checkpoint.damage(good) and not [name for name in names(tmp_path) if name.endswith(".part")]
        last = checkpoint.latest(tmp_path)
        assert last == good or last.name == "step-000003"
        if len(done) < limit:
            break
    assert refused > 20 and names(tmp_path) == ["step-000002", "step-000003"]


@pytest.mark.parametrize("limit", [8_000, 50_000])  # bytes: too few for the weights, for the vocabulary
def test_a_disk_that_refuses_what_python_does_not_write(tokenizer, tmp_path, limit):
    resource = pytest.importorskip("resource")
    encoder, adamw = made(tokenizer)
    good = checkpoint.save_checkpoint(tmp_path, encoder, adamw, 1, "plan")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(Me5Error, match="no checkpoint of step 2 .*File too large.*the one before is kept"):
            checkpoint.save_checkpoint(tmp_path, encoder, adamw, 2, "plan")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step-000001"] and not checkpoint.damage(good)
    checkpoint.save_checkpoint(tmp_path, encoder, adamw, 2, "plan")
    assert checkpoint.latest(tmp_path).name == "step-000002"


def test_the_fingerprint_does_not_mind_the_order_and_minds_every_value():
    assert checkpoint.fingerprint({"a": 1, "b": [2, 3]}) == checkpoint.fingerprint({"b": [2, 3], "a": 1})
    assert checkpoint.fingerprint({"a": 1}) != checkpoint.fingerprint({"a": 2})
    assert len(checkpoint.fingerprint(json.loads("{}"))) == 16


def begun(folder, steps=10, fingerprint="a"):
    """What a stage writes before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    io.put_json(folder / "stage.json", {"fingerprint": fingerprint, "settings": {"stage": {"steps": steps}}})
    return folder


def row(step):
    return json.dumps({"step": step, "loss": 4.0 - step, "grad_norm": 1.0, "lr": 0.1, "source": "x"}) + "\n"


def test_where_nothing_is_attach_names_the_command(tmp_path):
    with pytest.raises(Me5Error, match=rf"me5 pretrain --scale base --seed 3 --out {tmp_path}"):
        attach(tmp_path, scale="base", seed=3)
    with pytest.raises(Me5Error, match="me5 finetune --scale"):
        attach(tmp_path, "stage2")
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_attach_reads_a_log_while_it_is_written(tmp_path):
    part, go_on, seen = begun(tmp_path / "stage1.part"), threading.Event(), []
    assert attach(tmp_path)[1:4] == (False, 0, 10) and attach(tmp_path).model is None

    def write():
        with (part / "log.jsonl").open("a", encoding="utf8") as log:
            for line in map(row, range(10)):
                for half in (line[: len(line) // 2], line[len(line) // 2 :]):
                    log.write(half)
                    log.flush()  # a reader meets half a line
                    time.sleep(0.01)
        go_on.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not go_on.wait(0.005):
        run = attach(tmp_path)
        assert [each["step"] for each in run.history.steps] == list(range(run.step))
        seen.append(run.step)
    writer.join()
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert "step 10 of 10" in str(attach(tmp_path)) and not attach(tmp_path).finished
    os.utime(part / "log.jsonl", (time.time() - 3600,) * 2)
    assert attach(tmp_path).quiet == pytest.approx(3600, abs=60)


def test_attach_takes_the_last_whole_checkpoint_then_the_finished_stage(tmp_path):
    part, final = begun(tmp_path / "stage1.part"), tmp_path / "stage1"
    for step in (5, 40, 200):
        checkpoint.at(part / "checkpoints", step).mkdir(parents=True)
    for step in (5, 40):  # 200 has no manifest
        (checkpoint.at(part / "checkpoints", step) / checkpoint.MANIFEST).write_text("{}", encoding="utf8")
    assert attach(tmp_path).model == checkpoint.at(part / "checkpoints", 40)
    part.rename(begun(final, steps=2) / "moved")
    (final / "log.jsonl").write_text(row(0) + row(1), encoding="utf8")
    with pytest.raises(Me5Error, match="start it with"):
        attach(tmp_path)  # published only with its configuration
    (final / "config.json").write_text("{}", encoding="utf8")
    run = attach(tmp_path)
    assert (run.finished, run.step, run.steps, run.model) == (True, 2, 2, final) and "finished" in str(run)
    left = begun(tmp_path / "stage1.part")  # a kill between the renaming and the tidying up
    assert attach(tmp_path).finished
    begun(left, steps=7, fingerprint="b")
    assert attach(tmp_path)[:4] == (left, False, 0, 7)
