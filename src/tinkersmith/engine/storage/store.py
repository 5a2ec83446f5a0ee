"""Training runs, checkpoints and samplers on disk: weights in folders, and an index in SQLite.

The folders are the truth and the database is an index of them: whatever happens to the database,
its rows are made anew from the folders. A folder of weights is complete before its row names it,
and a new version gets a folder of its own: if the engine is killed at any moment, either the old
checkpoint or the new one is intact. Several engines may share one directory.
"""

import asyncio
import errno
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from tinkersmith.engine.errors import NotFound, Refused, StorageFailure
from tinkersmith.engine.log import log
from tinkersmith.engine.storage.database import Database, full_disk_sentence, insertion
from tinkersmith.engine.storage.folders import (
    CheckpointFolder,
    TinkerPath,
    file_name,
    finish_deletions,
    folder_size,
    marked_deleted,
    sweep_half_written,
    without_manifest,
    write_labels,
    writing,
)
from tinkersmith.engine.storage.rebuild import Findings, current_run, look_at
from tinkersmith.engine.storage.rows import (
    StoredCheckpoint,
    StoredRun,
    StoredSampler,
    StoredSession,
    check_rows,
    checkpoint_columns,
    checkpoint_from_row,
    run_columns,
    run_from_row,
    session_from_row,
)
from tinkersmith.files import new_folder
from tinkersmith.manifest import (
    LABELS,
    MANIFEST,
    DamagedFile,
    ForeignFile,
    check_files,
    read_manifest,
    write_manifest,
)

_T = TypeVar("_T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAMED_AT_START = 100  # lines of the log; `tinkersmith engine check` lists the rest
_SHOWN_NAMES = 5  # checkpoints of a run, where another was asked for
_READERS, _WRITERS = 2, 8  # threads; those that wait for a locked database hold up no reader


@dataclass(frozen=True, slots=True)
class CheckedCheckpoint:
    """A checkpoint whose files are those that were saved."""

    path: TinkerPath
    folder: Path
    manifest: dict[str, Any] | None  # None: an older version saved it, and nothing can be compared


@dataclass(slots=True)
class NewCheckpoint:
    """A checkpoint that is being written."""

    folder: Path  # a temporary one, to write its files to
    size_bytes: int = 0  # known when it is registered


class Store:
    """The index and the folders. Safe to use from several threads; see `read` and `write`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "checkpoints"
        make_folder(folder)
        make_folder(self.root)
        self._unchecked: set[str] = set()  # checkpoints without a manifest that the log has named
        self._readers = ThreadPoolExecutor(_READERS, "store-read")
        self._writers = ThreadPoolExecutor(_WRITERS, "store-write")
        self._database = Database(folder, self._rebuild, check_rows)
        self._database.open()

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)
        self._database.close()

    async def read(self, query: Callable[[], _T]) -> _T:
        """Call `query`, which only reads, in a thread: the event loop never waits for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, query)

    async def write(self, change: Callable[[], _T]) -> _T:
        """Call `change`, which may wait for the database's lock, in a thread."""
        asked = time.monotonic()

        def write() -> _T:
            with self._database.asked_at(asked):
                return change()

        return await asyncio.get_running_loop().run_in_executor(self._writers, write)

    # ---- sessions and runs

    def add_session(
        self, session_id: str, user_metadata: dict[str, str], display_name: str | None
    ) -> None:
        columns = {
            "id": session_id,
            "created": time.time(),
            "user_metadata": json.dumps(user_metadata),
            "display_name": display_name,
        }
        self._database.insert("sessions", columns, remember=True)

    def session(self, session_id: str) -> StoredSession:
        """The session with this id.

        Raises:
            NotFound: there is no such session.
        """
        rows = self._database.rows("SELECT * FROM sessions WHERE id = ?", (session_id,))
        if not rows:
            raise NotFound(f"there is no session {session_id}.")
        return session_from_row(rows[0])

    def sessions(self) -> list[StoredSession]:
        """All sessions, newest first."""
        rows = self._database.rows("SELECT * FROM sessions ORDER BY created DESC, id DESC")
        return [session_from_row(row) for row in rows]

    def add_run(self, run: StoredRun) -> None:
        """Store a run; one that is stored already is written again."""
        columns = {**run_columns(run), "created": time.time(), "last_request": run.last_request}
        self._database.insert("runs", columns, remember=True)

    def touch_runs(self, run_ids: Collection[str]) -> None:
        """Store that these runs have been used now."""
        now = time.time()
        rows = [(now, run_id) for run_id in run_ids]
        self._database.write(
            lambda connection: connection.executemany(
                "UPDATE runs SET last_request = ? WHERE id = ?", rows
            )
        )

    def run(self, run_id: str) -> StoredRun:
        """The run with this id.

        Raises:
            NotFound: there is no such run.
        """
        rows = self._database.rows("SELECT * FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise NotFound(f"there is no training run {run_id}.")
        return run_from_row(rows[0])

    def runs(self, session_id: str | None = None) -> list[StoredRun]:
        """All runs, or those of one session; newest first."""
        where, values = ("WHERE session_id = ?", (session_id,)) if session_id else ("", ())
        rows = self._database.rows(f"SELECT * FROM runs {where} ORDER BY created DESC", values)
        return [run_from_row(row) for row in rows]

    # ---- samplers

    def add_sampler(
        self, sampler_id: str, session_id: str, base_model: str, model_path: str | None
    ) -> None:
        columns = {
            "id": sampler_id,
            "session_id": session_id,
            "base_model": base_model,
            "model_path": model_path,
            "created": time.time(),
        }
        self._database.insert("samplers", columns)

    def sampler(self, sampler_id: str) -> StoredSampler:
        """The sampler with this id.

        Raises:
            NotFound: there is no such sampler.
        """
        rows = self._database.rows("SELECT * FROM samplers WHERE id = ?", (sampler_id,))
        if not rows:
            raise NotFound(f"there is no sampler {sampler_id}.")
        return StoredSampler(rows[0]["id"], rows[0]["base_model"], rows[0]["model_path"])

    def sampler_ids(self, session_id: str) -> list[str]:
        rows = self._database.rows(
            "SELECT id FROM samplers WHERE session_id = ? ORDER BY created", (session_id,)
        )
        return [row["id"] for row in rows]

    # ---- saving checkpoints

    def check_new(self, path: TinkerPath, overwrite: bool) -> None:
        """Check that a checkpoint can be stored under `path`.

        Raises:
            Refused: the name is not allowed, or is taken.
        """
        if not _NAME.fullmatch(path.name):
            raise Refused(
                f"the checkpoint name {path.name!r} must be 1 to 128 letters, digits, '.', '_' or "
                "'-', and begin with a letter or digit."
            )
        stored = None if overwrite else self._find(path)
        if stored is not None and self.weights_folder(stored).is_dir():
            # Only save_state can overwrite.
            more = (
                " or pass overwrite=True" if path.segment == "weights" else ", or delete it first"
            )
            raise Refused(f"{path} already exists; choose another name{more}.")

    @contextmanager
    def new_checkpoint(
        self,
        path: TinkerPath,
        facts: Mapping[str, object],
        user_metadata: dict[str, str] | None = None,
        ttl_seconds: int | None = None,
        recipients: list[str] | None = None,
    ) -> Generator["NewCheckpoint"]:
        """Yield a folder to write a checkpoint's files to, which is then hashed and registered.

        An earlier checkpoint of this name is deleted when the new one is complete. `facts` are
        those that the manifest gets besides what the store knows. The block may be left on another
        thread than it was entered on.

        Raises:
            StorageFailure, OSError: the disk is full or the database locked; nothing is left then.
        """
        created = time.time()
        folder = self.new_weights_folder(path)
        with new_folder(folder) as temporary:
            with writing(temporary):
                new = NewCheckpoint(temporary)
                yield new
            labels = {
                "public": False,
                "expires": None if ttl_seconds is None else created + ttl_seconds,
                "recipients": recipients or [],
                "user_metadata": user_metadata,
            }
            write_manifest(
                temporary,
                {
                    "id": secrets.token_hex(16),
                    "run_id": path.run_id,
                    "segment": path.segment,
                    "name": path.name,
                    "created": created,
                    **facts,
                    "labels": labels,
                    "replaces": self._id_of(path),
                    **self._origin(path.run_id),
                },
            )
        try:
            new.size_bytes = self.add_checkpoint(
                path, folder, user_metadata, ttl_seconds, recipients, created
            ).size_bytes
        except BaseException:
            self._remove_folder(folder)
            raise

    def new_weights_folder(self, path: TinkerPath) -> Path:
        """A folder for the weights of `path` that does not exist yet, beside an earlier version."""
        folder = self.root / file_name(path.run_id) / path.segment / path.name
        make_folder(folder.parent)
        if not folder.exists():
            return folder
        return folder.with_name(f"{path.name}.{secrets.token_hex(4)}")

    def add_checkpoint(
        self,
        path: TinkerPath,
        folder: Path,
        user_metadata: dict[str, str] | None = None,
        ttl_seconds: int | None = None,
        recipients: list[str] | None = None,
        created: float | None = None,
    ) -> StoredCheckpoint:
        """Register a checkpoint whose `folder` is complete; delete an earlier one of this name."""
        now = time.time() if created is None else created
        new = StoredCheckpoint(
            path=path,
            created=now,
            size_bytes=folder_size(folder),
            public=False,
            user_metadata=user_metadata,
            expires=None if ttl_seconds is None else now + ttl_seconds,
            recipients=recipients or [],
            folder=folder.relative_to(self.root).as_posix(),
        )
        columns = checkpoint_columns(new)

        def put(connection: sqlite3.Connection) -> Path | None:
            old = _row_of(connection, path)
            connection.execute(insertion("checkpoints", columns), tuple(columns.values()))
            # Another engine that started meanwhile may have registered this very folder.
            return self.root / old.folder if old and old.folder != new.folder else None

        self._change_and_delete(put)
        return new

    def copy_checkpoint(
        self, source: TinkerPath, path: TinkerPath, ttl_seconds: int | None
    ) -> None:
        """Store `path`, of a run that cannot be trained, with the files of `source`, by hard links.

        Raises:
            Refused: there is no such checkpoint, or its files are damaged.
        """
        session_id = path.run_id.partition(":")[0]
        original, run = self.checkpoint(source), self.run(source.run_id)
        # An earlier attempt may have made it, or may have ended anywhere on its way.
        if self._find(path) is not None:
            return
        checked = self.checked(source)
        if session_id not in [session.id for session in self.sessions()]:
            self.add_session(session_id, {}, f"copy of {source}")
        if path.run_id not in [known.id for known in self.runs(session_id)]:
            now = time.time()
            self.add_run(
                StoredRun(
                    *(path.run_id, session_id, run.base_model, run.lora, run.user_metadata, now),
                    optimizer=run.optimizer,
                )
            )
        told = checked.manifest or {"base_model": run.base_model, "rank": run.lora.rank}
        facts = {
            name: told[name]
            for name in ("base_model", "base_fingerprint", "rank", "versions", "dtype", "device")
            if name in told
        }
        with self.new_checkpoint(
            path, facts, original.user_metadata, ttl_seconds, original.recipients
        ) as new:
            for file in sorted(checked.folder.iterdir()):
                if file.name not in (MANIFEST, LABELS) and not file.name.startswith("."):
                    _link_or_copy(file, new.folder / file.name)

    # ---- stored checkpoints

    def weights_folder(self, checkpoint: StoredCheckpoint) -> Path:
        return self.root / checkpoint.folder

    def checkpoint(self, path: TinkerPath) -> StoredCheckpoint:
        """The checkpoint of this path.

        Raises:
            NotFound: there is no such checkpoint, or it has expired.
            Refused: its folder is gone.
        """
        checkpoint = self._find(path)
        if checkpoint is None:
            raise NotFound(f"{path} does not exist here: {self._what_is_there(path)}")
        if not self.weights_folder(checkpoint).is_dir():
            raise Refused(
                f"{path} is in the database, but its files in {self.weights_folder(checkpoint)} "
                "are gone. Put the folder back there, or delete the checkpoint and use another."
            )
        return checkpoint

    def checked(
        self,
        path: TinkerPath,
        read: Collection[str] | None = None,
        *,
        only: Collection[str] | None = None,
    ) -> CheckedCheckpoint:
        """Check a checkpoint's files against its manifest; see `manifest.check_files`.

        Raises:
            Refused: there is no such checkpoint, or a file is not the one that was saved.
        """
        folder = self.weights_folder(self.checkpoint(path))
        try:
            manifest = read_manifest(folder)
            if manifest is None:
                self._accept_without_manifest(path, folder)
                return CheckedCheckpoint(path, folder, None)
            saved_as = TinkerPath(manifest["run_id"], manifest["segment"], manifest["name"])
            if saved_as != path:
                raise DamagedFile(MANIFEST, f"it is that of another checkpoint, {saved_as}")
            check_files(folder, manifest, read, only=only)
        except DamagedFile as damage:
            raise Refused(damage_of(path, damage)) from None
        return CheckedCheckpoint(path, folder, manifest)

    def _accept_without_manifest(self, path: TinkerPath, folder: Path) -> None:
        reason = without_manifest(folder)
        if reason is not None:
            raise DamagedFile(MANIFEST, reason)
        if str(path) not in self._unchecked:
            self._unchecked.add(str(path))
            log.warning(
                "%s was saved by a version that wrote no %s: its files cannot be checked",
                *(path, MANIFEST),
            )

    def checkpoints(self, run_id: str | None = None) -> list[StoredCheckpoint]:
        """The checkpoints, of all runs or of one, whose files are there; newest first."""
        where, values = ("WHERE run_id = ?", (run_id,)) if run_id else ("", ())
        rows = self._database.rows(
            f"SELECT * FROM checkpoints {where} ORDER BY created DESC, rowid DESC", values
        )
        stored = [checkpoint_from_row(row) for row in rows]
        now = time.time()
        living = [entry for entry in stored if entry.expires is None or entry.expires >= now]
        if len(living) < len(stored):
            with suppress(StorageFailure):  # the engine tries again every minute, and says so
                self.delete_expired(patience=0)
        return [entry for entry in living if self.weights_folder(entry).is_dir()]

    def delete_checkpoint(self, path: TinkerPath) -> None:
        """Delete a checkpoint and its files.

        Raises:
            Refused: there is no such checkpoint.
        """
        if self._find(path) is None:
            self.checkpoint(path)  # raises

        def delete(connection: sqlite3.Connection) -> Path | None:
            return _delete_row(connection, path, self.root)

        self._change_and_delete(delete)

    def delete_expired(self, patience: float | None = None) -> None:
        """Delete the checkpoints whose time to live is over."""
        expired = self._database.rows("SELECT * FROM checkpoints WHERE expires < ?", (time.time(),))
        for row in expired:
            path = checkpoint_from_row(row).path

            def delete(connection: sqlite3.Connection, path: TinkerPath = path) -> Path | None:
                stored = _row_of(connection, path)
                if stored is None or stored.expires is None or stored.expires >= time.time():
                    return None  # another engine was faster, or its time has been changed
                return _delete_row(connection, path, self.root)

            self._change_and_delete(delete, patience)

    def set_public(self, path: TinkerPath, public: bool) -> None:
        self._set_label(path, "public", public)

    def set_ttl(self, path: TinkerPath, ttl_seconds: int | None) -> None:
        expires = None if ttl_seconds is None else time.time() + ttl_seconds
        self._set_label(path, "expires", expires)

    def _set_label(self, path: TinkerPath, column: str, value: object) -> None:
        folder = self.weights_folder(self.checkpoint(path))

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(
                f"UPDATE checkpoints SET {column} = ? "
                "WHERE run_id = ? AND segment = ? AND name = ?",
                (value, path.run_id, path.segment, path.name),
            )
            stored = _row_of(connection, path)
            if stored is not None:
                write_labels(folder, stored.labels())  # before the commit: a rebuild finds it there

        self._database.write(change)

    def _what_is_there(self, path: TinkerPath) -> str:
        """What is stored in place of a checkpoint that is not."""
        try:
            self.run(path.run_id)
        except NotFound:
            return (
                f"the run {path.run_id} is not stored in {self.root}. It was deleted, or another "
                "server or another OUTPUT_DIR has it."
            )
        stored = [entry.path for entry in self.checkpoints(path.run_id)]
        names = [f"{other.segment}/{other.name}" for other in stored]
        if not names:
            return "its run has no checkpoint yet, or no longer."
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        return f"its run has {', '.join(names[:_SHOWN_NAMES])}{more}."

    def _find(self, path: TinkerPath) -> StoredCheckpoint | None:
        rows = self._database.rows(
            "SELECT * FROM checkpoints WHERE run_id = ? AND segment = ? AND name = ? "
            "AND (expires IS NULL OR expires >= ?)",
            (path.run_id, path.segment, path.name, time.time()),
        )
        return checkpoint_from_row(rows[0]) if rows else None

    # ---- files

    def _change_and_delete(
        self,
        change: Callable[[sqlite3.Connection], Path | None],
        patience: float | None = None,
    ) -> None:
        """Change rows, and delete the folder that `change` returns once that is committed."""
        folder: Path | None = None
        marked: Path | None = None

        def act(connection: sqlite3.Connection) -> None:
            nonlocal folder, marked
            folder = change(connection)
            if folder is not None and folder.is_dir():
                marked = marked_deleted(folder)

        try:
            self._database.write(act, patience=patience)
        except BaseException:
            if marked is not None and folder is not None:
                os.rename(marked, folder)  # the row still names it
            raise
        if marked is not None:
            shutil.rmtree(marked, ignore_errors=True)

    def _remove_folder(self, folder: Path) -> None:
        with suppress(OSError):
            shutil.rmtree(marked_deleted(folder), ignore_errors=True)

    def _id_of(self, path: TinkerPath) -> str | None:
        """The id in the manifest of the checkpoint that has this path now."""
        stored = self._find(path)
        if stored is None:
            return None
        try:
            manifest = read_manifest(self.weights_folder(stored))
        except (DamagedFile, OSError):
            return None
        return None if manifest is None else manifest.get("id")

    def _origin(self, run_id: str) -> dict[str, object]:
        """What a manifest keeps of the run and its session, so that a rebuild finds it."""
        rows = self._database.rows("SELECT * FROM runs WHERE id = ?", (run_id,))
        if not rows:
            return {}
        run = {name: rows[0][name] for name in rows[0].keys() if name != "id"}  # noqa: SIM118
        sessions = self._database.rows("SELECT * FROM sessions WHERE id = ?", (run["session_id"],))
        session = dict(sessions[0]) if sessions else {}
        return {"run": run, "session": session}

    # ---- the start

    def _rebuild(self) -> None:
        """Make the rows agree with the folders, and say what does not."""
        findings = look_at(self.root)

        def agree(connection: sqlite3.Connection) -> None:
            cursor = connection.execute("SELECT * FROM checkpoints")
            cursor.row_factory = sqlite3.Row
            rows = {entry.path: entry for entry in map(checkpoint_from_row, cursor.fetchall())}
            named = {entry.folder for entry in rows.values()}
            for relative in finish_deletions(self.root, named):
                log.info("%s was about to be deleted when an engine was killed: kept", relative)
            self._add_missing_rows(connection, rows, findings)

        self._database.write(agree)
        swept = sweep_half_written(self.root)
        if swept:
            log.info("removed %d half-written folders of engines that were killed", swept)
        for replaced in findings.replaced():
            self._remove_folder(replaced)
        stored = self._all()
        listed = {self.weights_folder(entry) for entry in stored}
        _log_lines([note for place, note in findings.strange if place not in listed])
        _log_lines(findings.damaged)
        gone = [entry for entry in stored if not self.weights_folder(entry).is_dir()]
        _log_lines(
            [
                f"{entry.path} is in the database, but its folder {entry.folder} is gone: not "
                "listed"
                for entry in gone
            ]
        )

    def _all(self) -> list[StoredCheckpoint]:
        return [
            checkpoint_from_row(row) for row in self._database.rows("SELECT * FROM checkpoints")
        ]

    def _add_missing_rows(
        self,
        connection: sqlite3.Connection,
        rows: dict[TinkerPath, StoredCheckpoint],
        findings: Findings,
    ) -> None:
        added: list[str] = []
        for path in findings.by_path:
            row = rows.get(path)
            current = findings.choose(path, None if row is None else self.root / row.folder)
            if not current.folder.is_dir():
                continue  # another engine has deleted it meanwhile
            _add_run(connection, current)
            if row is not None and "format" not in current.facts:
                self._keep_labels(row, current)
                if row.folder == current.folder.relative_to(self.root).as_posix():
                    continue  # nothing in the folder knows better
            wanted = self._as_row(current)
            if row is not None and current.labels_damaged:
                wanted = replace(wanted, public=row.public, expires=row.expires)
            if wanted == row:
                continue
            columns = checkpoint_columns(wanted)
            connection.execute(insertion("checkpoints", columns), tuple(columns.values()))
            if row is None:
                added.append(str(path))
        if added:
            more = len(added) - _NAMED_AT_START
            log.warning(
                "checkpoints without a row in the database, listed again from their folders: %s%s",
                ", ".join(added[:_NAMED_AT_START]),
                f" and {more:,} more" if more > 0 else "",
            )

    def _as_row(self, current: CheckpointFolder) -> StoredCheckpoint:
        labels = current.labels
        return StoredCheckpoint(
            path=current.path,
            created=float(current.facts["created"]),
            size_bytes=current.size_bytes,
            public=bool(labels.get("public")),
            user_metadata=labels.get("user_metadata"),
            expires=labels.get("expires"),
            recipients=labels.get("recipients") or [],
            folder=current.folder.relative_to(self.root).as_posix(),
        )

    def _keep_labels(self, row: StoredCheckpoint, current: CheckpointFolder) -> None:
        """Write into a folder of an older version what only its row knows."""
        plain = not (row.public or row.expires or row.recipients or row.user_metadata)
        if plain or (current.folder / LABELS).exists():
            return
        try:
            write_labels(current.folder, row.labels())
        except OSError as error:
            log.warning("could not write %s of %s: %s", LABELS, row.path, error)


def make_folder(folder: Path) -> None:
    """Create one of the engine's folders: all of them are made here."""
    folder.mkdir(parents=True, exist_ok=True)


def damage_of(path: TinkerPath, damage: DamagedFile) -> str:
    """What a user reads of a file that is not as it was saved."""
    if isinstance(damage, ForeignFile):
        return (
            f"{damage.file} does not belong to {path}: {damage}. Move the file elsewhere, then try "
            "again."
        )
    return damage_sentence(path, damage.file, str(damage))


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turn errors of the disk into a sentence that names the engine's folder.

    Raises:
        StorageFailure: the disk is full, not writable, or broken.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        code = getattr(error, "errno", None)
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            os.strerror(number) in reason for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        )
        if full:
            raise StorageFailure(full_disk_sentence(folder, reason)) from error
        raise StorageFailure(
            f"the engine could not use its disk: {folder}: {reason}; nothing was changed. Make it "
            "readable and writable for this user, or look at the disk, then try again."
        ) from error


def damage_sentence(path: TinkerPath, file: str, reason: str) -> str:
    """What a user reads of a damaged checkpoint."""
    return (
        f"{file} of {path} is damaged: {reason}. Delete this checkpoint and use an earlier one, or "
        "put the file back from a backup."
    )


def _add_run(connection: sqlite3.Connection, current: CheckpointFolder) -> None:
    """Add the run of a checkpoint, and its session, where they have no row or a wrong one."""
    run, session = current_run(current)
    cursor = connection.execute("SELECT * FROM runs WHERE id = ?", (run["id"],))
    cursor.row_factory = sqlite3.Row
    row = cursor.fetchone()
    fixed = ("base_model", "rank", "train_attn", "train_mlp", "train_unembed")
    good = row is not None and (
        "format" not in current.facts or all(row[name] == run[name] for name in fixed)
    )
    if not good:
        connection.execute(insertion("runs", run), tuple(run.values()))
    connection.execute(
        insertion("sessions", session).replace("OR REPLACE", "OR IGNORE"), tuple(session.values())
    )


def _row_of(connection: sqlite3.Connection, path: TinkerPath) -> StoredCheckpoint | None:
    cursor = connection.execute(
        "SELECT * FROM checkpoints WHERE run_id = ? AND segment = ? AND name = ?",
        (path.run_id, path.segment, path.name),
    )
    cursor.row_factory = sqlite3.Row
    row = cursor.fetchone()
    return None if row is None else checkpoint_from_row(row)


def _delete_row(connection: sqlite3.Connection, path: TinkerPath, root: Path) -> Path | None:
    """Delete a checkpoint's row, and return the folder that it named."""
    stored = _row_of(connection, path)
    connection.execute(
        "DELETE FROM checkpoints WHERE run_id = ? AND segment = ? AND name = ?",
        (path.run_id, path.segment, path.name),
    )
    return None if stored is None else root / stored.folder


def _log_lines(lines: list[str]) -> None:
    for line in lines[:_NAMED_AT_START]:
        log.warning("%s", line)
    if len(lines) > _NAMED_AT_START:
        log.warning(
            "and %d more like this: `tinkersmith engine check` lists them",
            len(lines) - _NAMED_AT_START,
        )


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)  # files of a checkpoint are never changed
    except OSError:
        shutil.copy2(source, target)
