"""A server of OpenAI's API -> what it answers to a prompt, in one form for all programs.

The forms are those of vLLM, llama.cpp's llama-server, Ollama, `transformers serve` and our own
`serve`. What a server does not offer is None in an answer. Nothing is compared here.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from tinkersmith.errors import UserError, network_reason, one_line
from tinkersmith.guards.proxies import is_on_this_machine

if TYPE_CHECKING:
    import httpx

API_KEY_VARIABLE = "OPENAI_API_KEY"
TOKEN_IDS, PLAIN_TEXT, CHAT_MESSAGES = "token ids", "text", "chat messages"
_CONNECT, _READ = 10.0, 300.0  # seconds; a first answer may wait for the model to be loaded
_LONGEST = 2 * _READ  # seconds that an answer may take as a whole
_LOADING = 120.0  # seconds that a server may answer 503, since it loads its model
_LARGEST_ANSWER = 32 << 20  # bytes
_NAMES = {
    "vllm": "vLLM",
    "llamacpp": "llama-server",
    "library": "Ollama",
    "tinkersmith": "tinkersmith serve",
}
# How the first prompt is sent, until a server takes it: fields that not all servers know.
_FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    (TOKEN_IDS, {"logprobs": 1, "return_token_ids": True, "prompt_logprobs": 1}),
    (TOKEN_IDS, {"logprobs": 1, "echo": True}),
    (TOKEN_IDS, {"logprobs": 1}),
    (TOKEN_IDS, {}),
    (PLAIN_TEXT, {"logprobs": 1}),
    (PLAIN_TEXT, {}),
)
# Answers after which another form is tried; 200 is an answer that cannot be read.
_OTHER_FORM = (200, 400, 404, 405, 415, 422, 500, 501)
_CHAT_FORMS: tuple[dict[str, Any], ...] = (
    {"logprobs": True, "top_logprobs": 1, "return_token_ids": True},
    {"logprobs": True, "top_logprobs": 1},
    {},
)


@dataclass(frozen=True, slots=True)
class Served:
    """An answer of the server; None is what it does not tell."""

    text: str
    finish: str  # "stop", "length", or another word of the server
    tokens: tuple[int, ...] | None = None  # of the answer; an end token may be the last
    spelled: tuple[str, ...] | None = None  # the answer's tokens as texts
    logprobs: tuple[float, ...] | None = None  # of the answer's tokens, as far as they go
    prompt_count: int | None = None  # of tokens
    prompt_tokens: tuple[int, ...] | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None
    has_thoughts: bool = False  # which the server tells apart, so that `text` lacks them


class _Refused(Exception):
    """The server answers a request with an error, or with what is no answer to it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}" if detail else f"HTTP {status}")
        self.status = status
        self.detail = detail


class _NoAnswer(_Refused):
    """The server answers with something of another form: it may know another form of requests."""

    def __init__(self, detail: str) -> None:
        super().__init__(200, detail)


@dataclass(slots=True)
class ModelServer:
    """A served model. Make it with `connect`."""

    url: str  # of the API: it ends with /v1
    model: str
    program: str  # what serves it, as far as it says
    http: "httpx.Client" = field(repr=False)
    pause: Callable[[float], None] = time.sleep
    _form: int = 0
    _chat_form: int = 0

    @property
    def sends(self) -> str:
        """How prompts are sent; CHAT_MESSAGES where the server has no completions."""
        return _FORMS[self._form][0] if self._form < len(_FORMS) else CHAT_MESSAGES

    def complete(self, tokens: Sequence[int], text: str | None, most: int) -> Served | None:
        """The greedy answer to a prompt of `tokens`, or of `text` where the server takes no ids.

        None where it has no /v1/completions, or would need a text that there is not.

        Raises:
            UserError: it cannot be used.
        """
        refusals: list[_Refused] = []
        while self._form < len(_FORMS):
            sent_as, more = _FORMS[self._form]
            if sent_as == PLAIN_TEXT and text is None:
                return None
            prompt: object = list(tokens) if sent_as == TOKEN_IDS else text
            body = {"prompt": prompt, "max_tokens": most, "temperature": 0, **more}
            try:
                answer = self._post("/completions", body)
                return _completion(answer, tokens, echoes="echo" in more)
            except _Refused as refusal:
                if refusal.status not in _OTHER_FORM:
                    raise self._unusable(refusal) from None
                refusals.append(refusal)
            self._form += 1
        if any(refusal.status not in (404, 405) for refusal in refusals):
            raise self._unusable(refusals[-1])
        return None

    def chat(self, messages: Sequence[Mapping[str, Any]], most: int) -> Served | None:
        """The greedy answer to some messages; None where the server has no such route.

        Raises:
            UserError: it refuses the messages.
        """
        refused: _Refused | None = None
        while self._chat_form < len(_CHAT_FORMS):
            body = {"messages": list(messages), "max_tokens": most, "temperature": 0}
            try:
                return _chat(self._post("/chat/completions", {**body, **self._chat_fields()}))
            except _Refused as refusal:
                if refusal.status not in _OTHER_FORM:
                    raise self._unusable(refusal) from None
                refused = refusal
            self._chat_form += 1
        if refused is not None and refused.status not in (404, 405):
            raise UserError(f"the server refuses chat messages ({refused})")
        return None

    def _chat_fields(self) -> dict[str, Any]:
        return _CHAT_FORMS[self._chat_form]

    def tokens_of(self, text: str) -> tuple[int, ...] | None:
        """The tokens that the server makes of a prompt of `text`; None if it does not say."""
        bodies: list[dict[str, object]] = [
            {"model": self.model, "prompt": text},
            {"content": text, "add_special": True, "parse_special": True},
        ]
        if self.program == _NAMES["llamacpp"]:
            bodies.reverse()
        for body in bodies:
            tokens = self._tokenized(body)
            if tokens is not None:
                return tokens
        return None

    def chat_tokens_of(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | None:
        """The tokens that the server makes of some messages; None if it does not say."""
        if self.program != _NAMES["llamacpp"]:
            tokens = self._tokenized({"model": self.model, "messages": list(messages)})
            if tokens is not None:
                return tokens
        try:
            answer = self._post("/apply-template", {"messages": list(messages)}, at_root=True)
        except (_Refused, UserError):
            return None
        prompt = answer.get("prompt")
        if not isinstance(prompt, str):
            return None
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return self._tokenized(body)

    def _tokenized(self, body: dict[str, Any]) -> tuple[int, ...] | None:
        try:
            answer = self._post("/tokenize", body, at_root=True)
        except (_Refused, UserError):
            return None
        return _ids(answer.get("tokens"))

    def close(self) -> None:
        self.http.close()

    def _post(self, path: str, body: dict[str, Any], *, at_root: bool = False) -> dict[str, Any]:
        base = self.url.removesuffix("/v1") if at_root else self.url
        return _asked(self.http, f"{base}{path}", {"model": self.model, **body}, self.pause)

    def _unusable(self, refusal: _Refused) -> UserError:
        if refusal.status in (401, 403):
            return _no_key(self.url, refusal)
        if refusal.status == 404 and "model" in refusal.detail.lower():
            return UserError(
                f"The server at {self.url} lists the model {self.model}, but does not serve it "
                f"({refusal}). Start it, or name another one with --prove-model."
            )
        return UserError(
            f"The server at {self.url} does not answer a prompt for {self.model} ({refusal}). "
            "Correct that at the server."
        )


def connect(url: str, name: str, pause: Callable[[float], None] = time.sleep) -> ModelServer:
    """The model `name` of the server at `url`; without a name, the only one that it serves.

    The key in OPENAI_API_KEY is sent only if the server asks for one.

    Raises:
        UserError: nobody listens, it has no such API, or no such model.
    """
    import httpx

    address = _checked(url)
    timeout = httpx.Timeout(_READ, connect=_CONNECT)
    http = httpx.Client(timeout=timeout, trust_env=not is_on_this_machine(address))
    try:
        api, listed = _models(http, address, pause)
        model = _chosen(listed, name, api)
    except BaseException:
        http.close()
        raise
    owner = str(listed[model].get("owned_by", ""))
    return ModelServer(api, model, _NAMES.get(owner, "a server"), http, pause)


def _checked(url: str) -> str:
    usable = False
    with suppress(ValueError):
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.username or parts.password or parts.query or parts.fragment)
    if not usable:
        shown = one_line(url.rpartition("@")[2])
        raise UserError(
            f"--prove {shown!r} is not the address of a server. Give one such as "
            f"http://127.0.0.1:8000/v1; a key belongs into {API_KEY_VARIABLE}."
        )
    return url.strip().rstrip("/")


def _models(
    http: "httpx.Client", address: str, pause: Callable[[float], None]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """The API's address, and the models that it lists."""
    candidates = [address] if address.endswith("/v1") else [f"{address}/v1", address]
    answered = ""
    for api in candidates:
        try:
            answer = _asked(http, f"{api}/models", None, pause)
        except _Refused as refusal:
            if refusal.status in (401, 403):
                raise _no_key(api, refusal) from None
            answered = str(refusal)
            continue
        data = answer.get("data")
        if isinstance(data, list):
            entries = cast("list[Any]", data)
            models = {
                str(cast(Any, entry)["id"]): cast("dict[str, Any]", entry)
                for entry in entries
                if isinstance(entry, dict) and isinstance(cast(Any, entry).get("id"), str)
            }
            if models or not entries:
                return api, models
        answered = "an answer that is no list of models"
    raise UserError(
        f"The server at {address} does not have OpenAI's API: {candidates[0]}/models gives "
        f"{answered}. Give the address under which it has /models."
    )


def _chosen(listed: Mapping[str, object], name: str, api: str) -> str:
    import difflib

    if not listed:
        raise UserError(f"The server at {api} serves no model. Load the export there.")
    names = ", ".join(one_line(model) for model in list(listed)[:20])
    if name:
        if name in listed:
            return name
        near = difflib.get_close_matches(name, listed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"The server at {api} has no model {name}; it has {names}.{hint}")
    if len(listed) > 1:
        raise UserError(
            f"The server at {api} has {len(listed)} models: {names}. Name the export's with "
            "--prove-model."
        )
    return next(iter(listed))


def _no_key(api: str, refusal: _Refused) -> UserError:
    if os.environ.get(API_KEY_VARIABLE):
        advice = f"The key in {API_KEY_VARIABLE} is not one of this server. Set another."
    else:
        advice = f"Set its key in the environment variable {API_KEY_VARIABLE}."
    return UserError(f"The server at {api} asks for a key (HTTP {refusal.status}). {advice}")


def _asked(
    http: "httpx.Client", url: str, body: dict[str, Any] | None, pause: Callable[[float], None]
) -> dict[str, Any]:
    """The JSON object that a server answers; a server that still loads its model is waited for.

    Raises:
        _Refused: it answers with an error.
        UserError: it does not answer, or with something that is no JSON object.
    """
    waited = 0.0
    while True:
        status, content = _received(http, url, body)
        if status in (429, 503) and waited < _LOADING:
            pause(2.0)
            waited += 2.0
            continue
        if status in (401, 403) and "authorization" not in http.headers:
            key = os.environ.get(API_KEY_VARIABLE, "").strip()
            if key and key.isascii() and key.isprintable():
                http.headers["authorization"] = f"Bearer {key}"
                continue
        break
    if status in (429, 503):
        raise UserError(
            f"The server at {url} has no time for a request (HTTP {status}), for "
            f"{_LOADING:.0f} s now. Ask again when it is ready."
        )
    if status != 200:
        raise _Refused(status, _detail(content))
    answer = _json(content)
    if not isinstance(answer, dict):
        raise _NoAnswer("an answer that is no JSON object")
    return cast("dict[str, Any]", answer)


def _json(content: bytes) -> Any:
    """What JSON holds, also with NaN and Infinity, as servers in Python write them; else None."""
    import orjson

    with suppress(ValueError):
        return orjson.loads(content)
    with suppress(ValueError, RecursionError):
        return json.loads(content.decode(), parse_constant=float)
    return None


def _received(http: "httpx.Client", url: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
    import httpx
    import orjson

    # A prompt may hold half of a character that UTF-8 lacks; orjson refuses it.
    content = orjson.dumps(body) if body is not None else None
    headers = {"content-type": "application/json"} if content is not None else {}
    method = "GET" if content is None else "POST"
    received, begun = bytearray(), time.monotonic()
    try:
        with http.stream(method, url, content=content, headers=headers) as response:
            for block in response.iter_bytes():
                received += block
                if time.monotonic() - begun > _LONGEST:
                    raise UserError(
                        f"The server at {url} did not end its answer within {_LONGEST:.0f} s. "
                        "Check that it is the server you mean."
                    )
                if len(received) > _LARGEST_ANSWER:
                    raise UserError(
                        f"{url} answers with more than {_LARGEST_ANSWER >> 20} MiB. Check that it "
                        "is the server you mean."
                    )
            if response.has_redirect_location:  # not followed: the key is for this server
                return response.status_code, f"it leads to {response.headers['location']}".encode()
            return response.status_code, bytes(received)
    except httpx.TimeoutException as error:
        connecting = isinstance(error, httpx.ConnectTimeout)
        seconds = _CONNECT if connecting else _READ
        raise UserError(
            f"The server at {url} did not answer within {seconds:.0f} s. Check that it runs and "
            "that the address is right."
        ) from None
    except httpx.ConnectError as error:
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        raise UserError(
            f"Nobody listens at {url} ({network_reason(cause)}). Start the server that has the "
            "export, or correct the address."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = one_line(str(error), 200) or type(error).__name__
        raise UserError(
            f"{url} does not answer as a server of OpenAI's API does ({reason.rstrip('.')}). Check "
            "the address."
        ) from None


def _detail(content: bytes) -> str:
    import orjson

    try:
        answer: Any = orjson.loads(content)
        for name in ("error", "detail", "message"):
            if isinstance(answer, dict) and name in answer:
                answer = cast(Any, answer)[name]
        text = str(cast(object, answer))
    except ValueError:
        text = content[:400].decode(errors="replace")
    return one_line(" ".join(text.split()), 200).rstrip(".")


# ---- the forms of answers


def _first_choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices: Any = answer.get("choices")
    if isinstance(choices, list) and len(cast("list[Any]", choices)) == 1:
        choice: Any = cast("list[Any]", choices)[0]
        if isinstance(choice, dict):
            return cast("dict[str, Any]", choice)
    count = len(cast("list[Any]", choices)) if isinstance(choices, list) else 0
    # A list of ids that is taken for a list of prompts, for example.
    raise _NoAnswer(f"{count} answers to one prompt")


def _completion(answer: Mapping[str, Any], prompt: Sequence[int], *, echoes: bool) -> Served:
    """An answer of /v1/completions, which begins with the prompt if it `echoes`."""
    choice = _first_choice(answer)
    text: Any = choice.get("text")
    if not isinstance(text, str):
        raise _NoAnswer("an answer without text")
    prompt_logprobs = _prompt_logprobs(choice.get("prompt_logprobs"), prompt)
    stored: Any = choice.get("logprobs")
    tokens, spelled, logprobs = _answer_tokens(choice)
    if logprobs is None and isinstance(own := _field(stored, "token_logprobs"), list):
        numbers = [_number(value) for value in cast("list[Any]", own)]
        spelled = _texts(_field(stored, "tokens"))
        if echoes:
            text = _behind_prompt(text, stored, len(prompt))
            prompt_logprobs, numbers = tuple(numbers[: len(prompt)]), numbers[len(prompt) :]
            spelled = spelled[len(prompt) :] if spelled is not None else None
        logprobs = _numbers(numbers)
    elif echoes and not isinstance(stored, dict):
        raise _NoAnswer("no log-probabilities beside an echoed prompt")
    return Served(
        _whole(text),
        str(choice.get("finish_reason") or ""),
        tokens,
        spelled,
        logprobs,
        _prompt_count(answer),
        _ids(choice.get("prompt_token_ids")),
        prompt_logprobs,
    )


def _behind_prompt(text: str, logprobs: Mapping[str, Any], echoed: int) -> str:
    """The answer behind a prompt that the server repeats."""
    offsets: Any = logprobs.get("text_offset")
    spelled: Any = logprobs.get("tokens")
    if not isinstance(spelled, list) or len(cast("list[Any]", spelled)) < echoed:
        raise _NoAnswer("an echo that does not have all tokens of the prompt")
    if isinstance(offsets, list) and len(cast("list[Any]", offsets)) > echoed:
        start: Any = cast("list[Any]", offsets)[echoed]
        return text[start:] if isinstance(start, int) else text
    return ""


def _chat(answer: Mapping[str, Any]) -> Served:
    choice = _first_choice(answer)
    message: Any = choice.get("message")
    if not isinstance(message, dict):
        raise _NoAnswer("an answer without a message")
    said = cast("dict[str, Any]", message)
    text = _whole(str(said.get("content") or ""))
    thoughts = said.get("reasoning_content") or said.get("reasoning")
    tokens, spelled, logprobs = _answer_tokens(choice)
    return Served(
        text,
        str(choice.get("finish_reason") or ""),
        tokens,
        spelled,
        logprobs,
        _prompt_count(answer),
        _ids(answer.get("prompt_token_ids") or choice.get("prompt_token_ids")),
        has_thoughts=bool(thoughts),
    )


def _answer_tokens(
    choice: Mapping[str, Any],
) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None, tuple[float, ...] | None]:
    """Ids, texts and log-probabilities of an answer, in the form that chats have.

    That is a list with an object for each token; llama-server answers completions with one, too.
    """
    ids = _ids(choice.get("token_ids"))
    content = _field(choice.get("logprobs"), "content")
    entries = cast("list[Any]", content) if isinstance(content, list) else []
    objects = [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]
    if not objects or len(objects) != len(entries):
        return ids, None, None
    texts = _texts([entry.get("token") for entry in objects])
    logprobs = _numbers([_number(entry.get("logprob")) for entry in objects])
    return ids or _ids([entry.get("id") for entry in objects]), texts, logprobs


def _prompt_logprobs(entries: Any, prompt: Sequence[int]) -> tuple[float | None, ...] | None:
    """vLLM's form: null for the first token, then an object with the token's id as a name."""
    if not isinstance(entries, list) or len(cast("list[Any]", entries)) != len(prompt):
        return None
    values: list[float | None] = []
    for entry, token in zip(cast("list[Any]", entries), prompt, strict=True):
        values.append(_number(_field(_field(entry, str(token)), "logprob")))
    return tuple(values)


def _prompt_count(answer: Mapping[str, Any]) -> int | None:
    count = _field(answer.get("usage"), "prompt_tokens")
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _field(value: Any, name: str) -> Any:
    """A field of an object; None if it has none, or is no object."""
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None


def _ids(values: Any) -> tuple[int, ...] | None:
    if not isinstance(values, list):
        return None
    entries = cast("list[Any]", values)
    if any(isinstance(value, bool) or not isinstance(value, int) for value in entries):
        return None
    return tuple(cast("list[int]", entries))


def _whole(text: str) -> str:
    """A text without lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _texts(values: Any) -> tuple[str, ...] | None:
    if not isinstance(values, list):
        return None
    entries = cast("list[Any]", values)
    return tuple(map(_whole, entries)) if all(isinstance(one, str) for one in entries) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _numbers(values: Sequence[float | None]) -> tuple[float, ...] | None:
    numbers = [value for value in values if value is not None]
    return tuple(numbers) if numbers and len(numbers) == len(values) else None
