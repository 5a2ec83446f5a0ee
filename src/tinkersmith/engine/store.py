"""Training runs, checkpoints and samplers on disk: facts in SQLite, weights in safetensors folders.

A folder of weights is complete before its row is written, so a kill at any moment leaves either the
whole checkpoint or none. Several engines may share one directory.
"""

import datetime as dt
import json
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import LoraConfig

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_LEFTOVER_AGE = 24 * 3600  # seconds after which a temporary folder surely has no living writer
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
  id TEXT PRIMARY KEY, created REAL NOT NULL, user_metadata TEXT);
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL, rank INTEGER NOT NULL,
  seed INTEGER, train_attn INTEGER NOT NULL, train_mlp INTEGER NOT NULL,
  train_unembed INTEGER NOT NULL, user_metadata TEXT, created REAL NOT NULL,
  last_request REAL NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (
  run_id TEXT NOT NULL, segment TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
  size_bytes INTEGER NOT NULL, public INTEGER NOT NULL DEFAULT 0, user_metadata TEXT,
  expires REAL, recipients TEXT, PRIMARY KEY (run_id, segment, name));
CREATE TABLE IF NOT EXISTS samplers (
  id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL, model_path TEXT,
  created REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class TinkerPath:
    """tinker://<run>/<segment>/<name>"""

    run_id: str
    segment: str
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.segment}/{self.name}"


def parse_path(text: str) -> TinkerPath:
    parts = text.removeprefix("tinker://").split("/")
    if not text.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
        raise Refused(
            f"{text!r} is not a tinker path; it looks like tinker://RUN/weights/NAME or "
            "tinker://RUN/sampler_weights/NAME."
        )
    return TinkerPath(*parts)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: TinkerPath
    created: float
    size_bytes: int
    public: bool
    user_metadata: dict[str, str] | None
    expires: float | None
    recipients: list[str]

    def to_json(self) -> dict[str, Any]:
        """As the SDK's `Checkpoint`."""
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
class Run:
    id: str
    session_id: str
    base_model: str
    lora: LoraConfig
    user_metadata: dict[str, Any] | None
    last_request: float


class Store:
    """Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "engine.sqlite", timeout=30, check_same_thread=False, isolation_level=None
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.executescript(_SCHEMA)
        self._sweep_leftovers()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ---- sessions and runs

    def add_session(self, session_id: str, user_metadata: Any) -> None:
        self._execute(
            "INSERT INTO sessions VALUES (?, ?, ?)",
            (session_id, time.time(), json.dumps(user_metadata)),
        )

    def session_metadata(self, session_id: str) -> Any:
        """Raises: KeyError: there is no such session."""
        rows = self._rows("SELECT user_metadata FROM sessions WHERE id = ?", (session_id,))
        if not rows:
            raise KeyError(session_id)
        return json.loads(rows[0]["user_metadata"])

    def session_ids(self) -> list[str]:
        return [row["id"] for row in self._rows("SELECT id FROM sessions ORDER BY created DESC")]

    def add_run(self, run: Run) -> None:
        lora = run.lora
        self._execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(run.id, run.session_id, run.base_model, lora.rank, lora.seed),
                *(lora.train_attn, lora.train_mlp, lora.train_unembed),
                *(json.dumps(run.user_metadata), time.time(), run.last_request),
            ),
        )

    def touch_run(self, run_id: str) -> None:
        self._execute("UPDATE runs SET last_request = ? WHERE id = ?", (time.time(), run_id))

    def run(self, run_id: str) -> Run:
        """Raises: KeyError: there is no such run."""
        rows = self._rows("SELECT * FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise KeyError(run_id)
        return _run(rows[0])

    def runs(self) -> list[Run]:
        return [_run(row) for row in self._rows("SELECT * FROM runs ORDER BY created DESC")]

    # ---- samplers

    def add_sampler(
        self, sampler_id: str, session_id: str, base_model: str, model_path: str | None
    ) -> None:
        self._execute(
            "INSERT OR REPLACE INTO samplers VALUES (?, ?, ?, ?, ?)",
            (sampler_id, session_id, base_model, model_path, time.time()),
        )

    def sampler(self, sampler_id: str) -> dict[str, Any]:
        """Raises: KeyError: there is no such sampler."""
        rows = self._rows("SELECT * FROM samplers WHERE id = ?", (sampler_id,))
        if not rows:
            raise KeyError(sampler_id)
        return dict(rows[0])

    def sampler_ids(self, session_id: str) -> list[str]:
        rows = self._rows(
            "SELECT id FROM samplers WHERE session_id = ? ORDER BY created", (session_id,)
        )
        return [row["id"] for row in rows]

    # ---- checkpoints

    def weights_folder(self, path: TinkerPath) -> Path:
        return self.folder / "checkpoints" / _file_name(path.run_id) / path.segment / path.name

    def check_new(self, path: TinkerPath, overwrite: bool) -> None:
        """Raises: Refused: the name is unfit, or taken."""
        if not _NAME.fullmatch(path.name):
            raise Refused(
                f"the checkpoint name {path.name!r} must be 1 to 128 letters, digits, '.', '_' or "
                "'-', and begin with a letter or digit."
            )
        if not overwrite and any(found.path == path for found in self.checkpoints(path.run_id)):
            raise Refused(f"{path} exists already; choose another name or pass overwrite=True.")

    def add_checkpoint(
        self,
        path: TinkerPath,
        user_metadata: dict[str, str] | None = None,
        ttl_seconds: int | None = None,
        recipients: list[str] | None = None,
    ) -> Checkpoint:
        """Enter a checkpoint whose folder is complete."""
        size = sum(file.stat().st_size for file in self.weights_folder(path).iterdir())
        now = time.time()
        self._execute(
            "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)",
            (
                *(path.run_id, path.segment, path.name, now, size, json.dumps(user_metadata)),
                None if ttl_seconds is None else now + ttl_seconds,
                json.dumps(recipients or []),
            ),
        )
        return self.checkpoint(path)

    def checkpoint(self, path: TinkerPath) -> Checkpoint:
        """Raises: Refused: there is no such checkpoint, or it has expired."""
        for found in self.checkpoints(path.run_id):
            if found.path == path:
                return found
        raise Refused(f"{path} does not exist here; list_checkpoints shows what does.")

    def checkpoints(self, run_id: str | None = None) -> list[Checkpoint]:
        self._expire()
        where, values = ("WHERE run_id = ?", (run_id,)) if run_id else ("", ())
        rows = self._rows(f"SELECT * FROM checkpoints {where} ORDER BY created DESC", values)
        return [_checkpoint(row) for row in rows]

    def delete_checkpoint(self, path: TinkerPath) -> None:
        self.checkpoint(path)
        self._forget(path)

    def set_public(self, path: TinkerPath, public: bool) -> None:
        self.checkpoint(path)
        self._update(path, "public", public)

    def set_ttl(self, path: TinkerPath, ttl_seconds: int | None) -> None:
        self.checkpoint(path)
        self._update(path, "expires", None if ttl_seconds is None else time.time() + ttl_seconds)

    def _update(self, path: TinkerPath, column: str, value: Any) -> None:
        self._execute(
            f"UPDATE checkpoints SET {column} = ? WHERE run_id = ? AND segment = ? AND name = ?",
            (value, path.run_id, path.segment, path.name),
        )

    def _forget(self, path: TinkerPath) -> None:
        self._execute(
            "DELETE FROM checkpoints WHERE run_id = ? AND segment = ? AND name = ?",
            (path.run_id, path.segment, path.name),
        )
        shutil.rmtree(self.weights_folder(path), ignore_errors=True)

    def _expire(self) -> None:
        rows = self._rows("SELECT * FROM checkpoints WHERE expires < ?", (time.time(),))
        for row in rows:
            self._forget(_checkpoint(row).path)

    def _sweep_leftovers(self) -> None:
        """Remove temporary folders that a killed engine left behind."""
        for folder in (self.folder / "checkpoints").glob("*/*/.*"):
            if time.time() - folder.stat().st_mtime > _LEFTOVER_AGE:
                shutil.rmtree(folder, ignore_errors=True)

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with self._locked() as connection:
            cursor = connection.execute(query, values)
            cursor.row_factory = sqlite3.Row
            return cursor.fetchall()

    def _execute(self, query: str, values: tuple[Any, ...]) -> None:
        with self._locked() as connection:
            connection.execute(query, values)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection


def iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


def _file_name(run_id: str) -> str:
    return run_id.replace(":", "_")


def _run(row: sqlite3.Row) -> Run:
    flags = {name: bool(row[name]) for name in ("train_attn", "train_mlp", "train_unembed")}
    return Run(
        id=row["id"],
        session_id=row["session_id"],
        base_model=row["base_model"],
        lora=LoraConfig(rank=row["rank"], seed=row["seed"], **flags),
        user_metadata=json.loads(row["user_metadata"]),
        last_request=row["last_request"],
    )


def _checkpoint(row: sqlite3.Row) -> Checkpoint:
    return Checkpoint(
        path=TinkerPath(row["run_id"], row["segment"], row["name"]),
        created=row["created"],
        size_bytes=row["size_bytes"],
        public=bool(row["public"]),
        user_metadata=json.loads(row["user_metadata"]),
        expires=row["expires"],
        recipients=json.loads(row["recipients"]),
    )
