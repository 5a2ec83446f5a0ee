"""Answers -> the terminal, one as it is written or two side by side; or plain text for a pipe."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from tinkersmith.chat.conversation import ChatAnswer
from tinkersmith.chat.visible import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_NARROWEST = 60  # columns in which two answers fit side by side
_DIM, _ERROR = "dim", "red"
_SPARE_LINES = 6  # of the screen, which growing answers do not fill


@dataclass
class Screen:
    """Where answers appear."""

    console: "Console"
    is_plain: bool  # no colours, no names of models, and no thoughts: for programs

    def notice(self, sentence: str) -> None:
        """Tell the user something that is no answer; programs find it on standard error."""
        if self.is_plain:
            print(printable(sentence), file=sys.stderr)
        else:
            self._print(printable(sentence), _DIM)

    def complain(self, sentence: str) -> None:
        """Tell the user what is wrong."""
        line = f"Error: {printable(sentence)}"
        if self.is_plain:
            print(line, file=sys.stderr)
        else:
            self._print(line, _ERROR)

    def _print(self, text: str, style: str = "", end: str = "\n") -> None:
        from rich.text import Text

        # The terminal itself breaks long lines: a selection then has none of ours.
        self.console.print(Text(text, style), end=end, soft_wrap=True)

    def write(self, text: str, style: str = "") -> None:
        self._print(printable(text), style, end="")
        self.console.file.flush()


def screen_for(output: TextIO, *, is_plain: bool) -> Screen:
    """The screen of a terminal, or of a pipe."""
    from rich.console import Console

    return Screen(Console(file=output, highlight=False, markup=False, emoji=False), is_plain)


class SingleWriter:
    """Writes one answer as it comes."""

    def __init__(self, screen: Screen, answer: ChatAnswer) -> None:
        self._screen, self._answer = screen, answer
        self._thought = self._text = 0  # characters that are written

    def update(self) -> None:
        thought, text = self._answer.thought[self._thought :], self._answer.text[self._text :]
        if thought and not self._screen.is_plain:
            self._screen.write(thought, _DIM)
        if text:
            if not self._text and self._thought and not self._screen.is_plain:
                self._screen.write("\n")
            self._screen.write(text)
        self._thought, self._text = len(self._answer.thought), len(self._answer.text)

    def finish(self) -> None:
        self.update()
        if self._text or (self._thought and not self._screen.is_plain) or not self._answer.error:
            self._screen.write("\n")
        say_how_it_ended(self._screen, self._answer, named=False)


class PairWriter:
    """Writes several answers beside each other: their ends while they grow, then all of them."""

    def __init__(self, screen: Screen, answers: list[ChatAnswer]) -> None:
        from rich.live import Live

        self._screen, self._answers = screen, answers
        self._live: Live | None = None
        if not screen.is_plain and screen.console.is_terminal:
            self._live = Live(console=screen.console, transient=True, refresh_per_second=10)
            self._live.start()
            self.update()

    def update(self) -> None:
        if self._live is not None:
            height = max((self._screen.console.height or 24) - _SPARE_LINES, 4)
            self._live.update(self._table(height))

    def finish(self) -> None:
        if self._live is not None:
            self._live.stop()
        if self._screen.is_plain:
            for answer in self._answers:
                self._screen.write(f"[{answer.model.name}]\n{answer.text}\n")
        elif self._screen.console.width < _NARROWEST:
            for answer in self._answers:
                self._screen.write(f"{_title(answer)}\n", "bold")
                SingleWriter(
                    self._screen, ChatAnswer(answer.model, answer.thought, answer.text)
                ).finish()
        else:
            self._screen.console.print(self._table(None))
        for answer in self._answers:
            say_how_it_ended(self._screen, answer, named=True)

    def _table(self, height: int | None) -> "RenderableType":
        from rich.table import Table

        width = self._screen.console.width
        columns = len(self._answers)
        if width < _NARROWEST:
            columns = 1
        table = Table.grid(padding=(0, 3, 0, 0), expand=True)
        for _ in range(columns):
            table.add_column(ratio=1, overflow="fold")
        cells = [self._cell(answer, width // columns - 3, height) for answer in self._answers]
        for first in range(0, len(cells), columns):
            table.add_row(*cells[first : first + columns])
        return table

    def _cell(self, answer: ChatAnswer, width: int, height: int | None) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        text = Text()
        if answer.thought:
            text.append(printable(answer.thought.rstrip("\n")) + "\n", _DIM)
        text.append(printable(answer.text))
        if not text.plain.strip() and not answer.ending:
            text = Text("...", _DIM)
        lines = text.wrap(self._screen.console, max(width, 8), overflow="fold")
        if height is not None and len(lines) > height:
            lines = lines[-height:]
        return Group(Text(_title(answer), "bold"), *lines)


def _title(answer: ChatAnswer) -> str:
    return f"{printable(answer.model.name)} ({answer.model.kind})"


def say_how_it_ended(screen: Screen, answer: ChatAnswer, *, named: bool) -> None:
    """Say what a reader cannot see in the text of an answer."""
    front = f"{answer.model.name}: " if named else ""
    if answer.error:
        screen.complain(f"{front}{answer.error}")
    elif answer.ending == "stopped":
        screen.notice(f"{front}(stopped)")
    elif answer.ending == "length":
        screen.notice(f"{front}(cut at max_tokens; /set max_tokens=N allows more)")
    elif not answer.text.strip():
        screen.notice(f"{front}(the answer is empty)")
