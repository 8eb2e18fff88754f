"""Building a corpus: every source read, the split made, what is near held-out texts dropped, shards written.

    read ──► hold out ──► stage 1: shards by (source, language) ──► stage 2: labelled ──► counts and report

`corpus.py` opens what is built here. All texts of a language are judged at once, each distinct one once, so the cost is
that of the distinct texts (some 40 µs each, most of it trigrams), not of the rows.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from me5lib import config
from me5lib.data import cards, cldr, offline, packs, shards, split
from me5lib.data.split import HeldOut
from me5lib.io import put_json

SPECIAL = {"homeassistant-descriptions": ("homeassistant", "pairs"), "cldr-facts": ("cldr", "labelled")}  # card, table
EVALUATION = {"gsm": "parallel", "xquad": "retrieval", "fastapi": "retrieval", "intents": "labels"}  # card → table
INTERFACE = ("homeassistant", "gettext", "kolibri")  # whose strings may be held out; at smoke, CLDR's names
LEAST_ROWS = 64  # ours: a language with fewer rows in a source would repeat them in almost every batch
LABELLED_ROWS = 20_000  # ours: at most so many of one labelled source, chosen by hash; EXAMS has about as many
COUNTS = ("source", "language", "role", "rows")  # roles: stage 1, stage 2, dev, held out, evaluation, dropped: <reason>
LABELLED = ("query", "positives", "negatives", "language")
Count = tuple[str, str, str, int]


class Material(NamedTuple):
    """What was read: tables by source and by evaluation task, and what the sources dropped."""

    train: dict[str, pa.Table]
    evaluation: dict[str, pa.Table]
    dropped: dict[str, dict[str, int]]


def card_of(source: str) -> str:
    """The data card that a training source comes from."""
    return SPECIAL.get(source, (source, ""))[0]


def only_cldr(data: config.Data) -> bool:
    """Whether nothing is downloaded, so that CLDR stands in for the evaluation packs too."""
    return {card_of(name) for name in (*data.sources, *data.labelled)} == {"cldr"}


def build(data: config.Data, folder: Path, progress: bool = True) -> None:
    """Write the corpus of `data` into the empty `folder`. Raises `Me5Error` where a pack has not been fetched."""
    with tqdm(total=4, desc="corpus", disable=not progress) as bar:
        material = read(data)
        bar.update()
        held, heldout = hold_out(material, data)
        bar.update()
        drawn = {name: draw(material.train[name]) for name in data.labelled}
        good = admitted(held, material, data, drawn)
        bar.update()
        counts = [(card, "all", f"dropped: {reason}", n)
                  for card, reasons in material.dropped.items() for reason, n in reasons.items()]
        counts += _write_stage_1(material, good, folder, data)
        counts += _write_labelled(material, drawn, good, folder, data)
        counts += _write_evaluation({**material.evaluation, "heldout": heldout}, folder)
        pq.write_table(table_of(COUNTS, counts), folder / "counts.parquet")
        put_json(folder / "report.json", held.report)
        bar.update()


def read(data: config.Data) -> Material:
    """The tables of all sources of `data` and of the evaluation tasks."""
    names, smoke = list(dict.fromkeys((*data.sources, *data.labelled))), only_cldr(data)
    used = list(dict.fromkeys([card_of(name) for name in names] + ([] if smoke else list(EVALUATION))))
    paths = {name: packs.archives(name) for name in used if name != "cldr"}  # complains before any work
    found = {name: offline.extract(cards.load(name), files) for name, files in paths.items()}
    if "cldr" in used:
        found["cldr"] = offline.Extracted(cldr.tables(cldr.SMOKE if smoke else None), {})
    train = {}
    for name in names:
        own = found[card_of(name)].tables
        kinds = [SPECIAL[name][1]] if name in SPECIAL else ["translations", "pairs", "labelled"]
        table = own[next(kind for kind in kinds if kind in own)]
        if "english" in table.column_names:  # a translation without its English has its key in place of it
            english = pc.if_else(pc.equal(pc.fill_null(table["english"], ""), ""), table["key"], table["english"])
            table = pa.table({"english": english, "text": table["text"], "language": table["language"]})
        train[name] = table
    if smoke:  # CLDR's languages of retrieval are dealt alternately to the two retrieval tasks
        tables = found["cldr"].tables
        retrieval = tables["retrieval"]
        codes = sorted(set(retrieval["language"].to_pylist()))
        halves = [retrieval.filter(pc.is_in(retrieval["language"], pa.array(codes[i::2]))) for i in (0, 1)]
        evaluation = {"gsm": tables["parallel"], "xquad": halves[0], "fastapi": halves[1], "intents": tables["labels"]}
    else:
        evaluation = {name: found[name].tables[kind] for name, kind in EVALUATION.items()}
    return Material(train, evaluation, {name: each.dropped for name, each in found.items()})


def by_language(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each language, in the order of its code, without the column `language`."""
    for language in sorted(table["language"].unique().to_pylist()):
        yield language, table.filter(pc.equal(table["language"], language)).drop_columns("language")


# The split ------------------------------------------------------------------------------------------------------------


def hold_out(material: Material, data: config.Data) -> tuple[HeldOut, pa.Table]:
    """The split, and the held-out rows of the interface sources: language, order (a hash in [0, 1)), english, text,
    cluster; distinct, in that order."""
    tables = {name: table for name, table in material.train.items() if "english" in table.column_names}
    chosen = [name for name in tables if name in INTERFACE] or list(tables)
    usable = is_sentence if set(chosen) & set(INTERFACE) else is_name
    texts_of = {name: set(table["english"].unique().to_pylist()) for name, table in tables.items()}
    english = sorted(set().union(*texts_of.values()))
    offered = set().union(*(texts_of[name] for name in chosen))
    candidates = np.array([text in offered and usable(text) for text in english], dtype=bool)
    held = HeldOut.choose(english, candidates, data.heldout_share)
    held.report["exact-hash split: % with a near-copy in training"] = _flattery(english, candidates, data.heldout_share)
    rows = []
    for name, table in tables.items():
        table = table.filter(pc.is_in(table["english"], pa.array(sorted(held.english), pa.string())))
        _hold_texts(held, table, ["text"])
        rows += [row for row in table.to_pylist() if usable(row["english"])] if name in chosen else []
    texts = {"parallel": ["text", "answer"], "retrieval": ["query", "title", "text"], "labels": ["text"]}
    for name, table in material.evaluation.items():
        _hold_texts(held, table, texts[EVALUATION[name]])
    distinct = {(row["language"], split.fraction(english := split.mask(row["english"])), row["english"], row["text"],
                 held.english[row["english"]]) for row in rows if split.mask(row["text"]) not in (english, "")}
    return held, table_of(("language", "order", "english", "text", "cluster"), sorted(distinct))


def is_sentence(text: str) -> bool:
    """Whether an interface string says enough to be an evaluation item: two words and eight letters. Ours."""
    return len(split.mask(text).split()) >= 2 and sum(sign.isalpha() for sign in text) >= 8


def is_name(text: str) -> bool:
    """The same for CLDR's names, most of which are one word: four letters. Ours."""
    return sum(sign.isalpha() for sign in text) >= 4


def _flattery(english: Sequence[str], candidates: np.ndarray, share: float) -> float:
    """What a split by exact hash would do: per cent of its held-out candidates with a near-copy left in training."""
    out = np.array([split.fraction(split.mask(text)) < share for text in english], dtype=bool)
    held = [split.mask(english[i]) for i in np.flatnonzero(out & candidates)]
    copied = split.near(sorted({split.mask(english[i]) for i in np.flatnonzero(~out)}), held)
    return round(100 * float(copied.mean()), 1) if held else 0.0


def _hold_texts(held: HeldOut, table: pa.Table, columns: Iterable[str]) -> None:
    for language, own in by_language(table):
        for column in columns:
            held.add((text for text in own[column].unique().to_pylist() if text), language)


def admitted(held: HeldOut, material: Material, data: config.Data,
             drawn: dict[str, list[tuple]]) -> dict[str, set[str]]:
    """By language the texts of the sources and of the labelled rows `drawn` that may be trained on."""
    texts: dict[str, set[str]] = defaultdict(set)
    for name in data.sources:
        for language, own in by_language(material.train[name]):
            for column in own.column_names:
                texts["en" if column == "english" else language].update(own[column].unique().to_pylist())
    for query, positives, negatives, language in itertools.chain(*drawn.values()):
        texts[language].update((query, *positives, *negatives))

    def fit(language: str) -> set[str]:
        ordered = sorted(texts[language])
        return set(itertools.compress(ordered, held.admits(ordered, language)))

    largest_first = sorted(texts, key=lambda language: -len(texts[language]))
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # most of it is sparse products, which run beside each other
        return dict(zip(largest_first, threads.map(fit, largest_first), strict=True))


# Writing --------------------------------------------------------------------------------------------------------------


def _write_stage_1(material: Material, good: dict[str, set[str]], folder: Path, data: config.Data) -> list[Count]:
    counts = []
    for name in sorted(set(data.sources)):
        for language, own in by_language(material.train[name]):
            kept = np.ones(own.num_rows, dtype=bool)
            for column in own.column_names:
                fine = good["en" if column == "english" else language]
                kept &= np.fromiter((text in fine for text in own[column].to_pylist()), dtype=bool, count=own.num_rows)
            clean = own.filter(pa.array(kept))
            distinct = clean.group_by(clean.column_names, use_threads=False).aggregate([])
            enough = distinct.num_rows >= LEAST_ROWS
            if enough:
                shards.write(distinct, folder / "stage1" / name / language)
            roles = {"dropped: held-out text or near-copy": own.num_rows - clean.num_rows,
                     "dropped: duplicate": clean.num_rows - distinct.num_rows,
                     "stage 1" if enough else f"dropped: fewer than {LEAST_ROWS} rows": distinct.num_rows}
            counts += [(name, language, role, n) for role, n in roles.items()]
    return counts


def draw(table: pa.Table) -> list[tuple]:
    """At most `LABELLED_ROWS` rows of a labelled source, or of a source of pairs (no negatives), chosen by hash, in its
    order: as `LABELLED`."""
    if "positives" in table.column_names:
        rows = zip(*(table[name].to_pylist() for name in LABELLED), strict=True)
    else:
        rows = ((row["query"], [row["passage"]], [], row["language"]) for row in table.to_pylist())
    return sorted(rows, key=lambda row: split.fraction(f"{row[0]} {row[1]}"))[:LABELLED_ROWS]


def _write_labelled(material: Material, drawn: dict[str, list[tuple]], good: dict[str, set[str]], folder: Path,
                    data: config.Data) -> list[Count]:
    """Rows whose question and right answers may be trained on, without the wrong answers that may not."""
    rows, counts = [], []
    for name, own in drawn.items():
        fine = [(query, positives, [text for text in negatives if text in good[language]], language)
                for query, positives, negatives, language in own
                if positives and good[language].issuperset((query, *positives))]
        # Dev questions: whole near-duplicate clusters, alike in every language. A source that stage 1 has seen gives
        # none: it cannot be a fair test of stage 2.
        queries = sorted({query for query, *_ in fine}) if name not in data.sources else []
        dev = HeldOut.choose(queries, np.ones(len(queries), dtype=bool), data.heldout_share).english
        parted = [(name, "dev" if row[0] in dev else "stage 2", *row) for row in fine]
        tally = Counter((language, part) for _, part, *_, language in parted)
        counts += [(name, language, part, n) for (language, part), n in sorted(tally.items())]
        rows += parted
        lost = material.train[name].num_rows - len(own)
        counts += [(name, "all", "dropped: not drawn for stage 2", lost),
                   (name, "all", "dropped: held-out text or near-copy in stage 2", len(own) - len(fine))]
    pq.write_table(table_of(("source", "part", *LABELLED), rows), folder / "labelled.parquet", compression="zstd")
    return counts


def _write_evaluation(tables: dict[str, pa.Table], folder: Path) -> list[Count]:
    counts = []
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        tally = Counter(table["language"].to_pylist())
        role = "held out" if name == "heldout" else "evaluation"
        counts += [(name, language, role, n) for language, n in sorted(tally.items())]
    return counts


def table_of(names: Sequence[str], rows: Sequence[tuple]) -> pa.Table:
    """The rows as a table of these columns."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table(dict(zip(names, map(list, columns), strict=True)))
