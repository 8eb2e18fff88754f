"""The keys of what is kept: no source text goes into them, another VERSION changes those that it stands for."""

import ast
import shutil
from importlib import import_module
from types import SimpleNamespace

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


def test_no_key_can_be_made_of_source_text():
    for path in io.PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf8"))
        counts = [node for top in tree.body if getattr(top, "name", "") == "code_lines" for node in ast.walk(top)]
        nodes = [node for node in ast.walk(tree) if node not in counts]  # it gives a number of lines, for a table
        names = {getattr(node, "attr", getattr(node, "id", "")) for node in nodes}
        assert not names & {"getsource", "getsourcelines", "getsourcefile", "linecache", "__code__", "__loader__"}, path
        assert "__file__" not in names or path.name in ("io.py", "paper.py"), path  # where the package is; its tables


def test_another_version_changes_the_keys_that_it_stands_for(tmp_path, monkeypatch):
    before = keys(tmp_path)
    assert keys(tmp_path) == before
    for name, expected in VERSIONS.items():
        module = import_module(f"me5lib.{name}")
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            after = keys(tmp_path)
        assert {key for key in before if after[key] != before[key]} == expected, name
