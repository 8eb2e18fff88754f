"""What the paper's Tables 3, 4 and 5 are measured on, as data, and as mteb's own tasks; and how much text that is.

    PARTS[5]                              # (Part("BUCC"), Part("Tatoeba"))
    table_tasks(4, quick=True)            # mteb's MIRACLRetrieval, narrowed to the five small corpora
    named_tasks(["SciFact", "Tatoeba"], languages=["deu", "jpn"])
    amount(task)                          # texts and characters, from mteb's descriptive statistics

Table 3 is mteb's benchmark `MTEB(eng, v1)`: 56 tasks, MSMARCO's dev split, everything else in English and `test`.
Table 4 is the dev split of MIRACL in full, without the two surprise languages. Table 5 is BUCC as mteb first had it,
where the gold sentences are searched for in the whole English pool (`BUCC.v2` searches gold alone, which is easier),
and Tatoeba's 112 pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from me5lib.io import Me5Error

if TYPE_CHECKING:
    from mteb import AbsTask

BENCHMARK = "MTEB(eng, v1)"
MIRACL = ("ar", "bn", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "zh")
MIRACL_QUICK = ("sw", "bn", "hi", "te", "th")  # the languages of 130 to 540 thousand passages; all others: millions


class Part(NamedTuple):
    """A task of a table, and how much of it."""

    task: str  # as mteb calls it
    subsets: tuple[str, ...] = ()  # empty: all
    splits: tuple[str, ...] = ()  # empty: the task's own


PARTS = {4: (Part("MIRACLRetrieval", MIRACL, ("dev",)),), 5: (Part("BUCC"), Part("Tatoeba"))}
TABLES = (3, 4, 5)


class Amount(NamedTuple):
    """Text of a task, each different one counted once. Adds up with `+`."""

    texts: float = 0
    characters: float = 0
    tokens: float = 0  # estimated: characters by `CHARACTERS`, at most `longest` a text, prefix and `<s>`, `</s>` in
    squares: float = 0  # sum over texts of the square of their tokens: what attention costs

    def __add__(self, other: Amount) -> Amount:  # type: ignore[override]
        return Amount(*(a + b for a, b in zip(self, other, strict=True)))


EXTRA = 4  # tokens of a prefix and of <s> and </s>
# Characters of one piece of XLM-R's vocabulary, by language (ours: measured on 400 of Tatoeba's sentences each).
CHARACTERS = {"zh": 1.4, "ja": 1.6, "ko": 1.8, "ar": 2.7, "bn": 2.8, "hi": 3.2, "sw": 3.2, "te": 3.3, "fa": 3.3,
              "ru": 3.4, "th": 3.5, "id": 4.7}  # fmt: skip
OTHERS = 3.8  # of any other language: 3.6 to 4.0 in en, es, fi, fr and de


def tables(asked: str) -> tuple[int, ...]:
    """`3`, `4`, `5`, `3,5` or `all` as numbers. Raises `Me5Error` for anything else."""
    wanted = [word.strip() for word in asked.split(",") if word.strip()]
    if wanted == ["all"]:
        return TABLES
    if not wanted or not set(wanted) <= {str(number) for number in TABLES}:
        raise Me5Error(f"--table {asked}: the tables that can be measured are 3, 4 and 5; or say all")
    return tuple(sorted({int(word) for word in wanted}))


def table_tasks(number: int, quick: bool = False, languages: Sequence[str] = ()) -> list[AbsTask]:
    """mteb's tasks of Table 3, 4 or 5, new and without data. `quick`: of MIRACL the small corpora only (Table 4).

    `languages` narrow tasks of several subsets, as in `named_tasks`.
    """
    import mteb

    if number == 3:
        return narrowed(list(mteb.get_benchmark(BENCHMARK).tasks), languages)
    return narrowed([_opened(part, quick) for part in PARTS[number]], languages)


def named_tasks(names: Iterable[str], languages: Sequence[str] = ()) -> list[AbsTask]:
    """mteb's tasks of these names, in order. Raises `Me5Error` for one that mteb does not know, with the nearest.

    `languages`: of tasks that have several subsets only those of these, by subset (`deu-eng`) or code (`deu`, `de`).
    """
    return narrowed([_opened(Part(name)) for name in dict.fromkeys(names)], languages)


def narrowed(tasks: Sequence[AbsTask], languages: Sequence[str]) -> list[AbsTask]:
    """The tasks with the subsets of `languages` alone; one of several subsets that has none of them is left out.

    Raises `Me5Error` for a language that no task has.
    """
    had, kept = set(), []
    for task in tasks:
        every = list(task.hf_subsets)
        if languages and len(every) > 1:
            spoken = {subset: _codes(subset) for subset in every}
            task.hf_subsets = [subset for subset in every if spoken[subset] & set(languages)]
            had |= set().union(*(spoken[subset] for subset in task.hf_subsets))
        if task.hf_subsets:
            kept.append(task)
    if missing := [language for language in languages if language not in had]:
        names = ", ".join(task.metadata.name for task in tasks[:3])
        raise Me5Error(f"none of the tasks ({names}{' …' * (len(tasks) > 3)}) has a subset for {', '.join(missing)}: "
                       "give subsets as mteb names them, or codes such as sw, deu")
    return kept


def parts(task: AbsTask) -> list[AbsTask]:
    """The tasks that are evaluated for this one: those it is the mean of, or itself."""
    return list(getattr(task.metadata, "tasks", None) or [task])


@cache
def whole(task: str) -> frozenset[tuple[str, str]]:
    """(split, subset) of a task as the paper's tables take it, else as mteb has it; empty for one that mteb lacks."""
    import mteb

    tables_ = {own.metadata.name: own for number in TABLES for own in table_tasks(number)}
    try:
        own = tables_[task] if task in tables_ else mteb.get_task(task)
    except KeyError:
        return frozenset()
    return wanted(own)


def wanted(task: AbsTask) -> frozenset[tuple[str, str]]:
    """(split, subset) that a task is to be evaluated on."""
    return frozenset((split, subset) for split in task.eval_splits for subset in task.hf_subsets)


def amount(task: AbsTask, longest: int = 512) -> Amount | None:
    """Texts, characters and estimated tokens of the splits and subsets of a task; None where mteb has no statistics.

    Each different text of a column counts once, because it is encoded once; of a classification the test split, since
    the few training texts are drawn at random.
    """
    total = Amount()
    for part in parts(task):
        found = part.metadata.descriptive_stats
        if not found or not set(part.eval_splits) <= set(found):
            return None
        for split in part.eval_splits:
            for language, columns in _of_subsets(found[split], part.hf_subsets):
                for column in columns:
                    total += _column(column, language, longest)
    return total


def _opened(part: Part, quick: bool = False) -> AbsTask:
    import mteb

    subsets = MIRACL_QUICK if quick and part.subsets else part.subsets
    try:
        return mteb.get_task(part.task, hf_subsets=list(subsets) or None, eval_splits=list(part.splits) or None)
    except KeyError as error:
        near = str(error).rpartition("Did you mean: ")[2].strip("'\"?") if "Did you mean" in str(error) else ""
        hint = f"did you mean {near}?" if near else "`mteb available-tasks` lists them"
        raise Me5Error(f"mteb knows no task {part.task!r}: {hint}") from None


def _codes(subset: str) -> set[str]:
    """What a subset may be asked for by: its name, and the codes in it but English where there is another."""
    from me5lib.evaluate.texts import short

    codes = set(subset.split("-"))
    codes = {code for code in codes if code not in ("en", "eng")} or codes
    return {subset} | codes | {short(code) for code in codes}


def _of_subsets(found: Mapping[str, Any], subsets: Sequence[str]) -> Iterator[tuple[str, list[Mapping]]]:
    """(language, statistics of each column of text) of the subsets, or of the whole where they are not told apart."""
    apart = found.get("hf_subset_descriptive_stats") or {}
    chosen = {subset: apart[subset] for subset in subsets if subset in apart} or {"": found}
    for subset, columns in chosen.items():
        yield subset, [value for value in columns.values() if isinstance(value, Mapping) and "unique_texts" in value]


def _column(column: Mapping[str, float], language: str, longest: int) -> Amount:
    texts, mean = column["unique_texts"], column["average_text_length"]
    tokens = min(longest, mean / CHARACTERS.get(language, OTHERS) + EXTRA)
    return Amount(texts, texts * mean, texts * tokens, texts * tokens**2)
