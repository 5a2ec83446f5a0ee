"""A setting of two origins -> values that are equal where both mean the same."""

from pathlib import Path
from typing import Any, cast

from tinkersmith.models.names import resolve_base_model
from tinkersmith.paths import data_file_seen_from_folder
from tinkersmith.settings.fields import FILE_FIELDS, Settings


def comparable_setting(settings: Settings, name: str) -> Any:
    """The value of a setting, with files as absolute names and a model as its real name."""
    value = getattr(settings, name)
    if name in FILE_FIELDS:
        files = cast("list[str] | dict[str, float]", value)
        names = [data_file_seen_from_folder("/", file) for file in files]
        return dict(zip(names, files.values(), strict=True)) if isinstance(files, dict) else names
    if name == "base_model":
        model, _ = resolve_base_model(value)
        return Path(model).resolve() if Path(model).exists() else model
    return value
