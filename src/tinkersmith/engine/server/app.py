"""HTTP of the Tinker API: requests in, futures and answers out. docs/ describes the wire.

A numbered operation is never refused by status once its number is known: the client would wait for
ever for the hole. It is accepted, and its future fails with a sentence. All else is a 4xx.
"""

import asyncio

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tinkersmith.engine.log import log
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields, wire
from tinkersmith.engine.server.http import (
    API,
    FILES,
    EarlyAnswers,
    Handler,
    KeyGuard,
    in_sentences,
    no_such_route,
)
from tinkersmith.engine.server.http import read_json as body_of
from tinkersmith.engine.server.identity import identity_routes, is_token
from tinkersmith.engine.server.routes.archive import archive_routes
from tinkersmith.engine.server.routes.rest import download_route, refused_routes, rest_routes
from tinkersmith.engine.server.routes.sampling import SamplingRoutes
from tinkersmith.engine.server.routes.traces import trace_download, trace_routes
from tinkersmith.engine.server.routes.training import TrainingRoutes
from tinkersmith.engine.storage.catalogue import Catalogue

LONG_POLL = 20.0  # seconds that a pending future's request is held
TESTED_SDK = ("0.30", "0.38")  # the oldest and the newest that the tests run with


def make_app(sessions: Sessions, catalogue: Catalogue, key: str | None) -> ASGIApp:
    """The whole API. Every request but healthz must carry `key`, if there is one."""
    handlers = [
        *ServiceRoutes(sessions, catalogue).routes(),
        *TrainingRoutes(sessions, catalogue).routes(),
        *SamplingRoutes(sessions, catalogue).routes(),
        *rest_routes(sessions.store),
        *archive_routes(sessions),
        *trace_routes(sessions.thread.traces),
        *identity_routes(key),
        *refused_routes(),
    ]
    traces = in_sentences(trace_download(sessions.thread.traces))
    files = in_sentences(download_route(sessions.store))
    app = Starlette(
        routes=[
            *(Route(API + path, in_sentences(do), methods=[how]) for how, path, do in handlers),
            Route(f"{FILES}/{{token}}/traces/{{session_id}}.json", traces),
            Route(f"{FILES}/{{token}}/{{path:path}}", files),
        ],
        exception_handlers={HTTPException: no_such_route},
    )
    return EarlyAnswers(KeyGuard(app, key, is_token))


class ServiceRoutes:
    """The connection itself: configuration, sessions, and the futures of all operations."""

    def __init__(self, sessions: Sessions, catalogue: Catalogue) -> None:
        self.sessions = sessions
        self.catalogue = catalogue
        self._seen_sdks: set[str] = set()

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("GET", "/healthz", self.healthz),
            ("POST", "/client/config", self.client_config),
            ("POST", "/client/dynamic_config", self.client_config),
            ("POST", "/telemetry", self.telemetry),
            ("GET", "/get_server_capabilities", self.capabilities),
            ("POST", "/create_session", self.create_session),
            ("POST", "/session_heartbeat", self.heartbeat),
            ("POST", "/sessions/{session_id}/finish", self.finish_session),
            ("POST", "/retrieve_future", self.retrieve_future),
        ]

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def client_config(self, request: Request) -> Response:
        self._note_sdk((await body_of(request)).get("sdk_version"))
        # A token tells the SDK who its user is; its other defaults suit this engine.
        return JSONResponse({"pjwt_auth_enabled": True})

    async def telemetry(self, request: Request) -> Response:
        return JSONResponse({"status": "accepted"})  # and discarded

    async def capabilities(self, request: Request) -> Response:
        return JSONResponse({"supported_models": self.catalogue.to_json()})

    async def create_session(self, request: Request) -> Response:
        body = await body_of(request)
        metadata = {k: str(v) for k, v in fields.part(body, "user_metadata").items()}
        name = fields.text(body, "display_name") if body.get("display_name") else None
        session_id = self.sessions.create(metadata, name)
        return JSONResponse({"type": "create_session", "session_id": session_id})

    async def heartbeat(self, request: Request) -> Response:
        self.sessions.get(fields.text(await body_of(request), "session_id"))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish_session(self, request: Request) -> Response:
        self.sessions.finish(request.path_params["session_id"])
        return Response(status_code=204)

    async def retrieve_future(self, request: Request) -> Response:
        request_id = fields.text(await body_of(request), "request_id")
        future = self.sessions.future(request_id)
        try:
            await asyncio.wait_for(future.done.wait(), LONG_POLL)
        except TimeoutError:
            pending = {"type": "try_again", "request_id": request_id, "queue_state": "active"}
            return JSONResponse({**pending, "queue_state_reason": None}, 408)
        self.sessions.delivered(request_id, future)
        if isinstance(future.result, bytes):
            return Response(future.result, media_type=wire.PROTOBUF)
        return JSONResponse(future.result)

    def _note_sdk(self, version: object) -> None:
        if not isinstance(version, str) or version in self._seen_sdks:
            return
        self._seen_sdks.add(version)
        tested = version.startswith(tuple(f"{one}." for one in TESTED_SDK))
        log.info(
            "a client with tinker %s%s",
            version,
            "" if tested else f": this engine was tested with {' and '.join(TESTED_SDK)}",
        )
