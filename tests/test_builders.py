"""Builders of both tables: what they make of realistic rows, and no odd row of a card's schema breaks them."""

import re

import fixtures_hub
import pytest

from me5lib.data import cards
from me5lib.data.builders import (
    BUILDERS,
    LABELLED_BUILDERS,
    PAIR_BUILDERS,
    Drop,
    RowContext,
    example,
    markdown_sections,
    without_html,
)
from me5lib.data.text import language
from me5lib.evaluate.paper import load_csv, paper_table
from me5lib.pairs import Labelled, Pair

CARDS = [name for name, card in cards.hub().items() if card.paper.table == 1]
TABLE_2 = {  # card → its row of the paper's Table 2
    "msmarco-passage": "MS-MARCO Passage", "msmarco-document": "MS-MARCO Document", "nq": "NQ, TriviaQA, SQuAD",
    "triviaqa": "NQ, TriviaQA, SQuAD", "squad": "NQ, TriviaQA, SQuAD", "nli": "NLI", "eli5": "ELI5",
    "nllb-finetune": "NLLB", "dureader": "DuReader Retrieval", "fever": "Fever", "hotpotqa": "HotpotQA",
    "quora": "Quora Duplicate Questions", "mrtydi": "Mr. TyDi", "miracl": "MIRACL",
}
NAMES = [*TABLE_2, "t2ranking", "synthetic"]
SYMMETRIC = {"nli", "nllb-finetune", "quora"}
REASONS = ("empty query", "no positive", "empty passage", "unknown language", "same language")
EVALUATED = {  # card → the task of the authors' instructions that is the same one
    "msmarco-passage": "MSMARCO", "nq": "NQ", "dureader": "DuRetrieval", "t2ranking": "T2Retrieval", "fever": "FEVER",
    "hotpotqa": "HotpotQA", "quora": "QuoraRetrieval", "miracl": "MIRACLRetrieval", "mrtydi": "MIRACLRetrieval",
}
HUBS = [pytest.param(name, hub, id=f"{name}-{i}") for name, card in cards.hub().items()
        for i, hub in enumerate(card.hub)]


def built(name: str, row: dict, code: str = "", **options) -> list[Pair | Drop]:
    return list(PAIR_BUILDERS[name](row, RowContext("card", code, options)))


def test_every_entry_has_a_builder_and_every_builder_an_entry():
    assert {hub.builder for name in CARDS for hub in cards.load_card(name).hub} == set(PAIR_BUILDERS)


@pytest.mark.parametrize("name, hub", HUBS)
def test_any_row_of_a_cards_schema_gives_clean_items_or_counted_drops(name, hub):
    kept, dropped, labelled = [], set(), hub.builder in LABELLED_BUILDERS
    context = RowContext(name, hub.language or next(iter(hub.languages), "sw"), hub.options)
    for number, row in enumerate(fixtures_hub.rows(hub, 200, seed=1)):
        assert cards.row_fault(hub.columns, row) is None
        codes = {"lang1": fixtures_hub.CODES[number % 11], "lang2": fixtures_hub.CODES[number * 3 % 11]}
        row |= {column: code for column, code in codes.items() if column in row}
        before = repr(row)
        found = list(BUILDERS[hub.builder](row, context))
        assert found and repr(row) == before
        kept += [each for each in found if not isinstance(each, Drop)]
        dropped |= {each.reason for each in found if isinstance(each, Drop)}
    assert len(kept) >= 20 and dropped and all(len(reason) < 40 for reason in dropped)
    assert not labelled or dropped <= set(REASONS)
    for item in kept:
        right, wrong = (item.positives, item.negatives) if labelled else ((item.passage,), ())
        assert isinstance(item, Labelled if labelled else Pair) and item.source == name and right
        assert all(text and text == text.strip() for text in (item.query, *right, *wrong))
        languages = [language(item.language)] if labelled else cards.load_card(name).languages
        assert item.language in languages
        assert not {*wrong} & {*right, item.query}
        assert len({*right, *wrong}) == len(right) + len(wrong)


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

OTTERS = {"title": "TIL otters hold hands", "body": "So that they do not drift apart.", "subreddit": "x"}
ASK = {"history": "How do I keep basil alive?", "human_ref_A": "Water it from below.", "score_A": 12,
       "human_ref_B": "Why bother", "score_B": 0}
NEWS = {"title": "Habari za leo ", "maintext": "Mvua kubwa ilinyesha.", "url": None, "date_publish": None}
NLLB = {"laser_score": 1.1, "lang1": "eng_Latn", "text1": "Good morning.", "lang2": "zho_Hant", "text2": "早安。"}
ANSWERS = [{"pm_score": "2", "text": "<p>Use <code>df -h</code>.</p>"},
           {"pm_score": "10", "text": "<p>Try <b>du</b> &amp; sort:</p><pre><code>du | sort -n\n</code></pre>"},
           {"pm_score": "10", "text": "<p>Same.</p>"}, {"pm_score": "", "text": "<p>?</p>"}]
DISK = {"qid": 1, "question": "<p>What is<br>filling my disk?</p>\n\n<p>5 &lt; 6</p>", "answers": ANSWERS}
WORST = {"answers": [{"pm_score": "-1", "text": "<p>no</p>"}]}
CASES = [  # builder, row, language of the file, options, what comes: (query, passage[, language]) or the reason
    ("wikipedia", {"title": "Bremen", "text": ARTICLE, "page_id": 1}, "de", {"joint": " - "}, [
        ("Bremen", "Bremen ist eine Stadt im Norden.\n\nSie liegt an der Weser.", "de"), "empty passage",
        ("Bremen - Geschichte - Mittelalter", "Der Roland steht seit 1404."),
        ("Bremen - Geschichte - Neuzeit", "1646 wurde Bremen Reichsstadt."),
        ("Bremen - Code", "```\n# kein Titel\nprint(1)\n```")]),
    ("wikipedia", {"title": "ไทย", "text": "ยินดีต้อนรับ"}, "th", {}, [("ไทย", "ยินดีต้อนรับ")]),  # no heading at all
    ("wikipedia", {"title": "ไทย", "text": "ก่อน\n## ประวัติ\nหลัง"}, "th", {}, [
        ("ไทย", "ก่อน"), ("ไทย - ประวัติ", "หลัง")]),
    ("wikipedia", {"title": "t", "text": "## a\n#### b\n1\n### c\n2\n## d\n3"}, "th", {}, [  # gaps in the levels
        "empty passage", ("t - a - b", "1"), ("t - a - c", "2"), ("t - d", "3")]),
    ("wikipedia", {"title": " ", "text": "x"}, "de", {}, ["empty title"]),
    ("mc4", {"text": "\nРецепт борща\nСварите свёклу.\nДобавьте капусту.", "url": "u"}, "ru", {}, [
        ("Рецепт борща", "Сварите свёклу.\nДобавьте капусту.", "ru")]),
    ("mc4", {"text": "one line only "}, "en", {}, ["page of one line"]),
    ("mc4", {"text": "x" * 201 + "\nmore"}, "en", {}, ["first line is no title"]),
    ("cc_news", NEWS, "sw", {}, [("Habari za leo", "Mvua kubwa ilinyesha.", "sw")]),
    ("cc_news", NEWS | {"title": None}, "sw", {}, ["empty query"]),
    ("nllb", NLLB, "", {}, [("Good morning.", "早安。", "zh-hant"), ("早安。", "Good morning.", "zh-hant")]),
    ("nllb", NLLB | {"lang1": "deu_Latn", "text1": "Guten Morgen.", "lang2": "wol_Latn", "text2": "Suba."}, "", {}, [
        ("Guten Morgen.", "Suba.", "wo"), ("Suba.", "Guten Morgen.", "de")]),  # of the passage
    ("nllb", NLLB | {"lang2": "und"}, "", {}, ["unknown language"]),
    ("nllb", NLLB | {"lang2": "eng_Latn"}, "", {}, ["same language"]),
    ("nllb", NLLB | {"text2": " "}, "", {}, ["empty passage", "empty query"]),
    ("ccmatrix", {"english": "It is late.", "non_english": "Het is laat."}, "nl", {}, [
        ("It is late.", "Het is laat.", "nl"), ("Het is laat.", "It is late.", "nl")]),
    ("reddit", ASK, "en", {"least_score": 1}, [
        ("How do I keep basil alive?", "Water it from below.", "en"), "score too low"]),
    ("reddit", ASK | {"human_ref_A": "x" * 4097, "score_B": 1}, "en", {}, [
        "text too long", ("How do I keep basil alive?", "Why bother")]),
    ("reddit", ASK | {"human_ref_A": "[removed]"}, "en", {}, ["deleted text", "score too low"]),
    ("reddit_post", OTTERS, "en", {}, [("TIL otters hold hands", "So that they do not drift apart.")]),
    ("reddit_post", OTTERS | {"body": "[deleted]"}, "en", {}, ["deleted text"]),
    ("s2orc", {"title": "On sleep", "abstract": " We study sleep. "}, "en", {}, [("On sleep", "We study sleep.")]),
    ("s2orc", {"title": "On sleep", "citation": ["On dreams", "", "On waking"]}, "en", {"passage": "citation"}, [
        ("On sleep", "On dreams"), "empty passage", ("On sleep", "On waking")]),
    ("s2orc", {"title": "On sleep", "citation": "On dreams"}, "en", {"passage": "citation"}, [
        ("On sleep", "On dreams")]),
    ("stackexchange", DISK, "en", {}, [  # 10 > 2 as numbers, not as text
        ("What is\nfilling my disk?\n5 < 6", "Try du & sort:\ndu | sort -n")]),
    ("stackexchange", DISK | {"answers": ANSWERS[3:]}, "en", {}, ["no scored answer"]),
    ("stackexchange", DISK | WORST, "en", {}, ["score too low"]),
    ("stackexchange", DISK | WORST, "en", {"least_score": -1}, [("What is\nfilling my disk?\n5 < 6", "no")]),
    ("stackexchange_title", {"title_body": "Cat My cat.", "upvoted_answer": "<p>Go.</p>"}, "en", {}, [
        ("Cat My cat.", "Go.")]),
    ("stackexchange_title", {"title_body": "Cat", "upvoted_answer": None}, "en", {}, ["empty passage"]),
    ("xp3", {"inputs": "Fue.\nCan we rewrite it?", "targets": "\nYes"}, "es", {}, [
        ("Fue.\nCan we rewrite it?", "Yes", "es")]),
    ("columns", {"document": "Long.", "summary": "Short."}, "en", {"query": "summary", "passage": "document"}, [
        ("Short.", "Long.", "en")]),
]


@pytest.mark.parametrize(("name", "row", "code", "options", "expected"), CASES)
def test_a_realistic_row_gives_the_pairs_that_its_card_promises(name, row, code, options, expected):
    found = built(name, row, code, **options)
    assert len(found) == len(expected)
    for item, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, str):
            assert item == Drop(wanted)
        else:
            query, passage, language = (*wanted, code)[:3]
            assert item == Pair(query, passage, "card", language)


def test_nllb_codes_become_iso_codes_and_a_hashtag_is_no_heading():
    for tag, code in {"pes_Arab": "fa", "prs_Arab": "fa", "arb_Arab": "ar", "als_Latn": "sq", "swh_Latn": "sw",
                      "pbt_Arab": "ps", "quy_Latn": "qu", "khk_Cyrl": "mn", "ace_Arab": "ace-arab"}.items():
        assert {pair.language for pair in built("nllb", NLLB | {"lang2": tag})} == {code}
    assert list(markdown_sections("#hashtag is text")) == [([], "#hashtag is text")]


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


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_labelled_examples_says_what_is_ours_and_what_the_authors(name):
    card, joint = cards.load_card(name), [other for other, row in TABLE_2.items() if row == TABLE_2.get(name)]
    assert card.paper.table == (2 if name in TABLE_2 else None)
    assert card.paper.joint == (joint if len(joint) > 1 else [])  # a count that several share is split by us
    assert ("ours" in card.ours.get("rows", "")) == (len(joint) > 1)
    for hub in card.hub:
        assert hub.builder in LABELLED_BUILDERS and not re.search(r"\b(dev|test|validation)\b", hub.files)
    assert card.passage_prefix == ("query: " if name in SYMMETRIC else "passage: ")
    assert (card.instruction is None) == (name == "synthetic")
    if name in EVALUATED:
        assert card.instruction == load_csv("instruct_prompts").set_index("task").instruction[EVALUATED[name]]


def test_the_counts_of_table_2_are_the_papers():
    found: dict[str, int] = {}
    for name, row in TABLE_2.items():
        found[row] = found.get(row, 0) + cards.load_card(name).paper.rows
    assert found == paper_table(2).set_index("source")["sampled"].to_dict()


def of_card(name: str, row: dict, code: str = "") -> list:
    """What the first hub entry of card `name` makes of a row; the row must fit the card's columns."""
    hub = cards.load_card(name).hub[0]
    assert cards.row_fault(hub.columns, row) is None
    return list(LABELLED_BUILDERS[hub.builder](row, RowContext(name, code or hub.language or "", hub.options)))


def passage(docid: str, title: str, text: str) -> dict[str, str]:
    return {"docid": docid, "title": title, "text": text}


DPR = {"query_id": "0", "query": "who painted the ceiling", "answers": ["Michelangelo"],
       "positive_passages": [passage("a", "Chapel", "Michelangelo did."), passage("b", "Painter", "He was one.")],
       "negative_passages": [passage("c", "Ceiling", "It is above."), passage("d", "Chapel", "michelangelo  did."),
                             passage("e", "No text", "  ")]}
BGE = {"query": "Wo liegt Ulm?", "pos": ["Ulm liegt an der Donau.", "Ulm ist in Schwaben."], "category": None,
       "neg": ["Bonn liegt am Rhein.", "", "Bonn liegt am Rhein. ", "Wo liegt Ulm?"], "type": "normal",
       "prompt": "Find it.", "pos_scores": [9.1, 8.0], "neg_scores": None}
LISTS = {"query": "Ulm is a river.", "positive": ["Ulm is a city."], "negative": ["A river flows."], "answers": []}
TRIPLET = {"anchor": "Two men cook.", "positive": "People cook.", "negative": "Nobody cooks."}


@pytest.mark.parametrize(("names", "row", "query", "positives", "negatives"), [
    ("msmarco-passage",  # title and text are joined, but for a dash
     {"query_id": "7", "query": " what is a dune ",
      "positive_passages": [passage("1", "Dunes", "A dune is a hill of sand. ")],
      "negative_passages": [passage("2", "-", "Dune is a novel."), passage("3", "", "A dune buggy is a car.")]},
     "what is a dune", ("Dunes A dune is a hill of sand.",), ("Dune is a novel.", "A dune buggy is a car.")),
    ("nq triviaqa squad", DPR, DPR["query"], ("Chapel Michelangelo did.", "Painter He was one."),
     ("Ceiling It is above.",)),
    ("mrtydi", {"query_id": "3", "query": "Mji mkuu wa Kenya ni upi?", "negative_passages": [],
                "positive_passages": [passage("9#0", "Nairobi", "Nairobi ni mji mkuu wa Kenya.")]},
     "Mji mkuu wa Kenya ni upi?", ("Nairobi Nairobi ni mji mkuu wa Kenya.",), ()),
    ("miracl t2ranking msmarco-document", BGE, BGE["query"], tuple(BGE["pos"]), ("Bonn liegt am Rhein.",)),
    ("fever hotpotqa dureader", LISTS, LISTS["query"], ("Ulm is a city.",), ("A river flows.",)),
    ("nli quora", TRIPLET, "Two men cook.", ("People cook.",), ("Nobody cooks.",)),
    ("nli", TRIPLET | {"negative": "people COOK."}, "Two men cook.", ("People cook.",), ()),
    ("eli5", {"question": "Why is the sky blue?", "answer": "Light scatters."}, "Why is the sky blue?",
     ("Light scatters.",), ()),
])  # fmt: skip
def test_rows_as_the_repositories_have_them(names, row, query, positives, negatives):
    for name in names.split():
        code = cards.load_card(name).hub[0].language or ("sw" if name == "mrtydi" else "de")
        assert of_card(name, row, code) == [Labelled(query, positives, negatives, name, code)]
    assert of_card("nli", TRIPLET | {"positive": " "}) == [Drop("no positive")]
    assert of_card("quora", TRIPLET | {"anchor": ""}) == [Drop("empty query")]


def test_a_synthetic_row_brings_its_own_instruction():
    row = {"query": "soup", "positive": ["A recipe."], "negative": ["A spoon."], "instruction": " Retrieve recipes. "}
    assert of_card("synthetic", row) == [Labelled("soup", ("A recipe.",), ("A spoon.",), "synthetic", "en",
                                                instruction="Retrieve recipes.")]
    assert of_card("synthetic", row | {"instruction": " "})[0].instruction is None
    assert of_card("fever", {"query": "a", "positive": ["b"], "negative": []})[0].instruction is None


def test_wrong_texts_may_stand_in_several_columns_or_none():
    row = {"q": "a", "right": "b", "negative_1": "c", "negative_2": None, "negative_3": "d", "negative": "e"}
    options = {"query": "q", "positive": "right", "negatives": ["negative_1", "negative_2", "negative_3"]}
    assert [item.negatives for item in BUILDERS["triplet"](row, RowContext("x", "en", options))] == [("c", "d")]
    options["negatives"] = []
    assert [item.negatives for item in BUILDERS["triplet"](row, RowContext("x", "en", options))] == [()]


def sentences(one: str, two: str) -> dict:
    return {"laser_score": 1.1, "lang1": one, "text1": "Guten Tag", "lang2": two, "text2": "Hello", "blaser_sim": 4.2}


def test_translations_are_read_in_both_directions_in_the_languages_of_their_card():
    there, back = of_card("nllb-finetune", sentences("deu_Latn", "eng_Latn"))
    assert there == Labelled("Guten Tag", ("Hello",), (), "nllb-finetune", "de")
    assert back == Labelled("Hello", ("Guten Tag",), (), "nllb-finetune", "de")
    tags = "arb_Arab crh_Latn deu_Latn kas_Deva kmr_Latn knc_Arab pbt_Arab plt_Latn prs_Arab quy_Latn twi_Latn zho_Hant"
    found = {item.language for tag in tags.split() for item in of_card("nllb-finetune", sentences(tag, "eng_Latn"))}
    assert len(found) == len(tags.split()) and found <= set(cards.load_card("nllb-finetune").languages)
    assert of_card("nllb-finetune", sentences("xx", "eng_Latn")) == [Drop("unknown language")]


def test_a_negative_is_left_out_for_being_right_and_a_document_without_text_is_none():
    found = example(RowContext("x", "en"), "Q", ["Ａ  b", "a B"], ["a b", "q", "c", " c", None, ""])
    assert (found.positives, found.negatives) == (("Ａ  b",), ("c",))
    documents = (("Dunes", "Sand."), ("…", "Sand."), (None, "Sand."), ("砂丘", "砂。"), ("A", " "))
    row = {"query": "q", "positive_passages": [{"title": title, "text": text} for title, text in documents],
           "negative_passages": None}
    (found,) = BUILDERS["passages"](row, RowContext("x", "en"))
    assert found.positives == ("Dunes Sand.", "Sand.", "砂丘 砂。")
