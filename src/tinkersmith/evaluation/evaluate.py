"""A trained model and a test file -> scores with intervals, and evaluation_results.json.

The prompts use the template of the model's own run, so training and test have the same format.
"""

import datetime as dt
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.data.large_files import iterate_samples
from tinkersmith.data.load import LoadedSamples, load_samples
from tinkersmith.data.report import note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped, Source, overlap
from tinkersmith.errors import UserError
from tinkersmith.evaluation.results import EvaluationResult, Record, Scored, named, report
from tinkersmith.files import write_json
from tinkersmith.grading.scoring import score_and_grade
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.trained_model import ModelReference, find_trained_model
from tinkersmith.service.connection import ServerGone, Service, open_service
from tinkersmith.service.reconnection import Reconnection
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

if TYPE_CHECKING:
    import numpy as np
    import tinker

    from tinkersmith.text.templates import PromptTemplate
    from tinkersmith.text.tokenizer import TextTokenizer

_IN_FLIGHT = 256  # prompts sent before the first answer is awaited


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
                samples, unusable = _usable(samples, template)
                asked, too_long = _fitting_prompts(
                    samples, template, tokenizer, service.max_context
                )
            for line in _report_unusable(unusable):
                progress.say(line)
            if not samples:
                raise UserError(f"Not one sample of {test_file} can be used. {unusable[0]}.")
            if too_long:
                progress.say(_report_too_long(too_long, service.max_context))
            if not asked:
                raise UserError(f"Not one prompt of {test_file} fits into the model's context.")
            asker = _Asker(service, template, tokenizer, model.settings, progress)
            trained = asker.ask(model.sampler_path, asked)
            base = asker.ask(None, asked) if compare_base else None
    result = EvaluationResult(
        model.sampler_path, model.base_model, trained, base, too_long, shared, output_file
    )
    _write(result, model, template, loaded, unusable, test_file, limit)
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


def _usable(
    samples: list[Sample], template: "PromptTemplate"
) -> tuple[list[Sample], list[Skipped]]:
    """The samples that can be asked and have an answer to compare with, and the others.

    Training leaves the others out, too: the template refuses them, or their thoughts contradict.
    """
    from tinkersmith.text.pieces import UnusableSample, naming
    from tinkersmith.text.thoughts import check_answer

    usable: list[Sample] = []
    others: list[Skipped] = []
    for sample in samples:
        try:
            with naming(sample):
                check_answer(sample.turns[-1], template.keeps_thoughts)
            template.render_prompt(sample)
            usable.append(sample)
        except UnusableSample as error:
            others.append(Skipped(sample.source, "", error.reason, ""))
    return usable, others


def _fitting_prompts(
    samples: list[Sample],
    template: "PromptTemplate",
    tokenizer: "TextTokenizer",
    max_context: int | None,
) -> "tuple[list[tuple[Sample, np.ndarray]], list[Source]]":
    rows = tokenizer.encode_batch([template.render_prompt(sample) for sample in samples])
    pairs = list(zip(samples, rows, strict=True))
    if max_context is None:
        return pairs, []
    too_long = [sample.source for sample, row in pairs if len(row) >= max_context]
    return [(sample, row) for sample, row in pairs if len(row) < max_context], too_long


@dataclass(frozen=True, slots=True)
class _Asker:
    """Gets answers from a model and scores them."""

    service: Service
    template: "PromptTemplate"
    tokenizer: "TextTokenizer"
    settings: Settings
    progress: Progress

    def ask(self, model_path: str | None, asked: "list[tuple[Sample, np.ndarray]]") -> Scored:
        """One model's answers to all prompts. Many requests are under way at a time."""
        start = time.monotonic()
        client = self.service.create_sampling_client(model_path)
        reconnection = Reconnection(self.service)
        records: list[Record] = []
        under_way: deque[tuple[Sample, np.ndarray, Any]] = deque()
        answered = 0
        who = "the trained model" if model_path else "the base model"
        with self.progress.doing(f"asking {who}") as task:

            def take_answer() -> None:
                nonlocal answered, client, records
                sample, _, pending = under_way[0]
                try:
                    records += self._records(sample, pending)
                except ServerGone as failure:
                    reconnection.after(failure, f"asking {who}")
                    self.progress.say(f"  {failure} Asking again from sample {answered + 1:,} on.")
                    client = self.service.create_sampling_client(model_path)
                    again = [(sample, prompt) for sample, prompt, _ in under_way]
                    under_way.clear()
                    for sample, prompt in again:
                        under_way.append((sample, prompt, self._send(client, prompt)))
                    return
                under_way.popleft()
                reconnection.progressed()
                answered += 1
                state = f"Asking {who}: {answered:,}/{len(asked):,}"
                self.progress.reached(task, state, answered / len(asked))

            for sample, prompt in asked:
                while len(under_way) >= _IN_FLIGHT:
                    take_answer()
                under_way.append((sample, prompt, self._send(client, prompt)))
            while under_way:
                take_answer()
        return Scored(records, time.monotonic() - start)

    def _send(self, client: "tinker.SamplingClient", prompt: "np.ndarray") -> Any:
        from tinkersmith.service.answers import request_answers

        greedy = self.settings.sampling_temperature == 0  # all answers would be the same
        return request_answers(
            client,
            prompt,
            self.settings,
            self.template,
            self.tokenizer,
            self.service.max_context,
            1 if greedy else self.settings.sampling_num_samples,
        )

    def _records(self, sample: Sample, pending: Any) -> list[Record]:
        from tinkersmith.service.answers import answer_within
        from tinkersmith.text.guards import unguarded
        from tinkersmith.text.thoughts import answer_alone

        answered = self.service.wait(pending, f"answering {sample.source}")
        expected = answer_alone(sample.turns[-1])
        named = sample.extra.get("answer")
        records: list[Record] = []
        for draw, sequence in enumerate(answered.sequences, start=1):
            produced = answer_within(sequence.tokens, self.template, self.tokenizer)
            scores, outcome = score_and_grade(
                expected, produced, named, cut=str(sequence.stop_reason) == "length"
            )
            records.append(
                Record(
                    source=sample.source,
                    prompt=unguarded(self.template.render_prompt(sample)),
                    expected=expected,
                    expected_answer=outcome.expected_answer,
                    produced=produced,
                    scores=scores,
                    stop_reason=str(sequence.stop_reason),
                    final_answer=outcome.final_answer,
                    rule=outcome.rule,
                    kind=outcome.kind,
                    tokens=len(sequence.tokens),
                    draw=draw,
                )
            )
        return records


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


def _report_unusable(unusable: list[Skipped]) -> list[str]:
    if not unusable:
        return []
    who = counted(len(unusable), "sample cannot be used and is", "samples cannot be used and are")
    first = skipped_lines(unusable, len(unusable))[1:]
    return [f"{who} left out:", *first]


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
    unusable: list[Skipped],
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
            "unusable_samples": len(unusable),
            "prompts_too_long": len(result.too_long),
            "evaluated": len({record.source for record in trained.records}),
            "overlap_with_training": None if result.overlap is None else len(result.overlap),
        },
        **trained.to_json(),
        "base": base.to_json() if base else None,
        "skipped": [skipped.to_json() for skipped in loaded.skipped],
        "unusable_samples": [
            {"file": left.source.file, "record": left.source.record, "reason": left.reason}
            for left in unusable
        ],
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
