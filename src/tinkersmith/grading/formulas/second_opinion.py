"""Two formulas -> the opinion of `math-verify` (sympy), asked in a process of its own.

This process imports no sympy. The worker is one Python process that stays: it reads a pair as a
line of JSON and answers with a line. It is killed when a pair takes too long, and the next pair
gets a new one. It ends when this process ends, however that happens.

The file is also the worker's program. It therefore imports only the standard library at its top.
"""

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

TIMED_OUT: Literal["timed out"] = "timed out"
LONGEST_WAIT = 1.5  # seconds for one pair, the start of a new worker included
_LONGEST_START = 60.0  # seconds that `warm_up` waits on a busy machine
_WORKER_MEMORY = 2 << 30  # bytes of address space
_MOST_REMEMBERED = 10_000  # pairs


@dataclass(slots=True)
class _Worker:
    process: "subprocess.Popen[bytes]"
    owner: int  # process id of the program that started it; a fork must not share the pipes
    ready: bool = False
    received: bytearray = field(default_factory=bytearray)

    def line(self, deadline: float) -> bytes | None:
        """The next line of the worker; None if it does not come in time or the worker ended."""
        stream = self.process.stdout
        if stream is None:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self.received:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return None
                chunk = os.read(stream.fileno(), 65536)
                if not chunk:
                    return None
                self.received += chunk
        line, _, rest = bytes(self.received).partition(b"\n")
        self.received = bytearray(rest)
        return line

    def is_ready(self, deadline: float) -> bool:
        if not self.ready:
            self.ready = self.line(deadline) == b"ready"
        return self.ready

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)


_lock = threading.Lock()
_worker: _Worker | None = None
Opinion = bool | Literal["timed out"] | None
_remembered: dict[tuple[str, str], Opinion] = {}
_complained = False
_timeouts = 0


# What is left of `LONGEST_WAIT`, in seconds, for all pairs of the answer that is being scored.
_patience: ContextVar[list[float] | None] = ContextVar("patience", default=None)


@contextlib.contextmanager
def one_answer() -> Generator[None]:
    """Let all pairs that are asked about inside share `LONGEST_WAIT`: they belong to one answer."""
    if _patience.get() is not None:
        yield
        return
    token = _patience.set([LONGEST_WAIT])
    try:
        yield
    finally:
        _patience.reset(token)


def warm_up() -> bool:
    """Start the worker and wait until sympy is imported, so that no pair waits for it.

    Returns:
        Whether `math-verify` can be asked.
    """
    with _lock:
        worker = _running()
        if worker is not None and worker.is_ready(time.monotonic() + _LONGEST_START):
            return True
        _drop()
        _complain()
        return False


def ask(expected: str, given: str) -> Opinion:
    """Whether `math-verify` takes two formulas in LaTeX for equal, in both directions.

    Returns:
        None if it cannot read one of them; `TIMED_OUT` if it takes more than `LONGEST_WAIT`
        seconds, so that the opinion depends on how busy the machine is.
    """
    pair = (expected, given)
    with _lock:
        if pair in _remembered:
            return _counted(_remembered[pair])
        patience = _patience.get()
        start = time.monotonic()
        deadline = start + (LONGEST_WAIT if patience is None else patience[0])
        try:
            return _counted(_asked(pair, deadline))
        finally:
            if patience is not None:
                patience[0] -= time.monotonic() - start


def timeouts() -> int:
    """How many comparisons of this process `math-verify` was too slow for."""
    return _timeouts


def _counted(opinion: Opinion) -> Opinion:
    global _timeouts
    _timeouts += opinion == TIMED_OUT
    return opinion


def _asked(pair: tuple[str, str], deadline: float) -> Opinion:
    worker = _running()
    if worker is None:
        return None
    if deadline <= time.monotonic():
        return TIMED_OUT
    if not worker.is_ready(deadline):
        if worker.process.poll() is not None:
            _drop()
            _complain()
            return None
        return TIMED_OUT  # not remembered: it is still importing sympy
    answer = _answer(worker, pair, deadline)
    if len(_remembered) < _MOST_REMEMBERED:
        _remembered[pair] = answer
    return answer


def _answer(worker: _Worker, pair: tuple[str, str], deadline: float) -> Opinion:
    try:
        assert worker.process.stdin is not None
        worker.process.stdin.write(json.dumps(pair).encode() + b"\n")
        worker.process.stdin.flush()
        line = worker.line(deadline)
    except OSError:
        line = None
    if line is None:
        timed_out = time.monotonic() >= deadline  # else it ran out of memory, or was killed
        _drop()
        _running()  # the next pair finds a worker that has begun to import sympy
        return TIMED_OUT if timed_out else None
    answer: Any = json.loads(line)
    return answer if isinstance(answer, bool) else None


def _running() -> _Worker | None:
    """The worker of this process, started if there is none."""
    global _worker
    if _worker is not None and _worker.owner == os.getpid():
        return _worker
    command = [
        sys.executable,
        "-P",
        os.path.abspath(__file__),
    ]  # -P: our numbers.py is not Python's
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this program, which then ends the worker
        )
    except OSError:
        _complain()
        return None
    _worker = _Worker(process, os.getpid())
    return _worker


def _drop() -> None:
    global _worker
    if _worker is not None and _worker.owner == os.getpid():
        _worker.end()
    _worker = None


def _complain() -> None:
    global _complained
    if not _complained:
        _complained = True
        print(
            "Warning: math-verify does not start. Formulas that Tinkersmith cannot decide itself "
            "count as different. Reinstall it with: pip install math-verify",
            file=sys.stderr,
        )


atexit.register(_drop)


# ---- the worker's side


def _serve() -> None:
    """Answer pairs from standard input until it closes."""
    _limit_memory()
    from math_verify import (  # pyright: ignore[reportMissingTypeStubs]
        LatexExtractionConfig,
        parse,
        verify,
    )

    def reads(text: str) -> Any:
        return parse(
            f"${text}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,  # type: ignore[arg-type]
        )

    def agrees(first: Any, second: Any) -> bool:
        return verify(first, second, float_rounding=15, numeric_precision=30, timeout_seconds=None)

    agrees(reads(r"\int_0^1 x\,dx"), reads(r"\frac{1}{2}"))  # the first parse builds tables
    print("ready", flush=True)
    for line in sys.stdin:
        expected, given = json.loads(line)
        # The system's own handler ends a computation that never returns to Python. It also ends a
        # worker whose parent was killed meanwhile.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, 2 * LONGEST_WAIT)  # of processor time
        answer: bool | None = None
        with contextlib.suppress(Exception):
            first, second = reads(expected), reads(given)
            if first and second:
                # verify() is not symmetric, and a chance is taken once, not twice
                answer = agrees(first, second) and agrees(second, first)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_WORKER_MEMORY, _WORKER_MEMORY))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
