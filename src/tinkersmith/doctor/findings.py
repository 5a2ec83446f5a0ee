"""What the check looks for, and a finding of it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError

# Kind -> what it is, as the end of "Nothing found: ...", and as a heading.
FINDING_KINDS: dict[str, str] = {
    "exact-duplicates": "samples equal to an earlier one",
    "near-duplicates": "samples nearly equal to an earlier one",
    "contradictions": "the same question with different answers",
    "leakage": "samples that ask what the test data asks",
    "empty-answers": "answers without content",
    "truncated": "answers that look cut off",
    "refusals": "answers that refuse, or speak as an AI",
    "copied-questions": "answers that repeat their question",
    "language": "answers in an unexpected script",
    "length": "unusually short or long samples",
    "markup": "left-over markup of web pages and chat programs",
    "control-tokens": "control tokens of prompt templates",
    "role-words": "answers that contain the next turn",
    "escapes": "escapes that are written out",
    "mojibake": "characters in a wrong encoding",
    "invisible": "invisible characters",
}


@dataclass(frozen=True, slots=True)
class DataFinding:
    """Something about one sample that may be wrong."""

    kind: str
    source: Source
    reason: str  # completes "data.json, record 3: "
    more: dict[str, Any] = field(default_factory=dict[str, Any])  # further fields for the list

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "file": self.source.file,
            "record": self.source.record,
            "reason": self.reason,
            **self.more,
        }


def as_json(source: Source) -> dict[str, Any]:
    return {"file": source.file, "record": source.record}


def known_kinds(names: Iterable[str]) -> list[str]:
    """The names as kinds, each once.

    Raises:
        UserError: one is not a kind; the sentence names the nearest and all others.
    """
    kinds: list[str] = []
    for name in names:
        kind = name.strip().lower().replace("_", "-").replace(" ", "-")
        if kind not in FINDING_KINDS:
            near = difflib.get_close_matches(kind, FINDING_KINDS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(
                f'"{name.strip()}" is no kind of finding. {hint}The kinds are: '
                f"{', '.join(FINDING_KINDS)}."
            )
        if kind not in kinds:
            kinds.append(kind)
    return kinds
