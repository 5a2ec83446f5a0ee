"""A measurement of a run <-> its value for each sample or question, in measured.jsonl.

metrics.jsonl has the means. Two models can be compared sample by sample only with these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from tinkersmith.errors import UserError
from tinkersmith.runs.folder import MEASURED_FILE, RunFolder
from tinkersmith.settings.measures import measurement_name

Place = tuple[str, int]  # of a sample: its file as seen from the run's folder, and its record


@dataclass(frozen=True, slots=True)
class SingleValues:
    """What a measurement says of each sample or question, by its place."""

    step: int
    by: str  # "validation_loss", "final_answer"
    values: Mapping[Place, tuple[float, float]]  # value, and its weight in the mean
    answers: int = 1  # that a question's score is the mean of

    @property
    def mean(self) -> float:
        """The weighted mean: the value in metrics.jsonl, but for rounding."""
        weights = sum(weight for _, weight in self.values.values())
        return sum(value * weight for value, weight in self.values.values()) / weights


def add_single_values(run: RunFolder, measured: SingleValues) -> None:
    """Add a line to the run's file."""
    files: dict[str, list[list[float]]] = {}
    for (file, record), (value, weight) in measured.values.items():
        row = [record, round(value, 6)]
        files.setdefault(file, []).append(row if weight == 1 else [*row, weight])
    name = measurement_name(measured.by)
    line = {"step": measured.step, "of": name, "answers": measured.answers, "values": files}
    run.append(MEASURED_FILE, [line])


def single_values(run: RunFolder, by: str, step: int) -> SingleValues | None:
    """The values of each sample or question at a step; None where they were not stored.

    Raises:
        UserError: the line is damaged.
    """
    name, found = measurement_name(by), None
    for line in run.each_line(MEASURED_FILE):
        if line.get("of") == name and line.get("step") == step:
            found = line  # a measurement that a kill cut off was made again
    if found is None:
        return None
    try:
        return SingleValues(step, by, _values(found), int(found.get("answers", 1)))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        raise UserError(
            f"{run.file(MEASURED_FILE)} is damaged: the line of step {step:,} has no values of "
            f"{by}. Remove that line."
        ) from None


def _values(line: Mapping[str, Any]) -> dict[Place, tuple[float, float]]:
    files = cast("Mapping[str, list[list[float]]]", line["values"])
    return {
        (file, int(row[0])): (float(row[1]), float(row[2]) if len(row) > 2 else 1.0)
        for file, rows in files.items()
        for row in rows
    }
