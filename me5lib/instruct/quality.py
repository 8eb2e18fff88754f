"""Checks of synthetic examples (`me5 synthesise --check FILE`): counts by rule, with samples for human eyes.

    report = check_file(Path("mine.jsonl"), evaluation_texts(corpus), encode)
    print(*report.lines(), sep="\n")

Rules look at the form of a row and may filter: `report.broken()` are the lines that break one. What a model says stands
in `tables`, by task type and language, and never filters: where the wrong text is the nearer one, above all in twins
(one query, two instructions, each one's right text is the other's wrong one), is what is to be learnt. Every threshold
is ours. Cost on one core: the rules 2 ms a row; the model every text once.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from me5lib.data import filters, split, text
from me5lib.instruct.synthetic import Example, parse_example, read_lines
from me5lib.io import Me5Error
from me5lib.model.text import instruct
from me5lib.pairs import normalise, text_key

Encode = Callable[[Sequence[str]], np.ndarray]  # texts as they stand → unit vectors [n, d]
Held = Mapping[tuple[str, str], Iterable[str]]  # (task, language) → texts that evaluate
Fault = tuple[str, int, str, str]  # rule, place of a row, its field, what is wrong with it

IDENTIFIED = 10  # words: in shorter texts no language is identified
LEAST_COPY = 20  # characters: equal texts of fewer are the same words, and no copies
SAMPLES, SHOWN = 3, 90  # printed of a rule, and characters of each
SHORT, LONG, LABEL, EITHER = range(1, 46), range(25, 1_500), range(1, 16), range(2, 400)
WORDS = {"short-long": (SHORT, LONG), "long-short": (LONG, LABEL), "short-short": (SHORT, SHORT),
         "long-long": (LONG, LONG), "sts": (EITHER, EITHER), "bitext": (EITHER, EITHER)}  # of queries, of passages
DIALS = {"query_length": ("query",), "text_words": ("query",), "num_words": ("positive", "negative")}  # of taxonomy
LEAST_LONG = 20  # words that are asked for: such a text ends with a stop
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # no space between words
_UNSTOPPED = re.compile("[\u0e00-\u0eff\u1780-\u17ff]")  # nor a stop after sentences
REFUSAL = re.compile(
    r"""\bas\ an?\ (AI|artificial\ intelligence|(large\ )?language\ model)\b | \b(AI|large)\ language\ model\b
    | ^(I['’]m|I\ am)\ (sorry|afraid|unable).{0,20}\b(I|to)\b | ^(Sorry|Unfortunately),?\ (but\ )?I\ (can|am)
    | \bI\ can(['’]t|not|\ not)\ (help|assist|provide|create|generate|fulfil|comply|write)\b | (KI|AI)-Sprachmodell
    | en\ tant\ qu(e|['’])\s*(IA|modèle) | como\ (un\ |uma\ )?(IA\b|model[oe]\ de\ l) | языковая\ модель | 言語モデル
    | 作为.{0,6}(AI|人工智能|语言模型) | 언어\ 모델 | dil\ modeli | نموذج\ لغوي | भाषा\ मॉडल | lorem\ ipsum
    | ^(Sure|Certainly|Of\ course)[!,.]\ +(Here|I\b) | ^Here(['’]s|\ is|\ are)\ (an?|the|your|some)\b.{0,60}:
    | \[(insert|your|name|date|company|placeholder)\b[^\]]*\] | \b(hard\ negative|positive\ document|user_query)\b
    | ^(user\ )?(query|positive|negative|passage|document|answer|label)(\ document|\ passage)?\s*[:：]""",
    re.VERBOSE | re.IGNORECASE)
MARKUP = re.compile(
    r"""```|\*\*\S[^*]*\*\*|^\#{1,6}\ \S|^\s*[-*+]\ .*\n\s*[-*+]\ |\]\(https?:|</?[a-z][^<>]*>|&(amp|lt|gt|quot|nbsp);
    |\\[nt"u/]|"\s*:\s*["\[{]|"\s*,\s*"\w+"|^\s*[\[{]|[\]}"]\s*,?\s*[\]}]\s*$""", re.VERBOSE | re.MULTILINE)
_CUT = re.compile("[^.!?。！？…।॥؟۔።։\"'”»’“)）」』\\]\u2600-\u27bf\U0001f000-\U0001faff]$")
RULES = ("schema", "refusal", "markup", "length", "cut", "language", "copied", "duplicate", "evaluated")
VERDICTS = ["positive_right", "negative_wrong", "negative_hard", "language_good"]  # of a reviewer


class Finding(NamedTuple):
    """A row that breaks a rule."""

    line: int  # of the file, from 1
    id: str
    field: str
    why: str
    text: str


class Report(NamedTuple):
    """What the checks found; `evaluated`, and what a model says, are absent where there was nothing to go by."""

    rows: int  # lines of the file
    rules: dict[str, list[Finding]]
    tables: dict[str, dict[str, float]]

    def broken(self, *rules: str) -> set[int]:
        """The lines that break one of these rules, or any."""
        return {each.line for rule in rules or self.rules for each in self.rules.get(rule, ())}

    def share(self, rule: str) -> float:
        """Of the rows, how many break a rule."""
        return len(self.broken(rule)) / max(self.rows, 1)

    def lines(self) -> list[str]:
        """The report to be read."""
        said = [f"{self.rows:,} rows, {len(self.broken()):,} of them break a rule"]
        for rule, found in self.rules.items():
            said.append(f"  {rule:12}{len(self.broken(rule)):>7,}{self.share(rule):>8.1%}")
            said += [f"      {each.id} {each.field} {each.why}: {each.text[:SHOWN]!r}" for each in found[:SAMPLES]]
        for title, table in ((title, table) for title, table in self.tables.items() if table):
            said += [f"  {title}:", "      " + ", ".join(f"{name} {value:.2f}" for name, value in table.items())]
        return said


def check_file(path: Path, held: Held | None = None, encode: Encode | None = None) -> Report:
    """The report on a file."""
    rows, dials, broken, lines = {}, [], [], read_lines(path)
    for number, line in enumerate(lines, 1):
        try:
            rows[number] = parse_example(line)
            dials.append(asked if isinstance(asked := json.loads(line).get("dials"), dict) else {})
        except (ValueError, RecursionError) as error:
            broken.append(Finding(number, "", "line", str(error), line[:SHOWN]))
    report = check_rows(list(rows.values()), held, encode, list(rows), dials)
    return report._replace(rows=len(lines), rules=report.rules | {"schema": broken})


def check_rows(rows: Sequence[Example], held: Held | None = None, encode: Encode | None = None,
               lines: Sequence[int] = (), dials: Sequence[Mapping[str, str]] = ()) -> Report:
    """The report on examples; `lines`: of a file (none: they are counted from 1); `dials`: what was asked for."""
    dials = dials or [{}] * len(rows)
    rules: dict[str, list[Finding]] = {rule: [] for rule in RULES[: None if held else -1]}
    for rule, i, field, why in chain(faults(rows, dials), duplicates(rows), evaluated(rows, held or {})):
        rules[rule].append(Finding(lines[i] if lines else i + 1, rows[i].id, field, why, getattr(rows[i], field)))
    tables = {"different pairs of words": distinct_bigrams(rows), "dials obeyed": obeyed(rows, dials)}
    if encode is not None:
        tables |= nearer(rows, margins(rows, encode))
    return Report(len(rows), rules, tables)


# ── rules ──


def count_words(passage: str) -> int:
    """Words of a text: between spaces; where a script sets none, two characters make one."""
    return len(_UNSPACED.sub(" ", passage).split()) + (len(_UNSPACED.findall(passage)) + 1) // 2


def faults(rows: Sequence[Example], dials: Sequence[Mapping[str, str]]) -> Iterator[Fault]:
    """What is wrong with single texts, and with a query and its passages side by side."""
    for i, row in enumerate(rows):
        for field, passage, words, code in _texts(row, dials[i]):
            yield from ((rule, i, field, why) for rule, why in _text_faults(passage, words, code))
        query, positive, negative = map(normalise, (row.query, row.positive, row.negative))
        if query == positive or (query in positive and count_words(query) > 2):
            yield "copied", i, "positive", "has the query word for word"
        if negative in (query, positive):
            yield "copied", i, "negative", f"is the {'positive' if negative == positive else 'query'}"


def _texts(row: Example, dials: Mapping[str, str] | None = None) -> Iterator[tuple[str, str, range, str]]:
    """(field, text, how many words it should have, language) of a row's texts; half and double a dial's are well."""
    query, passages = WORDS[row.task_type]
    words = {"query": query, "positive": passages, "negative": passages}
    for dial in DIALS.keys() & (dials or {}):
        asked = asked_words(dials[dial])
        words |= dict.fromkeys(DIALS[dial], range(asked.start // 2, 2 * asked.stop))
    for field in ("query", "positive", "negative") if row.negative else ("query", "positive"):
        code = row.language if field == "query" else row.passage_language
        yield field, getattr(row, field), words[field], text.language(code) or ""


def asked_words(dial: str) -> range:
    """What a dial asks for: "less than 5 words", "5 to 15 words", "at least 10 words", "100"."""
    first, *last = map(int, re.findall(r"\d{1,9}", str(dial)) or [0])
    return range(first) if "less" in str(dial) else range(first, last[0] + 1 if last else 5_000)


def _text_faults(passage: str, words: range, code: str) -> Iterator[tuple[str, str]]:
    """(rule, what is wrong) of one text."""
    n = count_words(passage)
    for rule, pattern in (("refusal", REFUSAL), ("markup", MARKUP)):
        if found := pattern.search(passage):
            yield rule, f"has {found[0]!r:.30}"
    if n not in words:
        yield "length", f"has {n} words, not {words.start} to {words.stop - 1}"
    if words.start >= LEAST_LONG and not _UNSTOPPED.search(passage) and _CUT.search(passage.rstrip()):
        yield "cut", "ends inside a sentence"
    if n >= IDENTIFIED and (found := filters.foreign(passage, code)):
        yield "language", f"is {found}, not {code}"
    elif n >= IDENTIFIED and not text.in_script(passage, code):
        yield "language", f"is in another script than {code}"


def duplicates(rows: Sequence[Example]) -> Iterator[Fault]:
    """A row whose query and positive are those of an earlier row, or near-copies of them; an id that was there."""
    forms = [split.clusters([getattr(row, side) for row in rows]).tolist() for side in ("query", "positive")]
    seen: dict[tuple, Example] = {}
    ids: set[str] = set()
    for i, row in enumerate(rows):
        first = seen.setdefault((row.task_type, row.language, row.passage_language, forms[0][i], forms[1][i]), row)
        if first is not row:
            same = [text_key(each) for each in row[4:6]] == [text_key(each) for each in first[4:6]]
            yield "duplicate", i, "query", f"{'equals' if same else 'is near'} {first.id}"
        if row.id in ids:
            yield "duplicate", i, "id", "was there"
        ids.add(row.id)


def evaluated(rows: Sequence[Example], held: Held) -> Iterator[Fault]:
    """A text that equals one that evaluates, or is a near-copy of one in its language."""
    kept_out, texts = split.HeldOut(), defaultdict(list)
    for (_, code), own in held.items():
        kept_out.add(own, code)
    for i, row in enumerate(rows):
        for field, passage, _, code in _texts(row):
            texts[code] += [(i, field, passage)] * (len(passage) >= LEAST_COPY)
    for code, own in texts.items():
        fine = kept_out.admits([passage for *_, passage in own], code)
        yield from (("evaluated", *own[j][:2], "is an evaluation text, or nearly") for j in np.flatnonzero(~fine))


# ── what is counted, and what a model says ──


def obeyed(rows: Sequence[Example], dials: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Dial and its value → share of the texts that have as many words as it asks for."""
    found: dict[str, list[bool]] = defaultdict(list)
    for row, asked in zip(rows, dials, strict=True):
        for dial in DIALS.keys() & asked:
            words = asked_words(asked[dial])
            found[f"{dial} {asked[dial]}"] += [count_words(getattr(row, field)) in words for field in DIALS[dial]]
    return {name: float(np.mean(own)) for name, own in sorted(found.items())}


def distinct_bigrams(rows: Sequence[Example], words: int = 500) -> dict[str, float]:
    """Language → share of different pairs of neighbouring words in the first `words` of its positives.

    Low where one sentence is written again and again. Languages with fewer words are left out.
    """
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        texts[row.passage_language][row.positive] = None
    said = {code: _UNSPACED.sub(r" \g<0> ", " ".join(own).casefold()).split()[:words] for code, own in texts.items()}
    return {code: len(set(zip(own, own[1:], strict=False))) / (words - 1)
            for code, own in sorted(said.items()) if len(own) == words}


def swapped_pairs(rows: Sequence[Example]) -> list[tuple[int, int]]:
    """Twins: places of rows with one query, of which the right text of each is the wrong one of the other."""
    texts = {(row.query, row.language, row.positive, row.negative): i for i, row in enumerate(rows)}
    both = ((i, texts.get((*key[:2], key[3], key[2]), -1)) for key, i in texts.items())
    return [(i, j) for i, j in both if i < j]


def margins(rows: Sequence[Example], encode: Encode) -> np.ndarray:
    """By how much the positive is nearer to instruction and query than the negative, as cosines: [n]; NaN without one.

    The query carries the template of the instruct model, the passages are bare.
    """
    texts = [instruct(row.instruction, row.query) for row in rows] + [row.positive for row in rows]
    texts += [row.negative or row.positive for row in rows]
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # each text is read once
    queries, positives, negatives = np.split(encode(list(place))[[place[text] for text in texts]], 3)
    return np.where([bool(row.negative) for row in rows], (queries * (positives - negatives)).sum(1), np.nan)


def nearer(rows: Sequence[Example], margin: np.ndarray) -> dict[str, dict[str, float]]:
    """The share of rows whose negative is nearer than the positive, by task type (twins apart) and by language."""
    twins = {i for pair in swapped_pairs(rows) for i in pair}
    kinds, codes = defaultdict(list), defaultdict(list)
    for i, row in enumerate(rows):
        if row.negative:
            kinds["twins" if i in twins else row.task_type].append(margin[i] < 0)
            codes[row.language].append(margin[i] < 0)
    return {f"negative nearer, by {name}": {key: float(np.mean(own)) for key, own in sorted(groups.items())}
            for name, groups in (("task type", kinds), ("language", codes))}


# ── what a person says ──


def write_sheet(path: Path, rows: Sequence[Example], family: Callable[[str], str], each: int = 10) -> None:
    """A CSV for a reviewer: `each` rows of every language family, by hash, with empty columns for verdicts (y or n)."""
    table = pd.DataFrame(sorted(rows, key=lambda row: split.fraction(row.id)))
    table.insert(0, "family", [family(text.language(code) or code) for code in table["language"]])
    table[[*VERDICTS, "note"]] = ""
    few = table.groupby("family").head(each).sort_values("family", kind="stable")
    few.to_csv(path, index=False, encoding="utf-8-sig")  # the mark tells spreadsheets that it is UTF-8


def read_sheet(path: Path) -> dict[str, dict[str, float]]:
    """Tables for a report, of a sheet that was filled in: verdict → family, with its number of rows → share of yes."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        said = table.melt("family", VERDICTS, "verdict", "said")
    except (OSError, ValueError, LookupError) as error:
        raise Me5Error(f"{path} is no sheet as --sheet writes one, with commas and in UTF-8 ({error})") from None
    said = said[said["said"] != ""]
    if wrong := set(said["said"]) - {"y", "n"}:
        raise Me5Error(f"{path}: a verdict is {min(wrong)!r}: write y, n or nothing")
    return {f"reviewed, {verdict}": {f"{family} ({len(of)})": float((of["said"] == "y").mean())
                                     for family, of in own.groupby("family")}
            for verdict, own in said.groupby("verdict", sort=False)}
