"""A chat template's Jinja source and messages -> text, in a sandbox."""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from tinkersmith.errors import UserError, one_line

_LONGEST_REASON = 200  # characters: a template may name a whole message
_NAMES_OF_DICTS = frozenset(dir(dict))


class TemplateRefusal(UserError):
    """A chat template fails, or refuses the messages with a reason of its own."""

    def __init__(self, what: str) -> None:
        """`what` it does is the end of a sentence about the template."""
        super().__init__(
            f"the model's chat template {what}. Change the sample, or set PROMPT_TEMPLATE to "
            '"instruction".'
        )
        self.reason = f"the model's chat template {what}"


def render_chat(
    source: str,
    date: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool,
) -> str:
    """The text of a conversation.

    Args:
        date: `strftime_now` always gives this day.
        variables: the named tokens, and switches such as enable_thinking.

    Raises:
        TemplateRefusal: the template fails or refuses the messages.
    """
    try:
        return compiled_chat(source, date).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except Exception as error:  # a program of somebody else: it can fail in any way
        text = " ".join(str(error).split()) or type(error).__name__
        reason = one_line(text, _LONGEST_REASON).rstrip(".")
        verb = "refuses the messages" if type(error) is _refusal_of_templates() else "fails"
        raise TemplateRefusal(f"{verb}: {reason}") from None


def _refusal_of_templates() -> type[Exception]:
    """What `raise_exception` of a template raises; jinja2 is imported late."""
    import jinja2

    return jinja2.TemplateError


@lru_cache(maxsize=8)
def compiled_chat(source: str, date: str) -> Any:
    """The compiled template, with the functions that chat templates call."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Renders what {% generation %} encloses; the tag only marks the answer."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Checks each attribute of each type once, and the fields of messages not at all."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._safe: dict[tuple[type[object], str], bool] = {}

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            key = cast("type[object]", type(obj)), attr  # nothing else decides it
            safe = self._safe.get(key)
            if safe is None:
                safe = self._safe[key] = super().is_safe_attribute(obj, attr, value)
            return safe

        def getattr(self, obj: Any, attribute: str) -> Any:
            if type(obj) is dict and attribute not in _NAMES_OF_DICTS:
                fields = cast("dict[str, Any]", obj)
                if attribute in fields:
                    return fields[attribute]
                return self.undefined(obj=fields, name=attribute)
            return super().getattr(obj, attribute)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.datetime.fromisoformat(date).strftime(pattern)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment = cast("Any", sandbox)  # its filters and globals have no usable types
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    template = environment.from_string(source)
    # Each rendering copies these names. Jinja keeps them in a ChainMap, which is slow to copy.
    template.globals = dict(template.globals)
    return template
