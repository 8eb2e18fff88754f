"""Data to look at: sources and languages of a mixture, its batches, its near-copies, and the cards of the sources.

Figures are made as in `figures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from me5lib.data.cards import Card
from me5lib.lessons.figures import COLOURS, GREY, canvas, codes_across
from me5lib.pairs import Pair


def source_shares(mixtures: dict[str, dict[str, float]]) -> Figure:
    """A panel per mixture (title → source → amount): horizontal bars of the shares, largest first."""
    figure, axes = canvas(4.6 * len(mixtures), 3.4, columns=len(mixtures), squeeze=False)
    for axis, (title, amounts), colour in zip(axes[0], mixtures.items(), COLOURS, strict=False):
        total = sum(amounts.values())
        shares = sorted(((amount / total, source) for source, amount in amounts.items()), reverse=True)
        bars = axis.barh([source for _, source in shares], [share for share, _ in shares], color=colour)
        axis.bar_label(bars, fmt=lambda share: f"{share:.1%}", fontsize=8, padding=2)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="share of the pairs", xlim=(0, 1.25 * shares[0][0]))
    return figure


def language_shares(rows: dict[str, int], curves: dict[str, list[float]]) -> Figure:
    """Shares of the languages in `rows` (most rows first), one line per entry of `curves`, on a logarithmic scale."""
    figure, axis = canvas(9.0, 4.0)
    for (label, shares_of), style in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        axis.plot(range(len(rows)), shares_of, style, marker="o", markersize=3, label=label)
    codes_across(axis, rows, 8 if len(rows) < 50 else 5)
    axis.set(yscale="log", ylabel="share of the source's pairs", xlabel="languages, most rows first")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.2g} %")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False)
    return figure


def batch_sources(panels: dict[str, list[dict[str, int]]]) -> Figure:
    """A panel per entry: one stacked bar per step, rows of each source; steps in order, a colour and hatching each."""
    figure, axes = canvas(9.0, 1.7 * len(panels), rows=len(panels), squeeze=False, sharex=True)
    sources = sorted({source for steps in panels.values() for step in steps for source in step})
    colours = [*COLOURS, GREY]
    for axis, (title, steps) in zip(axes[:, 0], panels.items(), strict=True):
        bottom = [0] * len(steps)
        for i, source in enumerate(sources):
            height = [step.get(source, 0) for step in steps]
            axis.bar(range(len(steps)), height, 0.9, bottom, color=colours[i % len(colours)], label=source,
                     hatch=("", "///", "...", "\\\\\\", "xxx", "---")[i % 6], edgecolor="white", linewidth=0)
            bottom = [b + h for b, h in zip(bottom, height, strict=True)]
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel("rows")
    axes[-1, 0].set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def nearest_trained(similarity: dict[str, list[float]], near: float) -> Figure:
    """Histograms of each held-out string's similarity to the nearest trained one, per split; `near` is the line."""
    figure, axis = canvas(8.0, 3.6)
    axis.hist(list(similarity.values()), [i / 20 for i in range(21)], label=list(similarity), density=False,
              weights=[[1 / max(len(values), 1)] * len(values) for values in similarity.values()])
    axis.axvline(near, color="black", linestyle="--", linewidth=1, label=f"near-copy from {near:g} on")
    axis.set(xlabel="similarity to the nearest trained string (Jaccard, character trigrams)",
             ylabel="share of held-out strings")
    axis.legend(frameon=False)
    return figure


def card_page(card: Card) -> str:
    """One card as HTML: what it says, field by field."""
    facts = {"licence": card.licence, "translated by": card.translated_by, "a pair is": card.pair,
             "the paper's words": card.paper.pair if card.paper else "", "stands in": card.stand_in,
             "prefixes": f"{card.query_prefix!r} and {card.passage_prefix!r}", "instruction": card.instruction or "",
             "filters": ", ".join(card.filters)}
    lines = [f"<h4>{escape(card.title)}</h4>", "<table>"]
    lines += [f"<tr><td><b>{name}</b></td><td>{escape(text)}</td></tr>" for name, text in facts.items() if text]
    for hub in card.hub:
        columns = ", ".join(f"<code>{escape(name)}: {escape(kind)}</code>" for name, kind in hub.columns.items())
        lines.append(f"<tr><td><b>{escape(hub.repository)}</b></td><td>{columns}</td></tr>")
    lines.append("</table>")
    for title, texts in (("Ours, for the paper does not say", [f"{k}: {v}" for k, v in card.ours.items()]),
                         ("Known faults", card.faults)):
        if texts:
            lines.append(f"<b>{title}</b><ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>")
    return "\n".join(lines)


def card_pages(cards: Iterable[Card]) -> str:
    """Cards as HTML, each folded under its name and what the paper draws of it."""
    found = []
    for card in cards:
        drawn = f": {card.paper.rows:,} rows in the paper" if card.paper and card.paper.rows else ""
        found.append(f"<details><summary>{card.name}{drawn}</summary>{card_page(card)}</details>")
    return "\n".join(found)


def samples(pairs: Sequence[Pair], width: int = 70) -> pd.DataFrame:
    """Pairs as a table, long texts cut at `width` characters."""
    columns = ["source", "language", "query", "passage"]
    return pd.DataFrame(pairs)[columns].map(lambda text: text if len(text) <= width else text[: width - 1] + "…")
