"""Strong scaling of stage 1: the same global batch in one process and in two, one thread each, on one machine.

    python tests/benchmarks/two_processes.py [--steps 12] [--rounds 7] [--set train.batch=512]

The real command: `torchrun --nproc-per-node W -m me5lib pretrain --scale tiny`, W = 1 and 2 in turn, each from nothing.
A step's seconds are the median of a run's, its first three left out; efficiency is t₁ / (2 t₂). It takes the corpus
of tiny from the cache (`me5 packs`; it is built if it is not there).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

FIRST = 3  # steps in which memory and kernels are got


def seconds(world: int, steps: int, dials: list[str]) -> float:
    """Of a step, in `world` processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    own = [f"train.steps={steps}", "train.warmup=1", *dials]
    with tempfile.TemporaryDirectory(prefix="me5-") as out:
        command = [sys.executable, *launcher, "-m", "me5lib", "pretrain", "--scale", "tiny", "--out", out,
                   "--processes", str(world), *(word for dial in own for word in ("--set", dial))]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, encoding="utf8")
        if done.returncode:
            raise SystemExit(done.stderr.strip().splitlines()[-1])
        lines = (Path(out) / "stage1" / "timings.jsonl").read_text(encoding="utf8").splitlines()
    return median(json.loads(line)["seconds"] for line in lines[FIRST:])


def main() -> None:
    """Medians of the rounds; JSON last."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("--steps", type=int, default=12)
    given.add_argument("--rounds", type=int, default=7)
    given.add_argument("--set", nargs="*", default=[], dest="dials")
    asked = given.parse_args()
    rows = [[seconds(world, asked.steps, asked.dials) for world in (1, 2)] for _ in range(asked.rounds)]
    one, two = (median(column) for column in zip(*rows, strict=True))
    print(f"a step: {one:.3f} s in one process, {two:.3f} s in two: efficiency {one / two / 2:.0%}")
    print(json.dumps({"seconds": rows, "efficiency": one / two / 2}))


if __name__ == "__main__":
    main()
