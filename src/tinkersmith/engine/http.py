"""What all routes share: the key, bounded bodies, and errors turned into sentences."""

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tinkersmith.engine import wire
from tinkersmith.engine.errors import Gone, NotFound, Refused
from tinkersmith.engine.queue import failure

log = logging.getLogger("tinkersmith.engine")

API = "/api/v1"
FILES = "/files"  # downloads
_HEAD = 1024  # bytes of a refused body that are kept, to see whose operation it was

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
    return JSONResponse({"detail": sentence}, status)


async def read_body(request: Request) -> bytes:
    """The body, of at most wire.MAX_BODY bytes.

    A larger one is read to its end without being kept: a client that is cut off while it sends
    would not see the answer, and try again.

    Raises:
        BadBody: it is larger.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= wire.MAX_BODY or not parts:
            parts.append(part)
        else:
            del parts[1:]
    if size > wire.MAX_BODY:
        raise BadBody(
            f"the body has {size >> 20:,} MiB; at most {wire.MAX_BODY >> 20} MiB are taken: "
            "send smaller batches.",
            b"".join(parts)[:_HEAD],
        )
    return b"".join(parts)


async def read_json(request: Request) -> dict[str, Any]:
    body = await read_body(request)
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON.") from None
    if not isinstance(value, dict):
        raise Refused("the body is not a JSON object.")
    return value
