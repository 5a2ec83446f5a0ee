"""A failure of the server in the middle of work -> a new session, as long as there is progress."""

import time

from tinkersmith.service.connection import ServerGone, Service


class Reconnection:
    """Connects again and again, until SERVER_PATIENCE passes without progress."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._attempts = 0  # since the last progress
        self._stuck_since = time.monotonic()

    def progressed(self) -> None:
        """Note that the work is further than it was before."""
        self._attempts, self._stuck_since = 0, time.monotonic()

    def after(self, failure: ServerGone, doing: str) -> None:
        """Open a new session; `doing` completes "while ...".

        Raises:
            ServerGone: `failure`, where the patience is spent; or the server stays away.
        """
        if self._attempts == 0:
            self._stuck_since = time.monotonic()  # the work itself may have taken long
        if failure.final or time.monotonic() - self._stuck_since >= self._service.patience:
            raise failure
        if self._attempts:  # it failed at once again
            self._service.pause(self._attempts, doing)
        self._attempts += 1
        self._service.reconnect(doing)
