"""The split: near-copies share a cluster, clusters are held out whole, what is near them is refused, or found.

References are written here from the definitions: sets of trigrams in plain Python, single linkage by flooding.
"""

import random
import unicodedata

import numpy as np
import pytest

from me5lib.data import split
from me5lib.data.split import HeldOut, clusters, find_leaks, mask, mask_numbers, near_copies


def trigrams(text: str) -> set[str]:
    text = f" {mask(text)} "
    return {text[i : i + 3] for i in range(len(text) - 2)}


def jaccard(a: str, b: str) -> float:
    one, other = trigrams(a), trigrams(b)
    return len(one & other) / len(one | other) if one | other else float(mask(a) == mask(b))


def flood(texts: list[str]) -> list[int]:
    """Single linkage by brute force: cluster numbers in order of first appearance."""
    cluster, number = [-1] * len(texts), 0
    for start in range(len(texts)):
        if cluster[start] >= 0:
            continue
        cluster[start], todo = number, [start]
        while todo:
            here = todo.pop()
            for i, text in enumerate(texts):
                if cluster[i] < 0 and jaccard(texts[here], text) >= split.NEAR:
                    cluster[i] = number
                    todo.append(i)
        number += 1
    return cluster


def interface_strings(n: int, seed: int) -> list[str]:
    """Strings as an interface has them: few frames, many fillings, numbers, other scripts."""
    rng = random.Random(seed)
    frames = ["Error while saving {}", "Turn on {}", "{} temperature", "The hostname or IP address of your {} device.",
              "{} sensor {}", "Unable to connect to {}", "Delete {} and all its files?", "{} пошёл в {}",
              "{}を保存する {}"]
    words = ["light", "the kitchen light", "photo", "photos", "video", "boiler", "Дом", "café", "電気", "42", "1,000",
             "a", ""]
    return [rng.choice(frames).format(rng.choice(words), rng.choice(words)) for _ in range(n)]


def test_clusters_are_single_linkage_by_brute_force():
    assert (1 - split.NEAR**split.ROWS) ** split.BANDS < 1e-5  # of pairs at the threshold that MinHash misses
    rng = random.Random(9)
    letters = ["".join(rng.choice("ab ") for _ in range(rng.randint(0, 14))) for _ in range(150)]
    for texts in (interface_strings(120, 0), interface_strings(120, 1), letters, [], ["", "x", ""]):
        assert clusters(texts).tolist() == flood(texts)


def test_near_is_brute_force_jaccard():
    texts = interface_strings(300, 5)
    held, others = texts[:60], texts[60:]
    every = [[jaccard(one, other) for one in held] for other in others]
    expected = [max(values) if max(values) >= split.NEAR else 0 for values in every]
    last = [59 - row[::-1].index(value) if value else 0 for row, value in zip(every, expected, strict=True)]
    held, others = list(map(mask, held)), list(map(mask, others))
    for block in (7, 256):
        similarity, nearest = near_copies(held, others, block)
        assert similarity.tolist() == expected and nearest.tolist() == last
    assert 0 < sum(map(bool, expected)) < len(expected)
    assert near_copies([], others)[0].sum() == 0 and len(near_copies(held, [])[0]) == 0


@pytest.mark.parametrize("text, masked", [
    ("Waited 12 minutes", "Waited # minutes"),
    ("١٢ دقيقة", "# دقيقة"),
    ("१,२३४.५ रुपये", "# रुपये"),
    ("１２個", "#個"),
    ("1 000 000 kr", "# kr"),
    ("1.250,50 €", "# €"),
    ("3, 4 and 5", "#, # and #"),
    ("at 5:30 on 2020/01/02", "at # on #"),
    ("x² and ½", "x# and #"),
    ("፲፪ ሰዓት", "# ሰዓት"),
    ("no number at all", "no number at all"),
    ("", ""),
])
def test_numbers_in_any_script_become_one_token(text, masked):
    assert mask_numbers(text) == masked


def test_digits_placeholders_case_and_width_do_not_tell_texts_apart():
    digits = [chr(c) for c in range(0x110000) if unicodedata.decimal(chr(c), None) is not None]
    assert len(digits) > 600 and not [d for d in digits if mask_numbers(f"a {d}{d} b") != "a # b"]
    same = ["Delete {name}?", "delete ${file} ?", "DELETE %(object)s?", "Ｄelete <b>?",
            "delete https://example.org/a ?"]
    assert len({mask(text).replace(" ", "") for text in same}) == 1


def test_the_choice_is_by_whole_clusters_whatever_the_order_and_grows_with_the_share():
    texts = sorted(set(interface_strings(1000, 1)))
    every = np.ones(len(texts), dtype=bool)
    some = HeldOut.choose(texts, every, 0.3).english.keys()
    assert 0 < len(some) < len(texts)
    assert max(jaccard(a, b) for a in sorted(some)[:100] for b in set(texts) - some) < split.NEAR
    assert HeldOut.choose(random.Random(0).sample(texts, len(texts)), every, 0.3).english.keys() == some
    assert some < HeldOut.choose(texts, every, 0.6).english.keys()
    assert not HeldOut.choose(texts, every, 0.0).english
    rng = random.Random(0)
    apart = ["".join(rng.choice("abcdefghijklmnop") for _ in range(20)) for _ in range(1000)]
    report = HeldOut.choose(apart, np.ones(1000, dtype=bool), 0.25).report
    assert report["clusters"] == 1000 and abs(report["held-out clusters"] / 1000 - 0.25) < 0.05


def test_a_huge_cluster_and_one_without_candidates_go_to_training():
    chain = [f"sensor number {'x' * i} of the house" for i in range(1, 40)]
    others = ["Save the photo now", "Connect to the server"]
    held = HeldOut.choose(chain + others, np.ones(41, dtype=bool), 1.0, largest=10)
    assert set(held.english) == set(others)
    assert held.report["clusters too large to hold out"] == 1 and held.report["largest cluster"] == 39
    assert set(HeldOut.choose(chain + others, np.arange(41) >= 39, 1.0).english) == set(others)


def test_admits_refuses_equal_texts_everywhere_and_near_copies_in_their_language():
    held = HeldOut({"Turn on the kitchen light in 5 minutes": 0})
    held.add(["Schalte das Küchenlicht in 5 Minuten ein"], "de")
    english = ["turn on the  kitchen light in 12 minutes", "Turn on the kitchen lights in 5 minutes.", "Save the photo"]
    assert held.admits(english, "en").tolist() == [False, False, True]
    german = ["Schalte das Küchenlicht in ٩ Minuten ein", "Schalte das Küchenlicht in 5 Minuten aus", "Foto speichern"]
    assert held.admits(german, "de").tolist() == [False, False, True]
    assert held.admits(german, "fr").tolist() == [False, True, True]  # equal in any language, near in its own
    assert held.admits([], "de").tolist() == []


# Leaks ----------------------------------------------------------------------------------------------------------------

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


def test_planted_leaks_are_found_in_any_column_of_every_stream_and_named():
    held, query, passage = sentences(50, 1), sentences(300, 2), sentences(300, 3)
    query[17] = held[4].upper() + "  "  # equal after normalisation
    passage[250] = held[9].replace("the", "The") + "y"
    found = list(find_leaks({("web", "en"): Rows({"query": query, "passage": passage})}, {("task", "en"): held}, False))
    assert [(leak.row, leak.column, leak.task, leak.evaluated) for leak in found if leak.kind == "exact"] == [
        (17, "query", "task", held[4])]
    assert (250, "passage", held[9]) in {(leak.row, leak.column, leak.evaluated) for leak in found}
    english = ["The light in the room is on", "clean text", "another clean one"]  # every stream repeats it
    streams = {("ui", language): Rows({"english": english, "text": ["x", "y", "z"]}) for language in ("de", "fr", "sw")}
    found = find_leaks(streams, {("t", "en"): ["The light in the room is off"]}, False)
    assert [(leak.language, leak.row, leak.column) for leak in found] == [(code, 0, "english") for code in
                                                                          ("de", "fr", "sw")]
    labelled = Rows({"query": ["a question"], "positives": [["right"]], "negatives": [["wrong", "held out text"]],
                     "instruction": [None]})
    (leak,) = find_leaks({("nq", "en"): labelled}, {("t", "en"): ["Held out text"]}, False)
    assert (leak.column, leak.trained, leak.similarity) == ("negatives", "held out text", 1.0)


def test_a_near_copy_counts_within_its_language_and_an_equal_text_in_any():
    held = {("t", "de"): ["Das Licht im Zimmer ist an"]}
    shard = Rows({"english": ["Das Licht im Zimmer ist aus", "nothing"], "text": ["x", "Das Licht im  zimmer ist an"]})
    found = list(find_leaks({("ui", "fr"): shard}, held, progress=False))
    assert [(leak.kind, leak.row, leak.column) for leak in found] == [("exact", 1, "text")]
    german = Rows({"english": ["a"], "text": ["Das Licht im Zimmer ist aus"]})
    assert [leak.kind for leak in find_leaks({("ui", "de"): german}, held, progress=False)] == ["near"]
