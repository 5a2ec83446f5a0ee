"""A file name as it is written in one place -> the name of the same file seen from another place.

The rule: a relative name that stands in a file (config.py, a script's constants, a run's
settings.json) starts from the folder of that file. A relative name on the command line starts from
the current folder.
"""

import os
from collections.abc import Sequence
from pathlib import Path


def seen_from_here(folder: Path | str, name: str) -> str:
    """`name`, which starts from `folder`, as it is written from the current folder.

    The name stays as it is where `folder` is the current one; it is absolute where the file lies
    outside the current folder.
    """
    return _seen(Path(folder).resolve(), Path.cwd(), name)


def data_file_seen_from_here(folder: Path | str, name: str) -> str:
    """Like `seen_from_here`; a name that does not exist is looked up in `folder`/data as well."""
    return data_files_seen_from_here(folder, [name])[0]


def data_files_seen_from_here(folder: Path | str, names: Sequence[str]) -> list[str]:
    """Like `data_file_seen_from_here`, for many names: the folders are looked up once."""
    place, here = Path(folder).resolve(), Path.cwd()
    if place == here:
        return list(names)  # whoever opens them looks in data/
    data = (place / "data").resolve()
    files: list[str] = []
    for name in names:
        file = _seen(place, here, name)
        if not os.path.exists(file) and os.path.exists(in_data := _seen(data, here, name)):
            file = in_data
        files.append(file)
    return files


def seen_from_folder(folder: Path | str, name: str) -> str:
    """`name`, which starts from the current folder, as it is written from `folder`.

    Absolute names stay absolute: whoever wrote one meant that place.
    """
    if _starts_nowhere(name):
        return name
    try:
        return Path(os.path.relpath(Path(name).absolute(), Path(folder).resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return str(Path(name).absolute())


def data_file_seen_from_folder(folder: Path | str, name: str) -> str:
    """Like `seen_from_folder`; a name that does not exist is looked up in data/ as well."""
    in_data = Path("data") / name
    return seen_from_folder(
        folder, str(in_data) if not Path(name).exists() and in_data.exists() else name
    )


def _seen(place: Path, here: Path, name: str) -> str:
    if _starts_nowhere(name) or place == here:
        return name
    file = _joined(place, name)
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _starts_nowhere(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith("~")


def _joined(folder: Path, name: str) -> Path:
    """`folder` / `name` without "..": for a folder that is resolved, its leading ones are safe."""
    parts = Path(name).parts
    while parts[:1] == ("..",):
        folder, parts = folder.parent, parts[1:]
    return folder.joinpath(*parts)
