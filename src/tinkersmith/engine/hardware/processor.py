"""What this machine's CPU can compute."""

import platform
from pathlib import Path

import torch

_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16.

    Without them torch's bfloat16 is slow: with AVX-512 alone a training step takes twice as long as
    in float32, with AVX2 tens of times as long (measured with ONEDNN_MAX_CPU_ISA). What does not
    need them is in model/dtype_cast.py.
    """
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16)


def processor_features() -> str:
    """The CPU's features as the system lists them; its name where there is no such list."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
