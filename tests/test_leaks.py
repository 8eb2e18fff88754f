"""Leaks: what is planted is found, and nothing else; compared with every pair of texts, one by one."""

import itertools

import numpy as np
import pytest

from me5lib.config import load
from me5lib.data import leaks, split
from me5lib.data.corpus import open_corpus

WORDS = "the light in room door window could not be found please try again later open close turn on off save".split()


class Rows:
    """A shard in memory."""

    def __init__(self, columns: dict[str, list]):
        self.columns, self.table = tuple(columns), columns
        self.rows = len(next(iter(columns.values())))

    def read(self, rows):
        return [[values[i] for i in rows] for values in self.table.values()]


def sentences(n: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(3, 9))) + f" {seed}{i}x" for i in range(n)]


def grams(text: str) -> set[str]:
    padded = f" {split.mask(text)} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def test_near_copies_are_those_that_comparing_every_pair_finds():
    held, trained = sentences(120, 4), sentences(400, 5)
    found = list(leaks.find({("web", "en"): Rows({"query": trained, "passage": ["y"] * 400})},
                            {("t", "en"): held}, progress=False))
    truth = {}
    for (i, text), other in itertools.product(enumerate(trained), held):
        a, b = grams(text), grams(other)
        truth[i] = max(truth.get(i, 0.0), len(a & b) / len(a | b))
    near = {i: value for i, value in truth.items() if value >= split.NEAR}
    assert len(near) > 5
    assert {leak.row: leak.similarity for leak in found} == pytest.approx(near, abs=1e-3)


def test_planted_leaks_are_found_in_any_column_of_every_stream_and_named():
    held, query, passage = sentences(50, 1), sentences(300, 2), sentences(300, 3)
    query[17] = held[4].upper() + "  "  # equal after normalisation
    passage[250] = held[9].replace("the", "The") + "y"
    found = list(leaks.find({("web", "en"): Rows({"query": query, "passage": passage})}, {("task", "en"): held}, False))
    assert [(leak.row, leak.column, leak.task, leak.evaluated) for leak in found if leak.kind == "exact"] == [
        (17, "query", "task", held[4])]
    assert (250, "passage", held[9]) in {(leak.row, leak.column, leak.evaluated) for leak in found}
    english = ["The light in the room is on", "clean text", "another clean one"]  # every stream repeats it
    streams = {("ui", language): Rows({"english": english, "text": ["x", "y", "z"]}) for language in ("de", "fr", "sw")}
    found = leaks.find(streams, {("t", "en"): ["The light in the room is off"]}, False)
    assert [(leak.language, leak.row, leak.column) for leak in found] == [(code, 0, "english") for code in
                                                                          ("de", "fr", "sw")]
    labelled = Rows({"query": ["a question"], "positives": [["right"]], "negatives": [["wrong", "held out text"]]})
    (leak,) = leaks.find({("nq", "en"): labelled}, {("t", "en"): ["Held out text"]}, False)
    assert (leak.column, leak.trained, leak.similarity) == ("negatives", "held out text", 1.0)


def test_a_near_copy_counts_within_its_language_and_an_equal_text_in_any():
    held = {("t", "de"): ["Das Licht im Zimmer ist an"]}
    shard = Rows({"english": ["Das Licht im Zimmer ist aus", "nothing"], "text": ["x", "Das Licht im  zimmer ist an"]})
    found = list(leaks.find({("ui", "fr"): shard}, held, progress=False))
    assert [(leak.kind, leak.row, leak.column) for leak in found] == [("exact", 1, "text")]
    german = Rows({"english": ["a"], "text": ["Das Licht im Zimmer ist aus"]})
    assert [leak.kind for leak in leaks.find({("ui", "de"): german}, held, progress=False)] == ["near"]


def test_the_smoke_corpus_leaks_nothing():
    corpus = open_corpus(load("smoke"), progress=False)
    held = {("heldout", "en"): {row for english, _ in corpus.tasks()[0].sets.values() for row in english}}
    held |= {("heldout", language): texts for language, (_, texts) in corpus.tasks()[0].sets.items()}
    assert sum(map(len, held.values())) > 100
    assert list(leaks.find(corpus.shards, held, progress=False)) == []
