"""Pictures of the paper's tables: bars per language, and a language's share of training against its score.

Each takes plain rows, as `evaluate.verdicts` and `evaluate.paper` return them, and gives a matplotlib `Figure`.
Bars stand by script, then by family, so that a weakness of one script or of one family shows as a dip.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from babel.core import get_global
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from me5lib.evaluate.paper import languages
from me5lib.lessons.figures import COLOURS, GREY, canvas, codes_across, legend_below

UNKNOWN = ("unknown", "unknown")
_FAMILIES = {"ha": "Chadic", "so": "Cushitic", "yo": "Volta-Niger", "zu": "Bantu"}  # of synthetic-v1, not of Tatoeba
_TAGS = {"latn": "Latin", "cyrl": "Cyrillic", "arab": "Arabic"}
_WIDEST = 45  # languages in one panel, for codes that can be read on a page
_NARROW = 3  # a family of fewer bars gets no name of its own below the panel
_NAMED = 6  # dots below a script's name, else there is no room for it


class LanguageBar(NamedTuple):
    """One language: what is published and what was measured, per cent; NaN where there is none."""

    language: str
    script: str
    family: str  # the branch of an Indo-European language, else the family
    expected: float
    measured: float
    verdict: str

    @property
    def height(self) -> float:
        """What was measured; the published value where nothing was."""
        return self.expected if np.isnan(self.measured) else self.measured

    @property
    def colour(self) -> str:
        """By the verdict; grey where nothing was measured."""
        return {"agrees": COLOURS[0], "differs": COLOURS[1], "not published": COLOURS[5]}.get(self.verdict, GREY)


def bars(rows: pd.DataFrame) -> list[LanguageBar]:
    """The languages of a comparison's rows (one task, one metric), by script, family and the published score.

    Latin comes first, the other scripts after it, those of most languages first. Averages are left out.
    """
    found = [LanguageBar(language, *kin(language), row.expected, row.measured, row.verdict)
             for row in rows.itertuples() if not str(row.subset).startswith("mean of")
             for language in (str(row.subset).removesuffix("-eng"),)]
    size = {script: sum(bar.script == script for bar in found) for script in {bar.script for bar in found}}
    return sorted(found, key=lambda bar: (bar.script != "Latin", -size[bar.script], bar.script, bar.family,
                                          -bar.height, bar.language))


def kin(language: str) -> tuple[str, str]:
    """Script and family (the branch, of Indo-European) of a language by its ISO 639 or CLDR code; else `UNKNOWN`.

    Of a language that `reference.languages` lacks, CLDR still knows the script: Latin, or its code of four letters.
    """
    table = languages()
    code = language if language in table.index else next(iter(table.index[table["short"] == language]), "")
    if code:
        return table.loc[code, "script"], table.loc[code, "branch"]
    base, _, tag = language.partition("-")
    if tag:  # as sr-latn, zh-hant
        script, family = kin(base)
        return _TAGS.get(tag, script), family
    likely = get_global("likely_subtags").get(language, "").split("_")[1:2]
    return (likely[0].replace("Latn", "Latin"), _FAMILIES.get(language, UNKNOWN[1])) if likely else UNKNOWN


def language_bars(rows: pd.DataFrame, title: str, score: str) -> Figure:
    """A bar per language of a comparison (one task, one metric): measured, with the published value as a black mark.

    Orange where the two differ by more than the tolerance. Grey bars are published values that were not measured. Over
    45 languages take several panels, Latin script first.
    """
    found = bars(rows)
    if not found:
        raise ValueError("no language to draw: give the rows of one task")
    latin = sum(bar.script == "Latin" for bar in found)
    halves = [found] if len(found) <= _WIDEST else [found[:latin], found[latin:]]
    parts = [half[start:end] for half in halves for start, end in _panels(len(half))]
    figure, axes = canvas(9.6, 0.9 + 3.5 * len(parts), rows=len(parts), squeeze=False, sharey=True)
    for axis, part in zip(axes[:, 0], parts, strict=True):
        _panel(axis, part, score)
    axes[0, 0].set_title(title, fontsize=10, loc="left")
    kinds = {COLOURS[0]: "measured, agrees", COLOURS[1]: "measured, differs", COLOURS[5]: "measured, not published",
             GREY: "published, not measured"}
    marks = [Patch(color=colour, label=name) for colour, name in kinds.items() if colour in {b.colour for b in found}]
    marks.append(Line2D([], [], color="black", marker="_", linestyle="none", markeredgewidth=1.6, label="published"))
    legend_below(figure, len(marks), handles=marks, fontsize=8)
    return figure


def _panels(many: int) -> list[tuple[int, int]]:
    """Where each panel of `many` languages begins and ends: none of more than `_WIDEST`, all about as wide."""
    ends = np.linspace(0, many, math.ceil(many / _WIDEST) + 1).round().astype(int).tolist()
    return list(pairwise(ends))


def language_deltas(spans: Mapping[str, tuple[float, float, float]], label: str) -> Figure:
    """A dot per language pair with its interval (value, low, high), by script, then by value; orange where the interval
    leaves zero out. Above each script of `_NAMED` languages stands its mean, above all others theirs."""
    scripts = {pair: kin(pair.removesuffix("-eng"))[0] for pair in spans}
    size = Counter(scripts.values())
    group = {pair: script if size[script] >= _NAMED else "other scripts" for pair, script in scripts.items()}
    places = sorted(spans, key=lambda pair: (group[pair] == "other scripts", -size[scripts[pair]], scripts[pair],
                                             spans[pair][0]))
    values, low, high = np.array([spans[pair] for pair in places]).T
    colours = np.where((low > 0) | (high < 0), COLOURS[1], COLOURS[0])
    panels = _panels(len(places))
    figure, axes = canvas(9.6, 0.6 + 2.6 * len(panels), rows=len(panels), squeeze=False, sharey=True)
    for axis, (start, end) in zip(axes[:, 0], panels, strict=True):
        axis.vlines(range(start, end), low[start:end], high[start:end], colors=colours[start:end], linewidth=1.2,
                    alpha=0.7)
        axis.scatter(range(start, end), values[start:end], s=12, c=colours[start:end], zorder=3)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(start, end), [pair.removesuffix("-eng") for pair in places[start:end]], rotation=90,
                        fontsize=8)
        axis.set_xlim(start - 0.8, end - 0.2)
        axis.grid(False, axis="x")
    for name in dict.fromkeys(group[pair] for pair in places):
        own = [i for i, pair in enumerate(places) if group[pair] == name]
        axis = next(axis for axis, (_, end) in zip(axes[:, 0], panels, strict=True) if own[0] < end)
        axis.text(own[0], 1.01, f"{name} {values[own].mean():+.1f}", fontsize=8, transform=axis.get_xaxis_transform())
        axis.axvline(own[0] - 0.5, color=GREY, linewidth=0.6, linestyle=":")
    figure.supylabel(label, fontsize=10)
    return figure


def share_against_score(shares: Mapping[str, float], scores: Mapping[str, float], x: str, y: str) -> Figure:
    """A dot per language that has both: its share of the training rows (logarithmic) against its score or gain.

    `x` and `y` say what the axes are; Latin script and others have marks of their own. The title gives Spearman's ρ
    over the languages: failure signature "poor in some languages" asks whether the data explains the score. Languages
    without a training row have no place on a logarithmic axis and are named below it.
    """
    from scipy.stats import spearmanr

    both = [language for language in scores if shares.get(language, 0) > 0]
    if len(both) < 3:
        raise ValueError(f"{len(both)} languages have a share and a score: too few to set one against the other")
    figure, axis = canvas(8.0, 4.6)
    for label, colour, mark, latin in (("Latin script", COLOURS[0], "o", True), ("others", COLOURS[1], "^", False)):
        part = [language for language in both if (kin(language)[0] == "Latin") == latin]
        axis.plot([shares[own] for own in part], [scores[own] for own in part], mark, color=colour, label=label,
                  markersize=5, linestyle="none")
    for language in both:
        axis.annotate(language, (shares[language], scores[language]), (3, 3), textcoords="offset points", fontsize=7)
    absent = sorted(set(scores) - set(both))
    more = f" and {len(absent) - 20} more" if len(absent) > 20 else ""
    not_trained = f"\nnot trained on: {' '.join(absent[:20])}{more}" if absent else ""
    rho = spearmanr([shares[own] for own in both], [scores[own] for own in both]).statistic
    axis.set_title(f"{len(both)} languages, Spearman's ρ = {rho:+.2f}", fontsize=10, loc="left")
    axis.set(xscale="log", xlabel=x + not_trained, ylabel=y)
    narrow = max(shares[own] for own in both) < 2.5 * min(shares[own] for own in both)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axis.xaxis.set_minor_formatter(lambda share, _: f"{100 * share:.3g} %" if narrow else "")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _panel(axis: Axes, part: list[LanguageBar], score: str) -> None:
    """Bars, marks, and brackets with the names of scripts and families; a group too narrow for its name has it below,
    behind the code of its first language."""
    axis.bar(range(len(part)), [bar.height for bar in part], 0.78, color=[bar.colour for bar in part])
    axis.plot(range(len(part)), [bar.expected for bar in part], "_", color="black", markersize=6, markeredgewidth=1.6)
    labels = [bar.language for bar in part]
    for depth, high, colour in ((1, 110, "black"), (2, 102.5, "#555555")):
        start = 0
        for names, group in groupby([(bar.script, bar.family)[:depth] for bar in part]):
            n, name = len(list(group)), names[-1]
            axis.plot([start - 0.4, start + n - 0.6], [high - 2.2] * 2, color=colour, linewidth=0.9)
            if n >= _NARROW and len(name) < 130 * n / len(part):
                axis.text(start + (n - 1) / 2, high - 1.6, name, ha="center", va="bottom", fontsize=7, color=colour)
            elif depth == 1 or labels[start] == part[start].language:
                labels[start] += f" · {name}"
            start += n
    codes_across(axis, labels, 7)
    axis.set(xlim=(-0.7, len(part) - 0.3), ylim=(0, 117), ylabel=score, yticks=range(0, 101, 20))
    axis.grid(False, axis="x")
