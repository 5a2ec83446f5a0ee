"""Sample -> text by the model's own chat template (Jinja), each answer as if it were the last one.

A template may write an answer differently once others follow it: thoughts are dropped, end tokens
change. A model in use writes the last answer, so this form is what is trained on. Where it is also
what stands in the longer conversation, one sequence trains both; else each gets a sequence.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, cycle
from typing import Any, cast

from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.errors import UserError, one_line
from tinkersmith.prompts.guards import guard, guard_all, unguarded
from tinkersmith.prompts.probes import AnswerForm, TemplateProbe, ToolForm
from tinkersmith.prompts.sandbox import TemplateRefusal, render_chat
from tinkersmith.prompts.tags import (
    CLOSE,
    OPEN,
    is_cut_within_thought,
    leading_empty_thought,
    split_thought,
)
from tinkersmith.text.pieces import (
    Rendered,
    Untrainable,
    naming,
    plain_text,
    start_of,
    trained_turns,
    user_text,
)
from tinkersmith.text.plain_form import PlainForm, learn_plain_form, plain_probe
from tinkersmith.text.thoughts import answer_alone, thought_and_answer

Message = dict[str, Any]
_STAND_IN = "\ue000"  # of Unicode's private use: no template looks for it


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own chat template, rendered in a sandbox."""

    name: str
    chat_template: str
    end_of_text: str  # the tokenizer's end token, for plain text and templates without an end
    begin: str  # the begin token's text, for plain text
    named_tokens: dict[str, str]
    special_tokens: tuple[str, ...]
    date: str  # strftime_now always gives this day, so that training and use see the same prompt
    control_tokens: tuple[str, ...] = ()  # ordinary tokens that the template writes
    thinking: str = "auto"  # a value of THINKING
    thinks: bool | None = None  # whether use asks for a thought; None: as the template does

    @cached_property
    def probe(self) -> TemplateProbe:
        return TemplateProbe(
            self.chat_template,
            self.date,
            self.named_tokens,
            self.special_tokens,
            self.end_of_text,
        )

    @cached_property
    def form(self) -> AnswerForm:
        """What the template writes around answers."""
        return self.probe.answer_form()

    @cached_property
    def tool_form(self) -> ToolForm:
        return self.probe.tool_form()

    @cached_property
    def plain_forms(self) -> tuple[PlainForm | None, PlainForm | None]:
        """How conversations without thoughts are written, without and with a system text."""
        if self.thinking == "keep":
            return None, None
        first, second = (self._plain_form(has_system) for has_system in (False, True))
        return first, second

    def _plain_form(self, has_system: bool) -> PlainForm | None:
        probe = plain_probe(has_system)
        slow = _Conversation(self, probe, by_form=False)
        places = [place for place, turn in enumerate(probe.turns) if turn.role == "assistant"]
        try:
            whole = slow.whole()
            return learn_plain_form(has_system, whole, lambda number: slow.written(places[number]))
        except (UserError, Untrainable):  # such as a template that knows no system text
            return None

    @property
    def end(self) -> str:
        """What the template writes after an answer, up to its first control token."""
        return self.form.end

    @property
    def keeps_thoughts(self) -> bool:
        return self.thinking not in ("strip", "off")

    def render(self, sample: Sample) -> Rendered:
        """The last answer, and all before it as its prompt."""
        if sample.turns[-1].role == "text":
            return self._plain(sample)
        with naming(sample):
            answers = _Conversation(self, sample)
            return Rendered.of(*answers.written(len(sample.turns) - 1))

    def render_all(self, sample: Sample, train_on: str) -> tuple[Rendered, ...]:
        """Every sequence of a sample that is trained on, the one with the last answer first.

        Raises:
            Untrainable: there is none, or the template refuses the sample.
            UserError: the template leaves out a part of the sample.
        """
        places = trained_turns(sample, train_on)
        if sample.turns[-1].role == "text":
            return (self._plain(sample),)
        conversation = _Conversation(self, sample)
        if train_on == "all_text":
            return (conversation.all_text(places),)
        return conversation.sequences(places)

    def render_prompt(self, sample: Sample) -> str:
        """The prompt of use: all before the last answer, with or without a thought to come."""
        if sample.turns[-1].role == "text":
            return self.begin + self.guarded(start_of(sample.turns[-1].text))
        with naming(sample):
            conversation = _Conversation(self, sample, by_form=False)
            return conversation.prompt(len(sample.turns) - 1, self.thinks)

    def answer(self, generated: str) -> str:
        """The answer within a generated text that still has its control tokens.

        Thoughts and channel names are left out. A thought that never ends gives no answer.
        """
        return self.finished_answer(generated) or ""

    def finished_answer(self, generated: str) -> str | None:
        """Like `answer`; None if the text ends within its thought."""
        form = self.form
        opening, closing = form.opening.strip() or OPEN, form.closing.strip() or CLOSE
        text = generated.removesuffix(form.end)
        if self._in_channels:
            _, named, final = text.rpartition(form.lead)
            if not named and opening in text:
                return None
            return self._before_control_token(final if named else text)
        inline = split_thought(text)
        if inline is not None:
            text = inline[1]
        elif closing in text:
            text = text.partition(closing)[2].lstrip()
        elif self._opens_thoughts or text.lstrip().startswith(opening):
            return None
        return self._before_control_token(text)

    def _before_control_token(self, text: str) -> str:
        token = self.probe.special_pattern.search(text)
        return text[: token.start()] if token else text

    @cached_property
    def _in_channels(self) -> bool:
        """Whether control tokens stand before an answer, as in gpt-oss."""
        return bool(self.probe.special_pattern.search(self.form.lead))

    @cached_property
    def _opens_thoughts(self) -> bool:
        """Whether the prompt of use opens a thought, so that an answer begins inside one."""
        question = Sample((Turn("user", "q"), Turn("assistant", "a")), Source("probe", 1))
        return self.render_prompt(question).rstrip().endswith(OPEN)

    @cached_property
    def drops_earlier_thoughts(self) -> bool:
        """Whether an answer loses its thought once another question follows."""
        turns = (Turn("user", "qqq"), Turn("assistant", "zzz", thought="ttt"))
        sample = Sample((*turns, *turns), Source("probe", 1))
        try:
            text = "".join(_Conversation(self, sample, by_form=False).written(3))
        except (UserError, Untrainable):
            return False
        return text.count("ttt") < 2

    def to_json(self) -> dict[str, Any]:
        return {"kind": "chat", **asdict(self)}

    def guarded(self, text: str) -> str:
        return guard(text, self._guarded_tokens)

    def guarded_value(self, value: Any) -> Any:
        return guard_all(value, self._guarded_tokens)

    @cached_property
    def _guarded_tokens(self) -> tuple[str, ...]:
        # A template that looks for thoughts within texts would take a tag that is only mentioned.
        tags = (OPEN, CLOSE) if "think>" in self.chat_template else ()
        return tuple(dict.fromkeys((*self.special_tokens, *self.control_tokens, *tags)))

    def _plain(self, sample: Sample) -> Rendered:
        return plain_text(self.begin, self.guarded(sample.turns[-1].text), self.end_of_text)


class _Conversation:
    """The messages of one sample, and the texts that the template makes of them."""

    def __init__(self, template: ChatTemplate, sample: Sample, by_form: bool = True) -> None:
        self._template, self._sample = template, sample
        self._form = template.form
        self._tools: list[Any] | None = None
        self._plain: PlainForm | None = None  # the words around this conversation's texts
        self._system = ""  # this and the next one only if it is plain
        self._texts: list[str] = []  # of the questions and answers
        if by_form and self._write_by_form():
            return
        try:
            self._messages = [self._message(turn) for turn in sample.turns]
        except UserError as error:
            raise UserError(f"{sample.source}: {error}") from None
        self._tools = [template.guarded_value(_full_tool(tool)) for tool in sample.tools] or None

    def _write_by_form(self) -> bool:
        """Make the messages of a plain conversation, if the words learned for one write it.

        Most conversations are plain, and this takes half the time of `_message` for each turn.
        """
        turns = self._sample.turns
        has_system = turns[0].role == "system"
        form = self._template.plain_forms[has_system]
        if form is None or self._sample.tools or not turns[0].text:
            return False
        if (len(turns) - has_system) % 2:
            return False
        roles = chain(("system",) if has_system else (), cycle(("user", "assistant")))
        guarded = self._template.guarded
        texts: list[str] = []
        messages: list[Message] = []
        for turn, role in zip(turns, roles, strict=False):
            text = turn.text
            if turn.role != role or turn.thought or turn.tool_calls:
                return False
            if turn.tool_name or turn.tool_call_id:
                return False
            if role != "assistant":
                text = user_text(turn)
            elif split_thought(text) is not None or is_cut_within_thought(text):
                return False
            text = guarded(text)
            texts.append(text)
            messages.append({"role": role, "content": text})
        system = texts.pop(0) if has_system else ""
        if len(texts) > 2 and any(text != text.strip() for text in texts[:-2]):
            return False  # a template may trim the last answer only, as which each is trained
        self._messages = messages
        if form.whole(system, texts) != self.whole():
            return False
        self._plain, self._system, self._texts = form, system, texts
        return True

    def whole(self) -> str:
        """The template's text of the whole conversation, without thoughts."""
        return self._write(len(self._messages), False)

    # ---- sequences

    def sequences(self, places: Sequence[int]) -> tuple[Rendered, ...]:
        """The texts that train the turns at some places, with as few repetitions as are exact."""
        sequences: list[tuple[str, list[tuple[int, int]]]] = []
        turns = self._sample.turns
        if len(places) == 1 and turns[places[0]].role == "assistant":
            return (Rendered.of(*self.written(places[0])),)
        for place in reversed(places):
            if turns[place].role != "assistant":
                continue
            prompt, completion = self.written(place)
            text = prompt + completion
            for longer, spans in sequences:
                if longer.startswith(text):
                    spans.append((len(prompt), len(text)))
                    break
            else:
                sequences.append((text, [(len(prompt), len(text))]))
        for place in places:
            if turns[place].role != "assistant":
                self._add_message(place, sequences)
        return tuple(Rendered.with_spans(text, sorted(spans)) for text, spans in sequences)

    def all_text(self, places: Sequence[int]) -> Rendered:
        """The whole conversation, trained but for the messages whose flags say no."""
        last = len(self._sample.turns) - 1
        prompt, completion = self.written(last)
        text, end = prompt + completion, len(prompt)
        left_out: list[tuple[int, int]] = []
        for place in range(last + 1):
            if place not in places:
                left_out.append((end, len(text)) if place == last else self._span_of(place, text))
        spans: list[tuple[int, int]] = []
        start = 0
        # The prompt of the last answer is encoded without it, as in use. The ends of the other
        # answers are where a cut keeps whole turns.
        borders = [*self._answer_ends(text[:end]), end, len(text)]
        for stop, resumed in sorted([*left_out, *((border, border) for border in borders)]):
            if stop > start:
                spans.append((start, stop))
            start = max(start, resumed)
        return Rendered.with_spans(text, spans, joins=(end,))

    def _answer_ends(self, text: str) -> list[int]:
        """Where answers end in the start of the conversation, if a control token stands there."""
        ends: list[int] = []
        for place, turn in enumerate(self._sample.turns[:-1]):
            if turn.role != "assistant":
                continue
            try:
                written = "".join(self.written(place))
            except (UserError, Untrainable):  # this answer alone cannot be trained
                written = ""
            if written and text.startswith(written):
                ends.append(len(written))
            elif (span := self._span_of(place, text, required=False)) is not None:
                ends.append(span[1])
        specials = self._template.special_tokens
        return [end for end in ends if text[:end].endswith(specials)]

    def _add_message(self, place: int, sequences: list[tuple[str, list[tuple[int, int]]]]) -> None:
        """Train a message of another role, whose own flag asks for that."""
        for text, spans in sequences:
            span = self._span_of(place, text, required=False)
            if span is not None:
                spans.append(span)
                return
        last = len(self._sample.turns) - 1
        if not sequences:
            text = "".join(self.written(last))
            sequences.append((text, [self._span_of(place, text)]))
            return
        self._span_of(place, sequences[0][0])

    def _span_of(self, place: int, text: str, required: bool = True) -> Any:
        """Where a message stands in a text of the conversation, with the end token after it.

        Rendered with another word in its place, the text differs exactly there.
        """
        messages = [*self._messages]
        messages[place] = {**messages[place], "content": _STAND_IN}
        last = len(messages) - 1
        for think in (True, False) if self._form.switch else (None,):
            other = self._write(last + 1, think, messages=messages)
            whole = self._write(last + 1, think)
            start, after = other.find(_STAND_IN), other.partition(_STAND_IN)[2]
            stop = len(whole) - len(after)
            if (
                start >= 0
                and stop > start
                and whole[:start] == other[:start]
                and whole[stop:] == after
                and text.startswith(whole[:stop])
            ):
                token = self._template.probe.special_pattern.match(text, stop)
                return start, token.end() if token else stop
        if not required:
            return None
        role = self._sample.turns[place].role
        raise UserError(
            f"{self._sample.source}: its message {place + 1} (role {role}) has a flag of its own, "
            "but the model's chat template does not write it apart from the others. Remove the "
            "flag."
        )

    # ---- one answer

    def written(self, place: int) -> tuple[str, str]:
        """The prompt of an answer and the completion, as if it were the last one.

        Raises:
            Untrainable: the answer is cut within its thought.
        """
        if self._plain is not None:
            number = (place - bool(self._system)) // 2
            return self._plain.written(self._system, self._texts, number)
        turn = self._sample.turns[place]
        if is_cut_within_thought(turn.text):
            raise Untrainable("its answer opens a thought and never closes it")
        thought, answer = (self._template.guarded(text) for text in self._parts(turn))
        if not thought.strip():
            thought = ""
        think = bool(thought) or self._template.thinking == "keep"
        prompt = self._write(place, think, prompt=True)
        if thought and prompt.rstrip().endswith(CLOSE):
            raise UserError(
                f"{self._sample.source}: its answer has a thought, but the model's chat template "
                'closes the thought before the answer begins. Set THINKING to "strip", or use a '
                "model that thinks."
            )
        whole = self._write(place + 1, think)
        self._check_context(place, whole)
        if self._form.carrier == "text" and thought:
            answer = cast("str", self._messages[place]["content"])
            thought = ""
        if whole.startswith(prompt):
            rest = self._up_to_end(whole[len(prompt) :])
            self._check_calls(turn, rest)
            if _is_in(answer, rest) and _is_in(thought, rest):
                knows = self._form.carrier != "text"
                empty = leading_empty_thought(rest) if knows and not think else ""
                return prompt + empty, rest[len(empty) :]
        if turn.tool_calls:
            raise self._left_out("what an answer says beside a call", thought or answer)
        if think:
            return prompt, self._before_answer(prompt, thought) + answer + self._form.end
        return self._asking_no_thought(prompt), self._form.lead + answer + self._form.end

    def prompt(self, place: int, think: bool | None) -> str:
        """The prompt of the answer at a place, in use."""
        prompt = self._write(place, think, prompt=True)
        self._check_context(place, prompt)
        return self._asking_no_thought(prompt) if think is False else prompt

    def _asking_no_thought(self, prompt: str) -> str:
        no_thought = self._form.no_thought
        if no_thought and (OPEN in no_thought or prompt.rstrip().endswith(OPEN)):
            return prompt + no_thought
        return prompt

    def _before_answer(self, prompt: str, thought: str) -> str:
        """What stands before an answer, if the template itself would write another prompt."""
        form = self._form
        opened = prompt.rstrip().endswith(OPEN)
        if not thought:
            return form.closing if opened else form.lead
        if opened or form.carrier != "prompt":
            return form.opening + thought + form.closing
        line = "\n" if "\n" in form.closing else ""
        return OPEN + line + thought + form.closing

    def _up_to_end(self, rest: str) -> str:
        """What the template writes for an answer, up to the end token."""
        form = self._form
        if rest.endswith(form.tail):
            return rest[: len(rest) - len(form.tail)] + form.end
        specials = list(self._template.probe.special_pattern.finditer(rest))
        return rest[: specials[-1].end()] if specials else rest + form.end

    def _write(
        self,
        count: int,
        think: bool | None,
        *,
        prompt: bool = False,
        messages: Sequence[Message] | None = None,
    ) -> str:
        """The template's text of the first `count` messages, or of others in their place."""
        template = self._template
        variables = {**template.named_tokens, **self._form.variables(think)}
        try:
            return render_chat(
                template.chat_template,
                template.date,
                (messages or self._messages)[:count],
                variables,
                tools=self._tools,
                add_generation_prompt=prompt,
            )
        except TemplateRefusal as refusal:
            raise Untrainable(refusal.reason) from None

    # ---- messages

    def _parts(self, turn: Turn) -> tuple[str, str]:
        """The thought of an assistant's turn, if thoughts are kept, and its answer."""
        if self._template.keeps_thoughts:
            return thought_and_answer(turn)
        return "", answer_alone(turn)

    def _message(self, turn: Turn) -> Message:
        guarded = self._template.guarded
        if turn.role != "assistant":
            message: Message = {"role": turn.role, "content": guarded(user_text(turn))}
            if turn.tool_name:
                message["name"] = guarded(turn.tool_name)
            if turn.tool_call_id:
                message["tool_call_id"] = guarded(turn.tool_call_id)
            return message
        thought, answer = self._parts(turn)
        message = {"role": "assistant", "content": guarded(answer)}
        if thought.strip():
            within = f"{OPEN}\n{guarded(thought)}\n{CLOSE}\n\n{guarded(answer)}"
            if self._form.carrier in ("content", "text"):
                message["content"] = within
            elif self._form.carrier != "prompt":
                message[self._form.carrier] = guarded(thought)
        if turn.tool_calls:
            form = self._template.tool_form
            message["tool_calls"] = [
                self._template.guarded_value(_call(call, form)) for call in turn.tool_calls
            ]
            message["content"] = message["content"] or form.empty_content
        return message

    # ---- what a template leaves out

    def _check_context(self, place: int, whole: str) -> None:
        """Refuse a template that leaves out a part of the prompt; Jinja says nothing of it."""
        for turn, message in zip(self._sample.turns[:place], self._messages, strict=False):
            text = cast("str", message["content"] or "")
            if turn.role == "assistant":
                self._check_calls(turn, whole)
                text = self._template.guarded(answer_alone(turn))
            if not _is_in(text, whole):
                raise self._left_out(f"a text of the role {turn.role}", turn.text)
        for tool in self._tools or ():
            if not _is_in(tool.get("function", tool).get("name", ""), whole):
                raise self._left_out("the functions that can be called", tool)

    def _check_calls(self, turn: Turn, text: str) -> None:
        for call in turn.tool_calls:
            function = self._template.guarded_value(_call(call, ToolForm(False, "", True)))[
                "function"
            ]
            values: Any = function["arguments"]
            values = cast("dict[str, Any]", values).values() if isinstance(values, dict) else []
            texts = [function["name"], *(value for value in values if isinstance(value, str))]
            if not all(_is_in(wanted, text) for wanted in texts):
                raise self._left_out("a call of a function", call)

    def _left_out(self, what: str, value: object) -> UserError:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return UserError(
            f"{self._sample.source}: the model's chat template leaves out {what} "
            f'("{one_line(unguarded(shown), 60)}"). Remove that from the data, or set '
            'PROMPT_TEMPLATE to "instruction".'
        )


def _full_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function in OpenAI's form, which templates expect."""
    if "function" not in tool and "name" in tool:
        return {"type": "function", "function": tool}
    return tool


def _call(call: dict[str, Any], form: ToolForm) -> dict[str, Any]:
    """A call with its arguments as the template wants them."""
    function = dict(call.get("function") or call)
    arguments: Any = function.get("arguments", {})
    if form.arguments_as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not form.arguments_as_text and isinstance(arguments, str):
        try:
            parsed: object = json.loads(arguments or "{}")
        except ValueError:
            parsed = None
        arguments = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else arguments
    function["arguments"] = arguments
    outer = call if "function" in call else {}
    return {"type": "function", **outer, "function": function}


def _is_in(text: str, whole: str) -> bool:
    """Whether a template wrote a text: perhaps trimmed, spaced in another way, or as JSON."""
    return (
        text in whole
        or text.strip() in whole
        or "".join(text.split()) in "".join(whole.split())
        or json.dumps(text, ensure_ascii=False)[1:-1] in whole
    )
