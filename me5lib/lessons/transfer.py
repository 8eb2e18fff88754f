"""What each language family gives the others: stage 1 from random weights with one family left out, in turn.

Every arm takes as many steps, of as large batches, from the sources in the same proportions. What a family leaves goes
to all other languages, so that each arm has a control of its own that leaves out random languages instead, of about as
many drawn rows and of none of `FAMILIES`: both keep every other family that is tested. English, one side of every
translation, stays; the vocabulary is the full mixture's in all arms. A family here is a branch of Indo-European, or
else the family.
Cost: pilot and full run together some 40 minutes on one thread.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from me5lib.config import Scale
from me5lib.data.mixture import Mixture
from me5lib.device import best_device
from me5lib.evaluate import baselines, heldout, stats
from me5lib.evaluate.heldout import Search, short_code
from me5lib.io import Me5Error
from me5lib.lessons.figures import number_table
from me5lib.lessons.instructed import shown
from me5lib.lessons.labs import Arm, Lab
from me5lib.lessons.paper_figures import UNKNOWN, kin
from me5lib.lessons.tune import train_on
from me5lib.model.encoder import Encoder
from me5lib.train import stages
from me5lib.train.stages import card_prefixes

# Ours: those of which three languages or more have `STRINGS` held-out strings (Italic: all of them Romance).
FAMILIES = ("Italic", "Slavic", "Germanic", "Uralic", "Turkic", "Indo-Aryan")
FULL, ELSEWHERE = "full", "elsewhere"
STRINGS = 100  # ours: of every language that is tested, and its pool


@functools.cache
def family_of(language: str) -> str:
    """Which of `FAMILIES` a language is of, by its code; "" for none, and for English, which is never left out.

    By `languages.csv`, else by the groups that mteb gives with its languages (Glottolog's; a creole: its lexifier's).
    """
    from mteb.languages import ISO_TO_FAM

    family = kin(language)[1]
    if family == UNKNOWN[1]:
        base = language.partition("-")[0]
        above = {name for code, groups in ISO_TO_FAM.items() if base in (code, short_code(code))
                 for name in groups.values()}  # fmt: skip
        family = next((name for name in FAMILIES if name in above), "")
    return family if family in FAMILIES and language != "en" else ""


def random_languages(drawn: Mapping[str, int], rows: int, seed: Sequence[int]) -> set[str]:
    """Languages in a random order, each taken if its `drawn` rows still fit into `rows`."""
    taken, left = set(), rows
    for language in np.random.default_rng(seed).permutation(sorted(drawn)).tolist():
        if drawn[language] <= left:
            taken.add(language)
            left -= drawn[language]
    return taken


class Transfer(Lab):
    """From random weights on pairs alone; the arms differ in which languages these are of."""

    question = ("what does each language family give the others in stage 1? Each is left out, against random languages "
                "of as many drawn rows; primary is what that does to its own languages, secondary all else")
    metrics = ("all families", *FAMILIES)
    positive = ("random for Slavic", "without Slavic", "Slavic")
    trains = ("train",)
    values = {"steps": 70, "warmup": 7}  # ours: half a minute a model on one thread
    seeds = 3

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """The full mixture twice; and without each family, against without as much of other languages."""
        pairs = ((Arm(f"without {family}", f"random for {family}", "dropped", own=family),
                  Arm(f"random for {family}", role="control", own=family)) for family in FAMILIES)  # fmt: skip
        return Arm(FULL), Arm(f"{FULL} again", FULL, "A/A"), *(arm for pair in pairs for arm in pair)

    @classmethod
    def settings(cls, scale: Scale) -> Scale:
        """With as many held-out strings of a language as the families' languages have. Raises `Me5Error` for a start
        that has seen every family."""
        if scale.model.backbone != "random":
            raise Me5Error("transfer starts from random weights, others have seen every family: choose --scale random")
        least = min(scale.evaluate.heldout_strings, STRINGS)
        return dataclasses.replace(super().settings(scale),
                                   evaluate=dataclasses.replace(scale.evaluate, heldout_strings=least))  # fmt: skip

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """By family, every language's held-out strings among the English ones; first all of them together."""
        found: dict[str, list[Search]] = {family: [] for family in FAMILIES}
        for language, (english, texts) in self.corpus.task("heldout").sets.items():
            if family := family_of(language):
                found[family].append(Search(texts, english, np.eye(len(texts), dtype=bool),
                                            card_prefixes("homeassistant"), english, language=language))  # fmt: skip
        return {self.metrics[0]: [test for own in found.values() for test in own], **found}

    def left_out(self, arm: Arm, seed: int) -> dict[str, int]:
        """The languages that an arm does not see, with the rows that the full mixture draws of them."""
        drawn: Counter[str] = Counter()
        for stream, rows in self.corpus.mixture(self.scale, seed).totals().items():
            drawn[stream.language] += rows
        found = {language for language in drawn if arm.own and family_of(language) == arm.own}
        if arm.role == "control":
            others = {language: drawn[language] for language in drawn if language != "en" and not family_of(language)}
            found = random_languages(others, sum(drawn[language] for language in found),
                                     (seed, FAMILIES.index(arm.own)))  # fmt: skip
        return {language: drawn[language] for language in sorted(found)}

    def encoder(self, arm: Arm, seed: int) -> Encoder:
        """Stage 1 on what the arm sees, each source with the steps that it has in the full mixture."""
        full, out = self.corpus.mixture(self.scale, seed), self.left_out(arm, seed)
        shards = {key: shard for key, shard in full.shards.items() if key[1] not in out}
        mixture = Mixture(shards, steps=full.steps, batch=full.batch_size, seed=seed, temperature=full.temperature,
                          homogeneous=full.homogeneous, weights={source: full.weights[source] for source, _ in shards})
        encoder = stages.initial_encoder(self.scale, seed, self.base / "work", self.corpus).to(best_device())
        return train_on(encoder, mixture.batch, self.scale.train, seed, card_prefixes, progress=False)

    def beside(self, arms: Sequence[Arm], records: Mapping[Any, Any], run: Callable[..., Any]) -> dict[str, Any]:
        """`matrix`: what leaving a family out does to each one, and to all but its own ("elsewhere"), against its
        control and against the full mixture: as `instructed.shown`, and the interval where languages are drawn in place
        of meanings. `left out`: languages and rows by arm and seed; `tested`: languages; `lexical`: letters alone."""
        first, names = self.metrics[0], [arm.name for arm in arms]
        asked = [(test.language, meaning) for test in self.tests[first] for meaning in test.meanings]
        languages, meanings = map(np.array, zip(*asked, strict=True))
        family, seeds = np.array([family_of(code) for code in languages]), sorted({seed for seed, _ in records})
        stack = np.array([[records[seed, name]["scores"][first] for seed in seeds] for name in names])
        matrix, one = [], dict(zip(names, np.eye(len(names)), strict=True))
        for tested in FAMILIES:
            for place, part in ((tested, family == tested), (ELSEWHERE, family != tested)):
                own = stack[:, :, part]
                draws, by_language = (stats.resampled(own, about[part]) for about in (meanings, languages))
                for arm in arms:
                    if arm.role == "dropped" and (place == tested or arm.own == tested):
                        for other in (arm.against, FULL):
                            apart = one[arm.name] - one[other]
                            ends = stats.interval(apart @ by_language, 0)
                            matrix.append({"dropped": arm.own, "tested": place, "against": other,
                                           **shown(apart, draws, own), "languages": [ends.low, ends.high]})  # fmt: skip
        return {"matrix": matrix, "lexical": {name: _lexical(tests) for name, tests in self.tests.items()},
                "tested": {name: [test.language for test in self.tests[name]] for name in FAMILIES},
                "left out": {f"{arm.name}, seed {seed}": self.left_out(arm, seed)
                             for arm in arms if arm.own for seed in seeds}}  # fmt: skip

    @classmethod
    def lines(cls, results: Mapping[str, Any]) -> list[str]:
        """What each family's absence does elsewhere, and the cells off the diagonal that are decided."""
        control = [row for row in results["matrix"] if row["against"] != FULL]
        lines = [f"without {row['dropped']}, all other families: {row['mean']:+.3f} ({row['low']:+.3f} to "
                 f"{row['high']:+.3f}; over languages {row['languages'][0]:+.3f} to {row['languages'][1]:+.3f})"
                 for row in control if row["tested"] == ELSEWHERE]  # fmt: skip
        cells = [(arm["own"], tested, apart) for arm in results["arms"] if arm.get("role") == "dropped"
                 for tested, apart in arm["difference"].items() if tested in FAMILIES and tested != arm["own"]]
        told = [f"{tested} without {own} ({apart['mean']:+.3f})" for own, tested, apart in cells
                if apart["verdict"] in ("ahead", "behind")]  # fmt: skip
        return [*lines, f"of {len(cells)} other families' cells {len(told)} are told apart from the control: "
                        f"{', '.join(told) or 'none'}"]  # fmt: skip


def _lexical(tests: Sequence[Search]) -> float:
    """Mean reciprocal rank of trigrams of letters, which learn nothing."""
    sides = ([baselines.Counts(baselines.count_trigrams(side)) for side in test[:2]] for test in tests)
    ranks = [heldout.reciprocal_ranks(baselines.tfidf_cosine(*pair), test.relevant)
             for pair, test in zip(sides, tests, strict=True)]  # fmt: skip
    return float(np.concatenate(ranks).mean())


def heat_map(results: Mapping[str, Any]) -> Figure:
    """A cell for each family left out (down) and tested (across): points of mean reciprocal rank, minus the control's;
    framed where they are told apart by Holm's p."""
    apart = [arm["difference"] for arm in results["arms"] if arm.get("role") == "dropped"]
    cells = [[row[family] for family in FAMILIES] for row in apart]
    sure = [(i, j) for i, row in enumerate(cells) for j, cell in enumerate(row)
            if cell["verdict"] in ("ahead", "behind")]  # fmt: skip
    return number_table([[100 * cell["mean"] for cell in row] for row in cells],
                        [f"without {family}" for family in FAMILIES], list(FAMILIES), "points of mean reciprocal rank, "
                        "minus random languages left out", signed=True, outlined=sure, pattern="{:+.1f}")
