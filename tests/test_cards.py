"""The data cards say what is so: counts, hashes, languages, prefixes; and they keep what the project promises."""

import hashlib
import re
from collections import Counter
from functools import cache

import pytest
import yaml

from me5lib import config
from me5lib.data import cards, cldr, extract
from me5lib.data.text import language
from me5lib.io import Me5Error, asset

ALL = list(cards.offline())
QUICK = ("kolibri", "exams", "gsm", "xquad", "fastapi", "intents")  # together about 10 s; the bigger ones cost 60 s
FOLDED = {"homeassistant-descriptions": "homeassistant"}  # cards on tables of another card's file


def files() -> dict[str, cards.File]:
    return {file.file: file for name in ALL for file in cards.load(name).files}


@cache
def extracted(name: str, paths: tuple) -> extract.Extracted:
    return extract.extract(cards.load(name), paths)


def test_every_source_that_a_scale_names_offline_has_its_card():
    for preset in ("smoke", "tiny"):
        data = config.load(preset).data
        assert {*data.sources, *data.labelled} <= set(ALL)


def test_the_download_keeps_its_bound():
    assert sum(file.size for file in files().values()) <= 410e6


def test_one_file_is_pinned_in_one_way_only():
    pins = {(file.file, file.sha256, file.size, file.version) for name in ALL for file in cards.load(name).files}
    assert len(pins) == len(files())
    for name, file in files().items():
        assert file.version in name


def test_the_files_have_the_hashes_of_their_cards(packs):
    for name, paths in packs.items():
        for path, file in zip(paths, cards.load(name).files, strict=True):
            with path.open("rb") as handle:
                assert hashlib.file_digest(handle, "sha256").hexdigest() == file.sha256, path


@pytest.mark.parametrize("name", ALL)
def test_language_codes_are_legal_and_in_their_final_form(name):
    from babel import Locale
    from babel.core import get_global

    codes = cards.load(name).languages
    assert codes == sorted(set(codes)) and codes
    for code in codes:
        base, _, script = code.partition("-")
        assert base in Locale("en").languages or base in get_global("likely_subtags"), code
        assert re.fullmatch(r"[a-z]{2,3}", base) and (not script or script.title() in Locale("en").scripts), code
        assert name.startswith("cldr") or language(code) == code


@pytest.mark.parametrize("name", ALL)
def test_a_card_says_who_translated_under_which_licence_with_what_faults(name):
    card = cards.load(name)
    assert card.licence and card.translated_by and card.faults and card.pair and card.prose
    assert card.homepage.startswith("https://")
    assert card.role in ("baseline", "model") or any(not key.startswith("dropped: ") for key in card.counts)


def test_share_alike_licences_are_not_hidden_behind_the_licence_of_the_package():
    for name in ("exams", "xquad", "history"):
        assert cards.load(name).licence.count("CC BY-SA") == 1


def test_symmetric_sources_have_query_on_both_sides():
    for name in ALL:
        card = cards.load(name)
        translated = "translations" in card.counts or "parallel" in card.counts
        if translated:
            assert card.passage_prefix == "query: ", name
        if {"pairs", "labelled", "retrieval"} & set(card.counts):
            assert card.passage_prefix == "passage: ", name
        assert card.query_prefix == "query: ", name


def check_counts(name: str, found: extract.Extracted) -> None:
    """Rows, languages and drops on the card (and on the cards folded into it) are those of the extraction."""
    family = [name, *(other for other, of in FOLDED.items() if of == name)]
    counts = {key: value for each in family for key, value in cards.load(each).counts.items()}
    dropped = {key.removeprefix("dropped: "): value for key, value in counts.items() if key.startswith("dropped: ")}
    assert dropped == found.dropped
    assert {key: value for key, value in counts.items() if not key.startswith("dropped: ")} == {
        kind: table.num_rows for kind, table in found.tables.items()}
    for each in family:
        kinds = [kind for kind in found.tables if kind in cards.load(each).counts]
        codes = {code for kind in kinds for code in found.tables[kind]["language"].to_pylist()}
        assert set(cards.load(each).languages) == codes


@pytest.mark.parametrize("name", QUICK)
def test_counts_on_a_card_are_those_of_its_files(packs, name):
    check_counts(name, extracted(name, tuple(packs[name])))


def test_counts_of_cldr_are_those_of_the_named_babel():
    said = re.search(r"Babel (\S+)", " ".join(cards.load("cldr").faults))[1]
    if said != cldr.version():
        pytest.skip(f"the card counts Babel {said}; installed is {cldr.version()}")
    tables = cldr.tables()
    assert cards.load("cldr").counts["translations"] == tables["translations"].num_rows
    assert cards.load("cldr-facts").counts["labelled"] == tables["labelled"].num_rows


@pytest.mark.parametrize("name", ["kolibri", "exams", "fastapi", "gsm"])
def test_nothing_of_markup_is_left_in_real_rows(packs, name):
    left = re.compile(r"%\(\w+\)s|\$\{|\{\w*\}|</?(?:b|a|p|br|strong|em|div|span)\b|\]\(http|https?://\w|\[%key")
    found = extracted(name, tuple(packs[name]))
    for kind, table in found.tables.items():
        texts = [str(value) for row in table.to_pylist() for column, value in row.items() if column != "key"]
        bad = [text for text in texts if left.search(text)]
        assert len(bad) <= len(texts) * 1e-4, (kind, bad[:5])


def test_no_row_is_empty_or_english_or_twice(packs):
    table = extracted("kolibri", tuple(packs["kolibri"])).tables["translations"]
    rows = list(zip(*(table[column].to_pylist() for column in ("english", "text", "language")), strict=True))
    assert not [row for row in rows if not row[0] or not row[1] or row[0].casefold() == row[1].casefold()]
    assert Counter(rows).most_common(1)[0][1] == 1


def test_english_is_the_same_problem_in_every_language_of_gsm(packs):
    table = extracted("gsm", tuple(packs["gsm"])).tables["parallel"].to_pylist()
    assert len({row["language"] for row in table}) == 108
    assert Counter(row["language"] for row in table)["en"] == 100
    english = {row["id"]: row["text"] for row in table if row["language"] == "en"}
    assert not [row for row in table if row["language"] != "en" and row["text"] == english[row["id"]]]


def test_the_index_page_lists_every_card_with_its_rows():
    page = (asset("data_cards") / "README.md").read_text(encoding="utf8")
    for name in ALL:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        card = cards.load(name)
        rows = sum(count for key, count in card.counts.items() if not key.startswith("dropped: "))
        assert (f"{rows:,}" if rows else "–") in line and f"| {len(card.languages)} |" in line
    for name, card in cards.hub().items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert (f"{card.paper.rows:,}" if card.paper.rows else "not published") in line
        assert f"| {len(card.languages)} | {'yes' if card.stand_in else ''}" in line
    assert len(page.splitlines()) <= 90


def test_every_choice_on_a_hub_card_says_why_and_its_page_is_named():
    for name, card in cards.hub().items():
        assert card.ours and all(len(reason.split()) >= 2 for reason in card.ours.values()), name
        assert card.faults and card.prose and card.licence and all(hub.read_from for hub in card.hub), name
        assert card.query_prefix == "query: "


def test_the_weights_of_a_mixture_are_the_counts_of_the_papers_tables():
    from me5lib.evaluate.paper import paper_table

    scale_1 = config.load("large").data
    assert sum(cards.weights(scale_1.sources).values()) == paper_table(1)["sampled"].sum() == 980e6
    assert sum(cards.weights(scale_1.labelled).values()) == paper_table(2)["sampled"].sum()
    with pytest.raises(Me5Error, match="no count for t2ranking, xquad"):
        cards.weights(["nli", "t2ranking", "xquad"])


def test_a_typo_in_a_key_of_a_card_is_named():
    text = (asset("data_cards") / "nllb.md").read_text(encoding="utf8")
    with pytest.raises(Me5Error, match=r"nllb.md: hub\.0\.colums: unknown key"):
        cards.parse("nllb", text.replace("    columns:", "    colums:", 1))
    with pytest.raises(Me5Error, match="nllb.md: hub.0.columns.*unknown word 'strin'"):
        cards.parse("nllb", text.replace(": string", ": strin", 1))
    with pytest.raises(Me5Error, match="no front matter that can be read"):
        cards.parse("nllb", "just prose")


def test_front_matter_with_a_wrong_field_is_named(tmp_path, monkeypatch):
    text = (asset("data_cards") / "xquad.md").read_text(encoding="utf8")
    _, front, prose = text.split("---\n", 2)
    wrong = yaml.safe_load(front) | {"name": "wrong", "role": "decorate"}
    (tmp_path / "wrong.md").write_text(f"---\n{yaml.safe_dump(wrong)}---\n{prose}", encoding="utf8")
    monkeypatch.setattr(cards, "asset", lambda folder: tmp_path)
    with pytest.raises(Me5Error, match="wrong.md.*role"):
        cards.load("wrong")
