"""What was asked and answered -> the messages of the next request, and a record to train on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import LARGEST_JSON_FILE, read_regular, write_atomically


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model of the server, as GET /v1/models lists it."""

    name: str
    kind: str  # "base" | "tuned"
    has_input: bool  # whether its prompt template has a place for an input


@dataclass(slots=True)
class ChatAnswer:
    """What a model has written so far."""

    model: ChatModel
    thought: str = ""
    text: str = ""
    ending: str = ""  # the API's reason, or "stopped" by the user; "" while it is written
    error: str = ""  # the API's sentence, if it refused or broke off


@dataclass(slots=True)
class ChatTurn:
    """A prompt and the answers to it."""

    prompt: str
    input: str = ""
    answers: list[ChatAnswer] = field(default_factory=list[ChatAnswer])

    @property
    def whole_prompt(self) -> str:
        """Prompt and input in one, as templates without a place for an input are trained."""
        return f"{self.prompt}\n\n{self.input}" if self.input else self.prompt

    def answer_of(self, model: ChatModel) -> ChatAnswer | None:
        """The model's complete or stopped answer to this turn; None if it gave none."""
        answers = [a for a in self.answers if a.model.name == model.name]
        return next((a for a in answers if a.ending and not a.error), None)


@dataclass(slots=True)
class Conversation:
    """All turns under one system prompt. Each model sees its own earlier answers."""

    system: str = ""
    turns: list[ChatTurn] = field(default_factory=list[ChatTurn])

    def messages(self, model: ChatModel, turn: ChatTurn) -> list[dict[str, Any]]:
        """The messages that ask the model for its answer to `turn`."""
        messages = self._past(model, self.turns[: self.turns.index(turn)])
        return [*messages, _question(model, turn)]

    def _past(self, model: ChatModel, turns: list[ChatTurn]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in turns:
            answer = turn.answer_of(model)
            if answer is not None:  # a turn that the model did not answer is not part of its past
                messages += [_question(model, turn), {"role": "assistant", "content": answer.text}]
        return messages

    def record(self, model: ChatModel) -> dict[str, Any]:
        """The conversation as a record of DATA_FILES.

        Raises:
            UserError: there is no answer with text.
        """
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        answered = 0
        for turn in self.turns:
            answer = turn.answer_of(model)
            if answer is None or not answer.text.strip():
                continue  # a record without an answer cannot be trained on
            messages.append(_question(model, turn))
            said = {"role": "assistant", "content": answer.text}
            if answer.thought.strip():
                said["reasoning_content"] = answer.thought
            messages.append(said)
            answered += 1
        if not answered:
            raise UserError("There is no answer to save yet. Ask something first.")
        return {"messages": messages}

    def cut_answers(self, model: ChatModel) -> int:
        """How many answers of the record do not end where the model would have ended them."""
        answers = [turn.answer_of(model) for turn in self.turns]
        cut = [one for one in answers if one is not None and one.ending in ("stopped", "length")]
        return sum(bool(one.text.strip()) for one in cut)


def _question(model: ChatModel, turn: ChatTurn) -> dict[str, Any]:
    question = {"role": "user", "content": turn.prompt}
    if turn.input and model.has_input:
        return {**question, "input": turn.input}
    return {**question, "content": turn.whole_prompt}


def save_record(file: Path, record: dict[str, Any]) -> int:
    """Add a record to a JSON Lines file and return the number of its records.

    Raises:
        UserError: the file holds something else, or cannot be read or written.
    """
    lines: list[bytes] = []
    try:
        lines = [
            line for line in read_regular(file, LARGEST_JSON_FILE).split(b"\n") if line.strip()
        ]
    except FileNotFoundError:
        pass
    except OSError as error:
        raise unreadable(file, error) from None
    for number, line in enumerate(lines, start=1):
        try:
            is_record = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            is_record = False
        if not is_record:
            raise UserError(
                f"{file}, line {number} is no JSON object, so the file is not JSON Lines and was "
                "left as it is. Name another file."
            )
    lines.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    try:
        write_atomically(file, b"\n".join(lines) + b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{file} cannot be written: {reason}. Name another file.") from None
    return len(lines)
