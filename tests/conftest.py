"""What holds for all tests, and for the engines that they start."""

import os
import signal
from collections.abc import Iterator

import pytest

# Before torch is imported. By default a thread that waits for work keeps its core busy, and two
# processes with two threads each on two cores spend most of their time waiting for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Nothing about a result may depend on how busy the machine is: without a number, the engine chooses
# its threads by the load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A job that a shell starts in the background ignores Ctrl-C, and so would the programs that the
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _umask_as_before() -> Iterator[None]:
    """An engine that a test runs in this process keeps its new files private from then on."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def kept_engines() -> Iterator[None]:
    """The module's tests share engines: for tests of what engines answer, not of how they end."""
    from tests.support.kept_engines import engines_kept

    with engines_kept():
        yield
