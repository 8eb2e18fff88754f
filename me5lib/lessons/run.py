"""Run the notebooks by papermill, by number, and leave a folder that can be read without network.

    run_notebooks(config.load("tiny"), seed=0)   # → [Outcome(name="00", state="finished", …), …]

The folder of a run (`runs/<scale>/seed-<n>`, held under a lock while it is written):

    notebooks/06.ipynb, 06.html    executed notebooks
    lessons/06/                    what each measured: metrics.json, timings.json, tables, pictures
    stage1/, stage2/               checkpoints
    results.json, timings.json     all of it; times apart, so that two runs with one seed leave equal results
    state.json, index.html         what is finished, and under which key; the page to start from

A notebook is finished under a key: a hash of its code cells, its parameters, me5's version, `VERSION`, the packs and
the keys of the notebooks whose checkpoints it needs. While the key stays, it is not run again. Which others have to be
run first, all of a lower number, comes from the notebooks' metadata: `"me5": {"needs": ["stage1"], "makes": []}`. Their
`minutes` (ours: what one machine took at tiny) estimate what is left, scaled by how long this machine took so far.

Ctrl-C goes to the kernel, which has `GRACE` seconds to leave its cell; then it is killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from me5lib import __version__, io
from me5lib.config import Scale
from me5lib.data import packs
from me5lib.io import Me5Error
from me5lib.lessons import report

VERSION = 1  # of the library as notebooks see it; raise it with any change between releases that gives other results
AGAIN = 1.0  # seconds from Ctrl-C to a second interrupt: a kernel about to begin a cell ignores the first (ours)
GRACE = 10.0  # seconds from Ctrl-C until a kernel that does not leave its cell is killed (ours)


class Book(NamedTuple):
    """One source notebook, and the checkpoints that it needs and makes."""

    name: str  # "06"
    path: Path
    title: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    source: str  # hash of its code cells
    minutes: float  # at tiny, where it was measured; 1 where nobody did


class Outcome(NamedTuple):
    """What became of one notebook."""

    name: str
    state: str  # "finished", "kept" (finished before) or "failed"
    seconds: float
    error: str = ""  # last line of the exception


def books(folder: Path | None = None) -> list[Book]:
    """The notebooks of `folder` (default: those that ship with me5), by number: makers before who needs them."""
    found = []
    for path in sorted((folder or io.asset("notebooks")).glob("[0-9][0-9]_*.ipynb")):
        raw = io.read_json(path)
        needs, makes = (tuple(raw["metadata"].get("me5", {}).get(key, ())) for key in ("needs", "makes"))
        code = ["".join(cell["source"]) for cell in raw["cells"] if cell["cell_type"] == "code"]
        found.append(Book(path.name[:2], path, report.notebook_title(raw), needs, makes, _digest(code, needs, makes),
                          raw["metadata"].get("me5", {}).get("minutes", 1.0)))
    return found


def run_notebooks(
    scale: Scale, seed: int = 0, out: str | os.PathLike = "", only: Sequence[str] = (), overrides: Sequence[str] = (),
    keep_going: bool = False, folder: Path | None = None,
) -> list[Outcome]:
    """Execute the notebooks (`only` these numbers, if given) that are not finished; returns an `Outcome` each.

    Before `only` come those that make what they need and is not there yet; which, is said before anything is run.
    `scale` is loaded with `overrides`, which the notebooks get too. Without `keep_going` the first failure is the last
    notebook. `folder` holds the notebooks, by default those that ship with me5. An interrupt leaves what is finished.
    """
    needs_no_hub(scale)
    all_books = books(folder)
    names = [book.name for book in all_books]
    if unknown := [name for name in only if name not in names]:
        raise Me5Error(f"there is no notebook {', '.join(unknown)}: there are {', '.join(sorted(names))}")
    where = io.out(scale.name, io.valid_seed(seed), out)
    parameters = {"SCALE": scale.name, "SEED": seed, "OUT": str(where), "SET": shlex.join(overrides),
                  "OFFLINE": scale.offline}
    outcomes = []
    with io.locked(where / ".lock"):
        journal = Journal(where, all_books, parameters)
        try:
            wanted = _with_makers([*(only or names)], all_books, journal)
            for book in wanted:
                todo = [each for each in wanted[len(outcomes):] if not journal.finished(each.name)]
                if book in todo:
                    print(f"{book.name}  runs      {book.title} ({_outlook(todo, all_books, journal)})", flush=True)
                outcomes.append(_one(book, journal, parameters))
                if outcomes[-1].state == "failed" and not keep_going:
                    break
        finally:
            journal.close()
    return outcomes


def needs_no_hub(scale: Scale) -> None:
    """Raise `Me5Error` for a scale of the hub: days on GPUs, and without the offline tables' evaluation sets."""
    if not scale.offline:
        raise Me5Error(f"scale {scale.name} is trained by me5 pretrain and me5 finetune (--plan: what it takes), "
                       "measured by me5 evaluate --model FOLDER --table 5: choose --scale smoke or tiny here")


def _with_makers(names: Sequence[str], all_books: Sequence[Book], journal: Journal) -> list[Book]:
    """The books of `names`, and whoever makes a checkpoint that they, or those makers, need; says who and why."""
    reasons = dict.fromkeys(names, "")
    for book in reversed(all_books):  # who needs before who makes
        for maker in all_books if book.name in reasons else ():
            needs = [name for name in book.needs if name in maker.makes and not journal.has(name, maker)]
            if needs and maker.name not in reasons:
                reasons[maker.name] = f"it makes {' and '.join(needs)}, which {book.name} needs"
    wanted = [book for book in all_books if book.name in reasons]
    for book in wanted:
        if reasons[book.name]:
            print(f"{book.name}  added     {reasons[book.name]}", flush=True)
    return wanted


def _outlook(todo: Sequence[Book], all_books: Sequence[Book], journal: Journal) -> str:
    """How long the first of `todo` will take, which wait behind it, and how long all of them will, in words.

    As long as the last time in this folder; else as the notebook's `minutes`, times the median of what the others took
    over theirs. Where none has been run, only tiny's are known.
    """
    last, waits = journal.seconds, f"then {' '.join(book.name for book in todo[1:])}" if todo[1:] else "the last"
    ratios = [last[book.name] / (60 * book.minutes) for book in all_books if book.name in last]
    if not ratios and journal.scale != "tiny":
        return waits
    ratio = statistics.median(ratios or [1.0])
    minutes = [last.get(book.name, 60 * book.minutes * ratio) / 60 for book in todo]
    return f"about {minutes[0]:.1f} min; {waits}; {sum(minutes):.1f} min in all"


class Journal:
    """state.json: which notebook is finished under which key; written after each, so an interrupt loses nothing."""

    def __init__(self, out: Path, all_books: list[Book], parameters: dict[str, Any]) -> None:
        self.out = out
        self.keys: dict[str, str] = {}
        self.scale: str = parameters["SCALE"]
        self._settings = {"scale": parameters["SCALE"], "seed": parameters["SEED"], "set": parameters["SET"]}
        listed = _digest(sorted((name, file.sha256) for name, file in packs.wanted().items()))
        for book in all_books:  # makers come first
            upstream = [self.keys[b.name] for b in all_books if b.name in self.keys and set(b.makes) & set(book.needs)]
            self.keys[book.name] = _digest(book.source, self._settings, __version__, VERSION, listed, upstream)
        kept = io.read_json(out / "state.json", {}).get("notebooks", {})
        self._entries: dict[str, dict] = {name: entry for name, entry in kept.items() if name in self.keys}
        self.seconds = {name: entry["seconds"] for name, entry in self._entries.items() if entry["state"] == "finished"}

    def finished(self, name: str) -> bool:
        """Whether notebook `name` is finished under today's key, and what it made is still there."""
        entry = self._entries.get(name, {})
        here = [self.out / "notebooks" / f"{name}.ipynb", *(self.out / made for made in entry.get("made", ()))]
        return entry.get("state") == "finished" and entry["key"] == self.keys[name] and all(p.exists() for p in here)

    def has(self, checkpoint: str, maker: Book) -> bool:
        """Whether a checkpoint is there: brought from elsewhere, or made by `maker` under today's key."""
        entry = self._entries.get(maker.name)
        there = (self.out / checkpoint / "config.json").is_file()
        return there and (entry is None or entry["key"] == self.keys[maker.name])

    def write(self, book: Book, outcome: Outcome | None) -> None:
        """Record what became of `book`; without an outcome take it out, before it is run again."""
        if self._entries.pop(book.name, None) is None and outcome is None:
            return
        if outcome:
            made = [name for name in book.makes if (self.out / name).exists()]
            self._entries[book.name] = {"key": self.keys[book.name], "state": outcome.state, "error": outcome.error,
                                        "title": book.title, "seconds": round(outcome.seconds, 1), "made": made}
            self.seconds |= {book.name: outcome.seconds} if outcome.state == "finished" else {}
        content = {"settings": self._settings, "version": __version__, "notebooks": self._entries}
        io.put_json(self.out / "state.json", content, sort_keys=True)

    def close(self) -> None:
        """Write results.json and timings.json of what is finished, and the index page."""
        if (self.out / "state.json").is_file():
            for kind, source in (("results", "metrics"), ("timings", "timings")):
                io.write_json(self.out / f"{kind}.json", {
                    name: io.read_json(self.out / "lessons" / name / f"{source}.json", {})
                    for name in self._entries if self.finished(name)})
            report.index(self.out)


def _one(book: Book, journal: Journal, parameters: dict[str, Any]) -> Outcome:
    """Run `book`, unless it is finished, write its page and tell what became of it."""
    if journal.finished(book.name):
        print(f"{book.name}  kept      {book.title}", flush=True)
        return Outcome(book.name, "kept", 0.0)
    journal.write(book, None)
    start = time.perf_counter()
    target = journal.out / "notebooks" / f"{book.name}.ipynb"
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    error = _execute(book, target, parameters)
    outcome = Outcome(book.name, "failed" if error else "finished", time.perf_counter() - start, error)
    if target.is_file():
        report.pages(target)
    journal.write(book, outcome)
    print(f"{book.name}  {outcome.state:9} {book.title} ({outcome.seconds:.0f} s)", flush=True)
    if error:
        print(f"notebook {book.name} failed: {error}", file=sys.stderr, flush=True)
    return outcome


def _execute(book: Book, target: Path, parameters: dict[str, Any]) -> str:
    """Run `book` into `target`; returns the last line of its exception, or nothing."""
    import papermill

    bar = {"desc": f"{book.name} {book.title[:40]}", "leave": False} if sys.stderr.isatty() else False
    try:
        with tempfile.TemporaryFile() as errors, _CtrlC() as ctrl_c:
            papermill.execute_notebook(
                book.path, target, parameters, cwd=target.parent, progress_bar=bar, start_timeout=120,
                language="python", kernel_name="python3", on_cell_execute=ctrl_c.cell,
                kernel_manager_class=_kernel_manager(ctrl_c, errors),
            )
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {' '.join(str(error.evalue).split())} (cell {error.exec_count})"
    except Exception as error:  # a kernel that died or would not start: the other notebooks can still run
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
    return ""


class _CtrlC:
    """Inside, Ctrl-C goes to the kernel, as from Jupyter's stop button; KeyboardInterrupt is raised on the way out.

    Raised wherever it arrives it could be lost in a destructor, or leave asyncio's tasks behind that wait for a kernel
    which has gone. Before its first cell, at a second Ctrl-C, and after `GRACE`, the kernel is killed with all that it
    started. Where Ctrl-C is ignored, or somebody else's to handle, it stays so.
    """

    def __init__(self) -> None:
        self.manager: Any = None  # of the kernel; its `provisioner` has the process
        self._begun = self._ours = False
        self._timers: list[threading.Timer] = []  # since the first Ctrl-C

    def __enter__(self) -> _CtrlC:
        main = threading.current_thread() is threading.main_thread()  # another one cannot set handlers
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._timers:
            for timer in self._timers:
                timer.cancel()
            self._signal(kill=True)
            logging.getLogger("papermill").disabled = False
            raise KeyboardInterrupt from None

    def cell(self, **_: Any) -> None:
        """Called by nbclient before each cell: between two of them a kernel ignores an interrupt."""
        self._begun = True
        if self._timers:
            self._signal(kill=True)

    def _pressed(self, *_: object) -> None:
        """What Ctrl-C does; the timers repeat it, and end it."""
        self._signal(kill=bool(self._timers) or not self._begun)
        if not self._timers:
            self._timers = [threading.Timer(AGAIN, self._signal, [False]), threading.Timer(GRACE, self._signal, [True])]
            for timer in self._timers:
                timer.daemon = True
                timer.start()
            logging.getLogger("papermill").disabled = True  # it would tell of the kernel's death, on standard error

    def _signal(self, kill: bool) -> None:
        process = getattr(getattr(self.manager, "provisioner", None), "process", None)
        with suppress(OSError):  # it ended meanwhile
            if process is None or process.poll() is not None:
                return
            if hasattr(os, "killpg"):  # a kernel leads its group
                os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGINT)
            else:  # Windows has no groups
                process.kill()


def _kernel_manager(ctrl_c: _CtrlC, errors: IO[bytes]) -> type:
    """A kernel manager that starts the interpreter we run in, whatever kernels are installed, with our folders.

    The kernel's own standard error goes to `errors`: one that is interrupted under load prints tracebacks of its own.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    environment = {"ME5_CACHE": str(io.cache()), "PYTHONHASHSEED": "0"}
    if root := io.checkout():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    quiet = "--log-level=CRITICAL"  # what goes wrong stands in the notebook; warnings of the loopback are no news
    command = [sys.executable, "-m", "ipykernel_launcher", quiet, "-f", "{connection_file}"]

    class Manager(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, env=environment, display_name="Python 3", language="python")

        async def start_kernel(self, **options: Any) -> None:
            ctrl_c.manager = self
            await super().start_kernel(stderr=errors, **options)

    return Manager


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf8")).hexdigest()[:16]
