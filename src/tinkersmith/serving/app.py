"""The served API as an ASGI application: checks and names here, answers from the server behind.

Answers pass through as they come, event by event. Only what the server behind cannot do itself, a
template of training that it does not take, is done here (see `rendered.py`).
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tinkersmith.guards.api_errors import allowed_methods
from tinkersmith.guards.hosts import HostGuard
from tinkersmith.guards.keys import carries_key
from tinkersmith.serving.counters import Counters, usage_of
from tinkersmith.serving.errors import (
    MESSAGES,
    Api,
    ServingError,
    answer_id,
    api_of,
    error_event,
    refusal_of,
    refused,
)
from tinkersmith.serving.listing import model_json, page_of
from tinkersmith.serving.models import ServedModel, ServedModels
from tinkersmith.serving.page.page import chat_page
from tinkersmith.serving.rendered import (
    RenderedChat,
    chat_events,
    is_rendered,
    render_request,
    whole_answer,
)
from tinkersmith.serving.streams import BrokenStream, whole_events
from tinkersmith.serving.upstream import Upstream

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MOST_REQUESTS = 512  # open at once
_LARGEST_BODY = 32 << 20  # bytes
_CONNECT = 5.0  # seconds
# httpx looks through all connections of a pool several times a request, so there are many pools.
_POOLS = 32
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_WITHOUT_KEY = ("/", "/health")
_ROUTES = {
    "/v1/chat/completions": "/oai/api/v1/chat/completions",
    "/v1/completions": "/oai/api/v1/completions",
    MESSAGES: "/anthropic/api/v1/messages",
    f"{MESSAGES}/count_tokens": "/anthropic/api/v1/messages/count_tokens",
}
_PASSED_ON = ("content-type", "retry-after", "x-request-id", "request-id")


def make_serving_app(
    models: ServedModels,
    upstream: Upstream,
    *,
    key: str | None,
    hosts: frozenset[str],
    any_own_address: bool = False,
    most_requests: int = MOST_REQUESTS,
) -> "ASGIApp":
    """The whole API for requests to one of `hosts`; see `HostGuard`.

    Args:
        key: what every request but those for health and the page must carry; None: nothing.
        most_requests: how many may be open at once; more are refused with 429.
    """
    state = _Serving(models, upstream, most_requests)
    routes = [
        Route("/", state.front, methods=["GET"]),
        Route("/health", state.health, methods=["GET"]),
        Route("/metrics", state.metrics, methods=["GET"]),
        Route("/v1/models", state.list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", state.one_model, methods=["GET"]),
        *(Route(path, state.answer, methods=["POST"]) for path in _ROUTES),
    ]
    app = Starlette(
        routes=routes,
        lifespan=state.lifespan,
        exception_handlers={HTTPException: _no_such_route},
    )
    app.router.redirect_slashes = False
    guarded = _KeyGuard(app, key) if key else app
    return HostGuard(
        guarded,
        hosts,
        lambda scope, sentence, status: refused(api_of(scope), sentence, status),
        any_own_address=any_own_address,
        server="server",
    )


class _KeyGuard:
    """Refuses requests without the key, but for health checks and the page."""

    def __init__(self, app: "ASGIApp", key: str) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and scope["path"] not in _WITHOUT_KEY:  # noqa: SIM102
            if not carries_key(scope, self._key):
                sentence = "the API key is not this server's key."
                await refused(api_of(scope), sentence, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    path = request.url.path
    if allowed := allowed_methods(error):
        sentence = f"there is no {request.method} {path} here; the method must be {allowed}."
    else:
        known = ", ".join(("/v1/models", *_ROUTES))
        sentence = f"there is no {request.method} {path} here; there are {known}."
    response = refused(api_of(request.scope), sentence, status)
    if allowed:
        response.headers["allow"] = allowed
    return response


@dataclass(slots=True)
class _Serving:
    """What all requests share. Used on the event loop only."""

    models: ServedModels
    upstream: Upstream
    most_requests: int
    counters: Counters = field(default_factory=Counters)
    _clients: "itertools.cycle[httpx.AsyncClient] | None" = None

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64 // _POOLS)
        # An answer may take as long as it takes: the client decides when to give up.
        timeout = httpx.Timeout(None, connect=_CONNECT)
        verify = httpx.create_ssl_context()  # reading the certificates takes a moment
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(limits=limits, timeout=timeout, verify=verify)
                )
                for _ in range(_POOLS)
            ]
            self._clients = itertools.cycle(clients)
            yield

    @property
    def client(self) -> httpx.AsyncClient:
        """The client for the next request."""
        assert self._clients is not None  # set for as long as requests are served
        return next(self._clients)

    # ---- what is known here

    async def front(self, request: Request) -> Response:
        # It may hold what its user typed: no page of another origin may frame it.
        headers = {"content-security-policy": "frame-ancestors 'none'", "cache-control": "no-store"}
        return HTMLResponse(chat_page(), headers=headers)

    async def health(self, request: Request) -> Response:
        """200 once the server behind answers, else 503 with the reason."""
        if (trouble := self.upstream.trouble) is None:
            try:
                answer = await self._ask("/oai/api/v1/models", timeout=_CONNECT)
                trouble = None if answer.status_code == 200 else f"it answers {answer.status_code}."
            except ServingError as error:
                trouble = str(error)
        if trouble is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "reason": trouble}, 503)

    async def metrics(self, request: Request) -> Response:
        text = self.counters.text(self.upstream.restarts)
        if self.upstream.kind != "cloud":
            with contextlib.suppress(ServingError):
                answer = await self._ask("/metrics", timeout=_CONNECT)
                text += answer.text if answer.status_code == 200 else ""
        return Response(text, media_type=_TEXT)

    async def list_models(self, request: Request) -> Response:
        listed = [model_json(model) for model in self.models.models]
        api = api_of(request.scope)
        if api == "openai":
            return JSONResponse({"object": "list", "data": listed}, headers=answer_id(api))
        try:
            return JSONResponse(page_of(listed, request.query_params), headers=answer_id(api))
        except ServingError as error:
            return refusal_of(api, error)

    async def one_model(self, request: Request) -> Response:
        api, name = api_of(request.scope), request.path_params["name"]
        model = self.models.named(name)
        if model is None:
            return refusal_of(api, self._unknown(name))
        return JSONResponse(model_json(model), headers=answer_id(api))

    def _offered(self) -> str:
        return f"there are {', '.join(model.name for model in self.models.models)}"

    def _unknown(self, name: str) -> ServingError:
        shown = json.dumps(name, ensure_ascii=False)[:200]
        return ServingError(
            404,
            f"there is no model {shown} here; {self._offered()}.",
            param="model",
            code="model_not_found",
        )

    async def _ask(self, path: str, *, timeout: float) -> httpx.Response:
        """A short request to the server behind."""
        try:
            return await self.client.get(
                f"{self.upstream.url}{path}", headers=self.upstream.headers, timeout=timeout
            )
        except httpx.HTTPError as error:
            raise self._away(error) from None

    # ---- what the server behind answers

    async def answer(self, request: Request) -> Response:
        """One request for an answer: names are translated, and the answer is passed through."""
        path, api, begun = request.url.path, api_of(request.scope), time.monotonic()
        if self.counters.open_requests >= self.most_requests:
            self.counters.requests[(path, "", 429)] += 1
            return refused(
                api,
                f"{self.most_requests:,} requests are open; more are refused. Try again later.",
                429,
            )
        self.counters.open_requests += 1
        call = _Call(self, request, begun)
        response: Response | None = None
        try:
            response = await call.response()
        except ServingError as error:
            response = refusal_of(api, error)
        except (ClientDisconnect, _ClientLeft):
            self.counters.left += 1
            response = refused(api, "the client closed the connection.", 499)
        finally:
            status = response.status_code if response is not None else 500
            self.counters.requests[(path, call.model_name, status)] += 1
            if not isinstance(response, _Stream):
                self.finished(begun)
        assert response is not None
        return response

    def finished(self, begun: float) -> None:
        self.counters.open_requests -= 1
        self.counters.duration.add(time.monotonic() - begun)

    def model_of(self, body: Mapping[str, Any]) -> ServedModel:
        name = body.get("model")
        if not isinstance(name, str):
            shown = json.dumps(name, ensure_ascii=False)[:200]
            raise ServingError(
                400,
                f"model is {shown}; it must be a model's name; {self._offered()}.",
                param="model",
            )
        model = self.models.named(name)
        if model is None:
            raise self._unknown(name)
        return model

    def _away(self, error: Exception) -> ServingError:
        trouble = self.upstream.trouble
        if trouble is None:
            name = type(error).__name__
            trouble = f"{self._title_of_upstream} does not answer ({name}). Try again soon."
        return ServingError(503, trouble)

    @property
    def _title_of_upstream(self) -> str:
        return "The engine" if self.upstream.kind == "embedded" else "The server behind"

    async def send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Send a request to the server behind; the caller reads and closes its answer.

        Raises:
            ServingError: it cannot be reached.
        """
        if self.upstream.trouble is not None:
            raise ServingError(503, self.upstream.trouble)
        client = self.client
        request = client.build_request(
            "POST",
            f"{self.upstream.url}{_ROUTES[path]}",
            content=json.dumps(body, ensure_ascii=False).encode(),
            headers={
                **self.upstream.headers,
                "content-type": "application/json",
                "accept-encoding": "identity",  # bytes pass through as they are
            },
        )
        try:
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._away(error) from None

    def broke_off(self) -> ServingError:
        trouble = self.upstream.trouble
        if trouble is None:
            trouble = f"{self._title_of_upstream} closed the connection too early. Try again."
        return ServingError(503, f"the answer broke off: {trouble}")


class _ClientLeft(Exception):
    """The client has closed its connection before its answer began."""


class _Stream(StreamingResponse):
    """An answer in pieces, which counts as open until its last one."""


class _Call:
    """One request and its way to the server behind."""

    def __init__(self, serving: _Serving, request: Request, begun: float) -> None:
        self._serving, self._request, self._begun = serving, request, begun
        self._path = request.url.path
        self._api: Api = api_of(request.scope)
        self.model_name = ""

    async def response(self) -> Response:
        """The answer.

        Raises:
            ServingError: the request is refused here, or the server behind cannot be reached.
        """
        body = await _read_body(self._request)
        model = self._serving.model_of(body)
        self.model_name = model.name
        path, chat = self._path, None
        if is_rendered(path, model, body, self._serving.upstream):
            chat = await asyncio.to_thread(render_request, model, self._serving.models, body)
            path, sent = "/v1/completions", chat.request
        else:
            sent = _for_upstream(path, model, body, self._serving.upstream)
        answer = await self._unless_left(self._serving.send(path, sent))
        kind = answer.headers.get("content-type", "")
        headers = answer_id(self._api)
        headers |= {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        if answer.status_code == 200 and kind.startswith("text/event-stream"):
            return _Stream(
                self._counted(self._events(answer, chat, model)),
                headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"},
            )
        try:
            content = await self._unless_left(answer.aread())
        except httpx.HTTPError:
            raise await self._broke_off() from None
        finally:
            await answer.aclose()
        value = _json_object(content)
        if value is None:
            raise _no_answer(answer.status_code)
        if answer.status_code == 200:
            self._serving.counters.add_usage(model.name, usage_of(value))
            if chat is not None:
                try:
                    content = json.dumps(whole_answer(chat, value), ensure_ascii=False).encode()
                except (KeyError, TypeError, AttributeError):
                    raise _no_answer(200) from None
        return Response(_renamed(content, model), answer.status_code, headers)

    async def _unless_left(self, doing: Any) -> Any:
        """The result of an awaitable, which is cancelled when the client leaves."""
        working = asyncio.ensure_future(doing)
        leaving = asyncio.create_task(_disconnect(self._request))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise _ClientLeft
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    async def _events(
        self, answer: httpx.Response, chat: RenderedChat | None, model: ServedModel
    ) -> AsyncIterator[bytes]:
        """The events of a stream as they come; a broken one ends with an event that says so."""
        events = whole_events(answer.aiter_bytes())
        if chat is not None:
            events = chat_events(chat, events)
        try:
            async with aclosing(cast("Any", events)):
                async for event in events:
                    yield _renamed(event, model)
        except (httpx.HTTPError, BrokenStream):
            yield error_event(self._api, await self._broke_off())
        except (ValueError, KeyError, TypeError, AttributeError):  # of `chat_events`
            yield error_event(self._api, _no_answer(200))
        finally:
            await answer.aclose()

    async def _broke_off(self) -> ServingError:
        # Our engine's end shows a moment after its connection breaks.
        await asyncio.sleep(0.5 if self._serving.upstream.kind == "embedded" else 0)
        return self._serving.broke_off()

    async def _counted(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        counters, ended, first = self._serving.counters, False, True
        try:
            async for event in events:
                if first:
                    counters.first_token.add(time.monotonic() - self._begun)
                    first = False
                self._count_usage(event)
                yield event
            ended = True
        finally:
            if not ended:
                counters.left += 1
            elif not self._usage_seen:
                counters.uncounted += 1
            self._serving.finished(self._begun)
            with contextlib.suppress(Exception):
                await cast("Any", events).aclose()

    _usage_seen = False

    def _count_usage(self, events: bytes) -> None:
        for line in events.split(b"\n"):
            if line.startswith(b"data:") and (b'"usage":{' in line or b'"usage": {' in line):
                with contextlib.suppress(ValueError):
                    usage = usage_of(json.loads(line[5:]))
                    self._usage_seen = self._usage_seen or bool(usage)
                    self._serving.counters.add_usage(self.model_name, usage)


def _for_upstream(
    path: str, model: ServedModel, body: dict[str, Any], upstream: Upstream
) -> dict[str, Any]:
    """The request as the server behind takes it: its name of the model, and the template."""
    sent = {**body, "model": model.upstream}
    if path != "/v1/completions" and upstream.takes_templates:
        if model.chat_template is not None and body.get("chat_template") is None:
            sent["chat_template"] = model.chat_template
        if model.has_own_thoughts and "separate_reasoning" not in body:
            sent["separate_reasoning"] = True
    return sent


def _renamed(answer: bytes, model: ServedModel) -> bytes:
    """Whole JSON of the server behind, with the name of the model that clients know.

    Within a string of the JSON, quotes have a backslash: what is found is always a field.
    """
    name = json.dumps(model.name).encode()
    for known in {json.dumps(model.upstream), json.dumps(model.upstream, ensure_ascii=False)}:
        for space in (b"", b" "):
            field_before = b'"model":' + space
            answer = answer.replace(field_before + known.encode(), field_before + name)
    return answer


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _no_answer(status: int) -> ServingError:
    """The error for an answer that is not in the form of the API, such as a proxy's page."""
    return ServingError(
        status if status >= 400 else 502,
        f"the server behind answers with HTTP status {status} and not in the form of this API. "
        "Try again, or look what runs at its address.",
    )


async def _read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ServingError: it is something else, or too large.
    """
    kind = request.headers.get("content-type", "")
    # A web page may send text and forms to any server, but not JSON.
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ServingError(415, f"the content-type is {kind[:100]!r}; it must be application/json.")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _LARGEST_BODY:
            raise ServingError(413, f"the body has more than {_LARGEST_BODY >> 20} MiB.")
    try:
        value: object = json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise ServingError(400, "the body is not JSON.") from None
    if not isinstance(value, dict):
        raise ServingError(400, "the body is not a JSON object.")
    if b"\\u" in data or b"\xed" in data:  # as unpaired surrogates may be written
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ServingError(400, "the body has a text that is not Unicode.") from None
    return cast("dict[str, Any]", value)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
