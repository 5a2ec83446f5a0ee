"""Settings -> samples and their encoding, as training has them, without a server or a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tinkersmith.batches.in_memory import read_into_memory
from tinkersmith.batches.source import Encoding
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.large_files import are_streamed, iterate_samples
from tinkersmith.data.report import read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped
from tinkersmith.errors import UserError
from tinkersmith.files import read_json_object
from tinkersmith.models import local_model_folder, resolve_base_model
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.sources.find import find_files
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class TrainingSamples:
    """The samples that training would take, and what is to say about the files."""

    samples: Iterable[Sample]
    skipped: Sequence[Skipped]
    lines: list[str]


def training_samples(settings: Settings, progress: Progress) -> TrainingSamples:
    """Read DATA_FILES as training does. Large files are read while they are looked at.

    Raises:
        UserError: see `load_samples`.
    """
    if are_streamed(find_files(settings.data_files)[0]):
        lines = ["The files are large: they are read as a stream. Unusable records are left out."]
        if settings.validation_ratio:
            lines.append("The samples that VALIDATION_RATIO sets apart are among those below.")
        return TrainingSamples(iterate_samples(settings.data_files), (), lines)
    with progress.doing("reading the data"):
        data = read_into_memory(settings)
    loaded = data.loaded[0]
    lines = read_lines(loaded.counts, loaded.missing_files)
    lines += skipped_lines(loaded.skipped[:3], len(loaded.skipped))
    if data.validation and settings.validation_ratio:
        held_out = counted(len(data.validation), "sample is", "samples are")
        lines.append(f"{held_out} set apart for validation and not among those below.")
    return TrainingSamples(data.training, loaded.skipped, lines)


def local_encoding(settings: Settings) -> tuple[Encoding, list[str]]:
    """How training would encode samples, and what is to say about it.

    Raises:
        UserError: the model's tokenizer is not on this machine.
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
    tokenizer = load_tokenizer(folder)
    template = choose_template(settings.prompt_template, tokenizer, name)
    limit, context = settings.max_sequence_length, _context(folder)
    lines = [note] if note else []
    if context is not None and context < limit:
        lines.append(
            f"MAX_SEQUENCE_LENGTH is {limit:,}, but {name} takes at most {context:,} tokens: "
            f"{context:,} is used."
        )
        limit = context
    return Encoding(settings, template, tokenizer, limit), lines


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
