"""Training runs, checkpoints and samplers on disk: an index in SQLite, weights in folders.

A folder of weights is complete before its row names it, and a new version gets a folder of its
own: if the engine is killed at any moment, either the old checkpoint or the new one is intact.
Several engines may share one directory.
"""

import datetime as dt
import json
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.engine.errors import NotFound, Refused
from tinkersmith.engine.messages import LoraConfig

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_LEFTOVER_AGE = 3600  # seconds after which no engine still writes to a folder without a row
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MIGRATIONS = [  # applied in order; the database's user_version counts them
    """
    CREATE TABLE IF NOT EXISTS sessions (
      id TEXT PRIMARY KEY, created REAL NOT NULL, user_metadata TEXT);
    CREATE TABLE IF NOT EXISTS runs (
      id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL,
      rank INTEGER NOT NULL, seed INTEGER, train_attn INTEGER NOT NULL, train_mlp INTEGER NOT NULL,
      train_unembed INTEGER NOT NULL, user_metadata TEXT, created REAL NOT NULL,
      last_request REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS checkpoints (
      run_id TEXT NOT NULL, segment TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
      size_bytes INTEGER NOT NULL, public INTEGER NOT NULL DEFAULT 0, user_metadata TEXT,
      expires REAL, recipients TEXT, PRIMARY KEY (run_id, segment, name));
    CREATE TABLE IF NOT EXISTS samplers (
      id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL, model_path TEXT,
      created REAL NOT NULL);
    """,
    """
    ALTER TABLE sessions ADD COLUMN display_name TEXT;
    ALTER TABLE checkpoints ADD COLUMN folder TEXT;
    CREATE INDEX runs_of_session ON runs (session_id);
    CREATE INDEX samplers_of_session ON samplers (session_id);
    """,
]


@dataclass(frozen=True, slots=True)
class TinkerPath:
    """tinker://<run>/<segment>/<name>"""

    run_id: str
    segment: str
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.segment}/{self.name}"


def parse_path(text: str) -> TinkerPath:
    """Read a tinker:// path.

    Raises:
        Refused: the text is not such a path.
    """
    parts = text.removeprefix("tinker://").split("/")
    if not text.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
        raise Refused(
            f"{text!r} is not a tinker path; it looks like tinker://RUN/weights/NAME or "
            "tinker://RUN/sampler_weights/NAME."
        )
    return TinkerPath(*parts)


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """One row of the checkpoints."""

    path: TinkerPath
    created: float  # Unix seconds, as all times here
    size_bytes: int
    public: bool
    user_metadata: dict[str, str] | None
    expires: float | None
    recipients: list[str]  # age public keys that its download is encrypted for
    folder: str  # below the checkpoints folder

    def to_json(self) -> dict[str, Any]:
        """The fields of the SDK's `Checkpoint`."""
        return {
            "checkpoint_id": f"{self.path.segment}/{self.path.name}",
            "checkpoint_type": KINDS[self.path.segment],
            "time": iso(self.created),
            "tinker_path": str(self.path),
            "size_bytes": self.size_bytes,
            "public": self.public,
            "user_metadata": self.user_metadata,
            "expires_at": None if self.expires is None else iso(self.expires),
        }


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One row of the sessions."""

    id: str
    created: float  # Unix seconds, rounded like `iso` rounds them: a search's cursor must match
    user_metadata: dict[str, str] | None
    display_name: str | None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One row of the training runs."""

    id: str
    session_id: str
    base_model: str
    lora: LoraConfig
    user_metadata: dict[str, str] | None
    last_request: float


@dataclass(frozen=True, slots=True)
class StoredSampler:
    """One row of the samplers."""

    id: str
    base_model: str
    model_path: str | None  # None: the base model alone


class Store:
    """The index and the folders. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "engine.sqlite", timeout=30, check_same_thread=False, isolation_level=None
        )
        self._use_wal()
        self._migrate()
        self._sweep_leftovers()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _use_wal(self) -> None:
        """Retry while another engine does the same: SQLite's timeout does not cover this pragma."""
        for _ in range(300):
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                time.sleep(0.1)
        raise sqlite3.OperationalError(f"{self.folder / 'engine.sqlite'} stays locked")

    def _migrate(self) -> None:
        """Bring the tables up to date.

        Raises:
            Refused: a newer version of this engine wrote them.
        """
        with self._transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(_MIGRATIONS):
                raise Refused(
                    f"{self.folder} was written by a newer version of this engine; "
                    "use that version, or another folder."
                )
            for script in _MIGRATIONS[version:]:
                for statement in script.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    # ---- sessions and runs

    def add_session(
        self, session_id: str, user_metadata: dict[str, str], display_name: str | None
    ) -> None:
        self._insert(
            "sessions",
            id=session_id,
            created=time.time(),
            user_metadata=json.dumps(user_metadata),
            display_name=display_name,
        )

    def session(self, session_id: str) -> StoredSession:
        """The session with this id.

        Raises:
            NotFound: there is no such session.
        """
        rows = self._rows("SELECT * FROM sessions WHERE id = ?", (session_id,))
        if not rows:
            raise NotFound(f"there is no session {session_id}.")
        return _session(rows[0])

    def sessions(self) -> list[StoredSession]:
        """All sessions, newest first."""
        rows = self._rows("SELECT * FROM sessions ORDER BY created DESC, id DESC")
        return [_session(row) for row in rows]

    def add_run(self, run: StoredRun) -> None:
        self._insert(
            "runs",
            id=run.id,
            session_id=run.session_id,
            base_model=run.base_model,
            rank=run.lora.rank,
            seed=run.lora.seed,
            train_attn=run.lora.train_attn,
            train_mlp=run.lora.train_mlp,
            train_unembed=run.lora.train_unembed,
            user_metadata=json.dumps(run.user_metadata),
            created=time.time(),
            last_request=run.last_request,
        )

    def touch_run(self, run_id: str) -> None:
        self._execute("UPDATE runs SET last_request = ? WHERE id = ?", (time.time(), run_id))

    def run(self, run_id: str) -> StoredRun:
        """The run with this id.

        Raises:
            NotFound: there is no such run.
        """
        rows = self._rows("SELECT * FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise NotFound(f"there is no training run {run_id}.")
        return _run(rows[0])

    def runs(self, session_id: str | None = None) -> list[StoredRun]:
        """All runs, or those of one session; newest first."""
        where, values = ("WHERE session_id = ?", (session_id,)) if session_id else ("", ())
        rows = self._rows(f"SELECT * FROM runs {where} ORDER BY created DESC", values)
        return [_run(row) for row in rows]

    # ---- samplers

    def add_sampler(
        self, sampler_id: str, session_id: str, base_model: str, model_path: str | None
    ) -> None:
        self._replace(
            "samplers",
            id=sampler_id,
            session_id=session_id,
            base_model=base_model,
            model_path=model_path,
            created=time.time(),
        )

    def sampler(self, sampler_id: str) -> StoredSampler:
        """The sampler with this id.

        Raises:
            NotFound: there is no such sampler.
        """
        rows = self._rows("SELECT * FROM samplers WHERE id = ?", (sampler_id,))
        if not rows:
            raise NotFound(f"there is no sampler {sampler_id}.")
        return StoredSampler(rows[0]["id"], rows[0]["base_model"], rows[0]["model_path"])

    def sampler_ids(self, session_id: str) -> list[str]:
        rows = self._rows(
            "SELECT id FROM samplers WHERE session_id = ? ORDER BY created", (session_id,)
        )
        return [row["id"] for row in rows]

    # ---- checkpoints

    def weights_folder(self, checkpoint: StoredCheckpoint) -> Path:
        return self.folder / "checkpoints" / checkpoint.folder

    def new_weights_folder(self, path: TinkerPath) -> Path:
        """A folder for the weights of `path` that does not exist yet, beside an earlier version."""
        folder = self.folder / "checkpoints" / _file_name(path.run_id) / path.segment / path.name
        if not folder.exists():
            return folder
        return folder.with_name(f"{path.name}.{secrets.token_hex(4)}")

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
        if not overwrite and self._find(path) is not None:
            raise Refused(f"{path} already exists; choose another name or pass overwrite=True.")

    def add_checkpoint(
        self,
        path: TinkerPath,
        folder: Path,
        user_metadata: dict[str, str] | None = None,
        ttl_seconds: int | None = None,
        recipients: list[str] | None = None,
    ) -> StoredCheckpoint:
        """Register a checkpoint whose `folder` is complete; delete an earlier one of this name."""
        old = self._find(path)
        now = time.time()
        new = StoredCheckpoint(
            path=path,
            created=now,
            size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
            public=False,
            user_metadata=user_metadata,
            expires=None if ttl_seconds is None else now + ttl_seconds,
            recipients=recipients or [],
            folder=folder.relative_to(self.folder / "checkpoints").as_posix(),
        )
        self._replace(
            "checkpoints",
            run_id=path.run_id,
            segment=path.segment,
            name=path.name,
            created=new.created,
            size_bytes=new.size_bytes,
            public=new.public,
            user_metadata=json.dumps(user_metadata),
            expires=new.expires,
            recipients=json.dumps(new.recipients),
            folder=new.folder,
        )
        if old is not None:
            shutil.rmtree(self.weights_folder(old), ignore_errors=True)
        return new

    def checkpoint(self, path: TinkerPath) -> StoredCheckpoint:
        """The checkpoint of this path.

        Raises:
            Refused: there is no such checkpoint, or it has expired.
        """
        checkpoint = self._find(path)
        if checkpoint is None:
            raise Refused(f"{path} does not exist here; list_user_checkpoints shows what does.")
        return checkpoint

    def checkpoints(self, run_id: str | None = None) -> list[StoredCheckpoint]:
        """All checkpoints, or those of one run; newest first."""
        self._expire()
        where, values = ("WHERE run_id = ?", (run_id,)) if run_id else ("", ())
        rows = self._rows(
            f"SELECT * FROM checkpoints {where} ORDER BY created DESC, rowid DESC", values
        )
        return [_checkpoint(row) for row in rows]

    def delete_checkpoint(self, path: TinkerPath) -> None:
        self._forget(self.checkpoint(path))

    def set_public(self, path: TinkerPath, public: bool) -> None:
        self._update(self.checkpoint(path).path, "public", public)

    def set_ttl(self, path: TinkerPath, ttl_seconds: int | None) -> None:
        expires = None if ttl_seconds is None else time.time() + ttl_seconds
        self._update(self.checkpoint(path).path, "expires", expires)

    def _find(self, path: TinkerPath) -> StoredCheckpoint | None:
        self._expire()
        rows = self._rows(
            "SELECT * FROM checkpoints WHERE run_id = ? AND segment = ? AND name = ?",
            (path.run_id, path.segment, path.name),
        )
        return _checkpoint(rows[0]) if rows else None

    def _update(self, path: TinkerPath, column: str, value: object) -> None:
        self._execute(
            f"UPDATE checkpoints SET {column} = ? WHERE run_id = ? AND segment = ? AND name = ?",
            (value, path.run_id, path.segment, path.name),
        )

    def _forget(self, checkpoint: StoredCheckpoint) -> None:
        self._execute(
            "DELETE FROM checkpoints WHERE run_id = ? AND segment = ? AND name = ?",
            (checkpoint.path.run_id, checkpoint.path.segment, checkpoint.path.name),
        )
        shutil.rmtree(self.weights_folder(checkpoint), ignore_errors=True)

    def _expire(self) -> None:
        rows = self._rows("SELECT * FROM checkpoints WHERE expires < ?", (time.time(),))
        for row in rows:
            self._forget(_checkpoint(row))

    def _sweep_leftovers(self) -> None:
        """Remove what killed engines left behind: folders that no row of a checkpoint names."""
        named = {checkpoint.folder for checkpoint in self.checkpoints()}
        root = self.folder / "checkpoints"
        for folder in root.glob("*/*/*"):
            if folder.relative_to(root).as_posix() in named:
                continue
            try:
                if time.time() - folder.stat().st_mtime > _LEFTOVER_AGE:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:  # another engine was faster
                continue

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with self._lock:
            cursor = self._connection.execute(query, values)
            cursor.row_factory = sqlite3.Row
            return cursor.fetchall()

    def _insert(self, table: str, **columns: object) -> None:
        self._execute(f"INSERT INTO {table} {_columns(columns)}", tuple(columns.values()))

    def _replace(self, table: str, **columns: object) -> None:
        """Insert a row, in the place of an earlier one with its key."""
        query = f"INSERT OR REPLACE INTO {table} {_columns(columns)}"
        self._execute(query, tuple(columns.values()))

    def _execute(self, query: str, values: tuple[Any, ...]) -> None:
        with self._lock:
            self._connection.execute(query, values)  # a transaction of its own

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def iso(seconds: float) -> str:
    """A Unix time in ISO 8601, in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


def _columns(names: Iterable[str]) -> str:
    listed = list(names)
    return f"({', '.join(listed)}) VALUES ({', '.join('?' for _ in listed)})"


def _file_name(run_id: str) -> str:
    return run_id.replace(":", "_")  # Windows allows no colon


def _session(row: sqlite3.Row) -> StoredSession:
    return StoredSession(
        id=row["id"],
        created=round(row["created"], 6),
        user_metadata=json.loads(row["user_metadata"]),
        display_name=row["display_name"],
    )


def _run(row: sqlite3.Row) -> StoredRun:
    flags = {name: bool(row[name]) for name in ("train_attn", "train_mlp", "train_unembed")}
    return StoredRun(
        id=row["id"],
        session_id=row["session_id"],
        base_model=row["base_model"],
        lora=LoraConfig(rank=row["rank"], seed=row["seed"], **flags),
        user_metadata=json.loads(row["user_metadata"]),
        last_request=row["last_request"],
    )


def _checkpoint(row: sqlite3.Row) -> StoredCheckpoint:
    return StoredCheckpoint(
        path=TinkerPath(row["run_id"], row["segment"], row["name"]),
        created=row["created"],
        size_bytes=row["size_bytes"],
        public=bool(row["public"]),
        user_metadata=json.loads(row["user_metadata"]),
        expires=row["expires"],
        recipients=json.loads(row["recipients"]),
        folder=row["folder"] or f"{_file_name(row['run_id'])}/{row['segment']}/{row['name']}",
    )
