"""Which texts are evaluated on: the offline tasks', and those of mteb's own tasks from a hub on the loopback."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from me5lib.config import load
from me5lib.data.corpus import open_corpus
from me5lib.evaluate import texts

HUB = Path(__file__).parents[2] / "shared" / "hub"
CODE = """
import json
from me5lib.evaluate import texts
found = texts.task_texts(["Tatoeba", "STSBenchmark", "SciFact"])
print(json.dumps({"sizes": {"/".join(key): len(own) for key, own in found.items()}, "de": found["Tatoeba", "de"][:3]}))
"""


def test_the_offline_tasks_give_every_text_once():
    corpus = open_corpus(load("smoke"), progress=False)
    found = texts.corpus_texts(corpus)
    heldout = next(task for task in corpus.tasks() if task.name == "heldout")
    language = next(iter(heldout.sets))
    assert set(heldout.sets[language][1]) == set(found["heldout", language])
    assert set(heldout.sets[language][0]) <= set(found["heldout", "en"])
    assert {task for task, _ in found} == {task.name for task in corpus.tasks()}
    assert all(len(own) == len(set(own)) for own in found.values())


@pytest.mark.parametrize("code, short", [("deu", "de"), ("cmn", "zh"), ("swh", "sw"), ("yue", "yue"), ("en", "en")])
def test_codes_are_those_of_the_shards(code, short):
    assert texts.short(code) == short


@pytest.mark.skipif(not (HUB / "root").is_dir(), reason="the stored evaluation sets are not beside this checkout")
def test_texts_of_real_tasks_are_read_as_mteb_loads_them(tmp_path):
    spec = importlib.util.spec_from_file_location("localhub", HUB / "localhub.py")
    localhub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(localhub)
    server, endpoint = localhub.serve(HUB / "root")
    try:
        online = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, encoding="utf8",
                              env={**os.environ, **online})
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sizes = found["sizes"]
    assert sizes["Tatoeba/de"] > 900 and sizes["Tatoeba/en"] > 10_000 and len([k for k in sizes if "Tato" in k]) > 100
    assert sizes["STSBenchmark/en"] > 2000 and sizes["SciFact/en"] == 300  # the test queries; no documents
    assert all(isinstance(text, str) and text for text in found["de"])
