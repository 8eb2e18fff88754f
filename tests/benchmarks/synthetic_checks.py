"""What a model's word on a wrong text is worth: precision and recall of "the wrong text is the nearer one".

    python tests/benchmarks/synthetic_checks.py [--model me5-small-q4] [--spoilt 0.1] [--draws 200]

In a share of synthetic-v1's rows the positive and the negative change places: those are to be found by the margin of
the two cosines, smallest first. Printed by task type, twins apart: the share of good rows whose negative is nearer, the
average precision, and the precision where half, three quarters and nine tenths of the spoilt rows are found, means over
draws of the spoilt ones. A draw costs nothing: an exchange turns a margin's sign.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import numpy as np

from me5lib.instruct import quality
from me5lib.instruct.synthetic import TASK_TYPES, read_examples
from me5lib.model.encoder import Encoder

RECALLS = (0.5, 0.75, 0.9)


def curve(margin: np.ndarray, spoilt: np.ndarray) -> list[float]:
    """Average precision, then the best precision at a recall of `RECALLS` or more."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    score = np.where(spoilt, margin, -margin)
    precision, recall, _ = precision_recall_curve(spoilt, score)
    return [average_precision_score(spoilt, score), *(precision[recall >= least].max() for least in RECALLS)]


def main() -> int:
    """See above."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--model", default="me5-small-q4")
    options.add_argument("--spoilt", type=float, default=0.1)
    options.add_argument("--draws", type=int, default=200)
    args = options.parse_args()
    rows = read_examples(drafts=True)
    encode = partial(Encoder.load(args.model).encode, prefix="", progress=sys.stderr.isatty())
    margin = quality.margins(rows, encode)
    twins = {i for pair in quality.swapped_pairs(rows) for i in pair}
    kinds = np.array(["twins" if i in twins else row.task_type for i, row in enumerate(rows)])
    print(f"{'':14}{'rows':>5}{'nearer':>8}{'average':>9}" + "".join(f"{f'at {each:g}':>9}" for each in RECALLS))
    for kind in ("all", "all but twins", *TASK_TYPES, "twins"):
        own = margin[(kinds != "twins") if kind == "all but twins" else (kinds == kind) | (kind == "all")]
        rng, count = np.random.default_rng(0), max(1, round(args.spoilt * len(own)))
        draws = [curve(own, rng.permutation(len(own)) < count) for _ in range(args.draws)]
        figures = "".join(f"{each:>9.2f}" for each in np.mean(draws, 0))
        print(f"{kind:14}{len(own):>5}{(own < 0).mean():>8.2f}{figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
