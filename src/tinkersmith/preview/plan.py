"""Settings -> samples and their encoding, as training has them, without a server or a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tinkersmith.batches.in_memory import SamplesInMemory
from tinkersmith.batches.read import read_data
from tinkersmith.batches.source import DataSource, Encoding
from tinkersmith.batches.streamed import SampleStream
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.large_files import read_chunk
from tinkersmith.data.report import Tally, note_lines, read_lines, skipped_lines, validation_lines
from tinkersmith.data.samples import Sample, Skipped
from tinkersmith.errors import UserError
from tinkersmith.files import read_json_object
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.text.choose import choose_template, decide, template_lines
from tinkersmith.text.tokenizer import load_tokenizer


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


def local_encoding(settings: Settings, source: DataSource) -> tuple[Encoding, list[str]]:
    """How training would encode the samples of `source`, and what is to say about it.

    Raises:
        UserError: the model's tokenizer is not on this machine, or a setting does not fit.
    """
    name, folder, note = tokenizer_folder(settings)
    tokenizer = load_tokenizer(folder)
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
    limit, context = settings.max_sequence_length, _context(folder)
    if context is not None and context < limit:
        lines.append(
            f"MAX_SEQUENCE_LENGTH is {limit:,}, but {name} takes at most {context:,} tokens: "
            f"{context:,} is used."
        )
        limit = context
    return Encoding(settings, template, tokenizer, limit), lines


def tokenizer_folder(settings: Settings) -> tuple[str, Path, str | None]:
    """The model's name as a server would have it, its folder on this machine, and a note.

    Raises:
        UserError: its tokenizer is not on this machine.
    """
    name, note = resolve_base_model(settings.base_model)
    folder = local_model_folder(name)
    if folder is not None and name not in BUNDLED_MODELS:
        name = str(folder)  # as the server of a local model names it
    if folder is None:
        folder = _cached_folder(name)
    if folder is None:
        raise UserError(
            f"The tokenizer of {name} is not on this machine, and preview needs it. Download its "
            f"tokenizer files with: hf download {name} --include '*.json' '*.jinja' '*.model'. Or "
            "name a model folder with --base-model."
        )
    return name, folder, note


def _cached_folder(name: str) -> Path | None:
    """The folder of a Hub model in the local Hugging Face cache, if its tokenizer is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in ("tokenizer.json", "tokenizer_config.json"):
        try:
            place = try_to_load_from_cache(name, file)
        except HFValidationError:
            raise UserError(
                f'BASE_MODEL "{name}" is not a model folder, and it cannot be the name of a model '
                "on a hub. Name a folder in Hugging Face format, or organisation/model."
            ) from None
        if isinstance(place, str):
            return Path(place).parent
    return None


def _context(folder: Path) -> int | None:
    """The longest sequence that the model takes; None if its files do not say."""
    try:
        config = read_json_object(folder / "config.json")
    except (OSError, ValueError):
        return None
    inner: Any = config.get("text_config")
    text = cast("dict[str, Any]", inner) if isinstance(inner, dict) else config
    limit: Any = text.get("max_position_embeddings")
    return limit if isinstance(limit, int) and limit > 0 else None
