"""How much memory there is, and how the allocator treats it."""

import ctypes
import sys
from typing import TYPE_CHECKING

from tinkersmith.machine import memory as machine

if TYPE_CHECKING:
    import torch

# Options of glibc's mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8

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
    free = machine.free_system_memory()
    return (_UNKNOWN if free is None else free) + _freed_and_kept()


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
    return machine.system_memory() or _UNKNOWN
