"""Sample -> text with words around it: "Instruction: ...", Alpaca's wording, or an own format.

Text from the user may contain a control token such as <|im_end|>. A guard character after the
token's first character makes `TextTokenizer.encode_batch` keep it plain text. Call `unguarded`
before you show a rendered text.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from string import Formatter
from typing import Any

from tinkersmith.data.samples import Sample, Turn
from tinkersmith.errors import UserError, one_line
from tinkersmith.prompts.guards import guard, guard_all
from tinkersmith.prompts.tags import CLOSE, OPEN, THOUGHT_TAGS, is_cut_within_thought, split_thought
from tinkersmith.text.pieces import Piece, Rendered, naming, plain_text, start_of, trained_turns
from tinkersmith.text.thoughts import answer_alone, thought_and_answer

INSTRUCTION_FORMAT = "System: {system}\nInstruction: {instruction}\nInput: {input}\nResponse:\n"
# The wording is that of the Alpaca data set, since models trained on it expect it to the letter.
ALPACA_FORMAT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_FORMAT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATE_NAMES = ("auto", "instruction", "alpaca", "chat")


@dataclass(frozen=True)
class TextTemplate:
    """A format string with {instruction}, {input} and {system}; literal braces are {{ and }}.

    A line whose only fields are {input} or {system} is omitted if these are empty. A format without
    {input} puts the input after the instruction; one without {system} puts it in front. Every
    answer ends with the end token, those of earlier turns too. Functions, their calls and results
    are sentences.
    """

    name: str
    format: str
    format_without_input: str
    end: str  # the end token's text
    begin: str  # the begin token's text, for models that want one
    special_tokens: tuple[str, ...]
    thinking: str = "auto"  # a value of THINKING

    def render(self, sample: Sample) -> Rendered:
        """The last answer, and all before it as its prompt."""
        if sample.turns[-1].role == "text":
            return self._plain(sample)
        with naming(sample):
            answer = self._answer(sample.turns[-1])
        return Rendered.of(self.render_prompt(sample), answer + self.end)

    def render_all(self, sample: Sample, train_on: str) -> tuple[Rendered, ...]:
        """The sequence of a sample to train on.

        Raises:
            Untrainable: nothing of it is.
        """
        places = trained_turns(sample, train_on)
        if sample.turns[-1].role == "text":
            return (self._plain(sample),)
        all_of_it = train_on == "all_text"
        pieces = [Piece(self.begin, trained=False)]
        after_answer = False
        for place, text in self._written(sample.turns, sample.tools):
            trained = place in places or (place < 0 and all_of_it)
            # A new piece after each answer lets a cut keep whole turns.
            if pieces[-1].trained == trained and not (all_of_it and after_answer):
                pieces[-1] = Piece(pieces[-1].text + text, trained)
            else:
                pieces.append(Piece(text, trained))
            after_answer = place >= 0 and sample.turns[place].role == "assistant"
        while not pieces[-1].trained:
            pieces.pop()
        return (Rendered(tuple(pieces)),)

    def render_prompt(self, sample: Sample) -> str:
        """All before the last answer; of a plain text, its beginning."""
        if sample.turns[-1].role == "text":
            return self.begin + self._guard(start_of(sample.turns[-1].text))
        with naming(sample):
            written = list(self._written(sample.context, sample.tools, answer_follows=True))
        return self.begin + "".join(text for _, text in written)

    def answer(self, generated: str) -> str:
        """The answer within a generated text, without its thought; "" if that never ends."""
        return self.finished_answer(generated) or ""

    def finished_answer(self, generated: str) -> str | None:
        """Like `answer`; None if the text ends within its thought."""
        inline = split_thought(generated)
        if inline is not None:
            return inline[1]
        return None if is_cut_within_thought(generated) else generated

    @property
    def keeps_thoughts(self) -> bool:
        return self.thinking not in ("strip", "off")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "text", **asdict(self)}

    def _plain(self, sample: Sample) -> Rendered:
        return plain_text(self.begin, self._guard(sample.turns[-1].text), self.end)

    def _written(
        self,
        turns: Sequence[Turn],
        tools: Sequence[dict[str, Any]],
        *,
        answer_follows: bool = False,
    ) -> Iterator[tuple[int, str]]:
        """The texts of a conversation, each with the place of its turn, or -1 if it has none."""
        if tools:
            yield (
                -1,
                "You can call these functions:\n"
                + "".join(
                    json.dumps(guard_all(tool, self.special_tokens), ensure_ascii=False) + "\n"
                    for tool in tools
                ),
            )
        system: list[str] = []
        for place, turn in enumerate(turns):
            if turn.role == "system":
                system.append(turn.text)
                continue
            if system and turn.role != "user":
                yield -1, self._guard("\n\n".join(system)) + "\n\n"
                system = []
            if turn.role == "user":
                yield place, self._fill(turn.text, turn.input, "\n\n".join(system))
                system = []
            elif turn.role == "tool":
                name = f" of {turn.tool_name}" if turn.tool_name else ""
                yield place, self._guard(f"Result{name}:\n{turn.text}\n")
            else:
                yield place, self._answer(turn) + self.end
                if answer_follows or place + 1 < len(turns):
                    yield -1, "\n"
        if system:
            yield -1, self._guard("\n\n".join(system)) + "\n\n"

    def _answer(self, turn: Turn) -> str:
        """What an assistant's turn says, without the end token."""
        thought, answer = (
            thought_and_answer(turn) if self.keeps_thoughts else ("", answer_alone(turn))
        )
        if not thought.strip():
            text = self._guard(answer)
        elif turn.thought:
            text = f"{OPEN}\n{self._guard(thought)}\n{CLOSE}\n\n{self._guard(answer)}"
        else:
            text = guard(turn.text, [t for t in self.special_tokens if t not in THOUGHT_TAGS])
        calls = [self._guard(call_sentence(call)) for call in turn.tool_calls]
        return "\n".join([text, *calls] if text else calls)

    def _fill(self, instruction: str, input: str, system: str) -> str:
        lines = _parsed(self.format if input else self.format_without_input)
        named = {field for line in lines for _, field in line}
        front = ""
        if system and "system" not in named:
            front = self._guard(system) + "\n\n"
        if input and "input" not in named:
            instruction = f"{instruction}\n\n{input}"
        values = {
            "instruction": self._guard(instruction),
            "input": self._guard(input),
            "system": self._guard(system),
        }
        filled: list[str] = []
        for line in lines:
            fields = [field for _, field in line if field]
            if fields and not any(values[field] for field in fields):
                continue
            filled.append(
                "".join(literal + (values[field] if field else "") for literal, field in line)
            )
        return front + "\n".join(filled)

    def _guard(self, text: str) -> str:
        return guard(text, self.special_tokens)


def call_sentence(call: dict[str, Any]) -> str:
    """A call of a function, as text templates write it."""
    function: dict[str, Any] = call.get("function") or call
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"Call {function.get('name', '')} with {arguments}"


def check_template_setting(setting: str) -> None:
    """Raise UserError unless PROMPT_TEMPLATE is a known name or a valid format string."""
    if setting in TEMPLATE_NAMES:
        return
    if "{" not in setting:
        names = ", ".join(f'"{name}"' for name in TEMPLATE_NAMES)
        raise UserError(
            f'PROMPT_TEMPLATE is "{one_line(setting)}"; it must be one of {names}, or a format '
            "string with {instruction}."
        )
    if "instruction" not in check_format(setting):
        raise UserError("PROMPT_TEMPLATE has no {instruction}. Put it where the question belongs.")


def check_format(format_string: str) -> set[str]:
    """The names of a format's fields, all of which can be filled in."""
    fields = {field for line in _parsed(format_string) for _, field in line if field is not None}
    for field in sorted(fields):
        if field not in ("instruction", "input", "system"):
            raise UserError(
                f"PROMPT_TEMPLATE has the field {{{one_line(field)}}}; only {{instruction}}, "
                "{input} and {system} are filled in. Write literal braces twice: {{ and }}."
            )
    return fields


@lru_cache(maxsize=8)
def _parsed(format_string: str) -> tuple[tuple[tuple[str, str | None], ...], ...]:
    """The format's lines, each as (literal text, field after it)."""
    lines: list[tuple[tuple[str, str | None], ...]] = []
    for line in format_string.split("\n"):
        try:
            fields = list(Formatter().parse(line))
        except ValueError as error:
            raise UserError(
                f"PROMPT_TEMPLATE, in the line {one_line(line)!r}: {error}. Write literal braces "
                "twice: {{ and }}."
            ) from None
        for _, field, spec, conversion in fields:
            if spec or conversion:
                name = one_line(field or "")
                raise UserError(
                    f"PROMPT_TEMPLATE formats the field {{{name}}} with ':' or '!'; write only "
                    f"{{{name}}}."
                )
        lines.append(tuple((literal, field) for literal, field, _, _ in fields))
    return tuple(lines)
