"""Near-copies between training and held-out texts: the split that keeps them together, and the search for leaks.

Two texts are near when the sets of character trigrams of their masked forms have a Jaccard similarity of at least
`NEAR` ("Error saving photo", "Error saving video"); a cluster is what a chain of near strings connects.

    english ──► clusters ──► HeldOut.choose ──► .english   the held-out English strings
                                            ──► .add       their translations, and texts that only evaluate
                                            ──► .admits    what may be trained on, on either side, in any language
    shards, evaluation texts ──► find_leaks ──► every training row that equals one, or is near one in its language

A sentence inside a long passage is not a near-copy of it. Cost: clusters take about 0.1 ms a distinct string (MinHash,
checked exactly); `near_copies` is a sparse product that grows with held-out × tested strings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasketch import MinHash
from scipy import sparse
from scipy.sparse import csgraph
from tqdm.auto import tqdm

from me5lib.data.shards import GOLDEN, Shard
from me5lib.pairs import normalise, text_key

NEAR = 0.6  # ours: below it unlike strings begin to chain up (at 0.45 a third of Home Assistant is one cluster)
LARGEST = 200  # ours: strings; nothing is learnt from holding out one huge cluster, and much is lost
BANDS, ROWS = 48, 3  # MinHash: a pair at Jaccard NEAR is missed with (1 - 0.6³)⁴⁸, less than 1 in 100,000
TOKEN = "#"  # what a number or a placeholder becomes
READ_ROWS = 20_000  # rows that are searched for leaks at a time

_DIGIT = r"[\d²³¹⁰⁴-⁹₀-₉¼-¾⅐-⅞፩-፼]"
_GROUPED = r"(?<!\d)\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)"  # 1 000 000, as French and Russian write it
_NUMBER = re.compile(rf"(?:{_GROUPED}|{_DIGIT})(?:[.,:/٫٬'’⁄]?{_DIGIT})*")
_ANY = re.compile(rf"{_DIGIT}|[%{{<]|://")  # most texts have nothing to mask, which this sees fastest
_PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%[sdif]\b|\$?\{[^{}]*\}|<[^<>]+>|https?://\S+")


def mask_numbers(text: str) -> str:
    """`text` with every number, in the digits of any script, replaced by one `TOKEN` ("1.250,5" is one number)."""
    return _NUMBER.sub(TOKEN, text)


def mask(text: str) -> str:
    """The form in which two texts are compared: normalised, and numbers, placeholders and links replaced by `TOKEN`."""
    text = normalise(text)
    return mask_numbers(_PLACEHOLDER.sub(TOKEN, text)) if _ANY.search(text) else text


def character_trigrams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The character trigrams of texts, their ends padded, and the text that each is of: int64 [n] both.

    A trigram is its three code points side by side (3 × 21 bits), so nothing collides.
    """
    padded = [f" {text} " for text in texts]
    signs = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)
    of = np.repeat(np.arange(len(padded)), [len(text) for text in padded])
    inside = of[:-2] == of[2:]  # of one text, not across two
    return (signs[:-2] << 42 | signs[1:-1] << 21 | signs[2:])[inside], of[:-2][inside]


def shingles(forms: Sequence[str]) -> sparse.csr_matrix:
    """The different trigrams of masked texts: binary int32 [len(forms), trigrams]."""
    codes, row = character_trigrams(forms)
    distinct, column = np.unique(codes, return_inverse=True)
    cells = (np.ones(len(codes), dtype=np.int32), (row, column))
    grams = sparse.csr_matrix(cells, shape=(len(forms), len(distinct)))
    grams.data[:] = 1  # what comes twice in a text was summed
    return grams


def clusters(english: Sequence[str]) -> np.ndarray:
    """The cluster of each string, int64 [len(english)]: near-copies, and what a chain of them connects, share one.

    Strings of an equal masked form always share one. Numbers are consecutive from 0, in order of first appearance.
    """
    number: dict[str, int] = {}
    form_of = np.array([number.setdefault(mask(text), len(number)) for text in english], dtype=np.int64)
    if not number:
        return form_of
    grams = shingles(list(number))
    edges = _candidates(grams)
    edges = edges[jaccard(grams, edges) >= NEAR]
    links = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(number), len(number)))
    component = csgraph.connected_components(links, directed=False)[1][form_of]
    return pa.array(component).dictionary_encode().indices.to_numpy().astype(np.int64)


def near_copies(held: Sequence[str], forms: Sequence[str], block: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Of each masked text in `forms` the nearest of `held`, masked too, where that is a near-copy; exact.

    Jaccard similarity, float64 [len(forms)], 0 where there is none; and its position in `held`, int64, the last of
    equally near ones. Sets whose sizes differ by more than NEAR are not compared.
    """
    similarity, nearest = np.zeros(len(forms)), np.zeros(len(forms), dtype=np.int64)
    if not len(held) or not len(forms):
        return similarity, nearest
    grams = shingles([*held, *forms])
    sizes = np.diff(grams.indptr)
    left, right = (np.argsort(part, kind="stable") for part in (sizes[: len(held)], sizes[len(held) :]))
    right += len(held)
    ordered, hits = grams[right], []
    for start in range(0, len(left), block):
        few = left[start : start + block]
        low = np.searchsorted(sizes[right], NEAR * sizes[few[0]], side="left")
        high = np.searchsorted(sizes[right], sizes[few[-1]] / NEAR, side="right")
        found = (grams[few] @ ordered[low:high].T).tocoo()
        enough = found.data >= NEAR * sizes[few[0]]  # the union is never smaller than the smallest of the block
        common, one, other = found.data[enough], few[found.row[enough]], right[low + found.col[enough]]
        value = common / (sizes[one] + sizes[other] - common)
        hits.append(np.array([value, one, other - len(held)])[:, value >= NEAR])
    value, one, other = np.concatenate(hits, axis=1)
    order = np.lexsort((one, value))  # what is assigned last stays: the nearest
    at = other[order].astype(np.int64)
    similarity[at], nearest[at] = value[order], one[order]
    return similarity, nearest


class HeldOut:
    """What is held out, and so what may be trained on.

    `english`: held-out English string → number of its cluster. `report`: counts of strings and clusters.
    """

    def __init__(self, english: Mapping[str, int] | None = None, report: dict[str, float] | None = None):
        self.english, self.report = dict(english or {}), dict(report or {})
        self._forms: set[str] = set()
        self._by_language: dict[str, set[str]] = {}
        self.add(self.english, "en")

    @classmethod
    def choose(cls, english: Sequence[str], candidates: np.ndarray, share: float, largest: int = LARGEST) -> HeldOut:
        """Hold out about `share` of the clusters of `english` that have a candidate (bool [len(english)]) in them.

        Those whose first member in alphabetical order has a hash under the share: the same for every seed, and fixed
        before anything is trained. Clusters of more than `largest` strings stay in training.
        """
        cluster = clusters(english)
        size = np.bincount(cluster)
        eligible = np.bincount(cluster, weights=np.asarray(candidates, dtype=float)) > 0
        canonical: dict[int, str] = {}
        for text, number in sorted(zip(map(mask, english), cluster.tolist(), strict=True)):
            canonical.setdefault(number, text)
        chosen = {n for n, text in canonical.items() if eligible[n] and size[n] <= largest and fraction(text) < share}
        held = {text: number for text, number in zip(english, cluster.tolist(), strict=True) if number in chosen}
        report = {"strings": len(english), "clusters": len(size), "largest cluster": int(size.max(initial=0)),
                  "clusters too large to hold out": int((eligible & (size > largest)).sum()),
                  "held-out clusters": len(chosen), "held-out strings": len(held)}
        return cls(held, report)

    def add(self, texts: Iterable[str], language: str) -> None:
        """Keep `texts` out as well: translations of held-out strings, texts that only evaluate."""
        forms = {mask(text) for text in texts} - {""}
        self._forms |= forms
        self._by_language.setdefault(language, set()).update(forms)

    def admits(self, texts: Sequence[str], language: str) -> np.ndarray:
        """Which of `texts` may be trained on: equal to no held-out text of any language, near none of `language`'s own.

        Texts are compared in masked form. bool [len(texts)].
        """
        forms = [mask(text) for text in texts]
        admitted = np.array([form not in self._forms for form in forms], dtype=bool)
        held = sorted(self._by_language.get(language, ()))
        for start in range(0, len(forms), READ_ROWS):  # in parts: of all English texts the trigrams take a gigabyte
            rest = start + np.flatnonzero(admitted[start : start + READ_ROWS])
            admitted[rest] = near_copies(held, [forms[i] for i in rest])[0] == 0
        return admitted


def fraction(text: str) -> float:
    """A number in [0, 1) that stands for `text`: its `text_key`, scaled. What all choices by hash are made with."""
    return (text_key(text) + 2**63) / 2**64


def jaccard(grams: sparse.csr_matrix, edges: np.ndarray, block: int = 200_000) -> np.ndarray:
    """Jaccard similarity of the texts that each of `edges` (int64 [n, 2], rows of `grams`) joins; float64 [n]."""
    sizes = np.diff(grams.indptr)
    result = np.empty(len(edges))
    for start in range(0, len(edges), block):
        i, j = edges[start : start + block].T
        common = np.asarray(grams[i].multiply(grams[j]).sum(axis=1)).ravel()
        result[start : start + block] = common / (sizes[i] + sizes[j] - common)
    return result


def _candidates(grams: sparse.csr_matrix, block: int = 100_000) -> np.ndarray:
    # int64 [pairs, 2], smaller first: texts whose MinHash signatures agree on all rows of some band, and on so many
    # rows in all that a similarity of NEAR is not out of the question (five standard deviations)
    sets = (grams.indices[a:b].tolist() for a, b in zip(grams.indptr, grams.indptr[1:], strict=False))
    hashes = MinHash.generator(sets, num_perm=BANDS * ROWS, hashfunc=int, scheme="affine32")  # mixes the columns itself
    signatures = np.array([one.hashvalues for one in hashes], dtype=np.uint32)
    bands = np.zeros((len(signatures), BANDS), dtype=np.uint64)  # each in one number: a collision costs a comparison
    for row in range(ROWS):
        bands = (bands ^ signatures[:, row::ROWS]) * np.uint64(GOLDEN)
        bands ^= bands >> np.uint64(32)
    bucket, start = np.unique(bands, return_inverse=True)[1].ravel(), np.arange(len(bands) + 1) * BANDS
    within = sparse.csr_matrix((np.ones(len(bucket), dtype=np.int8), bucket, start))
    joined = sparse.triu(within @ within.T, k=1).tocoo()
    pairs = np.stack([joined.row, joined.col], axis=1)
    least = NEAR - 5 * (NEAR * (1 - NEAR) / (BANDS * ROWS)) ** 0.5
    some = (pairs[start : start + block] for start in range(0, len(pairs) + 1, block))
    return np.concatenate([each[(signatures[each[:, 0]] == signatures[each[:, 1]]).mean(1) >= least] for each in some])


# Leaks ----------------------------------------------------------------------------------------------------------------


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


def find_leaks(shards: Mapping[tuple[str, str], Shard], texts: Mapping[tuple[str, str], Iterable[str]],
               progress: bool = True) -> Iterator[Leak]:
    """Every training text of `shards`, by (source, language), that should not be there for one of `texts`, by (task,
    language): equal to one when normalised, whatever language either is in, or near one within its language.

    All columns are compared: both sides of a pair, and the negatives of a labelled row too.
    """
    exact: dict[int, tuple[str, str]] = {}  # key → task, text
    forms: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)  # language → masked form → task, text
    for (task, language), own in texts.items():
        for text in own:
            if form := mask(text):
                exact.setdefault(text_key(text), (task, text))
                forms[language].setdefault(form, (task, text))
    clean: set[int] = set()  # keys of English texts that were looked up: every language's stream has them again
    with tqdm(total=sum(shard.rows for shard in shards.values()), unit=" rows", disable=not progress) as bar:
        for (source, language), shard in sorted(shards.items()):
            bar.set_postfix_str(f"{source} {language}")
            for start in range(0, shard.rows, READ_ROWS):
                rows = np.arange(start, min(start + READ_ROWS, shard.rows))
                for column, values in zip(shard.columns, shard.read(rows), strict=True):
                    english = column == "english"
                    own = forms["en" if english else language]
                    for at, *rest in _leaks(values, exact, own, clean if english else set()):
                        yield Leak(source, language, start + at, column, *rest)
                bar.update(len(rows))


def _leaks(values: Sequence, exact: Mapping[int, tuple[str, str]], forms: Mapping[str, tuple[str, str]],
           clean: set[int]) -> Iterator[tuple]:
    """(row, kind, task, similarity, trained, evaluated) of a column: texts, or lists of texts. `clean` grows."""
    places: dict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        for text in (value,) if isinstance(value, str) else value or ():
            places[text].append(row)
    rest = []
    for text, rows in places.items():
        key = text_key(text)
        if hit := exact.get(key):
            yield from ((row, "exact", hit[0], 1.0, text, hit[1]) for row in rows)
        elif key not in clean:
            rest.append(text)
    evaluated = list(forms.values())
    for text, similarity, nearest in zip(rest, *near_copies(list(forms), list(map(mask, rest))), strict=True):
        if similarity:
            task, other = evaluated[nearest]
            yield from ((row, "near", task, round(float(similarity), 3), text, other) for row in places[text])
        else:
            clean.add(text_key(text))
