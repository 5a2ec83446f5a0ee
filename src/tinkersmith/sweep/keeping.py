"""--keep best: the checkpoints of all combinations but the best one are deleted on the server."""

from tinkersmith.errors import UserError
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.runs.best import BEST_FILE
from tinkersmith.runs.folder import DELETED_CHECKPOINTS_FILE, RunFolder
from tinkersmith.runs.lock import locked
from tinkersmith.service.connection import Server, ServerGone, open_service
from tinkersmith.service.stored import checkpoints_of, run_ids
from tinkersmith.sweep.ranking import Ranking
from tinkersmith.sweep.record import Sweep


def delete_losers(sweep: Sweep, ranking: Ranking, server: Server, progress: Progress) -> int:
    """Delete the checkpoints of all runs but those of the best combination; their folders stay.

    Returns:
        How many checkpoints went.

    Raises:
        ServerGone: the server stopped answering.
    """
    best = ranking.rows[0].combination
    deleted = 0
    with open_service(sweep.settings, progress=progress, server=server) as service:
        for run in sweep.runs:
            folder = sweep.folder_of(run)
            if run.combination == best or folder is None or not folder.checkpoints():
                continue
            try:
                with (
                    locked(folder, "deleting its checkpoints", progress.say),
                    progress.doing(f"deleting the checkpoints of {folder.name}"),
                ):
                    for stored in checkpoints_of(service, run_ids(folder)):
                        service.delete_checkpoint(stored.path)
                        deleted += 1
                    _note_deleted(folder)
            except ServerGone:
                raise
            except UserError as error:
                progress.say(f"  Warning: the checkpoints of {folder.name} stay: {error}")
    progress.say(
        f"  Deleted {counted(deleted, 'checkpoint')} of the other combinations (--keep best)."
    )
    return deleted


def _note_deleted(run: RunFolder) -> None:
    """Say in the run's folder that it has no checkpoint any more."""
    run.append(DELETED_CHECKPOINTS_FILE, run.lines("checkpoints.jsonl"))
    run.rewrite("checkpoints.jsonl", [])
    run.file(BEST_FILE).unlink(missing_ok=True)
