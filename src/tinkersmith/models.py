"""A base model's name -> the name that servers know, and its folder on this machine."""

from pathlib import Path

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError

_MODEL_ALIASES = {
    "Qwen/Qwen3-30B-A3B-Instruct": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-4B-Instruct": "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen3-235B-A22B-Instruct": "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "tiny-math": "tinkersmith/tiny-math",
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
