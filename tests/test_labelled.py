"""Table 2 and the instruct model: every card is right in itself, and its builder makes the examples it promises."""

import csv
import re
from pathlib import Path

import pytest
from fixtures_hub import CODES, rows

import me5lib
from me5lib.data import builders, cards, schema
from me5lib.data.builders import BUILDERS, Drop, Origin
from me5lib.data.text import language
from me5lib.pairs import Labelled

TABLES = Path(me5lib.__file__).parent / "evaluate" / "tables"
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


def table(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf8", newline="") as handle:
        return list(csv.DictReader(handle))


def built(name: str, row: dict, code: str = "") -> list:
    """What the first hub entry of card `name` makes of a row; the row must fit the card's columns."""
    hub = cards.load(name).hub[0]
    assert schema.row_fault(hub.columns, row) is None
    return list(BUILDERS[hub.builder](row, Origin(name, code or hub.language or "", hub.options)))


def test_the_counts_of_table_2_are_the_papers_and_a_joint_one_is_marked_as_our_split():
    wanted = {row["source"]: int(row["sampled"]) for row in table("mixtures.csv") if row["table"] == "2"}
    found = dict.fromkeys(wanted, 0)
    for name, row in TABLE_2.items():
        paper = cards.load(name).paper
        assert paper.table == 2
        found[row] += paper.rows
        together = [other for other, its in TABLE_2.items() if its == row]
        assert paper.joint == (together if len(together) > 1 else [])
        assert ("ours" in cards.load(name).ours.get("rows", "")) == (len(together) > 1)
    assert found == wanted
    assert cards.load("t2ranking").paper.table is cards.load("synthetic").paper.table is None
    assert cards.load("synthetic").paper.rows == 500_000 and cards.load("synthetic").stand_in


@pytest.mark.parametrize("name", NAMES)
def test_a_card_can_be_built_from_and_says_what_is_ours_and_the_authors(name):
    card = cards.load(name)
    assert card.role == "train" and card.ours and card.faults and card.prose and card.licence and card.pair
    for hub in card.hub:
        assert hub.builder in BUILDERS
        assert hub.revision is None or re.fullmatch(r"[0-9a-f]{40}", hub.revision)
        assert not re.search(r"\b(dev|test|validation)\b", hub.files), "only training splits"
    assert card.languages == sorted(set(card.languages)) and all(language(code) == code for code in card.languages)
    told = {code for hub in card.hub for code in hub.languages or ([hub.language] if hub.language else [])}
    assert not told or told == set(card.languages)
    assert (card.query_prefix, card.passage_prefix) == ("query: ", "query: " if name in SYMMETRIC else "passage: ")
    assert (card.instruction is None) == (name == "synthetic")
    if name in EVALUATED:
        printed = [row["instruction"] for row in table("instruct_prompts.csv") if row["task"] == EVALUATED[name]]
        assert [card.instruction] == printed


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_cards_schema_become_examples_or_say_why_not(name):
    for hub in cards.load(name).hub:
        made = 0
        for number, row in enumerate(rows(hub, 200, seed=1)):
            row |= {column: CODES[number * step % len(CODES)] for column, step in (("lang1", 1), ("lang2", 3))
                    if column in row}
            before = repr(row)
            found = list(BUILDERS[hub.builder](row, Origin(name, hub.language or "sw", hub.options)))
            assert found and repr(row) == before
            for item in found:
                if isinstance(item, Drop):
                    assert item.reason in REASONS
                    continue
                check(item, name)
                made += 1
        assert made >= 20


def check(item: Labelled, name: str) -> None:
    texts = [item.query, *item.positives, *item.negatives]
    assert isinstance(item, Labelled) and item.source == name and language(item.language) == item.language
    assert isinstance(item.positives, tuple) and item.positives and isinstance(item.negatives, tuple)
    assert all(text and text == text.strip() for text in texts)
    assert not {*item.negatives} & {*item.positives, item.query}
    assert len(set(item.positives)) == len(item.positives) and len(set(item.negatives)) == len(item.negatives)
    assert item.teacher_scores is None


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
        code = cards.load(name).hub[0].language or ("sw" if name == "mrtydi" else "de")
        assert built(name, row, code) == [Labelled(query, positives, negatives, name, code)]


def test_what_makes_no_example_says_why():
    assert built("nli", TRIPLET | {"positive": " "}) == [Drop("no positive")]
    assert built("quora", TRIPLET | {"anchor": ""}) == [Drop("empty query")]


def test_a_synthetic_row_brings_its_own_instruction():
    row = {"query": "soup", "positive": ["A recipe."], "negative": ["A spoon."], "instruction": " Retrieve recipes. "}
    assert built("synthetic", row) == [Labelled("soup", ("A recipe.",), ("A spoon.",), "synthetic", "en",
                                                instruction="Retrieve recipes.")]
    assert built("synthetic", row | {"instruction": " "})[0].instruction is None
    assert built("fever", {"query": "a", "positive": ["b"], "negative": []})[0].instruction is None


def test_wrong_texts_may_stand_in_several_columns_or_none():
    row = {"q": "a", "right": "b", "negative_1": "c", "negative_2": None, "negative_3": "d", "negative": "e"}
    options = {"query": "q", "positive": "right", "negatives": ["negative_1", "negative_2", "negative_3"]}
    assert [item.negatives for item in builders.triplet(row, Origin("x", "en", options))] == [("c", "d")]
    assert [item.negatives for item in builders.triplet(row, Origin("x", "en", options | {"negatives": []}))] == [()]


def sentences(one: str, two: str, text1: str = "Guten Tag", text2: str = "Hello") -> dict:
    return {"laser_score": 1.1, "lang1": one, "text1": text1, "lang2": two, "text2": text2, "blaser_sim": 4.2}


def test_translations_are_read_in_both_directions():
    there, back = built("nllb-finetune", sentences("deu_Latn", "eng_Latn"))
    assert there == Labelled("Guten Tag", ("Hello",), (), "nllb-finetune", "de")
    assert back == Labelled("Hello", ("Guten Tag",), (), "nllb-finetune", "de")
    between = built("nllb-finetune", sentences("deu_Latn", "zho_Hant", text2="你好"))
    assert [item.language for item in between] == ["zh-hant", "de"], "of the passage, where neither side is English"


def test_the_card_of_translations_lists_what_its_builder_makes_of_nllbs_codes():
    tags = "arb_Arab crh_Latn deu_Latn kas_Deva kmr_Latn knc_Arab pbt_Arab plt_Latn prs_Arab quy_Latn twi_Latn zho_Hant"
    found = {item.language for tag in tags.split() for item in built("nllb-finetune", sentences(tag, "eng_Latn"))}
    assert len(found) == len(tags.split()) and found <= set(cards.load("nllb-finetune").languages)


def test_translations_that_are_none():
    assert built("nllb-finetune", sentences("xx", "eng_Latn")) == [Drop("unknown language")]
    assert built("nllb-finetune", sentences("kas_Arab", "kas_Deva")) == [Drop("same language")]
    assert built("nllb-finetune", sentences("deu_Latn", "eng_Latn", text1="\n")) == [
        Drop("empty query"), Drop("empty passage")]


def test_a_negative_is_left_out_for_being_right_and_a_document_without_text_is_none():
    found = builders.example(Origin("x", "en"), "Q", ["Ａ  b", "a B"], ["a b", "q", "c", " c", None, ""])
    assert (found.positives, found.negatives) == (("Ａ  b",), ("c",))
    assert builders.document({"title": "Dunes", "text": " "}) == ""
    assert builders.document({"title": "…", "text": "Sand."}) == "Sand."
    assert builders.document({"text": "Sand."}) == "Sand."
    assert builders.document({"title": "砂丘", "text": "砂。"}) == "砂丘 砂。"
