"""Messages -> a streamed answer, in OpenAI's form, by httpx."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.chat.conversation import ChatAnswer, ChatModel
from tinkersmith.errors import UserError

if TYPE_CHECKING:
    import httpx

_CONNECT = 30.0  # seconds
_BROKE_OFF = "The answer broke off before its end. Try /retry."


class ChatServer:
    """The server of the models."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def models(self) -> list[ChatModel]:
        """All models, the tuned ones first.

        Raises:
            UserError: the server does not list them.
        """
        import httpx

        try:
            answer = httpx.get(
                f"{self._url}/v1/models", headers=self._headers, timeout=_CONNECT, trust_env=False
            )
        except httpx.HTTPError as error:
            raise UserError(_unreachable(error)) from None
        if answer.status_code != 200:
            raise UserError(_sentence(answer.status_code, answer.content))
        listed: list[dict[str, Any]] = answer.json()["data"]
        return [
            ChatModel(model["id"], model["kind"], model["template"]["has_input"])
            for model in listed
        ]

    async def stream(
        self, answer: ChatAnswer, body: dict[str, Any], notice: Callable[[], None]
    ) -> None:
        """Fill `answer` from the server, and call `notice` after each piece.

        What goes wrong becomes the answer's `error`.
        """
        import httpx

        timeout = httpx.Timeout(None, connect=_CONNECT)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
                client.stream(
                    "POST",
                    f"{self._url}/v1/chat/completions",
                    content=json.dumps({**body, "stream": True}).encode(),
                    headers={**self._headers, "content-type": "application/json"},
                ) as response,
            ):
                if response.status_code != 200:
                    answer.error = _sentence(response.status_code, await response.aread())
                    return
                async for event in _events(response):
                    _take(answer, event)
                    if answer.error:
                        return
                    notice()
        except httpx.HTTPError as error:
            begun = answer.text or answer.thought
            answer.error = _BROKE_OFF if begun else _unreachable(error)
            return
        except (ValueError, KeyError, TypeError, AttributeError):  # of `_events` and `_take`
            answer.error = "The server sent something that is no answer of this API. Try /retry."
            return
        if not answer.ending:
            answer.error = _BROKE_OFF


async def _events(response: "httpx.Response") -> AsyncIterator[Mapping[str, Any]]:
    rest = b""
    async for piece in response.aiter_bytes():
        # Not by aiter_lines: texts may hold U+2028, where it would break a line.
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            text = line[5:].strip()
            if text == b"[DONE]":
                return
            event: object = json.loads(text)
            if isinstance(event, dict):
                yield cast("Mapping[str, Any]", event)


def _take(answer: ChatAnswer, event: Mapping[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"].get("message"))
        return
    choices: list[dict[str, Any]] = event.get("choices") or []
    for choice in choices:
        delta: dict[str, Any] = choice.get("delta") or {}
        answer.thought += delta.get("reasoning_content") or ""
        answer.text += delta.get("content") or ""
        answer.ending = choice.get("finish_reason") or answer.ending


def _sentence(status: int, content: bytes) -> str:
    """The API's own sentence of a refusal."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with HTTP status {status} and no reason. Try /retry."


def _unreachable(error: Exception) -> str:
    return f"The server does not answer ({type(error).__name__}). Start the chat again."
