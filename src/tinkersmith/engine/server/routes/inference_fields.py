"""Bodies of the inference APIs: checked parameters, and how every answer and error is sent.

A parameter that this engine does not know, or a value that it cannot follow, is refused with 400.
"""

import asyncio
import json
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from tinkersmith.engine.errors import Gone, NotFound, Refused
from tinkersmith.engine.grammar_text import ANY_OBJECT
from tinkersmith.engine.scheduling.queue import failure
from tinkersmith.engine.server.api_errors import (
    ApiError,
    error_body,
    error_response,
    request_id,
)
from tinkersmith.engine.server.fields import Body, is_list, is_object, shown
from tinkersmith.engine.server.http import BadBody, Handler, TooLargeBody, read_json, wrong_type
from tinkersmith.engine.server.image_files import image_chunk
from tinkersmith.engine.server.routes.generation import Disconnected

MOST_STOPS = 16
LONGEST_TEMPLATE = 200_000  # characters; those of known models have at most 20,000
LARGEST_SEED = 2**63 - 1
InferenceRoute = Callable[[Request, dict[str, Any]], Awaitable[Response]]


def check_known(
    body: Body, known: Collection[str], neutral: Mapping[str, Collection[object]]
) -> None:
    """Refuse parameters that nothing here reads, but for values that ask for nothing.

    Args:
        neutral: values that ask for nothing, by the names of parameters that are not supported.
    """
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name not in neutral:
            raise ApiError(
                400, f"the parameter {name[:200]!r} is not known here; leave it out.", param=name
            )
        if not any(type(value) is type(good) and value == good for good in neutral[name]):
            raise ApiError(
                400,
                f"{name} is {shown(value)}, which this engine does not support; leave it out.",
                param=name,
            )


def real(body: Body, name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(
            400,
            f"{name} is {shown(value)}; it must be a number from {low:g} to {high:g}.",
            param=name,
        )
    return float(value)


def share(body: Body, name: str = "top_p") -> float:
    """A number above 0 and at most 1."""
    value = real(body, name, 1.0, 0.0, 1.0)
    if value == 0:
        raise ApiError(400, f"{name} is 0; it must be above 0 and at most 1.", param=name)
    return value


def whole(body: Body, name: str, default: int | None, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(
            400,
            f"{name} is {shown(value)}; it must be a whole number from {low:,} to {high:,}.",
            param=name,
        )
    return value


def switch(body: Body, name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is {shown(value)}; it must be true or false.", param=name)
    return value


def stop_strings(body: Body, name: str) -> tuple[str, ...]:
    value: object = body.get(name)
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not is_list(stops) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(
            400,
            f"{name} is {shown(value)}; it must be a string that is not empty, or a list of such.",
            param=name,
        )
    if len(stops) > MOST_STOPS:
        raise ApiError(
            400, f"{name} has {len(stops)} strings; at most {MOST_STOPS} are allowed.", param=name
        )
    return tuple(dict.fromkeys(stops))


def chat_template(body: Body) -> str | None:
    """A chat template to use in place of the model's own; None: the model's own."""
    source: object = body.get("chat_template")
    if source is None:
        return None
    if not isinstance(source, str) or not source or len(source) > LONGEST_TEMPLATE:
        raise ApiError(
            400,
            f"chat_template is {shown(source)}; it must be a Jinja template of at most "
            f"{LONGEST_TEMPLATE:,} characters.",
            param="chat_template",
        )
    return source


def objects(body: Body, name: str) -> list[dict[str, Any]]:
    """A list of objects; an absent one is empty."""
    value = body.get(name)
    if value is None:
        return []
    if not is_list(value) or not all(is_object(item) for item in value):
        raise ApiError(400, f"{name} is {shown(value)}; it must be a list of objects.", param=name)
    return value


def text_of(content: object, where: str, kinds: Collection[str] = ("text",)) -> str:
    """The text of a message's content: a string, or a list of parts with texts."""
    if isinstance(content, str):
        return content
    if not is_list(content):
        raise ApiError(
            400,
            f"{where} is {shown(content)}; it must be a string or a list of parts.",
            param=where,
        )
    texts: list[str] = []
    for number, part in enumerate(content):
        fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        text: object = fields.get("text")
        if fields.get("type") not in kinds or not isinstance(text, str):
            kind = fields.get("type", part)
            raise ApiError(
                400,
                f"{where}[{number}] is of type {shown(kind)}; this engine takes parts of type "
                "text, each with its text.",
                param=where,
            )
        texts.append(text)
    return "".join(texts)


def image_of_url(part: Body, where: str) -> bytes:
    """The file in a part `image_url` of OpenAI's API."""
    about: object = part.get("image_url")
    url: object = about.get("url") if is_object(about) else None
    if not is_object(about) or not isinstance(url, str):
        raise ApiError(400, f"{where} has no url in its image_url.", param=where)
    check_known(about, ("url",), {"detail": ("auto", "high")})  # images are never made smaller
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ApiError(
            400,
            f"{where} has the url {shown(url)}; this engine fetches no images: send the file as "
            '"data:image/png;base64," or "data:image/jpeg;base64," and its bytes in base64.',
            param=where,
        )
    return _image_file(data, head.removeprefix("data:").removesuffix(";base64"), where)


def image_of_source(part: Body, where: str) -> bytes:
    """The file in a block `image` of Anthropic's API."""
    source: object = part.get("source")
    kind: object = source.get("type") if is_object(source) else None
    if not is_object(source) or kind != "base64":
        raise ApiError(
            400,
            f"{where} has a source of type {shown(kind)}; this engine fetches no images: send "
            "the bytes in a source of type base64.",
        )
    check_known(source, ("type", "media_type", "data"), {})
    data, media = source.get("data"), source.get("media_type")
    if not isinstance(data, str) or not isinstance(media, str):
        raise ApiError(400, f"{where} needs a source with a media_type and data.")
    return _image_file(data, media, where)


def _image_file(data: str, media: str, where: str) -> bytes:
    try:
        return image_chunk(data, media.removeprefix("image/"), 0, where).data
    except Refused as refusal:
        raise ApiError(400, str(refusal), param=where) from None


def unique_names(tools: Sequence[Mapping[str, Any]]) -> None:
    """Refuse tools of which two have one name: a call could mean either."""
    names = [tool["function"]["name"] for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ApiError(400, f"two tools have the name {shown(name)}.", param="tools")


def response_schema(body: Body) -> dict[str, Any] | None:
    """The JSON schema that OpenAI's response_format asks an answer to follow; None: any text."""
    form: object = body.get("response_format")
    kind: object = form.get("type") if is_object(form) else None
    if form is None or form == {"type": "text"}:
        return None
    if form == {"type": "json_object"}:
        return dict(ANY_OBJECT)
    if not is_object(form) or kind != "json_schema":
        raise ApiError(
            400,
            f"response_format is {shown(form)}; its type must be text, json_object or json_schema.",
            param="response_format",
        )
    check_known(form, ("type", "json_schema"), {})
    about: object = form.get("json_schema")
    if not is_object(about) or not is_object(about.get("schema")):
        raise ApiError(
            400,
            "response_format.json_schema.schema must be an object: the JSON schema.",
            param="response_format",
        )
    # Answers follow the schema whether they must (strict) or not.
    check_known(about, ("schema", "name", "description", "strict"), {})
    return about["schema"]


def output_schema(body: Body) -> dict[str, Any] | None:
    """The JSON schema that Anthropic's output_config asks an answer to follow; None: any text."""
    config: object = body.get("output_config")
    if config is None:
        return None
    if not is_object(config):
        raise ApiError(400, f"output_config is {shown(config)}; it must be an object.")
    check_known(config, ("format",), {"effort": ("high",)})  # the default of Anthropic's API
    form: object = config.get("format")
    if form is None:
        return None
    if not is_object(form) or form.get("type") != "json_schema":
        raise ApiError(400, f"output_config.format is {shown(form)}; its type must be json_schema.")
    check_known(form, ("type", "schema"), {})
    if not is_object(form.get("schema")):
        raise ApiError(400, "output_config.format.schema must be an object: the JSON schema.")
    return form["schema"]


def room_for(
    max_tokens: int | None, prompt: list[int], context: int | None, param: str = "messages"
) -> int | None:
    """How many tokens to sample; None: up to the end of the context.

    Args:
        param: where the prompt comes from.

    Raises:
        ApiError: the prompt alone does not fit.
    """
    if context is None:
        return max_tokens
    if len(prompt) > context:
        raise ApiError(
            400,
            f"the prompt has {len(prompt):,} tokens; the model takes at most {context:,}.",
            code="context_length_exceeded",
            param=param,
        )
    return None if max_tokens is None or max_tokens > context - len(prompt) else max_tokens


def answering(path: str, route: InferenceRoute) -> Handler:
    """Wrap a route so that each refusal gets its status, in the form of the API at `path`."""

    async def handle(request: Request) -> Response:
        response = await answer(request)
        for name, value in request_id(path).items():
            response.headers.setdefault(name, value)
        return response

    async def answer(request: Request) -> Response:
        try:
            if (sent := wrong_type(request, "application/json")) is not None:
                sentence = f"the content-type is {sent!r}; it must be application/json."
                return error_response(path, sentence, 415)
            body = {} if request.method == "GET" else await read_json(request)
            return await route(request, body)
        except ApiError as error:
            return error_response(
                path, str(error), error.status, param=error.param, code=error.code
            )
        except TooLargeBody as error:
            return error_response(path, str(error), 413)
        except (BadBody, Refused) as error:
            status = 404 if isinstance(error, NotFound) else 410 if isinstance(error, Gone) else 400
            return error_response(path, str(error), status)
        except (ClientDisconnect, Disconnected):
            return error_response(path, "the client closed the connection.", 400)
        except Exception as error:
            return error_response(path, failure(error)["error"], 500)

    return handle


def event(value: Mapping[str, Any], name: str | None = None) -> str:
    """One server-sent event."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def event_stream(path: str, events: AsyncIterator[str]) -> Response:
    """A stream of events; an error within it becomes its last one."""

    async def guarded() -> AsyncIterator[str]:
        name = "error" if path.startswith("/anthropic") else None
        async with aclosing(cast("Any", events)):
            try:
                async for line in events:
                    yield line
            except ApiError as error:
                yield event(error_body(path, str(error), error.status), name)
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except Exception as error:
                yield event(error_body(path, failure(error)["error"], 500), name)

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(guarded(), media_type="text/event-stream", headers=headers)
