"""Planted causes of slow reading: which does `diagnose.slow_reading` name first, and what does it say of healthy ones?

    python tests/benchmarks/slow_reading.py [--rounds 2]

Five configurations of common ways to lose time, ten that are as they should be: this kit, sentence-transformers at
batches of 8 to 64, plain transformers sorted by length. Cost: ten minutes of two quiet cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from me5lib.lessons import diagnose
from me5lib.model.encoder import Encoder, FastEncoder

KIT = "me5-small-q4"


def plain(encoder: Encoder, texts: Sequence[str], batch: int, **padding: Any) -> None:
    """transformers alone, in batches as they come."""
    for start in range(0, len(texts), batch):
        part = ["query: " + text for text in texts[start : start + batch]]
        options = {"padding": True, "truncation": True, "max_length": 512, "return_tensors": "pt"} | padding
        with torch.inference_mode():
            encoder.backbone(**encoder.tokenizer(part, **options))


def configurations(folder: Path) -> dict[str, tuple[str, Callable[[Sequence[str]], object]]]:
    """Name → planted cause ("": healthy) and function."""
    from sentence_transformers import SentenceTransformer

    encoder, read = Encoder.load(KIT), {name: FastEncoder.load(KIT, name) for name in ("fp32", "int8")}
    encoder.save(folder)
    peer = SentenceTransformer(str(folder), device="cpu")

    def _peer(texts: Sequence[str], batch: int) -> None:
        peer.encode(list(texts), prompt="query: ", batch_size=batch, show_progress_bar=False)

    healthy = {
        "FastEncoder fp32": read["fp32"].encode, "FastEncoder int8": read["int8"].encode,
        "Encoder fp32": encoder.encode,
        "Encoder int8": partial(encoder.encode, precision="int8"),
        "Encoder, passages": partial(encoder.encode, prefix="passage: "),
        **{f"sentence-transformers, batch {size}": partial(_peer, batch=size) for size in (8, 16, 32, 64)},
        "transformers, sorted, batch 16": lambda texts: plain(encoder, sorted(texts, key=len), 16),
    }  # fmt: skip
    planted = {
        "one at a time": ("one text at a time", lambda texts: [_peer([text], 1) for text in texts]),
        "padded to 512": ("padding", lambda texts: plain(encoder, texts, 16, padding="max_length")),
        "unsorted, batch 32": ("padding", partial(plain, encoder, batch=32)),
        "loaded for every call": ("loading", lambda texts: FastEncoder.load(KIT, "fp32").encode(texts)),
        "one thread": ("few threads", read["fp32"].encode),
    }  # fmt: skip
    return {name: ("", function) for name, function in healthy.items()} | planted


def main() -> None:
    """See above."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=2)
    rounds, threads, named = options.parse_args().rounds, torch.get_num_threads(), 0
    with tempfile.TemporaryDirectory(prefix="me5-") as folder:
        for name, (cause, encode) in configurations(Path(folder)).items():
            torch.set_num_threads(1 if cause == "few threads" else threads)
            found = diagnose.slow_reading(encode, KIT, rounds)
            torch.set_num_threads(threads)
            first = found[0].cause if found[0].score >= diagnose.NAMED else ""
            named += first == cause
            values = [f"{one.cause} {', '.join(f'{own.value.mean:.2f}' for own in one.evidence)}" for one in found]
            print(f"{name}: planted {cause or 'nothing'}, named {first or 'nothing'}; slower "
                  f"{found[0].symptom.value.mean:.2f}; {'; '.join(values)}", flush=True)
    print(f"{named} of 15 as planted")


if __name__ == "__main__":
    main()
