"""A refusal -> an answer in the form of the called API: Tinker's, OpenAI's or Anthropic's."""

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from tinkersmith.guards.api_errors import anthropic_error, openai_error

OPENAI = "/oai/api/v1"
ANTHROPIC = "/anthropic/api/v1"

_RETRY_AFTER = {429: "1", 503: "5"}  # seconds


class ApiError(Exception):
    """A refusal of an inference API, with its status and the parameter that is wrong."""

    def __init__(
        self, status: int, sentence: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def detail(sentence: str, status: int) -> JSONResponse:
    """An error as the Tinker SDK reads it."""
    # The sentence may quote an unpaired surrogate, which UTF-8 cannot encode.
    return JSONResponse({"detail": sentence.encode(errors="replace").decode()}, status)


def error_response(path: str, sentence: str, status: int, **rest: str | None) -> JSONResponse:
    """An error in the form of the API that `path` belongs to."""
    if not path.startswith((f"{OPENAI}/", f"{ANTHROPIC}/")):
        return detail(sentence, status)
    retry = {"retry-after": _RETRY_AFTER[status]} if status in _RETRY_AFTER else {}
    return JSONResponse(
        error_body(path, sentence, status, **rest), status, request_id(path) | retry
    )


def request_id(path: str) -> dict[str, str]:
    """The header by which clients name a request."""
    name = "request-id" if path.startswith(ANTHROPIC) else "x-request-id"
    return {name: f"req_{secrets.token_hex(12)}"}


def error_body(
    path: str, sentence: str, status: int, *, param: str | None = None, code: str | None = None
) -> Mapping[str, Any]:
    """The JSON of an error, also for an error within a stream."""
    if path.startswith(f"{ANTHROPIC}/"):
        return anthropic_error(sentence, status)
    return openai_error(sentence, status, param=param, code=code)
