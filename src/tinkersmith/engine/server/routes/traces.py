"""Routes of a session's trace: its address, and the file behind it."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.scheduling.traces import Traces
from tinkersmith.engine.server.addresses import check_address, signed_address
from tinkersmith.engine.server.http import Routes


class TraceRoutes:
    """The recorded spans of a session, as a file for ui.perfetto.dev."""

    def __init__(self, traces: Traces) -> None:
        self.traces = traces

    def routes(self) -> Routes:
        return [("GET", "/sessions/{session_id}/trace_export", self.export)]

    async def export(self, request: Request) -> Response:
        session_id = request.path_params["session_id"]
        self.traces.events(session_id)  # is there a trace?
        url, _ = signed_address(request, _path(session_id))
        return JSONResponse({"status": "ready", "url": url})

    async def download(self, request: Request) -> Response:
        """Serve /files/<token>/traces/<session>.json, which is requested without a key."""
        session_id = request.path_params["session_id"]
        check_address(request.path_params["token"], _path(session_id))
        events = self.traces.events(session_id)
        return JSONResponse({"traceEvents": events, "displayTimeUnit": "ms"})


def _path(session_id: str) -> str:
    return f"traces/{session_id}.json"
