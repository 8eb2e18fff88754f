"""XQuAD across languages: a question of one language to the paragraphs of another, and to those of all in one pool.

In its own language a question has few rivals to its paragraph (25 in the pack), and shared words find it.
`xquad-across` takes every ordered pair of two languages: nDCG@10, as in the same language; `language` asks, `direction`
is "asker-paragraphs". `xquad-pooled` searches the paragraphs of all languages at once, where a question has as many
right answers as there are languages: mean average precision. Its `own_language` is the share of the asker's language
among so many first places: 1 / languages for a model that does not mind the language (LAReQA, arXiv 2004.05484).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mteb.types import PromptType
from scipy.stats import rankdata
from sklearn.metrics import label_ranking_average_precision_score as mean_average_precision  # equal scores: at once
from sklearn.metrics import ndcg_score  # of equal scores the mean over their orders
from tqdm.auto import tqdm

from me5lib import io
from me5lib.evaluate.baselines import BM25Row
from me5lib.evaluate.heldout import mteb_tasks
from me5lib.train.search import BM25Index

VERSION = 1  # of the scores; raise it with any change here that gives other ones
COLUMNS = ("task", "language", "direction", "subset", "score", "own_language")


def crossed_scores(models: Mapping[str, Any], material: Any, folder: Path) -> pd.DataFrame:
    """`COLUMNS`, `model` and `kind` of every model that takes retrieval; `material` is the corpus's `xquad`.

    A model with `languages` asks, and is asked, in those only; the pool is the same for all. Scores are kept by the
    revisions of model and texts, in `folder`, or for a model that is `shared` in the user's cache.
    """
    (task,), frames = mteb_tasks([material]), []
    part = {name: model for name, model in models.items() if "Retrieval" in getattr(model, "kinds", ["Retrieval"])}
    bar = tqdm(part.items(), desc="XQuAD across languages", unit=" rows")
    for name, model in bar:
        meta, base = model.mteb_model_meta, io.cache() / "evaluation" if getattr(model, "shared", False) else folder
        made = Path(base) / "xquad" / meta.name.replace("/", "__") / meta.revision
        path = made / f"{task.metadata.revision}-{VERSION}.json"
        with io.locked(path.with_suffix(".lock"), wait=True), io.ticking(bar.refresh):
            if not path.is_file():
                io.put_json(path, list(_scores(model, task.metadata, material.sets)))
        frames.append(pd.DataFrame(io.read_json(path), columns=COLUMNS).assign(model=name, kind="Retrieval"))
    return pd.concat(frames, ignore_index=True)


def _scores(model: Any, metadata: Any, sets: Mapping[str, Any]) -> Iterator[tuple]:
    """Rows of `COLUMNS`, rounded as a table's. The id of a paragraph is its language's code and its meaning."""
    spoken = getattr(model, "languages", None) or set(sets)
    of, meanings = np.array([(code, key.removeprefix(code)) for code, held in sets.items() for key in held.documents]).T
    for language, scores in _similarities(model, metadata, sets, spoken).items():
        answers = sets[language].relevant.values()
        relevant = np.array([np.isin(meanings, [key.removeprefix(language) for key in keys]) for keys in answers])
        for other in sorted(spoken & {*of} - {language}):
            here, direction = of == other, f"{language}-{other}"
            part = np.ix_(relevant[:, here].any(axis=1), here)  # every question, but in the stand-in that smoke has
            score = float(ndcg_score(relevant[part], scores[part], k=10))
            yield "xquad-across", language, direction, direction, round(score, 6), None
        score = mean_average_precision(relevant, scores)
        own = share_of_first(scores, of == language, len(sets)).mean()
        yield "xquad-pooled", language, "", language, round(score, 6), round(own, 6)


def _similarities(model: Any, metadata: Any, sets: Mapping[str, Any], spoken: Any) -> dict[str, np.ndarray]:
    """Language → its questions against all paragraphs [n, m]; BM25 goes without stems, which found no more."""
    asked = {code: [own.queries[key] for key in own.relevant] for code, own in sets.items() if code in spoken}
    texts = [f"{title} {text}".strip() for held in sets.values() for title, text in held.documents.values()]
    if isinstance(model, BM25Row):
        index = BM25Index(texts)
        return {language: np.stack([index.scores(query) for query in own]) for language, own in asked.items()}
    about = {"task_metadata": metadata, "hf_split": "test", "hf_subset": ""}
    passages = model.encode([{"text": texts}], prompt_type=PromptType.document, **about)
    return {language: model.similarity(model.encode([{"text": own}], prompt_type=PromptType.query, **about), passages)
            for language, own in asked.items()}  # fmt: skip


def share_of_first(scores: np.ndarray, own: np.ndarray, places: int) -> np.ndarray:
    """The share of the passages `own` (bool [m]) among so many first places of each query: float64 [n] of `scores`
    [n, m]; of equal scores the mean over their orders."""
    above, reached = rankdata(-scores, "min", axis=1) - 1, rankdata(-scores, "max", axis=1)
    return (np.clip((places - above) / (reached - above), 0, 1) * own).sum(axis=1) / places
