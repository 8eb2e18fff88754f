"""Which evaluation sets were seen in training: flags on tasks, read off the data cards of mE5's own mixture.

    flags(["FEVER", "SciFact", "Tatoeba"])     # a row per task: flag, cards, evidence
    joined(compare(measured, table=3))         # the comparison with a column `trained on`

Three grades. `training part`: the set's own training split is in the mixture (Table 2, or the instruct model's).
`related set`: a labelled set of the mixture shares texts with it. `same source`: stage 1 read pages of the site or
collection that it was made of. A task without a flag is one of which no card says anything: not one known to be clean.

Derived, not listed: a card is about a task when both have one name (card `fever`, task FEVER), or when a known fault of
the card names the task as a test; what it says is the evidence. The few bonds that no card tells stand in `BONDS`, each
with its source. The cards tell of mE5's mixture; another model's is another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from me5lib.data import cards

if TYPE_CHECKING:
    import pandas as pd

TRAINED, RELATED, SAME = "training part", "related set", "same source"  # strongest first
COLUMN = "trained on"
BONDS = (  # task, card, what the bond is, with its source
    ("XQuADRetrieval", "squad", "mteb counts it among mE5's training data (its e5_models.py: SQuAD's training set)"),
    ("ClimateFEVER", "fever", "searches FEVER's own Wikipedia passages for other claims (BEIR, arXiv 2104.08663)"),
    ("SciDocsRR", "s2orc", "made of the same papers as SCIDOCS (SPECTER, arXiv 2004.07180)"),
    ("StackOverflowDupQuestions", "stackexchange", "Stack Overflow is a site of Stack Exchange"),
)
_ENDINGS = re.compile(r"(HardNegatives|Retrieval|Reranking|Classification|Clustering|P2P|S2S|DupQuestions|\.v\d)$")
_TESTS = re.compile(r"evaluat|\btest|same questions")  # what a fault says that is about a test set
_SPELT = {"Mr. TyDi": "MrTyDi", "MS MARCO": "MSMARCO", "MS-MARCO": "MSMARCO"}  # as cards write → as tasks are called
_SAME_NAME = {"mrtidy": "mrtydi"}


class Bond(NamedTuple):
    """One reason to flag a task."""

    flag: str
    card: str
    evidence: str


def flags(tasks: Iterable[str]) -> pd.DataFrame:
    """A row per task, in order: `task`, `flag` (the strongest, or ""), `cards` and `evidence` (strongest first)."""
    import pandas as pd

    rows = []
    for task in dict.fromkeys(tasks):
        found = bonds(task)
        rows.append({"task": task, "flag": found[0].flag if found else "",
                     "cards": ", ".join(dict.fromkeys(bond.card for bond in found)),
                     "evidence": "; ".join(f"{bond.card}: {bond.evidence}" for bond in found)})
    return pd.DataFrame(rows, columns=["task", "flag", "cards", "evidence"])


def joined(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` (any frame with a column `task`) with a column `trained on`: each task's flag, "" where there is none."""
    found = flags(rows["task"]).set_index("task")["flag"]
    marked = rows.assign(**{COLUMN: rows["task"].map(found)})
    marked.attrs = dict(rows.attrs)
    return marked


def bonds(task: str) -> list[Bond]:
    """Every bond of a task (mteb's name) with mE5's training data, strongest first."""
    name = _stem(task)
    found = []
    for card in cards.hub().values():
        said = [fault for fault in card.faults if name in _named(fault) and _TESTS.search(fault)]
        own = _stem(card.name.partition("-")[0]) == name
        if own or said:
            labelled = card.paper.table != 1
            flag = (TRAINED if own else RELATED) if labelled else SAME
            found.append(Bond(flag, card.name, said[0] if said else f"{card.title}; {_drawn(card)}"))
    found += [Bond(RELATED if cards.load(card).paper.table != 1 else SAME, card, why)
              for other, card, why in BONDS if _stem(other) == name]
    return sorted(found, key=lambda bond: (TRAINED, RELATED, SAME).index(bond.flag))


def _drawn(card: cards.Card) -> str:
    """How much of a source the mixture holds."""
    rows = f"{card.paper.rows:,} rows" if card.paper.rows else "number of rows not published"
    return f"{rows}, Table {card.paper.table}" if card.paper.table else f"{rows}, the instruct model's mixture"


@cache
def _stem(name: str) -> str:
    """What is left of a task's name without its kind and version, in lower case: `QuoraRetrieval` → `quora`."""
    while (cut := _ENDINGS.sub("", name)) not in ("", name):
        name = cut
    plain = re.sub(r"[^a-z0-9]", "", name.casefold())
    return _SAME_NAME.get(plain, plain)


@cache
def _named(sentence: str) -> frozenset[str]:
    """The stems of all words of a sentence that may be names: those with a capital letter."""
    for spelt, name in _SPELT.items():
        sentence = sentence.replace(spelt, name)
    return frozenset(_stem(word) for word in re.findall(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*", sentence)
                     if word != word.lower())
