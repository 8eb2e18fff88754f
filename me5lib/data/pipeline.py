"""From a card's files to shards, by datatrove: all rows (`me5 mixture build`), or so many pairs (`me5 fetch`).

    build = prepare_build(load_card("nllb"), out, tasks=64)         # checks everything, does no work
    run_build(build)                                                # or with "slurm", slurm={…}, or with "ray"
    draw_card(load_card("nllb"), 100_000)                           # the same with a limit: a task per stream

What a task leaves is written beside and renamed, and datatrove notes last of all that it is finished: a build killed at
any moment goes on with the other tasks, a task with the next of its files, and ends with the same bytes.

    <out>/<card>/<language>/part-<rank>-<n>/      shards, and
    <out>/<card>/manifest.json                    what they are, and what was dropped and why: written last
    <out>/<card>/.build/<key>/                    logs, counts and (until it is finished) intermediate files

The key hashes the card, the options that shape the shards and the list of files; the last finished build's shards stay
until another is finished. A drawing keeps its plan instead: it goes on at the same commits though a branch has moved.

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
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import exact_dedup as exact
from datatrove.pipeline.dedup import minhash
from datatrove.utils.batching import batched
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

VERSION = 3  # of the build; raise it with any change that gives other shards
MANIFEST, SEALED = "manifest.json", "sealed.json"  # SEALED, in .build: key of the build whose shards are in place
READ = 20  # rows a drawing reads at most for a pair that is wanted: a filter that refuses all must not read all
PART = 256_000_000  # bytes of text after which a part of a shard is written (ours)
HELD = 1_000_000_000  # bytes of text in all languages that a task holds (ours): the largest part is then written early
GROUP = 2_000  # rows of an intermediate file, or of a chunk in memory, at once
NGRAM = 5  # characters (ours)
_TEXTS = pa.list_(pa.string())
_ITEMS = pa.schema([("query", pa.string()), ("positives", _TEXTS), ("negatives", _TEXTS), ("language", pa.string()),
                    ("labelled", pa.bool_()), ("instruction", pa.string())])
Documents = Iterator[Document]  # the metadata of each is a row of `_ITEMS`


class CardBuild(NamedTuple):
    """A build of a card that may start: everything was looked at."""

    card: Card
    out: Path  # of shards and manifest
    key: str
    shares: list[list[hub.HubFile]]  # of each task
    commits: list[str]  # by entry of the card
    builders: dict[str, Builder]
    facts: dict[str, Any]  # what the manifest says beside the counts
    mirror: Path | None = None
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


def prepare_build(card: Card, out: Path, tasks: int = 8, mirror: Path | None = None,
                  builders: Mapping[str, Builder] = BUILDERS) -> CardBuild:
    """Look at card and files (`mirror`: a copy of the hub's) before any work. Raises `Me5Error`, one line, where
    something is wrong."""
    hub.refuse_nonsense(card, builders)
    files, commits, absent = hub.list_files(card, mirror)
    given = [VERSION, __version__, card.sha256, tasks, None, files, commits]  # None: a limit that there once was
    key = hashlib.sha256(json.dumps(given).encode("utf8")).hexdigest()[:16]
    facts = _described(card, files, commits) | {"absent": absent, "tasks": tasks}
    place = (Path(out) / card.name).expanduser().resolve()
    return CardBuild(card, place, key, share(files, tasks), commits, dict(builders), facts, mirror)


def draw_card(card: Card, pairs: int, temperature: float = 0.5, builders: Mapping[str, Builder] = BUILDERS) -> Path:
    """The folder of a card's drawing of (at most) so many pairs, made first where the cache does not have it.

    Raises `Me5Error`; the same call then goes on from there.
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
    run_build(build, workers=1)
    return place


def _described(card: Card, files: list[hub.HubFile], commits: list[str]) -> dict[str, Any]:
    """What a manifest says of a build before anything was read."""
    repositories = [{"repository": entry.repository, "revision": commit, "glob": entry.files, "files": 0, "bytes": 0}
                    for entry, commit in zip(card.hub, commits, strict=True)]
    for file in files:
        repositories[file.entry]["files"] += 1
        repositories[file.entry]["bytes"] += file.size
    revisions = [f"{each['repository']}@{each['revision']}" for each in repositories]
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
    """A function of (build, documents, rank) as a step of datatrove's; pickled to other processes, and machines."""

    type = "me5"

    def __init__(self, function: Callable[[CardBuild, Documents, int], Documents | None], build: CardBuild):
        super().__init__()
        self.name, self.function, self.build = function.__name__, function, build

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        """What the function gives; no documents after one that gives nothing."""
        return self.function(self.build, data, rank) or iter(())


def keep_items(build: CardBuild, _: Documents, rank: int) -> None:
    """Write the items of each of a task's files to a file; one that is there was finished before a kill.

    Of a drawing a file gives what its stream lacks, if `READ` rows a pair have it.
    """
    read = kept = 0
    bar = tqdm(total=build.pairs, unit="pair", desc=f"{build.card.name} {rank + 1}/{len(build.shares)}", leave=False,
               file=sys.__stderr__, disable=None if build.pairs else True)  # None: no bar where there is no terminal
    for number, file in enumerate(build.shares[rank]):
        most = lacking = None
        if file.due is not None:
            most, lacking = max(READ * file.due - read, 0), max(file.due - kept, 0)
        if 0 in (most, lacking):
            continue
        path = build.folder / "items" / f"{rank:05d}-{number:05d}.parquet"
        counts = build.folder / "counts" / "items" / f"{path.stem}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            book = hub.Ledger()
            with pq.ParquetWriter(path.with_suffix(".part"), _ITEMS, compression="zstd") as writer:
                for group in batched(islice(items_of_file(build, file, most, book), lacking), GROUP):
                    writer.write_table(pa.Table.from_pylist(group, _ITEMS))
                    bar.update(len(group))
            book.save(counts)
            os.replace(path.with_suffix(".part"), path)
        kept += pq.read_metadata(path).num_rows
        read += sum(n for what, _, _, n in io.read_json(counts)["counts"] if what == "read")
        bar.update(kept - bar.n)
    bar.close()


def items_of_file(build: CardBuild, file: hub.HubFile, most: int | None, book: hub.Ledger) -> Iterator[dict[str, Any]]:
    """The items of (at most) so many rows of a file, as rows of `_ITEMS`."""
    entry = build.card.hub[file.entry]
    rows = hub.read_rows(hub.folder(entry, build.commits[file.entry], build.mirror), file.path, entry.columns)
    for item in hub.make_items(build.card, file, islice(rows, most), build.builders, book):
        labelled = not isinstance(item, Pair)
        yield {"query": item.query, "language": item.language, "labelled": labelled,
               "positives": item.positives if labelled else [item.passage],
               "negatives": item.negatives if labelled else [],
               "instruction": item.instruction if labelled else None}


def reread_items(build: CardBuild, _: Documents, rank: int) -> Documents:
    """The items that `keep_items` wrote, in the same order."""
    for path in sorted((build.folder / "items").glob(f"{rank:05d}-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP):
                for row in batch.to_pylist():
                    yield Document(text=row["positives"][0], id="", metadata=row)


class Excluded(hub.Ledger, contextlib.AbstractContextManager):
    """Where datatrove's filters write the documents that they leave out: here they are counted."""

    def __init__(self, reason: str, build: CardBuild):
        super().__init__()
        self.reason, self.folder, self.path = reason, build.folder / "counts" / reason.replace(" ", "-"), None

    def write(self, left_out: Document, rank: int = 0) -> None:
        """Count one."""
        self.path = self.folder / f"{rank:05d}.json"
        self.count("dropped", left_out.metadata["language"], self.reason)

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self.save(self.path)


def exact_content(given: Document) -> bytes:
    """What two items must share to be the same: the keys of the query and of every positive."""
    texts = [given.metadata["query"], *given.metadata["positives"]]
    return b"".join(text_key(text).to_bytes(8, "little", signed=True) for text in texts)


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


def write_shards(build: CardBuild, data: Documents, rank: int) -> None:
    """Write the items of a task, by language, as shards `<language>/part-<rank>-<n>`; nothing goes on."""
    for stale in (build.folder / "shards").glob(f"*/part-{rank:05d}-*"):
        shutil.rmtree(stale)
    rows, tables, size, written = defaultdict(list), defaultdict(list), Counter(), []

    def pack(language: str) -> None:
        """Small Python strings take three times the memory of their text."""
        tables[language].append(pa.Table.from_pylist(rows.pop(language, []), _ITEMS))

    def flush(language: str) -> None:
        """Write what is held of a language as its next part, and note what the manifest says of it."""
        pack(language)
        table = _part_table(f"card {build.card.name}, language {language}", pa.concat_tables(tables.pop(language)))
        number = sum(part["language"] == language for part in written)
        name = f"{language}/part-{rank:05d}-{number:04d}"
        done = shards.write_shard(table, build.folder / "shards" / name, seed=rank * 10_000 + number)
        written.append({"folder": name, "language": language, "rows": done.rows, "columns": list(done.columns),
                        "bytes": done.bytes, "sha256": done.sha256})
        del size[language]

    for row in (each.metadata for each in data):
        language = row["language"]
        rows[language].append(row)
        size[language] += sum(len(text.encode()) for text in (row["query"], *row["positives"], *row["negatives"])) + 1
        if len(rows[language]) == GROUP:
            pack(language)
        if size[language] >= PART or size.total() >= HELD:
            flush(max(size, key=size.get))
    for language in sorted(size):
        flush(language)
    io.put_json(build.folder / "counts" / "parts" / f"{rank:05d}.json", written, sort_keys=True)


def _part_table(where: str, items: pa.Table) -> pa.Table:
    """The columns of a shard of these items, all pairs or all labelled examples (else `Me5Error`)."""
    kinds = set(items["labelled"].to_pylist())
    if len(kinds) > 1:
        raise Me5Error(f"{where}: its builders make pairs and labelled examples: give each a card of its own")
    if kinds == {True}:
        own = ["instruction"] if items["instruction"].null_count < items.num_rows else []
        return items.select(["query", "positives", "negatives", *own])
    return pa.table({"query": items["query"], "passage": pc.list_flatten(items["positives"])})


def finalize(build: CardBuild, _: Documents, rank: int) -> None:
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
    new = sorted(manifest["languages"])
    others = [other for other in (out / ".build").glob("*/") if other != build.folder]
    for stale in (*others, *(old for old in out.glob("[!.]*/") if old.name not in new or (made / old.name).exists())):
        shutil.rmtree(stale)
    for language in new:
        if (made / language).exists():  # else it is in its place already
            os.replace(made / language, out / language)
    for part in parts:
        shards.Shard(out / part["folder"])
    io.put_json(out / ".build" / SEALED, build.key)
    io.put_json(out / MANIFEST, manifest, sort_keys=True)
    for name in ("items", "exact", "near", "shards"):
        shutil.rmtree(build.folder / name, ignore_errors=True)


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


def build_stages(build: CardBuild) -> list[tuple[str, list[PipelineStep], int]]:
    """What is to be run, in order: name, steps, tasks."""
    at, tasks, whole = build.folder, len(build.shares), build.card.filters
    finders = tasks if build.pairs is None else 1
    make: list[PipelineStep] = [FunctionStep(keep_items, build)]
    reread: list[PipelineStep] = [FunctionStep(reread_items, build)]
    found = [("pairs", make, tasks)]
    if "exact" in whole:
        signs, duplicates = str(at / "exact/signatures"), str(at / "exact/found")
        config = exact.ExactDedupConfig(content_getter=exact_content)  # one false hit in 1,400 sets of 160 M items
        make += [*reread, exact.ExactDedupSignature(signs, config, finders)]
        found.append(("exact duplicates", [exact.ExactFindDedups(signs, duplicates, config)], finders))
        reread.append(exact.ExactDedupFilter(duplicates, config, Excluded("exact duplicate", build)))
    if "near" in whole and build.pairs is None:
        signs, pairs, remove = (str(at / "near" / name) for name in ("signatures", "pairs", "remove"))
        near = NearSignature(signs, *filters.make_filter(build.card.name, "near", whole["near"])())
        found += [("near signatures", [*reread, near], tasks),
                  ("near pairs", [minhash.MinhashDedupBuckets(signs, pairs, config=near.config)],
                   near.config.num_buckets),
                  ("near clusters", [minhash.MinhashDedupCluster(pairs, remove, near.config)], 1)]
        reread.append(minhash.MinhashDedupFilter(remove, Excluded("near duplicate", build)))
    return [*found, ("shards", [*reread, FunctionStep(write_shards, build)], tasks),
            ("seal", [FunctionStep(finalize, build)], 1)]


def run_local(executor: LocalPipelineExecutor, workers: int | None) -> None:
    """Run the tasks that are not finished, each with steps of its own, and notice a worker that the system killed."""
    ranks = executor.get_incomplete_ranks()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or min(executor.tasks, usable)
    if workers == 1:
        for rank in ranks:
            _run_task(copy.deepcopy(executor), rank)
        return
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload([__name__])  # imported once for the workers of all stages
    with ProcessPoolExecutor(min(workers, len(ranks)), context, _end_with_parent) as pool:
        jobs = [pool.submit(_run_task, executor, rank) for rank in ranks]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="task", leave=False, disable=None):
                job.result()
        finally:  # after an error those at work end first, or the next try's would meet them
            pool.shutdown(cancel_futures=True)


def _run_task(executor: LocalPipelineExecutor, rank: int) -> None:
    """Run one task, which writes to its log file alone."""
    with open(os.devnull, "w", encoding="utf8") as nowhere, contextlib.redirect_stderr(nowhere):
        logger.enable("datatrove")
        try:
            executor._run_for_rank(rank)
        finally:
            logger.remove()  # datatrove has added stderr again, which is about to close
            logger.disable("datatrove")


def _end_with_parent() -> None:
    """In a worker: end this process once the build's is gone, so that no two write one file."""
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_build(build: CardBuild, executor: str = "local", workers: int | None = None, memory: float = 2.0,
              slurm: Mapping[str, Any] | None = None) -> str | None:
    """Do what is not done yet. `workers`: tasks at a time (None: local, one a processor; else no limit); `memory`: GB
    a task on Ray; `slurm`: options of datatrove's `SlurmPipelineExecutor`, `time` and `partition` among them.

    Returns the last job's id for Slurm, which goes on alone. Raises `Me5Error`, one line.
    """
    if executor not in ("local", "slurm", "ray"):
        raise Me5Error(f"--executor {executor!r}: choose local, slurm or ray")
    if build.finished:
        return None
    logger.disable("datatrove")  # its tasks write to their log files
    with io.locked(build.out / ".build" / ".lock"):
        found = build_stages(build)
        logs = [str(build.folder / "logs" / f"{i:02d}-{name.replace(' ', '-')}") for i, (name, *_) in enumerate(found)]
        if executor == "slurm":
            return _submit(build.card.name, found, logs, workers or -1, slurm or {})
        for number, (name, steps, tasks) in enumerate(found):
            title = f"{build.card.name} {number + 1}/{len(found)} {name}"
            if executor == "local":
                local = LocalPipelineExecutor(steps, tasks, logging_dir=logs[number])
                _finish(title, local, partial(run_local, local, workers))
            else:
                _start_ray()
                ray = RayPipelineExecutor(steps, tasks, workers or -1, logging_dir=logs[number], mem_per_cpu_gb=memory)
                _finish(title, ray, ray.run)
            if build.pairs is None:
                print(f"{title}: {tasks} tasks", file=sys.stderr)
    return None


def _start_ray() -> None:
    """Join the Ray cluster that this machine belongs to, or start one of this machine."""
    try:
        import ray
    except ImportError:
        raise Me5Error("--executor ray needs Ray: pip install 'ray[default]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)


def _finish(title: str, executor: PipelineExecutor, run: Callable[[], object]) -> None:
    """Run what a stage still lacks. Raises `Me5Error` naming the log of a task that is not finished after it."""
    why = ""
    try:
        if executor.get_incomplete_ranks():
            run()
    except Me5Error:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        died = isinstance(error, BrokenProcessPool)
        why = f" ({'a worker was killed: too little memory? Try fewer --workers' if died else said})"
    if (missing := executor.get_incomplete_ranks()) or why:
        log = executor.logging_dir.resolve_paths(f"logs/task_{(missing or [0])[0]:05d}.log")
        raise Me5Error(f"card {title}: {len(missing)} tasks are not finished{why}: see {log}; the same command goes on "
                       "from there")


def _submit(card: str, found: list[tuple], logs: list[str], workers: int, slurm: Mapping[str, Any]) -> str:
    """Submit the stages, each an array job that waits for the one before and skips what is done; the last job's id.

    Raises `Me5Error` where there is no `sbatch`, or it refuses.
    """
    if not shutil.which("sbatch"):
        raise Me5Error("there is no sbatch here: start the build on a login node, or choose --executor local")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise Me5Error("this is a task of a Slurm array: start the build on a login node")
    if not slurm.get("partition"):
        raise Me5Error("--executor slurm needs --partition")
    last = None
    for (name, steps, tasks), folder in zip(found, logs, strict=True):
        last = SlurmPipelineExecutor(steps, tasks, workers=workers, qos="", depends=last, logging_dir=folder,
                                     job_name=f"me5-{card}-{name.replace(' ', '-')}", **slurm)
    try:
        last.run()
    except subprocess.CalledProcessError as error:
        raise Me5Error(f"card {card}: sbatch refused the job (exit code {error.returncode}): see its message above"
                       ) from None
    return str(last.job_id)
