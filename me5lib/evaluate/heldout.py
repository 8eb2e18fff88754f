"""The held-out material of the offline corpus: as tasks of mteb's own classes, and as searches that are paired.

    for task in mteb_tasks(corpus.tasks()):                  # data in memory, no network, mteb's own scores
        mteb.evaluate(model, task)
    tests = searches(corpus)                                 # {"dev": [...], "xquad": [...], "bitext": [...]}
    query_scores(tests, cosines(encoder, tests))             # {"dev": [0.5, 1.0, 0.33, ...], ...}

A task has a subset per language, a bitext two (`de-en`: which English text translates this German one? and `en-de`).
The main scores are mteb's: weighted F1 (bitext, as in the paper's Table 5), nDCG@10, accuracy.
Searches give every query a score, for experiments.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from me5lib.io import Me5Error
from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import text_key

if TYPE_CHECKING:
    from mteb import AbsTask

    from me5lib.data.corpus import Corpus
    from me5lib.model.encoder import Encoder

EXPERIMENTS = 3  # classifiers per language, instead of mteb's 10 (ours: a third of the time; stated in the metadata)
NO_TEXT = {"id", "_id", "query-id", "corpus-id", "docid", "lang", "label", "url"}  # columns that hold none to leak


class Subset(NamedTuple):
    """What a subset of a task is about."""

    language: str  # the language that is not English, as the corpus names it
    direction: str  # bitext: "xx-en" or "en-xx"; else ""


def mteb_tasks(material: Iterable[Any]) -> list[AbsTask]:
    """mteb tasks of `Corpus.tasks()`, in order, their data built, with `subsets`: name → `Subset`."""
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


Scorer = Callable[[Search], np.ndarray]  # scores [n, m] of a search, higher is better


def searches(corpus: Corpus) -> dict[str, list[Search]]:
    """The tests by name; every query has at least one relevant passage in its pool.

    `dev`: labelled questions that stage 2 never saw, among all passages of the test in the same source and language.
    `xquad`: of a kind that nothing was trained on. `bitext`: held-out translations, as watched while a model trains.
    """
    from me5lib.train.monitor import watched
    from me5lib.train.search import Pool
    from me5lib.train.stages import card_prefixes

    dev, xquad, rows = [], [], corpus.labelled("dev")
    for source, language in sorted({(row.source, row.language) for row in rows}):
        of_language = [row for row in rows if (row.source, row.language) == (source, language)]
        pool = Pool.of(of_language).texts
        keys = np.array([text_key(text) for text in pool])
        relevant = np.array([np.isin(keys, [text_key(text) for text in row.positives]) for row in of_language])
        dev.append(Search([row.query for row in of_language], pool, relevant, card_prefixes(source)))
    for queries, documents, right in next(task for task in corpus.tasks() if task.name == "xquad").sets.values():
        texts = [f"{title} {text}".strip() for title, text in documents.values()]
        relevant = np.array([[document in right[query] for document in documents] for query in queries])
        xquad.append(Search(list(queries.values()), texts, relevant, (QUERY, PASSAGE)))
    bitext = [Search(texts, english, np.eye(len(texts), dtype=bool), (QUERY, QUERY))
              for english, texts in watched(corpus).values()]
    return {"dev": dev, "xquad": xquad, "bitext": bitext}


def query_scores(tests: Mapping[str, Sequence[Search]], scorer: Scorer) -> dict[str, np.ndarray]:
    """The score of every query, float64: its reciprocal rank; of `bitext` whether the translation comes first."""
    scores = {}
    for name, parts in tests.items():
        ranks = np.concatenate([reciprocal_ranks(scorer(part), part.relevant) for part in parts])
        scores[name] = (ranks == 1).astype(np.float64) if name == "bitext" else ranks
    return scores


def reciprocal_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1 / the place of the best relevant passage of each query, float64 [n], of `scores` and `relevant` (bool) [n, m].

    Other relevant passages are no rivals. A wrong one with the same score takes half a place.
    """
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    above, level = ((scores > best) & ~relevant).sum(axis=1), ((scores == best) & ~relevant).sum(axis=1)
    return 1 / (1 + above + level / 2)


def cosines(encoder: Encoder, tests: Mapping[str, Sequence[Search]], max_tokens: int | None = None) -> Scorer:
    """Cosines by `encoder` in these tests, in training's precision, of at most `max_tokens` of a text.

    All texts are encoded at once, each once per prefix: a call per language would cost three times as much.
    """
    from me5lib.device import precision

    rows: dict[str, dict[str, int]] = defaultdict(dict)  # prefix → text → row
    for search in (search for parts in tests.values() for search in parts):
        for prefix, texts in zip(search.prefixes, search[:2], strict=True):
            for text in texts:
                rows[prefix].setdefault(text, len(rows[prefix]))
    options = {"max_tokens": max_tokens, "precision": precision(encoder.device).name}
    vectors = {prefix: encoder.encode(list(texts), prefix, **options) for prefix, texts in rows.items()}

    def score(search: Search) -> np.ndarray:
        """fp32 [n, m]."""
        queries, passages = (vectors[prefix][[rows[prefix][text] for text in texts]]
                             for prefix, texts in zip(search.prefixes, search[:2], strict=True))  # fmt: skip
        return queries @ passages.T

    return score


def trigram_cosines(search: Search) -> np.ndarray:
    """TF-IDF cosines of character trigrams [n, m]: what shared letters alone find."""
    from me5lib.evaluate.baselines import Counts, count_trigrams, tfidf_cosine

    return tfidf_cosine(*(Counts(count_trigrams(side)) for side in (search.queries, search.passages)))


def random_scores(seed: int) -> Scorer:
    """Random scores, new ones for every search."""
    rng = np.random.default_rng(seed)
    return lambda search: rng.random(search.relevant.shape)


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
    from babel.core import get_global

    return get_global("language_aliases").get(code, code)
