"""The instructions that this machine's CPU has."""

import platform
from pathlib import Path
from typing import Any

import torch

_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16.

    Without them torch's products are slow: with AVX-512 alone a training step takes twice as long
    as in float32, with AVX2 tens of times as long (measured with ONEDNN_MAX_CPU_ISA). widening.py
    has the way that needs no such instructions.
    """
    get_capabilities: Any = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.12 or so
    if get_capabilities is not None:
        capabilities = get_capabilities()
        return any(capabilities.get(name, False) for name in _BF16)
    features = processor_features().split()
    return any(name in features for name in _BF16)


def processor_features() -> str:
    """The CPU's features as the system lists them; its name where there is no such list."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
