"""How much memory there is, read from the system's files."""

from pathlib import Path

import pytest

from tinkersmith.machine import memory
from tinkersmith.machine.memory import free_system_memory, system_memory

GIB = 2**30


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
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {4 * GIB // 1024} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", file)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    write_group(tmp_path / folder, names, "max")
    assert (system_memory(), free_system_memory()) == (8 * GIB, 4 * GIB)
    write_group(tmp_path / folder, names, str(GIB))
    assert (system_memory(), free_system_memory()) == (GIB, GIB - (GIB // 2 - GIB // 8))
    for content in ("", "MemTotal: much\n"):
        file.write_text(content)
        assert (system_memory(), free_system_memory()) == (None, None)
