"""Building a card's shards at scale: which stages there are, in which folder, and what the manifest says at the end.

    build = prepare(cards.load("nllb"), out, Options(tasks=64))     # checks everything, does no work
    run(build)                                                      # or slurm=…, ray=…

Stages (executors.py runs them, steps.py and whole.py say what a task does): 1 read, make pairs, filter, sign; 2 find
exact duplicates; 3–5 near ones; 6 shards; 7 seal. A card has those that it names.

    <out>/<card>/<language>/part-<rank>-<n>/      shards, and
    <out>/<card>/manifest.json                    what they are: written last; without it a build is not finished
    <out>/<card>/.build/<key>/                    logs, counts and (until it is sealed) intermediate files

The key hashes the card, the options that shape the shards and the list of files (with sizes and dates or blob ids): a
changed card or input is another build, and the shards of the last finished one stay until that one is sealed.
A build killed at any moment goes on with the tasks that were not finished, and ends with the same bytes.

Cost: disk for the intermediate files, about the size of the compressed text, while it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from me5lib import __version__
from me5lib.data import filters, inputs, manifests
from me5lib.data.cards import Card
from me5lib.io import Me5Error, cache

if TYPE_CHECKING:
    from me5lib.data.executors import Slurm, Stage

VERSION = 2  # of the build; raise it with any change that gives other shards


class Options(NamedTuple):
    """What shapes a build, beside the card. `mirror`: copy of the hub's files; `limit`: rows of the card, about."""

    tasks: int = 8
    mirror: Path | None = None
    limit: int | None = None


class Prepared(NamedTuple):
    """A build that may start: everything was looked at."""

    card: Card
    options: Options
    out: Path  # <out>/<card>
    folder: Path  # <out>/<card>/.build/<key>
    files: list[inputs.Input]
    commits: list[str]
    absent: list[str]
    builders: list[tuple[Callable, Mapping[str, Any]]]

    @property
    def per_file(self) -> int | None:
        """Rows read of each file at most: the limit shared evenly."""
        return None if self.options.limit is None else -(-self.options.limit // len(self.files))

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return manifests.is_sealed(self.out, self.folder)


def home() -> Path:
    """Where mixtures are built if nothing else is said."""
    return cache() / "mixture"


def known_builders() -> dict[str, Callable]:
    """Every builder by the name that cards use."""
    from me5lib.data import labelled, sources

    return {**sources.BUILDERS, **labelled.BUILDERS}


def prepare(card: Card, out: Path, options: Options, builders: Mapping[str, Callable] | None = None) -> Prepared:
    """Look at card, options and files before any work. Raises `Me5Error`, one line, where something is wrong."""
    if not card.hub:
        raise Me5Error(f"card {card.name} is no hub source: `me5 packs` fetches the offline ones")
    if options.tasks < 1 or (options.limit is not None and options.limit < 1):
        raise Me5Error(f"--tasks {options.tasks} and --limit {options.limit}: both must be at least 1")
    known = known_builders() if builders is None else builders
    for hub in card.hub:
        if hub.builder not in known:
            raise Me5Error(f"data card {card.name}.md: builder {hub.builder!r} is none: there are {', '.join(known)}")
    filters.sift(card.name, card.filters)
    files, commits, absent = inputs.listed(card, options.mirror)
    key = _key(card, options, files, commits)
    here = (Path(out) / card.name).expanduser().resolve()
    return Prepared(card, options, here, here / ".build" / key, files, commits, absent,
                    [(known[hub.builder], hub.options) for hub in card.hub])


def _key(card: Card, options: Options, files: list[inputs.Input], commits: list[str]) -> str:
    given = [VERSION, __version__, card.sha256, options.tasks, options.limit, files, commits]
    return hashlib.sha256(json.dumps(given).encode("utf8")).hexdigest()[:16]


def stages(build: Prepared) -> list[Stage]:
    """What is to be run, in order."""
    from datatrove.pipeline.dedup.exact_dedup import ExactFindDedups

    from me5lib.data import whole
    from me5lib.data.executors import Stage, unheard

    at, tasks = build.folder, build.options.tasks
    steps = filters.whole(build.card.name, build.card.filters)
    with unheard():  # datatrove reminds of a number of tasks that is right
        found = [("pairs", _first(build, "exact" in steps), tasks)]
    if "exact" in steps:
        finder = ExactFindDedups(str(at / "exact/signatures"), str(at / "exact/found"), whole.exact_config())
        found.append(("exact duplicates", [finder], tasks))
    if "near" in steps:
        found += _near(build, steps["near"], "exact" in steps)
    found.append(("shards", _last(build, steps), tasks))
    found.append(("seal", [_seal(build)], 1))
    return [Stage(name, parts, n, at / "logs" / f"{i:02d}-{name.replace(' ', '-')}")
            for i, (name, parts, n) in enumerate(found)]


def _first(build: Prepared, exact: bool) -> list:
    """Steps from a row to an intermediate file of items, and their signatures."""
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupSignature

    from me5lib.data import steps, whole

    at, card, ledger = build.folder, build.card, str(build.folder / "counts")
    shares = inputs.share(build.files, build.options.tasks)
    readers = [steps.Rows(card.name, entry, hub.columns, inputs.folder(hub, commit, build.options.mirror), shares,
                          build.per_file, ledger)
               for entry, (hub, commit) in enumerate(zip(card.hub, build.commits, strict=True))]
    found = [*readers, steps.Build(card.name, build.builders, card.filters, ledger), steps.Keep(str(at / "items"))]
    if exact:
        found.append(ExactDedupSignature(str(at / "exact/signatures"), whole.exact_config(), build.options.tasks))
    return found


def _again(build: Prepared, exact: bool, near: bool) -> list:
    """Steps that read the items again, without the duplicates found so far."""
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashDedupFilter

    from me5lib.data import steps, whole

    at, ledger = build.folder, str(build.folder / "counts")
    found: list = [steps.Again(build.card.name, str(at / "items"))]
    if exact:
        inner = ExactDedupFilter(str(at / "exact/found"), whole.exact_config())
        found.append(steps.Counted(inner, "exact duplicate", ledger))
    if near:
        found.append(steps.Counted(MinhashDedupFilter(str(at / "near/remove")), "near duplicate", ledger))
    return found


def _near(build: Prepared, options: filters.Near, exact: bool) -> list[tuple]:
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

    from me5lib.data import whole

    at, config = build.folder / "near", whole.near_config(options)
    sign = [*_again(build, exact, False), whole.NearSignature(str(at / "signatures"), options)]
    buckets = MinhashDedupBuckets(str(at / "signatures"), str(at / "pairs"), config=config)
    cluster = MinhashDedupCluster(str(at / "pairs"), str(at / "remove"), config)
    return [("near signatures", sign, build.options.tasks), ("near pairs", [buckets], config.num_buckets),
            ("near clusters", [cluster], 1)]


def _last(build: Prepared, given: Mapping[str, Any]) -> list:
    from me5lib.data import steps

    shards = steps.Shards(build.card.name, str(build.folder / "shards"), str(build.folder / "counts"))
    return [*_again(build, "exact" in given, "near" in given), shards]


def _seal(build: Prepared) -> Any:
    from me5lib.data import seal

    return seal.Seal(str(build.out), str(build.folder), describe(build))


def describe(build: Prepared) -> dict[str, Any]:
    """What a manifest says of a build before anything was read."""
    files, size = Counter(f.entry for f in build.files), Counter()
    for file in build.files:
        size[file.entry] += file.size
    repositories = [{"repository": hub.repository, "revision": commit, "glob": hub.files, "files": files[entry],
                     "bytes": size[entry]}
                    for entry, (hub, commit) in enumerate(zip(build.card.hub, build.commits, strict=True))]
    return {"card": build.card.name, "card_sha256": build.card.sha256, "me5": __version__, "build": VERSION,
            "revision": "; ".join(dict.fromkeys(f"{each['repository']}@{each['revision']}" for each in repositories)),
            "repositories": repositories, "absent": build.absent, "tasks": build.options.tasks,
            "limit": build.options.limit}


def run(build: Prepared, executor: str = "local", workers: int | None = None, slurm: Slurm | None = None,
        memory: float = 2.0, progress: bool = True) -> str | None:
    """Do what is not done yet. `workers`: tasks at a time (None: local, one a processor; else no limit); `memory`: GB.

    Returns the last job's id for Slurm, which goes on alone. Raises `Me5Error`, one line.
    """
    if build.finished:
        return None
    from me5lib.data import executors

    with _alone(build):
        if executor == "slurm":
            return executors.run_slurm(build.card.name, stages(build), workers or -1, slurm or executors.Slurm())
        if executor == "ray":
            executors.run_ray(build.card.name, stages(build), workers or -1, memory, progress)
        elif executor == "local":
            executors.run_local(build.card.name, stages(build), workers or processors(build.options.tasks), progress)
        else:
            raise Me5Error(f"--executor {executor!r}: choose local, slurm or ray")
    return None


def processors(most: int) -> int:
    """Processors that this process may use, `most` at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, usable)


@contextlib.contextmanager
def _alone(build: Prepared) -> Iterator[None]:
    """One build of a card at a time in one folder. (A build on Slurm holds it only while it is submitted.)"""
    from filelock import FileLock, Timeout

    try:
        build.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(build.out / ".build" / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise Me5Error(f"another process builds {build.card.name} in {build.out}: wait for it, or choose another --out"
                       ) from None
    except OSError as error:
        raise Me5Error(f"cannot write to {build.out} ({error.strerror}): choose another folder with --out") from None
    try:
        yield
    finally:
        lock.release()
