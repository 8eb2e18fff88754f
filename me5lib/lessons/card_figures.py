"""Data cards to look at: a table of them, and a widget that opens one. The table is the widget's static twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from me5lib.data.cards import UNVERIFIED, Card

if TYPE_CHECKING:
    import pandas


def table(cards: Mapping[str, Card]) -> pandas.DataFrame:
    """Hub sources in the order of the paper's tables: what the paper draws, from where here, and how sure we are."""
    import pandas as pd

    ordered = sorted(cards.values(), key=lambda card: (card.paper.table or 9, -(card.paper.rows or 0), card.name))
    rows = [{
        "table": card.paper.table or "instruct",
        "pairs in the paper": f"{card.paper.rows:,}" if card.paper.rows else "not published",
        "taken from": ", ".join(dict.fromkeys(hub.repository for hub in card.hub)),
        "stands in": "yes" if card.stand_in else "",
        "languages": len(card.languages),
        "columns read on a page": f"{sum(hub.read_from != UNVERIFIED for hub in card.hub)} of {len(card.hub)}",
        "choices of ours": len(card.ours),
    } for card in ordered]
    return pd.DataFrame(rows, index=[card.name for card in ordered])


def page(card: Card) -> str:
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
    for title, said in (("Ours, for the paper does not say", [f"{k}: {v}" for k, v in card.ours.items()]),
                        ("Known faults", card.faults)):
        if said:
            lines.append(f"<b>{title}</b><ul>{''.join(f'<li>{escape(text)}</li>' for text in said)}</ul>")
    return "\n".join(lines)


def browser(cards: Mapping[str, Card], first: str = ""):
    """An ipywidgets box: choose a card, read it. Its static twins are `table`, and `page` of one card."""
    import ipywidgets

    choice = ipywidgets.Dropdown(options=list(cards), value=first or next(iter(cards)), description="card")
    text = ipywidgets.HTML()

    def show(_change: object = None) -> None:
        """Print the card that is chosen."""
        text.value = page(cards[choice.value])

    choice.observe(show, "value")
    show()
    return ipywidgets.VBox([choice, text])


def samples(pairs: Sequence[tuple[str, str, str, str]], width: int = 70) -> pandas.DataFrame:
    """Pairs (query, passage, source, language) as a table, long texts cut at `width` characters."""
    import pandas as pd

    cut = [[text if len(text) <= width else text[: width - 1] + "…" for text in pair[:2]] for pair in pairs]
    rows = [{"source": pair[2], "language": pair[3], "query": q, "passage": p}
            for pair, (q, p) in zip(pairs, cut, strict=True)]
    return pd.DataFrame(rows)
