"""Solutions of notebook 10, and wrong answers that each meet a hint of their own."""

from statistics import fmean

Q, P = "query: ", "passage: "


def prefixes(task_type, name):
    """`passage: ` on documents of retrieval, except Quora's; `query: ` on all else."""
    if task_type == "Retrieval" and not name.startswith("QuoraRetrieval"):
        return Q, P
    return Q, Q


def _swapped(task_type, name):
    return (P, Q) if task_type == "Retrieval" else (Q, Q)


def _as_mteb(task_type, name):
    return (Q, P) if task_type in ("Retrieval", "Reranking") else ("", "")


def _reranking_too(task_type, name):
    return (Q, P) if task_type in ("Retrieval", "Reranking") else (Q, Q)


def _type_only(task_type, name):
    return (Q, P) if task_type == "Retrieval" else (Q, Q)


def _no_space(task_type, name):
    return ("query:", "passage:") if task_type == "Retrieval" else ("query:", "query:")


def margin(model, baselines):
    """The baseline of the highest mean, paired by language."""
    best = max(baselines.values(), key=lambda row: fmean(row.values()))
    return fmean(model[code] - best[code] for code in model if code in best)


def _best_of_each(model, baselines):
    common = [code for code in model if all(code in row for row in baselines.values())]
    return fmean(model[code] - max(row[code] for row in baselines.values()) for code in common)


def _unpaired(model, baselines):
    return fmean(model.values()) - max(fmean(row.values()) for row in baselines.values())


def _worse(model, baselines):
    worst = min(baselines.values(), key=lambda row: fmean(row.values()))
    return fmean(model[code] - worst[code] for code in model if code in worst)


def _judge(half=0.3, full=0.1, distance=lambda expected, measured: abs(measured - expected), missing=None):
    """A verdict with these tolerances and this distance; `missing`: what to say of (nothing published, measured)."""
    words = missing or ("not published", "not measured")

    def verdict_of(expected, measured, dtype):
        if expected is None or measured is None:
            return words[0] if expected is None else words[1]
        return "agrees" if distance(expected, measured) <= (full if dtype == "fp32" else half) + 1e-9 else "differs"

    return verdict_of


verdict_of = _judge()


def change_taken_apart(published, measured):
    """(change without the prefix, change of what it adds): their sum is the change with it."""
    bare = measured[1] - published[1]
    return bare, (measured[0] - published[0]) - bare


SOLUTIONS = {"10.1": prefixes, "10.2": 5 / 9, "10.3": margin, "10.4": verdict_of, "10.5": change_taken_apart,
             "10.6": (59.4, 59.5)}
WRONG = {
    "10.2": [2 / 3, 1 / 2, 5 / 6, 4 / 7],
    "10.1": [_swapped, _as_mteb, _reranking_too, _type_only, _no_space],
    "10.3": [lambda model, baselines: -margin(model, baselines), _best_of_each, _unpaired, _worse],
    "10.4": [_judge(half=0.1), _judge(full=0.3), _judge(missing=("differs", "differs")),
             _judge(missing=("not measured", "not published")),
             _judge(distance=lambda expected, measured: expected - measured),
             _judge(distance=lambda expected, measured: measured - expected)],
    "10.6": [(59.4, 59.4), (59.5, 59.4), (59.5, 59.5), (59.4, 59.45), (59, 60)],
    "10.5": [lambda published, measured: change_taken_apart(measured, published),
             lambda published, measured: change_taken_apart(published, measured)[::-1],
             lambda published, measured: (measured[0] - published[0], measured[1] - published[1]),
             lambda published, measured: (measured[1] - published[1], measured[0] - published[0]),
             lambda published, measured: (0.1, 1.0)],
}
