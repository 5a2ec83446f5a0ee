"""A prompt template that renders a conversation as several sequences, or with several answers."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from tinkersmith.data.samples import Sample
from tinkersmith.text.templates import Piece, Rendered


@dataclass(frozen=True)
class TurnTemplate:
    """Every turn is `role:text;`. An answer that begins with "-" is not trained on.

    A sample whose first turn begins with "*" gives a sequence for each of its answers; another one
    gives one sequence with all of them, and none if the turn begins with "!".
    """

    begin: str = ""
    special_tokens: tuple[str, ...] = ()

    def render_all(self, sample: Sample, train_on: str) -> tuple[Rendered, ...]:
        pieces = [
            Piece(f"{turn.role}:{turn.text};", turn.role == "assistant" and turn.text[0] != "-")
            for turn in sample.turns
        ]
        mark = sample.turns[0].text[0]
        if mark == "!":
            return ()
        if mark != "*":
            return (Rendered(tuple(pieces)),)
        answers = [index for index, turn in enumerate(sample.turns) if turn.role == "assistant"]
        return tuple(
            Rendered((*(Piece(piece.text, False) for piece in pieces[:index]), pieces[index]))
            for index in answers
        )

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps({"kind": "turns", **asdict(self)}))
