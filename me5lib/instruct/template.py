"""Rows under E5-mistral's template, and a corpus as the instruct stage reads it (`me5 finetune --instruct`).

    rows = templated(corpus.labelled())                       # bare rows → rows whose texts carry their instruction
    scale, corpus = instructed(scale, open_corpus(scale))     # for `stages.finetune`

The template stands on queries, on both sides of symmetric tasks, and on no other passage: as in `evaluate.protocol`.
It is part of the text then: under another instruction a query has another key, so the right answer of its twin (the
same words, asked for something else) is a negative, and no false one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from me5lib import io
from me5lib.config import Scale
from me5lib.data import cards
from me5lib.instruct.synthetic import SOURCE, SYMMETRIC, VERSION_1, read_examples
from me5lib.model.save_load import instruct_prompts
from me5lib.model.text import instruct
from me5lib.pairs import Labelled

# Symmetric are E5-mistral's two tasks of that kind, as the authors evaluate them, and the synthetic ones.
BITEXT, STS = "Retrieve parallel sentences.", "Retrieve semantically similar text."
SYMMETRIC_SOURCES = [f"{SOURCE}-{kind}" for kind in SYMMETRIC]


def templated(rows: Sequence[Labelled]) -> list[Labelled]:
    """The rows with their own instruction put on, or their data card's; `instruction` is None then. Without one a row
    stays bare, and so does a blank text."""
    def put(task: str, texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(instruct(task, text) if text.strip() else text for text in texts)

    known = {name: card.instruction or "" for name, card in cards.all_cards().items()}
    found = []
    for row in rows:
        task = row.instruction or known.get(row.source, "")
        passages = task if task in (BITEXT, STS) or row.source in SYMMETRIC_SOURCES else ""
        found.append(row._replace(query=put(task, [row.query])[0], positives=put(passages, row.positives),
                                  negatives=put(passages, row.negatives), instruction=None))
    return found


def instructed(scale: Scale, corpus: Any) -> tuple[Scale, Instructed]:
    """Scale and corpus of the instruct stage: queries longer by `instruct.tokens`, and synthetic rows mixed in."""
    mixed = Instructed(corpus, scale)
    query = min(scale.finetune.query_tokens + scale.instruct.tokens, scale.model.max_tokens)
    stage = dataclasses.replace(scale.finetune, query_tokens=query,
                                passage_tokens=max(query, scale.finetune.passage_tokens))  # symmetric sides alike
    labelled = (*scale.data.labelled, *[mixed.file.stem] * bool(mixed.share))
    return dataclasses.replace(scale, data=dataclasses.replace(scale.data, labelled=labelled), finetune=stage), mixed


class Instructed:
    """A corpus whose labelled rows, and synthetic ones beside them, carry the template; what the stage asks of it."""

    prompts, bitext_prefix = instruct_prompts(), instruct(BITEXT, "")
    prefixes = staticmethod(lambda source: ("", ""))  # a text carries all that is read

    def __init__(self, corpus: Any, scale: Scale) -> None:
        self.corpus, self.share, self.drafts = corpus, scale.instruct.synthetic, bool(scale.instruct.drafts)
        self.file = Path(scale.instruct.file or VERSION_1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpus, name)

    @property
    def fingerprint(self) -> str:
        """That of the corpus, and of the synthetic rows."""
        return self.corpus.fingerprint + (f"+{io.sha256(self.file)[:16]}" if self.share else "")

    def labelled(self, part: str = "stage 2") -> list[Labelled]:
        """The examples to train on, the synthetic ones last; `part="dev"`: those kept out, none of them synthetic."""
        more = read_examples(self.file, self.drafts) if self.share and part == "stage 2" else []
        return templated([*self.corpus.labelled(part), *(each.labelled() for each in more)])

    def weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Source → weight; of the synthetic sources together the share `instruct.synthetic`."""
        more = {name for name in weights if name.startswith(f"{SOURCE}-")}
        total, theirs = sum(weights.values()), sum(weights[name] for name in more)
        if not 0 < theirs < total:
            return dict(weights)
        return {name: value * (self.share / theirs if name in more else (1 - self.share) / (total - theirs))
                for name, value in weights.items()}
