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


def processor_name() -> str:
    """The CPU's name as the system shows it; its architecture where the system shows none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
