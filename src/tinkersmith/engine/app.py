"""HTTP of the Tinker API: requests in, futures and answers out. See docs/ for the wire.

A numbered operation is never refused by status once its number is known: the client would wait for
ever for the hole. It is accepted, and its future fails with a sentence. All else is a 4xx.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tinkersmith.engine import wire
from tinkersmith.engine.catalogue import Catalogue
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.queue import failure
from tinkersmith.engine.rest import rest_routes
from tinkersmith.engine.sessions import Gone, Sessions
from tinkersmith.engine.store import TinkerPath, parse_path

log = logging.getLogger("tinkersmith.engine")

API = "/api/v1"
LONG_POLL = 20.0  # seconds that a pending future's request is held
_DECODE_INLINE = 256 * 1024  # bytes; larger bodies are decoded off the event loop

Handler = Callable[[Request], Awaitable[Response]]


def make_app(sessions: Sessions, catalogue: Catalogue, key: str | None, lifespan: Any) -> ASGIApp:
    """The whole API. Every request but healthz must carry `key`, if there is one."""
    handlers = TrainingRoutes(sessions, catalogue).routes() + rest_routes(sessions.store)
    app = Starlette(
        routes=[
            *(Route(API + path, handler, methods=[method]) for method, path, handler in handlers),
            Route("/files/{token}/{name}", _download(sessions), methods=["GET"]),
        ],
        exception_handlers={
            Refused: _refused,
            Gone: _gone,
            KeyError: _not_found,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    return _Guard(app, key)


class _Guard:
    """Checks the key before anything else, and that a request is about this API at all."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app = app
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.key and not self._allowed(scope):
            await _detail("the API key is not the one of this engine.", 401)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        # Downloads are fetched without a key: their address holds a secret of its own.
        if scope["path"] == f"{API}/healthz" or scope["path"].startswith("/files/"):
            return True
        sent = dict(scope["headers"]).get(b"x-api-key", b"")
        return hmac.compare_digest(sent, (self.key or "").encode())


class TrainingRoutes:
    def __init__(self, sessions: Sessions, catalogue: Catalogue) -> None:
        self.sessions = sessions
        self.catalogue = catalogue

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
            ("POST", "/create_model", self.create_model),
            ("POST", "/get_info", self.get_info),
            ("POST", "/forward_backward", self.forward_backward),
            ("POST", "/optim_step", self.optim_step),
            ("POST", "/save_weights", self.save_weights),
            ("POST", "/save_weights_for_sampler", self.save_weights_for_sampler),
            ("POST", "/save_weights_external", self.save_weights_external),
            ("POST", "/load_weights", self.load_weights),
            ("POST", "/create_sampling_session", self.create_sampling_session),
            ("POST", "/asample", self.asample),
            ("POST", "/retrieve_future", self.retrieve_future),
        ]

    # ---- the connection

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def client_config(self, request: Request) -> Response:
        return JSONResponse({})

    async def telemetry(self, request: Request) -> Response:
        return JSONResponse({"status": "accepted"})

    async def capabilities(self, request: Request) -> Response:
        return JSONResponse({"supported_models": self.catalogue.to_json()})

    async def create_session(self, request: Request) -> Response:
        body = await _json(request)
        session_id = self.sessions.create(body.get("user_metadata"))
        return JSONResponse({"type": "create_session", "session_id": session_id})

    async def heartbeat(self, request: Request) -> Response:
        self.sessions.beat(wire.text(await _json(request), "session_id"))
        return JSONResponse({"type": "session_heartbeat"})

    async def finish_session(self, request: Request) -> Response:
        self.sessions.finish(request.path_params["session_id"])
        return Response(status_code=204)

    # ---- training

    async def create_model(self, request: Request) -> Response:
        body = await _json(request)
        base_model = wire.text(body, "base_model")
        self.catalogue.check(base_model)
        _adam_only(body)
        lora = wire.read_lora_config(body.get("lora_config") or {})
        if not 1 <= lora.rank <= 512:
            raise Refused(f"rank is {lora.rank}; it must be between 1 and 512.")

        def create(models: Any, model_id: str) -> dict[str, Any]:
            models.create(model_id, base_model, lora)
            return {"model_id": model_id, "type": "create_model"}

        model_id, request_id = self.sessions.create_model(
            wire.text(body, "session_id"),
            wire.number(body, "model_seq_id", int),
            base_model,
            lora,
            body.get("user_metadata"),
            create,
        )
        return JSONResponse({"request_id": request_id, "model_id": model_id})

    async def get_info(self, request: Request) -> Response:
        model_id = wire.text(await _json(request), "model_id")
        run = self.sessions.store.run(model_id)

        def info(models: Any) -> dict[str, Any]:
            base = models.get(model_id).base
            return {
                "type": "get_info",
                "model_id": model_id,
                "is_lora": True,
                "lora_rank": run.lora.rank,
                "model_name": run.base_model,
                "optimizer_config": {"type": "adamw"},
                "model_data": {
                    "arch": base.arch,
                    "model_name": run.base_model,
                    # A folder: the SDK then finds the tokenizer without a hub.
                    "tokenizer_id": str(base.folder),
                },
            }

        return await self._now(model_id, info)

    async def forward_backward(self, request: Request) -> Response:
        body = wire.decompress(await _body(request), request.headers.get("content-encoding", ""))
        if len(body) > _DECODE_INLINE:
            batch = await asyncio.to_thread(wire.read_batch, body)
        else:
            batch = wire.read_batch(body)
        failure_told = self.sessions.failure_told(batch.model_id)

        def run(models: Any) -> bytes:
            return wire.batch_output(models.batch(batch, failure_told))

        return self._numbered(batch.model_id, batch.seq_id, run)

    async def optim_step(self, request: Request) -> Response:
        body = await _json(request)
        model_id, seq_id = _address(body)
        try:
            params = wire.read_adam_params(body)
        except Refused as refusal:
            params = refusal
        return self._numbered(
            model_id,
            seq_id,
            lambda models: {"metrics": wire.finite_json(models.optim_step(model_id, params))},
        )

    # ---- checkpoints

    async def save_weights(self, request: Request) -> Response:
        body = await _json(request)
        model_id, seq_id = _address(body)

        def save(models: Any) -> dict[str, Any]:
            path = TinkerPath(model_id, "weights", wire.text(body, "path"))
            overwrite = wire.flag(body, "overwrite", False)
            models.save(model_id, path, optimizer=True, overwrite=overwrite, **_about(body))
            return {"path": str(path), "type": "save_weights"}

        return self._numbered(model_id, seq_id, save)

    async def save_weights_for_sampler(self, request: Request) -> Response:
        body = await _json(request)
        model_id, seq_id = _address(body)
        if body.get("path"):

            def save(models: Any) -> dict[str, Any]:
                path = TinkerPath(model_id, "sampler_weights", wire.text(body, "path"))
                models.save(model_id, path, optimizer=False, **_about(body))
                return {"path": str(path), "type": "save_weights_for_sampler"}

            return self._numbered(model_id, seq_id, save)

        run = self.sessions.store.run(model_id)
        sampler_id, _ = self.sessions.create_sampler(
            run.session_id, wire.number(body, "sampling_session_seq_id", int), run.base_model, None
        )

        def take_snapshot(models: Any) -> dict[str, Any]:
            models.add_snapshot(sampler_id, model_id)
            return {"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"}

        return self._numbered(model_id, seq_id, take_snapshot)

    async def save_weights_external(self, request: Request) -> Response:
        body = await _json(request)
        model_id, seq_id = _address(body)

        def save(models: Any) -> dict[str, Any]:
            path = TinkerPath(model_id, "external_weights", wire.text(body, "path"))
            recipients = body.get("age_encryption_recipients") or []
            if recipients:
                _require_age()
            size = models.save(
                model_id,
                path,
                optimizer=False,
                overwrite=True,
                recipients=recipients,
                ttl_seconds=wire.optional_number(body, "ttl_seconds", int),
            )
            return {"path": str(path), "size_bytes": size, "type": "save_weights_external"}

        return self._numbered(model_id, seq_id, save)

    async def load_weights(self, request: Request) -> Response:
        body = await _json(request)
        if body.get("session_id") is None:
            model_id, seq_id = _address(body)

            def load(models: Any) -> dict[str, Any]:
                path = parse_path(wire.text(body, "path"))
                models.load(model_id, path, wire.flag(body, "optimizer", False))
                return {"path": str(path), "type": "load_weights"}

            return self._numbered(model_id, seq_id, load)

        path = parse_path(wire.text(body, "path"))
        self.sessions.store.checkpoint(path)
        _adam_only(body)
        source = self.sessions.store.run(path.run_id)
        base_model = body.get("base_model") or source.base_model
        self.catalogue.check(base_model)
        optimizer = wire.flag(body, "optimizer", False)

        def create(models: Any, model_id: str) -> dict[str, Any]:
            models.create_from(model_id, base_model, source.lora, path, optimizer)
            return {"path": str(path), "model_id": model_id, "type": "load_weights"}

        model_id, request_id = self.sessions.create_model(
            wire.text(body, "session_id"),
            wire.number(body, "model_seq_id", int),
            base_model,
            source.lora,
            body.get("user_metadata"),
            create,
        )
        return JSONResponse({"request_id": request_id, "model_id": model_id})

    # ---- sampling

    async def create_sampling_session(self, request: Request) -> Response:
        body = await _json(request)
        path = parse_path(body["model_path"]) if body.get("model_path") else None
        if path is None:
            base_model = wire.text(body, "base_model")
        else:
            self.sessions.store.checkpoint(path)
            base_model = self.sessions.store.run(path.run_id).base_model
            if path.segment == "external_weights":
                raise Refused(f"{path} is for download; sample from a sampler_weights path.")
        self.catalogue.check(base_model)
        sampler_id, new = self.sessions.create_sampler(
            wire.text(body, "session_id"),
            wire.number(body, "sampling_session_seq_id", int),
            base_model,
            None if path is None else str(path),
        )
        if new:

            def add(models: Any) -> dict[str, Any]:
                models.add_sampler(sampler_id, base_model, path)
                return {}

            # Loaded now, not at the first sample: deleting the checkpoint later changes nothing.
            added = self.sessions.run(sampler_id, add)
            await added.done.wait()
            if isinstance(added.result, dict) and "error" in added.result:
                raise Refused(added.result["error"])
        return JSONResponse({"type": "create_sampling_session", "sampling_session_id": sampler_id})

    async def asample(self, request: Request) -> Response:
        body = await _json(request)
        sampler_id = wire.text(body, "sampling_session_id")
        sample_request = wire.read_sample_request(body)
        seq_id = wire.number(body, "seq_id", int)
        request_id = self.sessions.sample(sampler_id, seq_id, sample_request)
        ids = [f"{request_id}:{number}" for number in range(sample_request.num_samples)]
        return JSONResponse({"request_id": request_id, "sample_sequence_ids": ids})

    # ---- futures

    async def retrieve_future(self, request: Request) -> Response:
        request_id = wire.text(await _json(request), "request_id")
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

    def _numbered(
        self, model_id: str, seq_id: int, run: Callable[[Any], dict[str, Any] | bytes]
    ) -> Response:
        request_id = self.sessions.operate(model_id, seq_id, run)
        return JSONResponse({"request_id": request_id, "model_id": model_id})

    async def _now(self, lane: str, run: Callable[[Any], dict[str, Any]]) -> Response:
        """Run on the engine thread, behind the lane's jobs, and answer in the same request."""
        future = self.sessions.run(lane, run)
        await future.done.wait()
        assert isinstance(future.result, dict)
        if "error" in future.result:
            raise Refused(future.result["error"])
        return JSONResponse(future.result)


def _address(body: dict[str, Any]) -> tuple[str, int]:
    return wire.text(body, "model_id"), wire.number(body, "seq_id", int)


def _about(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "ttl_seconds": wire.optional_number(body, "ttl_seconds", int),
        "user_metadata": body.get("user_metadata"),
    }


def _adam_only(body: dict[str, Any]) -> None:
    kind = (body.get("optimizer_config") or {}).get("type", "adamw")
    if kind != "adamw":
        raise Refused(f"optimizer {kind!r} is not supported; use adamw.")


def _require_age() -> None:
    try:
        import pyrage  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Refused(
            "an encrypted download needs the package pyrage on the engine's side: "
            "pip install pyrage, or ask for it without encryption."
        ) from None


def _download(sessions: Sessions) -> Handler:
    async def download(request: Request) -> Response:
        from tinkersmith.engine.rest import read_download

        data = await asyncio.to_thread(
            read_download,
            sessions.store,
            request.path_params["token"],
            request.path_params["name"],
        )
        return Response(data, media_type="application/octet-stream")

    return download


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > wire.MAX_BODY:
            raise Refused(f"the body is larger than {wire.MAX_BODY >> 20} MiB.")
        parts.append(part)
    return b"".join(parts)


async def _json(request: Request) -> dict[str, Any]:
    body = await _body(request)
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        raise Refused("the body is not JSON.") from None
    if not isinstance(value, dict):
        raise Refused("the body is not a JSON object.")
    return value


def _detail(sentence: str, status: int) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)


async def _refused(request: Request, error: Exception) -> Response:
    return _detail(str(error), 400)


async def _gone(request: Request, error: Exception) -> Response:
    return _detail(str(error), 410)


async def _not_found(request: Request, error: Exception) -> Response:
    return _detail(f"there is no {error.args[0] if error.args else 'such thing'} here.", 404)


async def _unexpected(request: Request, error: Exception) -> Response:
    # A 500 would be retried, silently, for minutes.
    return _detail(failure(error)["error"], 400)
