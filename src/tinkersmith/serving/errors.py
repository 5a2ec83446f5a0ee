"""A refusal -> an answer in the form of the called API: OpenAI's, or Anthropic's for messages."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from tinkersmith.guards.api_errors import anthropic_error, openai_error

MESSAGES = "/v1/messages"
_RETRY_AFTER = {429: "1", 503: "2"}  # seconds


class ServingError(Exception):
    """A refusal with its status. The text is one sentence for the client's user."""

    def __init__(self, status: int, sentence: str, *, param: str = "", code: str = "") -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def refusal_body(
    path: str, sentence: str, status: int, *, param: str = "", code: str = ""
) -> Mapping[str, Any]:
    """The JSON of an error, also for one within a stream."""
    if path.startswith(MESSAGES):
        return anthropic_error(sentence, status)
    return openai_error(sentence, status, param=param or None, code=code or None)


def refused(path: str, sentence: str, status: int) -> JSONResponse:
    """An answer that refuses a request."""
    return refusal_of(path, ServingError(status, sentence))


def refusal_of(path: str, error: ServingError) -> JSONResponse:
    """The answer to a request that `error` refuses."""
    body = refusal_body(path, str(error), error.status, param=error.param, code=error.code)
    wait = _RETRY_AFTER.get(error.status)
    headers = answer_id(path) | ({"retry-after": wait} if wait else {})
    return JSONResponse(body, error.status, headers)


def answer_id(path: str) -> dict[str, str]:
    """A new name of a request, in the headers that the clients of the called API read."""
    name = "request-id" if path.startswith(MESSAGES) else "x-request-id"
    return {name: f"req_{secrets.token_hex(12)}"}


def error_event(path: str, error: ServingError) -> bytes:
    """An error as the last event of a stream."""
    name = "event: error\n" if path.startswith(MESSAGES) else ""
    text = json.dumps(refusal_body(path, str(error), error.status), ensure_ascii=False)
    return f"{name}data: {text}\n\n".encode()
