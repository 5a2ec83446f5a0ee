"""What holds for all tests, and for the engines that they start."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
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

# The files that take longest, also because they wait. `make test` gives whole files to its workers,
# in this order: a long file that comes last leaves the others without work.
LONGEST_FIRST = (
    "training/test_interrupted_runs.py",
    "test_examples.py",
    "service/test_connection.py",
    "cli/test_terminals.py",
    "sweep/test_conduct.py",
    "engine/kernels/test_native.py",
    "evaluation/test_stopped_evaluation.py",
    "export/test_prove.py",
    "serving/test_models.py",
    "engine/cookbook/test_recipes.py",
    "engine/sampling/test_batch.py",
    "improve/test_improve.py",
    "training/rehearsal/test_rehearse.py",
    "benchmarks/test_gpu.py",
    "service/test_patience.py",
    "engine/server/test_connections.py",
    "engine/test_process.py",
    "engine/scheduling/test_many_clients.py",
    "dashboard/test_server.py",
    "training/test_best_checkpoint.py",
    "training/test_diverged_runs.py",
    "evaluation/test_evaluate.py",
    "export/test_export.py",
    "engine/server/routes/test_training.py",
    "engine/server/routes/test_rest.py",
    "training/test_loop.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    if gone := [str(file) for file in ranks if not file.exists()]:
        raise pytest.UsageError(
            f"tests/conftest.py puts {', '.join(gone)} first, which is no file."
        )
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def _umask_as_before() -> Iterator[None]:
    """An engine that a test runs in this process keeps its new files private from then on."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


# Each test draws the same numbers alone and beside others; the long trials draw others.
SEED = int(os.environ.get("TINKERSMITH_TEST_SEED", "0"))

# The same examples, too. No clock decides: neither how long one takes nor how long making it takes.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=SEED == 0,
)
hypothesis.settings.load_profile("tests")


def pytest_report_header() -> str:
    return f"TINKERSMITH_TEST_SEED={SEED}"


@pytest.fixture(autouse=True)
def _the_same_numbers() -> None:
    random.seed(SEED)
    # Most tests need neither of them, and importing takes seconds.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)


@pytest.fixture(scope="session", autouse=True)
def _forked_engines() -> Iterator[None]:
    """The recipes of this process fork their engines, too: see tests/support/fork_server.py."""
    from tests.support import fork_server
    from tinkersmith.service import embedded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "subprocess", fork_server)
        yield


@pytest.fixture(scope="module")
def started_engines() -> Iterator[None]:
    """Recipes start their engines as users' recipes do: for tests of engines as child processes."""
    from tinkersmith.service import embedded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "subprocess", subprocess)
        yield


@pytest.fixture(scope="module")
def kept_engines() -> Iterator[None]:
    """The module's tests share engines: for tests of what engines answer, not of how they end."""
    from tests.support.kept_engines import engines_kept

    with engines_kept():
        yield
