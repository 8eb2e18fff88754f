"""The texts of evaluation tasks, by task and language: what no training row may hold (`me5 mixture check`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from me5lib.io import Me5Error

if TYPE_CHECKING:
    from mteb import AbsTask

Held = dict[tuple[str, str], list[str]]  # (task, language) → texts
SKIPPED = {"id", "_id", "query-id", "corpus-id", "docid", "lang", "label", "url"}  # columns that hold no text to leak


def corpus_texts(corpus: Any) -> Held:
    """Every text that the offline tasks evaluate on (`Corpus.tasks()`), titles and documents among them.

    Of `intents`, the texts that a classifier is tested on: those it is trained on are evaluation data too.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task in corpus.tasks():
        for language, given in task.sets.items():
            if hasattr(given, "queries"):
                found[task.name, language] += [*given.queries.values(), *(text for _, text in given.documents.values())]
            elif len(given) == 2:
                found[task.name, "en"] += given[0]
                found[task.name, language] += given[1]
            else:
                found[task.name, language] += [*given[0], *given[2]]
    return {key: list(dict.fromkeys(texts)) for key, texts in found.items()}


def task_texts(names: Sequence[str]) -> Held:
    """Every text of the test splits of mteb tasks, loaded as mteb loads them (from its cache, or the hub).

    A subset of two languages (`deu-eng`) counts for both. Of retrieval the queries: the documents are mostly Wikipedia,
    which the mixture holds by design. Raises `Me5Error` for a task that mteb does not know or that
    cannot be loaded.
    """
    import mteb

    found: Held = {}
    for name in names:
        try:
            task = mteb.get_task(name)
            task.load_data()
        except (KeyError, OSError, ValueError) as error:
            raise Me5Error(f"evaluation task {name!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
        for language, texts in _task(task).items():
            found[name, language] = list(texts)
    return found


def _task(task: AbsTask) -> dict[str, dict[str, None]]:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    codes = task.metadata.eval_langs
    splits = set(task.metadata.eval_splits)
    subsets = task.dataset if set(task.dataset) & set(task.hf_subsets) else {"default": task.dataset}
    for subset, held in subsets.items():
        spoken = codes.get(subset, codes.get("default", [])) if isinstance(codes, Mapping) else codes
        languages = {short(code.split("-")[0]) for code in spoken} or {""}
        for split in splits & set(held):
            for text in _strings(held[split]):
                for language in languages:
                    found[language][text] = None
    return found


def _strings(held: Any) -> Iterator[str]:
    """Every string in a split: the columns of a table, or of a retrieval split's queries."""
    if isinstance(held, str):
        yield held
    elif hasattr(held, "column_names"):
        for name in set(held.column_names) - SKIPPED:
            yield from _strings(held[name])
    elif isinstance(held, Mapping):
        yield from _strings(held["queries"])
    elif isinstance(held, Iterable):
        for value in held:
            yield from _strings(value)


def short(code: str) -> str:
    """ISO 639-1 of a 639-3 code where there is one, of the macrolanguage too: `deu` → `de`, `cmn` → `zh`."""
    from babel.core import get_global

    return get_global("language_aliases").get(code, code)
