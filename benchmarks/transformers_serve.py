"""`transformers serve` as a process of its own, for benchmarks/serving.py.

It needs packages that the project does not have. They are installed once into an environment of
their own, which shares torch and transformers with this one: both servers run the same versions.
"""

import os
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from benchmarks.own_venv import own_python, pip_install

ROOT = Path(__file__).resolve().parent.parent
OWN_VENV = ROOT / ".venv" / "transformers-serve"
PATIENCE = 120.0  # seconds for its start


def python_with_serve() -> Path:
    """A Python that can run `transformers serve`."""
    package = f"transformers[serving]=={version('transformers')}"

    def install(python: Path) -> None:
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = subprocess.run(
            [str(python), "-c", ask], check=True, capture_output=True, text=True
        ).stdout.strip()
        # It shares what this environment has, PyTorch above all.
        Path(packages, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip_install(python, package)

    return own_python(OWN_VENV, [package], install)


@contextmanager
def running_transformers_serve(
    python: Path, model: Path, dtype: str, log: Path, *, continuous: bool
) -> Iterator[int]:
    """`transformers serve` on a model's folder; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(python), "-m", "transformers.cli.transformers", "serve", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", dtype),
        # By default its cache takes nearly all of the memory, which ends the process on a CPU.
        *(["--continuous-batching", "--cb-max-memory-percent", "0.1"] if continuous else []),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_it_answers(process, port, log)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise SystemExit(f"transformers serve has not started:\n{log.read_text()[-2000:]}")
