"""The bundle of a class: whoever unpacks it can start anywhere, and nothing else of theirs is touched."""

import json
import re
import shutil
import zipfile

import pytest

from me5lib.io import Me5Error
from me5lib.lessons import bundle
from me5lib.lessons.bundle import STAGES
from me5lib.lessons.lesson import begin


def tree(folder):
    """Every file under `folder` by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def made(tmp_path):
    """A run with its checkpoints, and files that are none of the bundle's business."""
    lesson = begin("00", "smoke", 3, str(tmp_path / "made"))
    for stage in STAGES:
        (lesson.out / stage / "1_Pooling").mkdir(parents=True)
        for name in ("config.json", "1_Pooling/config.json"):
            (lesson.out / stage / name).write_text(json.dumps({"stage": stage}), encoding="utf8")
        (lesson.out / stage / "model.safetensors").write_bytes(stage.encode() * 1000)
    return lesson


@pytest.fixture
def file(made, tmp_path):
    bundle.write_bundle(made, tmp_path / "class.zip")
    return tmp_path / "class.zip"


@pytest.fixture
def learner(tmp_path):
    return begin("10", "smoke", 3, str(tmp_path / "learner"))


def test_what_is_unpacked_is_what_was_made_without_the_files_of_a_file_browser(made, learner, tmp_path):
    wanted = tree(made.out)
    for name in ("state.json", "stage1/.DS_Store", "stage1/1_Pooling/.ipynb_checkpoints/config.json",
                 "stage1/config copy.json", "stage1/größe.txt"):
        (made.out / name).parent.mkdir(exist_ok=True)
        (made.out / name).write_text("{}", encoding="utf8")
    bundle.write_bundle(made, tmp_path / "class.zip")
    bundle.unpack(tmp_path / "class.zip", learner)
    assert tree(learner.out) == wanted and all(learner.checkpoint(stage) for stage in STAGES)
    shutil.rmtree(learner.out / "stage2")
    bundle.unpack(tmp_path / "class.zip", learner)  # again, over what is there already
    assert tree(learner.out) == wanted


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
        lesson = begin("10", *other[:2], str(tmp_path / str(i)), *other[2:])
        refused(file, lesson, "of another run: add --scale smoke --seed 3")
    (learner.out / "stage2").mkdir(parents=True)
    (learner.out / "stage2" / "config.json").write_text("{}", encoding="utf8")
    refused(file, learner, "stage2/.* is not that of .*class.zip")


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
            assert tree(learner.out) == tree(made.out)
            for stage in STAGES:
                shutil.rmtree(learner.out / stage)
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
                                  "stage1//out.json", "state.json", "stage3/out.json", "stage1/.hidden", "C:/out.json"])
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
