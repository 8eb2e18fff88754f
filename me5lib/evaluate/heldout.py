"""The held-out material of the offline corpus: as tasks of mteb's own classes, and as searches that are paired.

    for task in mteb_tasks([corpus.task("gsm")]):            # data in memory, no network, mteb's own scores
        mteb.evaluate(model, task)
    tests = searches(corpus)                                 # {"dev": [...], "gsm": [...], "xquad": [...]}
    query_scores(tests, encoder)                             # {"dev": [0.5, 1.0, 0.33, ...], ...}

A task has a subset per language, a bitext two (`de-en`: which English text translates this German one? and `en-de`).
The main scores are mteb's: weighted F1 (bitext, as in the paper's Table 5), nDCG@10, accuracy.
Searches give every query a score, for experiments.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from babel.core import get_global

from me5lib.data.cldr import local_names
from me5lib.data.corpus import Corpus
from me5lib.device import precision
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY, instruct
from me5lib.pairs import Labelled, text_key
from me5lib.train.search import Pool
from me5lib.train.stages import card_prefixes

if TYPE_CHECKING:
    from mteb import AbsTask

EXPERIMENTS = 3  # classifiers per language, instead of mteb's 10 (ours: a third of the time; stated in the metadata)
NO_TEXT = {"id", "_id", "query-id", "corpus-id", "docid", "lang", "label", "url"}  # columns that hold none to leak


class Subset(NamedTuple):
    """What a subset of a task is about."""

    language: str  # the language that is not English, as the corpus names it
    direction: str  # bitext: "xx-en" or "en-xx"; else ""


def mteb_tasks(material: Iterable[Any]) -> list[AbsTask]:
    """mteb tasks of what `Corpus.task` gives, in order, their data built, with `subsets`: name → `Subset`."""
    kinds = {"Bitext": _bitext_task, "Retrieval": _retrieval_task, "Classification": _classification_task}
    return [kinds[type(item).__name__](item) for item in material]


def _bitext_task(material: Any) -> AbsTask:
    """Translation found among all translations of the set, both ways, for every language.

    Plain lists, as mteb has BUCC: an Arrow column is read text by text, which took most of the time.
    """
    from mteb.abstasks import AbsTaskBitextMining

    subsets, data = {}, {}
    for language, (english, text) in material.sets.items():
        for name, direction, queries, documents in ((f"{language}-en", "xx-en", text, english),
                                                    (f"en-{language}", "en-xx", english, text)):
            subsets[name] = Subset(language, direction)
            gold = [(i, i) for i in range(len(queries))]
            data[name] = {"test": {"sentence1": list(queries), "sentence2": list(documents), "gold": gold}}
    return _offline_task(AbsTaskBitextMining, material, "BitextMining", "f1", data, subsets)


def _retrieval_task(material: Any) -> AbsTask:
    """Queries against the documents of their language."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    data = {}
    for name, (queries, documents, relevant) in material.sets.items():
        titles, texts = zip(*documents.values(), strict=True) if documents else ((), ())
        data[name] = {"test": {
            "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
            "corpus": Dataset.from_dict({"id": list(documents), "title": list(titles), "text": list(texts)}),
            "relevant_docs": {query: dict.fromkeys(sorted(ids), 1) for query, ids in relevant.items()},
            "top_ranked": None,
        }}
    return _offline_task(AbsTaskRetrieval, material, "Retrieval", "ndcg_at_10", data)


def _classification_task(material: Any) -> AbsTask:
    """Logistic regression on the vectors of eight texts per label; mean of `EXPERIMENTS` draws."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification

    data = {}
    for name, (train, train_labels, test, test_labels) in material.sets.items():
        number = {label: i for i, label in enumerate(sorted({*train_labels, *test_labels}))}
        sides = {"train": (train, train_labels), "test": (test, test_labels)}
        data[name] = DatasetDict({
            split: Dataset.from_dict({"text": list(texts), "label": [number[label] for label in labels]})
            for split, (texts, labels) in sides.items()})
    note = (f" {EXPERIMENTS} experiments of {AbsTaskClassification.samples_per_label} samples per label (mteb's "
            "default: 10).")
    task = _offline_task(AbsTaskClassification, material, "Classification", "accuracy", data, note=note)
    task.n_experiments = EXPERIMENTS
    return task


def _offline_task(base: type, material: Any, kind: str, score: str, data: Mapping[str, Any],
                  subsets: dict[str, Subset] | None = None, note: str = "") -> AbsTask:  # fmt: skip
    """A task of mteb's class `base` on `data`, which stays for the next model; nothing is loaded.

    Its `dataset.revision` is a hash of the texts. `subsets`: by default one per language.
    """
    from mteb.abstasks.task_metadata import TaskMetadata

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    subsets = subsets or {name: Subset(name, "") for name in material.sets}
    texts = json.dumps([kind + score + note, material.sets], default=plain, ensure_ascii=True)
    metadata = TaskMetadata(
        name=material.name, type=kind, main_score=score, category="t2c" if kind == "Classification" else "t2t",
        description=f"Offline task of me5 on material kept out of its training ({material.name}).{note}",
        dataset={"path": f"me5/{material.name}",
                 "revision": hashlib.blake2b(texts.encode("utf8"), digest_size=8).hexdigest()},
        eval_langs={name: [language_script(about.language)] + ["eng-Latn"] * bool(about.direction)
                    for name, about in subsets.items()},
    )  # fmt: skip
    stays = {"metadata": metadata, "load_data": lambda self, **_: None, "unload_data": lambda self: None}
    task = type(f"Offline{kind}", (base,), stays)()
    task.subsets, task.dataset, task.data_loaded = subsets, data, True
    return task


def language_script(language: str) -> str:
    """mteb's name of a language (`deu-Latn`), of a code such as `de`, `pt-br`, `zh-hant`, `sr-latn` or `yor`.

    The script is the code's script, else mteb's default for the language, else `Zyyy` (undetermined).
    """
    from mteb.languages import iso_mappings

    base, *rest = language.split("-")
    three = iso_mappings._get_iso1_to_iso3().get(base, base)
    script = next((part.title() for part in rest if len(part) == 4), None)
    return f"{three}-{script or iso_mappings._get_iso3_to_default_script().get(three, 'Zyyy')}"


class Search(NamedTuple):
    """Queries of one language (and source), all looking in the same pool."""

    queries: list[str]  # n
    passages: list[str]  # m
    relevant: np.ndarray  # bool [n, m]
    prefixes: tuple[str, str]
    meanings: list[str]  # n: the same in every language that asks the same
    instructions: Sequence[str] = ()  # n, where it can be asked with them, too
    language: str = ""  # of the queries

    @classmethod
    def bitext(cls, english: list[str], texts: list[str], prefixes: tuple[str, str] = (QUERY, QUERY),
               language: str = "") -> Search:  # fmt: skip
        """Texts that look for the English ones that they translate, which say what each means."""
        return cls(texts, english, np.eye(len(texts), dtype=bool), prefixes, english, language=language)

    def scores(self, space: Mapping[str, Mapping[str, np.ndarray]], table: Callable[..., np.ndarray] = np.inner,
               ) -> np.ndarray:  # fmt: skip
        """[n, m]: what `table` gives for the vectors [n, width] and [m, width] of queries and passages in a `space`,
        which is prefix → text → vector; by default cosines of unit vectors."""
        return table(*(np.stack([space[prefix][text] for text in side])
                       for prefix, side in zip(self.prefixes, self[:2], strict=True)))  # fmt: skip

    def instructed(self) -> Search:
        """With the template on its queries; where passages are queries, too, on both sides."""
        task = self.instructions[0] if self.prefixes[1] == QUERY else ""
        return self._replace(queries=list(map(instruct, self.instructions, self.queries)), prefixes=("", ""),
                             passages=[instruct(task, text) for text in self.passages])  # fmt: skip


class Question(NamedTuple):
    """A row, what it asks in whatever language, and whether it tests or trains: all rows of a meaning do the same."""

    row: Labelled
    meaning: str
    tests: bool = True


def searches(corpus: Corpus) -> dict[str, list[Search]]:
    """The tests by name; every query has at least one relevant passage in its pool.

    `dev`: labelled questions that stage 2 never saw, among all passages of the test in the same source and language (a
    fact of CLDR it may have seen in another language).
    `gsm`: word problems, numbers masked, and their English originals. `xquad`: questions in one language, paragraphs in
    another, every pair of languages. None of the last two is of a kind that the packs train on; a released start has
    seen SQuAD.
    """
    dev = [Question(row, fact_meaning(row)) for row in corpus.labelled("dev")]
    gsm = [Search.bitext(*both) for both in corpus.task("gsm").sets.values()]
    return {"dev": row_searches(dev), "gsm": gsm, "xquad": across(corpus.task("xquad").sets)}


def row_searches(questions: Iterable[Question]) -> list[Search]:
    """The queries of the rows that test, each among all passages of the rows of its source and language."""
    pools: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for asked in questions:
        if asked.tests:
            pools[asked.row.source, asked.row.language].append(asked)
    found = []
    for (source, _), own in sorted(pools.items()):
        rows = [asked.row for asked in own]
        pool = Pool.of(rows)
        relevant = np.array([np.isin(pool.keys, [text_key(text) for text in row.positives]) for row in rows])
        found.append(Search([row.query for row in rows], pool.texts, relevant, card_prefixes(source),
                            [asked.meaning for asked in own]))  # fmt: skip
    return found


def fact_meaning(row: Labelled) -> str:
    """What a row asks: of a fact of CLDR its territory or language, which is the same in all languages; else the
    question as it stands. (EXAMS does not say which of its questions are translations: by the released model's vectors
    about one in twenty of the dev questions has one, so that its intervals are a little too narrow.)"""
    kinds = local_names(row.language).values() if row.source == "cldr-facts" else ()
    key = next((key for names in kinds for key, text in names.items() if text == row.query), row.query)
    return f"{row.source}: {key}"


def across(sets: Mapping[str, Any]) -> list[Search]:
    """Questions of each language against the documents of each other one; a document, language apart, is a meaning."""
    found = []
    for one, other in itertools.permutations(sets, 2):
        right = {query: {key.removeprefix(one) for key in keys} for query, keys in sets[one].relevant.items()}
        there = [key.removeprefix(other) for key in sets[other].documents]
        queries = [query for query in sets[one].queries if right[query].intersection(there)]
        if queries:
            relevant = np.array([[name in right[query] for name in there] for query in queries])
            texts = [f"{title} {text}".strip() for title, text in sets[other].documents.values()]
            found.append(Search([sets[one].queries[query] for query in queries], texts, relevant, (QUERY, PASSAGE),
                                [min(right[query]) for query in queries], language=one))  # fmt: skip
    return found


def query_scores(tests: Mapping[str, Sequence[Search]], encoder: Encoder,
                 max_tokens: int | None = None) -> dict[str, np.ndarray]:  # fmt: skip
    """The reciprocal rank of every query by cosine, float64; a test's queries in the order of its searches.

    In training's precision, of at most `max_tokens` of a text. All texts are encoded at once, each once per prefix: a
    call per language would cost three times as much.
    """
    options = {"max_tokens": max_tokens, "precision": precision(encoder.device).name}
    space = {prefix: dict(zip(own, encoder.encode(own, prefix, **options), strict=True))
             for prefix, own in texts_by_prefix(tests).items()}  # fmt: skip
    return {name: np.concatenate([reciprocal_ranks(part.scores(space), part.relevant) for part in parts])
            for name, parts in tests.items() if parts}  # fmt: skip


def texts_by_prefix(tests: Mapping[str, Sequence[Search]]) -> dict[str, list[str]]:
    """Prefix → every text that stands behind it in the tests, once, in order."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for search in itertools.chain(*tests.values()):
        for prefix, side in zip(search.prefixes, search[:2], strict=True):
            texts[prefix] |= dict.fromkeys(side)
    return {prefix: list(own) for prefix, own in texts.items()}


def query_meanings(tests: Mapping[str, Sequence[Search]]) -> dict[str, list[str]]:
    """The meaning of every query of every test, in the order of `query_scores`."""
    return {name: [meaning for part in parts for meaning in part.meanings] for name, parts in tests.items()}


def reciprocal_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1 / the place of the best relevant passage of each query, float64 [n], of `scores` and `relevant` (bool) [n, m].

    Other relevant passages are no rivals. A wrong one with the same score takes half a place.
    """
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    above, level = ((scores > best) & ~relevant).sum(axis=1), ((scores == best) & ~relevant).sum(axis=1)
    return 1 / (1 + above + level / 2)


def task_texts(names: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """(task, language) → every text of the test splits of mteb tasks, loaded as mteb loads them (cache or hub).

    A subset of two languages (`deu-eng`) counts for both. Of retrieval the queries: the documents are mostly Wikipedia,
    which the mixture holds by design. Raises `Me5Error` for a task that mteb does not know or that cannot be loaded.
    """
    import mteb

    by_language: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name in names:
        try:
            task = mteb.get_task(name)
            task.load_data()
        except (KeyError, OSError, ValueError) as error:
            raise Me5Error(f"evaluation task {name!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
        codes = task.metadata.eval_langs
        for subset, held in task.dataset.items() if set(task.dataset) & set(task.hf_subsets) else [("", task.dataset)]:
            spoken = codes.get(subset, codes.get("default", [])) if isinstance(codes, Mapping) else codes
            texts = [text for split in set(task.metadata.eval_splits) & set(held) for text in _strings(held[split])]
            for language in {short_code(code.split("-")[0]) for code in spoken} or {""}:
                by_language[name, language] |= dict.fromkeys(texts)
    return {key: list(texts) for key, texts in by_language.items()}


def _strings(held: Any) -> Iterator[str]:
    """Every string in a split: the columns of a table, or of a retrieval split's queries."""
    if isinstance(held, str):
        yield held
    elif hasattr(held, "column_names"):
        for name in set(held.column_names) - NO_TEXT:
            yield from _strings(held[name])
    elif isinstance(held, Mapping):
        yield from _strings(held["queries"])
    elif isinstance(held, Iterable):
        for value in held:
            yield from _strings(value)


def short_code(code: str) -> str:
    """ISO 639-1 of a 639-3 code where there is one, of the macrolanguage too: `deu` → `de`, `cmn` → `zh`."""
    return get_global("language_aliases").get(code, code)
