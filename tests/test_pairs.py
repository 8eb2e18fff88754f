"""Text keys: one text has one key, on every machine and for ever."""

from me5lib.pairs import text_key


def test_texts_that_read_the_same_share_a_key():
    assert text_key("Straße  Nord\n") == text_key("STRASSE nord")
    assert text_key("ｆｕｌｌ ｗｉｄｔｈ") == text_key("full width")
    assert text_key("قائمة") != text_key("قائمه")


def test_the_key_is_a_signed_64_bit_constant():
    assert text_key("hello") == 9022087748821825191  # checkpoints and shards of any machine agree
    assert len({text_key(str(i)) for i in range(100_000)}) == 100_000


def test_a_lone_surrogate_has_a_key():
    assert isinstance(text_key("broken \ud800 text"), int)
