"""A chat template's source -> what it does with answers, thoughts and tools, found by trying it.

A template is a program, and its source does not say what it drops. So short conversations of words
that mean nothing are rendered, and looked for in the result.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tinkersmith.errors import UserError
from tinkersmith.prompts.sandbox import render_chat
from tinkersmith.prompts.tags import CLOSE, OPEN, leading_empty_thought

QUESTION, ANSWER, THOUGHT = "qqq", "zzz", "ttt"
_ASKED = {"role": "user", "content": QUESTION}
_ANSWERED = {"role": "assistant", "content": ANSWER}
_SWITCHES = ("enable_thinking", "thinking")
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_ARGUMENTS = {"key": "vvv"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "ddd",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What a template writes around an answer and its thought."""

    end: str  # what ends an answer, up to the first control token that ends no thought
    tail: str  # all that follows the last answer
    lead: str  # what stands between the generation prompt and an answer without a thought
    switch: str  # the variable that turns thoughts on and off; "" if there is none
    # How a thought is handed over: the name of a message's field, "content" within the text,
    # "prompt" if only the generation prompt knows thoughts, "text" if nothing does.
    carrier: str
    opening: str  # what stands between the generation prompt and a thought
    closing: str  # what stands between a thought and the answer
    no_thought: str  # what follows the generation prompt where no thought is wanted
    own_system: str  # the system text that the template adds itself

    def variables(self, think: bool | None) -> dict[str, Any]:
        """What the template is given to ask for a thought, or for none."""
        return {} if think is None or not self.switch else {self.switch: think}


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a template wants calls of functions."""

    arguments_as_text: bool
    empty_content: str | None  # the content of a message that only calls
    calls: bool  # whether it writes calls at all


@dataclass(frozen=True, slots=True)
class CallForm:
    """What a template writes around the JSON of a call of a function."""

    opening: str  # "" if an answer that calls is nothing but JSON
    closing: str
    arguments: str  # the name of the field with the arguments


@dataclass(frozen=True, slots=True)
class WrittenCalls:
    """What a template writes around the names and arguments of calls, to the character."""

    first: str  # before the first name
    middle: str  # between a name and its arguments
    following: str | None  # between arguments and the next name; None: it writes one call only
    last: str  # after the last arguments, up to the end token


@dataclass(frozen=True)
class TemplateProbe:
    """A template with its variables, to be tried."""

    source: str
    date: str
    named_tokens: Mapping[str, str]
    special_tokens: Sequence[str]
    end_of_text: str

    def write(
        self, messages: Sequence[Mapping[str, Any]], prompt: bool = False, **variables: Any
    ) -> str:
        tools = variables.pop("tools", None)
        return render_chat(
            self.source,
            self.date,
            messages,
            {**self.named_tokens, **variables},
            tools=tools,
            add_generation_prompt=prompt,
        )

    def attempt(
        self, messages: Sequence[Mapping[str, Any]], prompt: bool = False, **variables: Any
    ) -> str:
        """Like `write`, and "" if the template refuses the messages."""
        try:
            return self.write(messages, prompt, **variables)
        except UserError:
            return ""

    def answer_form(self) -> AnswerForm:
        """Try answers, thoughts and switches.

        Raises:
            UserError: the template fails.
        """
        self.write([_ASKED], prompt=True)
        whole = self.write([_ASKED, _ANSWERED])
        _, answered, tail = whole.rpartition(ANSWER)
        if not answered:
            raise UserError("its chat template omits answers. Set PROMPT_TEMPLATE to another one.")
        switch = next((name for name in _SWITCHES if self._switches(name)), "")
        thinking = {switch: True} if switch else {}
        carrier, opening, closing = self._thought_form(thinking)
        lead, no_thought = self._without_thought({switch: False} if switch else {}, closing)
        return AnswerForm(
            end=self._end(tail, closing),
            tail=tail,
            lead=lead,
            switch=switch,
            carrier=carrier,
            opening=opening,
            closing=closing,
            no_thought=no_thought,
            own_system=self._own_system(),
        )

    def _end(self, tail: str, closing: str) -> str:
        """What ends an answer: up to the first control token that does not end a thought, too."""
        for token in self.special_pattern.finditer(tail):
            if token[0] not in closing:
                return tail[: token.end()]
        token = self.special_pattern.search(tail)
        return tail[: token.end()] if token else self.end_of_text

    def tool_form(self) -> ToolForm:
        """Try calls of a function in the forms that templates want."""
        for arguments in ({"key": "vvv"}, '{"key": "vvv"}'):
            for content in ("", None):
                call = {"name": "look_up", "arguments": arguments}
                message = {
                    "role": "assistant",
                    "content": content,
                    "tool_calls": [{"id": "call12345", "type": "function", "function": call}],
                }
                text = self.attempt([_ASKED, message], tools=[_TOOL])
                text = text or self.attempt([_ASKED, message])
                asked = self.attempt([_ASKED], tools=[_TOOL])
                if text.count("look_up") > asked.count("look_up") and "vvv" in text:
                    return ToolForm(isinstance(arguments, str), content, calls=True)
        return ToolForm(arguments_as_text=False, empty_content="", calls=False)

    def call_form(self, form: ToolForm) -> CallForm | None:
        """How calls are written; None if the template writes none, or not as JSON."""
        written, is_answer = self._called(form, 1)
        found = _calls_in(written)
        if not found:
            return None
        start, end, name = found[-1]
        before = written[:start]
        before = before[len(leading_empty_thought(before)) :]
        opening = before.split()[-1:]
        closing = written[end:].split()[:1]
        special = self.special_pattern.search(closing[0]) if closing else None
        # A list of calls may stand apart from the token before it: [TOOL_CALLS] [{...}].
        marks = self.special_pattern.findall(before) if is_answer else []
        return CallForm(
            opening=marks[-1] if marks else opening[0].removesuffix("[") if opening else "",
            closing=closing[0][: special.start() if special else None].removeprefix("]")
            if closing
            else "",
            arguments=name,
        )

    def written_calls(self, form: ToolForm, end: str) -> WrittenCalls | None:
        """How calls are written, to the character; None if it cannot be told.

        Args:
            end: what ends an answer.
        """
        one, is_answer = self._called(form, 1)
        two, _ = self._called(form, 2)
        found = _calls_in(one)
        if not found or not is_answer:
            return None
        start, stop, arguments = found[-1]
        before, call, after = one[:start], one[start:stop], one[stop:]
        place = call.find(f'"{arguments}"')
        if place < call.find("look_up"):
            return None
        opening, _, rest = call.partition("look_up")
        middle = rest[: rest.index("{")]
        first = before[len(leading_empty_thought(before)) :].lstrip() + opening
        special = self.special_pattern.search(after)
        ending = after.find(end.strip()) if end.strip() else -1
        if ending < 0:
            ending = special.start() if special else len(after)
        pairs = _calls_in(two)
        following = None
        if len(pairs) == 2:
            following = "}" + two[pairs[0][1] : pairs[1][0]] + opening
        return WrittenCalls(first, middle, following, "}" + after[:ending].rstrip())

    def _called(self, form: ToolForm, count: int) -> tuple[str, bool]:
        """A conversation whose answer calls a function so many times, from that answer on.

        The second value is false if it is not known where the answer begins; then it is all.
        """
        if not form.calls:
            return "", False
        arguments: Any = json.dumps(_ARGUMENTS) if form.arguments_as_text else _ARGUMENTS
        calls = [
            {
                "id": f"call1234{number}",
                "type": "function",
                "function": {"name": "look_up", "arguments": arguments},
            }
            for number in range(count)
        ]
        message = {"role": "assistant", "content": form.empty_content, "tool_calls": calls}
        prompt = self.attempt([_ASKED], prompt=True, tools=[_TOOL])
        whole = self.attempt([_ASKED, message], tools=[_TOOL])
        # A prompt may open a thought, which an answer before the last question does not show.
        for begin in (prompt, prompt.rstrip().removesuffix(OPEN)):
            if begin and whole.startswith(begin):
                return whole[len(begin) :], True
        return whole, False

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _switches(self, name: str) -> bool:
        if not re.search(rf"\b{name}\b", self.source):
            return False
        on, off = (self.attempt([_ASKED], prompt=True, **{name: on}) for on in (True, False))
        return bool(on and off) and on != off

    def _thought_form(self, thinking: dict[str, Any]) -> tuple[str, str, str]:
        """The carrier, and what stands around a thought."""
        prompt = self.attempt([_ASKED], prompt=True, **thinking)
        within = f"{OPEN}\n{THOUGHT}\n{CLOSE}\n\n{ANSWER}"
        messages: dict[str, dict[str, Any]] = {
            field: {**_ANSWERED, field: THOUGHT} for field in _FIELDS if field in self.source
        }
        if "think>" in self.source:
            messages["content"] = {**_ANSWERED, "content": within}
        for carrier, message in messages.items():
            whole = self.attempt([_ASKED, message], **thinking)
            before, written, after = whole.partition(THOUGHT)
            if written and ANSWER in after and f"{CLOSE}{OPEN}" not in before:
                start = len(prompt) if whole.startswith(prompt) else len(before)
                return carrier, before[start:], after[: after.index(ANSWER)]
        if prompt.rstrip().endswith(OPEN):
            return "prompt", "", CLOSE if prompt.endswith(OPEN) else f"\n{CLOSE}\n\n"
        if "think>" not in self.source:
            return "text", f"{OPEN}\n", f"\n{CLOSE}\n\n"
        # It drops thoughts. If it writes empty ones, they show how.
        empty = self._without_thought(thinking, "")[1]
        opening, tag, closing = empty.partition(CLOSE)
        return (
            ("prompt", "", tag + closing)
            if tag and opening == OPEN
            else ("prompt", "", f"\n{CLOSE}\n\n")
        )

    def _without_thought(self, variables: dict[str, Any], closing: str) -> tuple[str, str]:
        """What precedes an answer without a thought; and what of it belongs to the prompt."""
        prompt = self.attempt([_ASKED], prompt=True, **variables)
        whole = self.attempt([_ASKED, _ANSWERED], **variables)
        if whole.startswith(prompt):
            lead = whole[len(prompt) : whole.rindex(ANSWER)]
            empty = leading_empty_thought(lead)
            return lead[len(empty) :], empty
        return "", closing if prompt.rstrip().endswith(OPEN) else ""

    def _own_system(self) -> str:
        """The words that the template puts before a first question, without roles and tokens."""
        before = self.write([_ASKED], prompt=True).partition(QUESTION)[0]
        texts = (
            re.sub(r"^(system|developer|user)\b\s*", "", text.strip())
            for text in self.special_pattern.split(before)
        )
        return "\n".join(text for text in texts if len(re.findall(r"\w+", text)) > 1)


def _calls_in(written: str) -> list[tuple[int, int, str]]:
    """Where calls of the function stand as JSON, and the name of the field with their arguments."""
    decoder, found = json.JSONDecoder(), list[tuple[int, int, str]]()
    for match in re.finditer(r"\{", written):
        try:
            value, end = decoder.raw_decode(written, match.start())
        except ValueError:
            continue
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        name = next((n for n in ("arguments", "parameters") if fields.get(n) == _ARGUMENTS), "")
        if fields.get("name") == "look_up" and name:
            found.append((match.start(), end, name))
    return found
