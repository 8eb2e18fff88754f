"""Builders of Table 1: the expected pairs of realistic rows, and no odd row of a card's schema breaks them."""

import fixtures_hub
import pytest

from me5lib.data import cards, schema
from me5lib.data.builders import PAIRS, Drop, Origin, sections, without_html
from me5lib.pairs import Pair

CARDS = [name for name, card in cards.hub().items() if card.paper.table == 1]
HUBS = [pytest.param(name, hub, id=f"{name}-{i}") for name in CARDS for i, hub in enumerate(cards.load(name).hub)]


def built(name: str, row: dict, code: str = "", **options) -> list[Pair | Drop]:
    return list(PAIRS[name](row, Origin("card", code, options)))


def texts(found: list[Pair | Drop]) -> list[tuple[str, str]]:
    assert not [each for each in found if isinstance(each, Drop)]
    return [(pair.query, pair.passage) for pair in found]


def reasons(found: list[Pair | Drop]) -> list[str]:
    return [each.reason if isinstance(each, Drop) else "kept" for each in found]


def test_every_entry_has_a_builder_and_every_builder_an_entry():
    assert {hub.builder for name in CARDS for hub in cards.load(name).hub} == set(PAIRS)


@pytest.mark.parametrize("name, hub", HUBS)
def test_builders_give_clean_pairs_or_counted_drops_for_any_row_of_the_schema(name, hub):
    kept, dropped = [], set()
    for row in fixtures_hub.rows(hub, 150, seed=1):
        assert schema.row_fault(hub.columns, row) is None
        found = built(hub.builder, row, hub.language or next(iter(hub.languages), ""), **hub.options)
        assert found
        kept += [each for each in found if isinstance(each, Pair)]
        dropped |= {each.reason for each in found if isinstance(each, Drop)}
    assert len(kept) >= 20 and dropped and all(len(reason) < 40 for reason in dropped)
    for pair in kept:
        assert pair.query and pair.passage and (pair.query, pair.passage) == (pair.query.strip(), pair.passage.strip())
        assert pair.language in cards.load(name).languages


ARTICLE = """# Bremen
Bremen ist eine Stadt im Norden.

Sie liegt an der Weser.

## Geschichte

### Mittelalter

Der Roland steht seit 1404.
| Jahr | Rat |
|---|---|

### Neuzeit ##
1646 wurde Bremen Reichsstadt.

## Code
```
# kein Titel
print(1)
```
"""


def test_wikipedia_hangs_a_section_under_all_its_titles():
    found = built("wikipedia", {"title": "Bremen", "text": ARTICLE, "page_id": 1}, "de", joint=" - ")
    assert reasons(found) == ["kept", "empty passage", "kept", "kept", "kept"]
    assert [(pair.query, pair.passage, pair.language) for pair in found if isinstance(pair, Pair)] == [
        ("Bremen", "Bremen ist eine Stadt im Norden.\n\nSie liegt an der Weser.", "de"),
        ("Bremen - Geschichte - Mittelalter", "Der Roland steht seit 1404.", "de"),
        ("Bremen - Geschichte - Neuzeit", "1646 wurde Bremen Reichsstadt.", "de"),
        ("Bremen - Code", "```\n# kein Titel\nprint(1)\n```", "de")]
    assert reasons(built("wikipedia", {"title": " ", "text": "x"}, "de")) == ["empty title"]
    assert reasons(built("wikipedia", {"title": "x", "text": " \n"}, "de")) == ["empty passage"]
    assert reasons(built("wikipedia", {"title": "x", "text": "## a\n## b"}, "de")) == ["empty passage"] * 2
    assert list(sections("#hashtag is text")) == [([], "#hashtag is text")]


@pytest.mark.parametrize("text, expected", [
    ("ยินดีต้อนรับ", [("ไทย", "ยินดีต้อนรับ")]),  # a lead without any heading
    ("ก่อน\n## ประวัติ\nหลัง", [("ไทย", "ก่อน"), ("ไทย - ประวัติ", "หลัง")]),
    ("## a\n#### b\n1\n### c\n2\n## d\n3", [("ไทย - a - b", "1"), ("ไทย - a - c", "2"), ("ไทย - d", "3")]),
])
def test_wikipedia_in_any_script_and_with_gaps_in_the_levels(text, expected):
    found = built("wikipedia", {"title": "ไทย", "text": text}, "th")
    assert [(pair.query, pair.passage) for pair in found if isinstance(pair, Pair)] == expected


def test_mc4_takes_the_first_line_for_the_title():
    page = {"text": "\nРецепт борща\nСварите свёклу.\nДобавьте капусту.", "url": "u", "timestamp": "t"}
    assert texts(built("mc4", page, "ru")) == [("Рецепт борща", "Сварите свёклу.\nДобавьте капусту.")]
    assert reasons(built("mc4", {"text": "one line only "})) == ["page of one line"]
    assert reasons(built("mc4", {"text": "x" * 201 + "\nmore"})) == ["first line is no title"]
    assert reasons(built("mc4", {"text": "x" * 201 + "\nmore"}, title_most=201)) == ["kept"]


def test_cc_news_is_headline_and_article_and_null_is_empty():
    row = {"title": "Habari za leo ", "maintext": "Mvua kubwa ilinyesha.", "url": None, "date_publish": None}
    assert built("cc_news", row, "sw") == [Pair("Habari za leo", "Mvua kubwa ilinyesha.", "card", "sw")]
    assert reasons(built("cc_news", row | {"title": None}, "sw")) == ["empty query"]
    assert reasons(built("cc_news", row | {"maintext": " "}, "sw")) == ["empty passage"]


def test_nllb_goes_both_ways_and_counts_for_the_side_that_is_not_english():
    row = {"laser_score": 1.1, "lang1": "eng_Latn", "text1": "Good morning.", "lang2": "zho_Hant", "text2": "早安。",
           "blaser_sim": 4.2}
    assert built("nllb", row) == [Pair("Good morning.", "早安。", "card", "zh-hant"),
                                  Pair("早安。", "Good morning.", "card", "zh-hant")]
    row |= {"lang1": "deu_Latn", "text1": "Guten Morgen.", "lang2": "wol_Latn", "text2": "Suba ak jàmm."}
    assert [pair.language for pair in built("nllb", row)] == ["wo", "de"]  # of the passage


def test_nllb_codes_become_iso_codes_and_what_is_no_pair_of_languages_is_refused():
    row = {"lang1": "eng_Latn", "text1": "a", "lang2": "und", "text2": "b"}
    for tag, code in {"pes_Arab": "fa", "prs_Arab": "fa", "arb_Arab": "ar", "als_Latn": "sq", "swh_Latn": "sw",
                      "pbt_Arab": "ps", "quy_Latn": "qu", "khk_Cyrl": "mn", "ace_Arab": "ace-arab"}.items():
        assert {pair.language for pair in built("nllb", row | {"lang2": tag})} == {code}
    assert reasons(built("nllb", row)) == ["unknown language"]
    assert reasons(built("nllb", row | {"lang2": "eng_Latn"})) == ["same language"]
    assert reasons(built("nllb", row | {"lang2": "fra_Latn", "text2": " "})) == ["empty passage", "empty query"]


def test_ccmatrix_has_its_language_from_the_file():
    row = {"english": "It is late.", "non_english": "Het is laat."}
    assert built("ccmatrix", row, "nl") == [Pair("It is late.", "Het is laat.", "card", "nl"),
                                            Pair("Het is laat.", "It is late.", "card", "nl")]


def test_reddit_keeps_responses_by_score_and_length():
    row = {"history": "How do I keep basil alive?", "human_ref_A": "Water it from below.", "score_A": 12,
           "human_ref_B": "Why bother", "score_B": 0}
    found = built("reddit", row, "en", least_score=1, most_chars=4096)
    assert reasons(found) == ["kept", "score too low"]
    assert found[0] == Pair("How do I keep basil alive?", "Water it from below.", "card", "en")
    assert reasons(built("reddit", row | {"human_ref_A": "x" * 4097, "score_B": 1})) == ["text too long", "kept"]
    assert reasons(built("reddit", row | {"human_ref_A": "x" * 4096})) == ["kept", "score too low"]
    assert reasons(built("reddit", row | {"human_ref_A": "[removed]"})) == ["deleted text", "score too low"]


def test_reddit_posts_are_title_and_body():
    row = {"title": "TIL otters hold hands", "body": "So that they do not drift apart.", "subreddit": "todayilearned"}
    assert texts(built("reddit_post", row, "en")) == [("TIL otters hold hands", "So that they do not drift apart.")]
    assert reasons(built("reddit_post", row | {"body": "[deleted]"})) == ["deleted text"]
    assert reasons(built("reddit_post", row | {"body": None})) == ["empty passage"]
    assert reasons(built("reddit_post", row | {"body": "y" * 4097}, most_chars=4096)) == ["text too long"]


def test_s2orc_pairs_a_title_with_its_abstract_or_with_every_cited_title():
    row = {"title": "On sleep", "abstract": " We study sleep. "}
    assert texts(built("s2orc", row, "en", passage="abstract")) == [("On sleep", "We study sleep.")]
    cited = {"title": "On sleep", "citation": ["On dreams", "", "On waking"]}
    assert reasons(built("s2orc", cited, "en", passage="citation")) == ["kept", "empty passage", "kept"]
    assert texts(built("s2orc", cited | {"citation": "On dreams"}, "en", passage="citation")) == [
        ("On sleep", "On dreams")]


def test_stackexchange_takes_the_best_answer_and_the_html_out():
    answers = [{"pm_score": "2", "text": "<p>Use <code>df -h</code>.</p>"},
               {"pm_score": "10", "text": "<p>Try <b>du</b> &amp; sort:</p><pre><code>du | sort -n\n</code></pre>"},
               {"pm_score": "10", "text": "<p>Same.</p>"}, {"pm_score": "", "text": "<p>?</p>"}]
    row = {"qid": 1, "question": "<p>What is<br>filling my disk?</p>\n\n<p>5 &lt; 6</p>", "answers": answers}
    assert texts(built("stackexchange", row, "en")) == [
        ("What is\nfilling my disk?\n5 < 6", "Try du & sort:\ndu | sort -n")]  # 10 > 2 as numbers, not as text
    assert reasons(built("stackexchange", row | {"answers": []})) == ["no scored answer"]
    assert reasons(built("stackexchange", row | {"answers": answers[3:]})) == ["no scored answer"]
    worst = [{"pm_score": "-1", "text": "<p>no</p>"}]
    assert reasons(built("stackexchange", row | {"answers": worst})) == ["score too low"]
    assert reasons(built("stackexchange", row | {"answers": worst}, least_score=-1)) == ["kept"]


@pytest.mark.parametrize("html, text", [
    ("if a <b and b> c", "if a <b and b> c"),  # no HTML: there is no end tag
    ("<p>if a &lt;b and b&gt; c</p>", "if a <b and b> c"),
    ("<p>x</p><script>var a = '<p>';</script><p>y</p>", "x\ny"),
    ("<ul><li>eins</li><li>zwei</li></ul>", "eins\nzwei"),
    ("<p>open <![weird section</p>", "open <![weird section"),
    ("<p>caf&eacute; &nbsp; &#x4e2d;</p>", "café 中"),
    ("<p></p>", ""),
])
def test_html_becomes_text(html, text):
    assert without_html(html) == text


def test_the_plain_builders_take_their_columns():
    row = {"title_body": "Cat sneezes My cat sneezes a lot.", "upvoted_answer": "<p>See a vet.</p>"}
    assert texts(built("stackexchange_title", row, "en")) == [("Cat sneezes My cat sneezes a lot.", "See a vet.")]
    assert reasons(built("stackexchange_title", row | {"upvoted_answer": None}, "en")) == ["empty passage"]
    row = {"inputs": "Sentence 1: Fue académico.\nCan we rewrite it?", "targets": "\nYes"}
    assert built("xp3", row, "es") == [Pair("Sentence 1: Fue académico.\nCan we rewrite it?", "Yes", "card", "es")]
    row = {"document": "A long story.", "summary": "A story.", "id": "7"}
    assert texts(built("columns", row, "en", query="summary", passage="document")) == [("A story.", "A long story.")]
    for hub in cards.load("sbert-misc").hub:
        assert {hub.options["query"], hub.options["passage"]} <= set(hub.columns)
