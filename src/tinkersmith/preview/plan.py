"""Settings -> samples and their encoding, as training has them, without a server or a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinkersmith.batches.in_memory import SamplesInMemory
from tinkersmith.batches.read import read_data
from tinkersmith.batches.source import DataSource, Encoding
from tinkersmith.batches.streamed import SampleStream
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.large_files import read_chunk
from tinkersmith.data.report import Tally, note_lines, read_lines, skipped_lines, validation_lines
from tinkersmith.data.samples import Sample, Skipped
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import context_in
from tinkersmith.models.hub import refuse_impossible_name
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.settings.fields import Settings
from tinkersmith.text.choose import choose_template, decide, template_lines
from tinkersmith.text.tokenizer import tokenizer_of


@dataclass(frozen=True, slots=True)
class TrainingSamples:
    """The samples that training would take, and what is to say about the files."""

    source: DataSource
    samples: Iterable[Sample]
    skipped: Sequence[Skipped]  # of large files, the first ones
    lines: list[str]


def training_samples(settings: Settings, progress: Progress) -> TrainingSamples:
    """Read DATA_FILES as training does, and leave out what is set apart for validation.

    Raises:
        UserError: see `read_data`.
    """
    source = read_data(settings, progress)
    if isinstance(source, SampleStream):
        files = source.files
        tally = Tally.together(files.tallies)
        lines = [
            *read_lines(files.counts, files.missing_files, tally.shapes),
            *note_lines(tally.notes),
            *skipped_lines(files.first_skipped, files.skipped_count, "", tally.reasons),
            *validation_lines(len(files.validation), files.shared),
            *source.mixing_lines(),
        ]
        return TrainingSamples(source, samples_of_stream(source), files.first_skipped, lines)
    assert isinstance(source, SamplesInMemory)
    loaded = source.loaded[0]
    lines = [
        *read_lines(loaded.counts, loaded.missing_files, loaded.shapes),
        *note_lines(loaded.notes),
        *skipped_lines(loaded.skipped, len(loaded.skipped)),
        *validation_lines(len(source.validation), 0),
        *source.mixing_lines(),
    ]
    return TrainingSamples(source, source.training, loaded.skipped, lines)


def samples_of_stream(source: SampleStream) -> Iterator[Sample]:
    """The samples of large files that are trained on, in the order of the files."""
    for chunk in source.files.chunks:
        samples, _ = read_chunk(chunk)
        for place in chunk.training_places().tolist():
            yield samples[place]


def tokenizer_for(settings: Settings) -> tuple[str, TextTokenizer]:
    """The model's name as a server would have it, and its tokenizer.

    Raises:
        UserError: there is no such model, or no tokenizer of it.
    """
    name, _ = resolve_base_model(settings.base_model)
    folder = local_model_folder(name)
    if folder is None and not settings.tokenizer:
        refuse_impossible_name(name)
    elif folder is not None and name not in BUNDLED_MODELS:
        name = str(folder)  # as the server of a local model names it
    return name, tokenizer_of(settings.tokenizer, name)


def local_encoding(
    settings: Settings, source: DataSource, base: tuple[str, TextTokenizer] | None = None
) -> tuple[Encoding, list[str]]:
    """How training would encode the samples of `source`, and what is to say about it.

    Args:
        base: the model's name and tokenizer, where `tokenizer_for` was called already.

    Raises:
        UserError: the model has no tokenizer that can be reached, or a setting does not fit.
    """
    name, tokenizer = base or tokenizer_for(settings)
    _, note = resolve_base_model(settings.base_model)
    decision = decide(settings.prompt_template, tokenizer, name)
    template = choose_template(
        settings.prompt_template,
        tokenizer,
        name,
        thinking=settings.thinking,
        thoughts=source.thoughts,
    )
    lines = [note] if note else []
    lines += template_lines(template, decision, source.thoughts)
    limit, context = (
        settings.max_sequence_length,
        _context(local_model_folder(name) or tokenizer.folder),
    )
    if context is not None and context < limit:
        lines.append(
            f"MAX_SEQUENCE_LENGTH is {limit:,}, but {name} takes at most {context:,} tokens: "
            f"{context:,} is used."
        )
        limit = context
    return Encoding(settings, template, tokenizer, limit), lines


def _context(folder: Path | None) -> int | None:
    """The longest sequence that the model takes; None if its files do not say."""
    if folder is None:
        return None
    try:
        config = read_json_object(folder / "config.json")
    except (OSError, ValueError):
        return None
    return context_in(config)
