"""The embedded engine as the recipe side sees it: a child process with a port and a key.

It ends with us, whatever happens: it reads a pipe that we hold open, and goes when the pipe closes.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinkersmith.errors import UserError

START_PATIENCE = 120.0  # seconds for the engine's ready line


@dataclass
class Engine:
    process: subprocess.Popen
    url: str
    key: str
    log: Path

    def death(self) -> str | None:
        """The sentence that says it is dead; None while it lives."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"The engine has ended ({how}); its log is {self.log}."

    def stop(self) -> None:
        """Ask it to end; insist after two seconds."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        for insist in (None, self.process.terminate, self.process.kill):
            if insist is not None:
                insist()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)
                break
        if self.process.stdout is not None:
            self.process.stdout.close()
        with suppress(OSError):
            if self.log.exists() and self.log.stat().st_size == 0:
                self.log.unlink()


def start_engine(output_dir: Path, base_models: Sequence[str]) -> Engine:
    """Start `python -m tinkersmith.engine` on a free port and wait until it serves.

    Raises:
        UserError: it did not start; the sentence quotes its log.
    """
    folder = output_dir / ".engine"
    log = folder / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    key = f"tml-{secrets.token_hex(16)}"
    command = [sys.executable, "-m", "tinkersmith.engine", "--port", "0", "--dir", str(folder)]
    for name in base_models:
        command += ["--base-model", name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                [*command, "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env={**_without_credentials(os.environ), "TINKERSMITH_ENGINE_KEY": key},
                # Ctrl-C reaches the recipe only, which then ends the engine in order.
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR {output_dir} cannot be written to: {error.strerror}. Choose another "
            "folder, or make room."
        ) from None
    engine = Engine(process, "", key, log)
    try:
        engine.url = f"http://127.0.0.1:{_ready_port(process)}"
    except BaseException as error:
        engine.stop()
        if not isinstance(error, ValueError):
            raise
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = lines[-1].removeprefix("Error: ") if lines else "it said nothing"
        raise UserError(f"The engine did not start: {reason} (its log is {log}).") from None
    return engine


def _without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's key is for the cloud; our own engine has no use for it."""
    secret = ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD")
    return {name: value for name, value in environment.items() if name not in secret}


def _ready_port(process: subprocess.Popen) -> int:
    """Raises: ValueError: the process ended, or said something else, or nothing for too long."""
    assert process.stdout is not None
    line: list[bytes] = []
    reader = threading.Thread(target=lambda: line.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(START_PATIENCE)
    if not line or not line[0]:
        raise ValueError("no ready line")
    return int(json.loads(line[0])["port"])
