"""Drawing from the hub: a bounded part of a card's rows, streamed once and kept as shards, so the next run is offline.

    draw(load("nllb"), 100_000)          # fills <cache>/hub/nllb/<key>: a shard per language, and manifest.json
    open_hub(scale.load("workshop"))     # (source, language) → Shard, for `Mixture`; touches no network
    labelled(scale.load("workshop"))     # the labelled examples of stage 2, likewise

The key is a hash of the card, its revisions, the rows asked for and `VERSION`. What is drawn of a file is kept as soon
as the file is done, so a killed drawing goes on with the next file, at the same commits; a drawing is renamed into
place when it is whole. Its manifest has rows by language, what was dropped by language and reason, and broken files.

Languages are drawn in proportion to bytes ** temperature (see `streaming`): the law of languages has been applied to
the hub's own sizes, so lay these shards out with `Mixture(temperature=1)`, or it is applied twice.

Cost: see `streaming`; a card's drawing is held in memory once, when it is put together, and again shuffled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from me5lib import io
from me5lib.data import cards, shards, streaming
from me5lib.data.origin import Row
from me5lib.data.streaming import Build, Plan, Stream, Unreachable, Unreadable, plan
from me5lib.io import Me5Error, cache
from me5lib.pairs import Labelled, Pair, text_key

if TYPE_CHECKING:
    from me5lib.config import Scale

__all__ = ["Unreachable", "draw", "home", "labelled", "open_hub", "plan", "wanted"]
VERSION = 1  # of the drawing; raise it with any change that gives other rows
READ = 20  # rows read at most for one that is wanted: a filter that refuses all must not read the whole hub
LEFT_OUT = ("near",)  # filters of a whole card that only the pipeline runs
_LIST = pa.list_(pa.string())
_PAIRS = pa.schema([("query", pa.string()), ("passage", pa.string()), ("language", pa.string())])
_LABELLED = pa.schema([("query", pa.string()), ("positives", _LIST), ("negatives", _LIST),
                       ("instruction", pa.string()), ("language", pa.string())])


def wanted(dial: Scale, name: str) -> int:
    """Rows of card `name` that a scale draws: its share of the pairs of all steps, by the paper's counts, not above its
    own count. A card whose count is not published gets the mean of the others'.
    """
    stage, names = (dial.train, dial.data.sources) if name in dial.data.sources else (dial.finetune, dial.data.labelled)
    counts = {each: card.paper.rows for each in names if (card := cards.load(each)).paper and card.paper.rows}
    mean = sum(counts.values()) / max(len(counts), 1) or 1.0
    share = counts.get(name, mean) / (sum(counts.values()) + mean * (len(names) - len(counts)))
    return min(math.ceil(stage.steps * stage.batch * share), counts.get(name, 1 << 62))


def open_hub(dial: Scale, asked: int | None = None) -> dict[tuple[str, str], shards.Shard]:
    """Every stream of stage 1 by (source, language), memory-mapped, of the drawings of `asked` rows a card.

    None: of `wanted` rows, else of the most that the cache has. Raises `Me5Error` naming the cards that it lacks.
    """
    folders = _drawings(dial, dial.data.sources, asked)
    found = {(name, part.parent.name): part.parent for name, folder in folders.items()
             for part in sorted(folder.glob(f"*/{shards.MANIFEST}"))}
    return {key: shards.open_shard(folder) for key, folder in found.items()}


def labelled(dial: Scale, asked: int | None = None) -> list[Labelled]:
    """The labelled examples of stage 2, as `open_hub`; the card's instruction where the row brought none of its own."""
    found = []
    for name, folder in _drawings(dial, dial.data.labelled, asked).items():
        told = cards.load(name).instruction
        for part in sorted(folder.glob(f"*/{shards.MANIFEST}")):
            shard = shards.open_shard(part.parent)
            found += [Labelled(query, tuple(right), tuple(wrong), name, part.parent.name,
                               instruction=own[0] if any(own) else told)
                      for query, right, wrong, *own in shard.take(np.arange(shard.rows))]
    return found


def _drawings(dial: Scale, names: tuple[str, ...], asked: int | None) -> dict[str, Path]:
    heat = dial.data.language_temperature
    folders = {name: _drawing(cards.load(name), asked or wanted(dial, name), heat, asked is None) for name in names}
    if missing := [name for name, folder in folders.items() if folder is None]:
        raise Me5Error(f"the cache ({cache() / 'hub'}) lacks {', '.join(missing)}: run "
                       f"`me5 fetch --for {dial.name}` where there is a network")
    return {name: folder for name, folder in folders.items() if folder is not None}


def _drawing(card: cards.Card, asked: int, temperature: float, others: bool) -> Path | None:
    """The whole drawing of so many rows; if there is none and `others` will do, the largest of this card as it is."""
    folder = home(card, asked, temperature)
    if (folder / shards.MANIFEST).is_file():
        return folder
    about = [io.read_json(path) | {"folder": path.parent}
             for path in sorted(folder.parent.glob(f"*/{shards.MANIFEST}")) if not path.parent.suffix]
    same = [given for given in about if _same(given, card, temperature)]
    return max(same, key=lambda given: given["asked"])["folder"] if others and same else None


def _same(given: dict, card: cards.Card, temperature: float) -> bool:
    return [given[key] for key in ("card_sha256", "version", "temperature")] == [card.sha256, VERSION, temperature]


def home(card: cards.Card, asked: int, temperature: float = 0.5) -> Path:
    """Where the drawing of so many rows of a card lies, whether it is there or not."""
    given = [VERSION, card.sha256, [entry.revision for entry in card.hub], asked, temperature]
    key = hashlib.blake2b(json.dumps(given).encode("utf8"), digest_size=8).hexdigest()
    return cache() / "hub" / card.name / key


def draw(card: cards.Card, asked: int, temperature: float = 0.5, progress: bool = True,
         builders: dict[str, Build] | None = None) -> Path:
    """The folder of a card's drawing of (at most) `asked` pairs, made first where the cache does not have it whole.

    Raises `Me5Error`, `Unreachable` among them; the same call then goes on from there.
    """
    folder = home(card, asked, temperature)
    side = folder.with_name(folder.name + ".part")
    builders = builders or streaming.known_builders()
    streaming.refuse_nonsense(card, builders)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (folder / shards.MANIFEST).is_file():
                return folder
            if not (side / shards.MANIFEST).is_file():
                _draw(card, side, asked, temperature, progress, builders)
            shutil.rmtree(side / "parts", ignore_errors=True)
            os.replace(side, folder)
    except OSError as error:
        raise shards.full_disk(error, folder) from None
    return folder


def _draw(card: cards.Card, side: Path, asked: int, temperature: float, progress: bool, builders: dict) -> None:
    from tqdm import tqdm

    (side / "parts").mkdir(parents=True, exist_ok=True)
    given = _kept_plan(card, side / "plan.json", asked, temperature)
    with tqdm(total=asked, unit="row", desc=card.name, disable=None if progress else True) as bar:
        reports = [report for number, stream in enumerate(given.streams)
                   for report in _draw_stream(card, side / "parts", given, number, stream, builders, bar)]
    about = {"card": card.name, "card_sha256": card.sha256, "version": VERSION, "asked": asked,
             "temperature": temperature, "left out": [name for name in LEFT_OUT if name in card.filters],
             "sources": [{"repository": entry.repository, "revision": entry.revision, "commit": commit}
                         for entry, commit in zip(card.hub, given.commits, strict=True)]}
    _put_together(card, side, about, reports)


def _kept_plan(card: cards.Card, file: Path, asked: int, temperature: float) -> Plan:
    """The plan of this drawing: made once, so that a rerun reads the same commits though the branch has moved on."""
    if not file.is_file():
        io.put_json(file, plan(card, asked, temperature=temperature))
    commits, sizes, streams = io.read_json(file)
    return Plan(tuple(commits), tuple(sizes), tuple(Stream(*stream) for stream in streams))


def _draw_stream(card: cards.Card, folder: Path, given: Plan, number: int, stream: Stream, builders: dict,
                 bar: Any) -> Iterator[dict]:
    """Draw file after file of a stream; a later one makes up for what an earlier one lacks, at last those in reserve.

    What an earlier process drew is taken as it is.
    """
    kept = seen = due = 0
    for order, (path, _, share) in enumerate(stream.files):
        due = min(stream.rows, due + share) if share else stream.rows
        if kept >= stream.rows or seen >= READ * stream.rows:
            return
        where = folder / f"{number:05d}-{order:05d}.json"
        if not where.is_file():
            bar.set_postfix_str(path)
            raw = streaming.read(card.hub[stream.entry], given.commits[stream.entry], [path])
            _draw_file(card, stream, raw, due - kept, path, where, builders)
        report = io.read_json(where)
        kept, seen = kept + sum(report["rows"].values()), seen + report["read"]
        bar.update(sum(report["rows"].values()))
        yield report | {"file": where.with_suffix(".parquet")}


def _draw_file(card: cards.Card, stream: Stream, raw: Iterator[Row], most: int, path: str, where: Path,
               builders: dict) -> None:
    """Keep up to `most` pairs of a file: as Parquet, and then, when that is there, a report of what was dropped."""
    tally: Counter = Counter()
    items: list[Pair | Labelled] = []
    faults = []
    try:
        for item in islice(streaming.make(card, stream, islice(raw, READ * most), tally, builders), most):
            items.append(item)
    except Unreadable as error:
        faults = [f"card {card.name}: {path}: after row {tally['', 'read']}: {error}"]
        tally[stream.language, "file that cannot be read on"] += 1
    io.put(where.with_suffix(".parquet"), lambda beside: pq.write_table(_table(items), beside, compression="zstd"))
    count = tally.pop(("", "read"), 0)
    dropped = sorted([language, reason, n] for (language, reason), n in tally.items())
    rows = Counter(item.language for item in items)
    io.put_json(where, {"rows": rows, "read": count, "dropped": dropped, "faults": faults})


def _table(items: list[Pair | Labelled]) -> pa.Table:
    """The rows of pairs (query, passage) or labelled examples, and their language."""
    form = _LABELLED if items and isinstance(items[0], Labelled) else _PAIRS
    return pa.table({name: [getattr(item, name) for item in items] for name in form.names}, schema=form)


def _put_together(card: cards.Card, side: Path, about: dict, reports: list[dict]) -> None:
    """One shard per language of all files' rows, and, last of all, the manifest."""
    dropped: Counter = Counter()
    for report in reports:
        dropped.update({(language, reason): n for language, reason, n in report["dropped"]})
    tables = [pq.read_table(report["file"]) for report in reports if report["rows"]]
    if not tables:
        first = "; ".join(f"{reason} {n}" for (_, reason), n in dropped.most_common(3)) or "the files are empty"
        fault = next((fault for report in reports for fault in report["faults"]), first)
        raise Me5Error(f"card {card.name}: none of the {sum(r['read'] for r in reports)} rows drawn makes a pair "
                       f"({fault}): mend the card")
    table = pa.concat_tables(tables)
    if "exact" in card.filters:
        table = _distinct(table, dropped)
    if "instruction" in table.column_names and table["instruction"].null_count == table.num_rows:
        table = table.drop_columns("instruction")  # no row brings its own: the card's holds
    kept, written = {}, {}
    for language in sorted(pc.unique(table["language"]).to_pylist()):
        own = table.filter(pc.equal(table["language"], language)).drop_columns("language")
        written[language] = shards.write(own, side / language).sha256
        kept[language] = own.num_rows
    counts: dict[str, dict[str, int]] = {}
    for (language, reason), n in sorted(dropped.items()):
        counts.setdefault(language, {})[reason] = n
    io.put_json(side / shards.MANIFEST, about | {
        "read": sum(report["read"] for report in reports), "rows": kept, "dropped": counts,
        "faults": [fault for report in reports for fault in report["faults"]], "sha256": written})


def _distinct(table: pa.Table, dropped: Counter) -> pa.Table:
    """The table without rows whose two sides are those of an earlier one; `dropped` counts them."""
    other = table.column_names[1]  # passage, or positives
    seen, keep = set(), []
    for batch in table.to_batches(10_000):
        columns = (batch[name].to_pylist() for name in ("query", other, "language"))
        for query, side, language in zip(*columns, strict=True):
            key = (text_key(query), text_key(side if isinstance(side, str) else "\n".join(side)))
            keep.append(key not in seen)
            seen.add(key)
            if not keep[-1]:
                dropped[language, "exact duplicate"] += 1
    return table.filter(pa.array(keep))
