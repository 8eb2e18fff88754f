"""What a language model is asked for: E5-mistral's task types and dials (taxonomy.csv), in our words (taxonomy.yaml).

    next(requests(Plan(seed=0, tasks=read_tasks()), [17]))      # a function of the plan and the number

A plan without tasks asks for tasks; with tasks, for an example of one. Cost: 40 µs a request.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml
from babel import Locale

from me5lib.instruct.synthetic import read_examples, read_lines
from me5lib.io import PACKAGE, Me5Error

VERSION = 1  # of the requests; raise it with any change that gives others
WORDS: dict[str, dict[str, str]] = yaml.safe_load((PACKAGE / "instruct" / "taxonomy.yaml").read_text(encoding="utf8"))
LISTS: dict[str, dict[str, int]] = defaultdict(dict)  # a dial → its values and their weights
for _row in csv.DictReader((PACKAGE / "instruct" / "taxonomy.csv").read_text(encoding="utf8").splitlines()):
    LISTS[_row["list"]][_row["value"]] = int(_row["weight"])


class Plan(NamedTuple):
    """What requests follow from."""

    seed: int = 0
    tasks: tuple[tuple[str, str], ...] = ()  # type and instruction
    languages: tuple[str, ...] = ()  # twice: of twice the weight; none: the paper's

    @property
    def key(self) -> str:
        """The hash of all of it: 16 hexadecimal digits."""
        known = [VERSION, self.seed, self.tasks, (), self.languages]  # (): what earlier versions had besides
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


class Request(NamedTuple):
    """One thing to ask for."""

    number: int
    prompt: str
    keys: list[str]  # of the JSON object that is wanted
    row: dict[str, Any]  # what is known of the row before it is written, its dials among it
    seed: int  # of the model's own draws


def requests(plan: Plan, numbers: Iterable[int]) -> Iterator[Request]:
    """The requests of these numbers."""
    key, weights = plan.key, Counter(plan.languages) or LISTS["language"]
    codes, dials = [*weights], {dial: [*LISTS[dial]] for dial in LISTS if dial not in ("task_type", "language")}
    tasks = plan.tasks or [(kind, "") for kind in WORDS["kinds"]]
    types = {name: [words for kind, words in tasks if kind == name] for name in dict(tasks)
             if name != "bitext" or len(codes) > 1}
    shares = [LISTS["task_type"].get(name, 1) for name in types]
    for number in numbers:
        draw = Random(f"{key}/{number}")
        (name,), (language,) = draw.choices([*types], shares), draw.choices(codes, weights.values())
        instruction, passage = draw.choice(types[name]), language
        while name == "bitext" and passage == language:
            (passage,) = draw.choices(codes, weights.values())
        row = {"task_type": name, "instruction": instruction, "language": language, "passage_language": passage}
        drawn = {dial: draw.choice(values) for dial, values in dials.items()}
        names = {"language": language_name(language), "passage_language": language_name(passage),
                 "kind": WORDS["kinds"].get(name)}
        words = WORDS["prompts"][name if instruction else "brainstorm"]
        keys = re.findall(r'"(\w+)"', words)
        prompt = f"{words.format_map(drawn | row | names)}Answer with one JSON object, of the keys {', '.join(keys)}."
        row["dials"] = {dial: value for dial, value in drawn.items() if f"{{{dial}}}" in words}
        yield Request(number, prompt, keys, row, draw.getrandbits(31))


@cache
def language_name(code: str) -> str:
    """The English name of a language, as Serbian (latn) for sr-latn. Raises `Me5Error` for a code of none."""
    (base, _, script), names = code.partition("-"), Locale("en").languages
    if base not in names:
        raise Me5Error(f"no language has the code {code!r}: one as sw, or sr-latn, is wanted")
    return names[base] + f" ({script})" * bool(script)


def one_line(value: Any) -> str:
    """A text without needless white space and halves of characters; "" of anything else."""
    return " ".join(value.encode("utf8", "replace").decode().split()) if isinstance(value, str) else ""


def read_tasks(path: Path | None = None) -> tuple[tuple[str, str], ...]:
    """The tasks of a file (of none: synthetic-v1's, without bitext, which name languages), and for sts and bitext the
    fixed one if there is no other. Raises `Me5Error`."""
    try:
        found = [(task["task_type"], task["instruction"]) for task in map(json.loads, read_lines(path) if path else ())]
        if not all(LISTS["task_type"][name] and str.encode(words).strip() for name, words in found):
            raise ValueError("an instruction is empty")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Me5Error(f"{path} is no list of tasks, as tasks.jsonl is one ({type(error).__name__} {error})") from None
    if path is None:
        found = [(row.task_type, row.instruction) for row in read_examples(drafts=True) if row.task_type != "bitext"]
    return tuple(dict.fromkeys(found + [task for task in WORDS["fixed"].items() if task[0] not in dict(found)]))
