"""The run folder: the settings of a run, what happened in it, and what it saved.

Appended files survive a kill; the others are written whole or not at all.
"""

import datetime as dt
import errno
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.files import new_folder, write_atomically, write_json
from tinkersmith.settings import Settings, settings_for_file, settings_from
from tinkersmith.text.templates import PromptTemplate, template_from_json

_NAMES_FROM = "relative_names_start_from"  # seen from the run's folder


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved point of a run: the state to continue from, and the weights to sample from."""

    name: str
    step: int  # steps done before it
    epoch: int  # epochs done before it
    state_path: str
    sampler_path: str
    state_deleted: bool = False  # the state was deleted to save space; the weights are still there


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
            facts: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is not the folder of a run: it has no settings.json. Name a folder "
                "inside OUTPUT_DIR."
            ) from None
        except ValueError as error:
            raise UserError(f"{file} is damaged ({error}). Start a new run.") from None
        names = set(cast(dict[str, Any], facts)) if isinstance(facts, dict) else set[str]()
        if not {"settings", "prompt_template"} <= names:
            raise UserError(f"{file} does not describe a training run. Name another folder.")
        return cast(dict[str, Any], facts)

    def settings(self) -> Settings:
        """The settings that the run began with; names of files as seen from the current folder."""
        facts = self.facts()
        # Runs of version 0.1 hold names as seen from the folder that they were started in.
        folder = self.path / facts[_NAMES_FROM] if _NAMES_FROM in facts else Path()
        return settings_from(
            facts["settings"], where=str(self.file("settings.json")), folder=folder
        )

    def template(self) -> PromptTemplate:
        """The prompt template that the run trained with."""
        return template_from_json(self.facts()["prompt_template"])

    def base_model(self) -> str:
        """The base model, by the name that the server knows."""
        return self.facts()["base_model"]

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
            UserError: another line is damaged.
        """
        file = self.file(name)
        if not file.is_file():
            return []
        # Only "\n" ends a line: texts may hold U+2028 and its like, at which splitlines() cuts.
        whole = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        records: list[dict[str, Any]] = []
        for number, line in enumerate(whole, start=1):
            try:
                records.append(json.loads(line))
            except ValueError:
                raise UserError(f"{file}, line {number} is damaged. Remove that line.") from None
        return records

    def rewrite(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Replace a JSON Lines file as a whole."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomically(self.file(name), text)

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add a line to checkpoints.jsonl."""
        self.append("checkpoints.jsonl", [asdict(checkpoint)])

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints of the run, oldest first."""
        return [Checkpoint(**record) for record in self.lines("checkpoints.jsonl")]


def all_runs(output_dir: Path | str) -> list[RunFolder]:
    """Every run in `output_dir` that has its settings.json, newest first."""
    folder = Path(output_dir)
    files = list(folder.glob("*/settings.json")) if folder.is_dir() else []
    files = [file for file in files if not file.parent.name.startswith(".")]  # half made
    newest_first = sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return [RunFolder(file.parent) for file in newest_first]


def newest_run(output_dir: Path | str) -> RunFolder:
    """The newest run with a checkpoint.

    Raises:
        UserError: there is no such run.
    """
    runs = all_runs(output_dir)
    for run in runs:
        if run.checkpoints():
            return run
    raise UserError(
        f"There is no finished run in {output_dir}. Train one first: {command_line('train')}"
    )


def open_run(name: str, output_dir: Path | str) -> RunFolder:
    """The run with this folder, or with this name inside `output_dir`.

    Raises:
        UserError: there is no such run; the newest runs are named.
    """
    for path in (Path(name), Path(output_dir) / name):
        if (path / "settings.json").is_file():
            return RunFolder(path)
    known = ", ".join(run.name for run in all_runs(output_dir)[:5]) or "none"
    raise UserError(f"There is no run {name} in {output_dir}. The newest runs there: {known}.")


def run_of(tinker_path: str, output_dir: Path | str) -> tuple[RunFolder, Checkpoint] | None:
    """The run and the checkpoint that a tinker:// path belongs to; None for other paths."""
    for run in all_runs(output_dir):
        for checkpoint in run.checkpoints():
            if tinker_path in (checkpoint.state_path, checkpoint.sampler_path):
                return run, checkpoint
    return None


def _unwritable(output_dir: Path | str, error: OSError) -> UserError:
    return UserError(
        f"OUTPUT_DIR {output_dir} cannot be written to: {error.strerror}. Choose another folder, "
        "or free some space."
    )


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
