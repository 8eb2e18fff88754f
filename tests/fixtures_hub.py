"""Random rows of a hub source's schema, and fake repositories of them: what builders and loading code are tested on.

Everything follows from `cards.Hub.columns` and a seed. Texts are words of eight scripts, now and then an empty string
or nothing but white space; nullable values are now and then null; lists may be empty.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from me5lib import config
from me5lib.data import cards
from me5lib.io import sha256

HEAD = """---
name: toy
title: Toy
role: train
paper: {table: 1, rows: 1000, pair: title and body}
homepage: https://example.org/
licence: none
translated_by: nobody
languages: [de, en, sw, yo]
pair: title → body
query_prefix: 'query: '
passage_prefix: 'passage: '
faults: []
"""  # of a card, all but its repositories and filters
ALPHABETS = ("abcdefghijklmnopqrstuvwxyzäéñøšž", "абвгдежзийклмнопрстуфхцчшщъыьэюя", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
             "कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह", "กขคงจฉชซญฎฏฐณดตถทธนบปผฝพฟภมยรลวศษสหอฮ",
             "가나다라마바사아자차카타파하고노도로모보소오조초코", "あいうえおかきくけこさしすせそたちつてとなにぬねの",
             "".join(map(chr, range(0x4E00, 0x4E60))))
JOINTS = {" ": 80, "\n": 6, "\n## ": 1, "\n#### ": 1, "\n| ": 1, "<p>": 1, "</p> & ": 1, "\n```\n": 1}  # and how often
CODES = ("de", "en", "hi", "ja", "sw", "zh", "eng_Latn", "deu_Latn", "zho_Hans", "und", "xx")  # two that are none


def rows(hub: cards.Hub, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows of `hub.columns`, the same for the same seed. A column named as a language holds codes, some illegal."""
    source = random.Random(f"{hub.repository}/{hub.files}/{seed}")
    kinds = {name: cards.parse_type(text) for name, text in hub.columns.items()}
    return [{name: value(kind, source, name) for name, kind in kinds.items()} for _ in range(n)]


def value(field: pa.Field, source: random.Random, name: str) -> Any:
    """One random value of a type; `name` is its column's."""
    kind = field.type
    if field.nullable and source.random() < 0.1:
        return None
    if pa.types.is_list(kind):
        return [value(kind.value_field, source, name) for _ in range(source.choice((0, 1, 1, 2, 3, 5)))]
    if pa.types.is_struct(kind):
        return {part.name: value(part, source, part.name) for part in kind}
    if kind == "string" and re.fullmatch(r"lang(uage)?(_code)?\d?", name):
        return source.choice(CODES)
    if kind == "string" and re.fullmatch(r"(\w+_)?score", name):
        return source.choice((str(source.randint(-1, 20)), str(source.randint(-1, 20)), "", "?"))
    if kind == "string":
        return text(source)
    return {"bool": source.random() < 0.5, "int64": source.randint(-3, 60), "double": source.uniform(-1, 2)}[str(kind)]


def text(source: random.Random) -> str:
    """A few words in one script, now and then over several lines, with a Markdown heading or an HTML tag between them;
    one in twenty is empty, one in forty only white space.
    """
    if source.random() < 0.075:
        return source.choice(("", "", " \n\t"))
    letters = source.choice(ALPHABETS)
    words = ("".join(source.choices(letters, k=source.randint(1, 9))) for _ in range(source.choice((1, 3, 8, 40))))
    joints = source.choices(list(JOINTS), list(JOINTS.values()), k=40)
    joined = "".join(word + joint for word, joint in zip(words, joints, strict=False))
    return joined + source.choice(("", ".", "?", "\n"))


def write_repository(root: Path, hub: cards.Hub, rows_per_file: int, files: int) -> None:
    """Write `root/datasets/<owner>/<name>/…` with `files` files that `hub.files` matches (of each of the first three
    languages, where it names them; one where it has no wildcard); the i-th has the rows of seed i.
    """
    written = 0
    for language in list(hub.languages.values())[:3] or [""]:
        pattern = hub.files.replace("{language}", language)
        for number in range(files if "*" in pattern else 1):
            write(root / "datasets" / hub.repository / named(pattern, number, files), hub,
                  rows(hub, rows_per_file, written))
            written += 1


def named(pattern: str, number: int, files: int) -> str:
    """The `number`-th of `files` names that a glob matches."""
    first, star, last = pattern.rpartition("*")
    return first.replace("**", "all").replace("*", "all") + (f"{number:05d}-of-{files:05d}" if star else "") + last


def hashes(folder: Path) -> dict[str, str]:
    """Path → SHA-256 of all files of a card that a user sees."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*"))
            if file.is_file() and ".build" not in file.parts}


def write(path: Path, hub: cards.Hub, given: Iterable[dict[str, Any]]) -> None:
    """Write rows to a file of the kind that its name says: Parquet with the card's types, or (packed) JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        types = pa.schema([(name, cards.parse_type(text).type) for name, text in hub.columns.items()])
        pq.write_table(pa.Table.from_pylist(list(given), schema=types), path)
        return
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given).encode("utf8")
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(lines)
    else:
        path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)


def write_rows(root: Path, cfg: config.Scale, rows: int, wanted: Callable[[dict], bool] = lambda row: True) -> None:
    """The repositories of all cards that the scale names: of each card's first two languages a file of made-up rows."""
    from me5lib.train.dry_run import fake_rows

    for name in (*cfg.data.sources, *cfg.data.labelled):
        for number, entry in enumerate(cards.load_card(name).hub):
            for code, tag in list(entry.languages.items())[:2] or [(entry.language or "", "")]:
                path = root / "datasets" / entry.repository / named(entry.files.replace("{language}", tag), 0, 1)
                write(path, entry, filter(wanted, fake_rows(entry, code, rows, f"{name} {number} {code}")))
