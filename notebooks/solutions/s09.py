"""Answers to the exercises of notebook 09, and plausible mistakes: each meets its own hint."""

SOLUTIONS = {
    "09.1": lambda task, document: document,
    "09.2": 1 / 3,
    "09.3": lambda same_territory, same_instruction: not (same_territory and same_instruction),
}

WRONG = {
    "09.1": [
        lambda task, document: f"Instruct: {task}\nQuery: {document}",
        lambda task, document: f"passage: {document}",
        lambda task, document: f"query: {document}",
    ],
    "09.2": [0.5, 2 / 3, 1.0, 0.9],
    "09.3": [
        lambda same_territory, same_instruction: not same_territory,
        lambda same_territory, same_instruction: True,
        lambda same_territory, same_instruction: same_territory and not same_instruction,
    ],
}
