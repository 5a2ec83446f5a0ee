"""A server's URL -> whether it answers, checked from a thread."""

import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, cast

from tinkersmith.guards.proxies import opener
from tinkersmith.service.embedded import Engine

PROBE_EVERY = 1.0  # seconds
PROBE_PATIENCE = 1.5  # seconds
REFUSED_PATIENCE = 2.5  # seconds that a server may refuse connections
SILENT_PATIENCE = 60.0  # seconds that it may leave its health unanswered
FACTS_PATIENCE = 10.0  # seconds; the answer needs no computation
AWAY_AFTER = 5  # checks in a row: one in five may fail on a bad network while all goes well


@dataclass(frozen=True, slots=True)
class _Unreached:
    """Why a server did not answer."""

    sentence: str
    late: bool  # no answer in time, as opposed to a refused connection
    absent: bool  # nothing listens there, or the name is unknown: a wrong URL looks like this


class Probe:
    """Checks the server from a thread of its own, so that no wait hangs on a dead one."""

    def __init__(self, url: str, engine: Engine | None) -> None:
        self.url = url
        self.engine = engine
        self._stop = threading.Event()
        self._refused_since: float | None = None
        self._silent_since: float | None = None
        self._failures = 0  # checks without an answer, since the last one with an answer

    def start(self, every: float = PROBE_EVERY) -> None:
        """Check the server every so many seconds until `stop`."""
        threading.Thread(target=self._watch, args=(every,), name="probe", daemon=True).start()

    def stop(self) -> None:
        """End the checks."""
        self._stop.set()

    def trouble(self) -> str | None:
        """What is wrong with the server, as a sentence; None while it answers."""
        if self.engine is not None and (death := self.engine.death()) is not None:
            return death
        now = time.monotonic()
        for since, patience in (
            (self._refused_since, REFUSED_PATIENCE),
            (self._silent_since, SILENT_PATIENCE),
        ):
            if since is not None and now - since > patience:
                return f"The server at {self.url} no longer answers."
        return None

    def away(self) -> float:
        """For how many seconds the server has answered no check; 0 while it answers."""
        since = self._silent_since
        if since is None or self._failures < AWAY_AFTER:
            return 0.0
        return time.monotonic() - since

    def reach(self, patience: float = PROBE_PATIENCE) -> _Unreached | None:
        """Send one request, through the user's proxy if there is one; None if the server answers.

        Any answer of the server itself counts, errors included.
        """
        try:
            with opener(self.url).open(f"{self.url}/api/v1/healthz", timeout=patience):
                return None
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503, 504):  # these come from a proxy in front of it
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
            late=isinstance(reason, TimeoutError),
            absent=isinstance(reason, (ConnectionRefusedError, socket.gaierror, ValueError)),
        )

    def _watch(self, every: float) -> None:
        while not self._stop.wait(every):
            unreached, now = self.reach(), time.monotonic()
            if unreached is None:
                self._refused_since = self._silent_since = None
                self._failures = 0
                continue
            self._failures += 1
            self._silent_since = self._silent_since or now
            # A busy machine accepts connections and answers late, which is no refusal.
            self._refused_since = None if unreached.late else self._refused_since or now


def engine_answer(url: str, key: str) -> dict[str, Any] | None:
    """What an engine of ours says of itself; None if the server is none, or does not answer."""
    request = urllib.request.Request(f"{url}/api/v1/engine_facts", headers={"X-API-Key": key})
    try:
        with opener(url).open(request, timeout=FACTS_PATIENCE) as response:
            content: Any = json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else None
