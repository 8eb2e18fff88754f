"""The hub's rows, streamed: which files of a card's repositories are read, how much of each, and what is made of rows.

    found = plan(load("nllb"), 100_000)            # from listings alone: commits, streams, files, rows wanted of each
    raw = read(entry, commit, paths)               # rows of files as `datasets` gives them, at one commit

The rows asked for are apportioned to streams (one entry of the card in one language) by bytes ** temperature: here the
true sizes are known. A stream reads the heads of at least `FILES` files, evenly spaced over all it has; files that turn
out shorter are made up for by those in reserve. Head rows of a sorted file are alike: the spread softens that only.

`datasets` reads with its own Parquet and JSON builders, exact files of one commit: no script of a repository is run.
Its client tries a busy hub five times; what still breaks is taken up again here, at the row where it broke.
Cost: a second or so to open a file, then what is read of it: whole row groups of Parquet, a few MB of JSON at a time.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from me5lib.data import cards, filters, schema
from me5lib.data.inputs import ROW, known_language
from me5lib.data.mixture import largest_remainder
from me5lib.data.origin import Drop, Origin, Row
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair

FILES = 4  # at least so many files of a stream are drawn from, where it has them
ROWS_A_FILE = 50_000  # and one more for every so many rows
SPARE = 4  # files in reserve, per file drawn from
TRIES, WAIT = 3, 2.0  # how often a broken connection is taken up again without a row in between; seconds, times the try
WRONG = re.compile(r"Value\('(null|timestamp|date)")  # what the reader of JSON may take a text for
COMMAND = "run `me5 fetch --for workshop` where there is a network"
Build = Callable[[Row, Origin], Iterator[Any]]


class Stream(NamedTuple):
    """One entry of a card in one language, and the files to draw from: (path, bytes, rows wanted; 0: in reserve)."""

    entry: int  # index into Card.hub
    language: str  # "": the row tells it
    rows: int  # pairs wanted
    files: tuple[tuple[str, int, int], ...]


class Plan(NamedTuple):
    """What a drawing reads: by entry of the card its commit and the bytes that it has, and the streams."""

    commits: tuple[str, ...]
    bytes: tuple[int, ...]
    streams: tuple[Stream, ...]


class Unreachable(Me5Error):
    """The hub does not answer, or `HF_HUB_OFFLINE` forbids to ask."""

    def __init__(self, why: object):
        super().__init__(f"the hub cannot be reached ({' '.join(str(why).split())[:200]}): {COMMAND}")


class Unreadable(Exception):
    """A file of the hub that is broken, or of another form than its name says."""


def read(entry: cards.Hub, commit: str, paths: list[str], streaming: bool = True) -> Iterator[Row]:
    """The raw rows of files at one commit, in order, as `datasets` gives them.

    After what could be read raises `Unreachable` where the hub stays away, `Unreadable` for a broken file, `Me5Error`
    for one that is not given.
    """
    seen = tries = 0
    while True:
        try:
            for row in islice(_dataset(entry, commit, paths, streaming), seen, None):
                yield row
                seen, tries = seen + 1, 0
            return
        except (ImportError, MemoryError):
            raise  # of this machine, not of the file
        except Exception as error:
            tries += 1
            if not broken_connection(error):
                if status := _status(error):  # 401, 403, 404: no fault of the file, and login may mend it
                    raise Me5Error(f"{entry.repository}: the hub refuses {', '.join(paths[:2])} ({status}): "
                                   "gated sets want `hf auth login`") from None
                raise Unreadable(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
            if tries >= TRIES:
                raise Unreachable(error) from None
            time.sleep(WAIT * tries)


def _dataset(entry: cards.Hub, commit: str, paths: list[str], streaming: bool) -> Any:
    """A `datasets` dataset of the card's columns."""
    from datasets import load_dataset

    kind = "parquet" if entry.files.endswith(".parquet") else "json"
    files = {"train": [f"hf://datasets/{entry.repository}@{commit}/{path}" for path in paths]}
    data = load_dataset(kind, data_files=files, split="train", streaming=streaming)
    if data.features is not None:
        names = [name for name in entry.columns if name in data.features]
        if kind == "parquet" and 0 < len(names) < len(data.features):  # so that the others are not fetched
            data = load_dataset(kind, data_files=files, split="train", streaming=streaming, columns=names)
        elif kind == "json" and (features := _guessed_wrong(data.features, entry)):
            data = load_dataset(kind, data_files=files, split="train", streaming=streaming, features=features)
        data = data.select_columns(names)
    return data


def _guessed_wrong(features: Any, entry: cards.Hub) -> Any:
    """Features to read JSON with, where its first lines mislead: all null, or texts that look like dates. Else None."""
    import pyarrow as pa
    from datasets import Features

    known = pa.schema([(name, schema.arrow(schema.parse(text))) for name, text in entry.columns.items()])
    right = Features.from_arrow_schema(known)
    wrong = [name for name in right if name in features and WRONG.search(str(features[name]))]
    return Features(features | {name: right[name] for name in wrong}) if wrong else None


def make(card: cards.Card, stream: Stream, raw: Iterator[Row], tally: Counter,
         builders: dict[str, Build]) -> Iterator[Pair | Labelled]:
    """What the card's builder and its filters of single pairs make of raw rows.

    `tally` counts rows read under ("", "read"), and what is dropped under (language, reason).
    """
    entry = card.hub[stream.entry]
    build, origin = builders[entry.builder], Origin(card.name, stream.language, entry.options)
    steps = filters.sift(card.name, card.filters)
    for row in raw:
        tally["", "read"] += 1
        fault = schema.row_fault(entry.columns, row)
        if fault or _signs(row) > ROW:
            tally[stream.language, fault or f"row over {ROW // 1_000_000} MB"] += 1
            continue
        for item in build({**dict.fromkeys(entry.columns), **row}, origin):  # columns that may be null may be missing
            if isinstance(item, Drop):
                tally[stream.language, item.reason] += 1
            elif not known_language(item.language):
                tally[stream.language, "unknown language code"] += 1
            elif reason := next(filter(None, (step(item) for _, step in steps)), None):
                tally[item.language, reason] += 1
            else:
                yield item


def known_builders() -> dict[str, Build]:
    """Every builder by its name in the cards."""
    from me5lib.data import labelled, sources

    return {**sources.BUILDERS, **labelled.BUILDERS}


def refuse_nonsense(card: cards.Card, builders: dict[str, Build]) -> None:
    """Before any work: raise `Me5Error` for filters, builders or languages of the card that do not exist."""
    filters.sift(card.name, card.filters)
    for entry in card.hub:
        if entry.builder not in builders:
            raise Me5Error(f"data card {card.name}.md: no builder {entry.builder!r}: "
                           f"there are {', '.join(sorted(builders))}")
        for code in (*entry.languages, *filter(None, [entry.language])):
            if not known_language(code):
                raise Me5Error(f"data card {card.name}.md: {entry.repository}: unknown language code {code!r}")


def _signs(value: Any) -> int:
    """Characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_signs, inner))


def plan(card: cards.Card, limit: int, language: str | None = None, temperature: float = 0.5) -> Plan:
    """Which files, and how many pairs of each, make `limit` pairs of a card. Asks the hub for listings, for no file."""
    commits, sizes, found = files(card, language)
    shares = largest_remainder([sum(own.values()) ** temperature for _, _, own in found], limit).tolist()
    streams = [Stream(number, code, share, _spread(own, share))
               for (number, code, own), share in zip(found, shares, strict=True) if share]
    return Plan(tuple(commits), tuple(sizes), tuple(streams))


def files(card: cards.Card, language: str | None = None) -> tuple[list[str], list[int], list[tuple[int, str, dict]]]:
    """By entry its commit and bytes; and the streams of a language (None: of all): entry, language, path → bytes.

    Asks the hub for listings. Raises `Me5Error` where an entry has no files, `Unreachable` where the hub is.
    """
    commits, sizes, found = [], [], []
    for number, entry in enumerate(card.hub):
        commit, listing = _listing(card, entry)
        wanted = {code: _matching(listing, entry, code) for code in entry.languages or [entry.language or ""]}
        if not any(wanted.values()):
            raise Me5Error(f"card {card.name}: no file of {entry.repository} at {entry.revision or commit} matches "
                           f"{entry.files}: mend the card")
        commits.append(commit)
        sizes.append(sum(sum(own.values()) for own in wanted.values()))
        found += [(number, code, own) for code, own in wanted.items()
                  if own and language in (None, code or language)]
    if not found:
        raise Me5Error(f"card {card.name} has no files in the language {language!r}")
    return commits, sizes, found


def _spread(files: dict[str, int], wanted: int) -> tuple[tuple[str, int, int], ...]:
    """Evenly spaced files with the rows wanted of each, in proportion to their bytes; then those in reserve."""
    paths = sorted(files)
    count = min(len(paths), wanted, max(FILES, -(-wanted // ROWS_A_FILE)))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    shares = largest_remainder([files[path] + 1 for path in chosen], wanted).tolist()
    drawn = [(path, files[path], share) for path, share in zip(chosen, shares, strict=True) if share]
    others = sorted(set(paths) - {path for path, _, _ in drawn})
    some = min(len(others), SPARE * count)
    return (*drawn, *((path, files[path], 0) for path in (others[i * len(others) // some] for i in range(some))))


def _listing(card: cards.Card, entry: cards.Hub) -> tuple[str, dict[str, int]]:
    """The commit that an entry's revision is now, and path → bytes of the repository's files at it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    name, under = entry.repository, re.split(r"[*?{]", entry.files)[0].rpartition("/")[0] or None
    commit = ask(f"card {card.name}", name, lambda: HfApi().dataset_info(name, revision=entry.revision).sha)

    def tree() -> dict[str, int]:
        """Path → bytes, page after page."""
        found = HfApi().list_repo_tree(name, under, recursive=True, revision=commit, repo_type="dataset")
        return {file.path: file.size for file in found if hasattr(file, "size")}

    try:
        return commit, ask(f"card {card.name}", name, tree)
    except EntryNotFoundError:
        return commit, {}


def ask(who: str, repository: str, question: Callable[[], Any]) -> Any:
    """The hub's answer to a call of its client, asked again where it is busy. Raises `Me5Error` that names `who`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if constants.is_offline_mode():
        raise Unreachable("HF_HUB_OFFLINE is set")
    for tries in range(1, TRIES + 1):
        try:
            return question()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise Me5Error(f"{who}: the hub has no {repository} at that revision for you ({type(error).__name__}): "
                           "private and gated ones want `hf auth login`") from None
        except Exception as error:
            if not broken_connection(error):
                raise
            if tries == TRIES:
                raise Unreachable(error) from None
            time.sleep(WAIT * tries)


def _matching(listing: dict[str, int], entry: cards.Hub, language: str) -> dict[str, int]:
    """The files that `entry.files` means: `*` stays within a folder, `**/` is any folders."""
    pattern = entry.files.replace("{language}", entry.languages.get(language, ""))
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    glob = "".join(words.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
    return {path: size for path, size in sorted(listing.items()) if re.fullmatch(glob, path)}


def broken_connection(error: BaseException | None) -> bool:
    """Whether an error is one of the way to the hub and not of what came: 408, 429, 5xx, a timeout, no route."""
    while error is not None:
        if status := _status(error):
            return status in (408, 429) or status >= 500
        names = {base.__name__ for base in type(error).__mro__}  # of whichever httpx the hub's client uses
        if isinstance(error, ConnectionError | TimeoutError) or "TransportError" in names:
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> int:
    """The status of the hub's answer that an error tells of; 0: none."""
    return getattr(getattr(error, "response", None), "status_code", 0)
