"""The shelf that notebooks 00 and 01 search: whole in every language, and each text in its own."""

import csv
import re
import unicodedata
from collections import Counter

import pytest

from me5lib import pairs
from me5lib.data import cards
from me5lib.io import PACKAGE

with (PACKAGE / "data" / "shelf.csv").open(encoding="utf8", newline="") as file:
    ROWS = list(csv.DictReader(file))
SCRIPTS = {"ru": "cyrillic", "ar": "arabic", "hi": "devanagari", "zh": "cjk", "ko": "hangul"}
MARKS = {"de": "die", "en": "the", "es": "la"}  # a word of each of the languages in Latin letters
LANGUAGES = cards.load("shelf").languages


def of(column: str, language: str) -> list[str]:
    return [row[column] for row in ROWS if row["language"] == language]


def test_every_fact_stands_once_in_every_language_of_the_card():
    facts = list(dict.fromkeys(row["fact"] for row in ROWS))
    assert sorted({row["language"] for row in ROWS}) == LANGUAGES
    assert all(of("fact", language) == facts for language in LANGUAGES)
    assert len({(row["fact"], row["topic"]) for row in ROWS}) == len(facts)
    assert len(ROWS) == cards.load("shelf").counts["retrieval"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_text_is_in_its_own_language(language):
    texts = of("question", language) + of("answer", language)
    if language == "ja":
        assert all(re.search("[\u3040-\u30ff]", text) for text in texts)  # kana, which no other language has
    else:
        wrong = [text for text in texts if pairs.script([text]) != SCRIPTS.get(language, "latin")]
        assert not wrong
    words = Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))
    if language in MARKS:
        assert max(MARKS.values(), key=words.__getitem__) == MARKS[language] and words[MARKS[language]] > 20


def test_questions_ask_answers_tell_and_none_stands_twice():
    texts = [row[column] for row in ROWS for column in ("question", "answer")]
    assert len(set(texts)) == len(texts) and all(text == text.strip() for text in texts)
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)
    assert all(re.search("[?？؟]$|か。$", row["question"]) for row in ROWS)
    assert all(re.search("[.。।]$", row["answer"]) for row in ROWS)
