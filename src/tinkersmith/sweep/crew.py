"""Runs that train at the same time: each in a thread of its own, all on one server.

A run that fails or diverges ends alone. A stop is passed on to all: each saves, and ends.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tinkersmith.errors import UserError
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.service.connection import Server, ServerGone
from tinkersmith.settings.fields import Settings
from tinkersmith.sweep.shared_data import SharedData
from tinkersmith.training.divergence import Diverged
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.loop import TRAINING
from tinkersmith.training.train import Surroundings, train_within
from tinkersmith.training.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Begun:
    """A run has its folder."""

    number: int
    folder: RunFolder


@dataclass(frozen=True, slots=True)
class Ended:
    """A run's thread has ended."""

    number: int
    status: str  # "finished", "paused", "diverged", "failed", "interrupted"
    seconds: float
    reason: str = ""
    server_gone: bool = False
    fault: BaseException | None = None  # of ours, not the user's


@dataclass(frozen=True, slots=True)
class RunTask:
    """What a thread is to train."""

    number: int
    settings: Settings
    run: RunFolder | None  # to continue
    until: int  # steps


@dataclass
class Crew:
    """The threads that train, and what they report."""

    server: Server
    data: SharedData
    again: str  # the command that continues the sweep
    clock: Callable[[], float] = time.monotonic
    events: "queue.SimpleQueue[Begun | Ended]" = field(
        default_factory=queue.SimpleQueue["Begun | Ended"]
    )
    _signals: dict[int, Interruption] = field(default_factory=dict[int, Interruption])
    _progress: dict[int, Progress] = field(default_factory=dict[int, Progress])

    def start(self, job: RunTask) -> None:
        """Train in a thread. It reports `Begun` once, unless it fails before, and then `Ended`."""
        transcript = Transcript(prints=False)
        signals, progress = Interruption(), Progress(transcript.say)
        self._signals[job.number], self._progress[job.number] = signals, progress
        around = Surroundings(
            progress=progress,
            transcript=transcript,
            signals=signals,
            server=self.server,
            read=self.data.read,
            until=job.until,
            again=self.again,
            begun=lambda folder, steps: self.events.put(Begun(job.number, folder)),
        )
        # A daemon: a thread that hangs must not keep the program alive after a second Ctrl-C.
        name = f"run {job.number}"
        threading.Thread(target=self._train, args=(job, around), name=name, daemon=True).start()

    def ended(self, number: int) -> None:
        """Forget a run that has reported its end."""
        self._signals.pop(number, None)
        self._progress.pop(number, None)

    @property
    def at_work(self) -> list[int]:
        """The numbers of the runs that have not reported their end."""
        return sorted(self._signals)

    def shares(self) -> dict[int, float]:
        """How far each run is that trains, as a share of its steps."""
        shares = {number: p.share_of(TRAINING) for number, p in self._progress.items()}
        return {number: share for number, share in shares.items() if share is not None}

    def stop(self) -> None:
        """Ask every run to save and end; a second time, to end without saving."""
        for signals in list(self._signals.values()):
            signals.request(signal.SIGINT)

    def _train(self, job: RunTask, around: Surroundings) -> None:
        begun = self.clock()

        def ended(status: str, error: BaseException | None = None, **more: object) -> Ended:
            reason = str(error) if isinstance(error, UserError) else ""
            return Ended(job.number, status, self.clock() - begun, reason, **more)  # type: ignore[arg-type]

        try:
            trained = train_within(around, job.settings, job.run)
            if trained is not None:
                trained.close()
            report = ended("finished" if trained is not None else "paused")
        except Diverged as error:
            report = ended("diverged", error)
        except ServerGone as error:
            report = ended("interrupted", error, server_gone=True)
        except UserError as error:
            report = ended("failed", error)
        except (KeyboardInterrupt, SystemExit):
            report = ended("interrupted")
        except BaseException as error:  # ours: the thread that waits raises it
            report = ended("interrupted", fault=error)
        self.events.put(report)
