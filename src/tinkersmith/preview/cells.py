"""The tokens of a sequence -> cells of whole characters, turn by turn, with what becomes of each.

T: the tokens of one sequence. S: its trained parts.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from unicodedata import normalize

import numpy as np

from tinkersmith.data.samples import Sample, Turn
from tinkersmith.preview.findings import TURN_ENDS
from tinkersmith.preview.token_texts import TokenTexts
from tinkersmith.text.thoughts import thought_and_answer

_LONGEST_GROUP = 8  # tokens that may share a character
_LONGEST_CLOSING = 64  # characters between a thought and its answer
_BLANK = "\0"  # stands for what no text is looked for in

# How templates open and close a thought.
_THOUGHT = re.compile(
    r"<think>.*?(?:</think>|\Z)|<\|channel\|>analysis<\|message\|>.*?(?:<\|end\|>|\Z)"
    r"|<seed:think>.*?(?:</seed:think>|\Z)|◁think▷.*?(?:◁/think▷|\Z)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One token, or the few tokens that make up one character together."""

    text: str  # bytes that are no character are ⟨E4⟩
    tokens: tuple[int, ...]
    position: int  # of the first token in its sequence
    trained: bool  # whether the loss counts it
    cut: bool  # whether it lies beyond what is sent
    control: bool = False
    thought: bool = False
    ends: bool = False  # whether it is a control token that ends a turn


@dataclass(frozen=True, slots=True)
class Block:
    """The cells of one turn, with what the template writes around it."""

    role: str  # "" where no turn of the sample was found
    cells: tuple[Cell, ...]


def cells_of(tokens: np.ndarray, weights: np.ndarray, length: int, texts: TokenTexts) -> list[Cell]:
    """The cells of a sequence.

    Args:
        tokens: (T,) of the whole sequence, as it would be without a length limit.
        weights: (length,) the loss weights of what is sent.
        length: how many of the tokens are sent.
    """
    cells: list[Cell] = []
    group: list[int] = []
    data = b""

    def close(before: int) -> None:
        """End the group whose last token is the one before position `before`."""
        nonlocal data
        if group:
            start = before - len(group)
            cells.append(
                Cell(_shown(data), tuple(group), start, is_trained(start), start >= length)
            )
        group.clear()
        data = b""

    def is_trained(position: int) -> bool:
        return position < length and bool(weights[position] > 0)

    for position, token in enumerate(tokens.tolist()):
        state = (is_trained(position), position >= length)
        if token in texts.control:
            close(position)
            text = texts.added[token]
            ends = text in TURN_ENDS or token == texts.tokenizer.eos_id
            cells.append(Cell(text, (token,), position, *state, control=True, ends=ends))
            continue
        if group:
            first = position - len(group)
            same = state == (is_trained(first), first >= length)
            if not same or len(group) == _LONGEST_GROUP:
                close(position)
        token_bytes = texts.bytes_of(token)
        if group and _is_broken(data + token_bytes):
            close(position)
        group.append(token)
        data += token_bytes
        if not _is_open(data):
            close(position + 1)
    close(len(tokens))
    return cells


def blocks_of(sample: Sample, cells: Sequence[Cell], train_on: str = "all") -> list[Block]:
    """The cells turn by turn. Thoughts are marked in the turns of the assistant.

    A turn whose text is not found has no block of its own: it stays in the one before.

    Args:
        train_on: a value of TRAIN_ON.
    """
    answers_only = train_on != "all_text" and not any(
        turn.role == "text" or (turn.trained and turn.role != "assistant") for turn in sample.turns
    )
    text = _Searched(cells, answers_only)
    borders: list[tuple[int, str]] = []  # index of a cell, role
    end = 0  # of the turn before, in characters
    after_answer = False
    for turn in sample.turns:
        place = text.place_after_answer(turn, end) if after_answer else text.place(turn, end)
        if place is None:
            continue
        if not borders and (turn.role == "assistant" or text.has_answer_before(place[0])):
            borders.append((0, ""))  # the turns before were not found
        border = text.border(turn.role, end, place[0]) if borders else 0
        _add_unfound_answer(borders, text, end, border)
        borders.append((border, turn.role))
        end = place[1]
        after_answer = turn.role == "assistant"
    borders = borders or [(0, "")]
    _add_unfound_answer(borders, text, end, len(cells))
    ends = [border for border, _ in borders[1:]] + [len(cells)]
    blocks = [
        Block(role, tuple(cells[border:last]))
        for (border, role), last in zip(borders, ends, strict=True)
    ]
    blocks = [block for block in blocks if block.cells]
    return [
        block if block.role not in ("assistant", "") else _with_thoughts(block) for block in blocks
    ]


class _Searched:
    """The text of cells, in which the texts of turns are looked for."""

    def __init__(self, cells: Sequence[Cell], answers_only: bool) -> None:
        self.cells = cells
        self.answers_only = answers_only  # whether only answers are trained on
        self.starts = [0, *accumulate(len(cell.text) for cell in cells)]  # in characters
        # No turn's text matches within a control token, and no question's within an answer.
        blank = [_BLANK * len(cell.text) if cell.control else cell.text for cell in cells]
        self._whole = "".join(blank)
        self._read = "".join(
            _BLANK * len(text) if cell.trained and answers_only else text
            for cell, text in zip(cells, blank, strict=True)
        )

    def first_cell(self, end: int) -> int:
        """The first cell that begins at the character `end` or later."""
        return bisect_left(self.starts, end)

    def place(self, turn: Turn, begin: int) -> tuple[int, int] | None:
        """Where a turn stands, from `begin` on: start and end, in characters."""
        text = self._whole if turn.role == "assistant" else self._read
        names = [str(call.get("function", call).get("name", "")) for call in turn.tool_calls]
        thought, said = thought_and_answer(turn) if turn.role == "assistant" else ("", turn.text)
        start: int | None = None
        end = begin
        if span := self._thought(thought, said or "".join(names[:1]), text, begin):
            start, end = span
        for wanted in (said, turn.input, *names[:1]):
            if span := _search(wanted, text, end):
                start = span[0] if start is None else start
                end = span[1]
        for name in names[1:]:  # some templates write only the first call
            span = _search(name, text, end)
            if span and not self._has_end(end, span[0]):
                end = span[1]
        return None if start is None else (start, end)

    def _thought(self, thought: str, said: str, text: str, begin: int) -> tuple[int, int] | None:
        """Where a thought stands: right before what is said. None where the template dropped it."""
        span = _search(thought, text, begin)
        if span is None or not said.strip():
            return None
        first, after = _search(said, text, begin), _search(said, text, span[1])
        if first is None or after is None or span[0] > first[0]:
            return None
        if span[0] == first[0] and self._has_end(span[1], after[0]):
            return None  # the thought is how the answer begins, and `after` is a later turn
        return span if after[0] - span[1] <= _LONGEST_CLOSING else None

    def _has_end(self, begin: int, end: int) -> bool:
        """Whether a token that ends a turn stands between two characters."""
        return any(cell.ends for cell in self.cells[self.first_cell(begin) : self.first_cell(end)])

    def place_after_answer(self, turn: Turn, begin: int) -> tuple[int, int] | None:
        """Like `place`, behind the token that ends the answer: arguments of calls precede it."""
        first = self.first_cell(begin)
        controls = [n for n in range(first, len(self.cells)) if self.cells[n].control]
        ends = [n for n in controls if self.cells[n].ends]
        for index in (*ends[:1], *controls[:1]):
            if (place := self.place(turn, self.starts[index + 1])) is not None:
                return place
        return None

    def has_answer_before(self, start: int) -> bool:
        """Whether an answer is trained on that ends before the character `start`."""
        cells = self.cells[: self.first_cell(start)]
        return self.answers_only and any(cell.trained for cell in cells)

    def border(self, role: str, end: int, start: int) -> int:
        """The cell with which a turn begins whose text begins at the character `start`."""
        first, last = self.first_cell(end), bisect_right(self.starts, start) - 1
        border = _border(self.cells, first, max(last, first), role)
        while role != "assistant" and self.answers_only and border < last:
            if not self.cells[border].trained:
                break
            border += 1
        return border


def _add_unfound_answer(
    borders: list[tuple[int, str]], text: _Searched, end: int, last: int
) -> None:
    """Add a border where an answer is trained on whose text was not found, before cell `last`."""
    if not text.answers_only or not borders or borders[-1][1] == "assistant":
        return
    for index in range(borders[-1][0], last):
        if text.cells[index].trained:
            border = text.border("assistant", end, text.starts[index])
            borders.append((max(border, borders[-1][0]), "assistant"))
            return


def _search(wanted: str, text: str, begin: int) -> tuple[int, int] | None:
    """Where `wanted` stands, as it is or as a tokenizer normalises it: start and end."""
    wanted = wanted.strip()
    for form in dict.fromkeys((wanted, *(normalize(name, wanted) for name in ("NFC", "NFKC")))):
        place = _place_of_words(form, text, begin) if form else -1
        if place >= 0:
            return place, place + len(form)
    return None


def _place_of_words(wanted: str, text: str, begin: int) -> int:
    """Where `wanted` begins; not within a word if there is such a place."""
    anywhere = place = text.find(wanted, begin)
    while place >= 0:
        after = text[place + len(wanted) : place + len(wanted) + 1]
        if not (place > begin and _is_word(text[place - 1])) and not (
            _is_word(after) and _is_word(wanted[-1])
        ):
            return place
        place = text.find(wanted, place + 1)
    return anywhere


def _is_word(character: str) -> bool:
    return character.isalnum() or (character != "" and character in "_-")


def _border(cells: Sequence[Cell], first: int, last: int, role: str) -> int:
    """The cell with which a turn begins, between the end of the turn before and its own text.

    It stands after the token that ends a turn. Where a template has none there, the first control
    token closes the turn before if another one follows it. Without any, an answer begins with its
    own text, and other turns with what the template writes before theirs.
    """
    if role == "assistant":
        trained = (
            index
            for index in range(max(first, 1), min(last + 1, len(cells)))
            if cells[index].trained and not cells[index - 1].trained
        )
        last = next(trained, last)
    controls = [index for index in range(first, last) if cells[index].control]
    ends = [index for index in controls if cells[index].ends]
    if not controls:
        return last if role == "assistant" else first
    if not ends and len(controls) == 1 and not cells[controls[0]].trained:
        return controls[0]
    border = (ends[-1] if ends else controls[0]) + 1
    while border < last and not cells[border].control and not cells[border].text.strip():
        border += 1
    return border


def _with_thoughts(block: Block) -> Block:
    text = "".join(cell.text for cell in block.cells)
    thoughts = [match.span() for match in _THOUGHT.finditer(text)]
    if not thoughts:
        return block
    cells: list[Cell] = []
    place = 0
    for cell in block.cells:
        inside = any(start <= place < end for start, end in thoughts)
        cells.append(replace(cell, thought=True) if inside else cell)
        place += len(cell.text)
    return Block(block.role, tuple(cells))


def _is_open(data: bytes) -> bool:
    """Whether the bytes end within a character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _is_broken(data: bytes) -> bool:
    """Whether the bytes are not UTF-8, whatever follows."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False


def _shown(data: bytes) -> str:
    """The characters, and ⟨E4⟩ for a byte that belongs to none."""
    text = ""
    while True:
        try:
            return text + data.decode()
        except UnicodeDecodeError as error:
            lost = data[error.start : error.end].hex(" ").upper()
            text += data[: error.start].decode() + f"⟨{lost}⟩"
            data = data[error.end :]
