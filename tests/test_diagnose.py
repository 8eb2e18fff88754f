"""`me5 diagnose`: what is planted is found, by counting by hand; what is well is not named; runs without records."""

import functools
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from me5lib import config, io
from me5lib.cli.app import app
from me5lib.data.corpus import Bitext, open_corpus
from me5lib.lessons import diagnose
from me5lib.model.text import instruct
from me5lib.pairs import Labelled
from me5lib.train import stages

SMALL = ["train.steps=6", "train.batch=32", "finetune.steps=3", "finetune.batch=8"]
LANGUAGES = [f"l{i}" for i in range(8)]


class Words:
    """A stand-in for an encoder: the sum of its words' random vectors, so that texts that share words are near."""

    device = torch.device("cpu")

    def encode(self, texts, prefix="", **_):
        found = np.array([sum(map(self.of, text.split()), np.zeros(64)) for text in texts])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    @staticmethod
    @functools.cache
    def of(word):
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
        return np.random.default_rng(seed).normal(size=64)


def blind_in(*languages):
    """An encoder that reads "l0-7" as "en-7", but not in these languages."""
    class Reader(Words):
        @staticmethod
        def of(word):
            language, _, number = word.partition("-")
            return Words.of(word if language in languages else f"en-{number}")

    return Reader()


def heldout(name):
    return Bitext(name, {code: ([f"en-{i}" for i in range(30)], [f"{code}-{i}" for i in range(30)])
                         for code in LANGUAGES})


@pytest.mark.parametrize("poor", [True, False])
def test_languages_that_starved_and_fell_behind_are_named(poor):
    few, corpus = LANGUAGES[:2] if poor else (), SimpleNamespace(task=heldout)
    drawn = {code: 5 if code in few else 100 for code in LANGUAGES}
    (found,) = diagnose.suspects(diagnose.Stage(blind_in(*few), blind_in(*LANGUAGES), corpus, drawn), "stage1")
    assert found.cause == "data share" and (found.score >= diagnose.NAMED) == poor
    assert found.evidence[0].value.mean == pytest.approx(1 - 8 * 5 / (2 * 5 + 6 * 100) if poor else 0)
    assert found.symptom.value.mean > 0.9 if poor else found.symptom.value.mean == pytest.approx(0)


def group(i, negatives, task=""):
    """A question of eight words of its topic, answered by four of them."""
    words = [f"t{i % 4}w{i}-{j}" for j in range(8)] + [f"topic{i % 4}"] * 4
    return Labelled(instruct(task, " ".join(words)), (" ".join(words[4:]),), tuple(negatives), "own", "en")


def stage_of(groups):
    corpus = open_corpus(config.load("smoke"), progress=False)
    return diagnose.Stage(Words(), Words(), corpus, groups=groups)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_groups_with_a_copy_of_the_answer_are_counted(share):
    rows = [group(i, [f"topic{i % 4} other{i}"]) for i in range(40)]
    ill = set(np.random.default_rng(0).permutation(40)[: round(40 * share)].tolist())
    rows = [row._replace(negatives=(f"{row.positives[0]} .",)) if i in ill else row for i, row in enumerate(rows)]
    _, (false, _) = diagnose.weak_retrieval(stage_of(rows))
    assert false.value.mean == pytest.approx(share)
    (found,) = diagnose.suspects(stage_of(rows), "stage2")
    assert found.cause == "mining" and (found.score >= diagnose.NAMED) == (share > 0.1)
    asked = [row._replace(query=instruct("Find it", row.query)) for row in rows]
    assert diagnose.weak_retrieval(stage_of(asked))[1][0].value.mean == 0  # another instruction may ask for the copy


def test_negatives_from_anywhere_are_told_from_mined_ones():
    near = [group(i, [f"topic{i % 4} other{i}"]) for i in range(40)]
    far = [row._replace(negatives=near[(i * 7 + 2) % 40].positives) for i, row in enumerate(near)]
    easy = [diagnose.weak_retrieval(stage_of(rows))[1][1].value.mean for rows in (near, far)]
    assert easy[0] < 0.1 and easy[1] > 0.3


TASKS = [f"Find a topic{i}" for i in range(4)]


@pytest.mark.parametrize(("task_of", "low", "high", "common"), [
    (lambda i: TASKS[i % 4], 0, 0.02, 0.25), (lambda i: TASKS[i // 4 % 4], 0.4, 0.6, 0.25),
    (lambda i: TASKS[0], 0, 0, 1),
])  # fmt: skip
def test_instructions_that_say_nothing_are_told_from_true_ones(task_of, low, high, common):
    stage = stage_of([group(i, ["topic0"], task_of(i)) for i in range(32)])
    found = {one.cause: one for one in diagnose.suspects(stage, "instruct")}["instructions"]
    others, alike = found.evidence
    assert low <= others.value.mean <= high and alike.value.mean == common
    assert (found.score >= diagnose.NAMED) == (low > 0 or common == 1)


def test_a_run_and_one_of_its_stages_are_diagnosed_and_what_has_no_record_is_said(tmp_path):
    scale, run = config.load("smoke", SMALL), CliRunner().invoke
    corpus = open_corpus(scale, progress=False)
    nothing = {"evaluate": lambda *_: {}, "progress": False, "corpus": corpus}
    stage1 = stages.pretrain(scale, 3, tmp_path, **nothing)
    stages.finetune(scale, 3, tmp_path, start=stage1, teacher=False, **nothing)
    assert sum(diagnose.open_stage(stage1).drawn.values()) == 6 * 32
    told = run(app, ["diagnose", str(tmp_path)])
    assert told.exit_code == 0 and "stage1: poor in some languages? data share" in told.stdout
    assert "stage2: weak retrieval? mining" in told.stdout and (tmp_path / "diagnosis.png").stat().st_size > 1000
    assert {one["cause"] for one in io.read_json(tmp_path / "diagnosis.json")} == {"data share", "mining"}
    made = io.read_json(stage1 / "stage.json")  # as of pairs of one's own
    io.write_json(stage1 / "stage.json", made | {"settings": made["settings"] | {"plan": "another"}})
    for folder, why in ((stage1, "no record"), (tmp_path / "tokenizer", "no finished stage"),
                        (tmp_path / "nowhere", "no finished stage")):
        told = run(app, ["diagnose", str(folder)])
        assert told.exit_code == 2 and told.stderr.count("\n") == 1
        assert told.stderr.startswith(f"me5: {folder} has {why} of ")


def padded(texts, batch=8, fixed=0, call=0.03, order=sorted):
    """Seconds of a peer: what it costs to call it, and padded tokens at 2,000 a second in batches sorted by length."""
    sizes = order(len(text.split()) + 3 for text in texts)
    batches = [sizes[i : i + batch] for i in range(0, len(sizes), batch)]
    return call + sum(0.03 + len(own) * (fixed or max(own)) / 2_000 for own in batches)


@pytest.mark.parametrize(("cause", "cost"), [
    ("", lambda texts, threads: padded(texts) / threads), ("", lambda texts, threads: padded(texts, 64) / threads),
    ("padding", lambda texts, threads: padded(texts, fixed=512) / threads),
    ("padding", lambda texts, threads: padded(texts, 32, order=list) / threads),
    ("one text at a time", lambda texts, threads: sum(padded([text]) for text in texts) / threads),
    ("loading", lambda texts, threads: padded(texts, call=3) / threads),
    ("few threads", lambda texts, threads: padded(texts) / min(threads, 2)),
])  # fmt: skip
def test_a_cause_of_slow_reading_is_named(monkeypatch, cause, cost):
    threads = [1 if cause == "few threads" else 2]
    monkeypatch.setattr(diagnose.FastEncoder, "load", lambda *_: SimpleNamespace(encode="ours"))
    monkeypatch.setattr(diagnose.torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(diagnose.torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(diagnose.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(diagnose, "seconds", lambda encode, texts:
                        padded(texts, 64, call=0) / 2 / threads[0] if encode == "ours" else cost(texts, threads[0]))
    found = diagnose.slow_reading(None)
    assert [one.cause for one in found if one.score >= diagnose.NAMED][:1] == [cause][: bool(cause)]
    assert threads == [1 if cause == "few threads" else 2]  # as before
