"""Where models run, and in which numbers: the one place that decides it, for training, mining and evaluation.

    encoder = Encoder.load(folder).to(best_device())      # loaded on the CPU, moved by whoever uses it
    with autocast(encoder.device, precision(encoder.device).name): …
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

# On CPUs with bf16 torch and oneDNN each keep the last 1,024 products, every shape a product of its own with its work
# space, half a megabyte and more; and pieces of texts have many shapes. 64 are no slower (measured on `me5 teach`).
for _name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")

# Dense 16-bit matrix products with fp32 sums, FLOP/s, from the makers' data sheets; the first name that fits counts.
PEAK = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "A40": 150e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "V100": 125e12,
    "T4": 65e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


class Precision(NamedTuple):
    """The dtype of the encoder's matrix products, and why."""

    name: str  # "bf16" or "fp32"
    reason: str


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies it natively, else fp32: a property of the machine.

    Measuring which is faster could fall either way from run to run, and two runs with one seed must agree.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "this GPU has bf16")
        return Precision("fp32", "this GPU has no native bf16")  # ours: its fp16 would need a scaled loss
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return Precision("bf16", "this CPU multiplies bf16 natively (amx or avx512_bf16)")
    return Precision("fp32", "this CPU has no native bf16")


def autocast(device: torch.device, name: str) -> torch.autocast:
    """The autocast context of a precision's `name`; losses and pooling take themselves out of it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device's data sheet promises in 16 bits, or None where it is not known here."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in PEAK.items() if part in name), None)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside the block; outside, everybody's own go on as if nothing had been."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        yield
