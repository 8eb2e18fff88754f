"""Who is left out: each language under the real model, USE-multilingual, a run's own model and rows that learn nothing.

    python tests/benchmarks/left_out.py --run runs/tiny/seed-0 [--out runs/left-out] [--json FILE]

Bitext accuracy, hubness and language probe on UDHR (by people), held-out strings (people) and GSM with its numbers
masked (machines, most); accuracy on intents; what they go with; the languages of the hits in pools of all languages.
Writes what notebook 10 shows, with the coordinates of the measurement. Vectors stay under --out: it goes on where it
was stopped. The real model reads some three million tokens: a quarter of an hour of one core that has bf16,
and as long for the rest.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from me5lib import config, io
from me5lib.data.corpus import open_corpus
from me5lib.evaluate import left_out, offline_table, runs
from me5lib.evaluate.alignment import unit
from me5lib.evaluate.baselines import count_trigrams
from me5lib.evaluate.cache import CachedEncoder
from me5lib.evaluate.heldout import mteb_tasks
from me5lib.model.text import PASSAGE, QUERY

OWN, REAL = ("stage 1 only", "stage 1 + stage 2"), "me5-small-q4"
ROWS = ("random weights", "character trigrams", "USE-multilingual", REAL, *OWN)


@cache
def encode_of(row: Any, folder: Path) -> Any:
    """Texts (and a prefix) → unit vectors kept in `folder` and in memory, or counts."""
    if not hasattr(row, "encoder"):
        return count_trigrams
    identity, dtype, known = {"row": row.mteb_model_meta.revision}, row.options.get("precision", "fp32"), {}
    kept = CachedEncoder(row.encoder, folder, identity, dtype)

    def encode(texts: list[str], prefix: str = QUERY) -> np.ndarray:
        fresh = [text for text in dict.fromkeys(texts) if (prefix, text) not in known]
        vectors = unit(kept.encode(fresh, prefix, **row.options)) if fresh else ()
        known.update(((prefix, text), vector) for text, vector in zip(fresh, vectors, strict=True))
        return np.stack([known[prefix, text] for text in texts])

    return encode


def biases(encode: Any, queries: Any, texts: Any, meanings: Any) -> dict[str, dict[str, Any]]:
    """`language_bias` of the vectors as they are, and with each language's mean taken off."""
    asked = {code: encode(own) for code, own in queries.items()}
    held = asked if texts is queries else {code: encode(own, PASSAGE) for code, own in texts.items()}
    return {key: left_out.language_bias(asked, held, meanings, key == "centred") for key in ("as it is", "centred")}


def xquad_sides(sets: Any) -> tuple[dict, dict, dict]:
    """Questions, paragraphs, and which paragraph a question is of, by language."""
    return ({code: list(own.queries.values()) for code, own in sets.items()},
            {code: [text for _, text in own.documents.values()] for code, own in sets.items()},
            {code: [min(own.relevant[key]).removeprefix(code) for key in own.queries] for code, own in sets.items()})


def spoken_by(row: Any, sets: Any) -> Any:
    """The languages of `sets` that a model is for."""
    known = getattr(row, "languages", None)
    return {code: own for code, own in sets.items() if known is None or getattr(own, "language", code) in known}


def measure_scores(models: Any, sets: Any, drawn: Counter, folder: Path) -> Iterator[tuple[pd.DataFrame, ...]]:
    """What the languages are (first), then of each model and set their scores, and what these go with."""
    about = {name: left_out.describe_languages(own, models[REAL].encoder.tokenizer) for name, own in sets.items()}
    yield pd.concat(frame.assign(set=name) for name, frame in about.items()).rename_axis("name").reset_index(),
    for (model, row), (name, held) in itertools.product(models.items(), sets.items()):
        found = left_out.language_scores(encode_of(row, folder), spoken_by(row, held))
        print(f"{model} {name}: {found['accuracy'].mean():.3f} over {len(found)}", flush=True)
        joined = found.join(about[name].assign(share=about[name]["language"].map(drawn).fillna(0)))
        predictors = (*left_out.PREDICTORS, "share") if model in OWN else left_out.PREDICTORS
        parts = {"all": joined, "in CC-100": joined[joined["cc100"] > 0]}
        rhos = [left_out.correlations(part, predictors).assign(of=kind) for kind, part in parts.items()]
        yield (found.rename_axis("name").reset_index().assign(model=model, set=name),
               pd.concat(rhos).assign(model=model, set=name))  # fmt: skip


def measure_bias(models: Any, sets: Any, xquad: Any, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Own shares of every model; of the real one by language too, and its matrices, per mille (of GSM the means)."""
    rows, matrices = [], {}
    for model, row in models.items():
        if not hasattr(row, "encoder"):
            continue
        pools = {"xquad": xquad_sides(spoken_by(row, xquad))}
        for name in ("gsm", "udhr"):
            own = spoken_by(row, sets[name])
            texts = {code: each.texts for code, each in own.items()}
            pools[name] = texts, texts, {code: each.english for code, each in own.items()}
        for name, pool in pools.items():
            for key, part in biases(encode_of(row, folder), *pool).items():
                rows.append((name, model, key, "all", *part["own"], part["chance"]))
                if model == REAL and name != "udhr":
                    rows += [(name, model, key, code, *part["matrix"][i, i], None) for i, code in enumerate(pool[0])]
                    table = (1000 * part["matrix"]).round().astype(int)
                    matrices[f"{name}, {key}"] = (table if name == "xquad" else table[..., 0]).tolist()
    return pd.DataFrame(rows, columns=["set", "model", "vectors", "name", "own", "low", "high", "chance"]), matrices


def main() -> None:
    """See above."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True, help="folder with stage1 and stage2 of scale tiny")
    options.add_argument("--out", type=Path, default=Path("runs/left-out"))
    options.add_argument("--json", type=Path, default=io.asset("notebooks") / "results" / "left_out.json")
    asked, scale = options.parse_args(), config.load("tiny")
    corpus, folder = open_corpus(scale), asked.out / "vectors"
    drawn = corpus.mixture(scale, 0).languages()
    rows = offline_table.standard_rows(scale, 0, asked.run, corpus)
    models = {name: rows[name] for name in ROWS if name in rows}
    sets = left_out.parallel_sets(corpus)
    (about,), *scored = measure_scores(models, sets, drawn, folder)
    bias, matrices = measure_bias(models, sets, corpus.task("xquad").sets, folder)
    intents = offline_table.table_scores(models, mteb_tasks([corpus.task("intents")]), asked.out / "evaluation")
    intents = intents[["model", "task", "language", "accuracy"]].rename(columns={"task": "set", "language": "name"})
    scores, rhos = (pd.concat(part) for part in zip(*scored, strict=True))
    frames = {"about": about, "scores": pd.concat([scores, intents]), "correlations": rhos, "bias": bias}
    io.put_text(asked.json, json.dumps({
        "stored": "tests/benchmarks/left_out.py", "date": str(date.today()), "hardware": runs.hardware(),
        "precision": models[REAL].options["precision"], "versions": {name: version(name) for name in runs.PACKAGES},
        "revisions": {name: row.mteb_model_meta.revision for name, row in models.items()}, "per mille": matrices,
        **{name: json.loads(frame.to_json(orient="split", index=False, double_precision=3))
           for name, frame in frames.items()}}))


if __name__ == "__main__":
    main()
