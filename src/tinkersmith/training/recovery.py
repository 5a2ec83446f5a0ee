"""A run whose server was away or restarted -> the same run, continued from its last checkpoint."""

from contextlib import ExitStack
from dataclasses import replace

from tinkersmith.batches.length_report import LengthReport
from tinkersmith.progress import Progress
from tinkersmith.runs.resume import Resume, set_aside
from tinkersmith.service.connection import ServerGone
from tinkersmith.service.reconnection import Reconnection
from tinkersmith.training.finish import TrainedRun, finish
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.loop import Loop
from tinkersmith.training.plan import Plan, open_training_client


def train_to_the_end(
    plan: Plan,
    lengths: LengthReport,
    guard: ExitStack,
    progress: Progress,
    signals: Interruption,
) -> TrainedRun | None:
    """Train and finish. A server that lost our session is connected to again, and the run goes on.

    The batches and the server's state decide the losses, so they are those of an unbroken run.

    Returns:
        None where the run pauses before its end.

    Raises:
        ServerGone: the server is our own engine, or SERVER_PATIENCE passed without a step.
        UserError: something else is wrong.
    """
    reconnection, reached = Reconnection(plan.service), plan.first_step
    failure: ServerGone | None = None
    while True:
        try:
            if failure is not None:
                reconnection.after(failure, "connecting again")
                plan = _continued(plan, failure, progress)
            curves = Loop(plan, lengths, progress, signals).run()
            if plan.until < plan.total_steps and not curves.stopped_early:
                progress.say(f"  Paused after step {plan.until:,} of {plan.total_steps:,}.")
                return None
            return finish(plan, curves, lengths, guard, progress)
        except ServerGone as error:
            if error is failure:
                raise
            failure, done = error, _steps_done(plan)
            if done > reached:
                reached = done
                reconnection.progressed()


def _continued(plan: Plan, failure: ServerGone, progress: Progress) -> Plan:
    """The plan from its last checkpoint on, with a new training client."""
    run = plan.run
    saved = run.checkpoints()
    checkpoint = saved[-1] if saved else None
    done = checkpoint.step if checkpoint else 0
    where = f"step {done:,}" if checkpoint else "the beginning, as nothing was saved yet"
    progress.say(f"  {failure} Going on from {where}.")
    client = open_training_client(
        plan.service, plan.settings, Resume(run), checkpoint, plan.weights, plan.initial_state
    )
    for line in set_aside(run, done):
        progress.say(line)
    return replace(plan, client=client, first_step=done, measured=run.metrics())


def _steps_done(plan: Plan) -> int:
    return max((line["step"] for line in plan.run.metrics()), default=0)
