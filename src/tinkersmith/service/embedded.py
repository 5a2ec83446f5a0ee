"""The embedded engine as the recipe side sees it: a child process with a port and a key.

It ends when this process ends, whatever happens: it reads a pipe that we hold open, and ends when
the pipe closes.
"""

import errno
import fcntl
import itertools
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
from typing import IO

from tinkersmith.errors import UserError

START_PATIENCE = 120.0  # seconds for the engine's ready line
_LAST_LINES = 3  # of the log, quoted when the engine does not start
_KEPT_LOGS = 10


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
            UserError: the engine did not start; the sentence quotes the end of its log.
        """
        try:
            self.url = f"http://127.0.0.1:{_ready_port(self.process)}"
        except _NotReady as error:
            if not error.explains:
                # It may have closed its output a moment before its end shows.
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=2)
            code = self.process.poll()
            self.stop()
            how = str(error)
            if code is not None and not error.explains:
                how = f"it ended at once, {_how_it_ended(code)}"
            raise UserError(f"The engine did not start: {self._reason(how)}") from None
        except BaseException:
            self.stop()
            raise

    def death(self) -> str | None:
        """A sentence that says how the engine ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"The engine has ended ({_how_it_ended(code)}); its log is {self.log}."

    def _reason(self, how: str) -> str:
        """The engine's own reason if it gave one; else `how`, and the end of its log."""
        text = ""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # an empty log is removed
            pass
        except OSError as error:
            return f"{how} (its log {self.log} cannot be read: {error.strerror or error})."
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines and lines[-1].startswith("Error: "):
            return f"{lines[-1].removeprefix('Error: ')} (its log is {self.log})."
        said = " / ".join(lines[-_LAST_LINES:])
        return f"{how}. " + (
            f"The end of its log {self.log}: {said}" if said else "It wrote nothing to its log."
        )

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
        UserError: OUTPUT_DIR cannot be written to, or the program cannot be started.
    """
    folder = output_dir / ".engine"
    key = f"tml-{secrets.token_hex(16)}"
    command = [sys.executable, "-m", "tinkersmith.engine", "--port", "0", "--dir", str(folder)]
    for name in base_models:
        command += ["--base-model", name]
    command += options
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)  # as the engine wants it
        _remove_old_logs(folder)
        log_file = _new_log(folder)
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR {output_dir} cannot be written to: {error.strerror}. Choose another "
            "folder, or free some space."
        ) from None
    log = Path(log_file.name)
    with log_file:
        try:
            process = subprocess.Popen(
                [*command, "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env={**_without_credentials(os.environ), "TINKERSMITH_ENGINE_KEY": key},
                # Ctrl-C reaches the recipe only, which then ends the engine in order.
                start_new_session=True,
            )
        except (OSError, ValueError, TypeError) as error:
            log.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or error
            advice = (
                "Free some memory, or end other programs."
                if getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN)
                else "Start tinkersmith with the Python that it is installed in."
            )
            raise UserError(
                f"The engine could not be started with {sys.executable or 'no Python program'}: "
                f"{reason}. {advice}"
            ) from None
    return Engine(process, key, log)


def _remove_old_logs(folder: Path) -> None:
    """Remove the logs of ended engines that hold nothing, and all but the newest ones."""
    ended = [log for log in folder.glob("engine-*.log") if not _is_in_use(log)]
    sizes: list[tuple[float, Path, int]] = []
    for log in ended:
        with suppress(OSError):  # another recipe removed it
            state = log.stat()
            sizes.append((state.st_mtime, log, state.st_size))
    filled = [log for _, log, size in sorted(sizes, reverse=True) if size]
    for log in [log for _, log, size in sizes if not size] + filled[_KEPT_LOGS - 1 :]:
        with suppress(OSError):
            log.unlink()


def _new_log(folder: Path) -> IO[bytes]:
    """An empty log that is locked for as long as the engine, which inherits it, runs."""
    stem = f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for number in itertools.count(1):
        with suppress(FileExistsError):  # this process started another engine in this second
            path = folder / (f"{stem}.log" if number == 1 else f"{stem}-{number}.log")
            path.touch(mode=0o600, exist_ok=False)
            file = path.open("wb")
            with suppress(OSError):  # some network folders know no locks
                fcntl.flock(file, fcntl.LOCK_SH)
            return file
    raise AssertionError("unreachable")


def _is_in_use(log: Path) -> bool:
    """Whether an engine still writes to this log."""
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the user's key, which is for the cloud and not for our engine."""
    secret = ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD")
    return {name: value for name, value in environment.items() if name not in secret}


class _NotReady(Exception):
    """The engine named no port."""

    def __init__(self, reason: str, *, explains: bool) -> None:
        super().__init__(reason)
        self.explains = explains  # else how it ended says more


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    often = ", often for lack of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{often}"


def _ready_port(process: subprocess.Popen[bytes]) -> int:
    """The port that the engine names in its first line.

    Raises:
        _NotReady: the process ended, printed something else, or nothing for too long.
    """
    output = process.stdout
    assert output is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(output.readline()), daemon=True)
    reader.start()
    reader.join(START_PATIENCE)
    if not lines:
        raise _NotReady(f"it named no port within {START_PATIENCE:.0f} s", explains=True)
    try:
        return int(json.loads(lines[0])["port"])
    except (ValueError, KeyError, TypeError):
        wrote = lines[0].decode("utf-8", "replace").strip()
        reason = f"it wrote {wrote[:200]!r} instead of its port" if wrote else "it named no port"
        raise _NotReady(reason, explains=bool(wrote)) from None
