"""Stage 1 from stored token ids: the same rows, ids, relations and losses as on the fly; never stale, never half."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from me5lib import scale
from me5lib.data import shards
from me5lib.data.corpus import open_corpus
from me5lib.data.mixture import Mixture
from me5lib.model.encoder import Encoder
from me5lib.places import Me5Error
from me5lib.train import contrast, dist, loop, stages, tokenised

SMALL = ["train.steps=6", "train.batch=32"]
VOCABULARY = 250_002  # XLM-R's
PREFIXES = {"alike": ("query: ", "query: "), "apart": ("query: ", "passage: ")}


def word_encoder(words=VOCABULARY, shift=0, max_tokens=512):
    """An encoder whose tokenizer gives the word `w<i>` the id i (+ `shift`), in a vocabulary of XLM-R's size."""
    pieces = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "query:": 4, "passage:": 5}
    pieces |= {f"w{(i + shift) % words}": i for i in range(6, words)}
    raw = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                        unk_token="<unk>")
    shape = BertConfig(vocab_size=words, hidden_size=2, num_hidden_layers=1, num_attention_heads=1,
                       intermediate_size=2, max_position_embeddings=8, pad_token_id=1)
    return Encoder(BertModel(shape, add_pooling_layer=False), tokenizer, max_tokens)


def some_texts(rows, longest, seed):
    draw = np.random.default_rng(seed)
    found = [" ".join(f"w{i}" for i in draw.integers(6, VOCABULARY, draw.integers(0, longest))) for _ in range(rows)]
    return [found[i // 3] if i % 7 == 0 else text for i, text in enumerate(found)]  # some come again


def write_shard(folder, columns, rows, seed=0):
    texts = [some_texts(rows, 30, [seed, n]) for n in range(2)]
    shards.write(pa.table(dict(zip(columns, texts, strict=True))), folder)
    return shards.open_shard(folder)


def some_shards(folder, seed=0):
    """Translations in two languages, one of them of two shards; and pairs of one direction."""
    sides, pairs = ("english", "text"), ("query", "passage")
    parts = [write_shard(folder / f"b{n}", sides, rows, seed) for n, rows in enumerate((1500, 700))]
    return {("bitext", "de"): write_shard(folder / "a", sides, 1200, seed), ("bitext", "sw"): shards.Joined(parts),
            ("titles", "en"): write_shard(folder / "c", pairs, 2100, seed)}


def mixed(held, **more):
    dials = {"steps": 12, "batch": 1000, "seed": 3, "homogeneous": 0.5, **more}
    return Mixture(held, **dials)


def stage(asked=12, answered=20):
    return scale.load("smoke", [f"train.query_tokens={asked}", f"train.passage_tokens={answered}"]).train


@pytest.fixture(scope="module")
def encoder():
    return word_encoder()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def by_itself(encoder, prefix, text, limit):
    """The ids of one text, asked of its tokenizer alone."""
    return encoder.tokenizer(prefix + text, truncation=True, max_length=limit)["input_ids"]


def assert_like_on_the_fly(stored, mixture, encoder, dial, both, steps=(0,), world=1):
    for step in steps:
        for rank in range(world):
            texts = mixture.batch(step, rank, world)
            ids, related = tokenised.ready(stored.batch(step, rank, world), encoder, dial)
            right = [by_itself(encoder, both[0], pair.query, dial.query_tokens) for pair in texts]
            right += [by_itself(encoder, both[1], pair.passage, dial.passage_tokens) for pair in texts]
            assert ids == right
            assert all(map(torch.equal, related, contrast.from_pairs(texts).relations))
            assert [pair[2:] for pair in texts] == [pair[2:] for pair in stored.batch(step, rank, world)]


@pytest.mark.parametrize("both", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("limits", [(12, 20), (20, 12)])
def test_rows_ids_and_relations_are_those_of_the_texts(both, limits, encoder, tmp_path):
    mixture = mixed(some_shards(tmp_path))
    stored = tokenised.over(mixture, encoder, stage(*limits), lambda source: both, progress=False)
    assert stored.fingerprint == mixture.fingerprint and isinstance(mixture.batch(0)[0].query, str)
    passes = [mixture.plan(step).passes.max() for step in (0, 11)]
    assert passes[0] == 0 < passes[1]  # translations are turned round in the second pass
    assert_like_on_the_fly(stored, mixture, encoder, stage(*limits), both, steps=(0, 11), world=3)


def test_each_source_has_its_own_prefixes(encoder, tmp_path):
    mixture = mixed(some_shards(tmp_path), homogeneous=1.0)
    two = {"bitext": PREFIXES["alike"], "titles": PREFIXES["apart"]}
    stored = tokenised.over(mixture, encoder, stage(), two.get, progress=False)
    by_source = {mixture.plan(step).sources[0]: step for step in range(12)}
    assert set(by_source) == set(two)
    for source, step in by_source.items():
        assert_like_on_the_fly(stored, mixture, encoder, stage(), two[source], steps=[step])


def test_a_limit_of_the_encoder_counts(encoder, tmp_path, home):
    short, both = word_encoder(max_tokens=7), PREFIXES["apart"]
    mixture = mixed(some_shards(tmp_path))
    tokenised.over(mixture, encoder, stage(), lambda source: both, progress=False)
    stored = tokenised.over(mixture, short, stage(), lambda source: both, progress=False)
    assert len(folders(home)) == 6
    assert_like_on_the_fly(stored, mixture, encoder, stage(7, 7), both)


def test_ids_are_kept_in_32_bits_and_any_numpy_reads_them(encoder, tmp_path, home):
    mixture = mixed({("titles", "en"): write_shard(tmp_path / "s", ("query", "passage"), 300)}, batch=300, steps=1)
    stored = tokenised.over(mixture, encoder, stage(), lambda source: PREFIXES["apart"], progress=False)
    ids, _ = tokenised.ready(stored.batch(0), encoder, stage())
    assert max(map(max, ids)) > 240_000 and sum(i > 65_535 for row in ids for i in row) > 1000
    assert_like_on_the_fly(stored, mixture, encoder, stage(), PREFIXES["apart"])
    (folder,) = home.glob("titles/en/*/")
    flat, offsets = np.load(folder / "ids-0.npy", mmap_mode="r"), np.load(folder / "offsets-0.npy")
    first = mixture.shards["titles", "en"].take(np.array([0]))[0][0]
    assert flat.dtype == np.int32 and flat[: offsets[1]].tolist() == by_itself(encoder, "query: ", first, 20)


def folders(home):
    return {path.parent for path in home.glob("*/*/*/manifest.json")}


def test_what_is_written_is_used_again_and_not_written_twice(encoder, tmp_path, home, monkeypatch):
    mixture = mixed(some_shards(tmp_path))
    tokenised.over(mixture, encoder, stage(), lambda source: PREFIXES["apart"], progress=False)
    assert len(folders(home)) == 3 and not list(home.rglob("*.part"))
    monkeypatch.setattr(Encoder, "tokenize", lambda *_: pytest.fail("tokenised again"))
    again = mixed(mixture.shards, seed=9, batch=64, steps=40, temperature=0.0)  # another plan of the same shards
    stored = tokenised.over(again, encoder, stage(), lambda source: PREFIXES["apart"], progress=False)
    assert_like_on_the_fly(stored, again, encoder, stage(), PREFIXES["apart"])


CHANGES = ("tokenizer", "longer limit", "shorter limit", "prefix", "shard", "library", "code")


@pytest.mark.parametrize("change", CHANGES)
def test_with_anything_changed_another_store_is_used(change, encoder, tmp_path, home, monkeypatch):
    held, dial, both = some_shards(tmp_path), stage(), PREFIXES["apart"]
    tokenised.over(mixed(held), encoder, dial, lambda source: both, progress=False)
    before = {path: (path / "ids-0.npy").stat().st_mtime_ns for path in folders(home)}
    if change == "tokenizer":
        encoder = word_encoder(shift=1)
    elif change == "shard":
        held |= {("bitext", "de"): write_shard(tmp_path / "a", ("english", "text"), 1200, seed=5)}
    elif change == "library":
        monkeypatch.setattr(tokenised, "version", lambda name: "99.0")
    elif change == "code":
        monkeypatch.setattr(tokenised, "CODE", tokenised.CODE[:-1])
    dial = {"longer limit": stage(12, 25), "shorter limit": stage(12, 15)}.get(change, dial)
    both = PREFIXES["alike"] if change == "prefix" else both
    stored = tokenised.over(mixed(held), encoder, dial, lambda source: both, progress=False)
    assert len(folders(home) - set(before)) == (1 if change == "shard" else 3)
    assert before == {path: (path / "ids-0.npy").stat().st_mtime_ns for path in before}
    assert_like_on_the_fly(stored, mixed(held), encoder, dial, both, steps=(0, 11))


def cut_short(folder):
    with (folder / "ids-0.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4)


def too_long(folder):
    with (folder / "ids-0.npy").open("ab") as file:
        file.write(bytes(4))


def cut_offsets(folder):
    with (folder / "offsets-1.npy").open("r+b") as file:
        file.truncate(50)


def foreign_manifest(folder):
    given = json.loads((folder / "manifest.json").read_text(encoding="utf8"))
    (folder / "manifest.json").write_text(json.dumps(given | {"fingerprint": "0" * 16}), encoding="utf8")


def foreign_keys(folder):
    np.save(folder / "keys.npy", np.zeros((3, 2), np.int64))


def foreign_type(folder):
    np.save(folder / "ids-0.npy", np.load(folder / "ids-0.npy").astype(np.float32))


def no_manifest(folder):
    (folder / "manifest.json").unlink()


SPOILT = [cut_short, too_long, cut_offsets, foreign_manifest, foreign_keys, foreign_type, no_manifest]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_damaged_stream_is_named_in_one_line_and_made_anew(spoil, encoder, tmp_path, home, capsys):
    mixture, both = mixed(some_shards(tmp_path)), PREFIXES["apart"]
    tokenised.over(mixture, encoder, stage(), lambda source: both, progress=False)
    (folder,) = [path for path in folders(home) if path.parent.name == "sw"]
    others = {path: path.stat().st_mtime_ns for path in folders(home) - {folder}}
    spoil(folder)
    capsys.readouterr()
    stored = tokenised.over(mixture, encoder, stage(), lambda source: both, progress=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(folder) in said and "made anew" in said
    assert others == {path: path.stat().st_mtime_ns for path in others}
    assert_like_on_the_fly(stored, mixture, encoder, stage(), both, steps=(0, 11))


def test_the_size_is_said_before_and_is_about_right(encoder, tmp_path, home, capsys):
    mixture = mixed(some_shards(tmp_path))
    streams = []
    before = tokenised._write_one
    try:
        tokenised._write_one = lambda stream, *rest: (streams.append(stream), before(stream, *rest))
        tokenised.over(mixture, encoder, stage(), lambda source: PREFIXES["apart"])
    finally:
        tokenised._write_one = before
    said = capsys.readouterr()
    assert f"{1200 + 2200 + 2100:,} pairs in 3 streams" in said.out and "GB free" in said.out and "100%" in said.err
    foretold = sum(stream.foretold(lambda texts: encoder.tokenize(texts, "", 20)) for stream in streams)
    written = sum(path.stat().st_size for path in home.rglob("*.npy"))
    assert written == pytest.approx(foretold, rel=0.1)


def test_a_disk_that_is_too_small_is_refused_before_and_a_full_one_leaves_nothing(encoder, tmp_path, home, monkeypatch):
    mixture = mixed(some_shards(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
        with pytest.raises(Me5Error, match="leave out --pretokenised") as refusal:
            tokenised.over(mixture, encoder, stage(), lambda source: PREFIXES["apart"], progress=False)
        assert "\n" not in str(refusal.value) and not list(home.rglob("*.npy"))
    monkeypatch.setattr(tokenised, "CHUNK", 256)
    writes = []

    def full(self, values):
        writes.append(1)
        if len(writes) == 30:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.file.write(np.asarray(values, self.dtype).tobytes())
        self.rows += len(values)

    monkeypatch.setattr(tokenised._Growing, "append", full)
    with pytest.raises(Me5Error, match="no space left.*ME5_CACHE"):
        tokenised.over(mixture, encoder, stage(), lambda source: PREFIXES["apart"], progress=False)
    assert not list(home.rglob("*.npy")) and not list(home.rglob("*.part"))


CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_tokenised import PREFIXES, assert_like_on_the_fly, mixed, some_shards, stage, word_encoder
from me5lib.data import shards
from me5lib.train import tokenised
log, slow, folder = Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
one = {name: shards.open_shard(folder / name) for name in ("a", "b0", "b1", "c")}
held = {("bitext", "de"): one["a"], ("bitext", "sw"): shards.Joined([one["b0"], one["b1"]]), ("titles", "en"): one["c"]}
encoder, mixture, append, write = word_encoder(), mixed(held), tokenised._Growing.append, tokenised._Stream.write

def slowly(self, values):
    append(self, values)
    self.file.flush()
    time.sleep(slow)

def noted(self, tokenise, bar):
    with log.open("a", encoding="utf8") as file:
        file.write("/".join(self.key) + "\\n")
    write(self, tokenise, bar)

tokenised.CHUNK = 256
tokenised._Growing.append, tokenised._Stream.write = slowly, noted
(log.parent / f"ready-{os.getpid()}").touch()
while not (log.parent / "go").exists():
    time.sleep(0.01)
stored = tokenised.over(mixture, encoder, stage(), lambda source: PREFIXES["apart"], progress=False)
assert_like_on_the_fly(stored, mixture, encoder, stage(), PREFIXES["apart"], steps=(11,))
"""


def child(tmp_path, slow):
    command = [sys.executable, "-c", CHILD, os.path.dirname(__file__), tmp_path / "log", slow, tmp_path]
    return subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, encoding="utf8")


def wait(until, process, patience=120):
    deadline = time.monotonic() + patience
    while not until() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert until(), process.communicate()[1][-2000:] if process.poll() is not None else "timed out"


def test_a_writer_that_is_killed_leaves_nothing_half_and_is_gone_on_from(encoder, tmp_path, home):
    mixture, both = mixed(some_shards(tmp_path)), PREFIXES["apart"]
    (tmp_path / "go").touch()
    writer = child(tmp_path, 0.05)
    wait(lambda: any(path.stat().st_size > 20_000 for path in home.glob("bitext/sw/*.part/ids-1.npy")), writer)
    writer.kill()
    assert writer.wait() < 0
    (whole,) = folders(home)
    assert whole.parent.name == "de" and len(list(home.rglob("*.part"))) == 1
    before = (whole / "ids-0.npy").stat().st_mtime_ns
    stored = tokenised.over(mixture, encoder, stage(), lambda source: both, progress=False)
    assert (whole / "ids-0.npy").stat().st_mtime_ns == before
    assert len(folders(home)) == 3 and not list(home.rglob("*.part"))
    assert_like_on_the_fly(stored, mixture, encoder, stage(), both, steps=(0, 11))


def test_two_processes_share_one_store(tmp_path, home):
    some_shards(tmp_path)
    writers = [child(tmp_path, 0.01) for _ in range(2)]
    wait(lambda: len(list(tmp_path.glob("ready-*"))) == 2, writers[0])
    (tmp_path / "go").touch()
    for writer in writers:
        assert writer.wait(120) == 0, writer.communicate()[1][-2000:]
    written = (tmp_path / "log").read_text(encoding="utf8").split()
    assert sorted(written) == ["bitext/de", "bitext/sw", "titles/en"]  # each once, by one of the two
    assert len(folders(home)) == 3 and not list(home.rglob("*.part"))


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(scale.load("smoke", SMALL), progress=False)


def test_stage_1_learns_the_same_to_the_bit(corpus, tmp_path, home, monkeypatch):
    dial = scale.load("smoke", [*SMALL, "train.query_tokens=8", "train.accumulate=2"])
    plain, stored = tmp_path / "plain", tmp_path / "stored"
    stages.pretrain(dial, 0, plain, corpus=corpus, progress=False)
    assert not home.exists()
    shutil.copytree(plain / "tokenizer", stored / "tokenizer")
    with monkeypatch.context() as patch:
        patch.setattr(contrast, "from_pairs", lambda pairs: pytest.fail("a text was asked for"))
        stages.pretrain(dial, 0, stored, corpus=corpus, progress=False, pretokenised=True)
    assert len(folders(home)) == len(corpus.shards)
    for name in ("log.jsonl", "model.safetensors", "stage.json"):
        assert (plain / "stage1" / name).read_bytes() == (stored / "stage1" / name).read_bytes()
    assert len(loop.read(stored / "stage1").steps) == 6
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained again"))
    stages.pretrain(dial, 0, plain, corpus=corpus, progress=False, pretokenised=True)  # the option is no setting


RANK = """
import sys
from pathlib import Path
from me5lib import scale
from me5lib.train import dist, stages, tokenised
team, write = dist.join(2), tokenised._Stream.write

def by_the_first(*given):
    assert team.main, "not rank 0 wrote"
    write(*given)

tokenised._Stream.write = by_the_first
stages.pretrain(scale.load("smoke", sys.argv[3:]), 0, Path(sys.argv[1]), team=team, progress=False,
                pretokenised=sys.argv[2] == "stored")
dist.leave()
"""


def test_of_two_ranks_the_first_writes_and_both_read(corpus, tmp_path, monkeypatch, home):
    home.parent.mkdir()
    (home.parent / "corpus").symlink_to(corpus.folder.parent)
    stages.vocabulary(corpus, scale.load("smoke", SMALL), tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "stored")
    for how in ("plain", "stored"):
        command = [sys.executable, "-c", RANK, str(tmp_path / how), how, *SMALL]
        dist.launch([command] * 2, tmp_path / how, timeout=240)
    assert folders(home)
    logs = [(tmp_path / how / "stage1" / "log.jsonl").read_bytes() for how in ("plain", "stored")]
    assert logs[0] == logs[1]
