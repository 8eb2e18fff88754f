"""What the paper's Tables 3, 4 and 5 are measured on, as mteb's own tasks; how much text that is, and what it costs.

    table_tasks(4, quick=True)            # mteb's MIRACLRetrieval, narrowed to the five small corpora
    narrowed(named_tasks(["SciFact", "Tatoeba"]), ["deu", "jpn"])
    cost_of_run(tasks, shape_of("multilingual-e5-small"), "fp16")     # hours, and lines that say them

Table 3 is mteb's benchmark `MTEB(eng, v1)`: 56 tasks, MSMARCO's dev split, everything else in English and `test`.
Table 4 is the dev split of MIRACL in full, without the two surprise languages. Table 5 is BUCC as mteb first had it,
where the gold sentences are searched for in the whole English pool (`BUCC.v2` searches gold alone, which is easier),
and Tatoeba's 112 pairs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import mteb
import torch
from mteb import AbsTask

from me5lib.device import peak_flops
from me5lib.evaluate.heldout import short_code
from me5lib.evaluate.models import KNOWN
from me5lib.evaluate.paper import TABLES
from me5lib.io import Me5Error
from me5lib.model.released import HUB_ID
from me5lib.model.resolve import model_folder, resolve

SUITES = {
    "eng-mini": (  # ours: eleven of the 56 tasks of English MTEB, of five types, the smaller ones
        "ArguAna", "FiQA2018", "NFCorpus", "SciFact", "AskUbuntuDupQuestions", "STSBenchmark", "SICK-R",
        "Banking77Classification", "ImdbClassification", "TwitterSemEval2015", "SprintDuplicateQuestions",
    ),
    "lowres": (  # ours: of hundreds of languages, then what MTEB(Africa, v1, lite) has besides, in all their languages
        "BelebeleRetrieval", "NTREXBitextMining", "FloresBitextMining", "SIB200Classification", "IN22GenBitextMining",
        "SIB200Classification.v2", "SIB200ClusteringS2S", "AfriHateClassification", "AfriSentiClassification",
        "MasakhaNEWSClassification", "KinNewsClassification", "AfriXNLI", "EmotionAnalysisPlus", "InjongoIntent",
    ),
}  # fmt: skip
MIRACL = ("ar", "bn", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "zh")
MIRACL_QUICK = ("sw", "bn", "hi", "te", "th")  # the languages of 130 to 540 thousand passages; all others: millions
LONGEST = 512  # tokens that are read of a text
EXTRA = 4  # tokens of a prefix and of <s> and </s>
# Characters of one piece of XLM-R's vocabulary, by language (ours: measured on 400 of Tatoeba's sentences each).
CHARACTERS = {"zh": 1.4, "ja": 1.6, "ko": 1.8, "ar": 2.7, "bn": 2.8, "hi": 3.2, "sw": 3.2, "te": 3.3, "fa": 3.3,
              "ru": 3.4, "th": 3.5, "id": 4.7}  # fmt: skip
OTHERS = 3.8  # of any other language: 3.6 to 4.0 in en, es, fi, fr and de
GPU_SHARE = 0.3  # of the data sheet's 16-bit peak, where it is known (ours: texts are short, tables are looked up)
GPU, CORE = 30.0, 0.03  # TFLOP/s of any other GPU, and of a CPU core in fp32 (ours)


def table_numbers(names: str) -> tuple[int, ...]:
    """`3`, `4`, `5`, `3,5` or `all` as numbers. Raises `Me5Error` for anything else."""
    wanted = {word.strip() for word in names.split(",") if word.strip()}
    if wanted == {"all"}:
        return TABLES
    if not wanted or not wanted <= set(map(str, TABLES)):
        raise Me5Error(f"--table {names}: the tables that can be measured are 3, 4 and 5; or say all")
    return tuple(sorted(map(int, wanted)))


def table_tasks(number: int, quick: bool = False) -> list[AbsTask]:
    """mteb's tasks of Table 3, 4 or 5, new and without data. `quick`: of MIRACL the small corpora only (Table 4)."""
    if number == 3:
        return list(mteb.get_benchmark("MTEB(eng, v1)").tasks)
    if number == 4:
        languages = MIRACL_QUICK if quick else MIRACL
        return [mteb.get_task("MIRACLRetrieval", hf_subsets=list(languages), eval_splits=["dev"])]
    return [mteb.get_task(name) for name in ("BUCC", "Tatoeba")]


def tasks_of(suite: str) -> Sequence[str]:
    """The tasks of mteb that a suite names, or that stand in it with commas between them."""
    return SUITES.get(suite) or [name.strip() for name in suite.split(",")]


def named_tasks(names: Iterable[str]) -> list[AbsTask]:
    """mteb's tasks of these names, in order. Raises `Me5Error` for one that mteb does not know."""
    tasks = []
    for name in dict.fromkeys(names):
        try:
            tasks.append(mteb.get_task(name))
        except KeyError as error:
            near = str(error).partition("Did you mean: ")[2].strip("'\"?")
            hint = f"did you mean {near}?" if near else "`mteb available-tasks` lists them"
            raise Me5Error(f"mteb knows no task {name!r}: {hint}") from None
    return tasks


def chosen(table: str, names: Sequence[str], suite: str, languages: Sequence[str], quick: bool = False,
           ) -> tuple[tuple[int, ...], list[str], list[AbsTask]]:  # fmt: skip
    """Numbers of tables, names of single tasks (a suite's among them), and all their tasks, once, narrowed."""
    if suite and suite not in SUITES:
        raise Me5Error(f"unknown suite {suite!r}: choose one of {', '.join(SUITES)}")
    numbers, names = table_numbers(table) if table else (), [*names, *SUITES.get(suite, ())]
    tasks = {task.metadata.name: task for number in numbers for task in table_tasks(number, quick)}
    named = named_tasks(name for name in names if name not in tasks)
    return numbers, names, narrowed([*tasks.values(), *named], languages)


def narrowed(tasks: Sequence[AbsTask], languages: Sequence[str]) -> list[AbsTask]:
    """Of tasks that have several subsets only those of `languages`, by subset (`deu-eng`) or code (`deu`, `de`).

    A task that has none of them is left out. Raises `Me5Error` for a language that no task has.
    """
    absent = dict.fromkeys(languages)
    for task in tasks:
        if languages and len(task.hf_subsets) > 1:
            named = {subset: {subset, *_codes_of_subset(subset)}.intersection(languages) for subset in task.hf_subsets}
            task.hf_subsets = [subset for subset, codes in named.items() if codes]
            for language in set().union(*named.values()):
                absent.pop(language, None)
    if absent:
        names = ", ".join(task.metadata.name for task in tasks[:3]) + " …" * (len(tasks) > 3)
        raise Me5Error(f"none of the tasks ({names}) has a subset for {', '.join(absent)}: give subsets as mteb names "
                       "them, or codes such as sw, deu")
    return [task for task in tasks if task.hf_subsets]


def _codes_of_subset(subset: str) -> set[str]:
    """The codes in a subset's name (`deu-eng`, `doi_Deva-eng_Latn`), long and short, with their script and without;
    without English where there is another."""
    names = {name for part in subset.split("-") for name in (part, part.partition("_")[0])}
    codes = {name for name in names if name.partition("_")[0] not in ("en", "eng")} or names
    return codes | {short_code(code) for code in codes}


def parts_of(task: AbsTask) -> list[AbsTask]:
    """Those that a task is the mean of, or itself."""
    return list(getattr(task.metadata, "tasks", None) or [task])


def subsets_of(task: AbsTask) -> frozenset[tuple[str, str]]:
    """(split, subset) that a task is to be evaluated on."""
    return frozenset((split, subset) for split in task.eval_splits for subset in task.hf_subsets)


@cache
def full_subsets(name: str) -> frozenset[tuple[str, str]]:
    """(split, subset) of a task as the paper's tables take it, else as mteb has it; empty for one that mteb lacks."""
    by_name = {task.metadata.name: task for number in TABLES for task in table_tasks(number)}
    try:
        return subsets_of(by_name[name] if name in by_name else mteb.get_task(name))
    except KeyError:
        return frozenset()


class Amount(NamedTuple):
    """Text of a task, each different one counted once."""

    texts: float = 0
    characters: float = 0
    tokens: float = 0  # estimated: characters by `CHARACTERS`, at most `LONGEST` a text, prefix and `<s>`, `</s>` in
    squares: float = 0  # sum over texts of the square of their tokens: what attention costs

    @classmethod
    def total(cls, amounts: Iterable[Sequence[float]]) -> Amount:
        """The sum of several."""
        return cls(*map(sum, zip(*amounts, strict=True)))


def amount(task: AbsTask) -> Amount | None:
    """Texts, characters and estimated tokens of the splits and subsets of a task; None where mteb has no statistics.

    Each different text of a column counts once, because it is encoded once; so do columns with as many texts of the
    same mean length (a language's side of the many pairs that Flores has); of a classification the test split, since
    the few training texts are drawn at random.
    """
    columns = {}
    for part in parts_of(task):
        stats = part.metadata.descriptive_stats
        if not stats or not set(part.eval_splits) <= set(stats):
            return None
        for split in part.eval_splits:
            apart = stats[split].get("hf_subset_descriptive_stats") or {}
            subsets = {subset: apart[subset] for subset in part.hf_subsets if subset in apart} or {"": stats[split]}
            for language, about in subsets.items():
                for column in about.values():
                    if isinstance(column, Mapping) and "unique_texts" in column:
                        texts, mean = column["unique_texts"], column["average_text_length"]
                        tokens = min(LONGEST, mean / CHARACTERS.get(language, OTHERS) + EXTRA)
                        columns[texts, mean] = texts, texts * mean, texts * tokens, texts * tokens**2
    return Amount.total(columns.values())


class Shape(NamedTuple):
    """What a model's configuration says that its cost depends on."""

    layers: int
    width: int
    feedforward: int

    def operations(self, amount: Amount) -> float:
        """FLOP of reading so much text once: 2 for each weight and token, and attention's own products."""
        weights = self.layers * (4 * self.width**2 + 2 * self.width * self.feedforward)
        return 2 * weights * amount.tokens + 4 * self.layers * self.width * amount.squares


def shape_of(model: str, revision: str = "") -> Shape | None:
    """The shape in a model's configuration; None where that does not say it. Raises `Me5Error` for no such model."""
    ref = resolve(model, revision)
    if known := KNOWN.get(HUB_ID if ref.kind == "released" else ref.name):
        return Shape(*known, 4 * known[1])
    try:
        config = json.loads((model_folder(ref, ("config.json",)) / "config.json").read_text(encoding="utf8"))
        return Shape(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
    except (OSError, ValueError, KeyError):
        return None


def cost_of_run(tasks: Sequence[AbsTask], shape: Shape | None, dtype: str, speed: float | None = None,
                devices: Sequence[str] = ()) -> tuple[float, list[str]]:  # fmt: skip
    """The hours that all tasks will take (NaN where it cannot be told of one); and lines: tasks, their sum, what was
    assumed. `speed`: TFLOP/s of one device (None: a guess); `devices`: their names, empty for the one there is."""
    speed, assumed = _speed_of_devices(dtype, speed, devices)
    amounts = {task.metadata.name: amount(task) for task in tasks}
    total = Amount.total(filter(None, amounts.values()))
    width, bytes_ = shape.width if shape else 0, 2 if dtype in ("fp16", "bf16") else 4
    flop = {name: shape.operations(of) if of and shape else float("nan") for name, of in amounts.items()}
    lines = [f"{'task':40}{'texts':>13}{'M tokens':>11}{'PFLOP':>11}{'GB kept':>10}{'hours':>12}"]
    for name, of in [*amounts.items(), ("together", total)]:
        work = flop.get(name, shape.operations(total) if shape else float("nan"))
        lines.append(f"{name:40}{'no statistics':>13}" if of is None else
                     f"{name:40}{of.texts:>13,.0f}{of.tokens / 1e6:>11,.1f}{work / 1e15:>11,.2f}"
                     f"{of.texts * width * bytes_ / 1e9:>10,.2f}{work / speed / 3.6e15:>12,.2f}")
    text = 1.5 * total.characters / 1e9  # bytes of a character, ours
    return sum(flop.values()) / speed / 3.6e15, [
        *lines,
        f"assumed (ours): {assumed}; characters per token by language, {LONGEST} tokens of a text at most",
        f"GB kept: vectors on disk, deleted task by task with --drop-vectors; data: {text:,.1f} GB of text, twice in "
        "the cache",
        "not reckoned: searching, classifiers, clustering; what an earlier run has finished",
    ]


def _speed_of_devices(dtype: str, speed: float | None, devices: Sequence[str]) -> tuple[float, str]:
    """TFLOP/s of all devices together, and where the figure comes from."""
    count = len(devices) or 1
    if speed:
        return speed * count, f"{speed:g} TFLOP/s a device (--speed), {count} of them"
    if not torch.cuda.is_available() or devices and not devices[0].startswith("cuda"):
        cores = os.cpu_count() or 1
        return CORE * cores, f"{CORE:g} TFLOP/s for each of {cores} CPU cores (--speed)"
    of_sheet = peak_flops(torch.device("cuda"), "bf16")
    one = GPU_SHARE * of_sheet / 1e12 if of_sheet else GPU
    one /= 8 if dtype == "fp32" else 1  # fp32 without tensor cores; data sheets say a sixteenth to a fifth
    return one * count, f"{one:,.0f} TFLOP/s a GPU in {dtype} (--speed), {count} of them"
