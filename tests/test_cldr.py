"""CLDR's tables: what a reader could check by hand, and what the smoke scale stands on."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import babel
import pytest
from babel import Locale
from babel.core import get_global
from babel.numbers import get_territory_currencies

from me5lib.data import cards, cldr
from me5lib.io import Me5Error
from me5lib.pairs import normalise


@pytest.fixture(scope="module")
def everything():
    return cldr.cldr_tables()


@pytest.fixture(scope="module")
def smoke():
    return {name: table.to_pylist() for name, table in cldr.cldr_tables(cldr.SMOKE).items()}


def test_no_cell_is_empty_or_has_stray_space(smoke):
    assert set(smoke) == {"translations", "labelled", "parallel", "retrieval", "labels"}
    for name, rows in smoke.items():
        for row in rows:
            for cell in row.values():
                texts = [cell] if isinstance(cell, str) else cell
                assert all(text and text == " ".join(text.split()) for text in texts), name


def test_known_names_in_both_languages(smoke):
    found = {(row["english"], row["text"], row["language"]) for row in smoke["translations"]}
    assert {("Austria", "Österreich", "de"), ("Greek", "греческий", "ru"), ("Cyrillic", "キリル文字", "ja"),
            ("Japanese Yen", "yen japonais", "fr")} <= found
    assert "Paraguay" not in {english for english, _, language in found if language == "fr"}  # the same in French
    assert all(normalise(english) != normalise(text) for english, text, _ in found)
    letters = defaultdict(Counter)
    for _, text, language in found:
        letters[language][unicodedata.name(next(char for char in text if char.isalpha())).split()[0]] += 1
    assert len(letters) == 24 and len({counts.most_common(1)[0][0] for counts in letters.values()}) >= 14
    assert min(counts.total() for counts in letters.values()) > 800


def test_about_150_languages_and_no_borrowed_names(everything):
    codes = cldr.codes()
    assert 140 <= len(codes) <= 170 and codes == sorted(codes)
    assert {"nb", "zh", "zh-hant", "sr", "sr-latn", "yue"} <= set(codes)
    assert not {"en", "en-dsrt", "ht", "hi-latn", "zh-hans", "no"} & set(codes)  # ht would be French, hi-latn English
    assert min(Counter(everything["translations"]["language"].to_pylist()).values()) >= cldr.LEAST
    assert set(cldr.local_names("zh-hant")["territory"].values()) != set(cldr.local_names("zh")["territory"].values())


def test_the_counts_on_the_cards_are_those_of_the_named_babel(everything):
    said = re.search(r"Babel (\S+)", " ".join(cards.load_card("cldr").faults))[1]
    if said != babel.__version__:
        pytest.skip(f"the card counts Babel {said}; installed is {babel.__version__}")
    assert cards.load_card("cldr").counts["translations"] == everything["translations"].num_rows
    assert cards.load_card("cldr-facts").counts["labelled"] == everything["labelled"].num_rows


def test_facts_are_true_and_wrong_answers_are_wrong_and_of_the_same_kind(smoke, everything):
    for row in everything["labelled"].to_pylist():
        assert 1 <= len(row["negatives"]) <= cldr.NEGATIVES
        assert not {normalise(each) for each in row["positives"]} & {normalise(each) for each in row["negatives"]}
    german, rows = cldr.local_names("de"), [row for row in smoke["labelled"] if row["language"] == "de"]
    facts = {row["query"]: row for row in rows}
    assert len(facts) == len(rows)  # no question is asked twice
    assert facts["Schweiz"]["positives"] == ["Schweizer Franken"]
    assert facts["Kroatien"]["positives"] == ["Euro"]  # of two tenders the newer
    assert {"Deutschland", "Österreich", "Liechtenstein"} <= set(facts["Deutsch"]["positives"])
    code_of = {kind: {name: code for code, name in table.items()} for kind, table in german.items()}
    spoken, checked = get_global("territory_languages"), 0
    for query, row in facts.items():
        kind = "currency" if query in code_of["territory"] else "territory"
        assert {*row["positives"], *row["negatives"]} <= set(code_of[kind])
        if kind == "currency":
            used = get_territory_currencies(code_of["territory"][query])
            assert row["positives"][0] in {Locale("de").currencies[each] for each in used}
            checked += 1
        else:  # a territory where it is spoken, though not officially, is no wrong answer
            language = code_of["language"][query]
            assert not [wrong for wrong in row["negatives"] if language in spoken.get(code_of["territory"][wrong], {})]
    assert checked > 200


def test_parallel_texts_say_the_same_in_every_language(smoke):
    def numbers(text: str) -> list[int]:
        digits = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else " " for char in text)
        return sorted(int(number) for number in digits.split())

    by_id = defaultdict(dict)
    for row in smoke["parallel"]:
        by_id[row["id"]][row["language"]] = row
    for rows in by_id.values():
        said = numbers(rows["en"]["text"])
        assert set(rows) == {"en", *cldr.PARALLEL} and len(said) == 3
        assert all(numbers(row["text"]) == said for row in rows.values())
        assert all(numbers(row["answer"]) == [2 * n for n in said] for row in rows.values())
    for code in cldr.PARALLEL:
        masked = {"".join("#" if char.isdecimal() else char for char in rows[code]["text"]) for rows in by_id.values()}
        assert len(masked) == len(by_id)  # the units alone tell the meanings apart
        assert not any(unit in text for text in masked for unit in cldr._UNITS), "a unit without a name"
    assert any("۰" <= char <= "۹" for char in by_id["quantity-000"]["fa"]["text"])


def test_stand_ins_are_whole_and_use_texts_that_training_does_not_see(smoke):
    own = defaultdict(set)
    for row in smoke["translations"]:
        own[row["language"]].add(normalise(row["text"]))
    trained = set().union(*own.values()) | {normalise(row["english"]) for row in smoke["translations"]}
    trained |= {normalise(text) for row in smoke["labelled"] for text in (row["query"], *row["positives"])}
    tested = [row[side] for row in smoke["retrieval"] for side in ("query", "title", "text")]
    tested += [row["text"] for row in smoke["parallel"]]
    assert not [text for text in tested if normalise(text) in trained]
    assert not [row for row in smoke["labels"] if normalise(row["text"]) in own[row["language"]]]
    found = Counter(row["language"] for row in smoke["retrieval"])
    assert set(found) == set(cldr.RETRIEVAL) and min(found.values()) >= 60
    assert len({row["query_id"] for row in smoke["retrieval"]}) == len(smoke["retrieval"])
    counts = Counter((row["language"], row["label"]) for row in smoke["labels"])
    assert {code for code, _ in counts} == set(cldr.SMOKE)
    assert {label for _, label in counts} == {"date", "time", "unit", "zone"} and min(counts.values()) >= 30


def test_another_process_makes_the_same_tables_and_babel_is_left_as_it_was():
    program = ("import hashlib; from me5lib.data import cldr; tables = cldr.cldr_tables(['de', 'ja']).values(); "
               "print(hashlib.sha256(repr([table.to_pylist() for table in tables]).encode()).hexdigest())")
    root = Path(__file__).parents[1]
    other = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": "5", "PYTHONPATH": str(root)})
    here = repr([table.to_pylist() for table in cldr.cldr_tables(["ja", "de"]).values()])
    assert other.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()
    assert Locale("nn").territories["DE"] and Locale("ht").territories["DE"]  # inherited names are still there
    with pytest.raises(Me5Error, match="tlh"):
        cldr.cldr_tables(["de", "tlh"])


def test_a_wrong_answer_that_reads_like_the_right_one_is_left_out(monkeypatch):
    facts = [("territory", "AT", "currency", ["EUR"], ["EUR", "USD", "USD"])]
    monkeypatch.setattr(cldr, "_facts", lambda: facts)
    assert cldr.cldr_tables(["de"])["labelled"].to_pylist() == [
        {"query": "Österreich", "positives": ["Euro"], "negatives": ["US-Dollar"], "language": "de"}]
