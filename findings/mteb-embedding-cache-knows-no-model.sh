#!/bin/sh
# mteb 2.26.24: `CachedEmbeddingWrapper` keeps vectors by task, side and experiment, but not by model or revision. Two
# models that are given one cache folder, as in the class's own example, share it: of equal width (384: multilingual-e5-
# small, e5-small, all-MiniLM-L6), the second is never asked for a text that the first has encoded, and is scored by the
# first's vectors, without a word. So is a model before and after its fine-tuning. A folder for each model and revision
# is the user's to choose.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mteb==2.26.24 torch==2.13.0 2>/dev/null
cat > "$folder/cache.py" <<'PY'
import tempfile

import mteb
import numpy as np
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.models.cache_wrappers import CachedEmbeddingWrapper
from mteb.types import PromptType

TASK = mteb.get_task("STSBenchmark").metadata


class Model:
    """Gives every text one constant vector, and counts what it was asked."""

    def __init__(self, name, value, width):
        self.mteb_model_meta = mteb.models.ModelMeta.create_empty({"name": name, "revision": "1"})
        self.value, self.width, self.asked = value, width, 0

    def encode(self, inputs, **_):
        texts = [text for batch in inputs for text in batch["text"]]
        self.asked += len(texts)
        return np.full((len(texts), self.width), self.value, np.float32)


def vectors(model, folder):
    data = create_dataloader(Dataset.from_dict({"text": ["eins", "zwei"]}), task_metadata=TASK, batch_size=2)
    cached = CachedEmbeddingWrapper(model, folder)
    try:
        return cached.encode(data, task_metadata=TASK, hf_split="test", hf_subset="default", batch_size=2)
    finally:
        cached.close()


with tempfile.TemporaryDirectory() as folder:
    first, second = Model("lab/first", 1.0, 384), Model("lab/second", 2.0, 384)
    print(vectors(first, folder)[:, 0], first.asked)
    print(vectors(second, folder)[:, 0], second.asked)
PY
"$folder/venv/bin/python" "$folder/cache.py" 2>/dev/null | tee "$folder/seen"
# the second model's vectors are the first's (1, not 2), and it was asked for none of two texts
[ "$(cat "$folder/seen")" = "[1. 1.] 2
[1. 1.] 0" ] || { echo "this has changed"; exit 1; }
