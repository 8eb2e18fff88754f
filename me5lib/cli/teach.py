"""`me5 teach`: train a cross-encoder on labelled groups, for stage 2 to learn from.

    me5 teach --data groups.jsonl --from runs/tiny/seed-0/stage1 --out my-teacher
    me5 finetune --scale tiny --set finetune.teacher=my-teacher

Its dials are those of a scale's stage 2 (`--scale`, `--set finetune.teacher_steps=200`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from me5lib import io

if TYPE_CHECKING:
    from me5lib.train.teach import Taught


def teach(
    data: Annotated[Path, typer.Option("--data", help="JSON lines: query, positives, negatives; or a groups.jsonl.")],
    start: Annotated[str, typer.Option("--from", help="The encoder to start from: a folder or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The teacher's folder; made anew.")],
    scale: Annotated[str, typer.Option("--scale", help="The scale whose stage-2 dials it is trained by.")] = "tiny",
    seed: Annotated[int, typer.Option(callback=io.valid_seed, help="Seed of everything random.")] = 0,
    overrides: Annotated[list[str], typer.Option("--set", help="A dial, as finetune.teacher_steps=200.")] = [],  # noqa: B006
) -> None:
    """Train a teacher: a cross-encoder with a listwise softmax over each group, judged on held-out groups."""
    import sys

    from me5lib import config as scales

    stage = scales.load(scale, overrides).finetune
    from me5lib.train.teach import teach as train

    print("\n".join(said(train(data, start, out, stage, seed, progress=sys.stderr.isatty()), out)))


def said(found: Taught, out: Path) -> list[str]:
    """What became of it, in lines."""
    verdict = found.verdict
    counts = [f"{n:,} {what}" for what, n in (found.faults | found.filling).items()]
    advice = "stage 2 would listen to it" if verdict.trusted else "no better than its start: stage 2 would not listen"
    return [
        f"{found.examples:,} examples" + "".join(f", {count}" for count in counts),
        f"first of {verdict.size} in {verdict.queries} held-out groups: teacher {verdict.teacher:.3f}, its start "
        f"{verdict.student:.3f}, chance {1 / verdict.size:.3f}; {advice}",
        f"written to {out}; for stage 2: --set finetune.teacher={out}",
    ]  # fmt: skip
