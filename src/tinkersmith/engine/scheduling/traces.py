"""When each request of a session waited and ran: held in memory, exported for ui.perfetto.dev.

The file is in the Trace Event Format (JSON), which Perfetto's viewer opens.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from tinkersmith.engine.errors import NotFound

MAX_SPANS = 10_000  # of one session, the newest
MAX_SESSIONS = 50  # the last used


@dataclass(frozen=True, slots=True)
class Span:
    """One request, in Unix seconds."""

    client_id: str  # of a training or sampling client
    name: str
    received: float
    started: float
    ended: float
    failed: bool


class Traces:
    """The spans of the last sessions. Used on the event loop only."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, deque[Span]] = OrderedDict()

    def add(self, span: Span) -> None:
        session_id = span.client_id.partition(":")[0]
        self._sessions.setdefault(session_id, deque(maxlen=MAX_SPANS)).append(span)
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def events(self, session_id: str) -> list[dict[str, Any]]:
        """Trace events with two tracks for each client, waiting and running. Times in microseconds.

        Raises:
            NotFound: no request of this session has run in this engine process.
        """
        if session_id not in self._sessions:
            raise NotFound(
                f"there is no trace of session {session_id}: this engine holds those of the last "
                f"{MAX_SESSIONS} sessions, in memory, until it ends."
            )
        spans = list(self._sessions[session_id])
        clients = list(dict.fromkeys(span.client_id for span in spans))
        tracks = {client_id: number for number, client_id in enumerate(clients)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": number, "name": "process_name", "args": {"name": client_id}}
            for client_id, number in tracks.items()
        ]
        for number, span in enumerate(spans):
            common = {"pid": tracks[span.client_id], "name": span.name, "cat": "request"}
            times = {"ts": _micros(span.started), "dur": _micros(span.ended - span.started)}
            events.append({**common, **times, "ph": "X", "tid": 1, "args": {"failed": span.failed}})
            # Requests wait side by side, so their waiting is drawn by pairs of marks.
            waiting = {**common, "name": f"waiting: {span.name}", "cat": "waiting", "id": number}
            events.append({**waiting, "ph": "b", "ts": _micros(span.received)})
            events.append({**waiting, "ph": "e", "ts": _micros(span.started)})
        return events


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
