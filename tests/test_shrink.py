"""A smaller model out of a larger one: the vectors that must stay, and what becomes of rare words."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from me5lib.io import Me5Error
from me5lib.model import text
from me5lib.model.encoder import Encoder
from me5lib.model.shrink import cut_vocabulary, lower_layers
from me5lib.model.text import QUERY, fast_tokenizer, train_tokenizer

TEXTS = ["the house is old", "der Hund schläft", "дом стоит", "the old dog sleeps in the house", "家 と 犬"] * 30
RARE = ["ein seltenes Wort", "zwölf Boxkämpfer jagen", "xylophon"]


def encoder_of(tokenizer, layers=3):
    config = BertConfig(vocab_size=len(tokenizer) + 5, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, pad_token_id=1)  # rows that no piece has
    torch.manual_seed(0)
    return Encoder(BertModel(config, add_pooling_layer=False), tokenizer, 64).eval()


@pytest.fixture(scope="module", params=["unknown", "bytes"])
def tokenizer(request):
    """XLM-R's way, which has `<unk>` for a character without a piece, and ours, which spells it in bytes."""
    if request.param == "bytes":
        return train_tokenizer(TEXTS + RARE * 9, 400)
    words = sorted({f"▁{word}" for line in TEXTS + RARE for word in line.split()} | set("".join(TEXTS + RARE)) | {"▁"})
    ranked = [(piece, -3.0 - 0.1 * i - 4.0 * (len(piece) == 1)) for i, piece in enumerate(words) if piece != " "]
    pieces = [(piece, 0.0) for piece in text.SPECIAL] + ranked + [("▁query", -5.0), (":", -5.0), ("<mask>", 0.0)]
    return fast_tokenizer(pieces, text.charsmap())


def test_texts_keep_their_vectors(tokenizer, tmp_path):
    probes = [*TEXTS[:5], "", "Ω the house"]  # a character that no text had, too
    before, full = encoder_of(tokenizer).encode(probes, QUERY), len(tokenizer)
    cut = cut_vocabulary(encoder_of(tokenizer), [*TEXTS, "Ω"])
    assert len(cut.tokenizer) < full - 5 and cut.backbone.get_input_embeddings().num_embeddings == len(cut.tokenizer)
    assert np.abs(cut.encode(probes, QUERY) - before).max() < 1e-6
    cut.save(tmp_path / "model")
    again = Encoder.load(tmp_path / "model")
    assert np.array_equal(again.encode(probes, QUERY), cut.encode(probes, QUERY))
    assert again.tokenize(["Ω"])[0][1:-1], "spelt as it was: by <unk>, or in bytes"


def test_the_commonest_pieces_stay_and_the_rest_is_spelt(tokenizer):
    before = encoder_of(tokenizer)
    common = before.encode(TEXTS[:1], QUERY)
    cut = cut_vocabulary(encoder_of(tokenizer), [*TEXTS, *RARE], 20)
    assert np.abs(cut.encode(TEXTS[:1], QUERY) - common).max() < 1e-6
    rare = cut.tokenize(RARE)
    assert all(3 not in ids for ids in rare), "no <unk>: each character of the texts has a piece of its own"
    assert [cut.tokenizer.decode(ids, skip_special_tokens=True) for ids in rare] == RARE
    assert sum(map(len, rare)) > sum(map(len, before.tokenize(RARE)))


def test_lower_layers_are_those_of_the_model(tokenizer):
    whole, ids = encoder_of(tokenizer), [[0, 5, 6, 2], [0, 7, 2, 1]]
    mask = torch.tensor(ids) != 1
    states = whole.backbone(torch.tensor(ids), mask, output_hidden_states=True).hidden_states
    part = lower_layers(encoder_of(tokenizer), 2)
    assert torch.equal(part.backbone(torch.tensor(ids), mask).last_hidden_state, states[2])
    assert part.backbone.config.num_hidden_layers == 2
    for layers in (0, 4):
        with pytest.raises(Me5Error, match="but the backbone has 3"):
            lower_layers(encoder_of(tokenizer), layers)


def test_a_vocabulary_without_probabilities_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    encoder = encoder_of(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]"))
    with pytest.raises(Me5Error, match="of the kind WordPiece cannot be cut"):
        cut_vocabulary(encoder, ["a"])
