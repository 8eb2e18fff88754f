"""Your own file: what is read, guessed, refused, counted; the split; the table; `me5 finetune --data` through a hub."""

import csv
import itertools
import json
import math
import random
import re
import signal
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
from loopback import Loopback

from me5lib import config
from me5lib.data import cards, tabular, userdata
from me5lib.data.corpus import RetrievalSet
from me5lib.data.text import resolve_language
from me5lib.evaluate import baselines
from me5lib.evaluate import own as table_of
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.pairs import text_key
from me5lib.train import dry_run, loop
from me5lib.train import fit as tuning
from me5lib.train.distributed import Team

SHAPE = config.Model(tuning.MODEL, 1, 32, 2, 64, 2_000, 64)
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def word(draw: random.Random) -> str:
    return "".join(draw.choices(SYLLABLES, k=3))


@cache
def made_up(n: int = 60, seed: int = 0) -> tuple[tuple[str, str, str], ...]:
    """Queries, passages that share words with them, and wrong passages, no two alike."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        words = [word(draw) for _ in range(5)]
        rows.append((" ".join(words[:3]), " ".join([*words[1:], word(draw)]), " ".join(word(draw) for _ in range(4))))
    return tuple(rows)


def faq(n: int = 60) -> pd.DataFrame:
    return pd.DataFrame(made_up(n), columns=["question", "answer", "negative_1"])


def rows_of(path, **options):
    return [row._replace(source="") for row in userdata.read(path, **options).rows]


def written(tmp_path, text, name="x.csv", encoding="utf8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def good_lines(n=40, separator=","):
    return [separator.join(row[:2]) for row in made_up(n)]


def refused(*words):
    return pytest.raises(Me5Error, match="(?s)" + ".*".join(map(re.escape, words)))


# Reading


def test_every_format_gives_the_same_rows(tmp_path):
    frame = faq().assign(language="de")
    frame.loc[3, "answer"] = 'says "yes", or\n"no"; a | b\tc'
    frame.loc[4, "negative_1"] = None
    frame.loc[5, "question"] = "NA"
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False, sep=";", encoding="utf-8-sig")
    frame.to_csv(tmp_path / "c.tsv", index=False, sep="\t", encoding="utf-16")
    frame.to_csv(tmp_path / "d.csv", index=False, sep="|", lineterminator="\r\n")
    frame.to_json(tmp_path / "e.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_json(tmp_path / "f.json", orient="records", indent=1)
    frame.to_parquet(tmp_path / "g.parquet")
    lists = frame.assign(answer=[[text] for text in frame["answer"]]).rename(columns={"negative_1": "negatives"})
    lists["negatives"] = [[text] if isinstance(text, str) else [] for text in lists["negatives"]]
    lists.to_parquet(tmp_path / "h.parquet")
    lists.to_json(tmp_path / "i.ndjson", orient="records", lines=True)
    wanted = [userdata.Labelled(q, (p,), (n,) if isinstance(n, str) else (), "", "de")
              for q, p, n, _ in frame.itertuples(index=False)]
    for path in sorted(tmp_path.glob("?.*")):
        assert rows_of(path) == wanted, path.name
        assert not userdata.read(path).faults, path.name


@pytest.mark.parametrize(("header", "query", "passage", "negatives", "language", "beside"), [
    ("query,positive,negative", "query", "positive", ("negative",), None, ()),
    ("Anchor,Positive,Hard Negative,hard-negative 2", "Anchor", "Positive", ("Hard Negative", "hard-negative 2"), None,
     ()),
    ("id,document,Question,lang", "Question", "document", (), "lang", ()),
    ("question,context,answer,passage", "question", "passage", (), None, ("answer",)),
    ("neg_1,neg_2,q,pos,notes", "q", "pos", ("neg_1", "neg_2"), None, ()),
])
def test_columns_are_guessed_by_common_names_and_the_guess_is_said(
    header, query, passage, negatives, language, beside, tmp_path
):
    width = header.count(",") + 1
    lines = [",".join(row[i % 2] + f" x{i}" for i in range(width)) for row in made_up(20)]
    corpus = userdata.read(written(tmp_path, "\n".join([header, *lines])))
    assert corpus.columns == userdata.Columns(query, passage, negatives, language, beside)
    said = corpus.lines()[0]
    assert all(repr(name) in said for name in (query, passage, *negatives, *beside))


def test_named_columns_are_taken_before_any_guess(tmp_path):
    frame = faq().rename(columns={"negative_1": "query"})
    frame.to_csv(tmp_path / "x.csv", index=False)
    rows = rows_of(tmp_path / "x.csv", query="answer", passage="question", negatives=["query"])
    assert rows[0][:3] == (made_up()[0][1], (made_up()[0][0],), (made_up()[0][2],))


HEAD = "query,positive\n"


@pytest.mark.parametrize(("name", "content", "words"), [
    ("x.csv", b"", ["has no rows"]),
    ("x.csv", b"query,positive\n", ["has no rows"]),
    ("x.xlsx", b"PK", [".csv", ".parquet", "save it as CSV"]),
    ("x.csv", HEAD.encode() + b"a,b\n\nc\xe9,d\n", ["line 4 is not utf8", "0xe9", "--encoding cp1252"]),
    ("x.csv", HEAD.encode() + b'a,"b, c"\n"c,d\ne,f\n', ["begins in line 3", 'twice ("")']),
    ("x.csv", HEAD.encode() + b'a,"b, c"\nc,"d"e\n', ["begins in line 3"]),
    ("x.csv", b"query,positive,query\na,b,c\n", ["come twice in line 1", "query"]),
    ("x.csv", b"title,body\na,b\n", ["which column is the query", "'title', 'body'", "--query-column"]),
    ("x.csv", b"query,body\na,b\n", ["which column is the passage", "'query', 'body'", "--passage-column"]),
    ("x.jsonl", b'{"query": "a", "positive": "b"}\n\n{"query": \n', ["line 3 is no JSON"]),
    ("x.jsonl", b'{"query": "a", "positive": "b"}\n["a", "b"]\n', ["line 2 is no object"]),
    ("x.json", b'[{"query": "a"},\n {"query" "b"}]', ["line 2 is no JSON"]),
    ("x.json", b"[" * 100_000 + b"]" * 100_000, ["nested too deeply"]),
    ("x.jsonl", b'{"query": ' + b"[" * 3_000 + b"]" * 3_000 + b"}\n{}", ["nested too deeply"]),
    ("x.json", b'{"train": [{"query": "a"}], "test": [{"query": "b"}]}', ["several lists of rows ('train', 'test')"]),
    ("x.parquet", b"no parquet at all", ["cannot be read as Parquet"]),
    ("x.csv", HEAD.encode() + b"a,b\nc,d\n", ["2 queries", "too few"]),
    ("x.csv", HEAD.encode() + b"a,\n" * 7, ["0 queries", "7 × no positive passage (line 2, 3, 4, 5, 6 …)"]),
    ("x.csv", HEAD.encode() + "\n".join(f"{row[0]},yes" for row in made_up(40)).encode(), ["share their passages"]),
])
def test_a_file_that_cannot_be_read_is_refused_in_one_line_that_says_where(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with refused(*words) as caught:
        userdata.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path):
    path = written(tmp_path, "\n".join(["query,positive", *good_lines()]))
    for options in ({"query": "frage"}, {"passage": "frage"}, {"negatives": ["frage"]}, {"language": "frage"}):
        with refused("no column 'frage'", "'query', 'positive'"):
            userdata.read(path, **options)
    with refused("'query' cannot be two things"):
        userdata.read(path, passage="query")
    with refused("there is no file"):
        userdata.read(tmp_path / "missing.csv")
    for encoding in ("utf9", "idna", "punycode"):
        with refused(f"no encoding {encoding!r}"):
            userdata.read(path, encoding=encoding)
    with refused("share between 0 and 1"):
        userdata.read(path, dev_share=1.5)


def test_another_encoding_is_read_when_it_is_named(tmp_path):
    text = "\n".join(["query,positive", "Größe,Straße", *good_lines()])
    path = written(tmp_path, text, encoding="cp1252")
    with refused("line 2"):
        userdata.read(path)
    assert rows_of(path, encoding="cp1252")[0][:2] == ("Größe", ("Straße",))


def lines_of(tmp_path, rows, separator="\t", name="x.csv"):
    """What is read of rows that somebody joined without a thought of quotes."""
    text = "\n".join(map(separator.join, [("query", "positive"), *rows]))
    return [(line.number, *line.fields.values()) for line in tabular.read(written(tmp_path, text, name)).lines]


OPENED, CLOSED = '"I will come tomorrow, she said, and left the house.', 'Nobody had seen him since the storm."'
SIGNS = {  # rows that are read as they stand, every quote a sign
    "closed by a query": [("q 0", OPENED), ('so he said "', "b"), ("q 2", "c")],
    "never closed": [("q 0", "a"), ("q 1", OPENED), ("q 2", "b")],
    "a word at the start": [("q 0", '"Yes" is a word.'), ('"No" too', "b")],
    "two words": [("q 0", '"Yes" and "no"'), ("q 1", "b")],
    "doubled": [("q 0", '""Yes"" and no'), ("q 1", "b")],
    "across the separator": [('"Where is it?', 'It is here."'), ("q 1", "b")],
    "inches": [("q 0", '27" wide'), ("q 1", '5\' 10"'), ("q 2", "b")],
    "apostrophes": [("'tis q 0", "the dogs'"), ("q 1", "'a', 'b'"), ("q 2", "it's")],
}
READ_IN_TWO_WAYS = {  # and the line where the quote opens
    "closed rows later": ([("q 0", "a"), ("q 1", OPENED), ("q 2", "b"), ("q 3", "c"), ("q 4", CLOSED), ("q 5", "d")],
                          3),
    "closed in the next row": ([("q 0", OPENED), ("q 1", CLOSED), ("q 2", "b")], 2),
    "a row of one field between": ([("q 0", OPENED), ("q 1",), ("q 2", "b"), ("q 3", CLOSED)], 2),
}


@pytest.mark.parametrize("name", SIGNS)
def test_quotes_of_a_text_swallow_no_rows(name, tmp_path):
    rows = SIGNS[name]
    assert lines_of(tmp_path, rows) == [(i, *row) for i, row in enumerate(rows, 2)]
    bare = [tuple(text.replace(",", "") for text in row) for row in rows]
    assert lines_of(tmp_path, bare, ",") == [(i, *row) for i, row in enumerate(bare, 2)]


PROSE = ["one line", "a line, with a comma\nand another, too", 'she said "yes", and\n"no"', "first\n\nsecond; third",
         "a tab\there\nand\tthere", "1,200 euros\nor 3,400", '"quoted"', "it's", "", " a space first", "x | y\nz | w"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_texts_of_several_lines_are_read_as_a_writer_quoted_them(separator, quoting, tmp_path):
    """Each text stands alone in its file too: one in many rows is as good as many."""
    for texts, query in itertools.product((PROSE, *([text] for text in PROSE[1:])), ("query", "query, {}")):
        rows = [(f"query {i}", "plain") for i in range(9)] + [(query.format(text), text) for text in texts]
        with (tmp_path / "x.csv").open("w", encoding="utf8", newline="") as file:
            csv.writer(file, delimiter=separator, quoting=quoting).writerows([("query", "positive"), *rows])
        found = tabular.read(tmp_path / "x.csv")
        assert [tuple(line.fields.values()) for line in found.lines] == rows
        numbers = np.cumsum([2, *(1 + "".join(row).count("\n") for row in rows)])[:-1]
        assert [line.number for line in found.lines] == numbers.tolist()


@pytest.mark.parametrize("rest", ["plain", '"a{0}b"', 'says ""it""', "two\nlines"])
@pytest.mark.parametrize("text", ["Our hours:{0}\nMon{0}9-17\nTue{0}9-18", "你好\n再见，朋友{0}好", "a\nb{0}c\nd{0}e",
                                  "def f():\n  x = 1{0} return x", "def f():\n{0}x = 1\n{0}return x"])
def test_a_quoted_text_whose_lines_have_a_rows_fields_is_one_text(rest, text, tmp_path):
    """As `pandas` writes them, alone and beside other quoted texts."""
    for separator in ",;\t|":
        rows = [(f"question {i}?", "answer " * 3 + rest.format(separator)) for i in range(8)]
        rows.append(("opening hours?", text.format(separator).replace(":" + separator, ":")))
        frame = pd.DataFrame(rows, columns=["question", "answer"])
        frame.to_csv(tmp_path / "x.csv", index=False, sep=separator)
        table = tabular.read(tmp_path / "x.csv")
        assert [tuple(line.fields.values()) for line in table.lines] == rows


def test_plain_rows_between_two_quotes_of_a_long_file_stay_rows(tmp_path):
    rows = [(f"{query}?", f"{answer}.") for query, answer, _ in made_up(30)]
    rows[5], rows[14] = (rows[5][0], OPENED), (rows[14][0], CLOSED)
    assert lines_of(tmp_path, rows) == [(i, *row) for i, row in enumerate(rows, 2)]


@pytest.mark.parametrize("name", READ_IN_TWO_WAYS)
def test_quotes_with_two_meanings_are_refused_by_their_line(name, tmp_path):
    rows, line = READ_IN_TWO_WAYS[name]
    for separator in "\t,":
        bare = [tuple(text.replace(",", "") for text in row) for row in rows]
        with refused(f"begins in line {line} can be read in two ways") as caught:
            lines_of(tmp_path, bare, separator)
        assert "\n" not in str(caught.value)


def test_a_quote_that_closes_nowhere_in_a_file_of_quoted_texts_is_refused_by_its_line(tmp_path):
    rows = [("q 0", '"a, b"'), ("q 1", '"I will come'), ("q 2", "and left."), ("q 3", "c")]
    with refused("begins in line 3", "no quote, or", "close every quote"):
        lines_of(tmp_path, rows, ",")


def test_separators_at_the_end_of_the_header_are_no_columns(tmp_path):
    rows = ["query,positive,,", *(f"{row},," for row in good_lines(20)), "one,two, three,"]
    corpus = userdata.read(written(tmp_path, "\n".join(rows)))
    assert corpus.table.columns == ["query", "positive"] and len(corpus.rows) == 20
    assert [(fault.number, fault.why) for fault in corpus.faults] == [(22, "fields")]  # a comma of a text, no column


@pytest.mark.parametrize("name", ["pairs.jsonl", "pretty.json", "lists.json", "by_row.json", "one_list.json"])
def test_json_of_other_forms_is_read_where_its_meaning_is_plain(name, tmp_path):
    pairs = [(query, passage) for query, passage, _ in made_up(20)]
    objects = [{"query": query, "positive": passage} for query, passage in pairs]
    frame = pd.DataFrame(objects)
    content = {"pairs.jsonl": "\n".join(map(json.dumps, pairs)), "by_row.json": frame.to_json(),
               "pretty.json": json.dumps({"version": "1", "data": objects}, indent=1),
               "lists.json": json.dumps(frame.to_dict("list")), "one_list.json": json.dumps(pairs)}[name]
    assert [(row.query, *row.positives) for row in rows_of(written(tmp_path, content, name))] == pairs


def test_an_object_with_a_query_and_a_passage_is_a_row_whatever_lists_it_has(tmp_path):
    row = {"Query": "q", "positive": "p", "negatives": [{"text": "x"}, {"text": "y"}]}
    for name in ("x.jsonl", "x.json"):
        assert [line.fields for line in tabular.read(written(tmp_path, json.dumps(row), name)).lines] == [row]


# Languages, and what no file can hold


@pytest.mark.parametrize(("said", "code"), [
    ("English", "en"), ("German", "de"), ("Deutsch", "de"), ("日本語", "ja"), ("русский", "ru"), (" FRENCH ", "fr"),
    ("jp", "ja"), ("cz", "cs"), ("iw", "he"), ("in", "id"), ("ji", "yi"), ("no", "nb"), ("mo", "ro"), ("cmn", "zh"),
    ("sh", "sr-latn"), ("sh-Cyrl", "sr"), ("srpski", "sr-latn"), ("cnr", "sr-latn"), ("sr-Latn", "sr-latn"),
    ("sr@latin", "sr-latn"), ("sr_ME", "sr-latn"), ("prs_Arab", "fa"), ("eng_Latn", "en"), ("kor_Hang", "ko"),
    ("zh-Hans-TW", "zh"), ("zh-hant-hk", "zh-hant"), ("zh_TW", "zh-hant"), ("zh-CHT", "zh-hant"), ("zh-yue", "yue"),
    ("zh-min-nan", "nan"), ("pt_BR.UTF-8", "pt"), ("en_US@euro", "en"), ("pa_PK", "pa-arab"), ("kas_Deva", "ks"),
    ("Chinese (Traditional)", "zh-hant"), ("Simplified Chinese", "zh"), ("Portuguese (Brazil)", "pt"),
    ("Serbian, Latin", "sr-latn"), ("x-klingon", None), ("i-klingon", None), ("English and German", None),
    ("Python", None), ("C", None), ("", None),
])
def test_languages_are_known_by_tag_and_by_name(said, code):
    assert resolve_language(said) == code


def test_languages_that_are_not_known_are_counted_and_said(tmp_path):
    tags = ["German", "x-klingon", "", "de", "und"] * 8
    path = written(tmp_path, "\n".join(["query,positive,language", *(
        f"{row},{tag}" for row, tag in zip(good_lines(40), tags, strict=True))]))
    corpus = userdata.read(path)
    assert [row.language for row in corpus.rows] == ["de", "und", "und", "de", "und"] * 8
    assert [(fault.number, fault.why, fault.content) for fault in corpus.faults] == [
        (number, "language", "x-klingon") for number in range(3, 42, 5)]
    assert re.search(r"8 × a language that is not known .*\(line 3, 8, 13, 18, 23 …\)", "\n".join(corpus.lines()))


WHOLE, HALF = "\\ud83d\\ude00", "\\ud83d"  # an emoji, and half of one, as JSON escapes them


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv"])
def test_half_a_character_becomes_the_replacement_character_and_is_counted(name, tmp_path):
    texts = [["q one " + HALF, "p"], ["q two", HALF + " p " + WHOLE], ["q three", "p " + WHOLE]]
    texts += [list(row[:2]) for row in made_up(20)]
    names = ["query" + HALF, "positive"]
    objects = ["{" + ", ".join(f'"{key}": "{text}"' for key, text in zip(names, row, strict=True)) + "}"
               for row in texts]
    separator = "\t" if name == "x.tsv" else ","
    content = {"x.jsonl": "\n".join(objects), "x.json": f"[{', '.join(objects)}]"}.get(name)
    if content is None:  # bytes that stand for half a character, as some write them
        lines = "\n".join(map(separator.join, [names, *texts]))
        content = json.loads('"' + lines.replace("\n", "\\n").replace("\t", "\\t") + '"')
    (tmp_path / name).write_bytes(content.encode("utf8", "surrogatepass"))
    corpus = userdata.read(tmp_path / name, query="query\ufffd")
    assert [(row.query, *row.positives) for row in corpus.rows[:3]] == [
        ("q one \ufffd", "p"), ("q two", "\ufffd p \U0001f600"), ("q three", "p \U0001f600")]
    assert [fault.why for fault in corpus.faults[:2]] == ["half", "half"]
    if name.startswith("x.js"):
        assert len(corpus.faults) == len(corpus.rows)  # the key of every row
    corpus.write(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.read_text("utf8")


# What cannot be used

SPOILT = """query,positive,negative,negative_2
,an answer without a question,,
a question without an answer,,a wrong one,
the same on both sides,The same  on both sides,,
one two three,four five six,seven eight,
One two  three,four five six,nine ten,seven eight
one two three,another right answer,four five SIX,
eleven,twelve,eleven,thirteen
fourteen,fifteen,sixteen,seventeen,eighteen
"""


@pytest.fixture
def spoilt(tmp_path):
    return userdata.read(written(tmp_path, SPOILT + "\n".join(row + ",," for row in good_lines())))


def test_what_cannot_be_used_is_counted_and_named_by_its_line(spoilt):
    found = [(fault.number, fault.why) for fault in spoilt.faults]
    assert found == [(2, "query"), (3, "passage"), (4, "itself"), (6, "duplicate"), (7, "both"), (8, "asked"),
                     (9, "fields")]
    said = "\n".join(spoilt.lines())
    for words, number in (("no query", 2), ("no positive passage", 3), ("repeats its query", 4),
                          ("earlier row", 6), ("is a positive of its query", 7), ("negative that repeats", 8),
                          ("more fields", 9)):
        assert re.search(rf"not used: 1 × [^\n]*{words}[^\n]*\(line {number}\)", said), words


def test_what_can_be_used_of_a_spoilt_file_is_used(spoilt):
    first, second, third = (row for row in spoilt.rows if text_key(row.query) in (text_key("one two three"),
                                                                                  text_key("eleven")))
    assert first[:3] == ("one two three", ("four five six", "another right answer"), ("seven eight", "nine ten"))
    assert second[:3] == ("one two three", ("another right answer", "four five six"), ())
    assert third[:3] == ("eleven", ("twelve",), ("thirteen",))
    assert len(spoilt.rows) == 3 + 40


def test_nothing_is_lost_every_row_is_an_example_or_written_down(spoilt, tmp_path):
    spoilt.write(tmp_path / "out")
    kept = [json.loads(line) for line in (tmp_path / "out" / "not-used.jsonl").read_text("utf8").splitlines()]
    assert [row["line"] for row in kept] == [fault.number for fault in spoilt.faults]
    everywhere = json.dumps([kept, spoilt.rows], ensure_ascii=False)
    texts = {text for line in SPOILT.splitlines()[1:] for text in line.split(",") if text}
    assert [text for text in texts if text not in everywhere and text.casefold() not in everywhere.casefold()] == []


def test_values_that_are_no_text_are_named_and_numbers_are_texts(tmp_path):
    rows = [{"query": "a b c", "positive": {"x": 1}}, {"query": ["a", "b"], "positive": "c"},
            {"query": 12, "positive": 3.5, "negatives": [True, None, "", float("nan"), ["n"]]},
            *({"query": q, "positive": [p, n]} for q, p, n in made_up(20))]
    path = written(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl")
    corpus = userdata.read(path)
    assert [(fault.number, fault.why) for fault in corpus.faults] == [(1, "text"), (2, "text")]
    assert corpus.rows[0][:3] == ("12", ("3.5",), ("True", "n"))
    one, other = corpus.rows[1:3]
    assert one.positives == (made_up(20)[0][1], made_up(20)[0][2]) == other.positives[::-1]  # an example of each


# The split


def grams(text):
    text = " " + " ".join(re.sub(r"\d+", "#", text).casefold().split()) + " "
    return {text[i : i + 3] for i in range(len(text) - 2)}


def crossing(rows, dev):
    """Pairs of a dev row and another one that are near-copies or share a passage, by all comparisons."""
    found = []
    for (a, row), (b, other) in itertools.combinations(enumerate(rows), 2):
        if dev[a] != dev[b]:
            left, right = grams(row.query), grams(other.query)
            near = len(left & right) >= 0.6 * len(left | right)
            if near or text_key(row.positives[0]) == text_key(other.positives[0]):
                found.append((row, other))
    return found


def related():
    """Rows with near-copies and shared passages."""
    draw, rows = random.Random(1), []
    for i, (query, passage, wrong) in enumerate(made_up(90)):
        rows.append(userdata.Labelled(query, (passage,), (), "x", "en"))
        if i % 3 == 0:
            rows.append(userdata.Labelled(f"{query} {draw.choice('abc')}", (wrong,), (), "x", "en"))
        if i % 5 == 0:
            rows.append(userdata.Labelled(word(draw) + " " + word(draw), (passage.upper(),), (), "x", "en"))
        if i % 7 == 0:
            rows.append(userdata.Labelled(query, (wrong + " more",), (), "x", "en"))
    return rows


def test_near_copies_and_shared_passages_never_cross_the_split():
    rows = related()
    dev, chained = userdata.dev_part(rows)
    assert not chained and crossing(rows, dev) == []
    queries = {text_key(row.query) for row in rows}
    assert abs(len({text_key(row.query) for row, out in zip(rows, dev, strict=True) if out}) - 20) <= 2
    assert len(queries) > 100  # a tenth of them would be fewer than 20
    blind = np.random.default_rng(0).permutation(dev)
    assert crossing(rows, blind)  # the measure sees what it should


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    rows = related()
    order = np.random.default_rng(3).permutation(len(rows))
    dev, mixed = userdata.dev_part(rows)[0], userdata.dev_part([rows[i] for i in order])[0]
    assert (dev[order] == mixed).all()


def test_a_large_group_stays_in_training_and_a_file_of_near_copies_says_so(tmp_path):
    asked = [f"what does the item that is called {word(random.Random(i))} cost" for i in range(80)]
    many = [userdata.Labelled(query, (f"{i} euros {made_up(80)[i][1]}",), (), "x", "en")
            for i, query in enumerate(asked)]
    rest = [userdata.Labelled(q, (p,), (), "x", "en") for q, p, _ in made_up(80)]
    dev, chained = userdata.dev_part(many + rest)
    assert not chained and not dev[:80].any() and dev[80:].sum() == 20
    path = written(tmp_path, "\n".join(["query,positive", *(f"{r.query},{r.positives[0]}" for r in many)]))
    corpus = userdata.read(path)
    assert corpus.chained and userdata.CHAINED in corpus.lines() and corpus.dev.sum() == 20
    assert corpus.card().ours["dev"] == userdata.CHAINED


def test_the_parts_are_whole_and_the_fingerprint_names_them(tmp_path):
    faq().to_csv(tmp_path / "x.csv", index=False)
    corpus, other = userdata.read(tmp_path / "x.csv"), userdata.read(tmp_path / "x.csv", symmetric=True)
    both = corpus.labelled() + corpus.labelled("dev")
    assert sorted(both) == sorted(corpus.rows) and len(corpus.labelled("dev")) == 15
    assert corpus.fingerprint == userdata.read(tmp_path / "x.csv").fingerprint != other.fingerprint
    assert corpus.prefixes() == ("query: ", "passage: ") and other.prefixes() == ("query: ", "query: ")


def test_the_card_is_one_by_the_schema_of_the_library(spoilt, tmp_path):
    path = spoilt.write(tmp_path / "out")
    card = cards.parse("x", path.read_text("utf8"))
    assert card == spoilt.card() and path.name == "x.md"
    assert card.counts["labelled"] == 43 and card.counts["dev"] == len(spoilt.labelled("dev"))
    assert sum(n for name, n in card.counts.items() if name.startswith("dropped: ")) == 7
    dev = [json.loads(line) for line in (tmp_path / "out" / "dev.jsonl").read_text("utf8").splitlines()]
    assert [row["query"] for row in dev] == [row.query for row in spoilt.labelled("dev")]


# The table


def test_the_figures_are_those_of_sentence_transformers():
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    draw = np.random.default_rng(0)
    relevant = [set(draw.choice(40, size=draw.integers(1, 15), replace=False).tolist()) for _ in range(30)]
    rows = np.stack([draw.permutation(40)[:10] for _ in range(30)])
    theirs = InformationRetrievalEvaluator(
        {str(i): "" for i in range(30)}, {str(i): "" for i in range(40)},
        {str(i): {str(j) for j in right} for i, right in enumerate(relevant)},
        accuracy_at_k=[1], mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[1], map_at_k=[1],
    ).compute_metrics([[{"corpus_id": str(row), "score": -place} for place, row in enumerate(found)] for found in rows])
    wanted = theirs["accuracy@k"][1], theirs["mrr@k"][10], theirs["ndcg@k"][10]
    assert np.allclose(table_of.figures(rows, relevant).mean(0), wanted)
    assert (table_of.figures(np.full((30, 10), -1), relevant) == 0).all()


@pytest.mark.parametrize(("right", "passages"), [(1, 5), (2, 5), (4, 6), (5, 5)])
def test_chance_is_the_mean_over_all_orders(right, passages):
    orders = np.array(list(itertools.permutations(range(passages))))
    wanted = table_of.figures(orders, [set(range(right))] * len(orders)).mean(0)
    assert np.allclose(table_of.chance([right], passages)[0], wanted)


def test_trigrams_rank_as_the_baseline_does():
    queries, passages = [row[0] for row in made_up()], [row[1] for row in made_up()]
    scores = baselines.tfidf_cosine(*(baselines.Counts(baselines.count_trigrams(x)) for x in (queries, passages)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    found = table_of.trigrams(queries, passages)
    assert (found[:, 0] == best[:, 0]).all() and ((found == best) | (found == -1)).all()


class Fake:
    """An encoder that knows the answers: the vector of a text is that of its pair's number, or a random one."""

    def __init__(self, knows: bool):
        draw = np.random.default_rng(7)
        vectors = draw.normal(size=(60, 64)).astype(np.float32)
        self.of = {}
        for row, vector in zip(made_up(), vectors, strict=True):
            for text in row[:2]:
                self.of[text] = vector if knows else draw.normal(size=64).astype(np.float32)
            self.of[row[2]] = draw.normal(size=64).astype(np.float32)
        self.prefixes = set()

    def encode(self, texts, prefix):
        self.prefixes.add(prefix)
        found = np.stack([self.of[text] for text in texts])
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_table_has_its_baselines_and_a_difference_with_an_interval(tmp_path):
    faq().to_csv(tmp_path / "x.csv", index=False)
    before, after = Fake(False), Fake(True)
    found = table_of.compare(userdata.read(tmp_path / "x.csv"), {"before": before, "after": after})
    assert list(found.table.index) == ["random", "character trigrams", "BM25", "before", "after"]
    assert list(found.table.columns) == ["accuracy@1", "MRR@10", "nDCG@10"]
    assert (found.queries, found.passages) == (15, 120) and after.prefixes == {"query: ", "passage: "}
    assert (found.table.loc["after"] == 1).all() and found.table.loc["before", "nDCG@10"] < 0.3
    assert found.table.loc["BM25", "accuracy@1"] == 1 and found.table.loc["random", "accuracy@1"] == 1 / 120
    gap = found.difference["nDCG@10"]
    assert gap.mean == pytest.approx(1 - found.table.loc["before", "nDCG@10"]) and 0 < gap.low <= gap.mean <= gap.high
    same = table_of.compare(userdata.read(tmp_path / "x.csv"), {"before": before, "after": before})
    assert "no difference that these queries could show" in str(same)


def test_passages_are_searched_by_hash_order_and_the_right_ones_are_always_there(tmp_path):
    faq().to_csv(tmp_path / "x.csv", index=False)
    corpus = userdata.read(tmp_path / "x.csv")
    small, whole = corpus.retrieval(30), corpus.retrieval()
    assert isinstance(small, RetrievalSet) and len(small.documents) == 30 and len(whole.documents) == 120
    assert set().union(*small.relevant.values()) <= set(small.documents) <= set(whole.documents)
    assert len(corpus.retrieval(3).documents) == 15
    assert list(whole.documents) == sorted(whole.documents, key=int)


# Training


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of a loopback hub that has a small random model under mE5-small's name."""
    root = tmp_path_factory.mktemp("hub")
    texts = [text for row in made_up(200) for text in row]
    dry_run.write_backbone(SHAPE, texts, root / "models" / tuning.MODEL)
    return root


@pytest.fixture(scope="module")
def start(hub):
    return hub / "models" / tuning.MODEL


@pytest.fixture
def corpus(tmp_path):
    faq(60).to_csv(tmp_path / "faq.csv", index=False)
    return userdata.read(tmp_path / "faq.csv")


def test_the_dials_fit_the_file_and_say_why(corpus, start):
    encoder = Encoder.load(start)
    dial = tuning.fit(corpus, encoder, tuning.MODEL)
    stage = dial.finetune
    assert (stage.batch, stage.steps, stage.lr) == (8, 12, config.load("small").finetune.lr)  # 45 examples, twice
    assert stage.warmup == 1
    assert stage.temperature == 0.01 and stage.query_tokens <= encoder.max_tokens == dial.model.max_tokens == 64
    assert dial.data.language_temperature == 1 and dial.model.backbone == tuning.MODEL
    told = "\n".join(tuning.lines(dial))
    for key in ("steps", "batch", "lr", "hard_negatives", "near", "passage_tokens"):
        assert re.search(rf"finetune\.{key} +\S+  (ours|paper): \w", told), key
    shorter = tuning.fit(corpus, encoder, tuning.MODEL, steps=5, overrides=["finetune.batch=16", "finetune.lr=0.5"])
    assert (shorter.finetune.steps, shorter.finetune.batch, shorter.finetune.lr) == (5, 16, 0.5)
    assert shorter.provenance["finetune.lr"] == ("ours", "set by hand")
    for many, batch in ((45, 8), (200, 16), (520, 64), (10_000, 64), (6, 6)):
        assert tuning._batch(many) == batch
    for options, words in (({"epochs": 0}, ["above zero"]), ({"epochs": math.inf}, ["not endless"]),
                           ({"overrides": ["train.steps=5"]}, ["train.steps decides"]),
                           ({"overrides": ["finetune.stepz=5"]}, ["did you mean finetune.steps"])):
        with refused(*words):
            tuning.fit(corpus, encoder, tuning.MODEL, **options)


def test_models_that_are_no_mE5_are_refused(start, tmp_path):
    import shutil

    folder = shutil.copytree(start, tmp_path / "start")
    assert tuning.open_start(folder) == folder
    for file, key, value, words in (
        ("1_Pooling/config.json", "pooling_mode", "cls", ["pools by cls, not by the average"]),
        ("1_Pooling/config.json", "pooling_mode_mean_tokens", False, ["pools by nothing, not by the average"]),
    ):
        about = {key: value}
        (folder / file).write_text(json.dumps(about), encoding="utf8")
        with refused(*words):
            tuning.open_start(folder)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}), encoding="utf8")
    modules = json.loads((folder / "modules.json").read_text("utf8"))
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]), encoding="utf8")
    with refused("has a module Dense"):
        tuning.open_start(folder)
    (folder / "modules.json").unlink()
    said = []
    prompts = {"prompts": {"query": "search_query: ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf8")
    assert tuning.open_start(folder, said.append) == folder and "'search_query: '" in said[0]
    with refused("no-one/nothing", "is not in the cache and the hub is out of reach"):
        tuning.open_start("no-one/nothing")


def test_an_interrupted_training_goes_on_and_ends_with_the_same_weights(corpus, start, tmp_path, monkeypatch):
    encoder = Encoder.load(start)
    dial = tuning.fit(corpus, encoder, tuning.MODEL, steps=6)

    def train(out):
        return tuning.finetune(corpus, start, out, dial, progress=False)

    whole = train(tmp_path / "whole")
    rate = loop.rate

    def interrupted(step, stage):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return rate(step, stage)

    monkeypatch.setattr(loop, "rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut")
    monkeypatch.setattr(loop, "rate", rate)
    again = train(tmp_path / "cut")
    assert [row["step"] for row in loop.read(again).steps] == list(range(6))
    for a, b in zip(Encoder.load(whole).parameters(), Encoder.load(again).parameters(), strict=True):
        assert (a == b).all()


def test_the_prefixes_of_the_corpus_are_those_that_are_trained_with(tmp_path, start, monkeypatch):
    faq(60).to_csv(tmp_path / "faq.csv", index=False)
    seen = []
    tokenize = Encoder.tokenize
    monkeypatch.setattr(Encoder, "tokenize", lambda self, texts, prefix="", most=None: seen.extend(
        prefix + text for text in texts) or tokenize(self, texts, prefix, most))
    for symmetric in (False, True):
        corpus = userdata.read(tmp_path / "faq.csv", symmetric=symmetric)
        dial = tuning.fit(corpus, Encoder.load(start), tuning.MODEL, steps=2)
        seen.clear()
        tuning.finetune(corpus, start, tmp_path / str(symmetric), dial, progress=False)
        assert {text.split(": ")[0] for text in seen} == ({"query"} if symmetric else {"query", "passage"})


def test_a_teacher_is_trained_when_it_is_asked_for(corpus, start, tmp_path):
    encoder = Encoder.load(start)
    dial = tuning.fit(corpus, encoder, tuning.MODEL, steps=2, teacher="trained",
                      overrides=["finetune.query_tokens=24", "finetune.passage_tokens=32", "finetune.teacher_steps=2"])
    model = tuning.finetune(corpus, start, tmp_path, dial, teacher=True, team=Team.alone(), progress=False)
    assert json.loads((model / "report.json").read_text("utf8"))["teacher"] is not None
    assert "candidates kept" in tuning.mined(model)


def test_from_a_csv_to_an_evaluated_model_as_a_user_with_a_network_runs_it(hub, client, tmp_path):
    from sentence_transformers import SentenceTransformer

    faq(80).to_csv(tmp_path / "faq.csv", index=False)
    out = tmp_path / "out"

    def me5(*words, endpoint="http://127.0.0.1:9", **more):
        command = [sys.executable, "-m", "me5lib", "finetune", "--from", tuning.MODEL, "--data",
                   str(tmp_path / "faq.csv"), "--out", str(out), *words]
        environment = client.environment(endpoint, **more) | {"USE_TORCH": "1"}
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf8")

    with Loopback(hub, fails=lambda n: 503 if n in (1, 2) else 0) as server:
        done = me5("--epochs", "3", "--set", "finetune.lr=0.002", endpoint=server.endpoint)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    order = ["faq.csv: 80 rows (CSV with commas); query = 'question', passage = 'answer', negatives = 'negative_1'",
             "20 queries are kept out", "finetune.batch", "data card: ", "model: steps 0 … 23", "mined: ",
             "20 dev queries, each among 160 passages", "\nbefore ", "\nafter ", "95 % interval", str(out / "model")]
    places = [said.find(words) for words in order]
    assert -1 not in places and places == sorted(places), (said, places)
    assert said.splitlines()[-1] == str(out / "model")
    table = pd.read_csv(out / "dev.csv", index_col="model")
    assert list(table.index) == ["random", "character trigrams", "BM25", "before", "after"]
    assert table.loc["after", "nDCG@10"] > table.loc["before", "nDCG@10"] > table.loc["random", "nDCG@10"]
    assert cards.parse("faq", (out / "data" / "faq.md").read_text("utf8")).counts["labelled"] == 80
    model = SentenceTransformer(str(out / "model"), device="cpu")
    theirs = model.encode_query(["bada fede"])
    assert np.allclose(theirs, Encoder.load(out / "model").encode(["bada fede"], "query: "), atol=1e-4)
    again = me5("--plan", HF_HUB_OFFLINE="1")  # the start model is in the hub client's cache
    assert again.returncode == 0 and again.stdout.splitlines()[:2] == said.splitlines()[:2], again.stderr[-3000:]
