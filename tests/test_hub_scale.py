"""A scale of the hub from an empty cache to both stages: fetched by name from a loopback hub, then trained offline."""

import subprocess
import sys
from pathlib import Path

import fixtures_hub
import numpy as np
from loopback import Loopback

from me5lib import config
from me5lib.data import fake_rows
from me5lib.model.encoder import Encoder
from me5lib.train import dry_run, loop

DIALS = ("data.sources=wikipedia,nllb,s2orc,stackexchange", "data.labelled=nli,miracl,squad",
         "model.layers=1", "model.width=32", "model.heads=2", "model.feedforward=64", "train.steps=4",
         "train.batch=16", "train.warmup=1", "finetune.steps=2", "finetune.batch=8", "finetune.warmup=1",
         "finetune.teacher=trained", "finetune.teacher_steps=2", "finetune.mine_depth=10")  # fmt: skip
SETS = [word for dial in DIALS for word in ("--set", dial)]
ROWS = 100  # of a file


def write_hub(root: Path, dial: config.Scale) -> None:
    """Every repository that the scale names, by its name: rows of the cards' columns, a backbone of its shape."""
    fixtures_hub.write_rows(root, dial, ROWS)
    texts = [f"{a}, {b}" for a in fake_rows.names("en") for b in fake_rows.names("de")[:20]]
    dry_run.write_backbone(dial.model, texts, root / "models" / dial.model.backbone)


def test_from_the_hub_to_both_stages(client, tmp_path):
    dial = config.load("workshop", DIALS)
    write_hub(tmp_path / "root", dial)
    out = tmp_path / "out"

    def me5(*words: str, endpoint: str = "http://127.0.0.1:9", **more: str) -> str:
        command = [sys.executable, "-m", "me5lib", *words, *SETS]
        done = subprocess.run(command, env=client.environment(endpoint, **more), capture_output=True, encoding="utf8")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    with Loopback(tmp_path / "root", fails=lambda n: 503 if n % 7 == 3 else 0) as server:
        told = me5("fetch", "--for", "workshop", endpoint=server.endpoint)
        assert all(f"\n{name}: " in f"\n{told}" for name in (*dial.data.sources, *dial.data.labelled))
    unplugged = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "USE_TORCH": "1"}
    for command in ("pretrain", "finetune"):
        me5(command, "--scale", "workshop", "--yes", "--out", str(out), **unplugged)
    first, second = (loop.read(out / stage).steps for stage in ("stage1", "stage2"))
    assert [row["step"] for row in first] == [0, 1, 2, 3] and {row["source"] for row in first} <= set(dial.data.sources)
    assert len(second) == 2 and all(np.isfinite(row["loss"]) for row in first + second)
    vectors = [Encoder.load(path).encode(["ein Satz", "a sentence"])
               for path in (tmp_path / "root" / "models" / dial.model.backbone, out / "stage1", out / "stage2")]
    assert all(np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-3) for one in vectors)
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(vectors, vectors[1:], strict=False))  # both stages learnt
