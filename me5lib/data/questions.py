"""Builders of questions, documentation and commands: the labelled exams, and the packs that only evaluate.

Each builder reads members by glob and offers rows (see `rows.py`); `extract.BUILDERS` names them by data card.
"""

from __future__ import annotations

import io
import json
import re
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from me5lib.data.rows import Reader, Rows, unfit
from me5lib.data.text import expand, has_letter, language, plain, resolve_language
from me5lib.io import Me5Error
from me5lib.pairs import normalise

# Questions ------------------------------------------------------------------------------------------------------------

_CHOICE = re.compile(r"^([A-E])\. ?(.*)$")
_BROKEN = re.compile(r"[ĊĔĞĨĪ]")  # no letters of Polish: an exam whose PDF lost its encoding


def exams(read: Reader, rows: Rows) -> None:
    """`data/<language>-exams-qa/samples.jsonl`: a question with lettered choices, and the letter of the right one."""
    for name, content in read("*/registry/data/*-exams-qa/samples.jsonl"):
        code = resolve_language(name.split("/")[-2].removesuffix("-exams-qa"))
        for line in content.decode("utf8").splitlines():
            sample = json.loads(line)
            question, choices = _choices(sample["input"][-1]["content"])
            right = choices.pop(sample["ideal"].strip("[]"), "")
            wrong = tuple(text for text in choices.values() if has_letter(text) and normalise(text) != normalise(right))
            if reason := unfit(question, code):
                rows.drop(reason)
            elif code == "pl" and _BROKEN.search(question + right + "".join(wrong)):
                rows.drop("broken letters")
            elif not has_letter(right):
                rows.drop("right answer has no letter")
            elif not wrong:
                rows.drop("no wrong answer with a letter")
            else:
                rows.keep("labelled", (question, right, code), (question, (right,), wrong, code))


def _choices(content: str) -> tuple[str, dict[str, str]]:
    """A question and its choices by letter; a line that opens no choice goes on with the one before."""
    parts: dict[str, list[str]] = {"": []}
    for line in content.removesuffix("Answer:").splitlines():
        opened = _CHOICE.match(line)
        if opened and ord(opened[1]) - ord("A") == len(parts) - 1:  # letters come in their order
            parts[opened[1]] = [opened[2]]
        else:
            parts[list(parts)[-1]].append(line)
    texts = {letter: plain(" ".join(lines)) for letter, lines in parts.items()}
    return texts.pop(""), texts


def gsm(read: Reader, rows: Rows) -> None:
    """`data/templates/<tag>/symbolic/<number>.toml`: a word problem and its worked answer, the same in every language.

    English is `eng`, which most translations were made from; `eng_metric` has the same problems in other units.
    """
    problems: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for name, content in read("*/data/templates/*/symbolic/*.toml"):
        problem = tomllib.loads(content.decode("utf8"))  # one that could not be translated has no question
        answer = re.sub(r"<<.*?>>|####.*", "", problem.get("answer", ""))
        problems[name.split("/")[-3]][Path(name).stem] = plain(problem.get("question", "")), plain(answer)
    second = problems.pop("eng_metric", {})
    rows.drop("second English", len(second))
    for tag, texts in sorted(problems.items()):
        code = language(tag)
        for number, (question, answer) in sorted(texts.items()):
            if tag != "eng" and question and question in (problems["eng"][number][0], second.get(number, ("",))[0]):
                rows.drop("same as English")
            elif reason := unfit(question, code):
                rows.drop(reason)
            else:
                rows.keep("parallel", (number, code), (number, code, question, answer))


_XQUAD_BYTES = 1 << 20  # the largest of the eleven has 161 kB


def xquad(read: Reader, rows: Rows) -> None:
    """`datasets/xquad/dummy/xquad.<tag>/…/dummy_data.zip`: paragraphs and their questions, in SQuAD's format.

    Titles are English in every language and are left out.
    """
    for name, content in read("*/datasets/xquad/dummy/xquad.*/dummy_data.zip"):
        code = language(name.split("/xquad.")[1].split("/")[0])
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            (entry,) = (entry for entry in inner.infolist() if entry.filename.endswith(".json"))
            if entry.file_size > _XQUAD_BYTES:
                raise Me5Error(f"{name} is larger than expected: it is not the file that the data card means")
            articles = json.loads(inner.read(entry))["data"]
        for article in articles:
            for number, paragraph in enumerate(article["paragraphs"]):
                document, text = f"{code}/{article['title']}/{number}", plain(paragraph["context"])
                for item in paragraph["qas"]:
                    row = (f"{code}/{item['id']}", plain(item["question"]), document, "", text, code)
                    rows.keep("retrieval", row[:1], row)


# Documentation --------------------------------------------------------------------------------------------------------

_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$|<!--.*?-->|<style.*?</style>|\{[!*%].*?[!*%]\}", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#{1,4})\s+(.*?)\s*(?:\{\s*#[^}]*\})?\s*#*\s*$")
_ADMONITION = re.compile(r"^\s*(?:!!!|\?\?\?|///).*$", re.MULTILINE)
_LEAST = 80  # characters, ours: a shorter section holds only a pointer to code or to another page


def fastapi(read: Reader, rows: Rows) -> None:
    """`docs/<tag>/docs/<page>.md`: the path of headings finds its section, code blocks left out."""
    for name, content in read("*/docs/*/docs/*.md"):
        tag, page = name.split("/docs/", 1)[1].split("/docs/", 1)
        code = language(tag)
        if code is None or page.endswith("release-notes.md"):
            rows.drop("not a language" if code is None else "release notes")
            continue
        for number, (path, body) in enumerate(_sections(content.decode("utf8"))):
            query, text = " > ".join(path), plain(body)
            if len(text) < _LEAST or not query:
                rows.drop("section too short")
            elif reason := unfit(text, code):
                rows.drop(reason)
            else:
                identity = f"{code}/{page.removesuffix('.md')}/{number}"
                rows.keep("retrieval", (query, code), (identity, query, identity, path[-1], text, code))


def _sections(page: str) -> Iterator[tuple[list[str], str]]:
    """Path of headings and body of every section of a Markdown page."""
    path: list[str] = []
    body: list[str] = []
    for line in [*_ADMONITION.sub("", _CODE.sub("", page)).splitlines(), "# "]:
        heading = _HEADING.match(line)
        if heading is None:
            body.append(line.lstrip(" *-+>"))
            continue
        if path:
            yield list(path), "\n".join(body)
        path, body = path[: len(heading[1]) - 1] + [plain(heading[2])], []


# Commands -------------------------------------------------------------------------------------------------------------


def intents(read: Reader, rows: Rows) -> None:
    """`home_assistant_intents/data/<tag>.json`: templates by intent, written out without and with their options."""
    for name, content in read("*home_assistant_intents/data/*.json"):
        tree, code = json.loads(content), language(Path(name).stem)
        rules = tree.get("expansion_rules", {})
        slots = {slot: _filling(values) for slot, values in tree.get("lists", {}).items()}
        labels: dict[str, set[str]] = defaultdict(set)
        for intent, block in tree["intents"].items():
            for template in (template for data in block["data"] for template in data["sentences"]):
                for options in (False, True):
                    labels[expand(template, rules, slots, options)].add(intent)
        for text, intents in labels.items():
            if reason := unfit(text, code):
                rows.drop(reason)
            elif len(intents) > 1:
                rows.drop("several intents")
            else:
                rows.keep("labels", (text, code), (text, *intents, code))


def _filling(values: dict[str, Any]) -> str:
    """What is put for a slot: the first value of a list, the middle of a range, nothing for free text."""
    if span := values.get("range"):
        return str((span["from"] + span["to"]) // 2)
    first = next(iter(values.get("values", [])), "")
    return expand(first["in"] if isinstance(first, dict) else first, {}, {})
