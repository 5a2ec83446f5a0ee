"""Who asks: there is one user, "local". A token says so, signed with the engine's key.

The SDK changes its API key for a token (a JWT, RFC 7519) and reads the user's name out of it. It
stays good when the engine is restarted with the same key.
"""

import base64
import hashlib
import hmac
import json
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.server.http import Handler

USER = "tml:user:local"
TOKEN_LIFETIME = 7 * 24 * 3600  # seconds


def identity_routes(key: str | None) -> list[tuple[str, str, Handler]]:
    secret = (key or "").encode()

    async def token(request: Request) -> Response:
        return JSONResponse({"jwt": make_token(secret, time.time())})

    async def api_key(request: Request) -> Response:
        details = {"org_details": {"name": "local"}, "user_details": {"email": "local@localhost"}}
        return JSONResponse({"key_id": 1, "name": "local", "note": "", "details": details})

    return [("POST", "/auth/token", token), ("GET", "/auth/apikey/me", api_key)]


def make_token(secret: bytes, now: float) -> str:
    claims = {"sub": USER, "org_id": "local", "iat": int(now), "exp": int(now) + TOKEN_LIFETIME}
    head = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(claims)}"
    return f"{head}.{_signature(secret, head)}"


def is_token(secret: bytes, text: str, now: float) -> bool:
    """Whether `text` is a token that `make_token` gave and that has not expired."""
    head, _, signature = text.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _signature(secret, head).encode()):
        return False
    claims = head.partition(".")[2]
    return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"] > now


def _encoded(value: dict[str, object]) -> str:
    return _text(json.dumps(value).encode())


def _signature(secret: bytes, head: str) -> str:
    return _text(hmac.new(secret, head.encode(), hashlib.sha256).digest())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
