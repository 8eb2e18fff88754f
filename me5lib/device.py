"""Where models run, and in which numbers: the one place that decides it, for training, mining and evaluation.

    encoder = Encoder.load(folder).to(best_device())      # loaded on the CPU, moved by whoever uses it
    with autocast(encoder.device, precision(encoder.device).name): …
"""

from __future__ import annotations

from typing import NamedTuple

import torch


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
