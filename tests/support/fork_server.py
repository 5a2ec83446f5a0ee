"""Engines that are forked from a process that has already imported what they import.

The imports take several seconds of each start, and most tests are not about the start. All else is
as with `python -m tinkersmith.engine`: a process of its own with its own folder, key and pipes.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from subprocess import PIPE, TimeoutExpired
from typing import IO

ENGINE = ("-m", "tinkersmith.engine")
_PYTHON = sys.executable
_IMPORTED = [
    "uvicorn",
    "tinkersmith.engine.server.app",
    "tinkersmith.engine.scheduling.operations",
    "tinkersmith.engine.runtime.clients",  # torch, transformers
    "tinkersmith.engine.__main__",
]
# The beginnings of variables that libraries may read when they are imported. Where one of them
# differs, an engine has to import for itself.
_READ_AT_IMPORT = (
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TORCH_", "PYTORCH_", "ATEN_", "MALLOC_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "SAFETENSORS_", "TINKERSMITH_"),
    *("HOME", "XDG_", "TMPDIR", "PATH", "PYTHON", "LANG", "LC_", "LD_"),
)
_KEY = "TINKERSMITH_ENGINE_KEY"


class ForkedEngine:
    """What tests use of `subprocess.Popen`, for an engine that was forked."""

    def __init__(
        self, options: Sequence[str], environment: Mapping[str, str], stderr: int, session: bool
    ) -> None:
        stdin, to_stdin = os.pipe()
        from_stdout, stdout = os.pipe()
        given = [
            Connection(stdin, writable=False),
            Connection(stdout, readable=False),
            Connection(os.dup(stderr), readable=False),
        ]
        self._process = _context().Process(
            target=_serve, args=(list(options), dict(environment), os.getcwd(), given, session)
        )
        self._process.start()
        for pipe in given:
            pipe.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdin: IO[bytes] | None = open(to_stdin, "wb", buffering=0)  # noqa: SIM115
        self.stdout: IO[bytes] | None = open(from_stdout, "rb")  # noqa: SIM115

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutExpired("the engine", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def Popen(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stderr: IO[bytes] | None = None,
    start_new_session: bool = False,
    stdin: int = PIPE,
    stdout: int = PIPE,
) -> "subprocess.Popen[bytes] | ForkedEngine":
    """`subprocess.Popen` for engines: forked, if that makes no difference to the program."""
    program, options = tuple(command[:3]), command[3:]
    imports_alike = _read_at_import(env) == _OF_THE_SERVER
    if program == (_PYTHON, *ENGINE) and _within_pytest() and imports_alike:
        error = 2 if stderr is None else stderr.fileno()
        return ForkedEngine(options, env, error, start_new_session)
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=start_new_session,
    )


def _within_pytest() -> bool:
    """Benchmarks measure engines that were started as users start them."""
    return "PYTEST_CURRENT_TEST" in os.environ


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_IMPORT) and name != _KEY
    }


_OF_THE_SERVER = _read_at_import(os.environ)  # this module is imported before the first test


def _serve(
    options: list[str],
    environment: dict[str, str],
    folder: str,
    given: list[Connection],
    session: bool,
) -> None:
    """The engine's process, from here on as if it were started by its command."""
    from tinkersmith.engine.__main__ import main

    if session:
        os.setsid()
    for number, pipe in enumerate(given):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(main(options))
