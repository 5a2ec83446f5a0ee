"""How much memory there is, and how the allocator treats it."""

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Options of glibc's mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8

_CGROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 4 * 2**30  # bytes assumed where the system gives no figure


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step, in one arena.

    By default every large tensor is new memory, which the system clears page by page at first use:
    a tenth of a training step on a CPU. Must be called before other threads allocate.
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
    """Return freed memory to the system, after something large has been freed for good."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def free_memory(device: "torch.device") -> int:
    """Bytes that can be allocated now, on the GPU or in this machine or container."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([_machine_free(), *_container_free()]) + _freed_and_kept()


_MALLINFO = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallocState(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO.split())


def _freed_and_kept() -> int:
    """Bytes that malloc holds and that are free."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _MallocState
    return int(libc.mallinfo2().fordblks)


def machine_memory() -> int:
    """Bytes of the machine's memory, or of the container's limit if it is lower."""
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
    """Lines of /proc/meminfo by name.

    Raises:
        OSError: this is not Linux.
    """
    pairs = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return {name: value for name, _, value in pairs}


def _container_free() -> list[int]:
    # Cached files count as used, but the system drops them when memory is needed.
    return [limit - (used - cached) for limit, used, cached in _container()]


def _container() -> list[tuple[int, int, int]]:
    """Limit, use, and the cached files within that use, in bytes; empty where there is no limit."""
    for folder, limit_name, used_name, cached_name in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (
            _CGROUP / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            counts = {name: value for name, _, value in (line.partition(" ") for line in lines)}
            cached = int(counts[cached_name])
        except (OSError, ValueError, KeyError):  # no such file, or "max"
            continue
        return [(limit, used, cached)]
    return []
