"""The step and its peers on a GPU: mE5-base's shape (12 × 768), bf16, with sentence-transformers' unpadded path beside.

    python tests/benchmarks/gpu.py [options of training_step.py]

sentence-transformers skips padding when flash attention can be had (`pip install flash-attn` or `kernels`); it is tried
with and without. Where there is no GPU this prints one line.
"""

import sys

from training_step import main

ON_GPU = ["--device", "cuda", "--dtype", "bf16", "--cases", "base-256-30", "base-1024-30", "base-1024-90"]

if __name__ == "__main__":
    import torch

    if torch.cuda.is_available():
        main([*ON_GPU, *sys.argv[1:]])
    else:
        print("no GPU here: run this on a machine that has one")
