"""`me5 mine`: your pairs in, the same pairs with hard negatives out, and a report of what was dropped and why.

    me5 mine --data pairs.jsonl --model runs/tiny/seed-0/stage1 --out mined
    me5 mine --data faq.csv --by bm25 --out mined --negatives 5 --across

Read is what `me5 finetune --data` reads: CSV, JSON lines or Parquet with a query, a positive (or a list of them) and,
where there are, negatives and a language. The passages that are searched are all positives and negatives of the file.
Written are shards of JSON lines (`query`, `positives`, `negatives`, `language`): a row's own negatives first, then the
mined ones, never more than asked for and never padded.

    mined/settings.json             what was asked for: another command is refused here
    mined/shard-00000.jsonl, .json  rows, and what became of their candidates
    mined/report.json               the whole, written last

A shard is written beside and renamed into place, so that the same command goes on after a crash with those that are
missing, and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from me5lib import io
from me5lib.io import Me5Error, sha256

if TYPE_CHECKING:
    import numpy as np

    from me5lib.model.encoder import Encoder
    from me5lib.pairs import Labelled
    from me5lib.train.mining import Found, MiningReport, Rule

WAYS = ("dense", "bm25", "random")
NEAR = 1.06  # ours: see `near` of the scales
SHARD = 10_000  # ours: queries of a shard
AT_ONCE = 16_384  # ours: passages that are encoded between two looks at the bar
VECTORS = "passages.npy"


class Settings(NamedTuple):
    """What decides what is mined."""

    by: str
    depth: int
    skip: int
    negatives: int
    near: float | None
    margin: float | None
    absolute_margin: float | None
    max_score: float | None
    within: bool
    spread: bool
    index: str
    seed: int
    shard: int


class Pool(NamedTuple):
    """The passages that are searched, those of a language side by side."""

    texts: list[str]
    languages: list[str]
    place: dict[tuple[str, int], int]  # (language, or "" across all; text key) → row
    slices: dict[str, slice]  # language → its rows; across all one, ""


Faults = dict[str, tuple[int, str, list[int]]]  # reason → how many rows or texts, "line" or "row", the first numbers
Search = Callable[[list["Labelled"], slice, str], "Found"]  # rows of a language, its passages, its name


def mine(
    data: Annotated[Path, typer.Option(help="Your pairs: .csv, .jsonl or .parquet with query and positive columns.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards and the report.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of the encoder that searches.")] = "",
    by: Annotated[str, typer.Option(help="dense (the model's vectors), bm25 (shared words) or random.")] = "dense",
    depth: Annotated[int, typer.Option(min=1, help="Candidates of a query.")] = 200,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many of the best before them.")] = 0,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of a query, its own included.")] = 7,
    near: Annotated[float | None, typer.Option(help="Drop what is so much liker a positive than neighbours are to each "
                                                 "other (default: 1.06 with --by dense; 0: off).")] = None,
    margin: Annotated[float | None, typer.Option(help="Drop what scores above this share of the positive.")] = None,
    absolute_margin: Annotated[float | None, typer.Option(help="Drop what scores less than this below it.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Drop what scores above this.")] = None,
    within: Annotated[bool, typer.Option("--within-language/--across", help="Search passages of the query's language, "
                                                                             "or of all.")] = True,
    spread: Annotated[bool, typer.Option("--sample/--hardest", help="Draw among the rest, or take the best.")] = False,
    index: Annotated[str, typer.Option(help="exact, ivf or hnsw (faiss); auto is exact below 2M passages.")] = "auto",
    seed: Annotated[int, typer.Option(callback=io.valid_seed, help="Of --by random and --sample.")] = 0,
    shard: Annotated[int, typer.Option(min=1, help="Queries of a shard.")] = SHARD,
    query_column: Annotated[str, typer.Option(help="Column of queries (default: guessed by name).")] = "",
    passage_column: Annotated[str, typer.Option(help="Column of right passages.")] = "",
    negative_columns: Annotated[str, typer.Option(help="Columns of wrong passages, as n1,n2.")] = "",
    language_column: Annotated[str, typer.Option(help="Column of languages.")] = "",
    encoding: Annotated[str, typer.Option(help="How the file is encoded.")] = "utf8",
) -> None:
    """Mine hard negatives for your pairs. The same command goes on after a crash with the shards that are missing."""
    near = NEAR if near is None and by == "dense" else near or None
    asked = Settings(by, depth, skip, negatives, near, margin or None, absolute_margin, max_score, within, spread,
                     index, seed, shard)
    _refuse(asked, model)
    wrong = [name.strip() for name in negative_columns.split(",") if name.strip()]
    columns = {"query": query_column, "passage": passage_column, "negatives": wrong, "language": language_column}
    rows, faults = read(data, encoding, **columns)
    encoder = _encoder(model) if by == "dense" else None
    _open(out, {**asked._asdict(), "data": sha256(data.expanduser()), "model": mark(encoder) if encoder else "",
                "columns": columns, "encoding": encoding})
    report = mined(rows, out, asked, encoder, faults, progress=sys.stderr.isatty())
    print("\n".join(told(report, faults, out)))


def _refuse(asked: Settings, model: str) -> None:
    """Raise `Me5Error` for what cannot be asked for, before anything is read."""
    from me5lib.train.search import KINDS

    if asked.by not in WAYS:
        raise Me5Error(f"--by {asked.by}: choose one of {', '.join(WAYS)}")
    if asked.by == "dense" and not model:
        raise Me5Error("--by dense needs --model, a checkpoint folder or a hub id; or choose --by bm25")
    if asked.index not in (*KINDS, "auto"):
        raise Me5Error(f"--index {asked.index}: choose auto or one of {', '.join(KINDS)}")
    if asked.near is not None and asked.by != "dense":
        raise Me5Error("--near compares vectors: it goes with --by dense only")


def read(path: Path, encoding: str = "utf8", **columns: Any) -> tuple[list[Labelled], Faults]:
    """One row a query, with all its positives; and what of the file is not used. `columns`: see `own.choose`.

    Raises `Me5Error` for a file that cannot be read, and for one without any query that has a positive.
    """
    from me5lib.data import userdata
    from me5lib.pairs import text_key

    table = userdata.read_table(path, encoding)
    examples, faults = userdata.examples(table, userdata.choose(table, **columns), userdata.name_of(table.path))
    rows: dict[int, Labelled] = {}
    for row in examples:
        first = rows.setdefault(text_key(row.query), row)
        if first is not row:
            wrong = {text_key(text): text for text in (*row.negatives, *first.negatives)}
            more = [text for key, text in wrong.items() if key not in set(map(text_key, first.negatives))]
            rows[text_key(row.query)] = first._replace(negatives=(*first.negatives, *more))
    if not rows:
        why = [f"{path} has no query with a positive passage: nothing can be mined",
               *userdata.by_reason(faults, table.unit)]
        raise Me5Error("; not used: ".join(why))
    words, numbers = userdata.REASONS, {}
    for fault in faults:
        numbers.setdefault(words[fault.why], []).append(fault.number)
    return list(rows.values()), {why: (len(some), table.unit, some[:5]) for why, some in numbers.items()}


def _encoder(model: str) -> Encoder:
    from me5lib.device import best_device
    from me5lib.model.encoder import Encoder

    return Encoder.load(model).to(best_device())


def mark(encoder: Encoder) -> str:
    """16 hexadecimal digits that tell a model from others: of its tensors' names, shapes and a sample of their values.

    A sample, because hashing 560M weights takes longer than mining a small file.
    """
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(encoder.backbone.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 1000)].cpu().float().numpy()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + some.tobytes())
    return found.hexdigest()


def _open(out: Path, settings: dict[str, Any]) -> None:
    """The folder with its settings. Raises `Me5Error` where other ones were begun there, or it cannot be written."""
    text = json.dumps(settings, indent=1) + "\n"
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            io.put_text(path, text)
        before = io.read_json(path)
    except (OSError, ValueError) as error:
        raise Me5Error(f"cannot write to {out} ({' '.join(str(error).split())[:120]}): choose another --out") from None
    other = [name for name in settings if before.get(name) != settings[name]]
    if other:
        name = other[0]
        raise Me5Error(f"{out} was begun with another {name} ({before.get(name)}, not {settings[name]}): choose "
                       "another --out, or delete it")


def mined(
    rows: Sequence[Labelled], out: Path, asked: Settings, encoder: Encoder | None = None, faults: Faults | None = None,
    progress: bool = False,
) -> MiningReport:
    """Mine the shards of `rows` that are missing in `out`; the report of all, also in `out`/report.json."""
    from tqdm.auto import tqdm

    from me5lib.train import mining

    pool = gathered(rows, asked.within)
    starts = range(0, len(rows), asked.shard)
    missing = [start for start in starts if not _path(out, start, asked, ".json").is_file()]
    search = _search(pool, out, asked, encoder, progress) if missing else None
    for start in tqdm(missing, disable=not progress, unit=" shards", desc="mine"):
        own = list(rows[start : start + asked.shard])
        found, report = _mined(own, pool, search, asked)
        io.put_text(_path(out, start, asked, ".jsonl"), "".join(_line(row) for row in found))
        io.put_text(_path(out, start, asked, ".json"), _json(report))
    (out / VECTORS).unlink(missing_ok=True)
    report = mining.merge([_report(_path(out, start, asked, ".json")) for start in starts])
    io.put_text(out / "report.json", _json(report, not_used=faults or {}))
    return report


def gathered(rows: Sequence[Labelled], within: bool) -> Pool:
    """All positives and negatives of the rows, each text once (a language); a text has its first row's language."""
    from me5lib.pairs import text_key

    first: dict[tuple[str, int], tuple[str, str]] = {}
    for row in rows:
        for text in (*row.positives, *row.negatives):
            first.setdefault((row.language if within else "", text_key(text)), (text, row.language))
    keys = sorted(first, key=lambda key: key[0])  # stable: in the order of the file
    slices, start = {}, 0
    for language in dict.fromkeys(language for language, _ in keys):
        size = sum(key[0] == language for key in keys)
        slices[language] = slice(start, start + size)
        start += size
    return Pool([first[key][0] for key in keys], [first[key][1] for key in keys],
                {key: i for i, key in enumerate(keys)}, slices)


def _mined(
    rows: list[Labelled], pool: Pool, search: Search, asked: Settings
) -> tuple[list[Labelled], MiningReport]:
    """Rows with their negatives, in order, and what became of the candidates."""
    from me5lib.train import mining
    from me5lib.train.negatives import distinct

    found: list[Labelled | None] = [None] * len(rows)
    reports = []
    for language, part in pool.slices.items():
        at = [i for i, row in enumerate(rows) if not asked.within or row.language == language]
        if not at:
            continue
        own, texts = [rows[i] for i in at], pool.texts[part]
        chosen, report = mining.choose(
            search(own, part, language), [row.query for row in own], [row.positives for row in own], texts,
            asked.negatives, asked.margin, asked.spread, asked.seed, rules=_rules(asked),
            own=[distinct(row.negatives) for row in own],
            languages=[row.language for row in own], passage_languages=pool.languages[part],
        )  # fmt: skip
        reports.append(report)
        for i, row, more in zip(at, own, chosen, strict=True):
            found[i] = row._replace(negatives=tuple(more))
    return found, mining.merge(reports)


def _rules(asked: Settings) -> list[Rule]:
    from me5lib.train import mining

    makers = {mining.absolute_margin: asked.absolute_margin, mining.max_score: asked.max_score,
              mining.near_positive: asked.near}
    return [make(value) for make, value in makers.items() if value is not None]


def _search(pool: Pool, out: Path, asked: Settings, encoder: Encoder | None, progress: bool) -> Search:
    """The way that was asked for."""
    if asked.by == "dense":
        return _dense(pool, _vectors(pool, out, encoder, progress), asked, encoder)
    from me5lib.train import search

    if asked.by == "random":
        return lambda rows, part, _: search.random([row.query for row in rows], pool.texts[part], asked.depth,
                                                   asked.seed)
    made: dict[str, search.Words] = {}

    def words(rows: list[Labelled], part: slice, language: str) -> Found:
        """BM25, its index made once a language."""
        if language not in made:
            made[language] = search.Words(pool.texts[part])
        own = pool.texts[part]
        right = [[own[_place(pool, language, text)] for text in row.positives] for row in rows]
        return made[language].search([row.query for row in rows], right, asked.depth, asked.skip)

    return words


def _place(pool: Pool, language: str, text: str) -> int:
    """Row of a positive among the passages of its language."""
    from me5lib.pairs import text_key

    return pool.place[language, text_key(text)] - pool.slices[language].start


def _dense(pool: Pool, vectors: np.ndarray, asked: Settings, encoder: Encoder) -> Search:
    import numpy as np

    from me5lib.model.text import QUERY
    from me5lib.train import search

    made: dict[str, search.Index] = {}

    def dense(rows: list[Labelled], part: slice, language: str) -> Found:
        """Cosines, the index made once a language."""
        if language not in made:
            made[language] = search.Index(vectors[part], asked.index)
        owner = np.repeat(np.arange(len(rows)), [len(row.positives) for row in rows])
        right = [_place(pool, language, text) for row in rows for text in row.positives]
        vectors_of = encoder.encode([row.query for row in rows], QUERY)
        return search.nearest(vectors_of, owner, made[language].vectors[right], made[language], asked.depth, asked.skip,
                              likeness=asked.near is not None)

    return dense


def _vectors(pool: Pool, out: Path, encoder: Encoder, progress: bool) -> np.ndarray:
    """The passages' vectors, fp32 [P, d]; kept in `out` until all shards are mined."""
    import numpy as np
    from tqdm.auto import tqdm

    from me5lib.model.text import PASSAGE

    path = out / VECTORS
    if not path.is_file():
        beside = path.with_suffix(".part")
        shape = len(pool.texts), encoder.width
        try:
            room = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape)
            _allocate(beside)  # or a full disk ends the process at a write to the map, by a signal
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise Me5Error(f"cannot write {path} of {4 * shape[0] * shape[1] / 1e6:,.0f} MB ({error.strerror}): free "
                           "some space or choose another --out") from None
        with tqdm(total=shape[0], disable=not progress, unit=" passages", desc="encode") as bar:
            for start in range(0, shape[0], AT_ONCE):
                some = pool.texts[start : start + AT_ONCE]
                room[start : start + len(some)] = encoder.encode(some, PASSAGE)
                bar.update(len(some))
        room.flush()
        del room
        os.replace(beside, path)
    return np.load(path, mmap_mode="c")  # "r" would make torch warn that it cannot be written


def _allocate(path: Path) -> None:
    """Have the disk keep room for the whole of a file. Raises `OSError` where it has none."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _path(out: Path, start: int, asked: Settings, suffix: str) -> Path:
    return out / f"shard-{start // asked.shard:05}{suffix}"


def _line(row: Labelled) -> str:
    made = {"query": row.query, "positives": row.positives, "negatives": row.negatives, "language": row.language}
    return json.dumps(made, ensure_ascii=False) + "\n"


def _json(report: MiningReport, **more: Any) -> str:
    made = {**report._asdict(), "examples": [example._asdict() for example in report.examples], **more}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _report(path: Path) -> MiningReport:
    from me5lib.train.mining import Dropped, MiningReport

    made = io.read_json(path)
    return MiningReport(**made | {"examples": [Dropped(**example) for example in made["examples"]]})


def told(report: MiningReport, faults: Faults, out: Path) -> list[str]:
    """What is printed: what the file lacks, the report, what may be wrong with it, where it is."""
    from me5lib.train import diagnose, mining

    found = [f"not used: {times:,} × {why} ({unit} {', '.join(map(str, first))}{' …' if times > len(first) else ''})"
             for why, (times, unit, first) in faults.items()]
    found += mining.lines(report)
    found += [f"look: {finding}" for finding in diagnose.negatives(report)]
    return [*found, f"{out}: shards, and report.json with samples of what was dropped"]
