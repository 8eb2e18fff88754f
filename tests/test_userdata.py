"""Your own file: what is read, guessed, refused, counted; its split; its card."""

import csv
import itertools
import json
import random
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from test_split import jaccard

from me5lib.data import cards, userdata
from me5lib.data.text import resolve_language
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, text_key

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
    return [row._replace(source="") for row in userdata.read_corpus(path, **options).rows]


def written(tmp_path, text, name="x.csv", encoding="utf8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def good_lines(n=40):
    return [",".join(row[:2]) for row in made_up(n)]


def refused(*words):
    return pytest.raises(Me5Error, match="(?s)" + ".*".join(map(re.escape, words)))


def lines_of(tmp_path, rows, separator="\t"):
    """What is read of rows that somebody joined without a thought of quotes."""
    text = "\n".join(map(separator.join, [("query", "positive"), *rows]))
    return [(number, *fields.values()) for number, fields in userdata.read_table(written(tmp_path, text))[2]]


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
    wanted = [Labelled(q, (p,), (n,) if isinstance(n, str) else (), "", "de")
              for q, p, n, _ in frame.itertuples(index=False)]
    for path in sorted(tmp_path.glob("?.*")):
        assert rows_of(path) == wanted, path.name
        assert not userdata.read_corpus(path).unused, path.name


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
    corpus = userdata.read_corpus(written(tmp_path, "\n".join([header, *lines])))
    assert corpus.columns == userdata.ColumnRoles(query, passage, negatives, language, beside)
    said = corpus.lines()[0]
    assert all(repr(name) in said for name in (query, passage, *negatives, *beside))


def test_named_columns_are_taken_before_any_guess(tmp_path):
    faq().rename(columns={"negative_1": "query"}).to_csv(tmp_path / "x.csv", index=False)
    query, passage, wrong = made_up()[0]
    rows = rows_of(tmp_path / "x.csv", query="answer", passage="question", negatives=["query"])
    assert rows[0][:3] == (passage, (query,), (wrong,))


HEAD = "query,positive\n"


@pytest.mark.parametrize(("name", "content", "words"), [
    ("x.csv", b"", ["has no rows"]),
    ("x.csv", b"query,positive\n", ["has no rows"]),
    ("x.xlsx", b"PK", [".csv", ".parquet", "save it as CSV"]),
    ("x.csv", HEAD.encode() + b"a,b\n\nc\xe9,d\n", ["line 4 is not utf8", "0xe9", "--encoding cp1252"]),
    ("x.csv", HEAD.encode() + b'a,"b, c"\n"c,d\ne,f\n', ["begins in line 3", "twice (\"\")"]),
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
        userdata.read_corpus(tmp_path / name).labelled()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "words"), [
    *(({name: value}, ["no column 'frage'", "'query', 'positive'"]) for name, value in
      (("query", "frage"), ("passage", "frage"), ("negatives", ["frage"]), ("language", "frage"))),
    ({"passage": "query"}, ["'query' cannot be two things"]),
    *(({"encoding": name}, [f"no encoding {name!r}"]) for name in ("utf9", "idna", "punycode")),
    ({}, ["line 2", "--encoding cp1252"]),
])  # fmt: skip
def test_what_is_asked_of_a_file_and_is_not_there_is_refused(options, words, tmp_path):
    path = written(tmp_path, "\n".join(["query,positive", "Größe,Straße", *good_lines()]), encoding="cp1252")
    assert rows_of(path, encoding="cp1252")[0][:2] == ("Größe", ("Straße",))
    with refused(*words):
        userdata.read_corpus(path, **{"encoding": "cp1252"} | options if options else {})


OPENED, CLOSED = '"I will come tomorrow, she said, and left the house.', 'Nobody had seen him since the storm."'
QUOTES = {  # rows that are read as they stand, every quote a sign; or rows, and the line where the quote opens
    "closed by a query": [("q 0", OPENED), ('so he said "', "b"), ("q 2", "c")],
    "never closed": [("q 0", "a"), ("q 1", OPENED), ("q 2", "b")],
    "a word at the start": [("q 0", '"Yes" is a word.'), ('"No" too', "b")],
    "doubled": [("q 0", '""Yes"" and no'), ("q 1", "b")],
    "across the separator": [('"Where is it?', 'It is here."'), ("q 1", "b")],
    "inches": [("q 0", '27" wide'), ("q 1", '5\' 10"'), ("'tis q 2", "the dogs'")],
    "closed rows later": ([("q 0", "a"), ("q 1", OPENED), ("q 2", "b"), ("q 3", "c"), ("q 4", CLOSED), ("q 5", "d")],
                          3),
    "closed in the next row": ([("q 0", OPENED), ("q 1", CLOSED), ("q 2", "b")], 2),
    "a row of one field between": ([("q 0", OPENED), ("q 1",), ("q 2", "b"), ("q 3", CLOSED)], 2),
}


@pytest.mark.parametrize("name", QUOTES)
def test_quotes_of_a_text_swallow_no_rows(name, tmp_path):
    for separator in "\t,":
        rows, line = QUOTES[name] if isinstance(QUOTES[name], tuple) else (QUOTES[name], None)
        rows = [tuple(text.replace(",", "") for text in row) for row in rows]
        if line is None:
            assert lines_of(tmp_path, rows, separator) == [(i, *row) for i, row in enumerate(rows, 2)]
            continue
        with refused(f"begins in line {line} can be read in two ways") as caught:
            lines_of(tmp_path, rows, separator)
        assert "\n" not in str(caught.value)


TEXTS = ["one line", "a line, with a comma\nand another, too", 'she said "yes", and\n"no"', "first\n\nsecond; third",
         "a tab\there\nand\tthere", '"quoted"', "it's", "", " a space first", "x | y\nz | w"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_texts_of_several_lines_are_read_as_a_writer_quoted_them(separator, quoting, tmp_path):
    """Beside a text that needs its quotes: alone, one whose lines all look like rows is refused."""
    for texts, query in itertools.product((TEXTS, *([text] for text in TEXTS[1:])), ("query", "query, {}")):
        rows = [(f"query {i}", f"plain{separator}") for i in range(9)]
        rows += [(query.format(text), text) for text in texts]
        with (tmp_path / "x.csv").open("w", encoding="utf8", newline="") as file:
            csv.writer(file, delimiter=separator, quoting=quoting).writerows([("query", "positive"), *rows])
        _, _, found = userdata.read_table(tmp_path / "x.csv")
        assert [tuple(fields.values()) for _, fields in found] == rows
        numbers = np.cumsum([2, *(1 + "".join(row).count("\n") for row in rows)])[:-1]
        assert [number for number, _ in found] == numbers.tolist()


def test_separators_at_the_end_of_the_header_are_no_columns(tmp_path):
    rows = ["query,positive,,", *(f"{row},," for row in good_lines(20)), "one,two, three,"]
    corpus = userdata.read_corpus(written(tmp_path, "\n".join(rows)))
    assert (corpus.columns.query, corpus.columns.passage) == ("query", "positive") and len(corpus.rows) == 20
    assert [each[:2] for each in corpus.unused] == [(22, "fields")]  # a comma of a text, no column


@pytest.mark.parametrize("name", ["pairs.jsonl", "pretty.json", "lists.json", "by_row.json", "one_list.json"])
def test_json_of_other_forms_is_read_where_its_meaning_is_plain(name, tmp_path):
    pairs = [(query, passage) for query, passage, _ in made_up(20)]
    objects = [{"query": query, "positive": passage} for query, passage in pairs]
    frame = pd.DataFrame(objects)
    content = {"pairs.jsonl": "\n".join(map(json.dumps, pairs)), "by_row.json": frame.to_json(),
               "pretty.json": json.dumps({"version": "1", "data": objects}, indent=1),
               "lists.json": json.dumps(frame.to_dict("list")), "one_list.json": json.dumps(pairs)}[name]
    assert [(row.query, *row.positives) for row in rows_of(written(tmp_path, content, name))] == pairs
    row = {"Query": "q", "positive": "p", "negatives": [{"text": "x"}, {"text": "y"}]}  # a row, whatever lists it has
    assert userdata.read_table(written(tmp_path, json.dumps(row), name))[2] == [(1, row)]


# Languages, and what no file can hold


TAGS = {
    "English": "en", "German": "de", "Deutsch": "de", "日本語": "ja", "русский": "ru", " FRENCH ": "fr",
    "jp": "ja", "cz": "cs", "iw": "he", "in": "id", "ji": "yi", "no": "nb", "mo": "ro", "cmn": "zh",
    "sh": "sr-latn", "sh-Cyrl": "sr", "srpski": "sr-latn", "cnr": "sr-latn", "sr-Latn": "sr-latn",
    "sr@latin": "sr-latn", "sr_ME": "sr-latn", "prs_Arab": "fa", "eng_Latn": "en", "kor_Hang": "ko",
    "zh-Hans-TW": "zh", "zh-hant-hk": "zh-hant", "zh_TW": "zh-hant", "zh-CHT": "zh-hant", "zh-yue": "yue",
    "zh-min-nan": "nan", "pt_BR.UTF-8": "pt", "en_US@euro": "en", "pa_PK": "pa-arab", "kas_Deva": "ks",
    "Chinese (Traditional)": "zh-hant", "Simplified Chinese": "zh", "Portuguese (Brazil)": "pt",
    "Serbian, Latin": "sr-latn", "x-klingon": None, "i-klingon": None, "English and German": None,
    "Python": None, "C": None, "": None,
}  # fmt: skip


def test_languages_are_known_by_tag_and_by_name():
    assert {said: resolve_language(said) for said in TAGS} == TAGS


def test_languages_that_are_not_known_are_counted_and_said(tmp_path):
    tags = ["German", "x-klingon", "", "de", "und"] * 8
    path = written(tmp_path, "\n".join(["query,positive,language", *(
        f"{row},{tag}" for row, tag in zip(good_lines(40), tags, strict=True))]))
    corpus = userdata.read_corpus(path)
    assert [row.language for row in corpus.rows] == ["de", "und", "und", "de", "und"] * 8
    assert corpus.unused == [
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
    corpus = userdata.read_corpus(tmp_path / name, query="query\ufffd")
    assert [(row.query, *row.positives) for row in corpus.rows[:3]] == [
        ("q one \ufffd", "p"), ("q two", "\ufffd p \U0001f600"), ("q three", "p \U0001f600")]
    assert {each.why for each in corpus.unused} == {"half"} and len(corpus.unused) == len(corpus.rows)  # by the header
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
    return userdata.read_corpus(written(tmp_path, SPOILT + "\n".join(row + ",," for row in good_lines())))


def test_what_cannot_be_used_is_counted_and_named_by_its_line(spoilt):
    found = [each[:2] for each in spoilt.unused]
    assert found == [(2, "query"), (3, "passage"), (4, "itself"), (6, "duplicate"), (7, "both"), (8, "asked"),
                     (9, "fields")]
    said = "\n".join(spoilt.lines())
    for words, number in (("no query", 2), ("no positive passage", 3), ("repeats its query", 4),
                          ("earlier row", 6), ("is a positive of its query", 7), ("negative that repeats", 8),
                          ("more fields", 9)):
        assert re.search(rf"not used: 1 × [^\n]*{words}[^\n]*\(line {number}\)", said), words


def test_what_can_be_used_of_a_spoilt_file_is_used_and_the_rest_is_written_down(spoilt, tmp_path):
    first, second, third = spoilt.rows[:3]
    assert first[:3] == ("one two three", ("four five six", "another right answer"), ("seven eight", "nine ten"))
    assert second[:3] == ("one two three", ("another right answer", "four five six"), ())
    assert third[:3] == ("eleven", ("twelve",), ("thirteen",)) and len(spoilt.rows) == 3 + 40
    path = spoilt.write(tmp_path / "out")
    kept, dev = ([json.loads(line) for line in (tmp_path / "out" / name).read_text("utf8").splitlines()]
                 for name in ("not-used.jsonl", "dev.jsonl"))
    assert [row["line"] for row in kept] == [each.number for each in spoilt.unused]
    assert [row["query"] for row in dev] == [row.query for row in spoilt.labelled("dev")]
    everywhere = json.dumps([kept, spoilt.rows], ensure_ascii=False).casefold()
    texts = {text for line in SPOILT.splitlines()[1:] for text in line.split(",") if text}
    assert [text for text in texts if text.casefold() not in everywhere] == []
    card = cards.parse_card("x", path.read_text("utf8"))  # one by the schema of the library
    assert card == spoilt.card() and path.name == "x.md"
    assert card.counts["labelled"] == 43 and card.counts["dev"] == len(dev)
    assert sum(n for name, n in card.counts.items() if name.startswith("dropped: ")) == 7


def test_values_that_are_no_text_are_named_and_numbers_are_texts(tmp_path):
    rows = [{"query": "a b c", "positive": {"x": 1}}, {"query": ["a", "b"], "positive": "c"},
            {"query": 12, "positive": 3.5, "negatives": [True, None, "", float("nan"), ["n"]]},
            *({"query": q, "positive": [p, n]} for q, p, n in made_up(20))]
    path = written(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl")
    corpus = userdata.read_corpus(path)
    assert [each[:2] for each in corpus.unused] == [(1, "text"), (2, "text")]
    assert corpus.rows[0][:3] == ("12", ("3.5",), ("True", "n"))
    one, other = corpus.rows[1:3]
    assert one.positives == (made_up(20)[0][1], made_up(20)[0][2]) == other.positives[::-1]  # an example of each


# The split


def crossing(rows, dev):
    """Pairs of a dev row and another one that are near-copies or share a passage, by all comparisons."""
    found = []
    for (a, row), (b, other) in itertools.combinations(enumerate(rows), 2):
        if dev[a] != dev[b]:
            if jaccard(row.query, other.query) >= 0.6 or text_key(row.positives[0]) == text_key(other.positives[0]):
                found.append((row, other))
    return found


def related():
    """Rows with near-copies and shared passages."""
    draw, rows = random.Random(1), []
    for i, (query, passage, wrong) in enumerate(made_up(90)):
        rows.append(Labelled(query, (passage,), (), "x", "en"))
        if i % 3 == 0:
            rows.append(Labelled(f"{query} {draw.choice('abc')}", (wrong,), (), "x", "en"))
        if i % 5 == 0:
            rows.append(Labelled(word(draw) + " " + word(draw), (passage.upper(),), (), "x", "en"))
        if i % 7 == 0:
            rows.append(Labelled(query, (wrong + " more",), (), "x", "en"))
    return rows


def test_near_copies_and_shared_passages_never_cross_the_split():
    rows = related()
    dev, chained = userdata.dev_split(rows)
    assert not chained and crossing(rows, dev) == []
    queries = {text_key(row.query) for row in rows}
    assert abs(len({text_key(row.query) for row, out in zip(rows, dev, strict=True) if out}) - 20) <= 2
    assert len(queries) > 100  # a tenth of them would be fewer than 20
    assert crossing(rows, np.random.default_rng(0).permutation(dev))  # the measure sees what it should
    order = np.random.default_rng(3).permutation(len(rows))
    assert (dev[order] == userdata.dev_split([rows[i] for i in order])[0]).all()


def test_a_large_group_stays_in_training_and_a_file_of_near_copies_says_so(tmp_path):
    asked = [f"what does the item that is called {word(random.Random(i))} cost" for i in range(80)]
    many = [Labelled(query, (f"{i} euros {made_up(80)[i][1]}",), (), "x", "en")
            for i, query in enumerate(asked)]
    rest = [Labelled(q, (p,), (), "x", "en") for q, p, _ in made_up(80)]
    dev, chained = userdata.dev_split(many + rest)
    assert not chained and not dev[:80].any() and dev[80:].sum() == 20
    path = written(tmp_path, "\n".join(["query,positive", *(f"{r.query},{r.positives[0]}" for r in many)]))
    corpus = userdata.read_corpus(path)
    assert userdata.CHAINED in corpus.lines() and corpus.dev.sum() == 20
    assert corpus.card().ours["dev"] == userdata.CHAINED


def test_parts_fingerprint_and_the_passages_to_search(tmp_path):
    faq().to_csv(tmp_path / "x.csv", index=False)
    corpus, other = userdata.read_corpus(tmp_path / "x.csv"), userdata.read_corpus(tmp_path / "x.csv", symmetric=True)
    assert sorted(corpus.labelled() + corpus.labelled("dev")) == sorted(corpus.rows)
    assert corpus.fingerprint == userdata.read_corpus(tmp_path / "x.csv").fingerprint != other.fingerprint
    assert corpus.prefixes() == ("query: ", "passage: ") and other.prefixes() == ("query: ", "query: ")
    small, whole = corpus.retrieval(30), corpus.retrieval()
    assert [len(each.documents) for each in (corpus.retrieval(3), small, whole)] == [15, 30, 120]
    assert set().union(*small.relevant.values()) <= set(small.documents) <= set(whole.documents)
    assert list(whole.documents) == sorted(whole.documents, key=int)


CASES = {  # of people who had trouble: rows, examples that are not used, or the words of the refusal
    "columns.json": 30, "data_key_pretty.json": 30, "emoji40.jsonl": 40, "fewde.jsonl": 35, "hindi.jsonl": 10,
    "langnames.csv": 40, "pairs_arrays.jsonl": 30, "surrogate.jsonl": 20, "trailing.csv": 30,
    "grit.jsonl": "a query that is a list", "q_a_cols.csv": "--query-column", "quotes.tsv": "begins in line 7",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_files_that_were_sent_in_are_read_or_refused_with_the_reason(name, shared):
    wanted = CASES[name]
    if isinstance(wanted, int):
        assert len(userdata.read_corpus(shared / "cases" / name).rows) == wanted
        return
    with refused(wanted):
        userdata.read_corpus(shared / "cases" / name).labelled()
