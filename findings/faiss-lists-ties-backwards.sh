#!/bin/sh
# faiss-cpu 1.15.1: IndexFlatIP keeps the LOWEST rows among equal inner products, but lists them from the highest row
# down. A stable sort of the same products (NumPy) lists them from the lowest up. So where a corpus holds exact duplicates,
# or texts with equal vectors, the first hit, and every metric at rank 1, depends on which of the two searched: of five
# copies the one ranks the last first, the other the first. Whoever mixes them must sort equal scores by row.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import faiss
import numpy as np

vectors = np.zeros((40, 8), np.float32)
vectors[:, 0] = 1.0  # forty copies of one text
query = vectors[:1]
index = faiss.IndexFlatIP(8)
index.add(vectors)
_, by_faiss = index.search(query, 5)
by_numpy = np.argsort(-(query @ vectors.T), kind="stable")[:, :5]
print("faiss", by_faiss[0].tolist(), "NumPy, stable", by_numpy[0].tolist())
assert by_numpy[0].tolist() == [0, 1, 2, 3, 4] and by_faiss[0].tolist() == [4, 3, 2, 1, 0], "this has changed"
PY
