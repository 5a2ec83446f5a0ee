"""A base model's name -> the name that servers know, and its folder on this machine."""

from pathlib import Path

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError

# Names that no hub and no server has, and the models that they mean. Names that a server retired
# are no aliases: a run must not move to another model without its user's word.
_MODEL_ALIASES = {
    "tiny-math": "tinkersmith/tiny-math",
    "Qwen/Qwen3-8B-Instruct": "Qwen/Qwen3-8B",
    "Qwen/Qwen3.5-4B-Instruct": "Qwen/Qwen3.5-4B",
    "Qwen/Qwen3.5-9B-Instruct": "Qwen/Qwen3.5-9B",
    "Qwen/Qwen3.6-35B-A3B-Instruct": "Qwen/Qwen3.6-35B-A3B",
    "Qwen/Qwen3.8-27B-Instruct": "Qwen/Qwen3.8-27B",
}


def local_model_folder(name: str) -> Path | None:
    """The folder of a bundled model or of a path; None for names that only a server knows.

    Raises:
        UserError: `name` is a path, but there is no model in that folder.
    """
    if name in BUNDLED_MODELS:
        return BUNDLED_MODELS[name]
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")):
        raise UserError(
            f"BASE_MODEL {name} is not a model folder: it has no config.json. Name a folder in "
            "Hugging Face format."
        )
    return None


def resolve_base_model(name: str) -> tuple[str, str | None]:
    """The name under which a model exists, and a note for the user where that is another name."""
    wanted = name.strip()
    for alias, real in _MODEL_ALIASES.items():
        if wanted.lower() == alias.lower() and not Path(wanted).exists():
            return (
                real,
                f'There is no model named "{wanted}"; "{real}" is used instead.',
            )
    return wanted, None
