"""The training run: data -> steps through the SDK -> checkpoints, an answer, and advice."""

import atexit
import datetime as dt
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkersmith.command_line import command_line
from tinkersmith.data.large_files import LargeFiles, are_streamed, scan
from tinkersmith.data.lengths import format_length_statistics
from tinkersmith.data.samples import Sample, find_files
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.models import resolve_base_model
from tinkersmith.runs.folder import Checkpoint, RunFolder, open_run
from tinkersmith.service.answers import request_answers, to_datum
from tinkersmith.service.connection import TRAINING_METADATA, ServerGone, Service, open_service
from tinkersmith.settings import Settings, settings_from
from tinkersmith.text.guards import unguarded
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import TextTokenizer
from tinkersmith.training.advice import advice
from tinkersmith.training.batches import learning_rate_at, steps_per_epoch
from tinkersmith.training.in_memory import RawData, TrainingData, read_data, tokenize_data
from tinkersmith.training.streamed import StreamedData
from tinkersmith.training.summary import DataSummary, none_fits
from tinkersmith.training.transcript import Transcript

if TYPE_CHECKING:
    import tinker

_PIPELINE = 2  # steps on the wire: the server never waits for us
_VALIDATION_BATCH = 64  # samples per forward request


@dataclass
class TrainedRun:
    """A finished run. Its sampling client works until `close`, or the program's end."""

    run: RunFolder
    sampling_client: "tinker.SamplingClient"
    sampler_path: str
    state_path: str
    epoch_losses: list[float]  # mean loss per completion token
    validation_losses: list[float]
    answers: list[str]  # to the first training sample
    _open: ExitStack = field(repr=False)

    def close(self) -> None:
        """End the session, and the embedded engine if there is one."""
        self._open.close()

    def __enter__(self) -> "TrainedRun":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def train(
    settings: Settings | None = None, *, resume: str | None = None, **names: Any
) -> TrainedRun:
    """Train a LoRA and return the run with its sampling client.

    Args:
        settings: from `load_settings`; or give settings by name: `train(num_epochs=2)`.
        resume: the name or folder of an interrupted run; its own settings are used.

    Raises:
        UserError: something the user can mend, in one sentence.
    """
    if settings is None:
        settings = settings_from({name.upper(): value for name, value in names.items()})
    elif names:
        raise UserError(f"Give settings or names such as {next(iter(names))}, not both.")
    transcript = Transcript()
    run: RunFolder | None = None
    if resume is not None:
        run = open_run(resume, settings.output_dir)
        settings = run.settings().model_copy(update={"output_dir": str(run.path.parent)})
        if run.facts().get("backend") == "embedded":  # its states are here, whatever is set now
            settings = settings.model_copy(update={"backend": "local"})
    with ExitStack() as guard:
        loop = _Run(settings, transcript, run)
        try:
            loop.prepare(guard)
            loop.steps()
            trained = loop.finish(guard)
        except UserError as error:
            if not (loop.under_way or isinstance(error, ServerGone)):
                raise
            raise UserError(f"{error} {loop.how_to_resume()}".strip()) from None
        except KeyboardInterrupt:
            transcript.say(f"\nStopped. {loop.how_to_resume()}")
            raise
        except OSError as error:
            where = loop.run.path if loop.run else settings.output_dir
            raise UserError(
                f"{where} cannot be written to: {error.strerror or error}. Make room or choose "
                f"another OUTPUT_DIR. {loop.how_to_resume()}".strip()
            ) from None
    atexit.register(trained.close)
    return trained


class _Run:
    """What one call of `train` holds while it works."""

    def __init__(self, settings: Settings, transcript: Transcript, run: RunFolder | None) -> None:
        self.settings = settings
        self.transcript = transcript
        self.say: Callable[[str], None] = transcript.say
        self.run = run
        self.under_way = False
        self.done = 0  # steps
        self.summary: DataSummary | None = None
        self.step_losses: list[float] = []
        self.epoch_sum, self.epoch_tokens = 0.0, 0  # of completion tokens' losses; their number
        self.epoch_losses: list[float] = []
        self.validation_losses: list[float] = []

    # ---- before the first step

    def prepare(self, guard: ExitStack) -> None:
        """Data, server, tokens, run folder; nothing is written before all of them are sound."""
        settings = self.settings
        base_model, note = resolve_base_model(settings.base_model)
        self._show_settings(base_model, note)
        self.say("Data")
        large = are_streamed(find_files(settings.data_files)[0])
        self.raw: RawData | LargeFiles = scan(settings, self.say) if large else read_data(settings)
        for line in self.raw.report():
            self.say(line)
        self.service: Service = guard.enter_context(open_service(settings))
        checkpoint = self._checkpoint_to_resume()
        self.client = self._training_client(checkpoint)
        self.tokenizer: TextTokenizer = self.service.tokenizer(self.client)
        self.template: PromptTemplate = (
            self.run.template()
            if self.run
            else choose_template(settings.prompt_template, self.tokenizer, self.service.base_model)
        )
        self.max_length = self._max_length()
        made_with = (settings, self.template, self.tokenizer, self.max_length)
        self.data: TrainingData | StreamedData = (
            StreamedData(self.raw, *made_with)
            if isinstance(self.raw, LargeFiles)
            else tokenize_data(self.raw, *made_with)
        )
        self.steps_an_epoch = steps_per_epoch(self.data.count, settings.batch_size)
        self.total_steps = self.steps_an_epoch * settings.num_epochs
        if self.run is None:
            self.run = self._new_run()
        else:
            self._continue_run(checkpoint)
        self.transcript.attach(self.run.file("train.log"))
        guard.callback(self.data.stop)
        self.data.start(self.run, self.done)
        self._show_lengths(wait=False)

    def how_to_resume(self) -> str:
        if self.run is None:
            return ""
        return f"Go on with: {command_line('train', '--resume', self.run.path)}"

    def _show_settings(self, base_model: str, note: str | None) -> None:
        if note:
            self.say(note)
        self.say("Settings")
        for name, value in self.settings.model_dump().items():
            self.say(f"  {name.upper():24} {value!r}")
        if base_model != self.settings.base_model:
            self.settings = self.settings.model_copy(update={"base_model": base_model})

    def _max_length(self) -> int:
        wanted, context = self.settings.max_sequence_length, self.service.max_context
        if context is None or wanted <= context:
            return wanted
        self.say(
            f"  MAX_SEQUENCE_LENGTH is {wanted:,}, but {self.service.base_model} takes at most "
            f"{context:,} tokens: {context:,} is used."
        )
        return context

    def _show_lengths(self, wait: bool) -> None:
        """Once, when everything is tokenised; streamed data may not be yet, unless we `wait`."""
        if self.summary is not None:
            return
        self.summary = summary = self.data.summary(wait)
        if summary is None:
            return
        self.say("")
        self.say(format_length_statistics(summary.lengths, "Lengths"))
        if self.settings.show_length_warnings:
            for event in summary.first_events:
                self.say(f"  {event}")
            more = summary.too_long + summary.truncated - len(summary.first_events)
            if more:
                self.say(f"  ... and {more:,} more; all of them are in skipped.jsonl.")
        validation = len(self.data.validation)
        read = summary.training + validation + summary.too_long + summary.unusable
        kept = f", {validation:,} for validation" if validation else ""
        self.say(
            f"  {read:,} records = {summary.training:,} to train on{kept}, "
            f"{summary.too_long:,} too long, {summary.unusable:,} unusable; "
            f"{summary.truncated:,} of them are cut."
        )

    def _new_run(self) -> RunFolder:
        run = RunFolder.create(
            self.settings.output_dir, self.settings.model_name_prefix, dt.datetime.now()
        )
        run.write_facts(
            self.settings,
            self.template,
            base_model=self.service.base_model,
            backend=self.service.kind,
            data_digest=self.data.digest(),
            training_samples=self.data.count,
            total_steps=self.total_steps,
        )
        return run

    # ---- resume

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        if self.run is None:
            return None
        saved = self.run.checkpoints()
        complete = self.run.file("samples.json").is_file()  # the last thing that a run writes
        if complete and saved and saved[-1].step >= self.run.facts()["total_steps"]:
            evaluate = command_line(
                *("evaluate", "--model-path", saved[-1].sampler_path),
                *("--set", f"OUTPUT_DIR={self.run.path.parent}"),
            )
            raise UserError(
                f"{self.run.name} is finished; nothing is left to train. Evaluate it with: "
                f"{evaluate}"
            )
        return saved[-1] if saved else None

    def _training_client(self, checkpoint: Checkpoint | None) -> "tinker.TrainingClient":
        if checkpoint is None:
            return self.service.create_training_client(self.settings)
        return self.service.ask(
            lambda: self.service.client.create_training_client_from_state_with_optimizer(
                checkpoint.state_path, user_metadata=TRAINING_METADATA
            ),
            f"loading {checkpoint.state_path}",
        )

    def _continue_run(self, checkpoint: Checkpoint | None) -> None:
        """Forget what came after the checkpoint: those steps are done again, to the same losses."""
        assert self.run is not None
        if self.run.facts()["data_digest"] != self.data.digest():
            raise UserError(
                f"The data of {self.run.name} has changed since it was begun (other files, other "
                "samples, or another tokenizer), so it cannot be continued. Start a new run."
            )
        self.done = checkpoint.step if checkpoint else 0
        kept = [line for line in self.run.lines("metrics.jsonl") if line["step"] <= self.done]
        self.run.rewrite("metrics.jsonl", kept)
        epoch_done = self.done // self.steps_an_epoch
        for line in kept:
            if "loss" in line:
                self.step_losses.append(line["loss"])
            if "loss" in line and line["epoch"] > epoch_done:
                self.epoch_sum += line["loss"] * line["completion_tokens"]
                self.epoch_tokens += line["completion_tokens"]
        self.epoch_losses = [line["epoch_loss"] for line in kept if "epoch_loss" in line]
        self.validation_losses = [
            line["validation_loss"] for line in kept if "validation_loss" in line
        ]
        where = f"step {self.done:,}" if checkpoint else "its beginning: nothing was saved yet"
        self.say(f"  Continuing {self.run.name} from {where}.")

    # ---- the steps

    def steps(self) -> None:
        """All steps that are left. The next one is on the wire before the last one's result."""
        assert self.run is not None
        settings = self.settings
        self.under_way = True
        self.say("")
        self.say(
            f"Training {self.run.name}: {self.data.count:,} samples, "
            f"{settings.num_epochs} epoch{'s'[: settings.num_epochs > 1]}, "
            f"{self.total_steps:,} steps"
        )
        with self.transcript.progress(self.done, self.total_steps) as progress:
            self.say = progress.say
            pending: deque[_Step] = deque()
            for number in range(self.done, self.total_steps):
                step = self._submit(number)
                if step is not None:
                    pending.append(step)
                done = number + 1
                epoch_ends = done % self.steps_an_epoch == 0
                validates = epoch_ends or _is_due(done, settings.eval_every)
                saves = epoch_ends or _is_due(done, settings.save_every)
                # What is measured or saved must not run ahead of what is recorded.
                while len(pending) > (0 if validates or saves else _PIPELINE - 1):
                    self._record(pending.popleft(), progress)
                self._show_lengths(wait=epoch_ends)
                if epoch_ends:
                    self._end_epoch(done)
                if validates and self.data.validation:
                    self._validate(done)
                if saves:
                    self._save(done)
        self.say = self.transcript.say

    def _submit(self, number: int) -> "_Step | None":
        """Put a step on the wire; None: every sample of its batch is too long."""
        import tinker

        settings = self.settings
        batch = self.data.batch(number)
        if not batch:
            return None
        completion_tokens = sum(sample.completion_length for sample in batch)
        # The server sums over tokens. Weights that add up to 1 make that the mean, so that the
        # loss and GRAD_CLIP_NORM mean the same for short and long batches.
        datums = [to_datum(sample, 1 / completion_tokens) for sample in batch]
        rate = learning_rate_at(
            number,
            self.total_steps,
            settings.learning_rate,
            settings.lr_schedule,
            settings.warmup_ratio,
        )
        params = tinker.AdamParams(learning_rate=rate, grad_clip_norm=settings.grad_clip_norm)
        return _Step(
            number=number,
            learning_rate=rate,
            samples=len(batch),
            tokens=sum(len(sample.tokens) for sample in batch),
            completion_tokens=completion_tokens,
            forward_backward=self.client.forward_backward(datums, "cross_entropy"),
            optim_step=self.client.optim_step(params),
            begun=time.monotonic(),
        )

    def _record(self, step: "_Step", progress: Any) -> None:
        assert self.run is not None
        doing = f"training step {step.number + 1:,}"
        output = self.service.wait(step.forward_backward, doing)
        update = self.service.wait(step.optim_step, doing)
        loss = float(output.metrics["loss:sum"])
        if not math.isfinite(loss):
            raise UserError(
                f"The loss of step {step.number + 1:,} is {loss}: training has diverged. Start a "
                "new run with a lower LEARNING_RATE."
            )
        rate = progress.step(step.number + 1, loss, step.tokens)
        self.step_losses.append(loss)
        self.epoch_sum += loss * step.completion_tokens
        self.epoch_tokens += step.completion_tokens
        self.run.append(
            "metrics.jsonl",
            [
                {
                    "step": step.number + 1,
                    "epoch": step.number // self.steps_an_epoch + 1,
                    "loss": loss,
                    "learning_rate": step.learning_rate,
                    "samples": step.samples,
                    "tokens": step.tokens,
                    "completion_tokens": step.completion_tokens,
                    "tokens_per_second": round(rate, 1),
                    "seconds": round(time.monotonic() - step.begun, 4),
                    **{
                        name: value
                        for name, value in (update.metrics or {}).items()
                        if name == "grad_norm"
                    },
                }
            ],
        )

    def _end_epoch(self, done: int) -> None:
        """The epoch's mean loss per completion token."""
        assert self.run is not None
        epoch = done // self.steps_an_epoch
        if not self.epoch_tokens:
            raise none_fits(self.data.count, self.max_length)
        loss = self.epoch_sum / self.epoch_tokens
        self.epoch_sum, self.epoch_tokens = 0.0, 0
        self.epoch_losses.append(loss)
        self.run.append("metrics.jsonl", [{"step": done, "epoch_loss": loss}])
        self.say(f"  Epoch {epoch}/{self.settings.num_epochs}: mean loss {loss:.4f}")

    def _validate(self, done: int) -> None:
        assert self.run is not None
        samples = self.data.validation
        pending = [
            self.client.forward(
                [to_datum(sample) for sample in samples[start : start + _VALIDATION_BATCH]],
                "cross_entropy",
            )
            for start in range(0, len(samples), _VALIDATION_BATCH)
        ]
        outputs = [self.service.wait(one, "measuring the validation loss") for one in pending]
        total = sum(float(output.metrics["loss:sum"]) for output in outputs)
        loss = total / sum(sample.completion_length for sample in samples)
        self.validation_losses.append(loss)
        self.run.append("metrics.jsonl", [{"step": done, "validation_loss": loss}])
        self.say(f"  Step {done:,}: validation loss {loss:.4f}")

    def _save(self, done: int) -> None:
        """The state to go on from and the weights to sample from, under one name."""
        assert self.run is not None
        name = f"step-{done:06}"
        doing = f"saving the checkpoint of step {done:,}"
        state = self.client.save_state(name)
        sampler = self.client.save_weights_for_sampler(name)
        checkpoint = Checkpoint(
            name=name,
            step=done,
            epoch=done // self.steps_an_epoch,
            state_path=self.service.wait(state, doing).path,
            sampler_path=self.service.wait(sampler, doing).path,
        )
        self.run.add_checkpoint(checkpoint)

    # ---- after the last step

    def finish(self, guard: ExitStack) -> TrainedRun:
        assert self.run is not None
        last = self.run.checkpoints()[-1]
        sampler = self.service.create_sampling_client(last.sampler_path)
        answers = self._answers(sampler, self.raw.first)
        self._show_lengths(wait=True)
        assert self.summary is not None
        lines = advice(
            self.epoch_losses,
            self.validation_losses,
            self.step_losses,
            self.summary.truncated / self.summary.training,
        )
        self.say("")
        self.say(f"Model    {self.run.name}")
        self.say(f"Path     {last.sampler_path}")
        self.say(f"State    {last.state_path}")
        self.say(f"Folder   {self.run.path}")
        for line in lines:
            self.say(f"Advice   {line}")
        return TrainedRun(
            run=self.run,
            sampling_client=sampler,
            sampler_path=last.sampler_path,
            state_path=last.state_path,
            epoch_losses=self.epoch_losses,
            validation_losses=self.validation_losses,
            answers=answers,
            _open=guard.pop_all(),
        )

    def _answers(self, sampler: "tinker.SamplingClient", sample: Sample) -> list[str]:
        """The tuned model's answers to a sample, shown beside the expected one and kept."""
        assert self.run is not None
        prompt = self.template.render_prompt(sample)
        tokens = self.tokenizer.encode(prompt)
        context = self.service.max_context
        if context is not None and len(tokens) >= context:
            self.say("  The first training sample's prompt fills the context; no answer is drawn.")
            return []
        pending = request_answers(
            sampler,
            tokens,
            self.settings,
            self.template,
            self.tokenizer,
            context,
            self.settings.sampling_num_samples,
        )
        response = self.service.wait(pending, "sampling the tuned model")
        answers = [
            self.template.answer(self.tokenizer.decode(sequence.tokens))
            for sequence in response.sequences
        ]
        shown = unguarded(prompt)
        self.say("")
        self.say(f"The first training sample ({sample.source})")
        self.say(_indented(shown))
        self.say("  expected:")
        self.say(_indented(sample.output))
        for answer in answers:
            self.say("  the tuned model:")
            self.say(_indented(answer))
        write_json(
            self.run.file("samples.json"),
            [
                {
                    "source": str(sample.source),
                    "prompt": shown,
                    "expected": sample.output,
                    "answers": answers,
                }
            ],
        )
        return answers


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    learning_rate: float
    samples: int
    tokens: int
    completion_tokens: int
    forward_backward: Any
    optim_step: Any
    begun: float


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").split("\n"))
