"""What this machine's CPU can do."""

from pathlib import Path
from typing import Any

import torch

_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def multiplies_bf16() -> bool:
    """Whether it has instructions for products of bfloat16.

    Without them torch's are slow: with AVX-512 alone a training step takes twice as long as in
    float32, with AVX2 tens of times as long (measured with ONEDNN_MAX_CPU_ISA). What does not need
    them is in model/dtype_cast.py.
    """
    capabilities: Any = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.12 or so
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in _BF16)
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(name in words for name in _BF16)
