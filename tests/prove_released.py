"""What is claimed of `me5-small-q4`, measured: cache, loading, memory. Its token ids and vectors: test_released.

    python tests/prove_released.py        # a minute; the pack must be there (`me5 packs`)
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, time
from transformers import BertModel, PreTrainedTokenizerFast
from me5lib.model.encoder import Encoder

def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

before, start = memory("VmRSS"), time.perf_counter()
encoder = Encoder.load("me5-small-q4")
took = time.perf_counter() - start
print(json.dumps({"seconds": took, "peak": memory("VmHWM") - before, "after": memory("VmRSS") - before}))
"""


def loading(cache: str) -> dict:
    """Seconds after imports, and bytes above what they took: in a process of its own (Linux)."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True,
                          env=os.environ | {"ME5_CACHE": cache})  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from me5lib.data import packs
    from me5lib.model import released

    (pack,) = packs.fetch([released.NAME]).values()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        (cache / "packs").mkdir(parents=True)
        shutil.copy(pack, cache / "packs")
        for which in ("first", "second", "third"):
            found = loading(str(cache))
            print(f"{which} load {found['seconds']:.1f} s after imports; memory above them: peak "
                  f"{found['peak'] / 1e9:.2f} GB, afterwards {found['after'] / 1e9:.2f} GB")
        kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        print(f"cache {kept / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
