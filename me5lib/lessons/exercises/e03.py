"""Checkers of notebook 03: language shares, passes over a small language, rows of a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from me5lib.lessons.exercises import attempt, exercise, hint_for, number

ROWS = (9000, 900, 100)

number("03.2", 300 * 1024 * 0.02 / 1500, {  # 4.096
    300 * 0.02 / 1500: "those are batches per row: a batch has 1,024 pairs",
    1500 / (300 * 1024 * 0.02): "the other way round: pairs drawn, divided by rows there are",
    300 * 1024 / 1500: "that would be so if every pair came from this language: its share is 2 %",
    300 * 1024 * 0.02: "so many pairs are drawn; how often does that go through 1,500 rows?",
}, "pairs drawn = batches × batch × share; passes = pairs drawn / rows", 0.03)


@exercise("03.1")
def language_shares(answer: Callable[[Sequence[int], float], Sequence[float]]) -> str | None:
    """`shares(rows, temperature)`: rows ** temperature, divided by their sum."""
    found = [list(attempt(answer, ROWS, temperature)) for temperature in (0.5, 1.0, 0.0)]
    powers, whole = [n**0.5 for n in ROWS], [n / sum(ROWS) for n in ROWS]
    other = "test it: temperature 1 must give the shares of the rows, temperature 0 equal shares, and all sum to 1"
    hint = hint_for(found[0], [power / sum(powers) for power in powers], [
        (powers, "these are powers, not shares: divide them by their sum"),
        (whole, "that is the share of the rows at any temperature: where does the exponent come in?"),
        ([n**2 / sum(m**2 for m in ROWS) for n in ROWS],
         "you raised to 1 / temperature, which makes large languages larger: here the exponent is the temperature"),
        ([share**0.5 for share in whole], "take the power first and normalise last: these do not sum to 1"),
    ], other)
    return hint or hint_for(found[1:], [whole, [1 / 3] * 3], [], other)


@exercise("03.3")
def rows_of_a_rank(answer: Callable[[int, int, int], Sequence[int]]) -> str | None:
    """`rows_of(batch, rank, world)`: contiguous, in order, every row once, sizes that differ by one at most."""
    for batch, world in ((8, 2), (10, 4), (1024, 3), (5, 8)):
        parts = [list(attempt(answer, batch, rank, world)) for rank in range(world)]
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
