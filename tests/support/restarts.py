"""An engine as a server of its own, which dies and comes back where it was."""

import os
import signal
import time
from pathlib import Path

from tests.support.engine import running_engine


class ServerOnPort:
    """An engine that can be killed and started again on the same port and folder."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model
        self._running = running_engine(folder, model)
        self.engine = self._running.__enter__()
        self.url = self.engine.url

    def __enter__(self) -> "ServerOnPort":
        return self

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(None, None, None)

    def kill(self) -> None:
        """Kill it, and leave its port to nobody."""
        os.kill(self.engine.process.pid, signal.SIGKILL)
        self._running.__exit__(None, None, None)

    def restart(self, pause: float = 1.0) -> None:
        """Kill it, and start it again after `pause` seconds."""
        self.kill()
        time.sleep(pause)
        self.start()

    def start(self) -> None:
        """Start it again where it was."""
        port = self.url.rpartition(":")[2]
        self._running = running_engine(self._folder, self._model, "--port", port)
        self.engine = self._running.__enter__()
