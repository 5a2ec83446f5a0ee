"""What a tracker can do, and what it is told about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

PROJECT = "tinkersmith"  # where the user's environment names no project
State = Literal["finished", "interrupted", "diverged", "failed"]  # of a run at its end


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A run as its trackers see it."""

    name: str
    folder: Path  # absolute
    settings: Mapping[str, Any]  # by upper-case names, and what the run was made with
    tracker_id: str | None = None  # the run's id in this tracker; None where it is new there
    first_step: int = 0  # steps that were done before this process of the run

    @property
    def output_dir(self) -> Path:
        """OUTPUT_DIR, where trackers keep what they share between runs."""
        return self.folder.parent

    @property
    def tracker_folder(self) -> Path:
        """The folder inside the run's for what trackers write about this run alone."""
        return self.folder / "trackers"


@dataclass(frozen=True, slots=True)
class StepValues:
    """Values that were measured at one step."""

    step: int
    values: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer of the trained model beside what was expected."""

    source: str
    prompt: str
    expected: str
    answer: str


COLUMNS = ("source", "prompt", "expected", "answer")  # of the table of answers


class Tracker(Protocol):
    """One run in one tracker. Every method may raise anything: it is called where that is safe."""

    @property
    def tracker_id(self) -> str:
        """The id by which the run is continued."""
        ...

    @property
    def where(self) -> str:
        """The address, folder or command that shows the run."""
        ...

    def log(self, points: Sequence[StepValues]) -> None: ...

    def log_answers(self, answers: Sequence[ShownAnswer], step: int) -> None: ...

    def end(self, state: State, report: Path | None) -> None:
        """Log the state and the path of the run's report, and wait until all is written."""
        ...
