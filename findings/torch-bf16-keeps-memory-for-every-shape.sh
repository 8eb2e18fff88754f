#!/bin/sh
# torch 2.13.0 (CPU with AVX-512, bf16 autocast): every new shape of a product leaves memory behind that nothing gives
# back, half a megabyte to one for one layer, up to 1,024 shapes; fp32 has nothing of the kind. It is kept twice: torch's
# bridge to oneDNN keeps its primitives with their work space (LRU_CACHE_CAPACITY), and oneDNN keeps its own
# (ONEDNN_PRIMITIVE_CACHE_CAPACITY); to bound one of the two leaves the other.
# Batches of texts have a new number of tokens nearly every time. Both bounded at 64 took no longer. (Linux, glibc)
set -eu
grep -q avx512bw /proc/cpuinfo || { echo "skipped: oneDNN does no bf16 on this processor"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
cat > "$folder/shapes.py" <<'PY'
import ctypes
import gc
import sys

import torch

model = torch.nn.Sequential(torch.nn.Linear(384, 1536), torch.nn.GELU(), torch.nn.Linear(1536, 384))


def run(rows):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[1] == "bf16"):
        model(torch.ones(rows, 384))


def resident():
    """MB that stay when all is freed and glibc has given back what it can."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    line = next(line for line in open("/proc/self/status", encoding="ascii") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1000


run(2000)
before = resident()
for rows in range(1000, 2000, 2):
    run(rows)
kept = resident() - before
print(sys.argv[1], *sys.argv[2:], "keeps", "over 400 MB" if kept > 400 else "over 150 MB" if kept > 150 else
      "under 60 MB" if kept < 60 else f"{kept:.0f} MB")
PY
one=LRU_CACHE_CAPACITY=16 two=ONEDNN_PRIMITIVE_CACHE_CAPACITY=16
{
    "$folder/venv/bin/python" "$folder/shapes.py" fp32
    "$folder/venv/bin/python" "$folder/shapes.py" bf16
    env $one "$folder/venv/bin/python" "$folder/shapes.py" bf16 $one
    env $two "$folder/venv/bin/python" "$folder/shapes.py" bf16 $two
    env $one $two "$folder/venv/bin/python" "$folder/shapes.py" bf16 both at 16
} | tee "$folder/seen"
[ "$(cat "$folder/seen")" = "fp32 keeps under 60 MB
bf16 keeps over 400 MB
bf16 LRU_CACHE_CAPACITY=16 keeps over 400 MB
bf16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 keeps over 150 MB
bf16 both at 16 keeps under 60 MB" ] || { echo "this has changed"; exit 1; }
