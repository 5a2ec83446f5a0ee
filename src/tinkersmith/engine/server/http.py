"""What all routes share: the key, bounded bodies, and errors turned into sentences."""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkersmith.engine.errors import Gone, NotFound, Refused
from tinkersmith.engine.scheduling.queue import failure
from tinkersmith.engine.server.bodies import HEAD, MAX_BODY, MAX_JSON

API = "/api/v1"
FILES = "/files"  # downloads
_LINGER = 10.0  # seconds for a client to send the rest of a body that was refused

Handler = Callable[[Request], Awaitable[Response]]


class BadBody(Refused):
    """A body that cannot be read; `head` is its beginning, as far as it is known."""

    def __init__(self, sentence: str, head: bytes = b"") -> None:
        super().__init__(sentence)
        self.head = head


class KeyGuard:
    """Lets only requests with the right key, or a token made with it, through, except to health
    and downloads."""

    def __init__(
        self, app: ASGIApp, key: str | None, is_token: Callable[[bytes, str, float], bool]
    ) -> None:
        self.app = app
        self.is_token = is_token
        self.key = (key or "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.key and not self._allowed(scope):
            refusal = detail("the API key is not the one of this engine.", 401)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        # Downloads are fetched without a key: their address holds a secret of its own.
        if scope["path"] == f"{API}/healthz" or scope["path"].startswith(f"{FILES}/"):
            return True
        sent = dict(scope["headers"]).get(b"x-api-key", b"")
        if hmac.compare_digest(sent, self.key):
            return True
        return self.is_token(self.key, sent.decode("latin-1"), time.time())


class EarlyAnswers:
    """Lets a client see an answer that comes before it has sent its whole body.

    The answer goes out at once, but the connection stays until the rest has come, and been dropped:
    closed earlier, it would break in the middle of the client's sending, which then tries again.
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


def in_sentences(handler: Handler) -> Handler:
    """The handler, with every exception answered as {"detail": sentence}, never as a 500.

    A 500 would be retried, silently, for minutes.
    """

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except NotFound as error:
            return detail(str(error), 404)
        except Gone as error:
            return detail(str(error), 410)
        except Refused as error:
            return detail(str(error), 400)
        except ClientDisconnect:
            return detail("the client hung up.", 400)
        except Exception as error:
            return detail(failure(error)["error"], 400)

    return answer


async def no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    sentence = f"this engine has no {request.method} {request.url.path}."
    return detail(sentence, status)


def detail(sentence: str, status: int) -> JSONResponse:
    # A client may have sent half of a surrogate pair, which UTF-8 has no bytes for.
    return JSONResponse({"detail": sentence.encode(errors="replace").decode()}, status)


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body, of at most `limit` bytes: of a larger one no more is read than its head.

    Raises:
        BadBody: it is larger.
    """
    declared = int(request.headers.get("content-length", 0))
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > limit or (declared > limit and size >= HEAD):
            break
    if max(size, declared) <= limit:
        return b"".join(parts)
    told = f"{declared >> 20:,}" if declared else f"more than {limit >> 20}"
    head = bytearray()
    while parts and len(head) < HEAD:
        head += parts.pop(0)
    raise BadBody(
        f"the body has {told} MiB; at most {limit >> 20} MiB are taken: send smaller batches.",
        bytes(head[:HEAD]),
    )


async def read_json(request: Request) -> dict[str, Any]:
    """Raises: BadBody: it is no JSON object, or too large."""
    body = await read_body(request, MAX_JSON)
    try:
        value = json.loads(body or b"{}")
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # an escape may be no character
    except (ValueError, RecursionError):
        raise BadBody("the body is not JSON.", body[:HEAD]) from None
    if not isinstance(value, dict):
        raise BadBody("the body is not a JSON object.", body[:HEAD])
    return value
