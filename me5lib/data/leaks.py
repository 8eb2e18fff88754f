"""Leakage: does any training row hold an evaluation text, or a near-copy of one? Every shard against every text.

    texts = {("tatoeba", "de"): [...], ("xquad", "hi"): [...]}       # (task, language) → evaluation texts
    for leak in find(shards, texts): print(leak)

Exact: the normalised texts are equal (`text_key`), whatever language either is in. Near: the character trigrams of the
masked forms have a Jaccard similarity of at least `split.NEAR`, within one language; candidates come from MinHash, and
each is checked exactly. A sentence inside a long passage is not a near-copy of it: that takes n-gram matching.

Cost: 0.1 ms a distinct training text, nearly all of it MinHash; memory for the evaluation texts and one block of rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from me5lib.data import split
from me5lib.data.mixture import Rows
from me5lib.pairs import text_key

BLOCK = 20_000  # rows that are read at a time


class Leak(NamedTuple):
    """A training text that should not be there."""

    source: str
    language: str
    row: int  # of the stream
    column: str
    kind: str  # "exact" or "near"
    task: str
    similarity: float  # Jaccard; 1 when exact
    trained: str
    evaluated: str


class Texts:
    """The evaluation texts, ready to be looked up: keys of all, and by language the MinHash bands of their forms."""

    def __init__(self, texts: Mapping[tuple[str, str], Iterable[str]]) -> None:
        """`texts` by (task, language); empty ones are left out."""
        self.exact: dict[int, tuple[str, str]] = {}  # key → task, text
        self.forms: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)  # language → masked form → task, text
        for (task, language), own in texts.items():
            for text in own:
                if form := split.mask(text):
                    self.exact.setdefault(text_key(text), (task, text))
                    self.forms[language].setdefault(form, (task, text))
        bands = {language: split.bands(list(own)) for language, own in self.forms.items()}
        self._order = {language: np.argsort(keys, axis=0, kind="stable") for language, keys in bands.items()}
        self._bands = {language: np.take_along_axis(keys, self._order[language], 0) for language, keys in bands.items()}

    def near(self, texts: Sequence[str], language: str) -> Iterator[tuple[int, str, float, str]]:
        """(position, task, similarity, evaluation text) of each of `texts` that is a near-copy of one in `language`."""
        if language not in self.forms or not texts:
            return
        forms, known = [split.mask(text) for text in texts], self.forms[language]
        pairs = self._candidates(split.bands(forms), language)
        if not len(pairs):
            return
        mine, theirs = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
        names = list(known)
        grams = split.shingles([*(forms[i] for i in mine), *(names[i] for i in theirs)])
        local = np.stack([np.searchsorted(mine, pairs[:, 0]), len(mine) + np.searchsorted(theirs, pairs[:, 1])], axis=1)
        best: dict[int, tuple[float, int]] = {}
        for (here, there), value in zip(pairs.tolist(), split.jaccard(grams, local).tolist(), strict=True):
            if value >= split.NEAR:
                best[here] = max(best.get(here, (0.0, 0)), (value, there))
        for here, (value, there) in sorted(best.items()):
            task, text = known[names[there]]
            yield here, task, value, text

    def _candidates(self, keys: np.ndarray, language: str) -> np.ndarray:
        """int64 [pairs, 2]: (position among the looked up, position here) of those that share a band; each once."""
        found = [np.zeros((0, 2), dtype=np.int64)]
        for column, known, order in zip(keys.T, self._bands[language].T, self._order[language].T, strict=True):
            low, high = np.searchsorted(known, column, "left"), np.searchsorted(known, column, "right")
            here = np.repeat(np.arange(len(column)), high - low)
            nth = np.arange(len(here)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
            found.append(np.stack([here, order[low[here] + nth]], axis=1))
        return np.unique(np.concatenate(found), axis=0)


def find(
    shards: Mapping[tuple[str, str], Rows], texts: Mapping[tuple[str, str], Iterable[str]], progress: bool = True
) -> Iterator[Leak]:
    """Every leak, stream by stream in order. A text that repeats within a block is looked up once, and told each time.

    The columns of a shard are all compared: both sides of a pair, and the negatives of a labelled row too.
    """
    from tqdm.auto import tqdm

    known = Texts(texts)
    clean: set[int] = set()  # keys of English texts that were looked up: every language's stream has them again
    with tqdm(total=sum(shard.rows for shard in shards.values()), unit=" rows", disable=not progress) as bar:
        for (source, language), shard in sorted(shards.items()):
            bar.set_postfix_str(f"{source} {language}")
            for start in range(0, shard.rows, BLOCK):
                rows = np.arange(start, min(start + BLOCK, shard.rows))
                for column, values in zip(shard.columns, shard.read(rows), strict=True):
                    own = "en" if column == "english" else language
                    for at, *rest in _leaks(values, own, known, clean if column == "english" else set()):
                        yield Leak(source, language, start + at, column, *rest)
                bar.update(len(rows))


def _leaks(values: Sequence, language: str, known: Texts, clean: set[int]) -> Iterator[tuple]:
    """(row, kind, task, similarity, trained, evaluated) of a column: texts, or lists of texts. `clean` grows."""
    places: dict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        for text in (value,) if isinstance(value, str) else value:
            places[text].append(row)
    rest = []
    for text, rows in places.items():
        key = text_key(text)
        if hit := known.exact.get(key):
            yield from ((row, "exact", hit[0], 1.0, text, hit[1]) for row in rows)
        elif key not in clean:
            rest.append(text)
    near = list(known.near(rest, language))
    clean.update(map(text_key, set(rest) - {rest[at] for at, *_ in near}))
    for at, task, similarity, evaluated in near:
        yield from ((row, "near", task, round(similarity, 3), rest[at], evaluated) for row in places[rest[at]])
