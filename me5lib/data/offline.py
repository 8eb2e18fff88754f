"""Rows of the offline packs: what the files of a card hold, as tables; unfit rows dropped and counted by reason.

    found = extract("gettext", readers("gettext"))
    found.tables["translations"]     # pyarrow.Table with the columns COLUMNS["translations"]
    found.dropped                    # {"empty": 12, "same as English": 340, ...}

One builder a card reads members by glob and offers rows to a `RowCollector`. A table's name is its kind. Texts are
plain (no markup, no placeholders) and bare (no prefix). `extract_all` reads two cards at a time, each in a process.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from babel.messages.mofile import read_mo

from me5lib.data import packs
from me5lib.data.text import expand, has_letter, in_script, language, plain_text, resolve_language
from me5lib.io import PACKAGE, Me5Error
from me5lib.pairs import normalise

Reader = Callable[[str], Iterable[tuple[str, bytes]]]  # glob → names and contents of an archive's members

COLUMNS = {
    "translations": ("english", "text", "language"),
    "pairs": ("query", "passage", "language"),
    "labelled": ("query", "positives", "negatives", "language"),
    "parallel": ("id", "language", "text", "answer"),
    "retrieval": ("query_id", "query", "document_id", "title", "text", "language"),
    "labels": ("text", "label", "language"),
}
MOST_BODIES = 8  # ours: "Host" stands over 242 bodies in English; 8 keeps 99 % of the titles


class Extracted(NamedTuple):
    """What one card's files hold: tables by kind, and how many items were dropped, by reason."""

    tables: dict[str, pa.Table]
    dropped: dict[str, int]


def readers(name: str) -> list[Reader]:
    """A reader for each file of the card `name`. Raises `Me5Error` where one has not been fetched, or none is read."""
    if name not in BUILDERS:
        raise Me5Error(f"nothing is extracted for data card {name!r}: there are {', '.join(BUILDERS)}")
    return [partial(packs.members, path) for path in packs.archives(name)]


def extract(name: str, readers: Iterable[Reader]) -> Extracted:
    """The tables of the card `name`."""
    rows = RowCollector()
    for read in readers:
        BUILDERS[name](read, rows)
    tables = {kind: arrow_table(COLUMNS[kind], kept.values()) for kind, kept in rows.kept.items()}
    return Extracted(tables, dict(sorted(rows.dropped.items())))


_CHILD = ("import gc, pickle, sys; from me5lib.data import offline; gc.disable(); "  # of no use: rows have no circles
          "pickle.dump(offline.extract(*pickle.load(sys.stdin.buffer)), sys.stdout.buffer)")


def extract_all(cards: Mapping[str, Sequence[Reader]]) -> Iterator[tuple[str, Extracted]]:
    """Name and tables of each of `cards` (their readers, which can be pickled) as soon as they are read, two at a time.

    Each is read by a Python process of its own, whose memory goes with it. (A pool would run the caller's script once
    more in every process.) Raises `Me5Error` with the last line of one that fails.
    """
    paths = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))

    def _apart(name: str) -> Extracted:
        done = subprocess.run([sys.executable, "-c", _CHILD], input=pickle.dumps((name, list(cards[name]))),
                              capture_output=True, env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf8"})
        if done.returncode:
            said = done.stderr.decode("utf8", "replace").strip() or f"{name} was not read to its end: is there memory?"
            raise Me5Error(said.splitlines()[-1].removeprefix("me5lib.io.Me5Error: ")) from RuntimeError(said)
        return pickle.loads(done.stdout)

    threads = ThreadPoolExecutor(2)
    try:
        reading = {threads.submit(_apart, name): name for name in sorted(cards, key=list(BUILDERS).index)}
        yield from ((reading[done], done.result()) for done in as_completed(reading))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def arrow_table(names: Sequence[str], rows: Iterable[tuple]) -> pa.Table:
    """The rows as a table of these columns."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table(dict(zip(names, map(list, columns), strict=True)))


class RowCollector:
    """Collects rows by kind; what is unfit is counted in `dropped`, by reason, and not kept. No row comes twice."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[tuple, tuple]] = defaultdict(dict)  # by kind: identity of a row → row
        self.dropped: Counter[str] = Counter()

    def keep(self, kind: str, identity: tuple, row: tuple, unfit: str | None = None) -> None:
        """Keep `row`, unless it is `unfit` for a reason or one of the same `identity` (it may be the row) is there."""
        if unfit or identity in self.kept[kind]:
            self.dropped[unfit or "duplicate"] += 1
        else:
            self.kept[kind][identity] = row

    def translation(self, english: str | None, text: str, tag: str) -> None:
        """Offer a string and its translation, both as the source has them; `english` is None where it has none."""
        code = language(tag)
        if english is None:
            reason = "no English"
        elif code is None or code == "en":
            reason = "not a language" if code is None else "variant of English"
        else:
            (english, form, fault), text = _english(english), plain_text(text)
            reason = unfit(text, code) or fault or ("same as English" if normalise(text) == form else None)
        self.keep("translations", row := (english, text, code), row, reason)

    def pair(self, query: str, passage: str, tag: str) -> None:
        """Offer a title and its body, as the source has them."""
        code, query, passage = language(tag), plain_text(query), plain_text(passage)
        reason = (unfit(query, code) or unfit(passage, code)) if code else "not a language"
        if not reason and normalise(passage).startswith(normalise(query)) and len(passage) < len(query) + 3:
            reason = "body repeats title"
        self.keep("pairs", row := (query, passage, code), row, reason)


@lru_cache(maxsize=1 << 12)  # of a group of files: every language has the same
def _english(text: str) -> tuple[str, str, str | None]:
    """An English string plain, normalised, and why it is unfit, if it is."""
    plain = plain_text(text)
    return plain, normalise(plain), unfit(plain, "en")


def unfit(text: str, code: str) -> str | None:
    """Why `text` cannot be a text in `code`, or None."""
    if in_script(text, code):
        return None
    return "wrong script" if has_letter(text) else "no letter" if text else "empty"


# Interface strings ----------------------------------------------------------------------------------------------------


def homeassistant(read: Reader, rows: RowCollector) -> None:
    """`components/<component>/translations/<tag>.json`: the same tree of strings in every language."""
    files = read("*/components/*/translations/*.json")
    for _, group in groupby(files, key=lambda file: file[0].rpartition("/")[0]):
        trees = {Path(name).stem: json.loads(content) for name, content in sorted(group)}
        for tag, tree in trees.items():
            for english, text in _leaves(tree, trees.get("en")) if tag != "en" else ():
                rows.translation(english, text, tag)
            for title, body in _titled(tree) if not tag.startswith("en-") else ():
                rows.pair(title, body, tag)
    pairs = rows.kept["pairs"]
    bodies = Counter((query, code) for query, _, code in pairs)
    crowded = [pair for pair in pairs if bodies[pair[0], pair[2]] > MOST_BODIES]  # such a title names none of them
    for pair in crowded:
        del pairs[pair]
        rows.dropped["title of many bodies"] += 1


def _leaves(tree: dict, english: Any) -> Iterator[tuple[str | None, str]]:
    """Every string in a tree, behind the one that stands there in the `english` tree, or None."""
    for key, value in tree.items():
        other = english.get(key) if isinstance(english, dict) else None
        if isinstance(value, dict):
            yield from _leaves(value, other)
        elif isinstance(value, str):
            yield other if isinstance(other, str) else None, value


def _titled(tree: dict) -> Iterator[tuple[str, str]]:
    """Title and body: `title` or `name` beside `description`, and a label of `data` with its `data_description`."""
    title, body = tree.get("title") or tree.get("name"), tree.get("description")
    if isinstance(title, str) and isinstance(body, str):
        yield title, body
    labels, helps = tree.get("data"), tree.get("data_description")
    if isinstance(labels, dict) and isinstance(helps, dict):
        yield from ((labels[key], helps[key]) for key in helps if isinstance(labels.get(key), str))
    for value in tree.values():
        if isinstance(value, dict):
            yield from _titled(value)


def gettext(read: Reader, rows: RowCollector) -> None:
    """`…/<tag>/LC_MESSAGES/<domain>.mo`: of plural forms the first; fuzzy entries are not compiled into these files."""
    for name, content in read("*/LC_MESSAGES/*.mo"):
        for message in read_mo(io.BytesIO(content)):
            english, text = (each if isinstance(each, str) else each[0] for each in (message.id, message.string))
            if english:  # the entry for "" is the header
                rows.translation(english, text, name.split("/")[-3])


def kolibri(read: Reader, rows: RowCollector) -> None:
    """`kolibri/locale/<tag>/LC_MESSAGES/<app>-messages.json`: by key; ICU choices (`{n, plural, …}`) are dropped."""
    catalogues: dict[str, dict[str, str]] = defaultdict(dict)
    for name, content in read("*kolibri/locale/*/LC_MESSAGES/*-messages.json"):
        catalogues[name.split("/")[-3]].update(json.loads(content))
    english = catalogues.pop("en", {})
    for tag, strings in sorted(catalogues.items()):
        for key, text in strings.items():
            if re.search(r"\{\s*\w+\s*,\s*(plural|select)", text + english.get(key, "")):
                rows.dropped["plural expression"] += 1
            else:
                rows.translation(english.get(key), text, tag)


# Sentences ------------------------------------------------------------------------------------------------------------

_EVENT = re.compile(r"\s*(\d{1,4})(?!\s*-?\s*(?:BC|B\.C|a\.\s?C|av\.|v\.\s?Chr|f\.\s?Kr))\s*[-–—:]?\s+(\S.*)")


def dated_events(read: Reader, rows: RowCollector) -> None:
    """`locale/<tag>/day_<d>_month_<m>_events.dialog`, `<year> - <sentence>` a line: joined with English by date.

    Lines do not run alike in every language, nor do the events of one year, so a date joins only where either side has
    one event on it. The year itself is left out: it would give the translation away.
    """
    events: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, content in read("*/locale/*/day_*_events.dialog"):
        tag, day = name.removesuffix("_events.dialog").split("/")[-2:]
        for line in content.decode("utf8").splitlines():
            if event := _EVENT.fullmatch(line):
                events[tag][f"{day}_{event[1]}"].append(event[2])
            elif line.strip() and not line.startswith("#"):
                rows.dropped["no year"] += 1
    english = events.pop("en-US", {})
    for tag, dates in sorted(events.items()):
        for date, texts in sorted(dates.items()):
            if len(texts) == len(english.get(date, ())) == 1:
                rows.translation(english[date][0], texts[0], tag)
            else:
                reason = "several events on a date" if date in english else "date without its English"
                rows.dropped[reason] += len(texts)


# Questions ------------------------------------------------------------------------------------------------------------

_CHOICE = re.compile(r"^([A-E])\. ?(.*)$")
_BROKEN = re.compile(r"[ĊĔĞĨĪ]")  # no letters of Polish: an exam whose PDF lost its encoding


def exams(read: Reader, rows: RowCollector) -> None:
    """`data/<language>-exams-qa/samples.jsonl`: a question with lettered choices, and the letter of the right one."""
    for name, content in read("*/registry/data/*-exams-qa/samples.jsonl"):
        code = resolve_language(name.split("/")[-2].removesuffix("-exams-qa"))
        for line in content.decode("utf8").splitlines():
            sample = json.loads(line)
            question, choices = _choices(sample["input"][-1]["content"])
            right = choices.pop(sample["ideal"].strip("[]"), "")
            wrong = tuple(text for text in choices.values() if has_letter(text) and normalise(text) != normalise(right))
            reason = unfit(question, code)
            if not reason and code == "pl" and _BROKEN.search(question + right + "".join(wrong)):
                reason = "broken letters"
            elif not reason and not (has_letter(right) and wrong):
                reason = "no wrong answer with a letter" if has_letter(right) else "right answer has no letter"
            rows.keep("labelled", (question, right, code), (question, (right,), wrong, code), reason)


def _choices(content: str) -> tuple[str, dict[str, str]]:
    """A question and its choices by letter; a line that opens no choice goes on with the one before."""
    parts: dict[str, list[str]] = {"": []}
    for line in content.removesuffix("Answer:").splitlines():
        opened = _CHOICE.match(line)
        if opened and ord(opened[1]) - ord("A") == len(parts) - 1:  # letters come in their order
            parts[opened[1]] = [opened[2]]
        else:
            parts[list(parts)[-1]].append(line)
    texts = {letter: plain_text(" ".join(lines)) for letter, lines in parts.items()}
    return texts.pop(""), texts


def gsm(read: Reader, rows: RowCollector) -> None:
    """`data/templates/<tag>/symbolic/<number>.toml`: a word problem and its worked answer, the same in every language.

    English is `eng`, which most translations were made from; `eng_metric` has the same problems in other units.
    """
    problems: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for name, content in read("*/data/templates/*/symbolic/*.toml"):
        problem = tomllib.loads(content.decode("utf8"))  # one that could not be translated has no question
        answer = re.sub(r"<<.*?>>|####.*", "", problem.get("answer", ""))
        problems[name.split("/")[-3]][Path(name).stem] = plain_text(problem.get("question", "")), plain_text(answer)
    second = problems.pop("eng_metric", {})
    rows.dropped.update({"second English": len(second)} if second else {})
    for tag, texts in sorted(problems.items()):
        code = language(tag)
        for number, (question, answer) in sorted(texts.items()):
            english = (problems["eng"][number][0], second.get(number, ("",))[0]) if tag != "eng" else ()
            reason = "same as English" if question and question in english else unfit(question, code)
            rows.keep("parallel", (number, code), (number, code, question, answer), reason)


def xquad(read: Reader, rows: RowCollector) -> None:
    """`datasets/xquad/dummy/xquad.<tag>/…/dummy_data.zip`: paragraphs and their questions, in SQuAD's format.

    Titles are English in every language and are left out.
    """
    for name, content in read("*/datasets/xquad/dummy/xquad.*/dummy_data.zip"):
        code = language(name.split("/xquad.")[1].split("/")[0])
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            (entry,) = (entry for entry in inner.infolist() if entry.filename.endswith(".json"))
            articles = json.loads(inner.read(entry))["data"]
        for article in articles:
            for number, paragraph in enumerate(article["paragraphs"]):
                document, text = f"{code}/{article['title']}/{number}", plain_text(paragraph["context"])
                for item in paragraph["qas"]:
                    row = (f"{code}/{item['id']}", plain_text(item["question"]), document, "", text, code)
                    rows.keep("retrieval", row[:1], row)


# Documentation and commands -------------------------------------------------------------------------------------------

_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$|<!--.*?-->|<style.*?</style>|\{[!*%].*?[!*%]\}", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#{1,4})\s+(.*?)\s*(?:\{\s*#[^}]*\})?\s*#*\s*$")
_ADMONITION = re.compile(r"^\s*(?:!!!|\?\?\?|///).*$", re.MULTILINE)
_LEAST = 80  # characters, ours: a shorter section holds only a pointer to code or to another page


def fastapi(read: Reader, rows: RowCollector) -> None:
    """`docs/<tag>/docs/<page>.md`: the path of headings finds its section, code blocks left out."""
    for name, content in read("*/docs/*/docs/*.md"):
        tag, page = name.split("/docs/", 1)[1].split("/docs/", 1)
        code = language(tag)
        if code is None or page.endswith("release-notes.md"):
            rows.dropped["not a language" if code is None else "release notes"] += 1
            continue
        for number, (path, body) in enumerate(_page_sections(content.decode("utf8"))):
            query, text, identity = " > ".join(path), plain_text(body), f"{code}/{page.removesuffix('.md')}/{number}"
            reason = "section too short" if len(text) < _LEAST or not query else unfit(text, code)
            rows.keep("retrieval", (query, code), (identity, query, identity, path[-1], text, code), reason)


def _page_sections(page: str) -> Iterator[tuple[list[str], str]]:
    """Path of headings and body of every section of a Markdown page."""
    path: list[str] = []
    body: list[str] = []
    for line in [*_ADMONITION.sub("", _CODE.sub("", page)).splitlines(), "# "]:
        heading = _HEADING.match(line)
        if heading is None:
            body.append(line.lstrip(" *-+>"))
            continue
        if path:
            yield path, "\n".join(body)
        path, body = path[: len(heading[1]) - 1] + [plain_text(heading[2])], []


def intents(read: Reader, rows: RowCollector) -> None:
    """`home_assistant_intents/data/<tag>.json`: templates by intent, written out without and with their options."""
    for name, content in read("*home_assistant_intents/data/*.json"):
        tree, code = json.loads(content), language(Path(name).stem)
        rules = tree.get("expansion_rules", {})
        slots = {}  # the first value of a list, the middle of a range, nothing for free text
        for slot, values in tree.get("lists", {}).items():
            first, span = next(iter(values.get("values", [])), ""), values.get("range")
            filling = expand(first["in"] if isinstance(first, dict) else first, {}, {})
            slots[slot] = str((span["from"] + span["to"]) // 2) if span else filling
        labels: dict[str, set[str]] = defaultdict(set)
        for intent, block in tree["intents"].items():
            for template in (template for data in block["data"] for template in data["sentences"]):
                for options in (False, True):
                    labels[expand(template, rules, slots, options)].add(intent)
        for text, own in labels.items():
            reason = unfit(text, code) or ("several intents" if len(own) > 1 else None)
            rows.keep("labels", (text, code), (text, min(own), code), reason)


BUILDERS: dict[str, Callable[[Reader, RowCollector], None]] = {  # by the name of their card, the longest work first
    "homeassistant": homeassistant, "gettext": gettext, "history": dated_events, "gsm": gsm, "kolibri": kolibri,
    "exams": exams, "fastapi": fastapi, "intents": intents, "xquad": xquad,
}
