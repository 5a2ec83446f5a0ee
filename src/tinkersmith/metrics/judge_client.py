"""Requests to a judge: any server with OpenAI's chat completions. Bounded, timed and repeated."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from tinkersmith.errors import UserError, one_line
from tinkersmith.guards.proxies import is_on_this_machine
from tinkersmith.metrics.judge_prompts import JudgePrompt
from tinkersmith.metrics.judge_replies import JudgeReplies, JudgeReply, request_digest

if TYPE_CHECKING:
    import httpx

JUDGE_KEY = "JUDGE_API_KEY"
ATTEMPTS = 6
SECONDS = 120.0  # for a reply
_MOST_TOKENS = 2048  # of a reply
_LARGEST_REPLY = 8_000_000  # bytes
_LONGEST_PAUSE = 60.0


class JudgeRefused(Exception):
    """The server does not judge this one text; the text says why."""


@dataclass(slots=True)
class JudgeClient:
    """A connection to a judge. Threads share it."""

    url: str  # of the chat completions
    model: str
    key: str = field(repr=False)
    http: "httpx.Client" = field(repr=False)
    replies: JudgeReplies = field(default_factory=JudgeReplies, repr=False)
    pause: Callable[[float], None] = time.sleep
    notes: list[str] = field(default_factory=list[str])  # what was changed for this server
    # of a request; what the server refuses is left out from then on
    options: dict[str, Any] = field(
        default_factory=lambda: {"temperature": 0, "max_tokens": _MOST_TOKENS}
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """One reply; one that is known already is not asked for.

        Raises:
            JudgeRefused: the server refuses this text.
            UserError: the server cannot be used at all, or is away for long.
        """
        request = request_digest(self.model, prompt.system, prompt.user)
        known = self.replies.get(request)
        if known is None:
            known = self._asked(prompt)
            self.replies.add(request, known)
        return known

    def try_out(self, prompt: JudgePrompt) -> None:
        """Ask without keeping the reply; raises as `ask` does."""
        self._asked(prompt)

    def _asked(self, prompt: JudgePrompt) -> JudgeReply:
        import httpx

        trouble = ""
        for attempt in range(ATTEMPTS):
            options = dict(self.options)
            wait = min(_LONGEST_PAUSE, 0.5 * 2**attempt)
            try:
                status, headers, content = self._send(prompt, options)
            except httpx.TimeoutException:
                trouble = f"no reply within {SECONDS:.0f} s"
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble = f"{type(error).__name__}: {one_line(str(error), 200)}".rstrip(": ")
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UserError(f"JUDGE_URL is {self.url}: {error}. Correct it.") from None
            else:
                if status == 200:
                    reply = _reply(content)
                    if reply is not None:
                        return reply
                    trouble = "a reply that is no chat completion"
                elif status == 400 and self._adapted(options, _detail(content)):
                    continue
                else:
                    trouble = f"HTTP {status}: {_detail(content)}"
                    self._refuse(status, trouble)
                    wait = _asked_pause(headers.get("retry-after", ""), wait)
            if attempt + 1 < ATTEMPTS:
                self.pause(wait)
        raise UserError(
            f"The judge at {self.url} does not answer ({trouble}; asked {ATTEMPTS} times). Check "
            "JUDGE_URL and that the server runs."
        )

    def close(self) -> None:
        self.http.close()

    def _send(self, prompt: JudgePrompt, options: dict[str, Any]) -> "tuple[int, Any, bytes]":
        import orjson

        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": _sendable(prompt.system)},
                {"role": "user", "content": _sendable(prompt.user)},
            ],
            **options,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        begun, content = time.monotonic(), bytearray()
        with self.http.stream(
            "POST", self.url, content=orjson.dumps(body), headers=headers
        ) as response:
            for block in response.iter_bytes():
                content += block
                if len(content) > _LARGEST_REPLY:
                    raise JudgeRefused(f"a reply of more than {_LARGEST_REPLY:,} bytes")
                # A server that sends a byte now and then must not hold us for ever.
                if time.monotonic() - begun > 2 * SECONDS:
                    return 504, {}, b"the reply took too long"
            return response.status_code, response.headers, bytes(content)

    def _adapted(self, sent: dict[str, Any], detail: str) -> bool:
        """Leave out or rename an option that the server refuses; False if it refuses none."""
        with self._lock:
            if self.options != sent:
                return True  # another thread has done it meanwhile
            if "max_tokens" in sent and "max_tokens" in detail:
                self.options["max_completion_tokens"] = self.options.pop("max_tokens")
                self.notes.append("max_completion_tokens is sent in place of max_tokens")
                return True
            if "temperature" in sent and "temperature" in detail:
                del self.options["temperature"]
                self.notes.append("the judge takes no temperature, so its verdicts can vary")
                return True
        return False

    def _refuse(self, status: int, trouble: str) -> None:
        """Raise what repeating a request cannot cure."""
        if status in (401, 403):
            key = f"Check {JUDGE_KEY}" if self.key else f"Set {JUDGE_KEY}"
            raise UserError(
                f"The judge at {self.url} refuses the key ({trouble}). {key} in the environment."
            )
        if status in (404, 405) or 300 <= status < 400:
            raise UserError(
                f"The judge at {self.url} has no model {one_line(self.model)} or no such address "
                f"({trouble}). Check JUDGE_MODEL and JUDGE_URL, which often ends in /v1."
            )
        if status == 402 or (status == 429 and "insufficient_quota" in trouble):
            raise UserError(f"The judge at {self.url} wants to be paid ({trouble}).")
        if 400 <= status < 500 and status not in (408, 409, 425, 429):
            raise JudgeRefused(trouble)


def open_judge(url: str, model: str, key: str | None = None) -> JudgeClient:
    """A client for the server at JUDGE_URL; the key comes from the environment.

    Raises:
        UserError: the address or the key cannot be one.
    """
    import httpx

    address = judge_address(url)
    key = os.environ.get(JUDGE_KEY, "").strip() if key is None else key
    if not key.isascii() or not key.isprintable():
        raise UserError(
            f"{JUDGE_KEY} holds characters that no key has. Set it again, without what a "
            "copied text has around it."
        )
    return JudgeClient(
        url=address,
        model=model,
        key=key,
        http=httpx.Client(
            timeout=httpx.Timeout(SECONDS, connect=20.0),
            # A proxy of the environment is no way to this machine.
            trust_env=not is_on_this_machine(address),
            limits=httpx.Limits(max_connections=None),
        ),
    )


def judge_address(url: str) -> str:
    """The address of the chat completions below JUDGE_URL.

    Raises:
        UserError: it is no address, or holds a password.
    """
    shown = one_line(url)
    try:
        parts = urlsplit(url.strip())
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if parts.username or parts.password:
        raise UserError(
            f"JUDGE_URL holds a name or a password. Leave it out and set {JUDGE_KEY} in the "
            "environment."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise UserError(
            f'JUDGE_URL is "{shown}"; it must be the address of a server with OpenAI\'s chat '
            'completions, such as "http://localhost:8000/v1".'
        )
    if parts.query or parts.fragment:
        raise UserError(f'JUDGE_URL is "{shown}"; leave out what follows ? or #.')
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions"


def is_open_to_readers(url: str) -> bool:
    """Whether a key would go over a network without encryption."""
    return urlsplit(url).scheme == "http" and not is_on_this_machine(url)


def _reply(content: bytes) -> JudgeReply | None:
    import orjson

    try:
        body = orjson.loads(content)
        choice = body["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    if text is None:
        text = ""  # a refusal, or all tokens were spent on thinking
    if not isinstance(text, str):
        return None
    usage = body.get("usage")
    counts = cast("dict[str, Any]", usage) if isinstance(usage, dict) else {}
    return JudgeReply(
        text=text,
        cut=choice.get("finish_reason") == "length",
        prompt_tokens=_count(counts.get("prompt_tokens")),
        reply_tokens=_count(counts.get("completion_tokens")),
    )


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return cast(int, value) if is_count else None


def _detail(content: bytes) -> str:
    import orjson

    try:
        body = orjson.loads(content)
        error: object = body.get("error", body.get("detail", body.get("message", body)))
        if isinstance(error, dict):
            error = cast("dict[str, object]", error).get("message", cast(object, error))
        text = str(error)
    except (ValueError, AttributeError):
        text = content[:400].decode("utf-8", "replace")
    return one_line(" ".join(text.split()), 200)


def _asked_pause(header: str, otherwise: float) -> float:
    try:
        seconds = float(header)
    except ValueError:
        return otherwise
    return min(_LONGEST_PAUSE, seconds) if seconds > 0 else otherwise


def _sendable(text: str) -> str:
    """A text without lone surrogates, which no JSON holds."""
    return text.encode("utf-8", "replace").decode()
