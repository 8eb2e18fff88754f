"""`open_corpus(scale)` gives everything that training and evaluation read.

    corpus = open_corpus(load("tiny"))        # built once, about two minutes; then opened in milliseconds
    corpus.mixture(scale, seed=0)             # stage 1: batches of pairs, a pure function of the step
    corpus.labelled()                         # stage 2: labelled examples
    corpus.tasks()                            # held-out material that no training row equals or nearly equals

A corpus lies in `<cache>/corpus/<fingerprint>`. The fingerprint covers the pinned files, the settings of the data and
`VERSION`, so another corpus never passes for this one; it is built beside under a lock and renamed when it is whole.
What evaluates is chosen by rule, not by hand: a language takes part in the held-out bitext when it has
`evaluate.heldout_strings` held-out strings, one per near-duplicate cluster, and the first so many by hash are its pool.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from me5lib import config, io, pairs
from me5lib.data import build, cards, cldr, shards, split
from me5lib.data.hub import HubCorpus
from me5lib.data.mixture import TRANSLATIONS, Mixture
from me5lib.io import Me5Error, cache
from me5lib.pairs import Labelled

if TYPE_CHECKING:
    import pandas

# Raise it with any change that gives other rows: in build, cldr, offline, text, shards, split, pairs.
VERSION = 1
LEAST_ALIGNED = 20  # ours: a language with fewer aligned items in a bitext says nothing
LEAST_LABEL = 8  # ours: texts of a label on each side of a classification; mteb trains on eight per label
SCRIPTS = 8  # the map shows at least so many
LANGUAGES = 20  # and at least so many languages


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


def fingerprint(data: config.Data) -> str:
    """16 hexadecimal digits of all that decides on the corpus: pinned files, dials, Babel's release, `VERSION`."""
    used = {build.card_of(name) for name in (*data.sources, *data.labelled)}
    names = sorted((used | set(() if build.only_cldr(data) else build.EVALUATION)) - {"cldr"})
    files = [[file.sha256 for file in cards.load(name).files] for name in names]
    dials = [sorted(data.sources), sorted(data.labelled), data.heldout_share]
    text = json.dumps([VERSION, names, files, dials, cldr.version()])
    return hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()


def open_corpus(dial: config.Scale, progress: bool = True) -> Corpus | HubCorpus:
    """The corpus of a scale, built first where the cache does not have it (needs the packs; at smoke nothing).

    Of a scale of the hub: the shards that were built or drawn. Raises `Me5Error` for packs that are not fetched,
    sources of the hub that are neither built nor drawn, and for a full disk.
    """
    if not dial.offline:
        return HubCorpus(dial)
    mark = fingerprint(dial.data)
    folder = cache() / "corpus" / mark
    side = folder.with_name(f"{mark}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{mark}.lock")):
            if not (folder / "report.json").is_file():
                io.remove(side)
                side.mkdir()
                try:
                    build.build(dial.data, side, progress)
                    io.rename(side, folder)
                finally:
                    io.remove(side)
    except OSError as error:
        raise shards.full_disk(error, folder) from None
    return Corpus(folder, dial, mark)


class Corpus:
    """A built corpus. `fingerprint` names it; `report` holds the counts of the split."""

    def __init__(self, folder: Path, dial: config.Scale, mark: str):
        self.folder, self.scale, self.fingerprint = folder, dial, mark
        self.report: dict[str, float] = io.read_json(folder / "report.json")

    @cached_property
    def shards(self) -> dict[tuple[str, str], shards.Shard]:
        """Every stream of stage 1 by (source, language), memory-mapped."""
        folders = sorted(path.parent for path in (self.folder / "stage1").glob(f"*/*/{shards.MANIFEST}"))
        return {(folder.parent.name, folder.name): shards.open_shard(folder) for folder in folders}

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
            rows = shards.shuffled(shard.rows, seed)[: int(np.ceil(n * roots[key] / sum(roots.values())))]
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

    def tasks(self) -> list[Bitext | Retrieval | Classification]:
        """The evaluation material: `heldout`, `gsm`, `gsm-raw`, `xquad`, `fastapi`, `intents`."""
        gsm, size = self._table("gsm"), self.scale.evaluate.heldout_strings
        pools = {language: distinct(own.to_pylist())[:size]
                 for language, own in build.by_language(self._table("heldout"))}
        return [
            Bitext("heldout", {language: ([row["english"] for row in rows], [row["text"] for row in rows])
                               for language, rows in pools.items() if len(rows) == size}),
            Bitext("gsm", aligned(gsm, masked=True)),
            Bitext("gsm-raw", aligned(gsm)),
            *(Retrieval(name, _retrieval(self._table(name))) for name in ("xquad", "fastapi")),
            Classification("intents", _classification(self._table("intents"), self.scale.evaluate.intent_languages)),
        ]

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


_order = itemgetter("order", "english", "text")  # of held-out rows: by hash


def distinct(rows: Sequence[dict]) -> list[dict]:
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
    """Language → (English, text) of the items that both have, in the order of their ids; empty items are left out.

    With `masked` every number is replaced by one token on both sides, in the digits of any script; number words stay.
    """
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for row in table.to_pylist():
        if row["text"] and row["text"].strip():
            texts[row["language"]][row["id"]] = split.mask_numbers(row["text"]) if masked else row["text"]
    english = texts.pop("en")
    shared = {language: sorted(own.keys() & english.keys()) for language, own in sorted(texts.items())}
    return {language: ([english[i] for i in ids], [texts[language][i] for i in ids])
            for language, ids in shared.items() if len(ids) >= LEAST_ALIGNED}


def _retrieval(table: pa.Table) -> dict[str, RetrievalSet]:
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
    for language, own in sorted(build.by_language(table), key=lambda group: (-group[1].num_rows, group[0])):
        if len(found) == languages:
            break
        rows, texts = own.to_pylist(), own["text"].to_pylist()
        tests = split.HeldOut.choose(texts, np.ones(len(texts), dtype=bool), 0.5, largest=len(texts)).english
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
