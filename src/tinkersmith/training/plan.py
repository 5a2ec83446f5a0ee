"""Settings -> a `Plan`: data, server, tokens and run folder, all sound before the first step."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.read import read_data
from tinkersmith.batches.source import DataSource, Encoding, TokenizedData
from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.evaluation.leaks import leaks_from
from tinkersmith.evaluation.question_set import QuestionSet, questions_in
from tinkersmith.evaluation.questions import Questions
from tinkersmith.fingerprint import base_fingerprint
from tinkersmith.forecast.budget import (
    Budget,
    checked_rates,
    cut_to_budget,
    most_to_measure,
    spent_before,
)
from tinkersmith.forecast.costs import MILLION, Rates
from tinkersmith.forecast.duration import measured_pace
from tinkersmith.forecast.lines import Forecast, forecast_lines
from tinkersmith.forecast.memory import memory_lines, memory_need
from tinkersmith.forecast.workload import Workload, workload_of
from tinkersmith.metrics.choose import ChosenMetrics
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.plurals import counted
from tinkersmith.preview.opening import opening_lines
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import REQUESTS_FILE, Checkpoint, RunFolder, lost_lines
from tinkersmith.runs.provenance import (
    Differences,
    Standing,
    add_session,
    differences,
    digest_of,
    labels_of,
    session,
    template_digest,
)
from tinkersmith.runs.requests import Compared
from tinkersmith.runs.resume import (
    Resume,
    checkpoint_refused,
    diverged_after,
    last_sound,
    note_divergence,
    round_facts,
    set_aside,
    starting_checkpoint,
)
from tinkersmith.runs.trained_questions import QuestionCollector, remember
from tinkersmith.service.connection import (
    Server,
    ServerGone,
    Service,
    name_on_server,
    open_service,
    server_of,
)
from tinkersmith.service.facts import engine_facts
from tinkersmith.service.initial import (
    InitialWeights,
    creation_of,
    initial_weights,
    template_line,
    trains_output_layer,
)
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.measures import VALIDATION_LOSS, best_by
from tinkersmith.settings.reading import settings_for_file
from tinkersmith.text.choose import Decision, decide, template_lines
from tinkersmith.text.templates import PromptTemplate, choose_template
from tinkersmith.text.tokenizer import given_tokenizer
from tinkersmith.training.divergence import lower_rate
from tinkersmith.training.rehearsal.comparison import check_creation, check_plan, compared_with
from tinkersmith.training.rehearsal.planned import Planned
from tinkersmith.training.scored_questions import (
    digest_of_questions,
    eval_lines,
    metric_lines,
    metrics_of,
    read_eval_files,
    trained_on_lines,
)

if TYPE_CHECKING:
    import tinker


@dataclass(frozen=True, slots=True)
class Stage:
    """A training within another job, which has a run of its own: one of its rounds."""

    service: Service  # of the job, which stays open
    template: PromptTemplate
    state_path: str  # the weights to start from; the optimizer's state is not used
    folder: Path  # where the round's run folder goes, instead of OUTPUT_DIR
    job: RunFolder


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided before the first step."""

    settings: Settings  # BASE_MODEL is the name that the server knows
    service: Service
    client: "tinker.TrainingClient"
    tokenizer: TextTokenizer
    template: PromptTemplate
    max_length: int  # tokens of a sample
    source: DataSource  # the samples behind `data`
    data: TokenizedData
    eval_questions: Questions | None  # of EVAL_FILES, which are asked during training
    eval_metrics: ChosenMetrics | None  # what is computed of their answers
    run: RunFolder
    steps_per_epoch: int
    total_steps: int
    first_step: int  # steps that are done already
    until: int  # steps after which the run pauses, saved and measured; `total_steps` for no pause
    measured: Sequence[dict[str, Any]]  # the metrics of those steps
    planned: Planned  # what it will send
    compared: Compared | None  # the rehearsal that it is compared with
    weights: InitialWeights | None = None  # those that INITIAL_CHECKPOINT names
    initial_state: str = ""  # the state whose weights a round starts from; "": no round
    labels: Mapping[str, str] = field(default_factory=dict[str, str])  # of checkpoints
    budget: Budget | None = None  # None: nothing limits the run
    work: Workload | None = None  # None within another job, which has its own limits
    rates: Rates | None = None  # what tokens cost; None where nobody says
    seconds: float | None = None  # for how long a rehearsal trains; None: this is a run


def prepare(
    settings: Settings,
    resume: Resume | None,
    guard: ExitStack,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
    *,
    server: Server | None = None,
    read: Callable[[Settings, Progress], DataSource] = read_data,
    until: int | None = None,
    stage: Stage | None = None,
    rehearsing: Path | None = None,
    rehearsal: str = "",
    allow_changes: bool = False,
) -> Plan:
    """Decide everything. No run folder is made before all else is sound.

    Args:
        resume: the interrupted run to continue; None for a new one.
        guard: ends the connection and what runs in the background.
        check: called now and then, and while the server is waited for; raises to end the work.
        server: the server to connect to; by default the one that BACKEND means.
        read: reads the data; several runs of one process may share what is read.
        until: pause after so many steps.
        stage: the job that this training is a round of.
        rehearsing: where a rehearsal writes the files of its run, instead of OUTPUT_DIR.
        rehearsal: the name or folder of the rehearsal that a new run is compared with; by default
            the newest one of its settings.
        allow_changes: let a new run send something else than was rehearsed.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    settings = _show_settings(settings, progress.say)
    checkpoint = starting_checkpoint(resume) if resume else None
    fingerprint = _fingerprint(settings, progress)
    _check_base(resume, fingerprint)
    rates = given = None
    if stage is None:
        given = given_tokenizer(settings.tokenizer, settings.base_model)
        kind = server_of(settings)[0] if server is None else server.kind
        name = name_on_server(settings.base_model)
        rates = checked_rates(settings, name, is_cloud=kind != "embedded")
    # A run that goes on from its own checkpoint does not need the weights that it began with.
    begins = stage is None and checkpoint is None
    weights = initial_weights(settings) if begins else None
    if weights is not None and weights.run is not None:  # its best checkpoint may change later
        settings = settings.model_copy(update={"initial_checkpoint": weights.path})
    compared = None
    # A run that pauses measures where it does, as no rehearsal has.
    if stage is None and rehearsing is None and until is None:
        compared = compared_with(settings, resume, rehearsal, allow_changes, progress.say)
    begun = dt.datetime.now()
    place = rehearsing or (settings.output_dir if stage is None else stage.folder)
    prefix = settings.model_name_prefix if rehearsing is None else "rehearsal"
    run_name = resume.run.name if resume else RunFolder.next_name(place, prefix, begun)
    progress.say("Data")
    chosen = read_eval_files(settings, progress)
    source = read(settings, progress)
    check()
    with progress.doing("comparing the samples"):
        lines = source.report(listed=rehearsing is None)
        lines += [] if chosen is None else eval_lines(chosen, settings.seed)
    for line in lines:
        progress.say(f"  {line}")
    check()
    if stage is not None:
        service = stage.service
    else:
        for line in _memory_warning(settings):
            progress.say(f"  {line}")
        service = guard.enter_context(
            open_service(
                settings,
                progress=progress,
                allow_changed_base=resume is not None and resume.allow_changes,
                weights=weights,
                server=server,
                labels=labels_of(run_name, settings),
            )
        )
    service.check = check
    service.use_tokenizer(given)
    initial_state = stage.state_path if stage else ""
    creation = creation_of(settings, service.base_model, weights, initial_state)
    if resume is None and compared is not None:
        check_creation(creation, compared, progress.say)
    client = open_training_client(service, settings, resume, checkpoint, weights, initial_state)
    if weights is not None:
        progress.say(f"  Starting from {weights.about}.")
    elif begins:
        _, line = trains_output_layer(settings, service.base_model)
        if line:
            progress.say(f"  {line}")
    with progress.doing("loading the tokenizer"):
        tokenizer = service.tokenizer(client)
    encoding = encoding_for(settings, resume, service, tokenizer, source, progress.say, stage)
    template, max_length = encoding.template, encoding.max_length
    if resume is None and (line := template_line(weights, template)):
        progress.say(f"  {line}")
    data = source.tokenized(encoding, progress)
    guard.callback(data.stop)
    with progress.doing("looking at the tokens"):
        lines = opening_lines(source, data, encoding)
    for line in lines:
        progress.say(f"  {line}".rstrip())
    eval_questions, eval_metrics = measurements_of(data, encoding, chosen, progress)
    for line in metric_lines(settings, eval_metrics) if eval_metrics else []:
        progress.say(f"  {line}")
    epoch = steps_per_epoch(data.count, settings.batch_size)
    total_steps = epoch * settings.num_epochs
    budget = work = None
    if stage is None:
        first = checkpoint.step if checkpoint else 0
        work = workload_of(data, settings, eval_questions)
        total_steps, budget = within_budget(
            settings, resume, service, data, work, rates, total_steps, first, progress
        )
    standing = Standing(
        base_fingerprint=fingerprint,
        tokenizer_digest=digest_of(tokenizer.serialised()),
        template_digest=template_digest(template.to_json()),
        data_digest=data.digest(),
        server=engine_facts(service, client),
        questions_digest=digest_of_questions(eval_questions) if eval_questions else None,
    )
    planned = Planned(creation, encoding, data, eval_questions, epoch, total_steps)
    if compared is not None and resume is None:
        with progress.doing("comparing with the rehearsal"):
            check_plan(planned, standing.facts(), compared, progress.say)
    check()
    counts: dict[str, Any] = {"training_samples": data.count, "total_steps": total_steps}
    if total_steps < epoch * settings.num_epochs:
        counts["cut_to_budget"] = True
    if budget is not None and budget.measured:
        counts["measured_tokens"] = budget.measured
    with progress.doing("noting the questions"):
        questions = source.questions()
    if resume is None:
        run = _new_run(
            settings,
            stage,
            partial(RunFolder.create, place, prefix, begun),
            service,
            template,
            standing,
            counts,
            questions,
            planned.creation_line(),
            compared,
        )
    else:
        run = resume.run
        _continue(resume, checkpoint, standing, counts, questions, progress.say)
    if chosen is not None:
        with progress.doing("comparing EVAL_FILES with the training data"):
            leaks = leaks_from(run, chosen.samples)
        for line in trained_on_lines(leaks, len(chosen.samples)):
            progress.say(f"  {line}")
    return Plan(
        settings=settings,
        service=service,
        client=client,
        tokenizer=tokenizer,
        template=template,
        max_length=max_length,
        source=source,
        data=data,
        eval_questions=eval_questions,
        eval_metrics=eval_metrics,
        run=run,
        steps_per_epoch=epoch,
        total_steps=total_steps,
        first_step=checkpoint.step if checkpoint else 0,
        until=total_steps if until is None else min(until, total_steps),
        measured=run.metrics(),
        planned=planned,
        compared=compared,
        weights=weights,
        initial_state=initial_state,
        labels=labels_of(run.name, settings, standing.data_digest),
        budget=budget,
        work=work,
        rates=rates,
    )


def _memory_warning(settings: Settings) -> list[str]:
    """What is said, before an engine loads it, of a model that may not fit this machine."""
    folder = local_model_folder(settings.base_model)
    if folder is None or server_of(settings)[0] != "embedded":
        return []
    need = memory_need(folder, settings, 0)
    return memory_lines(need) if need and need.free and need.together > need.free else []


def within_budget(
    settings: Settings,
    resume: Resume | None,
    service: Service,
    data: TokenizedData,
    work: Workload,
    rates: Rates | None,
    steps: int,
    first: int,
    progress: Progress,
) -> tuple[int, Budget | None]:
    """How many steps the budgets allow, with the forecast said; and what limits the run.

    Args:
        first: steps of a resumed run that are done.

    Raises:
        UserError: not one step fits.
    """
    changed = set(resume.changes) if resume else set[str]()
    again = resume is not None and not {"BUDGET_USD", "BUDGET_MINUTES"} & changed
    lines: list[str] = []
    pace, spent = None, 0.0
    if resume is not None and again and resume.run.facts().get("cut_to_budget"):
        steps = min(steps, resume.run.fact("total_steps"))  # as it was planned, with its schedule
    if resume is not None:
        trained = sum(line.get("tokens", 0) for line in resume.run.metrics())
        trained += resume.run.facts().get("measured_tokens", 0)
        spent = spent_before(work, rates, trained, first)
    measured = 0
    if settings.budget_minutes:
        billed = rates if service.kind != "embedded" else None
        most = None
        if billed is not None and settings.budget_usd:
            most = most_to_measure(work, billed, max(settings.budget_usd - spent, 0.0), first)
        pace = measured_pace(service, settings, data, steps, most=most)
        if billed is not None:
            measured = pace.trained
            spent += measured * billed.train / MILLION
    if not again and (settings.budget_usd or settings.budget_minutes):
        steps, lines = cut_to_budget(settings, work, rates, pace, steps, first, spent)
    forecast = Forecast(settings, service.base_model, service.kind, work, steps, first, rates, pace)
    if service.kind != "embedded" or pace is not None:
        for line in forecast_lines(forecast):
            progress.say(f"  {line}")
    for line in lines:
        progress.say(f"  {line}")
    if not settings.budget_usd and not settings.budget_minutes:
        return steps, None
    usd = max(settings.budget_usd - spent, 0.0) if settings.budget_usd else None
    seconds = 60 * settings.budget_minutes if settings.budget_minutes else None
    return steps, Budget(usd, seconds, rates, measured)


def encoding_for(
    settings: Settings,
    resume: Resume | None,
    service: Service,
    tokenizer: TextTokenizer,
    source: DataSource,
    say: Callable[[str], None],
    stage: Stage | None = None,
) -> Encoding:
    """How a run's samples become tokens, with what is said of it."""
    template = _template(settings, resume, stage, service, tokenizer, source, say)
    max_length = _max_length(settings, service, say)
    return Encoding(settings, template, tokenizer, max_length, service.max_context)


def measurements_of(
    data: TokenizedData, encoding: Encoding, chosen: QuestionSet | None, progress: Progress
) -> tuple[Questions | None, ChosenMetrics | None]:
    """What is asked of the model during training, and what is computed of its answers.

    Raises:
        UserError: something that the settings want measured cannot be.
    """
    settings = encoding.settings
    _refuse_unmeasured_best(settings, data, encoding.max_length)
    questions = _eval_questions(chosen, encoding, progress) if chosen else None
    return questions, metrics_of(settings, questions) if questions else None


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


def _template(
    settings: Settings,
    resume: Resume | None,
    stage: Stage | None,
    service: Service,
    tokenizer: TextTokenizer,
    source: DataSource,
    say: Callable[[str], None],
) -> PromptTemplate:
    """The run's prompt template, with what is said of it: why it is used, and its thoughts."""
    if resume is not None:
        template = resume.run.template()
        decision = Decision(template.name, f"as {resume.run.name} began with it")
    elif stage is not None:
        template = stage.template
        decision = Decision(template.name, f"as {stage.job.name} uses it")
    else:
        decision = decide(settings.prompt_template, tokenizer, service.base_model)
        template = choose_template(
            settings.prompt_template,
            tokenizer,
            service.base_model,
            thinking=settings.thinking,
            thoughts=source.thoughts,
        )
    for line in template_lines(template, decision, source.thoughts):
        say(line)
    return template


def _refuse_unmeasured_best(settings: Settings, data: TokenizedData, max_length: int) -> None:
    """Refuse to go on where a setting depends on a validation loss that cannot be measured.

    Raises:
        UserError: not one validation sample fits.
    """
    names = ("BEST_BY", "PATIENCE", "EVAL_FILES")
    set_names = [
        name for name in names if getattr(settings, name.lower()) != FIELDS[name.lower()].default
    ]
    if best_by(settings) == VALIDATION_LOSS and not data.validation and set_names:
        raise UserError(
            f"{set_names[0]} needs a validation loss to find the best checkpoint, and not one "
            f"validation sample fits into {max_length:,} tokens. Use shorter ones, or set BEST_BY "
            "to a score on EVAL_FILES."
        )


def _eval_questions(chosen: QuestionSet, encoding: Encoding, progress: Progress) -> Questions:
    """The prompts of EVAL_FILES, which use the run's own template.

    Raises:
        UserError: not one of them can be asked.
    """
    count = len(chosen.samples)
    with progress.doing(f"tokenising {counted(count, 'question')} of EVAL_FILES"):
        questions, _ = questions_in(
            chosen,
            encoding.template,
            encoding.tokenizer,
            encoding.settings,
            encoding.context,
            lambda line: progress.say(f"  {line}"),
        )
    return questions


def _max_length(settings: Settings, service: Service, say: Callable[[str], None]) -> int:
    wanted, context = settings.max_sequence_length, service.max_context
    if context is None or wanted <= context:
        return wanted
    say(
        f"  MAX_SEQUENCE_LENGTH is {wanted:,}, but {service.base_model} takes at most "
        f"{context:,} tokens: {context:,} is used."
    )
    return context


def _fingerprint(settings: Settings, progress: Progress) -> str | None:
    """The fingerprint of the base model; None where its files are not on this machine."""
    folder = local_model_folder(settings.base_model)
    if folder is None:
        return None
    try:
        with progress.doing(f"reading the base model in {folder}"):
            return base_fingerprint(folder)
    except ValueError as error:
        raise UserError(f"BASE_MODEL: {error}. Copy the model's files again.") from None


def _check_base(resume: Resume | None, fingerprint: str | None) -> None:
    """Compare the base model with the one that the run began with, before an engine is started.

    Raises:
        UserError: it changed, and the user did not allow that.
    """
    recorded = resume.run.facts().get("base_fingerprint") if resume else None
    if resume is not None and recorded and fingerprint and recorded != fingerprint:
        _refuse(resume, ["the weights of the base model changed"])


def open_training_client(
    service: Service,
    settings: Settings,
    resume: Resume | None,
    checkpoint: Checkpoint | None,
    weights: InitialWeights | None = None,
    initial_state: str = "",
) -> "tinker.TrainingClient":
    """A training client on `checkpoint` with its optimizer state.

    Without a checkpoint, it starts from `weights` or `initial_state`, or else from a new LoRA.
    """
    if resume is None or checkpoint is None:
        return service.create_training_client(settings, weights, initial_state)
    try:
        return service.ask(
            lambda: service.client.create_training_client_from_state_with_optimizer(
                checkpoint.state_path, user_metadata=service.training_metadata()
            ),
            f"loading {checkpoint.state_path}",
        )
    except ServerGone:
        raise
    except UserError as error:
        raise checkpoint_refused(resume, checkpoint, str(error)) from None


def _new_run(
    settings: Settings,
    stage: Stage | None,
    create: Callable[[Callable[[RunFolder], None]], RunFolder],
    service: Service,
    template: PromptTemplate,
    standing: Standing,
    counts: dict[str, Any],
    questions: QuestionCollector,
    created: dict[str, Any],
    compared: Compared | None,
) -> RunFolder:
    def write(folder: RunFolder) -> None:
        values = settings_for_file(settings, folder.path)
        folder.write_facts(
            settings,
            template,
            base_model=service.base_model,
            backend=service.kind,
            **standing.facts(),
            **counts,
            **({} if stage is None else round_facts(folder, stage.job, stage.state_path)),
            **({} if compared is None else compared.fact(folder.path)),
            sessions=[session(standing, values, 0)],
        )
        remember(folder, questions, standing.data_digest, standing.data_digest)
        folder.append(REQUESTS_FILE, [created])

    return create(write)


def _continue(
    resume: Resume,
    checkpoint: Checkpoint | None,
    standing: Standing,
    counts: dict[str, Any],
    questions: QuestionCollector,
    say: Callable[[str], None],
) -> None:
    """Compare what the run stands on with what it stood on, and set aside what is done again.

    Raises:
        UserError: a change makes the continued run senseless, and the user did not allow it.
    """
    run, done = resume.run, checkpoint.step if checkpoint else 0
    facts = run.facts()
    values = {**facts["settings"], **resume.changes}
    record = session(standing, values, done)
    changes = differences(facts, standing, record)
    if changes.refused:
        _refuse(resume, changes.refused)
    elif resume.allow_changes:
        say("  Nothing changed that --allow-changes is needed for.")
    _say_changes(changes, tuple(resume.changes), say)
    sound = diverged_after(run)
    rises = note_divergence(run, resume.changes)
    for sentence in lost_lines(run, run.metrics()):
        say(f"  Warning: {sentence} The curves and the best checkpoint are without them.")
    for line in set_aside(run, done):
        say(line)
    remember(run, questions, standing.data_digest, facts.get("data_digest"))
    add_session(run, standing, record, settings=values, **counts)
    missing = "nothing was saved yet" if sound is None else "no good checkpoint can be loaded"
    where = f"step {done:,}" if checkpoint else f"its beginning: {missing}"
    say(f"  Continuing {run.name} from {where}.")
    if sound is not None and done > sound:
        good = last_sound(run.checkpoints(), sound)
        how = command_line("train", "--resume", run.path, "--from", good.name) if good else ""
        say(
            f"  Warning: the run diverged: its loss rose after step {sound:,}, and this state is a "
            + (
                f"later one. To go on from the last good checkpoint: {how}"
                if good
                else "later one."
            )
        )
    elif sound is not None:
        say(f"  The run diverged: its loss rose after step {sound:,}. Later states are not used.")
    if rises:
        say(
            "  The loss rose after that, and will again. To go on with a lower rate, stop this and "
            f"resume with --set LEARNING_RATE={lower_rate(run.settings())}"
        )


def _refuse(resume: Resume, changes: Sequence[str]) -> None:
    if resume.allow_changes:
        return
    insist = command_line("train", "--resume", resume.run.path, "--allow-changes")
    raise UserError(
        f"{resume.run.name} cannot be continued as it was: {'; '.join(changes)}. Undo that, start "
        f"a new run, or insist with: {insist}"
    )


def _say_changes(changes: Differences, wanted: tuple[str, ...], say: Callable[[str], None]) -> None:
    for change in changes.refused:
        say(f"  Changed, and allowed by --allow-changes: {change}.")
    for change in changes.said:
        say(f"  Since this run was last worked on: {change}.")
    if any(not change.startswith(wanted) for change in changes.said):  # else they do, as is wanted
        say("  The losses can differ in their last digits from those of an uninterrupted run.")
