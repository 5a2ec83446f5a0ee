"""Who sends a request: there is one user, "local". A token names it, signed with the engine's key.

The SDK exchanges its API key for a token (a JWT, RFC 7519) and reads the user's name from it. A
token stays valid when the engine is restarted with the same key.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.server.http import Routes

USER = "tml:user:local"
TOKEN_LIFETIME = 7 * 24 * 3600  # seconds


class IdentityRoutes:
    """The exchange of the API key for a token, and what is known about the key."""

    def __init__(self, key: str) -> None:
        self._secret = key.encode()

    def routes(self) -> Routes:
        return [("POST", "/auth/token", self.token), ("GET", "/auth/apikey/me", self.api_key)]

    async def token(self, request: Request) -> Response:
        return JSONResponse({"jwt": make_token(self._secret, time.time())})

    async def api_key(self, request: Request) -> Response:
        details = {"org_details": {"name": "local"}, "user_details": {"email": "local@localhost"}}
        return JSONResponse({"key_id": 1, "name": "local", "note": "", "details": details})


def make_token(secret: bytes, now: float) -> str:
    """A JWT that expires `TOKEN_LIFETIME` after `now` (Unix seconds)."""
    claims = {"sub": USER, "org_id": "local", "iat": int(now), "exp": int(now) + TOKEN_LIFETIME}
    head = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(claims)}"
    return f"{head}.{_signature(secret, head)}"


def is_token(secret: bytes, text: str, now: float) -> bool:
    """Whether `make_token` made `text`, and it has not expired."""
    head, _, signature = text.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(secret, head).encode()):
        return False
    claims = head.partition(".")[2]
    return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"] > now


def _encoded(value: Mapping[str, object]) -> str:
    return _base64url(json.dumps(value).encode())


def _signature(secret: bytes, head: str) -> str:
    return _base64url(hmac.new(secret, head.encode(), hashlib.sha256).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
