"""What the CPU can compute, as torch and the system name it."""

from pathlib import Path

import pytest

from tinkersmith.engine.hardware.processor import multiplies_bf16


def test_the_system_names_the_same_bf16_instructions_as_torch() -> None:
    description = Path("/proc/cpuinfo")
    if not description.is_file():
        pytest.skip("only Linux describes its processor in a file")
    words = description.read_text().split()
    names = ("avx512_bf16", "amx_bf16", "bf16", "svebf16")
    assert multiplies_bf16() == any(name in words for name in names)
