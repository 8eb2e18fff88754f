"""A smaller model out of a larger one: the vectors that must stay, and what becomes of rare words."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from me5lib.io import PACKAGE, Me5Error
from me5lib.model import text
from me5lib.model.encoder import Encoder
from me5lib.model.shrink import characters, cut_vocabulary, dropped_shares, lower_layers
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


def test_real_texts_that_lost_no_token_are_cut_as_before_and_the_shares_say_how_many_did(packs):
    """XLM-R's own pieces; of our sentences in three scripts every second one chooses, the others test."""
    rows = map(json.loads, (PACKAGE / "instruct" / "synthetic-v1.jsonl").read_text("utf8").splitlines())
    texts = {code: [] for code in ("de", "hi", "th", "ja")}
    for row in rows:
        texts.get(row["language"], []).extend([row["query"], row["positive"]])
    whole = encoder_of(Encoder.load("me5-small-q4").tokenizer, 1)
    whole.max_tokens = 10_000  # no text is too long for its tokens
    chosen = [texts[code][::2] for code in ("de", "hi", "th")]
    single = characters(whole, chosen)
    cut = cut_vocabulary(whole.copy(), iter([*sum(chosen, []), *single]))
    shares, known, unknown = dropped_shares(whole, cut, texts), cut.tokenizer.get_vocab(), 0
    for code, own in texts.items():
        before, after = ([each.tokenizer.convert_ids_to_tokens(ids) for ids in each.tokenize(own)]
                         for each in (whole, cut))  # fmt: skip
        kept = [known.keys() >= set(pieces) for pieces in before]
        assert all((one == other) == stays for one, other, stays in zip(before, after, kept, strict=True))
        assert shares[code] == {"texts": len(own), "changed": pytest.approx(1 - np.mean(kept)), "tokens": pytest.approx(
            np.mean([piece not in known for pieces in before for piece in pieces]))}  # fmt: skip
        unknown += sum(pieces.count("<unk>") for pieces in after) if code != "ja" else 0
    assert 0.1 < shares["de"]["changed"] < 0.9 and shares["ja"]["changed"] > 0.9 and not unknown
    assert {"ß", "€", "ษ", "ॐ"} <= known.keys() and not {"字", "한"} & known.keys()


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
