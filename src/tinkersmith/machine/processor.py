"""What the system's files say of the CPU, for forecasts: programs that compute ask torch."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


def says_bf16() -> bool:
    """Whether the CPU says that it has instructions for products of bfloat16."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return bool(flags) and not _BF16.isdisjoint(flags[0].split())
