"""How much memory there is, and how the allocator handles it."""

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8

_CGROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 4 * 2**30  # where there is no figure that is true for long


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, for the next step, and take it from one arena.

    By default every large tensor is fresh memory, which the kernel clears page by page at first
    touch: a tenth of a training step on a CPU. Must be called before other threads allocate.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for option, value in (
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 64 * 2**20),
        (_ARENA_MAX, 1),
    ):
        libc.mallopt(option, value)


def return_freed_memory() -> None:
    """Give what is free back to the system: after something large and lasting has gone."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def free_memory(device: "torch.device") -> int:
    """Bytes that can be allocated now: of the GPU, or of this process's machine or container."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_machine_free(), *_container_free()]) + _freed_and_kept()


class _MallocState(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _freed_and_kept() -> int:
    """Bytes that malloc has from the system and that are free."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _MallocState
    return int(libc.mallinfo2().fordblks)


def machine_memory() -> int:
    """Bytes that the machine has, or its container may have."""
    try:
        total = int(_meminfo()["MemTotal"].split()[0]) * 1024
    except OSError:
        return _UNKNOWN
    return min([total, *(limit for limit, _, _ in _container())])


def _machine_free() -> int:
    try:
        return int(_meminfo()["MemAvailable"].split()[0]) * 1024
    except OSError:
        return _UNKNOWN


def _meminfo() -> dict[str, str]:
    """Raises: OSError: this is not Linux."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)  # type: ignore[misc]


def _container_free() -> list[int]:
    # Files that were read are counted as used, but make room when it is wanted.
    return [limit - (used - cached) for limit, used, cached in _container()]


def _container() -> list[tuple[int, int, int]]:
    """Limit, use, and what of it are cached files, in bytes; nothing where there is no limit."""
    for limit, used, counts, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
            *("memory/memory.stat", "total_inactive_file"),
        ),
    ):
        try:
            fields = dict(line.split() for line in (_CGROUP / counts).read_text().splitlines())
            numbers = (_CGROUP / limit).read_text(), (_CGROUP / used).read_text(), fields[cache]
            bound, taken, cached = (int(number) for number in numbers)
            return [(bound, taken, cached)]
        except (OSError, ValueError, KeyError):  # no such file, or "max"
            continue
    return []
