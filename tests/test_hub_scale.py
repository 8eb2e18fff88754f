"""A scale of the hub from an empty cache to both stages: fetched by name from a loopback hub, then trained offline."""

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
from me5lib.data.hub import DEV_SHARE
from me5lib.device import precision
from me5lib.model.encoder import Encoder
from me5lib.pairs import Labelled, text_key
from me5lib.train import dry_run, loop

RERANKER = "BAAI/bge-reranker-v2-m3"
SET = ("data.sources=wikipedia,nllb,s2orc,stackexchange", "data.labelled=nli,miracl", "model.layers=1",
       "model.width=32", "model.heads=2", "model.feedforward=64", "train.steps=4", "train.batch=16", "train.warmup=1",
       "finetune.steps=6", "finetune.batch=64", "finetune.warmup=1", "finetune.mine_depth=30",
       "finetune.hard_negatives=2", f"finetune.teacher={RERANKER}")  # fmt: skip


def write_hub(root: Path, cfg: config.Scale) -> None:
    """The repositories of the cards' rows, of a backbone, and of a cross-encoder of XLM-R's classes, random."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    fixtures_hub.write_rows(root, cfg, 100, lambda row: not held_out(row))
    texts = [f"{a}, {b}" for a in dry_run.territories("en") for b in dry_run.territories("de")[:20]]
    dry_run.write_backbone(cfg.model, texts, root / "models" / cfg.model.backbone)
    tokenizer = Encoder.load(root / "models" / cfg.model.backbone).tokenizer
    torch.manual_seed(1)
    XLMRobertaForSequenceClassification(XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514, pad_token_id=1, num_labels=1, initializer_range=0.5,
    )).save_pretrained(root / "models" / RERANKER)  # fmt: skip
    tokenizer.save_pretrained(root / "models" / RERANKER)


def held_out(row: dict) -> bool:
    """Whether stage 2 would keep a row to judge its teacher by: then a random one would not be listened to."""
    edge = int(DEV_SHARE * 2**64) - 2**63
    return any(isinstance(value, str) and text_key(value) < edge for value in row.values())


def by_hand(folder: Path, row: Labelled) -> list[float]:
    """The cross-encoder's logits of a row's group, one pair at a time, fp32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        return [model(**tokenizer(row.query, text, return_tensors="pt")).logits.item()
                for text in (row.positives[0], *row.negatives)]


def test_from_the_hub_to_both_stages(client, tmp_path):
    cfg, out = config.load("workshop", SET), tmp_path / "out"
    write_hub(tmp_path / "root", cfg)

    def me5(*words: str, endpoint: str = "http://127.0.0.1:9", **more: str) -> str:
        command = [sys.executable, "-m", "me5lib", *words, *(word for dial in SET for word in ("--set", dial))]
        done = subprocess.run(command, env=client.environment(endpoint, **more), capture_output=True, encoding="utf8")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    with Loopback(tmp_path / "root", fails=lambda n: 503 if n % 7 == 3 else 0) as server:
        told = me5("fetch", "--for", "workshop", endpoint=server.endpoint)
    assert all(f"\n{name}: " in f"\n{told}" for name in (*cfg.data.sources, *cfg.data.labelled, RERANKER))
    asked = [path for _, path, _ in server.requests if f"/{RERANKER}/resolve/" in path]
    assert asked and all(path.endswith((".json", ".safetensors", ".model", ".txt")) for path in asked)
    unplugged = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "USE_TORCH": "1"}
    me5("pretrain", "--scale", "workshop", "--yes", "--out", str(out), **unplugged)
    told = me5("finetune", "--scale", "workshop", "--yes", "--out", str(out), **unplugged)

    first, second = (loop.read_log(out / stage).steps for stage in ("stage1", "stage2"))
    assert [row["step"] for row in first] == [0, 1, 2, 3] and {row["source"] for row in first} <= set(cfg.data.sources)
    assert len(second) == 6 and all(np.isfinite(row["loss"]) for row in first + second)
    vectors = [Encoder.load(path).encode(["ein Satz", "a sentence"])
               for path in (tmp_path / "root/models" / cfg.model.backbone, out / "stage1", out / "stage2")]
    assert all(np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-3) for one in vectors)
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(vectors, vectors[1:], strict=False))  # both stages learnt
    report = json.loads((out / "stage2/report.json").read_text(encoding="utf8"))
    (commit,) = {path.parent.name for path in (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
                 if "bge-reranker" in str(path)}  # fmt: skip
    assert report["teacher"]["weights"] == {"model": RERANKER, "revision": commit} and report["teacher"]["trusted"]
    assert f"{RERANKER}: no held-out example judges it: used" in told
    rows = [Labelled(*json.loads(line)[1:])
            for line in (out / "stage2/groups.jsonl").read_text(encoding="utf8").splitlines()]
    assert {row.source for row in rows} == {"nli", "miracl"} and max(len(row.negatives) for row in rows) > 2
    fine = precision(torch.device("cpu")).name == "fp32"  # bf16, where the machine has it, leaves less of a logit
    for row in rows[:: len(rows) // 5]:
        right = by_hand(tmp_path / "root/models" / RERANKER, row)
        assert list(row.teacher_scores) == pytest.approx(right, abs=2e-4 if fine else 0.1)
