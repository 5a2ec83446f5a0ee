"""The outcome of comparing two answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether two answers mean the same, what kind they are, and who decided.

    Attributes:
        kind: "number", "expression", "set", "interval", "inequality", "tuple", "equation",
            "matrix", "ratio", "quantity", "number base", "date", "time", "choice", "yes/no" or
            "text".
        by: "ours" or "math-verify".
    """

    equal: bool
    kind: str
    by: str = "ours"
