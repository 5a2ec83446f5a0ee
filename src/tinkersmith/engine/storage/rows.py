"""Rows of engine.sqlite <-> what they stand for: sessions, runs, samplers and checkpoints."""

import datetime as dt
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import ADAMW, LoraConfig
from tinkersmith.engine.storage.folders import KINDS, TinkerPath, file_name


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

    def to_json(self, base_model: str) -> dict[str, Any]:
        """The fields of the SDK's `Checkpoint`; `base_model` is its run's."""
        return {
            "base_model": base_model,  # for tinker 0.39; older ones ignore it
            "checkpoint_id": f"{self.path.segment}/{self.path.name}",
            "checkpoint_type": KINDS[self.path.segment],
            "time": iso(self.created),
            "tinker_path": str(self.path),
            "size_bytes": self.size_bytes,
            "public": self.public,
            "user_metadata": self.user_metadata,
            "expires_at": None if self.expires is None else iso(self.expires),
        }

    def labels(self) -> dict[str, object]:
        """What a row knows that the weights do not say."""
        return {
            "public": self.public,
            "expires": self.expires,
            "recipients": self.recipients,
            "user_metadata": self.user_metadata,
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
    optimizer: str = ADAMW


@dataclass(frozen=True, slots=True)
class StoredSampler:
    """One row of the samplers."""

    id: str
    base_model: str
    model_path: str | None  # None: the base model alone


def iso(seconds: float) -> str:
    """A Unix time in ISO 8601, in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


def run_columns(run: StoredRun) -> dict[str, object]:
    """The columns of a run's row, but for its times."""
    return {
        "id": run.id,
        "session_id": run.session_id,
        "base_model": run.base_model,
        "rank": run.lora.rank,
        "seed": run.lora.seed,
        "train_attn": run.lora.train_attn,
        "train_mlp": run.lora.train_mlp,
        "train_unembed": run.lora.train_unembed,
        "user_metadata": json.dumps(run.user_metadata),
        "optimizer": run.optimizer,
    }


def checkpoint_columns(checkpoint: StoredCheckpoint) -> dict[str, object]:
    """The columns of a checkpoint's row."""
    return {
        "run_id": checkpoint.path.run_id,
        "segment": checkpoint.path.segment,
        "name": checkpoint.path.name,
        "created": checkpoint.created,
        "size_bytes": checkpoint.size_bytes,
        "public": checkpoint.public,
        "user_metadata": json.dumps(checkpoint.user_metadata),
        "expires": checkpoint.expires,
        "recipients": json.dumps(checkpoint.recipients),
        "folder": checkpoint.folder,
    }


def check_rows(connection: sqlite3.Connection) -> None:
    """Read every row as what it is.

    Raises:
        ValueError, TypeError: one cannot be read, because its page is damaged.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < 3:
        return  # of an older version: its tables are brought up to date first
    readers: tuple[tuple[str, Callable[[sqlite3.Row], object]], ...] = (
        ("sessions", session_from_row),
        ("runs", run_from_row),
        ("checkpoints", checkpoint_from_row),
        ("samplers", lambda row: _text(row["id"]) + _text(row["base_model"])),
    )
    for table, reader in readers:
        try:
            cursor = connection.execute(f"SELECT * FROM {table}")
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            raise ValueError(str(error)) from None
        cursor.row_factory = sqlite3.Row
        for row in cursor:
            try:
                reader(row)
            except (Refused, IndexError, AttributeError, OverflowError) as error:
                raise ValueError(f"{table}: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def session_from_row(row: sqlite3.Row) -> StoredSession:
    return StoredSession(
        id=_text(row["id"]),
        created=round(row["created"], 6),
        user_metadata=json.loads(row["user_metadata"]),
        display_name=row["display_name"],
    )


def run_from_row(row: sqlite3.Row) -> StoredRun:
    flags = {name: bool(row[name]) for name in ("train_attn", "train_mlp", "train_unembed")}
    return StoredRun(
        id=_text(row["id"]),
        session_id=_text(row["session_id"]),
        base_model=_text(row["base_model"]),
        lora=LoraConfig(rank=row["rank"], seed=row["seed"], **flags),
        user_metadata=json.loads(row["user_metadata"]),
        last_request=row["last_request"],
        optimizer=_text(row["optimizer"]),
    )


def checkpoint_from_row(row: sqlite3.Row) -> StoredCheckpoint:
    path = TinkerPath(_text(row["run_id"]), _text(row["segment"]), _text(row["name"]))
    return StoredCheckpoint(
        path=path,
        created=row["created"],
        size_bytes=row["size_bytes"],
        public=bool(row["public"]),
        user_metadata=json.loads(row["user_metadata"]),
        expires=row["expires"],
        recipients=json.loads(row["recipients"]),
        folder=row["folder"] or f"{file_name(path.run_id)}/{path.segment}/{path.name}",
    )
