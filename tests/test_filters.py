"""Filters: what each step drops and, as much, what it keeps; options of cards."""

import random

import numpy as np
import pytest

from me5lib.data import cards, filters, pipeline
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair

PLAIN = {
    "en": "The ferry leaves the harbour at seven and reaches the island before noon, if the weather holds.",
    "de": "Die Fähre verlässt den Hafen um sieben und erreicht die Insel vor Mittag, wenn das Wetter hält.",
    "ru": "Паром отходит из гавани в семь часов и прибывает на остров до полудня, если позволит погода.",
    "ja": "フェリーは七時に港を出て、天気がもてば正午前に島に着きます。島では静かな一日を過ごせるでしょう。",
    "hi": "नौका सात बजे बंदरगाह से निकलती है और मौसम ठीक रहा तो दोपहर से पहले द्वीप पर पहुँच जाती है।",
    "th": "เรือข้ามฟากออกจากท่าเรือเวลาเจ็ดโมงเช้าและถึงเกาะก่อนเที่ยงหากอากาศดี",
    "sw": "Feri inaondoka bandarini saa moja asubuhi na kufika kisiwani kabla ya saa sita mchana kama hali ni nzuri.",
    "zh": "渡轮七点离开港口，如果天气好，中午之前就会到达小岛。岛上可以安静地度过一整天，晚上再乘最后一班船回来。",
}


def pair(query: str, passage: str, language: str = "en") -> Pair:
    """A pair of the source `t`."""
    return Pair(query, passage, "t", language)


RELATIVES = {  # languages that py3langid takes for one another, with titles in capitals all the more
    ("bs", "hr", "sr-latn"): "Trajekt isplovljava iz luke u sedam sati i stiže na otok prije podneva, ako bude lijepo.",
    ("id", "ms"): "Kapal feri meninggalkan pelabuhan pukul tujuh dan tiba di pulau sebelum tengah hari jika cerah.",
    ("sk", "cs"): "Trajekt odchádza z prístavu o siedmej a na ostrov príde pred poludním, ak vydrží pekné počasie.",
    ("nn", "nb", "da"): "Ferja går frå hamna klokka sju og kjem til øya før klokka tolv, dersom vêret held seg fint.",
}
MENU = "\n".join(["Home", "About us", "Shop", "Contact", "Log in", "Basket", "Help", "Blog", "Terms", "Private", "J"])
REAL = (*PLAIN.values(), "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # three",
        "The bakery's cookies are baked each morning. " * 12 + "This site uses cookies.",  # a notice below a real text
        "Die Katze\nsitzt am Fenster,\nsieht hinaus\nund wartet.\nKein Vogel kommt,\nkein Wind geht.\nStill.",
        "In 1969, 400,000 people worked on Apollo 11.")
LENGTH, BOTH = {"least": 3, "most": 10, "passage_least": 5}, {"side": "both"}


@pytest.mark.parametrize(("name", "options", "item", "reason"), [
    ("length", LENGTH, pair("abc", "fünf!"), None),
    ("length", LENGTH, pair("日本語", "日本語日本語"), None),  # characters, not bytes
    ("length", LENGTH, pair("ab", "12345"), "query under 3 characters"),
    ("length", LENGTH, pair("abc", "1234"), "passage under 5 characters"),
    ("length", LENGTH, pair("x" * 11, "12345"), "query over 10 characters"),
    ("length", LENGTH, Labelled("abc", ("12345", "1" * 11), (), "t", "en"), "passage over 10 characters"),
    ("length", LENGTH, Labelled("abc", ("12345",), ("n",), "t", "en"), None),  # negatives are left alone
    *(("language", {}, pair("q", text, code), None) for code, text in PLAIN.items()),
    *(("language", {}, pair("q", text, "ru" if code == "de" else "de"), "passage in another language")
      for code, text in PLAIN.items()),
    *(("language", {}, pair("q", write(text), code), None)
      for kin, text in RELATIVES.items() for code in kin for write in (str, str.upper)),
    ("language", {"least_chars": 200}, pair("q", PLAIN["en"], "de"), None),  # short
    ("language", {}, pair("q", PLAIN["en"], "wo"), None),  # Wolof is not among what py3langid knows
    ("language", {}, pair("q", PLAIN["en"], "oc"), None),  # Occitan it knows too badly
    ("language", {}, pair("q", PLAIN["zh"], "zh-hant"), None),
    ("language", {}, pair("q", PLAIN["en"], "zh-hant"), "passage in another language"),
    ("language", {}, pair("q", "https://example.org/a/b?c=1 1234567 https://example.org/7/8/9", "de"), None),
    ("language", BOTH, pair(PLAIN["en"], PLAIN["de"], "de"), None),  # of a translation one side is in another
    ("language", BOTH, pair(PLAIN["de"], PLAIN["en"], "de"), None),
    ("language", BOTH, pair(PLAIN["en"], PLAIN["en"].replace("ferry", "boat"), "de"), "neither side in its language"),
    ("language", BOTH, pair(PLAIN["de"], PLAIN["de"].replace("Fähre", "Barke"), "de"), "both sides in one language"),
    ("boilerplate", {}, pair("q", "Lorem ipsum dolor sit amet, consectetur."), "passage is filler text"),
    ("boilerplate", {}, pair("q", "We use cookies. Accept all cookies?"), "passage is a cookie notice"),
    ("boilerplate", {}, pair("q", "Wir verwenden auf dieser Seite Cookies, wie jede."), "passage is a cookie notice"),
    ("boilerplate", {}, pair("q", MENU), "passage is a menu"),
    ("boilerplate", {}, pair("q", "Read more\n" * 4 + "Something else"), "passage is one line repeated"),
    ("boilerplate", {}, pair("q", "12:30 | 45 % | 2023-11-04 | 17.5 | --- | + | a"), "passage is mostly not letters"),
    *(("boilerplate", {}, pair("q", text), None) for text in REAL),
    ("identical", {}, pair("Ｈｅｌｌｏ  World", "hello world"), "query equals passage"),
    ("identical", {}, pair("hello world", "hello world!"), None),
])  # fmt: skip
def test_a_step_drops_what_it_names_and_keeps_the_rest(name, options, item, reason):
    assert filters.make_filter("toy", name, options)(item) == reason


@pytest.mark.parametrize(("given", "said"), [
    ({"lenght": {}}, "filters.lenght: no such filter"),
    ({"length": {"leats": 3}}, "filters.length.leats: no such option: there are least, most"),
    ({"length": {"least": "many"}}, "filters.length.least"),
    ({"language": {"least_chars": -1}}, "filters.language.least_chars"),
    ({"language": {"side": "left"}}, "filters.language.side"),
    ({"near": {"threshold": 0}}, "filters.near.threshold"),
    ({"exact": {"x": 1}}, "filters.exact.x: no such option: there are none"),
])  # fmt: skip
def test_a_wrong_option_is_one_line_with_card_and_key(given, said):
    with pytest.raises(Me5Error) as error:
        filters.sift("toy", given)
    assert "toy.md" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_every_card_names_filters_that_there_are():
    for name, card in cards.hub().items():
        steps = [filters.STEPS[name] for name in card.filters if name in filters.STEPS]
        assert [step.func for step in filters.sift(name, card.filters)] == steps


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_catch_nine_in_ten_at_the_threshold(threshold):
    buckets, hashes = filters.minhash_bands(threshold)
    draws = np.random.default_rng(0).random((20_000, buckets, hashes)) < threshold
    assert buckets * hashes <= 128 and draws.all(2).any(1).mean() > 0.89
    stricter = np.random.default_rng(1).random((20_000, 128 // (hashes + 1), hashes + 1)) < threshold
    assert stricter.all(2).any(1).mean() < 0.91


@pytest.mark.parametrize("changed", [0.0, 0.05, 0.2, 1.0])
def test_signatures_estimate_the_jaccard_of_character_ngrams(tmp_path, changed):
    sign = pipeline.NearSignature(str(tmp_path), *filters.minhash_bands(0.8))
    source = random.Random(5)
    first = "".join(source.choices("abcdefghij", k=2_000))
    second = "".join(source.choice("klmnop") if source.random() < changed else letter for letter in first)
    grams = [{text[i:i + 5] for i in range(len(text) - 4)} for text in (first, second)]
    hashes = [np.concatenate(sign.get_signature(sign.get_shingles(text))) for text in (first, second)]
    true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert abs((hashes[0] == hashes[1]).mean() - true) < 0.15
    assert sign.get_shingles("abcd").shape == (0, 1)
    assert np.array_equal(sign.get_shingles("ÄBCDE  f"), sign.get_shingles("äbcde F"))


@pytest.mark.parametrize(("one", "other"), [
    ("ma mà má mả mã mạ ba bà bá", "mạ ma mà má mả mã bá ba bà"),  # Vietnamese: the tone is the word
    ("ọkọ́ ọkọ̀ ọkọ ìlù ilú ìlú", "ọkọ ọkọ́ ọkọ̀ ìlú ìlù ilú"),  # Yoruba
    ("कुल कल केल कूल", "कल कूल कुल केल"),  # Hindi: the vowel is a mark
    ("12 of 345 cost 67 euros, 8 of 90 cost 11", "98 of 765 cost 43 euros, 2 of 10 cost 99"),
])
def test_marks_and_numbers_tell_texts_apart(one, other, tmp_path):
    sign = pipeline.NearSignature(str(tmp_path), *filters.minhash_bands(0.8))
    first, second = (set(map(int, sign.get_shingles(text)[:, 0])) for text in (one, other))
    assert len(first & second) < 0.5 * len(first | second)
