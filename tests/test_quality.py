"""Checks of synthetic examples: what is planted is found, the rest is let alone; reasons of a failure; the sheet."""

import csv
import json
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pandas as pd
import pytest
from conftest import me5
from test_cli import invoke, one_line

from me5lib.data.split import fraction
from me5lib.instruct import quality
from me5lib.instruct.synthetic import VERSION_1, Example, read_examples
from me5lib.io import PACKAGE, Me5Error, read_json

ROWS = read_examples(drafts=True)
EACH = 50
REFUSALS = cycle(["I'm sorry, but I can't help with that request.", "As an AI language model, I have no opinion.",
                  "Positive document: {}", "Sure! Here is a passage in the language that you asked for: {}",
                  "En tant que modèle de langage, je ne peux pas répondre.", "Als KI-Sprachmodell kann ich das nicht.",
                  "{} [insert name here]", "作为一个人工智能语言模型，我不能回答。", "Hard negative: {}"])
MARKUPS = cycle(["**{}**", "```json\n{}\n```", "# {}\n", '{{"positive": "{}"}}', "<p>{}</p>", "- {}\n- x\n",
                 '{}", "negative": "', "{}\\n\\n{}", "see [{}](https://example.org)"])
FOREIGN = {code: next(row.positive for row in ROWS if row.passage_language == code and row.task_type == "short-long")
           for code in ("en", "de", "fr", "ru", "ja", "ar", "hi", "ko", "fi", "vi")}


def shelf() -> dict[str, list[str]]:
    """Texts that evaluate, by language."""
    with (PACKAGE / "data" / "shelf.csv").open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    codes = {row["language"] for row in rows}
    return {code: [row["answer"] for row in rows if row["language"] == code] for code in codes}


HELD = shelf()


def of_other_length(row: Example) -> str:
    """The positive in a number of words that its task type does not have."""
    long = row.task_type in ("short-long", "long-long")
    return " ".join(row.positive.split()[:6])[:24] if long else " ".join([row.positive] * 70)


PLANTS = {  # rule → (which rows, a row spoilt)
    "refusal": (lambda row: True, lambda row: row._replace(positive=next(REFUSALS).format(row.positive))),
    "markup": (lambda row: True, lambda row: row._replace(positive=next(MARKUPS).format(*[row.positive] * 2))),
    "length": (lambda row: True, lambda row: row._replace(positive=of_other_length(row))),
    "cut": (lambda row: row.task_type in ("short-long", "long-long") and row.passage_language != "th",  # has no stops
            lambda row: row._replace(positive=row.positive[: len(row.positive) * 3 // 4])),
    "language": (lambda row: True, lambda row: row._replace(positive=next(
        text for code, text in sorted(FOREIGN.items(), key=lambda each: fraction(row.id + each[0]))
        if code != row.passage_language))),
    "copied": (lambda row: True, lambda row: row._replace(positive=f"{row.query} {row.positive}")),
    "duplicate": (lambda row: True, lambda row: row if len(row.query) % 2 else row._replace(
        query=row.query.upper() + "!", positive=row.positive[:-1])),
    "evaluated": (lambda row: row.passage_language in HELD, lambda row: row._replace(
        positive=HELD[row.passage_language][int(40 * fraction(row.id))][:-1])),
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> quality.Report:
    """Of synthetic-v1 with `EACH` spoilt rows of every kind behind it: their ids begin with the rule."""
    lines = VERSION_1.read_text("utf8").splitlines()
    for rule, (fits, spoil) in PLANTS.items():
        chosen = sorted((row for row in ROWS if fits(row)), key=lambda row, rule=rule: fraction(rule + row.id))[:EACH]
        rows = (spoil(row)._replace(id=f"{rule} {row.id}") for row in chosen)
        lines += [json.dumps(row._asdict(), ensure_ascii=False) for row in rows]
    lines += list(broken_lines(lines[:EACH]))
    path = tmp_path_factory.mktemp("quality") / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf8")
    return quality.check_file(path, {("shelf", code): texts for code, texts in HELD.items()})


def broken_lines(lines: list[str]) -> Iterator[str]:
    """Lines that are no examples, each in another way."""
    ways = cycle([lambda line: line[: len(line) // 2], lambda line: line.replace('"positive"', '"right"'),
                  lambda line: json.dumps(json.loads(line) | {"group": "7"}), lambda line: f"[{line}]",
                  lambda line: json.dumps(json.loads(line) | {"task_type": "long"}),
                  lambda line: json.dumps(json.loads(line) | {"language": "English"}),
                  lambda line: json.dumps(json.loads(line) | {"query": " "})])  # fmt: skip
    return (way(line) for way, line in zip(ways, lines, strict=False))


@pytest.mark.parametrize("rule", [*PLANTS, "schema"])
def test_nineteen_of_twenty_planted_faults_are_found(report, rule):
    broken = report.rows - EACH  # lines behind this one
    planted = {each.line for each in report.rules[rule] if each.id.startswith(f"{rule} ") or each.line > broken}
    assert len(planted) >= 0.95 * EACH, len(planted)


def test_synthetic_v1_is_let_alone_but_for_what_its_report_says(report):
    flagged = {rule: sorted(line for line in report.broken(rule) if line <= len(ROWS)) for rule in report.rules}
    assert len({line for lines in flagged.values() for line in lines}) <= 0.02 * len(ROWS)
    kept = read_json(VERSION_1.with_suffix(".check.json"))
    assert kept["rows"] == len(ROWS)
    for rule in set(flagged) - {"evaluated"}:  # the committed report asked for more than the shelf
        assert flagged[rule] == sorted({line for line, *_ in kept["rules"][rule]}), rule


def test_verdicts_of_a_sheet_come_back_by_family(tmp_path):
    path = tmp_path / "sheet.csv"
    quality.write_sheet(path, ROWS, {"de": "Germanic", "nl": "Germanic", "ja": "Japonic"}.get, each=4)
    table = pd.read_csv(path, keep_default_na=False, encoding="utf-8-sig")
    assert [*table["family"]] == ["Germanic"] * 4 + ["Japonic"] * 4
    assert all(table["positive_right"] == "") and all(table["query"] != "")
    table.loc[:4, "positive_right"] = list("yynyy")
    table.to_csv(path, index=False)
    assert quality.read_sheet(path) == {"reviewed, positive_right": {"Germanic (4)": 0.75, "Japonic (1)": 1.0}}
    table.loc[0, "negative_hard"] = "maybe"
    table.to_csv(path, index=False)
    with pytest.raises(Me5Error, match="'maybe': write y, n or nothing"):
        quality.read_sheet(path)
    for content in (b"", b"family,query\na,b\n", b"family;positive_right\na;y\n", b"family\n\xe9\n", b'family\n"\n',
                    None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(Me5Error, match="sheet.csv is no sheet as --sheet writes one"):
            quality.read_sheet(path)


def test_a_sheet_is_never_written_over_what_is_there(tmp_path):
    rows, sheet = tmp_path / "rows.jsonl", tmp_path / "new" / "sheet.csv"
    rows.write_text(VERSION_1.read_text("utf8").splitlines()[550] + "\n", "utf8")
    command = ("synthesise", "--check", str(rows), "--sheet")
    assert invoke(*command, str(sheet)).exit_code == 0
    for path in (sheet, rows):
        before = path.read_bytes()
        one_line(invoke(*command, str(path)), str(path), "is there")
        assert path.read_bytes() == before


def test_rows_that_no_file_could_hold_and_odd_dials_are_told(tmp_path):
    row, path = ROWS[0]._asdict(), tmp_path / "rows.jsonl"
    odd = ["[" * 99_999, json.dumps(row | {"query": "a \ud800 b"}), json.dumps(row | {"id": "\ud800"})]
    fine = [json.dumps(row | {"dials": dials, "id": str(i)}) for i, dials in enumerate(
        (5, ["num_words"], "num_words", None, {"num_words": None}, {"num_words": "9" * 5_000}))]
    path.write_text("\n".join(odd + fine), "utf8")
    report = quality.check_file(path)
    assert report.broken("schema") == {1, 2, 3} and report.rows == 9
    assert "\n".join(report.lines()).encode("utf8")
    for line in odd:
        path.write_text(line, "utf8")
        with pytest.raises(Me5Error, match="line 1: no synthetic example"):
            read_examples(path)


def test_the_command_checks_a_file_without_packs_and_writes_its_report(tmp_path, unplugged):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["{", VERSION_1.read_text("utf8").splitlines()[550]]), "utf8")
    done = me5("synthesise", "--check", str(path), **unplugged)
    assert done.returncode == 0, done.stderr
    assert "2 rows, 2 of them break a rule" in done.stdout and "asked no model" in done.stderr
    rules = read_json(tmp_path / "rows.check.json")["rules"]
    assert {rule: found[0][0] for rule, found in rules.items() if found} == {"schema": 1, "copied": 2}


def test_a_file_that_is_not_there_is_told_before_a_model_is_opened(tmp_path):
    one_line(invoke("synthesise", "--check", str(tmp_path / "rows.jsonl")), "rows.jsonl: there is no such file")


def test_the_model_reads_each_text_once():
    read = []

    def encode(texts):
        read.extend(texts)
        return np.eye(8)[[len(each) % 8 for each in texts]]

    quality.check_rows(ROWS[:40], encode=encode)
    assert len(read) == len(set(read)) > 100
