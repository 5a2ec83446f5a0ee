"""`tinkersmith engine check DIR`: what an engine's folder holds, and what of it is whole.

It reads every file and changes nothing without --repair. An engine may use the folder meanwhile.
"""

import argparse
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinkersmith.engine.errors import Refused, StorageFailure
from tinkersmith.engine.storage.database import (
    DATABASE,
    connection_to_read,
    database_damage,
    database_sentence,
)
from tinkersmith.engine.storage.folders import (
    CheckpointFolder,
    TinkerPath,
    read_labels,
    without_manifest,
)
from tinkersmith.engine.storage.rebuild import Findings, look_at
from tinkersmith.engine.storage.rows import StoredCheckpoint, check_rows, checkpoint_from_row
from tinkersmith.engine.storage.store import Store, damage_of
from tinkersmith.manifest import MANIFEST, DamagedFile, check_files, read_manifest
from tinkersmith.peft_format import ADAPTER_WEIGHTS
from tinkersmith.plurals import counted


@dataclass(slots=True)
class CheckReport:
    """What a check has found. What can be repaired is in `rows` alone."""

    folders: list[CheckpointFolder] = field(default_factory=list[CheckpointFolder])
    unchecked: list[str] = field(default_factory=list[str])  # without a manifest
    damage: list[str] = field(default_factory=list[str])  # of files: nothing here can repair it
    rows: list[str] = field(default_factory=list[str])  # of the database
    gone: list[TinkerPath] = field(default_factory=list[TinkerPath])  # rows without a folder
    strange: list[str] = field(default_factory=list[str])  # left as it is; no damage


def check_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 1 if damage remains."""
    parser = argparse.ArgumentParser(
        prog="tinkersmith engine check",
        description="Say which runs and checkpoints an engine's folder holds, and which are whole.",
    )
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the engine's folder, such as runs/.engine"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="set a damaged database aside and make its list of checkpoints anew",
    )
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        if not (folder / "checkpoints").is_dir():
            raise Refused(
                f"{folder} is not an engine's folder: it has no folder checkpoints. Name the "
                "folder that the engine runs with, such as runs/.engine."
            )
        if options.repair:
            before = check_folder(folder)
            store = Store(folder)  # opening it repairs it
            for path in before.gone:
                store.delete_checkpoint(path)  # its row is all that is left
            store.close()
            for sentence in before.rows:
                print(f"repaired: {sentence}")
        report = check_folder(folder)
    except (Refused, StorageFailure) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    _show(report, folder, options.repair)
    return 1 if report.damage or report.rows else 0


def check_folder(folder: Path) -> CheckReport:
    """Read everything in an engine's folder.

    Raises:
        StorageFailure: the database is locked.
    """
    report = CheckReport()
    findings = look_at(folder / "checkpoints")
    for path, folders in sorted(findings.by_path.items(), key=lambda item: str(item[0])):
        for entry in folders:
            report.folders.append(entry)
            _check_files_of(path, entry.folder, report)
    rows = _rows(folder, report)
    if rows is not None:
        _compare(folder, findings, rows, report)
    report.strange += [sentence for _, sentence in findings.strange]
    # Damage of a manifest has been told with the files.
    report.damage += [note for note in findings.damaged if f": {MANIFEST} is" not in note]
    return report


def _check_files_of(path: TinkerPath, folder: Path, report: CheckReport) -> None:
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            check_files(folder, manifest)
        elif not (folder / ADAPTER_WEIGHTS).is_file():
            raise DamagedFile(ADAPTER_WEIGHTS, "the file is gone")
        elif (reason := without_manifest(folder)) is not None:
            raise DamagedFile(MANIFEST, reason)
        else:
            report.unchecked.append(str(path))
    except DamagedFile as damage:
        report.damage.append(damage_of(path, damage))
    except OSError as error:
        report.damage.append(f"{folder} cannot be read: {error.strerror or error}.")


def _rows(folder: Path, report: CheckReport) -> dict[TinkerPath, StoredCheckpoint] | None:
    """The rows of the checkpoints; None: the database cannot tell."""
    file = folder / DATABASE
    if not file.exists() or file.stat().st_size == 0:
        if any((folder / "checkpoints").iterdir()):
            missing = "is empty" if file.exists() else "does not exist"
            report.rows.append(f"{file} {missing}: no checkpoint is in it.")
        return None
    reason = database_damage(file, check_rows)
    if reason is not None:
        report.rows.append(f"{file} is damaged: {reason}.")
        return None
    try:
        connection = connection_to_read(file)
        try:
            connection.row_factory = sqlite3.Row
            stored = [
                checkpoint_from_row(row) for row in connection.execute("SELECT * FROM checkpoints")
            ]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StorageFailure(database_sentence(error, folder)) from None
    return {entry.path: entry for entry in stored}


def _compare(
    folder: Path,
    findings: Findings,
    rows: dict[TinkerPath, StoredCheckpoint],
    report: CheckReport,
) -> None:
    root = folder / "checkpoints"
    for path in findings.by_path:
        row = rows.get(path)
        findings.choose(path, None if row is None else root / row.folder)
        if row is None:
            report.rows.append(f"{path} has no row in the database.")
    for path, row in rows.items():
        if path not in findings.by_path and (root / row.folder).is_dir():
            _check_files_of(path, root / row.folder, report)  # only its row says what it is
            try:
                read_labels(root / row.folder)
            except ValueError as reason:
                report.damage.append(f"{path}: {reason}")
        if not (root / row.folder).is_dir():
            expired = row.expires is not None and row.expires < time.time()
            if not expired and path not in findings.by_path:
                report.gone.append(path)
                report.rows.append(
                    f"{path} has a row, but its folder {root / row.folder} is gone: put it back, "
                    "or let the repair remove the row."
                )
    listed = {root / row.folder for row in rows.values()}
    findings.strange = [(place, note) for place, note in findings.strange if place not in listed]


def _show(report: CheckReport, folder: Path, repaired: bool) -> None:
    runs: defaultdict[str, list[CheckpointFolder]] = defaultdict(list)
    for entry in report.folders:
        runs[entry.path.run_id].append(entry)
    size = sum(entry.size_bytes for entry in report.folders)
    print(
        f"{folder}: {counted(len(runs), 'run')}, {counted(len(report.folders), 'checkpoint')}, "
        f"{size / 1e6:,.1f} MB"
    )
    for run_id, entries in sorted(runs.items()):
        facts = entries[0].facts
        print(f"{run_id}  {facts['base_model']}, rank {facts['rank']}")
        for entry in sorted(entries, key=lambda entry: entry.facts["created"]):
            saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.facts["created"]))
            print(
                f"  {entry.path.segment}/{entry.path.name}  {saved}  {entry.size_bytes / 1e6:,.1f} "
                "MB"
            )
    for sentence in report.damage:
        print(f"damaged: {sentence}")
    for sentence in report.rows:
        print(f"database: {sentence}")
    for sentence in report.strange:
        print(f"left as it is: {sentence}")
    if report.unchecked:
        print(
            f"not checked: {counted(len(report.unchecked), 'checkpoint')} without {MANIFEST}, "
            f"saved by an older version: {', '.join(report.unchecked)}"
        )
    if report.rows and not repaired:
        print(f"To repair the database: tinkersmith engine check {folder} --repair")
    if not report.damage and not report.rows:
        print("Everything that can be checked is whole.")
