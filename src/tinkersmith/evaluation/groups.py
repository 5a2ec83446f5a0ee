"""Questions -> groups by file, field, prompt length and kind of answer, with a score for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinkersmith.evaluation.results import Record
from tinkersmith.evaluation.summary import Estimate, by_question, estimate
from tinkersmith.evaluation.verdict import Pair, pairs_are_shares, pairs_of, verdict
from tinkersmith.statistics.multiple import holm

SMALL_GROUP = 20  # questions: fewer make a group that says little
_MOST_LABELS = 12  # of a field, to form groups by it
_LENGTHS = 4  # groups of prompt lengths


@dataclass(frozen=True, slots=True)
class Group:
    """The questions that have something in common, and how they were answered."""

    by: str  # "file", "prompt length", "kind of answer", or the name of a field
    label: str
    first: Estimate
    second: Estimate | None  # of the other model, as are the next two
    difference: Estimate | None
    p_value: float | None  # adjusted for the number of groups that are tested

    @property
    def small(self) -> bool:
        return self.first.n < SMALL_GROUP

    def to_json(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "group": self.label,
            "n": self.first.n,
            "small": self.small,
            "first": self.first.to_json(),
            "second": self.second.to_json() if self.second else None,
            "difference": self.difference.to_json() if self.difference else None,
            "p_value_holm": self.p_value,
        }


def groups_of(first: Sequence[Record], second: Sequence[Record] | None, metric: str) -> list[Group]:
    """The groups of one model's questions, or of those that two models share."""
    if second is None:
        questions = [Pair(records, ()) for records in by_question(first).values()]
    else:
        questions = pairs_of(first, second)
    return groups_of_pairs(questions, metric, alone=second is None)


def groups_of_pairs(pairs: Sequence[Pair], metric: str, *, alone: bool = False) -> list[Group]:
    """The groups of questions, labelled by the first model's records.

    Args:
        alone: whether there is no second model.
    """
    groups: list[Group] = []
    p_values: list[float] = []
    shares = pairs_are_shares(pairs, metric)
    for by, labels in _labels([pair.first for pair in pairs]).items():
        for label in _in_order(labels):
            members = [pair for pair, own in zip(pairs, labels, strict=True) if own == label]
            if alone:
                records = [record for pair in members for record in pair.first]
                groups.append(Group(by, label, estimate(records, metric, shares), None, None, None))
                continue
            compared = verdict(members, metric, shares)
            p_values.append(compared.p_value)
            groups.append(
                Group(by, label, compared.first, compared.second, compared.difference, None)
            )
    if alone:
        return groups
    return [
        Group(g.by, g.label, g.first, g.second, g.difference, adjusted)
        for g, adjusted in zip(groups, holm(p_values), strict=True)
    ]


def _labels(questions: Sequence[Sequence[Record]]) -> dict[str, list[str]]:
    """The label of every question, for each way to form groups that gives more than one."""
    firsts = [records[0] for records in questions]
    fields = dict.fromkeys(name for record in firsts for name in record.fields)
    ways: dict[str, Callable[[Record], str]] = {
        "file": lambda record: record.source.file,
        "kind of answer": lambda record: record.kind,
    }
    for name in fields:
        ways[name if name not in ways else f"field {name}"] = _field(name)
    labels = {by: [label(record) for record in firsts] for by, label in ways.items()}
    labels["prompt length"] = _length_labels(firsts)
    return {
        by: named
        for by, named in labels.items()
        # A field that is different nearly everywhere, such as a number, forms no groups.
        if 1 < len(set(named)) <= min(_MOST_LABELS, max(2, len(named) // 2))
    }


def _field(name: str) -> Callable[[Record], str]:
    return lambda record: record.fields.get(name, "(none)")


def _length_labels(records: Sequence[Record]) -> list[str]:
    """The quarter of prompt lengths that each record belongs to, in tokens or else characters."""
    unit = "tokens" if all(record.prompt_tokens for record in records) else "characters"
    lengths = np.array(
        [r.prompt_tokens if unit == "tokens" else len(r.prompt) for r in records], int
    )
    if len(lengths) == 0:
        return []
    shares = np.arange(1, _LENGTHS) / _LENGTHS
    ends = sorted({int(end) for end in np.quantile(lengths, shares, method="lower")})
    ends = [end for end in ends if end < lengths.max()]
    places = np.searchsorted(ends, lengths)
    names = [
        f"{begin + 1:,} to {end:,} {unit}"
        for begin, end in zip([lengths.min() - 1, *ends], [*ends, lengths.max()], strict=True)
    ]
    return [names[place] for place in places]


def _in_order(labels: Sequence[str]) -> list[str]:
    """Distinct labels: numbers by size, others in the order of the test set."""
    distinct = list(dict.fromkeys(labels))
    numbers = [label.split(" to ")[0].replace(",", "") for label in distinct]
    if all(number.isdecimal() for number in numbers):
        return [label for _, label in sorted(zip(map(int, numbers), distinct, strict=True))]
    return distinct
