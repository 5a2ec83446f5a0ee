"""trackers/NAME.json in a run's folder: what a resumed run needs to go on in a tracker."""

from dataclasses import asdict, dataclass
from pathlib import Path

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import read_json_object, write_json

_LARGEST = 1_000_000  # bytes


@dataclass(frozen=True, slots=True)
class TrackerRecord:
    """The run's id in a tracker, and how many lines of metrics.jsonl it has."""

    tracker_id: str
    lines: int = 0


def tracker_record(folder: Path, name: str) -> TrackerRecord | None:
    """What the run's folder says of a tracker; None where it was never opened.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "trackers" / f"{name}.json"
    advice = f"Restore it, or remove it: {name} then shows the rest of the run as a new one."
    try:
        values = read_json_object(file, _LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. {advice}") from None
    tracker_id, lines = values.get("tracker_id"), values.get("lines")
    if not isinstance(tracker_id, str) or not tracker_id.strip():
        raise UserError(f'{file} is damaged: "tracker_id" is no string. {advice}')
    if not isinstance(lines, int) or isinstance(lines, bool) or lines < 0:
        raise UserError(f'{file} is damaged: "lines" is no whole number of at least 0. {advice}')
    return TrackerRecord(tracker_id, lines)


def write_tracker_record(folder: Path, name: str, record: TrackerRecord) -> None:
    """Write `record` whole, or not at all."""
    write_json(folder / "trackers" / f"{name}.json", asdict(record))
