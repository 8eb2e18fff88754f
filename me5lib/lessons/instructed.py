"""Experiment 3: what instructions are worth, and what synthetic data is; a 2 × 2 on the upper layers of the real model.

Twins are one query under two instructions, and two texts: the right one of the one is the wrong one of the other. Only
who reads the instruction has both right: without one a query has one vector, so that both right is 0 and half of the
rows are right by construction. The twins that decide are human text (XQuAD, FastAPI) of which no arm learns anything,
under instructions that none has seen. Learnt from human text are names: what they stand for | what they are in English,
which is FastAPI's kind of twin more than XQuAD's. Swapped pairs of synthetic-v1 are tested by cross-validation.
Cost: pilot and full run together 33 minutes on one thread.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from me5lib.config import Scale
from me5lib.data import cldr, split
from me5lib.evaluate import baselines, heldout, stats
from me5lib.evaluate.heldout import Search
from me5lib.instruct.quality import swapped_pairs
from me5lib.instruct.synthetic import DRAFTS, SOURCE, SYMMETRIC, Example, read_examples
from me5lib.instruct.template import templated
from me5lib.lessons.labs import Arm
from me5lib.lessons.paper_figures import kin
from me5lib.lessons.tune import Tuned, train_on
from me5lib.model.encoder import Encoder
from me5lib.model.text import PASSAGE, QUERY
from me5lib.pairs import Labelled, normalise
from me5lib.train.monitor import watched

# Ours, as all that follows: the wording of instructions, and how much is sampled.
ASKED = {  # of tests; where there are two, the second is for the query in another language
    "xquad": ("Given a question, find the encyclopedia paragraph that answers it",
              "Find the question in {} that asks exactly the same"),
    "fastapi": ("Given a path of headings in a software manual, find the section that stands below it",
                "Find this path of headings in the {} edition of the manual"),
    "gsm": ("Find the English original of the word problem",), "bitext": ("Find the interface text in English",),
    "intents": ("Given a voice command, find another that wants the same done",),
}  # fmt: skip
WORDINGS = {  # of human text that trains, by source; and of what is asked of its twin
    "homeassistant-descriptions": ("Given a setting's name, retrieve its description", "What does this option do?"),
    "cldr-facts": ("Given a country or language, retrieve its currency or country", "Find what goes with the name"),
    "exams": ("Given an exam question, retrieve the right answer", "Retrieve what completes or answers this task"),
    "": ("Retrieve the English name of this", "Given a label, retrieve its translation into English"),
}
LANGUAGES, TWINS, SINGLES = 16, 20, 160  # of human text that trains: twins in each language, other rows of each source
MOST = {"xquad": 50, "fastapi": 27, "gsm": 30, "bitext": 50, "intents": 300}  # queries a language; of intents in all
FOLDS = 5
BOTH, ASK, ROWS, NEITHER = "instructions + synthetic", "instructions", "synthetic, bare", "neither"
ALONE, QUARTER, PERMUTED = "synthetic alone", "a quarter synthetic", "instructions permuted"
START, BARE, KEPT = "untuned, instructed", "untuned", "tuned over untuned, bare"
CONTRASTS: dict[str, dict[str, float]] = {  # weights of arms
    "instructions (main effect)": {BOTH: 0.5, ASK: 0.5, ROWS: -0.5, NEITHER: -0.5},
    "synthetic (main effect)": {BOTH: 0.5, ROWS: 0.5, ASK: -0.5, NEITHER: -0.5},
    "interaction": {BOTH: 1, ASK: -1, ROWS: -1, NEITHER: 1},
    "dose 25 % over 0": {QUARTER: 1, ASK: -1}, "dose 50 % over 0": {BOTH: 1, ASK: -1},
    "dose 100 % over 0": {ALONE: 1, ASK: -1}, "true over permuted": {BOTH: 1, PERMUTED: -1},
    "permuted over untuned": {PERMUTED: 1, START: -1}, KEPT: {BOTH: 1, BARE: -1},
}  # fmt: skip


# ---- what trains -----------------------------------------------------------------------------------------------------


def human_rows(corpus: Any) -> list[Labelled]:
    """Labelled examples with an instruction: twins of names (what they stand for | English), and what has no twin."""
    rows = sorted((row for row in corpus.labelled() if row.source in WORDINGS),
                  key=lambda row: split.fraction(f"{row.query} {row.language}"))  # fmt: skip
    named = Counter(row.language for row in rows if row.source != "exams").most_common(LANGUAGES)
    english = {language: dict(zip(*reversed(corpus.memory(language)), strict=True)) for language, _ in named}
    found, taken = [], Counter()
    for row in rows:
        right, other = row.positives[0], english.get(row.language, {}).get(row.query, "")
        twin = normalise(other) not in ("", normalise(row.query), normalise(right))
        kind, most = (row.language, TWINS) if twin else (row.source, SINGLES)
        taken[kind] += 1
        if taken[kind] <= most:
            asked, back = (WORDINGS[source][split.fraction(source + row.query) < 0.5] for source in (row.source, ""))
            wrong = (other,) if twin else row.negatives[:1]
            found.append(row._replace(positives=(right,), negatives=wrong, instruction=asked))
            found += [row._replace(positives=(other,), negatives=(right,), instruction=back)] * twin
    return found


def in_twos(rows: Sequence[Labelled]) -> list[Labelled]:
    """Twins side by side, at even places, then what has none: a batch of an even size cuts no pair."""
    same: dict[Any, list[Labelled]] = defaultdict(list)
    for row in rows:
        same[row.query, row.language].append(row)
    single = [own[-1] for own in same.values() if len(own) % 2]
    return [row for own in same.values() for row in own[: len(own) // 2 * 2]] + single[: len(single) // 2 * 2]


def permuted(rows: Sequence[Labelled], seed: int) -> list[Labelled]:
    """Each row with the instruction of a random one of its task type (of human text, of any), never one that its query
    has anywhere: what an instruction says is then of no use, and all else is as it was."""
    rng, by_type, known = np.random.default_rng(seed), defaultdict(list), {(row.query, row.instruction) for row in rows}
    types = [row.source * row.source.startswith(SOURCE) for row in rows]
    for kind, row in zip(types, rows, strict=True):
        by_type[kind].append(row.instruction)
    free = ([text for text in by_type[kind] if (row.query, text) not in known]
            for kind, row in zip(types, rows, strict=True))  # fmt: skip
    return [row._replace(instruction=texts[rng.integers(len(texts))]) for row, texts in zip(rows, free, strict=True)]


def without_instructions(rows: Sequence[Labelled]) -> list[Labelled]:
    """The rows where nobody says what is wanted: every right text of a query is right, none of them wrong."""
    right = defaultdict(set)
    for row in rows:
        right[row.query] |= {*row.positives}
    return [row._replace(positives=(*row.positives, *sorted(right[row.query].difference(row.positives))),
                         negatives=tuple(text for text in row.negatives if text not in right[row.query]))
            for row in rows]  # fmt: skip


# ---- what is asked ---------------------------------------------------------------------------------------------------


def twin_tests(name: str, sets: Mapping[str, Any]) -> tuple[list[Search], list[Search]]:
    """A search of each twin: the passage that answers a query | the query in another language; and one of a language:
    these queries among all their passages. So many queries a language, by hash, as `MOST` says.

    Where a query is named by its place on a page, the other language must have cut that page into the same headings.
    """
    texts = {code: {re.split("[/:]", key, maxsplit=1)[-1]: (query, min(own.relevant[key]))
                    for key, query in own.queries.items()} for code, own in sets.items()}  # fmt: skip
    outline, page, names = defaultdict(set), {}, cldr.local_names("en")["language"]
    for code, own in texts.items():
        for place, (query, _) in own.items():
            page[place] = place.rpartition("/")[0] or place
            outline[code, page[place]].add((place, query.count(" > ")))
    pairs, single = [], []
    for code, own in texts.items():
        here: list[Search] = []
        for place in sorted(own, key=lambda place, code=code: split.fraction(f"{code} {place}")):
            (query, document), alike = own[place], outline[code, page[place]]
            others = [other for other in texts if outline[other, page[place]] == alike
                      and normalise(texts[other][place][0]) != normalise(query)]  # fmt: skip
            if others and len(here) < MOST[name]:
                other = others[int(split.fraction(f"{place} {code}") * len(others))]
                about = page[place] if "/" in place else re.split("[/:]", document, maxsplit=1)[-1]
                asked = [text.format(names.get(other.split("-")[0], other)) for text in ASKED[name]]
                pool = [sets[code].documents[document][1], texts[other][place][0]]
                here.append(Search([query] * 2, pool, np.eye(2, dtype=bool), (QUERY, PASSAGE),
                                   [f"{name}: {about}"] * 2, asked, code))  # fmt: skip
        if here:
            passages = [test.passages[0] for test in here]
            pool = list(dict.fromkeys(passages))
            relevant = np.array(passages)[:, None] == np.array(pool)
            single.append(Search([test.queries[0] for test in here], pool, relevant, (QUERY, PASSAGE),
                                 [test.meanings[0] for test in here], ASKED[name][:1] * len(here), code))  # fmt: skip
        pairs += here
    return pairs, single


def symmetric_tests(name: str, sets: Mapping[str, Any]) -> list[Search]:
    """Texts and the English ones that they translate; and commands, among others, of which those of their label are
    right."""
    found = []
    for code, own in sets.items():
        if name == "intents":
            pool, labels, queries, wanted = (side[:: 1 + len(side) * len(sets) // MOST[name]] for side in own)
            relevant = np.array(wanted)[:, None] == np.array(labels)
        else:
            pool, queries = (side[: MOST[name]] for side in own)
            relevant = np.eye(len(pool), dtype=bool)
        here = np.flatnonzero(relevant.any(axis=1))
        queries, about = [queries[i] for i in here], queries if name == "intents" else pool
        found.append(Search(queries, pool, relevant[here], (QUERY, QUERY), [about[i] for i in here],
                            ASKED[name] * len(queries), code))  # fmt: skip
    return found


# ---- synthetic-v1, cut by what may not be on both sides --------------------------------------------------------------


def components(rows: Sequence[Example]) -> np.ndarray:
    """Of each row a number, int64, that it shares with its group, with rows of a near-equal instruction, and with what
    a chain of them connects."""
    near, n = split.clusters([row.instruction for row in rows]), len(rows)
    groups = np.unique([row.group for row in rows], return_inverse=True)[1] + near.max() + 1
    places = np.tile(np.arange(n), 2), n + np.concatenate([near, groups])
    links = sparse.coo_matrix((np.ones(2 * n), places), shape=[n + int(groups.max()) + 1] * 2)
    return csgraph.connected_components(links, directed=False)[1][:n]


def folds(component: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The fold of each row, int64: components are dealt in turn, those with most pairs, then rows, first."""
    weight = Counter(component[i] for i, _ in pairs)
    order = sorted(Counter(component.tolist()).items(), key=lambda each: (-weight[each[0]], -each[1], each[0]))
    return np.argsort([number for number, _ in order])[component] % FOLDS


# ---- the experiment --------------------------------------------------------------------------------------------------


class Instructions(Tuned):
    """Every arm tunes the same model for the same steps; they differ in how much of a batch is synthetic, and whether
    instructions are read. The first fold of synthetic-v1 tests and trains no arm."""

    question = "what are instructions worth, and what is synthetic data worth?"
    metrics = ("twins", "twin rows", "synthetic rows", "xquad", "fastapi", "gsm", "bitext", "intents")
    positive = (BOTH, START, "synthetic rows")
    values = {"steps": 80, "batch": 16, "lr": 1.5e-4, "warmup": 8, "temperature": 0.02, "query_tokens": 64,
              "passage_tokens": 64}  # fmt: skip
    layers = 4  # these by six trials under the pilot's seeds, on queries that no test has and the first fold's pairs
    seeds = 3

    @classmethod
    def arms(cls, scale: Scale, teacher: bool = False) -> tuple[Arm, ...]:
        """The 2 × 2, doses, synthetic rows alone, instructions permuted, and the start, read both ways."""
        return (
            Arm(BOTH, START, instructed=True, synthetic=0.5),
            Arm(f"{BOTH} again", BOTH, "A/A", instructed=True, synthetic=0.5),
            Arm(ASK, START, instructed=True), Arm(ROWS, BARE, synthetic=0.5), Arm(NEITHER, BARE),
            Arm(QUARTER, START, instructed=True, synthetic=0.25), Arm(ALONE, START, instructed=True, synthetic=1.0),
            Arm(PERMUTED, START, "permuted", instructed=True, synthetic=0.5),
            Arm(START, BARE, start=True, instructed=True), Arm(BARE, start=True),
        )  # fmt: skip

    @cached_property
    def rows(self) -> tuple[list[Example], np.ndarray, np.ndarray]:
        """Synthetic-v1, drafts among them, which test and train no arm; the component and the fold of each row."""
        rows = read_examples(drafts=True)
        component = components(rows)
        return rows, component, folds(component, swapped_pairs(rows))

    @cached_property
    def human(self) -> list[Labelled]:
        """Human text that trains, in twos."""
        return in_twos(human_rows(self.corpus))

    @cached_property
    def tests(self) -> dict[str, list[Search]]:
        """By name; "twins" has two queries of each."""
        task, own = self.corpus.task, [(row, str(number)) for row, number, fold in zip(*self.rows, strict=True)
                                       if fold == 0 and row.task_type not in SYMMETRIC]  # fmt: skip
        pool = list(dict.fromkeys(text for row, _ in own for text in (row.positive, row.negative) if text))
        relevant = np.array([[text == row.positive for text in pool] for row, _ in own])
        held = Search([row.query for row, _ in own], pool, relevant, (QUERY, PASSAGE), [number for _, number in own],
                      [row.instruction for row, _ in own])  # fmt: skip
        (first, xquad), (second, fastapi) = (twin_tests(name, task(name).sets) for name in ("xquad", "fastapi"))
        return {
            "twins": first + second, "synthetic rows": [held], "xquad": xquad, "fastapi": fastapi,
            "gsm": symmetric_tests("gsm", dict(list(task("gsm").sets.items())[::4])),
            "bitext": symmetric_tests("bitext", watched(self.corpus)),
            "intents": symmetric_tests("intents", task("intents").sets),
        }  # fmt: skip

    def by_metric(self, of: Callable[[Search], list[str]]) -> dict[str, list[str]]:
        """What `of` gives for every query, or pair of them, that a metric scores."""
        found = {name: [each for test in tests for each in of(test)] for name, tests in self.tests.items()}
        return found | {"twin rows": found["twins"], "twins": found["twins"][::2]}

    def meanings(self) -> dict[str, list[str]]:
        """What every query is about."""
        return self.by_metric(lambda test: test.meanings)

    def scores(self, arm: Arm, encoder: Encoder) -> dict[str, np.ndarray]:
        """As `heldout.query_scores`; but of twins which rows are right, and of which pairs both."""
        tests = {name: [test.instructed() if arm.instructed else test for test in own]
                 for name, own in self.tests.items()}  # fmt: skip
        found = heldout.query_scores(tests, encoder, self.longest)
        right = found["twins"] == 1
        return found | {"twin rows": right.astype(float), "twins": right.reshape(-1, 2).all(axis=1).astype(float)}

    def parts(self, arm: Arm, seed: int, fold: int = 0) -> list[tuple[list[Labelled], int]]:
        """What an arm learns from, in twos, as it reads it: human text, and the synthetic rows outside `fold`; and how
        many rows of a batch are of it."""
        found, synthetic = [], [row.labelled() for row, _, own in zip(*self.rows, strict=True)
                                if own != fold and row.language not in DRAFTS]  # fmt: skip
        for rows, share in ((self.human, 1 - arm.synthetic), (in_twos(synthetic), arm.synthetic)):
            rows = permuted(rows, seed) if arm.role == "permuted" else rows
            rows = templated(rows) if arm.instructed else without_instructions(rows)
            found.append((rows, round(share * self.stage.batch)))
        return found

    def encoder(self, arm: Arm, seed: int, fold: int = 0) -> Encoder:
        """The start, or tuned on the arm's rows, pass after pass, each in an order of its own."""
        encoder, orders = self.upper.copy(), []
        if arm.start:
            return encoder
        for rows, each in self.parts(arm, seed, fold):
            rng, order = np.random.default_rng(seed), []
            while len(order) < each * self.stage.steps:
                order += [rows[i + k] for i in 2 * rng.permutation(len(rows) // 2) for k in (0, 1)]
            orders.append((order, each))
        sides = ("", "") if arm.instructed else (QUERY, PASSAGE)
        return train_on(encoder, lambda step: [row for order, n in orders for row in order[step * n : (step + 1) * n]],
                        self.stage, seed, lambda source: sides, progress=False)  # fmt: skip

    # What no arm × seed holds -----------------------------------------------------------------------------------------

    def crossed(self, arm: Arm, fold: int) -> dict[str, Any]:
        """Of the swapped pairs of `fold`, row after row, which an arm has right that learnt from the other folds."""
        rows, _, cut = self.rows
        asked = templated([rows[i].labelled() for pair in swapped_pairs(rows) for i in pair if cut[i] == fold])
        tests = [Search([row.query], [*row.positives, *row.negatives], np.array([[True, False]]), ("", ""), [""])
                 for row in asked]  # fmt: skip
        ranks = heldout.query_scores({"": tests}, self.encoder(arm, 0, fold), self.longest)[""]
        return {"scores": (ranks == 1).astype(float).tolist()}

    def swapped(self, arms: Sequence[Arm], run: Callable[..., Mapping[Any, Any]]) -> list[dict[str, Any]]:
        """Rows right and both right of the swapped pairs, by cross-validation under one seed; intervals by component. A
        lexical row (trigrams of instruction and query against those of the two texts) is beside them."""
        (rows, component, cut), tuned = self.rows, [arm for arm in arms if arm.name in (BOTH, PERMUTED, START)]
        pairs = sorted(swapped_pairs(rows), key=lambda pair: cut[pair[0]])
        records = run(self.crossed, list(product(range(FOLDS), tuned)), "folds")
        right = [[one for fold in range(FOLDS) for one in records[fold, arm.name]["scores"]] for arm in tuned]
        asked = [rows[i] for pair in pairs for i in pair]
        queries, *texts = (baselines.Counts(baselines.count_trigrams(side)) for side in zip(*(
            (f"{row.instruction} {row.query}", row.positive, row.negative) for row in asked), strict=True))  # fmt: skip
        near, far = (baselines.tfidf_cosine(queries, side).diagonal() for side in texts)
        stack = np.array([*right, near > far], dtype=float).reshape(len(tuned) + 1, 1, -1, 2)
        one = dict(zip([*(arm.name for arm in tuned), "lexical"], np.eye(len(tuned) + 1), strict=True))
        one |= {f"{a} minus {b}": one[a] - one[b] for a, b in ((BOTH, PERMUTED), (BOTH, START), (PERMUTED, START))}
        about, found = [int(component[i]) for i, _ in pairs], []
        for metric, scores in (("both right", stack.min(axis=3)), ("rows", stack.mean(axis=3))):
            draws = stats.resampled(scores, about)
            found += [{"metric": metric, "arm": name, **shown(weight, draws, scores)} for name, weight in one.items()]
        return found

    def beside(self, arms: Sequence[Arm], records: Mapping[Any, Any], run: Callable[..., Any]) -> dict[str, Any]:
        """`contrasts` of arms on every metric, the first ones by language `families`, too; `passes` over what an arm
        learns from; and `swapped`."""
        kinds, found = self.by_metric(lambda test: [kin(test.language)[1]] * len(test.queries)), defaultdict(list)
        for metric, meanings in self.meanings().items():
            stack = np.array([[own["scores"][metric] for (_, name), own in records.items() if name == arm.name]
                              for arm in arms])  # fmt: skip
            of = {*kinds[metric]} if metric not in ("twin rows", "synthetic rows") else ()
            for family in ("", *sorted(of)):
                part = [i for i, kind in enumerate(kinds[metric]) if family in ("", kind)]
                draws = stats.resampled(stack[:, :, part], [meanings[i] for i in part])
                for name, weights in list(CONTRASTS.items())[: 2 if family else None]:
                    weight = np.array([weights.get(arm.name, 0) for arm in arms])
                    found["families" if family else "contrasts"].append({
                        "contrast": name, "metric": metric, "family": family, "queries": len(part),
                        **shown(weight, draws, stack[:, :, part])})  # fmt: skip
        passes = {arm.name: [round(each * self.stage.steps / len(rows), 2) for rows, each in self.parts(arm, 0)]
                  for arm in arms if not arm.start}  # fmt: skip
        return {**found, "passes": passes, "swapped": self.swapped(arms, run)}

    @classmethod
    def lines(cls, results: Mapping[str, Any]) -> list[str]:
        """Contrasts on the first metric, what tuning costs elsewhere, and the swapped pairs."""
        rows = [(f"{row['metric']}: {row['contrast']}", row) for row in results["contrasts"]
                if row["metric"] == cls.metrics[0] or row["contrast"] == KEPT]  # fmt: skip
        rows += [(f"swapped pairs, {row['metric']}: {row['arm']}", row) for row in results["swapped"]]
        return [f"{name}: {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})" + ", within a point" * row["equal"]
                for name, row in rows]  # fmt: skip


def shown(weight: np.ndarray, draws: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """The sum of arms by `weight` [arms] with its interval, of their `draws` [arms, draws] and scores [arms, seeds, n];
    its p (not adjusted), and whether it lies within a point of 0."""
    own = weight @ draws
    return {**stats.interval(own, weight @ scores.mean(axis=(1, 2)))._asdict(), "p": stats.p_value(own),
            "equal": stats.equivalent(own)}  # fmt: skip
