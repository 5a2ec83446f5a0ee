"""A file name as it is written in one place -> the name of the same file seen from another place.

The rule: a relative name that stands in a file (config.py, a script's constants, a run's
settings.json) starts from the folder of that file. A relative name on the command line starts from
the current folder.
"""

import glob
import os
import re
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
        if not _is_there(file) and _is_there(in_data := _seen(data, here, name)):
            file = in_data
        files.append(file)
    return files


def seen_from_folder(folder: Path | str, name: str) -> str:
    """`name`, which starts from the current folder, as it is written from `folder`.

    Absolute names stay absolute: whoever wrote one meant that place.
    """
    if _starts_nowhere(name):
        return name
    here, place = Path.cwd(), Path(folder).resolve()
    if has_pattern(name) and not os.path.exists(name):
        # The folders' own names may have the signs of a pattern: they stand for themselves.
        here, place = (Path(glob.escape(str(path))) for path in (here, place))
    try:
        return Path(os.path.relpath(here / name, place)).as_posix()
    except ValueError:  # another drive on Windows
        return str(Path(name).absolute())


def data_file_seen_from_folder(folder: Path | str, name: str) -> str:
    """Like `seen_from_folder`; a name that does not exist is looked up in data/ as well."""
    in_data = str(Path("data") / name)
    is_in_data = not _starts_nowhere(name) and not _is_there(name) and _is_there(in_data)
    return seen_from_folder(folder, in_data if is_in_data else name)


def has_pattern(name: str) -> bool:
    """Whether a name has characters that stand for others, as in data/*.jsonl."""
    return glob.has_magic(name)


def is_hub_name(name: str) -> bool:
    """Whether a name is that of a data set on a hub, such as hf:org/name or ms:org/name:train."""
    return bool(re.fullmatch(r"(hf|ms):[\w.-]+/[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", name))


def _seen(place: Path, here: Path, name: str) -> str:
    if _starts_nowhere(name) or place == here:
        return name
    file = _joined(place, name)
    if has_pattern(name) and not os.path.exists(file):
        # The folder's own name may have the signs of a pattern: it stands for itself.
        here, file = Path(glob.escape(str(here))), _joined(Path(glob.escape(str(place))), name)
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _is_there(name: str) -> bool:
    return os.path.exists(name) or (has_pattern(name) and bool(glob.glob(name, recursive=True)))


def _starts_nowhere(name: str) -> bool:
    """Whether a name means the same place wherever it stands."""
    is_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|file:", name)
    return bool(Path(name).is_absolute() or name.startswith("~") or is_address or is_hub_name(name))


def _joined(folder: Path, name: str) -> Path:
    """`folder` / `name` without "..": for a folder that is resolved, its leading ones are safe."""
    parts = Path(name).parts
    while parts[:1] == ("..",):
        folder, parts = folder.parent, parts[1:]
    return folder.joinpath(*parts)
