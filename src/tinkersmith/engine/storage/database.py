"""The file engine.sqlite: opened, checked, migrated, and set aside when it is damaged.

Reads have a connection of their own: in WAL mode they wait for no writer, in whatever process.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tinkersmith.engine.errors import Refused, StorageFailure
from tinkersmith.engine.log import log

try:
    import fcntl
except ImportError:  # Windows: two engines must not be started at the same instant there
    fcntl = None

DATABASE = "engine.sqlite"
_T = TypeVar("_T")
LOCK_PATIENCE = 20.0  # seconds that a request waits while another program holds the database
_OPEN_LOCK = "engine.lock"  # held while an engine opens, checks or rebuilds the database
_BESIDE = ("", "-wal", "-shm")  # endings of the files of one database
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
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
    "ALTER TABLE runs ADD COLUMN optimizer TEXT NOT NULL DEFAULT 'adamw';",
]


class Database:
    """One engine's two connections to engine.sqlite. Safe to use from several threads.

    `rebuild` makes the rows from the folders of the checkpoints: it is called at `open`, and again
    whenever the file had to be replaced under way. `check_rows` raises a ValueError if the rows
    cannot be read as what they are.
    """

    def __init__(
        self,
        folder: Path,
        rebuild: Callable[[], None],
        check_rows: Callable[[sqlite3.Connection], None],
    ) -> None:
        self.folder, self.file = folder, folder / DATABASE
        self._rebuild, self._check_rows = rebuild, check_rows
        self._write_lock = threading.RLock()  # taken before the other where both are needed
        self._read_lock = threading.RLock()
        self._rebuilding = False
        self._asked = threading.local()
        self._identity: tuple[int, int] | None = None
        self._reader = self._writer = sqlite3.connect(":memory:")
        # Rows that exist nowhere else until a checkpoint of theirs is saved: they are written anew
        # if the file has to be replaced while this engine runs.
        self._rows_of_this_process: dict[tuple[str, str], dict[str, object]] = {}

    def open(self) -> None:
        """Open the file, which is checked, and made anew from the folders if it is damaged.

        Raises:
            StorageFailure: it is locked, or the folder cannot be written to.
            Refused: a newer version of this engine wrote it.
        """
        with self._write_lock, self._read_lock:
            self._open()

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    # ---- reading and writing

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """The rows of a query. Waits for no writer.

        Raises:
            StorageFailure: the database cannot be read.
        """

        def read() -> list[sqlite3.Row]:
            with self._read_lock:
                cursor = self._reader.execute(query, values)
                cursor.row_factory = sqlite3.Row
                return cursor.fetchall()

        return self._repairing(read)

    @contextmanager
    def asked_at(self, moment: float) -> Generator[None]:
        """Within the block, writes of this thread wait for a lock from `moment` on.

        A request that has waited for a thread does not get all of LOCK_PATIENCE once more.

        Args:
            moment: a time of time.monotonic().
        """
        self._asked.moment = moment
        try:
            yield
        finally:
            del self._asked.moment

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> None:
        """Run one statement in a transaction of its own; see `write`."""
        self.write(lambda connection: connection.execute(query, values))

    def insert(self, table: str, columns: Mapping[str, object], *, remember: bool = False) -> None:
        """Insert a row, in the place of an earlier one with its key; see `write`."""
        self.execute(insertion(table, columns), tuple(columns.values()))
        if remember:
            self._rows_of_this_process[table, str(columns["id"])] = dict(columns)

    def write(
        self, act: Callable[[sqlite3.Connection], object], *, patience: float | None = None
    ) -> None:
        """Call `act` in a transaction that no other engine's transaction overlaps.

        What `act` does to files happens before the commit, and is not undone if that fails.

        Raises:
            StorageFailure: the database is locked for longer than `patience` seconds, or it cannot
                be written.
        """
        asked: float = getattr(self._asked, "moment", time.monotonic())
        end = asked + (LOCK_PATIENCE if patience is None else patience)

        def attempt() -> None:
            if not self._write_lock.acquire(timeout=max(0, end - time.monotonic())):
                raise StorageFailure(_locked(self.folder))
            try:
                left = max(0, end - time.monotonic())
                self._writer.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
                with _transaction(self._writer):
                    act(self._writer)
            finally:
                self._write_lock.release()

        self._repairing(attempt)

    def _repairing(self, attempt: Callable[[], _T]) -> _T:
        """Call `attempt`, and once more on a new database if this one turns out to be damaged."""
        try:
            self._reopen_if_replaced()
            try:
                return attempt()
            except sqlite3.DatabaseError as error:
                if self._rebuilding or not _is_damage(error):
                    raise
                self._replace_damaged(error)
                return attempt()
        except sqlite3.Error as error:
            raise StorageFailure(database_sentence(error, self.folder)) from error

    def _reopen_if_replaced(self) -> None:
        """Follow engine.sqlite if another program has deleted it or put another in its place."""
        if self._rebuilding or self._identity == _identity(self.file):
            return
        with self._write_lock, self._read_lock:
            if self._identity != _identity(self.file):
                log.warning("%s was replaced or deleted: opening it anew", self.file)
                self._reader.close()
                self._writer.close()
                self._open()

    def _replace_damaged(self, error: sqlite3.Error) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()
            self._open(error)

    # ---- opening

    def _open(self, damage: sqlite3.Error | None = None) -> None:
        with _saying(f"waiting for {self.file}, which another program uses"), opening(self.folder):
            reason = str(damage) if damage else database_damage(self.file, self._check_rows)
            if reason is not None:
                aside = set_database_aside(self.file)
                log.warning(
                    "%s is damaged (%s): it is kept as %s, and a new one is made from the "
                    "checkpoints' folders; none of them is touched",
                    *(self.file, reason, aside.name),
                )
            elif self.file.exists() and self.file.stat().st_size == 0:
                log.warning("%s is empty: it is filled from the checkpoints' folders", self.file)
            try:
                self._writer = self._connect()
                self._reader = self._connect()
                self._identity = _identity(self.file)
                _migrate(self._writer, self.folder)
            except sqlite3.Error as error:
                raise StorageFailure(database_sentence(error, self.folder)) from error
            self._rebuilding = True
            try:
                for (table, _), columns in self._rows_of_this_process.items():
                    self.execute(insertion(table, columns), tuple(columns.values()))
                self._rebuild()
            finally:
                self._rebuilding = False

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.file, timeout=LOCK_PATIENCE, check_same_thread=False, isolation_level=None
        )
        end = time.monotonic() + LOCK_PATIENCE
        while True:  # SQLite's own timeout does not cover this pragma
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return connection
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > end:
                    connection.close()
                    raise
            time.sleep(0.1)


def insertion(table: str, columns: Iterable[str]) -> str:
    """The statement that inserts a row, in the place of an earlier one with its key."""
    names = list(columns)
    marks = ", ".join("?" for _ in names)
    return f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks})"


def database_sentence(error: sqlite3.Error, folder: Path) -> str:
    """What keeps the engine from using its database, where, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return _locked(folder)
    if code == sqlite3.SQLITE_FULL:
        return full_disk_sentence(folder, str(error))
    if code == sqlite3.SQLITE_NOTADB:
        return (
            f"the header of {folder / DATABASE} is invalid: the file is not a database; nothing "
            "was changed. Start the engine again: it sets the file aside and lists the "
            "checkpoints anew from their folders."
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return (
            f"{folder / DATABASE} is damaged ({error}); nothing was changed. Start the engine "
            "again: it sets the file aside and lists the checkpoints anew from their folders."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return (
            f"{folder / DATABASE} cannot be written ({error}); nothing was changed. Make {folder} "
            "writable for this user, or choose another --dir."
        )
    return (
        f"the engine could not use its disk: {folder / DATABASE}: {error}; nothing was changed. "
        f"The disk of {folder} may be full or broken: free some space there or look at it, then "
        "try again."
    )


def full_disk_sentence(folder: Path, reason: str) -> str:
    """The sentence for a disk without space."""
    return (
        f"the engine could not use its disk: the disk of {folder} is full ({reason}); nothing was "
        "changed. Free some space there, then try again."
    )


def database_damage(file: Path, check_rows: Callable[[sqlite3.Connection], None]) -> str | None:
    """In which way a database is damaged; None: it is whole, empty, or not there.

    Raises:
        StorageFailure: it is locked, or cannot be read.
    """
    try:
        if file.stat().st_size == 0:
            return None
    except FileNotFoundError:
        return None
    connection = None
    try:
        connection = connection_to_read(file)
        [(answer,), *_] = connection.execute("PRAGMA integrity_check(1)").fetchall()
        if answer != "ok":
            return str(answer).replace("\n", " ")
        check_rows(connection)
    except sqlite3.DatabaseError as error:
        if _is_damage(error):
            return str(error)
        raise StorageFailure(database_sentence(error, file.parent)) from error
    except (ValueError, TypeError) as error:
        return f"a row cannot be read: {error}"
    finally:
        if connection is not None:
            connection.close()
    return None


def connection_to_read(file: Path) -> sqlite3.Connection:
    """A connection that only reads, also where nothing can be written beside the file.

    Raises:
        sqlite3.Error: the file is no database, damaged, or locked.
    """
    # A read-only connection needs the file -shm, which may have to be made. Where that cannot be,
    # the folder cannot be written to, and nobody changes the file meanwhile.
    for mode in ("mode=ro", "mode=rw"):
        address = f"{file.resolve().as_uri()}?{mode}"
        connection = sqlite3.connect(address, uri=True, timeout=LOCK_PATIENCE, isolation_level=None)
        try:
            connection.execute("SELECT * FROM sqlite_master").fetchall()
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            code = error.sqlite_errorcode & 0xFF
            if code not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise
    return sqlite3.connect(f"{file.resolve().as_uri()}?immutable=1", uri=True)


def set_database_aside(file: Path) -> Path:
    """Rename a damaged database and what lies beside it; returns the new name."""
    stem = f"{file.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    number, aside = 1, file.with_name(stem)
    while any(Path(f"{aside}{ending}").exists() for ending in _BESIDE):
        number += 1
        aside = file.with_name(f"{stem}-{number}")
    for ending in reversed(_BESIDE):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{file}{ending}", f"{aside}{ending}")
    return aside


@contextmanager
def opening(folder: Path) -> Generator[None]:
    """Keep other engines from opening, replacing or rebuilding the database meanwhile."""
    if fcntl is None:
        yield
        return
    with (folder / _OPEN_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it, however this process ends
        yield


@contextmanager
def _saying(sentence: str) -> Generator[None]:
    """Log a sentence if the block takes longer than two seconds."""
    timer = threading.Timer(2.0, log.info, [sentence])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _locked(folder: Path) -> str:
    return (
        f"database is locked: another program has held {folder / DATABASE} for more than "
        f"{LOCK_PATIENCE:.0f} s; nothing was changed. End that program, such as an open sqlite3 "
        "shell or a backup, then try again."
    )


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _migrate(connection: sqlite3.Connection, folder: Path) -> None:
    with _transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise Refused(
                f"{folder} was written by a newer version of this engine; use that version, or "
                "another folder."
            )
        for script in _MIGRATIONS[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
