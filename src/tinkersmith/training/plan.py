"""Settings -> a `Plan`: data, server, tokens and run folder, all sound before the first step."""

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkersmith.command_line import command_line
from tinkersmith.data.large_files import are_streamed
from tinkersmith.data.samples import Sample, find_files
from tinkersmith.errors import UserError
from tinkersmith.models import resolve_base_model
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.service.connection import TRAINING_METADATA, Service, open_service
from tinkersmith.settings import Settings
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import TextTokenizer
from tinkersmith.training.batches import steps_per_epoch
from tinkersmith.training.in_memory import read_into_memory
from tinkersmith.training.source import DataSource, Encoding, TokenizedData
from tinkersmith.training.streamed import open_stream

if TYPE_CHECKING:
    import tinker


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided before the first step."""

    settings: Settings  # BASE_MODEL is the name that the server knows
    service: Service
    client: "tinker.TrainingClient"
    tokenizer: TextTokenizer
    template: PromptTemplate
    max_length: int  # tokens of a sample
    first_sample: Sample  # to train on
    data: TokenizedData
    run: RunFolder
    steps_per_epoch: int
    total_steps: int
    first_step: int  # steps that are done already
    measured: Sequence[dict[str, Any]]  # the metrics of those steps


def prepare(
    settings: Settings, run: RunFolder | None, guard: ExitStack, progress: Progress
) -> Plan:
    """Decide everything. No run folder is made before all else is sound.

    Args:
        run: the interrupted run to continue; None for a new one.
        guard: ends the connection and what runs in the background.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    settings = _show_settings(settings, progress.say)
    progress.say("Data")
    source = read_data(settings, progress)
    with progress.doing("comparing the samples"):
        lines = source.report()
    for line in lines:
        progress.say(f"  {line}")
    service = guard.enter_context(open_service(settings, progress=progress))
    checkpoint = _last_checkpoint(run) if run else None
    client = _training_client(service, settings, checkpoint)
    with progress.doing("loading the tokenizer"):
        tokenizer = service.tokenizer(client)
    template = (
        run.template()
        if run
        else choose_template(settings.prompt_template, tokenizer, service.base_model)
    )
    max_length = _max_length(settings, service, progress.say)
    data = source.tokenized(Encoding(settings, template, tokenizer, max_length), progress)
    guard.callback(data.stop)
    epoch = steps_per_epoch(data.count, settings.batch_size)
    total_steps = epoch * settings.num_epochs
    if run is None:
        run = _new_run(settings, service, template, data, total_steps)
        measured: list[dict[str, Any]] = []
    else:
        measured = _continue(run, checkpoint, data, progress.say)
    return Plan(
        settings=settings,
        service=service,
        client=client,
        tokenizer=tokenizer,
        template=template,
        max_length=max_length,
        first_sample=source.first,
        data=data,
        run=run,
        steps_per_epoch=epoch,
        total_steps=total_steps,
        first_step=checkpoint.step if checkpoint else 0,
        measured=measured,
    )


def read_data(settings: Settings, progress: Progress) -> DataSource:
    """Read and check the data files; large JSON Lines files become a stream.

    Raises:
        UserError: a file is not JSON, or there is nothing to train on.
    """
    if are_streamed(find_files(settings.data_files)[0]):
        return open_stream(settings, progress)
    with progress.doing("reading the data"):
        return read_into_memory(settings)


def _show_settings(settings: Settings, say: Callable[[str], None]) -> Settings:
    """Print the settings, and return them with the base model's real name."""
    base_model, note = resolve_base_model(settings.base_model)
    if note:
        say(note)
    say("Settings")
    for name, value in settings.model_dump().items():
        say(f"  {name.upper():24} {value!r}")
    if base_model == settings.base_model:
        return settings
    return settings.model_copy(update={"base_model": base_model})


def _max_length(settings: Settings, service: Service, say: Callable[[str], None]) -> int:
    wanted, context = settings.max_sequence_length, service.max_context
    if context is None or wanted <= context:
        return wanted
    say(
        f"  MAX_SEQUENCE_LENGTH is {wanted:,}, but {service.base_model} takes at most "
        f"{context:,} tokens: {context:,} is used."
    )
    return context


def _training_client(
    service: Service, settings: Settings, checkpoint: Checkpoint | None
) -> "tinker.TrainingClient":
    if checkpoint is None:
        return service.create_training_client(settings)
    return service.ask(
        lambda: service.client.create_training_client_from_state_with_optimizer(
            checkpoint.state_path, user_metadata=TRAINING_METADATA
        ),
        f"loading {checkpoint.state_path}",
    )


def _new_run(
    settings: Settings,
    service: Service,
    template: PromptTemplate,
    data: TokenizedData,
    total_steps: int,
) -> RunFolder:
    run = RunFolder.create(settings.output_dir, settings.model_name_prefix, dt.datetime.now())
    run.write_facts(
        settings,
        template,
        base_model=service.base_model,
        backend=service.kind,
        data_digest=data.digest(),
        training_samples=data.count,
        total_steps=total_steps,
    )
    return run


# ---- an interrupted run


def _last_checkpoint(run: RunFolder) -> Checkpoint | None:
    """Where the run can be continued; None where it saved nothing yet.

    Raises:
        UserError: the run is finished.
    """
    saved = run.checkpoints()
    complete = run.file("samples.json").is_file()  # the last file that a run writes
    if complete and saved and saved[-1].step >= run.facts()["total_steps"]:
        path, folder = saved[-1].sampler_path, run.path.parent
        evaluate = command_line("evaluate", "--model-path", path, "--set", f"OUTPUT_DIR={folder}")
        raise UserError(
            f"{run.name} is finished; nothing is left to train. Evaluate it with: {evaluate}"
        )
    return saved[-1] if saved else None


def _continue(
    run: RunFolder,
    checkpoint: Checkpoint | None,
    data: TokenizedData,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Drop the metrics after the checkpoint: those steps are done again, to the same losses.

    Returns:
        The metrics up to the checkpoint.
    """
    if run.facts()["data_digest"] != data.digest():
        raise UserError(
            f"The data of {run.name} has changed since it began (other files, other samples, or "
            "another tokenizer), so it cannot be continued. Start a new run."
        )
    done = checkpoint.step if checkpoint else 0
    measured = [line for line in run.lines("metrics.jsonl") if line["step"] <= done]
    run.rewrite("metrics.jsonl", measured)
    where = f"step {done:,}" if checkpoint else "its beginning: nothing was saved yet"
    say(f"  Continuing {run.name} from {where}.")
    return measured
