"""The embedded engine as the recipe side sees it: a child process with a port and a key.

It ends when this process ends, whatever happens: it reads a pipe that we hold open, and ends when
the pipe closes.
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
    """The engine's process. It serves at `url` once `wait_until_ready` has returned."""

    process: subprocess.Popen[bytes]
    key: str
    log: Path
    url: str = ""

    def wait_until_ready(self) -> None:
        """Wait for the line in which the engine names its port; without one, end the engine.

        Raises:
            UserError: the engine did not start; the sentence quotes its log.
        """
        try:
            self.url = f"http://127.0.0.1:{_ready_port(self.process)}"
        except BaseException as error:
            self.stop()
            if not isinstance(error, ValueError):
                raise
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            lines = [line for line in text.splitlines() if line.strip()]
            reason = lines[-1].removeprefix("Error: ") if lines else "it said nothing"
            raise UserError(
                f"The engine did not start: {reason} (its log is {self.log})."
            ) from None

    def death(self) -> str | None:
        """A sentence that says how the engine ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"The engine has ended ({how}); its log is {self.log}."

    def stop(self) -> None:
        """Ask the engine to end; insist after two seconds."""
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


def start_engine(
    output_dir: Path, base_models: Sequence[str], options: Sequence[str] = ()
) -> Engine:
    """Start `python -m tinkersmith.engine` on a free port; `Engine.wait_until_ready` comes next.

    Raises:
        UserError: OUTPUT_DIR cannot be written to.
    """
    folder = output_dir / ".engine"
    log = folder / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    key = f"tml-{secrets.token_hex(16)}"
    command = [sys.executable, "-m", "tinkersmith.engine", "--port", "0", "--dir", str(folder)]
    for name in base_models:
        command += ["--base-model", name]
    command += options
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
    return Engine(process, key, log)


def _without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the user's key, which is for the cloud and not for our engine."""
    secret = ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD")
    return {name: value for name, value in environment.items() if name not in secret}


def _ready_port(process: subprocess.Popen[bytes]) -> int:
    """The port that the engine names in its first line.

    Raises:
        ValueError: the process ended, printed something else, or nothing for too long.
    """
    output = process.stdout
    assert output is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(output.readline()), daemon=True)
    reader.start()
    reader.join(START_PATIENCE)
    if not lines or not lines[0]:
        raise ValueError("no ready line")
    return int(json.loads(lines[0])["port"])
