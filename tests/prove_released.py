"""What is claimed of `me5-small-q4`, measured: cache, loading, memory, token ids and vectors in other libraries.

    python tests/prove_released.py [--golden FILE]        # minutes; the pack must be there (`me5 packs`)

FILE: JSON lines of text and ids of mE5's own tokenizer (default: the 36 sentences that the library carries).
"""

import argparse
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path)
    golden_file = parser.parse_args().golden
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    from me5lib.data import packs
    from me5lib.model import export, released, text
    from me5lib.model.encoder import Encoder
    from me5lib.model.save_load import PROMPTS

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

        encoder, exported = Encoder.load(released.NAME), str(Path(folder) / "model")
        encoder.save(exported)
        model = SentenceTransformer(exported, device="cpu")
        rows = [json.loads(line) for line in (golden_file or text.GOLDEN).read_text(encoding="utf8").splitlines()]
        for name, tokenizer in (("pack", encoder.tokenizer), ("AutoTokenizer", AutoTokenizer.from_pretrained(exported)),
                                ("sentence-transformers", model.tokenizer)):
            right = sum(tokenizer(row["text"])["input_ids"] == row["ids"] for row in rows)
            print(f"token ids, {name}: {right} of {len(rows)}")
        worst = export.difference(export.sentence_transformers, Path(exported), encoder, PROMPTS)
        print(f"vectors of {len(export.check_texts(encoder.max_tokens))} texts in {len(export.LOCALES)} languages, "
              f"sentence-transformers against Encoder, fp32: {worst:.1e} apart at most")


if __name__ == "__main__":
    main()
