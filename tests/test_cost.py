"""What a run will cost, by torch's own counters, the words of the plan, and the rehearsal of a run."""

import dataclasses
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from me5lib import config, device
from me5lib.instruct.template import instructed
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.train import checkpoint, cost, dry_run, stages
from me5lib.train import loss as losses
from me5lib.train.gradcache import GraphMeter


def shape(**dials):
    """A small XLM-R."""
    given = {"layers": 2, "width": 128, "heads": 2, "feedforward": 512, "vocabulary": 1_000, "max_tokens": 128}
    return dataclasses.replace(config.load("base").model, **(given | dials))


def model_of(given, dropout):
    from transformers import AutoModel

    config = cost.configuration(given)
    config.attention_probs_dropout_prob = 0.0  # a CPU's fused attention has none; a GPU's keeps no table for it
    config.hidden_dropout_prob = dropout
    model = AutoModel.from_config(config, add_pooling_layer=False).train()
    model.set_attn_implementation("sdpa")
    return model


@pytest.mark.parametrize(("name", "millions"), [("small", 118), ("base", 278), ("large", 560)])
def test_weights_are_as_many_as_published(name, millions):
    """The paper counts the layer over the first token, which average pooling never asks for."""
    given = config.load(name).model
    counted = cost.size(given)
    assert round((counted.all + given.width**2 + given.width) / 1e6) == millions
    assert counted.table == given.vocabulary * given.width
    d, f = given.width, given.feedforward
    layer = 4 * (d * d + d) + d * f + f + f * d + d + 2 * 2 * d  # four projections, two feed-forward, two norms
    assert counted.worked_on == given.layers * layer + 2 * d  # and the norm of the embeddings


@pytest.fixture(scope="module")
def small():
    """A scale, and the encoder of its shape."""
    tokenizer = train_tokenizer([f"a text of words and number {i}" for i in range(200)], 300)
    given = dataclasses.replace(config.load("random").model, vocabulary=len(tokenizer))
    return dataclasses.replace(config.load("random"), model=given), Encoder.new(given, tokenizer, 0)


def test_weights_and_checkpoints_are_those_of_the_real_thing(small, tmp_path):
    scale, encoder = small
    counted = cost.size(scale.model)
    assert counted.all == sum(p.numel() for p in encoder.parameters())
    adamw = torch.optim.AdamW(encoder.parameters())
    encoder([[5, 6, 7]]).sum().backward()
    adamw.step()
    path = checkpoint.save_checkpoint(tmp_path / "checkpoints", encoder, adamw, 1, "plan")
    written = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    assert cost.CHECKPOINTS * counted.all == pytest.approx((checkpoint.KEEP + 1) * written, rel=0.05)


@pytest.mark.parametrize("given", [shape(), shape(layers=4), shape(width=256, feedforward=512, heads=4)])
def test_the_graph_is_as_large_as_autograd_keeps(given):
    model = model_of(given, 0.1)
    vectors = torch.randn(16, 128, given.width, requires_grad=True)
    with GraphMeter(model.parameters()).watch() as meter, torch.autocast("cpu", torch.bfloat16):
        model(inputs_embeds=vectors).last_hidden_state.sum()
    assert cost.graph_bytes(given, cost.size(given), 16 * 128) == pytest.approx(meter.peak, rel=0.03)
    assert cost.graph_bytes(given, cost.size(given), 16 * 128, True) < meter.peak


@pytest.mark.parametrize("cached", [False, True])
def test_operations_are_those_that_torch_counts(cached):
    given = shape(width=64, feedforward=256)
    model = model_of(given, 0.0)
    model.set_attn_implementation("eager")  # its products are counted one by one
    stage = dataclasses.replace(config.load("base").train, steps=3, batch=4)
    estimate = cost.Estimate("base", "stage1", given, stage, cost.size(given), 64.0, 0.5)
    with FlopCounterMode(display=False) as counter:
        for _ in range(3):
            vectors = torch.randn(8, 32, given.width, requires_grad=True)  # four pairs of 64 tokens
            if cached:
                with torch.no_grad():
                    model(inputs_embeds=vectors)
            model(inputs_embeds=vectors).last_hidden_state.sum().backward()
    assert estimate.operations(cached) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_piece_is_the_largest_that_fits():
    estimate = cost.estimate(config.load("base"))
    for gpu, memory in cost.MEMORY.items():
        held, piece, *_ = estimate.fleet(gpu, 8)
        total = sum(held.values())
        twice = cost.graph_bytes(estimate.shape, estimate.size, 2 * piece) + total - held["activations"]
        assert total <= memory * 1e9 * cost.ROOM < twice or piece == stages.FIRST_BUDGET
    checkpointed = dataclasses.replace(estimate, stage=dataclasses.replace(estimate.stage, gradient_checkpointing=1))
    assert checkpointed.fleet("A100", 8).piece > estimate.fleet("A100", 8).piece


def test_hours_follow_from_what_is_assumed():
    dial = config.load("base")
    one, eight = (cost.estimate(dial).fleet("A100", n) for n in (1, 8))
    assert eight.hours == pytest.approx(one.hours / 8)
    assert cost.estimate(dial, use=cost.USE / 2).fleet("A100", 8).hours == pytest.approx(2 * eight.hours)
    assert cost.estimate(dial, tokens=256).fleet("A100", 8).hours > 2 * eight.hours  # attention grows faster
    instruct, stage2 = (cost.estimate(dial, name).operations(True) for name in ("instruct", "stage2"))
    assert instruct == pytest.approx(stage2 * 5 / 6)  # no teacher reads
    many = cost.estimate(dial).fleet("A100", 64)
    assert many.hours < one.hours / 64 * 0.8  # what fits at once needs no second forward
    known = 30_000 * 32_768 * 128 * 8 * cost.size(dial.model).worked_on / (312e12 * 0.35 * 8) / 3600
    assert known < eight.hours < 1.15 * known  # attention's own products


def test_a_gpu_that_is_too_small_is_said_to_be(monkeypatch):
    monkeypatch.setitem(cost.MEMORY, "RTX 4090", 4)
    (line,) = [line for line in cost.estimate(config.load("large")).lines() if "RTX 4090" in line]
    assert "too small" in line


@pytest.mark.parametrize(("name", "stage"), [("workshop", "stage1"), ("large", "stage1"), ("small", "stage2")])
def test_the_plan_says_what_is_assumed_and_what_the_paper_says(name, stage):
    text = "\n".join(cost.estimate(config.load(name), stage).lines())
    for word in ("weights", "gradients", "optimiser", "activations", "checkpoints", "GPUs for a day", "assumed (ours)",
                 "not reckoned", *cost.MEMORY):
        assert word in text
    assert ("no such scale" if name == "workshop" else "says nothing of hardware") in text
    assert all(len(line) <= 160 for line in text.splitlines())
    assert set(cost.MEMORY) <= set(device.PEAK)


# The rehearsal


@pytest.mark.parametrize("stage", ["stage1", "stage2", "instruct"])
def test_a_rehearsal_stops_resumes_publishes_and_leaves_nothing(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    scale = config.load("workshop", ["data.sources=nllb,wikipedia", "data.labelled=nli,synthetic", "model.layers=1",
                                     "model.width=32", "model.heads=2", "model.feedforward=64"])
    said, read = [], []
    monkeypatch.setattr(losses, "make_batch", lambda rows, make=losses.make_batch: read.extend(rows) or make(rows))
    log = dry_run.rehearse(scale, 0, tmp_path / "dry-run", stage, say=said.append, instructed=instructed)
    assert all(row.query.startswith("Instruct: ") == (stage == "instruct") for row in read) and read
    assert ("'Instruct: Given a web" if stage == "instruct" else "'query: …'") in said[-2]
    assert [line.split()[0] for line in said] == ["dry", "backbone", "rows", "stopped", "resumed", "published", "took"]
    assert [row["step"] for row in log.steps] == [0, 1] and log.evaluations[-1]["norm"] == 1
    assert list(tmp_path.iterdir()) == [] and os.environ["ME5_CACHE"] == str(tmp_path / "cache")
    monkeypatch.setattr(stages, "pretrain", lambda *_, **__: tmp_path)
    monkeypatch.setattr(stages, "finetune", lambda *_, **__: tmp_path)
    with pytest.raises(Me5Error, match="SIGTERM did not stop"):
        dry_run.rehearse(scale, 0, tmp_path / "dry-run", stage, say=said.append, instructed=instructed)
    assert list(tmp_path.iterdir()) == []


def test_an_offline_scale_is_not_rehearsed(tmp_path):
    with pytest.raises(Me5Error, match="tiny needs none and takes minutes"):
        dry_run.rehearse(config.load("tiny"), 0, tmp_path)
