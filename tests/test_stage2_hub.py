"""Stage 2 as a user with a network runs it: backbone, labelled sets and reranker by hub id, from a loopback hub."""

import json
import subprocess
import sys
from pathlib import Path

import fixtures_hub
import numpy as np
import pytest
import torch
from loopback import Loopback

from me5lib import config
from me5lib.data import fake_rows
from me5lib.data.hub_corpus import DEV_SHARE
from me5lib.device import precision
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled, text_key
from me5lib.train import dry_run, loop

RERANKER = "BAAI/bge-reranker-v2-m3"
DIALS = ("data.sources=s2orc", "data.labelled=nli,miracl", "model.layers=1", "model.width=32", "model.heads=2",
         "model.feedforward=64", "train.steps=2", "train.batch=8", "finetune.steps=6", "finetune.batch=64",
         "finetune.warmup=1", "finetune.mine_depth=30", "finetune.hard_negatives=2",
         f"finetune.teacher={RERANKER}")  # fmt: skip
SETS = [word for dial in DIALS for word in ("--set", dial)]
ROWS = 90  # of a file
FINETUNE = """
import sys
from pathlib import Path
from me5lib import config
from me5lib.train import stages
dial = config.load("workshop", sys.argv[2:])
print(stages.finetune(dial, 0, Path(sys.argv[1]), start=dial.model.backbone))
"""


def write_hub(root: Path, dial: config.Scale) -> None:
    """The repositories of the cards' rows, of a backbone, and of a cross-encoder of XLM-R's classes, random."""
    fixtures_hub.write_rows(root, dial, ROWS, lambda row: not held_out(row))
    texts = [f"{a}, {b}" for a in fake_rows.names("en") for b in fake_rows.names("de")[:20]]
    backbone = root / "models" / dial.model.backbone
    dry_run.write_backbone(dial.model, texts, backbone)
    write_reranker(root / "models" / RERANKER, Encoder.load(backbone).tokenizer)


def held_out(row: dict) -> bool:
    """Whether stage 2 would keep a row to judge its teacher by: then a random one would not be listened to."""
    edge = int(DEV_SHARE * 2**64) - 2**63
    return any(isinstance(value, str) and text_key(value) < edge for value in row.values())


def write_reranker(folder: Path, tokenizer) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(1)
    XLMRobertaForSequenceClassification(XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514, pad_token_id=1, num_labels=1, initializer_range=0.5,
    )).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


def by_hand(folder: Path, row: Labelled) -> list[float]:
    """The cross-encoder's logits of a row's group, one pair at a time, fp32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    texts = (row.positives[0], *row.negatives)
    with torch.no_grad():
        return [model(**tokenizer(row.query, text, return_tensors="pt")).logits.item() for text in texts]


def test_the_whole_stage_from_the_hub(client, tmp_path):
    dial = config.load("workshop", DIALS)
    write_hub(tmp_path / "root", dial)
    unplugged = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "USE_TORCH": "1"}
    with Loopback(tmp_path / "root") as server:
        command = [sys.executable, "-m", "me5lib", "fetch", "--for", "workshop", *SETS]
        done = subprocess.run(command, env=client.environment(server.endpoint), capture_output=True, encoding="utf8")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"\n{RERANKER}: " in done.stdout
    asked = [path for _, path, _ in server.requests if f"/{RERANKER}/resolve/" in path]
    assert asked and all(path.endswith((".json", ".safetensors", ".model", ".txt")) for path in asked)
    told = client(FINETUNE, tmp_path / "out", *DIALS, **unplugged).stdout

    stage2, cache = tmp_path / "out" / "stage2", tmp_path / "me5" / "scores"
    steps = loop.read(stage2).steps
    assert len(steps) == 6 and all(np.isfinite(row["loss"]) for row in steps)
    report = json.loads((stage2 / "report.json").read_text(encoding="utf8"))
    (commit,) = [path.parent.name for path in (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
                 if "bge-reranker" in str(path)]  # fmt: skip
    assert report["teacher"]["weights"] == {"model": RERANKER, "revision": commit} and report["teacher"]["trusted"]
    assert f"{RERANKER}: no held-out example judges it; used all the same" in told
    settings = json.loads((stage2 / "stage.json").read_text(encoding="utf8"))["settings"]
    assert settings["start"].startswith(f"{dial.model.backbone}@")

    lines = (stage2 / "groups.jsonl").read_text(encoding="utf8").splitlines()
    rows = [Labelled(*fields) for _, *fields in map(json.loads, lines)]
    assert {row.source for row in rows} == {"nli", "miracl"} and max(len(row.negatives) for row in rows) > 2
    for row in rows[:: len(rows) // 5]:
        right = by_hand(tmp_path / "root" / "models" / RERANKER, row)
        assert list(row.teacher_scores) == close_to(right)
    blocks = [np.load(path, allow_pickle=False) for path in cache.iterdir()]
    assert sum(map(len, blocks)) == sum(1 + len(row.negatives) for row in rows)
    before, after = (Encoder.load(path).encode(["ein Satz"]) for path in
                     (tmp_path / "root" / "models" / dial.model.backbone, stage2))
    assert np.abs(before - after).max() > 1e-6


def close_to(right):
    """To what bf16, where the machine has it, leaves of a logit."""
    fine = precision(torch.device("cpu")).name == "fp32"
    return pytest.approx(right, abs=2e-4 if fine else 0.1)
