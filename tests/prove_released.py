"""What is claimed of `me5-small-q4`, measured: cache, loading, memory, token ids and vectors in other libraries.

    python tests/prove_released.py [--golden FILE]        # minutes; the pack must be there (`me5 packs`)

FILE: JSON lines of text and ids of mE5's own tokenizer (default: the 36 sentences that the library carries).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, os, sys, time
import torch, transformers
from transformers import BertModel, PreTrainedTokenizerFast
from me5lib.model import released
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


def scripts_of(texts: list[str]) -> int:
    import unicodedata

    return len({unicodedata.name(letter, "?").split()[0] for text in texts for letter in text if letter.isalpha()})


def texts() -> list[str]:
    """1,000 names and dates of CLDR, in languages of more than 20 scripts."""
    from datetime import datetime

    from babel import Locale, dates

    codes = "de ru el hy ka he ar fa am hi bn ta te kn ml gu pa si th lo km my zh ja ko bo dz chr iu mn or ur".split()
    found: list[str] = []
    for code in codes:
        names = list(Locale.parse(code).territories.values()) or list(Locale.parse(code).languages.values())
        found += names[:33] + [dates.format_datetime(datetime(2024, 2, 5), "full", locale=code) + ", ".join(names[:20])]
    return found[:1000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path)
    golden_file = parser.parse_args().golden
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    from me5lib.data import packs
    from me5lib.model import released, xlmr
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import QUERY

    (pack,) = packs.fetch([released.NAME]).values()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        (cache / "packs").mkdir(parents=True)
        os.link(pack, cache / "packs" / pack.name) if os.stat(pack).st_dev == os.stat(cache).st_dev else \
            (cache / "packs" / pack.name).write_bytes(pack.read_bytes())
        for which in ("first", "second", "third"):
            found = loading(str(cache))
            print(f"{which} load {found['seconds']:.1f} s after imports; memory above them: peak "
                  f"{found['peak'] / 1e9:.2f} GB, afterwards {found['after'] / 1e9:.2f} GB "
                  f"({found['after'] / 2**30:.2f} GiB)")
        kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        print(f"cache {kept / 1e6:.1f} MB")

        encoder = Encoder.load(released.NAME)
        encoder.save(Path(folder) / "model")
        exported = str(Path(folder) / "model")
        model = SentenceTransformer(exported, device="cpu")
        rows = [json.loads(line) for line in (golden_file or xlmr.GOLDEN).read_text(encoding="utf8").splitlines()]
        for name, tokenizer in (("pack", encoder.tokenizer), ("AutoTokenizer", AutoTokenizer.from_pretrained(exported)),
                                ("sentence-transformers", model.tokenizer)):
            right = sum(tokenizer(row["text"])["input_ids"] == row["ids"] for row in rows)
            print(f"token ids, {name}: {right} of {len(rows)}")
        sample = texts()
        theirs = model.encode([QUERY + text for text in sample], batch_size=32)
        worst = np.abs(encoder.encode(sample, QUERY) - theirs).max()
        print(f"vectors of {len(sample)} texts in {scripts_of(sample)} scripts, sentence-transformers against Encoder, "
              f"fp32: {worst:.1e} apart at most")


if __name__ == "__main__":
    main()
