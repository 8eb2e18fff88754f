"""`me5 mine`: your pairs in, the same pairs with hard negatives out. `me5 teach`: a cross-encoder for stage 2.

    me5 mine --data pairs.jsonl --model runs/tiny/seed-0/stage1 --out mined
    me5 mine --data faq.csv --by bm25 --out mined --negatives 5 --across
    me5 teach --data groups.jsonl --from runs/tiny/seed-0/stage1 --out my-teacher
    me5 finetune --scale tiny --set finetune.teacher=my-teacher

`mine` reads what `me5 finetune --data` reads, and searches all positives and negatives of the file. The settings of
`teach` are those of a scale's stage 2 (`--scale`, `--set finetune.teacher_steps=200`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from me5lib import io


def mine(
    data: Annotated[Path, typer.Option(help="Your pairs: .csv, .jsonl or .parquet with query and positive columns.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards and the report.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of the encoder that searches.")] = "",
    by: Annotated[str, typer.Option(help="dense (the model's vectors), bm25 (shared words) or random.")] = "dense",
    depth: Annotated[int, typer.Option(min=1, help="Candidates of a query.")] = 200,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many of the best before them.")] = 0,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of a query, its own included.")] = 7,
    near: Annotated[float | None, typer.Option(help="Drop what is so much liker a positive than neighbours are to each "
                                                 "other (default: 1.06 with --by dense; 0: off).")] = None,
    margin: Annotated[float | None, typer.Option(help="Drop what scores above this share of the positive.")] = None,
    absolute_margin: Annotated[float | None, typer.Option(help="Drop what scores less than this below it.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Drop what scores above this.")] = None,
    within: Annotated[bool, typer.Option("--within-language/--across", help="Search passages of the query's language, "
                                                                             "or of all.")] = True,
    spread: Annotated[bool, typer.Option("--sample/--hardest", help="Draw among the rest, or take the best.")] = False,
    index: Annotated[str, typer.Option(help="exact, ivf or hnsw (faiss); auto is exact below 2M passages.")] = "auto",
    seed: Annotated[int, typer.Option(callback=io.valid_seed, help="Of --by random and --sample.")] = 0,
    shard: Annotated[int, typer.Option(min=1, help="Queries of a shard.")] = 10_000,
    query_column: Annotated[str, typer.Option(help="Column of queries (default: guessed by name).")] = "",
    passage_column: Annotated[str, typer.Option(help="Column of right passages.")] = "",
    negative_columns: Annotated[str, typer.Option(help="Columns of wrong passages, as n1,n2.")] = "",
    language_column: Annotated[str, typer.Option(help="Column of languages.")] = "",
    encoding: Annotated[str, typer.Option(help="How the file is encoded.")] = "utf8",
) -> None:
    """Mine hard negatives for your pairs. The same command goes on after a crash with the shards that are missing."""
    from me5lib.train import mining

    near = mining.NEAR if near is None and by == "dense" else near or None
    cfg = mining.Mining(by, depth, skip, negatives, near, margin or None, absolute_margin, max_score, within, spread,
                        index, seed, shard)  # fmt: skip
    wrong = [name.strip() for name in negative_columns.split(",") if name.strip()]
    columns = {"query": query_column, "passage": passage_column, "negatives": wrong, "language": language_column}
    print("\n".join(mining.mine_file(data, out, cfg, model, columns, encoding, progress=sys.stderr.isatty())))


def teach(
    data: Annotated[Path, typer.Option("--data", help="JSON lines: query, positives, negatives; or a groups.jsonl.")],
    start: Annotated[str, typer.Option("--from", help="The encoder to start from: a folder or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The teacher's folder; made anew.")],
    scale: Annotated[str, typer.Option("--scale", help="The scale whose stage-2 settings it is trained by.")] = "tiny",
    seed: Annotated[int, typer.Option(callback=io.valid_seed, help="Seed of everything random.")] = 0,
    overrides: Annotated[list[str], typer.Option("--set", help="A setting, as finetune.teacher_steps=200.")] = [],  # noqa: B006
) -> None:
    """Train a teacher: a cross-encoder with a listwise softmax over each group, judged on held-out groups."""
    from me5lib import config

    stage = config.load(scale, overrides).finetune
    from me5lib.train.teacher import train_on_file

    print("\n".join(train_on_file(data, start, out, stage, seed, progress=sys.stderr.isatty())))
