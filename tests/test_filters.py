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


def step(name: str, **options):
    """A step of the card `toy`."""
    return filters.make_filter("toy", name, options)


def test_length_counts_characters_of_each_side():
    check = step("length", least=3, most=10, passage_least=5)
    assert check(pair("abc", "fünf!")) is None
    assert check(pair("ab", "12345")) == "query under 3 characters"
    assert check(pair("abc", "1234")) == "passage under 5 characters"
    assert check(pair("x" * 11, "12345")) == "query over 10 characters"
    assert check(pair("日本語", "日本語日本語")) is None  # characters, not bytes
    assert check(Labelled("abc", ("12345", "1" * 11), (), "t", "en")) == "passage over 10 characters"
    assert check(Labelled("abc", ("12345",), ("n",), "t", "en")) is None  # negatives are left alone


@pytest.mark.parametrize("code", PLAIN)
def test_language_keeps_what_is_right_and_drops_what_is_wrong(code):
    check = step("language")
    assert check(pair("q", PLAIN[code], code)) is None
    wrong = "de" if code != "de" else "ru"
    assert check(pair("q", PLAIN[code], wrong)) == "passage in another language"


def test_language_is_careful():
    check = step("language")
    assert step("language", least_chars=200)(pair("q", PLAIN["en"], "de")) is None  # short
    assert check(pair("q", PLAIN["en"], "wo")) is None  # Wolof is not among what py3langid knows
    assert check(pair("q", PLAIN["zh"], "zh-hant")) is None
    assert check(pair("q", "https://example.org/a/b?c=1 1234567 https://example.org/7/8/9", "de")) is None


KIN = {"bs": ("bs", "hr", "sr-latn"), "id": ("id", "ms"), "sk": ("sk", "cs"), "nn": ("nn", "nb", "da")}
RELATIVES = {  # languages that py3langid takes for one another, with titles in capitals all the more
    "bs": "Trajekt isplovljava iz luke u sedam sati i stiže na otok prije podneva, ako vrijeme bude lijepo i mirno.",
    "id": "Kapal feri meninggalkan pelabuhan pukul tujuh dan tiba di pulau sebelum tengah hari jika cuaca cerah.",
    "sk": "Trajekt odchádza z prístavu o siedmej a na ostrov príde pred poludním, ak vydrží pekné počasie.",
    "nn": "Ferja går frå hamna klokka sju og kjem til øya før klokka tolv, dersom vêret held seg fint i dag.",
}


@pytest.mark.parametrize("code", RELATIVES)
@pytest.mark.parametrize("write", [str, str.upper])
def test_language_does_not_drop_by_the_exact_label_among_relatives(code, write):
    check = step("language")
    assert not any(check(pair("q", write(RELATIVES[code]), own)) for own in KIN[code])


def test_language_of_translations_allows_the_other_side():
    check = step("language", side="both")
    assert check(pair(PLAIN["en"], PLAIN["de"], "de")) is None
    assert check(pair(PLAIN["de"], PLAIN["en"], "de")) is None
    assert check(pair(PLAIN["en"], PLAIN["en"].replace("ferry", "boat"), "de")) == "neither side in its language"
    assert check(pair(PLAIN["de"], PLAIN["de"].replace("Fähre", "Barke"), "de")) == "both sides in one language"


MENU = "\n".join(["Home", "About us", "Shop", "Contact", "Log in", "Basket", "Help", "Blog", "Terms", "Private", "J"])
CODE = "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # three"


@pytest.mark.parametrize(("text", "reason"), [
    ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "passage is filler text"),
    ("We use cookies to give you the best experience. Accept all cookies?", "passage is a cookie notice"),
    ("Wir verwenden auf dieser Seite Cookies, um Inhalte zu personalisieren.", "passage is a cookie notice"),
    (MENU, "passage is a menu"),
    ("Read more\nRead more\nRead more\nRead more\nSomething else", "passage is one line repeated"),
    ("12:30 | 45 % | 2023-11-04 | 17.50 | --- | +++ | 998 | a", "passage is mostly not letters"),
])  # fmt: skip
def test_boilerplate_is_named(text, reason):
    assert step("boilerplate")(pair("q", text)) == reason


@pytest.mark.parametrize("text", [
    *PLAIN.values(), CODE,
    "The bakery's cookies are baked each morning. " * 12 + "This site uses cookies.",  # a notice below a real text
    "Die Katze\nsitzt am Fenster,\nsieht hinaus\nund wartet.\nKein Vogel kommt,\nkein Wind geht.\nStill.",
    "In 1969, 400,000 people worked on Apollo 11.",
])  # fmt: skip
def test_boilerplate_leaves_real_text_alone(text):
    assert step("boilerplate")(pair("q", text)) is None


def test_vowel_signs_count_as_letters_and_identical_sees_through_case_width_and_space():
    assert step("boilerplate", letters=0.9)(pair("q", PLAIN["hi"])) is None
    assert step("identical")(pair("Ｈｅｌｌｏ  World", "hello world")) == "query equals passage"
    assert step("identical")(pair("hello world", "hello world!")) is None


@pytest.mark.parametrize(("given", "said"), [
    ({"lenght": {}}, "filters.lenght: no such filter"),
    ({"length": {"leats": 3}}, "filters.length.leats: no such option: there are least, most"),
    ({"length": {"least": "many"}}, "filters.length.least"),
    ({"language": {"sure": 1.5}}, "filters.language.sure"),
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
        steps = filters.sift(name, card.filters)
        assert [name for name, _ in steps] == [name for name in card.filters if name in filters.STEPS]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_catch_nine_in_ten_at_the_threshold(threshold):
    buckets, hashes = filters.Near(threshold).bands
    draws = np.random.default_rng(0).random((20_000, buckets, hashes)) < threshold
    assert buckets * hashes <= 128 and draws.all(2).any(1).mean() > 0.89
    stricter = np.random.default_rng(1).random((20_000, 128 // (hashes + 1), hashes + 1)) < threshold
    assert stricter.all(2).any(1).mean() < 0.91


@pytest.mark.parametrize("changed", [0.0, 0.05, 0.2, 1.0])
def test_signatures_estimate_the_jaccard_of_character_ngrams(tmp_path, changed):
    sign, source = pipeline.NearSignature(str(tmp_path), pipeline.near_config(filters.Near(0.8))), random.Random(5)
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
def test_marks_and_numbers_tell_texts_apart_where_datatroves_own_form_does_not(one, other, tmp_path):
    from datatrove.utils.text import TextNormConfig, simplify_text

    assert simplify_text(one, TextNormConfig()).split()[0] == simplify_text(other, TextNormConfig()).split()[0]
    sign = pipeline.NearSignature(str(tmp_path), pipeline.near_config(filters.Near(0.8)))
    first, second = (set(map(int, sign.get_shingles(text)[:, 0])) for text in (one, other))
    assert len(first & second) < 0.5 * len(first | second)
    keys = [pipeline.exact_content(pipeline.to_document(("q", [text], [], "en", False, None))) for text in (one, other)]
    assert keys[0] != keys[1]
