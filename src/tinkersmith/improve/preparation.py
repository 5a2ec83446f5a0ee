"""A run, or a stopped improvement -> an `Improvement`: all is sound before a round begins."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.command_line import command_line
from tinkersmith.data.convert import faithful_record
from tinkersmith.data.load import LoadedSamples, load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, overlap
from tinkersmith.errors import UserError
from tinkersmith.evaluation.asking import Asking
from tinkersmith.evaluation.leaks import leak_lines, leaks_from
from tinkersmith.evaluation.question_set import QuestionSet, limited, questions_in
from tinkersmith.evaluation.questions import Questions
from tinkersmith.files import open_regular, write_atomically
from tinkersmith.grading.compare import answer_kind
from tinkersmith.grading.grade import expected_answers
from tinkersmith.grading.scoring import METRICS as GRADED
from tinkersmith.improve.options import ImproveOptions, fact_of_improvement
from tinkersmith.metrics.choose import ChosenMetrics
from tinkersmith.metrics.names import LOWER_IS_BETTER
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.best import choose_checkpoint
from tinkersmith.runs.folder import IMPROVEMENT_FACT, TRAINED_QUESTIONS_FILE, RunFolder
from tinkersmith.runs.provenance import (
    Standing,
    digest_of,
    labels_of,
    session,
    template_digest,
)
from tinkersmith.runs.trained_questions import QuestionCollector, remember
from tinkersmith.service.connection import Service, open_service
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.measures import VALIDATION_LOSS, best_by
from tinkersmith.settings.reading import settings_for_file
from tinkersmith.text.templates import PromptTemplate
from tinkersmith.text.thoughts import answer_alone
from tinkersmith.training.scored_questions import (
    digest_of_questions,
    eval_lines,
    metric_lines,
    metrics_of,
    read_eval_files,
)
from tinkersmith.version import __version__

if TYPE_CHECKING:
    import tinker

ORIGINALS_FILE = "originals.jsonl"  # the samples of the run that is improved, for mixing
_SHORT_TEXT = 60  # characters of an expected text without a marker that can still be compared


@dataclass(frozen=True, slots=True)
class Improvement:
    """All that is decided before the first round."""

    options: ImproveOptions
    settings: Settings
    service: Service
    tokenizer: TextTokenizer
    template: PromptTemplate
    run: RunFolder
    first: "tinker.TrainingClient"  # on the weights of the run that is improved
    training: Questions  # what answers are sampled to
    held_out: Questions
    metrics: ChosenMetrics
    score: str  # what decides whether an answer is right, and whether a round is better

    def round_folder(self, number: int) -> Path:
        return self.run.path / f"round-{number}"

    def asking(self, settings: Settings) -> Asking:
        return Asking(self.service, self.template, self.tokenizer, settings)


@dataclass(frozen=True, slots=True)
class Parent:
    """The run that is improved, and the checkpoint to begin with."""

    run: RunFolder
    checkpoint: str
    state_path: str


def parent_checkpoint(run: RunFolder, which: str, say: Callable[[str], None]) -> Parent:
    """The checkpoint of a run that an improvement begins with.

    Raises:
        UserError: there is no such checkpoint, or its state was deleted.
    """
    if not run.checkpoints():
        raise UserError(f"{run.name} has no checkpoint yet. Train it to its end first.")
    saved, why = choose_checkpoint(run, which)
    say(f"Improving {why}.")
    if saved.state_deleted:
        states = [point.name for point in run.checkpoints() if not point.state_deleted]
        raise UserError(
            f"The state of {saved.name} was deleted (KEEP_LAST): it cannot be trained "
            f"on. States that are left: {', '.join(states[-10:]) or 'none'}. Name one "
            "with --checkpoint."
        )
    return Parent(run, saved.name, saved.state_path)


def prepare_improvement(
    settings: Settings,
    options: ImproveOptions,
    parent: Parent | None,
    resumed: RunFolder | None,
    guard: ExitStack,
    progress: Progress,
    check: Callable[[], None],
) -> Improvement:
    """Read the questions, connect, and make the improvement's folder, unless it is there already.

    Args:
        parent: the run to improve; None where `resumed` is an improvement that was stopped.
        guard: ends the connection.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    progress.say("Data")
    held_out_set = read_eval_files(settings, progress)
    assert held_out_set is not None  # settings_of_improvement saw to it
    score = best_by(settings)
    if score is None or score == VALIDATION_LOSS or score in LOWER_IS_BETTER:
        raise UserError(
            f'BEST_BY is "{settings.best_by}", which does not say whether an answer is right. Set '
            'it to a score that is 1 for a right answer, such as "final_answer".'
        )
    with progress.doing("reading the training questions"):
        loaded = load_samples(settings.training_files, settings.columns, settings.encoding)
    for line in _data_lines(loaded, held_out_set, settings.seed):
        progress.say(f"  {line}")
    _refuse_overlap(loaded.samples, held_out_set)
    training_set = _training_set(loaded, settings, options, score, progress.say)
    check()
    begun = dt.datetime.now()
    name = (
        resumed.name
        if resumed is not None
        else RunFolder.next_name(settings.output_dir, _prefix(settings), begun)
    )
    service = guard.enter_context(
        open_service(settings, progress=progress, labels=labels_of(name, settings))
    )
    service.check = check
    if parent is not None:
        state_path = parent.state_path
    else:
        assert resumed is not None
        facts = resumed.facts()[IMPROVEMENT_FACT]
        state_path = fact_of_improvement(resumed, facts, "state_path")
    saved = resumed.checkpoints() if resumed else []
    # The state of round 0 is that of the run, which may be deleted by now.
    begin = saved[0].state_path if saved else state_path
    first = service.create_training_client(settings, initial_state=begin)
    with progress.doing("loading the tokenizer"):
        tokenizer = service.tokenizer(first)
    template = (parent.run if parent else cast("RunFolder", resumed)).template()

    def questions(chosen: QuestionSet) -> Questions:
        with progress.doing(f"tokenising {counted(len(chosen.samples), 'question')}"):
            return questions_in(
                chosen,
                template,
                tokenizer,
                settings,
                service.max_context,
                lambda line: progress.say(f"  {line}"),
            )[0]

    training, held_out = questions(training_set), questions(held_out_set)
    metrics = metrics_of(settings, held_out)
    for line in metric_lines(settings, metrics):
        progress.say(f"  {line}")
    standing = _standing(parent, resumed, service, tokenizer, template, training, held_out)
    if resumed is None:
        assert parent is not None
        run = _new_improvement(
            settings, options, parent, begun, service, template, standing, training, loaded.samples
        )
        with progress.doing("comparing the held-out questions with the training data"):
            leaks = leaks_from(run, held_out_set.samples)
        for line in leak_lines(leaks, len(held_out_set.samples)):
            progress.say(f"  {line}")
    else:
        run = resumed
        _refuse_other_data(run, standing)
    return Improvement(
        options=options,
        settings=settings,
        service=service,
        tokenizer=tokenizer,
        template=template,
        run=run,
        first=first,
        training=training,
        held_out=held_out,
        metrics=metrics,
        score=score,
    )


def is_checkable(sample: Sample) -> bool:
    """Whether an answer to the sample can be right in other words than the sample's own.

    That is so where a final answer is announced or named in the field `answer`, or the whole
    expected text is short, or a number, a choice, a date and the like.
    """
    answers = expected_answers(answer_alone(sample.turns[-1]), sample.extra.get("answer"))
    return any(
        found.rule != "whole text"
        or answer_kind(found.text) != "text"
        or (len(found.text) <= _SHORT_TEXT and "\n" not in found.text.strip())
        for found in answers
    )


def _data_lines(loaded: LoadedSamples, held_out: QuestionSet, seed: int) -> list[str]:
    lines = read_lines(loaded.counts, loaded.missing_files, loaded.shapes)
    lines += [*loaded.said, *note_lines(loaded.notes)]
    lines += skipped_lines(loaded.skipped, len(loaded.skipped))
    others = [
        line.replace("during training", "after each round") for line in eval_lines(held_out, seed)
    ]
    return [*lines, *others]


def _refuse_overlap(samples: Sequence[Sample], held_out: QuestionSet) -> None:
    """Raise UserError if a training question is also a held-out one."""
    shared = overlap(samples, held_out.samples)
    if shared:
        training, tested = shared[0]
        who = counted(len(shared), "held-out question is", "held-out questions are")
        raise UserError(
            f"{who} also a training question, so that the score would say nothing (the first: "
            f"{tested} is {training}). Take them out of one of the two, as check --test FILE "
            "--write FILE --drop leakage does."
        )


def _training_set(
    loaded: LoadedSamples,
    settings: Settings,
    options: ImproveOptions,
    score: str,
    say: Callable[[str], None],
) -> QuestionSet:
    """The samples whose questions are asked.

    Raises:
        UserError: not one answer can be checked.
    """
    asking = [sample for sample in loaded.samples if sample.turns[-1].role == "assistant"]
    if plain := len(loaded.samples) - len(asking):
        say(f"  {counted(plain, 'sample is', 'samples are')} plain text, which asks nothing.")
    checkable = [sample for sample in asking if score not in GRADED or is_checkable(sample)]
    if not checkable:
        first = f" (the first: {asking[0].source})" if asking else ""
        raise UserError(
            f"DATA_FILES = {settings.training_files} has no question whose answer can be checked"
            f'{first}: an expected output must announce a final answer, such as "Answer: 42", or '
            'stand beside it in a field "answer". For other data, name a function of your own in '
            "METRICS and its score in BEST_BY."
        )
    if other := len(asking) - len(checkable):
        who = counted(other, "sample has", "samples have")
        say(f"  {who} no answer that can be checked, and their questions are not asked.")
    whole = QuestionSet("DATA_FILES", loaded, checkable, None, [])
    chosen = limited(whole, options.limit or None, settings.seed)
    say(f"  Answers are sampled to {counted(len(chosen.samples), 'training question')}.")
    return chosen


def _standing(
    parent: Parent | None,
    resumed: RunFolder | None,
    service: Service,
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    training: Questions,
    held_out: Questions,
) -> Standing:
    run = parent.run if parent else resumed
    assert run is not None
    return Standing(
        base_fingerprint=run.facts().get("base_fingerprint"),
        tokenizer_digest=digest_of(tokenizer.serialised()),
        template_digest=template_digest(template.to_json()),
        data_digest=digest_of_questions(training),
        server={},
        questions_digest=digest_of_questions(held_out),
    )


def _refuse_other_data(run: RunFolder, standing: Standing) -> None:
    """Raise UserError if the questions or the tokenizer are not those that the run began with."""
    facts = run.facts()
    for name, about in (
        ("tokenizer_digest", "the tokenizer"),
        ("data_digest", "the training questions"),
        ("questions_digest", "the held-out questions"),
    ):
        if facts.get(name) != getattr(standing, name):
            raise UserError(
                f"{run.name} cannot be continued as it was: {about} changed. Undo that, or start "
                "a new improvement."
            )


def _new_improvement(
    settings: Settings,
    options: ImproveOptions,
    parent: Parent,
    begun: dt.datetime,
    service: Service,
    template: PromptTemplate,
    standing: Standing,
    training: Questions,
    samples: Sequence[Sample],
) -> RunFolder:
    originals = _originals(parent.run) if "mix" in options.to_json() and options.mix else None
    asked = [sample for question in training.asked for _, sample in question.samples]
    collector = QuestionCollector(settings.train_on)
    for sample in asked:
        collector.add(sample)

    def write(folder: RunFolder) -> None:
        folder.write_facts(
            settings,
            template,
            base_model=service.base_model,
            backend=service.kind,
            **standing.facts(),
            training_samples=len(asked),
            total_steps=0,
            sessions=[session(standing, settings_for_file(settings, folder.path), 0)],
            **{
                IMPROVEMENT_FACT: {
                    "of": parent.run.name,
                    "checkpoint": parent.checkpoint,
                    "state_path": parent.state_path,
                    **options.to_json(),
                }
            },
        )
        # What the parent was trained on counts, too. Its files are named from a folder beside.
        remembered = parent.run.file(TRAINED_QUESTIONS_FILE)
        if remembered.is_file():
            with open_regular(remembered) as file:
                write_atomically(folder.file(TRAINED_QUESTIONS_FILE), file.read())
        remember(folder, collector, standing.data_digest, standing.data_digest)
        if originals:
            folder.rewrite(ORIGINALS_FILE, originals)

    return RunFolder.create(settings.output_dir, _prefix(settings), begun, write)


def _prefix(settings: Settings) -> str:
    return f"{settings.model_name_prefix[:55]}-improved"


def _originals(parent: RunFolder) -> list[dict[str, Any]]:
    """The samples that the parent was trained on, as records; those of the first run in a chain.

    Raises:
        UserError: they are not there any more.
    """
    if IMPROVEMENT_FACT in parent.facts():
        return parent.lines(ORIGINALS_FILE)
    own = parent.settings()
    try:
        loaded = load_samples(own.training_files, own.columns, own.encoding)
    except UserError as error:
        raise UserError(
            f"The samples that {parent.name} was trained on cannot be mixed in: {error} Put them "
            "back, or add --alone."
        ) from None
    return [faithful_record(sample)[0] for sample in loaded.samples]


def resume_line(run: RunFolder) -> str:
    """The command that continues an improvement."""
    return command_line("improve", "--resume", run.path)


def program_versions() -> Mapping[str, str]:
    """The versions that a file of answers names."""
    return {"tinkersmith": __version__, "tinker": version("tinker")}
