"""Building a corpus: every source read, the split made, what is near held-out texts dropped, shards written.

    read ──► hold out ──► stage 1: shards by (source, language) ──► stage 2: labelled ──► counts and report

`corpus.py` is the door to what is built here. All texts of a language are judged at once, each distinct one once, so
the cost is that of the distinct texts (some 40 µs each, most of it trigrams), not of the rows.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from me5lib import config
from me5lib.data import cards, cldr, extract, packs, shards, split
from me5lib.data.split import HeldOut

SPECIAL = {"homeassistant-descriptions": ("homeassistant", "pairs"), "cldr-facts": ("cldr", "labelled")}  # card, table
EVALUATION = {"gsm": "parallel", "xquad": "retrieval", "fastapi": "retrieval", "intents": "labels"}  # card → table
INTERFACE = ("homeassistant", "gettext", "kolibri")  # whose strings may be held out; at smoke, CLDR's names
LEAST_ROWS = 64  # ours: a language with fewer rows in a source would repeat them in almost every batch
LABELLED_ROWS = 20_000  # ours: at most so many of one labelled source, chosen by hash; EXAMS has about as many
PHASES = ("read", "hold out", "judge", "stage 1", "stage 2")


class Material(NamedTuple):
    """What was read: tables by source and by evaluation task, and what the sources dropped."""

    train: dict[str, pa.Table]
    evaluation: dict[str, pa.Table]
    dropped: dict[str, dict[str, int]]


class Row(NamedTuple):
    """A labelled example as the tables have it; of a title and its description, one without negatives."""

    query: str
    positives: list[str]
    negatives: list[str]
    language: str


class Count(NamedTuple):
    """One line of the corpus's counts."""

    source: str
    language: str
    role: str  # "stage 1", "stage 2", "dev", "held out", "evaluation", or "dropped: <reason>"
    rows: int


def card_of(source: str) -> str:
    """The data card that a training source comes from."""
    return SPECIAL.get(source, (source, ""))[0]


def only_cldr(data: config.Data) -> bool:
    """Whether nothing is downloaded, so that CLDR stands in for the evaluation packs too."""
    return {card_of(name) for name in (*data.sources, *data.labelled)} == {"cldr"}


def build(data: config.Data, folder: Path, progress: bool = True) -> None:
    """Write the corpus of `data` into the empty `folder`. Raises `Me5Error` where a pack has not been fetched."""
    with tqdm(total=len(PHASES), desc="corpus", disable=not progress) as bar:
        def done(phase: str) -> None:
            bar.set_postfix_str(phase)
            bar.update()

        material = read(data, done)
        held, rows = hold_out(material, data)
        done("hold out")
        drawn = {name: draw(material.train[name]) for name in data.labelled}
        good = admitted(held, texts_by_language(material, data, drawn))
        done("judge")
        counts = [*_dropped(material), *_write_stage_1(material, good, folder, set(data.sources))]
        done("stage 1")
        counts += _write_labelled(material, drawn, good, folder, data)
        counts += _write_evaluation(material.evaluation, rows, folder)
        pq.write_table(pa.Table.from_pylist([count._asdict() for count in counts]), folder / "counts.parquet")
        (folder / "report.json").write_text(json.dumps(held.report, indent=1) + "\n", encoding="utf8")
        done("stage 2")


def read(data: config.Data, done: Callable[[str], None] = lambda phase: None) -> Material:
    """The tables of all sources of `data` and of the evaluation tasks."""
    names = list(dict.fromkeys((*data.sources, *data.labelled)))
    smoke = only_cldr(data)
    cards_used = list(dict.fromkeys([card_of(name) for name in names] + ([] if smoke else list(EVALUATION))))
    paths = {name: packs.archives(name) for name in cards_used if name != "cldr"}  # complains before any work
    found = {name: extract.extract(cards.load(name), files) for name, files in paths.items()}
    if "cldr" in cards_used:
        found["cldr"] = extract.Extracted(cldr.tables(cldr.SMOKE if smoke else None), {})
    train = {name: _training_table(name, found[card_of(name)].tables) for name in names}
    evaluation = _stand_ins(found["cldr"].tables) if smoke else {k: found[k].tables[v] for k, v in EVALUATION.items()}
    done("read")
    return Material(train, evaluation, {name: each.dropped for name, each in found.items()})


def _training_table(name: str, tables: dict[str, pa.Table]) -> pa.Table:
    kind = SPECIAL.get(name, ("", next(k for k in ("translations", "pairs", "labelled") if k in tables)))[1]
    table = tables[kind]
    if "english" not in table.column_names:
        return table
    key = pc.if_else(pc.equal(pc.fill_null(table["english"], ""), ""), table["key"], table["english"])
    return pa.table({"english": key, "text": table["text"], "language": table["language"]})


def _stand_ins(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The evaluation tables out of CLDR: its languages are dealt alternately to the two retrieval tasks."""
    retrieval = tables["retrieval"]
    languages = sorted(set(retrieval["language"].to_pylist()))
    halves = [retrieval.filter(pc.is_in(retrieval["language"], pa.array(languages[i::2]))) for i in (0, 1)]
    return {"gsm": tables["parallel"], "xquad": halves[0], "fastapi": halves[1], "intents": tables["labels"]}


def hold_out(material: Material, data: config.Data) -> tuple[HeldOut, pa.Table]:
    """The split, and the held-out rows of the interface sources: language, order (a hash in [0, 1)), english, text,
    cluster; distinct, in that order."""
    tables = {name: table for name, table in material.train.items() if "english" in table.column_names}
    chosen = [name for name in tables if name in INTERFACE] or list(tables)
    english = sorted(set().union(*(table["english"].unique().to_pylist() for table in tables.values())))
    offered = set().union(*(tables[name]["english"].unique().to_pylist() for name in chosen))
    usable = is_sentence if set(chosen) & set(INTERFACE) else is_name
    candidates = np.array([text in offered and usable(text) for text in english], dtype=bool)
    held = HeldOut.choose(english, candidates, data.heldout_share)
    held.report["exact-hash split: % with a near-copy in training"] = _flattery(english, candidates, data.heldout_share)
    rows = []
    for name, table in tables.items():
        table = table.filter(pc.is_in(table["english"], pa.array(sorted(held.english), pa.string())))
        _add_texts(held, table, ["text"])
        if name in chosen:
            rows += [row for row in table.to_pylist() if usable(row["english"])]
    for name, table in material.evaluation.items():
        _add_texts(held, table, {"parallel": ["text", "answer"], "retrieval": ["query", "title", "text"]}.get(
            EVALUATION[name], ["text"]))
    distinct = {(row["language"], split.fraction(english := split.mask(row["english"])), row["english"], row["text"],
                 held.english[row["english"]]) for row in rows if split.mask(row["text"]) not in (english, "")}
    return held, _columns(("language", "order", "english", "text", "cluster"), sorted(distinct))


def is_sentence(text: str) -> bool:
    """Whether an interface string says enough to be an evaluation item: two words and eight letters. Ours."""
    return len(split.mask(text).split()) >= 2 and sum(sign.isalpha() for sign in text) >= 8


def is_name(text: str) -> bool:
    """The same for CLDR's names, most of which are one word: four letters. Ours."""
    return sum(sign.isalpha() for sign in text) >= 4


def _flattery(english: Sequence[str], candidates: np.ndarray, share: float) -> float:
    """What a split by exact hash would do: per cent of its held-out candidates with a near-copy left in training."""
    out = np.array([split.fraction(split.mask(text)) < share for text in english], dtype=bool)
    asked = [text for text, one in zip(english, out & candidates, strict=True) if one]
    copied = split.near([text for text, one in zip(english, out, strict=True) if not one], asked)
    return round(100 * float(copied.mean()), 1) if asked else 0.0


def _add_texts(held: HeldOut, table: pa.Table, columns: Iterable[str]) -> None:
    for language, own in _by_language(table):
        for column in columns:
            held.add((text for text in own[column].unique().to_pylist() if text), language)


def draw(table: pa.Table) -> list[Row]:
    """At most `LABELLED_ROWS` rows of a labelled source, or of a source of pairs, chosen by hash, in its order."""
    if "positives" in table.column_names:
        rows = zip(*(table[name].to_pylist() for name in Row._fields), strict=True)
    else:
        columns = (table[name].to_pylist() for name in ("query", "passage", "language"))
        rows = ((query, [passage], [], language) for query, passage, language in zip(*columns, strict=True))
    return sorted((Row(*row) for row in rows), key=lambda row: split.fraction(f"{row[0]} {row[1]}"))[:LABELLED_ROWS]


def texts_by_language(material: Material, data: config.Data, drawn: dict[str, list[Row]]) -> dict[str, set[str]]:
    """Every text that may be trained on, by the language it is in."""
    texts: dict[str, set[str]] = defaultdict(set)
    for name in set(data.sources):
        table = material.train[name]
        for column in set(table.column_names) - {"language"}:
            for language, own in _by_language(table):
                texts["en" if column == "english" else language].update(own[column].unique().to_pylist())
    for row in (row for rows in drawn.values() for row in rows):
        texts[row.language].update((row.query, *row.positives, *row.negatives))
    return texts


def admitted(held: HeldOut, texts: dict[str, set[str]]) -> dict[str, set[str]]:
    """Of each language's texts those that may be trained on."""

    def own(language: str) -> set[str]:
        ordered = sorted(texts[language])
        return {text for text, fine in zip(ordered, held.admits(ordered, language), strict=True) if fine}

    largest_first = sorted(texts, key=lambda language: -len(texts[language]))
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # most of it is sparse products, which run beside each other
        return dict(zip(largest_first, threads.map(own, largest_first), strict=True))


def _by_language(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    for language in sorted(table["language"].unique().to_pylist()):
        yield language, table.filter(pc.equal(table["language"], language)).drop_columns("language")


def _write_stage_1(material: Material, good: dict[str, set[str]], folder: Path, names: set[str]) -> list[Count]:
    counts = []
    for name in sorted(names):
        for language, own in _by_language(material.train[name]):
            kept = np.ones(own.num_rows, dtype=bool)
            for column in own.column_names:
                fine = good["en" if column == "english" else language]
                kept &= np.fromiter((text in fine for text in own[column].to_pylist()), dtype=bool, count=own.num_rows)
            counts += _write_stream(own.filter(pa.array(kept)), own.num_rows, name, language, folder)
    return counts


def _write_stream(table: pa.Table, before: int, source: str, language: str, folder: Path) -> list[Count]:
    distinct = table.group_by(table.column_names, use_threads=False).aggregate([])
    lost = [Count(source, language, "dropped: held-out text or near-copy", before - table.num_rows),
            Count(source, language, "dropped: duplicate", table.num_rows - distinct.num_rows)]
    if distinct.num_rows < LEAST_ROWS:
        return [*lost, Count(source, language, f"dropped: fewer than {LEAST_ROWS} rows", distinct.num_rows)]
    shards.write(distinct, folder / "stage1" / source / language)
    return [*lost, Count(source, language, "stage 1", distinct.num_rows)]


def _write_labelled(material: Material, drawn: dict[str, list[Row]], good: dict[str, set[str]], folder: Path,
                    data: config.Data) -> list[Count]:
    rows, counts = [], []
    for name, given in drawn.items():
        kept = _admitted_rows(given, good)
        # A source that stage 1 has seen cannot be a fair test of stage 2.
        dev = set() if name in data.sources else _dev([row.query for row in kept], data.heldout_share)
        parts = ["dev" if row.query in dev else "stage 2" for row in kept]
        rows += [(name, part, *row) for part, row in zip(parts, kept, strict=True)]
        tally = Counter((row.language, part) for row, part in zip(kept, parts, strict=True))
        counts += [Count(name, language, part, n) for (language, part), n in sorted(tally.items())]
        lost = material.train[name].num_rows - len(given)
        counts.append(Count(name, "all", "dropped: not drawn for stage 2", lost))
        counts.append(Count(name, "all", "dropped: held-out text or near-copy in stage 2", len(given) - len(kept)))
    table = _columns(("source", "part", *Row._fields), rows)
    pq.write_table(table, folder / "labelled.parquet", compression="zstd")
    return counts


def _admitted_rows(rows: Sequence[Row], good: dict[str, set[str]]) -> list[Row]:
    """Rows whose question and right answers may be trained on, without the wrong answers that may not."""
    kept = []
    for row in rows:
        fine = good[row.language]
        if row.query in fine and row.positives and fine.issuperset(row.positives):
            kept.append(row._replace(negatives=[text for text in row.negatives if text in fine]))
    return kept


def _dev(queries: Sequence[str], share: float) -> set[str]:
    """The questions kept out of stage 2, by near-duplicate cluster, in every language alike."""
    distinct = sorted(set(queries))
    return set(HeldOut.choose(distinct, np.ones(len(distinct), dtype=bool), share).english)


def _write_evaluation(tables: dict[str, pa.Table], heldout: pa.Table, folder: Path) -> list[Count]:
    counts = []
    for name, table in {**tables, "heldout": heldout}.items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        role = "held out" if name == "heldout" else "evaluation"
        tally = Counter(table["language"].to_pylist())
        counts += [Count(name, language, role, n) for language, n in sorted(tally.items())]
    return counts


def _dropped(material: Material) -> list[Count]:
    return [Count(card, "all", f"dropped: {reason}", n)
            for card, reasons in material.dropped.items() for reason, n in reasons.items()]


def _columns(names: Sequence[str], rows: Sequence[tuple]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table(dict(zip(names, map(list, columns), strict=True)))
