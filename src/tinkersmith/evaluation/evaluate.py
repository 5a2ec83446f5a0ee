"""A trained model and a test file -> scores with intervals, and evaluation_results.json.

The prompts use the template of the model's own run, so training and test have the same format.
"""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.data.large_files import iterate_samples
from tinkersmith.data.load import LoadedSamples, load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Source, overlap
from tinkersmith.errors import UserError
from tinkersmith.evaluation.asking import Asking, ask_all
from tinkersmith.evaluation.questions import Questions, questions_of
from tinkersmith.evaluation.results import EvaluationResult, Scored, named, report
from tinkersmith.files import write_json
from tinkersmith.plurals import counted
from tinkersmith.progress import watched
from tinkersmith.runs.trained_model import ModelReference, find_trained_model
from tinkersmith.service.connection import open_service
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

if TYPE_CHECKING:
    from tinkersmith.text.templates import PromptTemplate


def evaluate(
    settings: Settings | None = None,
    *,
    model_path: str = "",
    test_file: str = "data/test_set.json",
    base_model: str = "",
    compare_base: bool = False,
    limit: int | None = None,
    output_file: str | Path = "evaluation_results.json",
    say: Callable[[str], None] = print,
) -> EvaluationResult:
    """Answer all prompts of a test file with a trained model, and score the answers.

    Args:
        model_path: a tinker:// path; the last checkpoint of the newest run if it is empty.
        base_model: for a path that no run folder knows.
        compare_base: also score the untouched base model.
        limit: use only so many samples, chosen by SEED.
        say: prints a line.

    Raises:
        UserError: one sentence about what is wrong. Nothing is written then.
    """
    output_file = Path(output_file)
    _check_output(output_file)
    with watched(say) as progress:
        settings = settings or settings_from({})
        with progress.doing("reading the test set"):
            loaded = load_samples([test_file], settings.columns, settings.encoding)
        asking = [sample for sample in loaded.samples if sample.turns[-1].role != "text"]
        if not asking:
            raise UserError(
                f"{test_file} holds plain text alone, which asks nothing. Name a file of questions "
                "with their answers."
            )
        model = find_trained_model(settings, model_path, base_model)
        samples = _choose(asking, limit, model.settings.seed)
        for line in _report_test_set(loaded, len(samples), model, output_file):
            progress.say(line)
        with progress.doing("comparing the test set with the training data"):
            shared = _overlap_with_training(model, samples)
        progress.say(_report_overlap(shared, len(samples)))
        with open_service(
            model.settings, base_model=model.base_model, progress=progress
        ) as service:
            with progress.doing("loading the tokenizer"):
                tokenizer = service.tokenizer()
            template = model.template(tokenizer)
            with progress.doing(f"tokenising {counted(len(samples), 'prompt')}"):
                questions = questions_of(
                    samples, template, tokenizer, model.settings, service.max_context
                )
            too_long = questions.too_long
            if too_long:
                progress.say(_report_too_long(too_long, service.max_context))
            if not questions.asked:
                raise UserError(f"Not one prompt of {test_file} fits into the model's context.")
            asking = Asking(service, template, tokenizer, model.settings)
            trained = _ask(asking, model.sampler_path, questions)
            base = _ask(asking, None, questions) if compare_base else None
    result = EvaluationResult(
        model.sampler_path, model.base_model, trained, base, too_long, shared, output_file
    )
    _write(result, model, template, loaded, test_file, limit)
    for line in report(result, model.settings.sampling_max_tokens):
        say(line)
    return result


# ---- prompts


def _check_output(file: Path) -> None:
    """Raise UserError now if the file could not be written after all the sampling."""
    try:
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        probe = file.with_name(f".{file.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_written(file, error) from None


def _not_written(file: Path, error: OSError) -> UserError:
    return UserError(
        f"{file} cannot be written: {error.strerror}. Name another file with --output."
    )


def _choose(samples: list[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` samples, chosen by the seed alone, in the order of the file."""
    if not limit:
        return samples
    if limit < 0:
        raise UserError(f"The limit is {limit}; it must be at least 1, or 0 for all samples.")
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[index] for index in sorted(order[:limit])]


def _overlap_with_training(
    model: ModelReference, samples: list[Sample]
) -> list[tuple[Source, Source]] | None:
    if model.run is None:
        return None
    try:
        trained_with = model.run.settings()
        trained = iterate_samples(
            trained_with.training_files, trained_with.columns, trained_with.encoding
        )
        return overlap(trained, samples)
    except UserError:  # the training data has gone since
        return None


def _ask(asking: Asking, model_path: str | None, questions: Questions) -> Scored:
    """One model's answers to all questions; None is the base model."""
    start = time.monotonic()
    records = ask_all(
        asking,
        lambda: asking.service.create_sampling_client(model_path),
        questions.asked,
        who="the trained model" if model_path else "the base model",
    )
    return Scored(records, time.monotonic() - start)


# ---- what is printed and written


def _report_test_set(
    loaded: LoadedSamples, chosen: int, model: ModelReference, output_file: Path
) -> list[str]:
    first, *others = read_lines(loaded.counts, [], loaded.shapes)
    texts = sum(sample.turns[-1].role == "text" for sample in loaded.samples)
    count = len(loaded.samples) - texts
    lines = [f"Model:    {model.sampler_path} ({model.name}, on {model.base_model})"]
    lines.append(f"Test set: {first[0].lower()}{first[1:]}")
    lines += [f"  {line}" for line in [*others, *loaded.said]]
    if texts:
        who = counted(texts, "sample is", "samples are")
        lines.append(f"  {who} plain text, which asks nothing, and left out.")
    if chosen < count:
        lines.append(
            f"  Only {chosen:,} of them are used. SEED = {model.settings.seed} chooses the same "
            "ones every time."
        )
    skipped = skipped_lines(loaded.skipped, len(loaded.skipped), str(output_file))
    lines += [f"  {line}" for line in [*note_lines(loaded.notes), *skipped]]
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


def _report_too_long(sources: list[Source], max_context: int | None) -> str:
    who = counted(len(sources), "prompt leaves", "prompts leave")
    what = "It is" if len(sources) == 1 else "They are"
    return (
        f"{who} no space for an answer in the model's context of {max_context:,} tokens. {what} "
        f"skipped: {named(sources)}."
    )


def _report_overlap(shared: list[tuple[Source, Source]] | None, n: int) -> str:
    if shared is None:
        return "Overlap with the training data is not checked: that data is not here."
    if not shared:
        return "No question of the test set is in the training data."
    trained, tested = shared[0]
    are = "is" if len(shared) == 1 else "are"
    return (
        f"Warning: {len(shared):,} of {counted(n, 'test question')} {are} also in the training "
        f"data, so the rates are too good (the first: {tested} is {trained})."
    )


def _write(
    result: EvaluationResult,
    model: ModelReference,
    template: "PromptTemplate",
    loaded: LoadedSamples,
    test_file: str,
    limit: int | None,
) -> None:
    trained, base = result.trained, result.base
    names = [name for name in model.settings.model_dump() if name.startswith("sampling_")]
    content: dict[str, Any] = {
        "model_path": result.model_path,
        "run": model.name if model.run else None,
        "base_model": result.base_model,
        "test_file": test_file,
        "created": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": {
            name.upper(): getattr(model.settings, name) for name in [*names, "seed", "backend"]
        },
        "limit": limit or None,
        "prompt_template": template.name,
        "counts": {
            "samples": len(loaded.samples),
            "skipped_records": len(loaded.skipped),
            "prompts_too_long": len(result.too_long),
            "evaluated": len({record.source for record in trained.records}),
            "overlap_with_training": None if result.overlap is None else len(result.overlap),
        },
        **trained.to_json(),
        "base": base.to_json() if base else None,
        "skipped": [skipped.to_json() for skipped in loaded.skipped],
        "prompts_too_long": [str(source) for source in result.too_long],
        "overlap_with_training": [
            {"test": str(tested), "training": str(known)} for known, tested in result.overlap or []
        ],
        "samples": [record.to_json() for record in trained.records],
        "base_samples": [record.to_json() for record in base.records] if base else [],
    }
    try:
        write_json(result.output_file, content)
    except OSError as error:
        raise _not_written(result.output_file, error) from None
