"""A refusal -> an answer in the form of the client's API: OpenAI's or Anthropic's."""

import json
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from starlette.responses import JSONResponse

from tinkersmith.guards.api_errors import anthropic_error, openai_error

if TYPE_CHECKING:
    from starlette.types import Scope

Api = Literal["openai", "anthropic"]
MESSAGES = "/v1/messages"
COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
_ANTHROPIC_HEADERS = frozenset((b"anthropic-version", b"x-api-key"))
_RETRY_AFTER = {429: "1", 503: "2"}  # seconds


class ServingError(Exception):
    """A refusal with its status. The text is one sentence for the client's user."""

    def __init__(self, status: int, sentence: str, *, param: str = "", code: str = "") -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def api_of(scope: "Scope") -> Api:
    """The API that a client speaks: that of the route; on a shared one, its headers decide."""
    path: str = scope["path"]
    if path in COMPLETIONS:
        return "openai"
    names = {name for name, _ in scope["headers"]}
    return "anthropic" if path.startswith(MESSAGES) or names & _ANTHROPIC_HEADERS else "openai"


def refusal_body(
    api: Api, sentence: str, status: int, *, param: str = "", code: str = ""
) -> Mapping[str, Any]:
    """The JSON of an error, also for one within a stream."""
    if api == "anthropic":
        return anthropic_error(sentence, status)
    return openai_error(sentence, status, param=param or None, code=code or None)


def refused(api: Api, sentence: str, status: int) -> JSONResponse:
    """An answer that refuses a request."""
    return refusal_of(api, ServingError(status, sentence))


def refusal_of(api: Api, error: ServingError) -> JSONResponse:
    """The answer to a request that `error` refuses."""
    body = refusal_body(api, str(error), error.status, param=error.param, code=error.code)
    wait = _RETRY_AFTER.get(error.status)
    headers = answer_id(api) | ({"retry-after": wait} if wait else {})
    return JSONResponse(body, error.status, headers)


def answer_id(api: Api) -> dict[str, str]:
    """A new name of a request, in the headers that the clients of this API read."""
    name = "request-id" if api == "anthropic" else "x-request-id"
    return {name: f"req_{secrets.token_hex(12)}"}


def error_event(api: Api, error: ServingError) -> bytes:
    """An error as the last event of a stream."""
    name = "event: error\n" if api == "anthropic" else ""
    text = json.dumps(refusal_body(api, str(error), error.status), ensure_ascii=False)
    return f"{name}data: {text}\n\n".encode()
