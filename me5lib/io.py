"""Where things lie; files and folders that are there whole or not at all; JSON in one form, arrays, the one-line error.

What is made lies beside its place under another name, is flushed to the disk and renamed: a kill at any moment leaves
all of it or nothing. Every such change goes through `write`, `sync`, `rename` or `remove`, where the tests kill it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

if TYPE_CHECKING:
    import numpy as np

PACKAGE = Path(__file__).resolve().parent
# The checkpoints of a run, and the command that makes each.
STAGES = {"stage1": "pretrain", "stage2": "finetune", "stage2-only": "finetune --scratch",
          "instruct": "finetune --instruct"}
TICK = 2.0  # seconds between two signs of life of long work (ours)
SEEDS = 2**32  # numpy's old generators, which scikit-learn and UMAP use, take no larger ones


class Me5Error(Exception):
    """Something that the user can mend. Printed as one line that says what to do; exit code 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook."""
        return [f"{type(self).__name__}: {self}"]


def valid_seed(value: int) -> int:
    """`value` if it is a whole number from 0 below `SEEDS`. Raises `Me5Error` for anything else."""
    if type(value) is not int or not 0 <= value < SEEDS:
        raise Me5Error(f"a seed is a whole number from 0 to {SEEDS - 1}, not {value!r}")
    return value


def checkout() -> Path | None:
    """The root of the source checkout that this library is imported from, or None when it is installed as a wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def asset(name: str) -> Path:
    """A folder that ships with the library: `notebooks` or `data_cards`, from the checkout or from the wheel."""
    for base in (checkout(), PACKAGE / "_assets"):
        if base is not None and (base / name).exists():
            return base / name
    raise Me5Error(f"the folder {name} of me5lib is missing: install me5 again")


def cache() -> Path:
    """The cache folder: `ME5_CACHE`, else the user's cache folder (no admin rights needed)."""
    given = os.environ.get("ME5_CACHE")
    return Path(given).expanduser().resolve() if given else Path(platformdirs.user_cache_path("me5"))


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`: one process at a time works in the folder that it lies in, which is made if absent.

    Where another process does: says so and waits, or raises `Me5Error`, as for a folder that cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock, busy = FileLock(path), f"another me5 is at work in {path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise Me5Error(f"{busy}: wait for it, or choose another folder with --out") from None
        print(f"me5: {busy}; waiting for it", file=sys.stderr)
        held = lock.acquire()
    except OSError as error:
        other = "choose another folder with --out or ME5_CACHE"
        raise Me5Error(f"cannot write to {path.parent} ({error.strerror}): {other}") from None
    with held:
        yield


@contextlib.contextmanager
def ticking(redraw: Callable[[], object]) -> Iterator[None]:
    """Call `redraw` every `TICK` seconds while the block works, from a thread: a clock on the screen says that it does.
    """
    done = threading.Event()

    def tick() -> None:
        while not done.wait(TICK):
            redraw()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def give_back() -> None:
    """Hand freed memory back to the system: Arrow's, and where that is glibc's to do, a fifth of a process's."""
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run_folder(scale: str, seed: int, given: str | os.PathLike = "") -> Path:
    """Where one run lies, whether it exists or not: `given`, else `<ME5_OUT or runs>/<scale>/seed-<seed>`.

    `runs` lies in the checkout, or in the user's data folder when me5 is installed as a wheel.
    """
    base = os.environ.get("ME5_OUT") or (checkout() or Path(platformdirs.user_data_path("me5"))) / "runs"
    return (Path(given) if str(given) else Path(base) / scale / f"seed-{seed}").expanduser().resolve()


def out(scale: str, seed: int, given: str | os.PathLike = "") -> Path:
    """`run_folder`, made if absent. Raises `Me5Error` where it cannot be."""
    folder = run_folder(scale, seed, given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Me5Error(f"cannot write to {folder} ({error.strerror}): choose another with --out or ME5_OUT") from None
    return folder


def read_json(path: Path, *otherwise: Any) -> Any:
    """The content of a JSON file; `otherwise`, if it is given, where there is no such file."""
    return otherwise[0] if otherwise and not path.is_file() else json.loads(path.read_text(encoding="utf8"))


def write_json(path: Path, content: Any, sort_keys: bool = True) -> None:
    """Write a JSON file, indented: inside a folder that is not in its place yet."""
    path.write_text(json.dumps(content, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n", encoding="utf8")


def put_json(path: Path, content: Any, sort_keys: bool = False) -> None:
    """`put` a JSON file; with `sort_keys` equal contents give equal bytes."""
    put(path, lambda beside: write_json(beside, content, sort_keys))


def put_text(path: Path, text: str, writer: str = "") -> None:
    """`put` a text."""
    put(path, lambda beside: beside.write_text(text, encoding="utf8"), writer)


def put(path: Path, make: Callable[[Path], object], writer: str = "") -> None:
    """Make a file with `make`, whole or not at all, and its folders. Raises `Me5Error` if the disk refuses.

    `writer` tells apart processes that may make the same file at once.
    """
    beside = path.with_name(f".{path.name}{writer}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside, make)
        sync(beside)
        rename(beside, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise unwritten(path, error) from None


def read_array(path: Path, dtype: Any, rows: int, dimensions: int, remedy: str) -> np.ndarray | None:
    """The array of a `.npy` file; None where there is none, or, said in one line with `remedy`, where it is damaged:
    it cannot be read, is of another type or shape than these, or is not finite."""
    import numpy as np

    with contextlib.suppress(OSError, ValueError, EOFError):  # what numpy raises for a file that is absent or cut short
        array = np.load(path, allow_pickle=False)
        fits = array.dtype == dtype and array.shape[:1] == (rows,) and array.ndim == dimensions
        if fits and np.isfinite(array).all():
            return array
    if path.exists():
        print(f"{path} is damaged: {remedy}", file=sys.stderr)
    return None


def put_array(path: Path, array: np.ndarray, writer: str = "") -> None:
    """`put` a `.npy` file."""
    import numpy as np

    content = BytesIO()
    np.save(content, array)
    put(path, lambda beside: beside.write_bytes(content.getbuffer()), writer)


def replace(beside: Path, final: Path) -> None:
    """Rename the folder `beside` to `final`, for good; one that is already there makes way, under `beside`'s name, so
    that two that replace the same folder at once do not meet."""
    old = final.with_name(f".{beside.name.lstrip('.')}.old")
    if final.exists():
        remove(old)
        rename(final, old)
    rename(beside, final)
    sync(final.parent)
    remove(old)


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends; nothing changes when it raises.

    Raises `Me5Error` if the disk refuses.
    """
    side = folder.with_name(f".{folder.name}.part")
    try:
        remove(side)  # of a process that was killed
        side.mkdir(parents=True)
        yield side
        replace(side, folder)
    except OSError as error:
        raise unwritten(folder, error) from None
    finally:
        shutil.rmtree(side, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's list of names."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot, and need not
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(path: Path, error: OSError) -> Me5Error:
    """What to say when a file cannot be written."""
    return Me5Error(f"{path} cannot be written ({error.strerror or error}): free some space, then run the same command "
                    "to go on (or name another disk: ME5_CACHE, --out)")


def write(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file, or a folder of files, at `path`."""
    make(path)


def rename(before: Path, after: Path) -> None:
    """Rename a file over another, or a folder."""
    os.replace(before, after)


def remove(path: Path) -> None:
    """Delete a folder, if it is there."""
    if path.exists():
        shutil.rmtree(path)
