"""Proof that a killed build ends as an undisturbed one: `python tests/prove_build.py [KILLS]` (10), about 15 s a kill.

A build of a made-up card runs in a process group of its own, which SIGKILL ends at a seeded random moment; the same
command then goes on. At the end all files of the shards, and the manifest, have the hashes of an undisturbed build.
Half of the builds are killed once, at any moment; the others again and again, each time a little later.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fixtures_hub import HEAD

from me5lib.data import cards, pipeline
from me5lib.io import sha256

CARD = HEAD.replace("name: toy", "name: proof") + """hub:
  - repository: lab/proof
    files: "{language}/*.parquet"
    languages: {de: de, en: en, sw: sw}
    columns: {title: string, text: string}
    read_from: unverified
    builder: columns
    options: {query: title, passage: text}
filters: {length: {least: 2}, identical: {}, exact: {}, near: {threshold: 0.9}}
---
Made up by the tests.
"""


def write_mirror(folder: Path, rows: int, card: str) -> Path:
    """The card, and Parquet files of three languages, two each, with empty titles, copies and near copies of texts."""
    source = random.Random(7)
    words = ["".join(source.choices("abcdefghijklmnop", k=source.randint(2, 9))) for _ in range(400)]
    for language in ("de", "en", "sw"):
        for part in range(2):
            texts = [" ".join(source.choices(words, k=40)) for _ in range(rows)]
            texts[5::10] = [text + " x" for text in texts[4::10]]  # near copies
            titles = [f"{language} {part} {i}" if i % 9 else "" for i in range(rows)]
            path = folder / "lab/proof" / language / f"{part}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"title": titles + titles[:50], "text": texts + texts[:50]}), path)
    (folder / "card.md").write_text(card, encoding="utf8")
    return folder


def build(out: Path, mirror: Path) -> None:
    """The build that is killed."""
    card = cards.parse("proof", (mirror / "card.md").read_text(encoding="utf8"))
    pipeline.run_build(pipeline.prepare_build(card, out, 5, mirror), workers=2, progress=False)


def start(out: Path, mirror: Path) -> subprocess.Popen:
    """`build` in a process group of its own."""
    return subprocess.Popen([sys.executable, __file__, "--build", str(out), str(mirror)], start_new_session=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def killed(process: subprocess.Popen, after: float) -> bool:
    """SIGKILL the whole group after so many seconds; False where it had ended before."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0
    return False


def hashes(folder: Path) -> dict[str, str]:
    """Path → SHA-256 of all files of a card that a user sees."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*"))
            if file.is_file() and ".build" not in file.parts}


def prove(folder: Path, kills: int, seed: int = 0, alone: bool = True, rows: int = 1_500,
          card: str = CARD) -> int:
    """Kill `kills` times, in one build after another (`alone`) or all in one; how often. Raises on a difference."""
    mirror = write_mirror(folder / "mirror", rows, card)
    began = time.monotonic()
    assert start(folder / "whole", mirror).wait() == 0
    usual, expected = time.monotonic() - began, hashes(folder / "whole/proof")
    assert any(name.endswith("pairs.arrow") for name in expected)
    source, done, builds = random.Random(seed), 0, 0
    while done < kills:
        out, builds = folder / f"killed-{builds}", builds + 1
        while done < kills and killed(start(out, mirror), after := source.uniform(0.25, 0.95) * usual):
            done += 1
            print(f"killed after {after:.1f} of {usual:.1f} s", flush=True)
            if alone:
                break
        assert start(out, mirror).wait() == 0
        assert hashes(out / "proof") == expected, f"a build killed with seed {seed} ended otherwise"
    return done


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]:
        build(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        number = int(sys.argv[1]) if len(sys.argv) > 1 else 10
        with tempfile.TemporaryDirectory() as here:
            found = prove(Path(here) / "a", number // 2, 1) + prove(Path(here) / "b", number - number // 2, 2, False)
        print(json.dumps({"kills": found, "same hashes as an undisturbed build": True}))
