"""A sample as text: pieces that the loss counts and pieces that it does not.

A piece is encoded on its own, so its tokens are those of use, where the prompt is encoded without
the answer. Each join stands at a control token or where an answer begins.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tinkersmith.data.samples import Sample, Turn
from tinkersmith.errors import UserError


class Untrainable(Exception):
    """A sample that nothing can be trained on; the text is the reason, as the end of a sentence."""


class UnusableSample(UserError):
    """A sample that stops a command, unless the command can do without it."""

    def __init__(self, sample: Sample, reason: str) -> None:
        super().__init__(f"{sample.source}: {reason}. Correct or remove the record.")
        self.reason = reason


@contextmanager
def naming(sample: Sample) -> Generator[None, None, None]:
    """Turn an `Untrainable` into the sentence that stops a command, with the record's place."""
    try:
        yield
    except Untrainable as reason:
        raise UnusableSample(sample, str(reason)) from None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered text that is encoded on its own."""

    text: str
    trained: bool  # whether the loss counts its tokens
    joined: bool = False  # to the trained piece before it: a cut is not made between the two


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text to train on: one sequence of tokens. Most samples are one, some are several."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, prompt: str, completion: str) -> "Rendered":
        """One prompt and the completion that the model should learn, end token included."""
        return cls((Piece(prompt, trained=False), Piece(completion, trained=True)))

    @classmethod
    def with_spans(
        cls, text: str, spans: Sequence[tuple[int, int]], joins: Sequence[int] = ()
    ) -> "Rendered":
        """`text` up to the last of some trained spans, which are in order and do not overlap.

        Args:
            joins: where spans start that are joined to the one before.
        """
        pieces: list[Piece] = []
        end = 0
        for start, stop in spans:
            if start > end or not pieces:
                pieces.append(Piece(text[end:start], trained=False))
            joined = start == end and start in joins
            pieces.append(Piece(text[start:stop], trained=True, joined=joined))
            end = stop
        return cls(tuple(pieces))

    @property
    def prompt(self) -> str:
        """All text before the last piece."""
        return "".join(piece.text for piece in self.pieces[:-1])

    @property
    def completion(self) -> str:
        """The last piece's text."""
        return self.pieces[-1].text

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)


def trained_turns(sample: Sample, train_on: str) -> list[int]:
    """The places of the turns that are trained on: a turn's own flag wins over TRAIN_ON.

    Raises:
        Untrainable: there are none.
    """
    turns = sample.turns
    last = len(turns) - 1
    while last >= 0 and turns[last].role != "assistant":
        last -= 1
    places = [
        place
        for place, turn in enumerate(turns)
        if turn.trained or (turn.trained is None and _is_meant(turn, place == last, train_on))
    ]
    if not places:
        raise Untrainable("not one of its messages is trained on, as their flags say")
    return places


def _is_meant(turn: Turn, is_last: bool, train_on: str) -> bool:
    if turn.role == "text" or train_on == "all_text":
        return True
    return turn.role == "assistant" and (train_on == "all" or is_last)


def user_text(turn: Turn) -> str:
    """The text of a message, with the input that an Alpaca record keeps apart."""
    return f"{turn.text}\n\n{turn.input}" if turn.input else turn.text


def plain_text(begin: str, text: str, end: str) -> Rendered:
    """Plain text, for continued pre-training: every token is trained on but the begin token."""
    return Rendered((Piece(begin, trained=False), Piece(text + end, trained=True)))


def start_of(text: str) -> str:
    """The beginning of a plain text, which a trained model is asked to continue: some 20 words."""
    words = text.split(" ", 20)
    return " ".join(words[: min(20, (len(words) + 1) // 2)])
