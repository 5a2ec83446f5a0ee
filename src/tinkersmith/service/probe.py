"""A server's URL -> whether it answers, watched from a thread."""

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from tinkersmith.service.embedded import Engine

PROBE_EVERY = 1.0  # seconds
PROBE_PATIENCE = 1.5  # seconds
REFUSED_PATIENCE = 2.5  # seconds that a server may refuse connections
SILENT_PATIENCE = 60.0  # seconds that it may leave its health unanswered


@dataclass(frozen=True, slots=True)
class _Unreached:
    sentence: str
    late: bool  # it took the connection, or the network lost it: no answer in time


class _Probe:
    """Looks after the server from a thread of its own, so that waiting never hangs."""

    def __init__(self, url: str, engine: Engine | None) -> None:
        self.url = url
        self.engine = engine
        self._stop = threading.Event()
        self._refused_since: float | None = None
        self._silent_since: float | None = None

    def start(self, watch: bool) -> None:
        if watch:
            threading.Thread(target=self._watch, name="probe", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def trouble(self) -> str | None:
        """What is wrong with the server, as a sentence; None while it is well."""
        if self.engine is not None and (death := self.engine.death()) is not None:
            return death
        now = time.monotonic()
        for since, patience in (
            (self._refused_since, REFUSED_PATIENCE),
            (self._silent_since, SILENT_PATIENCE),
        ):
            if since is not None and now - since > patience:
                return f"The server at {self.url} does not answer any more."
        return None

    def reach(self, patience: float = PROBE_PATIENCE) -> "_Unreached | None":
        """One question to the server, through the user's proxy if there is one: any answer of the
        server's own counts."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=patience):
                return None
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503, 504):  # those come from something in front of it
                return None
            reason: object = f"HTTP {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
        advice = (
            "Start it, or correct TINKER_BASE_URL."
            if os.environ.get("TINKER_BASE_URL")
            else 'Check the network, or set BACKEND = "local" to train on this machine.'
        )
        return _Unreached(
            f"The server at {self.url} cannot be reached ({reason}). {advice}",
            isinstance(reason, TimeoutError),
        )

    def _watch(self) -> None:
        while not self._stop.wait(PROBE_EVERY):
            unreached, now = self.reach(), time.monotonic()
            if unreached is None:
                self._refused_since = self._silent_since = None
                continue
            self._silent_since = self._silent_since or now
            # A machine under load takes connections and answers late: that is no refusal.
            self._refused_since = None if unreached.late else self._refused_since or now
