"""Lines of what a run sends -> requests.jsonl, compared with the run's rehearsal on the way.

A line is compared before its request is sent, and is in the file before a checkpoint of its step
is noted: a run that is resumed, which does later steps again, has the file of an unbroken one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.paths import seen_from_folder, seen_from_here
from tinkersmith.runs.folder import REQUESTS_FILE, RunFolder
from tinkersmith.runs.rehearsals import Rehearsal, digest_of_all, lines_of

_HELD_LINES = 400  # in memory at most
_FACT = "rehearsal"


@dataclass(frozen=True, slots=True)
class Compared:
    """The rehearsal that a run is compared with."""

    rehearsal: Rehearsal
    allow_changes: bool = False  # go on where a request is another one

    def fact(self, run: Path) -> dict[str, Any]:
        """What settings.json says of it, so that a resumed run goes on with it."""
        folder = seen_from_folder(run, str(self.rehearsal.path))
        return {_FACT: {"folder": folder, "allow_changes": self.allow_changes}}


def compared_before(run: RunFolder, *, allow_changes: bool) -> Compared | None:
    """The rehearsal that a run began with; None where there was none.

    Raises:
        UserError: it is gone, and that is not allowed.
    """
    known: dict[str, Any] | None = run.facts().get(_FACT)
    if known is None:
        return None
    path = Path(seen_from_here(run.path, str(known.get("folder"))))
    compared = Compared(Rehearsal(path), allow_changes or bool(known.get("allow_changes")))
    try:
        compared.rehearsal.facts()
    except UserError as error:
        if compared.allow_changes:
            return None
        raise UserError(
            f"{run.name} is compared with a rehearsal that cannot be read: {error} Restore it, or "
            "insist with --allow-changes."
        ) from None
    return compared


class SentRequests:
    """What a run sends from its first step on."""

    def __init__(self, run: RunFolder, compared: Compared | None) -> None:
        self._run = run
        self._rehearsed = compared.rehearsal.digests() if compared else None
        self._lines: list[dict[str, Any]] = []
        self._noted = _last_places(run)  # what is measured after the last step may be sent again

    def first_other(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The first line that is not as it was rehearsed; None if all are, or none was."""
        if self._rehearsed is None:
            return None
        known = self._rehearsed
        return next(
            (line for line in lines if known.get((line["step"], line["kind"])) != line["digest"]),
            None,
        )

    def note(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take over lines whose requests are sent now; those that were sent before are there."""
        self._lines += [line for line in lines if (line["step"], line["kind"]) not in self._noted]
        if len(self._lines) >= _HELD_LINES:
            self.write()

    def write(self) -> None:
        """Add what was taken over to the file."""
        if self._lines:
            self._run.append(REQUESTS_FILE, self._lines)
            self._lines = []


def _last_places(run: RunFolder) -> set[tuple[int, str]]:
    """The step and kind of each line of the last step that the file has."""
    places: set[tuple[int, str]] = set()
    last = 0
    for line in lines_of(run):
        if line["step"] != last:
            places.clear()
            last = line["step"]
        places.add((last, line["kind"]))
    return places


def requests_line(run: RunFolder, compared: Compared | None) -> str:
    """What came of the comparison of a run with its rehearsal, for the user."""
    digest, count = digest_of_all(lines_of(run))
    whole = f"{count:,}, all together sha256 {digest[:12]}"
    if compared is None:
        return f"{whole}; not rehearsed"
    rehearsed = compared.rehearsal.digests()
    others = missing = 0
    for line in lines_of(run):
        before = rehearsed.pop((line["step"], line["kind"]), None)
        missing += before is None
        others += before is not None and before != line["digest"]
    name = compared.rehearsal.name
    if others or missing:
        return f"{whole}; {others:,} of them differ from those of {name}, {missing:,} are not in it"
    if rehearsed:
        return f"{whole}: equal those of {name}, which has {len(rehearsed):,} more lines"
    return f"all {count:,} equal those of {name}, sha256 {digest[:12]}"
