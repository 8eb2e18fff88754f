"""The bundle of a class: whoever unpacks it can start anywhere, and nothing else of theirs is touched."""

import json
import re
import shutil
import zipfile
from random import Random

import pytest

from me5lib.cli import app
from me5lib.data.cards import load_card
from me5lib.io import Me5Error
from me5lib.lessons import bundle
from me5lib.lessons.bundle import STAGES
from me5lib.lessons.lesson import begin


def tree(folder):
    """Every file under `folder` by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf8")


SCORED = ("evaluation/results/me5__stage-1-+-stage-2/0a-paper-precision=bf16/gsm.json",
          "experiments/0a/near-misses/arms/seed-0.random.json")
OTHERS = ("state.json", "stage1/.DS_Store", "stage1/1_Pooling/.ipynb_checkpoints/config.json",
          "stage1/config copy.json", "stage1/größe.txt",
          "experiments/0a/tokenizer/tokenizer.json", "stage2/groups.jsonl", "evaluation/notes.txt")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run with its checkpoints and scores, and files that are none of the bundle's business."""
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "made-cache"))
    put(tmp_path / "made-cache" / "evaluation" / "0b" / "results" / "me5__BM25" / "1" / "xquad.json", "{}")
    lesson = begin("00", "smoke", 3, str(tmp_path / "made"))
    for stage in STAGES:
        for name in ("config.json", "1_Pooling/config.json"):
            put(lesson.out / stage / name, json.dumps({"stage": stage}))
        (lesson.out / stage / "model.safetensors").write_bytes(Random(stage).randbytes(9000))
    for name in ("tokenizer/tokenizer.json", *SCORED, *OTHERS):
        put(lesson.out / name, json.dumps({"name": name}))
    return lesson


@pytest.fixture
def file(made, tmp_path):
    bundle.write_bundle(made, tmp_path / "class.zip")
    return tmp_path / "class.zip"


@pytest.fixture
def learner(tmp_path, monkeypatch, file):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    return begin("00", "smoke", 3, str(tmp_path / "learner"))


def test_what_is_unpacked_is_what_was_made_without_texts_and_the_files_of_a_file_browser(made, file, learner, tmp_path):
    assert bundle.unpack(file, learner) == []
    found = tree(learner.out)
    assert "Names out of CLDR, as Babel ships it: Unicode-3.0" in found.pop("NOTICE.md").decode()
    assert found == {name: content for name, content in tree(made.out).items() if name not in OTHERS}
    assert tree(tmp_path / "cache") == tree(tmp_path / "made-cache") and all(map(learner.checkpoint, STAGES))
    shutil.rmtree(learner.out / "stage2")
    assert bundle.unpack(file, learner) == [] and learner.checkpoint("stage2")  # again, over what is there already


def test_what_is_there_already_stays_and_what_is_not_is_added(file, learner, tmp_path):
    own = {"stage1/config.json": "own", SCORED[0]: "own", "tokenizer/own.json": "own"}
    for name, content in own.items():
        put(learner.out / name, content)
    put(tmp_path / "cache" / "evaluation" / "0b" / "results" / "me5__BM25" / "1" / "xquad.json", "own")
    assert bundle.unpack(file, learner) == []
    found = tree(learner.out)
    assert {name: found[name].decode() for name in own} == own and "stage1/model.safetensors" not in found
    assert {"stage2/model.safetensors", SCORED[1]} < set(found)
    assert set(tree(tmp_path / "cache").values()) == {b"own"}


def test_a_checkpoint_of_undecided_sources_stays_out_and_is_made_again_on_the_other_machine(made, tmp_path, monkeypatch,
                                                                                           capsys):
    """At tiny all of them; where one source of stage 2 alone is undecided, stage 1 goes along."""
    tiny = begin("00", "tiny", 3, str(made.out))
    assert set(bundle.write_bundle(tiny, tmp_path / "tiny.zip")) == {"stage1", "stage2", "tokenizer"}
    with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
        names, notice = set(archive.namelist()), archive.read("NOTICE.md").decode()
    assert not [name for name in names if name.startswith(bundle.WEIGHTS)] and names > set(SCORED)
    assert "* stage1, for gettext: " in notice and "* stage2, for exams: " in notice
    some = begin("00", "smoke", 3, str(made.out), "data.labelled=exams")
    assert bundle.write_bundle(some, tmp_path / "some.zip") == {"stage2": [load_card("exams")]}

    def run_notebooks(scale, seed, folder, numbers, *_):
        assert (folder / "stage1" / "config.json").is_file() and not (folder / "stage2").exists()
        print("run", *numbers)
        return []

    monkeypatch.setattr("me5lib.lessons.run.run_notebooks", run_notebooks)
    for only, numbers in (("", "08"), ("9", "09")):
        app.run_command("smoke", 3, only, ["data.labelled=exams"], str(tmp_path / only), source=tmp_path / "some.zip")
        assert f"\nrun {numbers}\n" in capsys.readouterr().out


def test_export_refuses_what_is_incomplete_and_what_is_there(made, file, tmp_path):
    with pytest.raises(Me5Error, match="is there already"):
        bundle.write_bundle(made, file)
    with pytest.raises(Me5Error, match="cannot write"):
        bundle.write_bundle(made, tmp_path / "nowhere" / "other.zip")
    shutil.rmtree(made.out / "stage2")
    with pytest.raises(Me5Error, match="no stage2 checkpoint in .*`me5 finetune --scale smoke"):
        bundle.write_bundle(made, tmp_path / "other.zip")
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "other.zip").exists()


def refused(file, lesson, words):
    """One line with `words`, and nothing of the run has changed."""
    before = tree(lesson.out)
    with pytest.raises(Me5Error, match=words) as caught:
        bundle.unpack(file, lesson)
    assert "\n" not in str(caught.value)
    assert tree(lesson.out) == before and not (lesson.out / ".bundle.part").exists()


def test_what_belongs_elsewhere_is_refused(file, learner, tmp_path):
    for i, other in enumerate((("smoke", 4), ("tiny", 3), ("smoke", 3, "train.steps=3"))):
        lesson = begin("00", *other[:2], str(tmp_path / str(i)), *other[2:])
        refused(file, lesson, "of another run: add --scale smoke --seed 3")


def test_a_damaged_bundle_leaves_nothing(made, file, learner, tmp_path):
    whole, bad = file.read_bytes(), tmp_path / "bad.zip"
    for cut in range(0, len(whole), len(whole) // 20):
        bad.write_bytes(whole[:cut])
        refused(bad, learner, "bad.zip is (no bundle|damaged)")
    spoilt = 0
    for at in range(0, len(whole), 257):  # one byte: in the list, in a file, in the zip's directory, in a date
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            bundle.unpack(bad, learner)
        except Me5Error as error:
            assert re.search(r"bad.zip is (no bundle|damaged)", str(error)) and not tree(learner.out)
            spoilt += 1
        else:
            assert tree(learner.out).items() >= {n: c for n, c in tree(made.out).items() if n not in OTHERS}.items()
            shutil.rmtree(learner.out)
            shutil.rmtree(tmp_path / "cache")
            learner.out.mkdir()
    assert spoilt > 40


def rewritten(file, to, more=(), drop="", about=None):
    """A copy of a bundle with other members, or another list."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            if name != drop:
                new.writestr(name, about if name == bundle.LIST and about is not None else old.read(name))
        for name, content in more:
            new.writestr(name, content)
    return to


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_foreign_files_are_refused(file, learner, tmp_path):
    other = tmp_path / "other"
    refused(tmp_path / "absent.zip", learner, "there is no file")
    refused(tmp_path, learner, "there is no file")
    other.write_text("not a zip", encoding="utf8")
    refused(other, learner, "no bundle")
    for about in ("", "[]", "null", '{"files": [], "run": 1}', '{"files": {}, "run": "--scale smoke --seed 3"}'):
        refused(rewritten(file, other, about=about), learner, "no bundle")
    config, more = "stage2/config.json", [("stage2/config.json", "{}")]  # with a right checksum of the zip
    for change in ({"drop": config}, {"drop": config, "more": more}, {"more": more}, {"more": [("stage2/x", "{}")]}):
        refused(rewritten(file, other, **change), learner, "damaged")


@pytest.mark.parametrize("name", ["../out.json", "stage1/../../out.json", "/tmp/out.json", "stage1\\..\\..\\out.json",
                                  "stage1//out.json", "state.json", "stage3/out.json", "stage1/.hidden", "C:/out.json",
                                  "evaluation/out.py", "cache/corpus/out.json", "cache/evaluation/../out.json"])
def test_no_member_leads_out_of_the_checkpoints(file, learner, tmp_path, name):
    """Neither as a member that the list does not know, nor as one that it vouches for."""
    evil, before = tmp_path / "evil.zip", tree(tmp_path)
    with zipfile.ZipFile(file) as archive:
        about = json.loads(archive.read(bundle.LIST))
    about["files"][name] = "0" * 64
    refused(rewritten(file, evil, more=[(name, "{}")], about=json.dumps(about)), learner, "no bundle")
    if "/" in name:
        refused(rewritten(file, evil, more=[(name, "{}")]), learner, "damaged")
    evil.unlink()
    assert tree(tmp_path) == before
