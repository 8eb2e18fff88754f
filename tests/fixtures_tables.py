"""What tests of the tables share: a tiny model, made-up data sets of Tables 4 and 5 for a loopback hub, one process
that imports everything once and then runs several commands; an encoder that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from me5lib import config
from me5lib.data.corpus import Bitext, Retrieval, RetrievalSet
from me5lib.evaluate.heldout import mteb_tasks
from me5lib.evaluate.models import Opened
from me5lib.evaluate.paper import load_csv
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer

if TYPE_CHECKING:
    from mteb import AbsTask

LANGUAGES = ("sw", "bn", "hi", "te", "th")

# Argument: JSON of [words of the command, file for a line per encoded batch or "", the batch to be killed at or 0].
# Each command runs in a forked process, without a hub where its first word is `offline`; ENDED says how.
FARM = """
import hashlib, json, os, signal, sys

import datasets, huggingface_hub.constants, mteb, torch
from me5lib.cli import app
from me5lib.model import encoder
from me5lib.model.encoder import Encoder

for room in ("models", "protocol", "runs", "cache", "verdicts", "offline_table"):
    __import__("me5lib.evaluate." + room)
torch.set_num_threads(1)
encoder.CPU_PIECE = 2**16  # a tiny model spends its time on calls
encode = Encoder.encode

def step(words, log, kill):
    calls = []
    def counted(self, texts, prefix="", **options):
        calls.append(len(texts))
        if len(calls) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        found = encode(self, texts, prefix, **options)
        with open(log or os.devnull, "a") as file:
            file.write(json.dumps([prefix, [hashlib.md5(t.encode()).hexdigest()[:12] for t in texts]]) + "\\n")
        return found
    Encoder.encode = counted
    if words[0] == "offline":
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        words = words[1:]
    sys.argv = ["me5", *words]
    app.app(words)

for words, log, kill in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            step(words, log, kill)
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
    _, status = os.waitpid(child, 0)
    print("ENDED", os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


def tiny(folder: Path) -> Path:
    """A random model of one layer, 16 wide, that reads 24 tokens: the time of a test goes elsewhere."""
    words = train_tokenizer([f"{a}{b} {b}{a} {i}" for i, a in enumerate("klmnoprstu") for b in "aeiou"] * 4, 300)
    Encoder.new(config.Model("random", 1, 16, 2, 32, len(words), 24), words, seed=0).save(folder)
    return folder


def me5_like(where: Path, tokenizer, seed: int = 0, xlm: bool = False) -> Path:
    """A small random model: mE5-small is a BertModel that calls token 0 padding and has spare rows, the larger ones are
    XLM-R (`xlm`)."""
    import torch
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
             "initializer_range": 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if xlm:
            model = XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1,
                                                     max_position_embeddings=514, **shape))
        else:
            model = BertModel(BertConfig(vocab_size=len(tokenizer) + 35, pad_token_id=0, type_vocab_size=2,
                                         max_position_embeddings=512, **shape))
            model.get_input_embeddings().weight.data[0] = 1.0  # torch leaves a padding row at zero: trained it is not
    model.save_pretrained(where)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(where)
    return where


def write_tables(root: Path) -> None:
    """MIRACL's five small languages, BUCC, Tatoeba and IN22Gen as mteb expects them on the hub, a few made-up rows."""
    import mteb

    datasets = root / "datasets" / "mteb"
    miracl, bucc, tatoeba = {}, {}, []
    for code in LANGUAGES:
        texts = [f"{code} {i} kala mela" for i in range(80)]
        miracl[f"{code}-corpus"] = [{"_id": f"d{i}", "title": f"t{i}", "text": text} for i, text in enumerate(texts)]
        miracl[f"{code}-queries"] = [{"_id": f"q{i}", "text": texts[i]} for i in range(4)]
        miracl[f"{code}-qrels"] = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(4)]
    for pair in ("de-en", "fr-en", "ru-en", "zh-en"):
        pool = [f"{pair} pool {i}" for i in range(90)]
        bucc[pair] = [{"sentence1": [f"{pair} own {i}" for i in range(90)], "sentence2": pool,
                       "gold": [[i, i + 3] for i in range(1, 20)]}]
    for code in load_csv("tatoeba_per_language")["pair"]:  # from the paper's side of it
        tatoeba += [{"sentence1": f"{code} {i} sala", "sentence2": f"sala {i} {code}", "lang": code} for i in range(3)]
    columns = {language for pair in mteb.get_task("IN22GenBitextMining").hf_subsets for language in pair.split("-")}
    parallel = [{language: f"{i} {language[:3]} mor" for language in sorted(columns)} for i in range(9)]
    write(datasets / "IN22GenBitextMining", {"default": parallel}, "test")
    write(datasets / "MIRACLRetrieval", miracl, "dev")
    write(datasets / "BUCC", bucc, "test")
    write(datasets / "tatoeba-bitext-mining", {"default": tatoeba}, "test")


def tatoeba(subsets: list[str]) -> AbsTask:
    """mteb's own Tatoeba, with nine made-up pairs in place of the data of each of these subsets."""
    import mteb
    from datasets import Dataset

    task = mteb.get_task("Tatoeba", hf_subsets=subsets)
    sides = {"sentence1": [f"sala {i}" for i in range(9)], "sentence2": [f"SALA {i}" for i in range(9)]}
    task.dataset = {name: {"test": Dataset.from_dict(sides)} for name in subsets}
    task.data_loaded, task.unload_data = True, lambda: None
    return task


def write(folder: Path, configs: dict[str, list[dict]], split: str) -> None:
    """A repository of Parquet files with a README that names its configurations."""
    named = []
    for name, rows in configs.items():
        path = folder / name / f"{split}.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        named.append({"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}.parquet"}]})
    text = f"---\nconfigs: {json.dumps(named)}\n---\nMade up.\n"
    (folder / "README.md").write_text(text, encoding="utf8")


def commands(*lines: str | tuple[str, Path, int]) -> str:
    """The argument of FARM for these lines, some with a log and the batch to be killed at."""
    steps = [(line, "", 0) if isinstance(line, str) else line for line in lines]
    return json.dumps([(line.split(), str(log), kill) for line, log, kill in steps])


def ends(output: str) -> list[int]:
    """How each command of FARM ended: its exit code, or the signal."""
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("ENDED")]


class Counting:
    """A text encoder that counts how many texts it was given."""

    def __init__(self) -> None:
        self.texts = 0

    def encode(self, texts, prefix="", *, normalise=True):
        self.texts += len(texts)
        rows = [np.random.default_rng(list(t.lower().encode())).normal(size=8) for t in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def opened(name: str = "own/model", revision: str = "aa11", encoder=None, **more: str) -> Opened:
    """A model that counts."""
    return Opened(name, revision, encoder or Counting(), False, **more)


def material(last: str = "Q99") -> list[AbsTask]:
    """A bitext of 100 pairs, and a retrieval of two queries, under names of the tables."""
    words = [f"q{i}" for i in range(100)]
    pairs = {"de": (words, [*(word.upper() for word in words[:-1]), last])}
    found = RetrievalSet({"q": "one", "r": "two"}, {"a": ("", "ONE"), "b": ("", "two")}, {"q": {"a"}, "r": {"a"}})
    return mteb_tasks([Bitext("Tatoeba", pairs), Retrieval("MIRACL", {"sw": found, "te": found})])


def files(out: Path) -> dict[str, Path]:
    """The result files by task."""
    return {path.stem: path for path in out.glob("*/results/*/*/*.json") if path.name != "model_meta.json"}
