"""What a builder of hub rows is told beside the row, and what it gives when a row makes no pair."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Row = Mapping[str, Any]  # as the hub has it: columns of `cards.Hub.columns`


class Origin(NamedTuple):
    """Where a row comes from."""

    card: str
    language: str = ""  # ISO 639; "" where the row itself tells it
    options: Mapping[str, Any] = MappingProxyType({})  # of the card's hub entry


class Drop(NamedTuple):
    """Why a row, or a part of it, gives no pair: "empty title", "score below 1"."""

    reason: str
