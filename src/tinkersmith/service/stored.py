"""The checkpoints that a server stores: their sizes, and the deletion of those that may go."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, Say
from tinkersmith.runs.best import best_by_of
from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.runs.pruning import note_deleted_state, old_states
from tinkersmith.runs.resume import diverged_after
from tinkersmith.service.connection import ServerGone, Service, open_service
from tinkersmith.settings.fields import Settings

_PAGE = 500  # checkpoints of one listing
_SECONDS_OF_DAY = 86400


@dataclass(frozen=True, slots=True)
class StoredOnServer:
    """A checkpoint as the server lists it."""

    path: str  # tinker://RUN/SEGMENT/NAME
    size: int  # bytes; 0 where the server does not say
    is_state: bool
    saved: dt.datetime

    @property
    def run_id(self) -> str:
        return run_id_of(self.path)


class OldStates:
    """Deletes the old states of a run, after each save."""

    def __init__(self, service: Service, run: RunFolder, keep_last: int, say: Say) -> None:
        self._service, self._run, self._keep_last, self._say = service, run, keep_last, say
        self._warned = False

    def delete(self, protected_step: int | None = None) -> int:
        """Delete what KEEP_LAST does not keep, and return how many states went.

        A deletion that fails is one warning; it is tried again after the next save.

        Raises:
            ServerGone: the server stopped answering.
        """
        deleted = 0
        for checkpoint in states_to_delete(self._run, self._keep_last, protected_step):
            try:
                self._service.delete_checkpoint(checkpoint.state_path)
            except ServerGone:
                raise
            except UserError as error:
                if not self._warned:
                    self._say(f"  Warning: the old state {checkpoint.name} stays: {error}")
                self._warned = True
                return deleted
            note_deleted_state(self._run, checkpoint.state_path)
            deleted += 1
        return deleted


def states_to_delete(
    run: RunFolder, keep_last: int, protected_step: int | None = None
) -> list[Checkpoint]:
    """The checkpoints of a run whose states KEEP_LAST does not keep; see `old_states`.

    Without a `protected_step`, the last good state of a run that has diverged is kept.
    """
    checkpoints = run.checkpoints()
    if not old_states(checkpoints, (), keep_last, protected_step):
        return []  # metrics.jsonl, which may be long, is not read
    if protected_step is None:
        protected_step = diverged_after(run)
    by = best_by_of(run)
    return old_states(checkpoints, run.metrics(), keep_last, protected_step, by)


def lifetime(settings: Settings) -> int | None:
    """The seconds after which the server deletes a checkpoint; None: never."""
    return settings.checkpoint_ttl_days * _SECONDS_OF_DAY or None


def run_id_of(path: str) -> str:
    """The server's id of the training run that a tinker:// path belongs to."""
    return path.removeprefix("tinker://").partition("/")[0]


def run_ids(run: RunFolder) -> list[str]:
    """The server's ids of this run: one for each time that it was started or resumed.

    Checkpoints that a resume has set aside belong to it as well, and so do those of the trainings
    within an improvement.
    """
    paths = [saved.state_path for saved in run.checkpoints()]
    for file in run.path.glob("round-*/*/checkpoints.jsonl"):
        paths += [saved.state_path for saved in RunFolder(file.parent).checkpoints()]
    for file in run.path.glob("checkpoints.before-resume-*.jsonl"):
        paths += [str(line.get("state_path", "")) for line in run.lines(file.name)]
    return list(dict.fromkeys(run_id_of(path) for path in paths if path))


def checkpoints_of(service: Service, ids: Sequence[str]) -> list[StoredOnServer]:
    """What the server stores of these training runs.

    Raises:
        UserError: the server does not list it.
    """
    import tinker

    def listed(run_id: str) -> list[Any]:
        try:
            return service.rest.list_checkpoints(run_id).result().checkpoints
        except tinker.NotFoundError:  # it was never stored there, or all of it is gone
            return []

    return [
        _stored(checkpoint)
        for run_id in ids
        for checkpoint in service.ask(lambda run_id=run_id: listed(run_id), "listing checkpoints")
    ]


def all_checkpoints(service: Service) -> list[StoredOnServer]:
    """Everything that the server stores for this key.

    Raises:
        UserError: the server does not list it.
    """
    found: list[StoredOnServer] = []
    while True:
        page = service.ask(
            partial(service.rest.list_user_checkpoints, limit=_PAGE, offset=len(found)),
            "listing checkpoints",
        ).checkpoints
        found += [_stored(checkpoint) for checkpoint in page]
        if len(page) < _PAGE:
            return found


def connection_of(settings: Settings, backend: str, progress: Progress) -> Any:
    """`open_service` to the server where runs of this backend are stored."""
    where = "local" if backend == "embedded" else "tinker"
    # No model is used. The bundled one is there whatever BASE_MODEL says.
    chosen = settings.model_copy(update={"backend": where})
    return open_service(chosen, base_model=next(iter(BUNDLED_MODELS)), progress=progress)


def stored_line(service: Service, run: RunFolder, settings: Settings) -> str:
    """How much the server stores of a run, and how long: for the run's end.

    Raises:
        UserError: the server does not list it.
    """
    stored = checkpoints_of(service, run_ids(run))
    states = [checkpoint for checkpoint in stored if checkpoint.is_state]
    samplers = [checkpoint for checkpoint in stored if not checkpoint.is_state]
    line = f"{_count_and_size(states, 'state')}, {_count_and_size(samplers, 'sampler')}"
    days = settings.checkpoint_ttl_days
    return f"{line}; deleted {counted(days, 'day')} after each save" if days else line


def size_text(size: float) -> str:
    """Bytes as 1.2 GB, 3.4 MB or 5.6 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"


def total(stored: Iterable[StoredOnServer]) -> int:
    """The bytes of all of them."""
    return sum(checkpoint.size for checkpoint in stored)


def _count_and_size(stored: Sequence[StoredOnServer], what: str) -> str:
    return f"{counted(len(stored), what)} ({size_text(total(stored))})"


def _stored(checkpoint: Any) -> StoredOnServer:
    return StoredOnServer(
        path=checkpoint.tinker_path,
        size=checkpoint.size_bytes or 0,
        is_state=checkpoint.checkpoint_type == "training",
        saved=checkpoint.time.astimezone(dt.UTC),
    )
