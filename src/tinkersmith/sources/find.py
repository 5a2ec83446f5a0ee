"""The names of data files, folders, patterns and data sets -> the files.

A folder stands for the data files in it, and not for those in its folders. A pattern such as
data/*.jsonl or data/**/*.json stands for what it matches.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, one_line, unreadable
from tinkersmith.paths import has_pattern, is_hub_name
from tinkersmith.plurals import counted

# What `tinkersmith split` writes; a new project's settings name them before they are there.
TRAIN_FILE = "data/train_set.json"
TEST_FILE = "data/test_set.json"

_DATA_SUFFIXES = frozenset(
    {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".parquet", ".pq", ".arrow", ".feather",
     ".xlsx", ".xlsm", ".xls", ".ods"}
)  # fmt: skip
_PACKED_SUFFIXES = frozenset({".gz", ".zst", ".zstd", ".bz2", ".xz"})
# Files that commands of ours write beside data: they hold what is no data.
_NOT_DATA = re.compile(
    r"(.*[._-])?(skipped|duplicates|findings)\.jsonl$|dataset_(infos?|dict)\.json$"
)
_SHOWN = 5  # names of files that were left out
_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_DRIVE = re.compile(r"([A-Za-z]):[\\/]")


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What some names stand for."""

    by_name: dict[str, list[Path]]  # each name that exists -> its files, which no other name has
    missing: list[str]
    notes: list[str] = field(default_factory=list[str])  # sentences for the user

    @property
    def paths(self) -> list[Path]:
        """All files, in the order of their names."""
        return [path for paths in self.by_name.values() for path in paths]


def find_files(files: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files and the missing names, see `look_up`."""
    found = look_up(files)
    return found.paths, found.missing


def look_up(names: Sequence[str]) -> FoundFiles:
    """The files that `names` stand for: as given, else in data/.

    Raises:
        UserError: no file exists, one is named twice, or a name is that of another machine.
    """
    by_name: dict[str, list[Path]] = {}
    missing: list[str] = []
    notes: list[str] = []
    taken: dict[Path, bool] = {}  # each file -> whether it was named itself
    for name in map(os.fspath, names):
        if not name.strip():
            raise UserError(
                "The name of a data file is empty, as an unset variable of a shell leaves it. Name "
                "a file, or . for the current folder."
            )
        if name in by_name:
            raise UserError(f"{name} is named twice. Name each file once.")
        paths, named_itself = _files_of(name, notes)
        if not paths:
            missing.append(name)
            continue
        by_name[name] = []
        again = 0
        for path in paths:
            other = _same_file(path, taken)
            if other is None:
                taken[path] = named_itself
                by_name[name].append(path)
            elif named_itself and taken[other]:
                raise UserError(f"{path} is named twice. Name each file once.")
            else:
                again += 1
        if again:
            notes.append(
                f"{name}: {counted(again, 'file was', 'files were')} named before, and "
                f"{'is' if again == 1 else 'are'} read once."
            )
    if not names:
        raise UserError("No data file is named. Name at least one.")
    if not by_name:
        advice = "Put a file there, or correct the name."
        if set(missing) <= {TRAIN_FILE, TEST_FILE}:
            advice = f"Make it from your data with: {command_line('split')}"
        raise UserError(f"{does_not_exist(missing)}. {advice}")
    return FoundFiles(by_name, missing, notes)


def refuse_inputs_as_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over what is read, by whatever name or link.

    Raises:
        UserError: an output is an input.
    """
    read = dict.fromkeys(inputs, True)
    resolved = {path.resolve() for path in read}
    for path in outputs:
        if path.resolve() in resolved or (_exists(path) and _same_file(path, read) is not None):
            raise UserError(f"{path} is an input and an output. Name another output.")


def does_not_exist(files: Sequence[str]) -> str:
    """The beginning of the sentence about missing data files, whatever follows from it."""
    verb = "does" if len(files) == 1 else "do"
    hints = [hint for hint in map(_hint, files) if hint]
    about = f"; {hints[0]}" if hints else ""
    return f"{', '.join(files)} {verb} not exist (looked in {_places()}{about})"


def _files_of(name: str, notes: list[str]) -> tuple[list[Path], bool]:
    """The files that a name stands for, and whether it names a single one itself."""
    if is_hub_name(name) and not _exists(Path(name)):
        return [Path(name)], True
    for spelling in _spellings(name):
        for place in _candidates(spelling):
            if not _exists(place):
                continue
            if spelling != name and not name.startswith(("~", "file:")):
                notes.append(f'Read {place} for the name "{one_line(name)}".')
            if place.is_dir():
                return _files_in(place, notes), False
            return [place], True
    spelling = _spellings(name)[0]
    if has_pattern(spelling):
        for place in _candidates(spelling):
            if matches := _matches(place, notes):
                return matches, False
    return [], False


def _spellings(name: str) -> list[str]:
    """The name, and what it may be meant as.

    Raises:
        UserError: it is the address of something on another machine.
    """
    if name.lower().startswith("file:"):
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{name} is on another machine ({parts.netloc}). Copy the file here.")
        return [
            url2pathname(unquote(parts.path)) if "%" in parts.path else url2pathname(parts.path)
        ]
    if match := _REMOTE.match(name):
        raise _remote(name, match.group(1).lower())
    spellings = [name]
    trimmed = name.strip().strip("\"'“”‘’").strip()
    if trimmed not in ("", name):
        spellings.append(trimmed)
    return [os.path.expanduser(spelling) for spelling in spellings]


def _remote(name: str, scheme: str) -> UserError:
    """The sentence about an address on the network."""
    data_set = re.match(
        r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)|hf:/)/datasets/"
        r"([\w.-]+/[\w.-]+)", name
    )  # fmt: skip
    if data_set and "/resolve/" not in name:
        return UserError(
            f"{name} is an address on a hub. Name the data set itself: hf:{data_set.group(1)}"
        )
    data_set = re.match(r"https?://(?:www\.)?modelscope\.cn/datasets/([\w.-]+/[\w.-]+)", name)
    if data_set and "/resolve/" not in name:
        return UserError(
            f"{name} is an address on a hub. Name the data set itself: ms:{data_set.group(1)}"
        )
    how = {"s3": "aws s3 cp", "gs": "gcloud storage cp", "oss": "ossutil cp"}.get(scheme)
    if scheme in ("http", "https", "ftp"):
        advice = f'Download it first, for example with: curl -L -O "{one_line(name, 300)}"'
    elif how:
        advice = f'Copy it here first, for example with: {how} "{one_line(name, 300)}" .'
    else:
        advice = "Copy the file to this machine, and name the copy."
    return UserError(f"{name} is an address of {scheme}, and no file on this machine. {advice}")


def _files_in(folder: Path, notes: list[str]) -> list[Path]:
    """The data files of a folder, sorted by name; what was left out goes into the notes.

    Raises:
        UserError: there is none, or the folder cannot be read.
    """
    try:
        inside = sorted(folder.iterdir())
        folders = [entry for entry in inside if entry.is_dir() and not _is_hidden(entry)]
    except OSError as error:
        raise unreadable(folder, error) from None
    files = [entry for entry in inside if entry not in folders and not _is_hidden(entry)]
    data = _data_among(files)
    if not data:
        below = next((file for entry in folders for file in _some_data(entry)), None)
        advice = ""
        if below:
            pattern = f"{folder.as_posix()}/**/*{below.suffix}"
            advice = f' To read those below it, write "{pattern}".'
            if (folder / "dataset_dict.json").is_file():
                advice += f' To read one split of this data set, write "{below.parent.as_posix()}".'
        raise UserError(
            f"{folder} is a folder without data files (such as .json, .jsonl, .csv or .parquet). "
            f"Name the files.{advice}"
        )
    taken = set(data)
    left_out = [entry.name for entry in files if entry not in taken]
    _note_left_out(f"the folder {folder.as_posix()}", left_out, folders, notes)
    return data


def _matches(pattern: Path, notes: list[str]) -> list[Path]:
    """The files that match a pattern, sorted; folders, and files that are no data, are left out."""
    try:
        matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
    except (OSError, ValueError, re.error):
        return []
    folders = [match for match in matches if match.is_dir()]
    files = [match for match in matches if match not in folders]
    # A pattern that says how names end means all of them.
    if re.search(r"[*?\]]$|\*\*$", pattern.name):
        data = _data_among(files)
        taken = set(data)
        left_out = [match.name for match in files if match not in taken]
        files = data
    else:
        left_out = []
    _note_left_out(pattern.as_posix(), left_out, [] if "**" in str(pattern) else folders, notes)
    return files


def _note_left_out(
    where: str, files: Sequence[str], folders: Sequence[Path], notes: list[str]
) -> None:
    if files:
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        shown = ", ".join(one_line(name, 60) for name in files[:_SHOWN])
        notes.append(
            f"Left out of {where}, because their names are not those of data: {shown}{more}."
        )
    if folders:
        shown = ", ".join(f"{one_line(folder.name, 60)}/" for folder in folders[:_SHOWN])
        more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
        notes.append(f"Left out of {where}: the folders {shown}{more}.")


def _data_among(files: Sequence[Path]) -> list[Path]:
    """The files that are data by their names. Of a saved data set these are the .arrow files."""
    saved = {file.parent for file in files if file.suffix.lower() == ".arrow"}
    return [
        file
        for file in files
        if _is_data(file) and not (file.name == "state.json" and file.parent in saved)
    ]


def _is_data(path: Path) -> bool:
    """Whether a file's name is that of data."""
    if _NOT_DATA.match(path.name):
        return False
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED_SUFFIXES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _DATA_SUFFIXES


def _some_data(folder: Path) -> list[Path]:
    try:
        return _data_among(sorted(folder.iterdir()))[:1]
    except OSError:
        return []


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _same_file(path: Path, others: dict[Path, bool]) -> Path | None:
    if path in others:
        return path
    if is_hub_name(path.as_posix()) and not _exists(path):
        return None
    for other in others:
        try:
            if _exists(other) and path.samefile(other):
                return other
        except OSError as error:  # it has just gone
            raise unreadable(path, error) from None
    return None


def _hint(name: str) -> str:
    """What is unusual about a name that does not exist."""
    if sys.platform == "win32":
        return ""
    if match := _DRIVE.match(name):
        below = name[3:].replace("\\", "/")
        return (
            f"{match.group(1)}: is a drive of Windows; under WSL it is "
            f"/mnt/{match.group(1).lower()}/{below}"
        )
    if "\\" in name:
        return f"with forward slashes it is {name.replace(chr(92), '/')}"
    if name.startswith("~") and os.path.expanduser(name) == name:
        return f"there is no user {name[1:].partition('/')[0]}"
    return ""


def _candidates(name: str) -> list[Path]:
    return [Path(name), Path("data") / name]


def _places() -> str:
    return f"{Path.cwd()}, {Path('data').absolute()}"


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; unlike `Path.exists`, alike in all versions of Python.

    Raises:
        UserError: the operating system cannot tell.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return True
