"""Scores are kept by blocks: a killed run loses one block and ends with the same scores; damage is seen and mended."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from me5lib import config, io
from me5lib.io import Me5Error
from me5lib.pairs import Labelled
from me5lib.train import score_cache, teaching

GROUPS = {3 * i: Labelled(f"q{i}", (f"right {i}",), tuple(f"wrong {'word ' * j}{i}" for j in range(i % 4)), "s", "en")
          for i in range(18)}  # fmt: skip
PAIRS = [(row.query, text) for row in GROUPS.values() for text in (*row.positives, *row.negatives)]


def truth(pairs):
    return np.float32([len(query) - 2 * len(text) + sum(map(ord, query + text)) % 97 / 7 for query, text in pairs])


class Teacher:
    """Gives `truth`, longest pairs first and three at a time; notes what it scored, and hangs after `stop` pairs."""

    name, prefixed, identity = "X", False, {"model": "one", "revision": "a1"}

    def __init__(self, stop=10**9, wrong=()):
        self.scored, self.stop, self.wrong = [], stop, wrong

    def pieces(self, pairs, lengths=None):
        order = np.argsort([-len(text) for _, text in pairs], kind="stable")
        for at in (order[start : start + 3] for start in range(0, len(order), 3)):
            if len(self.scored) >= self.stop:
                print("waiting", flush=True)
                time.sleep(600)
            piece = [pairs[i] for i in at]
            self.scored += piece
            yield at, np.where([pair in self.wrong for pair in piece], np.nan, truth(piece))


def block(folder, teacher=None, pairs=PAIRS, **more):
    return score_cache.block_scores(pairs, (teacher or Teacher()).pieces, "X", folder, {**Teacher.identity, **more})


def score_groups(folder, teacher, **dials):
    """The scores of all `PAIRS`, in blocks of four groups, which are ten pairs."""
    stage = dataclasses.replace(config.load("smoke").finetune, **dials)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "BLOCK", 4)
        made = teaching.score(teacher, GROUPS, stage, lambda source: ("", ""), folder)
    return pytest.approx([score for i in GROUPS for score in made[i].teacher_scores], abs=1e-4)  # they are rounded


def test_each_pair_is_scored_once_in_its_place_and_the_block_read_the_next_time(tmp_path):
    teacher, twice = Teacher(), [*PAIRS, *PAIRS[::-1]]
    for again in (False, True):
        scores, cached = block(tmp_path / "new" / "folder", teacher, twice)
        assert scores.dtype == np.float32 and np.array_equal(scores, truth(twice))
        assert cached is again and sorted(teacher.scored) == sorted(PAIRS)


def test_another_revision_limit_version_or_split_of_the_texts_is_another_block(tmp_path, monkeypatch):
    cases = [{"pairs": [("ab", "c")]}, {"pairs": [("a", "bc")]}, {"pairs": [("c", "ab")]}, {}, {"revision": "b2"}]
    assert [block(tmp_path, **case)[1] for case in (*cases, *cases)] == [False] * 5 + [True] * 5
    monkeypatch.setattr(score_cache, "VERSION", score_cache.VERSION + 1)
    assert not block(tmp_path)[1]
    teacher = Teacher()
    for limit in (7, 8):
        score_groups(tmp_path, teacher, passage_tokens=limit)
    assert sorted(teacher.scored) == sorted(2 * PAIRS)


CHILD = ("import sys; sys.path.insert(0, sys.argv[2]); import test_score_cache as the; "
         "the.score_groups(the.Path(sys.argv[1]), the.Teacher(stop=24))")  # fmt: skip


def test_killed_while_scoring_it_scores_the_missing_blocks_alone_and_ends_with_the_same_scores(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    teacher = Teacher()
    assert score_groups(tmp_path, teacher) == truth(PAIRS)
    assert sorted(teacher.scored) == sorted(PAIRS[20:])  # it was killed in the third block


@pytest.mark.parametrize("damage", [
    *(lambda path, size=size: path.write_bytes(path.read_bytes()[:size]) for size in (0, 5, 100, -1)),
    *(lambda path, other=other: np.save(path, other) for other in (
        truth(PAIRS[1:]), np.float64(truth(PAIRS)), np.array([{}] * len(PAIRS)), truth(PAIRS) * np.nan)),
])  # fmt: skip
def test_a_file_that_is_cut_short_or_of_another_length_is_said_and_scored_again(tmp_path, capsys, damage):
    block(tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    for again in (False, True):
        scores, cached = block(tmp_path)
        assert np.array_equal(scores, truth(PAIRS)) and cached is again
    assert capsys.readouterr().err == f"{path} is damaged: its {len(PAIRS)} pairs are scored again\n"


def test_scores_that_are_lacking_or_no_numbers_are_refused_and_the_blocks_before_them_kept(tmp_path):
    with pytest.raises(Me5Error, match="X gave 2 of 10 pairs no finite score .the first: query 'q9'"):
        score_groups(tmp_path, Teacher(wrong=PAIRS[22:24]))
    teacher = Teacher()
    assert score_groups(tmp_path, teacher) == truth(PAIRS) and sorted(teacher.scored) == sorted(PAIRS[20:])
    for places, scores, message in ((10, 9, "X gave 9 scores for 10 pairs"), (6, 6, "X gave 4 of 10 pairs no finite")):
        with pytest.raises(Me5Error, match=message):
            score_cache.score_pairs(PAIRS[:10], lambda _, a=places, b=scores: [(np.arange(a), np.ones(b))], "X")


def test_two_that_write_the_same_block_at_once_do_no_harm(tmp_path, monkeypatch):
    def second(path, sync=io.sync):
        monkeypatch.setattr(io, "sync", sync)
        assert not block(tmp_path)[1]

    monkeypatch.setattr(io, "sync", second)  # the first has written its file beside, and not renamed it
    assert not block(tmp_path)[1]
    assert [np.load(path).tolist() for path in tmp_path.iterdir()] == [truth(PAIRS).tolist()]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf8")
    teacher = Teacher()
    with pytest.raises(Me5Error, match="file cannot be written"):
        block(tmp_path / "file", teacher)
    assert not teacher.scored
    monkeypatch.setattr(io, "rename", lambda *_: (tmp_path / "none").stat())
    with pytest.raises(Me5Error, match=r"\.npy cannot be written .No such file"):
        block(tmp_path / "full")
    assert not list((tmp_path / "full").iterdir())
