"""The data cards say what is so: counts, hashes, languages, prefixes; the shelf is whole; a wrong card is refused."""

import csv
import hashlib
import re
from functools import cache

import pytest
import yaml

from me5lib import config, pairs
from me5lib.data import cards, offline
from me5lib.data.text import language
from me5lib.io import PACKAGE, Me5Error, asset

HUB = cards.hub()
OFFLINE = {name: card for name, card in cards.all_cards().items() if name not in HUB}
QUICK = ("kolibri", "exams", "gsm", "xquad", "fastapi", "intents")  # together about 10 s; the bigger ones cost 60 s
FOLDED = {"homeassistant-descriptions": "homeassistant"}  # cards on tables of another card's file
SAMPLED = {"wikipedia": 150, "mc4": 160, "cc-news": 160, "nllb": 160, "reddit": 160, "s2orc": 50, "stackexchange": 50,
           "xp3": 80, "sbert-misc": 10}  # millions, as printed in Table 1; they sum to 980


@cache
def extracted(name: str) -> offline.Extracted:
    return offline.extract(name, offline.readers(name))


# What the cards say ---------------------------------------------------------------------------------------------------


def test_the_cards_of_the_scales_are_there_and_their_files_are_pinned_once():
    for preset in ("smoke", "tiny"):
        data = config.load(preset).data
        assert {*data.sources, *data.labelled} <= set(OFFLINE)
    files = [file for card in OFFLINE.values() for file in card.files]
    assert len({(file.file, file.sha256, file.size, file.version) for file in files}) == len({f.file for f in files})
    assert all(file.version in file.file for file in files)


@pytest.mark.parametrize("name", [*OFFLINE, *HUB])
def test_a_card_says_what_it_must_in_legal_languages(name):
    from babel import Locale
    from babel.core import get_global

    card = cards.load_card(name)
    assert card.licence and card.translated_by and card.faults and card.pair and card.prose
    assert card.languages == sorted(set(card.languages)) and card.languages and card.query_prefix == "query: "
    for code in card.languages:
        base, _, script = code.partition("-")
        assert re.fullmatch(r"[a-z]{2,3}", base) and base != "und", code
        assert base in Locale("en").languages or base in get_global("likely_subtags"), code
        assert not script or script.title() in Locale("en").scripts, code
        assert name.startswith("cldr") or language(code) == code
    kinds = set(card.counts)
    if {"translations", "parallel"} & kinds or name == "nllb":
        assert card.passage_prefix == "query: "  # symmetric
    if {"pairs", "labelled", "retrieval"} & kinds or name in set(SAMPLED) - {"nllb"}:
        assert card.passage_prefix == "passage: "
    if name in ("exams", "xquad", "history"):  # not hidden behind the licence of the package
        assert card.licence.count("CC BY-SA") == 1


@pytest.mark.parametrize("name", HUB)
def test_a_hub_card_gives_its_reasons_and_its_files_their_languages(name):
    card = HUB[name]
    assert card.ours and all(len(reason.split()) >= 2 for reason in card.ours.values())
    assert all(hub.read_from for hub in card.hub)
    for hub in card.hub:
        assert set(hub.languages) <= set(card.languages) and len(set(hub.languages.values())) == len(hub.languages)
        assert hub.language is None or hub.language in card.languages
    if name in SAMPLED:
        assert {"sampling", "filters", "consistency"} <= set(card.ours) and {"length", "exact"} <= set(card.filters)
    if name in ("nllb", "reddit", "s2orc", "stackexchange"):
        assert len(card.stand_in) > 100  # the original cannot be had, or not in a form that is read


def test_no_folder_is_mistaken_for_the_language_that_shares_its_name():
    wikipedia, news, web = (cards.load_card(name).hub[0].languages for name in ("wikipedia", "cc-news", "mc4"))
    assert wikipedia["gsw"] == news["gsw"] == "als" and wikipedia["sq"] == news["sq"] == "sq"  # als: not Tosk Albanian
    assert web["he"] == "iw" and web["nb"] == news["nb"] == wikipedia["nb"] == "no" and "und" not in web.values()


def test_weights_may_be_passed_on_where_no_licence_would_bind_them():
    data = config.load("tiny").data
    for card in cards.all_cards().values():
        share_alike = re.search(r"GPL|BY-SA|unknown", card.licence)
        assert card.weights[0] == "undecided" or not share_alike, card.name
        assert len(card.weights[1]) > 20 or card.name not in (*data.sources, *data.labelled, "me5-small-q4")
    kept = {name for name in (*data.sources, *data.labelled) if cards.load_card(name).weights[0] == "undecided"}
    assert kept == {"gettext", "history", "exams"}


def test_the_weights_of_a_mixture_are_the_counts_of_the_papers_tables():
    from me5lib.evaluate.paper import paper_table

    assert {name: cards.load_card(name).paper.rows for name in SAMPLED} == {n: m * 10**6 for n, m in SAMPLED.items()}
    data = config.load("large").data
    assert sum(cards.weights(data.sources).values()) == paper_table(1)["sampled"].sum() == 980e6
    assert sum(cards.weights(data.labelled).values()) == paper_table(2)["sampled"].sum()
    with pytest.raises(Me5Error, match="no count for t2ranking, xquad"):
        cards.weights(["nli", "t2ranking", "xquad"])


def test_the_index_page_lists_every_card_with_its_rows():
    page = (asset("data_cards") / "README.md").read_text(encoding="utf8")
    for name, card in cards.all_cards().items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        rows = sum(count for key, count in card.counts.items() if not key.startswith("dropped: "))
        wanted = card.paper.rows or "not published" if card.hub else rows or "–"
        assert (f"{wanted:,}" if isinstance(wanted, int) else wanted) in line and f"| {len(card.languages)} |" in line
        assert not card.hub or f"| {len(card.languages)} | {'yes' if card.stand_in else ''}" in line
    assert len(page.splitlines()) <= 93


@pytest.mark.parametrize(("name", "before", "after", "says"), [
    ("nllb", "    columns:", "    colums:", r"nllb.md: hub\.0\.colums: unknown key"),
    ("nllb", ": string", ": strin", "nllb.md: hub.0.columns.*strin"),
    ("xquad", "role: evaluate", "role: decorate", "xquad.md.*role"),
    ("xquad", "---\n", "", "no front matter that can be read"),
    ("xquad", "name: xquad", "name: squad", "calls itself 'squad'"),
])
def test_a_wrong_field_of_a_card_is_named(name, before, after, says):
    text = (asset("data_cards") / f"{name}.md").read_text(encoding="utf8")
    assert yaml.safe_load(text.split("---\n")[1])["name"] == name
    with pytest.raises(Me5Error, match=says):
        cards.parse_card(name, text.replace(before, after, 1))


# What the files hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_counts_on_a_card_are_those_of_its_files(packs, name):
    """Rows, languages and drops on the card (and on the cards folded into it) are those of the extraction."""
    for path, file in zip(packs[name], cards.load_card(name).files, strict=True):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    found = extracted(name)
    family = [cards.load_card(each) for each in (name, *(other for other, of in FOLDED.items() if of == name))]
    counts = {key: value for card in family for key, value in card.counts.items()}
    assert counts == {kind: table.num_rows for kind, table in found.tables.items()} | {
        f"dropped: {reason}": n for reason, n in found.dropped.items()}
    for card in family:
        tables = [table for kind, table in found.tables.items() if kind in card.counts]
        assert set(card.languages) == {code for table in tables for code in table["language"].to_pylist()}
    left = re.compile(r"%\(\w+\)s|\$\{|\{\w*\}|</?(?:b|a|p|br|strong|em|div|span)\b|\]\(http|https?://\w|\[%key")
    for kind, table in found.tables.items() if name in ("kolibri", "exams", "fastapi", "gsm") else ():
        texts = [str(value) for row in table.to_pylist() for column, value in row.items() if column != "key"]
        bad = [text for text in texts if left.search(text)]
        assert len(bad) <= len(texts) * 1e-4, (kind, bad[:5])  # nothing of markup is left in real rows


# The shelf that notebooks 00 and 01 search ----------------------------------------------------------------------------


def test_the_shelf_has_every_fact_once_in_every_language_and_each_text_in_its_own():
    with (PACKAGE / "data" / "shelf.csv").open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    card, facts = cards.load_card("shelf"), list(dict.fromkeys(row["fact"] for row in rows))
    assert sorted({row["language"] for row in rows}) == card.languages and len(rows) == card.counts["retrieval"]
    scripts = {"ru": "cyrillic", "ar": "arabic", "hi": "devanagari", "zh": "cjk", "ko": "hangul"}
    words = {"de": "die", "en": "the", "es": "la", "ja": "の"}  # what no other language of the shelf has so often
    for code in card.languages:
        own = [row for row in rows if row["language"] == code]
        assert [row["fact"] for row in own] == facts
        said = " ".join(f"{row['question']} {row['answer']}".lower() for row in own)
        assert code == "ja" or pairs.script([said]) == scripts.get(code, "latin")
        counts = {language: len(re.findall(word if language == "ja" else rf"\b{word}\b", said))
                  for language, word in words.items()}
        assert code not in words or max(counts, key=counts.get) == code
    texts = [row[column] for row in rows for column in ("question", "answer")]
    assert len(set(texts)) == len(texts) and all(text == text.strip() for text in texts)
