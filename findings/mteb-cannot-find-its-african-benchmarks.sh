#!/bin/sh
# mteb 2.26.24 defines the benchmarks `MTEB(Africa, v1)` and `MTEB(Africa, v1, lite)` (AfriMTEB, arXiv 2510.23896), with
# aliases, but its package `mteb.benchmarks.benchmarks` does not import them, and get_benchmark looks nowhere else: the
# documented way to have them, by name or alias, ends in KeyError, and the suggestion is a benchmark of French.
# get_benchmarks() does not list them either. Import them from the module where they are defined.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mteb==2.26.24 torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import mteb
from mteb.benchmarks.benchmarks import benchmarks

found, refused = (benchmarks.MTEB_AFRICA, benchmarks.MTEB_AFRICA_LITE), 0
listed = {benchmark.name for benchmark in mteb.get_benchmarks()}
for benchmark in found:
    print(f"mteb {mteb.__version__} defines {benchmark.name}, {len(benchmark.tasks)} tasks, "
          f"and {'lists' if benchmark.name in listed else 'does not list'} it")
    for name in (benchmark.name, *benchmark.aliases):
        try:
            mteb.get_benchmark(name)
            print(f"  get_benchmark({name!r}) finds it")
        except KeyError as error:
            refused += 1
            print(f"  get_benchmark({name!r}): {error}")
sys.exit(0 if refused == 4 and not listed & {benchmark.name for benchmark in found} else "this has changed")
PY
