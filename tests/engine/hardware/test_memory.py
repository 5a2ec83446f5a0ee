"""How much memory the engine counts with."""

import pytest
import torch

from tinkersmith.engine.hardware.memory import free_memory, machine_memory
from tinkersmith.machine import memory


def test_the_memory_that_is_free_is_less_than_the_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0 < free_memory(torch.device("cpu")) < machine_memory()
    monkeypatch.setattr(memory, "_MEMINFO", memory._CGROUP / "no-such-file")  # another system
    assert 0 < free_memory(torch.device("cpu")) >= machine_memory() == 4 * 2**30
