"""A trained model and a test file -> scores with intervals, and the files that hold them.

The prompts use the template of the model's own run, so training and test have the same format.
Answers are on disk as they come: an evaluation that is stopped goes on where it was.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.evaluation.answers_file import (
    AnswersFile,
    Stored,
    changed_facts,
    refuse_answers,
    stored_answers,
    unfinished_file,
)
from tinkersmith.evaluation.asking import Asking, ask_all
from tinkersmith.evaluation.leaks import leak_lines, leaks_from
from tinkersmith.evaluation.measures import measure, opened_measures
from tinkersmith.evaluation.question_set import (
    limited,
    question_set_lines,
    questions_in,
    read_question_set,
)
from tinkersmith.evaluation.questions import Answer, Question, Questions
from tinkersmith.evaluation.report import analyse, report
from tinkersmith.evaluation.result_files import About, check_results_writable, write_results
from tinkersmith.evaluation.summary import EvaluationResult, Scored
from tinkersmith.fingerprint import base_fingerprint
from tinkersmith.models.names import local_model_folder
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.provenance import digest_of, labels_of, template_digest
from tinkersmith.runs.trained_model import ModelReference, find_trained_model
from tinkersmith.service.connection import open_service, server_lines
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.version import __version__

if TYPE_CHECKING:
    from tinkersmith.prompts.text_tokenizer import TextTokenizer
    from tinkersmith.text.templates import PromptTemplate


def evaluate(
    settings: Settings | None = None,
    *,
    model_path: str = "",
    checkpoint: str = "",
    test_file: str = "data/test_set.json",
    base_model: str = "",
    compare_base: bool = False,
    limit: int | None = None,
    output_file: str | Path = "evaluation_results.json",
    resume: bool = False,
    options: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> EvaluationResult:
    """Answer all prompts of a test file with a trained model, and score the answers.

    Args:
        model_path: a tinker:// path; a checkpoint of the newest run if it is empty.
        checkpoint: of the newest run: "best", "last" or a name; see `find_trained_model`.
        base_model: for a path that no run folder knows.
        compare_base: also score the untouched base model.
        limit: use only so many samples, chosen by SEED.
        resume: go on with an evaluation that was stopped, with the same settings.
        options: of the command line, such as --set: for the command that goes on.
        check: called while the server is waited for; raises to end the work.
        say: prints a line.

    Raises:
        UserError: one sentence about what is wrong. No results are written then; answers that
            came already are kept.
    """
    output_file = Path(output_file)
    check_results_writable(output_file)
    which = ["--model-path", model_path] if model_path else []
    which += ["--checkpoint", checkpoint] if checkpoint else []
    again = _command(which, test_file, base_model, compare_base, limit, output_file, options)
    stored = _stored(unfinished_file(output_file), resume, again)
    if stored is not None and not which:  # not a run that was made in the meantime
        model_path = str(stored.facts.get("model_path", ""))
    with watched(say) as progress:
        settings = settings or settings_from({})
        with progress.doing("reading the test set"):
            whole_set = read_question_set(test_file, settings)
        model = find_trained_model(settings, model_path, base_model, checkpoint)
        question_set = limited(whole_set, limit, model.settings.seed)
        choices = _choices(model, limit, compare_base)
        if stored is not None:  # before anything is started
            _refuse_changes(unfinished_file(output_file), stored, choices, partly=True)
        for line in _model_lines(model):
            progress.say(line)
        for line in question_set_lines(question_set, model.settings.seed, str(output_file)):
            progress.say(line)
        with progress.doing("comparing the test set with the training data"):
            leaks = leaks_from(model.run, question_set.samples)
        for line in leak_lines(leaks, len(question_set.samples)):
            progress.say(line)
        with (
            opened_measures(
                settings, question_set.samples, compare_base, progress, output_file, resume
            ) as measures,
            open_service(
                model.settings,
                base_model=model.base_model,
                progress=progress,
                labels=labels_of(model.run.name) if model.run is not None else None,
            ) as service,
        ):
            service.check = check
            for line in server_lines(service, settings, of_run=model.run is not None):
                progress.say(line)
            with progress.doing("loading the tokenizer"):
                tokenizer = service.tokenizer()
            template = model.template(tokenizer)
            with progress.doing(f"tokenising {counted(len(question_set.samples), 'prompt')}"):
                questions, unusable = questions_in(
                    question_set,
                    template,
                    tokenizer,
                    model.settings,
                    service.max_context,
                    progress.say,
                )
            facts = choices | _contents(model, template, tokenizer, questions, progress)
            if stored is not None:
                _refuse_changes(unfinished_file(output_file), stored, facts)
                for line in _going_on_lines(unfinished_file(output_file), stored):
                    progress.say(line)
            asking = Asking(service, template, tokenizer, model.settings)
            with _answers(output_file, stored, facts, again) as file:
                work = _Work(asking, questions, file, stored)
                about = About(
                    model=model,
                    template_name=template.name,
                    question_set=question_set,
                    questions=questions,
                    unusable=unusable,
                    max_context=service.max_context,
                    versions=_versions(),
                )
                with _explained(file.path, work, again, progress.say):
                    paths = {"trained": model.sampler_path} | (
                        {"base": None} if compare_base else {}
                    )
                    answered = {name: work.scored(name, path) for name, path in paths.items()}
                    measured = measure(
                        measures,
                        asking,
                        {name: scored.records for name, scored in answered.items()},
                        lambda name: service.create_sampling_client(paths[name]),
                    )
                    scored = {
                        name: Scored(records, answered[name].seconds)
                        for name, records in measured.records.items()
                    }
                    result = EvaluationResult(
                        model_path=model.sampler_path,
                        base_model=model.base_model,
                        trained=scored["trained"],
                        base=scored.get("base"),
                        too_long=questions.too_long,
                        leaks=leaks,
                        output_file=output_file,
                        measures={"metrics": settings.metrics, **measured.content},
                        measures_said=measured.lines,
                        label_matrix=measured.matrix,
                    )
                    with progress.doing("comparing the answers"):
                        base = result.base.records if result.base else None
                        found = analyse(result.trained.records, base)
                    write_results(result, found, about)
                file.remove()
                if measures.judge is not None:
                    measures.judge.replies.remove()
    for line in report(result, found, model.settings.sampling_max_tokens):
        say(line)
    return result


@dataclass(slots=True)
class _Work:
    """The questions of an evaluation, and the file that its answers go to."""

    asking: Asking
    questions: Questions
    file: AnswersFile
    stored: Stored | None

    def answered(self) -> int:
        """The answers to questions that are on disk, of both models.

        A signal may come between writing one down and anything that counts it.
        """
        stored, draws = stored_answers(self.file.path), self.asking.draws
        models = stored.answers if stored else {}
        return sum(len(_complete(stored, model, draws)) for model in models)

    def scored(self, model: str, model_path: str | None) -> Scored:
        """One model's answers to all questions; None is the base model."""
        known = _complete(self.stored, model, self.asking.draws)
        before = self.stored.seconds.get(model, 0.0) if self.stored else 0.0
        begun = time.monotonic()

        def write_down(question: Question, answers: Sequence[Answer]) -> None:
            self.file.add(model, question, answers, before + time.monotonic() - begun)

        records = ask_all(
            self.asking,
            lambda: self.asking.service.create_sampling_client(model_path),
            self.questions.asked,
            who="the trained model" if model_path else "the base model",
            known=known,
            on_answer=write_down,
        )
        return Scored(records, before + time.monotonic() - begun)


# ---- going on with an evaluation


def _stored(file: Path, resume: bool, again: str) -> Stored | None:
    """The answers to go on with; None to begin.

    Raises:
        UserError: there are answers and `resume` is not wanted, or the other way round.
    """
    stored = stored_answers(file)
    if not resume:
        if stored is not None:
            refuse_answers(file, stored, again)
        return None
    if stored is None and not file.exists():
        raise UserError(
            f"--resume has no effect: no evaluation was stopped, as there is no {file}. Leave "
            "--resume out."
        )
    return stored


def _command(
    which: Sequence[str],
    test_file: str,
    base_model: str,
    compare_base: bool,
    limit: int | None,
    output_file: Path,
    options: Sequence[str],
) -> str:
    """The command that goes on with this evaluation."""
    words = [
        *which,
        *["--test-data", test_file],
        *(["--base-model", base_model] if base_model else []),
        *(["--compare-base"] if compare_base else []),
        *(["--limit", str(limit)] if limit else []),
        *["--output", str(output_file)],
    ]
    return command_line("evaluate", *words, *options, "--resume")


def _choices(model: ModelReference, limit: int | None, compare_base: bool) -> dict[str, Any]:
    """What decides an answer, as far as the user chooses it."""
    settings = model.settings
    sampling = [name for name in settings.model_dump() if name.startswith("sampling_")]
    return {
        "model_path": model.sampler_path,
        "base_model": model.base_model,
        "--limit": limit or 0,
        "--compare-base": compare_base,
        **{name.upper(): getattr(settings, name) for name in [*sampling, "seed", "backend"]},
    }


def _contents(
    model: ModelReference,
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    questions: Questions,
    progress: Progress,
) -> dict[str, Any]:
    """What else decides an answer: digests of weights, prompts and tokens."""
    folder = local_model_folder(model.base_model)
    fingerprint = None
    if folder is not None:
        with progress.doing(f"reading the base model in {folder}"):
            try:
                fingerprint = base_fingerprint(folder)
            except ValueError as error:
                raise UserError(f"{model.base_model}: {error}. Copy its files again.") from None
    return {
        "the weights of the base model digest": fingerprint,
        "the tokenizer digest": digest_of(tokenizer.serialised()),
        "the prompt template digest": template_digest(template.to_json()),
        "the test questions digest": questions.digest,
    }


def _versions() -> dict[str, str]:
    return {"tinkersmith": __version__, "tinker": version("tinker")}


def _refuse_changes(
    file: Path, stored: Stored, facts: Mapping[str, Any], *, partly: bool = False
) -> None:
    """Refuse to go on under other settings.

    Args:
        partly: `facts` are not all that decide an answer.

    Raises:
        UserError: something differs; the sentence says what.
    """
    names = facts if partly else {**facts, **stored.facts}
    different = changed_facts({name: stored.facts.get(name) for name in names}, facts)
    if different:
        raise UserError(
            f"The answers in {file} were given under other settings: {'; '.join(different)}. Undo "
            "that, or remove the file to begin anew."
        )


def _going_on_lines(file: Path, stored: Stored) -> list[str]:
    lines = [f"Going on with {counted(stored.count, 'answer')} from {file}."]
    if stored.torn:
        lines.append("  Its last line was cut short and is dropped: that question is asked again.")
    for name, now in _versions().items():
        if (then := stored.versions.get(name)) != now:
            lines.append(f"  {name} is {now}; it was {then}. Answers can differ in details.")
    return lines


def _complete(stored: Stored | None, model: str, draws: int) -> dict[str, list[Answer]]:
    """The questions with all their draws."""
    answers = stored.answers.get(model, {}) if stored else {}
    return {
        question: drawn
        for question, drawn in answers.items()
        if [answer.draw for answer in drawn] == list(range(1, draws + 1))
    }


@contextmanager
def _answers(
    output_file: Path, stored: Stored | None, facts: Mapping[str, Any], again: str
) -> Generator[AnswersFile, None, None]:
    path = unfinished_file(output_file)
    file = AnswersFile(path, facts, _versions(), "" if stored else again)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _explained(
    file: Path, work: _Work, again: str, say: Callable[[str], None]
) -> Generator[None, None, None]:
    """Whatever ends the asking says how to go on."""
    try:
        yield
    except UserError as error:
        if not work.answered():  # nothing to go on with
            raise
        raise UserError(f"{error} Go on with: {again}") from None
    except (KeyboardInterrupt, SystemExit):
        count = work.answered()
        total = counted(len(work.questions.asked), "question")
        are = "is" if count == 1 else "are"
        say(
            f"\nStopped. {counted(count, 'answer')} to {total} {are} in {file}. Go on with: {again}"
        )
        raise


# ---- what is printed


def _model_lines(model: ModelReference) -> list[str]:
    lines = [f"Model:    {model.sampler_path} ({model.name}, on {model.base_model})"]
    lines += [f"  {model.chosen}."] if model.chosen else []
    if model.run is None:
        lines.append(
            "  No run folder knows this path, so PROMPT_TEMPLATE = "
            f"{model.settings.prompt_template!r} is used. The model may be trained with another."
        )
    draws = model.settings.sampling_num_samples
    if draws > 1 and model.settings.sampling_temperature == 0:
        lines.append(
            f"  SAMPLING_TEMPERATURE is 0, so all {draws} answers to a prompt would be the same. "
            "Only one is sampled."
        )
    return lines
