"""A refusal -> the JSON of an error as OpenAI's and Anthropic's API have it.

The engine and `serve` answer both APIs. This module does not know their routes.
"""

from collections.abc import Mapping
from typing import Any

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
}
_OPENAI_CODES = {
    401: "invalid_api_key",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
}


def openai_error(
    sentence: str, status: int, *, param: str | None = None, code: str | None = None
) -> Mapping[str, Any]:
    """The body of OpenAI's error for an HTTP status. `param` is the parameter that is wrong."""
    return {
        "error": {
            "message": _encodable(sentence),
            "type": _OPENAI_TYPES.get(status, "invalid_request_error"),
            "param": param,
            "code": code or _OPENAI_CODES.get(status),
        }
    }


def anthropic_error(sentence: str, status: int) -> Mapping[str, Any]:
    """The body of Anthropic's error for an HTTP status."""
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _encodable(sentence)}}


def allowed_methods(error: Exception) -> str:
    """The methods of a route that was called with another one; "" for any other error."""
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    return ", ".join(sorted(headers.get("Allow", "").split(", ")))


def _encodable(sentence: str) -> str:
    """The sentence without unpaired surrogates, which it may quote and UTF-8 cannot encode."""
    return sentence.encode(errors="replace").decode()
