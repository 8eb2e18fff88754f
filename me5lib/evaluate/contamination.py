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
from typing import TYPE_CHECKING

from me5lib.data import cards

if TYPE_CHECKING:
    import pandas as pd

TRAINED, RELATED, SAME = "training part", "related set", "same source"  # strongest first
BONDS = (  # task, card, what the bond is, with its source
    ("XQuADRetrieval", "squad", "mteb counts it among mE5's training data (its e5_models.py: SQuAD's training set)"),
    ("ClimateFEVER", "fever", "searches FEVER's own Wikipedia passages for other claims (BEIR, arXiv 2104.08663)"),
    ("SciDocsRR", "s2orc", "made of the same papers as SCIDOCS (SPECTER, arXiv 2004.07180)"),
    ("StackOverflowDupQuestions", "stackexchange", "Stack Overflow is a site of Stack Exchange"),
)
_ENDINGS = re.compile(r"(HardNegatives|Retrieval|Reranking|Classification|Clustering|P2P|S2S|DupQuestions|\.v\d)$")
_TESTS = re.compile(r"evaluat|\btest|same questions")  # what a fault says that is about a test set
_SPELT = {"Mr. TyDi": "MrTyDi", "MS MARCO": "MSMARCO", "MS-MARCO": "MSMARCO"}  # as cards write → as tasks are called


def flags(tasks: Iterable[str]) -> pd.DataFrame:
    """A row per task, in order: `task`, `flag` (the strongest, or ""), `cards` and `evidence` (strongest first)."""
    import pandas as pd

    rows = []
    for task in dict.fromkeys(tasks):
        bonds = bonds_of(task)
        rows.append({"task": task, "flag": bonds[0][0] if bonds else "",
                     "cards": ", ".join(dict.fromkeys(card for _, card, _ in bonds)),
                     "evidence": "; ".join(f"{card}: {why}" for _, card, why in bonds)})
    return pd.DataFrame(rows, columns=["task", "flag", "cards", "evidence"])


def joined(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` (any frame with a column `task`) with a column `trained on`: each task's flag, "" where there is none."""
    marked = rows.assign(**{"trained on": rows["task"].map(flags(rows["task"]).set_index("task")["flag"])})
    marked.attrs = dict(rows.attrs)
    return marked


def bonds_of(task: str) -> list[tuple[str, str, str]]:
    """(flag, card, evidence) of every bond of a task (mteb's name) with mE5's training data, strongest first."""
    name, bonds = _stem(task), []
    for card in cards.hub().values():
        said = [fault for fault in card.faults if name in _names_in(fault) and _TESTS.search(fault)]
        own = _stem(card.name.partition("-")[0]) == name
        if own or said:
            rows = f"{card.paper.rows:,} rows" if card.paper.rows else "number of rows not published"
            where = f"Table {card.paper.table}" if card.paper.table else "the instruct model's mixture"
            flag = SAME if card.paper.table == 1 else TRAINED if own else RELATED
            bonds.append((flag, card.name, said[0] if said else f"{card.title}; {rows}, {where}"))
    bonds += [(SAME if cards.load(card).paper.table == 1 else RELATED, card, why)
              for other, card, why in BONDS if _stem(other) == name]
    return sorted(bonds, key=lambda bond: (TRAINED, RELATED, SAME).index(bond[0]))


@cache
def _stem(name: str) -> str:
    """What is left of a task's name without its kind and version, in lower case: `QuoraRetrieval` → `quora`."""
    while (cut := _ENDINGS.sub("", name)) not in ("", name):
        name = cut
    return re.sub(r"[^a-z0-9]", "", name.casefold()).replace("mrtidy", "mrtydi")


@cache
def _names_in(sentence: str) -> frozenset[str]:
    """The stems of all words of a sentence that may be names: those with a capital letter."""
    for spelt, name in _SPELT.items():
        sentence = sentence.replace(spelt, name)
    words = re.findall(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*", sentence)
    return frozenset(_stem(word) for word in words if word != word.lower())
