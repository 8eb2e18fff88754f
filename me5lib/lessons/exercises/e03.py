"""Checkers of notebook 03: language shares, passes over a small language, rows of a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from me5lib.lessons.exercises import ask, close, exercise

_ROWS = (9000, 900, 100)


def _same(found: Sequence[float], expected: Sequence[float]) -> bool:
    return len(found) == len(expected) and all(close(a, b) for a, b in zip(found, expected, strict=True))


@exercise("03.1")
def language_shares(answer: Callable[[Sequence[int], float], Sequence[float]]) -> str | None:
    """`shares(rows, temperature)`: rows ** temperature, divided by their sum."""
    half, whole, none = (list(ask(answer, _ROWS, temperature)) for temperature in (0.5, 1.0, 0.0))
    powers = [n**0.5 for n in _ROWS]
    if _same(half, powers):
        return "these are powers, not shares: divide them by their sum"
    if _same(half, [n / sum(_ROWS) for n in _ROWS]):
        return "that is the share of the rows at any temperature: where does the exponent come in?"
    if _same(half, [n**2 / sum(m**2 for m in _ROWS) for n in _ROWS]):
        return "you raised to 1 / temperature, which makes large languages larger: here the exponent is the temperature"
    if _same(half, [(n / sum(_ROWS)) ** 0.5 for n in _ROWS]):
        return "take the power first and normalise last: these do not sum to 1"
    if not (_same(half, [p / sum(powers) for p in powers]) and _same(whole, [n / sum(_ROWS) for n in _ROWS])
            and _same(none, [1 / 3] * 3)):
        return "test it: temperature 1 must give the shares of the rows, temperature 0 equal shares, and all sum to 1"
    return None


@exercise("03.2")
def passes(answer: float) -> str | None:
    """300 batches of 1,024 pairs, a share of 2 %, 1,500 rows: 4.096 passes."""
    exact = 300 * 1024 * 0.02 / 1500
    if close(answer, 300 * 0.02 / 1500):
        return "those are batches per row: a batch has 1,024 pairs"
    if close(answer, 1 / exact):
        return "the other way round: pairs drawn, divided by rows there are"
    if close(answer, 300 * 1024 / 1500):
        return "that would be so if every pair came from this language: its share is 2 %"
    if close(answer, 300 * 1024 * 0.02):
        return "so many pairs are drawn; how often does that go through 1,500 rows?"
    return None if close(answer, exact, 0.03) else "pairs drawn = batches × batch × share; passes = pairs drawn / rows"


@exercise("03.3")
def rows_of_a_rank(answer: Callable[[int, int, int], Sequence[int]]) -> str | None:
    """`rows_of(batch, rank, world)`: contiguous, in order, every row once, sizes that differ by one at most."""
    for batch, world in ((8, 2), (10, 4), (1024, 3), (5, 8)):
        parts = [list(ask(answer, batch, rank, world)) for rank in range(world)]
        joined = [row for part in parts for row in part]
        sizes = [len(part) for part in parts]
        case = f"batch {batch}, world {world}"
        if len(set(joined)) < len(joined):
            return f"{case}: two ranks hold the same row"
        if joined and max(joined) >= batch:
            return f"{case}: row {max(joined)} is not in the batch; its last is {batch - 1}"
        if len(joined) < batch:
            return f"{case}: {batch - len(joined)} rows belong to no rank"
        if joined != list(range(batch)):
            return f"{case}: joined in rank order the parts are not in the batch's order"
        if max(sizes) - min(sizes) > 1:
            return f"{case}: the sizes are {sizes}: share the remainder out, one row a rank"
    return None
