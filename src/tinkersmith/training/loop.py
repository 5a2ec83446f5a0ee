"""A `Plan` -> its steps through the SDK, with losses, validation and checkpoints on the way."""

import math
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkersmith.batches.length_report import LengthReport
from tinkersmith.batches.requests import (
    LOSS,
    StepRequest,
    step_request,
    validation_requests,
)
from tinkersmith.batches.streamed import TokenStream
from tinkersmith.command_line import command_line
from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError
from tinkersmith.evaluation.asking import Asking
from tinkersmith.evaluation.questions import Questions
from tinkersmith.metrics.choose import ChosenMetrics
from tinkersmith.paths import seen_from_folder
from tinkersmith.plurals import counted
from tinkersmith.progress import Clock, Progress, Task
from tinkersmith.runs.best import best_so_far, measurement_in, write_best
from tinkersmith.runs.folder import SHOWN_ANSWERS_FILE, Checkpoint
from tinkersmith.runs.measured import SingleValues, add_single_values
from tinkersmith.runs.rehearsals import difference
from tinkersmith.runs.requests import SentRequests
from tinkersmith.service.digests import step_lines
from tinkersmith.service.stored import OldStates, lifetime
from tinkersmith.settings.measures import VALIDATION_LOSS, best_by, shown_score
from tinkersmith.training.divergence import SMOOTHED_STEPS, Diverged, LossWatch, lower_rate
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.plan import Plan
from tinkersmith.training.rehearsal.comparison import NotRehearsed, not_rehearsed
from tinkersmith.training.sample_losses import SampleLosses, losses_of
from tinkersmith.training.scored_questions import score_answers

if TYPE_CHECKING:
    import tinker

TRAINING = "training"  # the task that is as far as the steps are
_PIPELINE = 2  # steps that are submitted ahead, so that the server never waits for us
# Steps of our own engine that take longer are sent one by one. It then waits some ms for each, and
# a signal has one step to wait for, not two: whoever sends SIGTERM kills soon after.
_LONG_STEP = 2.0  # seconds
_LONG_WAIT = 5.0  # seconds that the end of a step may take before the time is said


@dataclass
class Curves:
    """The losses of a run so far, each a mean per completion token."""

    steps: list[float] = field(default_factory=list[float])
    epochs: list[float] = field(default_factory=list[float])
    validation: list[float] = field(default_factory=list[float])
    stopped_early: bool = False  # PATIENCE was spent before the last step
    epoch_sum: float = 0.0  # of the completion tokens' losses in the unfinished epoch
    epoch_tokens: int = 0  # completion tokens in the unfinished epoch

    @classmethod
    def of(cls, metrics: Sequence[dict[str, Any]], epochs_done: int) -> "Curves":
        """The curves that the lines of metrics.jsonl hold."""
        curves = cls()
        for line in metrics:
            if "loss" in line:
                unfinished = line["epoch"] > epochs_done
                curves.add_step(line["loss"], line["completion_tokens"] if unfinished else 0)
            if "epoch_loss" in line:
                curves.epochs.append(line["epoch_loss"])
            if "validation_loss" in line:
                curves.validation.append(line["validation_loss"])
        return curves

    def add_step(self, loss: float, completion_tokens: int) -> None:
        self.steps.append(loss)
        self.epoch_sum += loss * completion_tokens
        self.epoch_tokens += completion_tokens

    def end_epoch(self) -> float:
        """The finished epoch's mean loss per completion token."""
        loss = self.epoch_sum / self.epoch_tokens
        self.epoch_sum, self.epoch_tokens = 0.0, 0
        self.epochs.append(loss)
        return loss


class Loop:
    """The steps that are left of a plan. `run` may be called once.

    Whatever interrupts it, a signal or a reader of its output that has gone, the steps that were
    sent are finished and saved first. A second interruption ends it at once.
    """

    def __init__(
        self,
        plan: Plan,
        lengths: LengthReport,
        progress: Progress,
        interruption: Interruption,
        clock: Clock = time.monotonic,
    ) -> None:
        self._plan, self._lengths, self._progress, self._clock = plan, lengths, progress, clock
        self._interruption = interruption
        self._curves = Curves.of(plan.measured, plan.first_step // plan.steps_per_epoch)
        self._pending: deque[_Step] = deque()
        self._done = plan.first_step  # steps that are recorded
        self._saved = plan.first_step  # steps before the last checkpoint
        self._unsound = False  # a step is sent or recorded by half
        self._saving: _Save | None = None
        self._sample_losses: SampleLosses | None = SampleLosses(plan.run)  # None: not sent
        keep_last = plan.settings.keep_last
        self._sent = SentRequests(plan.run, plan.compared)
        self._other_is_said = False  # a request that was not rehearsed is allowed
        self._old_states = OldStates(plan.service, plan.run, keep_last, progress.say)
        self._watch = _watch_of(plan)
        saved = {point.step for point in plan.run.checkpoints()}
        self._best = best_so_far(plan.measured, best_by(plan.settings), saved)
        self._scores = ""  # of the last answers to EVAL_FILES, for the live line
        self._rise_is_said = False
        self._seconds = 0.0  # that the server took for the last step
        self._recorded_at = 0.0  # of the clock: the last step
        self._begun = self._saved_at = clock()
        self._tokens = 0  # since the beginning
        self._longest = 0  # tokens of a step
        self._saving_seconds = self._measuring_seconds = 0.0  # the longest so far

    def run(self) -> Curves:
        """Train. The next step is submitted before the last one's result is awaited."""
        plan, settings = self._plan, self._plan.settings
        # The folder of what a rehearsal trains is deleted: only that of the rehearsal has a name.
        what = plan.run.name if plan.seconds is None else "the stand-in"
        self._progress.say("")
        self._progress.say(
            f"Training {what}: {counted(plan.data.count, 'sample')}, "
            f"{counted(settings.num_epochs, 'epoch')}, {counted(plan.total_steps, 'step')}"
        )
        self._begun = self._saved_at = self._clock()
        with self._progress.doing(TRAINING) as task, self._interruption.held_back():
            try:
                self._settle(plan.first_step, task)
                for number in range(plan.first_step, plan.until):
                    if self._best.is_spent(settings.patience):
                        self._stop_early(number)
                        break
                    if (limit := self._limit_reached(number)) is not None:
                        self._stop_at_limit(limit, task)
                        break
                    if plan.seconds is not None and self._elapsed() > plan.seconds:
                        self._finish_sent(task)
                        break
                    self._step(number, task)
            except (KeyboardInterrupt, SystemExit, BrokenPipeError):
                self._interruption.seen()
                self._save_before_the_end(task)
                raise
        return self._curves

    def _finish_sent(self, task: Task) -> None:
        """Finish and save the steps that a rehearsal has sent when its time is over."""
        while self._pending:
            self._record(task)
        if self._saved != self._done:
            self._save(self._done)

    def _step(self, number: int, task: Task) -> None:
        plan, settings = self._plan, self._plan.settings
        self._interruption.check()
        self._submit(number, task)
        done = number + 1
        epoch_ends = done % plan.steps_per_epoch == 0
        pauses = done == plan.until
        measures = epoch_ends or pauses or _is_due(done, settings.eval_every)
        saves = epoch_ends or pauses or self._is_time_to_save(done)
        # What is measured or saved must not run ahead of what is recorded.
        while len(self._pending) > (0 if measures or saves else self._ahead()):
            self._record(task)
        if self._watch.diverged:  # before anything else is saved
            self._say_or_stop(task)
        if measures or saves:
            self._done = done  # the last batches may have been empty
        if epoch_ends:
            with self._interruption.at_once():
                self._lengths.summary()
            self._end_epoch(done)
        else:
            self._lengths.print_if_complete()
        if saves:  # before what is measured, which may take long
            self._save(done)
        if measures:
            self._measure(done, task=task)

    def _ahead(self) -> int:
        """How many steps may wait for their results while the next batch is prepared."""
        alone = self._plan.service.kind == "embedded" and self._seconds > _LONG_STEP
        return 0 if alone else _PIPELINE - 1

    def _is_time_to_save(self, done: int) -> bool:
        settings = self._plan.settings
        minutes = settings.save_every_minutes
        is_late = minutes > 0 and self._clock() - self._saved_at >= 60 * minutes
        return is_late or _is_due(done, settings.save_every)

    def _settle(self, done: int, task: Task) -> None:
        """Measure the checkpoint that a run continues from, if it was stopped before that."""
        plan = self._plan
        is_end = done % plan.steps_per_epoch == 0 or done == plan.until
        if done and (is_end or _is_due(done, plan.settings.eval_every)):
            lines = [line for line in plan.measured if line["step"] == done]
            self._measure(done, {name for line in lines for name in line}, task=task)

    def _measure(self, done: int, known: Collection[str] = (), *, task: Task) -> None:
        """Measure the validation loss and the answers, and keep the best checkpoint.

        Args:
            known: names that metrics.jsonl has of this step already.
        """
        plan, lines, begun = self._plan, list[dict[str, Any]](), self._clock()
        if plan.data.validation and VALIDATION_LOSS not in known:
            sources = [sample.source for sample in plan.data.validation]
            batches = validation_requests(plan.data)
            self._note([plan.planned.forward_line(done, batches)], sources, task)
            lines.append(self._validate(done, batches))
        if plan.eval_questions and plan.eval_metrics and "eval/n" not in known:
            self._note([plan.planned.sample_line(done)], [], task)
            lines.append(self._ask(done, plan.eval_questions, plan.eval_metrics))
        is_best = [self._best.add(line) for line in lines]
        if any(is_best):
            if self._saved != done:
                self._save(done)
            write_best(plan.run, self._best.best)
        self._measuring_seconds = max(self._measuring_seconds, self._clock() - begun)

    def _note(self, lines: Sequence[dict[str, Any]], sources: Sequence[Source], task: Task) -> None:
        """Compare and write down what a measurement sends, before its results are written."""
        self._compare(lines, sources, task)
        self._sent.note(lines)
        self._sent.write()

    def _stop_early(self, done: int) -> None:
        """Say that PATIENCE is spent, and save the last step, so that the run can go on."""
        plan, best = self._plan, self._best.best
        if self._saved != done:
            self._save(done)
        self._curves.stopped_early = True
        count = counted(self._best.since, "measurement")
        which = f" than that of step {best.step:,}: {best}" if best else ""
        again = command_line("train", "--resume", plan.run.path, "--set", "PATIENCE=0")
        self._progress.say(
            f"  Stopped early at step {done:,} of {plan.total_steps:,} (PATIENCE): {count} in a "
            f"row without a better {(self._best.by or '').replace('_', ' ')}{which}. To train to "
            f"the end: {again}"
        )

    def _limit_reached(self, number: int) -> str | None:
        """The budget that another step would pass, with what ends the run; None if it fits."""
        budget, work = self._plan.budget, self._plan.work
        if budget is None or work is None:
            return None
        steps = len(self._pending) + 1
        ending = self._seconds * steps + self._saving_seconds + self._measuring_seconds
        if (limit := budget.spent_by(self._elapsed() + ending)) is not None:
            return limit
        if budget.usd is None:
            return None
        # A step that a stream has not read yet is taken to be as long as the longest so far.
        pending = sum(step.request.tokens for step in self._pending)
        following = self._longest
        if work.step_tokens is not None:
            following = work.step_tokens[number]
        measured = work.measurements(number + 1) - work.measurements(self._plan.first_step)
        return budget.paid_by(
            self._tokens + pending + following,
            measured * (work.validation_tokens + work.prompt_tokens),
            measured * work.answer_tokens + work.final_answer_tokens,
        )

    def _stop_at_limit(self, limit: str, task: Task) -> None:
        """Finish the steps that were sent and save, because a budget is spent.

        Raises:
            UserError: there is nothing to save.
        """
        plan = self._plan
        while self._pending:
            self._record(task)
        value = getattr(plan.settings, limit.lower())
        if not self._done:
            raise UserError(
                f"{limit} is {value:g}, and is spent before the first step. Raise it, or set a "
                "smaller BATCH_SIZE."
            )
        if self._saved != self._done:
            self._save(self._done)
        self._curves.stopped_early = True
        again = command_line("train", "--resume", plan.run.path, "--set", f"{limit}=0")
        self._progress.say(
            f"  Stopped at step {self._done:,} of {plan.total_steps:,}, saved: another step would "
            f"pass {limit} = {value:g}. To train to the end: {again}"
        )

    def _save_before_the_end(self, task: Task) -> None:
        """Finish the steps that were sent and save, after an interruption."""
        plan = self._plan
        if plan.seconds is not None:
            return  # nothing stays of what a rehearsal trains
        if self._unsound or (not self._pending and self._done == self._saved):
            return
        last = self._pending[-1].request.number + 1 if self._pending else self._done
        seconds = self._seconds * len(self._pending)
        time_needed = f", in about {seconds:.0f} s" if seconds > _LONG_WAIT else ""
        before = f"step-{self._saved:06}" if self._saved else "its beginning"
        self._progress.say(
            f"\nStopping: step {last:,} is finished and saved first{time_needed}. A second signal "
            f"stops at once. If this process is killed before that, the run continues from "
            f"{before}. Continue with: {command_line('train', '--resume', plan.run.path)}"
        )
        while self._pending:
            self._record(task)
        epochs, ended = divmod(self._done, plan.steps_per_epoch)
        if not ended and len(self._curves.epochs) < epochs:
            self._end_epoch(self._done)
        if self._done > self._saved:
            self._save(self._done)
        self._progress.say(f"  Step {self._done:,} is saved.")

    def _submit(self, number: int, task: Task) -> None:
        """Send a step to the server, unless every sample of its batch is too long."""
        plan = self._plan
        with (
            self._progress.doing(f"preparing the batch of step {number + 1:,}"),
            self._interruption.at_once(),
        ):
            request = step_request(plan.data, plan.settings, plan.total_steps, number)
        if request is None:
            return
        lines = step_lines(number + 1, request.datums, LOSS, request.params)
        self._compare(lines, [sample.source for sample in request.batch], task)
        self._unsound = True
        self._pending.append(
            _Step(
                request=request,
                forward_backward=plan.client.forward_backward(request.datums, LOSS),
                optim_step=plan.client.optim_step(request.params),
                begun=self._clock(),
            )
        )
        self._sent.note(lines)
        self._unsound = False

    def _compare(
        self, lines: Sequence[dict[str, Any]], sources: Sequence[Source], task: Task
    ) -> None:
        """Stop before something is sent that was not rehearsed, with all before that saved.

        Raises:
            NotRehearsed: a line is not as it was rehearsed, and that is not allowed.
        """
        plan, compared = self._plan, self._plan.compared
        if compared is None or self._other_is_said:
            return
        if (other := self._sent.first_other(lines)) is None:
            return
        what = difference(compared.rehearsal, other, sources)
        if compared.allow_changes:
            self._other_is_said = True
            self._progress.say(f"  Warning: {not_rehearsed(compared.rehearsal, what)}")
            return
        while self._pending:
            self._record(task)
        if self._saved != self._done:
            self._save(self._done)
        again = command_line("train", "--resume", plan.run.path, "--allow-changes")
        before = counted(self._done, "step is", "steps are")
        raise NotRehearsed(
            f"{not_rehearsed(compared.rehearsal, what)}. This was not sent; {before} trained and "
            f"saved. If the change is wanted, go on with: {again}"
        )

    def _record(self, task: Task) -> None:
        """Wait for the oldest step that was sent, and write down what it measured."""
        plan, step = self._plan, self._pending[0]
        number = step.request.number + 1
        doing = f"training step {number:,} of {plan.total_steps:,}"
        output = plan.service.wait(step.forward_backward, doing)
        update = plan.service.wait(step.optim_step, doing)
        loss = float(output.metrics["loss:sum"])
        if not math.isfinite(loss):
            raise self._stopped(number, f"The loss of step {number:,} is {loss}")
        now = self._clock()
        self._seconds = now - max(step.begun, self._recorded_at)
        rate = (self._tokens + step.request.tokens) / self._elapsed()
        line: dict[str, Any] = {
            "step": number,
            "epoch": step.request.number // plan.steps_per_epoch + 1,
            "loss": loss,
            "learning_rate": step.request.learning_rate,
            "samples": len({sequence.source for sequence in step.request.batch}),
            "tokens": step.request.tokens,
            "completion_tokens": step.request.completion_tokens,
            "tokens_per_second": round(rate, 1),
            "seconds": round(now - step.begun, 4),
        }
        if update.metrics and "grad_norm" in update.metrics:
            line["grad_norm"] = update.metrics["grad_norm"]
        self._unsound = True
        plan.run.append("metrics.jsonl", [line])
        self._curves.add_step(loss, step.request.completion_tokens)
        self._add_sample_losses(step, getattr(output, "loss_fn_outputs", None) or [])
        self._watch.add(number, loss)
        self._tokens += step.request.tokens
        self._longest = max(self._longest, step.request.tokens)
        self._done, self._recorded_at = number, now
        self._pending.popleft()
        self._unsound = False
        self._show(number, loss, rate, task)

    def _say_or_stop(self, task: Task) -> None:
        """The loss has risen for long: end the run, or say it once where the user wants to go on.

        Raises:
            Diverged: STOP_ON_DIVERGENCE is on. Nothing is saved.
        """
        if self._rise_is_said:
            return
        losses, rate = self._curves.steps, lower_rate(self._plan.settings)
        last = sum(losses[-SMOOTHED_STEPS:]) / len(losses[-SMOOTHED_STEPS:])
        rise = f"The loss has risen to {last:.4g}; it began with {losses[0]:.4g}"
        if last < losses[0]:  # it has lost half of what it had gained
            rise += f" and had fallen to {min(losses):.4g}"
        if self._plan.settings.stop_on_divergence:
            while self._pending:  # the server works on them already
                self._record(task)
            raise self._stopped(self._done, rise)
        self._rise_is_said = True
        self._progress.say(
            f"  Warning: {rise}: training has diverged. It goes on, as STOP_ON_DIVERGENCE is "
            f"False. LEARNING_RATE = {rate} may help."
        )

    def _stopped(self, number: int, reason: str) -> Diverged:
        """Note in metrics.jsonl that the run has diverged, and say how to go on."""
        plan, run, sound = self._plan, self._plan.run, self._watch.last_sound_step()
        rate = lower_rate(plan.settings)
        clip = " and GRAD_CLIP_NORM = 1.0" if not plan.settings.grad_clip_norm else ""
        line = {"step": max(number, self._done), "diverged": True, "last_sound_step": sound}
        run.append("metrics.jsonl", [line])
        before = f"{reason}: training has diverged at step {number:,} and was stopped."
        if (best := self._best.best) is not None:
            before += f" Evaluate and export take step {best.step:,}, the best by {best}"
            # A measurement can be better while the training loss rises already.
            before += "." if best.step <= sound else f", though the loss rose after step {sound:,}."
        saved = [point for point in run.checkpoints() if point.step <= sound]
        if not saved:
            return Diverged(
                f"{before} No checkpoint was saved before the loss rose. Start a new run with "
                f"LEARNING_RATE = {rate} or lower{clip}."
            )
        if saved[-1].state_deleted:
            return Diverged(
                f"{before} The last good checkpoint is {saved[-1].name}, {saved[-1].sampler_path}. "
                "Its state was deleted to save space (KEEP_LAST): it can be evaluated and "
                f"exported, not trained on. Start a new run with LEARNING_RATE = {rate} or "
                f"lower{clip}."
            )
        options = ["--set", f"LEARNING_RATE={rate}"]
        if clip:
            options += ["--set", "GRAD_CLIP_NORM=1.0"]
        again = command_line("train", "--resume", run.path, "--from", saved[-1].name, *options)
        return Diverged(
            f"{before} The last good checkpoint is {saved[-1].name}. Go on from it with a lower "
            f"LEARNING_RATE: {again}"
        )

    def _add_sample_losses(self, step: "_Step", outputs: Sequence[Mapping[str, Any]]) -> None:
        if self._sample_losses is None:
            return
        number, batch = step.request.number, step.request.batch
        epoch = number // self._plan.steps_per_epoch + 1
        if not self._sample_losses.add(number + 1, epoch, batch, outputs):
            self._sample_losses = None
            self._progress.say(
                "  The server does not send the losses of single tokens: hard_samples.jsonl, which "
                "lists the samples that surprised the model most, is not written."
            )

    def _elapsed(self) -> float:
        return max(self._clock() - self._begun, 1e-6)

    def _show(self, done: int, loss: float, rate: float, task: Task) -> None:
        """Show how far the run is, with its tokens per second so far."""
        plan = self._plan
        left = self._elapsed() / max(done - plan.first_step, 1) * (plan.total_steps - done)
        state = (
            f"step {done:,}/{plan.total_steps:,}  loss {loss:.4f}  {self._scores}"
            f"{rate:,.0f} tokens/s  {_minutes(left)} left"
        )
        if done == plan.total_steps:
            self._progress.say(f"  {state}")
        else:
            self._progress.reached(task, state, done / plan.total_steps)

    def _end_epoch(self, done: int) -> None:
        plan, epoch = self._plan, done // self._plan.steps_per_epoch
        if isinstance(plan.data, TokenStream) and not self._curves.epoch_tokens:
            raise plan.data.none_fits()
        loss = self._curves.end_epoch()
        plan.run.append("metrics.jsonl", [{"step": done, "epoch_loss": loss}])
        self._progress.say(f"  Epoch {epoch}/{plan.settings.num_epochs}: mean loss {loss:.4f}")

    def _ask(self, done: int, questions: Questions, metrics: ChosenMetrics) -> dict[str, Any]:
        """Score the answers of the weights as they are now to EVAL_FILES."""
        plan = self._plan
        asking = Asking(plan.service, plan.template, plan.tokenizer, plan.settings)
        scores = score_answers(asking, plan.client, questions, metrics)
        line = {"step": done, **scores.to_json()}
        for name, single in scores.single.items():
            values = {source: (score, 1.0) for source, score in single.items()}
            self._add_single_values(done, name, values, scores.draws)
        plan.run.append("metrics.jsonl", [line])
        epoch = (done - 1) // plan.steps_per_epoch + 1
        plan.run.append(SHOWN_ANSWERS_FILE, scores.shown_lines(done, epoch))
        by = self._best.by
        shown = shown_score(plan.settings) if by == VALIDATION_LOSS else by
        measured = measurement_in(line, shown)
        self._scores = f"{measured}  " if measured else ""  # that of BEST_BY, or the main one
        self._progress.say(f"  Step {done:,}: {scores}")
        return line

    def _validate(self, done: int, batches: "list[list[tinker.Datum]]") -> dict[str, Any]:
        plan, samples = self._plan, self._plan.data.validation
        doing = "measuring the validation loss"
        with self._progress.doing(doing):
            futures = [plan.client.forward(batch, LOSS) for batch in batches]
            outputs = [plan.service.wait(future, doing) for future in futures]
        total = sum(float(output.metrics["loss:sum"]) for output in outputs)
        loss = total / sum(sample.completion_length for sample in samples)
        self._curves.validation.append(loss)
        line: dict[str, Any] = {"step": done, VALIDATION_LOSS: loss}
        answers: list[Mapping[str, Any]] = []
        for output in outputs:
            answers += getattr(output, "loss_fn_outputs", None) or []
        if single := losses_of(samples, answers):
            values = {source: (mean, tokens) for source, (tokens, mean) in single.items()}
            self._add_single_values(done, VALIDATION_LOSS, values)
        plan.run.append("metrics.jsonl", [line])
        self._progress.say(f"  Step {done:,}: validation loss {loss:.4f}")
        return line

    def _add_single_values(
        self,
        done: int,
        by: str,
        values: Mapping[Source, tuple[float, float]],
        answers: int = 1,
    ) -> None:
        """Note what a measurement says of each sample, before its line of metrics.jsonl."""
        run = self._plan.run
        files = dict.fromkeys(source.file for source in values)
        names = {file: seen_from_folder(run.path, file) for file in files}
        seen = {(names[source.file], source.record): value for source, value in values.items()}
        add_single_values(run, SingleValues(done, by, seen, answers))

    def _save(self, done: int) -> None:
        """Save the state to continue from and the weights to sample from, under one name."""
        plan, name, begun = self._plan, f"step-{done:06}", self._clock()
        doing = f"saving the checkpoint of step {done:,}"
        with self._progress.doing(doing):
            if self._saving is None or self._saving.name != name:  # else interrupted while waiting
                seconds = lifetime(plan.settings)
                labels = dict(plan.labels)
                state = plan.client.save_state(name, ttl_seconds=seconds, user_metadata=labels)
                sampler = plan.client.save_weights_for_sampler(
                    name, ttl_seconds=seconds, user_metadata=labels
                )
                self._saving = _Save(name, state, sampler)
            checkpoint = Checkpoint(
                name=name,
                step=done,
                epoch=done // plan.steps_per_epoch,
                state_path=plan.service.wait(self._saving.state, doing).path,
                sampler_path=plan.service.wait(self._saving.sampler, doing).path,
            )
        self._sent.write()  # a resumed run goes on behind the checkpoint
        if self._sample_losses is not None:
            self._sample_losses.write()
        plan.run.add_checkpoint(checkpoint)
        self._saved, self._saved_at = done, self._clock()
        self._saving_seconds = max(self._saving_seconds, self._saved_at - begun)
        self._old_states.delete(self._watch.protected_step)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that the server works on."""

    request: StepRequest
    forward_backward: "tinker.APIFuture[tinker.ForwardBackwardOutput]"
    optim_step: "tinker.APIFuture[tinker.OptimStepResponse]"
    begun: float  # of the loop's clock


@dataclass(frozen=True, slots=True)
class _Save:
    """A checkpoint that the server writes."""

    name: str
    state: Any  # the SDK's future of a path, as the sampler's
    sampler: Any


def _watch_of(plan: Plan) -> LossWatch:
    """The watch that has seen the losses before the plan's first step."""

    def new() -> LossWatch:
        return LossWatch(
            vocabulary=plan.tokenizer.vocab_size,
            warmup_steps=int(plan.total_steps * plan.settings.warmup_ratio),
            shuffled=not isinstance(plan.data, TokenStream),
        )

    measured = [(line["step"], line["loss"]) for line in plan.measured if "loss" in line]
    watch = new()
    for step, loss in measured:
        watch.add(step, loss)
    if watch.is_raised:  # it was resumed from here on purpose: only what is new is judged
        sound, watch = watch.last_sound_step(), new()
        for step, loss in measured:
            if step <= sound:
                watch.add(step, loss)
    return watch


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _minutes(seconds: float) -> str:
    """A duration as 1:23 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
