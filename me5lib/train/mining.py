"""Hard negatives: passages that a search finds for a query although they are not its answer, and which of them lie.

    found = dense(queries, positives, passages, encode, depth=30)          # or bm25(...), or random(...)
    negatives, report = choose(found, queries, positives, passages, n=3, margin=0.95)

A search is one function: it gives the best `depth` passages of every query, and the score of the query's own positive
by the same measure. `choose` then drops what is probably right after all: the same text as a positive or as the query,
and whatever scores too close to the positive (NV-Retriever's relative margin, Moreira et al. 2024). Both ends are pure
functions of their inputs: no index is kept, no random state.

Cost: exact. `dense` is Q × P dot products, in blocks, never held at once: 15,000 × 15,000 × 256 take seconds on a
core, the vectors themselves take longer. `bm25` is about a millisecond a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from me5lib.data.deal import mix
from me5lib.pairs import text_key

Encode = Callable[[Sequence[str]], np.ndarray]
RULES = ("same text", "too close", "not needed")
BLOCK_QUERIES, BLOCK_PASSAGES = 1024, 8192
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai … Han


class Found(NamedTuple):
    """What a search gives Q queries: their best passages, best first, and their own positive's score."""

    rows: np.ndarray  # int64 [Q, depth], index into the passages; -1 where there is none
    scores: np.ndarray  # fp32 [Q, depth]
    positive: np.ndarray  # fp32 [Q], of the best-scoring positive; NaN when the search does not score (random)


class Dropped(NamedTuple):
    """A passage that was found and not taken as a negative."""

    query: str
    positive: str
    passage: str
    rule: str
    score: float
    positive_score: float


class MiningReport(NamedTuple):
    """What became of the candidates of all queries."""

    queries: int
    candidates: int
    kept: int
    short: int  # queries that got fewer negatives than were asked for
    dropped: dict[str, int]  # rule → candidates
    examples: list[Dropped]  # some of those dropped as too close: probably right answers


def top_k(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact `k` largest dot products of each query: (rows int64, scores fp32), [Q, min(k, P)], best first.

    Worked in blocks: memory is a block of scores, whatever Q and P are. Equal scores: the lower row comes first.
    """
    k = min(k, len(passages))
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), BLOCK_QUERIES):
        part = slice(start, min(start + BLOCK_QUERIES, len(queries)))
        rows[part], scores[part] = _top_k_block(queries[part], passages, k)
    return rows, scores


def _top_k_block(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(passages), BLOCK_PASSAGES):
        fresh = (queries @ passages[start : start + BLOCK_PASSAGES].T).astype(np.float32, copy=False)
        near = _largest(fresh, min(k, fresh.shape[1]))
        rows = np.concatenate([rows, near + start], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(fresh, near, axis=1)], axis=1)
        best = np.lexsort((rows, -scores), axis=1)[:, :k]
        rows, scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
    return rows, scores


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` largest of each row; where equal scores straddle the cut, the lower columns."""
    if k == scores.shape[1]:
        return np.broadcast_to(np.arange(k), scores.shape)
    cut = np.partition(scores, -k, axis=1)[:, -k, None]
    above, level = scores > cut, scores == cut
    room = k - above.sum(1, keepdims=True)
    taken = above | (level & (level.cumsum(1) <= room))
    return np.nonzero(taken)[1].reshape(len(scores), k)


def dense(
    queries: Sequence[str], positives: Sequence[Sequence[str]], passages: Sequence[str],
    encode_query: Encode, encode_passage: Encode, depth: int, skip: int = 0,
) -> Found:
    """Search by cosine: each query's passages ranked `skip` … `skip + depth` by the given encoders (unit vectors)."""
    asked = encode_query(queries)
    owner = np.repeat(np.arange(len(queries)), [len(row) for row in positives])
    right = encode_passage([text for row in positives for text in row])
    best = np.full(len(queries), -np.inf, np.float32)
    np.maximum.at(best, owner, np.einsum("nd,nd->n", asked[owner], right).astype(np.float32))
    rows, scores = top_k(asked, encode_passage(passages), skip + depth)
    return Found(rows[:, skip:], scores[:, skip:], best)


def bm25(
    queries: Sequence[str], positives: Sequence[Sequence[str]], passages: Sequence[str], depth: int, skip: int = 0
) -> Found:
    """Search by shared words (BM25); words of scripts without spaces are cut into pairs of characters.

    The positives are scored by the statistics of `passages`; one that is not among them is added for that.
    """
    import bm25s

    place = {text: i for i, text in reversed(list(enumerate(passages)))}
    extra = list(dict.fromkeys(text for row in positives for text in row if text not in place))
    place |= {text: len(passages) + i for i, text in enumerate(extra)}
    index = bm25s.BM25()
    index.index([words(text) for text in [*passages, *extra]], show_progress=False)
    depth = min(skip + depth, len(passages))
    rows, scores = np.empty((len(queries), depth), np.int64), np.empty((len(queries), depth), np.float32)
    best = np.empty(len(queries), np.float32)
    for i, query in enumerate(queries):
        tokens = words(query)
        every = index.get_scores(tokens) if tokens else np.zeros(len(place), np.float32)
        best[i] = max(every[place[text]] for text in positives[i])
        rows[i] = np.argsort(-every[: len(passages)], kind="stable")[:depth]
        scores[i] = every[rows[i]]
    rows[scores <= 0] = -1  # no word in common: not found at all
    return Found(rows[:, skip:], scores[:, skip:], best)


def random(queries: Sequence[str], passages: Sequence[str], depth: int, seed: int) -> Found:
    """No search: passages drawn by a hash of (seed, query, draw), so that a query always gets the same ones."""
    keys = np.array([text_key(query) for query in queries], dtype=np.int64).view(np.uint64)
    draws = np.arange(depth, dtype=np.uint64) + np.uint64(depth * seed + 1)
    rows = (mix(keys[:, None] ^ mix(draws)[None]) % np.uint64(len(passages))).astype(np.int64)
    shape = rows.shape
    return Found(rows, np.full(shape, np.nan, np.float32), np.full(shape[0], np.nan, np.float32))


def ceiling(positive: np.ndarray, margin: float) -> np.ndarray:
    """The highest score that a negative may have: `margin` × the positive's score, where that is positive.

    For a negative score the plain product would lie *above* it and let everything through, so the gap is taken off the
    score instead: positive − (1 − margin) · |positive|, which is the same for scores above zero.
    """
    return positive - (1 - margin) * np.abs(positive)


def choose(
    found: Found, queries: Sequence[str], positives: Sequence[Sequence[str]], passages: Sequence[str],
    n: int, margin: float | None = 0.95, spread: bool = False, seed: int = 0, examples: int = 20,
) -> tuple[list[list[str]], MiningReport]:
    """Up to `n` negatives of every query out of what was found, and what was dropped by which rule.

    Takes the hardest that remain, or with `spread` any of them by a stateless draw (SimLM samples from its top 200).
    `margin` None keeps everything that is not the same text.
    """
    keys = np.array([text_key(text) for text in passages], dtype=np.int64)
    limit = ceiling(found.positive, margin) if margin is not None else np.full(len(queries), np.inf)
    counts: Counter[str] = Counter({rule: 0 for rule in RULES})
    chosen, shown = [], []
    for i, query in enumerate(queries):
        right = {text_key(text) for text in positives[i]}
        kept, close = _sift(found, i, keys, right | {text_key(query)}, limit[i], counts)
        if spread:
            kept = sorted(kept, key=lambda row: int(mix(np.uint64((int(keys[row]) ^ seed) & (2**64 - 1)))))
        counts["not needed"] += max(0, len(kept) - n)
        chosen.append([passages[row] for row in kept[:n]])
        if close and len(shown) < examples:
            row, score = close[0]
            shown.append(Dropped(query, positives[i][0], passages[row], "too close", score, float(found.positive[i])))
    kept_in_all, candidates = sum(map(len, chosen)), int((found.rows >= 0).sum())
    short = sum(len(row) < n for row in chosen)
    return chosen, MiningReport(len(queries), candidates, kept_in_all, short, dict(counts), shown)


def _sift(
    found: Found, i: int, keys: np.ndarray, known: set[int], limit: float, counts: Counter[str]
) -> tuple[list[int], list[tuple[int, float]]]:
    """Candidates of query `i` that may be negatives, best first, and those that score too close to its positive."""
    kept, close, seen = [], [], set(known)
    for row, score in zip(found.rows[i].tolist(), found.scores[i].tolist(), strict=True):
        if row < 0:
            continue
        if int(keys[row]) in seen:
            counts["same text"] += 1
        elif score > limit:
            counts["too close"] += 1
            close.append((row, score))
        else:
            kept.append(row)
            seen.add(int(keys[row]))
    return kept, close


def merge(reports: Sequence[MiningReport], examples: int = 20) -> MiningReport:
    """One report of several searches."""
    dropped: Counter[str] = Counter({rule: 0 for rule in RULES})
    for report in reports:
        dropped.update(report.dropped)
    sums = [sum(getattr(report, name) for report in reports) for name in ("queries", "candidates", "kept", "short")]
    shown = [example for report in reports for example in report.examples]
    return MiningReport(*sums, dict(dropped), shown[:examples])


def words(text: str) -> list[str]:
    """The words of a text for BM25: case-folded; pairs of characters in scripts that do not space their words."""
    found = []
    for word in re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()):
        if UNSPACED.search(word) and len(word) > 2:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            found.append(word)
    return found
