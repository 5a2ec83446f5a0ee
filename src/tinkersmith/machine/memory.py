"""Files of the system -> how much memory this machine or container has, and how much is free."""

from pathlib import Path

SMALL = 300_000_000  # parameters up to which float32 is affordable on every CPU
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def system_memory() -> int | None:
    """Bytes of the machine's memory, or of the container's limit if it is lower.

    Returns:
        None where the system does not say, as on other systems than Linux.
    """
    total = _of_machine("MemTotal")
    return None if total is None else min([total, *(limit for limit, _, _ in _container())])


def free_system_memory() -> int | None:
    """Bytes that programs can still get, on the machine and in its container; None: see above."""
    free = _of_machine("MemAvailable")
    if free is None:
        return None
    # Cached files count as used, but the system drops them when memory is needed.
    return min([free, *(limit - (used - cached) for limit, used, cached in _container())])


def float32_is_affordable(parameters: int, memory: int, *, multiplies_bf16: bool) -> bool:
    """Whether a model's weights are kept in float32 on a CPU, and not in bfloat16.

    Args:
        memory: what the machine has, not what is free now: a resumed run keeps the precision that
            it began with.
        multiplies_bf16: whether the CPU has instructions for products of bfloat16.
    """
    affordable = SMALL if multiplies_bf16 else memory // 2 // 4
    return parameters <= max(affordable, SMALL)


def _of_machine(name: str) -> int | None:
    """Bytes of a line of /proc/meminfo, which counts in units of 1,024."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        counts = {title: value for title, _, value in (line.partition(":") for line in lines)}
        return int(counts[name].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None


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
            limit = int((folder / limit_name).read_text(encoding="ascii"))
            used = int((folder / used_name).read_text(encoding="ascii"))
            lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            counts = {name: value for name, _, value in (line.partition(" ") for line in lines)}
            cached = int(counts[cached_name])
        except (OSError, ValueError, KeyError):  # no such file, or "max"
            continue
        return [(limit, used, cached)]
    return []
