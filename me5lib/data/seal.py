"""The end of a build: its shards put in their place, and the manifest that says what they are and what was dropped.

`Seal` is one task and may be killed anywhere: whatever it finds half done it does again to the same end. The manifest
comes last but for the removal of intermediate files; it holds no time and no path of a machine, so the same card, files
and options give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from me5lib import io
from me5lib.data import shards
from me5lib.data.manifests import MANIFEST, SEALED
from me5lib.io import Me5Error

HEAVY = ("items", "exact", "near", "shards")  # of a build's folder: gone once it is sealed


class Seal(PipelineStep):
    """Moves the shards of a build into the card's folder, writes its manifest, and removes what is no longer needed."""

    name, type = "seal", "me5"

    def __init__(self, out: str, folder: str, facts: Mapping[str, Any]):
        """`out`: folder of the card; `folder`: of the build; `facts`: what the manifest says beside the counts."""
        super().__init__()
        self.out, self.folder, self.facts = out, folder, dict(facts)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Nothing: all is written."""
        out, folder = Path(self.out), Path(self.folder)
        parts = [part for file in sorted((folder / "counts/parts").glob("*.json")) for part in io.read_json(file)]
        parts.sort(key=lambda part: part["folder"])
        manifest = self.facts | counted(folder / "counts", self.facts["card"]) | {"shards": parts}
        if manifest["rows"] != sum(part["rows"] for part in parts):
            raise Me5Error(f"card {self.facts['card']}: shards and counts differ: delete {folder} and build again")
        (out / MANIFEST).unlink(missing_ok=True)
        (out / ".build" / SEALED).unlink(missing_ok=True)
        _clear(out, folder, {part["folder"] for part in parts})
        for part in parts:
            _place(folder / "shards" / part["folder"], out / part["folder"])
        io.put_json(out / MANIFEST, manifest, sort_keys=True)
        io.put_json(out / ".build" / SEALED, folder.name, sort_keys=True)
        for name in HEAVY:
            shutil.rmtree(folder / name, ignore_errors=True)
        yield from ()


def _clear(out: Path, folder: Path, ours: set[str]) -> None:
    """Remove other builds of the card, and every shard in place that is not of this one."""
    for other in (out / ".build").glob("*/"):
        if other != folder:
            shutil.rmtree(other)
    for shard in list(out.glob("[!.]*/part-*")):
        name = f"{shard.parent.name}/{shard.name}"
        if name not in ours or (folder / "shards" / name).exists():
            shutil.rmtree(shard)
    for language in list(out.glob("[!.]*/")):
        with contextlib.suppress(OSError):
            language.rmdir()  # where it is empty


def _place(made: Path, here: Path) -> None:
    if made.exists():
        here.parent.mkdir(exist_ok=True)
        os.replace(made, here)
    shards.open_shard(here)


def counted(folder: Path, card: str) -> dict[str, Any]:
    """The counts of all steps and tasks, in the units of steps.py.

    `rows`: items kept, also by language; `read`, `built`: rows of files; `unfit`: reason → language → rows; `made`:
    items; `dropped`: reason → language → items; `unreadable`: files; `first`: where a reason was first met.
    """
    totals: Counter[tuple[str, str, str]] = Counter()
    first: dict[str, str] = {}
    unreadable: list[dict] = []
    for book in sorted(file for file in folder.glob("*/*.json") if file.parent.name != "parts"):
        given = io.read_json(book)
        for what, reason, language, n in given["counts"]:
            totals[what, reason, language] += n
        first = given["first"] | first
        unreadable += given["broken"]
    number = {what: sum(n for (kind, _, _), n in totals.items() if kind == what)
              for what in ("read", "unfit", "built", "made", "dropped", "kept")}
    if number["read"] != number["unfit"] + number["built"] or number["made"] != number["dropped"] + number["kept"]:
        raise Me5Error(f"card {card}: the counts do not add up ({number}): delete {folder.parent} and build again")
    return {"rows": number["kept"], "languages": _by_language(totals, "kept").get("", {}), "read": number["read"],
            "built": number["built"], "unfit": _by_language(totals, "unfit"), "made": number["made"],
            "dropped": _by_language(totals, "dropped"), "first": first,
            "unreadable": sorted(unreadable, key=lambda each: each["file"])}


def _by_language(totals: Counter, wanted: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for (what, reason, language), n in sorted(totals.items()):
        if what == wanted and n:
            found[reason][language] = n
    return dict(found)
