"""What each language family gives the others: stage 1 from random weights with one family left out, in turn.

All arms take as many steps, from the sources in the same proportions. What a family leaves goes to all other languages,
so that each arm has its control, which leaves out random languages of about as many drawn rows and of none of
`FAMILIES`: both keep every other family that is tested. English, one side of all translations, stays; the vocabulary is
that of the full mixture. A family here is a branch of Indo-European, or else the family.
Cost: pilot and full run together half an hour on one thread.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from me5lib.config import Scale
from me5lib.data.mixture import Mixture
from me5lib.device import best_device
from me5lib.evaluate import baselines, stats
from me5lib.evaluate.heldout import Search, reciprocal_ranks, short_code
from me5lib.io import Me5Error
from me5lib.lessons.figures import number_table
from me5lib.lessons.labs import Arm, Lab
from me5lib.lessons.paper_figures import UNKNOWN, kin
from me5lib.lessons.tune import train_on
from me5lib.model.encoder import Encoder
from me5lib.train import stages
from me5lib.train.stages import card_prefixes

# Ours: those of which three languages or more have `STRINGS` held-out strings (Italic: Romance, and Haitian).
FAMILIES = ("Italic", "Slavic", "Germanic", "Uralic", "Turkic", "Indo-Aryan")
STRINGS, ELSEWHERE = 100, "elsewhere"


@functools.cache
def family_of(language: str) -> str:
    """Which of `FAMILIES` a language is of, by its code; "" for none, and for English, which is never left out.

    By `languages.csv`, else by the groups that mteb gives with its languages (Glottolog's; a creole: its lexifier's).
    """
    from mteb.languages import ISO_TO_FAM

    above, base = {kin(language)[1]}, language.partition("-")[0]
    if above == {UNKNOWN[1]}:
        above = {name for code in ISO_TO_FAM if base in (code, short_code(code)) for name in ISO_TO_FAM[code].values()}
    return next((family for family in FAMILIES if family in above and language != "en"), "")


class Transfer(Lab):
    """From random weights on pairs alone; the arms differ in which languages these are of."""

    question = ("what does each language family give the others in stage 1? Each is left out, against random languages "
                "of as many drawn rows; primary is what that does to its own languages, secondary all else")
    metrics = ("all families", *FAMILIES)
    positive = ("random for Slavic", "without Slavic", "Slavic")
    trains = ("train",)
    values = {"steps": 70, "warmup": 7}  # ours: half a minute a model on one thread
    seeds, runs_at = 3, "random"

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """The full mixture twice; and without each family, against without as much of other languages."""
        pairs = ((Arm(f"without {family}", f"random for {family}", "dropped", own=family),
                  Arm(f"random for {family}", role="control", own=family)) for family in FAMILIES)  # fmt: skip
        return Arm("full"), Arm("full again", "full", "A/A"), *(arm for pair in pairs for arm in pair)

    @classmethod
    def settings(cls, scale: Scale) -> Scale:
        """With as many held-out strings of a language as the families' have. Raises `Me5Error` for another start."""
        if scale.model.backbone != "random":
            raise Me5Error("transfer starts from random weights, others have seen every family: choose --scale random")
        tests = dataclasses.replace(scale.evaluate, heldout_strings=min(scale.evaluate.heldout_strings, STRINGS))
        return dataclasses.replace(super().settings(scale), evaluate=tests)

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """By family, every language's held-out strings among the English ones; first all of them together."""
        found = {language: Search.bitext(*both, card_prefixes("homeassistant"), language)
                 for language, both in self.corpus.task("heldout").sets.items()}
        own = {family: [found[code] for code in found if family_of(code) == family] for family in FAMILIES}
        return {self.metrics[0]: [test for tests in own.values() for test in tests], **own}

    def left_out(self, arm: Arm, seed: int) -> dict[str, int]:
        """The languages that an arm does not see, with the rows that the full mixture draws of them: of the control in
        a random order, each taken if it still fits."""
        drawn = self.corpus.mixture(self.scale, seed).languages()
        own = {language: drawn[language] for language in sorted(drawn) if arm.own and family_of(language) == arm.own}
        if arm.role != "control":
            return own
        others, taken = sorted(code for code in drawn if code != "en" and not family_of(code)), {}
        for language in np.random.default_rng((seed, FAMILIES.index(arm.own))).permutation(others).tolist():
            if drawn[language] + sum(taken.values()) <= sum(own.values()):
                taken[language] = drawn[language]
        return dict(sorted(taken.items()))

    def encoder(self, arm: Arm, seed: int) -> Encoder:
        """Stage 1 on what the arm sees, each source with the steps that it has in the full mixture."""
        full, out = self.corpus.mixture(self.scale, seed), self.left_out(arm, seed)
        shards = {key: shard for key, shard in full.shards.items() if key[1] not in out}
        mixture = Mixture(shards, steps=full.steps, batch=full.batch_size, seed=seed, temperature=full.temperature,
                          homogeneous=full.homogeneous, weights={source: full.weights[source] for source, _ in shards})
        encoder = stages.initial_encoder(self.scale, seed, self.base / "work", self.corpus).to(best_device())
        return train_on(encoder, mixture.batch, self.scale.train, seed, card_prefixes, progress=False)

    def beside(self, arms: Sequence[Arm], records: Mapping[Any, Any], run: Callable[..., Any]) -> dict[str, Any]:
        """`matrix`: every family left out, on each and on all but itself ("elsewhere"), minus its control, intervals
        over seeds and languages; `left out`: rows by arm and language; `tested`: languages; `lexical`: by trigrams."""
        first, matrix, seeds = self.metrics[0], [], sorted({seed for seed, _ in records})
        language = np.array([test.language for test in self.tests[first] for _ in test.queries])
        family = np.array([family_of(code) for code in language])
        for dropped in FAMILIES:
            one, other = (np.array([records[seed, f"{kind} {dropped}"]["scores"][first] for seed in seeds])
                          for kind in ("without", "random for"))  # fmt: skip
            for tested in (*FAMILIES, ELSEWHERE):
                part = family != dropped if tested == ELSEWHERE else family == tested
                apart, about = (one - other)[None, :, part], language[part]
                found = stats.interval(stats.resampled(apart, about)[0], apart.mean())
                matrix.append({"dropped": dropped, "tested": tested, **found._asdict()})
        return {"matrix": matrix, "lexical": {name: lexical_score(own) for name, own in self.tests.items()},
                "tested": {name: [test.language for test in self.tests[name]] for name in FAMILIES},
                "left out": {f"{arm.name}, seed {s}": self.left_out(arm, s) for arm in arms if arm.own for s in seeds}}

    @classmethod
    def lines(cls, results: Mapping[str, Any]) -> list[str]:
        """How often a family's own languages fell behind; the cells off the diagonal that are decided; what each
        family's absence does to all others."""
        cells = [(arm["own"], tested, cell) for arm in results["arms"] if arm.get("role") == "dropped"
                 for tested, cell in arm["difference"].items() if tested in FAMILIES]  # fmt: skip
        seeds = len(results["seeds"])
        behind = sum(seeds - cell["seeds ahead"] for own, tested, cell in cells if own == tested)
        told = [f"{tested} without {own} ({cell['mean']:+.3f})" for own, tested, cell in cells
                if own != tested and cell["verdict"] in ("ahead", "behind")]  # fmt: skip
        return [f"a family's own languages are behind in {behind} of {len(FAMILIES) * seeds} pairs of family and seed",
                f"of {len(cells) - len(FAMILIES)} cells off the diagonal {len(told)} are decided: "
                f"{', '.join(told) or 'none'}",
                *(f"all others without {row['dropped']}: {row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}, "
                  "over seeds and languages)" for row in results["matrix"] if row["tested"] == ELSEWHERE)]


def lexical_score(tests: Sequence[Search]) -> float:
    """Mean reciprocal rank by trigrams of letters, which learn nothing."""
    sides = [[baselines.Counts(baselines.count_trigrams(side)) for side in test[:2]] for test in tests]
    return float(np.mean([reciprocal_ranks(baselines.tfidf_cosine(*pair), test.relevant).mean()
                          for pair, test in zip(sides, tests, strict=True)]))  # fmt: skip


def heat_map(results: Mapping[str, Any]) -> Figure:
    """A cell for each family left out (down) and tested (across): points of mean reciprocal rank, minus the control's;
    framed where they are told apart by Holm's p."""
    rows = {arm["name"]: [arm["difference"][family] for family in FAMILIES]
            for arm in results["arms"] if arm.get("role") == "dropped"}  # fmt: skip
    sure = [(i, j) for i, row in enumerate(rows.values()) for j, cell in enumerate(row)
            if cell["verdict"] in ("ahead", "behind")]  # fmt: skip
    return number_table([[100 * cell["mean"] for cell in row] for row in rows.values()], list(rows), list(FAMILIES),
                        "points of mean reciprocal rank, minus random languages left out", signed=True, outlined=sure,
                        pattern="{:+.1f}")  # fmt: skip
