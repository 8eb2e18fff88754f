"""Checkers of notebook 10: prefixes, weighted F1, the margin over a baseline, verdicts, changes, roundings."""

from __future__ import annotations

from collections.abc import Callable

from me5lib.lessons.exercises import attempt, close, exercise, hint_for, number

Q, P = "query: ", "passage: "


# Chosen 0, 0, 2 for queries 0, 1, 2. F1 of document 0: 2 · 1 / (1 + 2) = 2/3; of 1: 0; of 2: 1
number("10.2", 5 / 9, {
    2 / 3: "that is the accuracy (and the recall): a document that is chosen twice must cost precision too",
    1 / 2: "that is the mean precision (1/2, 0, 1): take F1 of each document, then the mean",
    5 / 6: "document 1 was never chosen, so its F1 is 0, but it still counts in the mean",
    4 / 7: "F1 of the mean precision and the mean recall is another number: the mean comes last",
}, "F1 of a document is 2 · right / (times it is due + times it was chosen)")


@exercise("10.1")
def prefixes(answer: Callable[[str, str], tuple[str, str]]) -> str | None:
    """`prefixes(task_type, name)` → (before queries, before documents) under the paper's protocol."""
    found = {key: tuple(attempt(answer, *key)) for key in (
        ("Retrieval", "SciFact"), ("STS", "STSBenchmark"), ("BitextMining", "Tatoeba"),
        ("Reranking", "AskUbuntuDupQuestions"), ("Retrieval", "QuoraRetrieval"),
        ("Classification", "Banking77Classification"),
    )}  # fmt: skip
    scifact = found["Retrieval", "SciFact"]
    if scifact == (P, Q):
        return "the sides are swapped: queries come first in the pair"
    if scifact != (Q, P):
        return f"Retrieval, SciFact should be {(Q, P)}, with the colon and the space; yours is {scifact}"
    if found["STS", "STSBenchmark"] == ("", ""):
        return "no prefix outside retrieval is what mteb does today; the paper puts `query: ` on every text there"
    if found["Reranking", "AskUbuntuDupQuestions"] == (Q, P):
        return "mteb hands a reranking over as a retrieval, but the authors' script puts `query: ` on both sides of it"
    if found["Retrieval", "QuoraRetrieval"] == (Q, P):
        return "Quora's documents are questions too: look at the name, not only at the type"
    wrong = [key for key, value in found.items() if key != ("Retrieval", "SciFact") and value != (Q, Q)]
    return f"{wrong[0][0]}, {wrong[0][1]}: `query: ` on both sides" if wrong else None


@exercise("10.3")
def margin(answer: Callable[[dict, dict], float]) -> str | None:
    """`margin(model, baselines)`: mean of model − the baseline of the higher mean, over languages that both have."""
    model = {"de": 0.9, "fr": 0.7, "ru": 0.5, "xx": 0.1}
    rows = {"trigrams": {"de": 0.8, "fr": 0.5, "ru": 0.1}, "memory": {"de": 0.6, "fr": 0.6, "ru": 0.5}}
    found = attempt(answer, dict(model), {name: dict(row) for name, row in rows.items()})
    right = (0.3 + 0.1 + 0.0) / 3
    return hint_for(found, right, [
        (-right, "the sign: a model that is ahead has a positive margin"),
        ((0.1 + 0.2 + 0.4) / 3, "that is the margin over the baseline of the lower mean; the better one is the bar"),
        ((0.1 + 0.1 + 0.0) / 3,
         "the better baseline of each language is a third, stronger row that nobody has: choose one for all"),
        ((0.9 + 0.7 + 0.5 + 0.1) / 4 - (0.6 + 0.6 + 0.5) / 3,
         "the two means are over different languages: xx has no baseline, so leave it out on both sides"),
    ], "choose the baseline of the highest mean, then average model − baseline")


@exercise("10.4")
def verdict_of(answer: Callable[[float | None, float | None, str], str]) -> str | None:
    """`verdict_of(expected, measured, dtype)`: within 0.1 in fp32, 0.3 in half precision; None where there is none."""
    cases = {
        (75.7, 75.65, "fp32"): "agrees", (75.7, 75.9, "fp32"): "differs", (75.7, 75.5, "fp32"): "differs",
        (75.7, 75.9, "bf16"): "agrees", (75.7, 75.5, "fp16"): "agrees", (75.7, 76.1, "bf16"): "differs",
        (5.0, 5.2, "fp32"): "differs", (75.7, None, "fp32"): "not measured", (None, 75.7, "fp32"): "not published",
    }  # fmt: skip
    found = {case: attempt(answer, *case) for case in cases}
    wrong = [case for case, right in cases.items() if found[case] != right]
    if not wrong:
        return None
    missing = [case for case in wrong if None in case]
    if len(missing) == 2 and found[missing[0]] == found[missing[1]]:
        return "a value that is missing is no difference: say on which side it is missing"
    if len(missing) == 2:
        return "`not measured` is a published value that nobody measured; you have the two the other way round"
    if all(case[2] != "fp32" for case in wrong):
        return "half precision moves a score by a few tenths: its tolerance is 0.3, not that of fp32"
    higher, lower = ((75.7, value, "fp32") in wrong for value in (75.9, 75.5))
    if higher != lower:
        side = "higher" if higher else "lower"
        return f"a model that scores {side} than published differs, too: take the absolute difference"
    if higher:
        return "0.2 is too much in fp32: there the tolerance is 0.1, for every task"
    case = wrong[0]
    return f"expected {case[0]}, measured {case[1]}, {case[2]}: {cases[case]}, you say {found[case]}"


@exercise("10.6")
def roundings(answer: tuple[float, float]) -> str | None:
    """59.446 once: 59.4; over 59.45: 59.5."""
    once, twice = answer
    if close(once, 59.5, 1e-6) and not close(twice, 59.4, 1e-6):
        return "(a): 59.446 is nearer to 59.4 than to 59.5"
    if close(twice, 59.45, 1e-6):
        return "(b) has two steps: 59.45 is the first, and it still has two decimals"
    return hint_for((once, twice), (59.4, 59.5), [
        ((59.5, 59.4), "the other way round: (a) is rounded once"),
        ((59.4, 59.4), "(b) goes over 59.45, which is rounded up, as one does by hand"),
    ], "both have one decimal, and lie beside 59.446", 1e-6)


@exercise("10.5")
def change_taken_apart(answer: Callable[[tuple, tuple], tuple[float, float]]) -> str | None:
    """`(with, without)` of both models → (change without the prefix, change of what the prefix adds)."""
    cases = {((64.2, 68.9), (65.3, 69.0)): (0.1, 1.0), ((80.0, 70.0), (76.0, 72.0)): (2.0, -6.0)}
    for (published, measured), (bare, added) in cases.items():
        found = tuple(attempt(answer, published, measured))
        hint = hint_for(found, (bare, added), [
            ((-bare, -added), "the sign: a change is measured minus published"),
            ((added, bare), "the other way round: first the change without the prefix"),
            ((bare + added, bare), "the first is the change without the prefix: of the second scores"),
            ((bare, bare + added), "that is the change with the prefix: take off what was there without it"),
        ], f"published {published}, measured {measured}: {bare:.1f} without it, {added:.1f} its own")
        if hint:
            return hint
    return None
