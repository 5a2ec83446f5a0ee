"""How much memory there is, read from the system's files."""

from pathlib import Path

import pytest
import torch

from tinkersmith.engine.hardware import memory
from tinkersmith.engine.hardware.memory import free_memory, machine_memory

GIB = 2**30


def test_the_memory_that_is_free_is_less_than_the_machine_has() -> None:
    assert 0 < free_memory(torch.device("cpu")) < machine_memory()


def write_group(folder: Path, names: tuple[str, str, str], limit: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, cached_name = names
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{GIB // 2}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cached_name} {GIB // 8}\nfile 7\n")


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("", ("memory.max", "memory.current", "inactive_file")),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_a_container_with_a_limit_has_its_limit_and_cached_files_count_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, names: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    write_group(tmp_path / folder, names, "max")
    without_limit = machine_memory()
    assert memory._container_free() == []
    write_group(tmp_path / folder, names, str(GIB))
    assert machine_memory() == min(GIB, without_limit)
    assert memory._container_free() == [GIB - (GIB // 2 - GIB // 8)]
