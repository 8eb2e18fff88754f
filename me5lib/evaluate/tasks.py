"""The held-out material as tasks of mteb's own classes: data in memory, no network, mteb's own scores.

    for task in build(corpus.tasks()):
        mteb.evaluate(model, task)

A `Bitext` becomes an `AbsTaskBitextMining` with two subsets per language (`de-en`: which English text translates this
German one? and `en-de`), a `Retrieval` an `AbsTaskRetrieval`, a `Classification` an `AbsTaskClassification`, each with
a subset per language. The main scores are mteb's: weighted F1 (bitext, as in the paper's Table 5), nDCG@10, accuracy.

`dataset.revision` in the metadata is a hash of the texts, so that a kept result is never taken for other data.
Cost: about 2 ms per subset to build; the data is held once for all models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.languages import iso_mappings

if TYPE_CHECKING:
    from me5lib.data.corpus import Bitext, Classification, Retrieval

EXPERIMENTS = 3  # classifiers per language, instead of mteb's 10 (ours: a third of the time; stated in the metadata)


class Subset(NamedTuple):
    """What a subset of a task is about."""

    language: str  # the language that is not English, as the corpus names it
    direction: str  # bitext: "xx-en" or "en-xx"; else ""


class _InMemory:
    """What the three kinds share: metadata of their own, data built at once, and `subsets`."""

    def __init__(self, material: Any, kind: str, score: str, subsets: Mapping[str, Subset], note: str = "") -> None:
        self.subsets = dict(subsets)
        self.metadata = _metadata(material, kind, score, self.subsets, note)
        super().__init__()
        self.dataset = self._data(material)
        self.data_loaded = True

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Nothing to load: the data came with the task."""

    def unload_data(self) -> None:
        """The data stays, for the next model."""


class BitextTask(_InMemory, AbsTaskBitextMining):
    """Translation found among all translations of the set, both ways, for every language."""

    def __init__(self, material: Bitext) -> None:
        subsets = {}
        for language in material.sets:
            subsets[f"{language}-en"] = Subset(language, "xx-en")
            subsets[f"en-{language}"] = Subset(language, "en-xx")
        super().__init__(material, "BitextMining", "f1", subsets)

    def _data(self, material: Bitext) -> dict[str, dict[str, dict[str, list]]]:
        """Plain lists, as mteb has BUCC: an Arrow column is read text by text, which took most of the time."""
        data = {}
        for name, (language, direction) in self.subsets.items():
            english, text = material.sets[language]
            query, document = (text, english) if direction == "xx-en" else (english, text)
            gold = [(i, i) for i in range(len(query))]
            data[name] = {"test": {"sentence1": list(query), "sentence2": list(document), "gold": gold}}
        return data


class RetrievalTask(_InMemory, AbsTaskRetrieval):
    """Queries against the documents of their language."""

    def __init__(self, material: Retrieval) -> None:
        super().__init__(material, "Retrieval", "ndcg_at_10", {name: Subset(name, "") for name in material.sets})

    def _data(self, material: Retrieval) -> dict[str, dict[str, dict]]:
        return {name: {"test": _retrieval_split(found)} for name, found in material.sets.items()}


class ClassificationTask(_InMemory, AbsTaskClassification):
    """Logistic regression on the vectors of eight texts per label, tested on the rest; mean of `EXPERIMENTS` draws."""

    n_experiments = EXPERIMENTS

    def __init__(self, material: Classification) -> None:
        note = f" {EXPERIMENTS} experiments of {self.samples_per_label} samples per label (mteb's default: 10)."
        subsets = {name: Subset(name, "") for name in material.sets}
        super().__init__(material, "Classification", "accuracy", subsets, note)

    def _data(self, material: Classification) -> dict[str, DatasetDict]:
        data = {}
        for name, (train, train_labels, test, test_labels) in material.sets.items():
            number = {label: i for i, label in enumerate(sorted({*train_labels, *test_labels}))}
            data[name] = DatasetDict(
                train=Dataset.from_dict({"text": list(train), "label": [number[x] for x in train_labels]}),
                test=Dataset.from_dict({"text": list(test), "label": [number[x] for x in test_labels]}),
            )
        return data


def build(material: Iterable[Any]) -> list[AbsTask]:
    """mteb tasks of `Corpus.tasks()`, in order. Raises TypeError for anything but its three kinds."""
    kinds = {"Bitext": BitextTask, "Retrieval": RetrievalTask, "Classification": ClassificationTask}
    tasks = []
    for item in material:
        if type(item).__name__ not in kinds:
            raise TypeError(f"no task is known for a {type(item).__name__}: one of {', '.join(kinds)} is wanted")
        tasks.append(kinds[type(item).__name__](item))
    return tasks


def language_script(language: str) -> str:
    """mteb's name of a language (`deu-Latn`), of a code such as `de`, `pt-br`, `zh-hant`, `sr-latn` or `yor`.

    The script is the code's own, else mteb's default for the language, else `Zyyy` (undetermined).
    """
    base, *rest = language.split("-")
    three = iso_mappings._get_iso1_to_iso3().get(base, base)
    own = next((part.title() for part in rest if len(part) == 4), None)
    return f"{three}-{own or iso_mappings._get_iso3_to_default_script().get(three, 'Zyyy')}"


def _retrieval_split(found: Any) -> dict[str, Any]:
    documents, queries = found.documents, found.queries
    return {
        "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
        "corpus": Dataset.from_dict({
            "id": list(documents),
            "title": [title for title, _ in documents.values()],
            "text": [text for _, text in documents.values()],
        }),
        "relevant_docs": {query: dict.fromkeys(sorted(ids), 1) for query, ids in found.relevant.items()},
        "top_ranked": None,
    }


def _metadata(material: Any, kind: str, score: str, subsets: Mapping[str, Subset], note: str) -> TaskMetadata:
    languages = {name: [language_script(s.language)] + ["eng-Latn"] * bool(s.direction) for name, s in subsets.items()}
    return TaskMetadata(
        name=material.name,
        description=f"Offline task of me5 on material kept out of its training ({material.name}).{note}",
        dataset={"path": f"me5/{material.name}", "revision": _revision(material, kind + score + note)},
        type=kind,
        category="t2c" if kind == "Classification" else "t2t",
        eval_langs=languages,
        main_score=score,
    )


def _revision(material: Any, how: str) -> str:
    """16 hexadecimal digits of the texts, in order, and of `how` they are evaluated."""

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    text = json.dumps([how, material.sets], default=plain, ensure_ascii=True)
    return hashlib.blake2b(text.encode("utf8"), digest_size=8).hexdigest()
