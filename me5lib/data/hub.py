"""The hub's rows: which files a card has at a commit, their rows, what the card's builder makes of them; what is there.

    files, commits, absent = list_files(card)           # from listings alone
    plan_drawing(card, 100_000)                         # which of them a drawing of 100,000 pairs reads
    make_items(card, file, read_rows(folder, file.path, columns), BUILDERS, Ledger())   # pairs, or labelled examples
    HubCorpus(config.load("workshop"))                  # what a scale trains on; touches no network

One path for `me5 fetch` (a drawing: so many pairs of a card) and `me5 mixture build` (all of it): `pipeline` runs it.
Folders are those of fsspec: `hf://datasets/<repository>@<commit>` (honours `HF_ENDPOINT`), or `<mirror>/<repository>`.
Files are read as Parquet or JSON lines: no script of a repository is run. Cost: about 50 µs a row beside the filters;
memory of one Parquet batch or one line.

A drawing apportions its pairs to streams (one entry of the card in one language) by bytes ** temperature: lay its
shards out with `Mixture(temperature=1)`, or the law of languages is applied twice. A stream reads the heads of at least
`FILES` files, evenly spaced over all it has; a later one makes up for what an earlier one lacks, at last those in
reserve. Head rows of a sorted file are alike: the spread softens that only.
"""

from __future__ import annotations

import hashlib
import io as streams
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from me5lib import io
from me5lib.config import Scale, Stage
from me5lib.data import cards, filters, shards
from me5lib.data.builders import NO_LANGUAGE, Builder, Drop, Row, RowContext
from me5lib.data.mixture import Mixture, largest_remainder
from me5lib.data.text import language as language_of
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair, text_key

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2  # of drawings; raise it with any change that gives other rows
ROW = 10_000_000  # bytes of one row (ours): beyond it is no passage but a dump
LINE = 8 * ROW  # bytes of one line of JSON, where signs may be escaped: beyond it is not parsed at all
TOO_LARGE = f"row over {ROW // 1_000_000} MB"
BATCH = 256  # rows of Parquet at once
FILES, ROWS_A_FILE = 4, 50_000  # a drawing reads at least so many files of a stream, one more for every so many rows
PAUSES = (2.0, 4.0)  # seconds after which a question is asked again
DEV_SHARE = 1 / 1_000  # ours: of labelled examples, see `is_held_out`; some 1,600 of the paper's
STARVED = 0.001  # ours: a language with less gets under 33 rows of an average batch of 32,768
TITLES = {1: "stage 1 (Table 1)", 2: "stage 2 (Table 2)", None: "instruct"}  # by the paper's table of a card


class HubFile(NamedTuple):
    """One file of a card. `due`: pairs that its stream should have after it; None: all of its rows are read."""

    entry: int  # index into `Card.hub`
    path: str  # in the repository
    language: str  # "": the row tells it
    size: int = 0  # bytes
    stamp: str = ""  # changes when the file does
    due: int | None = None


class DrawingPlan(NamedTuple):
    """What a drawing reads: files by stream; by entry of the card its commit, and the bytes that it has in all."""

    streams: list[list[HubFile]]
    commits: list[str]
    bytes: list[int]


class Broken(Exception):
    """A file that cannot be read (on): cut short, damaged, or of another form than its name says."""


def unreachable(why: object) -> Me5Error:
    """The hub does not answer, or `HF_HUB_OFFLINE` forbids to ask: why, and what to do."""
    return Me5Error(f"the hub cannot be reached ({' '.join(str(why).split())[:200]}): run `me5 fetch --for workshop` "
                    "where there is a network, or `me5 mixture build --from DIR` on a copy of the files")


class Ledger:
    """Counts by what became of them, reason and language: rows of files, and items, which builders make of them.

        read = unfit + built (rows)          made = dropped + kept (items: pairs, labelled examples, or why not)
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.first: dict[str, str] = {}  # reason → where it was first met
        self.broken: list[dict[str, str]] = []  # files

    def count(self, what: str, language: str = "", reason: str = "", where: str = "") -> None:
        """Count one row or item; what is no language's code counts under `und`."""
        self.counts[what, reason, language if known_language(language) else "und"] += 1
        if where:
            self.first.setdefault(reason, where)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        counts = sorted([*key, n] for key, n in self.counts.items())
        io.put_json(path, {"counts": counts, "first": self.first, "broken": self.broken}, sort_keys=True)


@cache
def known_language(code: str) -> bool:
    """Whether `code` is a language's, in the project's spelling or ISO 639's."""
    return code not in NO_LANGUAGE and language_of(code) is not None


def is_held_out(query: str) -> bool:
    """Whether a labelled example is kept out of stage 2, to judge its teacher by: for a thousandth of hashes."""
    return text_key(query) < int(DEV_SHARE * 2**64) - 2**63


def refuse_nonsense(card: cards.Card, known: Mapping[str, Builder]) -> None:
    """Before any work: raise `Me5Error` for filters, builders or languages of the card that do not exist."""
    if not card.hub:
        raise Me5Error(f"card {card.name} is no hub source: `me5 packs` fetches the offline ones")
    filters.sift(card.name, card.filters)
    for entry in card.hub:
        if entry.builder not in known:
            raise Me5Error(f"data card {card.name}.md: no builder {entry.builder!r}: there are {', '.join(known)}")
        for code in (*entry.languages, *filter(None, [entry.language])):
            if not known_language(code):
                raise Me5Error(f"data card {card.name}.md: {entry.repository}: unknown language code {code!r}")


# ── files ──


def folder(entry: cards.Hub, commit: str, mirror: Path | None = None) -> str:
    """Where an entry's files lie, for fsspec: in `mirror/<repository>`, else on the hub."""
    return f"hf://datasets/{entry.repository}@{quote(commit, safe='')}" if mirror is None else str(
        mirror / entry.repository)


def list_files(card: cards.Card, mirror: Path | None = None) -> tuple[list[HubFile], list[str], list[str]]:
    """All files of a card in order; by entry the commit (with a mirror: what the card says); and globs without files.

    Raises `Me5Error` where an entry has no file at all, one where the hub is out of reach too.
    """
    from huggingface_hub import HfApi

    files, commits, absent = [], [], []
    for number, entry in enumerate(card.hub):
        about = partial(HfApi().dataset_info, entry.repository, revision=entry.revision)
        commit = entry.revision or "main" if mirror else ask_hub(f"card {card.name}", entry.repository, about).sha
        commits.append(commit)
        here, before = folder(entry, commit, mirror), len(files)
        listing = _listing(card, entry, here)
        for code, theirs in (entry.languages or {entry.language or "": ""}).items():
            pattern = entry.files.replace("{language}", theirs)
            matches = re.compile(glob_translate(pattern)).match
            own = [HubFile(number, path, code, *about) for path, about in listing.items() if matches(path)]
            files += own
            absent += [] if own else [f"{entry.repository}/{pattern}"]
        if len(files) == before:
            raise Me5Error(f"card {card.name}: no files {entry.files} in {here}: "
                           + ("the copy must lie in DIR/<repository>" if mirror else "mend the card"))
    return files, commits, absent


def _listing(card: cards.Card, entry: cards.Hub, here: str) -> dict[str, tuple[int, str]]:
    """Path in the repository → (bytes, stamp) of the files below the fixed part of the entry's glob, sorted."""
    system, root = url_to_fs(here)
    find = partial(system.find, f"{root}/{re.split(r'[*?{]', entry.files)[0].rpartition('/')[0]}".rstrip("/"),
                   detail=True)
    try:
        found = ask_hub(f"card {card.name}", entry.repository, find) if here.startswith("hf://") else find()
    except FileNotFoundError:  # no such folder
        return {}
    return {path.removeprefix(root.rstrip("/") + "/"): (about["size"], str(about.get("blob_id") or about.get("mtime")))
            for path, about in sorted(found.items()) if about["type"] == "file"}


def ask_hub(who: str, repository: str, question: Callable[[], Any]) -> Any:
    """The hub's answer to a call of its client, asked again where it is busy. Raises `Me5Error` that names `who`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if constants.is_offline_mode():
        raise unreachable("HF_HUB_OFFLINE is set")
    for pause in (*PAUSES, None):
        try:
            return question()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise Me5Error(f"{who}: the hub has no {repository} at that revision for you ({type(error).__name__}): "
                           "private and gated ones want `hf auth login`") from None
        except Exception as error:
            if not is_away(error):
                raise
            if pause is None:
                raise unreachable(error) from None
            time.sleep(pause)


def is_away(error: BaseException | None) -> bool:
    """Whether only the way to the hub broke, here or in what caused this: 408, 429, 5xx, a timeout, no route."""
    if error is None:
        return False
    if status := _status(error):
        return status in (408, 429) or status >= 500
    names = {base.__name__ for base in type(error).__mro__}  # of whichever httpx there is
    return isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names or is_away(error.__cause__)


def _status(error: BaseException) -> int:
    """The status of the hub's answer that an error tells of; 0: none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def plan_drawing(card: cards.Card, pairs: int, temperature: float = 0.5) -> DrawingPlan:
    """Which files, and how many pairs of each, make `pairs` of a card. Asks the hub for listings, for no file."""
    files, commits, _ = list_files(card)
    sizes, by_stream = Counter(), defaultdict(list)
    for file in files:
        sizes[file.entry] += file.size
        by_stream[file.entry, file.language].append(file)
    weights = [sum(file.size for file in own) ** temperature for own in by_stream.values()]
    shares = largest_remainder(weights, pairs).tolist()
    drawn = [_evenly_spaced(own, share) for own, share in zip(by_stream.values(), shares, strict=True) if share]
    return DrawingPlan(drawn, commits, [sizes[entry] for entry in range(len(card.hub))])


def _evenly_spaced(files: list[HubFile], pairs: int) -> list[HubFile]:
    """Evenly spaced files, due pairs in proportion to their bytes; then those in reserve, due what is lacking then."""
    count = min(len(files), pairs, max(FILES, -(-pairs // ROWS_A_FILE)))
    chosen = [files[i * len(files) // count] for i in range(count)]
    due = np.cumsum(largest_remainder([file.size + 1 for file in chosen], pairs)).tolist()
    spare = [file for file in files if file not in chosen]
    return [file._replace(due=n) for file, n in zip(chosen + spare, due + [pairs] * len(spare), strict=True)]


# ── rows ──


def read_rows(here: str, path: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Row | Drop]]:
    """(number from 0, row) of a file in the folder `here`; a `Drop` for a line that is no row. An empty file has none.

    The hub's client asks again where a connection breaks. After the last row that can be read raises `Broken` for a
    file that is damaged, `Me5Error` where the hub stays away or refuses, and any other error as it is.
    """
    system, root = url_to_fs(here)
    try:
        with system.open(f"{root}/{path}", "rb") as stream:
            rows = (_parquet if path.endswith(".parquet") else _json_lines)(stream, path, columns)
            yield from ((number, row) for number, row in enumerate(rows) if row is not None)
    except Exception as error:
        if is_away(error):
            raise unreachable(error) from None
        if status := _status(error):  # 401, 403, 404: no fault of the file, and login may mend it
            raise Me5Error(f"{here}: the hub refuses {path} ({status}): gated sets want `hf auth login`") from None
        of_arrow = type(error) is OSError and error.errno is None
        if of_arrow or isinstance(error, pa.ArrowInvalid | UnicodeDecodeError):
            raise Broken(" ".join(str(error).split())[:200]) from error
        raise


def _parquet(stream: IO[bytes], path: str, columns: Mapping[str, str]) -> Iterator[Row]:
    if not stream.read(1):
        return
    stream.seek(0)
    file = pq.ParquetFile(stream)
    names = [name for name in columns if name in file.schema_arrow.names]
    for batch in file.iter_batches(BATCH, columns=names):
        yield from batch.to_pylist() if names else [{}] * batch.num_rows


def _json_lines(stream: IO[bytes], path: str, columns: Mapping[str, str]) -> Iterator[Row | Drop | None]:
    """A row for each line; None for a blank one, which is no row, but counts: an editor counts it too."""
    packed = {"gz": "gzip", "zst": "zstd"}.get(path.rpartition(".")[2])
    lines = streams.BufferedReader(pa.input_stream(stream, compression=packed))
    while line := lines.readline(LINE + 1):
        long = len(line) > LINE
        while long and not line.endswith(b"\n") and (line := lines.readline(LINE)):
            pass
        yield Drop(TOO_LARGE) if long else None if line.isspace() else _json_object(line)


def _json_object(line: bytes) -> Row | Drop:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else Drop("bad JSON line")


def _why_unfit(columns: Mapping[str, str], row: Row | Drop) -> str | None:
    """Why a row cannot be given to a builder: no row at all, too large, not Unicode, or not as the card says."""
    if isinstance(row, Drop):
        return row.reason
    try:
        if len(json.dumps(row, ensure_ascii=False, default=str).encode("utf8")) > ROW:
            return TOO_LARGE
    except UnicodeEncodeError:
        return "text that is not Unicode"
    return cards.row_fault(columns, row)


def make_items(card: cards.Card, file: HubFile, rows: Iterator[tuple[int, Row | Drop]], known: Mapping[str, Builder],
               book: Ledger) -> Iterator[Pair | Labelled]:
    """What the card's builder and its filters of single items leave of numbered rows; all else is counted in `book`.

    Raises `Me5Error`, naming file and row, where the builder fails.
    """
    entry, steps = card.hub[file.entry], filters.sift(card.name, card.filters)
    context, builder = RowContext(card.name, file.language, entry.options), known[entry.builder]
    try:
        for number, row in rows:
            where = f"card {card.name}, {file.path}, row {number}"
            book.count("read", file.language)
            if fault := _why_unfit(entry.columns, row):
                book.count("unfit", file.language, fault, where)
                continue
            book.count("built", file.language)
            for item in _build_row(builder, {**dict.fromkeys(entry.columns), **row}, context, where):
                if isinstance(item, Drop):
                    language, reason = file.language, item.reason
                else:
                    language, reason = item.language, next((why for step in steps if (why := step(item))), None)
                    reason = reason if known_language(language) else "unknown language code"
                book.count("made", language)
                if reason:
                    book.count("dropped", language, reason, f"{where} ({language or 'no language'})")
                else:
                    yield item
    except Broken as error:
        book.broken.append({"file": file.path, "why": str(error)})


def _build_row(builder: Builder, row: Row, context: RowContext, where: str) -> list[Pair | Labelled | Drop]:
    """What a builder makes of a row, or that it makes nothing. Raises `Me5Error` where it fails."""
    try:
        return list(builder(row, context)) or [Drop("no pair in the row")]
    except Exception as error:
        raise Me5Error(f"{where}: {getattr(builder, '__name__', 'builder')} failed ({type(error).__name__}: {error}): "
                       "mend the builder") from error


# ── what is built or drawn ──


def built(out: Path) -> dict[str, dict[str, int]]:
    """Card → language → rows of the finished builds in `out`. Raises `Me5Error` for one that cannot be read."""
    found = {}
    for file in sorted(Path(out).glob(f"*/{shards.MANIFEST}")):
        try:
            about = io.read_json(file)
            found[about["card"]] = dict(about["languages"])
        except (ValueError, KeyError, TypeError):
            raise Me5Error(f"{file} cannot be read: build the card again") from None
    return found


def mixture_table(found: Mapping[str, Mapping[str, int]], known: Mapping[str, cards.Card],
                  temperature: float = 0.5) -> pd.DataFrame:
    """What is built of the cards `known`, as `Mixture` draws it: sources by the paper's counts, the languages inside a
    source by rows ** temperature.

    Columns: stage (none of which nothing is built), source, language (all that the card has), rows, share of what the
    stage draws, and wanted: the source's rows in the paper, NaN where they are not published.
    """
    import pandas as pd

    rows = [(title, name, code, n, card.paper.rows) for paper_table, title in TITLES.items()
            for name, card in known.items() if card.paper.table == paper_table
            for code, n in {**dict.fromkeys(card.languages, 0), **found.get(name, {})}.items()]
    table = pd.DataFrame(rows, columns=["stage", "source", "language", "rows", "wanted"]).astype({"wanted": float})
    source = table.groupby("source")
    tempered = (table.rows**temperature).where(table.rows > 0, 0.0)
    weight = table.wanted.fillna(source.rows.transform("sum"))
    inside = tempered / tempered.groupby(table.source).transform("sum")  # NaN of a source that is not built
    table["share"] = (weight * inside).fillna(0.0)
    drawn = table.groupby("stage").share.transform("sum")
    return table.assign(share=table.share / drawn)[drawn > 0]


def built_home() -> Path:
    """Where mixtures are built if nothing else is said."""
    return io.cache() / "mixture"


def drawing_home(card: cards.Card, pairs: int, temperature: float = 0.5) -> Path:
    """Where the drawing of so many pairs of a card lies, whether it is there or not."""
    given = [VERSION, card.sha256, [entry.revision for entry in card.hub], pairs, temperature]
    key = hashlib.blake2b(json.dumps(given).encode("utf8"), digest_size=8).hexdigest()
    return io.cache() / "hub" / card.name / key


def pairs_wanted(cfg: Scale, name: str) -> int:
    """Pairs of card `name` that a scale draws: its share of the pairs of all steps, by the paper's counts, not above
    its own count. A card whose count is not published gets the mean of the others'.
    """
    stage, names = (cfg.train, cfg.data.sources) if name in cfg.data.sources else (cfg.finetune, cfg.data.labelled)
    counts = {each: card.paper.rows for each in names if (card := cards.load_card(each)).paper and card.paper.rows}
    mean = sum(counts.values()) / max(len(counts), 1) or 1.0
    share = counts.get(name, mean) / (sum(counts.values()) + mean * (len(names) - len(counts)))
    return min(math.ceil(stage.steps * stage.batch * share), counts.get(name, 1 << 62))


def drawings(cfg: Scale, names: tuple[str, ...]) -> dict[str, Path]:
    """By card the drawing of `pairs_wanted` pairs, else the largest of the same card that is there.

    Raises `Me5Error` naming the cards that the cache lacks.
    """
    found, temperature = {}, cfg.data.language_temperature
    for name in names:
        card = cards.load_card(name)
        exact = drawing_home(card, pairs_wanted(cfg, name), temperature)
        about = {path.parent: io.read_json(path) for path in sorted(exact.parent.glob(f"*/{shards.MANIFEST}"))}
        same = {"card_sha256": card.sha256, "version": VERSION, "temperature": temperature}
        pairs = {place: each["asked"] for place, each in about.items() if same.items() <= each.items()}
        found[name] = exact if exact in pairs else max(pairs, key=pairs.get, default=None)
    if missing := [name for name, place in found.items() if place is None]:
        raise Me5Error(f"the cache ({io.cache() / 'hub'}) lacks {', '.join(missing)}: run `me5 fetch --for {cfg.name}` "
                       "where there is a network")
    return found


class HubCorpus(cards.CardTexts):
    """What a scale of the hub trains on: shards that `me5 mixture build` made, else drawings that `me5 fetch` made.

    The same face as `corpus.Corpus`, without evaluation sets of its own: those of the paper's scales come from mteb.
    `fingerprint` names exactly these shards. Labelled examples are held in memory, a few GB at the paper's size.
    """

    tempered = True  # what was drawn has the paper's sizes, and its languages were tempered then

    def __init__(self, cfg: Scale) -> None:
        """Raises `Me5Error` where neither the built shards nor the drawings of all sources are there."""
        self.scale, names = cfg, cfg.data.sources
        built = {name: shards.open_card(name, built_home() / name) for name in names}
        self.built = any(built.values())
        if self.built and (missing := sorted(name for name in names if not built[name])):
            raise Me5Error(f"{built_home()} lacks {', '.join(missing)}: me5 mixture build --card {missing[0]}")
        found = built if self.built else {name: shards.open_card(name, at) for name, at in drawings(cfg, names).items()}
        self.shards = {stream: shard for each in found.values() for stream, shard in each.items()}

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the shards' files."""
        known = [[*key, shard.rows, [each.sha256[shards.MAPPED] for each in shard.manifests]]
                 for key, shard in sorted(self.shards.items())]
        return hashlib.blake2b(json.dumps(known).encode("utf8"), digest_size=8).hexdigest()

    def mixture(self, cfg: Scale, seed: int, stage: Stage | None = None) -> Mixture:
        """The pairs of stage 1: sources by the paper's counts. Languages by the scale's temperature, unless the drawing
        has applied it already."""
        stage = stage or cfg.train
        temperature = cfg.data.language_temperature if self.built else 1.0
        return Mixture(self.shards, steps=stage.steps, batch=stage.batch, seed=seed,
                       weights=cards.weights(cfg.data.sources), temperature=temperature,
                       homogeneous=cfg.data.homogeneous)

    def labelled(self, part: str = "stage 2") -> list[Labelled]:
        """The examples of stage 2, but for those that `is_held_out`, which `part="dev"` gives."""
        return [row for row in self._labelled if is_held_out(row.query) == (part == "dev")]

    @cached_property
    def _labelled(self) -> list[Labelled]:
        """Of all drawings; with the card's instruction where the row brought none of its own."""
        found = []
        for name, place in drawings(self.scale, self.scale.data.labelled).items():
            instruction = cards.load_card(name).instruction
            for (_, language), shard in shards.open_card(name, place).items():
                for query, positives, negatives, *own in shard.take(np.arange(shard.rows)):
                    found.append(Labelled(query, tuple(positives), tuple(negatives), name, language,
                                          instruction=own[0] if any(own) else instruction))
        return found
