"""From a card's files to shards, by datatrove: all rows (`me5 mixture build`), or so many pairs (`me5 fetch`).

    build = prepare_build(cards.load_card("nllb"), out, tasks=64)        # checks everything, does no work
    run_build(build)                                                # or with "slurm", slurm=Slurm(…), or with "ray"
    draw_card(cards.load_card("nllb"), 100_000)                          # the same with a limit: a task per stream

Stages: 1 read, make pairs, filter; 2 find exact duplicates; 3–5 near ones (not of a drawing); 6 shards; 7 seal. A card
has those that it names. What a task leaves is written beside and renamed, and datatrove notes last of all that it is
finished: a build killed at any moment goes on with the other tasks, and ends with the same bytes.

    <out>/<card>/<language>/part-<rank>-<n>/      shards, and
    <out>/<card>/manifest.json                    what they are, and what was dropped and why: written last
    <out>/<card>/.build/<key>/                    logs, counts and (until it is sealed) intermediate files

The key hashes the card, the options that shape the shards and the list of files; the last finished build's shards stay
until another is sealed. A drawing keeps its plan instead: it goes on at the same commits though a branch has moved.

datatrove's readers leave out what they cannot parse without a count, its writers make no file for a task without
documents, which then reads another's, and its pool waits for ever for a worker that the system killed: those are ours.

Near duplicates: MinHash over character 5-grams of the normalised passage (ours; words would need a tokenizer per
language): at the threshold 0.8 a pair of Jaccard similarity 0.5 / 0.6 / 0.7 / 0.8 / 0.9 is taken for a duplicate with
probability 0.06 / 0.24 / 0.61 / 0.95 / 1.00.

Cost: disk about the size of the compressed text while it runs, and per item 14 bytes for `exact`, 1.1 kB for `near`;
`exact` 20 µs an item, `near` 1 ms a passage of 1,000 signs; memory of `HELD` bytes of text a task.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import exact_dedup as exact
from datatrove.pipeline.dedup import minhash
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from tqdm import tqdm

from me5lib import __version__, io
from me5lib.data import filters, hub, shards
from me5lib.data.builders import BUILDERS, Builder
from me5lib.data.cards import Card
from me5lib.data.shards import splitmix64
from me5lib.io import Me5Error
from me5lib.pairs import Pair, normalise, text_key

VERSION = 2  # of the build; raise it with any change that gives other shards
MANIFEST, SEALED = "manifest.json", "sealed.json"  # SEALED, in .build: key of the build whose shards are in place
READ = 20  # rows a drawing reads at most for a pair that is wanted: a filter that refuses all must not read all
PART = 256_000_000  # bytes of text after which a part of a shard is written (ours)
HELD = 1_000_000_000  # bytes of text in all languages that a task holds (ours): the largest part is then written early
GROUP = 2_000  # rows of an intermediate file, or of a chunk in memory, at once
NGRAM = 5  # characters (ours)
_TEXTS = pa.list_(pa.string())
_ITEMS = pa.schema([("query", pa.string()), ("positives", _TEXTS), ("negatives", _TEXTS), ("language", pa.string()),
                    ("labelled", pa.bool_()), ("instruction", pa.string())])
Documents = Iterator[Document]  # each with a row of `_ITEMS` under metadata["row"]


class CardBuild(NamedTuple):
    """A build that may start: everything was looked at."""

    card: Card
    out: Path  # of shards and manifest
    key: str
    shares: list[list[hub.HubFile]]  # of each task
    commits: list[str]  # by entry of the card
    builders: dict[str, Builder]
    facts: dict[str, Any]  # what the manifest says beside the counts
    mirror: Path | None = None
    per_file: int | None = None  # rows read of each file at most
    pairs: int | None = None  # of a drawing: how many are wanted

    @property
    def folder(self) -> Path:
        """Of logs, counts and intermediate files."""
        return self.out / ".build" / self.key

    @property
    def finished(self) -> bool:
        """Whether the shards in place are this build's."""
        with contextlib.suppress(OSError, ValueError):
            return (self.out / MANIFEST).is_file() and io.read_json(self.out / ".build" / SEALED) == self.key
        return False


def prepare_build(card: Card, out: Path, tasks: int = 8, mirror: Path | None = None, limit: int | None = None,
            builders: Mapping[str, Builder] = BUILDERS) -> CardBuild:
    """Look at card, options and files before any work. Raises `Me5Error`, one line, where something is wrong.

    `mirror`: a copy of the hub's files; `limit`: rows of the card, about.
    """
    hub.refuse_nonsense(card, builders)
    if tasks < 1 or (limit is not None and limit < 1):
        raise Me5Error(f"--tasks {tasks} and --limit {limit}: both must be at least 1")
    files, commits, absent = hub.list_files(card, mirror)
    given = [VERSION, __version__, card.sha256, tasks, limit, files, commits]
    key = hashlib.sha256(json.dumps(given).encode("utf8")).hexdigest()[:16]
    facts = _described(card, files, commits) | {"absent": absent, "tasks": tasks, "limit": limit}
    per_file = None if limit is None else -(-limit // len(files))
    place = (Path(out) / card.name).expanduser().resolve()
    return CardBuild(card, place, key, share(files, tasks), commits, dict(builders), facts, mirror, per_file)


def draw_card(card: Card, pairs: int, temperature: float = 0.5, progress: bool = True,
         builders: Mapping[str, Builder] = BUILDERS) -> Path:
    """The folder of a card's drawing of (at most) so many pairs, made first where the cache does not have it.

    Raises `Me5Error`, `hub.Unreachable` among them; the same call then goes on from there.
    """
    place = hub.drawing_home(card, pairs, temperature)
    hub.refuse_nonsense(card, builders)
    if (place / MANIFEST).is_file():
        return place
    kept = place / ".build" / "plan.json"
    if not kept.is_file():
        io.put_json(kept, hub.plan_drawing(card, pairs, temperature))
    streams, commits, _ = io.read_json(kept)
    shares = [[hub.HubFile(*file) for file in stream] for stream in streams]
    facts = _described(card, [file for files in shares for file in files], commits) | {
        "version": hub.VERSION, "asked": pairs, "temperature": temperature,
        "left out": [name for name in card.filters if name == "near"]}
    build = CardBuild(card, place, "drawing", shares, commits, dict(builders), facts, pairs=pairs)
    run_build(build, workers=1, progress=progress)
    return place


def _described(card: Card, files: list[hub.HubFile], commits: list[str]) -> dict[str, Any]:
    """What a manifest says of a build before anything was read."""
    repositories = []
    for number, (entry, commit) in enumerate(zip(card.hub, commits, strict=True)):
        sizes = [file.size for file in files if file.entry == number]
        repositories.append({"repository": entry.repository, "revision": commit, "glob": entry.files,
                             "files": len(sizes), "bytes": sum(sizes)})
    revisions = [f"{entry.repository}@{commit}" for entry, commit in zip(card.hub, commits, strict=True)]
    return {"card": card.name, "card_sha256": card.sha256, "me5": __version__, "build": VERSION,
            "revision": "; ".join(dict.fromkeys(revisions)), "repositories": repositories}


def share(files: list[hub.HubFile], tasks: int) -> list[list[hub.HubFile]]:
    """The files of each task: the largest first, always to the task with the fewest bytes so far. None is split."""
    loads, shares = [0] * tasks, [[] for _ in range(tasks)]
    for file in sorted(files, key=lambda each: (-each.size, each.entry, each.path)):
        task = loads.index(min(loads))
        shares[task].append(file)
        loads[task] += file.size
    return [sorted(own, key=lambda each: each[:3]) for own in shares]


# ── what a task does ──


class FunctionStep(PipelineStep):
    """A function of (…, documents, rank) as a step of datatrove's. It is pickled to other processes, and machines."""

    type = "me5"

    def __init__(self, function: Callable, *arguments: Any):
        super().__init__()
        self.name, self.function = function.__name__, partial(function, *arguments)

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        """What the function yields."""
        yield from self.function(data, rank)


def to_document(row: tuple) -> Document:
    """datatrove's document of a row of `_ITEMS`; its text is the first passage."""
    return Document(text=row[1][0], id="", metadata={"row": row})


def items_of_task(build: CardBuild, progress: bool, _: Documents | None, rank: int) -> Documents:
    """The items of a task's files. Of a drawing a file gives what its stream lacks, if `READ` rows a pair have it."""
    book, kept = hub.Ledger(logger.warning), 0
    bar = tqdm(total=build.pairs, unit="pair", desc=f"{build.card.name} {rank + 1}/{len(build.shares)}", leave=False,
               file=sys.__stderr__, disable=not progress)
    for file in build.shares[rank]:
        most, lacking = build.per_file, None
        if file.due is not None:
            read = sum(n for (what, *_), n in book.counts.items() if what == "read")
            most, lacking = max(READ * file.due - read, 0), max(file.due - kept, 0)
        if most == 0 or lacking == 0:
            continue
        entry = build.card.hub[file.entry]
        rows = hub.read_rows(hub.folder(entry, build.commits[file.entry], build.mirror), file.path, entry.columns)
        try:
            for item in islice(hub.make_items(build.card, file, islice(rows, most), build.builders, book), lacking):
                kept += 1
                bar.update()
                texts, told = (([item.passage], []), (False, None)) if isinstance(item, Pair) else (
                    (list(item.positives), list(item.negatives)), (True, item.instruction))
                yield to_document((item.query, *texts, item.language, *told))
        except hub.Broken as error:
            logger.error(f"card {build.card.name}, {file.path}: unreadable: {error}")
            book.broken.append({"file": file.path, "why": str(error)})
    bar.close()
    book.save(build.folder / "counts" / "items" / f"{rank:05d}.json")


def _item_table(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(_ITEMS)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, _ITEMS, strict=True)], _ITEMS)


def keep_items(folder: Path, data: Documents, rank: int) -> Documents:
    """Write the items of a task to an intermediate file and hand them on."""
    path, waiting = folder / f"{rank:05d}.parquet", []
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path.with_suffix(".part"), _ITEMS, compression="zstd") as writer:
        for each in data:
            waiting.append(each.metadata["row"])
            if len(waiting) == GROUP:
                writer.write_table(_item_table(waiting))
                waiting.clear()
            yield each
        writer.write_table(_item_table(waiting))
    os.replace(path.with_suffix(".part"), path)


def reread_items(folder: Path, _: Documents | None, rank: int) -> Documents:
    """Read what `keep_items` wrote, in the same order."""
    with pq.ParquetFile(folder / f"{rank:05d}.parquet") as file:
        for batch in file.iter_batches(GROUP):
            yield from map(to_document, zip(*(column.to_pylist() for column in batch.columns), strict=True))


class Excluded:
    """Where datatrove's filters write the documents that they leave out: here they are counted."""

    def __init__(self, reason: str, folder: Path):
        self.reason, self.folder, self.book, self.rank = reason, folder, hub.Ledger(), None

    def __enter__(self) -> Excluded:
        return self

    def write(self, left_out: Document, rank: int = 0) -> None:
        """Count one."""
        self.rank = rank
        self.book.count("dropped", left_out.metadata["row"][3], self.reason)

    def __exit__(self, *_: object) -> None:
        if self.rank is not None:
            self.book.save(self.folder / self.reason.replace(" ", "-") / f"{self.rank:05d}.json")


def exact_content(given: Document) -> bytes:
    """What two items must share to be the same: the keys of the query and of every positive."""
    query, positives, *_ = given.metadata["row"]
    return b"".join(text_key(text).to_bytes(8, "little", signed=True) for text in (query, *positives))


class NearSignature(minhash.MinhashDedupSignature):
    """MinHash of a passage's character n-grams, in any language."""

    def __init__(self, folder: str, buckets: int, hashes: int):
        config = minhash.MinhashConfig(n_grams=NGRAM, num_buckets=buckets, hashes_per_bucket=hashes)
        super().__init__(folder, config, language=WhitespaceTokenizer())  # which is not used

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the different n-grams of the normalised text, uint64 [n, 1]; none where it is shorter than one."""
        signs = np.frombuffer(normalise(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        grams = np.lib.stride_tricks.sliding_window_view(signs, NGRAM) if len(signs) >= NGRAM else np.empty((0, NGRAM))
        hashes = np.zeros(len(grams), dtype=np.uint64)
        for column in grams.astype(np.uint64).T:
            hashes = splitmix64(hashes ^ column)
        return np.unique(hashes).reshape(-1, 1)


def write_shards(build: CardBuild, data: Documents, rank: int) -> Documents:
    """Write the items of a task, by language, as shards `<language>/part-<rank>-<n>`; nothing goes on."""
    for stale in (build.folder / "shards").glob(f"*/part-{rank:05d}-*"):
        shutil.rmtree(stale)
    rows, tables, size, written = defaultdict(list), defaultdict(list), Counter(), []

    def flush(language: str) -> None:
        """Write what is held of a language as its next part, and note what the manifest says of it."""
        table = pa.concat_tables([*tables.pop(language, ()), _item_table(rows.pop(language))])
        kinds = set(table["labelled"].to_pylist())
        if len(kinds) > 1:
            raise Me5Error(f"card {build.card.name}, language {language}: its builders make pairs and labelled "
                           "examples: give each a card of its own")
        if kinds == {True}:
            own = ["instruction"] if table["instruction"].null_count < table.num_rows else []
            table = table.select(["query", "positives", "negatives", *own])
        else:
            passages = pa.chunked_array([chunk.flatten() for chunk in table["positives"].chunks], pa.string())
            table = pa.table({"query": table["query"], "passage": passages})
        number = sum(part["language"] == language for part in written)
        name = f"{language}/part-{rank:05d}-{number:04d}"
        done = shards.write_shard(table, build.folder / "shards" / name, seed=rank * 10_000 + number)
        written.append({"folder": name, "language": language, "rows": done.rows, "columns": list(done.columns),
                        "bytes": done.bytes, "sha256": done.sha256})
        del size[language]

    for each in data:
        row = each.metadata["row"]
        language = row[3]
        rows[language].append(row)
        size[language] += sum(len(text.encode()) for text in (row[0], *row[1], *row[2])) + 1
        if len(rows[language]) == GROUP:  # packed: small Python strings take three times the memory of their text
            tables[language].append(_item_table(rows[language]))
            rows[language] = []
        if size[language] >= PART or size.total() >= HELD:
            flush(max(size, key=size.get))
    for language in sorted(size):
        flush(language)
    io.put_json(build.folder / "counts" / "parts" / f"{rank:05d}.json", written, sort_keys=True)
    return iter(())


def finalize(build: CardBuild, _: Documents | None, rank: int) -> Documents:
    """Put the shards of a build in their place, write its manifest, and remove what is no longer needed.

    One task, which may be killed anywhere: whatever it finds half done it does again to the same end. Raises `Me5Error`
    for counts that do not add up, and for a drawing of no pairs.
    """
    out, made = build.out, build.folder / "shards"
    files = sorted((build.folder / "counts" / "parts").glob("*.json"))
    parts = sorted((part for file in files for part in io.read_json(file)), key=lambda part: part["folder"])
    manifest = build.facts | counted(build, parts)
    if build.pairs and not parts:
        why = [*(each["why"] for each in manifest["unreadable"]), *manifest["unfit"], *manifest["dropped"]]
        raise Me5Error(f"card {build.card.name}: none of the {manifest['read']} rows drawn makes a pair "
                       f"({'; '.join(why[:3]) or 'the files are empty'}): mend the card")
    (out / MANIFEST).unlink(missing_ok=True)
    ours = [part["folder"] for part in parts]
    kept = {out / name for name in ours if not (made / name).exists()}  # in place already
    others = [other for other in (out / ".build").glob("*/") if other != build.folder]
    for stale in (*others, *(shard for shard in out.glob("[!.]*/part-*") if shard not in kept)):
        shutil.rmtree(stale)
    for name in ours:
        if (made / name).exists():
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(made / name, out / name)
        shards.open_shard(out / name)
    for language in list(out.glob("[!.]*/")):
        with contextlib.suppress(OSError):
            language.rmdir()  # where it is empty
    io.put_json(out / ".build" / SEALED, build.key)
    io.put_json(out / MANIFEST, manifest, sort_keys=True)
    for name in ("items", "exact", "near", "shards"):
        shutil.rmtree(build.folder / name, ignore_errors=True)
    return iter(())


def counted(build: CardBuild, parts: list[dict]) -> dict[str, Any]:
    """What a manifest says of its shards and of all else, in the units of `hub.Ledger`.

    `rows`: items kept, also by language; `read`, `built`: rows of files; `unfit`: reason → language → rows; `made`:
    items; `dropped`: reason → language → items; `unreadable`: files; `first`: where a reason was first met.
    """
    number, languages, first, broken = Counter(), Counter(), {}, []
    reasons = {"unfit": defaultdict(Counter), "dropped": defaultdict(Counter)}
    for book in sorted(build.folder.glob("counts/*/*.json")):
        if book.parent.name == "parts":
            continue
        about = io.read_json(book)
        first, broken = about["first"] | first, broken + about["broken"]
        for what, reason, language, n in about["counts"]:
            number[what] += n
            if what in reasons:
                reasons[what][reason][language] += n
    for part in parts:
        languages[part["language"]] += part["rows"]
    number["kept"] = languages.total()
    if number["read"] != number["unfit"] + number["built"] or number["made"] != number["dropped"] + number["kept"]:
        raise Me5Error(f"card {build.card.name}: the counts do not add up ({dict(number)}): delete {build.folder} and "
                       "build again")
    return {"rows": number["kept"], "languages": dict(languages), "read": number["read"], "built": number["built"],
            "made": number["made"], **reasons, "first": first, "shards": parts,
            "unreadable": sorted(broken, key=lambda each: each["file"])}


# ── stages, and what runs them ──


def build_stages(build: CardBuild, progress: bool = False) -> list[tuple[str, list[PipelineStep], int]]:
    """What is to be run, in order: name, steps, tasks."""
    at, tasks, whole = build.folder, len(build.shares), build.card.filters
    finders = tasks if build.pairs is None else 1
    make = [FunctionStep(items_of_task, build, progress), FunctionStep(keep_items, at / "items")]
    reread: list[PipelineStep] = [FunctionStep(reread_items, at / "items")]
    found = [("pairs", make, tasks)]
    if "exact" in whole:
        signs, duplicates = str(at / "exact/signatures"), str(at / "exact/found")
        config = exact.ExactDedupConfig(content_getter=exact_content)  # one false hit in 1,400 sets of 160 M items
        make.append(exact.ExactDedupSignature(signs, config, finders))
        found.append(("exact duplicates", [exact.ExactFindDedups(signs, duplicates, config)], finders))
        reread.append(exact.ExactDedupFilter(duplicates, config, Excluded("exact duplicate", at / "counts")))
    if "near" in whole and build.pairs is None:
        signs, pairs, remove = (str(at / "near" / name) for name in ("signatures", "pairs", "remove"))
        near = NearSignature(signs, *filters.make_filter(build.card.name, "near", whole["near"]))
        config = near.config
        found += [("near signatures", [*reread, near], tasks),
                  ("near pairs", [minhash.MinhashDedupBuckets(signs, pairs, config=config)], config.num_buckets),
                  ("near clusters", [minhash.MinhashDedupCluster(pairs, remove, config)], 1)]
        reread.append(minhash.MinhashDedupFilter(remove, Excluded("near duplicate", at / "counts")))
    return [*found, ("shards", [*reread, FunctionStep(write_shards, build)], tasks),
            ("seal", [FunctionStep(finalize, build)], 1)]


class _LogFileOnly:
    """Mixed into an executor: a task writes to its log file alone."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with open(os.devnull, "w", encoding="utf8") as nowhere, contextlib.redirect_stderr(nowhere):
            logger.enable("datatrove")
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            finally:
                logger.remove()  # datatrove has added stderr again, which is about to close
                logger.disable("datatrove")


class _LocalPool(_LogFileOnly, LocalPipelineExecutor):
    """datatrove's executor of one machine, over a pool that notices a worker that the system killed."""

    def run(self) -> None:
        """Run the tasks that are not finished, each with steps of its own."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                copy.deepcopy(self)._run_for_rank(rank)
            return
        context = multiprocessing.get_context(self.start_method)
        with ProcessPoolExecutor(min(self.workers, len(ranks)), context, _end_with_parent) as pool:
            jobs = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for job in tqdm(as_completed(jobs), total=len(jobs), unit="task", leave=False, disable=None):
                    job.result()
            except BaseException as error:  # an interrupt reached the workers too; else those at work end first, or
                pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)  # they would meet the next try's
                raise


class _Ray(_LogFileOnly, RayPipelineExecutor):
    """datatrove's executor of a Ray cluster."""


def _end_with_parent() -> None:
    """In a worker: end this process once the build's is gone, so that no two write one file."""
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Slurm(NamedTuple):
    """What `sbatch` is told. `mem`: GB a task; `more`: further options, as {"qos": "long"}."""

    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    mem: int = 4
    env_command: str = ""
    more: Mapping[str, str] = {}


def run_build(build: CardBuild, executor: str = "local", workers: int | None = None, slurm: Slurm | None = None,
        memory: float = 2.0, progress: bool = True) -> str | None:
    """Do what is not done yet. `workers`: tasks at a time (None: local, one a processor; else no limit); `memory`: GB.

    Returns the last job's id for Slurm, which goes on alone. Raises `Me5Error`, one line.
    """
    if executor not in ("local", "slurm", "ray"):
        raise Me5Error(f"--executor {executor!r}: choose local, slurm or ray")
    if build.finished:
        return None
    logger.disable("datatrove")  # its tasks write to their log files
    with io.locked(build.out / ".build" / ".lock"):
        found = build_stages(build, progress and build.pairs is not None and sys.stderr.isatty())
        logs = [str(build.folder / "logs" / f"{i:02d}-{name.replace(' ', '-')}") for i, (name, *_) in enumerate(found)]
        if executor == "slurm":
            return _submit(build.card.name, found, logs, workers or -1, slurm or Slurm())
        for number, (name, steps, tasks) in enumerate(found):
            title = f"{build.card.name} {number + 1}/{len(found)} {name}"
            _finish(title, _executor(executor, steps, tasks, logs[number], workers, memory))
            if progress and build.pairs is None:
                print(f"{title}: {tasks} tasks", file=sys.stderr)
    return None


def _executor(kind: str, steps: list, tasks: int, logs: str, workers: int | None, memory: float) -> Any:
    """What runs a stage on this machine, or on the Ray cluster that it belongs to (or a new one of this machine)."""
    if kind == "local":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        return _LocalPool(steps, tasks, workers or min(tasks, usable), logs, start_method=method)
    try:
        import ray
    except ImportError:
        raise Me5Error("--executor ray needs Ray: pip install 'ray[default]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    return _Ray(steps, tasks, workers or -1, logging_dir=logs, mem_per_cpu_gb=memory)


def _finish(title: str, executor: Any) -> None:
    """Run what a stage still lacks. Raises `Me5Error` naming the log of a task that is not finished after it."""
    why = ""
    try:
        if executor.get_incomplete_ranks():
            executor.run()
    except Me5Error:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        died = type(error).__name__ == "BrokenProcessPool"
        why = f" ({'a worker was killed: too little memory? Try fewer --workers' if died else said})"
    if (missing := executor.get_incomplete_ranks()) or why:
        log = executor.logging_dir.resolve_paths(f"logs/task_{(missing or [0])[0]:05d}.log")
        raise Me5Error(f"card {title}: {len(missing)} tasks are not finished{why}: see {log}; the same command goes on "
                       "from there")


def _submit(card: str, found: list[tuple], logs: list[str], workers: int, slurm: Slurm) -> str:
    """Submit the stages, each an array job that waits for the one before and skips what is done; the last job's id.

    Raises `Me5Error` where there is no `sbatch`, or it refuses.
    """
    if not shutil.which("sbatch"):
        raise Me5Error("there is no sbatch here: start the build on a login node, or choose --executor local")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise Me5Error("this is a task of a Slurm array: start the build on a login node")
    if not slurm.partition:
        raise Me5Error("--executor slurm needs --partition")
    before, more = None, ({"account": slurm.account} if slurm.account else {}) | dict(slurm.more)
    for (name, steps, tasks), folder in zip(found, logs, strict=True):
        before = SlurmPipelineExecutor(
            steps, tasks, slurm.time, slurm.partition, mem_per_cpu_gb=slurm.mem, workers=workers, qos="",
            job_name=f"me5-{card}-{name.replace(' ', '-')}", env_command=slurm.env_command or None, sbatch_args=more,
            depends=before, logging_dir=folder,
        )  # fmt: skip
    try:
        before.run()
    except subprocess.CalledProcessError as error:
        raise Me5Error(f"card {card}: sbatch refused the job (exit code {error.returncode}): see its message above"
                       ) from None
    return str(before.job_id)
