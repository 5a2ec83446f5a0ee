"""What all routes share: the API key, types and limits of bodies, and errors as sentences."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkersmith.engine.errors import Gone, NotFound, Refused
from tinkersmith.engine.scheduling.queue import failure
from tinkersmith.engine.server.api_errors import detail, error_response
from tinkersmith.engine.server.bodies import HEAD, MAX_BODY, MAX_JSON
from tinkersmith.engine.server.fields import is_object
from tinkersmith.guards.api_errors import allowed_methods
from tinkersmith.guards.keys import carries_key, sent_keys

API = "/api/v1"
FILES = "/files"  # downloads
JSON = "application/json"
PROTOBUF = "application/x-protobuf"
_LINGER = 10.0  # seconds for a client to send the rest of a body that was refused

Handler = Callable[[Request], Awaitable[Response]]
Routes = list[tuple[str, str, Handler]]  # method, path below API, handler


class BadBody(Refused):
    """A body that cannot be read. `head` holds its first bytes, as far as they were received."""

    def __init__(self, sentence: str, head: bytes = b"") -> None:
        super().__init__(sentence)
        self.head = head


class TooLargeBody(BadBody):
    """A body beyond the limit."""


class KeyGuard:
    """Refuses requests without the right key or a token made with it.

    The key stands in X-API-Key or, as a bearer token, in Authorization. Health checks and downloads
    need none.
    """

    def __init__(
        self, app: ASGIApp, key: str, is_token: Callable[[bytes, str, float], bool]
    ) -> None:
        self.app = app
        self.is_token = is_token
        self.key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            sentence = "the API key is not this engine's key."
            await error_response(scope["path"], sentence, 401)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        # Downloads need no key: their address holds a secret of its own.
        if scope["path"] == f"{API}/healthz" or scope["path"].startswith(f"{FILES}/"):
            return True
        if carries_key(scope, self.key):
            return True
        now = time.time()
        return any(
            self.is_token(self.key.encode(), sent.decode("latin-1"), now)
            for sent in sent_keys(scope)
        )


class EarlyAnswers:
    """Lets a client see an answer that is ready before it has sent its whole body.

    The answer is sent at once, but the connection stays open until the rest of the body has been
    received and discarded. Closed earlier, it would break while the client still sends, and the
    client would try again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope.get("headers", ())}
        if not names & {b"content-length", b"transfer-encoding"}:
            await self.app(scope, receive, send)
            return
        more = True

        async def receive_noting_the_end() -> Message:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def send_before_the_end(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if more and last:
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER):
                        while more:
                            await receive_noting_the_end()
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, receive_noting_the_end, send_before_the_end)


def in_sentences(handler: Handler, body_type: str | None = JSON) -> Handler:
    """Wrap a handler so that every exception becomes {"detail": sentence} and never a 500.

    The SDK would retry a 500 silently for minutes. Bodies of another type than `body_type` are
    refused: those that a web page may send to any site are text or forms. None: of any type.
    """

    async def answer(request: Request) -> Response:
        try:
            sent = None if body_type is None else wrong_type(request, body_type)
            if sent is not None:
                return detail(f"the content-type is {sent!r}; it must be {body_type}.", 415)
            return await handler(request)
        except NotFound as error:
            return detail(str(error), 404)
        except Gone as error:
            return detail(str(error), 410)
        except Refused as error:
            return detail(str(error), 400)
        except ClientDisconnect:
            return detail("the client closed the connection.", 400)
        except Exception as error:
            return detail(failure(error)["error"], 400)

    return answer


def wrong_type(request: Request, body_type: str) -> str | None:
    """The type of the request's body if it is not `body_type`; None: it is, or there is no body."""
    if request.method in ("GET", "HEAD"):
        return None
    sent = request.headers.get("content-type")
    if sent is None:
        length = request.headers.get("content-length", "0")
        has_body = length.strip("0") != "" or "transfer-encoding" in request.headers
        return "" if has_body else None
    return None if sent.partition(";")[0].strip().lower() == body_type else sent


async def no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    sentence = f"this engine has no {request.method} {request.url.path}."
    allowed = allowed_methods(error)
    if allowed:
        sentence = f"{sentence[:-1]}; the method must be {allowed}."
    response = error_response(request.url.path, sentence, status)
    if allowed:
        response.headers["allow"] = allowed
    return response


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """Read a body of at most `limit` bytes. Of a larger one only the head is read.

    Raises:
        BadBody: the body is larger.
    """
    declared = int(request.headers.get("content-length", 0))
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit or (declared > limit and size >= HEAD):
            break
    if max(size, declared) <= limit:
        return b"".join(chunks)
    shown = f"{declared >> 20:,}" if declared else f"more than {limit >> 20}"
    head = bytearray()
    while chunks and len(head) < HEAD:
        head += chunks.pop(0)
    raise TooLargeBody(
        f"the body has {shown} MiB; the limit is {limit >> 20} MiB: send smaller batches.",
        bytes(head[:HEAD]),
    )


async def read_json(request: Request) -> dict[str, Any]:
    """Read a body that is a JSON object.

    Raises:
        BadBody: the body is not a JSON object, or is too large.
    """
    body = await read_body(request, MAX_JSON)
    try:
        value = json.loads(body or b"{}")
        if b"\\u" in body or b"\xed" in body:  # how they may be written
            json.dumps(value, ensure_ascii=False).encode()  # fails on an unpaired surrogate
    except (ValueError, RecursionError):
        raise BadBody("the body is not JSON.", body[:HEAD]) from None
    if not is_object(value):
        raise BadBody("the body is not a JSON object.", body[:HEAD])
    return value
