"""Where things lie: the cache, the folder of a run, the files that ship with the library; and the one-line error.

Every path of the project is resolved here, so that it does not matter from which folder a notebook is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


# The checkpoints of a run, and the command that makes each.
STAGES = {"stage1": "pretrain", "stage2": "finetune", "stage2-only": "finetune --scratch"}
SEEDS = 2**32  # numpy's old generators, which scikit-learn and UMAP use, take no larger ones


class Me5Error(Exception):
    """Something that the user can mend. Printed as one line that says what to do; exit code 2."""


def valid_seed(value: int) -> int:
    """`value` if it can be a seed: a whole number from 0 below `SEEDS`. Raises `Me5Error` for anything else."""
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
    import platformdirs

    given = os.environ.get("ME5_CACHE")
    return Path(given).expanduser().resolve() if given else Path(platformdirs.user_cache_path("me5"))


def give_back() -> None:
    """Hand freed memory back to the system, where that is glibc's to do: a fifth of a process's, when measured."""
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
    import platformdirs

    if str(given):
        return Path(given).expanduser().resolve()
    base = os.environ.get("ME5_OUT") or (checkout() or Path(platformdirs.user_data_path("me5"))) / "runs"
    return Path(base).expanduser().resolve() / scale / f"seed-{seed}"


def out(scale: str, seed: int, given: str | os.PathLike = "") -> Path:
    """`run_folder`, made if absent. Raises `Me5Error` where it cannot be."""
    folder = run_folder(scale, seed, given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Me5Error(f"cannot write to {folder} ({error.strerror}): choose another with --out or ME5_OUT") from None
    return folder
