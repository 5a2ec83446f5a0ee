"""The run folder: the settings of a run, what happened in it, and what it saved.

Appended files survive a kill; the others are written whole or not at all.
"""

import datetime as dt
import errno
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, one_line, unreadable
from tinkersmith.files import (
    kind_of_json,
    new_folder,
    open_regular,
    read_json_object,
    read_regular,
    write_atomically,
    write_json,
)
from tinkersmith.plurals import counted
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.reading import settings_for_file, settings_from
from tinkersmith.settings.spelling import output_dir_option
from tinkersmith.text.templates import PromptTemplate, template_from_json
from tinkersmith.version import __version__

_NAMES_FROM = "relative_names_start_from"  # seen from the run's folder
_PATH = re.compile(r"tinker://\S+")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_name_of_file(value: object) -> bool:
    """Whether the system can look for a file of this name: a lone surrogate has no bytes."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    with suppress(UnicodeEncodeError):
        return len(os.fsencode(value)) < 4096
    return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_list_of_objects(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(item, dict) for item in cast("list[object]", value))


SAMPLE_LOSSES_FILE = "sample_losses.jsonl"
MEASURED_FILE = "measured.jsonl"
SHOWN_ANSWERS_FILE = "shown_answers.jsonl"  # to some questions of EVAL_FILES, at each measurement
DELETED_CHECKPOINTS_FILE = "checkpoints.deleted.jsonl"  # by `sweep --keep best`
SAMPLES_FILE = "samples.json"  # the last file that a run writes
REQUESTS_FILE = "requests.jsonl"  # digests of what was sent
TRAINED_QUESTIONS_FILE = "trained_questions.bin"  # digests of what was trained on
IMPROVEMENT_FACT = "improvement"  # in settings.json
# A rehearsal is a folder in this folder of OUTPUT_DIR, with this file. It holds no model.
REHEARSALS, REHEARSAL_FILE = "rehearsals", "rehearsal.json"
# Files that no other program writes: they tell a run's folder where its settings.json is lost.
_OF_A_RUN = (REQUESTS_FILE, SAMPLE_LOSSES_FILE, TRAINED_QUESTIONS_FILE)
_START_AGAIN = "Restore the file from a backup, or start a new run."
_HALF_MADE = re.compile(r"\..+-\d{8}-\d{6}(-\d+)?\.\w{8}\.tmp").fullmatch
_HALF_MADE_AGE = 3600  # seconds: the process that made it is not at it any more
_LARGEST_LINES = 2_000_000_000  # bytes of an appended file: that of billions of tokens is smaller
# The numbers in metrics.jsonl, besides "step".
_NUMBERS = (
    "epoch",
    "loss",
    "learning_rate",
    "samples",
    "tokens",
    "completion_tokens",
    "tokens_per_second",
    "seconds",
    "grad_norm",
    "epoch_loss",
    "validation_loss",
    "last_sound_step",
)


# What a file of a run must hold, where it holds it: its type in words, and a test.
_Wanted = tuple[str, Callable[[object], bool]]
_TEXT: _Wanted = ("a string that is not empty", _is_text)
_PLACE: _Wanted = ("the name of a folder", _is_name_of_file)
_COUNT: _Wanted = ("a whole number of at least 0", _is_count)
_FACTS: dict[str, _Wanted] = {
    _NAMES_FROM: _PLACE,
    "settings": ("an object", lambda value: isinstance(value, dict)),
    "prompt_template": ("an object", lambda value: isinstance(value, dict)),
    "base_model": _TEXT,
    "backend": _TEXT,
    "base_fingerprint": ("a string or null", lambda value: value is None or _is_text(value)),
    "tokenizer_digest": _TEXT,
    "template_digest": _TEXT,
    "data_digest": _TEXT,
    "questions_digest": ("a string or null", lambda value: value is None or _is_text(value)),
    "sessions": ("a list of objects", _is_list_of_objects),
    "training_samples": _COUNT,
    "total_steps": _COUNT,
    "diverged_after": _COUNT,
    IMPROVEMENT_FACT: ("an object", lambda value: isinstance(value, dict)),
    "rehearsal": ("an object", lambda value: isinstance(value, dict)),
    "round_of": _PLACE,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved point of a run: the state to continue from, and the weights to sample from."""

    name: str
    step: int  # steps done before it
    epoch: int  # epochs done before it
    state_path: str
    sampler_path: str
    state_deleted: bool = False  # the state was deleted to save space; the weights are still there


_CHECKPOINT = fields(Checkpoint)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run, by its folder. Its files are described in docs/reference/run-files.md."""

    path: Path

    @classmethod
    def create(
        cls,
        output_dir: Path | str,
        prefix: str,
        now: dt.datetime,
        write: Callable[["RunFolder"], None] = lambda run: None,
    ) -> "RunFolder":
        """Make `<output_dir>/<prefix>-<YYYYmmdd-HHMMSS>`; two runs in one second get a number.

        Args:
            write: writes the first files. The folder appears with them, or not at all.

        Raises:
            UserError: the folder cannot be made.
        """
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(output_dir, error) from None
        _remove_half_made(Path(output_dir))
        stamp = now.strftime("%Y%m%d-%H%M%S")
        for number in range(1, 1000):
            ending = "" if number == 1 else f"-{number}"
            path = Path(output_dir) / f"{prefix}-{stamp}{ending}"
            try:
                with new_folder(path) as folder:
                    write(cls(folder))
                return cls(path)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # made by another process in this moment
                    continue
                raise _unwritable(output_dir, error) from None
        raise UserError(f"Too many runs were started in {output_dir} within one second.")

    @classmethod
    def next_name(cls, output_dir: Path | str, prefix: str, now: dt.datetime) -> str:
        """The name that `create` gives to a run of this moment, unless another takes it first."""
        stamp = f"{prefix}-{now:%Y%m%d-%H%M%S}"
        names = (stamp if number == 1 else f"{stamp}-{number}" for number in itertools.count(1))
        return next(name for name in names if not (Path(output_dir) / name).exists())

    @property
    def name(self) -> str:
        return self.path.name

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.path / name

    # ---- settings.json

    def write_facts(self, settings: Settings, template: PromptTemplate, **facts: Any) -> None:
        """Write settings, the prompt template, and `facts` (base_model, backend, data hash, ...).

        Relative names of files are written as seen from the run's folder, so that the run is found
        complete from any folder, and after its project has moved.
        """
        write_json(
            self.file("settings.json"),
            {
                _NAMES_FROM: ".",
                "settings": settings_for_file(settings, self.path),
                "prompt_template": template.to_json(),
                **facts,
            },
        )

    def facts(self) -> dict[str, Any]:
        """The content of settings.json.

        Raises:
            UserError: it is missing, damaged, or not that of a run.
        """
        file = self.file("settings.json")
        try:
            facts = read_json_object(file)
        except FileNotFoundError:
            raise UserError(self._without_settings()) from None
        except OSError as error:
            raise unreadable(file, error) from None
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}. {_START_AGAIN}") from None
        if not {"settings", "prompt_template"} <= set(facts):
            raise UserError(f"{file} does not describe a training run. Name another folder.")
        for name, (wanted, is_right) in _FACTS.items():
            if name in facts and not is_right(facts[name]):
                raise UserError(
                    f'{file} is damaged: "{name}" is {_brief(facts[name])}; it must be '
                    f"{wanted}. {_START_AGAIN}"
                )
        return facts

    def _without_settings(self) -> str:
        if not _is_of_a_run(self.path):
            return (
                f"{self.path} is not the folder of a run: it has no settings.json. Name a folder "
                "inside OUTPUT_DIR."
            )
        lost = f"{self.path} has lost its settings.json. Restore that file from a backup"
        with suppress(UserError):
            if saved := self.checkpoints():
                path = saved[-1].sampler_path
                return f"{lost}, or use its last checkpoint by its path, {path}"
        return f"{lost}, or start a new run."

    def fact(self, name: str) -> Any:
        """One of the facts that the run cannot be used without.

        Raises:
            UserError: settings.json is damaged, or lacks it.
        """
        facts = self.facts()
        if name not in facts:
            raise UserError(
                f'{self.file("settings.json")} is damaged: "{name}" is missing. {_START_AGAIN}'
            )
        return facts[name]

    def settings(self) -> Settings:
        """The settings that the run began with; names of files as seen from the current folder.

        Raises:
            UserError: settings.json is damaged, or a newer version wrote it.
        """
        facts = self.facts()
        file = self.file("settings.json")
        # Runs of version 0.1 hold names as seen from the folder that they were started in.
        folder = self.path / facts[_NAMES_FROM] if _NAMES_FROM in facts else Path()
        unknown = [name for name in facts["settings"] if name.lower() not in FIELDS]
        if unknown:
            raise UserError(
                f"{file} has the setting {one_line(unknown[0])!r}, which Tinkersmith {__version__} "
                "does not know. If a newer version made this run, use that one. Otherwise the file "
                f"is damaged. {_START_AGAIN}"
            )
        try:
            return settings_from(facts["settings"], folder=folder)
        except UserError as error:
            raise UserError(f"{file} is damaged: {error} {_START_AGAIN}") from None

    def template(self) -> PromptTemplate:
        """The prompt template that the run trained with.

        Raises:
            UserError: it is damaged.
        """
        try:
            return template_from_json(self.facts()["prompt_template"])
        except UserError as error:
            file = self.file("settings.json")
            raise UserError(f"{file} is damaged: {error} {_START_AGAIN}") from None

    def base_model(self) -> str:
        """The base model, by the name that the server knows."""
        return self.fact("base_model")

    # ---- appended files

    def append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Add lines to a JSON Lines file; they are on disk when this returns.

        Raises:
            OSError: the disk is full; the file is then as it was.
        """
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self.file(name).open("a+b", buffering=0) as file:
            # A line that a kill or a full disk cut short must not swallow the next one.
            end = _end_of_whole_lines(file)
            file.truncate(end)
            try:
                data = memoryview(text.encode("utf-8", "backslashreplace"))
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a JSON Lines file, without a last line that a kill cut short.

        Raises:
            UserError: another line is damaged; the sentence says which.
        """
        return [record for _, record in self._numbered_lines(name)]

    def _numbered_lines(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        file = self.file(name)
        try:
            data = read_regular(file, _LARGEST_LINES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(file, error) from None
        # Only "\n" ends a line: texts may hold U+2028 and its like, at which splitlines() cuts.
        return [
            (number, self._record(name, number, line))
            for number, line in enumerate(data.split(b"\n")[:-1], start=1)
            if line.strip()
        ]

    def each_line(self, name: str) -> Iterator[dict[str, Any]]:
        """Like `lines`, one by one: the file may be larger than the memory."""
        for _, record in self._lines_with_ends(name):
            yield record

    def cut_lines(self, name: str, step: int, aside: str) -> int:
        """Move the lines that come after a step to another file, and return how many they are.

        The steps of the lines ascend. The file may be larger than the memory.
        """
        cut_at, cut, end = 0, 0, 0
        for line_end, record in self._lines_with_ends(name):
            if not cut and record.get("step", 0) > step:
                cut_at, cut = end, 1
            elif cut:
                cut += 1
            end = line_end
        if not cut:
            return 0
        # The copy is on disk before the file is cut: a kill in between loses nothing.
        temporary = self.file(f"{aside}.tmp")
        with self.file(name).open("r+b") as file:
            file.seek(cut_at)
            with temporary.open("wb") as copy:
                shutil.copyfileobj(file, copy)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(temporary, self.file(aside))
            file.truncate(cut_at)
            os.fsync(file.fileno())
        return cut

    def _lines_with_ends(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each record of a JSON Lines file, and the byte at which its line ends."""
        end = 0
        try:
            with open_regular(self.file(name)) as file:
                for number, line in enumerate(file, start=1):
                    end += len(line)
                    if line.endswith(b"\n") and line.strip():
                        yield end, self._record(name, number, line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(self.file(name), error) from None

    def _record(self, name: str, number: int, line: bytes) -> dict[str, Any]:
        try:
            record: object = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise self._damaged_line(name, number, "it is not JSON") from None
        if not isinstance(record, dict):
            what = f"it is {kind_of_json(record)} instead of an object"
            raise self._damaged_line(name, number, what)
        return cast("dict[str, Any]", record)

    def _damaged_line(self, name: str, number: int, reason: str) -> UserError:
        file = self.file(name)
        return UserError(f"{file}, line {number} is damaged: {reason}. Remove that line.")

    def rewrite(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Replace a JSON Lines file as a whole."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomically(self.file(name), text)

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add a line to checkpoints.jsonl."""
        self.append("checkpoints.jsonl", [asdict(checkpoint)])

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints of the run, oldest first. Fields that a newer version added are ignored.

        Raises:
            UserError: a line is damaged; the sentence says which.
        """
        checkpoints: list[Checkpoint] = []
        for number, record in self._numbered_lines("checkpoints.jsonl"):
            if reason := _wrong_checkpoint(record):
                raise self._damaged_line("checkpoints.jsonl", number, reason)
            checkpoint = Checkpoint(
                **{field.name: record[field.name] for field in _CHECKPOINT if field.name in record}
            )
            before = checkpoints[-1] if checkpoints else None
            if before and checkpoint.step < before.step:
                reason = f"its step {checkpoint.step:,} comes after step {before.step:,}"
                raise self._damaged_line("checkpoints.jsonl", number, reason)
            if checkpoint not in checkpoints:  # a line that is there twice says nothing new
                checkpoints.append(checkpoint)
        return checkpoints

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, whose numbers are numbers.

        Raises:
            UserError: a line is damaged; the sentence says which.
        """
        lines: list[dict[str, Any]] = []
        for number, record in self._numbered_lines("metrics.jsonl"):
            if reason := _wrong_metrics(record):
                raise self._damaged_line("metrics.jsonl", number, reason)
            lines.append(record)
        return lines


def lost_lines(run: RunFolder, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is gone from metrics.jsonl and checkpoints.jsonl, in sentences.

    Each step has its line before it is saved, and the last one is saved: no kill leaves less.

    Args:
        metrics: the lines of metrics.jsonl, which may be many.

    Raises:
        UserError: a file of the run is damaged.
    """
    if IMPROVEMENT_FACT in run.facts():  # whose rounds have no line for each step
        return []
    saved = run.checkpoints()
    if not saved:
        file = run.file("checkpoints.jsonl")
        was_deleted = run.file(DELETED_CHECKPOINTS_FILE).is_file()
        if was_deleted or not run.file(SAMPLES_FILE).is_file():
            return []
        return [f"{file} has lost its lines: the run came to its end, and names no checkpoint."]
    last = saved[-1].step
    there = {line["step"] for line in metrics if "loss" in line}
    lost = last - sum(step <= last for step in there)
    if lost <= 0:
        return []
    file = run.file("metrics.jsonl")
    return [f"{file} has lost {counted(lost, 'step')} of the {last:,} before the last checkpoint."]


def all_runs(output_dir: Path | str) -> list[RunFolder]:
    """Every run in `output_dir`, newest first: also one that lost its settings.json."""
    ages: list[tuple[int, Path]] = []
    try:
        paths = [path for path in Path(output_dir).iterdir() if not path.name.startswith(".")]
    except OSError:  # there is no such folder yet
        return []
    for path in paths:
        with suppress(OSError):  # it is no folder, or deleted while we look
            if (age := _age(path)) is not None:
                ages.append((age, path))
    return [RunFolder(path) for _, path in sorted(ages, key=lambda pair: pair[0], reverse=True)]


def _age(path: Path) -> int | None:
    """When a run began; None for a folder that is none."""
    with suppress(FileNotFoundError):
        return (path / "settings.json").stat().st_mtime_ns
    return path.stat().st_mtime_ns if _is_of_a_run(path) else None


def _is_of_a_run(path: Path) -> bool:
    """Whether a folder has what a run writes beside its settings.json."""
    return any((path / name).is_file() for name in _OF_A_RUN)


def newest_run(output_dir: Path | str) -> RunFolder:
    """The newest run, which must have a checkpoint: an older one may be of another model.

    Raises:
        UserError: there is no run, or the newest one is damaged or has no checkpoint.
    """
    runs = all_runs(output_dir)
    if runs and runs[0].checkpoints():
        return runs[0]
    for run in runs[1:]:
        other = ""
        with suppress(UserError):  # a damaged one cannot be recommended
            if saved := run.checkpoints():
                other = f"{run.name} ({run.base_model()}) has {saved[-1].sampler_path}"
        if other:
            raise UserError(
                f"The newest run in {output_dir}, {runs[0].name}, has no checkpoint. Train on, or "
                f"name what to use instead: {other}."
            )
    which = f": {runs[0].name} has no checkpoint yet" if runs else ""
    raise UserError(
        f"There is no finished run in {output_dir}{which}. Train one first: "
        f"{command_line('train', *output_dir_option(output_dir))}"
    )


def open_run(name: str, output_dir: Path | str) -> RunFolder:
    """The run with this folder, or with this name inside `output_dir`.

    Raises:
        UserError: there is no such run; the newest runs are named.
    """
    for path in (Path(name), Path(output_dir) / name):
        with suppress(OSError, ValueError):  # too long a name, or one with a NUL
            if (path / "settings.json").is_file():
                return RunFolder(path)
            for folder in (path, Path(output_dir) / REHEARSALS / name):
                if (folder / REHEARSAL_FILE).is_file():
                    raise UserError(
                        f"{folder} is a rehearsal: it holds what a run is to send, and no model. "
                        "Name a run."
                    )
            if _is_of_a_run(path):  # its first use says what it lacks
                return RunFolder(path)
    known = ", ".join(run.name for run in all_runs(output_dir)[:5]) or "none"
    for path in (Path(name), Path(output_dir) / name):
        with suppress(OSError, ValueError):
            if path.exists():
                raise UserError(
                    f"{path} is no run: a run is a folder with a settings.json. The newest runs in "
                    f"{output_dir}: {known}."
                )
    raise UserError(f"There is no run {name} in {output_dir}. The newest runs there: {known}.")


def run_of(tinker_path: str, output_dir: Path | str) -> tuple[RunFolder, Checkpoint] | None:
    """The run and the checkpoint that a tinker:// path belongs to; None for other paths.

    Raises:
        UserError: no run lists the path, and one of them is damaged, so that it may be that one's.
    """
    damage: UserError | None = None
    for run in all_runs(output_dir):
        if not run.file("settings.json").is_file():  # it can say nothing of its checkpoints
            continue
        try:
            checkpoints = run.checkpoints()
        except UserError as error:  # of another run, if one of the others lists the path
            damage = damage or error
            continue
        for checkpoint in checkpoints:
            if tinker_path in (checkpoint.state_path, checkpoint.sampler_path):
                return run, checkpoint
    if damage is not None:
        raise damage
    return None


def _remove_half_made(output_dir: Path) -> None:
    """Remove folders of runs that a kill ended in the moment when they were made."""
    for folder in output_dir.glob(".*.tmp"):
        with suppress(OSError):  # another process was faster
            names = {path.name for path in folder.iterdir()} if _HALF_MADE(folder.name) else {"?"}
            is_old = time.time() - folder.stat().st_mtime > _HALF_MADE_AGE
            first = ("settings.json", REQUESTS_FILE, TRAINED_QUESTIONS_FILE)
            if is_old and all(any(file in name for file in first) for name in names):
                shutil.rmtree(folder)


def _unwritable(output_dir: Path | str, error: OSError) -> UserError:
    return UserError(
        f"OUTPUT_DIR {output_dir} cannot be written to: {error.strerror}. Choose another folder, "
        "or free some space."
    )


def _wrong_checkpoint(record: dict[str, Any]) -> str:
    """What is wrong with a line of checkpoints.jsonl; "" if nothing is."""
    checks: dict[str, _Wanted] = {
        "name": _TEXT,
        "step": _COUNT,
        "epoch": _COUNT,
        "state_path": ("a tinker:// path", _is_path),
        "sampler_path": ("a tinker:// path", _is_path),
        "state_deleted": ("true or false", lambda value: isinstance(value, bool)),
    }
    for name, (wanted, is_right) in checks.items():
        if name not in record:
            if name == "state_deleted":
                continue
            return f'"{name}" is missing'
        if not is_right(record[name]):
            return f'"{name}" is {_brief(record[name])}; it must be {wanted}'
    return ""


def _wrong_metrics(record: dict[str, Any]) -> str:
    """What is wrong with a line of metrics.jsonl; "" if nothing is."""
    if "step" not in record:
        return '"step" is missing'
    if not _is_count(record["step"]):
        return f'"step" is {_brief(record["step"])}; it must be {_COUNT[0]}'
    needed = ("epoch", "completion_tokens") if "loss" in record else ()
    for name in ("last_sound_step",) if record.get("diverged") else needed:
        if name not in record:
            return f'"{name}" is missing'
    for name, value in record.items():
        is_measured = name in _NUMBERS or name.startswith("eval/")
        if is_measured and not _is_number(value):
            return f'"{name}" is {_brief(value)}; it must be a number'
    return ""


def _is_path(value: object) -> bool:
    return isinstance(value, str) and _PATH.fullmatch(value) is not None


def _is_number(value: object) -> bool:
    """Whether this is a number; a loss may be infinite or NaN where training diverged."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _brief(value: object) -> str:
    return f'"{one_line(value)}"' if isinstance(value, str) else kind_of_json(value)


def _end_of_whole_lines(file: BinaryIO) -> int:
    """Where the last complete line ends. Reads backwards, because the file may be long."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - 65536, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
