"""Fine-tuning on your own file: its dials, the table before and after, `me5 finetune --data` through a hub."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import interrupted_at
from loopback import Loopback
from test_userdata import faq, made_up, refused

from me5lib import config
from me5lib.cli.train import START
from me5lib.data import cards, userdata
from me5lib.evaluate import own as table_of
from me5lib.model.encoder import Encoder
from me5lib.train import dry_run, loop
from me5lib.train import fit as tuning

SHAPE = config.Model(START, 1, 32, 2, 64, 2_000, 64)

# The table


def test_the_figures_are_those_of_sentence_transformers():
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    draw = np.random.default_rng(0)
    relevant = [set(draw.choice(40, size=draw.integers(1, 15), replace=False).tolist()) for _ in range(30)]
    rows = np.stack([draw.permutation(40)[:10] for _ in range(30)])
    theirs = InformationRetrievalEvaluator(
        {str(i): "" for i in range(30)}, {str(i): "" for i in range(40)},
        {str(i): {str(j) for j in right} for i, right in enumerate(relevant)},
        accuracy_at_k=[1], mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[1], map_at_k=[1],
    ).compute_metrics([[{"corpus_id": str(row), "score": -place} for place, row in enumerate(found)] for found in rows])
    wanted = theirs["accuracy@k"][1], theirs["mrr@k"][10], theirs["ndcg@k"][10]
    assert np.allclose(table_of.figures(rows, relevant).mean(0), wanted)
    assert (table_of.figures(np.full((30, 10), -1), relevant) == 0).all()


@pytest.mark.parametrize(("right", "passages"), [(1, 5), (2, 5), (4, 6), (5, 5)])
def test_chance_is_the_mean_over_all_orders(right, passages):
    orders = np.array(list(itertools.permutations(range(passages))))
    wanted = table_of.figures(orders, [set(range(right))] * len(orders)).mean(0)
    assert np.allclose(table_of.random_order([right], passages)[0], wanted)


class Fake:
    """An encoder that knows the answers: the vector of a text is that of its pair's number, or a random one."""

    def __init__(self, knows: bool):
        draw = np.random.default_rng(7)
        vectors = draw.normal(size=(60, 64)).astype(np.float32)
        self.of = {}
        for row, vector in zip(made_up(), vectors, strict=True):
            for text in row[:2]:
                self.of[text] = vector if knows else draw.normal(size=64).astype(np.float32)
            self.of[row[2]] = draw.normal(size=64).astype(np.float32)
        self.prefixes = set()

    def encode(self, texts, prefix):
        self.prefixes.add(prefix)
        found = np.stack([self.of[text] for text in texts])
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_table_has_its_baselines_and_a_difference_with_an_interval(tmp_path):
    faq().to_csv(tmp_path / "x.csv", index=False)
    before, after = Fake(False), Fake(True)
    found = table_of.compare_on_dev(userdata.read_corpus(tmp_path / "x.csv"), {"before": before, "after": after})
    assert list(found.table.index) == ["random", "character trigrams", "BM25", "before", "after"]
    assert list(found.table.columns) == ["accuracy@1", "MRR@10", "nDCG@10"]
    assert (found.queries, found.passages) == (15, 120) and after.prefixes == {"query: ", "passage: "}
    assert (found.table.loc["after"] == 1).all() and found.table.loc["before", "nDCG@10"] < 0.3
    assert found.table.loc["BM25", "accuracy@1"] == 1 and found.table.loc["random", "accuracy@1"] == 1 / 120
    gap = found.difference["nDCG@10"]
    assert gap.mean == pytest.approx(1 - found.table.loc["before", "nDCG@10"]) and 0 < gap.low <= gap.mean <= gap.high
    same = table_of.compare_on_dev(userdata.read_corpus(tmp_path / "x.csv"), {"before": before, "after": before})
    assert "no difference that these queries could show" in str(same)


# Training


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of a loopback hub that has a small random model under mE5-small's name."""
    root = tmp_path_factory.mktemp("hub")
    texts = [text for row in made_up(200) for text in row]
    dry_run.write_backbone(SHAPE, texts, root / "models" / START)
    return root


@pytest.fixture(scope="module")
def start(hub):
    return hub / "models" / START


@pytest.fixture
def corpus(tmp_path):
    faq(60).to_csv(tmp_path / "faq.csv", index=False)
    return userdata.read_corpus(tmp_path / "faq.csv")


def test_the_dials_fit_the_file_and_say_why(corpus, start):
    encoder = Encoder.load(start)
    dial = tuning.fit(corpus, encoder, START)
    stage = dial.finetune
    assert (stage.batch, stage.steps, stage.lr) == (8, 12, config.load("small").finetune.lr)  # 45 examples, twice
    assert stage.warmup == 1
    assert stage.temperature == 0.01 and stage.query_tokens <= encoder.max_tokens == dial.model.max_tokens == 64
    assert dial.data.language_temperature == 1 and dial.model.backbone == START
    told = "\n".join(tuning.setting_lines(dial))
    for key in ("steps", "batch", "lr", "hard_negatives", "near", "passage_tokens"):
        assert re.search(rf"finetune\.{key} +\S+  (ours|paper): \w", told), key
    shorter = tuning.fit(corpus, encoder, START, overrides=["finetune.steps=5", "finetune.batch=16", "finetune.lr=0.5"])
    assert (shorter.finetune.steps, shorter.finetune.batch, shorter.finetune.lr) == (5, 16, 0.5)
    assert shorter.provenance["finetune.lr"] == ("ours", "set by hand")
    for many, batch in ((45, 8), (200, 16), (520, 64), (10_000, 64), (6, 6)):
        assert tuning.batch_for(many) == batch
    for options, words in (({"epochs": 0}, ["above zero"]), ({"epochs": math.inf}, ["not endless"]),
                           ({"overrides": ["train.steps=5"]}, ["train.steps decides"]),
                           ({"overrides": ["finetune.stepz=5"]}, ["did you mean finetune.steps"])):
        with refused(*words):
            tuning.fit(corpus, encoder, START, **options)


def test_a_start_that_is_no_mE5_is_refused_and_prompts_of_its_own_are_said(start, tmp_path):
    folder = shutil.copytree(start, tmp_path / "start")
    said = []
    assert tuning.open_start(folder, said.append) == folder and said == []
    prompts = {"prompts": {"query": "search_query: ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf8")
    assert tuning.open_start(folder, said.append) == folder and "'search_query: '" in said[0]
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}), encoding="utf8")
    with refused("pools by cls, not by the average"):
        tuning.open_start(folder)
    with refused("no-one/nothing", "is not in the cache and the hub is out of reach"):
        tuning.open_start("no-one/nothing")


def test_an_interrupted_training_goes_on_and_ends_with_the_same_weights(corpus, start, tmp_path):
    encoder = Encoder.load(start)
    dial = tuning.fit(corpus, encoder, START, overrides=["finetune.steps=6"])

    def train(out):
        return tuning.finetune_on_file(corpus, start, out, dial, progress=False)

    whole = train(tmp_path / "whole")
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut")
    again = train(tmp_path / "cut")
    assert [row["step"] for row in loop.read_log(again).steps] == list(range(6))
    for a, b in zip(Encoder.load(whole).parameters(), Encoder.load(again).parameters(), strict=True):
        assert (a == b).all()


def test_own_prefixes_are_trained_with_and_a_teacher_where_it_is_asked_for(corpus, start, tmp_path, monkeypatch):
    seen, tokenize = [], Encoder.tokenize
    monkeypatch.setattr(Encoder, "tokenize", lambda self, texts, prefix="", most=None: seen.extend(
        prefix + text for text in texts) or tokenize(self, texts, prefix, most))
    for symmetric in (False, True):
        corpus = userdata.read_corpus(tmp_path / "faq.csv", symmetric=symmetric)
        dial = tuning.fit(corpus, Encoder.load(start), START, teacher="trained" if symmetric else "",
                          overrides=["finetune.steps=2", "finetune.query_tokens=24", "finetune.passage_tokens=32",
                                     "finetune.teacher_steps=2"])
        seen.clear()
        model = tuning.finetune_on_file(corpus, start, tmp_path / str(symmetric), dial, teacher=symmetric,
                                        progress=False)
        assert {text.split(": ")[0] for text in seen} == ({"query"} if symmetric else {"query", "passage"})
        assert (json.loads((model / "report.json").read_text("utf8"))["teacher"] is not None) == symmetric
        assert "candidates kept" in tuning.mined_line(model)


def test_from_a_csv_to_an_evaluated_model_as_a_user_with_a_network_runs_it(hub, client, tmp_path):
    from sentence_transformers import SentenceTransformer

    faq(80).to_csv(tmp_path / "faq.csv", index=False)
    out = tmp_path / "out"

    command = [sys.executable, "-m", "me5lib", "finetune", "--from", START, "--data", str(tmp_path / "faq.csv"),
               "--out", str(out), "--epochs", "3", "--set", "finetune.lr=0.002"]
    with Loopback(hub, fails=lambda n: 503 if n in (1, 2) else 0) as server:
        environment = client.environment(server.endpoint) | {"USE_TORCH": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf8")
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    order = ["faq.csv: 80 rows (CSV with commas); query = 'question', passage = 'answer', negatives = 'negative_1'",
             "20 queries are kept out", "finetune.batch", "data card: ", "model: steps 0 … 23", "mined: ",
             "20 dev queries, each among 160 passages", "\nbefore ", "\nafter ", "95 % interval", str(out / "model")]
    places = [said.find(words) for words in order]
    assert -1 not in places and places == sorted(places), (said, places)
    assert said.splitlines()[-1] == str(out / "model")
    table = pd.read_csv(out / "dev.csv", index_col="model")
    assert list(table.index) == ["random", "character trigrams", "BM25", "before", "after"]
    assert table.loc["after", "nDCG@10"] > table.loc["before", "nDCG@10"] > table.loc["random", "nDCG@10"]
    assert cards.parse_card("faq", (out / "data" / "faq.md").read_text("utf8")).counts["labelled"] == 80
    model = SentenceTransformer(str(out / "model"), device="cpu")
    theirs = model.encode_query(["bada fede"])
    assert np.allclose(theirs, Encoder.load(out / "model").encode(["bada fede"], "query: "), atol=1e-4)
