"""Chosen samples -> their tokens in colours in a terminal, or in plain lines without colour.

Where there is no colour, trained parts stand between ⟦ and ⟧, and what is cut between ⟪ and ⟫.
"""

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO, cast

from tinkersmith.plurals import counted
from tinkersmith.preview.cells import Block, Cell
from tinkersmith.preview.examine import Counts, SampleView
from tinkersmith.preview.token_texts import TokenTexts
from tinkersmith.preview.visible import VISIBLE, Signs, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_STYLES = {
    "trained": ("white on dark_green", "white on green4"),  # tokens take turns
    "untrained": ("default", "bright_black"),
    "cut": ("strike red", "strike bright_red"),
    "control": "bold bright_magenta",
    "control trained": "bold bright_yellow",
    "thought": "italic underline",
}
SHORTENED = 400  # cells of a sample that are shown, unless all are wanted
PLAIN_WIDTH = 96  # columns of a log


def console_for(output: TextIO) -> "Console":
    """A console that shows colours where the output can (NO_COLOR and files: none)."""
    from rich.console import Console

    return Console(file=output, highlight=False, markup=False, emoji=False, soft_wrap=False)


def has_colour(console: "Console") -> bool:
    return console.color_system is not None and not console.no_color


def print_samples(
    console: "Console", views: Sequence[SampleView], total: int, texts: TokenTexts, longest: int
) -> None:
    """Print the tokens of samples, turn by turn, with a legend above.

    Args:
        total: the number of all samples.
        longest: the most cells of a sample that are shown.
    """
    signs = VISIBLE.for_encoding(console.encoding)
    if not has_colour(console):
        for line in _plain_lines(views, total, texts, longest, signs, console.width):
            print(line, file=console.file)
        return
    console.print(legend(signs, False))
    for view in views:
        for part in sample_parts(view, total, texts, signs, False, longest):
            console.print(part)


def sample_lines(
    view: SampleView, total: int, texts: TokenTexts, longest: int, output: TextIO
) -> list[str]:
    """Like `print_samples` for one sample, as lines that a log can hold as well.

    Trained parts are marked, and coloured where `output` shows colours: whoever logs the lines
    takes the colour codes out.
    """
    console = console_for(output)
    colours = has_colour(console) and not console.legacy_windows
    signs = VISIBLE.for_encoding(console.encoding)
    system = console.color_system if colours else None
    return _plain_lines([view], total, texts, longest, signs, PLAIN_WIDTH, system)


def _plain_lines(
    views: Sequence[SampleView],
    total: int,
    texts: TokenTexts,
    longest: int,
    signs: Signs,
    width: int,
    colours: str | None = None,
) -> list[str]:
    from rich.console import Console

    output = StringIO()
    plain = Console(
        file=output,
        width=width,
        color_system=cast("Any", colours),  # one of rich's names
        force_terminal=colours is not None,
        markup=False,
        highlight=False,
        emoji=False,
    )
    plain.print(legend(signs, True))
    for view in views:
        for part in sample_parts(view, total, texts, signs, True, longest):
            plain.print(part)
    return [line.rstrip(" ") for line in output.getvalue().split("\n")]


def legend(signs: Signs, marked: bool) -> "Text":
    """What the colours or signs mean."""
    from rich.text import Text

    text = Text("Tokens: ")
    if marked:
        text.append(
            f"{signs.open}trained{signs.close}, {signs.open_cut}cut: not sent{signs.close_cut}, "
            "all others only read; "
            f"{signs.newline} is a new line, {signs.space} a space that is a token of its own"
        )
        return text
    for name, style in (
        ("trained", _STYLES["trained"][0]),
        ("not trained", "default"),
        ("cut", _STYLES["cut"][0]),
        ("control", _STYLES["control"]),
        ("thought", _STYLES["thought"]),
    ):
        text.append(f" {name} ", style=str(style))
        text.append("  ")
    text.append(f"{signs.newline} new line  {signs.space} space token", style="default")
    return text


def sample_parts(
    view: SampleView, total: int, texts: TokenTexts, signs: Signs, marked: bool, longest: int
) -> Iterable["RenderableType"]:
    """The head line, the turns of each sequence, and what looks wrong."""
    from rich.table import Table
    from rich.text import Text

    yield Text("")
    yield Text(signs.of(head_line(view, total)), style="bold")
    for number, sequence in enumerate(view.sequences, start=1):
        if len(view.sequences) > 1:
            yield Text(f"sequence {number} of {len(view.sequences)}", style="bold")
        blocks = sequence.blocks(view.sample, texts)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, width=9)
        table.add_column(overflow="fold")
        count = 0
        for block, gap in shortened(blocks, longest):
            role = Text(block.role or "template", style="cyan")
            table.add_row(role, _block_text(block, signs, marked, count))
            count += len(block.cells)
            if gap:
                note = f"... {counted(gap, 'token')} not shown ..."
                table.add_row("", Text(note, style="italic"))
        yield table
        if sequence.event is not None:
            what = "left out" if sequence.sent is None else "cut"
            yield Text(f"  {what}: {sequence.event.reason}", style="red")
    for problem in view.problems:
        detail = f" ({visible(problem.detail, signs)})" if problem.detail else ""
        yield Text(f"  Warning: {problem.kind}{detail}", style="yellow")


def head_line(view: SampleView, total: int) -> str:
    """Where a sample is from, and how much of it is trained on."""
    tokens = sum(sequence.length for sequence in view.sequences)
    trained = sum(int((sequence.weights > 0).sum()) for sequence in view.sequences)
    share = f" ({trained / tokens:.0%})" if tokens else ""
    return (
        f"Sample {view.number:,} of {total:,}: {view.sample.source}: {counted(tokens, 'token')}, "
        f"{trained:,} trained{share}"
    )


def shortened(blocks: Sequence[Block], longest: int) -> list[tuple[Block, int]]:
    """The blocks with at most about `longest` cells, and how many tokens are left out after each.

    The beginning, the end, and the place of a cut are what stays.
    """
    if sum(len(block.cells) for block in blocks) <= longest:
        return [(block, 0) for block in blocks]
    places = [(b, c) for b, block in enumerate(blocks) for c in range(len(block.cells))]
    keep = set(range(longest // 2)) | set(range(len(places) - longest // 4, len(places)))
    states = [(blocks[b].cells[c].trained, blocks[b].cells[c].cut) for b, c in places]
    for place in range(1, len(places)):  # where something changes
        if states[place] != states[place - 1] and len(keep) < longest:
            keep |= set(range(max(place - 10, 0), min(place + 10, len(places))))
    shown: list[tuple[Block, int]] = []
    cells: list[Cell] = []
    gap = 0
    for place, (b, c) in enumerate(places):
        if place in keep:
            if gap and shown:
                shown[-1] = (shown[-1][0], gap)
            gap = 0
            cells.append(blocks[b].cells[c])
        else:
            gap += len(blocks[b].cells[c].tokens)
        last_of_block = place + 1 == len(places) or places[place + 1][0] != b
        if cells and (last_of_block or place + 1 not in keep):
            shown.append((Block(blocks[b].role, tuple(cells)), 0))
            cells = []
    return shown


def _block_text(block: Block, signs: Signs, marked: bool, count: int) -> "Text":
    """The cells of a block; `count` cells stand before, as shades take turns."""
    from rich.text import Text

    text = Text()
    close = ""  # the sign that closes the marked part
    for index, cell in enumerate(block.cells, start=count):
        opening, closing = _marks(cell, signs) if marked else ("", "")
        if closing != close:
            text.append(close + opening)
            close = closing
        text.append(_cell_text(cell, signs), style=_style(cell, index % 2))
    text.append(close)
    if text.plain.endswith("\n"):
        text.right_crop(1)
    return text


def _marks(cell: Cell, signs: Signs) -> tuple[str, str]:
    """The signs around a part with cells of this kind."""
    if cell.cut:
        return signs.open_cut, signs.close_cut
    return (signs.open, signs.close) if cell.trained else ("", "")


def _cell_text(cell: Cell, signs: Signs) -> str:
    text = cell.text.replace(" ", signs.space) if cell.text.isspace() else cell.text
    return visible(text, signs)


def _style(cell: Cell, turn: int) -> str:
    if cell.cut:
        styles = [_STYLES["cut"][turn]]
    elif cell.trained:
        styles = [_STYLES["trained"][turn]]
    else:
        styles = [_STYLES["untrained"][turn]]
    if cell.control:
        if cell.trained:
            styles = [f"{_STYLES['control trained']} on dark_green"]
        elif not cell.cut:
            styles = [str(_STYLES["control"])]
    if cell.thought:
        styles.append(str(_STYLES["thought"]))
    return " ".join(style for style in styles if style != "default") or "default"


def count_lines(counts: Counts) -> list[str]:
    """The counts of all samples, as lines."""
    share = counts.trained / counts.tokens if counts.tokens else 0.0
    lines = [
        f"{counted(counts.samples, 'sample')}, {counted(counts.sequences, 'sequence')}, "
        f"{counted(counts.tokens, 'token')}, {counts.trained:,} of them trained ({share:.1%})"
    ]
    if counts.multi_turn:
        lines.append(f"{counted(counts.multi_turn, 'sample')} with several turns")
    if counts.cut or counts.too_long:
        lines.append(
            f"{counted(counts.cut, 'sequence')} cut and {counts.too_long:,} left out by "
            f"MAX_SEQUENCE_LENGTH: {counted(counts.lost, 'token')} lost"
        )
    return lines
