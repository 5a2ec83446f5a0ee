"""The outcome of comparing two answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether two answers mean the same, what kind they are, and who decided.

    Attributes:
        kind: "number", "expression", "set", "interval", "inequality", "tuple", "equation",
            "matrix", "ratio", "quantity", "number base", "date", "time", "choice", "yes/no" or
            "text".
        by: "ours", "math-verify", or "math-verify timed out": then the answers count as different.
    """

    equal: bool
    kind: str
    by: str = "ours"
