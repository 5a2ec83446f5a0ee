"""Routes of a session's trace: its address, and the file behind it."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.scheduling.traces import Traces
from tinkersmith.engine.server.addresses import check_address, signed_address
from tinkersmith.engine.server.http import Handler


def trace_routes(traces: Traces) -> list[tuple[str, str, Handler]]:
    async def export(request: Request) -> Response:
        session_id = request.path_params["session_id"]
        traces.events(session_id)
        url, _ = signed_address(request, _path(session_id))
        return JSONResponse({"status": "ready", "url": url})

    return [("GET", "/sessions/{session_id}/trace_export", export)]


def trace_download(traces: Traces) -> Handler:
    """Serves /files/<token>/traces/<session>.json, which is fetched without a key."""

    async def download(request: Request) -> Response:
        session_id = request.path_params["session_id"]
        check_address(request.path_params["token"], _path(session_id))
        return JSONResponse({"traceEvents": traces.events(session_id), "displayTimeUnit": "ms"})

    return download


def _path(session_id: str) -> str:
    return f"traces/{session_id}.json"
