"""The keys of what is kept: another comment changes none of them, another VERSION those that it stands for."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from me5lib import config, io
from me5lib.lessons import run

VERSIONS = {"data.corpus": {"corpus"}, "data.hub": {"drawing"}, "evaluate.baselines": {"baselines"},
            "evaluate.protocol": {"protocol"}, "evaluate.cache": {"vectors"}, "lessons.run": {"run"},
            "model.encoder": {"protocol", "vectors", "scores"}, "train.teacher": {"scores"}}


def keys(folder):
    """Every key that me5lib gives to one material."""
    from me5lib.data import cards, corpus, hub
    from me5lib.evaluate import baselines, cache, models, protocol
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer
    from me5lib.train import teacher

    words = [f"{a}{b} {b}{a}" for a in "klmnoprstu" for b in "aeiou"] * 20
    encoder = Encoder.new(config.load("smoke").model, train_tokenizer(words, 330), 0)
    for kept in ("scores", "vectors"):
        shutil.rmtree(folder / kept, ignore_errors=True)
    cache.CachedEncoder(models.E5(encoder), folder / "vectors", {"revision": "a1"}).encode(["a", "b"], "query: ")
    told = SimpleNamespace(name="a teacher", identity={}, scores=lambda pairs, lengths: [1.0])
    teacher.block_scores([("a", "b")], told, (9, 9), folder / "scores")
    parameters = {"SCALE": "smoke", "SEED": 0, "SET": ""}
    return {
        "corpus": corpus.corpus_fingerprint(config.load("tiny").data),
        "drawing": hub.drawing_home(cards.load_card("nllb"), 100).name,
        "baselines": [model.mteb_model_meta.revision for model in (baselines.BM25Row(), baselines.digits())],
        "protocol": protocol.encoder_fingerprint(encoder),
        "vectors": [path.name for path in (folder / "vectors").iterdir()],
        "scores": [path.name for path in (folder / "scores").iterdir()],
        "run": run.Journal(folder / "run", run.books(), parameters).keys,
    }


@pytest.fixture
def reworded(tmp_path):
    """A copy of the library with other words in every docstring of a module, and a comment more."""
    shutil.copytree(io.PACKAGE, tmp_path / "me5lib", ignore=shutil.ignore_patterns("__pycache__", "_assets"))
    for name in ("data_cards", "notebooks"):
        shutil.copytree(io.asset(name), tmp_path / "me5lib" / "_assets" / name)
    for path in (tmp_path / "me5lib").rglob("*.py"):
        text = path.read_text("utf8").replace('"""', '"""Reworded. ', 1)
        path.write_text(f"{text}\n\n# another comment\n", encoding="utf8")
    return tmp_path


def test_another_wording_changes_no_key(reworded, tmp_path):
    code = ("import json, me5lib, test_keys; from pathlib import Path\n"
            "print(json.dumps([me5lib.__file__, test_keys.keys(Path('kept'))]))")
    path = os.pathsep.join((str(reworded), str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf8", cwd=reworded,
                          env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    file, there = json.loads(done.stdout.splitlines()[-1])
    assert file == str(reworded / "me5lib" / "__init__.py") and there == keys(tmp_path)


def test_another_version_changes_the_keys_that_it_stands_for(tmp_path, monkeypatch):
    before = keys(tmp_path)
    for name, expected in VERSIONS.items():
        module = import_module(f"me5lib.{name}")
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            after = keys(tmp_path)
        assert {key for key in before if after[key] != before[key]} == expected, name
