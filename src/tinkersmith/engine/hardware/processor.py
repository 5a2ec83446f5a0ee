"""What this machine's CPU can compute."""

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
