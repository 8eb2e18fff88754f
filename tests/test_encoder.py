"""The encoder against plain transformers: one padded batch, a mask, a mean, a norm."""

import dataclasses

import numpy as np
import pytest
import torch
from babel import Locale
from torch.nn.functional import normalize

from me5lib import config
from me5lib.model import encoder as module
from me5lib.model.encoder import Encoder, by_length
from me5lib.model.text import PASSAGE, QUERY, train_tokenizer


@pytest.fixture(scope="module")
def texts():
    """A few hundred texts of very different lengths in many scripts, two of them empty."""
    found = ["", "   "]
    for code in ("de", "ru", "zh", "ja", "ko", "th", "am", "ka", "hy", "he", "ar", "hi"):
        names = list(Locale.parse(code).territories.values())
        found += names[:10] + [" ".join(names[start : start + 9]) for start in range(10, 100, 9)]
    return found


SHAPE = dataclasses.replace(config.load("smoke").model, layers=2)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 3000)


@pytest.fixture
def encoder(tokenizer):
    return Encoder.new(SHAPE, tokenizer, seed=1).eval()


def xlm_r(tokenizer):
    """A small XLM-R: its positions start behind the padding id."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    shape = XLMRobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=64, max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id)
    return Encoder(XLMRobertaModel(shape, add_pooling_layer=False), tokenizer, 64).eval()


def by_hand(encoder, texts, prefix, unit=True):
    """The plain way: one batch by the tokenizer's own padding and truncation."""
    batch = encoder.tokenizer([prefix + text for text in texts], padding=True, truncation=True,
                              max_length=encoder.max_tokens, return_tensors="pt")  # fmt: skip
    hidden = encoder.backbone(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return normalize(mean, dim=-1) if unit else mean


@pytest.mark.parametrize("make", [lambda t: Encoder.new(SHAPE, t, 1).eval(), xlm_r], ids=["bert", "xlm-r"])
def test_vectors_are_those_of_plain_transformers(make, tokenizer, texts):
    encoder = make(tokenizer)
    with torch.no_grad():
        for prefix in (QUERY, PASSAGE, ""):
            np.testing.assert_allclose(encoder.encode(texts, prefix), by_hand(encoder, texts, prefix), atol=1e-5)
        plain = encoder.encode(texts, normalise=False)
        np.testing.assert_allclose(plain, by_hand(encoder, texts, QUERY, unit=False), atol=1e-5)
    assert abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.1


def test_gradients_are_those_of_plain_transformers(encoder, texts):
    some = texts[:60]
    weights = torch.randn(len(some), encoder.width, generator=torch.Generator().manual_seed(0))
    found = []
    for vectors in (lambda: by_hand(encoder, some, QUERY), lambda: encoder(encoder.tokenize(some, QUERY), 100)):
        encoder.zero_grad()
        (vectors() * weights).sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters()])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    ids = encoder.tokenize(texts, QUERY)
    learnt = encoder(ids, 100).detach()
    with torch.no_grad():
        assert torch.equal(encoder(ids, 100), learnt)


def test_a_start_mark_that_the_configuration_calls_padding_is_trained(tokenizer, texts):
    from transformers import BertConfig, BertModel

    assert tokenizer.cls_token_id == 0 != tokenizer.pad_token_id
    shape = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=64, pad_token_id=0)  # fmt: skip  # as mE5-small's
    encoder = Encoder(BertModel(shape, add_pooling_layer=False), tokenizer, 64)
    encoder(encoder.tokenize(texts[:8], QUERY))[:, 0].sum().backward()
    gradient = encoder.backbone.get_input_embeddings().weight.grad
    assert gradient[0].abs().sum() > 0 and gradient[tokenizer.pad_token_id].abs().sum() == 0


def test_no_texts_are_part_of_the_graph(encoder):
    vectors = encoder([])
    assert vectors.shape == encoder.encode([]).shape == (0, encoder.width)
    vectors.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in encoder.parameters())


def test_piece_and_window_sizes_bound_what_is_held_and_change_nothing(encoder, texts, monkeypatch):
    ids, seen = encoder.tokenize(texts, QUERY), []
    with torch.inference_mode():
        whole = encoder(ids, token_budget=10**9).numpy()
    handle = encoder.backbone.get_input_embeddings().register_forward_hook(lambda *call: seen.append(len(call[2])))
    for budget in (1, 200, 3000):
        seen.clear()
        with torch.inference_mode():
            np.testing.assert_allclose(encoder(ids, token_budget=budget).numpy(), whole, atol=1e-6)
        assert budget == 1 or max(seen) <= budget
    handle.remove()
    told = []
    encoder.pool(ids, 200, told.append)
    assert sum(told) == len(ids) and max(told) < len(ids) / 2  # so a bar moves piece by piece
    monkeypatch.setattr(module, "WINDOW", 7)
    np.testing.assert_allclose(encoder.encode(texts[::-1]), whole[::-1], atol=1e-6)


def test_pieces_keep_to_the_budget_and_leave_nothing_out():
    lengths = np.random.default_rng(0).integers(1, 40, 500)
    pieces = list(by_length(lengths, 100))
    assert sorted(np.concatenate(pieces)) == list(range(500))
    assert all(len(piece) * lengths[piece].max() <= 100 for piece in pieces)
    assert list(by_length([7, 200], 100))[0].tolist() == [1]  # too long for the budget: alone


def test_long_texts_are_cut_and_keep_their_end_mark(encoder):
    ids = encoder.tokenize(["word " * 500], QUERY)[0]
    assert len(ids) == encoder.max_tokens and (ids[0], ids[-1]) == (0, 2)
    assert len(encoder.tokenize(["word " * 500], QUERY, max_tokens=9)[0]) == 9
    assert len(encoder.tokenize(["word " * 500], QUERY, max_tokens=9_999)[0]) == encoder.max_tokens


def test_bad_texts_and_precisions(encoder):
    for texts, options, line in ((["a", "b", "", None], {}, "text 3 is None"), ("a", {}, "one string"),
                                 (["a"], {"precision": "fp8"}, "precision")):  # fmt: skip
        with pytest.raises(ValueError, match=line):
            encoder.encode(texts, **options)
    vectors = encoder.encode(["", "a\ud800", "x" * 10_000_000])
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(encoder.encode(["a\ud800"]), encoder.encode(["a\ufffd"]))


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(tokenizer):
    before = torch.get_rng_state()
    one, two, other = (Encoder.new(SHAPE, tokenizer, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    words = "backbone.embeddings.word_embeddings.weight"
    assert not torch.equal(one[words], other[words])


def test_encode_leaves_the_mode_and_the_gradients_alone(tokenizer, texts):
    encoder = Encoder.new(SHAPE, tokenizer, 1, dropout=0.5).train()
    np.testing.assert_array_equal(encoder.encode(texts), encoder.encode(texts))  # dropout is off
    assert encoder.training and all(p.grad is None for p in encoder.parameters())
    ids = encoder.tokenize(texts, QUERY)
    assert not torch.equal(encoder(ids), encoder(ids))  # and on again in training


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_still_gives_fp32(encoder, texts, precision):
    fast, full = encoder.encode(texts, precision=precision), encoder.encode(texts)
    assert fast.dtype == np.float32
    assert 0 < abs(fast - full).max() < 0.02 and (fast * full).sum(1).min() > 0.999
    np.testing.assert_array_equal(encoder.encode(texts), full)  # and nothing of it stays behind


def test_pooling_is_in_fp32_at_least(encoder, tokenizer, texts):
    with torch.autocast("cpu", torch.bfloat16):
        vectors = encoder(encoder.tokenize(texts, QUERY))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(texts)), atol=1e-5, rtol=0)
    hidden = torch.full((1, 4000, 2), 1.01, dtype=torch.bfloat16)
    mean = module.average_pool(hidden, torch.ones(1, 4000, dtype=torch.int64))
    torch.testing.assert_close(mean, hidden[:, 0].float(), atol=1e-4, rtol=0)
    double = Encoder.new(SHAPE, tokenizer, 1).double()
    assert double(double.tokenize(["a", "b c"])).dtype == torch.float64
