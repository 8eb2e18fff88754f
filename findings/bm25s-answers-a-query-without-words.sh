#!/bin/sh
# bm25s 0.3.16: a query none of whose words is in the index (or that has no word at all, such as "!!!" or an emoji) is
# answered all the same: with the LAST k documents of the corpus, every one at score 0, in an order that looks like a
# ranking. Nothing says that nothing was found, so a metric counts hits there, and a miner takes them for negatives.
# Whoever uses the result must drop what scored 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bm25s==0.3.16 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import bm25s

corpus = [f"document number {name}" for name in "one two three four five six seven".split()]
index = bm25s.BM25()
index.index(bm25s.tokenize(corpus, show_progress=False), show_progress=False)
for query in ("!!!", "zebra"):
    words = bm25s.tokenize([query], show_progress=False)
    places, scores = index.retrieve(words, k=3, show_progress=False)
    print(query, places.tolist(), scores.tolist())
    assert sorted(places[0].tolist()) == [4, 5, 6] and not scores.any(), "this has changed"
PY
