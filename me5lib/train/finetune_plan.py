"""Labelled examples for stage 2: tidied, and laid out over its steps.

    labelled examples ──► tidy ──► Plan: which examples make the batch of a step, and in which of their passes

The plan of all steps is known before the first, so that only examples which will be used are mined and scored. An
example that the plan comes back to gets the next of its negatives in every pass, where there are as many; that follows
from the plan alone, so it is the same for any number of processes and on resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from me5lib.config import Stage
from me5lib.data.mixture import Mixture
from me5lib.pairs import Labelled, text_key


class _Stream:
    """The examples of one source in one language, as the mixture sees a shard: only their number matters."""

    columns = ("query", "passage")

    def __init__(self, places: list[int]) -> None:
        self.places, self.rows = np.array(places, dtype=np.int64), len(places)


class Plan:
    """Which examples make the batch of a step: stage 1's construction (`Mixture`) over the labelled examples.

    Sources and languages are both weighted by rows ** `temperature`, so that a large set does not drown a small one
    (ours: how mE5 mixed its labelled sets is known only by their sampled sizes).
    """

    def __init__(self, rows: Sequence[Labelled], stage: Stage, seed: int, temperature: float) -> None:
        places: dict[tuple[str, str], list[int]] = {}
        for i, row in enumerate(rows):
            places.setdefault((row.source, row.language), []).append(i)
        sizes: dict[str, int] = {}
        for (source, _), own in places.items():
            sizes[source] = sizes.get(source, 0) + len(own)
        weights = {source: size**temperature for source, size in sizes.items()}
        streams = {key: _Stream(own) for key, own in places.items()}
        self.steps = stage.steps
        self._mixture = Mixture(
            streams, steps=stage.steps, batch=stage.batch, seed=seed, weights=weights, temperature=temperature
        )

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the plan depends on."""
        return self._mixture.fingerprint

    def draws(self, step: int) -> list[tuple[int, int]]:
        """Positions of the examples of `step`, each with its pass: how often its stream was exhausted before."""
        spec, mixture = self._mixture.plan(step), self._mixture
        streams = [mixture.shards[mixture.streams[i][:2]] for i in spec.stream]
        drawn = zip(streams, spec.row, spec.passes.tolist(), strict=True)
        return [(int(stream.places[row]), turn) for stream, row, turn in drawn]

    def batch(self, step: int) -> list[int]:
        """Positions of the examples of `step`."""
        return [i for i, _ in self.draws(step)]

    def passes(self) -> dict[int, int]:
        """Position → number of passes, of all examples that any step uses, in order."""
        last: dict[int, int] = {}
        for step in range(self.steps):
            for i, turn in self.draws(step):
                last[i] = max(turn, last.get(i, 0))
        return {i: turn + 1 for i, turn in sorted(last.items())}

    def used(self) -> list[int]:
        """Positions of all examples that any step uses, in order."""
        return list(self.passes())


def turned(row: Labelled, n: int, turn: int) -> Labelled:
    """`row` with `n` of its negatives, from place turn · n on, wrapping round, and with their scores."""
    have = len(row.negatives)
    places = [(turn * n + i) % have for i in range(n)] if have > n else range(have)
    told = row.teacher_scores
    scores = told and (told[0], *(told[1 + j] for j in places))
    return row._replace(negatives=tuple(row.negatives[j] for j in places), teacher_scores=scores)


def tidy(rows: Iterable[Labelled]) -> tuple[list[Labelled], dict[str, int]]:
    """The examples that can be learnt from, in order, and what was wrong with others: fault → how many.

    An example without a query or a positive is dropped, an empty passage is left out. Negatives that read like the
    query or like a positive of their example are counted here; `own_negatives` leaves them out.
    """
    kept, faults = [], Counter()
    for row in rows:
        right, wrong = (tuple(text for text in side if text.strip()) for side in (row.positives, row.negatives))
        if not row.query.strip() or not right:
            faults["examples without a positive" if row.query.strip() else "examples without a query"] += 1
            continue
        faults["empty passages"] += len(row.positives) + len(row.negatives) - len(right) - len(wrong)
        known = {text_key(text) for text in right}
        for key in map(text_key, wrong):
            faults["negatives that are a positive too"] += key in known
            faults["negatives that are the query"] += key == text_key(row.query) and key not in known
        kept.append(row._replace(positives=right, negatives=wrong))
    return kept, {fault: n for fault, n in sorted(faults.items()) if n}
