"""Scores are kept: nothing is scored twice, whatever the process was killed at; damage is found, counted and mended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from me5lib.places import Me5Error
from me5lib.train import score_cache
from me5lib.train.score_cache import RECORD, ScoreCache, distinct, score_all

WHO = {"model": "one", "revision": "a1", "limits": [8, 8]}
PAIRS = [(f"question {i % 7}", f"passage {i} " + "word " * (i % 5)) for i in range(50)]


def truth(pair):
    return np.float32(len(pair[0]) * 0.5 - len(pair[1]) + sum(map(ord, pair[1])) % 97 / 7)


class Counting:
    """A model that gives `truth`, longest pairs first and three at a time, and remembers what it was asked."""

    def __init__(self, log=None, stop=10**9):
        self.asked, self.log, self.stop = [], log, stop

    def pieces(self, pairs):
        order = np.argsort([-len(q) - len(p) for q, p in pairs], kind="stable")
        for start in range(0, len(order), 3):
            at = order[start : start + 3]
            if len(self.asked) >= self.stop:
                print("waiting", flush=True)
                time.sleep(600)
            self.asked += [pairs[i] for i in at]
            if self.log:
                with open(self.log, "a", encoding="utf8") as lines:
                    lines.writelines(json.dumps(pairs[i]) + "\n" for i in at)
            yield at, np.array([truth(pairs[i]) for i in at])


def test_each_pair_is_scored_once_and_in_its_place(tmp_path):
    model, twice = Counting(), [*PAIRS, *PAIRS[::-1]]
    with ScoreCache(tmp_path, WHO) as kept:
        assert np.array_equal(kept.through(twice, model.pieces), [truth(pair) for pair in twice])
        assert sorted(model.asked) == sorted(PAIRS) and kept.scored == len(kept) == 50
        assert np.array_equal(kept.through(PAIRS[5:9], model.pieces), [truth(pair) for pair in PAIRS[5:9]])
    again = Counting()
    with ScoreCache(tmp_path, WHO) as kept:
        found = kept.through([*PAIRS[::2], ("new", "pair")], again.pieces)
        assert len(kept.through([], again.pieces)) == 0
    assert again.asked == [("new", "pair")] and np.array_equal(found[:-1], [truth(pair) for pair in PAIRS[::2]])
    assert (kept.folder / "about.json").read_text(encoding="utf8").count("a1") == 1


def test_many_windows_and_a_growing_index_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(score_cache, "WINDOW", 4)
    monkeypatch.setattr(score_cache, "RECENT", 10)
    model = Counting()
    with ScoreCache(tmp_path, WHO) as kept:
        for start in range(0, 50, 10):
            kept.through(PAIRS[: start + 10], model.pieces)
        assert np.array_equal(kept.through(PAIRS, model.pieces), [truth(pair) for pair in PAIRS])
    assert sorted(model.asked) == sorted(PAIRS)


def test_another_revision_limit_or_split_of_the_texts_is_another_score(tmp_path):
    model = Counting()
    for who in (WHO, {**WHO, "revision": "b2"}, {**WHO, "limits": [8, 9]}):
        with ScoreCache(tmp_path, who) as kept:
            kept.through([("ab", "c"), ("a", "bc"), ("", "abc"), ("c", "ab")], model.pieces)
    assert len(model.asked) == 12 and len(list(tmp_path.iterdir())) == 3


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_score_cache import PAIRS, WHO, Counting
from me5lib.train.score_cache import ScoreCache
folder = Path(sys.argv[1])
with ScoreCache(folder, WHO) as kept:
    kept.through(PAIRS, Counting(folder / "asked", stop=27).pieces)
"""


def test_killed_while_scoring_it_goes_on_and_ends_with_the_same_file(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    part.mkdir()
    with ScoreCache(whole, WHO) as kept:
        kept.through(PAIRS, Counting().pieces)
        name = kept.path.relative_to(whole)
    command = [sys.executable, "-c", CHILD, str(part), str(Path(__file__).parent)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    model = Counting(part / "asked")
    with ScoreCache(part, WHO) as kept:  # the dead process's lock is no obstacle
        found = kept.through(PAIRS, model.pieces)
    assert np.array_equal(found, [truth(pair) for pair in PAIRS]) and len(model.asked) == 50 - 27
    asked = [tuple(json.loads(line)) for line in (part / "asked").read_text(encoding="utf8").splitlines()]
    assert sorted(asked) == sorted(PAIRS)  # by both processes together: none twice
    assert (part / name).read_bytes() == (whole / name).read_bytes()


def spoilt(tmp_path, change):
    with ScoreCache(tmp_path, WHO) as kept:
        kept.through(PAIRS, Counting().pieces)
    content = bytearray(kept.path.read_bytes())
    assert len(content) == 50 * RECORD.itemsize
    kept.path.write_bytes(change(content))
    model = Counting()
    with ScoreCache(tmp_path, WHO) as kept:
        dropped, found = kept.dropped, kept.through(PAIRS, model.pieces)
    assert np.array_equal(found, [truth(pair) for pair in PAIRS])
    with ScoreCache(tmp_path, WHO) as kept:
        assert len(kept) == 50 and np.array_equal(kept.through(PAIRS, None), found)
    return dropped, len(model.asked)


@pytest.mark.parametrize(("change", "dropped", "asked"), [
    (lambda content: content[:-1], 1, 1),
    (lambda content: content[: -RECORD.itemsize - 23], 1, 2),
    (lambda content: content[:-48] + bytes(48), 2, 2),  # what some file systems leave after the power went
])  # fmt: skip
def test_a_torn_last_record_is_dropped_counted_and_scored_again(tmp_path, change, dropped, asked, capsys):
    assert spoilt(tmp_path, change) == (dropped, asked)
    assert f"{dropped} damaged record(s) dropped" in capsys.readouterr().err


@pytest.mark.parametrize("place", [2, 10, 17, 21])
def test_a_record_of_which_one_byte_is_another_is_not_believed(tmp_path, place):
    def flip(content):
        content[5 * RECORD.itemsize + place] ^= 4
        return content

    assert spoilt(tmp_path, flip) == (1, 1)


def partly(wrong):
    def pieces(pairs):
        yield np.arange(len(pairs)), np.array([wrong if "passage 3" in p else 1.0 for _, p in pairs], np.float32)

    return pieces


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_counted_and_refused_and_the_others_kept(tmp_path, wrong):
    bad = [pair for pair in PAIRS if "passage 3" in pair[1]]
    with ScoreCache(tmp_path, WHO, "teacher X") as kept:
        with pytest.raises(Me5Error, match=f"teacher X gave {len(bad)} of 50 pairs no finite score.*'question 3'"):
            kept.through(PAIRS, partly(wrong))
        model = Counting()
        kept.through(PAIRS, model.pieces)
    assert sorted(model.asked) == sorted(bad)
    with pytest.raises(Me5Error, match=f"{len(bad)} of 50"):
        score_all(PAIRS, partly(wrong))


def test_too_few_scores_are_refused(tmp_path):
    with pytest.raises(Me5Error, match="gave 49 scores for 50 pairs"):
        score_all(PAIRS, lambda pairs: iter([(np.arange(50), np.ones(49))]))
    with pytest.raises(Me5Error, match="gave 20 of 50 pairs no finite score"):
        score_all(PAIRS, lambda pairs: iter([(np.arange(30), np.ones(30))]))
    assert np.array_equal(score_all(PAIRS, Counting().pieces), [truth(pair) for pair in PAIRS])


def test_a_second_process_waits_for_the_first(tmp_path, capsys):
    model, done = Counting(), threading.Event()

    def second():
        with ScoreCache(tmp_path, WHO) as other:
            other.through(PAIRS, model.pieces)
        done.set()

    with ScoreCache(tmp_path, WHO) as kept:
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not done.wait(0.3)
        kept.through(PAIRS, Counting().pieces)
    waiting.join(10)
    assert done.is_set() and not model.asked and "waiting for it" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(Me5Error, match="cannot be written"), ScoreCache(tmp_path / "file", WHO):
        pass


def test_different_rows_by_hand():
    first, back = distinct(np.array([[5, 1], [2, 2], [5, 1], [5, 0], [2, 2], [9, 9]], dtype=np.uint64))
    assert first.tolist() == [0, 1, 3, 5] and back.tolist() == [0, 1, 0, 2, 1, 3]


def test_it_costs_no_more_than_it_says(tmp_path):
    """A hundred thousand pairs: 24 bytes each on disk."""
    pairs = [(f"query {i // 8}", f"a passage of some words, number {i}") for i in range(100_000)]
    pieces = lambda some: iter([(np.arange(len(some)), np.ones(len(some), np.float32))])  # noqa: E731
    with ScoreCache(tmp_path, WHO) as kept:
        kept.through(pairs, pieces)
    assert os.path.getsize(kept.path) == 24 * 100_000
