"""Lines of the user -> questions to models and commands, until the end of the input."""

import asyncio
import difflib
import importlib
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tinkersmith.chat.conversation import ChatAnswer, ChatModel, ChatTurn, Conversation, save_record
from tinkersmith.chat.requests import ChatServer
from tinkersmith.chat.screen import PairWriter, Screen, SingleWriter
from tinkersmith.chat.settings import ChatSettings
from tinkersmith.errors import UserError

_PROMPT, _MORE = "> ", "... "
_HELP = {
    "/help": "this list",
    "/base": "show the base model's answer beside, or stop that",
    "/system TEXT": "use a system prompt and start anew; /system alone removes it",
    "/set NAME=VALUE": "change temperature, max_tokens, top_p, top_k, seed, stop or thinking",
    "/input TEXT": "give the next prompt an input, if the prompt template has one",
    "/retry": "ask the last prompt again",
    "/new": "forget the conversation",
    "/save FILE": "add the conversation to a JSON Lines file that DATA_FILES can read",
    "/quit": "leave, as Ctrl-D does",
}


class _Quit(Exception):
    """The user leaves."""


@dataclass
class ChatLoop:
    """A conversation with `model`, and with `base` beside it if that is wanted."""

    server: ChatServer
    model: ChatModel
    base: ChatModel | None
    screen: Screen
    settings: ChatSettings
    compares: bool = False
    conversation: Conversation = field(default_factory=Conversation)
    failures: int = 0  # requests and commands that ended with an error
    _input: str = ""  # of the next prompt

    # ---- lines

    def talk(self) -> None:
        """Read lines from the terminal. Ctrl-C stops an answer, Ctrl-D leaves."""
        with suppress(ImportError):
            importlib.import_module("readline")  # gives `input` its editing and history
        while True:
            try:
                self.take(_read_lines())
            except EOFError:
                print()  # what comes next stands on a line of its own
                return
            except _Quit:
                return
            except KeyboardInterrupt:
                self.screen.notice("\n(Ctrl-D or /quit leaves)")

    def read(self, lines: TextIO) -> None:
        """Take each line of a pipe or file: a prompt or a command. Empty lines are passed over.

        Raises:
            UserError: a line is not UTF-8.
        """
        try:
            for line in lines:
                self.take(line.rstrip("\r\n"))
        except _Quit:
            return
        except UnicodeDecodeError:
            raise UserError("The input is not UTF-8. Convert it, and try again.") from None

    def take(self, line: str) -> None:
        """One line of the user."""
        if not line.strip():
            return
        try:
            _check_encoding(line)
            if line.startswith("/") and not line.startswith("//"):
                self._command(line)
            else:
                self._ask(line[1:] if line.startswith("//") else line)
        except UserError as error:
            self.failures += 1
            self.screen.complain(str(error))

    # ---- questions

    def _ask(self, prompt: str) -> None:
        turn = ChatTurn(prompt, self._input)
        self._input = ""
        self.conversation.turns.append(turn)
        self._answer(turn)

    def _answer(self, turn: ChatTurn) -> None:
        models = [self.model]
        if self.compares and self.base is not None:
            models.append(self.base)
        turn.answers = [ChatAnswer(model) for model in models]
        writer = (
            SingleWriter(self.screen, turn.answers[0])
            if len(models) == 1
            else PairWriter(self.screen, turn.answers)
        )
        try:
            asyncio.run(self._stream(turn, writer.update))
        except KeyboardInterrupt:
            for answer in turn.answers:
                answer.ending = answer.ending or "stopped"
            if self.screen.is_plain:
                raise
        finally:
            writer.finish()
        self.failures += any(answer.error for answer in turn.answers)

    async def _stream(self, turn: ChatTurn, notice: Callable[[], None]) -> None:
        await asyncio.gather(
            *(
                self.server.stream(
                    answer,
                    {
                        "model": answer.model.name,
                        "messages": self.conversation.messages(answer.model, turn),
                        **self.settings.fields(),
                    },
                    notice,
                )
                for answer in turn.answers
            )
        )

    # ---- commands

    def _command(self, line: str) -> None:
        name, _, text = line.partition(" ")
        text = text.strip()
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/base": self._base,
            "/system": self._system,
            "/set": self._set,
            "/input": self._give_input,
            "/retry": self._retry,
            "/new": self._new,
            "/save": self._save,
            "/quit": self._quit,
        }
        command = commands.get("/quit" if name == "/exit" else name)
        if command is None:
            near = difflib.get_close_matches(name, commands, n=1)
            advice = f"did you mean {near[0]}?" if near else "/help lists them."
            raise UserError(
                f"There is no command {name}; {advice} A prompt that begins with / is written "
                "with two: //"
            )
        if text and name in ("/help", "/base", "/retry", "/new", "/quit", "/exit"):
            raise UserError(f"{name} takes nothing behind it. Leave {text!r} out.")
        command(text)

    def _help(self, text: str) -> None:
        for name, about in _HELP.items():
            self.screen.notice(f"  {name:16} {about}")
        self.screen.notice("  A line that ends with \\ goes on; a prompt with / in front needs //.")

    def _base(self, text: str) -> None:
        if self.base is None:
            raise UserError(
                f"{self.model.name} is served alone: there is no base model to compare."
            )
        self.compares = not self.compares
        state = "beside" if self.compares else "no longer shown"
        self.screen.notice(f"{self.base.name}: {state}")

    def _system(self, text: str) -> None:
        self.conversation = Conversation(text)
        self.screen.notice(f"A new conversation {'with' if text else 'without'} a system prompt.")

    def _set(self, text: str) -> None:
        if text:
            self.settings.change(text)
        for line in self.settings.lines():
            self.screen.notice(f"  {line}")

    def _give_input(self, text: str) -> None:
        if not self.model.has_input:
            raise UserError(
                f"The prompt template of {self.model.name} has no place for an input. Write it "
                "into the prompt."
            )
        self._input = text.replace("\\n", "\n")
        self.screen.notice("The next prompt has this input." if text else "The input is removed.")

    def _retry(self, text: str) -> None:
        if not self.conversation.turns:
            raise UserError("There is no prompt to ask again yet.")
        self._answer(self.conversation.turns[-1])

    def _new(self, text: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self.screen.notice("A new conversation.")

    def _save(self, text: str) -> None:
        if not text:
            raise UserError("/save needs the name of a file, such as /save data/chats.jsonl")
        record = self.conversation.record(self.model)
        try:
            names = shlex.split(text)
        except ValueError:
            names = [text]
        file = Path(names[0] if len(names) == 1 else text).expanduser()
        count = save_record(file, record)
        self.screen.notice(f"Saved. {file} has {count:,} record{'' if count == 1 else 's'} now.")
        if cut := self.conversation.cut_answers(self.model):
            self.screen.notice(
                f"{cut} of its answers {'is' if cut == 1 else 'are'} not whole (stopped, or cut at "
                "max_tokens). Correct the file before you train on it."
            )

    def _quit(self, text: str) -> None:
        raise _Quit


def _read_lines() -> str:
    """A line of the terminal, and those that follow a \\ at its end."""
    line = input(_PROMPT)
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{input(_MORE)}"
    return line


def _check_encoding(line: str) -> None:
    """Refuse unpaired surrogates, which Python reads where bytes are not UTF-8.

    Raises:
        UserError: there are some.
    """
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"Character {error.start + 1} of a line is not UTF-8, and the line was not sent. "
            "Convert it, and try again."
        ) from None
