"""Text on its way in: cleaning, prefixes, and a vocabulary that is the same twice."""

import subprocess
import sys
import time
import unicodedata

import pytest

from me5lib.io import Me5Error
from me5lib.model import text

SCRIPTS = ("de", "ru", "zh", "ja", "ko", "th", "am", "ka", "hy", "he", "ar", "hi", "bn", "ta", "km", "my", "el")


def names(locales=SCRIPTS):
    """CLDR's names of languages and territories: real words in many scripts, without a download."""
    from babel import Locale

    return [name for code in locales for name in (*Locale.parse(code).languages.values(),
                                                  *Locale.parse(code).territories.values())]  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    return names()[::2]


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return text.train_tokenizer(corpus, 4000)


def test_clean_keeps_good_texts_and_mends_or_names_bad_ones():
    good = ["a", "", "你好 🎉", "  spaces  "]
    assert text.clean(good, 100) == good
    kept = text.clean(["a\ud800b", "\udc00", "fine", "\ud83d\ude00"], 10)
    assert kept == ["a\ufffdb", "\ufffd", "fine", "\U0001f600"]  # the last two halves make a pair
    for bad, kind in ((None, "None"), (3, "type int"), (b"x", "type bytes")):
        with pytest.raises(ValueError, match=f"text 2 is .*{kind}"):
            text.clean(["a", "", bad], 10)
    assert text.instruct("Find news", "storm") == "Instruct: Find news\nQuery: storm"
    assert text.instruct("", "storm") == "storm"


def test_ten_megabytes_are_cut_before_anything_reads_them(tokenizer):
    start = time.process_time()
    kept = text.clean(["word " * 2_000_000, "x" * 10_000_000])
    tokenizer.backend_tokenizer.encode_batch(kept)
    assert time.process_time() - start < 2.0  # tokenising 20 MB takes many times that
    assert [len(one) for one in kept] == [text.MAX_CHARS] * 2


def test_two_processes_train_the_same_vocabulary(tmp_path):
    from transformers import AutoTokenizer

    texts = names(("de", "ru"))
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf8")
    program = ("import sys; from me5lib.model import text;"
               "texts = open(sys.argv[1], encoding='utf8').read().split('\\n');"
               "print(text.vocabulary_sha256(text.train_tokenizer(texts, 1000, sys.argv[2])))")
    found = subprocess.run([sys.executable, "-c", program, tmp_path / "texts", tmp_path / "saved"],
                           capture_output=True, encoding="utf8", check=True).stdout.split()[-1]
    here, other = (text.vocabulary_sha256(text.train_tokenizer(some, 1000)) for some in (texts, texts[:900]))
    assert found == here != other
    assert text.vocabulary_sha256(AutoTokenizer.from_pretrained(tmp_path / "saved")) == found


def test_layout_is_that_of_xlm_r(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.convert_ids_to_tokens(len(tokenizer) - 1) == "<mask>"
    assert len(tokenizer) <= 4000
    ids = tokenizer("Berlin")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}
    assert tokenizer.tokenize(text.QUERY) == ["▁query", ":"]  # prefixes cost two tokens each
    assert tokenizer.tokenize(text.PASSAGE + "a b")[:2] == ["▁passage", ":"]


def test_fast_tokenizer_cuts_as_sentencepiece_itself_does(corpus):
    import sentencepiece

    model = text._train_unigram(corpus, 3999)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(reference.id_to_piece(i), reference.get_score(i)) for i in range(reference.get_piece_size())]
    fast = text.fast_tokenizer(pieces, text.charsmap(), byte_fallback=True)
    corpus = text._sample(corpus)  # normalised: the trained model leaves that to its tokenizer
    differ = [t for t in corpus if fast(t, add_special_tokens=False)["input_ids"] != reference.encode(t)]
    assert len(differ) <= len(corpus) / 1000, differ[:5]  # ties between equally likely cuts


def test_no_script_turns_into_unknown(corpus, tokenizer):
    unseen = [*names(("uk", "zh_Hant", "ti", "fa", "ne", "yi", "lo", "si", "ml")), "ᚠᚢᚦ", "🎉", "\U00020000"]
    unk = tokenizer.unk_token_id
    assert not [t for t in unseen if unk in tokenizer(t)["input_ids"]]
    spelt = [t for t in corpus if any(piece.startswith("<0x") for piece in tokenizer.tokenize(t))]
    assert len(spelt) < 0.05 * len(corpus)  # bytes are the exception, even with 4,000 pieces for 17 languages


def test_decoding_gives_the_normalised_text_back(tokenizer):
    for given in ("  Wie   geht's?  ", "ﬁve №５ Å", "ኢትዮጵያ ᚠ 🎉", "ქართული ენა"):
        expected = " ".join(unicodedata.normalize("NFKC", given).split())
        assert tokenizer.decode(tokenizer(given)["input_ids"], skip_special_tokens=True) == expected


def test_many_and_long_texts_are_sampled(monkeypatch):
    sample = text._sample(["字" * 100_000, *names(("de",))])
    assert max(map(len, sample)) == text.TRAINING_CHARS
    assert len(text._train_unigram(sample, 1000)) > 1000
    monkeypatch.setattr(text, "TRAINING_TEXTS", 10)
    assert text._sample([str(i) for i in range(95)] + ["3", "4"]) == [str(i) for i in range(0, 95, 10)]


def test_too_little_text_or_vocabulary_is_one_line():
    with pytest.raises(Me5Error, match="no text"):
        text.train_tokenizer(["", "  "], 4000)
    with pytest.raises(Me5Error, match="no vocabulary of 100 pieces .* model.vocabulary to 1,000 or more") as caught:
        text.train_tokenizer(["a few words", "and some more"], 100)
    assert "\n" not in str(caught.value)
