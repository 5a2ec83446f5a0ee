"""Routes of the connection itself: configuration, sessions, and the futures of all operations."""

import asyncio
import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.log import log
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields
from tinkersmith.engine.server.http import PROTOBUF, Routes, read_json
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.version import NEWEST_SDK, OLDEST_SDK

LONG_POLL = 20.0  # seconds that a request for a pending future is held
TESTED_SDK = tuple(release.rpartition(".")[0] for release in (OLDEST_SDK, NEWEST_SDK))
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,39}")
_MOST_SDKS = 100  # different versions that are logged
TESTED_WITH = f"tested with tinker {' and '.join(TESTED_SDK)}"


class ServiceRoutes:
    """What every client of the SDK uses: its session, and the results of its operations."""

    def __init__(self, sessions: Sessions, catalogue: Catalogue) -> None:
        self.sessions = sessions
        self.catalogue = catalogue
        self._seen_sdks: set[str] = set()

    def routes(self) -> Routes:
        return [
            ("GET", "/healthz", self.healthz),
            ("POST", "/client/config", self.client_config),
            ("POST", "/client/dynamic_config", self.client_config),
            ("POST", "/telemetry", self.telemetry),
            ("GET", "/get_server_capabilities", self.capabilities),
            ("GET", "/engine_facts", self.engine_facts),
            ("POST", "/create_session", self.create_session),
            ("POST", "/session_heartbeat", self.heartbeat),
            ("POST", "/sessions/{session_id}/finish", self.finish_session),
            ("POST", "/retrieve_future", self.retrieve_future),
        ]

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def client_config(self, request: Request) -> Response:
        self._log_sdk((await read_json(request)).get("sdk_version"))
        # A token tells the SDK who its user is; its other defaults suit this engine.
        return JSONResponse({"pjwt_auth_enabled": True})

    async def telemetry(self, request: Request) -> Response:
        return JSONResponse({"status": "accepted"})  # and discarded

    async def capabilities(self, request: Request) -> Response:
        return JSONResponse({"supported_models": self.catalogue.to_json()})

    async def engine_facts(self, request: Request) -> Response:
        """What a resumed run compares; no method of the SDK calls it."""
        return JSONResponse(self.sessions.thread.facts())

    async def create_session(self, request: Request) -> Response:
        body = await read_json(request)
        labels = fields.json_object(body, "user_metadata")
        metadata = {
            name: value if isinstance(value, str) else fields.shown(value)
            for name, value in labels.items()
        }
        name = fields.string(body, "display_name") if body.get("display_name") else None
        session_id = await self.sessions.create(metadata, name)
        return JSONResponse({"type": "create_session", "session_id": session_id})

    async def heartbeat(self, request: Request) -> Response:
        self.sessions.get(fields.string(await read_json(request), "session_id"))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish_session(self, request: Request) -> Response:
        self.sessions.finish(request.path_params["session_id"])
        return Response(status_code=204)

    async def retrieve_future(self, request: Request) -> Response:
        request_id = fields.string(await read_json(request), "request_id")
        future = self.sessions.future(request_id)
        try:
            await asyncio.wait_for(future.done.wait(), LONG_POLL)
        except TimeoutError:
            pending = {
                "type": "try_again",
                "request_id": request_id,
                "queue_state": "active",
                "queue_state_reason": None,
            }
            return JSONResponse(pending, 408)
        self.sessions.delivered(request_id, future)
        if isinstance(future.result, bytes):
            return Response(future.result, media_type=PROTOBUF)
        return JSONResponse(future.result)

    def _log_sdk(self, version: object) -> None:
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            return
        if version in self._seen_sdks or len(self._seen_sdks) >= _MOST_SDKS:
            return
        self._seen_sdks.add(version)
        is_tested = version.startswith(tuple(f"{tested}." for tested in TESTED_SDK))
        log.info(
            "a client with tinker %s%s",
            version,
            "" if is_tested else f": this engine was {TESTED_WITH}",
        )
