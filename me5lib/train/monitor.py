"""What is looked at while a model trains: held-out translations of a few languages, and a run that others train.

`watch` is a look of some seconds, not the evaluation: `me5lib.evaluate` has the protocol and all languages.

    run = attach(lesson.out, scale=lesson.scale.name, seed=lesson.seed)     # from another process; it never trains
    run.finished, run.step, run.steps               # False, 1200, 30000
    figures.loss_curve(run.history.steps, chance)   # the curve so far
    Encoder.load(run.model)                         # the finished model, or that of the last checkpoint
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from me5lib.data.corpus import Corpus
from me5lib.device import precision
from me5lib.io import STAGES, Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.resolve import stage_settings
from me5lib.pairs import script
from me5lib.train import checkpoint
from me5lib.train import loss as losses
from me5lib.train.loop import Evaluator, TrainingLog, read_log

LANGUAGES, STRINGS = 8, 200  # ours: a second a look


@functools.lru_cache(maxsize=4)
def watched(corpus: Corpus, languages: int = LANGUAGES) -> dict[str, tuple[list[str], list[str]]]:
    """Language → (English, text), held out and aligned: the largest sets, one of each script before a second of any.

    Sets have equally many strings, so that their accuracies can be compared. Kept for a corpus that is asked again.
    """
    sets = corpus.task("heldout").sets
    by_size = sorted(sets, key=lambda code: (-len(sets[code][0]), code))
    turn, seen = {}, Counter()
    for code in by_size:
        alphabet = script(sets[code][1])
        turn[code] = seen[alphabet]
        seen[alphabet] += 1
    chosen = sorted(sorted(by_size, key=lambda code: turn[code])[:languages])
    size = min([STRINGS, *(len(sets[code][0]) for code in chosen)])
    return {code: (sets[code][0][:size], sets[code][1][:size]) for code in chosen}


def top1_accuracy(texts: np.ndarray, english: np.ndarray) -> float:
    """Share of the unit vectors `texts` [n, d] for which their own row of `english` [n, d] is the nearest."""
    return float(((texts @ english.T).argmax(1) == np.arange(len(texts))).mean())


def watch(corpus: Corpus) -> Evaluator | None:
    """An evaluator for the loop: accuracy by language and in the mean, alignment, uniformity of the same texts.

    None for a corpus that has nothing to look at.
    """
    if not corpus.task_names or not (sets := watched(corpus)):
        return None
    def look(encoder: Encoder, step: int) -> dict[str, float]:
        """The figures of this moment."""
        fast = precision(encoder.device).name
        both = [[encoder.encode(side, corpus.bitext_prefix, precision=fast) for side in pair] for pair in sets.values()]
        by_language = {code: top1_accuracy(text, english) for code, (english, text) in zip(sets, both, strict=True)}
        english, texts = (torch.from_numpy(np.concatenate(side)) for side in zip(*both, strict=True))
        results = {
            "accuracy": float(np.mean(list(by_language.values()))),
            "alignment": losses.alignment(english, texts),
            "uniformity": losses.uniformity(texts),
            **{f"accuracy.{code}": value for code, value in by_language.items()},
        }
        return {name: round(value, 6) for name, value in results.items()}

    return look


class Attached(NamedTuple):
    """A stage, finished or not, as it was when `attach` looked."""

    folder: Path  # of its logs
    finished: bool
    step: int  # steps that are done
    steps: int  # steps that were asked for
    history: TrainingLog
    model: Path | None  # the finished model, else the last checkpoint; None before the first one
    quiet: float  # seconds since a line was logged: many, and the run has probably stopped

    def __str__(self) -> str:
        if self.finished:
            return f"{self.folder.name} is finished: {self.steps:,} steps"
        return (f"{self.folder.name} is at step {self.step:,} of {self.steps:,}; "
                f"its last line is {self.quiet:.0f} seconds old")


def attach(out: Path, name: str = "stage1", *, scale: str = "SCALE", seed: int = 0) -> Attached:
    """The stage `name` of the run in `out`. Unfinished work comes before an older finished stage of other settings.

    At the paper's scale `me5 pretrain` runs on many machines, for days; a kernel is no place for that.
    Raises `Me5Error` naming the command that starts it where there is neither (`scale` and `seed` are for its words).
    """
    final, part = out / name, out / f"{name}.part"
    made, making = stage_settings(final), stage_settings(part)
    finished = bool(made) and (final / "config.json").is_file()
    if not making and not finished:
        raise Me5Error(f"there is no {name} in {out}, finished or begun: start it with "
                       f"`me5 {STAGES.get(name, 'finetune')} --scale {scale} --seed {seed} --out {out}`")
    finished = finished and (not making or made["fingerprint"] == making["fingerprint"])
    folder, steps = final if finished else part, (made if finished else making)["settings"]["stage"]["steps"]
    history, log = read_log(folder), folder / "log.jsonl"
    step = 1 + history.steps[-1]["step"] if history.steps else 0
    quiet = max(0.0, time.time() - log.stat().st_mtime) if log.is_file() else 0.0
    # Renamed into place is enough here: to hold its sums against its files takes seconds a GB.
    saved = [path for path in checkpoint.checkpoints(folder / "checkpoints").values()
             if (path / checkpoint.MANIFEST).is_file()]
    return Attached(folder, finished, step, steps, history, folder if finished else next(reversed(saved), None), quiet)
