"""The `me5` command: options only; the work is done in the rooms that the commands name."""

from __future__ import annotations


def split_names(text: str) -> list[str]:
    """The names of an option that takes several, as a,b,c; blanks around them and empty ones are none."""
    return [name.strip() for name in text.split(",") if name.strip()]
