#!/bin/sh
# datatrove 0.10.1: a task whose documents are all filtered out writes no file, and the reader of the next step hands
# files to ranks by their place in the sorted list, not by the rank in their names. So after one empty task every later
# rank of the next step reads its neighbour's file, and the last ranks read none. Whatever is kept by rank beside the
# documents (signatures, counts, languages, a manifest of that rank) is then joined to the wrong documents; nothing is
# said. Who builds on ranks must write a file for an empty task as well, or look files up by name.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datatrove==0.10.1 orjson==3.11.4 regex==2026.11.19 2>/dev/null
cd "$folder"
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import gzip
import json
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

Path("raw").mkdir()
for rank, text in enumerate(("drop me", "from rank 1", "from rank 2")):
    Path(f"raw/{rank:05}.jsonl").write_text(json.dumps({"id": str(rank), "text": text}) + "\n", encoding="utf8")
first = [JsonlReader("raw"), LambdaFilter(lambda document: "drop" not in document.text), JsonlWriter("kept")]
LocalPipelineExecutor(pipeline=first, tasks=3, workers=1, logging_dir="logs1", skip_completed=False).run()
second = [JsonlReader("kept"), JsonlWriter("again")]
LocalPipelineExecutor(pipeline=second, tasks=3, workers=1, logging_dir="logs2", skip_completed=False).run()
for step in ("kept", "again"):
    print(step, {path.name: json.loads(gzip.open(path).readline())["text"] for path in sorted(Path(step).iterdir())})
names = [path.name for path in sorted(Path("kept").iterdir())]
assert names == ["00001.jsonl.gz", "00002.jsonl.gz"], "an empty task writes a file now"
moved = {path.name: json.loads(gzip.open(path).readline())["text"] for path in Path("again").iterdir()}
assert moved == {"00000.jsonl.gz": "from rank 1", "00001.jsonl.gz": "from rank 2"}, "ranks keep their files now"
PY
