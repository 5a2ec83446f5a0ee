"""What was requested, the model's size and the machine's load -> how many CPU threads compute.

The order: `--threads`, then OMP_NUM_THREADS, then the engine's choice. Nothing here imports torch,
since `wait_passively` must run before that.
"""

import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

READ_USE_EVERY = 2.0  # seconds between two looks at the machine
LOAD_SPAN = 60.0  # seconds that the system's load average is the mean of
_STEP = 0.75  # idle cores more or fewer than our threads, from which their number changes
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user chose otherwise.

    By default they spin, and take a core from whoever would let them go on. Two threads on two busy
    cores then used 12 times the CPU time of one thread for the same training steps; asleep, 1.07
    times (bundled model).
    """
    if not any(name in environment for name in _WAITING):
        environment["OMP_WAIT_POLICY"] = "passive"


def requested_threads(option: int, environment: Mapping[str, str]) -> int:
    """The user's number: `option` (--threads), else OMP_NUM_THREADS; 0 if there is neither."""
    if option:
        return option
    # OpenMP takes a list, too: one number for each level of nesting.
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine_load() -> float:
    """How many threads of the whole machine ran or wanted to run, mean of the last minute."""
    try:
        return os.getloadavg()[0]
    except OSError:  # the system does not say
        return 0.0


def machine_cpu_time() -> float | None:
    """CPU seconds that all programs have used since the machine's start; None: it does not say."""
    try:
        with open("/proc/stat") as file:
            times = [int(field) for field in file.readline().split()[1:8]]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts = times
    except (OSError, ValueError):  # not Linux
        return None
    ticks = user + nice + system + interrupts + soft_interrupts
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class ThreadChoice:
    """Chooses how many threads compute, from what other programs do on the machine.

    That is the CPU time that they used since the last look. At the start, after a long pause, and
    where the system does not tell CPU times, it is the load average, which is slow: for a minute it
    counts programs that have ended. Our own work is taken off both. The choice changes only when it
    is clearly off, so that it does not flutter.
    """

    requested: int  # 0: the engine chooses
    cores: int = field(default_factory=available_cores)
    machine_cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    load: Callable[[], float] = machine_load
    clock: Callable[[], float] = time.monotonic  # seconds
    cpu_time: Callable[[], float] = time.process_time  # seconds of this process
    all_cpu_time: Callable[[], float | None] = machine_cpu_time  # seconds of all processes
    _looked: float = field(init=False)
    _used: float = field(init=False)
    _used_by_all: float | None = field(init=False)
    _idle: float = field(init=False)  # cores that others leave, at the last look
    _numbers: dict[int, int] = field(init=False, default_factory=dict)  # by the most there may be

    def __post_init__(self) -> None:
        # Made at the engine's start, before its own work counts.
        self._looked, self._used = self.clock(), self.cpu_time()
        self._used_by_all = self.all_cpu_time()
        self._idle = self.machine_cores - self.load()

    def most(self, *, small: bool) -> int:
        """The number on an idle machine. A small model is as fast on half of the cores."""
        if self.requested:
            return self.requested
        return max(1, self.cores // 2) if small else self.cores

    def number(self, *, small: bool) -> int:
        """How many threads to begin work with now; `small` as for `most`."""
        most = self.most(small=small)
        if self.requested:
            return most
        self._look()
        number = self._numbers.get(most, most)
        if abs(self._idle - number) >= _STEP:
            number = min(max(round(self._idle), 1), most)
        self._numbers[most] = number
        return number

    def kept(self, number: int) -> int:
        """The number for work that was begun with `number` threads, in an earlier process."""
        return self.requested or min(number, self.cores)

    def _look(self) -> None:
        now = self.clock()
        passed = now - self._looked
        if passed < READ_USE_EVERY:
            return
        used_by_all = self.all_cpu_time()
        if used_by_all is None and passed < LOAD_SPAN / 2:  # the load average changes slowly
            return
        used = self.cpu_time()
        own = (used - self._used) / passed
        if used_by_all is None or self._used_by_all is None or passed > LOAD_SPAN:
            busy = self.load()
        else:
            busy = (used_by_all - self._used_by_all) / passed
        self._idle = self.machine_cores - max(busy - own, 0.0)
        self._looked, self._used, self._used_by_all = now, used, used_by_all
