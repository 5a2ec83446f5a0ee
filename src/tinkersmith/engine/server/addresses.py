"""Download addresses that need no API key: each is signed for one path and valid for an hour."""

import hashlib
import hmac
import json
import secrets
import time

from starlette.requests import Request

from tinkersmith.engine.errors import NotFound
from tinkersmith.engine.server.http import FILES

LIFETIME = 3600  # seconds
_SECRET = secrets.token_bytes(32)  # of this process: after a restart no address is valid


def signed_address(request: Request, path: str) -> tuple[str, int]:
    """The address that serves `path` without a key, and when it expires (Unix seconds)."""
    expires = int(time.time()) + LIFETIME
    host = f"{request.url.scheme}://{request.headers['host']}"
    return f"{host}{FILES}/{_token(path, expires)}/{path}", expires


def check_address(token: str, path: str) -> None:
    """Check the token of a download address.

    Raises:
        NotFound: the token is not valid for `path`, or has expired.
    """
    expires = token.partition("-")[0]
    number = expires.isascii() and expires.isdigit() and len(expires) < 20
    good = number and int(expires) >= time.time()
    expected = _token(path, int(expires) if good else 0)
    if not good or not hmac.compare_digest(token.encode(), expected.encode()):
        raise NotFound("this download address is unknown or has expired; request a new one.")


def _token(path: str, expires: int) -> str:
    """An unguessable token that is valid for `path` until `expires`. It needs no state."""
    digest = hmac.new(_SECRET, json.dumps([path, expires]).encode(), hashlib.sha256)
    return f"{expires}-{digest.hexdigest()}"
