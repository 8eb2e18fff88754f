"""The corpus of a scale: what training and evaluation read, without a training text that is near one held out.

    corpus = open_corpus(load("tiny"))        # built once, about two minutes; then opened in milliseconds
    corpus.mixture(scale, seed=0)             # stage 1: batches of pairs, a pure function of the step
    corpus.labelled()                         # stage 2: labelled examples
    corpus.task("gsm")                        # what evaluates, one of `task_names`

A corpus lies in `<cache>/corpus/<fingerprint>`, built beside under a lock and renamed when it is whole. `split` says
what a near-copy is, and which clusters of them are held out. A language takes part in the held-out bitext when it has
`evaluate.heldout_strings` held-out strings, one per cluster; the first so many by hash are its pool.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import babel
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from me5lib import config, io, pairs
from me5lib.data import cards, cldr, offline, shards, split
from me5lib.data.hub import HubCorpus
from me5lib.data.mixture import TRANSLATIONS, Mixture
from me5lib.data.offline import arrow_table
from me5lib.data.split import HeldOut
from me5lib.io import Me5Error, cache
from me5lib.pairs import Labelled

if TYPE_CHECKING:
    import pandas

# Raise it with any change that gives other rows: here, in cldr, offline, text, shards, split, pairs.
VERSION = 2
LEAST_ALIGNED = 20  # ours: a language with fewer aligned items in a bitext says nothing
LEAST_LABEL = 8  # ours: texts of a label on each side of a classification; mteb trains on eight per label
SCRIPTS = 8  # the map shows at least so many
LANGUAGES = 20  # and at least so many languages
SPECIAL = {"homeassistant-descriptions": ("homeassistant", "pairs"), "cldr-facts": ("cldr", "labelled")}  # card, table
EVALUATION = {"gsm": "parallel", "xquad": "retrieval", "fastapi": "retrieval", "intents": "labels"}  # card → table
TEXTS = {"parallel": ["text", "answer"], "retrieval": ["query", "title", "text"], "labels": ["text"]}  # of a table
INTERFACE = ("homeassistant", "gettext", "kolibri")  # whose strings may be held out; at smoke, CLDR's names
LEAST_SENTENCE, LEAST_NAME = (2, 8), (1, 4)  # ours: words and letters of a held-out interface string, of a name of CLDR
LEAST_ROWS = 64  # ours: a language with fewer rows in a source would repeat them in almost every batch
LABELLED_ROWS = 20_000  # ours: at most so many of one labelled source, chosen by hash; EXAMS has about as many
BAR = "{l_bar}{bar}| [{elapsed}<{remaining}]"
COUNTS = ("source", "language", "role", "rows")  # roles: stage 1, stage 2, dev, held out, evaluation, dropped: <reason>


class Bitext(NamedTuple):
    """Aligned texts: language → (English, text). Names: `heldout`, `gsm` (numbers masked), `gsm-raw`."""

    name: str
    sets: dict[str, tuple[list[str], list[str]]]


class RetrievalSet(NamedTuple):
    """Queries and documents of one language; which documents are right for a query."""

    queries: dict[str, str]
    documents: dict[str, tuple[str, str]]  # title, text
    relevant: dict[str, set[str]]


class Retrieval(NamedTuple):
    """A retrieval task by language. Names: `xquad`, `fastapi`."""

    name: str
    sets: dict[str, RetrievalSet]


class Classification(NamedTuple):
    """Language → train texts, train labels, test texts, test labels. Name: `intents`."""

    name: str
    sets: dict[str, tuple[list[str], list[str], list[str], list[str]]]


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


def corpus_fingerprint(data: config.Data) -> str:
    """16 hexadecimal digits of all that decides on the corpus: pinned files, dials, Babel's release, `VERSION`."""
    used = {card_of(name) for name in (*data.sources, *data.labelled)}
    names = sorted((used | set(() if only_cldr(data) else EVALUATION)) - {"cldr"})
    files = [[file.sha256 for file in cards.load_card(name).files] for name in names]
    dials = [sorted(data.sources), sorted(data.labelled), data.heldout_share]
    text = json.dumps([VERSION, names, files, dials, babel.__version__])
    return hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()


def open_corpus(dial: config.Scale, progress: bool = True) -> Corpus | HubCorpus:
    """The corpus of a scale, built first where the cache does not have it (needs the packs; at smoke nothing).

    Of a scale of the hub: the shards that were built or drawn. Raises `Me5Error` for packs that are not fetched,
    sources of the hub that are neither built nor drawn, and for a full disk.
    """
    if not dial.offline:
        return HubCorpus(dial)
    mark = corpus_fingerprint(dial.data)
    folder = cache() / "corpus" / mark
    with io.locked(folder.with_name(f"{mark}.lock"), wait=True):
        if not (folder / "report.json").is_file():
            with io.beside(folder) as side:
                write_corpus(dial.data, side, progress)
            io.give_back()  # most of three gigabytes
    return Corpus(folder, dial, mark)


class Corpus(cards.CardTexts):
    """A built corpus. `fingerprint` names it; `report` holds the counts of the split."""

    task_names = ("heldout", "gsm", "gsm-raw", "xquad", "fastapi", "intents")

    def __init__(self, folder: Path, dial: config.Scale, mark: str):
        self.folder, self.scale, self.fingerprint = folder, dial, mark
        self.report: dict[str, float] = io.read_json(folder / "report.json")

    @cached_property
    def shards(self) -> dict[tuple[str, str], shards.Shard]:
        """Every stream of stage 1 by (source, language), memory-mapped."""
        folders = sorted(path.parent for path in (self.folder / "stage1").glob(f"*/*/{shards.MANIFEST}"))
        return {(folder.parent.name, folder.name): shards.Shard(folder) for folder in folders}

    def mixture(self, dial: config.Scale, seed: int, stage: config.Stage | None = None) -> Mixture:
        """The pairs of stage 1, laid out over the steps of `stage` (None: `dial.train`); sources weighted by rows."""
        stage = stage or dial.train
        return Mixture(self.shards, steps=stage.steps, batch=stage.batch, seed=seed,
                       temperature=dial.data.language_temperature, homogeneous=dial.data.homogeneous)

    def labelled(self, part: str = "stage 2") -> list[Labelled]:
        """The labelled examples of stage 2; `part="dev"`: those kept out of it, by cluster of the question, to test it.

        Examples without negatives (title and description) have theirs mined.
        """
        return [Labelled(row["query"], tuple(row["positives"]), tuple(row["negatives"]), row["source"], row["language"])
                for row in self._table("labelled").to_pylist() if row["part"] == part]

    def sample_texts(self, n: int, seed: int = 0) -> list[str]:
        """About `n` distinct training texts (never more) to train a vocabulary on.

        Streams are drawn from in proportion to the square root of their rows. Of a translation's English side, which
        every language repeats, one in eight is taken.
        """
        roots = {key: shard.rows**0.5 for key, shard in self.shards.items()}
        found: dict[str, None] = {}
        for key, shard in self.shards.items():
            rows = shards.shuffled_rows(shard.rows, seed)[: int(np.ceil(n * roots[key] / sum(roots.values())))]
            translated = tuple(shard.columns) == TRANSLATIONS
            for place, (first, second) in enumerate(shard.take(np.sort(rows))):
                found[second if place % (8 if translated else 2) else first] = None
        order = sorted(found, key=split.fraction)  # cut evenly, not from the last sources
        return order[:n]

    def memory(self, language: str) -> tuple[list[str], list[str]]:
        """All training translations of a language, for the translation memory: (English, text), distinct, aligned.

        Empty where it has none.
        """
        rows = dict.fromkeys(row for (_, own), shard in self.shards.items() if own == language
                             and tuple(shard.columns) == TRANSLATIONS for row in shard.take(np.arange(shard.rows)))
        return [english for english, _ in rows], [text for _, text in rows]

    def training_texts(self, language: str) -> list[str]:
        """Every text of a language that a stage trains on, once; English: of all languages' translations, too."""
        texts = (column for (_, own), shard in self.shards.items() if language in (own, "en")
                 for name, column in zip(shard.columns, shard.read(np.arange(shard.rows)), strict=True)
                 if language == ("en" if name == "english" else own))
        rows = ((row.query, *row.positives, *row.negatives) for row in self.labelled() if row.language == language)
        return list(dict.fromkeys(itertools.chain(*texts, *rows)))

    def task(self, name: str) -> Bitext | Retrieval | Classification:
        """The evaluation material of that name, one of `task_names`."""
        if name not in self.task_names:
            raise Me5Error(f"unknown task {name!r}: choose one of {', '.join(self.task_names)}")
        table, settings = self._table(name.removesuffix("-raw")), self.scale.evaluate
        if name == "heldout":
            pools = {language: first_of_clusters(own.to_pylist())[: settings.heldout_strings]
                     for language, own in language_tables(table)}
            return Bitext(name, {language: ([row["english"] for row in rows], [row["text"] for row in rows])
                                 for language, rows in pools.items() if len(rows) == settings.heldout_strings})
        if name == "intents":
            return Classification(name, _classification(table, settings.intent_languages))
        if name in ("gsm", "gsm-raw"):
            return Bitext(name, aligned(table, masked=name == "gsm"))
        return Retrieval(name, _retrieval_sets(table))

    def parallel(self, n: int) -> dict[str, list[str]]:
        """`common_meanings` of the held-out translations, for the map."""
        return common_meanings(self._table("heldout").to_pylist(), n)

    def heldout(self, language: str) -> list[str]:
        """The English texts of every held-out translation of a language: what no training pair of it may hold."""
        return [row["english"] for row in self._table("heldout").to_pylist() if row["language"] == language]

    def counts(self) -> pandas.DataFrame:
        """Rows by source, language and role; what was dropped, by reason. Columns: source, language, role, rows."""
        return self._table("counts").to_pandas()

    def _table(self, name: str) -> pa.Table:
        try:
            return pq.read_table(self.folder / f"{name}.parquet")
        except (OSError, pa.ArrowInvalid) as error:
            raise shards.damaged(self.folder, " ".join(str(error).split())) from None


def evaluation_texts(corpus: Corpus | HubCorpus) -> dict[tuple[str, str], list[str]]:
    """(task, language) → every text that the corpus's tasks evaluate on, titles and documents among them, once.

    Of `intents`, the texts that a classifier is tested on: those it is trained on are evaluation data too.
    """
    texts: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name in corpus.task_names:
        for language, of in corpus.task(name).sets.items():
            if hasattr(of, "queries"):
                evaluated = [*of.queries.values(), *(text for _, text in of.documents.values())]
            else:
                evaluated = of[1] if len(of) == 2 else [*of[0], *of[2]]
            texts[name, language] |= dict.fromkeys(evaluated)
            if len(of) == 2:
                texts[name, "en"] |= dict.fromkeys(of[0])
    return {key: list(held) for key, held in texts.items()}


_order = itemgetter("order", "english", "text")  # of held-out rows: by hash


def first_of_clusters(rows: Sequence[dict]) -> list[dict]:
    """The first row of each cluster, English text and translation (masked), in the order of the rows: held-out items
    that can be told apart, and are no near-copies of one another in English."""
    seen: set = set()
    found = []
    for row in sorted(rows, key=_order):
        marks = {row["cluster"], ("text", split.mask(row["text"]))}  # an equal English text has an equal cluster
        if not marks & seen:
            found.append(row)
            seen |= marks
    return found


def aligned(table: pa.Table, masked: bool = False) -> dict[str, tuple[list[str], list[str]]]:
    """Language → (English, text) of the items that both have, in the order of their ids.

    With `masked` every number is replaced by one token on both sides, in the digits of any script; number words stay.
    """
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in table.to_pylist():
        texts[row["language"]][row["id"]] = split.mask_numbers(row["text"]) if masked else row["text"]
    english = texts.pop("en")
    shared = {language: sorted(own.keys() & english.keys()) for language, own in sorted(texts.items())}
    return {language: ([english[i] for i in ids], [texts[language][i] for i in ids])
            for language, ids in shared.items() if len(ids) >= LEAST_ALIGNED}


def _retrieval_sets(table: pa.Table) -> dict[str, RetrievalSet]:
    found: dict[str, RetrievalSet] = defaultdict(lambda: RetrievalSet({}, {}, {}))
    for row in table.to_pylist():
        own = found[row["language"]]
        own.queries[row["query_id"]] = row["query"]
        own.documents[row["document_id"]] = row["title"], row["text"]
        own.relevant.setdefault(row["query_id"], set()).add(row["document_id"])
    return dict(sorted(found.items()))


def _classification(table: pa.Table, languages: int) -> dict[str, tuple[list[str], list[str], list[str], list[str]]]:
    """The `languages` with most texts that have two labels or more after the split (half of the clusters test)."""
    found: dict[str, tuple] = {}
    for language, own in sorted(language_tables(table), key=lambda group: (-group[1].num_rows, group[0])):
        if len(found) == languages:
            break
        rows, texts = own.to_pylist(), own["text"].to_pylist()
        tests = HeldOut.choose(texts, np.ones(len(texts), dtype=bool), 0.5, largest=len(texts)).english
        halves = [[row for row in rows if (row["text"] in tests) == test] for test in (False, True)]
        tallies = [Counter(row["label"] for row in half) for half in halves]
        labels = {label for label in tallies[0] if min(tally[label] for tally in tallies) >= LEAST_LABEL}
        if len(labels) > 1:
            kept = [[row for row in half if row["label"] in labels] for half in halves]
            found[language] = tuple([row[column] for row in half] for half in kept for column in ("text", "label"))
    return dict(sorted(found.items()))


def common_meanings(rows: Sequence[dict], n: int) -> dict[str, list[str]]:
    """`n` English texts and their translations in as many languages as share so many, English under `en`.

    Languages are given up one by one: the one whose loss leaves most meanings in common, but never the last of a script
    while there are only `SCRIPTS`. Raises `Me5Error` when fewer than `LANGUAGES` would be left.
    """
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in sorted(rows, key=_order):
        texts[row["language"]].setdefault(row["english"], row["text"])
    cluster = {row["english"]: row["cluster"] for row in rows}
    meanings = sorted(cluster, key=lambda text: (split.fraction(split.mask(text)), text))
    left = sorted(texts)
    script = {language: pairs.script(texts[language].values()) for language in left}
    has = np.array([[text in texts[language] for text in meanings] for language in left], dtype=bool)
    while True:
        first: dict[int, str] = {}  # of each cluster the first meaning that all languages have
        for i in np.flatnonzero(has.all(axis=0)):
            first.setdefault(cluster[meanings[i]], meanings[i])
        chosen = list(first.values())[:n]
        if len(chosen) == n:
            return {"en": chosen, **{language: [texts[language][text] for text in chosen] for language in left}}
        scripts = Counter(script[language] for language in left)
        free = [i for i, own in enumerate(left) if scripts[script[own]] > 1 or len(scripts) > SCRIPTS]
        if not free or len(left) < LANGUAGES:
            raise Me5Error(f"{len(left)} languages share only {len(chosen)} held-out meanings: ask for fewer than {n}")
        missing = (~has).sum(axis=0)
        gain = [(int((missing[~has[i]] == 1).sum()), int((~has[i]).sum()), -i) for i in free]
        worst = -max(gain)[2]
        del left[worst]
        has = np.delete(has, worst, axis=0)


# Building: sources read, the split made, what is near held-out texts dropped, shards written --------------------------


def write_corpus(data: config.Data, folder: Path, progress: bool = True) -> None:
    """Write the corpus of `data` into the empty `folder`. Raises `Me5Error` where a pack has not been fetched."""
    bar = tqdm(total=100, desc="corpus", disable=not progress, bar_format=BAR)  # shares of the time (ours)
    with bar, io.ticking(bar.refresh):
        material = read_sources(data, lambda share: bar.update(45 * share))
        held, heldout = hold_out(material, data)
        bar.update(15)
        drawn = {name: choose_labelled(material.train[name]) for name in data.labelled}
        good = admitted(held, material, data, drawn, lambda share: bar.update(35 * share))
        counts = [(card, "all", f"dropped: {reason}", n)
                  for card, reasons in material.dropped.items() for reason, n in reasons.items()]
        counts += _write_stage_1(material, good, folder, data)
        counts += _write_labelled(material, drawn, good, folder, data)
        for name, table in {**material.evaluation, "heldout": heldout}.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
            tally = Counter(table["language"].to_pylist())
            role = "held out" if name == "heldout" else "evaluation"
            counts += [(name, language, role, n) for language, n in sorted(tally.items())]
        pq.write_table(arrow_table(COUNTS, counts), folder / "counts.parquet")
        io.put_json(folder / "report.json", held.report)
        bar.update(100 - bar.n)


def read_sources(data: config.Data, advance: Callable[[float], object]) -> Material:
    """The tables of all sources of `data` and of the evaluation tasks; `advance` is told each share of them read."""
    names, smoke = list(dict.fromkeys((*data.sources, *data.labelled))), only_cldr(data)
    used = list(dict.fromkeys([card_of(name) for name in names] + ([] if smoke else list(EVALUATION))))
    readers = {name: offline.readers(name) for name in used if name != "cldr"}  # complains before any work
    found = dict.fromkeys(readers)  # in this order, whichever is read first
    for name, extracted in offline.extract_all(readers):
        found[name] = extracted
        advance(1 / len(used))
    if "cldr" in used:
        found["cldr"] = offline.Extracted(cldr.cldr_tables(cldr.SMOKE if smoke else None), {})
        advance(1 / len(used))
    train = {}
    for name in names:
        own = found[card_of(name)].tables
        kinds = [SPECIAL[name][1]] if name in SPECIAL else ["translations", "pairs", "labelled"]
        train[name] = own[next(kind for kind in kinds if kind in own)]
    if smoke:  # CLDR's languages of retrieval are dealt alternately to the two retrieval tasks
        tables = found["cldr"].tables
        retrieval = tables["retrieval"]
        halves = [retrieval.filter(pc.is_in(retrieval["language"], pa.array(cldr.RETRIEVAL[i::2]))) for i in (0, 1)]
        evaluation = {"gsm": tables["parallel"], "xquad": halves[0], "fastapi": halves[1], "intents": tables["labels"]}
    else:
        evaluation = {name: found[name].tables[kind] for name, kind in EVALUATION.items()}
    return Material(train, evaluation, {name: each.dropped for name, each in found.items()})


def language_tables(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each language, in the order of its code, without the column `language`."""
    for language in sorted(table["language"].unique().to_pylist()):
        yield language, table.filter(pc.equal(table["language"], language)).drop_columns("language")


# The split ------------------------------------------------------------------------------------------------------------


def hold_out(material: Material, data: config.Data) -> tuple[HeldOut, pa.Table]:
    """The split, and the held-out rows of the interface sources: language, order (a hash in [0, 1)), english, text,
    cluster; distinct, in that order."""
    tables = {name: table for name, table in material.train.items() if "english" in table.column_names}
    chosen = [name for name in tables if name in INTERFACE] or list(tables)
    words, letters = LEAST_SENTENCE if set(chosen) & set(INTERFACE) else LEAST_NAME
    texts_of = {name: set(table["english"].unique().to_pylist()) for name, table in tables.items()}
    english = sorted(set().union(*texts_of.values()))
    offered = set().union(*(texts_of[name] for name in chosen))
    usable = {text for text in offered if len(split.mask(text).split()) >= words
              and sum(sign.isalpha() for sign in text) >= letters}
    candidates = np.array([text in usable for text in english], dtype=bool)
    held = HeldOut.choose(english, candidates, data.heldout_share)
    # What a split by exact hash would do: its held-out candidates with a near-copy left in training.
    forms = [split.mask(text) for text in english]
    out = np.array([split.fraction(form) < data.heldout_share for form in forms], dtype=bool)
    tested = list(itertools.compress(forms, out & candidates))
    copied = split.near_copies(sorted(set(itertools.compress(forms, ~out))), tested)[0] > 0
    held.report["exact-hash split: % with a near-copy in training"] = round(100 * copied.mean(), 1) if tested else 0.0
    rows, kept_out = [], [(table, TEXTS[EVALUATION[name]]) for name, table in material.evaluation.items()]
    for name, table in tables.items():
        table = table.filter(pc.is_in(table["english"], pa.array(sorted(held.english), pa.string())))
        kept_out.append((table, ["text"]))
        rows += [row for row in table.to_pylist() if row["english"] in usable] if name in chosen else []
    for table, columns in kept_out:
        for language, own in language_tables(table):
            for column in columns:
                held.add(filter(None, own[column].unique().to_pylist()), language)
    items = {(row["language"], split.fraction(english := split.mask(row["english"])), row["english"], row["text"],
             held.english[row["english"]]) for row in rows if split.mask(row["text"]) not in (english, "")}
    return held, arrow_table(("language", "order", "english", "text", "cluster"), sorted(items))


def admitted(held: HeldOut, material: Material, data: config.Data, drawn: dict[str, list[tuple]],
             advance: Callable[[float], object]) -> dict[str, set]:
    """By language the texts of the sources and of the labelled rows `drawn` that may be trained on; `advance` is told
    each share of the texts that was looked at."""
    texts: dict[str, set[str]] = defaultdict(set)
    for name in data.sources:
        for language, own in language_tables(material.train[name]):
            for column in own.column_names:
                texts["en" if column == "english" else language].update(own[column].unique().to_pylist())
    for query, positives, negatives, language in itertools.chain(*drawn.values()):
        texts[language].update((query, *positives, *negatives))

    def fit(language: str) -> set[str]:
        ordered = sorted(texts[language])
        return set(itertools.compress(ordered, held.admits(ordered, language)))

    largest_first = sorted(texts, key=lambda language: -len(texts[language]))
    total, good = sum(map(len, texts.values())), {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # most of it is sparse products, which run beside each other
        for language, fine in zip(largest_first, threads.map(fit, largest_first), strict=True):
            good[language] = fine
            advance(len(texts.pop(language)) / total)
    return good


# Writing --------------------------------------------------------------------------------------------------------------


def _write_stage_1(material: Material, good: dict[str, set[str]], folder: Path, data: config.Data) -> list[tuple]:
    counts = []
    for name in sorted(set(data.sources)):
        for language, own in language_tables(material.train[name]):
            kept = np.ones(own.num_rows, dtype=bool)
            for column in own.column_names:
                fine = good["en" if column == "english" else language]
                kept &= np.fromiter((text in fine for text in own[column].to_pylist()), dtype=bool, count=own.num_rows)
            clean = own.filter(pa.array(kept))
            once = clean.group_by(clean.column_names, use_threads=False).aggregate([])
            enough = once.num_rows >= LEAST_ROWS
            if enough:
                shards.write_shard(once, folder / "stage1" / name / language)
            roles = {"dropped: held-out text or near-copy": own.num_rows - clean.num_rows,
                     "dropped: duplicate": clean.num_rows - once.num_rows,
                     "stage 1" if enough else f"dropped: fewer than {LEAST_ROWS} rows": once.num_rows}
            counts += [(name, language, role, n) for role, n in roles.items()]
    return counts


def choose_labelled(table: pa.Table) -> list[tuple]:
    """At most `LABELLED_ROWS` rows of a labelled source, or of a source of pairs (no negatives), chosen by hash, in its
    order: the columns are those of `offline.COLUMNS["labelled"]`."""
    if "positives" in table.column_names:
        rows = zip(*(table[name].to_pylist() for name in offline.COLUMNS["labelled"]), strict=True)
    else:
        rows = ((row["query"], [row["passage"]], [], row["language"]) for row in table.to_pylist())
    return sorted(rows, key=lambda row: split.fraction(f"{row[0]} {row[1]}"))[:LABELLED_ROWS]


def _write_labelled(material: Material, drawn: dict[str, list[tuple]], good: dict[str, set[str]], folder: Path,
                    data: config.Data) -> list[tuple]:
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
    table = arrow_table(("source", "part", *offline.COLUMNS["labelled"]), rows)
    pq.write_table(table, folder / "labelled.parquet", compression="zstd")
    return counts


