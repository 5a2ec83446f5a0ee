"""When each request of a session waited and ran: kept in memory, exported for ui.perfetto.dev.

The file is in the Trace Event Format (JSON), which Perfetto's viewer opens as it does its own.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from tinkersmith.engine.errors import NotFound

SPANS_KEPT = 10_000  # of one session, the newest
SESSIONS_KEPT = 50


@dataclass(frozen=True, slots=True)
class Span:
    """One request, in Unix seconds."""

    lane: str  # the training or sampling client's id
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
        session_id = span.lane.partition(":")[0]
        self._sessions.setdefault(session_id, deque(maxlen=SPANS_KEPT)).append(span)
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > SESSIONS_KEPT:
            self._sessions.popitem(last=False)

    def events(self, session_id: str) -> list[dict[str, Any]]:
        """Two tracks a client: what waited and what ran. Times are in microseconds.

        Raises:
            NotFound: nothing of this session has run in this engine process.
        """
        if session_id not in self._sessions:
            raise NotFound(
                f"there is no trace of session {session_id}: this engine keeps those of the last "
                f"{SESSIONS_KEPT} sessions, in memory, until it ends."
            )
        spans = list(self._sessions[session_id])
        lanes = {lane: number for number, lane in enumerate(dict.fromkeys(s.lane for s in spans))}
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": number, "name": "process_name", "args": {"name": lane}}
            for lane, number in lanes.items()
        ]
        for number, span in enumerate(spans):
            common = {"pid": lanes[span.lane], "name": span.name, "cat": "request"}
            times = {"ts": _micros(span.started), "dur": _micros(span.ended - span.started)}
            events.append({**common, **times, "ph": "X", "tid": 1, "args": {"failed": span.failed}})
            # Requests wait side by side, so their waiting is drawn by pairs of marks.
            waiting = {**common, "name": f"waiting: {span.name}", "cat": "waiting", "id": number}
            events.append({**waiting, "ph": "b", "ts": _micros(span.received)})
            events.append({**waiting, "ph": "e", "ts": _micros(span.started)})
        return events


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
