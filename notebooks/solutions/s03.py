"""Answers of notebook 03: right ones, and plausible wrong ones that each meet their own hint."""


def shares(rows, temperature):
    powers = [n**temperature for n in rows]
    return [power / sum(powers) for power in powers]


def rows_of(batch, rank, world):
    return range(batch * rank // world, batch * (rank + 1) // world)


SOLUTIONS = {"03.1": shares, "03.2": 300 * 1024 * 0.02 / 1500, "03.3": rows_of}
WRONG = {
    "03.1": [
        lambda rows, temperature: [n**temperature for n in rows],
        lambda rows, temperature: [n / sum(rows) for n in rows],
        lambda rows, temperature: shares(rows, 1 / max(temperature, 1e-3)) if temperature else [1 / 3] * 3,
        lambda rows, temperature: [(n / sum(rows)) ** temperature for n in rows],
        lambda rows, temperature: [n * temperature / sum(rows) for n in rows],
    ],
    "03.2": [300 * 0.02 / 1500, 1500 / (300 * 1024 * 0.02), 300 * 1024 / 1500, 300 * 1024 * 0.02, 5],
    "03.3": [
        lambda batch, rank, world: range(rank * (batch // world), (rank + 1) * (batch // world)),  # loses the rest
        lambda batch, rank, world: range(rank * -(-batch // world), (rank + 1) * -(-batch // world)),  # past the end
        lambda batch, rank, world: range(rank, batch, world),  # strided
        lambda batch, rank, world: range(  # all of the rest for the last rank
            rank * (batch // world), batch if rank == world - 1 else (rank + 1) * (batch // world)),
        lambda batch, rank, world: range(batch),  # everybody everything
    ],
}
