"""Settings, or an interrupted run -> a finished run: `train`."""

import atexit
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.folder import RunFolder, open_run
from tinkersmith.service.connection import ServerGone
from tinkersmith.settings import Settings, settings_from
from tinkersmith.training.finish import TrainedRun, finish
from tinkersmith.training.length_report import LengthReport
from tinkersmith.training.loop import Loop
from tinkersmith.training.plan import prepare
from tinkersmith.training.transcript import Transcript


def train(
    settings: Settings | None = None, *, resume: str | None = None, **names: Any
) -> TrainedRun:
    """Train a LoRA and return the run with its sampling client.

    Args:
        settings: from `load_settings`; or give settings by name: `train(num_epochs=2)`.
        resume: the name or folder of an interrupted run; its own settings are used.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    if settings is None:
        settings = settings_from({name.upper(): value for name, value in names.items()})
    elif names:
        raise UserError(f"Give settings or names such as {next(iter(names))}, not both.")
    run = open_run(resume, settings.output_dir) if resume is not None else None
    if run is not None:
        settings = _settings_of(run)
    transcript = Transcript()
    with watched(transcript.say) as progress, ExitStack() as guard:
        with _explained(run, settings, progress, under_way=False):
            plan = prepare(settings, run, guard, progress)
        with _explained(plan.run, settings, progress, under_way=True):
            transcript.attach(plan.run.file("train.log"))
            plan.data.start(plan.run, plan.first_step)
            lengths = LengthReport(plan.data, settings.show_length_warnings, progress)
            lengths.print_if_complete()
            curves = Loop(plan, lengths, progress).run()
            trained = finish(plan, curves, lengths, guard, progress)
    atexit.register(trained.close)
    return trained


def _settings_of(run: RunFolder) -> Settings:
    """The settings to continue a run with: its own, wherever its folder is now."""
    settings = run.settings().model_copy(update={"output_dir": str(run.path.parent)})
    if run.facts().get("backend") == "embedded":  # its states are here, whatever is set now
        settings = settings.model_copy(update={"backend": "local"})
    return settings


@contextmanager
def _explained(
    run: RunFolder | None, settings: Settings, progress: Progress, *, under_way: bool
) -> Generator[None, None, None]:
    """Failures within the block say how to continue the run, if there is one to continue."""
    how = f"Continue with: {command_line('train', '--resume', run.path)}" if run else ""
    try:
        yield
    except UserError as error:
        if not (under_way or isinstance(error, ServerGone)):
            raise
        raise UserError(f"{error} {how}".strip()) from None
    except KeyboardInterrupt:
        progress.say(f"\nStopped. {how}".rstrip())
        raise
    except OSError as error:
        where = run.path if run else settings.output_dir
        raise UserError(
            f"{where} cannot be written to: {error.strerror or error}. Free some space or choose "
            f"another OUTPUT_DIR. {how}".strip()
        ) from None
