"""Hard negatives: passages that a search finds for a query although they are not its answer, and which of them lie.

    results = search.dense(query_vectors, right, index, depth=30, margin_ratio=True)    # or lexical, random
    negatives, report = choose(results, rows, pool, n=3, filters={"near a positive": near_positive(results, 1.06)})
    print(*report_lines(report), sep="\n")                # what every filter dropped, in each language, with samples

A search gives the best `depth` passages of every query, and the score of the query's own positive by the same measure.
`choose` then drops what is probably right after all: the same text as a positive or as the query, and what a filter
says: likeness to a positive, or NV-Retriever's relative margin (Moreira et al. 2024). Nothing is padded: a query that
is left with fewer gets fewer, and is counted. `mine` does this pool by pool, `mine_file` (`me5 mine`) for a file:

    out/settings.json               what was asked for: another command is refused here
    out/shard-00000.jsonl, .json    rows, and what became of their candidates
    out/report.json                 the whole, written last

A shard is renamed into place, so that the same command goes on after a crash with the missing ones, to the same bytes.
Cost: `choose` holds a few times what was found; a text's key is its dearest part, some µs a passage.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from me5lib import io
from me5lib.data import userdata
from me5lib.device import best_device
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import Labelled, text_key
from me5lib.train import search
from me5lib.train.checkpoint import model_identity
from me5lib.train.search import BM25Index, DenseIndex, Pool, SearchResult, texts_by_key

SAME_TEXT, NOT_NEEDED = "same text", "not needed"  # what `choose` itself drops, before and after the filters
DEFAULT_NEAR = 1.06  # where CCMatrix (Schwenk et al. 2021) takes two sentences for translations
QUERIES_A_SHARD = 10_000  # ours
EXAMPLES, SHOWN = 20, 3  # of what a filter dropped: in a report, and in its lines
ABOVE = 0.05  # ours: share of the negatives above their positive that is a finding; a margin leaves none of its own

PoolKey = tuple[str, str]  # source and language; of the one pool across all, ("", "")


class MiningReport(NamedTuple):
    """What became of the candidates of all queries: kept, dropped by a filter, or not needed. JSON types."""

    queries: int = 0
    candidates: int = 0
    kept: int = 0
    short: int = 0  # queries that got fewer negatives than were asked for
    dropped: Mapping[str, int] = {SAME_TEXT: 0, NOT_NEEDED: 0}  # filter → candidates
    examples: Sequence[dict[str, Any]] = ()  # some that the filters dropped: `_dropped_examples`
    by_language: Mapping[str, dict[str, Any]] = {}  # language of the query → the five counts above
    above: int = 0  # negatives kept that score above the positive


class Mining(NamedTuple):
    """What decides what is mined."""

    by: str = "dense"  # or bm25
    depth: int = 200  # candidates of a query
    negatives: int = 7  # of a query, its own included
    near: float | None = None
    margin: float | None = None
    within: bool = True  # passages of the query's source and language, or all


# Filters: which candidates of a search may not be negatives, bool [Q, depth]


def relative_margin(results: SearchResult, share: float) -> np.ndarray:
    """Candidates that score above `share` of the positive's score (NV-Retriever's TopK-PercPos), whatever its sign.

    For a score below zero the plain product would lie *above* it and let everything through, so the gap is taken off
    the score instead: positive − (1 − share) · |positive|, which is the same for scores above zero.
    """
    return results.scores > (results.positive - (1 - share) * np.abs(results.positive))[:, None]


def near_positive(results: SearchResult, highest: float = DEFAULT_NEAR) -> np.ndarray:
    """Candidates that are like a positive, a copy, an edit or a translation of the answer, however they score with the
    query: `SearchResult.margin_ratio`, of `search.dense(…, margin_ratio=True)`, above `highest`."""
    return results.margin_ratio > highest


# Choice


def choose(
    results: SearchResult, rows: Sequence[Labelled], pool: Pool, n: int | Sequence[int],
    filters: Mapping[str, np.ndarray] = {},  # noqa: B006
) -> tuple[list[list[str]], MiningReport]:
    """Up to `n` negatives of every row (or of each its own number), the hardest; and what was dropped by which filter.

    A row's own negatives come first and count towards `n`. Dropped is the same text as one of them, a positive, the
    query or an earlier candidate; then what each of the `filters` (name → bool [Q, depth]) leaves out of the rest.
    """
    left, dropped = results.rows >= 0, {}
    for name, mask in {SAME_TEXT: _same_text(results.rows, rows, pool.keys), **filters}.items():
        dropped[name] = mask & left
        left = left & ~mask
    most = np.broadcast_to(n, len(rows))
    room = np.maximum(0, most - [len(row.negatives) for row in rows])
    taken = left & (left.cumsum(axis=1) <= room[:, None])
    dropped[NOT_NEEDED] = left & ~taken
    chosen = [[*row.negatives[:own], *(pool.texts[j] for j in found[some])] for row, own, found, some
              in zip(rows, most, results.rows, taken, strict=True)]
    examples = _dropped_examples(results, rows, pool, {name: dropped[name] for name in filters})
    return chosen, _account(results, rows, dropped, taken, room)._replace(examples=examples)


def _same_text(found: np.ndarray, rows: Sequence[Labelled], keys: np.ndarray) -> np.ndarray:
    """bool [Q, depth]: candidates that read like the query, a passage of its row or an earlier candidate."""
    same = np.zeros(found.shape, bool)
    for i, row in enumerate(rows):
        known = {text_key(text) for text in (row.query, *row.positives, *row.negatives)}
        for j, key in enumerate(keys[found[i]].tolist()):
            same[i, j] = key in known
            known.add(key)
    return same


def by_pool(rows: Sequence[Labelled], within: bool = True) -> dict[PoolKey, list[int]]:
    """The positions of the rows that are mined in each pool, sorted by its key."""
    groups: dict[PoolKey, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[(row.source, row.language) if within else ("", "")].append(i)
    return dict(sorted(groups.items()))


def mine(
    rows: Sequence[Labelled], cfg: Mining, n: int | Sequence[int],
    open_pool: Callable[[PoolKey], tuple[Pool, DenseIndex | BM25Index]],
    encode_query: Callable[[Sequence[str], str], np.ndarray],
) -> tuple[list[list[str]], MiningReport]:
    """Negatives of every row, its own first and then from its pool; and the report over all pools.

    `open_pool` gives the pool of a key and what it is searched by; `encode_query` gets texts and their source.
    """
    chosen: list[list[str]] = [[] for _ in rows]
    reports = []
    for key, places in by_pool(rows, cfg.within).items():
        own, (pool, index) = [rows[i] for i in places], open_pool(key)
        queries, right = [row.query for row in own], [pool.positives(row) for row in own]
        if cfg.by == "bm25":
            results = search.lexical(queries, right, index, cfg.depth)
        else:
            results = search.dense(encode_query(queries, key[0]), right, index, cfg.depth, cfg.near is not None)
        filters = {} if cfg.margin is None else {"relative margin": relative_margin(results, cfg.margin)}
        filters |= {} if cfg.near is None else {"near a positive": near_positive(results, cfg.near)}
        most = n if isinstance(n, int) else [n[i] for i in places]
        found, report = choose(results, own, pool, most, filters)
        reports.append(report)
        for i, texts in zip(places, found, strict=True):
            chosen[i] = texts
    return chosen, merge(reports)


# Report


def _account(
    results: SearchResult, rows: Sequence[Labelled], dropped: Mapping[str, np.ndarray], taken: np.ndarray,
    room: np.ndarray,
) -> MiningReport:
    languages, kept = np.array([row.language for row in rows]), taken.sum(axis=1)

    def counts(own: np.ndarray) -> dict[str, Any]:
        return {"queries": int(own.sum()), "candidates": int((results.rows[own] >= 0).sum()),
                "kept": int(kept[own].sum()), "short": int((kept < room)[own].sum()),
                "dropped": {name: int(mask[own].sum()) for name, mask in dropped.items()}}

    above = taken & (results.scores > results.positive[:, None])
    by_language = {one: counts(languages == one) for one in sorted(set(languages.tolist()))}
    return MiningReport(**counts(np.ones(len(rows), bool)), above=int(above.sum()), by_language=by_language)


def _dropped_examples(
    results: SearchResult, rows: Sequence[Labelled], pool: Pool, dropped: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The best-scoring candidate that each filter dropped, of `EXAMPLES` queries spread evenly, a filter."""
    shown = []
    for name, mask in dropped.items():
        for i in _spread(np.flatnonzero(mask.any(axis=1)).tolist(), EXAMPLES):
            row, j = rows[i], int(mask[i].argmax())
            shown.append({"query": row.query, "positive": row.positives[0],
                          "passage": pool.texts[results.rows[i, j]], "rule": name,
                          "score": float(results.scores[i, j]), "positive_score": float(results.positive[i]),
                          "language": row.language})
    return shown


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them, spread evenly."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(limit, len(items))).astype(int)]


def _some(examples: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` of each filter, spread evenly."""
    return [one for rule in dict.fromkeys(example["rule"] for example in examples)
            for one in _spread([example for example in examples if example["rule"] == rule], limit)]


def merge(reports: Sequence[MiningReport]) -> MiningReport:
    """One report of several searches, its examples spread over them."""
    if not reports:
        return MiningReport()
    added = functools.reduce(_added, (report._asdict() for report in reports))
    return MiningReport(**added | {"by_language": dict(sorted(added["by_language"].items())),
                                   "examples": _some(added["examples"], EXAMPLES)})


def _added(one: Any, other: Any) -> Any:
    """Counts and lists, nested alike, added up."""
    if isinstance(one, Mapping):
        return {**one, **other, **{name: _added(one[name], other[name]) for name in one if name in other}}
    return one + other


def report_lines(report: MiningReport) -> list[str]:
    """The report for human eyes: the counts, by language too, and some of what each filter dropped."""
    found = []
    for name, counts in {"all": report._asdict(), **report.by_language}.items():
        dropped = ", ".join(f"{rule} {times:,}" for rule, times in counts["dropped"].items())
        found.append(f"{name:8} {counts['queries']:,} queries, {counts['candidates']:,} candidates: "
                     f"{counts['kept']:,} kept; {dropped}; {counts['short']:,} queries are short of negatives")
    for example in _some(report.examples, SHOWN):
        found.append(f"{example['rule']}: {example['score']:.3f}, the right answer {example['positive_score']:.3f}")
        found += [f"  {name:8} {' '.join(example[field].split())[:100]}" for name, field in (
            ("query", "query"), ("right", "positive"), ("dropped", "passage"))]
    return found


# One's own file (`me5 mine`)


def mine_file(
    data: Path, out: Path, cfg: Mining, model: str, columns: dict[str, Any], encoding: str = "utf8",
    progress: bool = False,
) -> list[str]:
    """Mine the pairs of a file into `out`; what is to be said of it, in lines. `columns`: as `choose_columns`.

    Raises `Me5Error`, before anything is read, for what cannot be asked for.
    """
    if cfg.by not in ("dense", "bm25"):
        raise Me5Error(f"--by {cfg.by}: choose one of dense, bm25")
    if cfg.by == "dense" and not model:
        raise Me5Error("--by dense needs --model, a checkpoint folder or a hub id; or choose --by bm25")
    if cfg.near is not None and cfg.by != "dense":
        raise Me5Error("--near compares vectors: it goes with --by dense only")
    rows, file = read_pairs(data, encoding, **columns)
    encoder = Encoder.load(model).to(best_device()) if cfg.by == "dense" else None
    settings = {**cfg._asdict(), "data": io.sha256(data.expanduser()), "columns": columns, "encoding": encoding,
                "model": model_identity(model) if encoder else ""}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "settings.json").is_file():
            io.put_json(out / "settings.json", settings)
        before = io.read_json(out / "settings.json")
    except (OSError, ValueError) as error:
        raise Me5Error(f"cannot write to {out} ({' '.join(str(error).split())[:120]}): choose another --out") from None
    for name in before | settings:
        if before.get(name) != settings.get(name):
            raise Me5Error(f"{out} was begun with another {name} ({before.get(name)}, not {settings.get(name)}): "
                           "choose another --out, or delete it")
    not_used = {userdata.REASONS[why]: (len(met), file.unit, met[:5]) for why, met in file.unused_lines.items()}
    report = mine_shards(rows, out, cfg, encoder, not_used, progress)
    lines = [*file.reasons(), *report_lines(report)]
    if report.above > ABOVE * report.kept:
        lines.append(f"look: {report.above / report.kept:.1%} of the negatives score above the right answer, so many "
                     "of them probably are right: look at them, and filter more (`near`, lower than 1.06, or a margin)")
    return [*lines, f"{out}: shards, and report.json with samples of what was dropped"]


def read_pairs(path: Path, encoding: str = "utf8", **columns: Any) -> tuple[list[Labelled], userdata.OwnCorpus]:
    """One row a query, with all its positives; and the file, which knows what of it is not used. `columns`: as
    `userdata.read_corpus` has them.

    Raises `Me5Error` for a file that cannot be read, and for one without any query that has a positive.
    """
    file = userdata.read_corpus(path, encoding=encoding, **columns)
    rows: dict[int, Labelled] = {}
    for row in file.rows:
        first = rows.setdefault(text_key(row.query), row)
        wrong = texts_by_key((*first.negatives, *row.negatives))
        rows[text_key(row.query)] = first._replace(negatives=tuple(wrong.values()))
    if not rows:
        raise Me5Error("; ".join([f"{path} has no query with a positive passage: nothing can be mined",
                                  *file.reasons()]))
    return list(rows.values()), file


def mine_shards(
    rows: Sequence[Labelled], out: Path, cfg: Mining, encoder: Encoder | None,
    not_used: Mapping[str, tuple[int, str, list[int]]], progress: bool
) -> MiningReport:
    """Mine the shards of `rows` that are missing in `out`; the report of all, also in `out`/report.json.

    `not_used`: reason → how many rows or texts, "line" or "row", the first numbers.
    """
    pools = {key: Pool.of([rows[i] for i in places]) for key, places in by_pool(rows, cfg.within).items()}
    starts = {start: out / f"shard-{i:05}.json" for i, start in enumerate(range(0, len(rows), QUERIES_A_SHARD))}
    missing = [start for start, path in starts.items() if not path.is_file()]
    kept = out / "passages.npy"  # until all shards are mined
    vectors = {}
    if missing and encoder:
        texts = [text for pool in pools.values() for text in pool.texts]
        every = io.read_array(kept, np.float32, len(texts), 2, f"its {len(texts):,} passages are encoded again")
        if every is None:
            every = encoder.encode(texts, PASSAGE, progress=progress)
            io.put_array(kept, every)
        ends = np.cumsum([len(pool.texts) for pool in pools.values()])
        vectors = dict(zip(pools, np.split(every, ends[:-1]), strict=True))

    @functools.cache  # made once, for all shards
    def open_pool(key: PoolKey) -> tuple[Pool, DenseIndex | BM25Index]:
        return pools[key], DenseIndex(vectors[key]) if encoder else BM25Index(pools[key].texts)

    for start in tqdm(missing, disable=not progress, unit=" shards", desc="mine"):
        own = rows[start : start + QUERIES_A_SHARD]
        found, report = mine(own, cfg, cfg.negatives, open_pool, lambda texts, source: encoder.encode(texts, QUERY))
        made = ({"query": row.query, "positives": row.positives, "negatives": texts, "language": row.language}
                for row, texts in zip(own, found, strict=True))
        jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        io.put_text(starts[start].with_suffix(".jsonl"), jsonl)
        io.put_json(starts[start], report._asdict())
    kept.unlink(missing_ok=True)
    made = [io.read_json(path) for path in starts.values()]  # one of an older version may have a field more
    report = merge([MiningReport(*map(one.get, MiningReport._fields)) for one in made])
    io.put_json(out / "report.json", report._asdict() | {"not_used": not_used})
    return report
