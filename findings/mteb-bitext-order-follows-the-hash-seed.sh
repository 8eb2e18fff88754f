#!/bin/sh
# mteb 2.26.24: a bitext task whose data is a dictionary of lists (BUCC; Tatoeba and others after mteb has split them by
# language) has its two sides encoded in the order of a Python set of column names, and that follows the hash seed of
# the process. So the same command calls the model with sentence1 first today and sentence2 first tomorrow. Scores do
# not change, but what depends on the order of calls does: a cache or log by call number, a run that is resumed in
# another process, a model with state, two runs that are compared step by step. PYTHONHASHSEED fixes it; data as a
# `datasets.Dataset` has the order of its columns.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mteb==2.26.24 torch==2.13.0 2>/dev/null
cat > "$folder/order.py" <<'PY'
import numpy as np
from datasets import Dataset
from mteb._evaluators.text.bitext_mining_evaluator import BitextMiningEvaluator
from mteb.similarity_functions import cos_sim
from mteb.timing import TimingStack

TEXTS = {"sentence1": ["eins", "zwei"], "sentence2": ["one", "two"]}


class Model:
    """Notes the first text of each call."""

    def __init__(self):
        self.calls = []

    def encode(self, inputs, **_):
        texts = [text for batch in inputs for text in batch["text"]]
        self.calls.append(texts[0])
        return np.eye(len(texts), dtype=np.float32)

    def similarity(self, one, other):
        return cos_sim(one, other)


def order(data):
    model = Model()
    BitextMiningEvaluator(data, None, "test", "deu-eng", [("sentence1", "sentence2")], TimingStack())(
        model, encode_kwargs={"batch_size": 2})
    return "-".join(model.calls)


print(order(TEXTS), order(Dataset.from_dict(TEXTS)))
PY
for seed in 0 1 2 3 4 5 6 7; do
  PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/order.py" 2>/dev/null
done | sort | uniq -c | tee "$folder/seen"
grep -q "eins-one eins-one" "$folder/seen" && grep -q "one-eins eins-one" "$folder/seen" || {
  echo "this has changed"; exit 1; }
