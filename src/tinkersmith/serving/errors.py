"""A refusal -> an answer in the form of the called API: OpenAI's, or Anthropic's for messages."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

MESSAGES = "/v1/messages"
_RETRY_AFTER = {429: "1", 503: "2"}  # seconds
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
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
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}


class ServingError(Exception):
    """A refusal with its status. The text is one sentence for the client's user."""

    def __init__(self, status: int, sentence: str, *, param: str = "", code: str = "") -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def refusal_body(
    path: str, sentence: str, status: int, *, param: str = "", code: str = ""
) -> Mapping[str, Any]:
    """The JSON of an error, also for one within a stream."""
    sentence = sentence.encode(errors="replace").decode()
    if path.startswith(MESSAGES):
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": sentence}}
    kind = _OPENAI_TYPES.get(status, "invalid_request_error")
    code = code or _CODES.get(status, "")
    return {
        "error": {"message": sentence, "type": kind, "param": param or None, "code": code or None}
    }


def refused(path: str, sentence: str, status: int) -> JSONResponse:
    """An answer that refuses a request."""
    return refusal_of(path, ServingError(status, sentence))


def refusal_of(path: str, error: ServingError) -> JSONResponse:
    """The answer to a request that `error` refuses."""
    body = refusal_body(path, str(error), error.status, param=error.param, code=error.code)
    wait = _RETRY_AFTER.get(error.status)
    return JSONResponse(body, error.status, {"retry-after": wait} if wait else {})


def error_event(path: str, error: ServingError) -> bytes:
    """An error as the last event of a stream."""
    name = "event: error\n" if path.startswith(MESSAGES) else ""
    text = json.dumps(refusal_body(path, str(error), error.status), ensure_ascii=False)
    return f"{name}data: {text}\n\n".encode()
