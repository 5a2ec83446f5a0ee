"""The tokens of a sequence -> cells of whole characters, turn by turn, with what becomes of each.

T: the tokens of one sequence. S: its trained parts.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinkersmith.data.samples import Sample, Turn
from tinkersmith.preview.findings import TURN_ENDS
from tinkersmith.preview.token_texts import TokenTexts

_LONGEST_GROUP = 8  # tokens that may share a character

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
            cells.append(Cell(texts.added[token], (token,), position, *state, control=True))
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


def blocks_of(sample: Sample, cells: Sequence[Cell]) -> list[Block]:
    """The cells turn by turn. Thoughts are marked in the turns of the assistant."""
    starts: list[int] = []  # of each cell, in characters
    length = 0
    for cell in cells:
        starts.append(length)
        length += len(cell.text)
    text = "".join(cell.text for cell in cells)
    borders: list[tuple[int, str]] = []  # index of a cell, role
    end = 0  # of the turn before, in characters
    for turn in sample.turns:
        place = _find(turn, text, end)
        if place is None:
            continue
        first, last = bisect_left(starts, end), bisect_right(starts, place[0]) - 1
        borders.append((_border(cells, first, last) if borders else 0, turn.role))
        end = place[1]
    if not borders:
        borders = [(0, "")]
    ends = [border for border, _ in borders[1:]] + [len(cells)]
    blocks = [
        Block(role, tuple(cells[border:last]))
        for (border, role), last in zip(borders, ends, strict=True)
    ]
    blocks = [block for block in blocks if block.cells]
    return [
        block if block.role not in ("assistant", "") else _with_thoughts(block) for block in blocks
    ]


def _find(turn: Turn, text: str, begin: int) -> tuple[int, int] | None:
    """Where a turn stands in the rendered text, from `begin` on: start and end, in characters."""
    said = turn.text.rpartition("</think>")[2] if turn.role == "assistant" else turn.text
    names = [str(call.get("function", call).get("name", "")) for call in turn.tool_calls]
    start: int | None = None
    end = begin
    for wanted in (turn.thought, said, turn.input, *names):
        wanted = wanted.strip()
        place = _search(wanted, text, end) if wanted else -1
        if place >= 0:
            start = place if start is None else start
            end = place + len(wanted)
    return None if start is None else (start, end)


def _search(wanted: str, text: str, begin: int) -> int:
    """Where `wanted` begins; not within a word if there is such a place."""
    place = text.find(wanted, begin)
    anywhere = place
    while place > begin and (text[place - 1].isalnum() or text[place - 1] in "_-"):
        place = text.find(wanted, place + 1)
    return place if place >= 0 else anywhere


def _border(cells: Sequence[Cell], first: int, last: int) -> int:
    """The cell with which a turn begins, between the end of the turn before and its own text.

    It stands after the token that ends a turn. Where a template has none there, the first control
    token closes the turn before if another one follows it.
    """
    controls = [index for index in range(first, last) if cells[index].control]
    ends = [index for index in controls if cells[index].text in TURN_ENDS]
    if not controls:
        trained = [
            index
            for index in range(max(first, 1), last + 1)
            if cells[index].trained and not cells[index - 1].trained
        ]
        return trained[0] if trained else first
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
