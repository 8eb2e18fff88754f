"""Fine-tuning on your own file: a model of the hub or of a folder, settings that fit a small file, stage 2.

    corpus = userdata.read_corpus("faq.csv")                        # me5lib.data
    start = open_start("intfloat/multilingual-e5-small")     # or "me5-small-q4", or a folder
    cfg = fit(corpus, Encoder.load(start), str(start))
    model = finetune_on_file(corpus, start, out, cfg)                # out/model, which SentenceTransformer loads

The start model must read texts as mE5 does; one that pools otherwise is refused. Every setting is the paper's where it
says one, else ours with the reason (`Scale.provenance`), and `--set finetune.…` changes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from me5lib import config
from me5lib.config import Scale
from me5lib.data.userdata import OwnCorpus
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.resolve import model_folder, pinned, read_model_json, readable_files, resolve
from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import text_key
from me5lib.train import labelled, stages
from me5lib.train.distributed import Team

NAME = "model"  # of the finished stage's folder
EPOCHS = 2.0  # the paper's
MOST_BATCH, LEAST_BATCH = 64, 8  # ours: what a laptop bears; and fewer negatives teach little
STEPS_AN_EPOCH = 8  # ours: a small file has a smaller batch, or its two epochs would be a step or two


def open_start(model: str | Path, say: Callable[[str], object] = print) -> str | Path:
    """What a start model, by any name that `model.resolve` knows, is called for `Encoder.load` on every rank.

    Of the hub: fetched into its client's cache once, and pinned to its commit. Raises `Me5Error` as `resolve` does.
    """
    ref = resolve(model)
    if ref.kind == "released":
        return ref.name
    folder = model_folder(ref)
    own = set(readable_files(ref, folder).prompts.values())
    if own - {QUERY, PASSAGE}:
        say(f"{ref.name} has prompts of its own ({', '.join(map(repr, sorted(own)))}): they are not used")
    return folder if ref.kind == "folder" else pinned(ref)


def passes(epochs: float | None) -> float:
    """`epochs`, by default the paper's. Raises `Me5Error` for a training of no length, and for an endless one."""
    epochs = EPOCHS if epochs is None else epochs
    if not 0 < epochs < math.inf:
        raise Me5Error("--epochs must be above zero, and not endless")
    return epochs


def fit(corpus: OwnCorpus, encoder: Encoder, start: str, *, epochs: float | None = None, overrides: Sequence[str] = (),
        teacher: str = "") -> Scale:
    """The settings for this file and this model, each with its reason; `overrides` as `finetune.lr=1e-5`.

    `epochs` (None: the paper's) decide the steps where no override does; `teacher` is for the setting of that name:
    "trained", the hub id of a cross-encoder, or "" for none. Raises `Me5Error` for an unknown setting, and for one that
    says nothing about one's own file.
    """
    epochs = passes(epochs)
    by_hand = [override.partition("=")[0] for override in overrides]
    base = config.load("base", overrides)  # refuses what is no setting, or no value
    if idle := [key for key in by_hand if not key.startswith("finetune.") and key != "data.language_temperature"]:
        raise Me5Error(f"{idle[0]} decides nothing with --data: set finetune.… or data.language_temperature")
    fixed = {name: getattr(base.finetune, name) for key in by_hand for room, _, name in [key.partition(".")]
             if room == "finetune"}
    chosen = _fitting_values(corpus, encoder, epochs, fixed)
    if teacher:
        chosen["teacher"] = (teacher, "ours", "asked for")
    chosen = {key: value for key, value in chosen.items() if key not in fixed}
    stage = dataclasses.replace(base.finetune, **{key: value for key, (value, _, _) in chosen.items()})
    temperature = base.data.language_temperature if "data.language_temperature" in by_hand else 1.0
    told = {f"finetune.{key}": (source, why) for key, (_, source, why) in chosen.items()}
    told |= {key: base.provenance[key] for key in ("finetune.near", "finetune.margin")}
    told["data.language_temperature"] = ("ours", "by rows: an epoch is then each example once")
    told |= dict.fromkeys(by_hand, ("ours", "set by hand"))
    bert = encoder.backbone.config
    shape = config.Model(start, bert.num_hidden_layers, bert.hidden_size, bert.num_attention_heads,
                         bert.intermediate_size, bert.vocab_size, encoder.max_tokens)
    data = config.Data((), (corpus.name,), temperature, 1.0, float(np.mean(corpus.dev)))
    return dataclasses.replace(base, name=corpus.name, data=data, model=shape, finetune=stage, provenance=told)


def _fitting_values(corpus: OwnCorpus, encoder: Encoder, epochs: float,
                    fixed: dict) -> dict[str, tuple[Any, str, str]]:
    """The stage's settings, from the file's size, the lengths of its texts, the model's size and the `fixed` ones."""
    rows = corpus.labelled()
    batch = fixed.get("batch") or batch_for(len(rows))
    many = fixed.get("steps") or math.ceil(epochs * len(rows) / batch)
    query, passage = _longest(corpus, encoder)
    pool = len({text_key(text) for row in rows for text in (*row.positives, *row.negatives)})
    like = min({384: "small", 768: "base", 1024: "large"}.items(), key=lambda one: abs(one[0] - encoder.width))[1]
    return {
        "steps": (many, "ours", f"{epochs:g} epochs of {len(rows):,} examples (the paper: 2)"),
        "batch": (batch, "ours", f"at most {MOST_BATCH} for a CPU, and so that an epoch has some steps"),
        "lr": (config.load(like).finetune.lr, "paper", "stage 2 of the model of this width (its batch was 512)"),
        "warmup": (many // 10, "ours", "a tenth of the steps"),
        "temperature": (0.01, "model card", "mE5's own, by the FAQ of its card"),
        "query_tokens": (query, "ours", "the file's longest query, or E5's 192 (recollection, unverified)"),
        "passage_tokens": (passage, "ours", "the file's longest passage, or E5's 192 (recollection, unverified)"),
        "hard_negatives": (max(1, min(3, pool - 1)), "ours", "E5's 7 (recollection, unverified) takes twice the time"),
        "contrastive_weight": (0.2, "E5", "recollection of E5's Table 11 (unverified); used with --teacher only"),
        "mine_depth": (max(1, min(50, pool)), "ours", "a small file's 200th passage is a random one"),
        "teacher_steps": (max(1, many // 2), "ours", "half of the student's; used with --teacher trained only"),
    }


def batch_for(rows: int) -> int:
    """A power of two, so that an epoch has `STEPS_AN_EPOCH` steps where the file is large enough for that."""
    fitting = 2 ** int(math.log2(max(1, rows // STEPS_AN_EPOCH)))
    return min(rows, MOST_BATCH, max(LEAST_BATCH, fitting))


def _longest(corpus: OwnCorpus, encoder: Encoder, most: int = 192) -> tuple[int, ...]:
    """Tokens of the longest query and the longest passage, prefix and all, at most `most` and what the model reads."""
    texts = [row.query for row in corpus.rows], [t for row in corpus.rows for t in (*row.positives, *row.negatives)]
    lengths = [max(map(len, encoder.tokenize(sorted(set(side), key=len)[-512:], prefix)))
               for side, prefix in zip(texts, corpus.prefixes(), strict=True)]
    return tuple(min(most, encoder.max_tokens, 8 * math.ceil(longest / 8)) for longest in lengths)


def setting_lines(cfg: Scale) -> list[str]:
    """Every setting with its value, where it comes from, and why."""
    values = {f"finetune.{key}": value for key, value in dataclasses.asdict(cfg.finetune).items()}
    values["data.language_temperature"] = cfg.data.language_temperature
    return [f"  {key:28}{values[key]!s:>8}  {source}: {why}" for key, (source, why) in cfg.provenance.items()]


def finetune_on_file(corpus: OwnCorpus, start: str | Path, out: Path, cfg: Scale, *, seed: int = 0,
                     teacher: bool = False, team: Team | None = None, progress: bool = True) -> Path:
    """Stage 2 on the file, from `start`: the finished folder `out`/model. Unfinished work is gone on with.

    Negatives are the file's own and the start model's nearest; a teacher is trained only when it is asked for (ours:
    it doubles the time, and on a small file it seldom beats a start model that was pre-trained).
    """
    return stages.finetune(cfg, seed, out, start=start, name=NAME, negatives="mined", teacher=teacher, corpus=corpus,
                           team=team, progress=progress)


def mined_line(folder: Path) -> str:
    """One line on what was mined for a stage, from its report.json; with advice where the search left too little."""
    found = read_model_json(folder / "report.json", {})
    report, filling = found["mining"], found["filling"]
    dropped = ", ".join(f"{many:,} {rule}" for rule, many in report["dropped"].items() if many)
    said = f"mined: {report['kept']:,} of {report['candidates']:,} candidates kept for {report['queries']:,} queries " \
           f"(dropped: {dropped or 'none'})"
    if (drawn := filling.get(labelled.RANDOM_FILLED, 0)) > filling["there"] / 2:
        said += (f"; {drawn:,} of {filling['there']:,} negatives are random ones, for want of others: if a filter "
                 "dropped most, loosen it (--set finetune.near=1.2)")
    return said
