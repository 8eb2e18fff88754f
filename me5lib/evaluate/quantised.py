"""What fewer bits cost in quality, per language: of the arithmetic, of stored vectors, of the weights.

    tests = material(open_corpus(config.load("tiny")))                  # set → searches
    table = quality("me5-small-q4", tests, ("fp32", "int8"), folder)    # a row a set, way and language
    losers(table)                                                       # the languages that lose most

The reference is fp32 vectors by fp32 arithmetic; a difference is paired by query, its interval over problems (one in a
hundred languages is one witness). Scores: translations found, to and from English (`gsm`, its numbers masked, and
`heldout`; a tie is a miss); reciprocal rank of a paragraph in each other language (`xquad`), or of English questions.
int8 vectors are asked by fp32 queries, binary ones by binary queries, none scored again. Vectors are kept in `folder`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from me5lib import config
from me5lib.evaluate import heldout, stats, vectors
from me5lib.evaluate.cache import CachedEncoder
from me5lib.evaluate.heldout import Search
from me5lib.evaluate.models import E5, open_model
from me5lib.model import released
from me5lib.model.encoder import PRECISIONS, Encoder
from me5lib.model.text import PASSAGE, QUERY

STORED = {"vectors int8": "int8", "vectors binary at 0": "binary-zero", "vectors binary at the median": "binary"}
WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "weights 4-bit": lambda matrix: released.dequantise(released.quantise(matrix)), "weights int8": lambda matrix:
    np.round(matrix / (step := abs(matrix).max(axis=1, keepdims=True) / 127 + 1e-30)) * step,  # a step a row (ours)
}  # fmt: skip
BITEXTS, ENGLISH = ("gsm", "heldout"), ("xquad-en", "fastapi-en")  # sets; the latter for models that know nothing else
COLUMNS = ["model", "set", "what", "language", "queries", "score", "difference", "low", "high", "p", "agreement"]
KEY, LEVEL = COLUMNS[:3], 0.05  # a loss is decided from this p on, adjusted by Holm over the languages of the set
Space = Mapping[str, Mapping[str, np.ndarray]]  # prefix → text → unit vector
Answers = dict[str, tuple[np.ndarray, Sequence[str], np.ndarray]]  # language → scores [n], problems, nearest [k, n]


def material(corpus: Any) -> dict[str, list[Search]]:
    """Set → searches: of a language two in `BITEXTS`, one for each other language in `xquad`."""
    found = {name: [test for language, (english, own) in corpus.task(name).sets.items()
                    for test in (Search.bitext(english, own, language=language),
                                 Search.bitext(own, english, language=language)._replace(meanings=english))]
             for name in BITEXTS}  # fmt: skip
    found["xquad"] = heldout.across(corpus.task("xquad").sets)
    for name in ENGLISH:
        held = corpus.task(name.removesuffix("-en")).sets["en"]
        texts = [f"{title} {text}".strip() for title, text in held.documents.values()]
        right = np.array([[key in held.relevant[query] for key in held.documents] for query in held.queries])
        problems = [min(held.relevant[query]) for query in held.queries]
        found[name] = [Search([*held.queries.values()], texts, right, (QUERY, PASSAGE), problems, language="en")]
    return found


def qualities(models: Sequence[str], corpus: Any, precisions: Sequence[str], folder: Path) -> pd.DataFrame:
    """`quality` of each model, of the English ones on the sets of `ENGLISH` alone."""
    tests = material(corpus)
    english = {name: tests[name] for name in ENGLISH}
    return pd.concat([quality(model, english if model in config.ENGLISH else tests, precisions, folder)
                      for model in tqdm(models, desc="quality", unit=" models")], ignore_index=True)  # fmt: skip


def quality(model: str, tests: Mapping[str, Sequence[Search]], precisions: Sequence[str], folder: Path) -> pd.DataFrame:
    """`COLUMNS` of each set and way, a row a language, and one of `all`: `difference` to the first of `precisions` with
    interval and p; `agreement`: queries with the same nearest passage. Full weights are quantised, too."""
    opened = open_model(model, device="cpu")
    if not (prefixed := isinstance(opened.encoder, E5)):
        tests = {name: [test._replace(prefixes=("", "")) for test in own] for name, own in tests.items()}
    texts, spaces = heldout.texts_by_prefix(tests), {}
    encoder = opened.encoder.encoder if prefixed else Encoder.load(model)
    precisions = [name for name in precisions if name in PRECISIONS]
    for what, other, precision in ways(encoder, precisions, opened.weights == "full"):
        identity = {"model": opened.name, "revision": opened.revision, "weights": what if what in WEIGHTS else ""}
        kept = CachedEncoder(E5(other, precision), folder, identity, precision)
        spaces[what] = {prefix: dict(zip(own, kept.encode(own, prefix), strict=True)) for prefix, own in texts.items()}
    reference, frames = next(iter(spaces.values())), []
    arms = [*((what, space, np.inner) for what, space in spaces.items()),
            *((what, reference, stored(precision, reference)) for what, precision in STORED.items())]  # fmt: skip
    for name, own in tests.items():
        before = answers(own, reference, np.inner, name in BITEXTS)
        frames += [compared(before, answers(own, space, table, name in BITEXTS)).assign(set=name, what=what)
                   for what, space, table in arms]  # fmt: skip
    return pd.concat(frames, ignore_index=True).assign(model=model)[COLUMNS]


def ways(encoder: Encoder, precisions: Sequence[str], full: bool) -> Iterator[tuple[str, Encoder, str]]:
    """What, encoder, arithmetic: as it is in each of `precisions`; of `full` weights the token table and the layers'
    matrices quantised and read back, in the first of them."""
    yield from ((f"arithmetic {precision}", encoder, precision) for precision in precisions)
    for what, change in WEIGHTS.items() if full else ():
        other = encoder.copy()
        for name, weight in other.backbone.named_parameters():
            if name == released.WORDS or (name.startswith("encoder.") and weight.ndim == 2):
                values = change(weight.detach().numpy()).astype(np.float32)
                weight.data = torch.from_numpy(values.reshape(weight.shape))
        yield what, other, precisions[0]


def stored(precision: str, space: Space) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Scores [n, m] of queries and passages stored in a precision of `vectors`, calibrated on all that `space` has."""
    ends = vectors.calibrate(np.stack([vector for own in space.values() for vector in own.values()]), precision)
    if precision == "int8":  # where steps begin is the same for all passages
        return lambda queries, passages: queries @ (vectors.quantise(passages, precision, ends) * (ends[1] - ends[0])).T
    return lambda *sides: np.inner(*(np.where(side > ends, np.float32(1), np.float32(-1)) for side in sides))


def answers(tests: Sequence[Search], space: Space, table: Callable[..., np.ndarray], exact: bool) -> Answers:
    """Of each language: of several searches of the same queries the mean; `exact`: only the first place counts."""
    found = defaultdict(list)
    for test in tests:
        scores = test.scores(space, table)
        ranks = heldout.reciprocal_ranks(scores, test.relevant)
        found[test.language].append((ranks == 1 if exact else ranks, test.meanings, scores.argmax(axis=1)))
    return {language: (np.mean([own[0] for own in parts], axis=0), parts[0][1], np.stack([own[2] for own in parts]))
            for language, parts in found.items()}  # fmt: skip


def compared(before: Answers, after: Answers) -> pd.DataFrame:
    """A row a language, p adjusted by Holm, and one of `all` queries."""
    rows = []
    for language in (*before, "all"):
        pairs = [(before[one], after[one]) for one in (before if language == "all" else [language])]
        change = np.concatenate([then[0] - first[0] for first, then in pairs])
        same = np.concatenate([(then[2] == first[2]).mean(axis=0) for first, then in pairs])
        drawn = stats.resampled(change[None, None], [problem for first, _ in pairs for problem in first[1]])[0]
        rows.append((language, len(change), np.concatenate([then[0] for _, then in pairs]).mean(),
                     *stats.interval(drawn, change.mean()), stats.p_value(drawn), same.mean()))  # fmt: skip
    table = pd.DataFrame(rows, columns=COLUMNS[3:])
    return table.assign(p=[*stats.holm(table["p"][:-1]), table["p"].iloc[-1]])


def losers(table: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The rows of `all`, and `losers`: the languages that lose most, of those whose loss is decided, or "none decided".
    """
    lost = table[(table["p"] < LEVEL) & (table["difference"] < 0) & (table["language"] != "all")]
    names = {key: ", ".join(f"{row.language} {row.difference:+.3f}" for row in own.head(count).itertuples())
             for key, own in lost.sort_values("difference").groupby(KEY)}  # fmt: skip
    pooled = table[table["language"] == "all"]
    return pooled.assign(losers=[names.get(tuple(key), "none decided") for key in pooled[KEY].to_numpy()])
